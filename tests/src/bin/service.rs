//! Figures of the service itself: how fast the API answers under load, how soon watchers know of a change, how long a
//! coordinator with a long history takes to start, and what an agent with nothing to do costs.
//!
//! ```text
//! cargo run --release -p tests --bin service -- [--json] [--only api|watch|restart|idle]...
//! ```
//!
//! The daemons are real ones, with mutual TLS. Machines differ and are shared: compare the rows of one run.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser as _;
use tests::service;

fn main() -> ExitCode {
    let done = match service::client::asked() {
        Some(client) => client.run(),
        None => service::run(&service::Args::parse()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("service: {error:#}");
            ExitCode::FAILURE
        }
    }
}
