//! The whole matrix of kernels: every lifecycle case under each, and moves between two guests.
//! `cargo run -p tests --bin vm` runs all of it; an argument chooses a kernel (`6.1`, `6.12`) or `pairs`, `--case` a
//! part of a case's name.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser as _;
use tests::vm::fetch::Series;
use tests::vm::pair::{self, Expected};
use tests::vm::{cases, criu};
use tests::{lifecycle, vm};

/// What to run.
#[derive(Debug, clap::Parser)]
struct Options {
    /// Kernels, `6.1` or `6.12`, or `pairs`; everything without.
    what: Vec<String>,
    /// Only cases with this in their name.
    #[arg(long, default_value = "")]
    case: String,
}

fn main() -> ExitCode {
    if let Some(code) = cases::run_if_asked() {
        return code;
    }
    let options = Options::parse();
    let wanted = |name: &str| options.what.is_empty() || options.what.iter().any(|what| what == name);
    let mut failed = 0;
    let mut report = |name: &str, result: Result<()>| match result {
        Ok(()) => println!("=== {name}: passed"),
        Err(error) => {
            failed += 1;
            println!("=== {name}: {error:#}");
        }
    };
    for (name, series) in [("6.1", Series::V6_1), ("6.12", Series::V6_12)] {
        if wanted(name) {
            // One guest a case: what one leaves behind does not touch the next.
            // The distribution's CRIU is as old as the older kernel.
            let criu = (series == Series::V6_1).then_some(criu::NAME);
            let cases = ["host", "writer", "reader", "large", "huge"]
                .into_iter()
                .chain(criu)
                .chain(lifecycle::CASES.iter().map(|case| case.name));
            for case in cases.filter(|case| case.contains(&options.case) && !vm::TOO_MUCH.contains(case)) {
                report(&format!("{name} {case}"), cases::run(series, &[case]));
            }
        }
    }
    if wanted("pairs") {
        let (old, new) = (Series::V6_1, Series::V6_12);
        report("6.1 to 6.1", pair::run([old, old], Expected::Moves));
        report("6.12 to 6.12", pair::run([new, new], Expected::Moves));
        report("6.1 to 6.12 and back", pair::run([old, new], Expected::OTHER_KERNEL));
    }
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
