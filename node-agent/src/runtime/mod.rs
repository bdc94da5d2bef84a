//! The embedded runtime: OCI bundles as containers that outlive the agent.
//!
//! A container's root process is the child of a shim (this program executed again); the agent can stop
//! and start without touching it. The sandbox is built by the same code for a fresh start and for a copy
//! that the engine fills. [`paths`] says where everything is kept on disk.

pub(crate) mod bare;
pub mod bundle;
pub mod cgroup;
pub(crate) mod channel;
mod error;
pub mod exec;
mod init;
mod launch;
mod lifecycle;
pub mod logs;
mod moving;
mod name;
pub mod paths;
pub mod record;
mod sandbox;
mod shim;
mod sources;
mod status;
mod terminals;
mod userns;
pub mod volumes;

use std::collections::HashMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub(crate) use channel::pair as socket_pair;
pub use error::RuntimeError;
pub use lifecycle::RunRequest;
pub use moving::MovingNode;
#[cfg(test)]
pub(crate) use moving::mount_layouts;
pub(crate) use moving::{host_facts, memory, tmpfs_areas};
pub use name::{ContainerName, InvalidName};
pub use sandbox::{CONTROL_FD, Exit};
pub use status::{ContainerStatus, State};

use cgroup::Layout;
use paths::{ContainerDir, StateDir};
use record::Record;

/// What a runtime is made with.
#[derive(Clone, Debug)]
pub struct Options {
    /// The agent's state directory, absolute.
    pub state_dir: PathBuf,
    /// The agent's own parent group in every hierarchy.
    pub cgroup_parent: String,
    /// The bridge that containers are attached to; without one they have no link.
    pub bridge: Option<String>,
    /// The program that becomes shims and first processes: this one. `/proc/self/exe` in the daemon.
    pub exe: PathBuf,
}

/// The containers of one node.
#[derive(Debug)]
pub struct Runtime {
    options: Options,
    state: StateDir,
    layout: Layout,
    locks: Mutex<HashMap<ContainerName, Arc<Mutex<()>>>>,
}

impl Runtime {
    /// Opens the state directory; containers that an earlier agent started are there.
    ///
    /// # Errors
    /// When the directory cannot be made or the host has no cgroup v2.
    pub fn open(options: Options) -> Result<Self, RuntimeError> {
        let state = StateDir::open(&options.state_dir)?;
        let layout = Layout::read()?;
        Ok(Self { options, state, layout, locks: Mutex::default() })
    }

    /// What it was made with.
    #[must_use]
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// The hierarchies of this host.
    #[must_use]
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The state directory.
    #[must_use]
    pub fn state(&self) -> &StateDir {
        &self.state
    }

    /// A container's record.
    ///
    /// # Errors
    /// [`RuntimeError::NotFound`], or when it cannot be read.
    pub fn record(&self, name: &ContainerName) -> Result<Record, RuntimeError> {
        Record::load(&self.state.container(name).record())?
            .ok_or_else(|| RuntimeError::NotFound(name.clone()))
    }

    /// Changes a container's record; durable on Ok.
    ///
    /// # Errors
    /// When it is not there or cannot be written.
    pub(crate) fn update(
        &self,
        name: &ContainerName,
        change: impl FnOnce(&mut Record),
    ) -> Result<Record, RuntimeError> {
        let lock = self.lock_of(name);
        let _held = hold(&lock);
        let mut record = self.record(name)?;
        change(&mut record);
        record.save(&self.dir(name).record())?;
        Ok(record)
    }

    fn dir(&self, name: &ContainerName) -> ContainerDir {
        self.state.container(name)
    }

    /// One operation at a time changes a container.
    fn lock_of(&self, name: &ContainerName) -> Arc<Mutex<()>> {
        let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(locks.entry(name.clone()).or_default())
    }
}

fn hold(lock: &Mutex<()>) -> MutexGuard<'_, ()> {
    lock.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Becomes a shim, a container's first process or a command inside one when the arguments (without the
/// program's name) say so. To be called before anything else in `main`, while there is one thread.
#[must_use]
pub fn hidden_role(args: &[OsString]) -> Option<ExitCode> {
    let path = args.get(1).map(PathBuf::from).unwrap_or_default();
    let role: fn(&std::path::Path) -> ExitCode = match args.first()?.to_str()? {
        shim::SHIM => shim::main,
        shim::INIT => init::main,
        exec::EXEC => exec::main,
        _ => return None,
    };
    // What whoever started the agent left open is none of a container's business.
    if sys::fds::cloexec_from(3).is_err() {
        return Some(ExitCode::FAILURE);
    }
    Some(role(&path))
}
