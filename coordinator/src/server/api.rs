//! The service `gantry.v1.Coordinator`: every method checks who calls, and every change is audited.

use std::collections::HashMap;

use proto::error::not_found;
use proto::v1::coordinator_server::Coordinator;
use proto::v1::*;
use tonic::{Request, Response, Status, Streaming};

use super::Api;
use super::access::{Access, audit, authorize, authorize_stream};
use super::requests::{page, page_size, page_start};
use super::watch::Events;
use crate::cancel::cancel;

fn has_labels(wanted: &HashMap<String, String>, labels: &HashMap<String, String>) -> bool {
    wanted.iter().all(|(key, value)| labels.get(key) == Some(value))
}

#[tonic::async_trait]
impl Coordinator for Api {
    async fn get_node(&self, request: Request<GetNodeRequest>) -> Result<Response<Node>, Status> {
        authorize(&request, Access::Read)?;
        let name = request.into_inner().name;
        let node = self.core.cluster.node(&name).ok_or_else(|| not_found("node", &name))?;
        Ok(Response::new(node))
    }

    async fn list_nodes(
        &self,
        request: Request<ListNodesRequest>,
    ) -> Result<Response<ListNodesResponse>, Status> {
        authorize(&request, Access::Read)?;
        let request = request.into_inner();
        let (size, start) = (page_size(request.page_size)?, page_start(&request.page_token)?);
        let mut all = self.core.cluster.nodes();
        all.retain(|node| has_labels(&request.labels, &node.labels));
        let (nodes, next_page_token) = page(all, size, start, |node| &node.name);
        Ok(Response::new(ListNodesResponse { nodes, next_page_token }))
    }

    async fn cordon_node(&self, request: Request<CordonNodeRequest>) -> Result<Response<Node>, Status> {
        let who = authorize(&request, Access::Write)?;
        let CordonNodeRequest { name, cordoned } = request.into_inner();
        let result = self.cordon(&who, &name, cordoned);
        audit(&who, if cordoned { "CordonNode" } else { "UncordonNode" }, &name, &result);
        result.map(Response::new)
    }

    async fn get_container(
        &self,
        request: Request<GetContainerRequest>,
    ) -> Result<Response<Container>, Status> {
        authorize(&request, Access::Read)?;
        self.locate(&request.into_inner().name).map(Response::new)
    }

    async fn list_containers(
        &self,
        request: Request<ListContainersRequest>,
    ) -> Result<Response<ListContainersResponse>, Status> {
        authorize(&request, Access::Read)?;
        let request = request.into_inner();
        let (size, start) = (page_size(request.page_size)?, page_start(&request.page_token)?);
        let mut all = self.core.cluster.containers();
        all.retain(|container| has_labels(&request.labels, &container.labels));
        let (containers, next_page_token) = page(all, size, start, |container| &container.name);
        Ok(Response::new(ListContainersResponse { containers, next_page_token }))
    }

    async fn create_container(
        &self,
        request: Request<CreateContainerRequest>,
    ) -> Result<Response<Container>, Status> {
        let who = authorize(&request, Access::Write)?;
        let request = request.into_inner();
        let subject = request.container.as_ref().map_or_else(String::new, |container| container.name.clone());
        let result = self.create(request).await;
        audit(&who, "CreateContainer", &subject, &result);
        result.map(Response::new)
    }

    async fn stop_container(
        &self,
        request: Request<StopContainerRequest>,
    ) -> Result<Response<Container>, Status> {
        let who = authorize(&request, Access::Write)?;
        let request = request.into_inner();
        let subject = request.name.clone();
        let result = self.stop(request).await;
        audit(&who, "StopContainer", &subject, &result);
        result.map(Response::new)
    }

    async fn delete_container(
        &self,
        request: Request<DeleteContainerRequest>,
    ) -> Result<Response<DeleteContainerResponse>, Status> {
        let who = authorize(&request, Access::Write)?;
        let request = request.into_inner();
        let subject = request.name.clone();
        let result = self.delete(request).await;
        audit(&who, "DeleteContainer", &subject, &result);
        result.map(Response::new)
    }

    type LogsStream = Streaming<LogsChunk>;

    async fn logs(&self, request: Request<LogsRequest>) -> Result<Response<Self::LogsStream>, Status> {
        authorize(&request, Access::Read)?;
        self.relay_logs(request.into_inner()).await.map(Response::new)
    }

    type ExecStream = Streaming<ExecOutput>;

    async fn exec(
        &self,
        request: Request<Streaming<ExecInput>>,
    ) -> Result<Response<Self::ExecStream>, Status> {
        let who = authorize_stream(&request, Access::Write)?;
        let result = self.relay_exec(request.into_inner()).await;
        let subject = result.as_ref().map_or("", |(subject, _)| subject);
        audit(&who, "Exec", subject, &result);
        result.map(|(_, output)| Response::new(output))
    }

    async fn check_container(
        &self,
        request: Request<CheckMoveRequest>,
    ) -> Result<Response<CheckMoveResponse>, Status> {
        // A prediction has the node's agent measure the container.
        let access = if request.get_ref().predict { Access::Write } else { Access::Read };
        authorize(&request, access)?;
        self.check_move(request.into_inner()).await.map(Response::new)
    }

    async fn create_migration(
        &self,
        request: Request<CreateMigrationRequest>,
    ) -> Result<Response<Migration>, Status> {
        // A dry run changes nothing, and still it asks agents to look at what a viewer may not move.
        let who = authorize(&request, Access::Write)?;
        let request = request.into_inner();
        let subject = request.spec.as_ref().map_or_else(String::new, |spec| spec.container.clone());
        let dry = request.validate_only;
        let result = self.migrate(&who, request).await;
        if !dry {
            audit(&who, "CreateMigration", &subject, &result);
        }
        result.map(Response::new)
    }

    async fn get_migration(
        &self,
        request: Request<GetMigrationRequest>,
    ) -> Result<Response<Migration>, Status> {
        authorize(&request, Access::Read)?;
        self.migration(&request.into_inner().name).map(|record| Response::new(record.migration))
    }

    async fn list_migrations(
        &self,
        request: Request<ListMigrationsRequest>,
    ) -> Result<Response<ListMigrationsResponse>, Status> {
        authorize(&request, Access::Read)?;
        let request = request.into_inner();
        let (size, start) = (page_size(request.page_size)?, page_start(&request.page_token)?);
        // One more than asked for tells whether there is a next page.
        let keep = |record: &crate::store::Record| {
            (request.container.is_empty() || record.container() == request.container)
                && has_labels(&request.labels, &record.migration.labels)
        };
        let found = self.core.store.list(start, size + 1, keep)?;
        let found = found.into_iter().map(|record| record.migration).collect();
        let (migrations, next_page_token) = page(found, size, start, |migration: &Migration| &migration.name);
        Ok(Response::new(ListMigrationsResponse { migrations, next_page_token }))
    }

    type WatchMigrationsStream = Events<MigrationEvent>;

    async fn watch_migrations(
        &self,
        request: Request<WatchMigrationsRequest>,
    ) -> Result<Response<Self::WatchMigrationsStream>, Status> {
        authorize(&request, Access::Read)?;
        let request = request.into_inner();
        if !request.name.is_empty() {
            self.migration(&request.name)?;
        }
        self.watch(request.name, request.revision).map(Response::new)
    }

    async fn cancel_migration(
        &self,
        request: Request<CancelMigrationRequest>,
    ) -> Result<Response<Migration>, Status> {
        let who = authorize(&request, Access::Write)?;
        let name = request.into_inner().name;
        let result = cancel(&self.core, &who.to_string(), &name).await;
        audit(&who, "CancelMigration", &name, &result);
        result.map(Response::new)
    }

    async fn resolve_migration(
        &self,
        request: Request<ResolveMigrationRequest>,
    ) -> Result<Response<Migration>, Status> {
        let who = authorize(&request, Access::Write)?;
        let request = request.into_inner();
        let name = request.name.clone();
        let result = self.resolve(&who, &request);
        audit(&who, "ResolveMigration", &name, &result);
        result.map(Response::new)
    }

    async fn apply_migration_policy(
        &self,
        request: Request<ApplyMigrationPolicyRequest>,
    ) -> Result<Response<ApplyMigrationPolicyResponse>, Status> {
        let who = authorize(&request, Access::Write)?;
        let request = request.into_inner();
        let (subject, dry) = (request.name.clone(), request.validate_only);
        let result = self.apply_policy(&who, request);
        if !dry {
            audit(&who, "ApplyMigrationPolicy", &subject, &result);
        }
        result.map(Response::new)
    }

    async fn get_migration_policy(
        &self,
        request: Request<GetMigrationPolicyRequest>,
    ) -> Result<Response<MigrationPolicy>, Status> {
        authorize(&request, Access::Read)?;
        self.policy(&request.into_inner().name).map(Response::new)
    }

    async fn list_migration_policies(
        &self,
        request: Request<ListMigrationPoliciesRequest>,
    ) -> Result<Response<ListMigrationPoliciesResponse>, Status> {
        authorize(&request, Access::Read)?;
        let request = request.into_inner();
        let (size, start) = (page_size(request.page_size)?, page_start(&request.page_token)?);
        let keep = |policy: &MigrationPolicy| has_labels(&request.labels, &policy.labels);
        let found = self.core.store.list_policies(start, size + 1, keep)?;
        let (policies, next_page_token) = page(found, size, start, |policy| &policy.name);
        Ok(Response::new(ListMigrationPoliciesResponse { policies, next_page_token }))
    }

    type WatchMigrationPoliciesStream = Events<MigrationPolicyEvent>;

    async fn watch_migration_policies(
        &self,
        request: Request<WatchMigrationPoliciesRequest>,
    ) -> Result<Response<Self::WatchMigrationPoliciesStream>, Status> {
        authorize(&request, Access::Read)?;
        let request = request.into_inner();
        if !request.name.is_empty() {
            self.policy(&request.name)?;
        }
        self.watch(request.name, request.revision).map(Response::new)
    }

    async fn delete_migration_policy(
        &self,
        request: Request<DeleteMigrationPolicyRequest>,
    ) -> Result<Response<DeleteMigrationPolicyResponse>, Status> {
        let who = authorize(&request, Access::Write)?;
        let request = request.into_inner();
        let result = self.delete_policy(&request);
        if !request.validate_only {
            audit(&who, "DeleteMigrationPolicy", &request.name, &result);
        }
        result.map(Response::new)
    }

    async fn create_evacuation(
        &self,
        request: Request<CreateEvacuationRequest>,
    ) -> Result<Response<Evacuation>, Status> {
        // A dry run changes nothing, and still it asks agents to look at what a viewer may not move.
        let who = authorize(&request, Access::Write)?;
        let request = request.into_inner();
        let subject = request.spec.as_ref().map_or_else(String::new, |spec| spec.node.clone());
        let dry = request.validate_only;
        let result = self.evacuate(&who, request).await;
        if !dry {
            audit(&who, "CreateEvacuation", &subject, &result);
        }
        result.map(Response::new)
    }

    async fn get_evacuation(
        &self,
        request: Request<GetEvacuationRequest>,
    ) -> Result<Response<Evacuation>, Status> {
        authorize(&request, Access::Read)?;
        self.evacuation(&request.into_inner().name).map(|record| Response::new(record.evacuation))
    }

    async fn list_evacuations(
        &self,
        request: Request<ListEvacuationsRequest>,
    ) -> Result<Response<ListEvacuationsResponse>, Status> {
        authorize(&request, Access::Read)?;
        let request = request.into_inner();
        let (size, start) = (page_size(request.page_size)?, page_start(&request.page_token)?);
        let keep = |record: &crate::store::EvacuationRecord| {
            (request.node.is_empty() || record.node() == request.node)
                && has_labels(&request.labels, &record.evacuation.labels)
        };
        let found = self.core.store.list_evacuations(start, size + 1, keep)?;
        let found = found.into_iter().map(|record| record.evacuation).collect();
        let (evacuations, next_page_token) = page(found, size, start, |e: &Evacuation| &e.name);
        Ok(Response::new(ListEvacuationsResponse { evacuations, next_page_token }))
    }

    type WatchEvacuationsStream = Events<EvacuationEvent>;

    async fn watch_evacuations(
        &self,
        request: Request<WatchEvacuationsRequest>,
    ) -> Result<Response<Self::WatchEvacuationsStream>, Status> {
        authorize(&request, Access::Read)?;
        let request = request.into_inner();
        if !request.name.is_empty() {
            self.evacuation(&request.name)?;
        }
        self.watch(request.name, request.revision).map(Response::new)
    }

    async fn cancel_evacuation(
        &self,
        request: Request<CancelEvacuationRequest>,
    ) -> Result<Response<Evacuation>, Status> {
        let who = authorize(&request, Access::Write)?;
        let CancelEvacuationRequest { name, now } = request.into_inner();
        let result = self.stop_evacuating(&who, &name, now);
        audit(&who, "CancelEvacuation", &name, &result);
        result.map(Response::new)
    }

    async fn pause_evacuation(
        &self,
        request: Request<PauseEvacuationRequest>,
    ) -> Result<Response<Evacuation>, Status> {
        let who = authorize(&request, Access::Write)?;
        let name = request.into_inner().name;
        let result = self.pause(&who, &name, true);
        audit(&who, "PauseEvacuation", &name, &result);
        result.map(Response::new)
    }

    async fn resume_evacuation(
        &self,
        request: Request<ResumeEvacuationRequest>,
    ) -> Result<Response<Evacuation>, Status> {
        let who = authorize(&request, Access::Write)?;
        let name = request.into_inner().name;
        let result = self.pause(&who, &name, false);
        audit(&who, "ResumeEvacuation", &name, &result);
        result.map(Response::new)
    }
}
