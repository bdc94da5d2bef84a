//! Faults on real processes: whatever fails, exactly one copy serves in the end, on the connections that its
//! clients had before, and nothing of the failed attempt is left on either node.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use anyhow::{Result, ensure};
use tests::cluster::wait_for;
use tests::faults::RESTART;
use tests::stage::{NAME, Stage};
use tests::suite::{self, Case};
use tests::{client, residue};

const PYTHON: &[&str] = &["python3", "ip", "tc"];

fn main() -> ExitCode {
    if let Some(code) = client::run_if_asked().or_else(residue::run_if_asked) {
        return code;
    }
    suite::main(&[
        Case { name: "an_abort_at_any_boundary_leaves_the_source_as_it_was", programs: PYTHON, run: aborts },
        Case { name: "cancelling_works_until_the_commit_and_is_refused_after", programs: PYTHON, run: cancels },
        Case { name: "a_killed_source_agent_leaves_one_copy", programs: PYTHON, run: source_killed },
        Case { name: "a_killed_target_agent_leaves_one_copy", programs: PYTHON, run: target_killed },
        Case { name: "a_killed_coordinator_changes_nothing", programs: PYTHON, run: coordinator_killed },
        Case { name: "a_failing_disk_at_the_commit_point_never_leads_back", programs: PYTHON, run: bad_journal },
    ])
}

/// Failpoints of the source before the commit point.
const SOURCE: &[&str] = &[
    "session-source-checking-begin",
    "session-source-checking-dial",
    "session-source-preparing-begin",
    "session-source-preparing-bulk",
    "session-source-preparing-files",
    "session-source-preparing-attach",
    "source-attach-begin",
    "source-attach-process",
    "source-attach-end",
    "session-source-preparing-lock",
    "session-source-precopy-begin",
    "session-source-precopy-round",
    "source-shape",
    "source-round",
    "session-source-switchover-begin",
    "source-freeze-begin",
    "source-freeze-stopped",
    "source-freeze-parked",
    "source-freeze-cgroup",
    "source-freeze-end",
    "session-source-switchover-frozen",
    "session-source-switchover-locked",
    "source-last-pages",
    "session-source-switchover-last-pages",
    "source-capture-begin",
    "source-capture-files",
    "source-capture-end",
    "session-source-switchover-captured",
    "session-source-switchover-ready",
];

/// Failpoints of the target before the commit point.
const TARGET: &[&str] = &[
    "session-target-checking-begin",
    "session-target-preparing-begin",
    "session-target-preparing-begun",
    "session-target-preparing-sandbox",
    "session-target-precopy-begin",
    "session-target-precopy-round",
    "session-target-switchover-begin",
    "session-target-switchover-pages",
    "session-target-switchover-restored",
    "session-target-switchover-frozen",
    "session-target-switchover-ready",
];

fn aborts() -> Result<()> {
    let mut stage = Stage::new()?;
    for point in SOURCE {
        let finished = stage.attempt(&format!("{point}=return"), "", 4)?;
        ensure!(finished.stderr.contains(point), "{point} is not the reason in {finished:?}");
    }
    for point in TARGET {
        let finished = stage.attempt("", &format!("{point}=return"), 4)?;
        ensure!(finished.stderr.contains(point), "{point} is not the reason in {finished:?}");
    }
    stage.clean_move()?;
    stage.passed()
}

/// The name of the migration that ended last.
fn last(stage: &Stage) -> String {
    let migration = stage.cluster.last_migration(NAME).ok();
    migration.and_then(|m| Some(m.pointer("/metadata/name")?.as_str()?.to_owned())).unwrap_or_default()
}

fn cancels() -> Result<()> {
    let mut stage = Stage::new()?;
    for (phase, point) in [("PreCopy", "session-source-precopy-round"), ("Switchover", "session-source-switchover-captured")] {
        let before = last(&stage);
        stage.cluster.failpoints(stage.source(), &format!("{point}=sleep(1500)"))?;
        let moving = stage.start_move()?;
        let name = stage.cluster.wait_phase(NAME, &before, &[phase])?;
        stage.cluster.must(["cancel", &name])?;
        stage.ended(&moving.finish()?, 6)?;
    }
    let before = last(&stage);
    stage.cluster.failpoints(stage.target(), "session-target-completing-thawed=sleep(2000)")?;
    let moving = stage.start_move()?;
    let name = stage.cluster.wait_phase(NAME, &before, &["Completing"])?;
    let refused = stage.cluster.migrate(["cancel", &name])?;
    ensure!(refused.code != 0, "a committed migration was cancelled: {refused:?}");
    stage.ended(&moving.finish()?, 0)?;
    stage.clean_move()?;
    stage.passed()
}

/// Where the agent of the source is killed, and how the move ends then.
const SOURCE_KILLS: &[(&str, i32)] = &[
    ("session-source-checking-dial", 4),
    ("session-source-preparing-attach", 4),
    ("source-attach-process", 4),
    ("session-source-precopy-round", 4),
    ("source-round", 4),
    ("source-freeze-stopped", 4),
    ("source-freeze-parked", 4),
    ("source-freeze-cgroup", 4),
    ("session-source-switchover-frozen", 4),
    ("session-source-switchover-locked", 4),
    ("source-capture-files", 4),
    ("session-source-switchover-captured", 4),
    ("session-source-switchover-ready", 4),
    ("session-source-switchover-appended", 0),
    ("session-source-completing-committed", 0),
    ("session-source-completing-answered", 0),
    ("source-kill", 0),
];

fn source_killed() -> Result<()> {
    let mut stage = Stage::new()?;
    for (point, code) in SOURCE_KILLS {
        killed(&mut stage, &format!("{point}=kill"), "", *code)?;
    }
    stage.clean_move()?;
    stage.passed()
}

/// Moves with a failpoint that kills one agent; the agent is another process afterwards.
fn killed(stage: &mut Stage, source: &str, target: &str, code: i32) -> Result<()> {
    let node = if source.is_empty() { stage.target() } else { stage.source() };
    let agent = stage.cluster.daemon(node);
    ensure!(agent.is_some(), "no agent runs on {node}");
    stage.attempt(source, target, code)?;
    ensure!(stage.cluster.daemon(node) != agent, "{source}{target}: the agent of {node} was not killed");
    Ok(())
}

/// Where the agent of the target is killed, and how the move ends then.
const TARGET_KILLS: &[(&str, i32)] = &[
    ("session-target-checking-begin", 4),
    ("session-target-preparing-begun", 4),
    ("session-target-preparing-sandbox", 4),
    ("target-reconcile", 4),
    ("target-reconcile-memory", 4),
    ("session-target-precopy-round", 4),
    ("session-target-switchover-pages", 4),
    ("target-files", 4),
    ("target-descriptors", 4),
    ("target-threads", 4),
    ("target-registers", 4),
    ("target-ready-repair", 4),
    ("target-ready-frozen", 4),
    ("session-target-switchover-frozen", 4),
    ("session-target-switchover-ready", 4),
    ("session-target-completing-seen", 0),
    ("session-target-completing-attached", 0),
    ("session-target-completing-thawed", 0),
    ("session-target-completing-owned", 0),
];

fn target_killed() -> Result<()> {
    let mut stage = Stage::new()?;
    for (point, code) in TARGET_KILLS {
        killed(&mut stage, "", &format!("{point}=kill"), *code)?;
    }
    stage.clean_move()?;
    stage.passed()
}

/// While the coordinator is away the agents go on; the command that follows the move finds its end.
fn coordinator_killed() -> Result<()> {
    let mut stage = Stage::new()?;
    let host = "coordinator";
    for (phase, point) in [
        ("PreCopy", "session-source-precopy-round"),
        ("Switchover", "session-source-switchover-captured"),
        ("Switchover", "session-source-switchover-appended"),
    ] {
        let before = last(&stage);
        stage.cluster.failpoints(stage.source(), &format!("{point}=1*sleep(1000)"))?;
        let moving = stage.start_move()?;
        stage.cluster.wait_phase(NAME, &before, &[phase])?;
        let killed = stage.cluster.kill_daemon(host)?;
        let finished = moving.finish()?;
        stage.cluster.wait_restarted(host, killed)?;
        stage.ended(&finished, 0)?;
    }
    for point in ["drive-after-check", "drive-after-epoch", "drive-after-prepare", "drive-before-start", "drive-after-start"] {
        stage.cluster.failpoints(host, &format!("{point}=kill"))?;
        let old = stage.cluster.kill_daemon(host)?;
        stage.cluster.wait_restarted(host, old)?;
        stage.cluster.wait_ready()?;
        let armed = stage.cluster.daemon(host);
        let moving = stage.start_move()?;
        let died = wait_for(&format!("the coordinator dies at {point}"), RESTART, || {
            (stage.cluster.daemon(host) != armed).then_some(())
        });
        stage.cluster.failpoints(host, "")?;
        died?;
        let finished = moving.finish()?;
        ensure!(matches!(finished.code, 0 | 4), "{point}: {finished:?}");
        stage.ended(&finished, finished.code)?;
        println!("{point}: exit code {}", finished.code);
    }
    stage.clean_move()?;
    stage.passed()
}

/// An error of the sync that makes COMMITTED durable is no way back: it is tried again until it works.
fn bad_journal() -> Result<()> {
    let mut stage = Stage::new()?;
    stage.attempt("journal-sync=1*return->off", "", 0)?;
    stage.attempt("journal-sync=1*return->off\njournal-rewrite=2*return->off", "", 0)?;
    stage.attempt("", "journal-sync=1*return->off", 0)?;
    stage.clean_move()?;
    stage.passed()
}
