//! The service `gantry.v1.Coordinator`: every method checks who calls, and every change is audited.

use proto::error::{invalid_field, not_found};
use proto::v1::coordinator_server::Coordinator;
use proto::v1::{
    CancelMigrationRequest, CheckMoveRequest, CheckMoveResponse, Container, CordonNodeRequest,
    CreateContainerRequest, CreateMigrationRequest, DeleteContainerRequest, DeleteContainerResponse,
    ExecInput, ExecOutput, GetContainerRequest, GetMigrationRequest, GetNodeRequest, ListContainersRequest,
    ListContainersResponse, ListMigrationsRequest, ListMigrationsResponse, ListNodesRequest,
    ListNodesResponse, LogsChunk, LogsRequest, Migration, Node, ResolveMigrationRequest,
    StopContainerRequest, WatchMigrationsRequest,
};
use std::collections::HashMap;
use tonic::{Request, Response, Status, Streaming};

use super::Api;
use super::access::{Access, audit, authorize};
use super::watch::Events;

/// Items on a page when the caller does not say, and the most.
const PAGE: usize = 100;
const MAX_PAGE: usize = 1000;

fn page_size(asked: i32) -> Result<usize, Status> {
    match usize::try_from(asked) {
        Ok(0) => Ok(PAGE),
        Ok(size) => Ok(size.min(MAX_PAGE)),
        Err(_) => Err(invalid_field("page_size", "is negative").status()),
    }
}

/// A page token is the last name of the page before.
fn page_start(token: &str) -> Result<&str, Status> {
    if !token.is_empty() {
        let bad = |_| invalid_field("page_token", "was not made by this API").status();
        proto::identity::check_name(token).map_err(bad)?;
    }
    Ok(token)
}

/// One page of `all`, which is sorted by name, and the next page's token.
fn page<T>(all: Vec<T>, size: usize, start: &str, name: impl Fn(&T) -> &str) -> (Vec<T>, String) {
    let mut rest = all.into_iter().filter(|item| name(item) > start);
    let page: Vec<T> = rest.by_ref().take(size).collect();
    let token = match (rest.next(), page.last()) {
        (Some(_), Some(last)) => name(last).to_owned(),
        _ => String::new(),
    };
    (page, token)
}

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
        let result = self.cordon(&name, cordoned);
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
        let who = authorize(&request, Access::Write)?;
        let result = self.relay_exec(request.into_inner()).await;
        let subject = result.as_ref().map_or("", |(subject, _)| subject);
        audit(&who, "Exec", subject, &result);
        result.map(|(_, output)| Response::new(output))
    }

    async fn check_container(
        &self,
        request: Request<CheckMoveRequest>,
    ) -> Result<Response<CheckMoveResponse>, Status> {
        authorize(&request, Access::Read)?;
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
            request.container.is_empty() || record.container() == request.container
        };
        let found = self.core.store.list(start, size + 1, keep)?;
        let found = found.into_iter().map(|record| record.migration).collect();
        let (migrations, next_page_token) = page(found, size, start, |migration: &Migration| &migration.name);
        Ok(Response::new(ListMigrationsResponse { migrations, next_page_token }))
    }

    type WatchMigrationsStream = Events;

    async fn watch_migrations(
        &self,
        request: Request<WatchMigrationsRequest>,
    ) -> Result<Response<Self::WatchMigrationsStream>, Status> {
        authorize(&request, Access::Read)?;
        let request = request.into_inner();
        if !request.name.is_empty() {
            self.migration(&request.name)?;
        }
        self.watch(request).map(Response::new)
    }

    async fn cancel_migration(
        &self,
        request: Request<CancelMigrationRequest>,
    ) -> Result<Response<Migration>, Status> {
        let who = authorize(&request, Access::Write)?;
        let name = request.into_inner().name;
        let result = self.cancel(&who, &name).await;
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
}

impl Api {
    fn cordon(&self, name: &str, cordoned: bool) -> Result<Node, Status> {
        let record = self.core.cluster.cordon(name, cordoned).ok_or_else(|| not_found("node", name))?;
        self.core.store.put_node(&record, true)?;
        self.core.wake.notify_one();
        self.core.cluster.node(name).ok_or_else(|| not_found("node", name).status())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn pages_show_everything_once(names in proptest::collection::btree_set("[a-z]{1,4}", 0..40), size in 1usize..7) {
            let all: Vec<String> = names.into_iter().collect();
            let mut seen = Vec::new();
            let mut token = String::new();
            loop {
                let (items, next) = page(all.clone(), size, &token, |name| name);
                prop_assert!(items.len() <= size);
                seen.extend(items);
                if next.is_empty() {
                    break;
                }
                token = next;
            }
            prop_assert_eq!(seen, all);
        }
    }

    #[test]
    fn page_requests_are_checked() {
        assert_eq!(page_size(0).unwrap(), PAGE);
        assert_eq!(page_size(i32::MAX).unwrap(), MAX_PAGE);
        assert!(page_size(-1).is_err());
        assert!(page_start("no token!").is_err());
    }
}
