//! What the coordinator may order, and what an agent answers.

use std::time::Duration;

use proto::telemetry::Parent;

use crate::commit::{Answer, Owner};
use crate::transfer::squeeze::Compression;

/// Target side: expect a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prepare {
    /// The migration's name.
    pub migration: String,
    /// Its epoch; higher than any that this agent knows for the container.
    pub epoch: u64,
    /// The container's name.
    pub container: String,
    /// The node whose certificate the session must show.
    pub source_node: String,
    /// Memory that the container uses, bytes; 0 = not known.
    pub memory_bytes: u64,
    /// Where the migration's trace goes on.
    pub trace: Option<Parent>,
}

/// The answer to [`Prepare`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prepared {
    /// This agent's incarnation.
    pub incarnation: u64,
    /// Where the source dials: host:port.
    pub peer_address: String,
}

/// Source side: migrate a container away.
#[derive(Clone, Debug, PartialEq)]
pub struct Start {
    /// The migration's name.
    pub migration: String,
    /// Its epoch; higher than any that this agent knows for the container.
    pub epoch: u64,
    /// The container's name.
    pub container: String,
    /// The node to move to; its certificate must bear this name.
    pub target_node: String,
    /// Where that node's agent listens for peers: host:port.
    pub target_address: String,
    /// The incarnation that the target answered to [`Prepare`].
    pub target_incarnation: u64,
    /// Limits.
    pub policy: Limits,
    /// Where the migration's trace goes on.
    pub trace: Option<Parent>,
}

/// What to do when the container dirties memory faster than the limits allow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnTimeout {
    /// Give up; the container runs on at the source.
    #[default]
    Abort,
    /// Freeze whatever the pause will be.
    Force,
}

/// Limits of one migration.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// Longest pause that may be predicted at the cut.
    pub max_downtime: Duration,
    /// From Preparing to the freeze.
    pub timeout: Duration,
    /// Bytes a second during pre-copy; 0 = unlimited.
    pub bandwidth: u64,
    /// Most pre-copy rounds.
    pub max_rounds: u32,
    /// What then.
    pub on_timeout: OnTimeout,
    /// Most of its CPU time that the container may lose when it does not converge, per cent; 0 = none.
    pub throttle: u32,
    /// Whether pages and files are compressed.
    pub compression: Compression,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_downtime: Duration::from_millis(50),
            timeout: Duration::from_secs(300),
            bandwidth: 0,
            max_rounds: 30,
            on_timeout: OnTimeout::Abort,
            throttle: 0,
            compression: Compression::Auto,
        }
    }
}

impl Limits {
    /// How long the last pages may take after the freeze before the container is given back: far more than was predicted,
    /// so that only a link which has become slow meanwhile meets it. `None` when the pause may have any length.
    #[must_use]
    pub fn pause_limit(&self) -> Option<Duration> {
        match self.on_timeout {
            OnTimeout::Abort => Some(self.max_downtime.saturating_mul(10).max(Duration::from_secs(2))),
            OnTimeout::Force => None,
        }
    }
}

/// An operator's word on who owns a container, after the other node was fenced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolve {
    /// The migration's name.
    pub migration: String,
    /// The container's name.
    pub container: String,
    /// A new epoch, higher than the migration's.
    pub epoch: u64,
    /// Who owns it.
    pub owner: Owner,
    /// This node was fenced, is not the owner, and is told before it is admitted again.
    pub fenced: bool,
}

/// Why an order was not taken. Nothing has changed.
#[derive(Debug, thiserror::Error)]
pub enum OrderError {
    /// The epoch is not higher than what this agent knows.
    #[error("epoch {epoch} is stale: this agent knows {known} for the container")]
    Stale {
        /// The order's.
        epoch: u64,
        /// The highest one known here.
        known: u64,
        /// Who owned the container then, as far as this agent knows.
        owner: Option<Owner>,
    },
    /// A migration of the container is under way on this agent.
    #[error("migration {migration} of the container is under way")]
    Busy {
        /// That one.
        migration: String,
    },
    /// An earlier migration of the container is committed and not yet acknowledged by its target.
    #[error("migration {migration} of the container is committed and not yet acknowledged")]
    Unacknowledged {
        /// That one.
        migration: String,
    },
    /// The container is not on this node (Start), or is here already (Prepare).
    #[error("{0}")]
    Container(String),
    /// There is no such migration here.
    #[error("no migration {0} on this agent")]
    NoMigration(String),
    /// It is committed: too late to cancel.
    #[error("migration {0} is committed; it can no longer be cancelled")]
    Committed(String),
    /// This side does not take that order.
    #[error("migration {migration} is not cancelled through its target; its source is {source_node}")]
    NotSource {
        /// The migration.
        migration: String,
        /// Whom to ask.
        source_node: String,
    },
    /// A resolution that contradicts an earlier one, or what this agent knows.
    #[error("{0}")]
    Contrary(String),
    /// The journal cannot be written.
    #[error("cannot write the journal")]
    Journal(#[from] crate::journal::JournalError),
    /// The runtime failed.
    #[error("the node cannot do it")]
    Port(#[from] super::ports::PortError),
    /// What a migration of it would cost cannot be told now.
    #[error("it cannot be measured: {0}")]
    NotMeasured(String),
    /// Threads cannot be made.
    #[error("cannot start a session")]
    Thread(#[source] std::io::Error),
}

/// Where a target asks when its source does not answer: the coordinator, which relays what the source
/// has reported and never presumes.
pub trait DecisionSource: std::fmt::Debug + Send + Sync {
    /// What the source has reported; `None` when the coordinator cannot be reached. May block for some
    /// seconds; called from a thread of its own.
    fn ask(&self, migration: &str, epoch: u64) -> Option<Answer>;
}
