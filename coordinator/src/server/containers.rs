//! Containers: each call is relayed to the agent of the node where the container is.

use prost::Message as _;
use proto::error::{ApiError, invalid_field, not_found};
use proto::identity::check_name;
use proto::v1::{
    CandidateVerdict, CheckMoveRequest, CheckMoveResponse, Container, CreateContainerRequest,
    DeleteContainerRequest, DeleteContainerResponse, ExecInput, ExecOutput, LogsChunk, LogsRequest,
    NodeState, StopContainerRequest,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

use super::Api;
use super::limits;
use super::requests::{check_request_id, same_request};
use crate::admit::loads;
use crate::agent_client::{LONG, ORDER, answer, translate};
use crate::check::{Checked, check};
use crate::place::group;
use crate::predict::predict;
use crate::store::Request;

/// Beyond the grace period that a stop takes.
const STOP: std::time::Duration = std::time::Duration::from_secs(20);
/// The longest grace period, seconds.
const MAX_GRACE: u32 = 3600;

impl Api {
    /// A container, where it is.
    pub(super) fn locate(&self, name: &str) -> Result<Container, Status> {
        self.core.cluster.container(name).ok_or_else(|| not_found("container", name).status())
    }

    /// An error while the container is being migrated: it must not be changed under the engine's hands.
    fn not_migrating(&self, name: &str) -> Result<(), Status> {
        match self.core.store.active_of(name) {
            Some(migration) => Err(running(name, &migration)),
            None => Ok(()),
        }
    }

    pub(super) async fn create(&self, request: CreateContainerRequest) -> Result<Container, Status> {
        let id = check_request_id(&request.request_id)?;
        let encoded = request.encode_to_vec();
        let container = request.container.clone().ok_or_else(|| invalid_field("container", "is missing"))?;
        check_name(&container.name).map_err(|e| invalid_field("container.name", e.to_string()))?;
        if container.bundle.is_empty() {
            return Err(invalid_field("container.bundle", "is empty").status());
        }
        let node = self.core.cluster.node(&request.node).ok_or_else(|| not_found("node", &request.node))?;
        let known = id.map(|id| self.core.store.request(id)).transpose()?.flatten();
        if let Some(known) = &known {
            same_request::<CreateContainerRequest>(known, &encoded)?;
            if let Some(made) = self.core.cluster.container(&container.name) {
                return Ok(made);
            }
        }
        if let Some(there) = self.core.cluster.container(&container.name) {
            let message = format!("a container {} is on {} already", there.name, there.node);
            return Err(ApiError::new(Code::AlreadyExists, "CONTAINER_EXISTS", message)
                .with("node", there.node)
                .status());
        }
        if node.cordoned {
            return Err(ApiError::new(
                Code::FailedPrecondition,
                "NODE_CORDONED",
                format!("{} is cordoned", node.name),
            )
            .precondition("NODE_CORDONED", format!("node/{}", node.name), "is cordoned: uncordon it")
            .status());
        }
        let arrivals = loads(&self.core.store.active()?, &self.core.cluster, true).of(&node.name).coming;
        let comes = group(&container.labels).and_then(|own| {
            arrivals.into_iter().find(|c| group(&c.labels) == Some(own)).map(|c| c.container)
        });
        let there = self.core.cluster.neighbour(&node.name, &container.name, &container.labels);
        if let Some(other) = there.or(comes) {
            let message =
                format!("{other}, of the same anti-affinity group, is on {} or comes there", node.name);
            return Err(ApiError::new(Code::FailedPrecondition, "ANTI_AFFINITY", message)
                .with("container", other)
                .with("node", &node.name)
                .status());
        }
        if let Some(id) = id {
            let created = prost_types::Timestamp::from(std::time::SystemTime::now()).seconds;
            let remembered = Request { request: encoded, name: container.name.clone(), created };
            self.core.store.remember(id, &remembered)?;
        }
        let name = container.name.clone();
        let mut agent = self.core.agent(&node.name)?;
        let made = answer(&node.name, LONG, agent.run_container(container)).await;
        match made {
            Ok(mut made) => {
                made.node = node.name;
                self.core.cluster.noted(made.clone());
                Ok(made)
            }
            // The first try of this request has made it, and its answer was lost.
            Err(status) if status.code() == Code::AlreadyExists && known.is_some() => {
                self.refreshed(&node.name, &name).await
            }
            Err(status) => {
                if let (Some(id), true) = (id, status.code() != Code::Unavailable) {
                    self.core.store.forget(id)?;
                }
                Err(status)
            }
        }
    }

    /// A container as its node's agent says now.
    async fn refreshed(&self, node: &str, name: &str) -> Result<Container, Status> {
        let mut agent = self.core.agent(node)?;
        let all =
            answer(node, ORDER, agent.list_containers(proto::v1::ListAgentContainersRequest {})).await?;
        let mut found = all
            .containers
            .into_iter()
            .find(|c| c.name == name)
            .ok_or_else(|| not_found("container", name))?;
        found.node = node.to_owned();
        self.core.cluster.noted(found.clone());
        Ok(found)
    }

    pub(super) async fn stop(&self, request: StopContainerRequest) -> Result<Container, Status> {
        if request.grace_seconds > MAX_GRACE {
            return Err(invalid_field("grace_seconds", format!("is more than {MAX_GRACE}")).status());
        }
        let there = self.locate(&request.name)?;
        self.not_migrating(&request.name)?;
        let grace = if request.grace_seconds == 0 { 10 } else { request.grace_seconds };
        let limit = STOP + std::time::Duration::from_secs(grace.into());
        let mut agent = self.core.agent(&there.node)?;
        let mut stopped = answer(&there.node, limit, agent.stop_container(request)).await?;
        stopped.node = there.node;
        self.core.cluster.noted(stopped.clone());
        Ok(stopped)
    }

    pub(super) async fn delete(
        &self,
        request: DeleteContainerRequest,
    ) -> Result<DeleteContainerResponse, Status> {
        let there = self.locate(&request.name)?;
        self.not_migrating(&request.name)?;
        let name = request.name.clone();
        let mut agent = self.core.agent(&there.node)?;
        let deleted = answer(&there.node, LONG, agent.delete_container(request)).await?;
        self.core.cluster.forgotten(&there.node, &name);
        Ok(deleted)
    }

    pub(super) async fn relay_logs(&self, request: LogsRequest) -> Result<Streaming<LogsChunk>, Status> {
        let there = self.locate(&request.name)?;
        let mut agent = self.core.agent(&there.node)?;
        answer(&there.node, ORDER, agent.logs(request)).await
    }

    pub(super) async fn relay_exec(
        &self,
        mut input: Streaming<ExecInput>,
    ) -> Result<(String, Streaming<ExecOutput>), Status> {
        let first =
            input.message().await?.ok_or_else(|| invalid_field("name", "the first message is missing"))?;
        limits::check(&first, &limits::CALLER)?;
        if first.args.is_empty() {
            return Err(invalid_field("args", "is empty").status());
        }
        let there = self.locate(&first.name)?;
        let subject = first.name.clone();
        let (sender, receiver) = mpsc::channel(8);
        // The channel is empty: there is room.
        let _ = sender.send(first).await;
        // What comes now is its standard input, each part no longer than a message.
        tokio::spawn(async move {
            while let Ok(Some(message)) = input.message().await {
                if sender.send(message).await.is_err() {
                    return;
                }
            }
        });
        let mut agent = self.core.agent(&there.node)?;
        let output =
            agent.exec(ReceiverStream::new(receiver)).await.map_err(|e| translate(&there.node, e))?;
        Ok((subject, output.into_inner()))
    }

    pub(super) async fn check_move(&self, request: CheckMoveRequest) -> Result<CheckMoveResponse, Status> {
        let container = self.locate(&request.container)?;
        if !request.target_node.is_empty() && self.core.cluster.node(&request.target_node).is_none() {
            return Err(not_found("node", &request.target_node).status());
        }
        let Checked { answer: checked, verdicts, .. } =
            check(&self.core, &container, &request.target_node, request.inventory).await?;
        let mut candidates: Vec<CandidateVerdict> = verdicts
            .into_iter()
            .map(|v| CandidateVerdict {
                node: v.node,
                fits: v.reasons.is_empty(),
                reasons: v.reasons,
                ..CandidateVerdict::default()
            })
            .collect();
        if request.predict && checked.refusals.is_empty() {
            predict(&self.core, &container, request, &mut candidates).await?;
        }
        Ok(CheckMoveResponse { container: Some(checked), candidates })
    }

    /// Whether a node's heartbeats come.
    pub(super) fn is_ready(&self, node: &str) -> bool {
        self.core.cluster.node(node).is_some_and(|node| node.state() == NodeState::Ready)
    }
}

/// ABORTED: the container has a migration that is not over.
pub(super) fn running(container: &str, migration: &str) -> Status {
    let message = format!("{container} is being migrated by {migration}");
    ApiError::new(Code::Aborted, "MIGRATION_RUNNING", message)
        .with("migration", migration)
        .with("container", container)
        .status()
}
