//! What a shim and a container's first process are told, and what they answer.

use std::path::PathBuf;

use oci_spec::runtime::Spec;
use serde::{Deserialize, Serialize};

use super::cgroup::Hierarchy;

/// The number of the control socket in the first process of a container that is being restored.
pub const CONTROL_FD: i32 = 900;

/// Why a sandbox is built.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Purpose {
    /// To run the program of the bundle.
    Start,
    /// To be filled by the engine; the first process waits.
    Restore,
}

/// Everything that is needed to build a container's sandbox.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Sandbox {
    /// The container's name; its host name when the bundle gives none.
    pub name: String,
    /// Why it is built.
    pub purpose: Purpose,
    /// Its root directory on the host, absolute.
    pub rootfs: PathBuf,
    /// The bundle's directory: relative bind sources are looked up there.
    pub bundle: PathBuf,
    /// Where standard output and error go.
    pub log: PathBuf,
    /// Where the shim writes how the root process ended.
    pub exit: PathBuf,
    /// Hierarchies that a mount of type `cgroup` shows.
    pub hierarchies: Vec<Hierarchy>,
    /// What its clocks show beyond the host's; `None` when they are the host's.
    pub clocks: Option<ClockOffsets>,
    /// The OCI configuration.
    pub spec: Spec,
}

/// Offsets of a time namespace, nanoseconds; see time_namespaces(7).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ClockOffsets {
    /// Of CLOCK_MONOTONIC.
    pub monotonic: i64,
    /// Of CLOCK_BOOTTIME.
    pub boottime: i64,
}

/// Messages from the shim and the first process to the agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Event {
    /// The shim started the first process: its pid as the agent sees it.
    Pid(i32),
    /// The first process is in its namespaces and waits for [`Order::Build`].
    Unshared,
    /// The sandbox is complete. After [`Purpose::Start`] it waits for [`Order::Run`].
    Built,
    /// A step failed.
    Failed(String),
}

/// Messages from the agent to the first process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Order {
    /// It is in its control groups and its network exists: build the rest.
    Build,
    /// Execute the program.
    Run,
}

/// How a root process ended; the content of `exit.json`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// Exit code, or 128 + signal.
    pub status: i32,
    /// Seconds since the epoch.
    pub at: u64,
}
