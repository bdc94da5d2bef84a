//! The scripts of deploy/kubernetes, with a real agent. Needs root.

#![allow(clippy::unwrap_used, reason = "a failed step is the test's failure")]

mod common;

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::rc::Rc;

use common::agent::{Agent, Ca};
use common::pair::Pair;
use common::wait_for;
use proto::v1;

fn script(name: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "../deploy/kubernetes/base", name].iter().collect()
}

fn run(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    output
}

#[test]
fn the_installed_agent_takes_the_installed_configuration() {
    let subject = Agent::new("");
    let (dir, tls) = (tempfile::tempdir().unwrap(), subject.ca.issue("node-a.node.gantry"));
    // The base names directories of real nodes.
    let template = fs::read_to_string(script("node-agent.toml")).unwrap();
    assert!(template.contains("/etc/gantry/node/") && template.contains("/var/lib/gantry\""));
    let template = template.replace("/etc/gantry/node", tls.to_str().unwrap());
    let template = template.replace("/var/lib/gantry", dir.path().join("state").to_str().unwrap());
    let path = dir.path().join("template.toml");
    fs::write(&path, template).unwrap();
    let install = |node: &str, host: &str| {
        let mut command = Command::new(script("install.sh"));
        command
            .env("DIR", dir.path())
            .env("PROGRAM", env!("CARGO_BIN_EXE_node-agent"))
            .env("TEMPLATE", &path);
        command.env("NODE_NAME", node).env("HOST_IP", host).env("COORDINATOR_SERVICE_HOST", "10.96.0.7");
        command
    };
    for host in ["127.93.0.9", "::1"] {
        run(&mut install("node-a.example.org", host));
        let installed = fs::read_to_string(dir.path().join("node-agent.toml")).unwrap();
        assert!(
            installed.contains("name = \"node-a\"\n") && installed.contains("\"10.96.0.7:7443\""),
            "{installed}"
        );
        // 64 would say that the configuration or the certificate cannot be used.
        let mut probe = Command::new(dir.path().join("node-agent"));
        let output =
            probe.args(["health", "--config"]).arg(dir.path().join("node-agent.toml")).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{output:?}");
    }
    let other = install("node-b", "127.93.0.9").status().unwrap();
    assert!(other.success());
    let mut probe = Command::new(dir.path().join("node-agent"));
    let output = probe.args(["health", "--config"]).arg(dir.path().join("node-agent.toml")).output().unwrap();
    assert_eq!(output.status.code(), Some(64), "another node's certificate: {output:?}");
    let early = install("node-a", "127.93.0.9").env_remove("COORDINATOR_SERVICE_HOST").output().unwrap();
    assert!(!early.status.success());
    assert!(String::from_utf8_lossy(&early.stderr).contains("no service of the coordinator"), "{early:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_waits_for_migrations() {
    let ca = Rc::new(Ca::new());
    let monitored =
        format!("metrics_listen = \"{}\"", TcpListener::bind("127.94.0.9:0").unwrap().local_addr().unwrap());
    let (one, two) = (Agent::named("node-a", Rc::clone(&ca), &monitored), Agent::named("node-b", ca, ""));
    // The script looks for the file that install.sh writes.
    symlink(one.config(), one.dir.path().join("node-agent.toml")).unwrap();
    let dir = one.dir.path().to_owned();
    let idle =
        |limit: &str| Command::new(script("idle.sh")).env("DIR", &dir).env("LIMIT", limit).spawn().unwrap();
    let code = |limit: &str| idle(limit).wait().unwrap().code();
    assert_eq!(code("9"), Some(2), "nobody answers");
    let mut pair = Pair { one, two };
    pair.one.start();
    pair.two.start();
    let name = pair.run(&["sleep", "1000"], |_| {}).await;
    assert_eq!(code("9"), Some(0), "there is no migration");

    // As slow as can be: some 200 kB are to be sent.
    let policy = v1::Policy { bandwidth_bytes_per_second: 10_000, ..Default::default() };
    let migration = pair.begin(&name, 1, policy).await;
    assert_eq!(code("1"), Some(3), "a migration is under way");
    let mut waiting = idle("60");
    let abort = v1::AbortRequest { migration, epoch: 1, reason: "enough".into() };
    pair.to_one().await.abort(abort).await.unwrap();
    wait_for("the script", || waiting.try_wait().unwrap().is_some());
    assert_eq!(waiting.wait().unwrap().code(), Some(0));
}
