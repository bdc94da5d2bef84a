//! Every boundary at which a migration can end: failpoints that give up and failpoints at which an agent dies.

use anyhow::{Result, ensure};

use crate::stage::{NAME, Stage};

/// Failpoints of the source before the commit point.
pub const SOURCE: &[&str] = &[
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
    "source-template",
    "source-template-sent",
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
pub const TARGET: &[&str] = &[
    "session-target-checking-begin",
    "session-target-preparing-begin",
    "session-target-preparing-begun",
    "session-target-preparing-sandbox",
    "session-target-preparing-mounts",
    "session-target-precopy-begin",
    "session-target-precopy-groups",
    "session-target-precopy-round",
    "session-target-switchover-begin",
    "session-target-switchover-pages",
    "session-target-switchover-restored",
    "session-target-switchover-limits",
    "session-target-switchover-frozen",
    "session-target-switchover-ready",
];

/// Gives up at every so-manieth failpoint before the commit point, source and target.
///
/// # Errors
/// With the point, and what was not as it should be after it.
pub fn returns(stage: &mut Stage, every: usize) -> Result<()> {
    for point in SOURCE.iter().step_by(every) {
        let finished = stage.attempt(&format!("{point}=return"), "", 4)?;
        ensure!(finished.stderr.contains(point), "{point} is not the reason in {finished:?}");
    }
    for point in TARGET.iter().step_by(every) {
        let finished = stage.attempt("", &format!("{point}=return"), 4)?;
        ensure!(finished.stderr.contains(point), "{point} is not the reason in {finished:?}");
    }
    Ok(())
}

/// Where the agent of the source is killed, and how the move ends then. [`crate::matrix`] has all boundaries and more that is
/// done to more processes.
pub const SOURCE_KILLS: &[(&str, i32)] = &[
    ("session-source-preparing-attach", 4),
    ("session-source-precopy-round", 4),
    ("source-freeze-parked", 4),
    ("source-freeze-cgroup", 4),
    ("session-source-switchover-locked", 4),
    ("session-source-switchover-captured", 4),
    ("session-source-switchover-ready", 4),
    ("session-source-switchover-appended", 0),
    ("session-source-completing-committed", 0),
    ("source-kill", 0),
    ("session-source-completing-killed", 0),
];

/// A session that panics ends as one whose agent is killed.
///
/// # Errors
/// As [`returns`].
pub fn panics(stage: &mut Stage) -> Result<()> {
    killed(stage, "session-source-precopy-round=panic", "", 4)?;
    killed(stage, "", "session-target-precopy-round=panic", 4)
}

/// Kills the agent of the source at each of them.
///
/// # Errors
/// As [`returns`].
pub fn every_source_kill(stage: &mut Stage) -> Result<()> {
    for (point, code) in SOURCE_KILLS {
        killed(stage, &format!("{point}=kill"), "", *code)?;
    }
    Ok(())
}

/// Moves with a failpoint that kills one agent; the agent is another process afterwards.
///
/// # Errors
/// As [`returns`].
pub fn killed(stage: &mut Stage, source: &str, target: &str, code: i32) -> Result<()> {
    let node = if source.is_empty() { stage.target() } else { stage.source() };
    let agent = stage.cluster.daemon(node);
    ensure!(agent.is_some(), "no agent runs on {node}");
    stage.attempt(source, target, code)?;
    ensure!(stage.cluster.daemon(node) != agent, "{source}{target}: the agent of {node} was not killed");
    Ok(())
}

/// Where the agent of the target is killed, and how the move ends then.
pub const TARGET_KILLS: &[(&str, i32)] = &[
    ("session-target-checking-begin", 4),
    ("session-target-preparing-sandbox", 4),
    ("target-template", 4),
    ("target-reconcile-tree", 4),
    ("session-target-precopy-round", 4),
    ("session-target-precopy-groups", 4),
    ("target-processes", 4),
    ("target-threads", 4),
    ("target-attributes", 4),
    ("session-target-switchover-limits", 4),
    ("target-ready-frozen", 4),
    ("session-target-switchover-frozen", 4),
    ("session-target-switchover-ready", 4),
    ("session-target-completing-seen", 0),
    ("session-target-completing-attached", 0),
    ("session-target-completing-thawed", 0),
    ("session-target-completing-owned", 0),
];

/// Kills the agent of the target at each of them.
///
/// # Errors
/// As [`returns`].
pub fn every_target_kill(stage: &mut Stage) -> Result<()> {
    for (point, code) in TARGET_KILLS {
        killed(stage, "", &format!("{point}=kill"), *code)?;
    }
    Ok(())
}

/// Cancels a migration before its commit point, which ends it, and behind it, which is refused.
///
/// # Errors
/// As [`returns`].
pub fn every_cancel(stage: &mut Stage) -> Result<()> {
    for (phase, point) in
        [("PreCopy", "session-source-precopy-round"), ("Switchover", "session-source-switchover-captured")]
    {
        let before = stage.last();
        stage.cluster.failpoints(stage.source(), &format!("{point}=sleep(1500)"))?;
        let moving = stage.start_move()?;
        let name = stage.cluster.wait_phase(NAME, &before, &[phase])?;
        stage.cluster.must(["cancel", &name])?;
        stage.ended(&moving.finish()?, 6)?;
    }
    let before = stage.last();
    stage.cluster.failpoints(stage.target(), "session-target-completing-thawed=sleep(2000)")?;
    let moving = stage.start_move()?;
    let name = stage.cluster.wait_phase(NAME, &before, &["Completing"])?;
    let refused = stage.cluster.migrate(["cancel", &name])?;
    ensure!(refused.code != 0, "a committed migration was cancelled: {refused:?}");
    stage.ended(&moving.finish()?, 0)?;
    Ok(())
}
