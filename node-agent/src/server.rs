//! The gRPC service `NodeAgent`. Messages become domain types here and go no further.
//!
//! Only the coordinator and administrators may call; health and reflection answer every peer whose
//! certificate is good.

pub(crate) mod convert;
mod streams;

use std::sync::Arc;

use image::groups::Groups;
use proto::error::{ApiError, invalid_field, not_found};
use proto::identity::Role;
use proto::telemetry::Parent;
use proto::tls::{Tls, listen, peer};
use proto::v1;
use proto::v1::node_agent_server::{NodeAgent, NodeAgentServer};
use tokio::net::TcpListener;
use tokio::task::spawn_blocking;
use tonic::{Code, Request, Response, Status, Streaming};

use crate::commit::Owner;
use crate::facts;
use crate::runtime::cgroup::carry::needed;
use crate::runtime::{MovingNode, Runtime, RuntimeError};
use crate::session::Migrations;
use crate::session::orders::{OrderError, Prepare, Resolve, Start};
use crate::session::ports::{Node as _, PortError};
use crate::session::predict;
use crate::telemetry::chain;

/// The longest description of a container in an answer, bytes: tonic takes messages of 4 MiB.
const MAX_DESCRIPTION: usize = 2 << 20;

/// What the service works on.
#[derive(Clone, Debug)]
pub struct Service {
    /// The node's name.
    pub node: String,
    /// Where other agents connect to.
    pub peer_address: String,
    /// A number of this run of the agent.
    pub incarnation: u64,
    /// Its containers.
    pub runtime: Arc<Runtime>,
    /// Its migrations.
    pub migrations: Migrations,
}

/// Serves until `stop` completes; open requests get a moment to end.
///
/// # Errors
/// When the server cannot be built or accepting fails.
pub async fn serve(
    service: Service,
    listener: TcpListener,
    tls: &Tls,
    stop: impl Future<Output = ()>,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<NodeAgentServer<Service>>().await;
    let (reflection, older_reflection) = proto::reflection::services(&["gantry.v1.NodeAgent"])?;
    let agent = NodeAgentServer::with_interceptor(service, authorize);
    tonic::transport::Server::builder()
        .add_service(health_service)
        .add_service(reflection)
        .add_service(older_reflection)
        .add_service(agent)
        .serve_with_incoming_shutdown(listen(listener, tls), stop)
        .await?;
    Ok(())
}

fn authorize(request: Request<()>) -> Result<Request<()>, Status> {
    let identity = &peer(&request)?.identity;
    match identity.role() {
        Role::Coordinator | Role::Admin => Ok(request),
        Role::Node | Role::Viewer => Err(ApiError::new(
            Code::PermissionDenied,
            "ROLE_NOT_ALLOWED",
            format!("{identity} may not call a node agent; use the coordinator's or an administrator's certificate"),
        )
        .status()),
    }
}

impl Service {
    /// Runs something that blocks on the runtime.
    async fn runtime<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Runtime) -> Result<T, RuntimeError> + Send + 'static,
    ) -> Result<T, Status> {
        let runtime = Arc::clone(&self.runtime);
        blocking(move || work(&runtime)).await?.map_err(|error| convert::runtime_error(&error))
    }

    /// Runs something that blocks on the migrations.
    async fn order<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Migrations) -> Result<T, OrderError> + Send + 'static,
    ) -> Result<T, Status> {
        let migrations = self.migrations.clone();
        blocking(move || work(&migrations)).await?.map_err(|error| convert::order_error(&error))
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Status> {
    spawn_blocking(work).await.map_err(|error| {
        ApiError::new(Code::Internal, "AGENT_FAILED", format!("the request's task ended: {error}")).status()
    })
}

#[tonic::async_trait]
impl NodeAgent for Service {
    async fn get_facts(
        &self,
        _: Request<v1::GetFactsRequest>,
    ) -> Result<Response<v1::GetFactsResponse>, Status> {
        let runtime = Arc::clone(&self.runtime);
        let versions = self.migrations.versions();
        let facts = blocking(move || facts::node_facts(runtime.layout(), versions)).await?;
        Ok(Response::new(v1::GetFactsResponse {
            facts: Some(facts),
            peer_address: self.peer_address.clone(),
            incarnation: self.incarnation,
        }))
    }

    async fn list_containers(
        &self,
        _: Request<v1::ListAgentContainersRequest>,
    ) -> Result<Response<v1::ListAgentContainersResponse>, Status> {
        let list = self.runtime(Runtime::list).await?;
        let containers = list.into_iter().map(|status| convert::container(status, &self.node)).collect();
        Ok(Response::new(v1::ListAgentContainersResponse { containers }))
    }

    async fn run_container(
        &self,
        request: Request<v1::RunContainerRequest>,
    ) -> Result<Response<v1::Container>, Status> {
        let request = convert::run_request(request.into_inner())?;
        let status = self.runtime(move |runtime| runtime.run(request)).await?;
        tracing::info!(container = %status.name, pid = status.pid, "started");
        Ok(Response::new(convert::container(status, &self.node)))
    }

    async fn stop_container(
        &self,
        request: Request<v1::StopContainerRequest>,
    ) -> Result<Response<v1::Container>, Status> {
        let request = request.into_inner();
        let name = convert::name(&request.name)?;
        let seconds = if request.grace_seconds == 0 { 10 } else { request.grace_seconds };
        let grace = std::time::Duration::from_secs(seconds.into());
        let status = self.runtime(move |runtime| runtime.stop(&name, grace)).await?;
        tracing::info!(container = %status.name, exit_status = status.exit_status, "stopped");
        Ok(Response::new(convert::container(status, &self.node)))
    }

    async fn delete_container(
        &self,
        request: Request<v1::DeleteContainerRequest>,
    ) -> Result<Response<v1::DeleteContainerResponse>, Status> {
        let request = request.into_inner();
        let name = convert::name(&request.name)?;
        let deleted = name.clone();
        self.runtime(move |runtime| runtime.delete(&name, request.force)).await?;
        tracing::info!(container = %deleted, "deleted");
        Ok(Response::new(v1::DeleteContainerResponse {}))
    }

    type LogsStream = streams::LogsStream;

    async fn logs(&self, request: Request<v1::LogsRequest>) -> Result<Response<Self::LogsStream>, Status> {
        let request = request.into_inner();
        let name = convert::name(&request.name)?;
        let reader = self.runtime(move |runtime| runtime.logs(&name)).await?;
        Ok(Response::new(streams::logs(Arc::clone(&self.runtime), reader, request.follow)))
    }

    type ExecStream = streams::ExecStream;

    async fn exec(
        &self,
        request: Request<Streaming<v1::ExecInput>>,
    ) -> Result<Response<Self::ExecStream>, Status> {
        let mut input = request.into_inner();
        let first = input.message().await?.unwrap_or_default();
        let name = convert::name(&first.name)?;
        if first.args.is_empty() {
            return Err(invalid_field("args", "a command is needed").status());
        }
        let command = self.runtime(move |runtime| runtime.exec(&name, &first.args)).await?;
        streams::exec(command, input).map(Response::new)
    }

    async fn check_container(
        &self,
        request: Request<v1::CheckContainerRequest>,
    ) -> Result<Response<v1::CheckContainerResponse>, Status> {
        let v1::CheckContainerRequest { name, inventory: items } = request.into_inner();
        let node = MovingNode::new(Arc::clone(&self.runtime));
        let looked = blocking(move || {
            let source = node.source(&name)?;
            let inspect = if items { engine::source::inspect_items } else { engine::source::inspect };
            let inventory = inspect(&source.tree());
            let mut inventory =
                inventory.map_err(|error| PortError::failed(format!("look at {name}"), error))?;
            inventory.refusals.extend(source.host_refusals()?);
            let groups = match source.groups().look(&[]) {
                Err(PortError::Refused(refusals)) => {
                    inventory.refusals.extend(refusals);
                    Groups::default()
                }
                other => other?,
            };
            let controllers = needed(&groups);
            let description = match node.outline(&name, inventory.needs.clone(), groups) {
                Err(PortError::Refused(refusals)) => {
                    inventory.refusals.extend(refusals);
                    Vec::new()
                }
                // Targets are asked when it moves.
                Ok(description) if description.len() > MAX_DESCRIPTION => Vec::new(),
                other => other?,
            };
            Ok::<_, PortError>((inventory, controllers, description))
        });
        let (inventory, controllers, description) = looked.await?.map_err(|error| match error {
            PortError::NoContainer(name) => not_found("container", &name).status(),
            error => ApiError::new(Code::Internal, "INSPECT_FAILED", chain(&error)).status(),
        })?;
        let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        // What the host found is not among them.
        let (items, items_left_out) =
            if items { crate::inventory::items(&inventory) } else { (Vec::new(), 0) };
        Ok(Response::new(v1::CheckContainerResponse {
            items,
            items_left_out,
            refusals: inventory.refusals.iter().map(convert::refusal).collect(),
            resident_bytes: inventory.resident_bytes,
            processes: count(inventory.processes),
            threads: count(inventory.threads),
            descriptors: count(inventory.descriptors),
            connections: count(inventory.connections),
            cgroup_controllers: controllers,
            description,
        }))
    }

    async fn check_arrival(
        &self,
        request: Request<v1::CheckArrivalRequest>,
    ) -> Result<Response<v1::CheckArrivalResponse>, Status> {
        let v1::CheckArrivalRequest { name, description } = request.into_inner();
        let node = MovingNode::new(Arc::clone(&self.runtime));
        let migrations = self.migrations.clone();
        let looked = blocking(move || {
            // What a container left here when it moved away is no obstacle to its return.
            migrations.wait_until_left(&name);
            node.lacks_for(&name, &description)
        });
        let lacks = looked.await?;
        let lacks = lacks.map_err(|error| invalid_field("description", chain(&error)).status())?;
        Ok(Response::new(v1::CheckArrivalResponse { refusals: lacks.iter().map(convert::refusal).collect() }))
    }

    async fn predict(
        &self,
        request: Request<v1::PredictRequest>,
    ) -> Result<Response<v1::PredictResponse>, Status> {
        let request = request.into_inner();
        let question = predict::Question {
            container: request.container,
            limits: convert::limits(request.policy),
            targets: request.targets.into_iter().map(|target| (target.node, target.peer_address)).collect(),
        };
        let forecasts = self.order(move |migrations| migrations.predict(&question)).await?;
        let forecasts = forecasts.into_iter().map(convert::forecast).collect();
        Ok(Response::new(v1::PredictResponse { forecasts }))
    }

    async fn prepare(
        &self,
        request: Request<v1::PrepareRequest>,
    ) -> Result<Response<v1::PrepareResponse>, Status> {
        let trace = Parent::of(request.metadata());
        let request = request.into_inner();
        let order = Prepare {
            migration: request.migration,
            epoch: request.epoch,
            container: request.container,
            source_node: request.source_node,
            memory_bytes: request.memory_bytes,
            trace,
        };
        let prepared = self.order(move |migrations| migrations.prepare(&order)).await?;
        Ok(Response::new(v1::PrepareResponse {
            incarnation: prepared.incarnation,
            peer_address: prepared.peer_address,
        }))
    }

    async fn start(&self, request: Request<v1::StartRequest>) -> Result<Response<v1::StartResponse>, Status> {
        let trace = Parent::of(request.metadata());
        let request = request.into_inner();
        let order = Start {
            migration: request.migration,
            epoch: request.epoch,
            container: request.container,
            target_node: request.target_node,
            target_address: request.target_address,
            target_incarnation: request.target_incarnation,
            policy: convert::limits(request.policy),
            trace,
        };
        let incarnation = self.order(move |migrations| migrations.start(&order)).await?;
        Ok(Response::new(v1::StartResponse { incarnation }))
    }

    async fn abort(&self, request: Request<v1::AbortRequest>) -> Result<Response<v1::AbortResponse>, Status> {
        let v1::AbortRequest { migration, epoch, reason } = request.into_inner();
        self.order(move |migrations| migrations.abort(&migration, epoch, &reason)).await?;
        Ok(Response::new(v1::AbortResponse {}))
    }

    async fn get_migration(
        &self,
        request: Request<v1::GetAgentMigrationRequest>,
    ) -> Result<Response<v1::MigrationStatus>, Status> {
        let name = request.into_inner().migration;
        let status = self.migrations.status(&name).ok_or_else(|| not_found("migration", &name).status())?;
        Ok(Response::new(convert::migration(&status)))
    }

    type WatchMigrationStream = streams::WatchStream;

    async fn watch_migration(
        &self,
        request: Request<v1::GetAgentMigrationRequest>,
    ) -> Result<Response<Self::WatchMigrationStream>, Status> {
        let name = request.into_inner().migration;
        let status = self.migrations.watch(&name).ok_or_else(|| not_found("migration", &name).status())?;
        Ok(Response::new(streams::watch(status)))
    }

    async fn resolve(
        &self,
        request: Request<v1::ResolveAgentRequest>,
    ) -> Result<Response<v1::ResolveAgentResponse>, Status> {
        let request = request.into_inner();
        let owner = match v1::Owner::try_from(request.owner) {
            Ok(v1::Owner::Source) => Owner::Source,
            Ok(v1::Owner::Target) => Owner::Target,
            _ => return Err(invalid_field("owner", "must be OWNER_SOURCE or OWNER_TARGET").status()),
        };
        let order = Resolve {
            migration: request.migration,
            container: request.container,
            epoch: request.epoch,
            owner,
            fenced: request.fenced,
        };
        self.order(move |migrations| migrations.resolve(&order)).await?;
        Ok(Response::new(v1::ResolveAgentResponse {}))
    }
}
