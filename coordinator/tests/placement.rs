//! Who goes where: selectors, anti-affinity, promised room, and the order in the queue.

mod common;

use std::collections::HashMap;

use common::behaviour::container;
use common::evacuate::{finish, hand_over, has_session};
use common::{Agent, Behaviour, World, reason};
use proto::v1::*;
use tonic::Code;

const GROUP: &str = "gantry.dev/anti-affinity-group";

fn of_group(name: &str, group: &str) -> Container {
    Container { labels: HashMap::from([(GROUP.to_owned(), group.to_owned())]), ..container(name) }
}

fn with(containers: Vec<Container>) -> Behaviour {
    Behaviour { containers, ..Behaviour::default() }
}

fn free(mut behaviour: Behaviour, memory: u64) -> Behaviour {
    behaviour.facts.memory_free = memory;
    behaviour
}

fn selecting(container: &str, node: &str) -> MigrationSpec {
    // Every agent of the tests has its own name as its rack.
    let node_selector = HashMap::from([("rack".to_owned(), node.to_owned())]);
    MigrationSpec { container: container.into(), node_selector, ..MigrationSpec::default() }
}

async fn ask(world: &mut World, spec: MigrationSpec, dry: bool) -> Result<Migration, tonic::Status> {
    let request =
        CreateMigrationRequest { spec: Some(spec), validate_only: dry, ..CreateMigrationRequest::default() };
    world.api.create_migration(request).await.map(tonic::Response::into_inner)
}

fn told(m: &Migration, what: &str) -> bool {
    m.events.iter().any(|event| event.contains(what))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_coordinator_chooses_among_the_selected_and_says_why() {
    let mut world = World::start();
    let a = world.agent("node-a", Behaviour::running(&["web", "db"])).await;
    let _b = world.agent("node-b", Behaviour::default()).await;
    let _c = world.agent("node-c", free(Behaviour::default(), 2 << 30)).await;

    let both = MigrationSpec { target_node: "node-b".into(), ..selecting("web", "node-b") };
    let refused = ask(&mut world, both, false).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    let fields = proto::error::ErrorDetails::of(&refused).fields;
    assert_eq!(fields[0].0, "spec.node_selector", "{fields:?}");

    // A dry run knows the selector, too.
    let nowhere = ask(&mut world, selecting("web", "node-x"), true).await.unwrap_err();
    assert_eq!(reason(&nowhere), "NO_CANDIDATE");
    ask(&mut world, selecting("web", "node-c"), true).await.unwrap();

    ask(&mut world, selecting("web", "node-x"), false).await.unwrap();
    let failed = world.phase("web-1", Phase::Failed).await;
    assert_eq!(failed.reason, "NoCandidate");
    assert!(failed.message.contains("node-b: it has no label rack=node-x"), "{}", failed.message);

    // The one with less room, because it is asked for.
    ask(&mut world, selecting("web", "node-c"), false).await.unwrap();
    has_session(&a, "web-2").await;
    let moving = world.migration("web-2", "is placed", |m| m.target_node == "node-c").await;
    assert!(told(&moving, "node-c is chosen: 2015 MiB stay free"), "{:?}", moving.events);
    assert!(told(&moving, "node-b is not: it has no label rack=node-c"), "{:?}", moving.events);
    assert!(told(&moving, "node-a is not: the container is there already"), "{:?}", moving.events);

    // And without a selector the one with more.
    world.create("db", "").await;
    let moving = world.migration("db-1", "is placed", |m| m.target_node == "node-b").await;
    assert!(told(&moving, "node-c is not: 2014 MiB stay free, 1 migrations there"), "{:?}", moving.events);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_is_never_on_one_node() {
    let mut world = World::start();
    let a = world.agent("node-a", with(vec![of_group("db-1", "db"), of_group("x", "other")])).await;
    let _b = world.agent("node-b", with(vec![of_group("db-2", "db")])).await;
    let c = world.agent("node-c", free(Behaviour::default(), 1 << 30)).await;

    // There is one already.
    world.create("db-1", "node-b").await;
    let failed = world.phase("db-1-1", Phase::Failed).await;
    assert!(failed.message.contains("db-2, also of the anti-affinity group db, is there"), "{failed:?}");
    // The emptier node has it, so the other one is taken.
    world.create("db-1", "").await;
    has_session(&a, "db-1-2").await;
    assert_eq!(world.migration("db-1-2", "is placed", |m| m.admitted_to("node-c")).await.epoch, 1);
    // One that comes counts as one that is there.
    world.create("db-2", "node-c").await;
    let failed = world.phase("db-2-1", Phase::Failed).await;
    assert!(failed.message.contains("db-1, also of the anti-affinity group db, comes there"), "{failed:?}");
    // Another group does not mind.
    world.create("x", "node-c").await;
    has_session(&a, "x-1").await;

    // Nor is one started beside it.
    let run = |node: &str| CreateContainerRequest {
        node: node.into(),
        container: Some(RunContainerRequest {
            name: "db-3".into(),
            bundle: "/b".into(),
            labels: HashMap::from([(GROUP.to_owned(), "db".to_owned())]),
            ..RunContainerRequest::default()
        }),
        ..CreateContainerRequest::default()
    };
    for node in ["node-b", "node-c"] {
        let refused = world.api.create_container(run(node)).await.unwrap_err();
        assert_eq!((refused.code(), reason(&refused).as_str()), (Code::FailedPrecondition, "ANTI_AFFINITY"));
    }
    hand_over("db-1", "db-1-2", &a, &c);
    world.phase("db-1-2", Phase::Succeeded).await;
    world.api.create_container(run("node-a")).await.unwrap();
}

/// Both containers of a group are on nodes that are emptied, and there is one free node for each.
#[tokio::test(flavor = "multi_thread")]
async fn evacuations_keep_groups_apart() {
    let mut world = World::start();
    let a = world.agent("node-a", with(vec![of_group("db-1", "db")])).await;
    let b = world.agent("node-b", with(vec![of_group("db-2", "db")])).await;
    let c = world.agent("node-c", Behaviour::default()).await;
    let d = world.agent("node-d", free(Behaviour::default(), 1 << 30)).await;
    world.evacuate("node-a", |_| {}).await.unwrap();
    world.evacuate("node-b", |_| {}).await.unwrap();
    for (container, from) in [("db-1", &a), ("db-2", &b)] {
        let migration = format!("{container}-1");
        has_session(from, &migration).await;
    }
    let first = world.migration("db-1-1", "is placed", |m| !m.target_node.is_empty()).await.target_node;
    let second = world.migration("db-2-1", "is placed", |m| !m.target_node.is_empty()).await.target_node;
    let mut targets = [first.as_str(), second.as_str()];
    targets.sort_unstable();
    assert_eq!(targets, ["node-c", "node-d"]);
    let to = |name: &str| if name == "node-c" { &c } else { &d };
    finish(&world, "db-1", &a, to(&first)).await;
    finish(&world, "db-2", &b, to(&second)).await;
    for evacuation in ["drain-node-a-1", "drain-node-b-1"] {
        world.evacuation(evacuation, |e| e.phase() == EvacuationPhase::Succeeded).await;
    }
}

/// Room for one: the second is refused while the first comes, across a restart, and though the first has grown since.
#[tokio::test(flavor = "multi_thread")]
async fn room_is_promised_once_across_a_restart() {
    let mut world = World::start();
    let mib = |name: &str, memory: u64| Container { memory_bytes: memory << 20, ..container(name) };
    let a: Agent = world.agent("node-a", with(vec![mib("c1", 60), mib("c2", 60), mib("c3", 20)])).await;
    let _b = world.agent("node-b", free(Behaviour::default(), 150 << 20)).await;
    world.create("c1", "node-b").await;
    has_session(&a, "c1-1").await;
    world.create("c2", "node-b").await;
    let lacks = |m: &Migration| m.reason == "NoCandidateNow" && m.message.contains("90 MiB are free, 92 MiB");
    world.migration("c2-1", "lacks room", lacks).await;

    world.process.kill();
    world.process.restart();
    world.node("node-a", NodeState::Ready).await;
    world.node("node-b", NodeState::Ready).await;
    // A new one after the restart, in whose record nothing is from before it.
    world.api.cancel_migration(CancelMigrationRequest { name: "c2-1".into() }).await.unwrap();
    world.phase("c2-1", Phase::Cancelled).await;
    world.create("c2", "node-b").await;
    world.migration("c2-2", "lacks room", lacks).await;

    // It grows while it moves: a small one does not fit any more.
    a.set_containers(vec![mib("c1", 110), mib("c2", 60), mib("c3", 20)]);
    common::until("the coordinator knows", || async {
        let request = GetContainerRequest { name: "c1".into() };
        let found = world.api.clone().get_container(request).await.ok()?.into_inner();
        (found.memory_bytes == 110 << 20).then_some(())
    })
    .await;
    world.create("c3", "node-b").await;
    let lacks = |m: &Migration| m.message.contains("40 MiB are free, 52 MiB are needed");
    world.migration("c3-1", "lacks room", lacks).await;
    assert_eq!(world.phase("c2-2", Phase::Pending).await.target_node, "node-b");
}

/// A move for which there is no room now waits, says for what, and goes when there is room; or ends when its time is up, it is
/// cancelled, or no node can ever take it.
#[tokio::test(flavor = "multi_thread")]
async fn room_is_waited_for() {
    let mut world = World::start();
    let mib = |name: &str, memory: u64| Container { memory_bytes: memory << 20, ..container(name) };
    let sizes = [("first", 60), ("next", 60), ("late", 60), ("gone", 60), ("huge", 9 << 10)];
    let all = sizes.into_iter().map(|(name, memory)| mib(name, memory)).collect();
    let a = world.agent("node-a", with(all)).await;
    let b = world.agent("node-b", free(Behaviour::default(), 150 << 20)).await;
    world.create("first", "node-b").await;
    has_session(&a, "first-1").await;

    // Named, or placed by its labels: both wait for the same.
    ask(&mut world, selecting("next", "node-b"), false).await.unwrap();
    world.create("gone", "node-b").await;
    let why = "no node takes next now: node-b: 90 MiB are free, 92 MiB are needed";
    let waiting = world.migration("next-1", "waits", |m| m.message == why).await;
    assert_eq!((waiting.phase(), waiting.reason.as_str()), (Phase::Pending, "NoCandidateNow"));
    let scheduled = |m: &Migration| {
        let found = m.conditions.iter().find(|c| c.r#type == "Scheduled")?;
        Some((found.status.clone(), found.reason.clone(), found.message.clone()))
    };
    assert_eq!(scheduled(&waiting), Some(("False".into(), "NoCandidateNow".into(), why.into())));
    assert!(told(&waiting, &format!("waits: {why}")), "{:?}", waiting.events);
    world.migration("gone-1", "waits", |m| m.reason == "NoCandidateNow").await;

    // Too large for the whole node: at once.
    world.create("huge", "node-b").await;
    let failed = world.phase("huge-1", Phase::Failed).await;
    assert_eq!(failed.reason, "NoCandidate");
    assert!(failed.message.contains("it has 8192 MiB in all, 9248 MiB are needed"), "{}", failed.message);

    // Its time is up.
    let limits =
        Policy { timeout: Some(prost_types::Duration { seconds: 1, nanos: 0 }), ..Policy::default() };
    let late = MigrationSpec {
        container: "late".into(),
        target_node: "node-b".into(),
        policy: Some(limits),
        ..MigrationSpec::default()
    };
    ask(&mut world, late, false).await.unwrap();
    let failed = world.phase("late-1", Phase::Failed).await;
    assert_eq!(failed.reason, "TimedOut");
    assert!(failed.message.starts_with("waited 1s; no node takes late now: node-b: 90 MiB"), "{failed:?}");

    // Cancelled.
    world.api.cancel_migration(CancelMigrationRequest { name: "gone-1".into() }).await.unwrap();
    world.phase("gone-1", Phase::Cancelled).await;

    // What was promised is given back, and it goes.
    a.reaches("first-1", Phase::Failed);
    world.phase("first-1", Phase::Failed).await;
    has_session(&a, "next-1").await;
    let moving = world.migration("next-1", "is placed", |m| m.admitted_to("node-b")).await;
    assert_eq!(scheduled(&moving), Some(("True".into(), "Placed".into(), "on node-b".into())));
    hand_over("next", "next-1", &a, &b);
    world.phase("next-1", Phase::Succeeded).await;
}

/// A node that is not ready may be again.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_not_ready_is_waited_for() {
    let mut world = World::start();
    let a = world.agent("node-a", Behaviour::running(&["web"])).await;
    let b = world.agent("node-b", Behaviour::default()).await;
    b.vanish();
    world.node("node-b", NodeState::NotReady).await;
    world.create("web", "node-b").await;
    world.migration("web-1", "waits", |m| m.message.ends_with("node-b: the node is not ready")).await;
    let _back = world.agent("node-b", Behaviour::default()).await;
    has_session(&a, "web-1").await;
}

/// One slot: what is in the background lets a later user and a drain pass.
#[tokio::test(flavor = "multi_thread")]
async fn users_come_before_drains_and_those_before_the_background() {
    let mut world = World::with("max_in_cluster = 1\n");
    let a = world.agent("node-a", Behaviour::running(&["first", "low", "user"])).await;
    let b = world.agent("node-b", Behaviour::running(&["drained"])).await;
    let c = world.agent("node-c", Behaviour::default()).await;
    world.create("first", "node-c").await;
    has_session(&a, "first-1").await;
    let low = MigrationSpec {
        container: "low".into(),
        target_node: "node-c".into(),
        background: true,
        ..MigrationSpec::default()
    };
    ask(&mut world, low, false).await.unwrap();
    world.evacuate("node-b", |_| {}).await.unwrap();
    world.migration("drained-1", "waits", |m| told(m, "its limit")).await;
    world.create("user", "node-c").await;
    world.migration("user-1", "waits", |m| told(m, "its limit")).await;
    for (name, from) in [("first", &a), ("user", &a), ("drained", &b), ("low", &a)] {
        has_session(from, &format!("{name}-1")).await;
        let all = ["first", "user", "drained", "low"];
        let begun = |n: &&&str| [&a, &b].iter().any(|agent| agent.started(&format!("{n}-1")).is_some());
        let order = all.iter().position(|n| *n == name).unwrap();
        assert_eq!(all.iter().filter(begun).count(), order + 1, "{name} is not the next one");
        let m = world.migration(&format!("{name}-1"), "is placed", |m| !m.target_node.is_empty()).await;
        hand_over(name, &m.name, from, if m.target_node == "node-c" { &c } else { &a });
    }
}

trait Placed {
    fn admitted_to(&self, node: &str) -> bool;
}

impl Placed for Migration {
    fn admitted_to(&self, node: &str) -> bool {
        self.target_node == node && self.epoch > 0
    }
}
