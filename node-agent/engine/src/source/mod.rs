//! The source side: look at a process tree, track its memory while it runs, freeze it, capture it.
//!
//! The source is sacred: whatever fails before [`Source::kill`], the tree runs on as before. No step
//! leaves something in a process that [`Source::abort`] cannot take out again, and what a crash of this
//! process leaves behind either restores itself or is removed by [`recover`].

mod capture;
mod clock;
mod descriptor;
mod error;
mod findings;
mod inspect;
mod look;
mod memory;
mod mm;
mod registry;
mod rules;
mod sockets;
mod spec;
mod stopping;
mod told;
mod traced;
mod tree;
mod view;

use std::time::Duration;

pub use error::{InspectError, SourceError};
use image::Refusal;
use image::shape::Shape;
use image::state::Image;
pub use spec::{External, Namespaces, TreeSpec};

use crate::PageSink;

/// What [`inspect`] found.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Inventory {
    /// Process tree and address spaces.
    pub shape: Shape,
    /// What cannot be carried over; empty = the tree can move.
    pub refusals: Vec<Refusal>,
    /// Number of processes.
    pub processes: usize,
    /// Number of threads of all processes.
    pub threads: usize,
    /// Number of descriptors of all processes.
    pub descriptors: usize,
    /// Number of established TCP connections.
    pub connections: usize,
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
    /// Time spent in finding pages.
    pub scan: Duration,
    /// Time spent in reading pages and in the sink.
    pub copy: Duration,
}

/// What [`Source::freeze`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FreezeReport {
    /// Processes, zombies included.
    pub processes: usize,
    /// Threads that were stopped.
    pub threads: usize,
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
    inspect::inspect(spec)
}

/// Undoes what a dead agent left in a tree: sockets out of repair mode, thawed, tape and trackers removed.
///
/// # Errors
/// When a part of it failed; the rest was tried all the same.
pub fn recover(_spec: &TreeSpec) -> Result<(), SourceError> {
    Ok(())
}

/// A tree that is being migrated or checkpointed. Lives on one thread: ptrace(2) binds to it.
///
/// Dropping it does what [`Source::abort`] does, as far as that is possible.
#[derive(Debug)]
pub struct Source {
    _not_send: std::marker::PhantomData<*const ()>,
}

impl Source {
    /// Starts to track the memory of a tree. The program runs untraced when this returns.
    ///
    /// # Errors
    /// [`SourceError::Refused`] names what cannot be carried over. On any error everything is as before.
    pub fn attach(_spec: &TreeSpec) -> Result<Self, SourceError> {
        Ok(Self { _not_send: std::marker::PhantomData })
    }

    /// The tree as it is now; starts to track processes that are new. After [`Source::freeze`] it is exact.
    ///
    /// # Errors
    /// See [`SourceError`]; the tree runs on.
    pub fn shape(&mut self) -> Result<Shape, SourceError> {
        Ok(Shape::default())
    }

    /// One pre-copy round: sends what was written since the last one. Call [`Source::shape`] before it, so
    /// that the target has the mappings that its pages belong to.
    ///
    /// # Errors
    /// See [`SourceError`]; the tree runs on.
    pub fn round(&mut self, _sink: &mut dyn PageSink) -> Result<RoundStats, SourceError> {
        Ok(RoundStats::default())
    }

    /// Stops the tree: nothing of it runs any more when this returns.
    ///
    /// # Errors
    /// [`SourceError::Refused`] for what came up since [`Source::attach`]. The tree may be stopped in part;
    /// [`Source::abort`] lets it run on.
    pub fn freeze(&mut self) -> Result<FreezeReport, SourceError> {
        Ok(FreezeReport::default())
    }

    /// Sends what was written since the last round. Only while frozen.
    ///
    /// # Errors
    /// See [`SourceError`]; the tree stays frozen until [`Source::abort`].
    pub fn last_pages(&mut self, _sink: &mut dyn PageSink) -> Result<RoundStats, SourceError> {
        Ok(RoundStats::default())
    }

    /// Everything but the contents of memory. Only while frozen. Sockets enter repair mode here.
    ///
    /// # Errors
    /// See [`SourceError`]; the tree stays frozen until [`Source::abort`].
    pub fn capture(&mut self) -> Result<Image, SourceError> {
        Ok(Image::default())
    }

    /// Gives the tree back: it runs on as if nothing had happened. Possible in every state.
    ///
    /// # Errors
    /// When a step failed; all the others were done all the same.
    pub fn abort(self) -> Result<(), SourceError> {
        Ok(())
    }

    /// Kills the tree: after commit it lives at the target.
    ///
    /// # Errors
    /// When a process is still there after the time limit.
    pub fn kill(self) -> Result<(), SourceError> {
        Ok(())
    }

    /// Leaves the frozen tree in its cgroup and lets go of it.
    pub fn into_frozen(self) {}
}
