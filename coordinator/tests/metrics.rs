//! What a real coordinator process shows to monitoring and to probes.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use common::process::free_address;
use common::{Behaviour, World, get, until};
use proto::v1::{Downtime, GetNodeRequest, Phase, Round};

#[tokio::test(flavor = "multi_thread")]
async fn every_metric_follows_what_happens() {
    let address = free_address().to_string();
    let mut world = World::with(&format!("metrics_listen = {address:?}"));
    let a = world.agent("node-a", Behaviour::running(&["web"])).await;
    let b = world.agent("node-b", Behaviour::default()).await;
    world.create("web", "node-b").await;
    a.called("Session 1").await;
    a.report("web-1", |status| {
        status.set_phase(Phase::PreCopy);
        status.rounds.push(Round { index: 1, ..Round::default() });
        status.bytes_sent = 4096;
    });
    world.phase("web-1", Phase::PreCopy).await;
    let during = get(&address, "/metrics").await;
    assert!(during.starts_with("HTTP/1.1 200 OK") && during.contains("openmetrics-text"), "{during}");
    for line in [
        "gantry_migrations_in_phase{phase=\"pre_copy\"} 1",
        "gantry_outcome_unknown 0",
        "gantry_node_up{node=\"node-a\"} 1",
        "gantry_node_cordoned{node=\"node-b\"} 0",
        "gantry_api_requests_total{method=\"Coordinator/CreateMigration\",code=\"Ok\"} 1",
        concat!("gantry_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"} 1"),
    ] {
        assert!(during.contains(line), "{line}\n{during}");
    }
    assert!(!during.contains("gantry_migrations_total{"), "nothing has ended\n{during}");

    a.report("web-1", |status| {
        status.downtime = Some(Downtime { total_ms: 8.0, ..Downtime::default() });
        status.total_seconds = 2.0;
    });
    let mut moved = a.containers();
    a.set_containers(Vec::new());
    moved.iter_mut().for_each(|container| container.epoch = 1);
    b.set_containers(moved);
    b.reaches("web-1", Phase::Succeeded);
    a.reaches("web-1", Phase::Succeeded);
    world.phase("web-1", Phase::Succeeded).await;
    let missing = world.api.get_node(GetNodeRequest { name: "node-x".into() }).await;
    assert!(missing.is_err());
    drop(b);
    until("node-b is down", || async {
        get(&address, "/metrics").await.contains("gantry_node_up{node=\"node-b\"} 0").then_some(())
    })
    .await;
    let after = get(&address, "/metrics").await;
    for line in [
        "gantry_migrations_total{result=\"succeeded\",reason=\"Committed\"} 1",
        "gantry_migration_downtime_seconds_sum 0.008",
        "gantry_migration_downtime_seconds_count 1",
        "gantry_migration_total_seconds_sum 2.0",
        "gantry_migration_rounds_sum 1.0",
        "gantry_migration_bytes_total 4096",
        "gantry_api_requests_total{method=\"Coordinator/GetNode\",code=\"NotFound\"}",
        "gantry_api_request_seconds_count{method=\"Coordinator/GetNode\"}",
    ] {
        assert!(after.contains(line), "{line}\n{after}");
    }
    assert!(!after.contains("gantry_migrations_in_phase{"), "{after}");
    assert!(get(&address, "/other").await.starts_with("HTTP/1.1 404"));
}

#[test]
fn a_probe_tells_whether_it_serves() {
    let pki = common::Pki::new();
    let mut process = common::Process::start(&pki, "");
    assert_eq!(process.health().code(), Some(0));
    process.kill();
    assert_eq!(process.health().code(), Some(1));
}
