//! Evacuations: empties a node, or brings back what an evacuation took away.
//!
//! [`step`] decides, this module does: it looks at the cluster, writes the record that a step changed and then does
//! what the step says. Nothing that matters lives only here; results of checks are made again after a restart.

pub(crate) mod step;
pub(crate) mod world;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, SystemTime};

use proto::v1::{
    Container, Evacuation, EvacuationItem, EvacuationPhase, EvacuationSpec, ItemState, Migration,
    MigrationSpec, Phase,
};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use self::world::{Action, Busy, Check, Move, Seen, Todo, World};
use crate::admit::loads;
use crate::cancel::cancel;
use crate::check::{Checked, check};
use crate::cluster::Cluster;
use crate::core::{Core, set_condition};
use crate::place::{Candidate, Loads, Needs, Verdict};
use crate::store::{CreateError, EvacuationRecord, Record, StoreError};

/// A look is taken at least this often: a container may have stopped, a node may be ready again.
const TICK: Duration = Duration::from_millis(500);

/// Runs until it is dropped. After a restart it goes on with every evacuation that is not over.
pub(crate) async fn run(core: Arc<Core>) {
    let mut tasks: HashMap<String, JoinHandle<()>> = HashMap::new();
    let mut latest = core.store.latest();
    loop {
        latest.mark_unchanged();
        tasks.retain(|_, task| !task.is_finished());
        for name in core.store.evacuating() {
            tasks.entry(name.clone()).or_insert_with(|| tokio::spawn(evacuate(Arc::clone(&core), name)));
        }
        let _changed_or_time = tokio::time::timeout(TICK, latest.changed()).await;
    }
}

/// Takes one evacuation to its end.
#[tracing::instrument(name = "evacuate", skip_all, fields(evacuation = %name))]
async fn evacuate(core: Arc<Core>, name: String) {
    let (sender, mut receiver) = mpsc::unbounded_channel::<(String, Check)>();
    let mut checks: BTreeMap<String, Check> = BTreeMap::new();
    let mut latest = core.store.latest();
    loop {
        latest.mark_unchanged();
        let wake = match pass(&core, &name, &mut checks, &sender).await {
            Ok(Some(wake)) => wake,
            Ok(None) => return,
            Err(error) => {
                tracing::error!(error = &error as &dyn std::error::Error, "the store failed");
                None
            }
        };
        let until = wake.and_then(|wake| wake.duration_since(SystemTime::now()).ok()).unwrap_or(TICK);
        tokio::select! {
            Some((container, check)) = receiver.recv() => drop(checks.insert(container, check)),
            _ = latest.changed() => {}
            () = tokio::time::sleep(until.min(TICK)) => {}
        }
    }
}

/// One step and what it asks for. Answers when to look again; the outer `None` when it is over.
async fn pass(
    core: &Arc<Core>,
    name: &str,
    checks: &mut BTreeMap<String, Check>,
    sender: &mpsc::UnboundedSender<(String, Check)>,
) -> Result<Option<Option<SystemTime>>, StoreError> {
    let Some(record) = core.store.evacuation(name)? else { return Ok(None) };
    if record.is_over() {
        return Ok(None);
    }
    if record.evacuation.phase() == EvacuationPhase::Paused {
        // Nodes will not be as they were when it goes on.
        checks.retain(|_, check| *check == Check::UnderWay);
    }
    let (todo, record) = decide(core, name, &record, checks)?;
    for container in &todo.used {
        checks.remove(container);
    }
    for action in todo.actions {
        match action {
            Action::Cordon => {
                // A node is never forgotten.
                core.cordon(record.node(), true)?;
                fail::fail_point!("evacuate-after-cordon");
            }
            Action::Check(container) => {
                checks.insert(container.clone(), Check::UnderWay);
                let (core, sender) = (Arc::clone(core), sender.clone());
                let target = undo_target(&record).to_owned();
                tokio::spawn(async move {
                    let found = look_into(&core, &container, &target, true).await;
                    // Nobody listens: then it is over.
                    let _ = sender.send((container, found));
                });
            }
            // It was done in the same moment as it was decided.
            Action::Create(_) => {}
            Action::Cancel(migration) => {
                let by = format!("evacuation/{name}");
                if let Err(status) = cancel(core, &by, &migration).await {
                    tracing::info!(migration, error = status.message(), "not cancelled");
                }
                fail::fail_point!("evacuate-after-cancel");
            }
        }
    }
    if record.is_over() {
        let e = &record.evacuation;
        tracing::info!(phase = e.phase().as_str_name(), reason = e.reason, "evacuation ended: {}", e.message);
        return Ok(None);
    }
    Ok(Some(todo.wake))
}

/// Takes one step, and creates the migrations that it asks for. One evacuation after the other: what the next one looks at has
/// the targets that this one has chosen.
fn decide(
    core: &Core,
    name: &str,
    record: &EvacuationRecord,
    checks: &BTreeMap<String, Check>,
) -> Result<(Todo, EvacuationRecord), StoreError> {
    let _one = core.choosing.lock().unwrap_or_else(PoisonError::into_inner);
    let world = look(core, record, checks)?;
    fail::fail_point!("evacuate-before-step");
    let (todo, record) = core.store.update_evacuation(name, |record| step::step(record, &world))?;
    fail::fail_point!("evacuate-after-step");
    for action in &todo.actions {
        if let Action::Create(container) = action {
            create(core, &record, container)?;
            fail::fail_point!("evacuate-after-create");
        }
    }
    Ok((todo, record))
}

/// The only node that may be moved to: when an evacuation is undone, its own.
fn undo_target(record: &EvacuationRecord) -> &str {
    match record.evacuation.spec.as_ref() {
        Some(spec) if spec.undo => &spec.node,
        _ => "",
    }
}

/// The cluster as it is now.
pub(crate) fn look(
    core: &Core,
    record: &EvacuationRecord,
    checks: &BTreeMap<String, Check>,
) -> Result<World, StoreError> {
    let active = core.store.active()?;
    let mut migrations = BTreeMap::new();
    for item in record.evacuation.items.iter().filter(|item| item.state() == ItemState::Migrating) {
        if let Some(found) = core.store.get(&item.migration)? {
            migrations.insert(item.migration.clone(), found);
        }
    }
    let jitter = f64::from(uuid::Uuid::new_v4().as_fields().0) / f64::from(u32::MAX);
    let loads = loads(&active, &core.cluster, true);
    Ok(world(&core.cluster, &active, &loads, migrations, record, checks, SystemTime::now(), jitter))
}

/// What an evacuation looks at, of a cluster and the migrations that are not over.
#[expect(clippy::too_many_arguments, reason = "it is what the world is made of")]
pub(crate) fn world(
    cluster: &Cluster,
    active: &[Record],
    loads: &Loads,
    migrations: BTreeMap<String, Record>,
    record: &EvacuationRecord,
    checks: &BTreeMap<String, Check>,
    now: SystemTime,
    jitter: f64,
) -> World {
    let node = record.node();
    let busy = active.iter().map(|record| {
        let unknown = record.migration.phase() == Phase::OutcomeUnknown;
        (record.container().to_owned(), Busy { migration: record.migration.name.clone(), unknown })
    });
    let coming = active
        .iter()
        .filter(|record| record.admitted && record.migration.target_node == node)
        .map(|record| record.migration.name.clone());
    let mut containers = BTreeMap::new();
    let open = record.evacuation.items.iter().filter(|item| !step::is_settled(item.state()));
    let concerned = open.filter_map(|item| cluster.container(&item.container));
    for container in cluster.containers_on(node).into_iter().chain(concerned) {
        let (state, memory) = (container.state(), container.memory_bytes);
        let seen = Seen { node: container.node, state, memory, labels: container.labels };
        containers.insert(container.name, seen);
    }
    let evacuation = &record.evacuation.name;
    World {
        now,
        silent: cluster.silent(),
        cordoned: cluster.is_cordoned(node),
        containers,
        migrations: migrations.into_iter().map(|(name, found)| (name, as_move(found, evacuation))).collect(),
        busy: busy.collect(),
        coming: coming.collect(),
        loads: loads.clone(),
        checks: checks.clone(),
        jitter,
    }
}

fn as_move(record: Record, evacuation: &str) -> Move {
    let m = record.migration;
    Move {
        ours: m.evacuation == evacuation,
        admitted: record.admitted,
        cancelled: !record.cancelled_by.is_empty(),
        phase: m.phase(),
        reason: m.reason,
        message: m.message,
        refusals: m.refusals,
        target: m.target_node,
    }
}

/// Runs the real checks for one container. Its migration gets a name only when it shall have one: a plan has none.
pub(crate) async fn look_into(core: &Core, container: &str, target: &str, named: bool) -> Check {
    let Some(there) = core.cluster.container(container) else {
        return Check::Failed(format!("there is no container {container} any more"));
    };
    let Checked { answer, needs, candidates, verdicts } = match check(core, &there, target, false).await {
        Ok(checked) => checked,
        Err(status) => return Check::Failed(status.message().to_owned()),
    };
    if !answer.refusals.is_empty() {
        return Check::Refused(answer.refusals);
    }
    let migration = match named.then(|| core.store.reserve_name(container)).transpose() {
        Ok(name) => name.unwrap_or_default(),
        Err(error) => return Check::Failed(error.to_string()),
    };
    movable(migration, needs, candidates, verdicts)
}

/// What a check found, as a step takes it.
pub(crate) fn movable(
    migration: String,
    needs: Needs,
    candidates: Vec<Candidate>,
    verdicts: Vec<Verdict>,
) -> Check {
    let (fit, unfit): (Vec<_>, Vec<_>) =
        candidates.into_iter().zip(verdicts).partition(|(_, verdict)| verdict.reasons.is_empty());
    Check::Movable {
        migration,
        needs,
        fit: fit.into_iter().map(|(candidate, _)| candidate).collect(),
        unfit: unfit.into_iter().map(|(_, verdict)| verdict).collect(),
    }
}

/// The migration that an item names.
pub(crate) fn migration_of(e: &Evacuation, item: &EvacuationItem, now: SystemTime) -> Record {
    let spec = MigrationSpec {
        container: item.container.clone(),
        target_node: item.target_node.clone(),
        policy_name: e.spec.as_ref().map_or_else(String::new, |spec| spec.policy.clone()),
        ..MigrationSpec::default()
    };
    let migration = Migration {
        name: item.migration.clone(),
        uid: uuid::Uuid::new_v4().to_string(),
        created: Some(now.into()),
        source_node: item.source_node.clone(),
        target_node: item.target_node.clone(),
        requested_by: e.requested_by.clone(),
        evacuation: e.name.clone(),
        spec: Some(spec),
        phase: Phase::Pending.into(),
        ..Migration::default()
    };
    let mut new = Record { migration, ..Record::default() };
    set_condition(&mut new.migration.conditions, "Succeeded", "Unknown", "Pending", "");
    new.log(format!("created by evacuation {}", e.name));
    new
}

/// Creates the migration that an item names, in the same queue as everybody's.
fn create(core: &Core, record: &EvacuationRecord, container: &str) -> Result<(), StoreError> {
    let e = &record.evacuation;
    let Some(item) = e.items.iter().find(|item| item.container == container) else { return Ok(()) };
    let new = migration_of(e, item, SystemTime::now());
    let why = match core.store.create(new, None) {
        Ok(_) => {
            core.wake.notify_one();
            return Ok(());
        }
        Err(CreateError::Store(error)) => return Err(error),
        Err(error) => error.to_string(),
    };
    tracing::info!(container, why, "the migration was not created");
    core.store.update_evacuation(&e.name, |record| {
        step::not_created(record, container, &item.migration, &why);
    })?;
    Ok(())
}

/// The containers that the last evacuation of a node moved and that are where it put them, and that evacuation.
pub(crate) fn to_bring_back(
    core: &Core,
    node: &str,
) -> Result<Option<(Evacuation, Vec<Container>)>, StoreError> {
    let of_node = |record: &EvacuationRecord| record.node() == node && record.is_over();
    let all = core.store.list_evacuations("", usize::MAX, of_node)?;
    let last = all.into_iter().map(|record| record.evacuation).max_by_key(|e| {
        let created = e.created.unwrap_or_default();
        (created.seconds, created.nanos)
    });
    let Some(last) = last.filter(|e| !e.spec.as_ref().is_some_and(|spec: &EvacuationSpec| spec.undo)) else {
        return Ok(None);
    };
    let moved = last.items.iter().filter(|item| item.state() == ItemState::Moved);
    let there = moved.filter_map(|item| {
        core.cluster.container(&item.container).filter(|container| container.node == item.target_node)
    });
    let there = there.collect();
    Ok(Some((last, there)))
}
