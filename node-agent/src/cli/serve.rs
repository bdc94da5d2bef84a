//! `serve` and `recover`: the daemon.

use std::fs::File;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use proto::identity::Role;
use proto::tls::{Expect, Tls};
use tokio::runtime::Handle;
use tokio::signal::unix::{SignalKind, signal};

use super::{BAD_CONFIG, complain};
use crate::config::Config;
use crate::registry::{self, Coordinator, Decisions, Registration};
use crate::runtime::{MovingNode, Options, Runtime};
use crate::server::{self, Service};
use crate::session::{self, Migrations};
use crate::transfer::versions_up_to;
use crate::{metrics, network, telemetry};

/// How long open requests may take after the signal to stop.
const DRAIN: Duration = Duration::from_secs(5);

/// How long a probe waits for an answer.
const HEALTH: Duration = Duration::from_secs(4);

/// How long `recover` waits for other agents and the coordinator.
const RECOVER: Duration = Duration::from_secs(60);

pub(super) fn main(path: &Path) -> ExitCode {
    let (config, tls) = match load(path) {
        Ok(loaded) => loaded,
        Err(message) => {
            complain(&message);
            return ExitCode::from(BAD_CONFIG);
        }
    };
    let collector = match config.collector() {
        Ok(collector) => collector,
        Err(error) => {
            complain(&format!("{}: {error}", path.display()));
            return ExitCode::from(BAD_CONFIG);
        }
    };
    let exporting = telemetry::start(collector.as_ref(), &config.name);
    let code = finish(runtime().and_then(|tokio| tokio.block_on(serve(config, tls))));
    if let Some(exporting) = exporting {
        exporting.end();
    }
    code
}

pub(super) fn recover(path: &Path) -> ExitCode {
    let (config, tls) = match load(path) {
        Ok(loaded) => loaded,
        Err(message) => {
            complain(&message);
            return ExitCode::from(BAD_CONFIG);
        }
    };
    telemetry::start(None, &config.name);
    finish(runtime().and_then(|tokio| {
        let node = Node::open(&config, &tls, tokio.handle())?;
        node.migrations.recover_all();
        let end = std::time::Instant::now() + RECOVER;
        while let Some(open) = node.migrations.list().iter().find(|status| !status.phase.is_terminal()) {
            if std::time::Instant::now() > end {
                anyhow::bail!(
                    "migration {} of {} is still open: its peer cannot be reached",
                    open.migration,
                    open.container
                );
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        for status in node.migrations.list() {
            super::answer(&format!("{} {}: {}", status.container, status.phase.name(), status.message));
        }
        Ok(())
    }))
}

/// Whether the agent of this configuration serves.
pub(super) fn health(path: &Path) -> ExitCode {
    let (config, tls) = match load(path) {
        Ok(loaded) => loaded,
        Err(message) => {
            complain(&message);
            return ExitCode::from(BAD_CONFIG);
        }
    };
    finish(runtime().and_then(|runtime| {
        let address = proto::health::reachable(config.listen).to_string();
        let expect = Expect::Peer(tls.identity().clone());
        Ok(runtime.block_on(proto::health::ask(&address, "gantry.v1.NodeAgent", &expect, &tls, HEALTH))?)
    }))
}

fn finish(result: anyhow::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().context("cannot start the async runtime")
}

/// Everything that can be wrong with the configuration, before anything is started.
fn load(path: &Path) -> Result<(Config, Tls), String> {
    let config = Config::load(path).map_err(|error| error.to_string())?;
    let tls = Tls::load(&config.tls_files()).map_err(|error| telemetry::chain(&error))?;
    let identity = tls.identity();
    if identity.role() != Role::Node || identity.name() != config.name {
        return Err(format!(
            "{}: the certificate {} is of {identity}, not of node/{}",
            path.display(),
            config.tls.cert.display(),
            config.name
        ));
    }
    if let Some(bridge) = config.bridge.as_deref().filter(|bridge| !network::has_bridge(bridge)) {
        return Err(format!(
            "{}: there is no bridge {bridge}; make it (ip link add {bridge} type bridge)",
            path.display()
        ));
    }
    Ok((config, tls))
}

/// The parts of a running agent.
struct Node {
    runtime: Arc<Runtime>,
    migrations: Migrations,
    incarnation: u64,
    /// Locked: the state directory is this agent's.
    _lock: File,
}

impl Node {
    fn open(config: &Config, tls: &Tls, handle: &Handle) -> anyhow::Result<Self> {
        let options = Options {
            state_dir: config.state_dir.clone(),
            cgroup_parent: config.cgroup_parent(),
            bridge: config.bridge.clone(),
            exe: PathBuf::from("/proc/self/exe"),
        };
        let runtime = Arc::new(Runtime::open(options).context("cannot open the runtime")?);
        let lock = lock(&config.state_dir)?;
        runtime.recover().context("cannot remove what an earlier agent left")?;
        let incarnation = uuid::Uuid::new_v4().as_u64_pair().0.max(1);
        let coordinator = config.coordinator().map(|address| Coordinator { address, tls: tls.clone() });
        let migrations = Migrations::open(
            session::Options {
                state_dir: config.state_dir.clone(),
                tls: tls.clone(),
                peer_address: config.peer_address(),
                incarnation,
                bandwidth: config.bandwidth.map_or(0, std::num::NonZeroU64::get),
                bulk_streams: config.bulk_streams,
                versions: versions_up_to(config.newest_protocol_version),
            },
            Arc::new(MovingNode::new(Arc::clone(&runtime))),
            Arc::new(Decisions::new(coordinator, handle.clone())),
        )?;
        Ok(Self { runtime, migrations, incarnation, _lock: lock })
    }
}

/// One agent a state directory.
fn lock(state_dir: &Path) -> anyhow::Result<File> {
    let path = state_dir.join("lock");
    let file = File::options().create(true).truncate(false).write(true).open(&path);
    let file = file.with_context(|| format!("cannot open {}", path.display()))?;
    file.try_lock().with_context(|| format!("another agent uses {}", state_dir.display()))?;
    Ok(file)
}

async fn serve(config: Config, tls: Tls) -> anyhow::Result<()> {
    // Both ports are taken before anything else: an agent that cannot be reached touches nothing.
    let listener = tokio::net::TcpListener::bind(config.listen)
        .await
        .with_context(|| format!("cannot listen on {}", config.listen))?;
    let peers = TcpListener::bind(config.peer_listen)
        .with_context(|| format!("cannot listen on {}", config.peer_listen))?;
    let monitored = match config.metrics_listen {
        Some(address) => {
            let listener = tokio::net::TcpListener::bind(address).await;
            Some(listener.with_context(|| format!("cannot listen on {address}"))?)
        }
        None => None,
    };
    let node = Node::open(&config, &tls, &Handle::current())?;
    if let Some(listener) = monitored {
        let mut registry = metrics::registry(Arc::clone(&node.runtime), node.migrations.clone());
        tls.register(&mut registry);
        tokio::spawn(proto::metrics::serve(listener, Arc::new(registry)));
    }
    node.migrations.recover_all();
    node.migrations.serve(peers).context("cannot serve other agents")?;

    let mut terminate = signal(SignalKind::terminate()).context("cannot wait for signals")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for signals")?;
    tokio::spawn(proto::tls::keep_fresh(tls.clone()).context("cannot wait for signals")?);
    let registered = config.coordinator().map(|address| {
        let registration = Registration {
            node: config.name.clone(),
            agent_address: config.agent_address(),
            peer_address: config.peer_address(),
            incarnation: node.incarnation,
            labels: config.labels.clone(),
            runtime: Arc::clone(&node.runtime),
            migrations: node.migrations.clone(),
        };
        tokio::spawn(registry::keep(Coordinator { address, tls: tls.clone() }, registration))
    });
    let service = Service {
        node: config.name.clone(),
        peer_address: config.peer_address(),
        incarnation: node.incarnation,
        runtime: Arc::clone(&node.runtime),
        migrations: node.migrations.clone(),
    };
    tracing::info!(node = config.name, listen = %config.listen, peer_listen = %config.peer_listen, "serving");
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let served = server::serve(service, listener, &tls, async {
        let _ = stopped.await;
    });
    tokio::pin!(served);
    tokio::select! {
        ended = &mut served => return ended.map_err(|error| anyhow::anyhow!(error)).context("cannot serve"),
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("stopping; containers keep running");
    if let Some(task) = registered {
        task.abort();
    }
    let _ = stop.send(());
    // Streams that a client keeps open do not keep the agent.
    let _ = tokio::time::timeout(DRAIN, served).await;
    Ok(())
}
