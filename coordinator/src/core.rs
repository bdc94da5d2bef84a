//! What every part of the coordinator shares.

use std::sync::Mutex;
use std::time::SystemTime;

use proto::v1::node_agent_client::NodeAgentClient;
use proto::v1::{Condition, Migration, Node, Phase};
use tokio::sync::Notify;
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::agent_client::Agents;
use crate::cluster::Cluster;
use crate::config::Settings;
use crate::metrics::Metrics;
use crate::predict::Predictions;
use crate::store::{Record, Store, StoreError};

/// What every part of the coordinator shares.
#[derive(Debug)]
pub(crate) struct Core {
    /// What outlives the process.
    pub(crate) store: Store,
    /// The nodes.
    pub(crate) cluster: Cluster,
    /// Connections to their agents.
    pub(crate) agents: Agents,
    /// Times and limits.
    pub(crate) settings: Settings,
    /// What is counted.
    pub(crate) metrics: Metrics,
    /// What was foreseen.
    pub(crate) predictions: Predictions,
    /// The queue has something to do.
    pub(crate) wake: Notify,
    /// Held by the evacuation that chooses targets.
    pub(crate) choosing: Mutex<()>,
}

impl Core {
    /// A client of a node's agent.
    ///
    /// # Errors
    /// NOT_FOUND for a node that never joined.
    pub(crate) fn agent(&self, node: &str) -> Result<NodeAgentClient<Channel>, Status> {
        let known = self.cluster.node(node).ok_or_else(|| proto::error::not_found("node", node))?;
        self.agents.client(node, &known.agent_address)
    }

    /// Changes a migration durably; when that ends it, everybody concerned is told.
    ///
    /// # Errors
    /// When the store fails or has no such migration.
    pub(crate) fn update(&self, name: &str, change: impl FnOnce(&mut Record)) -> Result<Record, StoreError> {
        let (ended, record) = self.store.update(name, |record| {
            let was_over = record.is_over();
            change(record);
            !was_over && record.is_over()
        })?;
        if ended {
            let m = &record.migration;
            if m.phase() == Phase::Succeeded {
                self.cluster.moved(record.container(), &m.source_node, &m.target_node, m.epoch);
            }
            summarize(m);
            self.metrics.ended(m);
            self.wake.notify_one();
        }
        Ok(record)
    }

    /// Cordons or uncordons a node, durably; `None` when it never joined.
    ///
    /// # Errors
    /// When the store fails.
    pub(crate) fn cordon(&self, node: &str, cordoned: bool) -> Result<Option<Node>, StoreError> {
        let Some(record) = self.cluster.cordon(node, cordoned) else { return Ok(None) };
        self.store.put_node(&record, true)?;
        self.wake.notify_one();
        Ok(self.cluster.node(node))
    }

    /// Ends a migration; one that is over stays as it is.
    ///
    /// # Errors
    /// When the store fails.
    pub(crate) fn finish(&self, name: &str, end: &End) -> Result<Record, StoreError> {
        self.update(name, |record| {
            if !record.is_over() {
                end.apply(record);
            }
        })
    }
}

/// How a migration ends, or stands when nobody can tell.
#[derive(Debug, Clone)]
pub(crate) struct End {
    /// Succeeded, Failed, Cancelled or OutcomeUnknown.
    pub(crate) phase: Phase,
    /// CamelCase.
    pub(crate) reason: String,
    /// A sentence.
    pub(crate) message: String,
}

impl End {
    /// An end.
    pub(crate) fn new(phase: Phase, reason: &str, message: impl Into<String>) -> Self {
        Self { phase, reason: reason.to_owned(), message: message.into() }
    }

    /// It failed and the container is where it was.
    pub(crate) fn failed(reason: &str, message: impl Into<String>) -> Self {
        Self::new(Phase::Failed, reason, message)
    }

    /// Writes the end into a record.
    pub(crate) fn apply(&self, record: &mut Record) {
        let m = &mut record.migration;
        if m.phase() == self.phase && m.reason == self.reason && m.message == self.message {
            return;
        }
        m.set_phase(self.phase);
        m.reason = self.reason.clone();
        m.message = self.message.clone();
        let status = match self.phase {
            Phase::Succeeded => "True",
            Phase::Failed | Phase::Cancelled => "False",
            _ => "Unknown",
        };
        set_condition(&mut m.conditions, "Succeeded", status, &self.reason, &self.message);
        if record.is_over() {
            record.migration.finished = Some(SystemTime::now().into());
        }
    }
}

/// Sets one condition; its time changes only when its status does.
pub(crate) fn set_condition(
    conditions: &mut Vec<Condition>,
    kind: &str,
    status: &str,
    reason: &str,
    message: &str,
) {
    let last_transition_time = conditions
        .iter()
        .find(|c| c.r#type == kind && c.status == status)
        .map_or_else(|| Some(SystemTime::now().into()), |c| c.last_transition_time);
    conditions.retain(|c| c.r#type != kind);
    conditions.push(Condition {
        r#type: kind.to_owned(),
        status: status.to_owned(),
        reason: reason.to_owned(),
        message: message.to_owned(),
        last_transition_time,
    });
}

/// A name of protobuf as conditions spell it: `NODE_UNREACHABLE` is `NodeUnreachable`.
pub(crate) fn camel(name: &str) -> String {
    let word = |word: &str| {
        let (first, rest) = word.split_at(word.len().min(1));
        format!("{first}{}", rest.to_lowercase())
    };
    name.split('_').map(word).collect()
}

fn summarize(m: &Migration) {
    let downtime = m.downtime.clone().unwrap_or_default();
    tracing::info!(
        migration = m.name,
        epoch = m.epoch,
        phase = m.phase().as_str_name(),
        reason = m.reason,
        source = m.source_node,
        target = m.target_node,
        rounds = m.rounds.len(),
        bytes = m.bytes_sent,
        "migration ended: downtime={:.1}ms (freeze {:.1} last-pages {:.1} capture {:.1} restore {:.1} commit {:.1} network {:.1})",
        downtime.total_ms,
        downtime.freeze_ms,
        downtime.last_pages_ms,
        downtime.capture_ms,
        downtime.restore_ms,
        downtime.commit_ms,
        downtime.network_ms,
    );
}

impl From<StoreError> for Status {
    /// INTERNAL: a store that fails is not mended by trying again.
    fn from(error: StoreError) -> Self {
        tracing::error!(error = &error as &dyn std::error::Error, "the store failed");
        proto::error::ApiError::new(Code::Internal, "STORE_FAILED", error.to_string()).status()
    }
}
