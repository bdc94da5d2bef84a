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
use nix::sys::resource::{Resource, getrlimit};
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

/// A host's first process: a shell in namespaces of its own, which says which they are and starts a pod in others. What start.sh
/// executes is mounted here alone.
const HOST: &str = r#"
set -eu
hostname the-host
mount -t tmpfs host "$DIR"
cp "$PROBE" "$DIR/node-agent"
ulimit -Sn 2048
sh "$PROBE" pid 1
unshare --mount --uts --ipc --net --cgroup -- sh -euc '
    hostname the-pod
    umount "$DIR"
    mount -t tmpfs pod /mnt
    echo 700 >/proc/self/oom_score_adj
    ulimit -Sn 1024
    sh "$PROBE" the pod
    exec "$START"
'
"#;

/// Whether this process has CAP_SYS_RESOURCE.
fn may_raise_limits() -> bool {
    const CAP_SYS_RESOURCE: u32 = 24;
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let mask = status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap();
    u64::from_str_radix(mask.trim(), 16).unwrap() >> CAP_SYS_RESOURCE & 1 == 1
}

/// Stands for the agent: says what it is and where.
const PROBE: &str = r#"#!/bin/sh
echo "$*"
for name in mnt uts ipc net cgroup pid user; do
    readlink /proc/self/ns/$name
done
hostname
echo "$(ulimit -Sn) $(ulimit -Hn) $(cat /proc/self/oom_score_adj)"
grep -o "^host $DIR\|^pod /mnt" /proc/self/mounts
"#;

#[test]
fn the_agent_starts_in_the_namespaces_of_the_hosts_first_process() {
    let dir = tempfile::tempdir().unwrap();
    let [at, probe, start] = ["host", "probe", "start.sh"].map(|name| dir.path().join(name));
    fs::create_dir(&at).unwrap();
    fs::write(&probe, PROBE).unwrap();
    // Who may not raise limits (containers without CAP_SYS_RESOURCE) sets the one that there is.
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    let limit = if may_raise_limits() { 1_048_576 } else { most };
    let text = fs::read_to_string(script("start.sh")).unwrap();
    assert!(text.contains("ulimit -n 1048576\n"), "{text}");
    fs::write(&start, text.replace("1048576", &limit.to_string())).unwrap();
    run(Command::new("chmod").arg("755").args([&probe, &start]));
    let mut host = Command::new("unshare");
    host.args([
        "--fork",
        "--kill-child",
        "--pid",
        "--mount",
        "--mount-proc",
        "--uts",
        "--ipc",
        "--net",
        "--cgroup",
    ]);
    host.args(["--", "sh", "-c", HOST]).env("DIR", &at).env("PROBE", &probe).env("START", &start);
    let output = run(&mut host);
    let told = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<&str> = told.lines().collect();
    let [host, pod, agent] = lines.chunks(11).collect::<Vec<_>>()[..] else { panic!("{told}") };
    assert_eq!((host[0], pod[0]), ("pid 1", "the pod"));
    assert_eq!(agent[0], format!("serve --config {}/node-agent.toml", at.display()));
    // The pod is elsewhere in all but the processes and users, and the agent where the host is.
    for index in 1..6 {
        assert_ne!(pod[index], host[index], "{told}");
        assert_eq!(agent[index], host[index], "{told}");
    }
    assert_eq!(pod[6..8], host[6..8], "{told}");
    assert_eq!(agent[6..9], host[6..9], "{told}");
    assert_eq!((host[8], pod[8]), ("the-host", "the-pod"));
    // Neither those of the pod nor those of the first process: containers inherit them.
    let soft = |limits: &str| limits.split(' ').next().unwrap().to_owned();
    assert_eq!((soft(host[9]), soft(pod[9])), ("2048".into(), "1024".into()), "{told}");
    assert!(pod[9].ends_with(" 700"), "{told}");
    assert_eq!(agent[9], format!("{limit} {limit} 0"));
    let mounted = format!("host {}", at.display());
    assert_eq!((host[10], pod[10], agent[10]), (mounted.as_str(), "pod /mnt", mounted.as_str()), "{told}");
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
