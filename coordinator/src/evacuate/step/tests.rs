use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use proptest::prelude::*;
use proto::v1::{Evacuation, EvacuationSpec};

use super::*;
use crate::evacuate::world::{Busy, Move};
use crate::place::{Candidate, Facts, Needs};

const NODE: &str = "n";

/// A cluster as a step sees it, which does what the step says and lets its migrations end as a test wants.
struct Cluster {
    now: SystemTime,
    cordoned: bool,
    containers: BTreeMap<String, Seen>,
    migrations: BTreeMap<String, (String, Move)>,
    checks: BTreeMap<String, Check>,
    names: u32,
    record: EvacuationRecord,
    parallel: usize,
    fits: bool,
}

fn seen(node: &str, state: ContainerState, memory: u64) -> Seen {
    Seen { node: node.into(), state, memory, labels: HashMap::new() }
}

impl Cluster {
    fn new(containers: usize, parallel: u32, deadline: Option<u64>) -> Self {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
        let spec = EvacuationSpec { node: NODE.into(), max_parallel: parallel, ..EvacuationSpec::default() };
        let evacuation = Evacuation {
            name: "e".into(),
            spec: Some(spec),
            phase: EvacuationPhase::Pending.into(),
            ..Evacuation::default()
        };
        let deadline_at = deadline.map(|after| (now + Duration::from_secs(after)).into());
        let containers = (0..containers)
            .map(|n| (format!("c{n}"), seen(NODE, ContainerState::Running, n as u64)))
            .collect();
        Self {
            now,
            cordoned: false,
            containers,
            migrations: BTreeMap::new(),
            checks: BTreeMap::new(),
            names: 0,
            record: EvacuationRecord { evacuation, deadline_at, ..EvacuationRecord::default() },
            parallel: parallel as usize,
            fits: true,
        }
    }

    fn world(&self) -> World {
        let over = |phase| matches!(phase, Phase::Succeeded | Phase::Failed | Phase::Cancelled);
        let busy =
            self.migrations.iter().filter(|(_, (_, m))| !over(m.phase)).map(|(name, (container, m))| {
                let unknown = m.phase == Phase::OutcomeUnknown;
                (container.clone(), Busy { migration: name.clone(), unknown })
            });
        World {
            now: self.now,
            cordoned: self.cordoned,
            silent: None,
            containers: self.containers.clone(),
            migrations: self.migrations.iter().map(|(name, (_, m))| (name.clone(), m.clone())).collect(),
            busy: busy.collect(),
            coming: Vec::new(),
            loads: Loads::default(),
            checks: self.checks.clone(),
            jitter: 0.5,
        }
    }

    fn stopped(&self) -> bool {
        stop(&self.record, &self.world()).is_some()
    }

    fn migrating(&self) -> Vec<EvacuationItem> {
        let items = self.record.evacuation.items.iter();
        items.filter(|item| item.state() == ItemState::Migrating).cloned().collect()
    }

    /// One step, with everything that must hold for each; with `crash` nothing of what it says is done.
    fn step(&mut self, crash: bool) {
        let before = self.record.clone();
        let world = self.world();
        let todo = step(&mut self.record, &world);
        assert!(self.migrating().len() <= self.parallel, "{:#?}", self.record);
        for (old, new) in before.evacuation.items.iter().zip(&self.record.evacuation.items) {
            assert_eq!(old.container, new.container);
            assert!(!is_settled(old.state()) || old == new, "a settled item changed: {old:?} {new:?}");
            assert!(new.attempts <= MAX_ATTEMPTS, "{new:?}");
            assert!(new.refusals.is_empty() || new.state() == ItemState::Stays, "{new:?}");
        }
        let begins = |action: &Action| matches!(action, Action::Check(_) | Action::Create(_));
        if self.stopped() {
            assert!(!todo.actions.iter().any(begins), "begins after its end: {todo:?}");
        }
        if before.evacuation.phase() == EvacuationPhase::Paused {
            assert!(!todo.actions.iter().any(|action| matches!(action, Action::Check(_))), "{todo:?}");
            assert!(self.migrating().iter().all(|item| before.evacuation.items.contains(item)
                || before.evacuation.items.iter().any(|b| b.migration == item.migration)));
        }
        if before.is_over() {
            assert_eq!(before, self.record);
            assert_eq!(todo, Todo::default());
        }
        if crash {
            self.checks.clear();
            return;
        }
        for container in todo.used {
            self.checks.remove(&container);
        }
        for action in todo.actions {
            self.act(action);
        }
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Cordon => self.cordoned = true,
            Action::Check(container) => {
                self.names += 1;
                let facts = Facts { memory_free: 1 << 30, peer_versions: vec![1], ..Facts::default() };
                let needs = Needs { source: NODE.into(), facts: facts.clone(), ..Needs::default() };
                let node = |name: &str| Candidate {
                    name: name.into(),
                    ready: true,
                    facts: Arc::new(facts.clone()),
                    ..Candidate::default()
                };
                let fit = if self.fits { vec![node("a"), node("b")] } else { Vec::new() };
                let migration = format!("m{}", self.names);
                self.checks.insert(container, Check::Movable { migration, needs, fit, unfit: Vec::new() });
            }
            Action::Create(container) => {
                let items = &self.record.evacuation.items;
                let item = items.iter().find(|item| item.container == container).unwrap();
                assert!(!self.world().busy.contains_key(&container), "a second one of {container}");
                let m = Move {
                    ours: true,
                    phase: Phase::Pending,
                    target: item.target_node.clone(),
                    ..Move::default()
                };
                let old = self.migrations.insert(item.migration.clone(), (container, m));
                assert!(old.is_none(), "created twice");
            }
            Action::Cancel(name) => {
                let (_, m) = self.migrations.get_mut(&name).unwrap();
                m.cancelled = true;
                if !m.admitted {
                    m.phase = Phase::Cancelled;
                }
            }
        }
    }

    /// Lets a migration of ours go on, or end somehow.
    fn migration(&mut self, pick: usize, how: u8) {
        let running: Vec<String> = self.migrating().into_iter().map(|item| item.migration).collect();
        let Some(name) = running.get(pick % running.len().max(1)) else { return };
        let Some((container, m)) = self.migrations.get_mut(name) else { return };
        m.admitted = true;
        match how {
            0 => m.phase = Phase::PreCopy,
            1 | 2 if !m.cancelled => {
                m.phase = Phase::Succeeded;
                let target = m.target.clone();
                if let Some(seen) = self.containers.get_mut(container) {
                    seen.node = target;
                }
            }
            3 => {
                m.phase = Phase::Failed;
                m.message = "the link broke".into();
            }
            4 => {
                m.phase = Phase::Failed;
                m.reason = "Refused".into();
                m.refusals = vec![Refusal { subject: "fd 3".into(), ..Refusal::default() }];
            }
            5 => m.phase = Phase::OutcomeUnknown,
            _ => m.phase = Phase::Cancelled,
        }
    }

    fn event(&mut self, (event, pick, how): (u8, usize, u8)) {
        match event {
            0..=5 => self.migration(pick, how),
            6 => {
                let name = format!("c{}", pick % 6);
                match self.containers.get_mut(&name) {
                    Some(seen) if how < 3 && seen.node == NODE => seen.state = ContainerState::Stopped,
                    Some(seen) if seen.state == ContainerState::Stopped => {
                        drop(self.containers.remove(&name))
                    }
                    _ => {}
                }
            }
            7 => {
                let new = format!("new{pick}");
                self.containers.entry(new).or_insert_with(|| seen(NODE, ContainerState::Running, 9));
            }
            8 => {
                let phase = match self.record.evacuation.phase() {
                    EvacuationPhase::Running => EvacuationPhase::Paused,
                    EvacuationPhase::Paused => EvacuationPhase::Running,
                    other => other,
                };
                self.record.evacuation.set_phase(phase);
            }
            9 => self.now += Duration::from_secs(20),
            10 => self.checks.clear(),
            11 if how < 2 && !self.record.is_over() => {
                self.record.cancelled_by = "admin/x".into();
                self.record.cancel_now = pick % 2 == 0;
            }
            12 => self.fits = !self.fits,
            _ => {}
        }
    }

    /// Lets everything that is under way end.
    fn drive_to_the_end(&mut self) {
        for round in 0..400 {
            if self.record.is_over() {
                return;
            }
            if self.record.evacuation.phase() == EvacuationPhase::Paused {
                self.record.evacuation.set_phase(EvacuationPhase::Running);
            }
            self.step(false);
            self.migration(round, [2, 3, 6][round % 3]);
            self.now += Duration::from_secs(30);
        }
        panic!("it never ends: {:#?}", self.record);
    }

    fn states(&self) -> Vec<(&str, ItemState, &str)> {
        let items = self.record.evacuation.items.iter();
        items.map(|item| (item.container.as_str(), item.state(), item.reason.as_str())).collect()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn it_ends_and_keeps_its_limits(
        containers in 0usize..6, parallel in 1u32..4, deadline in proptest::option::of(0u64..300),
        events in proptest::collection::vec((0u8..14, 0usize..6, 0u8..7), 0..60),
    ) {
        let mut cluster = Cluster::new(containers, parallel, deadline);
        for event in events {
            // A crash between the record and what it says; and a step more than needed.
            cluster.step(event.1 == 5);
            cluster.event(event);
        }
        cluster.drive_to_the_end();
        let e = &cluster.record.evacuation;
        prop_assert!(e.items.iter().all(|item| is_settled(item.state())));
        let stay = e.items.iter().filter(|item| item.state() == ItemState::Stays).count();
        prop_assert_eq!(e.phase() == EvacuationPhase::Cancelled, !cluster.record.cancelled_by.is_empty());
        if e.phase() != EvacuationPhase::Cancelled {
            prop_assert_eq!(e.phase() == EvacuationPhase::Succeeded, stay == 0);
        }
        for item in e.items.iter().filter(|item| item.state() == ItemState::Stays) {
            prop_assert!(e.message.contains(&item.container) && !item.reason.is_empty());
        }
        for item in e.items.iter().filter(|item| item.state() == ItemState::Moved) {
            prop_assert_eq!(&cluster.migrations[&item.migration].1.target, &item.target_node);
        }
    }

    #[test]
    fn waits_grow_and_are_bounded(attempts in 1u32..20, jitter in 0.0f64..1.0) {
        let wait = backoff(attempts, jitter);
        prop_assert!((FIRST_WAIT..=LONGEST_WAIT).contains(&wait));
        prop_assert!(backoff(attempts + 1, 0.0) >= backoff(attempts, 0.0));
    }
}

#[test]
fn the_node_is_cordoned_first_and_the_largest_go_first() {
    let mut cluster = Cluster::new(3, 2, None);
    cluster.step(false);
    assert!(cluster.cordoned);
    let order: Vec<_> = cluster.record.evacuation.items.iter().map(|item| item.container.clone()).collect();
    assert_eq!(order, ["c2", "c1", "c0"]);
    cluster.step(false);
    let begun: Vec<_> =
        cluster.migrating().into_iter().map(|item| (item.container, item.migration)).collect();
    assert_eq!(begun, [("c2".into(), "m1".into()), ("c1".into(), "m2".into())]);
}

#[test]
fn what_the_check_refuses_stays_and_is_not_tried() {
    let mut cluster = Cluster::new(1, 1, None);
    cluster.step(false);
    let refusal =
        Refusal { pid: 3, subject: "fd 7".into(), reason: "io_uring".into(), way_out: "close it".into() };
    cluster.checks.insert("c0".into(), Check::Refused(vec![refusal]));
    cluster.step(false);
    assert_eq!(cluster.states(), [("c0", ItemState::Stays, "Refused")]);
    let e = &cluster.record.evacuation;
    assert_eq!((e.phase(), e.reason.as_str()), (EvacuationPhase::Failed, "SomeStay"));
    assert_eq!(e.message, "0 moved, 0 gone, 1 stay: c0 (pid 3 fd 7: io_uring (close it)). n stays cordoned");
}

#[test]
fn a_transient_failure_is_tried_again_five_times() {
    let mut cluster = Cluster::new(1, 1, None);
    for _ in 0..200 {
        cluster.step(false);
        cluster.migration(0, 3);
        cluster.now += Duration::from_secs(3);
    }
    assert_eq!(cluster.states(), [("c0", ItemState::Stays, "TriesFailed")]);
    assert_eq!(cluster.migrations.len(), MAX_ATTEMPTS as usize);
}

#[test]
fn nodes_that_never_fit_are_not_waited_for() {
    let mut cluster = Cluster::new(1, 1, None);
    cluster.fits = false;
    cluster.step(false);
    cluster.step(false);
    assert_eq!(cluster.states(), [("c0", ItemState::Stays, "NoCandidate")]);
}

#[test]
fn the_deadline_lets_what_runs_end_and_cancels_what_waits_in_the_queue() {
    let mut cluster = Cluster::new(3, 2, Some(60));
    cluster.step(false);
    cluster.step(false);
    cluster.migration(0, 0);
    cluster.now += Duration::from_secs(61);
    cluster.step(false);
    cluster.step(false);
    assert_eq!(
        cluster.states(),
        [
            ("c2", ItemState::Migrating, "PreCopy"),
            ("c1", ItemState::Stays, "DeadlineExceeded"),
            ("c0", ItemState::Stays, "DeadlineExceeded"),
        ]
    );
    cluster.migration(0, 1);
    cluster.step(false);
    let e = &cluster.record.evacuation;
    assert_eq!((e.phase(), e.reason.as_str()), (EvacuationPhase::Failed, "DeadlineExceeded"));
    assert_eq!(e.items[0].state(), ItemState::Moved);
}

#[test]
fn what_was_written_and_not_created_is_created_once_or_never() {
    for cancelled in [false, true] {
        let mut cluster = Cluster::new(1, 1, None);
        cluster.step(false);
        cluster.step(true);
        assert_eq!(cluster.migrating().len(), 1, "{:?}", cluster.states());
        assert!(cluster.migrations.is_empty());
        if cancelled {
            cluster.record.cancelled_by = "admin/x".into();
        }
        cluster.step(false);
        assert_eq!(cluster.migrations.len(), usize::from(!cancelled));
        let stays = cluster.states() == [("c0", ItemState::Stays, "Cancelled")];
        assert_eq!(stays, cancelled, "{:?}", cluster.states());
    }
}

#[test]
fn a_silent_node_is_waited_for_and_costs_no_try() {
    let mut cluster = Cluster::new(1, 1, None);
    cluster.step(false);
    cluster.checks.clear();
    let world = World { silent: Some("b".into()), ..cluster.world() };
    assert_eq!(step(&mut cluster.record, &world).actions, []);
    let item = &cluster.record.evacuation.items[0];
    assert_eq!((item.attempts, item.message.as_str()), (0, "waits for b, which is silent"));
    let world = cluster.world();
    assert_eq!(step(&mut cluster.record, &world).actions, [Action::Check("c0".into())]);
}

#[test]
fn somebody_elses_migration_is_waited_for() {
    let mut cluster = Cluster::new(1, 1, None);
    let theirs = Move { phase: Phase::PreCopy, admitted: true, ..Move::default() };
    cluster.migrations.insert("theirs".into(), ("c0".into(), theirs));
    for _ in 0..3 {
        cluster.step(false);
    }
    assert_eq!(cluster.record.evacuation.items[0].message, "waits for theirs, which moves it");
    cluster.migrations.get_mut("theirs").unwrap().1.phase = Phase::Succeeded;
    cluster.containers.get_mut("c0").unwrap().node = "b".into();
    cluster.step(false);
    assert_eq!(cluster.states(), [("c0", ItemState::Gone, "Elsewhere")]);
    assert_eq!(cluster.record.evacuation.phase(), EvacuationPhase::Succeeded);
}
