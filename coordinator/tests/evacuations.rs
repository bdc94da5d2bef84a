//! Evacuations by a real coordinator process, against agents that do as scripted.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::collections::HashMap;

use common::evacuate::{finish, hand_over, has_session, state_of};
use common::{Behaviour, World, reason};
use proto::error::{ApiError, ErrorDetails};
use proto::v1::*;
use tonic::Code;

#[tokio::test(flavor = "multi_thread")]
async fn a_node_is_emptied_and_what_cannot_move_is_told() {
    let mut world = World::start();
    let refusal =
        Refusal { pid: 3, subject: "fd 7".into(), reason: "io_uring".into(), way_out: "close it".into() };
    let stuck = HashMap::from([("db".to_owned(), vec![refusal])]);
    let behaviour = Behaviour { refused: stuck, ..Behaviour::running(&["db", "web", "app"]) };
    let a = world.agent("node-a", behaviour).await;
    let b = world.agent("node-b", Behaviour::default()).await;

    // The plan: the real checks, and nothing is changed.
    let plan = world.evacuate("node-a", |request| request.validate_only = true).await.unwrap();
    assert!(plan.name.is_empty());
    assert_eq!(state_of(&plan, "db"), ItemState::Stays);
    let planned: Vec<_> = plan.items.iter().filter(|item| item.state() == ItemState::Waiting).collect();
    assert_eq!(planned.len(), 2);
    assert!(planned.iter().all(|item| item.target_node == "node-b"));
    assert!(a.calls().iter().chain(&b.calls()).all(|call| call.starts_with("Check")), "{:?}", a.calls());
    assert!(!world.node("node-a", NodeState::Ready).await.cordoned);
    assert!(
        world
            .api
            .list_evacuations(ListEvacuationsRequest::default())
            .await
            .unwrap()
            .into_inner()
            .evacuations
            .is_empty()
    );

    let made = world.evacuate("node-a", |request| request.request_id = "r".into()).await.unwrap();
    assert_eq!((made.name.as_str(), made.phase()), ("drain-node-a-1", EvacuationPhase::Pending));
    let again = world.evacuate("node-a", |request| request.request_id = "r".into()).await.unwrap();
    assert_eq!(again.uid, made.uid);
    let second = world.evacuate("node-a", |_| ()).await.unwrap_err();
    assert_eq!((second.code(), reason(&second).as_str()), (Code::Aborted, "EVACUATION_RUNNING"));
    assert_eq!(ErrorDetails::of(&second).metadata["evacuation"], "drain-node-a-1");
    let uncordon = CordonNodeRequest { name: "node-a".into(), cordoned: false };
    let refused = world.api.cordon_node(uncordon.clone()).await.unwrap_err();
    assert_eq!(reason(&refused), "EVACUATION_RUNNING");

    for container in ["app", "web"] {
        finish(&world, container, &a, &b).await;
    }
    let done = world.evacuation("drain-node-a-1", |e| e.finished.is_some()).await;
    assert_eq!((done.phase(), done.reason.as_str()), (EvacuationPhase::Failed, "SomeStay"));
    assert_eq!(
        done.message,
        "2 moved, 0 gone, 1 stay: db (pid 3 fd 7: io_uring (close it)). node-a stays cordoned"
    );
    let db = done.items.iter().find(|item| item.container == "db").unwrap();
    assert_eq!((db.reason.as_str(), db.refusals.len(), db.attempts), ("Refused", 1, 0));
    assert!(world.node("node-a", NodeState::Ready).await.cordoned);
    assert!(a.sessions_of("db").is_empty(), "it was never tried");
    let m = world.phase("web-1", Phase::Succeeded).await;
    assert_eq!((m.evacuation.as_str(), m.requested_by.as_str()), ("drain-node-a-1", "admin/alice"));

    // And back, but for what has gone elsewhere meanwhile.
    let undo = |request: &mut CreateEvacuationRequest| request.spec.as_mut().unwrap().undo = true;
    assert_eq!(reason(&world.evacuate("node-a", undo).await.unwrap_err()), "NODE_CORDONED");
    world.api.cordon_node(uncordon).await.unwrap();
    let back = world.evacuate("node-a", undo).await.unwrap();
    let mut names: Vec<_> = back.items.iter().map(|item| item.container.as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, ["app", "web"]);
    for container in ["app", "web"] {
        finish(&world, container, &b, &a).await;
    }
    let done = world.evacuation(&back.name, |e| e.finished.is_some()).await;
    assert_eq!((done.phase(), done.reason.as_str()), (EvacuationPhase::Succeeded, "AllMoved"));
    assert!(!world.node("node-a", NodeState::Ready).await.cordoned);
    assert_eq!(reason(&world.evacuate("node-a", undo).await.unwrap_err()), "NOTHING_TO_UNDO");
}

#[tokio::test(flavor = "multi_thread")]
async fn users_go_first_and_no_more_run_at_once_than_allowed() {
    let mut world = World::with("max_outgoing_per_node = 1\n");
    let a = world.agent("node-a", Behaviour::running(&["c1", "c2", "c3", "mine"])).await;
    let b = world.agent("node-b", Behaviour::default()).await;
    // `mine` is moved by its user, and waited for. It has the only slot.
    world.create("mine", "node-b").await;
    has_session(&a, "mine-1").await;
    world.evacuate("node-a", |request| request.spec.as_mut().unwrap().max_parallel = 2).await.unwrap();
    let e = world
        .evacuation("drain-node-a-1", |e| {
            e.items.iter().filter(|item| item.state() == ItemState::Migrating).count() == 2
        })
        .await;
    assert_eq!(state_of(&e, "mine"), ItemState::Waiting);
    // Another user's comes after the two that the evacuation has in the queue, and is begun before them.
    let theirs = e.items.iter().find(|item| item.state() == ItemState::Waiting && item.container != "mine");
    let theirs = theirs.unwrap().container.clone();
    let user = world.create(&theirs, "node-b").await;
    finish(&world, "mine", &a, &b).await;
    world.migration(&user.name, "has begun", |m| m.phase() != Phase::Pending).await;
    let waiting = e.items.iter().filter(|item| item.state() == ItemState::Migrating);
    for item in waiting.clone() {
        assert_eq!(world.phase(&item.migration, Phase::Pending).await.epoch, 0);
    }
    finish(&world, &theirs, &a, &b).await;
    // One slot: either may be the first.
    let [one, two] = waiting.map(|item| item.container.as_str()).collect::<Vec<_>>()[..] else {
        panic!("{:?}", e.items);
    };
    tokio::join!(finish(&world, one, &a, &b), finish(&world, two, &a, &b));
    let done = world.evacuation("drain-node-a-1", |e| e.finished.is_some()).await;
    assert_eq!(done.phase(), EvacuationPhase::Succeeded, "{done:#?}");
    assert_eq!(state_of(&done, "mine"), ItemState::Gone);
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_are_tried_again_and_newcomers_are_taken_in() {
    let mut world = World::start();
    let a = world.agent("node-a", Behaviour::running(&["app", "web", "zzz"])).await;
    let b = world.agent("node-b", Behaviour::running(&["late"])).await;
    // On its way to the node before that is cordoned.
    world.create("late", "node-a").await;
    has_session(&b, "late-1").await;
    a.fail("Start", ApiError::new(Code::ResourceExhausted, "BUSY", "too much to do").status());
    let one = |request: &mut CreateEvacuationRequest| request.spec.as_mut().unwrap().max_parallel = 1;
    world.evacuate("node-a", one).await.unwrap();
    let e = world.evacuation("drain-node-a-1", |e| state_of(e, "app") == ItemState::Retrying).await;
    let failed = e.items.iter().find(|item| item.container == "app").unwrap().clone();
    assert_eq!(failed.attempts, 1);
    assert!(failed.message.contains("too much to do") && failed.retry_at.is_some(), "{failed:?}");
    // It stops while it waits.
    assert_eq!(state_of(&e, "zzz"), ItemState::Waiting);
    world.api.stop_container(StopContainerRequest { name: "zzz".into(), grace_seconds: 1 }).await.unwrap();
    finish(&world, "late", &b, &a).await;
    for container in ["web", "late", "app"] {
        finish(&world, container, &a, &b).await;
    }
    let done = world.evacuation("drain-node-a-1", |e| e.finished.is_some()).await;
    assert_eq!(done.phase(), EvacuationPhase::Succeeded, "{done:#?}");
    assert_eq!(state_of(&done, "late"), ItemState::Moved);
    assert_eq!(state_of(&done, "zzz"), ItemState::Gone);
    let again = done.items.iter().find(|item| item.container == failed.container).unwrap();
    assert_eq!((again.state(), again.attempts), (ItemState::Moved, 2));
    assert_ne!(again.migration, failed.migration);
}

#[tokio::test(flavor = "multi_thread")]
async fn pause_cancel_and_deadline() {
    let mut world = World::start();
    let a = world.agent("node-a", Behaviour::running(&["c1", "c2", "c3"])).await;
    let b = world.agent("node-b", Behaviour::default()).await;
    let one = |request: &mut CreateEvacuationRequest| request.spec.as_mut().unwrap().max_parallel = 1;
    world.evacuate("node-a", one).await.unwrap();
    world.migrating("drain-node-a-1", "c1").await;
    let name = || "drain-node-a-1".to_owned();
    let paused = world.api.pause_evacuation(PauseEvacuationRequest { name: name() }).await.unwrap();
    assert_eq!(paused.into_inner().phase(), EvacuationPhase::Paused);
    finish(&world, "c1", &a, &b).await;
    let e = world.evacuation(&name(), |e| state_of(e, "c1") == ItemState::Moved).await;
    // Its own step has seen the end and begins nothing.
    assert_eq!((e.phase(), state_of(&e, "c2")), (EvacuationPhase::Paused, ItemState::Waiting));
    // Also after a restart.
    world.process.kill();
    world.process.restart();
    world.node("node-a", NodeState::Ready).await;
    world.node("node-b", NodeState::Ready).await;
    let e = world.evacuation(&name(), |_| true).await;
    assert_eq!((e.phase(), state_of(&e, "c2")), (EvacuationPhase::Paused, ItemState::Waiting));
    assert!(a.sessions_of("c2").is_empty());
    world.api.resume_evacuation(ResumeEvacuationRequest { name: name() }).await.unwrap();
    let running = world.migrating(&name(), "c2").await;
    has_session(&a, &running).await;
    let cancel = CancelEvacuationRequest { name: name(), now: false };
    world.api.cancel_evacuation(cancel.clone()).await.unwrap();
    let e = world.evacuation(&name(), |e| state_of(e, "c3") == ItemState::Stays).await;
    assert_eq!(state_of(&e, "c2"), ItemState::Migrating, "what runs goes on");
    // And not with --now.
    world.api.cancel_evacuation(CancelEvacuationRequest { now: true, ..cancel.clone() }).await.unwrap();
    let done = world.evacuation(&name(), |e| e.finished.is_some()).await;
    assert_eq!(done.phase(), EvacuationPhase::Cancelled);
    assert_eq!(state_of(&done, "c2"), ItemState::Stays);
    assert!(
        done.message.contains("2 stay") && done.message.ends_with("node-a stays cordoned"),
        "{}",
        done.message
    );
    world.phase(&running, Phase::Cancelled).await;
    assert_eq!(
        world.api.cancel_evacuation(cancel).await.unwrap().into_inner().phase(),
        EvacuationPhase::Cancelled
    );
    let late = world.api.pause_evacuation(PauseEvacuationRequest { name: name() }).await.unwrap_err();
    assert_eq!(reason(&late), "EVACUATION_ENDED");

    // The deadline: what runs goes on to its end, what waits stays.
    let deadline = Some(prost_types::Duration { seconds: 6, nanos: 0 });
    let soon = |request: &mut CreateEvacuationRequest| {
        *request.spec.as_mut().unwrap() =
            EvacuationSpec { node: "node-a".into(), deadline, max_parallel: 1, ..Default::default() };
    };
    let second = world.evacuate("node-a", soon).await.unwrap().name;
    let running = world.migrating(&second, "c2").await;
    has_session(&a, &running).await;
    let e = world.evacuation(&second, |e| state_of(e, "c3") == ItemState::Stays).await;
    assert_eq!(state_of(&e, "c2"), ItemState::Migrating);
    finish(&world, "c2", &a, &b).await;
    let done = world.evacuation(&second, |e| e.finished.is_some()).await;
    assert_eq!((done.phase(), done.reason.as_str()), (EvacuationPhase::Failed, "DeadlineExceeded"));
    assert!(
        done.message.contains("1 moved") && done.message.contains("c3 (the deadline has passed)"),
        "{}",
        done.message
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_is_named_and_viewers_only_look() {
    let mut world = World::start();
    let _a = world.agent("node-a", Behaviour::running(&["web"])).await;
    let field = |status: tonic::Status| ErrorDetails::of(&status).fields[0].0.clone();
    let mut wrong = async |change: fn(&mut EvacuationSpec)| {
        let refused = world.evacuate("node-a", |request| change(request.spec.as_mut().unwrap())).await;
        refused.unwrap_err()
    };
    assert_eq!(field(wrong(|spec| spec.node = "No!".into()).await), "spec.node");
    assert_eq!(field(wrong(|spec| spec.max_parallel = 65).await), "spec.max_parallel");
    let negative = |spec: &mut EvacuationSpec| {
        spec.deadline = Some(prost_types::Duration { seconds: -1, nanos: 0 });
    };
    assert_eq!(field(wrong(negative).await), "spec.deadline");
    assert_eq!(
        field(wrong(|spec| spec.deadline = Some(prost_types::Duration::default())).await),
        "spec.deadline"
    );
    assert_eq!(reason(&wrong(|spec| spec.node = "node-x".into()).await), "NODE_NOT_FOUND");
    assert_eq!(reason(&wrong(|spec| spec.policy = "none".into()).await), "POLICY_NOT_FOUND");
    assert_eq!(reason(&wrong(|spec| spec.undo = true).await), "NOTHING_TO_UNDO");

    let mut viewer = world.client("bob.viewer.gantry");
    viewer.list_evacuations(ListEvacuationsRequest::default()).await.unwrap();
    viewer.list_migration_policies(ListMigrationPoliciesRequest::default()).await.unwrap();
    viewer.watch_evacuations(WatchEvacuationsRequest::default()).await.unwrap();
    let name = || "x".to_owned();
    let spec = Some(EvacuationSpec { node: "node-a".into(), ..EvacuationSpec::default() });
    for denied in [
        viewer
            .create_evacuation(CreateEvacuationRequest { spec, validate_only: true, ..Default::default() })
            .await
            .map(drop),
        viewer.cancel_evacuation(CancelEvacuationRequest { name: name(), now: false }).await.map(drop),
        viewer.pause_evacuation(PauseEvacuationRequest { name: name() }).await.map(drop),
        viewer.resume_evacuation(ResumeEvacuationRequest { name: name() }).await.map(drop),
        viewer.apply_migration_policy(ApplyMigrationPolicyRequest::default()).await.map(drop),
        viewer.delete_migration_policy(DeleteMigrationPolicyRequest::default()).await.map(drop),
    ] {
        assert_eq!(reason(&denied.unwrap_err()), "ROLE_NOT_ALLOWED");
    }
    for missing in [
        world.api.cancel_evacuation(CancelEvacuationRequest { name: name(), now: false }).await.map(drop),
        world.api.get_evacuation(GetEvacuationRequest { name: name() }).await.map(drop),
        world.api.watch_evacuations(WatchEvacuationsRequest { name: name(), revision: 0 }).await.map(drop),
    ] {
        assert_eq!(reason(&missing.unwrap_err()), "EVACUATION_NOT_FOUND");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_goes_on_over_a_restart() {
    let mut world = World::start();
    let a = world.agent("node-a", Behaviour::running(&["web"])).await;
    let b = world.agent("node-b", Behaviour::default()).await;
    let mut events =
        world.api.watch_evacuations(WatchEvacuationsRequest::default()).await.unwrap().into_inner();
    world.evacuate("node-a", |_| ()).await.unwrap();
    let first = events.message().await.unwrap().unwrap();
    assert_eq!(first.evacuation.unwrap().phase(), EvacuationPhase::Pending);
    let running = world.migrating("drain-node-a-1", "web").await;
    has_session(&a, &running).await;
    world.process.kill();
    hand_over("web", &running, &a, &b);
    world.process.restart();
    world.evacuation("drain-node-a-1", |e| e.finished.is_some()).await;
    let request = WatchEvacuationsRequest { name: "drain-node-a-1".into(), revision: first.revision };
    let mut events = world.api.watch_evacuations(request).await.unwrap().into_inner();
    let mut last = first.revision;
    loop {
        let event = tokio::time::timeout(common::LIMIT, events.message()).await.unwrap().unwrap().unwrap();
        assert!(event.revision > last, "revisions rise");
        last = event.revision;
        if event.evacuation.unwrap().phase() == EvacuationPhase::Succeeded {
            break;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn uncordoning_brings_back_what_was_told_to_come_back() {
    let mut world = World::start();
    let a = world.agent("node-a", Behaviour::running(&["web"])).await;
    let b = world.agent("node-b", Behaviour::default()).await;
    world.evacuate("node-a", |request| request.spec.as_mut().unwrap().move_back = true).await.unwrap();
    finish(&world, "web", &a, &b).await;
    world.evacuation("drain-node-a-1", |e| e.finished.is_some()).await;
    let uncordon = CordonNodeRequest { name: "node-a".into(), cordoned: false };
    world.api.cordon_node(uncordon.clone()).await.unwrap();
    world.migrating("drain-node-a-2", "web").await;
    // It goes on, and the node may be uncordoned again.
    world.api.cordon_node(uncordon).await.unwrap();
    finish(&world, "web", &b, &a).await;
    let done = world.evacuation("drain-node-a-2", |e| e.finished.is_some()).await;
    assert_eq!(done.phase(), EvacuationPhase::Succeeded);
    assert!(done.spec.unwrap().undo);
}
