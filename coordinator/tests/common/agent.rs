//! An agent that speaks the real protocol over the real transport, and whose migrations go as a test says.

use std::collections::{BTreeMap, HashMap};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use proto::error::{ApiError, not_found};
use proto::identity::Role;
use proto::tls::{Expect, Tls, connect, listen};
use proto::v1::node_agent_server::{NodeAgent, NodeAgentServer};
use proto::v1::registry_client::RegistryClient;
use proto::v1::*;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_stream::wrappers::{ReceiverStream, WatchStream};
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Code, Request, Response, Status, Streaming};

use super::Pki;
use super::behaviour::{Behaviour, container};

#[derive(Default)]
struct State {
    behaviour: Behaviour,
    calls: Vec<String>,
    epochs: HashMap<String, u64>,
    migrations: BTreeMap<String, watch::Sender<MigrationStatus>>,
    started: Vec<(String, Option<Policy>)>,
    fails: HashMap<String, Status>,
}

/// A running agent. Everything stops when it is dropped.
#[derive(Clone)]
pub(crate) struct Agent {
    pub(crate) name: String,
    state: Arc<Mutex<State>>,
    held: watch::Sender<Vec<String>>,
    tls: Tls,
    coordinator: String,
    port: u16,
    /// A runtime of its own: when it goes, every task and connection goes.
    runtime: Arc<Mutex<Option<tokio::runtime::Runtime>>>,
}

impl Drop for Agent {
    fn drop(&mut self) {
        if Arc::strong_count(&self.runtime) == 1 {
            self.vanish();
        }
    }
}

impl Agent {
    pub(crate) fn start(pki: &Pki, coordinator: &str, name: &str, behaviour: Behaviour) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let agent = Self {
            name: name.to_owned(),
            state: Arc::new(Mutex::new(State { behaviour, ..State::default() })),
            held: watch::Sender::new(Vec::new()),
            tls: pki.tls(&format!("{name}.node.gantry")),
            coordinator: coordinator.to_owned(),
            port: listener.local_addr().unwrap().port(),
            runtime: Arc::default(),
        };
        agent.run(listener);
        agent
    }

    /// What the tasks hold: the same agent, without its runtime.
    fn inner(&self) -> Self {
        Self {
            name: self.name.clone(),
            state: Arc::clone(&self.state),
            held: self.held.clone(),
            tls: self.tls.clone(),
            coordinator: self.coordinator.clone(),
            port: self.port,
            runtime: Arc::default(),
        }
    }

    fn run(&self, listener: std::net::TcpListener) {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let service = NodeAgentServer::new(self.inner());
        let tls = self.tls.clone();
        listener.set_nonblocking(true).unwrap();
        runtime.spawn(async move {
            let incoming = listen(TcpListener::from_std(listener).unwrap(), &tls);
            let server = tonic::transport::Server::builder().add_service(service);
            server.serve_with_incoming(incoming).await.unwrap();
        });
        runtime.spawn(self.inner().beat());
        *self.runtime.lock().unwrap() = Some(runtime);
    }

    /// Becomes unreachable and silent, and keeps its state.
    pub(crate) fn vanish(&self) {
        if let Some(runtime) = self.runtime.lock().unwrap().take() {
            runtime.shutdown_background();
        }
    }

    /// Is there again, at the same address.
    pub(crate) async fn come_back(&self) {
        let listener = super::until("the port is free", || async {
            std::net::TcpListener::bind(("127.0.0.1", self.port)).ok()
        })
        .await;
        self.run(listener);
    }

    /// Joins and sends heartbeats, again and again.
    async fn beat(self) {
        loop {
            // Refused or cut off: again in a moment.
            let _ = self.session().await;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn session(&self) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let expect = Expect::Any(Role::Coordinator);
        let channel = connect(&self.coordinator, &expect, &self.tls).await?;
        let mut registry = RegistryClient::new(channel);
        let facts = Some(self.state.lock().unwrap().behaviour.facts.clone());
        let join = JoinRequest {
            agent_address: format!("127.0.0.1:{}", self.port),
            peer_address: format!("127.0.0.1:{}", self.port),
            facts: facts.clone(),
            containers: self.containers(),
            incarnation: 1,
            labels: HashMap::from([("rack".to_owned(), self.name.clone())]),
        };
        let interval = registry.join(join).await?.into_inner().heartbeat_milliseconds;
        let (sender, receiver) = tokio::sync::mpsc::channel(1);
        let beat = || HeartbeatRequest { containers: self.containers(), facts: facts.clone() };
        sender.send(beat()).await?;
        let mut answers = registry.heartbeat(ReceiverStream::new(receiver)).await?.into_inner();
        while answers.message().await?.is_some() {
            tokio::time::sleep(Duration::from_millis(interval.into())).await;
            sender.send(beat()).await?;
        }
        Ok(())
    }

    pub(crate) fn containers(&self) -> Vec<Container> {
        self.state.lock().unwrap().behaviour.containers.clone()
    }

    pub(crate) fn set_containers(&self, containers: Vec<Container>) {
        self.state.lock().unwrap().behaviour.containers = containers;
    }

    /// The calls that came, as `Name epoch`.
    pub(crate) fn calls(&self) -> Vec<String> {
        self.state.lock().unwrap().calls.clone()
    }

    /// The migrations of a container that it has had a session for.
    pub(crate) fn sessions_of(&self, container: &str) -> Vec<String> {
        let state = self.state.lock().unwrap();
        let of_it = state.migrations.iter().filter(|(_, status)| status.borrow().container == container);
        of_it.map(|(name, _)| name.clone()).collect()
    }

    /// The limits that came with the order to begin a migration; the outer `None` when none has come.
    pub(crate) fn started(&self, migration: &str) -> Option<Option<Policy>> {
        let state = self.state.lock().unwrap();
        state.started.iter().find(|(name, _)| name == migration).map(|(_, policy)| *policy)
    }

    /// Waits until a call has come.
    pub(crate) async fn called(&self, call: &str) {
        super::until(&format!("{call} at {}", self.name), || async {
            self.calls().iter().any(|c| c == call).then_some(())
        })
        .await;
    }

    /// Calls of this name wait, after they were noted and before they act, until `release`.
    pub(crate) fn hold(&self, call: &str) {
        self.held.send_modify(|held| held.push(call.to_owned()));
    }

    pub(crate) fn release(&self) {
        self.held.send_modify(Vec::clear);
    }

    /// The next call of this name fails.
    pub(crate) fn fail(&self, call: &str, status: Status) {
        self.state.lock().unwrap().fails.insert(call.to_owned(), status);
    }

    /// Changes what this agent says about a migration.
    pub(crate) fn report(&self, migration: &str, change: impl FnOnce(&mut MigrationStatus)) {
        let state = self.state.lock().unwrap();
        state.migrations.get(migration).expect("a session").send_modify(change);
    }

    pub(crate) fn reaches(&self, migration: &str, phase: Phase) {
        self.report(migration, |status| status.set_phase(phase));
    }

    /// Tells the coordinator how a migration ended.
    pub(crate) async fn outcome(&self, migration: &str, as_source: bool) -> Result<(), Status> {
        let status = self.state.lock().unwrap().migrations.get(migration).map(|s| s.borrow().clone());
        let request = ReportOutcomeRequest { status, as_source };
        self.registry().await.report_outcome(request).await.map(drop)
    }

    pub(crate) async fn registry(&self) -> RegistryClient<tonic::transport::Channel> {
        let expect = Expect::Any(Role::Coordinator);
        RegistryClient::new(connect(&self.coordinator, &expect, &self.tls).await.unwrap())
    }

    /// Notes a call, waits while it is held and fails when it is to fail.
    async fn enter(&self, call: &str, note: String) -> Result<(), Status> {
        let failure = {
            let mut state = self.state.lock().unwrap();
            state.calls.push(note);
            state.fails.remove(call)
        };
        let mut held = self.held.subscribe();
        // The sender lives as long as this agent.
        let _ = held.wait_for(|held| !held.iter().any(|h| h == call)).await.is_ok();
        failure.map_or(Ok(()), Err)
    }

    /// Epochs only rise; the same one goes on.
    fn epoch(&self, container: &str, epoch: u64, going_on: bool) -> Result<(), Status> {
        let mut state = self.state.lock().unwrap();
        let hidden = state.behaviour.hidden_epochs.get(container).copied().unwrap_or_default();
        let known = state.epochs.entry(container.to_owned()).or_default();
        *known = (*known).max(hidden);
        if epoch < *known || (epoch == *known && !going_on) {
            let message = format!("epoch {epoch} is stale");
            return Err(ApiError::new(Code::FailedPrecondition, "STALE_EPOCH", message)
                .with("known", known.to_string())
                .status());
        }
        *known = epoch;
        Ok(())
    }

    fn status(&self, migration: &str) -> Result<watch::Receiver<MigrationStatus>, Status> {
        let state = self.state.lock().unwrap();
        let sender = state.migrations.get(migration).ok_or_else(|| not_found("migration", migration))?;
        Ok(sender.subscribe())
    }

    fn session_for(&self, migration: &str, container: &str, epoch: u64) {
        let status = MigrationStatus {
            migration: migration.into(),
            container: container.into(),
            epoch,
            phase: Phase::Preparing.into(),
            ..MigrationStatus::default()
        };
        self.state.lock().unwrap().migrations.insert(migration.into(), watch::Sender::new(status));
    }
}

type Chunks<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

fn is_terminal(status: &MigrationStatus) -> bool {
    matches!(status.phase(), Phase::Succeeded | Phase::Failed | Phase::Cancelled | Phase::OutcomeUnknown)
}

#[tonic::async_trait]
impl NodeAgent for Agent {
    type LogsStream = Chunks<LogsChunk>;
    type ExecStream = Chunks<ExecOutput>;
    type WatchMigrationStream = Chunks<MigrationStatus>;

    async fn get_facts(&self, _: Request<GetFactsRequest>) -> Result<Response<GetFactsResponse>, Status> {
        Ok(Response::new(GetFactsResponse::default()))
    }

    async fn list_containers(
        &self,
        _: Request<ListAgentContainersRequest>,
    ) -> Result<Response<ListAgentContainersResponse>, Status> {
        Ok(Response::new(ListAgentContainersResponse { containers: self.containers() }))
    }

    async fn run_container(
        &self,
        request: Request<RunContainerRequest>,
    ) -> Result<Response<Container>, Status> {
        let request = request.into_inner();
        self.enter("Run", format!("Run {}", request.name)).await?;
        let made = Container { bundle: request.bundle, ..container(&request.name) };
        let mut state = self.state.lock().unwrap();
        if state.behaviour.containers.iter().any(|c| c.name == made.name) {
            return Err(ApiError::new(Code::AlreadyExists, "CONTAINER_EXISTS", "it is here").status());
        }
        state.behaviour.containers.push(made.clone());
        Ok(Response::new(made))
    }

    async fn stop_container(
        &self,
        request: Request<StopContainerRequest>,
    ) -> Result<Response<Container>, Status> {
        let name = request.into_inner().name;
        self.enter("Stop", format!("Stop {name}")).await?;
        let mut state = self.state.lock().unwrap();
        let found = state.behaviour.containers.iter_mut().find(|c| c.name == name);
        let found = found.ok_or_else(|| not_found("container", &name))?;
        found.set_state(ContainerState::Stopped);
        found.exit_status = Some(143);
        Ok(Response::new(found.clone()))
    }

    async fn delete_container(
        &self,
        request: Request<DeleteContainerRequest>,
    ) -> Result<Response<DeleteContainerResponse>, Status> {
        let name = request.into_inner().name;
        self.enter("Delete", format!("Delete {name}")).await?;
        self.state.lock().unwrap().behaviour.containers.retain(|c| c.name != name);
        Ok(Response::new(DeleteContainerResponse {}))
    }

    async fn logs(&self, request: Request<LogsRequest>) -> Result<Response<Self::LogsStream>, Status> {
        let text = format!("{} on {}\n", request.into_inner().name, self.name);
        Ok(Response::new(Box::pin(tokio_stream::once(Ok(LogsChunk { data: text.into_bytes() })))))
    }

    /// Echoes its standard input, then ends with the number of arguments.
    async fn exec(
        &self,
        request: Request<Streaming<ExecInput>>,
    ) -> Result<Response<Self::ExecStream>, Status> {
        let mut input = request.into_inner();
        let first = input.message().await?.ok_or_else(|| Status::invalid_argument("empty"))?;
        let exit_status = Some(i32::try_from(first.args.len()).unwrap());
        let (sender, receiver) = tokio::sync::mpsc::channel(8);
        tokio::spawn(async move {
            while let Ok(Some(message)) = input.message().await {
                let stdout = ExecOutput { stdout: message.stdin, ..ExecOutput::default() };
                if message.stdin_closed || sender.send(Ok(stdout)).await.is_err() {
                    break;
                }
            }
            let _ = sender.send(Ok(ExecOutput { exit_status, ..ExecOutput::default() })).await;
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    /// The pause that it foresees is a tenth of what the policy allows.
    async fn predict(&self, request: Request<PredictRequest>) -> Result<Response<PredictResponse>, Status> {
        let PredictRequest { container, policy, targets } = request.into_inner();
        self.enter("Predict", format!("Predict {container}")).await?;
        let most = policy.and_then(|policy| policy.max_downtime).unwrap_or_default();
        let pause_ms = f64::from(most.nanos) / 1e7;
        let prediction = Prediction { rounds: 3, pause_ms, converges: true, ..Prediction::default() };
        let forecast = |target: PredictTarget| Forecast {
            node: target.node,
            prediction: Some(prediction.clone()),
            ..Forecast::default()
        };
        Ok(Response::new(PredictResponse { forecasts: targets.into_iter().map(forecast).collect() }))
    }

    async fn check_container(
        &self,
        request: Request<CheckContainerRequest>,
    ) -> Result<Response<CheckContainerResponse>, Status> {
        let name = request.into_inner().name;
        self.enter("Check", format!("Check {name}")).await?;
        let behaviour = self.state.lock().unwrap().behaviour.clone();
        let own = behaviour.refused.get(&name).cloned().unwrap_or_default();
        let refusals = [behaviour.refusals, own].concat();
        Ok(Response::new(CheckContainerResponse {
            refusals,
            description: b"any".to_vec(),
            resident_bytes: 1 << 20,
            processes: 1,
            threads: 1,
            ..CheckContainerResponse::default()
        }))
    }

    async fn check_arrival(
        &self,
        request: Request<CheckArrivalRequest>,
    ) -> Result<Response<CheckArrivalResponse>, Status> {
        self.enter("Check", format!("CheckArrival {}", request.into_inner().name)).await?;
        let refusals = self.state.lock().unwrap().behaviour.lacks.clone();
        Ok(Response::new(CheckArrivalResponse { refusals }))
    }

    async fn prepare(&self, request: Request<PrepareRequest>) -> Result<Response<PrepareResponse>, Status> {
        let request = request.into_inner();
        self.enter("Prepare", format!("Prepare {}", request.epoch)).await?;
        self.epoch(&request.container, request.epoch, true)?;
        self.session_for(&request.migration, &request.container, request.epoch);
        Ok(Response::new(PrepareResponse { incarnation: 77, peer_address: format!("{}:9", self.name) }))
    }

    async fn start(&self, request: Request<StartRequest>) -> Result<Response<StartResponse>, Status> {
        let request = request.into_inner();
        assert_eq!(request.target_incarnation, 77);
        assert_eq!(request.target_address, format!("{}:9", request.target_node));
        self.enter("Start", format!("Start {}", request.epoch)).await?;
        self.epoch(&request.container, request.epoch, false)?;
        self.session_for(&request.migration, &request.container, request.epoch);
        let mut state = self.state.lock().unwrap();
        state.calls.push(format!("Session {}", request.epoch));
        state.started.push((request.migration, request.policy));
        drop(state);
        Ok(Response::new(StartResponse { incarnation: 1 }))
    }

    async fn abort(&self, request: Request<AbortRequest>) -> Result<Response<AbortResponse>, Status> {
        let request = request.into_inner();
        self.enter("Abort", format!("Abort {}", request.epoch)).await?;
        let phase = self.status(&request.migration)?.borrow().phase();
        if matches!(phase, Phase::Completing | Phase::Succeeded | Phase::Failed) {
            return Err(ApiError::new(Code::FailedPrecondition, "COMMITTED", "it is committed").status());
        }
        self.reaches(&request.migration, Phase::Cancelled);
        Ok(Response::new(AbortResponse {}))
    }

    async fn get_migration(
        &self,
        request: Request<GetAgentMigrationRequest>,
    ) -> Result<Response<MigrationStatus>, Status> {
        let status = self.status(&request.into_inner().migration)?.borrow().clone();
        Ok(Response::new(status))
    }

    async fn watch_migration(
        &self,
        request: Request<GetAgentMigrationRequest>,
    ) -> Result<Response<Self::WatchMigrationStream>, Status> {
        let migration = request.into_inner().migration;
        self.enter("Watch", "Watch".into()).await?;
        let mut ended = false;
        let stream = WatchStream::new(self.status(&migration)?)
            .take_while(move |status| !std::mem::replace(&mut ended, is_terminal(status)))
            .map(Ok);
        Ok(Response::new(Box::pin(stream)))
    }

    async fn resolve(
        &self,
        request: Request<ResolveAgentRequest>,
    ) -> Result<Response<ResolveAgentResponse>, Status> {
        let request = request.into_inner();
        let note = format!("Resolve {} {}", request.epoch, request.owner().as_str_name());
        self.enter("Resolve", note).await?;
        self.epoch(&request.container, request.epoch, true)?;
        Ok(Response::new(ResolveAgentResponse {}))
    }
}
