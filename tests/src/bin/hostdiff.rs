//! Ends migrations at every boundary and shows what each left on the hosts: nothing.
//!
//! ```text
//! cargo run --release -p tests --bin hostdiff [-- --only switchover]
//! ```
//!
//! Links and filters, routes, processes, control groups, files, mounts, and what the agents hold open are compared with what
//! each node had before. The diff that is printed is empty, or the exit code is 1.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Parser;
use tests::stage::Stage;
use tests::{aborts, client, residue};

#[derive(Debug, Parser)]
#[command(about = "Compares the hosts before and after every kind of abort")]
struct Args {
    /// Only the boundaries whose name contains this.
    #[arg(long, default_value = "")]
    only: String,
}

fn main() -> ExitCode {
    if let Some(code) = client::run_if_asked().or_else(residue::run_if_asked) {
        return code;
    }
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("hostdiff: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// One way for a migration to end: failpoints of the source and of the target, and the exit code of `move`.
fn ends() -> Vec<(String, String, i32)> {
    let mut ends = Vec::new();
    ends.extend(aborts::SOURCE.iter().map(|point| (format!("{point}=return"), String::new(), 4)));
    ends.extend(aborts::TARGET.iter().map(|point| (String::new(), format!("{point}=return"), 4)));
    ends.extend(
        aborts::SOURCE_KILLS.iter().map(|(point, code)| (format!("{point}=kill"), String::new(), *code)),
    );
    ends.extend(
        aborts::TARGET_KILLS.iter().map(|(point, code)| (String::new(), format!("{point}=kill"), *code)),
    );
    ends
}

fn run(args: &Args) -> Result<()> {
    let mut stage = Stage::new()?;
    let (mut compared, mut different) = (0, 0);
    for (source, target, code) in ends() {
        if !source.contains(&args.only) && !target.contains(&args.only) {
            continue;
        }
        compared += 1;
        if let Err(error) = stage.attempt(&source, &target, code) {
            different += 1;
            println!("{source}{target}:\n{error:#}");
            // What is left would be found again after every boundary that follows.
            stage = Stage::new()?;
        }
    }
    stage.passed()?;
    if different > 0 {
        bail!("{different} of {compared} ends left something");
    }
    println!("{compared} ends compared, diff:\n(empty)");
    Ok(())
}
