//! Ends migrations at every boundary and shows what each left on the hosts: nothing.
//!
//! ```text
//! cargo run --release -p tests --bin hostdiff [-- --only switchover]
//! ```
//!
//! The container has interfaces, rules, mounts and control groups of its own. Links and filters, routes, rules of
//! nftables, processes, namespaces, control groups, files, mounts, and what the agents hold open are compared with what each
//! node had before. The diff that is printed is empty, or the exit code is 1.

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

/// A way for a migration to end.
enum End {
    /// Failpoints of the source and of the target, and the exit code of `move`.
    Failpoints(String, String, i32),
    /// By hand, before the commit point and behind it.
    Cancel,
}

impl End {
    fn name(&self) -> String {
        match self {
            Self::Failpoints(source, target, _) => format!("{source}{target}"),
            Self::Cancel => "cancel".to_owned(),
        }
    }

    fn happen(&self, stage: &mut Stage) -> Result<()> {
        match self {
            Self::Failpoints(source, target, code) => stage.attempt(source, target, *code).map(drop),
            Self::Cancel => aborts::every_cancel(stage),
        }
    }
}

fn ends() -> Vec<End> {
    let source =
        |point: &str, how: &str, code| End::Failpoints(format!("{point}={how}"), String::new(), code);
    let target =
        |point: &str, how: &str, code| End::Failpoints(String::new(), format!("{point}={how}"), code);
    let mut ends = vec![End::Cancel];
    ends.extend(aborts::SOURCE.iter().map(|point| source(point, "return", 4)));
    ends.extend(aborts::TARGET.iter().map(|point| target(point, "return", 4)));
    ends.extend(aborts::SOURCE_KILLS.iter().map(|(point, code)| source(point, "kill", *code)));
    ends.extend(aborts::TARGET_KILLS.iter().map(|(point, code)| target(point, "kill", *code)));
    ends
}

fn run(args: &Args) -> Result<()> {
    let mut stage = Stage::with_state()?;
    let (mut compared, mut different) = (0, 0);
    for end in ends().iter().filter(|end| end.name().contains(&args.only)) {
        compared += 1;
        if let Err(error) = end.happen(&mut stage) {
            different += 1;
            println!("{}:\n{error:#}", end.name());
            // What is left would be found again after every end that follows.
            stage = Stage::with_state()?;
        }
    }
    stage.passed()?;
    if different > 0 {
        bail!("{different} of {compared} ends left something");
    }
    println!("{compared} ends compared, diff:\n(empty)");
    Ok(())
}
