//! Programs of python's that answer on TCP port 7000.

use std::fs;
use std::net::SocketAddr;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::cluster::Cluster;

/// Starts `program` as container `name` on the first node; answers where it serves. With `descriptors` it may have so
/// many.
///
/// # Errors
/// When it does not start.
pub fn start(
    cluster: &Cluster,
    name: &str,
    ip: &str,
    program: &str,
    args: &[&str],
    descriptors: Option<u32>,
) -> Result<SocketAddr> {
    let command = [&["/usr/bin/python3", "/data/program.py"], args].concat();
    let bundle = cluster.make_bundle(name, &["/data"], &command)?;
    fs::write(bundle.join("rootfs/data/program.py"), program)?;
    if let Some(count) = descriptors {
        let path = bundle.join("config.json");
        let mut config: Value = serde_json::from_slice(&fs::read(&path)?)?;
        let process = config.get_mut("process").context("the bundle runs nothing")?;
        process["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "soft": count, "hard": count}]);
        fs::write(&path, config.to_string())?;
    }
    cluster.start_bundle(name, "node-a", &format!("{ip}/24"), &bundle)?;
    let address = format!("{ip}:7000").parse()?;
    cluster.wait_for_port(address)?;
    Ok(address)
}
