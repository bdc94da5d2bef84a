//! What a migration looks like from outside: the published state of one side of it.

use std::time::Duration;

use image::Refusal;

/// Where a migration stands. Another type than the sessions' own phases on purpose.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Ordered, not begun.
    #[default]
    Pending,
    /// The container is looked at; the target compares what it must have.
    Checking,
    /// The target builds the sandbox; files are copied for the first time.
    Preparing,
    /// Pages and files are copied while the container runs.
    PreCopy,
    /// The container stands still.
    Switchover,
    /// Committed: the target takes over, the source cleans up.
    Completing,
    /// It runs at the target.
    Succeeded,
    /// It runs at the source as before.
    Failed,
    /// It was cancelled and runs at the source as before.
    Cancelled,
    /// Nobody reachable can tell; the copy here stands frozen.
    OutcomeUnknown,
}

impl Phase {
    /// No further change will come by itself.
    #[must_use]
    pub fn is_terminal(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled)
    }

    /// Its name in logs and metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Checking => "checking",
            Self::Preparing => "preparing",
            Self::PreCopy => "precopy",
            Self::Switchover => "switchover",
            Self::Completing => "completing",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::OutcomeUnknown => "outcome-unknown",
        }
    }
}

/// Which side of a migration this agent is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub enum Role {
    /// The container leaves this node.
    #[default]
    Source,
    /// The container comes to this node.
    Target,
}

/// One pre-copy round, with what was decided after it and why.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Round {
    /// From 1.
    pub index: u32,
    /// Pages sent with contents.
    pub pages: u64,
    /// Pages sent as zero.
    pub zero_pages: u64,
    /// Bytes sent, of all kinds.
    pub bytes: u64,
    /// How long it took.
    pub took: Duration,
    /// How fast the container dirtied memory, bytes a second.
    pub dirty_rate: f64,
    /// How fast the link took it, bytes a second.
    pub transfer_rate: f64,
    /// The pause to expect from a switchover right after this round; zero when it is not known yet.
    pub predicted_pause: Duration,
    /// `NextRound`, `Cut` or `GiveUp`.
    pub decision: &'static str,
    /// Why.
    pub reason: String,
}

/// How long the container stood still, by part. Sums of each side's own durations and the wire; two
/// hosts' clocks are never subtracted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Downtime {
    /// From the first task stopped to the target's thaw returning.
    pub total: Duration,
    /// Source: stop every thread.
    pub freeze: Duration,
    /// Source: last scan, read and send; last changed files too.
    pub last_pages: Duration,
    /// Source: state.
    pub capture: Duration,
    /// Target: last pages and state applied, until Ready is sent.
    pub restore: Duration,
    /// Source: COMMITTED written and synced.
    pub commit: Duration,
    /// Target: network attached and announced, held frames delivered, thawed.
    pub network: Duration,
    /// Between the agents.
    pub wire: Duration,
    /// Target: from the thaw to the first frame with data of the container's programs; `None` when none left soon, or its
    /// agent does not tell. Not part of the total.
    pub first_packet: Option<Duration>,
    /// The same finer: name (`part.step`) and time, in the order in which the steps began.
    pub steps: Vec<(String, Duration)>,
}

/// One side's state of one migration.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Status {
    /// The migration's name.
    pub migration: String,
    /// Its epoch.
    pub epoch: u64,
    /// The container's name.
    pub container: String,
    /// Which side this is.
    pub role: Role,
    /// Where it stands.
    pub phase: Phase,
    /// Pre-copy rounds so far.
    pub rounds: Vec<Round>,
    /// Known at the source once the target has acknowledged.
    pub downtime: Option<Downtime>,
    /// Bytes sent (source) or received (target).
    pub bytes: u64,
    /// Since the session began.
    pub total: Duration,
    /// Why it ended as it did: one CamelCase word, empty before the end.
    pub reason: String,
    /// A sentence about the end.
    pub message: String,
    /// What could not be carried over, when that is why it failed.
    pub refusals: Vec<Refusal>,
    /// Bytes that are dirty now, as far as known.
    pub remaining: u64,
    /// Decision log, oldest first.
    pub events: Vec<String>,
}
