//! What the policy would do with a container that is only described: rounds, pause and bytes, without a container. Pure.
//!
//! The tests of the policy use it, and one test compares it with real migrations (`tests/rounds.rs`).

use std::time::Duration;

use super::orders::Limits;
use super::policy::{self, Decision, Measured, Next};

/// In which order a program writes its pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pattern {
    /// One after the other, again and again.
    Sweep,
    /// Any page at any time.
    Random,
}

/// A program.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Workload {
    /// Bytes that it uses.
    pub size: f64,
    /// Bytes of whole pages that it writes in a second while nothing holds it back.
    pub rate: f64,
    /// Bytes that it writes to at all.
    pub working_set: f64,
    /// How.
    pub pattern: Pattern,
}

/// Between the nodes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Path {
    /// Bytes a second.
    pub rate: f64,
    /// What a round costs that sends nothing.
    pub fixed: Duration,
    /// What the pause costs beside pages and [`Path::fixed`].
    pub state: Duration,
}

/// How a migration would go.
#[derive(Clone, Debug, PartialEq)]
pub struct Course {
    /// Pre-copy rounds.
    pub rounds: usize,
    /// The last decision.
    pub end: Decision,
    /// Bytes sent, those of the pause included; of a migration that is given up, those until then.
    pub bytes: f64,
    /// Pause; zero when it is given up.
    pub pause: Duration,
    /// Until the freeze, or until it is given up.
    pub elapsed: Duration,
    /// Bytes that the last round held back.
    pub held: f64,
    /// Per cent of its CPU time that the container lacked at the end.
    pub throttle: u32,
}

/// Rounds after which a migration is not followed any more: the policy ends far sooner.
const ENDLESS: usize = 10_000;

/// Lets the policy decide until it ends.
#[must_use]
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "sizes are positive and need no more than 52 bits"
)]
pub fn simulate(limits: &Limits, workload: &Workload, path: &Path) -> Course {
    let limited = if limits.bandwidth == 0 { path.rate } else { path.rate.min(limits.bandwidth as f64) };
    let set = workload.working_set.min(workload.size).max(1.0);
    let mut rounds: Vec<Measured> = Vec::new();
    let (mut elapsed, mut bytes, mut throttle) = (Duration::ZERO, 0.0, 0);
    // What the last round found written, what the one before it did, and what is held back.
    let (mut found, mut before, mut held) = (workload.size, 0.0_f64, 0.0_f64);
    loop {
        let number = rounds.len();
        // Of what is written in this round and was in the last one; of what was held back and is not written now.
        let again = match workload.pattern {
            Pattern::Sweep => (found + before - set).max(0.0),
            Pattern::Random => found * before / set,
        };
        let again = if number < 2 { 0.0 } else { again.min(found).min(before) };
        let cooled = (held - again).max(0.0);
        held = again;
        let sent = found - held + cooled;
        bytes += sent;
        let took = path.fixed + Duration::from_secs_f64(sent / limited);
        let measured = Measured {
            dirty: sent as u64,
            entries: 0,
            held: held as u64,
            took,
            fixed: path.fixed,
            rest: Duration::ZERO,
            throttle,
        };
        rounds.push(measured);
        elapsed += took;
        let mut decision = policy::decide(limits, &rounds, elapsed);
        let rest = policy::rest(&rounds, &decision);
        let written = workload.rate * (1.0 - f64::from(throttle) / 100.0);
        let fresh = |time: Duration| match workload.pattern {
            Pattern::Sweep => (written * time.as_secs_f64()).min(set),
            Pattern::Random => set * (1.0 - (-written * time.as_secs_f64() / set).exp()),
        };
        match decision.next {
            Next::Round => {}
            Next::Throttle(percent) => throttle = percent,
            Next::Cut | Next::GiveUp => {
                let last = (fresh(took) + held).min(set);
                let cut = decision.next == Next::Cut;
                let pause = path.state + path.fixed + Duration::from_secs_f64(last / path.rate);
                if cut {
                    bytes += last;
                }
                let pause = if cut { pause } else { Duration::ZERO };
                return Course { rounds: rounds.len(), end: decision, bytes, pause, elapsed, held, throttle };
            }
        }
        if let Some(last) = rounds.last_mut() {
            last.rest = rest;
        }
        elapsed += rest;
        before = if number == 0 { 0.0 } else { found };
        found = fresh(took + rest);
        if rounds.len() >= ENDLESS {
            decision.reason = "the policy does not end".to_owned();
            return Course {
                rounds: ENDLESS,
                end: decision,
                bytes,
                pause: Duration::MAX,
                elapsed,
                held,
                throttle,
            };
        }
    }
}

#[cfg(test)]
#[path = "simulate_tests.rs"]
mod tests;
