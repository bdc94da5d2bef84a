//! The client of the coordinator: joins, sends heartbeats, reports outcomes, asks for decisions. It
//! reconnects for ever; the agent works without it.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use proto::identity::Role;
use proto::tls::{Expect, Tls, connect};
use proto::v1;
use proto::v1::registry_client::RegistryClient;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

use crate::commit::Answer;
use crate::facts;
use crate::runtime::Runtime;
use crate::server::convert;
use crate::session::Migrations;
use crate::session::orders::DecisionSource;
use crate::session::status::{Phase, Role as Side};
use crate::telemetry::chain;

/// First and longest wait between two attempts to connect.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));
/// Longest time for one answer.
const ANSWER: Duration = Duration::from_secs(5);

/// How the coordinator is reached.
#[derive(Clone, Debug)]
pub struct Coordinator {
    /// `host:port`.
    pub address: String,
    /// This node's credentials.
    pub tls: Tls,
}

impl Coordinator {
    async fn client(&self) -> Result<RegistryClient<Channel>, proto::tls::ConnectError> {
        let channel = connect(&self.address, &Expect::Any(Role::Coordinator), &self.tls).await?;
        Ok(RegistryClient::new(channel))
    }
}

/// What the coordinator is told about this node.
#[derive(Clone, Debug)]
pub struct Registration {
    /// The node's name.
    pub node: String,
    /// `host:port` of its gRPC.
    pub agent_address: String,
    /// `host:port` for other agents.
    pub peer_address: String,
    /// A number of this run of the agent.
    pub incarnation: u64,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Its containers.
    pub runtime: Arc<Runtime>,
    /// Its migrations.
    pub migrations: Migrations,
}

/// Keeps this node registered. Ends never; drop it to end it.
pub async fn keep(coordinator: Coordinator, registration: Registration) {
    let mut wait = BACKOFF.0;
    // Outcomes that the coordinator has acknowledged: migration, epoch, side and phase.
    let mut acknowledged = HashSet::new();
    loop {
        match session(&coordinator, &registration, &mut acknowledged, &mut wait).await {
            Ok(()) => {
                tracing::info!(coordinator = coordinator.address, "the coordinator ended the connection")
            }
            Err(error) => tracing::info!(
                coordinator = coordinator.address,
                error,
                retry_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX),
                "no connection to the coordinator"
            ),
        }
        sleep(wait).await;
        wait = (wait * 2).min(BACKOFF.1);
    }
}

type Acknowledged = HashSet<(String, u64, Side, Phase)>;

async fn session(
    coordinator: &Coordinator,
    registration: &Registration,
    acknowledged: &mut Acknowledged,
    wait: &mut Duration,
) -> Result<(), String> {
    let mut client = coordinator.client().await.map_err(|error| chain(&error))?;
    let (containers, facts) = look(registration).await;
    let join = v1::JoinRequest {
        agent_address: registration.agent_address.clone(),
        peer_address: registration.peer_address.clone(),
        facts: Some(facts),
        containers,
        incarnation: registration.incarnation,
        labels: registration.labels.clone().into_iter().collect(),
    };
    let joined = within(client.join(join)).await?.into_inner();
    let interval = Duration::from_millis(joined.heartbeat_milliseconds.clamp(50, 60_000).into());
    *wait = BACKOFF.0;
    tracing::info!(coordinator = coordinator.address, "joined");

    let (heartbeats, receiver) = mpsc::channel(1);
    let mut answers = within(client.heartbeat(ReceiverStream::new(receiver))).await?.into_inner();
    let mut changes = registration.migrations.changes();
    changes.mark_changed();
    let mut tick = tokio::time::interval(interval);
    loop {
        tokio::select! {
            _ = tick.tick() => {
                let (containers, facts) = look(registration).await;
                let heartbeat = v1::HeartbeatRequest { containers, facts: Some(facts) };
                // A full queue means that the coordinator does not read: the connection will end.
                if heartbeats.send_timeout(heartbeat, ANSWER).await.is_err() {
                    return Err("heartbeats are not taken".to_owned());
                }
            }
            changed = changes.changed() => {
                if changed.is_err() {
                    return Ok(());
                }
                report(&mut client, registration, acknowledged).await?;
            }
            answer = answers.message() => match answer {
                Ok(Some(_)) => {}
                Ok(None) => return Ok(()),
                Err(status) => return Err(status.message().to_owned()),
            },
        }
    }
}

/// Reports every end that was not acknowledged yet.
async fn report(
    client: &mut RegistryClient<Channel>,
    registration: &Registration,
    acknowledged: &mut Acknowledged,
) -> Result<(), String> {
    for status in registration.migrations.list() {
        let ended = status.phase.is_terminal() || status.phase == Phase::OutcomeUnknown;
        let key = (status.migration.clone(), status.epoch, status.role, status.phase);
        if !ended || acknowledged.contains(&key) {
            continue;
        }
        let as_source = status.role == Side::Source;
        let request = v1::ReportOutcomeRequest { status: Some(convert::migration(&status)), as_source };
        within(client.report_outcome(request)).await?;
        acknowledged.insert(key);
    }
    Ok(())
}

async fn look(registration: &Registration) -> (Vec<v1::Container>, v1::NodeFacts) {
    let (runtime, node) = (Arc::clone(&registration.runtime), registration.node.clone());
    let versions = registration.migrations.versions();
    let looked = tokio::task::spawn_blocking(move || {
        let list = runtime.list().unwrap_or_else(|error| {
            tracing::error!(error = chain(&error), "the containers cannot be listed");
            Vec::new()
        });
        let containers = list.into_iter().map(|status| convert::container(status, &node)).collect();
        (containers, facts::node_facts(runtime.layout(), versions))
    });
    looked.await.unwrap_or_default()
}

async fn within<T>(call: impl Future<Output = Result<T, tonic::Status>>) -> Result<T, String> {
    match timeout(ANSWER, call).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(status)) => Err(status.message().to_owned()),
        Err(_) => Err(format!("no answer within {} s", ANSWER.as_secs())),
    }
}

/// Asks the coordinator for decisions, from threads outside of tokio.
#[derive(Debug)]
pub struct Decisions {
    coordinator: Option<Coordinator>,
    handle: Handle,
}

impl Decisions {
    /// Through this coordinator; without one nobody answers. Calls run on `handle`.
    #[must_use]
    pub fn new(coordinator: Option<Coordinator>, handle: Handle) -> Self {
        Self { coordinator, handle }
    }
}

impl DecisionSource for Decisions {
    fn ask(&self, migration: &str, epoch: u64) -> Option<Answer> {
        let coordinator = self.coordinator.as_ref()?;
        let request = v1::AskDecisionRequest { migration: migration.to_owned(), epoch };
        let asked = self.handle.block_on(async {
            let mut client = coordinator.client().await.map_err(|error| chain(&error))?;
            within(client.ask_decision(request)).await
        });
        match asked {
            Ok(answer) => match v1::Decision::try_from(answer.into_inner().decision) {
                Ok(v1::Decision::Committed) => Some(Answer::Committed),
                Ok(v1::Decision::Undecided) => Some(Answer::Undecided),
                Ok(v1::Decision::Aborted) => Some(Answer::Aborted),
                Ok(v1::Decision::Unknown) => Some(Answer::Unknown),
                Ok(v1::Decision::Unspecified) | Err(_) => None,
            },
            Err(error) => {
                tracing::info!(migration, error, "the coordinator could not be asked");
                None
            }
        }
    }
}
