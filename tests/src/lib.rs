//! Simulated hosts, real programs and checking clients for Gantry's system tests and benchmarks.
//!
//! * [`cluster`] brings up nodes, a coordinator and a client host through `migrate dev`, built with
//!   failpoints, and removes them again.
//! * [`client`] is the process that runs on the client host and checks every answer.
//! * [`workload`] holds the programs and their clients.
//! * [`faults`] makes a cluster's processes, links and files fail, and [`residue`] sees what that left.
//! * [`stage`] is a container under checking clients that is moved while they do.
//! * [`matrix`] hurts each process of a migration at each of its boundaries.
//! * [`aborts`] ends migrations at every boundary, [`crash`] kills agents at random moments.
//! * [`lifecycle`] and [`programs`] move real programs there and back, [`evacuation`] a whole node of them.
//! * [`mod@bench`] measures moves, [`service`] the daemons around them.
//! * [`vm`] boots other kernels, with the same programs and tests inside.
//! * [`terminal`] has the CLI draw on a pseudo terminal.
//! * [`suite`] turns functions into tests that can be skipped with a reason.

#![forbid(unsafe_code)]

pub mod aborts;
pub mod bench;
pub mod client;
pub mod cluster;
pub mod conformance;
pub mod crash;
pub mod evacuation;
pub mod faults;
pub mod lifecycle;
pub mod matrix;
mod monitoring;
pub mod programs;
mod renewal;
pub mod residue;
pub mod service;
pub mod stage;
pub mod suite;
pub mod terminal;
mod versions;
pub mod vm;
pub mod workload;
