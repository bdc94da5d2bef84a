//! The fault matrix: what is done to one of the three processes of a migration while it waits at one of its boundaries.
//! Whatever it is, one copy serves in the end, on the connections that its clients had, and nothing is left anywhere else.

use std::fmt;
use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::aborts;
use crate::cluster::{Background, Finished, wait_for};
use crate::stage::{NAME, NODES, Stage};

/// A process of a migration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    /// The agent that gives the container away.
    Source,
    /// The agent that takes it.
    Target,
    /// The coordinator.
    Coordinator,
}

/// All of them.
pub const SIDES: [Side; 3] = [Side::Source, Side::Target, Side::Coordinator];

/// What is done to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fault {
    /// SIGKILL; its supervisor starts it again.
    Kill,
    /// SIGSTOP, and SIGCONT after [`STOPPED`].
    Stop,
    /// Its host has no link, for [`STOPPED`].
    Cut,
    /// Its disk has no room, for [`STOPPED`] or until the migration has ended.
    Full,
}

/// All of them.
pub const FAULTS: [Fault; 4] = [Fault::Kill, Fault::Stop, Fault::Cut, Fault::Full];

/// How long a fault lasts that does not end by itself.
pub const STOPPED: Duration = Duration::from_secs(10);
/// Within this time a move must have told how it ended.
const ENDS: Duration = Duration::from_secs(90);
/// Within this time its record must have.
const RECORDED: Duration = Duration::from_secs(60);

/// Failpoints after the commit point.
const COMMITTED: &[(Side, &str)] = &[
    (Side::Source, "session-source-switchover-appended"),
    (Side::Target, "session-target-completing-seen"),
    (Side::Target, "session-target-completing-attached"),
    (Side::Target, "session-target-completing-thawed"),
    (Side::Target, "session-target-completing-owned"),
    (Side::Source, "session-source-completing-committed"),
    (Side::Source, "session-source-completing-answered"),
    (Side::Source, "source-kill"),
    (Side::Source, "session-source-completing-killed"),
];

/// Failpoints of the coordinator.
const COORDINATOR: &[&str] = &[
    "drive-after-check",
    "drive-after-epoch",
    "drive-after-prepare",
    "drive-before-start",
    "drive-after-start",
];

/// Where a migration waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Point {
    /// Who waits.
    pub side: Side,
    /// The failpoint's name.
    pub name: &'static str,
}

/// Steps of the engine at the target.
const RESTORE: &[&str] = &[
    "target-template",
    "target-reconcile",
    "target-reconcile-tree",
    "target-reconcile-memory",
    "target-files",
    "target-processes",
    "target-descriptors",
    "target-threads",
    "target-registers",
    "target-attributes",
    "target-calls",
    "target-ready-repair",
    "target-ready-frozen",
];

/// Every boundary: those of each side in the order in which it comes to them, then those after the commit point and those
/// inside the restore.
#[must_use]
pub fn points() -> Vec<Point> {
    let of = |side, names: &'static [&'static str]| names.iter().map(move |name| Point { side, name });
    let committed = COMMITTED.iter().map(|(side, name)| Point { side: *side, name });
    of(Side::Coordinator, COORDINATOR)
        .chain(of(Side::Source, aborts::SOURCE))
        .chain(of(Side::Target, aborts::TARGET))
        .chain(committed)
        .chain(of(Side::Target, RESTORE))
        .collect()
}

/// One cell of the matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cell {
    /// Where the migration waits.
    pub point: Point,
    /// To whom something is done.
    pub to: Side,
    /// What.
    pub fault: Fault,
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {} {}", self.point.name, self.fault, self.to)
    }
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Source => "source",
            Self::Target => "target",
            Self::Coordinator => "coordinator",
        })
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kill => "kill",
            Self::Stop => "stop",
            Self::Cut => "cut",
            Self::Full => "full",
        })
    }
}

/// The cells of a fault. Those of one boundary follow each other.
pub fn cells(fault: Fault) -> impl Iterator<Item = Cell> {
    points().into_iter().flat_map(move |point| SIDES.map(|to| Cell { point, to, fault }))
}

/// A disk that holds what a stage needs, and is filled in a moment, MiB.
pub const DISK: u32 = 512;

/// How a cell ended well.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// The container is at the target now.
    pub moved: bool,
    /// The exit code of `migrate move`.
    pub code: i32,
    /// The longest time that a client waited, milliseconds.
    pub gap_ms: f64,
    /// From the fault until everything was as it should be.
    pub settled: Duration,
}

/// Runs one cell on a stage, which is fit for the next one after Ok. [`Fault::Full`] needs one
/// [on disks of its own](crate::cluster::Cluster::up_on_disks).
///
/// # Errors
/// With what was not as it should be; the stage is to be thrown away then.
pub fn run(stage: &mut Stage, cell: Cell) -> Result<Outcome> {
    one(stage, cell).with_context(|| cell.to_string())
}

fn one(stage: &mut Stage, cell: Cell) -> Result<Outcome> {
    let (before, node) = (stage.last(), stage.source());
    let waits = host(stage, cell.point.side);
    arm(stage, waits, cell.point)?;
    let mut moving = stage.start_move()?;
    let held = stage.cluster.host_dir(waits).join("state/held");
    let reached = wait_for("the migration comes there", Duration::from_secs(30), || {
        (held.exists() || moving.has_ended()).then(|| held.exists())
    })?;
    if !reached {
        bail!("it was never there: {:?}", moving.finish()?);
    }
    let began = Instant::now();
    let hit = host(stage, cell.to);
    let lasting = Lasting::begin(stage, hit, cell.fault)?;
    release(stage, waits)?;
    let finished = ended(&mut moving, began, &lasting, stage);
    disarm(stage, cell.point.side)?;
    finished?;
    let finished = moving.finish()?;
    stage.find().with_context(|| format!("the move ended with {finished:?}"))?;
    let moved = stage.source() != node;
    recorded(stage, &before, moved).with_context(|| format!("the move ended with {finished:?}"))?;
    told(&finished, moved, cell)?;
    Ok(Outcome { moved, code: finished.code, gap_ms: stage.gap_ms, settled: began.elapsed() })
}

fn host(stage: &Stage, side: Side) -> &'static str {
    match side {
        Side::Source => stage.source(),
        Side::Target => stage.target(),
        Side::Coordinator => "coordinator",
    }
}

/// Has the process at `waits` hold up the next migration at a point. A coordinator reads its failpoints when it starts.
fn arm(stage: &Stage, waits: &str, point: Point) -> Result<()> {
    let line = format!("{}=hold", point.name);
    let set = fs::read_to_string(stage.cluster.host_dir(waits).join("state/failpoints")).unwrap_or_default();
    if point.side != Side::Coordinator {
        for node in NODES {
            stage.cluster.failpoints(node, if node == waits { &line } else { "" })?;
        }
    } else if set != line {
        stage.cluster.failpoints(waits, &line)?;
        let old = stage.cluster.kill_daemon(waits)?;
        stage.cluster.wait_restarted(waits, old)?;
        stage.cluster.wait_ready()?;
    }
    Ok(fs::write(stage.cluster.host_dir(waits).join("state/hold"), "")?)
}

fn release(stage: &Stage, waits: &str) -> Result<()> {
    Ok(fs::remove_file(stage.cluster.host_dir(waits).join("state/hold"))?)
}

fn disarm(stage: &Stage, side: Side) -> Result<()> {
    for node in NODES {
        stage.cluster.failpoints(node, "")?;
    }
    // Who was killed there has left it.
    let waits = if side == Side::Coordinator { &["coordinator"][..] } else { &NODES[..] };
    for host in waits {
        let _ = fs::remove_file(stage.cluster.host_dir(host).join("state/held"));
    }
    Ok(())
}

/// A fault that is there until it is [lifted](Lasting::lift).
#[derive(Debug)]
struct Lasting {
    host: &'static str,
    fault: Fault,
    daemon: nix::unistd::Pid,
}

impl Lasting {
    fn begin(stage: &Stage, host: &'static str, fault: Fault) -> Result<Self> {
        let daemon = stage.cluster.daemon(host).with_context(|| format!("no daemon runs on {host}"))?;
        match fault {
            Fault::Kill => kill(daemon, Signal::SIGKILL)?,
            Fault::Stop => kill(daemon, Signal::SIGSTOP)?,
            Fault::Cut => drop(stage.cluster.exec_ok(host, &["ip", "link", "set", "eth0", "down"])?),
            Fault::Full => {
                let filler = stage.cluster.host_dir(host).join("filler");
                let mut file = fs::File::create(&filler)?;
                let full = std::io::copy(&mut std::io::repeat(0), &mut file);
                ensure!(
                    full.as_ref().is_err_and(|error| error.raw_os_error() == Some(nix::libc::ENOSPC)),
                    "the disk of {host} is not full: {full:?}"
                );
            }
        }
        Ok(Self { host, fault, daemon })
    }

    fn lift(&self, stage: &Stage) -> Result<()> {
        match self.fault {
            Fault::Kill => stage.cluster.wait_restarted(self.host, self.daemon)?,
            Fault::Stop => kill(self.daemon, Signal::SIGCONT)?,
            Fault::Cut => drop(stage.cluster.exec_ok(self.host, &["ip", "link", "set", "eth0", "up"])?),
            Fault::Full => fs::remove_file(stage.cluster.host_dir(self.host).join("filler"))?,
        }
        Ok(())
    }
}

/// Waits until the move has told its end, and lifts the fault in time.
fn ended(moving: &mut Background, began: Instant, lasting: &Lasting, stage: &Stage) -> Result<()> {
    let passes = lasting.fault == Fault::Full;
    let over = |moving: &mut Background| began.elapsed() > STOPPED || (passes && moving.has_ended());
    if lasting.fault != Fault::Kill {
        wait_for("the fault is over", STOPPED * 2, || over(moving).then_some(()))?;
    }
    lasting.lift(stage)?;
    wait_for("the move tells how it ended", ENDS, || moving.has_ended().then_some(()))
}

/// The record says where the container is, and does not change any more.
fn recorded(stage: &Stage, before: &str, moved: bool) -> Result<()> {
    let mut last = Value::Null;
    let found = wait_for("the record says how it ended", RECORDED, || {
        last = stage.cluster.last_migration(NAME).ok()?;
        let text = |path: &str| last.pointer(path).and_then(Value::as_str).unwrap_or_default().to_owned();
        let (phase, name) = (text("/status/phase"), text("/metadata/name"));
        let ended = ["Succeeded", "Failed", "Cancelled"].contains(&phase.as_str()) && name != before;
        ended.then_some(phase)
    });
    let phase = found.with_context(|| format!("its record is {last}"))?;
    ensure!((phase == "Succeeded") == moved, "moved is {moved}, but its record is {last}");
    Ok(())
}

/// What the command said is what happened; it may say that it does not know when it lost the coordinator.
fn told(finished: &Finished, moved: bool, cell: Cell) -> Result<()> {
    let lost = cell.to == Side::Coordinator && [7, 8].contains(&finished.code);
    let right = if moved { finished.code == 0 } else { [4, 5].contains(&finished.code) };
    ensure!(right || lost || finished.code == 8, "moved is {moved}, but {finished:?}");
    Ok(())
}
