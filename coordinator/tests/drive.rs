//! Migrations driven by a real coordinator process, killed and restarted, against agents that do as scripted.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::collections::HashMap;

use common::{Behaviour, World, reason, until};
use proto::v1::*;
use tonic::Code;

const TWO: &str = "one driver at a time";

/// `web` on node-a, and an empty node-b.
async fn two_nodes(world: &mut World) -> (common::Agent, common::Agent) {
    let a = world.agent("node-a", Behaviour::running(&["web"])).await;
    let b = world.agent("node-b", Behaviour::default()).await;
    (a, b)
}

/// The source commits, and the container changes hands.
fn commit(from: &common::Agent, to: &common::Agent, migration: &str, epoch: u64) {
    let mut moved = from.containers();
    from.set_containers(Vec::new());
    for container in &mut moved {
        container.epoch = epoch;
    }
    to.set_containers(moved);
    to.reaches(migration, Phase::Succeeded);
    from.reaches(migration, Phase::Succeeded);
}

fn sessions(agent: &common::Agent) -> usize {
    agent.calls().iter().filter(|call| call.starts_with("Session")).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn there_and_back() {
    let mut world = World::start();
    let (a, b) = two_nodes(&mut world).await;
    let made = world.create("web", "node-b").await;
    assert_eq!((made.name.as_str(), made.phase()), ("web-1", Phase::Pending));
    assert_eq!(made.requested_by, "admin/alice");
    a.called("Session 1").await;
    a.report("web-1", |status| {
        status.set_phase(Phase::PreCopy);
        status.rounds.push(Round { index: 1, bytes: 4096, ..Round::default() });
        status.events.push("round 1: cut".into());
    });
    let running = world.migration("web-1", "has a round", |m| m.rounds.len() == 1).await;
    assert_eq!((running.phase(), running.epoch), (Phase::PreCopy, 1));
    assert_eq!(running.events.last().unwrap(), "round 1: cut");
    a.report("web-1", |status| status.downtime = Some(Downtime { total_ms: 8.4, ..Downtime::default() }));
    commit(&a, &b, "web-1", 1);
    let done = world.phase("web-1", Phase::Succeeded).await;
    assert_eq!(done.conditions.iter().find(|c| c.r#type == "Succeeded").unwrap().status, "True");
    assert!((done.downtime.unwrap().total_ms - 8.4).abs() < 1e-9);
    assert!(done.finished.is_some());
    assert_eq!(b.calls(), ["Prepare 1"]);
    assert_eq!(a.calls(), ["Check web", "Start 1", "Session 1", "Watch"]);

    // Known at once, but for a heartbeat that was on its way.
    until("it is at node-b", || {
        let mut api = world.api.clone();
        async move {
            let web = api.get_container(GetContainerRequest { name: "web".into() }).await.ok()?.into_inner();
            (web.node == "node-b" && web.state() == ContainerState::Running).then_some(())
        }
    })
    .await;
    // Without a target: the only other node that fits.
    assert_eq!(world.create("web", "").await.name, "web-2");
    b.called("Session 2").await;
    commit(&b, &a, "web-2", 2);
    let back = world.phase("web-2", Phase::Succeeded).await;
    assert_eq!((back.source_node.as_str(), back.target_node.as_str()), ("node-b", "node-a"));
}

/// kill -9 while each order is under way: the migration ends well, one session is begun under one epoch, and a
/// watcher that goes on from the last revision it saw misses none.
#[tokio::test(flavor = "multi_thread")]
async fn killed_and_restarted_at_every_order() {
    for (at, held_by_source) in [("Check", true), ("Prepare", false), ("Start", true), ("Watch", true)] {
        let mut world = World::start();
        let (a, b) = two_nodes(&mut world).await;
        let holder = if held_by_source { &a } else { &b };
        holder.hold(at);
        let mut watcher = Watcher::new(&mut world).await;
        world.create("web", "node-b").await;
        until(&format!("{at} is under way"), || async {
            holder.calls().iter().any(|c| c.starts_with(at)).then_some(())
        })
        .await;
        watcher.read_until(|m| m.phase() != Phase::Unspecified).await;
        world.process.kill();
        holder.release();
        world.process.restart();
        until("a session", || async { (sessions(&a) > 0).then_some(()) }).await;
        let epoch = world.migration("web-1", "is seen", |m| m.epoch > 0).await.epoch;
        a.called(&format!("Session {epoch}")).await;
        a.reaches("web-1", Phase::PreCopy);
        world.phase("web-1", Phase::PreCopy).await;
        commit(&a, &b, "web-1", epoch);
        world.phase("web-1", Phase::Succeeded).await;
        assert_eq!(sessions(&a), 1, "{TWO}: {:?}, {at}", a.calls());
        let mut last = 0;
        for call in b.calls() {
            let epoch: u64 = call.strip_prefix("Prepare ").expect("only Prepare").parse().unwrap();
            assert!(epoch >= last, "epochs fall: {:?}", b.calls());
            last = epoch;
        }
        watcher.resume(&mut world).await;
        watcher.read_until(|m| m.phase() == Phase::Succeeded).await;
    }
}

/// Sees every revision once, across restarts of the coordinator.
struct Watcher {
    stream: tonic::Streaming<MigrationEvent>,
    seen: u64,
}

impl Watcher {
    async fn new(world: &mut World) -> Self {
        let stream =
            world.api.watch_migrations(WatchMigrationsRequest::default()).await.unwrap().into_inner();
        Self { stream, seen: 0 }
    }

    async fn resume(&mut self, world: &mut World) {
        let request = WatchMigrationsRequest { name: String::new(), revision: self.seen };
        self.stream = world.api.watch_migrations(request).await.unwrap().into_inner();
        // The object as it was then, and it is the only one.
        let first = self.stream.message().await.unwrap().unwrap();
        if first.revision > self.seen {
            assert_eq!(first.revision, self.seen + 1);
            self.seen = first.revision;
        }
    }

    async fn read_until(&mut self, wanted: impl Fn(&Migration) -> bool) {
        loop {
            let event = tokio::time::timeout(common::LIMIT, self.stream.message());
            let event = event.await.expect("an event in time").unwrap().expect("the watch goes on");
            assert_eq!(event.revision, self.seen + 1, "a revision was missed");
            self.seen = event.revision;
            if wanted(&event.migration.unwrap()) {
                return;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn agents_finish_alone_and_the_coordinator_learns() {
    let mut world = World::start();
    let (a, b) = two_nodes(&mut world).await;
    world.create("web", "node-b").await;
    a.called("Watch").await;
    world.process.kill();
    commit(&a, &b, "web-1", 1);
    world.process.restart();
    world.phase("web-1", Phase::Succeeded).await;
    assert_eq!(sessions(&a), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_report_ends_it_and_reports_are_checked() {
    let mut world = World::start();
    let (a, b) = two_nodes(&mut world).await;
    let c = world.agent("node-c", Behaviour::default()).await;
    world.create("web", "node-b").await;
    a.called("Session 1").await;
    let ask = |epoch| AskDecisionRequest { migration: "web-1".into(), epoch };
    let mut asked = b.registry().await;
    assert_eq!(asked.ask_decision(ask(1)).await.unwrap().into_inner().decision(), Decision::Undecided);
    // The target may not speak as the source, nor a stranger at all.
    assert_eq!(b.outcome("web-1", true).await.unwrap_err().code(), Code::PermissionDenied);
    assert_eq!(c.registry().await.ask_decision(ask(1)).await.unwrap_err().code(), Code::PermissionDenied);
    a.reaches("web-1", Phase::Completing);
    world.phase("web-1", Phase::Completing).await;
    assert_eq!(asked.ask_decision(ask(1)).await.unwrap().into_inner().decision(), Decision::Committed);
    assert_eq!(asked.ask_decision(ask(2)).await.unwrap().into_inner().decision(), Decision::Undecided);
    b.reaches("web-1", Phase::Succeeded);
    b.outcome("web-1", false).await.unwrap();
    b.outcome("web-1", false).await.unwrap();
    world.phase("web-1", Phase::Succeeded).await;
    assert_eq!(asked.ask_decision(ask(1)).await.unwrap().into_inner().decision(), Decision::Committed);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_aborted_migration_is_an_aborted_decision() {
    let mut world = World::start();
    let (a, b) = two_nodes(&mut world).await;
    world.create("web", "node-b").await;
    a.called("Session 1").await;
    a.report("web-1", |status| {
        status.set_phase(Phase::Failed);
        status.reason = "DidNotConverge".into();
        status.message = "dirtied faster than sent".into();
    });
    let failed = world.phase("web-1", Phase::Failed).await;
    assert_eq!(failed.reason, "DidNotConverge");
    let ask = AskDecisionRequest { migration: "web-1".into(), epoch: 1 };
    let answer = b.registry().await.ask_decision(ask).await.unwrap().into_inner();
    assert_eq!(answer.decision(), Decision::Aborted);
    assert_eq!(world.create("web", "node-b").await.name, "web-2");
}

#[tokio::test(flavor = "multi_thread")]
async fn both_gone_is_unknown_until_one_is_back() {
    let mut world = World::start();
    let (a, b) = two_nodes(&mut world).await;
    world.create("web", "node-b").await;
    a.called("Watch").await;
    a.reaches("web-1", Phase::Switchover);
    world.phase("web-1", Phase::Switchover).await;
    a.vanish();
    b.vanish();
    let unknown = world.phase("web-1", Phase::OutcomeUnknown).await;
    assert!(unknown.finished.is_none());
    let again = world.try_create("web", "node-b").await.unwrap_err();
    assert_eq!((again.code(), reason(&again).as_str()), (Code::Aborted, "MIGRATION_RUNNING"));
    // The target took over while nobody saw it.
    b.reaches("web-1", Phase::Succeeded);
    b.come_back().await;
    world.phase("web-1", Phase::Succeeded).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_source_and_a_target_without_a_copy_is_a_failure() {
    let mut world = World::start();
    let (a, b) = two_nodes(&mut world).await;
    world.create("web", "node-b").await;
    a.called("Watch").await;
    a.vanish();
    b.report("web-1", |status| {
        status.set_phase(Phase::Failed);
        status.message = "the source went away".into();
    });
    let failed = world.phase("web-1", Phase::Failed).await;
    assert_eq!(failed.reason, "SourceUnreachable");
}

/// A target whose copy is complete must not hear Aborted: it may have the last one.
#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_lost_its_copy_has_not_aborted_and_the_target_may_end_it() {
    let mut world = World::start();
    let (a, b) = two_nodes(&mut world).await;
    world.create("web", "node-b").await;
    a.called("Watch").await;
    a.report("web-1", |status| {
        status.set_phase(Phase::OutcomeUnknown);
        status.reason = "CopyLost".into();
    });
    world.phase("web-1", Phase::OutcomeUnknown).await;
    let ask = AskDecisionRequest { migration: "web-1".into(), epoch: 1 };
    let told = b.registry().await.ask_decision(ask).await.unwrap().into_inner();
    assert_eq!(told.decision(), Decision::Unknown);
    b.report("web-1", |status| {
        status.set_phase(Phase::Failed);
        status.message = "the source went away".into();
    });
    world.phase("web-1", Phase::Failed).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_store_reuses_no_epoch() {
    let mut world = World::start();
    let mut known = common::behaviour::container("web");
    known.epoch = 7;
    let a = world.agent("node-a", Behaviour { containers: vec![known], ..Behaviour::default() }).await;
    // This one knows a higher epoch than anybody reports.
    let hidden_epochs = HashMap::from([("web".to_owned(), 20)]);
    let b = world.agent("node-b", Behaviour { hidden_epochs, ..Behaviour::default() }).await;
    world.create("web", "node-b").await;
    a.called("Session 22").await;
    assert_eq!(b.calls(), ["Prepare 8", "Prepare 22"]);
    commit(&a, &b, "web-1", 22);
    world.phase("web-1", Phase::Succeeded).await;
    world.process.kill();
    world.process.lose_store();
    world.process.restart();
    world.node("node-a", NodeState::Ready).await;
    world.node("node-b", NodeState::Ready).await;
    // What the source repeats is kept for its target, though the migration is forgotten.
    let ask = |epoch| AskDecisionRequest { migration: "web-1".into(), epoch };
    let mut asked = b.registry().await;
    assert_eq!(asked.ask_decision(ask(22)).await.unwrap().into_inner().decision(), Decision::Undecided);
    a.outcome("web-1", true).await.unwrap();
    assert_eq!(asked.ask_decision(ask(22)).await.unwrap().into_inner().decision(), Decision::Committed);
    assert_eq!(asked.ask_decision(ask(8)).await.unwrap().into_inner().decision(), Decision::Undecided);
    world.create("web", "node-a").await;
    b.called("Session 23").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn cancel_goes_to_the_source_alone_and_loses_to_the_commit() {
    let mut world = World::start();
    let (a, b) = two_nodes(&mut world).await;
    world.create("web", "node-b").await;
    a.called("Watch").await;
    let cancel = |name: &str| CancelMigrationRequest { name: name.into() };
    world.api.cancel_migration(cancel("web-1")).await.unwrap();
    world.phase("web-1", Phase::Cancelled).await;
    assert!(a.calls().contains(&"Abort 1".to_owned()));
    assert_eq!(b.calls(), ["Prepare 1"]);
    // Again: it is cancelled, and that is what was asked for.
    world.api.cancel_migration(cancel("web-1")).await.unwrap();

    // Before Start: the source hears nothing.
    b.hold("Prepare");
    world.create("web", "node-b").await;
    b.called("Prepare 2").await;
    world.api.cancel_migration(cancel("web-2")).await.unwrap();
    b.release();
    world.phase("web-2", Phase::Cancelled).await;
    assert_eq!(sessions(&a), 1);

    // While Start is under way: the cancel follows it.
    a.hold("Start");
    world.create("web", "node-b").await;
    a.called("Start 3").await;
    world.api.cancel_migration(cancel("web-3")).await.unwrap();
    a.release();
    world.phase("web-3", Phase::Cancelled).await;

    // Too late.
    world.create("web", "node-b").await;
    a.called("Session 4").await;
    a.reaches("web-4", Phase::Completing);
    let late = world.api.cancel_migration(cancel("web-4")).await.unwrap_err();
    assert_eq!((late.code(), reason(&late).as_str()), (Code::FailedPrecondition, "MIGRATION_COMMITTED"));
    commit(&a, &b, "web-4", 4);
    world.phase("web-4", Phase::Succeeded).await;
    let over = world.api.cancel_migration(cancel("web-4")).await.unwrap_err();
    assert_eq!(reason(&over), "MIGRATION_NOT_CANCELLABLE");
}

#[tokio::test(flavor = "multi_thread")]
async fn resolve_has_rules() {
    let mut world = World::start();
    let (a, b) = two_nodes(&mut world).await;
    world.create("web", "node-b").await;
    a.called("Watch").await;
    let resolve = |owner: Owner, fenced: &str, accept_rollback| ResolveMigrationRequest {
        name: "web-1".into(),
        owner: owner.into(),
        fenced_node: fenced.into(),
        accept_rollback,
    };
    let mut api = world.api.clone();
    let mut refused =
        async |request: ResolveMigrationRequest| reason(&api.resolve_migration(request).await.unwrap_err());
    assert_eq!(refused(resolve(Owner::Target, "node-a", true)).await, "OUTCOME_KNOWN");
    a.vanish();
    world.phase("web-1", Phase::OutcomeUnknown).await;
    assert_eq!(refused(resolve(Owner::Unspecified, "node-a", true)).await, "INVALID_ARGUMENT");
    assert_eq!(refused(resolve(Owner::Target, "", true)).await, "FENCING_REQUIRED");
    assert_eq!(refused(resolve(Owner::Target, "node-b", true)).await, "INVALID_ARGUMENT");
    assert_eq!(refused(resolve(Owner::Source, "node-b", true)).await, "NODE_NOT_FENCED");
    assert_eq!(refused(resolve(Owner::Target, "node-a", false)).await, "ROLLBACK_NOT_ACCEPTED");

    b.hold("Resolve");
    world.api.resolve_migration(resolve(Owner::Target, "node-a", true)).await.unwrap();
    b.called("Resolve 2 OWNER_TARGET").await;
    // Recorded once: the same again is no news, a contrary one is refused.
    world.api.resolve_migration(resolve(Owner::Target, "node-a", true)).await.unwrap();
    assert_eq!(refused(resolve(Owner::Source, "node-b", true)).await, "RESOLVED_OTHERWISE");
    // The fenced node is not admitted before the owner has acknowledged; nor told anything.
    a.come_back().await;
    let join = JoinRequest {
        agent_address: "127.0.0.1:1".into(),
        peer_address: "127.0.0.1:1".into(),
        facts: Some(NodeFacts::default()),
        ..JoinRequest::default()
    };
    let fenced = a.registry().await.join(join).await.unwrap_err();
    assert_eq!((fenced.code(), reason(&fenced).as_str()), (Code::Unavailable, "NODE_FENCED"));
    assert!(!a.calls().iter().any(|call| call.starts_with("Resolve")));
    // And a coordinator that is killed in between goes on.
    world.process.kill();
    b.release();
    world.process.restart();
    let resolved = world.phase("web-1", Phase::Succeeded).await;
    assert_eq!(resolved.reason, "Resolved");
    a.called("Resolve 2 OWNER_TARGET").await;
    world.node("node-a", NodeState::Ready).await;
    let tellings = a.calls().iter().filter(|call| call.starts_with("Resolve")).count();
    assert_eq!(tellings, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_hold_and_the_queue_goes_on() {
    let mut world = World::start();
    let names = ["c1", "c2", "c3", "c4"];
    let a = world.agent("node-a", Behaviour::running(&names)).await;
    let _b = world.agent("node-b", Behaviour::default()).await;
    for name in names {
        world.create(name, "node-b").await;
    }
    until("two sessions", || async { (sessions(&a) == 2).then_some(()) }).await;
    let waits = world.migration("c3-1", "waits", |m| m.events.iter().any(|e| e.contains("its limit"))).await;
    assert_eq!(waits.phase(), Phase::Pending);
    assert_eq!(sessions(&a), 2);
    // A queued one is cancelled without a word to an agent.
    world.api.cancel_migration(CancelMigrationRequest { name: "c3-1".into() }).await.unwrap();
    world.phase("c3-1", Phase::Cancelled).await;
    a.reaches("c1-1", Phase::Failed);
    until("the fourth begins", || async { (sessions(&a) == 3).then_some(()) }).await;
    a.reaches("c4-1", Phase::PreCopy);
    world.phase("c4-1", Phase::PreCopy).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_before_the_start_leave_the_container_alone() {
    let mut world = World::start();
    let refusals = vec![Refusal {
        pid: 3,
        subject: "fd 7".into(),
        reason: "io_uring".into(),
        way_out: "close it".into(),
    }];
    let a = world.agent("node-a", Behaviour { refusals, ..Behaviour::running(&["web"]) }).await;
    let b = world.agent("node-b", Behaviour::running(&["db"])).await;
    world.create("web", "node-b").await;
    let refused = world.phase("web-1", Phase::Failed).await;
    assert_eq!((refused.reason.as_str(), refused.epoch), ("Refused", 0));
    assert_eq!(refused.refusals[0].subject, "fd 7");
    assert_eq!(a.calls(), ["Check web"]);

    // The target refuses.
    a.fail("Prepare", proto::error::ApiError::new(Code::ResourceExhausted, "NO_ROOM", "no room").status());
    world.create("db", "node-a").await;
    let refused = world.phase("db-1", Phase::Failed).await;
    assert_eq!((refused.reason.as_str(), refused.message.as_str()), ("NoRoom", "no room"));
    assert_eq!(sessions(&b), 0);

    // The source refuses.
    b.fail("Start", proto::error::ApiError::new(Code::FailedPrecondition, "BUSY", "busy").status());
    world.create("db", "node-a").await;
    assert_eq!(world.phase("db-2", Phase::Failed).await.reason, "Busy");
    assert_eq!(sessions(&b), 0);

    // The source is lost before anything was ordered: tried again for a lease.
    b.hold("Check");
    world.create("db", "node-a").await;
    until("it is asked again", || async {
        (b.calls().iter().filter(|call| *call == "Check db").count() == 3).then_some(())
    })
    .await;
    b.vanish();
    assert_eq!(world.phase("db-3", Phase::Failed).await.reason, "NodeUnreachable");
}
