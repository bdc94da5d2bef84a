//! Figures: downtime, the gap that clients see, total time and bytes.
//!
//! ```text
//! cargo run --release -p tests --bin bench -- [--json] [--moves 5] [--only NAME]
//! ```
//!
//! Every case starts its own hosts, moves one container back and forth under checking clients, and prints
//! medians with the spread. Machines differ and are shared: compare the rows of one run. The rows `state-...` are followed
//! by what each step cost beyond `state-nothing`.

#![forbid(unsafe_code)]

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::process::ExitCode;

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use serde::Serialize;
use serde_json::Value;
use tests::client;
use tests::cluster::{Cluster, binary};
use tests::workload::load::{self, State};

#[derive(Debug, Parser)]
#[command(about = "Measures downtime, client-visible gap, total time and bytes of migrations")]
struct Args {
    /// Print one JSON object instead of the table.
    #[arg(long)]
    json: bool,
    /// Moves per case; medians are taken over them.
    #[arg(long, default_value_t = 5)]
    moves: usize,
    /// Only the cases whose name contains this.
    #[arg(long, default_value = "")]
    only: String,
}

/// What is moved.
#[derive(Clone, Copy, Debug)]
enum Load {
    /// The workload that ships with us: resident MiB and dirtied MB/s, 4 clients.
    Own { mib: u32, dirty: u32 },
    /// redis-server with so many keys of 4 KiB under 8 clients.
    Redis { keys: u32 },
    /// A program that does little, with state that the hosts keep, 1 client.
    State(State),
}

const CASES: &[(&str, Load)] = &[
    ("idle-16MiB", Load::Own { mib: 16, dirty: 0 }),
    ("idle-256MiB", Load::Own { mib: 256, dirty: 0 }),
    ("idle-1GiB", Load::Own { mib: 1024, dirty: 0 }),
    ("idle-4GiB", Load::Own { mib: 4096, dirty: 0 }),
    ("100MB/s-256MiB", Load::Own { mib: 256, dirty: 100 }),
    ("redis-512MiB", Load::Redis { keys: 131_072 }),
    (NOTHING, Load::State(State::Nothing)),
    ("state-50-groups", Load::State(State::Groups)),
    ("state-network", Load::State(State::Network)),
    ("state-network-counting", Load::State(State::Counting)),
    ("state-100-mounts", Load::State(State::Mounts)),
    ("state-tmpfs-200MiB", Load::State(State::Tmpfs)),
    ("state-100000-files", Load::State(State::Files)),
];

/// The case that the others with state are compared with.
const NOTHING: &str = "state-nothing";

/// Median, minimum and maximum.
#[derive(Clone, Copy, Debug, Default, Serialize)]
struct Spread {
    median: f64,
    min: f64,
    max: f64,
}

impl Spread {
    fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let at = |index: usize| values.get(index).copied().unwrap_or_default();
        Self { median: at(values.len() / 2), min: at(0), max: at(values.len().saturating_sub(1)) }
    }
}

#[derive(Debug, Serialize)]
struct Row {
    name: &'static str,
    moves: usize,
    downtime_ms: Spread,
    total_seconds: Spread,
    bytes_sent: Spread,
    rounds: Spread,
    /// The longest gap that any client saw in the whole run.
    longest_gap_ms: f64,
    /// Medians of the downtime by step.
    split_ms: Vec<(String, f64)>,
}

fn main() -> ExitCode {
    if let Some(code) = client::run_if_asked() {
        return code;
    }
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<()> {
    let mut rows = Vec::new();
    for (name, load) in CASES.iter().filter(|(name, _)| name.contains(&args.only)) {
        eprintln!("{name} ...");
        rows.push(measure(name, *load, args.moves).with_context(|| (*name).to_owned())?);
    }
    if args.json {
        println!("{}", serde_json::to_string_pretty(&rows)?);
    } else {
        print!("{}", table(&rows));
    }
    Ok(())
}

fn measure(name: &'static str, load: Load, moves: usize) -> Result<Row> {
    let cluster = Cluster::up()?;
    let (address, clients) = match load {
        Load::Own { mib, dirty } => {
            let address: SocketAddr = "10.77.0.100:7000".parse()?;
            let own = binary()?.to_str().context("path")?;
            let (mib, dirty) = (mib.to_string(), dirty.to_string());
            let command = [
                own,
                "__workload",
                "--memory-mib",
                &mib,
                "--threads",
                "8",
                "--dirty-mb-per-s",
                &dirty,
                "--listen",
            ];
            let mut command: Vec<&str> = command.to_vec();
            command.push("0.0.0.0:7000");
            cluster.run_container("bench", "node-a", "10.77.0.100/24", &[], &command)?;
            cluster.wait_for_port(address)?;
            let at = address.to_string();
            let exec = ["dev", "exec", "--dir", cluster.dir().to_str().context("dir")?, "client", "--", own];
            let mut client: Vec<&str> = exec.to_vec();
            client.extend(["__client", "--connect", &at, "--connections", "4"]);
            (address, cluster.start(client)?)
        }
        Load::Redis { keys } => {
            let address: SocketAddr = "10.77.0.100:6379".parse()?;
            let command = [
                "/usr/bin/redis-server",
                "--bind",
                "0.0.0.0",
                "--protected-mode",
                "no",
                "--save",
                "",
                "--dir",
                "/data",
            ];
            cluster.run_container("bench", "node-a", "10.77.0.100/24", &["/data"], &command)?;
            cluster.wait_for_port(address)?;
            let keys = keys.to_string();
            cluster.client_once(&["redis-fill", &address.to_string(), &keys])?;
            (address, cluster.client(&["redis", &address.to_string(), &keys, "8"])?)
        }
        Load::State(state) => {
            let address: SocketAddr = "10.77.0.100:7000".parse()?;
            load::start(&cluster, "bench", "10.77.0.100", state)?;
            (address, cluster.client(&["lines", &address.to_string(), "1"])?)
        }
    };
    let mut migrations = Vec::new();
    for index in 0..moves {
        let to = if index % 2 == 0 { "node-b" } else { "node-a" };
        let migration = cluster.move_to("bench", to)?;
        ensure!(
            migration.pointer("/status/phase").and_then(Value::as_str) == Some("Succeeded"),
            "move {index} of {address} ended as {migration}"
        );
        migrations.push(migration);
    }
    let finished = clients.finish()?;
    ensure!(finished.code == 0, "the clients saw something wrong: {finished:?}");
    let report = finished.json()?;
    ensure!(
        report.get("errors").is_none_or(|errors| errors.as_array().is_some_and(Vec::is_empty)),
        "the clients saw something wrong: {report}"
    );
    let number = |path: &str| -> Vec<f64> {
        migrations.iter().map(|m| m.pointer(path).map(as_number).unwrap_or_default()).collect()
    };
    cluster.passed();
    let steps = ["freezeMs", "lastPagesMs", "captureMs", "restoreMs", "commitMs", "networkMs", "wireMs"];
    Ok(Row {
        name,
        moves,
        downtime_ms: Spread::of(number("/status/downtime/totalMs")),
        total_seconds: Spread::of(number("/status/totalSeconds")),
        bytes_sent: Spread::of(number("/status/bytesSent")),
        rounds: Spread::of(
            migrations
                .iter()
                .map(|m| m.pointer("/status/rounds").and_then(Value::as_array).map_or(0, Vec::len))
                .map(|rounds| rounds as f64)
                .collect(),
        ),
        longest_gap_ms: ["longest_gap_ms", "max_gap_ms"]
            .iter()
            .find_map(|key| report.get(key).and_then(Value::as_f64))
            .context("the clients reported no gap")?,
        split_ms: steps
            .iter()
            .map(|step| ((*step).to_owned(), Spread::of(number(&format!("/status/downtime/{step}"))).median))
            .collect(),
    })
}

/// Numbers may be JSON numbers or, for 64-bit integers, strings.
fn as_number(value: &Value) -> f64 {
    value.as_f64().or_else(|| value.as_str().and_then(|text| text.parse().ok())).unwrap_or_default()
}

fn table(rows: &[Row]) -> String {
    let mut out = String::from(
        "case                   downtime ms (min-max)      client gap ms   total s   MiB sent   rounds   split\n",
    );
    for row in rows {
        let split: Vec<String> = row
            .split_ms
            .iter()
            .map(|(step, ms)| format!("{} {ms:.1}", step.trim_end_matches("Ms")))
            .collect();
        let _ = writeln!(
            out,
            "{:<22} {:>8.2} ({:.2}-{:.2}) {:>15.1} {:>9.2} {:>10.1} {:>8.0}   {}",
            row.name,
            row.downtime_ms.median,
            row.downtime_ms.min,
            row.downtime_ms.max,
            row.longest_gap_ms,
            row.total_seconds.median,
            row.bytes_sent.median / 1_048_576.0,
            row.rounds.median,
            split.join(", ")
        );
    }
    let Some(nothing) = rows.iter().find(|row| row.name == NOTHING) else { return out };
    for row in rows.iter().filter(|row| row.name.starts_with("state-") && row.name != NOTHING) {
        let steps = row.split_ms.iter().zip(&nothing.split_ms);
        let beyond: Vec<String> = steps
            .map(|((step, ms), (_, without))| format!("{} {:+.1}", step.trim_end_matches("Ms"), ms - without))
            .collect();
        let total = row.downtime_ms.median - nothing.downtime_ms.median;
        let _ = writeln!(out, "{:<22} {total:+.1} ms: {}", row.name, beyond.join(", "));
    }
    out
}
