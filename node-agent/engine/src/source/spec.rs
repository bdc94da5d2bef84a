//! Which tree of processes an operation is about.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A tree of processes: a root and all its descendants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TreeSpec {
    /// Pid of the tree's root, as this process sees it.
    pub root: i32,
    /// The container's cgroup v2 directory, which holds all of the tree and nothing else. `None`: the
    /// tree is held frozen by ptrace(2) alone, and so only as long as this process lives.
    pub cgroup: Option<PathBuf>,
    /// Files that the runtime gave the container and supplies again at the target.
    pub externals: Vec<External>,
    /// Pseudo terminals of the container's devpts whose masters the runtime holds, and supplies at the target.
    pub terminals: Vec<GivenTerminal>,
    /// Whose namespaces the tree lives in.
    pub namespaces: Namespaces,
    /// Mount namespaces below the container's that are made at the target.
    pub mounts: MountNamespaces,
}

/// Numbers of mount namespaces, shared with who describes their mounts and changes them during a move. A process in any
/// other one beside the container's own is refused.
#[derive(Clone, Debug, Default)]
pub struct MountNamespaces(Arc<Mutex<Option<BTreeSet<u64>>>>);

impl MountNamespaces {
    /// Exactly these from now on.
    pub fn set(&self, numbers: BTreeSet<u64>) {
        *self.lock() = Some(numbers);
    }

    /// Whether this one is among them; `None`: nobody describes any.
    pub(super) fn has(&self, number: u64) -> Option<bool> {
        self.lock().as_ref().map(|numbers| numbers.contains(&number))
    }

    /// One more, until they are set the next time: who describes them will find it.
    pub(super) fn add(&self, number: u64) {
        self.lock().get_or_insert_default().insert(number);
    }

    /// There is one.
    pub(super) fn any(&self) -> bool {
        self.lock().as_ref().is_some_and(|numbers| !numbers.is_empty())
    }

    fn lock(&self) -> MutexGuard<'_, Option<BTreeSet<u64>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PartialEq for MountNamespaces {
    fn eq(&self, other: &Self) -> bool {
        let own = self.lock().clone();
        own == *other.lock()
    }
}

impl Eq for MountNamespaces {}

/// A terminal whose master is outside of the container, with the runtime. Nothing is ever typed on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GivenTerminal {
    /// Its number in the container's devpts.
    pub index: u32,
    /// The process that holds the master, as this process sees it.
    pub holder: i32,
    /// The master's descriptor there.
    pub fd: i32,
}

/// A file that comes from outside of the container, recognised by its identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct External {
    /// The runtime's name for it, for example `stdout`.
    pub key: String,
    /// `st_dev`.
    pub dev: u64,
    /// `st_ino`.
    pub ino: u64,
}

/// Whose namespaces the tree lives in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Namespaces {
    /// The root's own: it was started as a container. Paths and pids are read as the root sees them.
    Own,
    /// This process's: a tree of the host.
    Host,
}
