//! What the dashboard, the alerts and the documentation name must be there to be seen.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

use crate::cluster::{Cluster, wait_for};

/// 64 MiB that cannot be compressed, and 8 more of which some 30 MB/s are written: its rounds last long enough to be seen.
const PROGRAM: &str = "import os, random, time
kept = os.urandom(64 << 20)
hot = bytearray(os.urandom(8 << 20))
while True:
    for _ in range(40): hot[random.randrange(2048) << 12] = random.randrange(256)
    time.sleep(0.005)
";
/// Where the coordinator and the nodes serve metrics.
pub(crate) const ADDRESSES: [&str; 3] = ["10.77.0.2:7446", "10.77.0.11:7446", "10.77.0.12:7446"];

/// Moves a container slowly and looks at all metrics meanwhile.
pub(crate) fn what_is_named_is_exported() -> Result<()> {
    let cluster = Cluster::up()?;
    cluster.run_container("busy", "node-a", "10.77.0.100/24", &[], &["/usr/bin/python3", "-c", PROGRAM])?;
    let named = named()?;
    ensure!(named.len() > 12, "only {named:?} are named");
    let moving =
        cluster.start(["move", "busy", "--to", "node-b", "--bandwidth", "20MB", "--max-downtime", "2s"])?;
    let mut seen = BTreeSet::new();
    let missing = wait_for("every metric that is named", Duration::from_secs(30), || {
        for address in ADDRESSES {
            seen.extend(exported(&scrape(&cluster, address).ok()?));
        }
        named.is_subset(&seen).then_some(())
    });
    if let Err(error) = missing {
        let names: Vec<&String> = named.difference(&seen).collect();
        bail!("{error}; never seen: {names:?}; the move: {:?}", moving.finish());
    }
    let ended = moving.finish()?;
    ensure!(ended.code == 0, "the move ended with {}: {}", ended.code, ended.stderr);
    for (address, line) in [
        (
            ADDRESSES[1],
            "gantry_agent_migrations_total{role=\"source\",result=\"succeeded\",reason=\"Committed\"} 1",
        ),
        (ADDRESSES[2], "gantry_containers{state=\"running\"} 1"),
    ] {
        wait_for(line, Duration::from_secs(20), || {
            scrape(&cluster, address).ok()?.contains(line).then_some(())
        })?;
    }
    cluster.passed();
    Ok(())
}

pub(crate) fn scrape(cluster: &Cluster, address: &str) -> Result<String> {
    let url = format!("http://{address}/metrics");
    let answer = cluster.must(["dev", "exec", "client", "--", "curl", "-sf", &url])?;
    Ok(answer.stdout)
}

/// Names of metrics, without what histograms and counters add.
fn exported(text: &str) -> BTreeSet<String> {
    text.lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split(['{', ' ']).next())
        .map(base)
        .collect()
}

fn base(name: &str) -> String {
    let suffix = ["_bucket", "_count", "_sum"].into_iter().find_map(|suffix| name.strip_suffix(suffix));
    suffix.unwrap_or(name).to_owned()
}

/// The names in deploy/monitoring and docs/operations.md.
fn named() -> Result<BTreeSet<String>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("no directory above")?;
    let mut names = BTreeSet::new();
    for file in ["deploy/monitoring/dashboard.json", "deploy/monitoring/alerts.yaml", "docs/operations.md"] {
        let text = std::fs::read_to_string(root.join(file)).with_context(|| file.to_owned())?;
        let words = text.split(|c: char| !(c.is_ascii_lowercase() || c == '_'));
        names.extend(words.filter(|word| word.starts_with("gantry_")).map(base));
    }
    Ok(names)
}
