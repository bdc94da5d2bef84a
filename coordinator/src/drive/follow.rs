//! After Start: the source decides, the coordinator learns. It orders nothing but a user's cancel, and that of
//! the source alone.

use proto::v1::{
    AbortRequest, ContainerState, GetAgentMigrationRequest, ListAgentContainersRequest, MigrationStatus,
    Phase,
};
use tokio::time::Instant;
use tonic::{Code, Status};

use super::order::ATTEMPTS;
use super::{Driver, Step, merge};
use crate::agent_client::{ORDER, QUESTION, answer, translate};
use crate::core::{Core, End};
use crate::store::{Record, StoreError};

/// The reason of a source that was restarted and has no copy any more: it cannot tell, and never will.
const COPY_LOST: &str = "CopyLost";

impl Driver {
    /// Watches the source until it is over there or the connection ends.
    pub(super) async fn follow(&mut self, record: Record) -> Result<Step, StoreError> {
        let source = record.migration.source_node.clone();
        // The cancel may have come while nobody could pass it on.
        if !record.cancelled_by.is_empty()
            && let Err(status) = abort(&self.core, &record).await
            && status.code() == Code::Unavailable
        {
            return self.source_is_silent(&record, &status).await;
        }
        let request = GetAgentMigrationRequest { migration: self.name.clone() };
        let watched = match self.core.agent(&source) {
            Ok(mut agent) => answer(&source, ORDER, agent.watch_migration(request)).await,
            Err(status) => Err(status),
        };
        let mut stream = match watched {
            Ok(stream) => stream,
            Err(status) if status.code() == Code::NotFound => {
                return self.source_knows_nothing(&record).await;
            }
            Err(status) => return self.source_is_silent(&record, &status).await,
        };
        let mut changes = self.core.store.latest();
        let mut first = true;
        loop {
            let message = tokio::select! {
                message = stream.message() => message,
                // An agent's report or an operator's word may have ended it.
                _ = changes.changed() => {
                    let now = self.core.store.get(&self.name)?;
                    match now.filter(|record| !record.is_over() && record.resolution.is_none()) {
                        Some(_) => continue,
                        None => return Ok(Step::Next),
                    }
                }
            };
            match message {
                Ok(Some(status)) => {
                    if std::mem::take(&mut first) && status.epoch != record.migration.epoch {
                        // An attempt of another epoch: ours is not known there.
                        return self.source_knows_nothing(&record).await;
                    }
                    fail::fail_point!("drive-on-status");
                    let unknown = status.phase() == Phase::OutcomeUnknown;
                    let lost = unknown && status.reason == COPY_LOST;
                    if !lost {
                        self.stuck = None;
                    }
                    let record = self.core.update(&self.name, |record| merge(record, status))?;
                    if record.is_over() {
                        return Ok(Step::Over);
                    }
                    if unknown && self.ask_target(&record).await?.is_over() {
                        return Ok(Step::Over);
                    }
                    if lost {
                        // Its source has nothing more to say: the target may still find that it has no copy either.
                        return Ok(Step::Again);
                    }
                }
                // It ends after a terminal phase; an unknown outcome may still become known.
                Ok(None) => return Ok(Step::Again),
                Err(status) => {
                    tracing::info!(error = translate(&source, status).message(), "lost sight of the source");
                    self.stuck.get_or_insert_with(Instant::now);
                    return Ok(Step::Again);
                }
            }
        }
    }

    /// The source cannot be asked. The target may know: that it owns the container, or that it has no copy.
    /// Only when it does not, for a whole lease, the outcome is unknown; and even then it is asked on.
    async fn source_is_silent(&mut self, record: &Record, status: &Status) -> Result<Step, StoreError> {
        let silent = self.stuck_for();
        let record = self.ask_target(record).await?;
        if record.is_over() {
            return Ok(Step::Over);
        }
        if silent >= self.core.settings.lease && record.migration.phase() != Phase::OutcomeUnknown {
            let end = End::new(
                Phase::OutcomeUnknown,
                "NobodyCanTell",
                format!("{}; its target cannot tell either", status.message()),
            );
            self.core.finish(&self.name, &end)?;
        }
        Ok(Step::Again)
    }

    /// Asks the target how its side ended, and takes over what only it can know now.
    async fn ask_target(&mut self, record: &Record) -> Result<Record, StoreError> {
        let m = &record.migration;
        let Ok(status) = ask(&self.core, &m.target_node, &self.name).await else { return Ok(record.clone()) };
        if status.epoch != m.epoch {
            return Ok(record.clone());
        }
        let end = match status.phase() {
            // It has written that it owns the container, which it does only after the source committed.
            Phase::Succeeded => End::new(Phase::Succeeded, "Committed", "the target owns the container"),
            // It has no copy, so the container is the source's, running or lost with its host. A target that
            // lost a copy that was ready does not know whether the source committed.
            Phase::Failed | Phase::Cancelled
                if !status.reason.contains("Lost") && self.stuck_for() >= self.core.settings.lease =>
            {
                let message = format!(
                    "{} cannot tell and {} has no copy: {}",
                    m.source_node, m.target_node, status.message
                );
                End::failed("SourceUnreachable", message)
            }
            _ => return Ok(record.clone()),
        };
        self.core.finish(&self.name, &end)
    }

    /// The source is there and knows no such migration under this epoch.
    async fn source_knows_nothing(&mut self, record: &Record) -> Result<Step, StoreError> {
        let m = &record.migration;
        let asked = self.ask_target(record).await?;
        if asked.is_over() {
            return Ok(Step::Over);
        }
        if !record.cancelled_by.is_empty() && !record.start_seen {
            // Should the Start still be under way, the next epoch that is ordered closes this one.
            let by = format!("cancelled by {}", record.cancelled_by);
            return self.end(&End::new(Phase::Cancelled, "Cancelled", by));
        }
        if !record.start_seen && record.attempts < ATTEMPTS {
            // Start never arrived. The new epoch shuts the old one out, should it be under way still.
            return self.take_epoch(record, |record| record.log("the source never heard of it: tries again"));
        }
        // It began there, ended, and was forgotten: see where the container is.
        let here = copy(&self.core, &m.source_node, record.container()).await;
        let there = copy(&self.core, &m.target_node, record.container()).await;
        let runs = |state: &Option<ContainerState>| {
            matches!(state, Some(ContainerState::Running | ContainerState::Stopped))
        };
        match (here, there) {
            (Ok(here), Ok(there)) if !runs(&here) && runs(&there) => {
                self.end(&End::new(Phase::Succeeded, "Committed", "the container is at the target"))
            }
            (Ok(here), _) if runs(&here) => {
                self.end(&End::failed("SourceForgot", "the source gave up and has the container"))
            }
            _ => {
                if self.stuck_for() >= self.core.settings.lease {
                    let message = "the source has no record of it, and no node has the container running";
                    self.core
                        .finish(&self.name, &End::new(Phase::OutcomeUnknown, "NobodyCanTell", message))?;
                }
                Ok(Step::Again)
            }
        }
    }
}

/// Passes a cancel on to the source.
///
/// # Errors
/// FAILED_PRECONDITION when the source has committed: the cancel has lost. NOT_FOUND when it knows no such
/// migration.
pub(crate) async fn abort(core: &Core, record: &Record) -> Result<(), Status> {
    let m = &record.migration;
    let request = AbortRequest {
        migration: m.name.clone(),
        epoch: m.epoch,
        reason: format!("cancelled by {}", record.cancelled_by),
    };
    let mut agent = core.agent(&m.source_node)?;
    answer(&m.source_node, ORDER, agent.abort(request)).await.map(|_| ())
}

async fn ask(core: &Core, node: &str, migration: &str) -> Result<MigrationStatus, Status> {
    let request = GetAgentMigrationRequest { migration: migration.to_owned() };
    answer(node, QUESTION, core.agent(node)?.get_migration(request)).await
}

/// The state of a node's copy of a container; `None` when it has none.
async fn copy(core: &Core, node: &str, container: &str) -> Result<Option<ContainerState>, Status> {
    let mut agent = core.agent(node)?;
    let all = answer(node, QUESTION, agent.list_containers(ListAgentContainersRequest {})).await?;
    Ok(all.containers.iter().find(|c| c.name == container).map(|c| c.state()))
}
