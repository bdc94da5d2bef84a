//! The source side: look at a process tree, track its memory while it runs, freeze it, capture it.
//!
//! The source is sacred: whatever fails before [`Source::kill`], the tree runs on as before. No step
//! leaves something in a process that [`Source::abort`] cannot take out again, and what a crash of this
//! process leaves behind either restores itself or is removed by [`recover`].

mod address_space;
mod barrier;
mod beside;
mod capture;
pub(crate) mod clock;
mod connections;
mod cpu_clocks;
mod descriptor;
mod direct;
mod error;
mod facts;
mod findings;
mod freezing;
pub(crate) mod huge;
mod inject;
mod inspect;
mod inventory;
mod ipc;
mod keyrings;
mod locked;
mod locks;
mod look;
mod memory;
mod mm;
mod mounts;
mod mqueue;
mod multicast;
mod namespaces;
mod numa;
mod outside;
mod owners;
mod recover;
mod registry;
mod reports;
mod resuming;
mod rules;
mod session;
mod sharing;
mod sockets;
mod spec;
mod stopping;
mod sysv;
mod template;
mod terminals;
mod told;
mod traced;
mod tree;
mod undo;
mod view;
mod watches;
mod witness;
mod written;

/// Stops here in a build with the feature `failpoints`, or fails, or does nothing: as the test says.
macro_rules! failpoint {
    ($name:literal) => {
        fail::fail_point!($name, |_| Err(crate::source::SourceError::Failpoint($name)))
    };
}
pub(crate) use failpoint;

use std::time::{Duration, Instant};

pub use barrier::{Barrier, BarrierError};
pub use error::{InspectError, SourceError, pass};
use image::Refusal;
use image::shape::Shape;
pub use inventory::Item;
pub use recover::recover;
pub use session::Source;
pub use spec::{External, GivenTerminal, MountNamespaces, Namespaces, TreeSpec};
pub(crate) use terminals::number as terminal_number;
pub use written::Written;

/// What [`inspect`] found.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Inventory {
    /// Process tree and address spaces.
    pub shape: Shape,
    /// What cannot be carried over; empty = the tree can move.
    pub refusals: Vec<Refusal>,
    /// Everything that it has, what is refused included; empty unless it was asked for.
    pub items: Vec<Item>,
    /// Number of processes.
    pub processes: usize,
    /// Number of threads of all processes.
    pub threads: usize,
    /// Number of descriptors of all processes.
    pub descriptors: usize,
    /// Number of established TCP connections.
    pub connections: usize,
    /// What it needs of a target.
    pub needs: image::state::Needs,
    /// Resident memory of all processes, bytes; what is shared between processes counts once for each.
    pub resident_bytes: u64,
}

/// What one round sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RoundStats {
    /// Pages sent with contents.
    pub pages: u64,
    /// Pages sent as zero.
    pub zero_pages: u64,
    /// Pages that the target must drop again.
    pub dropped_pages: u64,
    /// Bytes of page contents (`pages` x 4096).
    pub bytes: u64,
    /// Bytes of pages that wait for the last round because every round finds them written.
    pub held_back: u64,
    /// Time spent in finding pages, and in reading those that turned out to be the same, by all readers together.
    pub scan: Duration,
    /// Time spent in reading pages and in the sink, by all readers together.
    pub copy: Duration,
    /// How long the tree stood still for it while it was not frozen; zero where tracking needs no stop.
    pub stopped: Duration,
}

impl RoundStats {
    /// Both together.
    #[must_use]
    pub fn and(&self, other: &Self) -> Self {
        Self {
            pages: self.pages + other.pages,
            zero_pages: self.zero_pages + other.zero_pages,
            dropped_pages: self.dropped_pages + other.dropped_pages,
            bytes: self.bytes + other.bytes,
            held_back: self.held_back + other.held_back,
            scan: self.scan + other.scan,
            copy: self.copy + other.copy,
            stopped: self.stopped + other.stopped,
        }
    }
}

/// What [`Source::freeze`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FreezeReport {
    /// Processes, zombies included.
    pub processes: usize,
    /// Threads that were stopped.
    pub threads: usize,
    /// When the first thread was asked to stop.
    pub began: Instant,
    /// From the first thread's stop request until nothing of the tree ran.
    pub stop: Duration,
    /// Reading what only the threads themselves can read.
    pub tapes: Duration,
    /// Until the cgroup was frozen.
    pub cgroup: Duration,
}

/// Looks at a tree through /proc alone and says what it is and what cannot be carried over.
///
/// # Errors
/// When the root does not exist or /proc cannot be read. Nothing is touched either way.
pub fn inspect(spec: &TreeSpec) -> Result<Inventory, InspectError> {
    inspect::inspect(spec, false)
}

/// The same with [`Inventory::items`].
///
/// # Errors
/// As [`inspect`].
pub fn inspect_items(spec: &TreeSpec) -> Result<Inventory, InspectError> {
    inspect::inspect(spec, true)
}
