//! Who owns a container: the decisions of the commit protocol, as pure functions.
//!
//! No clock, no I/O, no state of its own: each function takes what the agent knows (its journal, its open
//! sessions, whether a copy lives) and says what to do. The sessions, the recovery and a model checker
//! call the same functions.
//!
//! The rules, in short. The source decides, durably, before it tells (COMMITTED, fsync). From the first byte
//! of that record nothing leads to an undo. A target that said Ready obeys its source alone. A target
//! answers Ack only from OWNED. Whoever does not know says so; nobody decides by a clock.

mod source;
mod target;
#[cfg(test)]
mod tests;

pub use source::{
    OnAbort, OnAck, OnResolveSource, OnStart, SourceRestart, SourceView, source_on_abort, source_on_ack,
    source_on_lost, source_on_query, source_on_resolve, source_on_restart, source_on_stale, source_on_start,
};
pub use target::{
    OnAnswer, OnCommit, OnDiscard, OnPrepare, OnResolveTarget, TargetRestart, TargetView, target_on_abort,
    target_on_answer, target_on_commit, target_on_prepare, target_on_resolve, target_on_restart,
    target_on_session,
};

use serde::{Deserialize, Serialize};

/// A migration attempt's number: one per attempt and container, never reused.
pub type Epoch = u64;

/// The side of a migration that owns the container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Owner {
    /// The node it was to leave.
    Source,
    /// The node it was to go to.
    Target,
}

/// What a source says when it is asked for its decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Answer {
    /// COMMITTED is on disk.
    Committed,
    /// A session is open, or the record is written and not yet known to be on disk.
    Undecided,
    /// No session is open and the source holds its own living copy.
    Aborted,
    /// The source cannot tell.
    Unknown,
}

/// The copy of a container on this node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Copy {
    /// None lives.
    #[default]
    None,
    /// It runs.
    Running,
    /// It stands frozen.
    Frozen,
}

/// A COMMITTED record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Committed {
    /// Of which epoch.
    pub epoch: Epoch,
    /// This run of the agent has fsynced it; one that an earlier run wrote counts only once synced again.
    pub synced: bool,
}
