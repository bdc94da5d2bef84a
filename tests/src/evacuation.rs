//! A node is drained with everything that runs on it, and filled again.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::cluster::{Cluster, Finished, wait_for};
use crate::workload::{HOLDER_PROGRAM, PYTHON_PROGRAM, SERVED_PROGRAM, python, redis};

/// Debug builds pause longer than the default allows.
pub(crate) const POLICY: &str = "
apiVersion: gantry.dev/v1alpha1
kind: MigrationPolicy
metadata: {name: patient}
spec:
  limits: {maxDowntime: 5s, timeout: 2m}
";

/// Containers that can move.
const MOVABLE: [&str; 3] = ["redis", "python", "served"];

fn exits(finished: &Finished, code: i32) -> Result<()> {
    ensure!(finished.code == code, "expected exit code {code}: {finished:?}");
    Ok(())
}

/// The items of an evacuation's object: container and state, in order.
fn items(object: &Value) -> Result<Vec<(String, String)>> {
    let items = object.pointer("/status/items").and_then(Value::as_array).context("no items")?;
    let text = |item: &Value, field: &str| item[field].as_str().unwrap_or_default().to_owned();
    let mut all: Vec<_> = items.iter().map(|item| (text(item, "container"), text(item, "state"))).collect();
    all.sort();
    Ok(all)
}

/// Starts the container that cannot move, and waits until it holds what it cannot move with.
fn hold_a_lease(cluster: &Cluster) -> Result<()> {
    let command = ["/usr/bin/python3", "/data/program.py", "lease"];
    let bundle = cluster.make_bundle("held", &["/data"], &command)?;
    fs::write(bundle.join("rootfs/data/program.py"), HOLDER_PROGRAM)?;
    cluster.start_bundle("held", "node-a", "10.77.0.103/24", &bundle)?;
    wait_for("it holds a lease", Duration::from_secs(20), || {
        let logs = cluster.migrate(["logs", "held"]).ok()?;
        logs.stdout.contains("holds lease").then_some(())
    })
}

/// Three nodes, four containers of which one cannot move: plan, drain, move back. Connections and data survive both.
///
/// # Errors
/// When anything is not as it should be.
pub fn drain() -> Result<()> {
    let cluster = Cluster::up_with(3, &[])?;
    let keys = "4096";
    let redis_at = redis::start(&cluster, "redis", "10.77.0.100", 4096)?.to_string();
    let python_at = python::start(&cluster, "python", "10.77.0.101", PYTHON_PROGRAM, &[], None)?.to_string();
    let served_at = python::start(&cluster, "served", "10.77.0.102", SERVED_PROGRAM, &[], None)?.to_string();
    hold_a_lease(&cluster)?;

    let policy = cluster.dir().join("policy.yaml");
    fs::write(&policy, POLICY)?;
    let policy = policy.to_str().unwrap_or_default();
    let applied = |wanted: &str| -> Result<()> {
        let said = cluster.must(["apply", "-f", policy])?.stdout;
        ensure!(said == format!("migrationpolicy/patient {wanted}\n"), "{said:?}");
        Ok(())
    };
    applied("created")?;
    applied("unchanged")?;

    let clients = [
        cluster.client(&["redis", &redis_at, keys, "4"])?,
        cluster.client(&["lines", &python_at, "2"])?,
        cluster.client(&["lines", &served_at, "2"])?,
    ];
    // The plan says who stays and why, and changes nothing.
    let plan = cluster.migrate(["drain", "node-a", "--dry-run", "-o", "json"])?;
    exits(&plan, 3)?;
    let state = |name: &str, state: &str| (name.to_owned(), state.to_owned());
    let planned = items(&plan.json()?)?;
    let waits: Vec<_> = ["python", "redis", "served"].iter().map(|name| state(name, "Waiting")).collect();
    ensure!(planned == [vec![state("held", "Stays")], waits].concat(), "{planned:?}");
    ensure!(plan.stdout.contains("lease"), "{plan:?}");
    let node = cluster.must(["get", "nodes", "node-a", "-o", "json"])?.json()?;
    ensure!(node.pointer("/spec/cordoned") == Some(&Value::Bool(false)), "{node}");

    let drained = cluster.migrate(["drain", "node-a", "--policy", "patient", "--deadline", "5m"])?;
    exits(&drained, 4)?;
    ensure!(drained.stderr.contains("1 of 4 containers stay (node-a stays cordoned)"), "{drained:?}");
    let held = drained.stderr.lines().find(|line| line.trim_start().starts_with("held: "));
    ensure!(held.is_some_and(|line| line.contains("pid 1 fd ") && line.contains("lease")), "{drained:?}");
    println!("{}{}", drained.stdout, drained.stderr);
    ensure!(cluster.node_of("held")? == "node-a", "held has moved");
    for name in MOVABLE {
        ensure!(cluster.node_of(name)? != "node-a", "{name} has not moved");
    }
    let mut clients = clients;
    for client in &mut clients {
        client.progress()?;
    }

    // What is printed is what would be applied: an evacuation that is over is not begun again by it.
    let name = "drain-node-a-1";
    let file = cluster.dir().join("evacuation.yaml");
    fs::write(&file, cluster.must(["get", "evacuations", name, "-o", "yaml"])?.stdout)?;
    let said = cluster.must(["apply", "-f", file.to_str().unwrap_or_default()])?.stdout;
    ensure!(said == format!("evacuation/{name} unchanged\n"), "{said:?}");
    let waited = cluster.migrate(["wait", &format!("evacuation/{name}"), "--for=condition=Succeeded"])?;
    exits(&waited, 4)?;
    let migration = cluster.must(["get", "migrations", "redis-1", "-o", "json"])?.json()?;
    let origin = migration.pointer("/status/effectivePolicy/origins/maxDowntime");
    ensure!(origin == Some(&Value::from("policy/patient")), "{migration}");

    let left = cluster.node_of("served")?;
    // Back, at a pace that suits debug builds.
    fs::write(policy, POLICY.replace("name: patient", "name: everybody"))?;
    cluster.must(["apply", "-f", policy])?;
    let back = cluster.must(["uncordon", "node-a", "--move-back"])?;
    println!("{}", back.stdout);
    for name in MOVABLE {
        ensure!(cluster.node_of(name)? == "node-a", "{name} is not back");
    }
    // What it has just left there is no obstacle to its return.
    cluster.must(["check", "served", "--to", &left])?;
    for client in clients {
        let verdict = client.verdict()?;
        ensure!(verdict.replies > 50, "too few replies to mean anything: {verdict:?}");
    }
    cluster.client_once(&["redis-verify", &redis_at, keys])?;
    cluster.passed();
    Ok(())
}
