//! What a step of an evacuation looks at, and what it answers.

use std::collections::{BTreeMap, HashMap};
use std::time::SystemTime;

use proto::v1::{ContainerState, Phase, Refusal};

use crate::place::{Candidate, Loads, Needs, Verdict};

/// A container, where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    /// Its node.
    pub(crate) node: String,
    /// Its state there.
    pub(crate) state: ContainerState,
    /// Resident memory, bytes.
    pub(crate) memory: u64,
    /// Its labels.
    pub(crate) labels: HashMap<String, String>,
}

/// A migration that an item names.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Move {
    /// It belongs to this evacuation.
    pub(crate) ours: bool,
    /// It has begun.
    pub(crate) admitted: bool,
    /// Somebody has asked to cancel it.
    pub(crate) cancelled: bool,
    /// Where it stands.
    pub(crate) phase: Phase,
    /// Why it ended so.
    pub(crate) reason: String,
    /// The same as a sentence.
    pub(crate) message: String,
    /// What cannot move.
    pub(crate) refusals: Vec<Refusal>,
    /// Where it went.
    pub(crate) target: String,
}

/// The migration of a container that is not over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Busy {
    /// Its name.
    pub(crate) migration: String,
    /// Nobody can tell how it ended.
    pub(crate) unknown: bool,
}

/// What the real checks say of a container.
#[derive(Debug, Clone, PartialEq)]
#[expect(clippy::large_enum_variant, reason = "there is one for each container that is about to be moved")]
pub(crate) enum Check {
    /// They run.
    UnderWay,
    /// It has what cannot move.
    Refused(Vec<Refusal>),
    /// They could not be made.
    Failed(String),
    /// It can move.
    Movable {
        /// A free name for its migration.
        migration: String,
        /// What it needs.
        needs: Needs,
        /// The nodes that take it, but for room that was promised since.
        fit: Vec<Candidate>,
        /// What speaks against the others.
        unfit: Vec<Verdict>,
    },
}

/// What a step looks at.
#[derive(Debug, Clone)]
pub(crate) struct World {
    /// The time.
    pub(crate) now: SystemTime,
    /// The node is cordoned.
    pub(crate) cordoned: bool,
    /// A node whose heartbeats are missing, and which may yet be heard again: right after the coordinator's start, all.
    pub(crate) silent: Option<String>,
    /// The containers of the node and those of the items.
    pub(crate) containers: BTreeMap<String, Seen>,
    /// The migrations that the items name, if they are there.
    pub(crate) migrations: BTreeMap<String, Move>,
    /// Container to its migration that is not over.
    pub(crate) busy: BTreeMap<String, Busy>,
    /// Migrations to the node that are under way.
    pub(crate) coming: Vec<String>,
    /// What migrations do to each node: those that have begun, and those of evacuations that wait.
    pub(crate) loads: Loads,
    /// Results of checks by container.
    pub(crate) checks: BTreeMap<String, Check>,
    /// From 0 to 1: spreads retries.
    pub(crate) jitter: f64,
}

/// What is to be done after the changed record was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Action {
    /// Cordon the node.
    Cordon,
    /// Check this container.
    Check(String),
    /// Create the migration that the item of this container names.
    Create(String),
    /// Cancel this migration.
    Cancel(String),
}

/// What a step decided.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Todo {
    /// To be done, in this order.
    pub(crate) actions: Vec<Action>,
    /// Containers whose check was used up.
    pub(crate) used: Vec<String>,
    /// When to look again if nothing happens.
    pub(crate) wake: Option<SystemTime>,
}
