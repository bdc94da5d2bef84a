//! Brings the hosts up.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ChildStdin;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use proto::identity::{Identity, Role as Peer};
use proto::v1::{ListNodesRequest, NodeState};

use super::config;
use super::down;
use super::forward;
use super::host::{self, NewHost};
use super::lan;
use super::plan::{self, Host, LAN, Layout, Role};
use super::preflight;
use super::state::{Lock, State};
use super::supervise::Orders;
use crate::api::Api;
use crate::exit::Failure;
use crate::pki::Authority;
use crate::settings::Settings;

/// How long the daemons may take to find one another.
const READY_LIMIT: Duration = Duration::from_secs(30);
/// How long the certificates of the hosts are valid.
const CERTIFICATES: Duration = Duration::from_secs(365 * 86_400);

/// Whether the hosts outlive the program that made them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lifetime {
    /// Until `dev down`.
    UntilDown,
    /// At most as long as the [`Running`] that [`up`] answers.
    Tied,
}

/// Hosts that are up.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) state: State,
    /// Tied hosts end when these close.
    _lifelines: Vec<ChildStdin>,
}

/// Makes the hosts and waits until every node is Ready.
///
/// After Err nothing runs; the files stay, so that the logs can be read, and `dev down` removes them.
pub(crate) async fn up(
    layout: &Layout,
    nodes: u8,
    bulk_streams: u32,
    lifetime: Lifetime,
) -> Result<Running, Failure> {
    let tried = format!("bring up hosts in {}", layout.dir().display());
    preflight::check(&tried)?;
    let local = |error: &anyhow::Error| Failure::local(&tried, error);
    let lock = reserve(layout).map_err(|error| local(&error))?;
    let mut state = State { bulk_streams, ..State::new(nodes) };
    let made = make(layout, &mut state, lifetime);
    let outcome = match made {
        Ok(lifelines) => wait_ready(layout, &state).await.map(|()| lifelines),
        Err(error) => Err(error),
    };
    drop(lock);
    match outcome {
        Ok(lifelines) => Ok(Running { state, _lifelines: lifelines }),
        Err(error) => {
            let mut failure = local(&error);
            failure.details = last_words(layout);
            failure.advice = format!(
                "the logs are in {}; `migrate dev down --dir {}` removes them",
                layout.host("").display(),
                layout.dir().display()
            );
            if let Err(error) = down::stop(&state) {
                failure.details.push(format!("and cannot remove what was made: {error:#}"));
            }
            Err(failure)
        }
    }
}

/// Creates the directory and takes its lock; refuses one that has hosts.
fn reserve(layout: &Layout) -> Result<Lock> {
    fs::create_dir_all(layout.dir()).with_context(|| format!("create {}", layout.dir().display()))?;
    let lock = Lock::take(layout)?;
    if let Some(state) = State::load(layout)? {
        let what = if state.lives() {
            "hosts are up there already"
        } else {
            "hosts that have ended were made there"
        };
        bail!("{what}; `migrate dev down --dir {}` removes them", layout.dir().display());
    }
    Ok(lock)
}

fn make(layout: &Layout, state: &mut State, lifetime: Lifetime) -> Result<Vec<ChildStdin>> {
    state.save(layout)?;
    fs::create_dir_all(layout.local())?;
    let hosts = plan::hosts(state.nodes);
    issue(layout, &hosts)?;
    let mut lifelines = Vec::new();
    let lan = create_host(layout, state, LAN)?;
    let lan_pid = lan.process.pid;
    lan::create(lan_pid)?;
    let mut waiting = vec![(lan, Vec::new())];
    for host in &hosts {
        let new = create_host(layout, state, &host.name)?;
        lan::attach(lan_pid, host, new.process.pid)?;
        let programs = config::program(layout, state, host)?.into_iter().collect();
        waiting.push((new, programs));
    }
    // Only now, when all hosts can reach each other.
    for (new, programs) in waiting {
        let orders = Orders { dir: layout.local(), programs, lifeline: lifetime == Lifetime::Tied };
        lifelines.push(new.start(&orders)?);
    }
    let coordinator = state.host(plan::COORDINATOR).context("no coordinator")?;
    let forwarder = forward::create(layout, coordinator, plan::coordinator().at(plan::COORDINATOR_PORT))?;
    state.forwarder = Some(forwarder.process);
    state.coordinator = Some(forwarder.address.to_string());
    state.save(layout)?;
    match lifetime {
        Lifetime::Tied => lifelines.push(forwarder.tie()),
        Lifetime::UntilDown => {
            lifelines.clear();
            forwarder.stay()?;
        }
    }
    Ok(lifelines)
}

/// Makes a host and records it; its first process does nothing before it is recorded.
fn create_host(layout: &Layout, state: &mut State, name: &str) -> Result<NewHost> {
    let new = host::create(layout, name)?;
    state.hosts.push((name.to_owned(), new.process));
    state.save(layout)?;
    Ok(new)
}

fn issue(layout: &Layout, hosts: &[Host]) -> Result<()> {
    let authority = Authority::init(&layout.authority())?;
    let mut peers = vec![(Peer::Admin, "admin"), (Peer::Viewer, "viewer")];
    for host in hosts {
        match host.role {
            Role::Node => peers.push((Peer::Node, &host.name)),
            Role::Coordinator => peers.push((Peer::Coordinator, &host.name)),
            Role::Client => {}
        }
    }
    for (role, name) in peers {
        authority.issue(&Identity::new(role, name)?, CERTIFICATES, &layout.credentials(name))?;
    }
    Ok(())
}

/// The settings that reach the coordinator from the machine.
pub(crate) fn settings(layout: &Layout, state: &State) -> Settings {
    Settings {
        coordinator: state.coordinator.clone(),
        tls_dir: Some(layout.credentials("admin")),
        ..Settings::default()
    }
}

async fn wait_ready(layout: &Layout, state: &State) -> Result<()> {
    let settings = settings(layout, state);
    let start = Instant::now();
    loop {
        let seen = ready_nodes(&settings).await;
        match &seen {
            Ok(ready) if *ready >= usize::from(state.nodes) => return Ok(()),
            _ if start.elapsed() < READY_LIMIT => tokio::time::sleep(Duration::from_millis(50)).await,
            Ok(ready) => {
                bail!("{ready} of {} nodes are Ready after {} s", state.nodes, READY_LIMIT.as_secs())
            }
            Err(failure) => bail!("after {} s: {}", READY_LIMIT.as_secs(), failure.happened),
        }
    }
}

async fn ready_nodes(settings: &Settings) -> Result<usize, Failure> {
    let mut api = Api::connect(settings).await?;
    let nodes = api.nodes(ListNodesRequest::default()).await?;
    Ok(nodes.iter().filter(|node| node.state() == NodeState::Ready).count())
}

/// The last lines of every host's logs: what failed is usually there.
pub(crate) fn last_words(layout: &Layout) -> Vec<String> {
    let hosts = children(&layout.host(""));
    let logs = hosts.iter().flat_map(|host| children(host));
    let mut words = Vec::new();
    for log in logs.filter(|path| path.extension().is_some_and(|e| e == "log")) {
        let text = fs::read_to_string(&log).unwrap_or_default();
        if let Some(line) = text.lines().rev().find(|line| !line.trim().is_empty()) {
            let name = log.strip_prefix(layout.dir()).unwrap_or(&log);
            words.push(format!("{}: {line}", name.display()));
        }
    }
    words
}

fn children(dir: &Path) -> Vec<PathBuf> {
    let mut all: Vec<_> =
        fs::read_dir(dir).map(|entries| entries.flatten().map(|e| e.path()).collect()).unwrap_or_default();
    all.sort();
    all
}
