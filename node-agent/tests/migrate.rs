//! Whole migrations between two agents of this machine, without a coordinator. Needs root.

#![allow(clippy::unwrap_used, reason = "a failed step is the test's failure")]

mod common;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::rc::Rc;

use common::agent::{Agent, Ca, migrate};
use common::{Lan, bundle, unique, wait_for};
use proto::v1;

/// Writes its number, CLOCK_MONOTONIC and its uptime, and keeps the last one in a file.
const WITNESS: &str = "
import os, time
n = 0
while True:
    print(n, time.monotonic_ns(), time.clock_gettime_ns(time.CLOCK_BOOTTIME), flush=True)
    open('/new', 'w').write(str(n)); os.rename('/new', '/data'); n += 1; time.sleep(0.01)
";

fn rows(agent: &Agent, container: &str) -> Vec<[u64; 3]> {
    let log = agent.dir.path().join("state/containers").join(container).join("log");
    let text = fs::read_to_string(log).unwrap_or_default();
    let row = |line: &str| -> [u64; 3] {
        let numbers: Vec<u64> =
            line.split(' ').map(|n| n.parse().unwrap_or_else(|_| panic!("{line}"))).collect();
        numbers.try_into().unwrap()
    };
    text.lines().map(row).collect()
}

async fn there_and_back(clocks: &[&str]) {
    let lan = Lan::new();
    let ca = Rc::new(Ca::new());
    let bridge = format!("bridge = \"{}\"", lan.bridge);
    let mut one = Agent::named("node-a", Rc::clone(&ca), &bridge);
    let mut two = Agent::named("node-b", ca, &bridge);
    one.start();
    let exe = env!("CARGO_BIN_EXE_node-agent");
    let mut command = Command::new("unshare");
    if clocks.is_empty() {
        command = Command::new(exe);
    } else {
        command.args(["--fork", "--kill-child", "--time"]).args(clocks).arg(exe);
    }
    two.start_with(command);
    let mut at_one = one.client("root.admin.gantry").await;
    let mut at_two = two.client("root.admin.gantry").await;

    let name = unique("w");
    let bundle = bundle(one.dir.path(), &["python3", "-c", WITNESS], |_| {});
    let request = v1::RunContainerRequest {
        name: name.clone(),
        bundle: bundle.to_str().unwrap().to_owned(),
        ip: format!("{}/24", lan.address(2)),
        ..Default::default()
    };
    at_one.run_container(request).await.unwrap();
    wait_for("it runs", || rows(&one, &name).len() > 20);

    migrate((&one, &mut at_one), (&two, &mut at_two), &name, 1).await;
    let moved = rows(&two, &name).len();
    assert!(moved > 20, "the log travels");
    wait_for("it runs on", || rows(&two, &name).len() > moved + 20);
    let list = at_one.list_containers(v1::ListAgentContainersRequest {}).await.unwrap().into_inner();
    assert!(list.containers.is_empty(), "{:?}", list.containers);
    let data = two.dir.path().join("state/bundles").join(&name).join("rootfs/data");
    assert!(fs::read_to_string(data).unwrap().parse::<usize>().unwrap() >= moved);

    migrate((&two, &mut at_two), (&one, &mut at_one), &name, 2).await;
    let back = rows(&one, &name).len();
    wait_for("it runs on at home", || rows(&one, &name).len() > back + 20);

    let rows = rows(&one, &name);
    for (index, pair) in rows.windows(2).enumerate() {
        let ([n, monotonic, boot], [m, later, booted]) = (pair[0], pair[1]);
        assert_eq!((n, m), (index as u64, index as u64 + 1), "nothing is written twice or lost");
        let (took, aged) = (later.checked_sub(monotonic), booted.checked_sub(boot));
        for step in [took, aged] {
            let step = step.unwrap_or_else(|| panic!("clocks went back: {pair:?}"));
            assert!(step < 2_000_000_000, "clocks jumped: {pair:?}");
        }
    }
    let delete = v1::DeleteContainerRequest { name, force: true };
    at_one.delete_container(delete).await.unwrap();
    assert!(Path::new("/sys/class/net").join(&lan.bridge).exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_moves_there_and_back() {
    there_and_back(&[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn it_moves_between_hosts_whose_clocks_differ() {
    there_and_back(&["--monotonic", "5000", "--boottime", "7000"]).await;
}
