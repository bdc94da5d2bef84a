//! The API as somebody sees it who has nothing of ours: a client of another make, in another language.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::path::Path;

use common::{Behaviour, World};
use tokio::process::Command;

/// A Python with gRPC.
async fn python(root: &Path) -> Command {
    let made = Command::new(root.join(".ci/python")).output().await.unwrap();
    let why = String::from_utf8_lossy(&made.stderr);
    assert!(made.status.success(), ".ci/python cannot make target/python, which this test needs: {why}");
    Command::new(root.join("target/python/bin/python"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_learns_everything_from_the_server() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut world = World::start();
    let _a = world.agent("node-a", Behaviour::running(&["c1", "c2", "c3"])).await;
    let _b = world.agent("node-b", Behaviour::running(&["c4", "c5"])).await;
    let mut client = python(root).await;
    client.arg(root.join("coordinator/tests/client.py"));
    client.arg(&world.process.address).arg(world.pki.issue("carol.admin.gantry"));
    let output = tokio::time::timeout(common::LIMIT, client.output()).await.unwrap().unwrap();
    let (said, wrong) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}{wrong}");
    let done: Vec<_> = said.lines().filter_map(|line| line.strip_prefix("ok ")).collect();
    let all = ["reflection", "health", "list", "pages", "errors", "validate_only", "watch", "end"];
    assert_eq!(done, all, "{wrong}");
}
