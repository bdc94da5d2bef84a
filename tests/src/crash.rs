//! Kills the agent of the source at random moments of a migration, many times, while the container checks itself.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::{Signal, kill};

use crate::stage::{NAME, Stage};

/// Kills the source's agent `times` times, each at a moment of a migration that `seed` decides. After each the
/// container serves on the same connections, one node has it, the other has nothing, and the agent is back.
///
/// # Errors
/// With the number of the kill and what was not as it should be.
pub fn kills(stage: &mut Stage, times: u32, seed: u64) -> Result<()> {
    let began = Instant::now();
    // The command's own start and end are in this, too: some kills come before the session and some after.
    let longest = typical(stage)?;
    let mut random = fastrand::Rng::with_seed(seed);
    let (mut stayed, mut moved) = (0, 0);
    for number in 1..=times {
        let after = Duration::from_micros(random.u64(..longest.max(1)));
        one(stage, after, &mut stayed, &mut moved)
            .with_context(|| format!("kill {number} of {times} (seed {seed}), {after:?} after the start"))?;
    }
    println!(
        "{times} kills in {:?}: the container stayed {stayed} times and moved {moved} times",
        began.elapsed()
    );
    Ok(())
}

/// As [`kills`], on hosts of its own, with an ordinary move at the end.
///
/// # Errors
/// As [`kills`].
pub fn run(times: u32, seed: u64) -> Result<()> {
    let mut stage = Stage::new()?;
    kills(&mut stage, times, seed)?;
    stage.clean_move().context("after all kills")?;
    stage.passed()
}

/// How long a migration takes here from the command to its end, microseconds.
fn typical(stage: &mut Stage) -> Result<u64> {
    stage.clean_move()?;
    let migration = stage.cluster.last_migration(NAME)?;
    let seconds =
        migration.pointer("/status/totalSeconds").and_then(serde_json::Value::as_f64).unwrap_or(0.5);
    Ok(u64::try_from(Duration::from_secs_f64(seconds.clamp(0.1, 5.0)).as_micros())?)
}

fn one(stage: &mut Stage, after: Duration, stayed: &mut u32, moved: &mut u32) -> Result<()> {
    let node = stage.source();
    let agent = stage.cluster.daemon(node).context("no agent")?;
    let moving = stage.start_move()?;
    // The moment itself: nothing is waited for.
    std::thread::sleep(after);
    kill(agent, Signal::SIGKILL).context("kill the agent")?;
    stage.cluster.wait_restarted(node, agent)?;
    let finished = moving.finish()?;
    ensure!(matches!(finished.code, 0 | 1 | 4), "the move ended with {finished:?}");
    stage.find().with_context(|| format!("the move ended with {finished:?}"))?;
    let has_moved = stage.source() != node;
    ensure!(has_moved == (finished.code == 0), "the container is on {}, but {finished:?}", stage.source());
    if has_moved {
        *moved += 1
    } else {
        *stayed += 1
    }
    Ok(())
}
