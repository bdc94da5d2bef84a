//! Errors on the wire (AIP-193): a gRPC status with `google.rpc.ErrorInfo` and, where they apply,
//! `PreconditionFailure` and `BadRequest`.

use std::collections::HashMap;
use std::fmt;

use tonic::{Code, Status};
use tonic_types::StatusExt as _;

/// The domain of every [`ErrorDetails::reason`].
pub const DOMAIN: &str = "gantry.dev";

/// Builds a status that bears its reason.
///
/// ```
/// use proto::error::{ApiError, ErrorDetails};
/// let status = ApiError::new(tonic::Code::Aborted, "MIGRATION_RUNNING", "web is being migrated by web-3")
///     .with("migration", "web-3")
///     .status();
/// assert_eq!(ErrorDetails::of(&status).reason, "MIGRATION_RUNNING");
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub struct ApiError {
    code: Code,
    message: String,
    details: ErrorDetails,
}

impl ApiError {
    /// An error with a code, a reason (`UPPER_SNAKE`, stable, for programs) and a message (a sentence that
    /// says what was tried, what happened and what to do, for people).
    pub fn new(code: Code, reason: &str, message: impl Into<String>) -> Self {
        debug_assert!(is_reason(reason), "{reason} is not UPPER_SNAKE");
        let details = ErrorDetails { reason: reason.to_owned(), ..ErrorDetails::default() };
        Self { code, message: message.into(), details }
    }

    /// Adds a fact for programs to the error's metadata.
    pub fn with(mut self, key: &str, value: impl Into<String>) -> Self {
        self.details.metadata.insert(key.to_owned(), value.into());
        self
    }

    /// Adds one thing that must change before a retry can succeed.
    pub fn precondition(
        mut self,
        kind: impl Into<String>,
        subject: impl Into<String>,
        description: impl Into<String>,
    ) -> Self {
        self.details.preconditions.push(Violation {
            kind: kind.into(),
            subject: subject.into(),
            description: description.into(),
        });
        self
    }

    /// Adds one field of the request that is wrong, by its path in the message.
    pub fn field(mut self, field: impl Into<String>, description: impl Into<String>) -> Self {
        self.details.fields.push((field.into(), description.into()));
        self
    }

    /// The status to answer with.
    #[must_use]
    pub fn status(self) -> Status {
        let ErrorDetails { reason, metadata, preconditions, fields } = self.details;
        let mut details = tonic_types::ErrorDetails::new();
        details.set_error_info(reason, DOMAIN, metadata);
        for violation in preconditions {
            details.add_precondition_failure_violation(
                violation.kind,
                violation.subject,
                violation.description,
            );
        }
        for (field, description) in fields {
            details.add_bad_request_violation(field, description);
        }
        Status::with_error_details(self.code, self.message, details)
    }
}

impl From<ApiError> for Status {
    fn from(error: ApiError) -> Self {
        error.status()
    }
}

/// INVALID_ARGUMENT for one field of a request.
pub fn invalid_field(field: &str, description: impl Into<String>) -> ApiError {
    let description = description.into();
    ApiError::new(Code::InvalidArgument, "INVALID_ARGUMENT", format!("{field}: {description}"))
        .field(field, description)
}

/// NOT_FOUND for a resource, for example `("container", "web")`.
pub fn not_found(kind: &str, name: &str) -> ApiError {
    let reason = format!("{}_NOT_FOUND", kind.to_uppercase().replace(['-', ' '], "_"));
    ApiError::new(Code::NotFound, &reason, format!("there is no {kind} {name:?}")).with(kind, name)
}

fn is_reason(reason: &str) -> bool {
    !reason.is_empty() && reason.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_')
}

/// One unmet precondition (`google.rpc.PreconditionFailure.Violation`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// What kind of precondition, for example `NODE_NOT_READY`.
    pub kind: String,
    /// What it is about, for example `node/node-b`.
    pub subject: String,
    /// What is wrong and what to do.
    pub description: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.subject, self.description)
    }
}

/// What a status says beyond its code and message. All empty when it bears no details of Gantry.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ErrorDetails {
    /// Stable and `UPPER_SNAKE`; empty when the status does not come from Gantry (a broken connection, say).
    pub reason: String,
    /// Facts for programs.
    pub metadata: HashMap<String, String>,
    /// What must change before a retry can succeed.
    pub preconditions: Vec<Violation>,
    /// Wrong fields of the request: path and description.
    pub fields: Vec<(String, String)>,
}

impl ErrorDetails {
    /// Reads a status. Details that cannot be decoded, or are of another domain, are left out.
    #[must_use]
    pub fn of(status: &Status) -> Self {
        let details = status.get_error_details();
        let info = details.error_info().filter(|info| info.domain == DOMAIN);
        let preconditions = details.precondition_failure().map_or(&[][..], |p| &p.violations);
        let fields = details.bad_request().map_or(&[][..], |b| &b.field_violations);
        Self {
            reason: info.map(|info| info.reason.clone()).unwrap_or_default(),
            metadata: info.map(|info| info.metadata.clone()).unwrap_or_default(),
            preconditions: preconditions
                .iter()
                .map(|v| Violation {
                    kind: v.r#type.clone(),
                    subject: v.subject.clone(),
                    description: v.description.clone(),
                })
                .collect(),
            fields: fields.iter().map(|v| (v.field.clone(), v.description.clone())).collect(),
        }
    }
}

/// Whether the connection failed, so that nobody knows what the server did or would have said: the status is this
/// side's own and bears its cause (one that came over the wire cannot), or says UNAVAILABLE without a reason.
///
/// Its code says little then: tonic makes `CANCELLED`, `INTERNAL` or `UNKNOWN` of a connection that breaks.
pub fn connection_failed(status: &Status) -> bool {
    let ours = std::error::Error::source(status).is_some() || status.code() == Code::Unavailable;
    ours && ErrorDetails::of(status).reason.is_empty()
}

/// Whether the same call may be answered later, perhaps by another process at the same address: the
/// [connection failed](connection_failed), or the server says UNAVAILABLE.
pub fn answers_later(status: &Status) -> bool {
    status.code() == Code::Unavailable || connection_failed(status)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn details_survive_the_wire() {
        let status = ApiError::new(Code::FailedPrecondition, "NODE_NOT_READY", "node-b is not ready")
            .with("node", "node-b")
            .precondition("NODE_NOT_READY", "node/node-b", "start its agent")
            .field("spec.target_node", "names a node that is not ready")
            .status();
        let headers = status.clone().into_http::<()>().headers().clone();
        let read = Status::from_header_map(&headers).unwrap();
        assert_eq!(read.code(), Code::FailedPrecondition);
        let details = ErrorDetails::of(&read);
        assert_eq!(details.reason, "NODE_NOT_READY");
        assert_eq!(details.metadata["node"], "node-b");
        assert_eq!(details.preconditions[0].subject, "node/node-b");
        assert_eq!(details.fields[0].0, "spec.target_node");
    }

    #[test]
    fn foreign_statuses_have_no_reason() {
        assert_eq!(ErrorDetails::of(&Status::unavailable("gone")), ErrorDetails::default());
        let rubbish = Status::with_details(Code::Internal, "x", vec![0xff; 8].into());
        assert_eq!(ErrorDetails::of(&rubbish), ErrorDetails::default());
        let mut other = tonic_types::ErrorDetails::new();
        other.set_error_info("REASON", "example.com", HashMap::new());
        let other = Status::with_error_details(Code::Internal, "x", other);
        assert_eq!(ErrorDetails::of(&other).reason, "");
    }

    #[test]
    fn shorthands() {
        let status = not_found("container", "web").status();
        assert_eq!(status.code(), Code::NotFound);
        assert_eq!(ErrorDetails::of(&status).reason, "CONTAINER_NOT_FOUND");
        assert_eq!(ErrorDetails::of(&status).metadata["container"], "web");
        let status = invalid_field("name", "is empty").status();
        assert_eq!(ErrorDetails::of(&status).fields, [("name".to_owned(), "is empty".to_owned())]);
    }
}
