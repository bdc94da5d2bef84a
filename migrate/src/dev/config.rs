//! The configuration files of the daemons that run on the hosts.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde::Serialize;

use super::host::own_program;
use super::plan::{self, Host, Layout, NODE_BRIDGE, Role};
use super::state::State;
use super::supervise::Program;

#[derive(Serialize)]
struct Coordinator {
    listen: String,
    tls_dir: PathBuf,
    state_dir: PathBuf,
}

#[derive(Serialize)]
struct Agent {
    listen: String,
    peer_listen: String,
    coordinator: String,
    tls_dir: PathBuf,
    state_dir: PathBuf,
    cgroup: String,
    bridge: String,
}

/// Writes the configuration of what runs on `host` and answers how to start it; nothing on a client.
pub(crate) fn program(layout: &Layout, state: &State, host: &Host) -> Result<Option<Program>> {
    let tls_dir = layout.credentials(&host.name);
    let state_dir = layout.local().join("state");
    let (name, text) = match host.role {
        Role::Client => return Ok(None),
        Role::Coordinator => {
            let listen = host.at(plan::COORDINATOR_PORT).to_string();
            ("coordinator", toml::to_string(&Coordinator { listen, tls_dir, state_dir })?)
        }
        Role::Node => {
            let agent = Agent {
                listen: host.at(plan::AGENT_PORT).to_string(),
                peer_listen: host.at(plan::PEER_PORT).to_string(),
                coordinator: plan::coordinator().at(plan::COORDINATOR_PORT).to_string(),
                tls_dir,
                state_dir,
                cgroup: format!("{}/{}", state.cgroup(), host.name),
                bridge: NODE_BRIDGE.into(),
            };
            ("node-agent", toml::to_string(&agent)?)
        }
    };
    let file = format!("{name}.toml");
    write(&layout.host(&host.name).join(&file), &text)?;
    let text = |path: &Path| path.to_str().map(str::to_owned).context("the path is not UTF-8");
    let argv = vec![
        text(&own_program()?)?,
        format!("__{name}"),
        "serve".into(),
        "--config".into(),
        text(&layout.local().join(file))?,
    ];
    Ok(Some(Program { name: name.into(), argv }))
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("write {}", path.display()))
}
