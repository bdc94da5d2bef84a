//! Every exit code, one by one: the built program, a real coordinator, and agents that do what a test scripts.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "../../coordinator/tests/common/mod.rs"]
mod common;

use std::process::{Child, Command, Output, Stdio};

use common::{Agent, Behaviour, World};
use proto::v1::{Phase, Refusal};

fn migrate(world: &World, who: &str, args: &[&str]) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_migrate"));
    command.env("MIGRATE_COORDINATOR", &world.process.address).env("MIGRATE_TLS_DIR", world.pki.issue(who));
    command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// The exit code, and everything that was said.
async fn ended(child: Child) -> (i32, String) {
    let ended = tokio::task::spawn_blocking(|| child.wait_with_output().unwrap());
    let Output { status, stdout, stderr } =
        tokio::time::timeout(common::LIMIT, ended).await.unwrap().unwrap();
    (status.code().unwrap(), String::from_utf8_lossy(&[stdout, stderr].concat()).into_owned())
}

const ADMIN: &str = "alice.admin.gantry";

async fn world() -> (World, Agent, Agent) {
    let mut world = World::start();
    let a = world.agent("node-a", Behaviour::running(&["web"])).await;
    let b = world.agent("node-b", Behaviour::default()).await;
    (world, a, b)
}

/// Moves `web`, lets its source say how that ended, and gives the exit code.
async fn moved(end: Phase, reason: &str) -> (i32, String) {
    let (world, a, b) = world().await;
    let child = migrate(&world, ADMIN, &["move", "web", "--to", "node-b"]);
    a.called("Session 1").await;
    if end == Phase::Succeeded {
        let mut containers = a.containers();
        a.set_containers(Vec::new());
        containers.iter_mut().for_each(|container| container.epoch = 1);
        b.set_containers(containers);
        b.reaches("web-1", end);
    }
    a.report("web-1", |status| {
        status.reason = reason.into();
        status.set_phase(end);
    });
    ended(child).await
}

#[tokio::test(flavor = "multi_thread")]
async fn moves_that_end() {
    for (end, reason, code) in [
        (Phase::Succeeded, "Committed", 0),
        (Phase::Failed, "LinkLost", 4),
        (Phase::Failed, "NotConverged", 5),
        (Phase::Cancelled, "Cancelled", 6),
    ] {
        let (found, said) = moved(end, reason).await;
        assert_eq!(found, code, "{end:?} {reason}: {said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn moves_that_do_not_begin() {
    let (mut world, _a, _b) = world().await;
    let refusal =
        Refusal { pid: 3, subject: "fd 7".into(), reason: "io_uring".into(), way_out: "close it".into() };
    let bad = Behaviour { refusals: vec![refusal], ..Behaviour::running(&["bad"]) };
    let _c = world.agent("node-c", bad).await;
    for (who, args, code, word) in [
        (ADMIN, &["move", "none", "--to", "node-b"][..], 1, "none"),
        (ADMIN, &["move", "web", "--to", "No!"], 2, "target_node"),
        (ADMIN, &["move", "--no-such-flag"], 2, "no-such-flag"),
        (ADMIN, &["check", "bad", "--to", "node-b"], 3, "fd 7"),
        (ADMIN, &["move", "bad", "--to", "node-b"], 3, "fd 7"),
        ("bob.viewer.gantry", &["move", "web", "--to", "node-b"], 7, "viewer"),
        (ADMIN, &["get", "nodes"], 0, "node-a"),
    ] {
        let (found, said) = ended(migrate(&world, who, args)).await;
        assert_eq!(found, code, "{args:?}: {said}");
        assert!(said.contains(word), "{args:?}: {said}");
    }
    world.process.kill();
    let (found, said) = ended(migrate(&world, ADMIN, &["get", "nodes"])).await;
    assert_eq!(found, 7, "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_move_of_which_nobody_can_tell() {
    let (world, a, b) = world().await;
    let child = migrate(&world, ADMIN, &["move", "web", "--to", "node-b"]);
    a.called("Session 1").await;
    a.report("web-1", |status| status.set_phase(Phase::Switchover));
    world.phase("web-1", Phase::Switchover).await;
    a.vanish();
    b.vanish();
    let (found, said) = ended(child).await;
    assert_eq!(found, 8, "{said}");
    assert!(said.contains("resolve"), "it says how to go on: {said}");
}
