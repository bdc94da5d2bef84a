//! Who may do what, and the record of what was done.

use prost::{Message, Name};
use proto::error::ApiError;
use proto::identity::{Identity, Role};
use tonic::{Code, Request, Status};

use super::limits;

/// What a call does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    /// Looks.
    Read,
    /// Changes something.
    Write,
    /// Is an agent's report.
    Report,
}

/// Checks the caller's certificate against what the call does, then how long what it says is.
///
/// # Errors
/// UNAUTHENTICATED without one, PERMISSION_DENIED when its role does not allow it, INVALID_ARGUMENT when it says too much.
pub(super) fn authorize<T: Message + Name>(request: &Request<T>, access: Access) -> Result<Identity, Status> {
    let caller = authorize_stream(request, access)?;
    limits::check(
        request.get_ref(),
        if access == Access::Report { &limits::AGENT } else { &limits::CALLER },
    )?;
    Ok(caller)
}

/// Checks the caller's certificate alone. Each message of the stream is for [`limits::check`].
///
/// # Errors
/// As [`authorize`].
pub(super) fn authorize_stream<T>(request: &Request<T>, access: Access) -> Result<Identity, Status> {
    let caller = &proto::tls::peer(request)?.identity;
    let allowed: &[Role] = match access {
        Access::Read => &[Role::Viewer, Role::Admin],
        Access::Write => &[Role::Admin],
        Access::Report => &[Role::Node],
    };
    if allowed.contains(&caller.role()) {
        return Ok(caller.clone());
    }
    let needed: Vec<&str> = allowed.iter().map(|role| role.as_str()).collect();
    let message = format!("{caller} may not do this: it takes the role {}", needed.join(" or "));
    Err(ApiError::new(Code::PermissionDenied, "ROLE_NOT_ALLOWED", message)
        .with("caller", caller.to_string())
        .status())
}

/// Writes one line of the audit log: who asked for what change, and what came of it.
pub(super) fn audit<T>(who: &Identity, what: &str, subject: &str, result: &Result<T, Status>) {
    match result {
        Ok(_) => tracing::info!(target: "audit", %who, what, subject, result = "OK"),
        Err(status) => {
            let result = format!("{:?}", status.code());
            tracing::info!(target: "audit", %who, what, subject, result, message = status.message());
        }
    }
}

#[cfg(test)]
mod tests {
    use proto::tls::Peer;

    use super::*;

    #[test]
    fn roles() {
        for (role, access, allowed) in [
            (Role::Viewer, Access::Read, true),
            (Role::Viewer, Access::Write, false),
            (Role::Viewer, Access::Report, false),
            (Role::Admin, Access::Read, true),
            (Role::Admin, Access::Write, true),
            (Role::Admin, Access::Report, false),
            (Role::Node, Access::Read, false),
            (Role::Node, Access::Write, false),
            (Role::Node, Access::Report, true),
            (Role::Coordinator, Access::Read, false),
            (Role::Coordinator, Access::Write, false),
            (Role::Coordinator, Access::Report, false),
        ] {
            let mut request = Request::new(());
            let identity = Identity::new(role, "x").unwrap();
            request.extensions_mut().insert(Peer { identity, address: ([127, 0, 0, 1], 1).into() });
            let answer = authorize(&request, access).map_err(|status| status.code());
            assert_eq!(answer.is_ok(), allowed, "{role} {access:?}");
            assert!(allowed || answer == Err(Code::PermissionDenied));
        }
        let nobody = authorize(&Request::new(()), Access::Read).unwrap_err();
        assert_eq!(nobody.code(), Code::Unauthenticated);
    }
}
