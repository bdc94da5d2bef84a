//! The steps up to Start: nothing has been touched at the source yet, so every failure ends the migration with
//! the container running where it was.

use proto::error::ErrorDetails;
use proto::v1::{CheckContainerRequest, Migration, PrepareRequest, StartRequest};
use tonic::{Code, Request, Status};

use super::{Driver, Step};
use crate::agent_client::{LONG, ORDER, answer};
use crate::core::{End, camel, set_condition};
use crate::store::{Record, StoreError};

/// Epochs that one migration may use up before it starts.
pub(super) const ATTEMPTS: u32 = 3;

impl Driver {
    /// Asks the source what the container has, then takes an epoch.
    ///
    /// The check comes before the epoch because it changes nothing; the epoch is on disk before anything is
    /// ordered, so that no later coordinator orders under it again.
    pub(super) async fn check(&mut self, record: &Record) -> Result<Step, StoreError> {
        let m = &record.migration;
        let request = CheckContainerRequest { name: record.container().to_owned(), inventory: false };
        let checked = match self.core.agent(&m.source_node) {
            Ok(mut agent) => answer(&m.source_node, LONG, agent.check_container(request)).await,
            Err(status) => Err(status),
        };
        let checked = match checked {
            Ok(checked) => checked,
            Err(status) => return self.not_ordered(&status, "CheckFailed"),
        };
        if !checked.refusals.is_empty() {
            let refusals = checked.refusals.len();
            let end = End::failed(
                "Refused",
                format!("{} has {refusals} thing(s) that cannot move", record.container()),
            );
            self.core.update(&self.name, |record| {
                record.migration.refusals = checked.refusals;
                end.apply(record);
            })?;
            return Ok(Step::Over);
        }
        fail::fail_point!("drive-after-check");
        self.take_epoch(record, |record| {
            record.memory = checked.resident_bytes;
            record.migration.predicted =
                self.core.predictions.recent(record.container(), &record.migration.target_node);
            set_condition(
                &mut record.migration.conditions,
                "Checked",
                "True",
                "CanMove",
                &format!(
                    "{} processes, {} threads, {} connections, {} MiB",
                    checked.processes,
                    checked.threads,
                    checked.connections,
                    checked.resident_bytes >> 20
                ),
            );
        })
    }

    /// Gives the migration a new epoch, durably.
    pub(super) fn take_epoch(
        &self,
        record: &Record,
        also: impl FnOnce(&mut Record),
    ) -> Result<Step, StoreError> {
        let container = record.container();
        let epoch = self.core.store.next_epoch(container, self.core.cluster.highest_epoch(container))?;
        fail::fail_point!("drive-after-epoch");
        self.core.update(&self.name, |record| {
            also(record);
            record.migration.epoch = epoch;
            record.attempts += 1;
            record.start_ordered = false;
            record.start_seen = false;
            record.log(format!("epoch {epoch}"));
        })?;
        Ok(Step::Next)
    }

    /// Orders the target to expect a session, then the source to begin.
    ///
    /// The target first, because Start hands over its incarnation. That Start may have been ordered is on disk
    /// before it is sent: from then on only the source can say how it ends.
    pub(super) async fn start(&mut self, record: &Record) -> Result<Step, StoreError> {
        let m = &record.migration;
        let prepare = PrepareRequest {
            migration: m.name.clone(),
            epoch: m.epoch,
            container: record.container().to_owned(),
            source_node: m.source_node.clone(),
            memory_bytes: record.memory,
        };
        let prepared = match self.core.agent(&m.target_node) {
            Ok(mut agent) => answer(&m.target_node, ORDER, agent.prepare(traced(m, prepare))).await,
            Err(status) => Err(status),
        };
        let prepared = match prepared {
            Ok(prepared) => prepared,
            Err(status) if is_stale(&status) => return self.again_under_a_new_epoch(record, &status),
            Err(status) => return self.not_ordered(&status, "TargetRefused"),
        };
        fail::fail_point!("drive-after-prepare");

        let marked = self.core.update(&self.name, |record| {
            record.start_ordered = record.cancelled_by.is_empty();
        })?;
        if !marked.start_ordered {
            return Ok(Step::Next);
        }
        fail::fail_point!("drive-before-start");
        let request = StartRequest {
            migration: m.name.clone(),
            epoch: m.epoch,
            container: record.container().to_owned(),
            target_node: m.target_node.clone(),
            target_address: prepared.peer_address,
            target_incarnation: prepared.incarnation,
            policy: m.effective_policy.as_ref().and_then(|effective| effective.policy),
        };
        let started = match self.core.agent(&m.source_node) {
            Ok(mut agent) => answer(&m.source_node, ORDER, agent.start(traced(m, request))).await,
            Err(status) => Err(status),
        };
        fail::fail_point!("drive-after-start");
        match started {
            Ok(_) => {
                self.core.update(&self.name, |record| record.start_seen = true)?;
                Ok(Step::Next)
            }
            // It may or may not have arrived: the source is asked.
            Err(status) if status.code() == Code::Unavailable => Ok(Step::Next),
            Err(status) if is_stale(&status) => self.again_under_a_new_epoch(record, &status),
            // Refused, and so nothing was begun.
            Err(status) => self.end(&End::failed(&reason(&status, "SourceRefused"), status.message())),
        }
    }

    /// An agent knows a higher epoch than the store: the store was lost. The migration has not begun.
    pub(super) fn again_under_a_new_epoch(
        &self,
        record: &Record,
        status: &Status,
    ) -> Result<Step, StoreError> {
        let details = ErrorDetails::of(status);
        let known = details.metadata.get("known").and_then(|known| known.parse().ok());
        tracing::warn!(epoch = record.migration.epoch, known, "the epoch is stale");
        if record.attempts >= ATTEMPTS {
            return self.end(&End::failed("StaleEpoch", status.message()));
        }
        if let Some(known) = known {
            // Noted, so that the next one is higher.
            self.core.store.next_epoch(record.container(), known)?;
        }
        self.take_epoch(record, |record| record.log(format!("refused: {}", status.message())))
    }

    /// An order before Start failed. UNAVAILABLE is tried again for a lease; everything else ends it.
    fn not_ordered(&mut self, status: &Status, otherwise: &str) -> Result<Step, StoreError> {
        if status.code() == Code::Unavailable && self.stuck_for() < self.core.settings.lease {
            tracing::info!(error = status.message(), "tries again");
            return Ok(Step::Again);
        }
        self.end(&End::failed(&reason(status, otherwise), status.message()))
    }
}

/// An order with which the migration's trace goes on at an agent.
fn traced<T>(migration: &Migration, order: T) -> Request<T> {
    let mut request = Request::new(order);
    proto::telemetry::pass_on(request.metadata_mut(), &migration.uid);
    request
}

/// Whether an agent refused because it knows a higher epoch.
pub(super) fn is_stale(status: &Status) -> bool {
    ErrorDetails::of(status).reason.contains("STALE")
}

/// The reason in an agent's error as conditions spell it.
fn reason(status: &Status, otherwise: &str) -> String {
    let reason = ErrorDetails::of(status).reason;
    if reason.is_empty() { otherwise.to_owned() } else { camel(&reason) }
}

#[cfg(test)]
mod tests {
    use proto::error::ApiError;

    use super::*;

    #[test]
    fn reasons_are_spelt_as_conditions_are() {
        let status = ApiError::new(Code::Unavailable, "NODE_UNREACHABLE", "x").status();
        assert_eq!(reason(&status, "Other"), "NodeUnreachable");
        assert_eq!(reason(&Status::internal("x"), "Other"), "Other");
        assert!(is_stale(&ApiError::new(Code::FailedPrecondition, "STALE_EPOCH", "x").status()));
    }
}
