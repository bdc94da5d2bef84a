//! The long crash matrix: kills the source's agent at random moments of a migration, again and again.
//!
//! ```text
//! cargo run --release -p tests --bin crash -- --times 200
//! ```

#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser;
use tests::{client, crash, residue};

#[derive(Debug, Parser)]
#[command(about = "Kills the agent of the source at random moments of a migration")]
struct Args {
    /// How many times.
    #[arg(long, default_value_t = 200)]
    times: u32,
    /// Decides the moments.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

fn main() -> ExitCode {
    if let Some(code) = client::run_if_asked().or_else(residue::run_if_asked) {
        return code;
    }
    let args = Args::parse();
    match crash::run(args.times, args.seed) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("crash: {error:#}");
            ExitCode::FAILURE
        }
    }
}
