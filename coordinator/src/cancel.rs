//! Cancelling a migration: only its source can, as long as it has not committed.

use proto::error::{ApiError, not_found};
use proto::v1::{Migration, Phase};
use tonic::{Code, Status};

use crate::core::{Core, End};
use crate::drive::abort;
use crate::store::Record;

/// Cancels. One that is cancelled already stays so; a source that cannot be reached is told later.
///
/// # Errors
/// NOT_FOUND; FAILED_PRECONDITION when it has ended, or has committed.
pub(crate) async fn cancel(core: &Core, who: &str, name: &str) -> Result<Migration, Status> {
    let found = |record: Option<Record>| record.ok_or_else(|| not_found("migration", name).status());
    let record = found(core.store.get(name)?)?;
    match record.migration.phase() {
        Phase::Cancelled => return Ok(record.migration),
        Phase::Succeeded | Phase::Failed | Phase::OutcomeUnknown => return Err(not_cancellable(&record)),
        _ => {}
    }
    let record = core.update(name, |record| {
        if record.cancelled_by.is_empty() && !record.is_over() {
            record.cancelled_by = who.to_owned();
            record.log(format!("{who} cancels"));
            // Nothing was ordered and nobody drives it yet: that is the end of it.
            if !record.admitted {
                End::new(Phase::Cancelled, "Cancelled", format!("cancelled by {who}")).apply(record);
            }
        }
    })?;
    if record.is_over() || !record.start_ordered {
        return Ok(record.migration);
    }
    match abort(core, &record).await {
        Ok(()) => Ok(found(core.store.get(name)?)?.migration),
        Err(status) if status.code() == Code::FailedPrecondition => Err(ApiError::new(
            Code::FailedPrecondition,
            "MIGRATION_COMMITTED",
            format!("{name} cannot be cancelled any more: {}", status.message()),
        )
        .with("migration", name)
        .status()),
        // Remembered: it is passed on as soon as the source can be reached, or has begun.
        Err(status) if matches!(status.code(), Code::Unavailable | Code::NotFound) => {
            Ok(found(core.store.get(name)?)?.migration)
        }
        Err(status) => Err(status),
    }
}

fn not_cancellable(record: &Record) -> Status {
    let m = &record.migration;
    let message = format!("{} cannot be cancelled: it is {}", m.name, m.phase().as_str_name());
    ApiError::new(Code::FailedPrecondition, "MIGRATION_NOT_CANCELLABLE", message)
        .with("migration", &m.name)
        .with("phase", m.phase().as_str_name())
        .status()
}
