//! What agents call. A node's name is its certificate's, never the message's.

use std::pin::Pin;
use std::time::Duration;

use proto::error::{ApiError, invalid_field, not_found};
use proto::v1::registry_server::Registry;
use proto::v1::{
    AskDecisionRequest, AskDecisionResponse, Decision, HeartbeatRequest, HeartbeatResponse, JoinRequest,
    JoinResponse, Node, Phase, ReportOutcomeRequest, ReportOutcomeResponse,
};
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status, Streaming};

use super::Api;
use super::access::{Access, authorize, authorize_stream};
use super::limits;
use crate::core::End;
use crate::drive::{Fence, decision_in, merge, readmit};
use crate::store::Record;

fn check_address(field: &str, address: &str) -> Result<(), Status> {
    let port =
        address.rsplit_once(':').filter(|(host, _)| !host.is_empty()).map(|(_, port)| port.parse::<u16>());
    match port {
        Some(Ok(1..)) => Ok(()),
        _ => Err(invalid_field(field, format!("{address:?} is not HOST:PORT")).status()),
    }
}

/// The record of a migration, if `node` is one of its two.
fn of_node(record: Option<Record>, name: &str, node: &str) -> Result<Record, Status> {
    let record = record.ok_or_else(|| not_found("migration", name))?;
    let m = &record.migration;
    if m.source_node == node || m.target_node == node {
        return Ok(record);
    }
    let message = format!("migration {name} is between {} and {}", m.source_node, m.target_node);
    Err(ApiError::new(Code::PermissionDenied, "NOT_A_PARTY", message).with("migration", name).status())
}

#[tonic::async_trait]
impl Registry for Api {
    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinResponse>, Status> {
        let name = authorize(&request, Access::Report)?.name().to_owned();
        let request = request.into_inner();
        check_address("agent_address", &request.agent_address)?;
        check_address("peer_address", &request.peer_address)?;
        if request.facts.is_none() {
            return Err(invalid_field("facts", "is missing").status());
        }
        readmit(&self.core, &name, &request.agent_address).await.map_err(|fence| refused(&name, fence))?;
        let node = Node {
            name: name.clone(),
            agent_address: request.agent_address,
            peer_address: request.peer_address,
            facts: request.facts,
            labels: request.labels,
            ..Node::default()
        };
        let record = self.core.cluster.join(node, request.containers);
        self.core.store.put_node(&record, true)?;
        tracing::info!(node = name, incarnation = request.incarnation, "node joined");
        self.core.wake.notify_one();
        let heartbeat_milliseconds = self.core.settings.heartbeat_milliseconds;
        Ok(Response::new(JoinResponse { heartbeat_milliseconds }))
    }

    type HeartbeatStream = Pin<Box<dyn Stream<Item = Result<HeartbeatResponse, Status>> + Send>>;

    async fn heartbeat(
        &self,
        request: Request<Streaming<HeartbeatRequest>>,
    ) -> Result<Response<Self::HeartbeatStream>, Status> {
        let name = authorize_stream(&request, Access::Report)?.name().to_owned();
        let mut beats = request.into_inner();
        let (sender, receiver) = mpsc::channel(1);
        let api = self.clone();
        tokio::spawn(async move {
            let stopped = api.stopped();
            tokio::pin!(stopped);
            loop {
                let beat = tokio::select! {
                    beat = beats.message() => beat,
                    () = &mut stopped => return,
                };
                let Ok(Some(beat)) = beat else { return };
                let answer = api.heard(&name, beat);
                let last = answer.is_err();
                if sender.send(answer).await.is_err() || last {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn report_outcome(
        &self,
        request: Request<ReportOutcomeRequest>,
    ) -> Result<Response<ReportOutcomeResponse>, Status> {
        let node = authorize(&request, Access::Report)?.name().to_owned();
        let request = request.into_inner();
        let status = request.status.ok_or_else(|| invalid_field("status", "is missing"))?;
        let known = self.core.store.get(&status.migration)?;
        if known.is_none() {
            // Of a store that was lost. Its target may still ask for it.
            tracing::info!(node, migration = status.migration, "an outcome of an unknown migration");
            if let (true, Some(decision)) = (request.as_source, decision_in(status.phase())) {
                self.core.store.put_decision(&status.migration, status.epoch, decision)?;
            }
            return Ok(Response::new(ReportOutcomeResponse {}));
        }
        let name = status.migration.clone();
        let record = of_node(known, &name, &node)?;
        let m = &record.migration;
        let expected = if request.as_source { &m.source_node } else { &m.target_node };
        if *expected != node {
            let message = format!("that side of migration {name} is {expected}");
            return Err(ApiError::new(Code::PermissionDenied, "NOT_A_PARTY", message).status());
        }
        tracing::info!(
            node,
            migration = name,
            epoch = status.epoch,
            phase = status.phase().as_str_name(),
            as_source = request.as_source,
            "outcome reported"
        );
        if request.as_source {
            self.core.update(&name, |record| merge(record, status))?;
        } else if status.phase() == Phase::Succeeded && status.epoch == m.epoch && record.resolution.is_none()
        {
            // The target says so only once it has written that it owns the container. The source knows how long the
            // pause was and says so a moment later: its word is better, if it comes.
            self.source_speaks(&name).await?;
            self.core
                .finish(&name, &End::new(Phase::Succeeded, "Committed", "the target owns the container"))?;
        }
        Ok(Response::new(ReportOutcomeResponse {}))
    }

    async fn ask_decision(
        &self,
        request: Request<AskDecisionRequest>,
    ) -> Result<Response<AskDecisionResponse>, Status> {
        let node = authorize(&request, Access::Report)?.name().to_owned();
        let AskDecisionRequest { migration, epoch } = request.into_inner();
        let known = self.core.store.get(&migration)?;
        if known.is_none() {
            let decision = self.core.store.decision(&migration, epoch)?.into();
            return Ok(Response::new(AskDecisionResponse { decision }));
        }
        let record = of_node(known, &migration, &node)?;
        // Only what the source reported about this very epoch; never a presumption.
        let decision = match record.decision() {
            decided if epoch == record.migration.epoch && decided != Decision::Unspecified => decided,
            _ => Decision::Undecided,
        };
        Ok(Response::new(AskDecisionResponse { decision: decision.into() }))
    }
}

/// How long the source of a migration that has succeeded at its target may take to say so itself.
const SOURCE_SPEAKS: Duration = Duration::from_secs(2);

impl Api {
    /// Waits until the migration is over by what its source says, but not for long.
    async fn source_speaks(&self, name: &str) -> Result<(), Status> {
        let mut changes = self.core.store.latest();
        let over = async {
            while self.core.store.get(name)?.is_some_and(|record| !record.is_over()) {
                if changes.changed().await.is_err() {
                    break;
                }
            }
            Ok(())
        };
        // Over time: then the target's word has to do.
        tokio::time::timeout(SOURCE_SPEAKS, over).await.unwrap_or(Ok(()))
    }

    fn heard(&self, name: &str, beat: HeartbeatRequest) -> Result<HeartbeatResponse, Status> {
        limits::check(&beat, &limits::AGENT)?;
        match self.core.cluster.heartbeat(name, beat.containers, beat.facts) {
            Some(changed) => {
                if let Some(record) = changed {
                    self.core.store.put_node(&record, false)?;
                    // A migration may wait for just this.
                    self.core.wake.notify_one();
                }
                Ok(HeartbeatResponse {})
            }
            None => {
                let message = format!("{name} has not joined since the coordinator started");
                Err(ApiError::new(Code::FailedPrecondition, "NOT_JOINED", message).status())
            }
        }
    }
}

fn refused(node: &str, fence: Fence) -> Status {
    let message = match fence {
        Fence::Store(error) => return error.into(),
        Fence::Unacknowledged(migration) => {
            format!("{node} is fenced until the owner has acknowledged the resolution of {migration}")
        }
        Fence::NotTold(migration, status) => {
            format!("{node} did not take the resolution of {migration}: {}", status.message())
        }
    };
    ApiError::new(Code::Unavailable, "NODE_FENCED", message).with("node", node).status()
}
