//! Figures: downtime, the gap that clients see, total time, bytes, and what a move costs.
//!
//! ```text
//! cargo run --release -p tests --bin bench -- [--json] [--moves 5] [--only SUBSTRING]... [--svg DIR]
//! ```
//!
//! Every case starts its own hosts, moves one container back and forth under checking clients, and prints
//! medians with the spread. Machines differ and are shared: compare the rows of one run.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser as _;
use tests::{bench, client};

fn main() -> ExitCode {
    if let Some(code) = client::run_if_asked() {
        return code;
    }
    match bench::run(&bench::Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}
