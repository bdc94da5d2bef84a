//! The coordinator crashes between every two steps of a drive, and the migration goes on after its restart.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use common::evacuate::{finish, state_of};
use common::{Behaviour, World, until};
use proto::v1::*;

/// Where it crashes, and the first epoch that an agent may see after the restart: one that was on disk and may
/// have been ordered is not ordered anew, unless it merely goes on.
const POINTS: [(&str, u64); 6] = [
    ("drive-after-check", 1),
    ("drive-after-epoch", 2),
    ("drive-after-prepare", 1),
    ("drive-before-start", 1),
    ("drive-after-start", 1),
    ("drive-on-status", 1),
];

#[tokio::test(flavor = "multi_thread")]
async fn crashes_between_every_two_steps() {
    for (point, first_epoch) in POINTS {
        let mut world = World::start();
        assert!(world.process.terminate().success());
        world.process.failpoint(&format!("{point}=kill"));
        world.process.restart();
        let a = world.agent("node-a", Behaviour::running(&["web"])).await;
        let b = world.agent("node-b", Behaviour::default()).await;
        world.create("web", "node-b").await;
        assert!(!world.process.ended().success(), "{point} was never reached");
        world.process.failpoint("");
        world.process.restart();
        until(point, || async { a.calls().iter().any(|c| c.starts_with("Session")).then_some(()) }).await;
        let m = world.migration("web-1", "is followed", |m| m.epoch > 0).await;
        a.called(&format!("Session {}", m.epoch)).await;
        a.reaches("web-1", Phase::PreCopy);
        world.phase("web-1", Phase::PreCopy).await;
        a.reaches("web-1", Phase::Succeeded);
        world.phase("web-1", Phase::Succeeded).await;
        assert_eq!(b.calls()[0], format!("Prepare {first_epoch}"), "{point}");
        let sessions: Vec<_> = a.calls().into_iter().filter(|call| call.starts_with("Session")).collect();
        assert_eq!(sessions.len(), 1, "{point}: {sessions:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resolution_is_told_again_after_a_crash() {
    let mut world = World::start();
    assert!(world.process.terminate().success());
    world.process.failpoint("drive-after-resolve=kill");
    world.process.restart();
    let a = world.agent("node-a", Behaviour::running(&["web"])).await;
    let b = world.agent("node-b", Behaviour::default()).await;
    world.create("web", "node-b").await;
    a.called("Watch").await;
    a.vanish();
    world.phase("web-1", Phase::OutcomeUnknown).await;
    let resolve = ResolveMigrationRequest {
        name: "web-1".into(),
        owner: Owner::Target.into(),
        fenced_node: "node-a".into(),
        accept_rollback: true,
    };
    world.api.resolve_migration(resolve).await.unwrap();
    assert!(!world.process.ended().success());
    world.process.failpoint("");
    world.process.restart();
    assert_eq!(world.phase("web-1", Phase::Succeeded).await.reason, "Resolved");
    // Under the same epoch: it is one resolution.
    assert!(
        b.calls()
            .iter()
            .filter(|call| call.starts_with("Resolve"))
            .all(|call| call == "Resolve 2 OWNER_TARGET")
    );
}

/// Where it crashes while it evacuates, the first and later times: every step begins from the record.
const EVACUATION_POINTS: [&str; 9] = [
    "evacuate-before-step=kill",
    "evacuate-after-step=kill",
    "evacuate-after-cordon=kill",
    "evacuate-after-create=kill",
    "evacuate-after-create=kill:2",
    // Written that it is to be created, and not created.
    "evacuate-after-step=kill:3",
    "evacuate-after-step=kill:4",
    "evacuate-after-step=kill:5",
    "evacuate-before-step=kill:6",
];

#[tokio::test(flavor = "multi_thread")]
async fn an_evacuation_goes_on_after_a_crash_anywhere() {
    for point in EVACUATION_POINTS {
        let mut world = World::start();
        assert!(world.process.terminate().success());
        world.process.failpoint(point);
        world.process.restart();
        let a = world.agent("node-a", Behaviour::running(&["web", "db"])).await;
        let b = world.agent("node-b", Behaviour::default()).await;
        // It may crash before it has answered.
        let _ = world.evacuate("node-a", |request| request.name = "away".into()).await;
        assert!(!world.process.ended().success(), "{point} was never reached");
        world.process.failpoint("");
        world.process.restart();
        for container in ["db", "web"] {
            finish(&world, container, &a, &b).await;
        }
        let done = world.evacuation("away", |e| e.finished.is_some()).await;
        assert_eq!(done.phase(), EvacuationPhase::Succeeded, "{point}: {done:#?}");
        for container in ["db", "web"] {
            assert_eq!(state_of(&done, container), ItemState::Moved);
            assert_eq!(a.sessions_of(container).len(), 1, "{point}: {:?}", a.sessions_of(container));
        }
        assert!(world.node("node-a", NodeState::Ready).await.cordoned);
    }
}
