//! When to stop copying and freeze: a pure function of the rounds so far.
//!
//! Theory: with dirty rate D and link rate B, a round that took T leaves D x T dirty, and sending that takes
//! D x T / B. Rounds shrink while D < B, down to what the fixed cost of a round lets get dirty. More rounds do
//! not lower that floor, so the best moment to freeze is when the predicted pause no longer falls.

use std::time::Duration;

use super::orders::{Limits, OnTimeout};

/// What one round did, as measured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Measured {
    /// Bytes of dirty pages that it found and sent (pages with contents), and of changed files.
    pub dirty: u64,
    /// Files, directories and links that it sent or removed.
    pub entries: u64,
    /// Bytes of dirty pages that it found and held back: every round finds them dirty, so they wait for the last one.
    pub held: u64,
    /// From its begin until the target had everything in place.
    pub took: Duration,
    /// The part of `took` that does not grow with `dirty`: the scan of clean memory, the round trip.
    pub fixed: Duration,
    /// How long was waited after it before the next one.
    pub rest: Duration,
    /// Per cent of its CPU time that the container lacked while the round ran.
    pub throttle: u32,
}

impl Measured {
    /// What it sent, as the bytes that take so long.
    fn work(&self) -> u64 {
        self.dirty.saturating_add(self.entries.saturating_mul(ENTRY))
    }

    /// The time in which it sent that.
    fn sending(&self) -> Duration {
        self.took.saturating_sub(self.fixed)
    }

    /// That as bytes a second.
    #[expect(clippy::cast_precision_loss, reason = "rates need no more than 52 bits")]
    fn rate(&self) -> f64 {
        self.work() as f64 / self.sending().as_secs_f64().max(1e-6)
    }

    /// True when it was large or slow enough to say how fast the link is.
    fn tells(&self) -> bool {
        let work = self.work();
        work >= TELLING || (work >= TELLING / 16 && self.sending() >= TELLING_TIME)
    }
}

/// What to do after a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Another round.
    Round,
    /// Leave the container this many per cent less of the CPU time that it used, then another round.
    Throttle(u32),
    /// Freeze now.
    Cut,
    /// Abort: it does not converge within the limits.
    GiveUp,
}

impl Next {
    /// Its name in records.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Round => "NextRound",
            Self::Throttle(_) => "Throttle",
            Self::Cut => "Cut",
            Self::GiveUp => "GiveUp",
        }
    }
}

/// A decision with what it rests on.
#[derive(Clone, Debug, PartialEq)]
pub struct Decision {
    /// What to do.
    pub next: Next,
    /// Why, as a sentence.
    pub reason: String,
    /// How fast the container dirtied memory while the last round ran, bytes a second.
    pub dirty_rate: f64,
    /// How fast the link took it, bytes a second.
    pub transfer_rate: f64,
    /// The pause to expect from a switchover now; zero when it is not known yet.
    pub predicted: Duration,
    /// Bytes that are dirty now, as predicted.
    pub remaining: u64,
}

/// Cost of a switchover besides pages: freeze, state, restore, round trips. A first guess; the real one is in
/// the report of each migration.
pub const METADATA: Duration = Duration::from_millis(5);
/// The pause must fall by this factor for another round to be worth it.
const WORTH: f64 = 0.8;
/// Time from one round to the next when they hold back nearly everything.
const REST: Duration = Duration::from_millis(50);
/// The same when it is throttled, at most.
const LONG_REST: Duration = Duration::from_secs(1);
/// A container that dirties more than this part of what the link takes converges slowly or never: it is throttled, if
/// that is allowed.
const TOO_MUCH: f64 = 0.7;
/// Per cent of its CPU time that a throttled container loses in each step.
const STEP: u32 = 20;
/// The most that any policy may take, per cent.
pub const MAX_THROTTLE: u32 = 95;
/// Rounds that send no less than this, or that take no less time, say how fast the link is.
const TELLING: u64 = 4 << 20;
const TELLING_TIME: Duration = Duration::from_millis(200);
/// What a file costs besides its contents, as bytes that a quick link takes in that time: to open, make and name it.
const ENTRY: u64 = 16 << 10;

/// Decides after the last of `rounds`. `elapsed` is the time since Preparing began.
///
/// Always ends: at `max_rounds` or `timeout` the answer is Cut or `GiveUp`.
#[must_use]
pub fn decide(limits: &Limits, rounds: &[Measured], elapsed: Duration) -> Decision {
    let forecasts: Vec<Forecast> = (1..=rounds.len()).map(|n| forecast(&rounds[..n])).collect();
    let Some(now) = forecasts.last().copied() else {
        return Decision {
            next: Next::Round,
            reason: "nothing has been sent yet".to_owned(),
            dirty_rate: 0.0,
            transfer_rate: 0.0,
            predicted: Duration::ZERO,
            remaining: 0,
        };
    };
    let before = forecasts.iter().rev().nth(1).filter(|forecast| forecast.known);
    let fits = now.known && now.longest <= limits.max_downtime;
    let falls = before.is_none_or(|before| now.pause.as_secs_f64() < WORTH * before.pause.as_secs_f64());
    let ms = |pause: Duration| pause.as_secs_f64() * 1e3;
    let limit = ms(limits.max_downtime);

    let out_of = if u32::try_from(rounds.len()).unwrap_or(u32::MAX) >= limits.max_rounds {
        Some(format!("{} rounds are the limit", limits.max_rounds))
    } else if elapsed >= limits.timeout {
        Some(format!("{:?} have passed", limits.timeout))
    } else {
        None
    };
    let (next, reason) = if fits && now.remaining == 0 {
        (Next::Cut, format!("nothing is being dirtied; predicted pause {:.1} ms", ms(now.pause)))
    } else if fits && !falls {
        (
            Next::Cut,
            format!("predicted pause {:.1} ms no longer falls and is below {limit:.1} ms", ms(now.pause)),
        )
    } else if fits && now.pause <= METADATA + METADATA / 5 {
        (Next::Cut, format!("predicted pause {:.1} ms is nearly all fixed cost", ms(now.pause)))
    } else if let Some(out_of) = out_of {
        match (fits, limits.on_timeout) {
            (true, _) => (Next::Cut, format!("{out_of}; predicted pause {:.1} ms fits", ms(now.pause))),
            (false, OnTimeout::Force) => {
                (Next::Cut, format!("{out_of}; forced, predicted pause {:.1} ms", ms(now.pause)))
            }
            (false, OnTimeout::Abort) => (Next::GiveUp, format!("{out_of} and the {}", above(now, limit))),
        }
    } else if fits {
        (Next::Round, format!("predicted pause {:.1} ms would fit and still falls", ms(now.pause)))
    } else if !now.known {
        (Next::Round, "the dirty rate is not known yet".to_owned())
    } else if let Some(percent) = throttle(limits, rounds, now, falls) {
        (
            Next::Throttle(percent),
            format!("{} and does not fall; throttled by {percent} %", above(now, limit)),
        )
    } else if !falls && limits.on_timeout == OnTimeout::Force && rounds.len() >= 4 {
        (Next::Cut, format!("predicted pause {:.1} ms no longer falls; forced", ms(now.pause)))
    } else {
        (Next::Round, above(now, limit))
    };
    Decision {
        next,
        reason,
        dirty_rate: now.dirty_rate,
        transfer_rate: now.transfer_rate,
        predicted: if now.known { now.pause } else { Duration::ZERO },
        remaining: now.remaining,
    }
}

/// Why it does not fit.
fn above(now: Forecast, limit: f64) -> String {
    let (pause, longest) = (now.pause.as_secs_f64() * 1e3, now.longest.as_secs_f64() * 1e3);
    if pause > limit {
        format!("predicted pause {pause:.1} ms is above {limit:.1} ms")
    } else {
        format!("predicted pause {pause:.1} ms may become {longest:.1} ms, which is above {limit:.1} ms")
    }
}

/// How long to wait before the next round. A round that holds back nearly everything is over at once; more of them in no time
/// would find the same, and stop the program at each of its pages again and again.
#[must_use]
pub fn rest(rounds: &[Measured], decision: &Decision) -> Duration {
    let [.., before, last] = rounds else { return Duration::ZERO };
    let idle = last.held > 0 && last.held >= before.held && last.held > last.dirty;
    let on = matches!(decision.next, Next::Round | Next::Throttle(_));
    if !(idle && on) {
        return Duration::ZERO;
    }
    // A container that is being throttled is given as long as before: what it does not write in that time is worth sending.
    let slowed = last.throttle > 0 || decision.next != Next::Round;
    let time = if slowed { (before.took + before.rest).clamp(REST, LONG_REST) } else { REST };
    time.saturating_sub(last.took)
}

/// The next step of throttling, if it is time for one. What a round finds was dirtied while the one before it ran: the effect
/// of a step is known after two rounds.
fn throttle(limits: &Limits, rounds: &[Measured], now: Forecast, falls: bool) -> Option<u32> {
    let [.., before, last] = rounds else { return None };
    let most = limits.throttle.min(MAX_THROTTLE);
    let due = !falls && before.throttle == last.throttle && now.dirty_rate > TOO_MUCH * now.transfer_rate;
    (due && last.throttle < most).then(|| (last.throttle + STEP).min(most))
}

#[derive(Clone, Copy, Debug)]
struct Forecast {
    /// Two rounds are needed to know a dirty rate.
    known: bool,
    dirty_rate: f64,
    transfer_rate: f64,
    remaining: u64,
    pause: Duration,
    /// The pause if what the last round found is written again before the freeze. A program that writes to the same pages
    /// again and again dirties no fewer of them in a shorter time.
    longest: Duration,
}

#[expect(clippy::cast_precision_loss, reason = "rates need no more than 52 bits")]
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "`as` saturates, and the value is not negative"
)]
fn forecast(rounds: &[Measured]) -> Forecast {
    let transfer_rate = transfer_rate(rounds);
    let last = rounds.last().copied().unwrap_or_default();
    let Some(before) = rounds.len().checked_sub(2).and_then(|n| rounds.get(n)) else {
        return Forecast {
            known: false,
            dirty_rate: 0.0,
            transfer_rate,
            remaining: last.dirty,
            pause: Duration::MAX,
            longest: Duration::MAX,
        };
    };
    // What this round found was dirtied while the one before it ran, and until this one began.
    let interval = (before.took + before.rest).as_secs_f64().max(1e-6);
    // What waits for the last round does not grow with time, and need not be counted again when it is written again.
    let grown = last.took.as_secs_f64() / interval;
    // Nor is there ever more than a round has sent: the first one sends everything.
    let most = |of: fn(&Measured) -> u64| rounds.iter().map(of).max().unwrap_or(0);
    let fresh = ((last.dirty as f64 * grown) as u64).min(most(|round| round.dirty));
    let work = ((last.work() as f64 * grown) as u64).min(most(Measured::work));
    let pause = |bytes: u64| {
        let send = Duration::try_from_secs_f64(bytes as f64 / transfer_rate.max(1.0));
        METADATA.saturating_add(last.fixed).saturating_add(send.unwrap_or(Duration::MAX))
    };
    let remaining = last.held.saturating_add(fresh);
    Forecast {
        known: true,
        dirty_rate: (last.dirty + last.held) as f64 / interval,
        transfer_rate,
        remaining,
        pause: pause(last.held.saturating_add(work)),
        longest: pause(last.held.saturating_add(work.max(last.work()))),
    }
}

/// Bytes a second that the link takes. Small rounds are all latency and say nothing, so the best of the
/// telling ones counts, and of those that were mostly files only when there is no other: many small files keep both hosts
/// busy, not the link. Under a bandwidth limit this is the limit, though none holds in the freeze: the
/// prediction is then too high, never too low.
fn transfer_rate(rounds: &[Measured]) -> f64 {
    let best = |wanted: &dyn Fn(&Measured) -> bool| {
        rounds.iter().filter(|round| wanted(round)).map(Measured::rate).fold(0.0, f64::max)
    };
    let bytes = best(&|round| round.tells() && round.dirty >= round.work() / 2);
    let work = if bytes > 0.0 { bytes } else { best(&Measured::tells) };
    if work > 0.0 { work } else { DEFAULT_RATE }
}

/// Assumed when no round was large enough to tell: 100 MB/s, a poor link.
const DEFAULT_RATE: f64 = 1e8;

#[cfg(test)]
#[path = "policy_tests.rs"]
mod tests;
