//! How a container stands, for the API.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::Runtime;
use super::error::RuntimeError;
use super::name::ContainerName;
use super::record::{Process, Record, Stage};
use super::sandbox::Exit;

/// Whether a container runs, and why not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It runs.
    Running,
    /// Its root process has ended.
    Stopped,
    /// It runs while a migration away is under way.
    Migrating,
    /// A copy is being built here; it does not run.
    Incoming,
    /// It stands frozen.
    Frozen,
}

impl State {
    /// Its name in metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Stopped => "stopped",
            Self::Migrating => "migrating",
            Self::Incoming => "incoming",
            Self::Frozen => "frozen",
        }
    }
}

/// A container as the API shows it.
#[derive(Clone, Debug)]
pub struct ContainerStatus {
    /// Its name.
    pub name: ContainerName,
    /// Whether it runs.
    pub state: State,
    /// Its root process as the agent sees it.
    pub pid: Option<i32>,
    /// Its address in CIDR form.
    pub ip: Option<String>,
    /// Its MAC address.
    pub mac: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Resident bytes, as its memory controller counts them.
    pub memory_bytes: u64,
    /// The highest epoch known for it.
    pub epoch: u64,
    /// Exit code of the root process, or 128 + signal.
    pub exit_status: Option<i32>,
    /// When it was first made.
    pub created: SystemTime,
    /// Its bundle's directory.
    pub bundle: PathBuf,
}

impl Runtime {
    /// How one container stands.
    ///
    /// # Errors
    /// [`RuntimeError::NotFound`], or when its files cannot be read.
    pub fn get(&self, name: &ContainerName) -> Result<ContainerStatus, RuntimeError> {
        self.status_of(&self.record(name)?)
    }

    /// Every container of this node, by name.
    ///
    /// # Errors
    /// When the state directory cannot be read. A container whose record is damaged is left out and logged.
    pub fn list(&self) -> Result<Vec<ContainerStatus>, RuntimeError> {
        let mut list = Vec::new();
        for name in self.names()? {
            match self.get(&name) {
                Ok(status) => list.push(status),
                Err(RuntimeError::NotFound(_)) => {}
                Err(error) => {
                    tracing::error!(container = %name, error = %error, "container left out of the list")
                }
            }
        }
        Ok(list)
    }

    /// The names of all containers, sorted.
    ///
    /// # Errors
    /// When the state directory cannot be read.
    pub fn names(&self) -> Result<Vec<ContainerName>, RuntimeError> {
        let dir = self.state.containers();
        let entries = fs::read_dir(&dir).map_err(RuntimeError::file("read", &dir))?;
        let mut names: Vec<ContainerName> = entries
            .filter_map(Result::ok)
            .filter_map(|entry| ContainerName::new(entry.file_name().into_string().ok()?).ok())
            .collect();
        names.sort();
        Ok(names)
    }

    pub(super) fn status_of(&self, record: &Record) -> Result<ContainerStatus, RuntimeError> {
        let alive = record.is_alive();
        let state = match (&record.stage, alive) {
            (Stage::Incoming { .. } | Stage::Creating, _) => State::Incoming,
            (_, false) => State::Stopped,
            (Stage::Here, true) => State::Running,
            (Stage::Migrating, true) => State::Migrating,
            (Stage::Frozen, true) => State::Frozen,
        };
        let exit = if alive { None } else { read_exit(&self.dir(&record.name).exit())? };
        Ok(ContainerStatus {
            name: record.name.clone(),
            state,
            pid: record.root.as_ref().filter(|_| alive).map(|root: &Process| root.pid),
            ip: record.network.ip.map(|ip| ip.to_string()),
            mac: record.network.mac.to_string(),
            labels: record.labels.clone(),
            memory_bytes: if alive { record.cgroup.memory_bytes().unwrap_or(0) } else { 0 },
            epoch: record.epoch,
            exit_status: exit.map(|exit| exit.status),
            created: record.created,
            bundle: record.bundle.clone(),
        })
    }
}

/// What the shim wrote, if it did.
pub(super) fn read_exit(path: &Path) -> Result<Option<Exit>, RuntimeError> {
    match fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|source| RuntimeError::Damaged { path: path.to_owned(), source }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(RuntimeError::file("read", path)(error)),
    }
}
