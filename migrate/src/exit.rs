//! Exit codes and errors: every error says what was tried, what happened and what to do.

use std::fmt;
use std::process::ExitCode;

use proto::error::{ErrorDetails, connection_failed};
use proto::v1::{Evacuation, EvacuationPhase, Migration, Phase};
use tonic::{Code, Status};

/// How the program ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    /// Done.
    Ok = 0,
    /// Anything without a code of its own.
    Other = 1,
    /// The command line or a field of the request is wrong.
    Usage = 2,
    /// A check refused it; nothing was touched.
    Refused = 3,
    /// The migration failed; the workload runs at the source.
    FailedAtSource = 4,
    /// It did not converge or ran out of time; the workload runs at the source.
    NotConverged = 5,
    /// Cancelled; the workload runs at the source.
    Cancelled = 6,
    /// The coordinator cannot be reached, or does not allow it.
    Unreachable = 7,
    /// Nobody reachable can tell where the workload runs.
    Unknown = 8,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Why a command did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    /// The program's exit code.
    pub(crate) exit: Exit,
    /// What was tried, for example `move web to node-b`.
    pub(crate) tried: String,
    /// What happened.
    pub(crate) happened: String,
    /// More of it, one line each.
    pub(crate) details: Vec<String>,
    /// What to do about it; empty when the rest says it.
    pub(crate) advice: String,
}

impl Failure {
    /// A failure without details.
    pub(crate) fn new(exit: Exit, tried: impl Into<String>, happened: impl fmt::Display) -> Self {
        Self {
            exit,
            tried: tried.into(),
            happened: happened.to_string(),
            details: Vec::new(),
            advice: String::new(),
        }
    }

    /// A failure of this machine or program, with its chain of causes.
    pub(crate) fn local(tried: impl Into<String>, error: &anyhow::Error) -> Self {
        Self::new(Exit::Other, tried, format_args!("{error:#}"))
    }

    /// Wrong use.
    pub(crate) fn usage(tried: impl Into<String>, happened: impl fmt::Display) -> Self {
        Self::new(Exit::Usage, tried, happened)
    }

    /// Says what to do.
    #[must_use]
    pub(crate) fn advise(mut self, advice: impl Into<String>) -> Self {
        self.advice = advice.into();
        self
    }

    /// Adds a line.
    #[must_use]
    pub(crate) fn detail(mut self, line: impl Into<String>) -> Self {
        self.details.push(line.into());
        self
    }

    /// What a server answered.
    pub(crate) fn from_status(tried: impl Into<String>, status: &Status) -> Self {
        let details = ErrorDetails::of(status);
        let happened =
            if status.message().is_empty() { status.code().description() } else { status.message() };
        let mut failure = Self::new(exit_of(status, &details), tried, happened);
        failure.details.extend(details.preconditions.iter().map(ToString::to_string));
        // The message of a wrong field begins with the field; it is not said twice.
        failure.details.extend(
            details
                .fields
                .iter()
                .map(|(field, what)| format!("{field}: {what}"))
                .filter(|line| !status.message().contains(line.as_str())),
        );
        failure.advice = advice_for(status, &details).into();
        failure
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "migrate: cannot {}: {}", self.tried, self.happened)?;
        for detail in &self.details {
            write!(f, "\n  {detail}")?;
        }
        if !self.advice.is_empty() {
            write!(f, "\n  -> {}", self.advice)?;
        }
        Ok(())
    }
}

fn exit_of(status: &Status, details: &ErrorDetails) -> Exit {
    match status.code() {
        _ if connection_failed(status) => Exit::Unreachable,
        Code::Unavailable | Code::DeadlineExceeded | Code::Unauthenticated | Code::PermissionDenied => {
            Exit::Unreachable
        }
        Code::InvalidArgument | Code::OutOfRange => Exit::Usage,
        Code::FailedPrecondition if REFUSALS.contains(&details.reason.as_str()) => Exit::Refused,
        Code::Cancelled => Exit::Cancelled,
        _ => Exit::Other,
    }
}

/// Reasons of the API that say: a check looked, and it cannot move or start there.
const REFUSALS: [&str; 4] = ["CHECK_REFUSED", "NO_CANDIDATE", "NODE_CORDONED", "CANNOT_MOVE"];

fn advice_for(status: &Status, details: &ErrorDetails) -> &'static str {
    const RUNNING: &str =
        "is the coordinator running, and is --coordinator (MIGRATE_COORDINATOR) its address?";
    match status.code() {
        _ if connection_failed(status) => RUNNING,
        Code::Unavailable | Code::DeadlineExceeded => RUNNING,
        Code::Unauthenticated => "show a certificate of the same authority with --tls-dir (MIGRATE_TLS_DIR)",
        Code::PermissionDenied => "use an admin certificate: `migrate pki issue --role admin NAME`",
        Code::NotFound if details.reason == "NODE_NOT_FOUND" => "`migrate get nodes` lists them",
        Code::NotFound if details.reason == "CONTAINER_NOT_FOUND" => "`migrate get containers` lists them",
        Code::NotFound if details.reason == "MIGRATION_NOT_FOUND" => "`migrate get migrations` lists them",
        Code::NotFound if details.reason == "POLICY_NOT_FOUND" => "`migrate get policies` lists them",
        Code::NotFound if details.reason == "EVACUATION_NOT_FOUND" => "`migrate get evacuations` lists them",
        Code::Aborted if details.reason == "EVACUATION_RUNNING" => {
            "`migrate get evacuations` shows the one under way; wait for it or cancel it"
        }
        Code::Aborted => "`migrate get migrations` shows the one under way; wait for it or cancel it",
        _ => "",
    }
}

/// The exit code that a finished migration stands for; `None` while it runs.
pub(crate) fn of_migration(migration: &Migration) -> Option<Exit> {
    match migration.phase() {
        Phase::Succeeded => Some(Exit::Ok),
        Phase::Cancelled => Some(Exit::Cancelled),
        Phase::OutcomeUnknown => Some(Exit::Unknown),
        Phase::Failed => Some(match migration.reason.as_str() {
            _ if !migration.refusals.is_empty() => Exit::Refused,
            "Refused" | "NoCandidate" => Exit::Refused,
            "NotConverged" | "TimedOut" => Exit::NotConverged,
            _ => Exit::FailedAtSource,
        }),
        _ => None,
    }
}

/// The exit code that a finished evacuation stands for; `None` while it runs.
pub(crate) fn of_evacuation(evacuation: &Evacuation) -> Option<Exit> {
    match evacuation.phase() {
        EvacuationPhase::Succeeded => Some(Exit::Ok),
        EvacuationPhase::Failed if evacuation.reason == "DeadlineExceeded" => Some(Exit::NotConverged),
        EvacuationPhase::Failed => Some(Exit::FailedAtSource),
        EvacuationPhase::Cancelled => Some(Exit::Cancelled),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proto::error::ApiError;
    use proto::v1::Refusal;

    use super::*;

    #[test]
    fn statuses_map_to_exit_codes() {
        let exit = |error: ApiError| Failure::from_status("move web", &error.status()).exit;
        let mut broken = Status::cancelled("error reading a body from connection");
        broken.set_source(std::sync::Arc::new(std::io::Error::other("reset")));
        assert_eq!(Failure::from_status("follow web", &broken).exit, Exit::Unreachable);
        assert_eq!(exit(ApiError::new(Code::Cancelled, "X", "by hand")), Exit::Cancelled);
        assert_eq!(exit(ApiError::new(Code::Unavailable, "X", "gone")), Exit::Unreachable);
        assert_eq!(exit(ApiError::new(Code::PermissionDenied, "X", "no")), Exit::Unreachable);
        assert_eq!(exit(ApiError::new(Code::InvalidArgument, "X", "no")), Exit::Usage);
        let refused = ApiError::new(Code::FailedPrecondition, "NO_CANDIDATE", "no").precondition(
            "K",
            "node/node-b",
            "is cordoned",
        );
        assert_eq!(exit(refused), Exit::Refused);
        assert_eq!(exit(ApiError::new(Code::FailedPrecondition, "CHECK_REFUSED", "no")), Exit::Refused);
        assert_eq!(exit(ApiError::new(Code::FailedPrecondition, "STALE", "no")), Exit::Other);
        assert_eq!(exit(ApiError::new(Code::Internal, "X", "no")), Exit::Other);
    }

    #[test]
    fn migrations_map_to_exit_codes() {
        let mut migration = Migration::default();
        let mut exit = |phase: Phase, reason: &str| {
            migration.phase = phase.into();
            migration.reason = reason.into();
            of_migration(&migration)
        };
        assert_eq!(exit(Phase::PreCopy, ""), None);
        assert_eq!(exit(Phase::Succeeded, "Committed"), Some(Exit::Ok));
        assert_eq!(exit(Phase::Failed, "TargetLost"), Some(Exit::FailedAtSource));
        assert_eq!(exit(Phase::Failed, "CheckFailed"), Some(Exit::FailedAtSource));
        assert_eq!(exit(Phase::Failed, "NoCandidate"), Some(Exit::Refused));
        assert_eq!(exit(Phase::Failed, "NotConverged"), Some(Exit::NotConverged));
        assert_eq!(exit(Phase::Failed, "TimedOut"), Some(Exit::NotConverged));
        assert_eq!(exit(Phase::Cancelled, ""), Some(Exit::Cancelled));
        assert_eq!(exit(Phase::OutcomeUnknown, ""), Some(Exit::Unknown));
        migration.phase = Phase::Failed.into();
        migration.refusals.push(Refusal::default());
        assert_eq!(of_migration(&migration), Some(Exit::Refused));
    }

    #[test]
    fn errors_say_what_was_tried_what_happened_and_what_to_do() {
        let status = ApiError::new(Code::FailedPrecondition, "NODE_NOT_READY", "node-b is not ready")
            .precondition("NODE_NOT_READY", "node/node-b", "start its agent")
            .status();
        let failure = Failure::from_status("move web to node-b", &status).advise("migrate get nodes");
        assert_eq!(
            failure.to_string(),
            "migrate: cannot move web to node-b: node-b is not ready\n  node/node-b: start its agent\n  -> migrate get nodes"
        );
    }
}
