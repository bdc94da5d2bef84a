//! What cannot be carried over, named so that a user can act on it.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{Addr, Pid};

/// One thing that a container has and that this version cannot carry over.
///
/// Refusals are found before anything is frozen or changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// The process that has it, in the numbering of the container; 0 when it is the container's own.
    pub pid: Pid,
    /// Which part of the process.
    pub subject: Subject,
    /// What it is and why it cannot move, for example `io_uring instance: its rings live in the kernel`.
    pub reason: String,
    /// What the user can do about it.
    pub way_out: String,
}

/// The part of a process that a [`Refusal`] is about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Subject {
    /// The process as a whole (for example: it is being traced).
    Process,
    /// One thread.
    Thread(Pid),
    /// A file descriptor number.
    Fd(i32),
    /// A mapping that starts at this address.
    Address(Addr),
    /// A mount point in the container, or in the mount namespace of the process.
    Mount(String),
    /// The container's network, cgroup or another part that belongs to no process.
    Container,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.subject, self.pid) {
            (Subject::Container, _) => write!(f, "container")?,
            (Subject::Mount(path), 0) => write!(f, "mount {path}")?,
            (Subject::Mount(path), pid) => write!(f, "pid {pid} mount {path}")?,
            (Subject::Process, pid) => write!(f, "pid {pid}")?,
            (Subject::Thread(tid), pid) => write!(f, "pid {pid} thread {tid}")?,
            (Subject::Fd(fd), pid) => write!(f, "pid {pid} fd {fd}")?,
            (Subject::Address(addr), pid) => write!(f, "pid {pid} mapping {addr:#x}")?,
        }
        write!(f, ": {} ({})", self.reason, self.way_out)
    }
}
