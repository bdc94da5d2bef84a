//! A cluster that is only simulated, under the decision functions that the coordinator runs: who is placed where, who begins
//! when, what an evacuation does next. The nodes' states, the time and how long a move takes are the simulation's.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap, HashSet};
use std::time::{Duration, Instant, SystemTime};

use fastrand::Rng;
use proto::v1::{
    Container, ContainerState, Evacuation, EvacuationPhase, EvacuationSpec, Migration, MigrationSpec, Node,
    NodeFacts, Phase,
};

use crate::admit::{Start, Turn, loads, walk};
use crate::cluster::{Cluster, Silence};
use crate::evacuate::world::{Action, Check};
use crate::evacuate::{migration_of, movable, step, world};
use crate::place::{self, ANTI_AFFINITY, Needs};
use crate::schedule::Limits;
use crate::store::{EvacuationRecord, Record};

/// The coordinator's defaults.
const LIMITS: Limits = Limits { outgoing: 2, incoming: 2, cluster: 64 };
/// Simulated time by which everything must be over.
const HORIZON: Duration = Duration::from_secs(48 * 3600);
/// Moves that fail, of a hundred.
const FAILING: u64 = 2;

/// How large.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    /// Nodes.
    pub nodes: usize,
    /// Containers.
    pub containers: usize,
    /// Nodes that are drained, all at once.
    pub drain: usize,
    /// Of the population.
    pub seed: u64,
}

/// What came of it.
#[derive(Debug, Clone, Copy)]
pub struct Report {
    /// Moves that succeeded.
    pub moved: usize,
    /// Time from a migration's creation to its begin, seconds: half of them, 99 of 100, the longest.
    pub latency: [f64; 3],
    /// Until the last node was drained, seconds of simulated time.
    pub drained: f64,
    /// Migrations and items that were decided upon.
    pub decisions: u64,
    /// What that took, seconds.
    pub seconds: f64,
}

struct Host {
    total: u64,
    used: u64,
    reserved: u64,
    bandwidth: u64,
    leaving: usize,
    coming: usize,
}

struct Drain {
    record: EvacuationRecord,
    checks: BTreeMap<String, Check>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Done(String),
    Beat(String),
}

struct Simulation {
    random: Rng,
    cluster: Cluster,
    start: SystemTime,
    now: SystemTime,
    hosts: BTreeMap<String, Host>,
    containers: BTreeMap<String, Container>,
    groups: HashSet<(String, String)>,
    active: BTreeMap<String, Record>,
    ended: HashMap<String, Record>,
    drains: Vec<Drain>,
    events: BinaryHeap<Reverse<(SystemTime, Event)>>,
    names: u64,
    moved: usize,
    latency: Vec<f64>,
    decisions: u64,
    deciding: Duration,
}

/// Runs it to its end.
///
/// # Errors
/// The first invariant that broke: a limit, memory, anti-affinity, or somebody who never began.
pub fn run(size: Size) -> Result<Report, String> {
    let mut simulation = Simulation::new(size);
    simulation.play()?;
    let mut latency = simulation.latency.clone();
    latency.sort_by(f64::total_cmp);
    let at = |per_mille: usize| latency.get(latency.len().saturating_sub(1) * per_mille / 1000).copied();
    let finished = simulation.drains.iter().filter_map(|drain| drain.record.evacuation.finished);
    let last = finished.filter_map(|time| SystemTime::try_from(time).ok()).max();
    let drained = last.and_then(|last| last.duration_since(simulation.start).ok()).unwrap_or_default();
    Ok(Report {
        moved: simulation.moved,
        latency: [500, 990, 1000].map(|at_| at(at_).unwrap_or_default()),
        drained: drained.as_secs_f64(),
        decisions: simulation.decisions,
        seconds: simulation.deciding.as_secs_f64(),
    })
}

fn facts(host: &Host) -> NodeFacts {
    NodeFacts {
        kernel_release: "6.18.0".into(),
        arch: "x86_64".into(),
        memory_total: host.total,
        memory_free: host.total - host.used,
        peer_protocol_versions: vec![1],
        ..NodeFacts::default()
    }
}

impl Simulation {
    fn new(size: Size) -> Self {
        // Real time passes while the simulated one does; nobody is to fall silent.
        let silence = Silence { unknown: Duration::from_secs(1 << 30), lease: Duration::from_secs(1 << 31) };
        let mut random = Rng::with_seed(size.seed);
        let names: Vec<String> = (0..size.nodes).map(|n| format!("node-{n:04}")).collect();
        let mut hosts = BTreeMap::new();
        for name in &names {
            let bandwidth = (1 + random.u64(..10)) * 125_000_000;
            let host = Host { total: 0, used: 0, reserved: 0, bandwidth, leaving: 0, coming: 0 };
            hosts.insert(name.clone(), host);
        }
        let mut containers = BTreeMap::new();
        let mut groups = HashSet::new();
        for n in 0..size.containers {
            let node = &names[n % size.nodes];
            // 64 MiB to 8 GiB, small ones as often as large ones.
            let memory = (64 << 20 << random.u64(..7)) + random.u64(..64 << 20);
            let label = match n % 5 {
                // Three neighbours, each on a node of its own.
                0 => (ANTI_AFFINITY.to_owned(), format!("g{}", n % size.nodes % 40 + 40 * (n / size.nodes))),
                _ => ("app".to_owned(), format!("a{}", random.u64(..200))),
            };
            let mut container = Container {
                name: format!("c{n:05}"),
                node: node.clone(),
                memory_bytes: memory,
                state: ContainerState::Running.into(),
                ..Container::default()
            };
            container.labels.insert(label.0, label.1);
            if let Some(group) = place::group(&container.labels) {
                groups.insert((node.clone(), group.to_owned()));
            }
            if let Some(host) = hosts.get_mut(node) {
                host.used += memory;
            }
            containers.insert(container.name.clone(), container);
        }
        let start = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
        let cluster = Cluster::new(silence, Vec::new());
        for (name, host) in &mut hosts {
            // A tenth to a half of it is free.
            host.total = host.used * (110 + random.u64(..60)) / 100 + (1 << 30);
            let there = containers.values().filter(|c| c.node == *name).cloned().collect();
            let node = Node { name: name.clone(), facts: Some(facts(host)), ..Node::default() };
            cluster.join(node, there);
        }
        let mut this = Self {
            random,
            cluster,
            start,
            now: start,
            hosts,
            containers,
            groups,
            active: BTreeMap::new(),
            ended: HashMap::new(),
            drains: names.iter().take(size.drain).map(|node| drain(node, start)).collect(),
            events: BinaryHeap::new(),
            names: 0,
            moved: 0,
            latency: Vec::new(),
            decisions: 0,
            deciding: Duration::ZERO,
        };
        this.ask_as_users(size);
        this
    }

    /// Users and the background move some of what is not drained.
    fn ask_as_users(&mut self, size: Size) {
        let others: Vec<Container> = self
            .containers
            .values()
            .filter(|c| !self.drains.iter().any(|drain| drain.record.node() == c.node))
            .cloned()
            .collect();
        for index in 0..(size.nodes / 5).min(others.len()) {
            let container = &others[self.random.usize(..others.len())];
            let name = format!("{}-{index}", container.name);
            if self.active.values().any(|record| record.container() == container.name) {
                continue;
            }
            let background = index % 2 == 0;
            let spec =
                MigrationSpec { container: container.name.clone(), background, ..MigrationSpec::default() };
            let migration = Migration {
                name: name.clone(),
                created: Some(self.now.into()),
                source_node: container.node.clone(),
                spec: Some(spec),
                phase: Phase::Pending.into(),
                ..Migration::default()
            };
            self.active.insert(name, Record { migration, ..Record::default() });
        }
    }

    fn play(&mut self) -> Result<(), String> {
        loop {
            let wake = self.evacuate();
            self.admit()?;
            let drained = self.drains.iter().all(|drain| drain.record.is_over());
            if drained && self.active.is_empty() {
                break;
            }
            // As the coordinator does when the time has come and nothing could be done: it looks again in a moment.
            let wake = wake.map(|wake| wake.max(self.now + Duration::from_millis(500)));
            let next = self.events.peek().map(|next| next.0.0);
            let Some(time) = [wake, next].into_iter().flatten().min() else {
                return Err(format!("nothing happens any more, and {} wait", self.active.len()));
            };
            self.now = time;
            if time.duration_since(self.start).unwrap_or_default() > HORIZON {
                return Err(format!("{} wait after {HORIZON:?}", self.active.len()));
            }
            // What falls on the same moment is seen by one look.
            while self.events.peek().is_some_and(|next| next.0.0 <= time) {
                match self.events.pop() {
                    Some(Reverse((_, Event::Done(name)))) => self.done(&name)?,
                    Some(Reverse((_, Event::Beat(node)))) => self.beat(&node),
                    None => {}
                }
            }
        }
        let failed = self.drains.iter().find(|d| d.record.evacuation.phase() != EvacuationPhase::Succeeded);
        failed.map_or(Ok(()), |drain| {
            let e = &drain.record.evacuation;
            Err(format!("{}: {}: {}", e.name, e.reason, e.message))
        })
    }

    /// Every evacuation's step, until none has anything to do now. Answers when to look again.
    fn evacuate(&mut self) -> Option<SystemTime> {
        let mut wake = None;
        let mut drains = std::mem::take(&mut self.drains);
        for drain in drains.iter_mut().filter(|drain| !drain.record.is_over()) {
            loop {
                let begun = Instant::now();
                let active: Vec<Record> = self.active.values().cloned().collect();
                let copied = begun.elapsed();
                let loads = loads(&active, &self.cluster, true);
                let items = drain.record.evacuation.items.iter();
                let named = items.filter_map(|item| {
                    let found =
                        self.active.get(&item.migration).or_else(|| self.ended.get(&item.migration))?;
                    Some((item.migration.clone(), found.clone()))
                });
                let named = named.collect();
                let record = &drain.record;
                let seen = world(&self.cluster, &active, &loads, named, record, &drain.checks, self.now, 0.5);
                let todo = step::step(&mut drain.record, &seen);
                self.deciding += begun.elapsed().saturating_sub(copied);
                self.decisions += todo.used.len() as u64;
                for container in &todo.used {
                    drain.checks.remove(container);
                }
                let idle = todo.actions.is_empty();
                for action in todo.actions {
                    self.act(drain, action);
                }
                if idle {
                    wake = [wake, todo.wake].into_iter().flatten().min();
                    break;
                }
            }
        }
        self.drains = drains;
        wake
    }

    fn act(&mut self, drain: &mut Drain, action: Action) {
        match action {
            Action::Cordon => drop(self.cluster.cordon(drain.record.node(), true)),
            Action::Check(name) => {
                let begun = Instant::now();
                let Some(container) = self.cluster.container(&name) else { return };
                let needs = Needs::of(&container, self.cluster.facts(&container.node));
                let active: Vec<Record> = self.active.values().cloned().collect();
                let mut candidates =
                    self.cluster.candidates(&container, &loads(&active, &self.cluster, true));
                candidates.retain(|candidate| candidate.name != container.node);
                let verdicts = candidates.iter().map(|candidate| place::judge(&needs, candidate)).collect();
                self.names += 1;
                let check = movable(format!("{name}-e{}", self.names), needs, candidates, verdicts);
                self.deciding += begun.elapsed();
                drain.checks.insert(name, check);
            }
            Action::Create(container) => {
                let e = &drain.record.evacuation;
                let Some(item) = e.items.iter().find(|item| item.container == container) else { return };
                self.active.insert(item.migration.clone(), migration_of(e, item, self.now));
            }
            Action::Cancel(_) => {}
        }
    }

    fn admit(&mut self) -> Result<(), String> {
        let active: Vec<Record> = self.active.values().cloned().collect();
        let begun = Instant::now();
        let turns = walk(&self.cluster, LIMITS, &active, &[], self.now);
        self.deciding += begun.elapsed();
        self.decisions += turns.len() as u64;
        for (name, turn) in turns {
            match turn {
                Turn::Start(start) => self.begin(&name, *start)?,
                Turn::Wait(wait) => {
                    if let Some(record) = self.active.get_mut(&name) {
                        wait.apply(record, self.now);
                    }
                }
                Turn::Never(end, _) => {
                    if let Some(mut record) = self.active.remove(&name) {
                        end.apply(&mut record);
                        self.ended.insert(name, record);
                    }
                }
            }
        }
        Ok(())
    }

    fn begin(&mut self, name: &str, start: Start) -> Result<(), String> {
        let Start { pair, memory, .. } = start;
        let Some(record) = self.active.get_mut(name) else { return Err(format!("{name} is not there")) };
        let created = record.migration.created.and_then(|time| SystemTime::try_from(time).ok());
        let waited = created.and_then(|created| self.now.duration_since(created).ok()).unwrap_or_default();
        self.latency.push(waited.as_secs_f64());
        record.admitted = true;
        record.memory = memory;
        record.migration.set_phase(Phase::PreCopy);
        record.migration.source_node.clone_from(&pair.source);
        record.migration.target_node.clone_from(&pair.target);
        let container = record.container().to_owned();
        let mut bandwidth = u64::MAX;
        if let Some(source) = self.hosts.get_mut(&pair.source) {
            source.leaving += 1;
            bandwidth = bandwidth.min(source.bandwidth);
            if source.leaving > LIMITS.outgoing {
                return Err(format!("{} leave {} at once", source.leaving, pair.source));
            }
        }
        if let Some(target) = self.hosts.get_mut(&pair.target) {
            target.coming += 1;
            target.reserved += memory;
            bandwidth = bandwidth.min(target.bandwidth);
            if target.coming > LIMITS.incoming {
                return Err(format!("{} come to {} at once", target.coming, pair.target));
            }
            if target.used + target.reserved > target.total {
                return Err(format!("the memory of {} is overcommitted by {container}", pair.target));
            }
        }
        let running = self.active.values().filter(|record| record.admitted).count();
        if running > LIMITS.cluster {
            return Err(format!("{running} run at once"));
        }
        if let Some(group) = self.group(&container)
            && !self.groups.insert((pair.target.clone(), group.clone()))
        {
            return Err(format!("{container} comes to {}, where {group} is already", pair.target));
        }
        // Each of the four migrations of a node has a quarter of its link; a third of the memory is sent twice.
        let seconds = 0.5 + memory as f64 * 4.0 / 3.0 / (bandwidth as f64 / 4.0);
        let end = self.now + Duration::from_secs_f64(seconds);
        self.events.push(Reverse((end, Event::Done(name.to_owned()))));
        Ok(())
    }

    fn group(&self, container: &str) -> Option<String> {
        self.containers.get(container).and_then(|c| place::group(&c.labels)).map(str::to_owned)
    }

    fn done(&mut self, name: &str) -> Result<(), String> {
        let Some(mut record) = self.active.remove(name) else { return Err(format!("{name} is not there")) };
        let (source, target) = (record.migration.source_node.clone(), record.migration.target_node.clone());
        let container = record.container().to_owned();
        let works = self.random.u64(..100) >= FAILING;
        if let Some(host) = self.hosts.get_mut(&source) {
            host.leaving -= 1;
            host.used -= if works { record.memory } else { 0 };
        }
        if let Some(host) = self.hosts.get_mut(&target) {
            host.coming -= 1;
            host.reserved -= record.memory;
            host.used += if works { record.memory } else { 0 };
        }
        let left = if works { &source } else { &target };
        if let Some(group) = self.group(&container) {
            self.groups.remove(&(left.clone(), group));
        }
        if works {
            self.moved += 1;
            record.migration.set_phase(Phase::Succeeded);
            self.cluster.moved(&container, &source, &target, 0);
            if let Some(known) = self.containers.get_mut(&container) {
                known.node.clone_from(&target);
            }
        } else {
            record.migration.set_phase(Phase::Failed);
            record.migration.message = "the link broke".into();
        }
        self.ended.insert(name.to_owned(), record);
        for node in [source, target] {
            for after in [1, 2] {
                let time = self.now + Duration::from_secs(after);
                self.events.push(Reverse((time, Event::Beat(node.clone()))));
            }
        }
        Ok(())
    }

    fn beat(&mut self, node: &str) {
        let there = self.cluster.containers_on(node).into_iter().filter(|c| c.node == node).collect();
        let facts = self.hosts.get(node).map(facts);
        self.cluster.heartbeat(node, there, facts);
    }
}

fn drain(node: &str, now: SystemTime) -> Drain {
    let spec = EvacuationSpec { node: node.to_owned(), ..EvacuationSpec::default() };
    let evacuation = Evacuation {
        name: format!("drain-{node}"),
        spec: Some(spec),
        created: Some(now.into()),
        phase: EvacuationPhase::Pending.into(),
        ..Evacuation::default()
    };
    Drain { record: EvacuationRecord { evacuation, ..EvacuationRecord::default() }, checks: BTreeMap::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_cluster_keeps_its_rules_and_is_drained() {
        for seed in 0..3 {
            let report = run(Size { nodes: 50, containers: 600, drain: 5, seed }).unwrap();
            assert!(report.moved >= 60 && report.decisions > 120, "{report:?}");
            let again = run(Size { nodes: 50, containers: 600, drain: 5, seed }).unwrap();
            assert_eq!(
                (report.moved, report.latency),
                (again.moved, again.latency),
                "it is not deterministic"
            );
        }
    }
}
