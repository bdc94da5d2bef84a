//! The conformance suite: everything that a process can have, checkpointed, restored and moved.
//!
//! ```text
//! cargo run -p tests --bin conformance -- --null
//! cargo run -p tests --bin conformance -- --only files/ --way move
//! cargo run -p tests --bin conformance -- --out docs/conformance.md
//! ```

#![forbid(unsafe_code)]

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::{Parser, ValueEnum};
use tests::conformance::{self, Moves, Outcome, Program, Results, Way};
use tests::suite;

#[derive(Debug, Parser)]
#[command(about = "Checks that everything a process can have is carried or refused")]
struct Args {
    /// Only programs whose ROW/NAME contains this.
    #[arg(long, default_value = "")]
    only: String,
    /// Without a checkpoint: proves the programs.
    #[arg(long)]
    null: bool,
    /// In these ways only.
    #[arg(long, value_enum)]
    way: Vec<WayArg>,
    /// Where the table is written.
    #[arg(long)]
    out: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum WayArg {
    /// On disk, in the host's namespaces.
    Host,
    /// On disk, in namespaces of its own.
    Boxed,
    /// Live, there and back.
    Move,
}

impl From<WayArg> for Way {
    fn from(way: WayArg) -> Self {
        match way {
            WayArg::Host => Self::Host,
            WayArg::Boxed => Self::Boxed,
            WayArg::Move => Self::Move,
        }
    }
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(0) => ExitCode::SUCCESS,
        Ok(wrong) => {
            eprintln!("conformance: {wrong} outcomes are not what they should be");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("conformance: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<usize> {
    conformance::apart()?;
    let all = conformance::all()?;
    let programs: Vec<&Program> = all.iter().filter(|program| program.path().contains(&args.only)).collect();
    let mut results = Results::new();
    let mut wrong = 0;
    let mut take = |program: &Program, way: Way, outcome: Result<Outcome>| {
        let outcome = outcome.map_err(|error| format!("{error:#}"));
        let told = match &outcome {
            Ok(outcome) => {
                program.wrong(way, outcome).map_or_else(|| plain(outcome), |why| format!("WRONG, {why}"))
            }
            Err(error) => format!("FAILED, {error}"),
        };
        wrong += usize::from(told.starts_with("WRONG") || told.starts_with("FAILED"));
        println!("{} {}: {told}", program.path(), way.name());
        results.insert((program.path(), way), outcome);
    };
    let ways: Vec<Way> = match (args.null, args.way.as_slice()) {
        (true, _) => vec![Way::Null],
        (false, []) => Way::ALL.to_vec(),
        (false, given) => given.iter().map(|way| Way::from(*way)).collect(),
    };
    for way in ways {
        let moves = if way == Way::Move { Some(Moves::new()?) } else { None };
        for program in &programs {
            let needs: Vec<&str> = program.needs.iter().map(String::as_str).collect();
            let outcome = match (suite::missing(&needs), &moves) {
                (Some(missing), _) => Ok(Outcome::Not(missing)),
                (None, Some(moves)) => moves.attempt(program),
                (None, None) => conformance::attempt(program, way),
            };
            take(program, way, outcome);
        }
        if let Some(moves) = moves {
            moves.passed();
        }
    }
    if let Some(out) = &args.out {
        fs::write(out, conformance::table(&all, &results))
            .with_context(|| format!("write {}", out.display()))?;
    }
    Ok(wrong)
}

fn plain(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Kept => "kept".to_owned(),
        Outcome::Refused(reasons) => format!("refused: {}", reasons.lines().next().unwrap_or_default()),
        Outcome::Lost(what) => format!("lost: {what}"),
        Outcome::Not(why) => format!("not tried: {why}"),
    }
}
