//! Drives one migration, from its check to its end.
//!
//! Nothing about a migration lives only here: every step begins from the store's record, so that after a restart
//! at any moment the next step is the right one. The agents decide and finish alone; the coordinator orders,
//! then only learns.

mod follow;
mod order;
mod resolve;

pub(crate) use follow::abort;
pub(crate) use resolve::{Fence, readmit};

use std::sync::Arc;
use std::time::Duration;

use proto::v1::{Decision, MigrationStatus, Phase};
use tokio::time::Instant;
use tracing::Instrument as _;

use crate::core::{Core, End};
use crate::store::{Record, StoreError};

/// What to do after a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// The next one, at once.
    Next,
    /// The same one, after a while.
    Again,
    /// It is over.
    Over,
}

struct Driver {
    core: Arc<Core>,
    name: String,
    /// Since when the step could not be done because an agent is unreachable.
    stuck: Option<Instant>,
}

/// Drives a migration to its end.
pub(crate) async fn drive(core: Arc<Core>, name: String) {
    let span = tracing::info_span!("migration", id = %name, role = "coordinator");
    if let Ok(Some(record)) = core.store.get(&name) {
        proto::telemetry::root(&span, &record.migration.uid);
    }
    Driver { core, name, stuck: None }.run().instrument(span).await;
}

/// Doubles from 50 ms to 2 s.
struct Pause(Duration);

impl Default for Pause {
    fn default() -> Self {
        Self(Duration::from_millis(50))
    }
}

impl Pause {
    async fn wait(&mut self) {
        tokio::time::sleep(self.0).await;
        self.0 = (self.0 * 2).min(Duration::from_secs(2));
    }
}

impl Driver {
    /// Step after step.
    async fn run(mut self) {
        let mut pause = Pause::default();
        loop {
            match self.step().await {
                Ok(Step::Over) => return,
                Ok(Step::Next) => {
                    self.stuck = None;
                    pause = Pause::default();
                }
                Ok(Step::Again) => pause.wait().await,
                Err(error) => {
                    tracing::error!(error = &error as &dyn std::error::Error, "the store failed");
                    pause.wait().await;
                }
            }
        }
    }

    async fn step(&mut self) -> Result<Step, StoreError> {
        let Some(record) = self.core.store.get(&self.name)? else { return Ok(Step::Over) };
        if record.is_over() {
            Ok(Step::Over)
        } else if let Some(resolution) = record.resolution.clone() {
            self.resolve(&record, &resolution).instrument(phase("resolving")).await
        } else if record.start_ordered {
            self.follow(record).instrument(phase("following")).await
        } else if !record.cancelled_by.is_empty() {
            // The source was never asked to begin, so there is nothing to undo there.
            self.end(&End::new(
                Phase::Cancelled,
                "Cancelled",
                format!("cancelled by {}", record.cancelled_by),
            ))
        } else if record.migration.epoch == 0 {
            self.check(&record).instrument(phase("checking")).await
        } else {
            self.start(&record).instrument(phase("preparing")).await
        }
    }

    fn end(&self, end: &End) -> Result<Step, StoreError> {
        let record = self.core.finish(&self.name, end)?;
        Ok(if record.is_over() { Step::Over } else { Step::Again })
    }

    /// How long this step has been stuck.
    fn stuck_for(&mut self) -> Duration {
        self.stuck.get_or_insert_with(Instant::now).elapsed()
    }
}

fn phase(name: &'static str) -> tracing::Span {
    tracing::info_span!("phase", phase = name)
}

/// What a source has decided when it reports this phase; `None` while it has not.
pub(crate) fn decision_in(phase: Phase) -> Option<Decision> {
    match phase {
        Phase::Completing | Phase::Succeeded => Some(Decision::Committed),
        Phase::Failed | Phase::Cancelled => Some(Decision::Aborted),
        Phase::OutcomeUnknown => Some(Decision::Unknown),
        _ => None,
    }
}

/// Takes over what the source's agent says about its side. Its word is the truth but for two things: what
/// belongs to another epoch, and what comes after an operator's resolution.
pub(crate) fn merge(record: &mut Record, status: MigrationStatus) {
    if status.epoch != record.migration.epoch || record.resolution.is_some() || record.is_over() {
        return;
    }
    let phase = status.phase();
    if let Some(decision) = decision_in(phase)
        && record.decision() != Decision::Committed
    {
        record.set_decision(decision);
    }
    record.start_seen = true;
    let m = &mut record.migration;
    // An agent that was restarted has forgotten the rounds that it told of before.
    if status.rounds.len() >= m.rounds.len() {
        m.rounds = status.rounds;
    }
    m.downtime = status.downtime.or_else(|| m.downtime.take());
    m.bytes_sent = m.bytes_sent.max(status.bytes_sent);
    m.total_seconds = m.total_seconds.max(status.total_seconds);
    m.remaining_bytes = status.remaining_bytes;
    if !status.refusals.is_empty() {
        m.refusals = status.refusals;
    }
    record.source_events = status.events;
    m.events = [&record.events[..], &record.source_events[..]].concat();
    match phase {
        Phase::Unspecified | Phase::Pending => {}
        Phase::Succeeded | Phase::Failed | Phase::Cancelled | Phase::OutcomeUnknown => {
            let reason = match (status.reason.as_str(), phase) {
                ("", Phase::Succeeded) => "Committed",
                ("", Phase::Cancelled) => "Cancelled",
                ("", Phase::OutcomeUnknown) => "OutcomeUnknown",
                ("", _) => "Failed",
                (reason, _) => reason,
            };
            End::new(phase, reason, status.message).apply(record);
        }
        running => {
            m.set_phase(running);
            m.reason.clear();
            m.message.clear();
        }
    }
}
