//! Why a session ended without success.

use image::Refusal;

use super::ports::PortError;
use super::status::Phase;
use crate::telemetry::chain;
use crate::transfer::bulk::BulkError;
use crate::transfer::link::LinkError;

/// Why a session ended before the commit point.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error("{} part(s) of the container cannot move", .0.len())]
    Refused(Vec<Refusal>),
    #[error("cancelled: {0}")]
    Cancelled(String),
    #[error("{0}")]
    NotConverged(String),
    #[error("cannot reach the target")]
    Dial(#[from] crate::peer::DialError),
    #[error("lost the other agent")]
    Link(#[from] LinkError),
    #[error("lost the bulk stream")]
    Bulk(#[source] std::io::Error),
    #[error("lost the bulk stream")]
    BulkReceive(#[from] BulkError),
    #[error("the other agent gave up: {0}")]
    Peer(String),
    #[error("{0}")]
    Protocol(String),
    #[error("the engine failed")]
    Source(#[source] engine::source::SourceError),
    #[error("the engine failed")]
    Target(#[from] engine::target::TargetError),
    #[error("cannot apply what the source sent: {0}")]
    Apply(String),
    #[error("the node failed")]
    Port(#[source] PortError),
    #[error("cannot write the journal")]
    Journal(#[from] crate::journal::JournalError),
    #[error("cannot start a thread")]
    Thread(#[source] std::io::Error),
    #[error("failpoint {0}")]
    Failpoint(String),
}

impl Failure {
    /// One CamelCase word for conditions.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::Refused(_) => "Refused",
            Self::Cancelled(_) => "Cancelled",
            Self::NotConverged(_) => "NotConverged",
            Self::Dial(_) => "TargetUnreachable",
            Self::Link(LinkError::Timeout { .. }) => "PeerTimeout",
            Self::Link(_) | Self::Bulk(_) | Self::BulkReceive(_) => "LinkLost",
            Self::Peer(_) => "PeerFailed",
            Self::Protocol(_) => "ProtocolError",
            Self::Source(_) | Self::Target(_) | Self::Apply(_) => "EngineFailed",
            Self::Port(_) => "NodeFailed",
            Self::Journal(_) => "JournalFailed",
            Self::Thread(_) => "NodeFailed",
            Self::Failpoint(_) => "Failpoint",
        }
    }

    /// The phase in which it leaves the migration at a source that has been given back.
    pub(crate) fn phase(&self) -> Phase {
        if matches!(self, Self::Cancelled(_)) { Phase::Cancelled } else { Phase::Failed }
    }

    /// What cannot move, when that is the reason.
    pub(crate) fn refusals(&self) -> &[Refusal] {
        match self {
            Self::Refused(refusals) => refusals,
            _ => &[],
        }
    }

    /// What stands against the move passes by itself: the switchover may be tried again.
    pub(super) fn passes(&self) -> bool {
        matches!(self, Self::Refused(refusals) if engine::source::pass(refusals))
    }

    /// What the peer sent was wrong: worth a warning.
    pub(crate) fn is_violation(&self) -> bool {
        match self {
            Self::Link(error) => error.is_violation(),
            Self::BulkReceive(error) => error.is_violation(),
            Self::Protocol(_) => true,
            _ => false,
        }
    }

    /// With all its causes.
    pub(crate) fn text(&self) -> String {
        let mut text = chain(self);
        for refusal in self.refusals() {
            text.push_str("; ");
            text.push_str(&refusal.to_string());
        }
        text
    }
}

impl From<PortError> for Failure {
    fn from(error: PortError) -> Self {
        match error {
            PortError::Refused(refusals) => Self::Refused(refusals),
            other => Self::Port(other),
        }
    }
}

impl From<engine::source::SourceError> for Failure {
    fn from(error: engine::source::SourceError) -> Self {
        match error {
            engine::source::SourceError::Refused(refusals) => Self::Refused(refusals),
            // What the engine hands pages to is the streams.
            engine::source::SourceError::Sink(error) => Self::Bulk(error),
            other => Self::Source(other),
        }
    }
}

/// Ends the process when its thread panics, as soon as unwinding comes to it: past a point of no return at once, because
/// unwinding would run undo code. The supervisor restarts the agent, and the journal says how to go on; a session that ended in
/// silence would be open for ever.
#[derive(Debug)]
pub(super) struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            std::process::abort();
        }
    }
}

/// Passes a failpoint: tests make it fail, stop, or kill the agent there.
pub(crate) fn failpoint(name: &str) -> Result<(), Failure> {
    if hit(name) { Err(Failure::Failpoint(name.to_owned())) } else { Ok(()) }
}

fn hit(name: &str) -> bool {
    fail::fail_point!(name, |_| true);
    let _ = name;
    false
}
