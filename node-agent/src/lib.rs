//! The service on every node: runs containers, and moves them through the engine.
//!
//! * [`runtime`] starts, stops and lists containers; [`network`] and [`files`] give them their links and their
//!   root file system.
//! * [`session`], [`transfer`], [`journal`], [`commit`] and [`peer`] migrate them.
//! * [`metrics`] is what monitoring sees.
//! * [`server`] is the gRPC face towards the coordinator, [`registry`] the client that reports to it.
//! * [`cli`], [`config`] and [`telemetry`] make a program of it; [`run`] is its entry.

#![forbid(unsafe_code)]

pub mod cli;
pub mod commit;
pub mod config;
pub mod facts;
pub mod files;
#[cfg(test)]
mod formats;
pub mod inventory;
pub mod journal;
pub mod metrics;
pub mod network;
pub mod peer;
pub mod registry;
pub mod runtime;
pub mod server;
pub mod session;
pub mod table;
pub mod telemetry;
pub mod transfer;

pub use cli::run;
