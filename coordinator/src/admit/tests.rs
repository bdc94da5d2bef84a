use std::collections::HashMap;

use proptest::prelude::*;
use prost_types::Duration as Time;
use proto::v1::{Migration, MigrationSpec, Node, NodeFacts, Policy};

use super::*;
use crate::cluster::Silence;
use crate::place::ANTI_AFFINITY;

const START: SystemTime = SystemTime::UNIX_EPOCH;
const LIMITS: Limits = Limits { outgoing: 2, incoming: 2, cluster: 64 };
const TIMEOUT: u64 = 60;

/// A cluster of nodes with this much memory, free and in all, MiB. On `a` are the containers `c0`, `c1`, ... of these sizes.
fn cluster(containers: &[u64], nodes: &[(&str, u64, u64)]) -> Cluster {
    let hour = Duration::from_secs(3600);
    let cluster = Cluster::new(Silence { unknown: hour, lease: hour }, Vec::new());
    for (name, free, total) in [("a", 1 << 20, 1 << 20)].iter().chain(nodes) {
        let facts = NodeFacts {
            memory_free: free << 20,
            memory_total: total << 20,
            peer_protocol_versions: vec![1],
            ..NodeFacts::default()
        };
        let node = Node { name: (*name).to_owned(), facts: Some(facts), ..Node::default() };
        let all = containers.iter().enumerate().filter(|_| *name == "a");
        let all = all.map(|(index, memory)| Container {
            name: format!("c{index}"),
            state: ContainerState::Running.into(),
            memory_bytes: memory << 20,
            ..Container::default()
        });
        cluster.join(node, all.collect());
    }
    cluster
}

fn asked(container: &str, target: &str) -> Record {
    let limits =
        Policy { timeout: Some(Time { seconds: TIMEOUT.cast_signed(), nanos: 0 }), ..Policy::default() };
    let spec = MigrationSpec {
        container: container.into(),
        target_node: target.into(),
        policy: Some(limits),
        ..MigrationSpec::default()
    };
    let migration = Migration {
        name: format!("{container}-1"),
        source_node: "a".into(),
        target_node: target.into(),
        created: Some(START.into()),
        spec: Some(spec),
        phase: Phase::Pending.into(),
        ..Migration::default()
    };
    Record { migration, ..Record::default() }
}

fn under_way(container: &str, target: &str, memory: u64) -> Record {
    let mut record = asked(container, target);
    record.admitted = true;
    record.memory = memory << 20;
    record.migration.set_phase(Phase::PreCopy);
    record
}

fn at(seconds: u64) -> SystemTime {
    START + Duration::from_secs(seconds)
}

/// The only turn.
fn turn_of(cluster: &Cluster, active: &[Record], seconds: u64) -> Turn {
    let mut turns = walk(cluster, LIMITS, active, &[], at(seconds));
    assert_eq!(turns.len(), 1);
    turns.remove(0).1
}

fn waits(turn: &Turn) -> &Wait {
    match turn {
        Turn::Wait(wait) => wait,
        other => panic!("it does not wait: {other:?}"),
    }
}

fn ends(turn: &Turn) -> &End {
    match turn {
        Turn::Never(end, _) => end,
        other => panic!("it does not end: {other:?}"),
    }
}

#[test]
fn promised_room_is_waited_for_until_the_timeout() {
    let cluster = cluster(&[60, 60], &[("b", 150, 1000)]);
    let mut waiting = asked("c1", "b");
    let coming = under_way("c0", "b", 60);
    let turn = turn_of(&cluster, &[coming.clone(), waiting.clone()], 1000);
    assert_eq!(
        *waits(&turn),
        Wait {
            why: Why::NoCandidateNow,
            message: "no node takes c1 now: b: 90 MiB are free, 92 MiB are needed".into()
        }
    );
    // Counted since then, and not since it was created.
    waits(&turn).apply(&mut waiting, at(1000));
    let condition = waiting.migration.conditions.iter().find(|c| c.r#type == SCHEDULED).unwrap();
    assert_eq!((condition.status.as_str(), condition.reason.as_str()), ("False", "NoCandidateNow"));
    assert_eq!((waiting.migration.reason.as_str(), waiting.events.len()), ("NoCandidateNow", 1));
    let again = turn_of(&cluster, &[coming.clone(), waiting.clone()], 1000 + TIMEOUT - 1);
    waits(&again).apply(&mut waiting, at(1000 + TIMEOUT - 1));
    let over = turn_of(&cluster, &[coming, waiting.clone()], 1000 + TIMEOUT);
    let end = ends(&over);
    assert_eq!((end.reason.as_str(), end.phase), ("TimedOut", Phase::Failed));
    assert!(end.message.starts_with("waited 1m; no node takes c1 now: b: 90 MiB"), "{}", end.message);
    // The first one is over: there is room in the last moment.
    assert!(
        matches!(turn_of(&cluster, &[waiting], 1000 + TIMEOUT), Turn::Start(start) if start.pair.target == "b")
    );
}

#[test]
fn a_wait_for_the_turn_has_no_end_and_begins_the_other_anew() {
    let cluster = cluster(&[1, 1, 200], &[("b", 150, 1000)]);
    let mut waiting = asked("c2", "b");
    waits(&turn_of(&cluster, &[waiting.clone()], 10)).apply(&mut waiting, at(10));
    assert_eq!(waiting.lacking_since, Some(at(10).into()));
    let others = [under_way("c0", "b", 1), under_way("c1", "b", 1)];
    let all = [&others[..], std::slice::from_ref(&waiting)].concat();
    let turn = turn_of(&cluster, &all, 10_000);
    assert_eq!((waits(&turn).why, waits(&turn).message.as_str()), (Why::Queued, "2 leave a, its limit"));
    waits(&turn).apply(&mut waiting, at(10_000));
    assert_eq!(waiting.lacking_since, None);
    assert_eq!(waits(&turn_of(&cluster, &[waiting], 20_000)).why, Why::NoCandidateNow);
}

#[test]
fn what_nobody_or_somebody_has_to_end_fails_at_once() {
    let cluster = cluster(&[60, 2000], &[("b", 10, 1000), ("c", 10, 1000)]);
    // Larger than either.
    let end = ends(&turn_of(&cluster, &[asked("c1", "")], 0)).clone();
    assert_eq!(end.reason, "NoCandidate");
    assert!(
        end.message.contains("b: it has 1000 MiB in all, 2032 MiB are needed; c: it has"),
        "{}",
        end.message
    );
    // One that is large enough is enough to wait.
    cluster.cordon("c", true);
    let turn = turn_of(&cluster, &[asked("c0", "")], 0);
    assert_eq!(waits(&turn).message, "no node takes c0 now: b: 10 MiB are free, 92 MiB are needed");
    // But not when another one is asked for.
    let end = ends(&turn_of(&cluster, &[asked("c0", "c")], 0)).clone();
    assert!(end.message.contains("c: the node is cordoned"), "{}", end.message);
    // An evacuation looks for another node itself.
    let mut drained = asked("c0", "b");
    drained.migration.evacuation = "drain-a-1".into();
    assert_eq!(ends(&turn_of(&cluster, &[drained], 0)).reason, "NoCandidate");
}

#[test]
fn a_neighbour_that_leaves_is_waited_for() {
    let cluster = cluster(&[], &[("b", 1000, 1000), ("c", 10, 1000)]);
    let of_group = |name: &str, node: &str| Container {
        name: name.into(),
        node: node.into(),
        state: ContainerState::Running.into(),
        labels: HashMap::from([(ANTI_AFFINITY.to_owned(), "db".to_owned())]),
        ..Container::default()
    };
    cluster.noted(of_group("c0", "a"));
    cluster.noted(of_group("c1", "b"));
    assert_eq!(ends(&turn_of(&cluster, &[asked("c0", "b")], 0)).reason, "NoCandidate");
    let mut leaving = under_way("c1", "c", 1);
    leaving.migration.source_node = "b".into();
    let turn = turn_of(&cluster, &[leaving, asked("c0", "b")], 0);
    assert!(waits(&turn).message.contains("c1, also of the anti-affinity group db, is there"), "{turn:?}");
}

proptest! {
    /// Whatever is there: who waits for a node could go to one of those that it names, were it empty; who fails at once
    /// could not; and nobody waits beyond the timeout.
    #[test]
    fn only_hope_is_waited_for(
        sizes in proptest::collection::vec(1u64..400, 1..4),
        nodes in proptest::collection::vec((0u64..500, 0u64..500, any::<bool>()), 0..5),
        promised in 0u64..300, waited in 0u64..200,
    ) {
        let nodes: Vec<(String, u64, u64, bool)> = nodes.into_iter().enumerate()
            .map(|(index, (free, more, cordoned))| (format!("n{index}"), free, free + more + 1, cordoned)).collect();
        let plain: Vec<(&str, u64, u64)> = nodes.iter().map(|(name, free, total, _)| (name.as_str(), *free, *total)).collect();
        let cluster = cluster(&sizes, &plain);
        for (name, ..) in nodes.iter().filter(|(.., cordoned)| *cordoned) {
            cluster.cordon(name, true);
        }
        let coming = under_way("other", "n0", promised);
        let mut record = asked("c0", "");
        record.lacking_since = Some(START.into());
        let needed = sizes[0] + 32;
        let hope = nodes.iter().any(|(_, _, total, cordoned)| !cordoned && *total >= needed);
        match turn_of(&cluster, &[coming, record], waited) {
            Turn::Start(start) => {
                let (name, free, ..) = nodes.iter().find(|(name, ..)| *name == start.pair.target).unwrap();
                let taken = if name == "n0" { promised } else { 0 };
                prop_assert!(*free >= needed + taken);
            }
            Turn::Wait(wait) => prop_assert!(hope && waited < TIMEOUT && wait.why == Why::NoCandidateNow),
            Turn::Never(end, _) if end.reason == "TimedOut" => prop_assert!(hope && waited >= TIMEOUT),
            Turn::Never(end, _) => {
                prop_assert_eq!(end.reason.as_str(), "NoCandidate");
                prop_assert!(!hope);
            }
        }
    }
}
