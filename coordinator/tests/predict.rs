//! What a migration would cost, asked before it and shown beside it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::time::Duration;

use common::{Behaviour, World};
use proto::v1::{CheckMoveRequest, Policy, Refusal};
use tonic::{Code, Status};

fn question(container: &str) -> CheckMoveRequest {
    let max_downtime = Some(Duration::from_millis(80).try_into().unwrap());
    CheckMoveRequest {
        container: container.into(),
        predict: true,
        policy: Some(Policy { max_downtime, ..Policy::default() }),
        ..CheckMoveRequest::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_foreseen_stands_beside_what_came() {
    let mut world = World::start();
    let a = world.agent("node-a", Behaviour::running(&["web", "db", "new"])).await;
    let _b = world.agent("node-b", Behaviour::default()).await;
    let mut cold = Behaviour::default();
    cold.facts.kernel_release = "6.1.0".into();
    let _c = world.agent("node-c", cold).await;

    let answer = world.api.check_container(question("web")).await.unwrap().into_inner();
    let foreseen: Vec<_> =
        answer.candidates.iter().map(|c| c.prediction.as_ref().map(|p| p.pause_ms)).collect();
    assert_eq!(foreseen, [Some(8.0), None], "the node that fits, with the limits asked for");
    assert_eq!(a.calls(), ["Check web", "Predict web"]);

    world.create("web", "node-b").await;
    a.called("Session 1").await;
    let migration = world.migration("web-1", "has begun", |m| m.epoch > 0).await;
    assert_eq!(migration.predicted.unwrap().pause_ms, 8.0);
    // Nobody asked about this one.
    world.create("new", "node-b").await;
    assert_eq!(world.migration("new-1", "has begun", |m| m.epoch > 0).await.predicted, None);

    // What cannot be told is said, and the rest is there all the same.
    let unknown = CheckMoveRequest { policy_name: "none".into(), ..question("db") };
    assert_eq!(world.api.check_container(unknown).await.unwrap_err().code(), Code::NotFound);
    let mut wrong = question("db");
    wrong.policy.as_mut().unwrap().throttle_max_percent = 200;
    assert_eq!(world.api.check_container(wrong).await.unwrap_err().code(), Code::InvalidArgument);
    a.fail("Predict", Status::new(Code::FailedPrecondition, "it cannot be measured: it is frozen"));
    let answer = world.api.check_container(question("db")).await.unwrap().into_inner();
    let candidate = &answer.candidates[0];
    assert!(candidate.fits && candidate.prediction.is_none());
    assert!(candidate.not_predicted.contains("it is frozen"), "{candidate:?}");
    assert!(answer.candidates[1].not_predicted.is_empty(), "nothing was asked about what does not fit");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_measured_that_cannot_move_or_that_may_not_be() {
    let mut world = World::start();
    let refusals = vec![Refusal { subject: "fd 3".into(), ..Refusal::default() }];
    let a = world.agent("node-a", Behaviour { refusals, ..Behaviour::running(&["web"]) }).await;
    let _b = world.agent("node-b", Behaviour::default()).await;
    let answer = world.api.check_container(question("web")).await.unwrap().into_inner();
    assert!(answer.candidates.iter().all(|candidate| candidate.prediction.is_none()));

    let mut viewer = world.client("bob.viewer.gantry");
    assert_eq!(viewer.check_container(question("web")).await.unwrap_err().code(), Code::PermissionDenied);
    viewer.check_container(CheckMoveRequest { predict: false, ..question("web") }).await.unwrap();

    assert!(a.calls().iter().all(|call| call.starts_with("Check")), "{:?}", a.calls());
}
