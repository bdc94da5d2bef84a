//! Errors of the source side.

use std::io;

use image::Refusal;

use super::BarrierError;
use crate::proc::ProcError;

/// Why [`super::inspect`] failed. The tree was not touched.
#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    /// The root process does not exist.
    #[error("there is no process {pid}")]
    NoSuchProcess {
        /// The root's pid, as this process sees it.
        pid: i32,
    },
    /// Something of /proc could not be read or understood.
    #[error(transparent)]
    Proc(#[from] ProcError),
    /// A kernel interface that only looks failed.
    #[error("{what} of pid {pid}")]
    Kernel {
        /// What was tried.
        what: String,
        /// The process, as this process sees it.
        pid: i32,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Why an operation of [`super::Source`] failed.
///
/// Unless the variant says otherwise the tree can be given back with [`super::Source::abort`], and runs
/// on as before.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// Something in the tree cannot be carried over.
    #[error("{} thing(s) cannot be carried over, first: {}", .0.len(), first(.0))]
    Refused(Vec<Refusal>),
    /// Looking at the tree failed.
    #[error(transparent)]
    Inspect(#[from] InspectError),
    /// A kernel interface failed on a process or thread.
    #[error("{what} of pid {pid}")]
    Kernel {
        /// What was tried.
        what: String,
        /// The process or thread, as this process sees it.
        pid: i32,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A process was born while its parent was on a tape, and has a copy of it.
    #[error("process {pid} holds what a tape left in its parent")]
    Leftover {
        /// The process, as this process sees it.
        pid: i32,
    },
    /// The sink did not take pages.
    #[error("cannot hand on page contents")]
    Sink(#[source] io::Error),
    /// Contents of memory could not be read.
    #[error("cannot read pages of {owner:?}")]
    ReadPages {
        /// Whose.
        owner: image::pages::Owner,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A page that holds contents cannot be read although nothing runs (a hardware error, for one).
    #[error("cannot read the page at {address:#x} of {owner:?}")]
    UnreadablePage {
        /// Whose.
        owner: image::pages::Owner,
        /// Where.
        address: u64,
    },
    /// An operation was called in a state that does not allow it.
    #[error("{operation} is not possible while the source is {state}")]
    WrongState {
        /// The operation.
        operation: &'static str,
        /// The state.
        state: &'static str,
    },
    /// A thread ended while it was worked on; the tree goes on without it.
    #[error("thread {tid} has ended")]
    ThreadGone {
        /// The thread, as this process sees it.
        tid: i32,
    },
    /// The kernel has neither PAGEMAP_SCAN with asynchronous write protection nor soft-dirty bits.
    #[error("this kernel cannot track written memory (needs Linux 6.7, or CONFIG_MEM_SOFT_DIRTY)")]
    NoTracker,
    /// The kernel has soft-dirty bits alone, and looking at them stops the tree.
    #[error("on this kernel a look at what is written stops the program (needs Linux 6.7)")]
    WouldStop,
    /// The whole tree has exited.
    #[error("the tree has exited")]
    Gone,
    /// What keeps the tree from the world could not be raised or lowered.
    #[error("cannot keep the tree from the world")]
    Barrier(#[source] BarrierError),
    /// Something took longer than its limit.
    #[error("{what} took longer than {limit_ms} ms")]
    Timeout {
        /// What.
        what: String,
        /// The limit, milliseconds.
        limit_ms: u64,
    },
    /// A failpoint of a test.
    #[error("failpoint {0}")]
    Failpoint(&'static str),
}

fn first(refusals: &[Refusal]) -> String {
    refusals.first().map(ToString::to_string).unwrap_or_default()
}

impl From<ProcError> for SourceError {
    fn from(error: ProcError) -> Self {
        Self::Inspect(InspectError::Proc(error))
    }
}

/// What a refusal advises when it passes by itself.
pub(crate) const TRY_AGAIN: &str = "try again in a moment";

/// All of them pass by themselves: a connection not yet accepted, a line half typed.
#[must_use]
pub fn pass(refusals: &[Refusal]) -> bool {
    !refusals.is_empty() && refusals.iter().all(|refusal| refusal.way_out.starts_with(TRY_AGAIN))
}

impl SourceError {
    /// True when what was refused passes by itself: a connection not yet accepted, a vfork(2) in flight. Abort,
    /// and freeze again a moment later.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Refused(refusals) if pass(refusals))
    }

    /// For a kernel interface that failed.
    pub(crate) fn kernel(what: impl Into<String>, pid: i32, source: impl Into<io::Error>) -> Self {
        Self::Kernel { what: what.into(), pid, source: source.into() }
    }
}

impl InspectError {
    /// For a kernel interface that failed.
    pub(crate) fn kernel(what: impl Into<String>, pid: i32, source: impl Into<io::Error>) -> Self {
        Self::Kernel { what: what.into(), pid, source: source.into() }
    }
}
