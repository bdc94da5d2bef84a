//! The daemon's configuration file.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use proto::identity::check_name;
use proto::telemetry::{Collector, NoCollector};
use proto::tls::TlsFiles;
use serde::Deserialize;

use crate::transfer::bulk::MAX_STREAMS;
use crate::transfer::{PROTOCOL_VERSIONS, versions_up_to};

/// What `node-agent serve --config FILE` reads.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The node's name; its certificate must bear it.
    pub name: String,
    /// Where the agent keeps what it knows, absolute. One agent a directory.
    pub state_dir: PathBuf,
    /// Where gRPC is served.
    pub listen: SocketAddr,
    /// Where other agents connect to.
    pub peer_listen: SocketAddr,
    /// `host:port` under which others reach `listen`; `listen` itself when left out.
    pub advertise: Option<String>,
    /// `host:port` under which other agents reach `peer_listen`; `peer_listen` itself when left out.
    pub peer_advertise: Option<String>,
    /// The coordinator, `host:port`. Without one the agent works alone.
    pub coordinator: Option<String>,
    /// Credentials.
    pub tls: TlsSection,
    /// The bridge that containers are attached to.
    pub bridge: Option<String>,
    /// The agent's own parent control group; `gantry-NAME` when left out.
    pub cgroup_parent: Option<String>,
    /// Bytes a second that all migrations may send and receive together while their containers run; no limit when left out.
    pub bandwidth: Option<std::num::NonZeroU64>,
    /// Bulk streams of a migration from this node, at most [`MAX_STREAMS`]; when left out or 0, one for every four of its
    /// processors, at least one and at most four.
    #[serde(default)]
    pub bulk_streams: u32,
    /// The newest version of the agents' protocol to speak; when left out or 0, the newest that this agent knows.
    #[serde(default)]
    pub newest_protocol_version: u32,
    /// Where metrics are served, by plain HTTP; nowhere when left out.
    pub metrics_listen: Option<SocketAddr>,
    /// Where traces go; nowhere when left out.
    pub traces: Option<TracesSection>,
    /// Labels of the node.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

/// PEM files.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsSection {
    /// Certificates of the authorities that peers are checked against.
    pub ca: PathBuf,
    /// The node's certificate.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// Traces.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TracesSection {
    /// The collector, `http://HOST:PORT`.
    pub otlp_endpoint: String,
}

/// A configuration that cannot be used. One line says which file and what is wrong.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is not TOML, or a field is unknown, missing or of another type.
    #[error("{path}: {message}")]
    Syntax {
        /// Which.
        path: PathBuf,
        /// Line and reason.
        message: String,
    },
    /// A value cannot be.
    #[error("{path}: {field} {why}")]
    Value {
        /// Which file.
        path: PathBuf,
        /// Which field.
        field: &'static str,
        /// What is wrong and what to write.
        why: String,
    },
}

impl Config {
    /// Reads and checks the file. Nothing else is touched.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        Self::parse(&text, path)
    }

    fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let config: Self = toml::from_str(text).map_err(|error| {
            let line =
                error.span().map_or(1, |span| text[..span.start.min(text.len())].matches('\n').count() + 1);
            ConfigError::Syntax {
                path: path.to_owned(),
                message: format!("line {line}: {}", error.message()),
            }
        })?;
        match config.wrong() {
            Some((field, why)) => Err(ConfigError::Value { path: path.to_owned(), field, why }),
            None => Ok(config),
        }
    }

    fn wrong(&self) -> Option<(&'static str, String)> {
        if let Err(error) = check_name(&self.name) {
            return Some(("name", error.to_string()));
        }
        if !self.state_dir.is_absolute() {
            return Some(("state_dir", "must be an absolute path".to_owned()));
        }
        let unspecified = [
            ("advertise", &self.advertise, self.listen),
            ("peer_advertise", &self.peer_advertise, self.peer_listen),
        ];
        for (field, given, listen) in unspecified {
            if given.is_none() && (listen.ip().is_unspecified() || listen.port() == 0) {
                return Some((field, format!("is needed, because nobody can dial {listen}")));
            }
        }
        let addresses = [
            ("advertise", self.advertise.as_deref()),
            ("peer_advertise", self.peer_advertise.as_deref()),
            ("coordinator", self.coordinator.as_deref()),
        ];
        for (field, address) in addresses {
            if address.is_some_and(|address| !is_host_port(address)) {
                return Some((field, "must be host:port".to_owned()));
            }
        }
        let parent = self.cgroup_parent();
        if parent.is_empty() || parent.starts_with('.') || parent.contains('/') {
            return Some(("cgroup_parent", format!("{parent:?} must be one directory name")));
        }
        if self.bulk_streams > MAX_STREAMS {
            return Some(("bulk_streams", format!("must be at most {MAX_STREAMS}")));
        }
        if versions_up_to(self.newest_protocol_version).is_empty() {
            let oldest = PROTOCOL_VERSIONS.last().copied().unwrap_or_default();
            return Some(("newest_protocol_version", format!("must be at least {oldest}")));
        }
        if self.bridge.as_ref().is_some_and(|bridge| bridge.is_empty() || bridge.len() > 15) {
            return Some(("bridge", "must be the name of an interface, 1 to 15 bytes".to_owned()));
        }
        None
    }

    /// Where others reach gRPC.
    #[must_use]
    pub fn agent_address(&self) -> String {
        self.advertise.clone().unwrap_or_else(|| self.listen.to_string())
    }

    /// Where other agents connect to.
    #[must_use]
    pub fn peer_address(&self) -> String {
        self.peer_advertise.clone().unwrap_or_else(|| self.peer_listen.to_string())
    }

    /// The agent's own parent control group.
    #[must_use]
    pub fn cgroup_parent(&self) -> String {
        self.cgroup_parent.clone().unwrap_or_else(|| format!("gantry-{}", self.name))
    }

    /// The coordinator as `host:port`.
    #[must_use]
    pub fn coordinator(&self) -> Option<String> {
        self.coordinator.as_deref().map(|address| bare(address).to_owned())
    }

    /// The collector of traces, here or in the environment.
    ///
    /// # Errors
    /// When what is named is none.
    pub fn collector(&self) -> Result<Option<Collector>, NoCollector> {
        Collector::choose(self.traces.as_ref().map(|traces| traces.otlp_endpoint.as_str()))
    }

    /// The files of the credentials.
    #[must_use]
    pub fn tls_files(&self) -> TlsFiles {
        TlsFiles { ca: self.tls.ca.clone(), cert: self.tls.cert.clone(), key: self.tls.key.clone() }
    }
}

/// Without a scheme and a final slash: every connection is TLS anyway.
fn bare(address: &str) -> &str {
    let address = address.strip_prefix("https://").unwrap_or(address);
    address.strip_suffix('/').unwrap_or(address)
}

fn is_host_port(address: &str) -> bool {
    bare(address)
        .rsplit_once(':')
        .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port != 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
name = "node-a"
state_dir = "/var/lib/gantry"
listen = "10.0.0.1:7443"
peer_listen = "0.0.0.0:7444"
peer_advertise = "10.0.0.1:7444"
coordinator = "https://coordinator:7440/"
bridge = "gantry0"
bulk_streams = 3
[tls]
ca = "/etc/gantry/ca.crt"
cert = "/etc/gantry/tls.crt"
key = "/etc/gantry/tls.key"
[labels]
rack = "1"
"#;

    #[test]
    fn defaults_are_filled_in() {
        let config = Config::parse(GOOD, Path::new("x")).unwrap();
        assert_eq!(config.agent_address(), "10.0.0.1:7443");
        assert_eq!(config.peer_address(), "10.0.0.1:7444");
        assert_eq!(config.cgroup_parent(), "gantry-node-a");
        assert_eq!(config.coordinator().unwrap(), "coordinator:7440");
    }

    #[test]
    fn each_mistake_is_one_line_that_names_it() {
        let cases = [
            ("name = \"node-a\"", "name = \"Node A\"", "name"),
            ("state_dir = \"/var/lib/gantry\"", "state_dir = \"lib\"", "state_dir"),
            ("peer_advertise = \"10.0.0.1:7444\"", "", "peer_advertise"),
            ("https://coordinator:7440/", "coordinator", "coordinator"),
            ("bridge = \"gantry0\"", "bridge = \"a-name-that-is-too-long\"", "bridge"),
            ("bridge = \"gantry0\"", "bridg = \"gantry0\"", "bridg"),
            ("key = \"/etc/gantry/tls.key\"", "", "key"),
            ("listen = \"10.0.0.1:7443\"", "listen = \"nowhere\"", "line 4"),
            ("bulk_streams = 3", "bulk_streams = 17", "at most 16"),
            ("bulk_streams = 3", "newest_protocol_version = 2", "at least 3"),
            ("[labels]", "[labels", "line"),
        ];
        for (old, new, word) in cases {
            let error =
                Config::parse(&GOOD.replacen(old, new, 1), Path::new("agent.toml")).unwrap_err().to_string();
            assert!(error.starts_with("agent.toml: ") && error.contains(word), "{word}: {error}");
            assert_eq!(error.lines().count(), 1, "{error}");
        }
    }
}
