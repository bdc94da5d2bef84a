//! The configuration file. All of it is checked before a port is bound.

use std::fmt::Display;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use proto::identity::Role;
use proto::telemetry::{Collector, NoCollector};
use proto::tls::{Tls, TlsError, TlsFiles};
use serde::Deserialize;

use crate::schedule::Limits;

/// The file as written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    /// The coordinator's name; must be its certificate's when given.
    name: Option<String>,
    listen: String,
    state_dir: PathBuf,
    /// Holds `ca.crt`, `tls.crt` and `tls.key`.
    tls_dir: PathBuf,
    heartbeat_milliseconds: Option<u32>,
    lease_milliseconds: Option<u64>,
    history: Option<String>,
    max_outgoing_per_node: Option<usize>,
    max_incoming_per_node: Option<usize>,
    max_in_cluster: Option<usize>,
    /// Where metrics are served, by plain HTTP; nowhere when left out.
    metrics_listen: Option<String>,
    /// Where traces go; nowhere when left out.
    traces: Option<Traces>,
}

/// Section `[traces]`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Traces {
    otlp_endpoint: String,
}

/// A checked configuration.
#[derive(Debug)]
pub(crate) struct Config {
    /// Where to serve.
    pub(crate) listen: SocketAddr,
    /// Where metrics are served.
    pub(crate) metrics_listen: Option<SocketAddr>,
    /// Where traces go.
    pub(crate) collector: Option<Collector>,
    /// Where the store lies.
    pub(crate) state_dir: PathBuf,
    /// Credentials.
    pub(crate) tls: Tls,
    /// Times and limits.
    pub(crate) limits: Settings,
}

/// Times and limits.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// How often an agent sends a heartbeat, milliseconds.
    pub(crate) heartbeat_milliseconds: u32,
    /// A node is Unknown when nothing was heard for this long: three heartbeats.
    pub(crate) unknown_after: Duration,
    /// And not ready after this.
    pub(crate) lease: Duration,
    /// How long a finished migration is kept.
    pub(crate) history: Duration,
    /// Migrations at once.
    pub(crate) concurrency: Limits,
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    /// Cannot be read.
    #[error("cannot read {}", .0.display())]
    Read(PathBuf, #[source] std::io::Error),
    /// Not what is expected.
    #[error("{} is not a configuration of the coordinator", .0.display())]
    Parse(PathBuf, #[source] Box<toml::de::Error>),
    /// A value is wrong.
    #[error("{key} = {value:?}: {why}")]
    Value {
        /// The key.
        key: &'static str,
        /// Its value.
        value: String,
        /// What is wrong.
        why: String,
    },
    /// Credentials.
    #[error("the credentials cannot be used")]
    Tls(#[from] TlsError),
    /// A collector's address.
    #[error(transparent)]
    Collector(#[from] NoCollector),
}

fn wrong(key: &'static str, value: &dyn Display, why: &dyn Display) -> ConfigError {
    ConfigError::Value { key, value: value.to_string(), why: why.to_string() }
}

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// When anything in it is wrong; nothing has been created or bound.
    pub(crate) fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|e| ConfigError::Read(path.to_owned(), e))?;
        let file: File =
            toml::from_str(&text).map_err(|e| ConfigError::Parse(path.to_owned(), Box::new(e)))?;
        let listen = file.listen.parse().map_err(|e| wrong("listen", &file.listen, &e))?;
        let metrics_listen = match &file.metrics_listen {
            Some(text) => Some(text.parse().map_err(|e| wrong("metrics_listen", text, &e))?),
            None => None,
        };
        let collector = Collector::choose(file.traces.as_ref().map(|traces| traces.otlp_endpoint.as_str()))?;
        let limits = file.settings()?;
        let tls = Tls::load(&TlsFiles::in_dir(&file.tls_dir))?;
        let identity = tls.identity();
        if identity.role() != Role::Coordinator {
            return Err(wrong("tls_dir", &file.tls_dir.display(), &format_args!("it is {identity}'s")));
        }
        if let Some(name) = file.name.filter(|name| name != identity.name()) {
            return Err(wrong("name", &name, &format_args!("the certificate is {identity}'s")));
        }
        Ok(Self { listen, metrics_listen, collector, state_dir: file.state_dir, tls, limits })
    }
}

impl File {
    fn settings(&self) -> Result<Settings, ConfigError> {
        let heartbeat_milliseconds = self.heartbeat_milliseconds.unwrap_or(1000);
        if !(10..=60_000).contains(&heartbeat_milliseconds) {
            return Err(wrong("heartbeat_milliseconds", &heartbeat_milliseconds, &"use 10 to 60000"));
        }
        let unknown_after = Duration::from_millis(u64::from(heartbeat_milliseconds) * 3);
        let lease = self.lease_milliseconds.map_or(unknown_after * 4, Duration::from_millis);
        if lease < unknown_after {
            return Err(wrong("lease_milliseconds", &lease.as_millis(), &"use at least three heartbeats"));
        }
        let history = self.history.as_deref().unwrap_or("30d");
        let history = humantime::parse_duration(history).map_err(|e| wrong("history", &history, &e))?;
        let limit = |key, value: Option<usize>, default| match value.unwrap_or(default) {
            0 => Err(wrong(key, &0, &"use 1 or more")),
            limit => Ok(limit),
        };
        let concurrency = Limits {
            outgoing: limit("max_outgoing_per_node", self.max_outgoing_per_node, 2)?,
            incoming: limit("max_incoming_per_node", self.max_incoming_per_node, 2)?,
            cluster: limit("max_in_cluster", self.max_in_cluster, 64)?,
        };
        Ok(Settings { heartbeat_milliseconds, unknown_after, lease, history, concurrency })
    }
}
