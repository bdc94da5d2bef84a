//! The coordinator: knows the nodes, places and queues migrations, and drives each from its check to its end.
//!
//! It never touches a container's memory and never decides who owns a container: it orders the agents, learns
//! what they decided and keeps the record. All that must outlive it is in its store.

#![forbid(unsafe_code)]

mod admit;
mod agent_client;
mod cancel;
mod check;
mod cluster;
mod config;
mod core;
mod drive;
mod evacuate;
mod fill;
mod metrics;
mod place;
mod policy;
mod predict;
mod queue;
mod schedule;
mod server;
#[doc(hidden)]
pub mod simulate;
mod store;
mod telemetry;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use proto::tls::Expect;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;

use crate::agent_client::Agents;
use crate::cluster::{Cluster, Silence};
use crate::config::Config;
use crate::core::Core;
use crate::store::{Store, StoreError};

/// Wrong configuration (sysexits.h, EX_USAGE).
const EX_CONFIG: u8 = 64;

/// How long a probe waits for an answer.
const HEALTH: Duration = Duration::from_secs(4);

/// Schedules migrations of containers between nodes.
#[derive(Debug, Parser)]
#[command(name = "coordinator", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serves the API until it gets SIGTERM or SIGINT.
    Serve {
        /// The configuration, TOML.
        #[arg(long)]
        config: PathBuf,
    },
    /// Asks the coordinator that runs with this configuration whether it serves: exit code 0, else 1. For probes.
    Health {
        /// The configuration, TOML.
        #[arg(long)]
        config: PathBuf,
    },
    /// Fills the store of a state directory with migrations that ended, for measurements.
    #[command(hide = true)]
    Fill {
        /// The state directory.
        #[arg(long)]
        state_dir: PathBuf,
        /// How many.
        #[arg(long)]
        migrations: u64,
    },
}

/// Runs the program `coordinator` with these arguments, the first being the program's name. Answers 0 after a
/// stop that was asked for, 2 for wrong arguments, 64 for a wrong configuration (nothing was bound or created)
/// and 1 for anything else.
#[must_use]
pub fn run(args: Vec<OsString>) -> ExitCode {
    let command = match Arguments::try_parse_from(args) {
        Ok(arguments) => arguments.command,
        Err(error) => {
            // Standard error may be closed: then nobody reads it.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    let path = match &command {
        Command::Serve { config } | Command::Health { config } => config,
        Command::Fill { state_dir, migrations } => {
            let _exporting = telemetry::init(None, "fill");
            return ended(fill::fill(state_dir, *migrations));
        }
    };
    let config = match Config::load(path) {
        Ok(config) => config,
        Err(error) => {
            telemetry::init(None, "");
            tracing::error!("{:#}", anyhow::Error::from(error));
            return ExitCode::from(EX_CONFIG);
        }
    };
    let collector = config.collector.as_ref().filter(|_| matches!(command, Command::Serve { .. }));
    let exporting = telemetry::init(collector, config.tls.identity().name());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_all().build();
    let code = ended(runtime.context("cannot make threads").and_then(|runtime| match command {
        Command::Health { .. } => runtime.block_on(health(&config)),
        _ => runtime.block_on(serve(config)),
    }));
    if let Some(exporting) = exporting {
        exporting.end();
    }
    code
}

fn ended(how: anyhow::Result<()>) -> ExitCode {
    match how {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn health(config: &Config) -> anyhow::Result<()> {
    let address = proto::health::reachable(config.listen).to_string();
    let expect = Expect::Peer(config.tls.identity().clone());
    Ok(proto::health::ask(&address, "gantry.v1.Coordinator", &expect, &config.tls, HEALTH).await?)
}

async fn serve(config: Config) -> anyhow::Result<()> {
    std::fs::create_dir_all(&config.state_dir)
        .with_context(|| format!("cannot make {}", config.state_dir.display()))?;
    #[cfg(feature = "failpoints")]
    proto::failpoints::load(&config.state_dir);
    let path = config.state_dir.join("store");
    let store = Store::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
    let silence = Silence { unknown: config.limits.unknown_after, lease: config.limits.lease };
    let cluster = Cluster::new(silence, store.nodes()?);
    let core = Arc::new(Core {
        store,
        cluster,
        agents: Agents::new(config.tls.clone()),
        settings: config.limits,
        metrics: metrics::Metrics::default(),
        predictions: predict::Predictions::default(),
        wake: Notify::new(),
        choosing: std::sync::Mutex::default(),
    });

    let mut terminate = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for SIGINT")?;
    tokio::spawn(proto::tls::keep_fresh(config.tls.clone()).context("cannot wait for SIGHUP")?);
    let listener = TcpListener::bind(config.listen)
        .await
        .with_context(|| format!("cannot listen on {}", config.listen))?;
    tracing::info!(address = %listener.local_addr()?, name = %config.tls.identity(), "serving");

    if let Some(address) = config.metrics_listen {
        let listener = TcpListener::bind(address).await;
        let listener = listener.with_context(|| format!("cannot listen on {address}"))?;
        let mut registry = metrics::Metrics::registry(&core);
        config.tls.register(&mut registry);
        tokio::spawn(proto::metrics::serve(listener, Arc::new(registry)));
    }

    let (stop, stopped) = tokio::sync::watch::channel(false);
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("stopping");
        stop.send_replace(true);
        // Kept: a dropped sender would look like a stop that was never asked for.
        stop.closed().await;
    });
    // Migrations go on without the coordinator; a drive that is cut off is taken up from the store.
    let queue = tokio::spawn(queue::run(Arc::clone(&core)));
    let evacuations = tokio::spawn(evacuate::run(Arc::clone(&core)));
    let served = tokio::select! {
        served = server::serve(Arc::clone(&core), listener, &config.tls, stopped) => served,
        error = store_fails(Arc::clone(&core)) => Err(error.into()),
    };
    evacuations.abort();
    queue.abort();
    core.store.flush().context("the store failed; the next start goes on from what is on the disk")?;
    served
}

/// Waits until the database has failed, for example because the disk was full. It never takes anything again then, even with
/// room on the disk: whoever supervises this process starts another.
async fn store_fails(core: Arc<core::Core>) -> StoreError {
    let mut ticks = tokio::time::interval(STORE_LOOKS);
    loop {
        ticks.tick().await;
        let core = Arc::clone(&core);
        if let Ok(Err(error)) = tokio::task::spawn_blocking(move || core.store.flush()).await {
            return error;
        }
    }
}

/// How often the database is looked after.
const STORE_LOOKS: Duration = Duration::from_secs(1);
