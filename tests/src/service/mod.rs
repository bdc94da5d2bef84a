//! Figures of the daemons, not of moves.
//!
//! * [`api`] sends an open-loop load to the API, [`watch`] has many watchers hear of each change. Both are clients that
//!   [`client`] starts on the client host, of a coordinator whose nodes [`crowd`] fills with containers.
//! * [`restart`] starts a coordinator on a store with a long history.
//! * [`idle`] looks at agents that have nothing to do.
//! * [`usage`] is what the kernel tells of a process, [`latency`] sums up times.

pub mod api;
pub mod client;
pub mod crowd;
pub mod idle;
pub mod latency;
pub mod restart;
pub mod usage;
pub mod watch;

use std::fmt::Write as _;

use anyhow::Result;
use clap::{Parser, ValueEnum};
use serde::Serialize;

/// Arguments of the program.
#[derive(Debug, Parser)]
#[command(
    about = "Measures the API under load, watches, starts of the coordinator and idle agents",
    after_help = "Examples:
  cargo run --release -p tests --bin service
  cargo run --release -p tests --bin service -- --only api --rate 2000 --seconds 60
  cargo run --release -p tests --bin service -- --only watch --watchers 5000 --json
  cargo run --release -p tests --bin service -- --only restart --records 1000 --records 1000000

All but `restart` need root, for hosts in namespaces."
)]
pub struct Args {
    /// Print one JSON object instead of the tables.
    #[arg(long)]
    json: bool,
    /// Only these figures; may be given several times.
    #[arg(long, value_name = "FIGURE")]
    only: Vec<Figure>,
    /// Requests a second.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
    rate: u32,
    /// How long the load lasts.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    seconds: u32,
    /// Watchers.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
    watchers: u32,
    /// Changes that they hear of.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    changes: u32,
    /// Migrations in the store of a coordinator that starts; may be given several times [default: 1000, 100000].
    #[arg(long)]
    records: Vec<u64>,
    /// How long idle agents are looked at, seconds.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..))]
    idle: u32,
}

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Figure {
    /// The API under load.
    Api,
    /// How soon watchers know of changes.
    Watch,
    /// Starts of the coordinator.
    Restart,
    /// Agents with nothing to do.
    Idle,
}

/// Everything that was measured.
#[derive(Debug, Default, Serialize)]
struct Report {
    #[serde(skip_serializing_if = "Option::is_none")]
    api: Option<api::Figures>,
    #[serde(skip_serializing_if = "Option::is_none")]
    watch: Option<watch::Figures>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    restart: Vec<restart::Figures>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    idle: Vec<idle::Figures>,
}

impl Report {
    fn text(&self) -> String {
        let mut text = String::new();
        if let Some(api) = &self.api {
            let _ = writeln!(text, "{}", api.text());
        }
        if let Some(watch) = &self.watch {
            let _ = writeln!(text, "{}", watch.text());
        }
        if !self.restart.is_empty() {
            let _ = writeln!(text, "{}", restart::text(&self.restart));
        }
        if !self.idle.is_empty() {
            let _ = writeln!(text, "{}", idle::text(&self.idle));
        }
        text
    }
}

/// Measures what was asked for and prints it.
///
/// # Errors
/// When a daemon does not start, a call fails, or a watcher missed a change.
pub fn run(args: &Args) -> Result<()> {
    let wants = |figure| args.only.is_empty() || args.only.contains(&figure);
    let mut report = Report::default();
    if wants(Figure::Api) {
        report.api = Some(api::measure(args.rate, args.seconds)?);
    }
    if wants(Figure::Watch) {
        report.watch = Some(watch::measure(args.watchers, args.changes)?);
    }
    if wants(Figure::Restart) {
        let records = if args.records.is_empty() { &[1000, 100_000][..] } else { &args.records };
        for records in records {
            report.restart.push(restart::measure(*records)?);
        }
    }
    if wants(Figure::Idle) {
        report.idle = idle::measure(args.idle)?;
    }
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print!("{}", report.text());
    }
    Ok(())
}
