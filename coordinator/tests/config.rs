//! A wrong configuration ends the program with 64 before it binds or makes anything.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use common::{Pki, process::program};

#[test]
fn wrong_configurations_are_refused_by_name() {
    let pki = Pki::new();
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let good = |listen: &str, tls: &str| {
        format!("listen = {listen:?}\nstate_dir = {state:?}\ntls_dir = {:?}\n", pki.issue(tls))
    };
    let ours = "main.coordinator.gantry";
    let cases = [
        (String::new(), "missing field"),
        (good("nonsense", ours), "listen"),
        (good("127.0.0.1:0", "node-a.node.gantry"), "node/node-a"),
        (good("127.0.0.1:0", ours) + "name = \"other\"", "coordinator/main"),
        (good("127.0.0.1:0", ours) + "nmae = \"main\"", "unknown field"),
        (good("127.0.0.1:0", ours) + "heartbeat_milliseconds = 1", "heartbeat_milliseconds"),
        (good("127.0.0.1:0", ours) + "lease_milliseconds = 1", "lease_milliseconds"),
        (good("127.0.0.1:0", ours) + "history = \"soon\"", "history"),
        (good("127.0.0.1:0", ours) + "max_in_cluster = 0", "max_in_cluster"),
        (good("127.0.0.1:0", ours).replace("main.coordinator", "missing"), "ca.crt"),
    ];
    for (text, named) in cases {
        let file = dir.path().join("coordinator.toml");
        std::fs::write(&file, &text).unwrap();
        let output = program().args(["serve", "--config"]).arg(&file).output().unwrap();
        let log = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(64), "{text}\n{log}");
        assert!(log.contains(named), "{named}: {log}");
        assert!(!state.exists());
    }
    // 1: it can be used, and nobody serves.
    let kubernetes = include_str!("../../deploy/kubernetes/base/coordinator.toml");
    let tls = pki.issue(ours);
    let text = kubernetes.replace("/etc/gantry/tls", tls.to_str().unwrap()).replace("0.0.0.0", "127.93.0.7");
    assert!(text.contains(tls.to_str().unwrap()), "{kubernetes}");
    let file = dir.path().join("kubernetes.toml");
    std::fs::write(&file, text).unwrap();
    let probe = program().args(["health", "--config"]).arg(&file).output().unwrap();
    assert_eq!(probe.status.code(), Some(1), "{}", String::from_utf8_lossy(&probe.stderr));
    let missing = program().args(["serve", "--config", "/nonexistent/c.toml"]).output().unwrap();
    assert_eq!(missing.status.code(), Some(64));
    let usage = program().args(["serve"]).output().unwrap();
    assert_eq!(usage.status.code(), Some(2));
    let help = program().args(["--help"]).output().unwrap();
    assert_eq!(help.status.code(), Some(0));
}
