//! Settings of the container's IPC namespace below /proc/sys.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use sys::ns::{self, Kind};

use super::error::TargetError;
use crate::proc::ipc;

/// Those of POSIX message queues, which a queue must obey when it is made.
pub(super) const QUEUES: &str = "fs/mqueue/";
/// Those of System V objects.
pub(super) const SYSTEM_V: &str = "kernel/";

/// The namespace with what is set in it.
#[derive(Debug)]
pub(super) struct Settings {
    namespace: OwnedFd,
    known: Vec<(String, String)>,
}

impl Settings {
    /// Looks at the namespace of a process, long before the pause.
    ///
    /// # Errors
    /// When it cannot be entered, or they cannot be read.
    pub(super) fn of(host: i32) -> Result<Self, TargetError> {
        let namespace = ns::open(host, Kind::Ipc).map_err(TargetError::errno("open the IPC namespace"))?;
        let known = ns::within(namespace.as_fd(), Kind::Ipc, ipc::settings)
            .map_err(TargetError::errno("enter the IPC namespace"))?
            .map_err(|error| {
                TargetError::system("read the settings of the IPC namespace")(io::Error::other(error))
            })?;
        Ok(Self { namespace, known })
    }

    /// Sets those of `wanted` that begin with `prefix` and are not so yet.
    ///
    /// # Errors
    /// When the kernel does not take one.
    pub(super) fn set(&self, wanted: &[(String, String)], prefix: &str) -> Result<(), TargetError> {
        let differs = |one: &&(String, String)| one.0.starts_with(prefix) && !self.known.contains(one);
        let wanted: Vec<_> = wanted.iter().filter(differs).collect();
        if wanted.is_empty() {
            return Ok(());
        }
        ns::within(self.namespace.as_fd(), Kind::Ipc, || write(wanted))
            .map_err(TargetError::errno("enter the IPC namespace"))?
    }
}

/// Sets what differs in this thread's IPC namespace.
///
/// # Errors
/// When the kernel does not take one.
pub(super) fn write<'a>(settings: impl IntoIterator<Item = &'a (String, String)>) -> Result<(), TargetError> {
    settings.into_iter().try_for_each(|(name, value)| {
        let path = format!("/proc/sys/{name}");
        let have = std::fs::read_to_string(&path);
        if have.is_ok_and(|have| have.trim() == value) {
            return Ok(());
        }
        std::fs::write(&path, value)
            .map_err(TargetError::system(format!("set {name} of an IPC namespace to {value}")))
    })
}
