//! The state of a network namespace, on the real kernel: made with ip(8), nft(8) and files of /proc/sys, read by the agent,
//! set in a fresh namespace, and compared by what the same tools show there. Needs root.

#![allow(clippy::unwrap_used, reason = "a failed step is the test's failure")]

mod common;
#[path = "network/moves.rs"]
mod moves;
#[path = "network/netfilter.rs"]
mod netfilter;
#[path = "network/support.rs"]
mod support;
#[path = "network/tables.rs"]
mod tables;
