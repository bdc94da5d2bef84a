//! The fault matrix: {source agent, target agent, coordinator} x {kill, stop, cut link, full disk} at every boundary of a
//! migration, under clients that check every answer. Prints a line for each cell and writes a table.
//!
//! ```text
//! cargo run -p tests --bin faults
//! cargo run -p tests --bin faults -- --every 4 --only coordinator
//! ```

#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context as _, Result};
use clap::Parser;
use tests::cluster::Cluster;
use tests::matrix::{self, Cell, FAULTS, Fault, Outcome, Point, SIDES, Side};
use tests::stage::Stage;
use tests::{aborts, client, residue};

#[derive(Debug, Parser)]
#[command(about = "Hurts each process of a migration at each of its boundaries")]
struct Args {
    /// Only cells whose text (as printed) contains this.
    #[arg(long, default_value = "")]
    only: String,
    /// Of the faults that last, stop and cut, only every so-manieth cell: each of them takes some ten seconds.
    #[arg(long, default_value_t = 1)]
    every: usize,
    /// Where the table is written.
    #[arg(long)]
    out: Option<PathBuf>,
    /// A file that gets a line for each cell that ended well. Those that it has already are not run again.
    #[arg(long)]
    results: Option<PathBuf>,
}

type Results = HashMap<String, Result<Outcome, String>>;

fn main() -> ExitCode {
    if let Some(code) = client::run_if_asked().or_else(residue::run_if_asked) {
        return code;
    }
    match matrix(&Args::parse()) {
        Ok(0) => ExitCode::SUCCESS,
        Ok(failed) => {
            eprintln!("faults: {failed} cells did not end well");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("faults: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn matrix(args: &Args) -> Result<usize> {
    let began = Instant::now();
    let mut results = known(args)?;
    if args.only.is_empty() && results.is_empty() {
        let mut stage = Stage::new()?;
        aborts::returns(&mut stage, 1).context("giving up at each boundary")?;
        stage.passed()?;
    }
    // Those that need small disks come last, on hosts of their own.
    for full in [false, true] {
        let faults = FAULTS.into_iter().filter(|fault| (*fault == Fault::Full) == full);
        let chosen = |fault: Fault| {
            let lasts = matches!(fault, Fault::Stop | Fault::Cut);
            matrix::cells(fault).step_by(if lasts { args.every.max(1) } else { 1 })
        };
        let cells: Vec<Cell> =
            faults.flat_map(chosen).filter(|cell| cell.to_string().contains(&args.only)).collect();
        let cells: Vec<Cell> =
            cells.into_iter().filter(|cell| !results.contains_key(&cell.to_string())).collect();
        let mut stage = None;
        for (number, cell) in cells.iter().enumerate() {
            let mut on = match stage.take() {
                Some(stage) => stage,
                None if full => Stage::on(Cluster::up_on_disks(matrix::DISK)?)?,
                None => Stage::new()?,
            };
            let ended = matrix::run(&mut on, *cell).map_err(|error| format!("{error:#}"));
            print!("{}/{} {cell}: ", number + 1, cells.len());
            match &ended {
                Ok(outcome) => {
                    println!("{}", line(outcome));
                    keep(args, *cell, outcome)?;
                    stage = Some(on);
                }
                Err(error) => println!("WRONG {error}"),
            }
            results.insert(cell.to_string(), ended);
        }
        if let Some(stage) = stage {
            stage.passed()?;
        }
    }
    println!("{} cells in {:.0} s", results.len(), began.elapsed().as_secs_f64());
    if let Some(out) = &args.out {
        fs::write(out, table(&results)).with_context(|| format!("write {}", out.display()))?;
    }
    Ok(results.values().filter(|ended| ended.is_err()).count())
}

/// What earlier runs found.
fn known(args: &Args) -> Result<Results> {
    let Some(path) = args.results.as_ref().filter(|path| path.exists()) else { return Ok(Results::new()) };
    let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    text.lines()
        .map(|line| {
            let (cell, outcome): (String, Outcome) =
                serde_json::from_str(line).with_context(|| format!("{line:?} in {}", path.display()))?;
            Ok((cell, Ok(outcome)))
        })
        .collect()
}

fn keep(args: &Args, cell: Cell, outcome: &Outcome) -> Result<()> {
    let Some(path) = &args.results else { return Ok(()) };
    let mut file = fs::File::options().append(true).create(true).open(path)?;
    writeln!(file, "{}", serde_json::to_string(&(cell.to_string(), outcome))?).context("keep a result")
}

fn line(outcome: &Outcome) -> String {
    format!(
        "{}, exit code {}, longest wait of a client {:.0} ms, settled after {:.1} s",
        if outcome.moved { "moved" } else { "stayed" },
        outcome.code,
        outcome.gap_ms,
        outcome.settled.as_secs_f64()
    )
}

const HEAD: &str = "# Fault matrix

Written by `cargo run -p tests --bin faults -- --out docs/fault-matrix.md`.

A container under clients that check every answer moves between two nodes. At each boundary the process in the second column
waits, something is done to one of the three processes, and it goes on: `kill` is SIGKILL, `stop` SIGSTOP for 10 s, `cut` 10 s without a
link, `full` a disk without room. In the end one copy serves on the connections that the clients had, the other node, the network and the
agents hold nothing of it, and the record and the command's exit code say what happened; otherwise the cell says WRONG. Then the next
cell begins, on the same hosts and connections.

*S*: it stayed, *M*: it moved. A dot: not run.

";

fn table(results: &Results) -> String {
    let mut text = HEAD.to_owned();
    let columns: Vec<(Fault, Side)> =
        FAULTS.into_iter().flat_map(|fault| SIDES.map(|side| (fault, side))).collect();
    let _ = write!(text, "| boundary | waits |");
    for (fault, side) in &columns {
        let _ = write!(text, " {fault} {side} |");
    }
    let _ = writeln!(text, "\n|---|---|{}", "---|".repeat(columns.len()));
    for point in matrix::points() {
        let _ = write!(text, "| `{}` | {} |", point.name, point.side);
        for (fault, to) in &columns {
            let _ = write!(text, " {} |", mark(results, point, *to, *fault));
        }
        text.push('\n');
    }
    let _ = write!(text, "| longest wait of a client, median of the column, s | |");
    for (fault, to) in &columns {
        let of = matrix::points().into_iter().map(|point| Cell { point, to: *to, fault: *fault }.to_string());
        let mut gaps: Vec<f64> = of
            .filter_map(|cell| results.get(&cell)?.as_ref().ok())
            .map(|outcome| outcome.gap_ms / 1e3)
            .collect();
        gaps.sort_by(f64::total_cmp);
        let _ = match gaps.get(gaps.len() / 2) {
            Some(median) => write!(text, " {median:.1} |"),
            None => write!(text, " · |"),
        };
    }
    text.push('\n');
    text
}

fn mark(results: &Results, point: Point, to: Side, fault: Fault) -> &'static str {
    match results.get(&Cell { point, to, fault }.to_string()) {
        None => "·",
        Some(Ok(outcome)) if outcome.moved => "M",
        Some(Ok(_)) => "S",
        Some(Err(_)) => "WRONG",
    }
}
