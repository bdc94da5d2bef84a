//! The control groups of a container: what it may use, and the groups that it made below its own.
//!
//! Only what differs from a new group is here: a value that is not listed is the kernel's default.

use serde::{Deserialize, Serialize};

use crate::Pid;

/// All control groups of a container at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Groups {
    /// One tree for each hierarchy that the source has mounted.
    pub trees: Vec<Tree>,
    /// The devices that values name by their numbers.
    pub devices: Vec<Device>,
    /// The CPUs that the group above the container's has, as in cpuset(7): a set that is equal means all.
    pub cpus: String,
    /// The memory nodes that it has.
    pub mems: String,
    /// CPUs and memory nodes that the target lacks may be left out.
    pub widen: bool,
}

/// A container's groups in one hierarchy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tree {
    /// cgroup v2.
    pub unified: bool,
    /// v1: its controllers, or `name=...`. v2: the controllers that the container's own group has.
    pub controllers: Vec<String>,
    /// The container's own group, with an empty path, then those below it; parents before their children.
    pub groups: Vec<Group>,
}

/// One group.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    /// Its path below the container's own group, without a leading slash; empty for that one.
    pub path: String,
    /// v2: it is in threaded mode (`cgroup.type`).
    pub threaded: bool,
    /// v2: `cgroup.controllers`. v1: empty.
    pub controllers: Vec<String>,
    /// v2: `cgroup.subtree_control`. v1: empty.
    pub subtree: Vec<String>,
    /// What its files say, as far as it is not the default.
    pub values: Vec<Value>,
    /// Who may write what, as far as it is not root with the kernel's modes.
    pub access: Vec<Access>,
    /// How many processes have a thread in it.
    pub residents: u32,
    /// The processes that are in it with all their threads; not listed for the container's own group.
    pub processes: Vec<Pid>,
    /// Threads in it of processes that are not in one group as a whole.
    pub threads: Vec<Member>,
}

/// The content of one file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Value {
    /// Its name, for example `memory.max`.
    pub file: String,
    /// Its lines, each as it is written back.
    pub lines: Vec<String>,
}

/// Owner and mode of a group's directory or of a file in it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Access {
    /// The file; empty for the directory.
    pub file: String,
    /// Its owner.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// Permission bits.
    pub mode: u32,
}

/// A thread.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Member {
    /// Its process.
    pub pid: Pid,
    /// Itself.
    pub tid: Pid,
}

/// A device of the source.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// A block device; else a character device.
    pub block: bool,
    /// Its major number.
    pub major: u32,
    /// Its minor number.
    pub minor: u32,
    /// Subsystem and name, for example `block/sda`.
    pub name: String,
}
