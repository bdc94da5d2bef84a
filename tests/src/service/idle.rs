//! What daemons cost that have nothing to do.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde::Serialize;

use super::usage::Usage;
use crate::cluster::{Cluster, wait_for};
use crate::faults::RESTART;
use crate::stage::NODES;

/// What one daemon cost.
#[derive(Debug, Serialize)]
pub struct Figures {
    name: String,
    rss_mib: f64,
    pss_mib: f64,
    cpu_ms_per_minute: f64,
    threads: usize,
    wakeups_per_second: f64,
    /// Those of threads that woke at all, by their names.
    by_thread: BTreeMap<String, f64>,
}

/// Looks at two agents, one with a container that sleeps and one with none, and at the coordinator, for so many seconds.
///
/// # Errors
/// When hosts cannot be made, or a daemon ends.
pub fn measure(seconds: u32) -> Result<Vec<Figures>> {
    let cluster = Cluster::up()?;
    cluster.run_container("idle", NODES[0], "10.77.0.100/24", &[], &["/bin/sleep", "infinity"])?;
    wait_for("the container is seen", RESTART, || {
        let object = cluster.must(["get", "containers", "idle", "-o", "json"]).ok()?.json().ok()?;
        (object.pointer("/status/state")? == "Running").then_some(())
    })?;
    let daemons = [
        (NODES[0], "agent, one idle container"),
        (NODES[1], "agent, no container"),
        ("coordinator", "coordinator, two nodes"),
    ];
    let look = |host: &str| Usage::of(cluster.daemon(host).with_context(|| format!("no daemon on {host}"))?);
    let before = daemons.iter().map(|(host, _)| look(host)).collect::<Result<Vec<_>>>()?;
    std::thread::sleep(Duration::from_secs(seconds.into()));
    let mut all = Vec::new();
    for ((host, name), before) in daemons.iter().zip(&before) {
        all.push(figures(name, before, &look(host)?, f64::from(seconds)));
    }
    cluster.passed();
    Ok(all)
}

fn figures(name: &str, before: &Usage, after: &Usage, seconds: f64) -> Figures {
    let slept = after.sleeps_since(before);
    let by_thread: BTreeMap<_, _> =
        slept.into_iter().map(|(name, times)| (name, times as f64 / seconds)).collect();
    Figures {
        name: name.to_owned(),
        rss_mib: after.rss_mib,
        pss_mib: after.pss_mib,
        cpu_ms_per_minute: (after.cpu_seconds - before.cpu_seconds) * 60e3 / seconds,
        threads: after.threads,
        wakeups_per_second: by_thread.values().sum(),
        by_thread: by_thread.into_iter().filter(|(_, rate)| *rate > 0.0).collect(),
    }
}

/// A table.
#[must_use]
pub fn text(rows: &[Figures]) -> String {
    let mut text = format!(
        "{:<28} {:>8} {:>8} {:>12} {:>8} {:>10}\n",
        "idle", "RSS MiB", "PSS MiB", "CPU ms/min", "threads", "wakeups/s"
    );
    for row in rows {
        text.push_str(&format!(
            "{:<28} {:>8.1} {:>8.1} {:>12.0} {:>8} {:>10.1}\n",
            row.name, row.rss_mib, row.pss_mib, row.cpu_ms_per_minute, row.threads, row.wakeups_per_second
        ));
        let of = |(name, rate): (&String, &f64)| format!("{name} {rate:.1}");
        text.push_str(&format!("    {}\n", row.by_thread.iter().map(of).collect::<Vec<_>>().join(", ")));
    }
    text
}
