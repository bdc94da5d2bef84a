//! One case: moves, and what they took.

use std::collections::BTreeMap;
use std::fs;
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::agents::Agents;
use super::bare::Bare;
use super::cases::Case;
use super::report::{AgentsUse, GIB, Gaps, Ratios, Row, Spread, Throughput, median};
use super::start::{self, Heard, NAME};
use crate::client::{Gap, unix_ms};
use crate::cluster::Cluster;
use crate::stage::NODES;

/// How long the clients talk before each move; what is done in this time is compared with what is done in pre-copy.
const BEFORE: Duration = Duration::from_secs(1);
/// A pre-copy that was shorter says nothing about throughput.
const TELLING_MS: f64 = 300.0;
/// Memory that a case needs besides that which is moved, MiB.
const BESIDES: u64 = 1024;

/// The parts of the pause in the order in which they happen, and how objects call them.
pub(super) const PARTS: [(&str, &str); 7] = [
    ("freeze", "freezeMs"),
    ("last-pages", "lastPagesMs"),
    ("capture", "captureMs"),
    ("wire", "wireMs"),
    ("restore", "restoreMs"),
    ("commit", "commitMs"),
    ("network", "networkMs"),
];

/// A move as measured.
#[derive(Debug)]
struct Move {
    migration: Value,
    /// Around the command, milliseconds since 1970.
    from_ms: f64,
    to_ms: f64,
    /// The most memory that the agents at the source and at the target had.
    peaks: [f64; 2],
}

impl Move {
    /// A number of its object; 64-bit integers may be strings.
    fn number(&self, path: &str) -> f64 {
        let value = self.migration.pointer(path);
        value.and_then(|v| v.as_f64().or_else(|| v.as_str()?.parse().ok())).unwrap_or_default()
    }

    fn downtime(&self) -> f64 {
        self.number("/status/downtime/totalMs")
    }

    fn rounds(&self) -> &[Value] {
        self.migration.pointer("/status/rounds").and_then(Value::as_array).map_or(&[], Vec::as_slice)
    }

    /// How fast the first round, which sends everything, took bytes.
    fn bulk_rate(&self) -> f64 {
        self.number("/status/rounds/0/bytes") / self.number("/status/rounds/0/seconds").max(1e-3)
    }

    /// Milliseconds by step.
    fn steps(&self) -> BTreeMap<String, f64> {
        let mut all = BTreeMap::new();
        let steps = self.migration.pointer("/status/downtime/steps").and_then(Value::as_array);
        for step in steps.into_iter().flatten() {
            if let (Some(name), Some(ms)) =
                (step.get("name").and_then(Value::as_str), step.get("ms").and_then(Value::as_f64))
            {
                *all.entry(name.to_owned()).or_default() += ms;
            }
        }
        all
    }

    /// Gaps of clients that overlap it.
    fn gaps<'a>(&self, heard: &'a Heard) -> impl Iterator<Item = &'a Gap> {
        let (from, to) = (self.from_ms, self.to_ms);
        heard.gaps.iter().filter(move |gap| gap.at_unix_ms <= to && gap.at_unix_ms + gap.ms >= from)
    }

    /// The longest of them.
    fn longest_gap(&self, heard: &Heard) -> Option<Gap> {
        self.gaps(heard).max_by(|a, b| a.ms.total_cmp(&b.ms)).copied()
    }

    /// A time of its object, milliseconds since 1970.
    fn time(&self, path: &str) -> Option<f64> {
        let time: SystemTime = humantime::parse_rfc3339_weak(self.migration.pointer(path)?.as_str()?).ok()?;
        Some(time.duration_since(UNIX_EPOCH).ok()?.as_secs_f64() * 1e3)
    }

    /// From when to when the container ran while it was copied. Its end is when the last gap began that was as long as the
    /// pause, which is closer than what the object tells.
    fn pre_copy(&self, heard: &Heard) -> Option<(f64, f64)> {
        let from = self.time("/metadata/creationTimestamp")?;
        let froze = self.time("/status/finishTime")? - self.downtime();
        let pauses = self.gaps(heard).filter(|gap| gap.ms >= self.downtime());
        let began = pauses.map(|gap| gap.at_unix_ms).filter(|at| (from..froze).contains(at)).reduce(f64::max);
        let to = began.unwrap_or(froze);
        (to - from >= TELLING_MS).then_some((from, to))
    }
}

/// Why a case cannot run on this machine, whose agents may have so many descriptors; `None` when it can.
///
/// # Errors
/// When the machine does not tell how much memory it has.
pub fn lacks(case: &Case, descriptors: u64) -> Result<Option<String>> {
    let wanted = case.agent_descriptors();
    if descriptors < wanted {
        return Ok(Some(format!("agents need {wanted} descriptors, RLIMIT_NOFILE is {descriptors}")));
    }
    let text = fs::read_to_string("/proc/meminfo").context("read /proc/meminfo")?;
    let available =
        text.lines().find_map(|line| line.strip_prefix("MemAvailable:")).context("MemAvailable")?;
    let kib: u64 = available.split_ascii_whitespace().next().context("MemAvailable")?.parse()?;
    let needed = 2 * u64::from(case.resident_mib()) + BESIDES;
    Ok((kib / 1024 < needed)
        .then(|| format!("{needed} MiB of memory are needed, {} are available", kib / 1024)))
}

/// Runs a case on hosts of its own, whose agents open so many bulk streams, or as many as they choose.
///
/// # Errors
/// When a move does not succeed, or anything of the container or its clients was lost.
pub fn measure(name: String, case: &Case, moves: usize, streams: Option<u32>) -> Result<Row> {
    let bare = case.bare().map(|(mib, dirty)| Bare::measure(mib, dirty, moves)).transpose();
    let bare = bare.context("copy memory alone")?;
    let streams = streams.map(|streams| streams.to_string());
    let cluster = match &streams {
        Some(streams) => Cluster::up_with(2, &["--bulk-streams", streams])?,
        None => Cluster::up()?,
    };
    let running = start::start(&cluster, case.load)?;
    let agents = Agents::of(&cluster)?;
    let looked = cluster.must(["check", NAME, "-o", "json"])?.json()?;
    let before = used(&cluster)?;
    let cpu = agents.cpu_seconds()?;
    let mut done = Vec::new();
    for index in 0..moves {
        thread::sleep(BEFORE);
        let (source, target) = (NODES[index % 2], NODES[(index + 1) % 2]);
        done.push(
            one(&cluster, case, &agents, [source, target]).with_context(|| format!("move {}", index + 1))?,
        );
    }
    let cpu = agents.cpu_seconds()? - cpu;
    let heard = running.finish(&cluster, NODES[moves % 2])?;
    let resident = looked.pointer("/status/residentBytes").map(as_number).unwrap_or_default();
    let mut row = row(name, case, &done, &heard, resident, cpu, bare);
    row.memory_bytes = [before, used(&cluster)?];
    cluster.passed();
    Ok(row)
}

/// Memory of the container as its control group counts it.
fn used(cluster: &Cluster) -> Result<f64> {
    let shown = cluster.must(["get", "container", NAME, "-o", "json"])?.json()?;
    Ok(shown.pointer("/status/memoryBytes").map(as_number).unwrap_or_default())
}

fn as_number(value: &Value) -> f64 {
    value.as_f64().or_else(|| value.as_str()?.parse().ok()).unwrap_or_default()
}

fn one(cluster: &Cluster, case: &Case, agents: &Agents, [source, target]: [&str; 2]) -> Result<Move> {
    agents.forget_peaks()?;
    let from_ms = unix_ms();
    // A debug build pauses several times longer.
    let limit = if cfg!(debug_assertions) { "60s" } else { case.max_downtime };
    let moved = cluster.migrate(["move", NAME, "--to", target, "--max-downtime", limit, "-o", "json"])?;
    let to_ms = unix_ms();
    ensure!(moved.code == 0, "{}", moved.stderr.trim());
    let migration = moved.json()?;
    Ok(Move { migration, from_ms, to_ms, peaks: [agents.peak_mib(source)?, agents.peak_mib(target)?] })
}

fn row(
    name: String,
    case: &Case,
    moves: &[Move],
    heard: &Heard,
    resident: f64,
    cpu: f64,
    bare: Option<Bare>,
) -> Row {
    let spread = |of: &dyn Fn(&Move) -> f64| Spread::of(moves.iter().map(of));
    let number = |path: &str| spread(&|m| m.number(path));
    let downtime = spread(&Move::downtime);
    let gap = |m: &Move| m.longest_gap(heard).map_or(0.0, |gap| gap.ms);
    let total = number("/status/totalSeconds");
    let sent = number("/status/bytesSent");
    let all_sent: f64 = moves.iter().map(|m| m.number("/status/bytesSent")).sum();
    Row {
        name,
        group: case.group,
        amount: case.amount,
        moves: moves.len(),
        downtime_ms: downtime,
        gaps: Gaps {
            longest_ms: heard.longest_gap_ms,
            per_move_ms: spread(&gap),
            longest_after_ms: spread(&|m| m.longest_gap(heard).map_or(0.0, |gap| gap.at_unix_ms - m.from_ms)),
            over_downtime: spread(&|m| gap(m) / m.downtime().max(1e-3)),
        },
        total_seconds: total,
        bytes_sent: sent,
        resident_bytes: resident,
        memory_bytes: [0.0; 2],
        sent_over_resident: sent.median / resident.max(1.0),
        rounds: spread(&|m| m.rounds().len() as f64),
        split_ms: PARTS
            .iter()
            .map(|(name, key)| (*name, number(&format!("/status/downtime/{key}")).median))
            .collect(),
        steps_ms: steps(moves),
        agents: AgentsUse {
            cpu_seconds_per_move: cpu / (moves.len() as f64).max(1.0),
            cpu_seconds_per_gib: cpu / (all_sent / GIB).max(1e-9),
            source_peak_mib: spread(&|m| m.peaks[0]),
            target_peak_mib: spread(&|m| m.peaks[1]),
        },
        bulk_bytes_per_second: spread(&Move::bulk_rate),
        ratios: bare.map(|bare| Ratios {
            total_over_bare: total.median * 1e3 / bare.total_ms,
            pause_over_bare: downtime.median / bare.pause_ms,
            bulk_over_raw: spread(&Move::bulk_rate).median / bare.raw_bytes_per_second,
            bare,
        }),
        throughput: throughput(moves, heard),
    }
}

/// Medians by step; a move that lacks a step took no time for it.
fn steps(moves: &[Move]) -> BTreeMap<String, f64> {
    let all: Vec<_> = moves.iter().map(Move::steps).collect();
    let names: std::collections::BTreeSet<&String> = all.iter().flat_map(BTreeMap::keys).collect();
    let of = |name: &String| median(all.iter().map(|steps| steps.get(name).copied().unwrap_or_default()));
    names.into_iter().map(|name| (name.clone(), of(name))).collect()
}

/// What was done in a second of pre-copy for each that was done before; `None` when no pre-copy was long enough.
fn throughput(moves: &[Move], heard: &Heard) -> Option<Throughput> {
    let (mut replies, mut writes) = (Vec::new(), Vec::new());
    for m in moves {
        let Some((from, to)) = m.pre_copy(heard) else { continue };
        for (series, ratios) in [(&heard.replies, &mut replies), (&heard.written, &mut writes)] {
            let before = series.rate(from - BEFORE.as_secs_f64() * 0.9e3, from);
            let during = series.rate(from, to);
            if let (Some(before), Some(during)) = (before.filter(|rate| *rate > 0.0), during) {
                ratios.push(during / before);
            }
        }
    }
    let of = |ratios: Vec<f64>| (!ratios.is_empty()).then(|| Spread::of(ratios));
    (!replies.is_empty()).then(|| Throughput { replies: of(replies), writes: of(writes) })
}
