//! The queue: gives each migration its slot, its target and its limits, and has it driven. Those of users come before
//! those of evacuations, and of each the oldest first.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use proto::v1::{ContainerState, EffectivePolicy, MigrationPolicy, NodeState, Phase};
use tokio::task::JoinHandle;

use crate::cluster::facts;
use crate::core::{Core, End};
use crate::drive;
use crate::place::{self, Needs, Verdict};
use crate::policy;
use crate::schedule::{Pair, Slots};
use crate::store::{Record, StoreError};

/// A pass is made at least this often: a node may have become ready.
const TICK: Duration = Duration::from_millis(500);
/// History is looked through this often.
const PRUNE: Duration = Duration::from_secs(3600);

/// Runs until it is dropped. After a restart it goes on with what was admitted before.
pub(crate) async fn run(core: Arc<Core>) {
    let mut driven: HashMap<String, JoinHandle<()>> = HashMap::new();
    let mut pruned: Option<tokio::time::Instant> = None;
    loop {
        if let Err(error) = pass(&core, &mut driven) {
            tracing::error!(error = &error as &dyn std::error::Error, "the queue cannot go on");
        }
        if pruned.is_none_or(|at| at.elapsed() >= PRUNE) {
            match core.store.prune(std::time::SystemTime::now(), core.settings.history) {
                Ok(removed) => tracing::debug!(removed, "history pruned"),
                Err(error) => tracing::error!(error = &error as &dyn std::error::Error, "cannot prune"),
            }
            pruned = Some(tokio::time::Instant::now());
        }
        let _woken_or_time = tokio::time::timeout(TICK, core.wake.notified()).await;
    }
}

fn pass(core: &Arc<Core>, driven: &mut HashMap<String, JoinHandle<()>>) -> Result<(), StoreError> {
    admit(core)?;
    driven.retain(|_, task| !task.is_finished());
    for record in core.store.active()?.into_iter().filter(|record| record.admitted) {
        let name = record.migration.name;
        driven.entry(name.clone()).or_insert_with(|| tokio::spawn(drive::drive(Arc::clone(core), name)));
    }
    Ok(())
}

fn pair(record: &Record) -> Pair {
    Pair { source: record.migration.source_node.clone(), target: record.migration.target_node.clone() }
}

/// Memory promised at each node to migrations that come to it, bytes.
pub(crate) fn promised(active: &[Record]) -> BTreeMap<String, u64> {
    let mut promised = BTreeMap::new();
    for record in active.iter().filter(|record| record.admitted) {
        *promised.entry(record.migration.target_node.clone()).or_default() += record.memory;
    }
    promised
}

/// Walks the queue once; a migration that must wait holds up no other.
fn admit(core: &Core) -> Result<(), StoreError> {
    let active = core.store.active()?;
    let mut promised = promised(&active);
    // One whose outcome is unknown loads nobody, and may stay so until an operator comes.
    let running =
        active.iter().filter(|record| record.admitted && record.migration.phase() != Phase::OutcomeUnknown);
    let mut slots = Slots::new(core.settings.concurrency, running.map(pair));
    let policies = core.store.policies()?;
    for record in active.iter().filter(|record| !record.admitted) {
        let name = &record.migration.name;
        match turn(core, record, &policies, &slots, &promised) {
            Turn::Start { pair, memory, policy, log } => {
                slots.take(&pair);
                *promised.entry(pair.target.clone()).or_default() += memory;
                core.store.update(name, |record| {
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
                        record.migration.source_node = pair.source;
                        record.migration.target_node = pair.target;
                        record.migration.set_phase(Phase::Checking);
                        record.memory = memory;
                        record.admitted = true;
                    }
                })?;
            }
            Turn::Wait(reason) => {
                core.store.update(name, |record| record.log(format!("waits: {reason}")))?;
            }
            Turn::Never(end, reasons) => {
                core.store.update(name, |record| reasons.iter().for_each(|reason| record.log(reason)))?;
                core.finish(name, &end)?;
            }
        }
    }
    Ok(())
}

enum Turn {
    Start { pair: Pair, memory: u64, policy: EffectivePolicy, log: Vec<String> },
    Wait(String),
    Never(End, Vec<String>),
}

fn turn(
    core: &Core,
    record: &Record,
    policies: &[MigrationPolicy],
    slots: &Slots,
    promised: &BTreeMap<String, u64>,
) -> Turn {
    let name = record.container();
    let Some(container) = core.cluster.container(name) else {
        return Turn::Never(
            End::failed("ContainerGone", format!("there is no container {name}")),
            Vec::new(),
        );
    };
    let source = container.node.clone();
    let node = core.cluster.node(&source);
    match node.as_ref().map(|node| node.state()) {
        Some(NodeState::Ready) => {}
        Some(NodeState::Unknown) => return Turn::Wait(format!("{source} is silent")),
        _ => {
            let message = format!("{source}, where {name} is, is not ready");
            return Turn::Never(End::failed("SourceNotReady", message), Vec::new());
        }
    }
    if container.state() == ContainerState::Migrating {
        return Turn::Wait(format!("{source} has not said yet that the last migration of {name} is over"));
    }
    if container.state() != ContainerState::Running {
        let message = format!("{name} on {source} is not running but {}", container.state().as_str_name());
        return Turn::Never(End::failed("ContainerNotRunning", message), Vec::new());
    }
    if let Some(reason) = slots.refuse_source(&source) {
        return Turn::Wait(reason);
    }

    let wanted = record.migration.spec.as_ref().map_or("", |spec| &spec.target_node);
    let mut candidates = core.cluster.candidates(name, promised);
    candidates.retain(|candidate| wanted.is_empty() || candidate.name == wanted);
    let needs = Needs {
        source: source.clone(),
        facts: facts(node.as_ref().and_then(|node| node.facts.as_ref())),
        memory: container.memory_bytes,
        // Its agent says so when it has looked; the target then refuses what it lacks.
        controllers: Vec::new(),
    };
    let (free, full): (Vec<_>, Vec<_>) =
        candidates.into_iter().partition(|c| slots.refuse_target(&c.name).is_none());
    match place::choose(&needs, &free) {
        Ok(target) => {
            let spec = record.migration.spec.clone().unwrap_or_default();
            match policy::resolve(&spec, &container.labels, policies) {
                Ok((policy, log)) => {
                    let pair = Pair { source, target };
                    Turn::Start { pair, memory: container.memory_bytes, policy, log }
                }
                Err(error) => Turn::Never(End::failed("PolicyGone", error.to_string()), Vec::new()),
            }
        }
        Err(mut verdicts) => {
            if let Ok(busy) = place::choose(&needs, &full) {
                return Turn::Wait(slots.refuse_target(&busy).unwrap_or_default());
            }
            verdicts.extend(full.iter().map(|candidate| place::judge(&needs, candidate)));
            let silent = verdicts
                .iter()
                .find(|v| core.cluster.node(&v.node).is_some_and(|n| n.state() == NodeState::Unknown));
            match silent {
                Some(verdict) => Turn::Wait(format!("{} is silent", verdict.node)),
                None => no_candidate(name, wanted, &verdicts),
            }
        }
    }
}

fn no_candidate(container: &str, wanted: &str, verdicts: &[Verdict]) -> Turn {
    let reasons: Vec<String> =
        verdicts.iter().map(|v| format!("{}: {}", v.node, v.reasons.join(", "))).collect();
    let message = match reasons.as_slice() {
        [] if wanted.is_empty() => format!("no node is known that {container} could move to"),
        [] => format!("there is no node {wanted}"),
        _ => format!("no node takes {container}: {}", reasons.join("; ")),
    };
    Turn::Never(End::failed("NoCandidate", message), reasons)
}
