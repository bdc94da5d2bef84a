//! The queue: gives each migration its slot, its target and its limits, as [`admit`] decides, and has it driven.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use proto::v1::Phase;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::admit::{self, SCHEDULED, Start, Turn, Wait};
use crate::core::{Core, set_condition};
use crate::drive;
use crate::store::StoreError;

/// A pass is made at least this often: a node may have become ready.
const TICK: Duration = Duration::from_millis(500);
/// Figures in what a migration waits for are written again this often; free memory changes with every heartbeat.
const RETELL: Duration = Duration::from_secs(5);
/// History is looked through this often.
const PRUNE: Duration = Duration::from_secs(3600);

/// Runs until it is dropped. After a restart it goes on with what was admitted before.
pub(crate) async fn run(core: Arc<Core>) {
    let mut driven: HashMap<String, JoinHandle<()>> = HashMap::new();
    let mut told: HashMap<String, Told> = HashMap::new();
    let mut pruned: Option<Instant> = None;
    loop {
        if let Err(error) = pass(&core, &mut driven, &mut told) {
            tracing::error!(error = &error as &dyn std::error::Error, "the queue cannot go on");
        }
        if pruned.is_none_or(|at| at.elapsed() >= PRUNE) {
            // A long history takes a while, and migrations shall not wait for it.
            let core = Arc::clone(&core);
            drop(tokio::task::spawn_blocking(move || prune(&core)));
            pruned = Some(Instant::now());
        }
        let _woken_or_time = tokio::time::timeout(TICK, core.wake.notified()).await;
    }
}

fn prune(core: &Core) {
    match core.store.prune(SystemTime::now(), core.settings.history) {
        Ok(removed) => tracing::debug!(removed, "history pruned"),
        Err(error) => tracing::error!(error = &error as &dyn std::error::Error, "cannot prune"),
    }
}

/// What a migration waits for, as its record has it, and since when.
type Told = (Wait, Instant);

fn pass(
    core: &Arc<Core>,
    driven: &mut HashMap<String, JoinHandle<()>>,
    told: &mut HashMap<String, Told>,
) -> Result<(), StoreError> {
    admit(core, told)?;
    driven.retain(|_, task| !task.is_finished());
    for record in core.store.active()?.into_iter().filter(|record| record.admitted) {
        let name = record.migration.name;
        driven.entry(name.clone()).or_insert_with(|| tokio::spawn(drive::drive(Arc::clone(core), name)));
    }
    Ok(())
}

/// Walks the queue once, and writes what came of it.
fn admit(core: &Core, told: &mut HashMap<String, Told>) -> Result<(), StoreError> {
    let active = core.store.active()?;
    if active.iter().all(|record| record.admitted) {
        told.clear();
        return Ok(());
    }
    let policies = core.store.policies()?;
    let now = SystemTime::now();
    let turns = admit::walk(&core.cluster, core.settings.concurrency, &active, &policies, now);
    told.retain(|name, _| turns.iter().any(|(waiting, _)| waiting == name));
    for (name, turn) in turns {
        match turn {
            Turn::Start(start) => {
                let Start { pair, memory, policy, log } = *start;
                core.store.update(&name, |record| {
                    // Cancelled since it was read: that has ended it.
                    if record.cancelled_by.is_empty() {
                        log.into_iter().for_each(|line| record.log(line));
                        record.migration.effective_policy = Some(policy);
                        record.log(format!(
                            "{} moves from {} to {}",
                            record.container(),
                            pair.source,
                            pair.target
                        ));
                        let m = &mut record.migration;
                        let message = format!("on {}", pair.target);
                        set_condition(&mut m.conditions, SCHEDULED, "True", "Placed", &message);
                        m.reason.clear();
                        m.message.clear();
                        m.source_node = pair.source;
                        m.target_node = pair.target;
                        m.set_phase(Phase::Checking);
                        record.memory = memory;
                        record.admitted = true;
                    }
                })?;
            }
            Turn::Wait(wait) => {
                let known = told.get(&name).is_some_and(|(last, at)| {
                    last.why == wait.why && (last.message == wait.message || at.elapsed() < RETELL)
                });
                if !known {
                    core.store.update(&name, |record| {
                        if record.cancelled_by.is_empty() && !record.is_over() {
                            wait.apply(record, now);
                        }
                    })?;
                    told.insert(name, (wait, Instant::now()));
                }
            }
            Turn::Never(end, reasons) => {
                core.store.update(&name, |record| reasons.iter().for_each(|reason| record.log(reason)))?;
                core.finish(&name, &end)?;
            }
        }
    }
    Ok(())
}
