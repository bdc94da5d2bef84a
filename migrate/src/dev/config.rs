//! The configuration files of the daemons that run on the hosts.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use proto::tls::TlsFiles;
use serde::Serialize;

use super::host::own_program;
use super::plan::{self, Host, Layout, NODE_BRIDGE, Role};
use super::state::State;
use super::supervise::Program;

#[derive(Serialize)]
struct Coordinator {
    listen: String,
    metrics_listen: String,
    tls_dir: PathBuf,
    state_dir: PathBuf,
}

#[derive(Serialize)]
struct Agent {
    name: String,
    state_dir: PathBuf,
    listen: String,
    peer_listen: String,
    metrics_listen: String,
    coordinator: String,
    bridge: String,
    cgroup_parent: String,
    bulk_streams: u32,
    tls: Tls,
}

#[derive(Serialize)]
struct Tls {
    ca: PathBuf,
    cert: PathBuf,
    key: PathBuf,
}

/// Writes the configuration of what runs on `host` and answers how to start it; nothing on a client.
pub(crate) fn program(layout: &Layout, state: &State, host: &Host) -> Result<Option<Program>> {
    let tls_dir = layout.credentials(&host.name);
    let state_dir = layout.local().join("state");
    let (name, text) = match host.role {
        Role::Client => return Ok(None),
        Role::Coordinator => {
            let listen = host.at(plan::COORDINATOR_PORT).to_string();
            let metrics_listen = host.at(plan::METRICS_PORT).to_string();
            let coordinator = Coordinator { listen, metrics_listen, tls_dir, state_dir };
            ("coordinator", toml::to_string(&coordinator)?)
        }
        Role::Node => {
            let files = TlsFiles::in_dir(&tls_dir);
            let agent = Agent {
                name: host.name.clone(),
                state_dir,
                listen: host.at(plan::AGENT_PORT).to_string(),
                peer_listen: host.at(plan::PEER_PORT).to_string(),
                metrics_listen: host.at(plan::METRICS_PORT).to_string(),
                coordinator: plan::coordinator().at(plan::COORDINATOR_PORT).to_string(),
                bridge: NODE_BRIDGE.into(),
                cgroup_parent: format!("{}{}", state.cgroup_prefix(), host.name),
                bulk_streams: state.bulk_streams,
                tls: Tls { ca: files.ca, cert: files.cert, key: files.key },
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
