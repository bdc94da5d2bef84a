//! What was made, written down before it is used, so that `dev down` can remove it after any failure.

use std::fs;
use std::io::ErrorKind;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use super::plan::Layout;
use super::process::Process;

/// The record of one set of hosts.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct State {
    /// Sets it apart from other sets on this machine; part of every name that the machine sees.
    pub(crate) id: String,
    /// How many nodes.
    pub(crate) nodes: u8,
    /// Bulk streams of a migration, as agents are configured; 0 = their own choice.
    #[serde(default)]
    pub(crate) bulk_streams: u32,
    /// The first process of every host, in the order in which they were made.
    pub(crate) hosts: Vec<(String, Process)>,
    /// The process that forwards to the coordinator.
    pub(crate) forwarder: Option<Process>,
    /// Where it listens: HOST:PORT on the machine.
    pub(crate) coordinator: Option<String>,
    /// Directories outside control groups that `up` made and `down` removes.
    pub(crate) made: Vec<PathBuf>,
}

impl State {
    /// A record of nothing yet.
    pub(crate) fn new(nodes: u8) -> Self {
        let id = uuid::Uuid::new_v4().simple().to_string()[..8].to_owned();
        Self {
            id,
            nodes,
            bulk_streams: 0,
            hosts: Vec::new(),
            forwarder: None,
            coordinator: None,
            made: Vec::new(),
        }
    }

    /// What the names of all its control groups, just below a hierarchy's root, begin with.
    pub(crate) fn cgroup_prefix(&self) -> String {
        format!("gantry-dev-{}-", self.id)
    }

    /// Reads the record; `None` when there is none.
    pub(crate) fn load(layout: &Layout) -> Result<Option<Self>> {
        let path = layout.state();
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
        };
        serde_json::from_slice(&text).map(Some).with_context(|| format!("{} is damaged", path.display()))
    }

    /// Writes the record: after a crash either the old or the new one is there.
    pub(crate) fn save(&self, layout: &Layout) -> Result<()> {
        let path = layout.state();
        let new = path.with_extension("json.new");
        let write = || -> Result<()> {
            fs::write(&new, serde_json::to_vec_pretty(self)?)?;
            fs::rename(&new, &path)?;
            Ok(())
        };
        write().with_context(|| format!("write {}", path.display()))
    }

    /// The first process of a host.
    pub(crate) fn host(&self, name: &str) -> Option<Process> {
        self.hosts.iter().find(|(host, _)| host == name).map(|(_, process)| *process)
    }

    /// Whether any process of it lives.
    pub(crate) fn lives(&self) -> bool {
        self.hosts.iter().map(|(_, process)| process).chain(&self.forwarder).any(Process::lives)
    }
}

/// Keeps others from bringing the same hosts up or down; released when dropped.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: Flock<fs::File>,
}

impl Lock {
    /// Takes the lock without waiting.
    pub(crate) fn take(layout: &Layout) -> Result<Self> {
        let path = layout.lock();
        let file = fs::File::create(&path).with_context(|| format!("create {}", path.display()))?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(file) => Ok(Self { _file: file }),
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => {
                anyhow::bail!("another `migrate dev up` or `down` is working in {}", layout.dir().display())
            }
            Err((_, error)) => Err(error).with_context(|| format!("lock {}", path.display())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_survive_and_ids_differ() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path());
        assert!(State::load(&layout).unwrap().is_none());
        let mut state = State::new(2);
        let own = Process::of(i32::try_from(std::process::id()).unwrap()).unwrap();
        state.hosts.push(("node-a".into(), own));
        state.save(&layout).unwrap();
        let read = State::load(&layout).unwrap().unwrap();
        assert_eq!((read.id.as_str(), read.host("node-a")), (state.id.as_str(), Some(own)));
        assert!(read.lives());
        assert_ne!(State::new(2).id, state.id);
        fs::write(layout.state(), "{").unwrap();
        assert!(State::load(&layout).unwrap_err().to_string().contains("damaged"));
    }

    #[test]
    fn only_one_holds_the_lock() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path());
        let held = Lock::take(&layout).unwrap();
        assert!(Lock::take(&layout).is_err());
        drop(held);
        Lock::take(&layout).unwrap();
    }
}
