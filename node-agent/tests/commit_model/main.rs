//! The commit protocol, checked exhaustively: every interleaving of the agents' steps, the messages between them, and
//! a bounded number of faults.
//!
//! The decisions are the product's own, `node_agent::commit`. What stands around them (the order of journal records,
//! syncs, messages and acts) is modelled; each step names the function it is the image of. Not in the model: pages,
//! files, the network lock and its frames, a node that is fenced in word only, and three nodes.
//!
//! Every rule is shown to matter: a mutated step finds a counter-example.

#![expect(clippy::cast_possible_truncation, reason = "epochs and incarnations are below ten")]

mod agree;
mod checker;
mod source;
mod state;
mod steps;
mod target;

use checker::{Found, search};
use state::Bounds;
use steps::Rule;

/// One attempt, no fault.
const PLAIN: Bounds = Bounds {
    attempts: 1,
    agent_crashes: 0,
    host_crashes: 0,
    losses: 0,
    duplicates: 0,
    sync_errors: 0,
    cancels: 0,
    resolves: 0,
};

fn show(name: &str, found: &Found) -> String {
    use std::fmt::Write;
    let Found { states, took, need_operator, .. } = found;
    let mut text = format!("{name}: {states} states in {took:.1?}, {need_operator} of them need an operator");
    if let Some(example) = &found.counter_example {
        let _ = write!(text, "\n  {}:", example.what);
        for step in &example.trace {
            let _ = write!(text, "\n    {step:?}");
        }
    }
    text
}

/// Holds within the first bounds, or within the wide ones if the environment asks for those: minutes, and gigabytes.
fn holds(name: &str, bounds: Bounds, wide: Bounds) {
    let asked = std::env::var_os("GANTRY_MODEL_WIDE").is_some();
    let found = search(if asked { wide } else { bounds }, None);
    let text = show(name, &found);
    println!("{text}");
    assert!(found.counter_example.is_none(), "{text}");
    assert!(found.states > 1000, "{text}");
}

fn fails(rule: Rule, bounds: Bounds, what: &[&str]) {
    let found = search(bounds, Some(rule));
    let text = show(&format!("{rule:?}"), &found);
    println!("{text}");
    let example = found.counter_example.unwrap_or_else(|| panic!("{text}: nothing found"));
    assert!(what.contains(&example.what), "{text}");
}

#[test]
fn an_agent_and_a_host_crash_and_fsync_fails() {
    holds(
        "crashes",
        Bounds { agent_crashes: 1, host_crashes: 1, sync_errors: 1, ..PLAIN },
        Bounds { agent_crashes: 1, host_crashes: 1, losses: 2, ..PLAIN },
    );
}

#[test]
fn messages_are_lost_and_repeated_and_a_user_cancels() {
    holds(
        "messages",
        Bounds { agent_crashes: 1, losses: 1, duplicates: 1, cancels: 1, ..PLAIN },
        Bounds { agent_crashes: 2, losses: 1, duplicates: 1, sync_errors: 1, ..PLAIN },
    );
}

#[test]
fn a_second_attempt_in_either_direction() {
    holds(
        "two attempts",
        Bounds { attempts: 2, agent_crashes: 1, ..PLAIN },
        Bounds { attempts: 2, agent_crashes: 1, host_crashes: 1, ..PLAIN },
    );
}

#[test]
fn an_operator_decides() {
    holds(
        "operator",
        Bounds { host_crashes: 1, resolves: 1, ..PLAIN },
        Bounds { agent_crashes: 1, host_crashes: 1, resolves: 1, ..PLAIN },
    );
}

const LAST: &str = "the last copy is destroyed";
const TWO: &str = "two copies run";
const ENDLESS: &str = "the run cannot end without another fault or an operator";

#[test]
fn without_its_rules_it_fails() {
    let crashes = Bounds { agent_crashes: 1, host_crashes: 1, sync_errors: 1, ..PLAIN };
    let forgets = "a host crash makes the source forget a Commit that it told";
    fails(Rule::AckBeforeOwned, crashes, &["a host crash makes the target forget what it acknowledged"]);
    fails(Rule::UndoAfterCommitted, Bounds { agent_crashes: 1, ..PLAIN }, &[TWO]);
    fails(Rule::TimeoutDiscardsReady, PLAIN, &[ENDLESS]);
    fails(Rule::KillOnLost, crashes, &[LAST]);
    fails(Rule::RecommitWithoutSync, crashes, &[forgets]);
    fails(Rule::CoordinatorPresumesAbort, crashes, &[LAST]);
    fails(Rule::EpochUsedTwice, Bounds { duplicates: 1, ..PLAIN }, &["an epoch is used twice"]);
    fails(Rule::AbortedWithoutCopy, crashes, &[LAST]);
    fails(Rule::AckUnknown, crashes, &[LAST]);
    fails(Rule::ReadyBeforeRecord, Bounds { agent_crashes: 1, ..PLAIN }, &[ENDLESS]);
    fails(Rule::CommitBeforeSync, crashes, &[forgets]);
}

/// Found by the model in the product, and mended.
#[test]
fn what_was_once_wrong_is_found() {
    fails(Rule::ForgottenIsFailed, Bounds { host_crashes: 1, ..PLAIN }, &[LAST]);
    fails(Rule::ResolvedEndsFirst, Bounds { agent_crashes: 1, resolves: 1, ..PLAIN }, &[ENDLESS]);
    fails(Rule::ResolvedTellsOn, Bounds { host_crashes: 1, resolves: 1, ..PLAIN }, &[ENDLESS]);
    fails(Rule::FencedGuessesItsSide, Bounds { resolves: 1, ..PLAIN }, &[ENDLESS]);
}
