//! Agents of which one was updated and the other was not yet.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::cluster::wait_for;
use crate::stage::Stage;

/// The version before the newest one, which does not tell when a container answered first.
const BEFORE: u64 = 3;

/// A container moves from the older agent to the newer one and back; what only the newer one knows is told when both do.
pub(crate) fn adjacent() -> Result<()> {
    let mut stage = Stage::new()?;
    let newest = stage.versions("node-a")?.first().copied().unwrap_or_default();
    ensure!(newest == BEFORE + 1, "the version before {newest} is meant to be tested here");
    let told =
        stage.first_packet()?.context("both agents know the newest version, and no first packet is told")?;
    println!("first packet {told} ms after the pause");

    let config = stage.cluster.dir().join("hosts/node-a/node-agent.toml");
    let text = fs::read_to_string(&config)?;
    fs::write(&config, format!("newest_protocol_version = {BEFORE}\n{text}"))?;
    let old = stage.cluster.kill_daemon("node-a")?;
    stage.cluster.wait_restarted("node-a", old)?;
    wait_for("node-a speaks the older version", Duration::from_secs(20), || {
        (stage.versions("node-a").ok()? == [BEFORE]).then_some(())
    })?;
    stage.cluster.wait_ready()?;
    for direction in ["there", "back"] {
        stage.clean_move()?;
        ensure!(stage.first_packet()?.is_none(), "{direction}: an agent that cannot tell has told");
    }
    stage.passed()
}

impl Stage {
    /// The versions that a node's agent speaks, as the coordinator knows them.
    fn versions(&self, node: &str) -> Result<Vec<u64>> {
        let node = self.cluster.must(["get", "nodes", node, "-o", "json"])?.json()?;
        let versions = node.pointer("/status/facts/peerProtocolVersions").and_then(Value::as_array);
        let versions = versions.with_context(|| format!("no versions in {node}"))?;
        Ok(versions.iter().filter_map(Value::as_u64).collect())
    }

    /// What the last migration's record says about the first packet, milliseconds.
    fn first_packet(&self) -> Result<Option<f64>> {
        let record = self.cluster.must(["get", "migrations", &self.last(), "-o", "json"])?.json()?;
        let downtime =
            record.pointer("/status/downtime").with_context(|| format!("no downtime in {record}"))?;
        Ok(downtime.get("firstPacketMs").and_then(Value::as_f64))
    }
}
