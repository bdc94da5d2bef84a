//! The coordinator's API, with errors that say what was tried.

use proto::identity::Role;
use proto::tls::{ConnectError, Expect, Tls, TlsFiles, connect};
use proto::v1::coordinator_client::CoordinatorClient;
use proto::v1::{
    Container, Evacuation, ListContainersRequest, ListEvacuationsRequest, ListMigrationPoliciesRequest,
    ListMigrationsRequest, ListNodesRequest, Migration, MigrationPolicy, Node,
};
use tonic::transport::Channel;

use crate::exit::{Exit, Failure};
use crate::settings::Settings;

/// Items asked for at once.
const PAGE: i32 = 200;

/// A connection to the coordinator.
#[derive(Debug, Clone)]
pub(crate) struct Api {
    /// The generated client, for everything that is not a list.
    pub(crate) client: CoordinatorClient<Channel>,
}

/// An error with its causes, each once.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        next = cause.source();
    }
    text
}

/// Calls the API until it has answered every page.
macro_rules! pages {
    ($self:ident, $method:ident, $request:ident, $items:ident, $tried:expr) => {{
        let mut all = Vec::new();
        $request.page_size = PAGE;
        loop {
            let answer = $self
                .client
                .$method($request.clone())
                .await
                .map_err(|status| Failure::from_status($tried, &status))?
                .into_inner();
            all.extend(answer.$items);
            if answer.next_page_token.is_empty() {
                return Ok(all);
            }
            $request.page_token = answer.next_page_token;
        }
    }};
}

impl Api {
    /// Connects and checks that the other end is a coordinator.
    pub(crate) async fn connect(settings: &Settings) -> Result<Self, Failure> {
        let address = settings.address()?;
        let tried = format!("connect to the coordinator at {address}");
        let tls = Tls::load(&TlsFiles::in_dir(settings.credentials()?)).map_err(|error| {
            Failure::new(Exit::Usage, &tried, chain(&error))
                .advise("--tls-dir (MIGRATE_TLS_DIR) names the directory")
        })?;
        let channel = connect(&address, &Expect::Any(Role::Coordinator), &tls).await.map_err(|error| {
            let advice = match &error {
                ConnectError::Address { .. } => "give HOST:PORT",
                refused if refused.is_refusal() => {
                    "it answered and is not trusted: is this the right address, and are both certificates of one authority?"
                }
                _ => "is it running, and is this its address?",
            };
            Failure::new(Exit::Unreachable, &tried, chain(&error)).advise(advice)
        })?;
        Ok(Self { client: CoordinatorClient::new(channel) })
    }

    /// Every node.
    pub(crate) async fn nodes(&mut self, mut request: ListNodesRequest) -> Result<Vec<Node>, Failure> {
        pages!(self, list_nodes, request, nodes, "list nodes")
    }

    /// Every container.
    pub(crate) async fn containers(
        &mut self,
        mut request: ListContainersRequest,
    ) -> Result<Vec<Container>, Failure> {
        pages!(self, list_containers, request, containers, "list containers")
    }

    /// Every migration.
    pub(crate) async fn migrations(
        &mut self,
        mut request: ListMigrationsRequest,
    ) -> Result<Vec<Migration>, Failure> {
        pages!(self, list_migrations, request, migrations, "list migrations")
    }

    /// Every policy.
    pub(crate) async fn policies(
        &mut self,
        mut request: ListMigrationPoliciesRequest,
    ) -> Result<Vec<MigrationPolicy>, Failure> {
        pages!(self, list_migration_policies, request, policies, "list policies")
    }

    /// Every evacuation.
    pub(crate) async fn evacuations(
        &mut self,
        mut request: ListEvacuationsRequest,
    ) -> Result<Vec<Evacuation>, Failure> {
        pages!(self, list_evacuations, request, evacuations, "list evacuations")
    }
}
