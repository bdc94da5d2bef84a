//! What can go wrong with a container.

use std::io;
use std::path::{Path, PathBuf};

use super::cgroup::CgroupError;
use super::name::{ContainerName, InvalidName};
use crate::network::NetworkError;

/// Why an operation on a container failed.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// The name cannot name a container.
    #[error(transparent)]
    Name(#[from] InvalidName),
    /// A container of that name is here already.
    #[error("container {0} exists already on this node; delete it first")]
    Exists(ContainerName),
    /// There is none of that name.
    #[error("there is no container {0} on this node")]
    NotFound(ContainerName),
    /// It must run for this.
    #[error("container {0} does not run")]
    NotRunning(ContainerName),
    /// It must not run for this.
    #[error("container {0} still runs; stop it first or use force")]
    Running(ContainerName),
    /// A migration holds it.
    #[error("container {0} is held by a migration; wait for it or cancel it")]
    Held(ContainerName),
    /// The bundle asks for something that this runtime does not do.
    #[error("bundle {path}: {what}")]
    Bundle {
        /// Its directory.
        path: PathBuf,
        /// What is wrong, and what to do.
        what: String,
    },
    /// `config.json` could not be read.
    #[error("bundle {path}: cannot read config.json")]
    Config {
        /// The bundle's directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: oci_spec::OciSpecError,
    },
    /// A file of the state directory.
    #[error("cannot {what} {path}")]
    File {
        /// `read`, `write`, `create` ...
        what: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A record or status file has a content that is not ours.
    #[error("{path} is damaged")]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// The shim or the first process reported a failure.
    #[error("container {name}: {message}")]
    Sandbox {
        /// The container.
        name: ContainerName,
        /// What it was about to do, and what the kernel answered.
        message: String,
    },
    /// The shim could not be started, or went away without a word.
    #[error("container {name}: the shim failed; see {log}")]
    Shim {
        /// The container.
        name: ContainerName,
        /// Where its messages are.
        log: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A control group.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// A link, an address or a route.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// The state of a container's network namespace could not be set.
    #[error("cannot set the state of the network")]
    NetState(#[source] crate::network::state::apply::ApplyError),
    /// It did not end in time.
    #[error("container {name} did not {what} within {seconds} s")]
    TimedOut {
        /// The container.
        name: ContainerName,
        /// What it should have done.
        what: &'static str,
        /// The limit.
        seconds: u64,
    },
    /// A process could not be asked or signalled.
    #[error("cannot {what} process {pid}")]
    Process {
        /// What was tried.
        what: &'static str,
        /// Which.
        pid: i32,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl RuntimeError {
    /// For `map_err`: a file operation that failed.
    pub(crate) fn file(what: &'static str, path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> Self {
        let path = path.as_ref().to_owned();
        move |source| Self::File { what, path, source }
    }

    /// For `map_err`: a process operation that failed.
    pub(crate) fn process<E: Into<io::Error>>(what: &'static str, pid: i32) -> impl FnOnce(E) -> Self {
        move |source| Self::Process { what, pid, source: source.into() }
    }
}
