//! A program that checks itself, and its clients: what `demo`, the tests and the benchmarks move.
//!
//! The server ([`server`]) keeps pages of memory ([`memory`]) that writer threads change all the time and answers
//! requests from them. The client ([`client`]) never reconnects, checks every reply and measures the longest
//! silence of every connection. Both speak [`wire`].

pub(crate) mod client;
pub(crate) mod memory;
pub(crate) mod report;
pub(crate) mod server;
pub(crate) mod wire;
