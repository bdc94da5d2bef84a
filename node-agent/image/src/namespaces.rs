//! Namespaces that processes of a container have beside its own; see namespaces(7).

use serde::{Deserialize, Serialize};

/// Which namespaces a process is in; 0 stands for the container's own. The numbers name the same namespace in all
/// processes, and stay the same over the rounds of one migration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Nested {
    /// Host and domain name, see uts_namespaces(7).
    pub uts: u64,
    /// System V IPC and POSIX message queues, see ipc_namespaces(7).
    pub ipc: u64,
}

impl Nested {
    /// Whether all of them are the container's.
    #[must_use]
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }
}

/// A namespace that is not the container's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Namespace {
    /// Its number in [`Nested`].
    pub id: u64,
    /// What it holds.
    pub contents: Contents,
}

/// What a namespace holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Contents {
    /// Names, see uname(2).
    Uts {
        /// sethostname(2).
        #[serde(with = "serde_bytes")]
        host: Vec<u8>,
        /// setdomainname(2).
        #[serde(with = "serde_bytes")]
        domain: Vec<u8>,
    },
    /// An IPC namespace without objects.
    Ipc {
        /// Its files below /proc/sys, each with its text.
        settings: Vec<(String, String)>,
    },
}
