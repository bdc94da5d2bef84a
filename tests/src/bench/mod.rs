//! The benchmark of migrations: how long containers stand still, what their clients miss, what a move costs.
//!
//! * [`cases`] are what is moved, [`start`] starts it under clients that check every answer.
//! * [`measure`] moves one case back and forth; [`agents`] tells what the agents use meanwhile, [`series`] how fast
//!   the program is.
//! * [`bare`] copies the same memory without anything else, in the same run.
//! * [`report`] holds the figures and prints them, [`plot`] draws them.
//!
//! Every case has hosts of its own. One in which anything was lost has no figures and fails.

pub mod agents;
pub mod bare;
pub mod cases;
pub mod measure;
pub mod plot;
pub mod report;
pub mod series;
pub mod start;

use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use clap::Parser;

use self::cases::{CASES, Case};
use self::report::{Report, Without};
use crate::suite;
use crate::workload::connections::allow_descriptors;

/// Descriptors that the agent's unit in `deploy/` allows it; the hosts here inherit what this program has.
const DESCRIPTORS: u64 = 1_048_576;

/// Arguments of the benchmark.
#[derive(Debug, Parser)]
#[command(about = "Measures downtime, what clients miss, total time, bytes and cost of migrations")]
pub struct Args {
    /// Print one JSON object instead of the tables.
    #[arg(long)]
    json: bool,
    /// Moves per case; medians are taken over them.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..))]
    moves: u16,
    /// Only the cases whose name contains this; may be given several times.
    #[arg(long, value_name = "SUBSTRING")]
    only: Vec<String>,
    /// Names of the cases, and nothing else.
    #[arg(long)]
    list: bool,
    /// Bulk streams of a migration, in place of what the agents choose; given several times, each case is run with each
    /// of them.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=16))]
    streams: Vec<u32>,
    /// Draw the figures into this directory.
    #[arg(long, value_name = "DIR", conflicts_with = "streams")]
    svg: Option<PathBuf>,
}

impl Args {
    fn wants(&self, case: &Case) -> bool {
        self.only.is_empty() || self.only.iter().any(|part| case.name.contains(part.as_str()))
    }

    /// The runs of a case: their names, and how many bulk streams they have.
    fn variants(&self, case: &Case) -> Vec<(String, Option<u32>)> {
        if self.streams.is_empty() {
            return vec![(case.name.to_owned(), None)];
        }
        let ending = |streams: u32| if streams == 1 { "stream" } else { "streams" };
        let named = |streams: &u32| (format!("{}-{streams}-{}", case.name, ending(*streams)), Some(*streams));
        self.streams.iter().map(named).collect()
    }
}

/// Runs the cases that were asked for and prints what they took.
///
/// # Errors
/// When one of them failed, or the figures cannot be written.
pub fn run(args: &Args) -> Result<()> {
    let wanted: Vec<&Case> = CASES.iter().filter(|case| args.wants(case)).collect();
    ensure!(!wanted.is_empty(), "no case is called so; --list prints their names");
    if args.list {
        wanted.iter().for_each(|case| println!("{}", case.name));
        return Ok(());
    }
    let descriptors = allow_descriptors(DESCRIPTORS)?;
    let mut report = Report::default();
    for case in wanted {
        let lacks = match suite::missing(case.programs()) {
            Some(reason) => Some(reason),
            None => measure::lacks(case, descriptors)?,
        };
        if let Some(reason) = lacks {
            eprintln!("{} is skipped: {reason}", case.name);
            report.skipped.push(Without { name: case.name.to_owned(), reason });
            continue;
        }
        for (name, streams) in args.variants(case) {
            eprintln!("{name} ...");
            match measure::measure(name.clone(), case, args.moves.into(), streams) {
                Ok(row) => report.rows.push(row),
                Err(error) => {
                    let reason = format!("{error:#}");
                    eprintln!("{name} FAILED: {reason}");
                    report.failed.push(Without { name, reason });
                }
            }
        }
    }
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print!("{}", report.text());
    }
    if let Some(dir) = &args.svg {
        plot::all(dir, &report.rows).with_context(|| format!("draw into {}", dir.display()))?;
    }
    ensure!(report.failed.is_empty(), "{} cases failed", report.failed.len());
    Ok(())
}
