//! Traces of real migrations between two agents under a real coordinator. Needs root.

#![allow(clippy::unwrap_used, reason = "a failed step is the test's failure")]

mod common;

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, ExitCode, Stdio};
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::agent::{Agent, Ca, free_address};
use common::{bundle, unique, wait_for};
use libtest_mimic::{Arguments, Trial};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use proto::identity::Role;
use proto::tls::{Expect, channel_lazy};
use proto::v1;
use proto::v1::coordinator_client::CoordinatorClient;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Channel;

/// With this set the test's program is the coordinator, with the configuration that it names.
const COORDINATOR: &str = "GANTRY_TEST_COORDINATOR";
const PHASES: [&str; 5] = ["checking", "preparing", "precopy", "switchover", "completing"];

fn main() -> ExitCode {
    if let Some(config) = std::env::var_os(COORDINATOR) {
        let args = ["coordinator", "serve", "--config"].map(OsString::from);
        return coordinator::run(args.into_iter().chain([config]).collect());
    }
    let trial = |name: &str, run: fn()| {
        Trial::test(name, move || {
            run();
            Ok(())
        })
    };
    let trials = vec![
        trial("a_migration_is_one_trace", a_migration_is_one_trace),
        trial(
            "a_collector_that_never_answers_changes_nothing",
            a_collector_that_never_answers_changes_nothing,
        ),
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

/// A span, and whose it is.
#[derive(Clone, Debug)]
struct Seen {
    service: String,
    instance: String,
    trace: String,
    id: Vec<u8>,
    parent: Vec<u8>,
    name: String,
    attributes: Vec<(String, String)>,
}

impl Seen {
    fn get(&self, key: &str) -> &str {
        self.attributes.iter().find(|(name, _)| name == key).map_or("", |(_, value)| value)
    }
}

#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<Seen>>>);

fn plain(attributes: &[KeyValue]) -> Vec<(String, String)> {
    let text = |value: &KeyValue| match value.value.as_ref()?.value.as_ref()? {
        Value::StringValue(text) => Some(text.clone()),
        Value::IntValue(number) => Some(number.to_string()),
        _ => None,
    };
    attributes.iter().filter_map(|pair| Some((pair.key.clone(), text(pair)?))).collect()
}

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: tonic::Request<ExportTraceServiceRequest>,
    ) -> Result<tonic::Response<ExportTraceServiceResponse>, tonic::Status> {
        for from in request.into_inner().resource_spans {
            let resource = plain(&from.resource.unwrap_or_default().attributes);
            let of = |key: &str| {
                resource
                    .iter()
                    .find(|(name, _)| name == key)
                    .map(|(_, value)| value.clone())
                    .unwrap_or_default()
            };
            for span in from.scope_spans.into_iter().flat_map(|scope| scope.spans) {
                self.0.lock().unwrap().push(Seen {
                    service: of("service.name"),
                    instance: of("service.instance.id"),
                    trace: span.trace_id.iter().map(|byte| format!("{byte:02x}")).collect(),
                    id: span.span_id,
                    parent: span.parent_span_id,
                    name: span.name,
                    attributes: plain(&span.attributes),
                });
            }
        }
        Ok(tonic::Response::new(ExportTraceServiceResponse::default()))
    }
}

/// A coordinator process and two agents.
struct Cluster {
    coordinator: Child,
    agents: [Agent; 2],
    api: CoordinatorClient<Channel>,
    metrics: SocketAddr,
    _dir: tempfile::TempDir,
}

impl Cluster {
    /// One agent is told by its configuration where the collector is, like the coordinator, the other one by its environment.
    fn start(collector: SocketAddr) -> Self {
        let ca = Rc::new(Ca::new());
        let (address, metrics) = (free_address(), free_address());
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("coordinator.toml");
        let traces = format!("[traces]\notlp_endpoint = \"http://{collector}\"\n");
        let text = format!(
            "listen = \"{address}\"\nstate_dir = {:?}\ntls_dir = {:?}\nheartbeat_milliseconds = 50\n{traces}",
            dir.path().join("state"),
            ca.issue("main.coordinator.gantry"),
        );
        fs::write(&config, text).unwrap();
        let coordinator = Command::new(std::env::current_exe().unwrap())
            .env(COORDINATOR, config)
            .stderr(fs::File::create(dir.path().join("log")).unwrap())
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let own = format!("coordinator = \"{address}\"");
        let configured = format!("{own}\nmetrics_listen = \"{metrics}\"\n{traces}");
        let mut one = Agent::named("node-a", Rc::clone(&ca), &configured);
        let mut two = Agent::named("node-b", Rc::clone(&ca), &own);
        one.start();
        let mut command = Command::new(env!("CARGO_BIN_EXE_node-agent"));
        command.env("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://{collector}"));
        two.start_with(command);
        let expect = Expect::Any(Role::Coordinator);
        let channel = channel_lazy(&address.to_string(), &expect, &ca.tls("alice.admin.gantry")).unwrap();
        let api = CoordinatorClient::new(channel);
        Self { coordinator, agents: [one, two], api, metrics, _dir: dir }
    }

    /// Starts a program on the first node and moves it to the second one.
    async fn move_something(&mut self) -> v1::Migration {
        let name = unique("t");
        for node in ["node-a", "node-b"] {
            soon(&format!("{node} is ready"), async || {
                let request = v1::GetNodeRequest { name: node.into() };
                let node = self.api.clone().get_node(request).await.ok()?.into_inner();
                (node.state() == v1::NodeState::Ready).then_some(())
            })
            .await;
        }
        let bundle = bundle(self.agents[0].dir.path(), &["sleep", "1000"], |_| {});
        let request = v1::CreateContainerRequest {
            node: "node-a".into(),
            container: Some(v1::RunContainerRequest {
                name: name.clone(),
                bundle: bundle.to_str().unwrap().to_owned(),
                ..Default::default()
            }),
            ..Default::default()
        };
        self.api.create_container(request).await.unwrap();
        let spec = v1::MigrationSpec { container: name, target_node: "node-b".into(), ..Default::default() };
        let request = v1::CreateMigrationRequest { spec: Some(spec), ..Default::default() };
        let migration = self.api.create_migration(request).await.unwrap().into_inner().name;
        let ended = soon("the migration ends", async || {
            let request = v1::GetMigrationRequest { name: migration.clone() };
            let found = self.api.clone().get_migration(request).await.ok()?.into_inner();
            found.finished.is_some().then_some(found)
        })
        .await;
        assert_eq!(ended.phase(), v1::Phase::Succeeded, "{ended:?}");
        ended
    }

    fn monitored(&self) -> String {
        let mut text = String::new();
        let mut stream = TcpStream::connect(self.metrics).unwrap();
        stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").unwrap();
        stream.read_to_string(&mut text).unwrap();
        text
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.coordinator.kill();
        let _ = self.coordinator.wait();
    }
}

async fn soon<T>(what: &str, found: impl AsyncFn() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = found().await {
            return found;
        }
        assert!(start.elapsed() < Duration::from_secs(30), "waited in vain: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

fn a_migration_is_one_trace() {
    let runtime = runtime();
    let _entered = runtime.enter();
    let collector = Collector::default();
    let address = free_address();
    let service = TraceServiceServer::new(collector.clone());
    runtime.spawn(async move {
        let listener = tokio::net::TcpListener::bind(address).await.unwrap();
        let incoming = TcpListenerStream::new(listener);
        tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming).await.unwrap();
    });
    let mut cluster = Cluster::start(address);
    let migration = runtime.block_on(cluster.move_something());
    let trace = migration.uid.replace('-', "");
    let spans = || -> Vec<Seen> {
        collector.0.lock().unwrap().iter().filter(|span| span.trace == trace).cloned().collect()
    };
    wait_for("the spans of all three", || {
        spans().iter().filter(|span| span.name == "migration").count() == 3
    });
    let spans = spans();
    let of = |role: &str| {
        let found = spans.iter().find(|span| span.name == "migration" && span.get("role") == role);
        found.unwrap_or_else(|| panic!("no span of the {role}: {spans:#?}"))
    };
    let phases = |whose: &Seen| -> BTreeSet<String> {
        let below = spans.iter().filter(|span| span.parent == whose.id && span.name == "phase");
        below.map(|span| span.get("phase").to_owned()).collect()
    };
    let ordered = of("coordinator");
    assert!(ordered.parent.is_empty(), "{ordered:?}");
    assert_eq!((ordered.service.as_str(), ordered.instance.as_str()), ("gantry-coordinator", "main"));
    assert_eq!(phases(ordered), ["checking", "following", "preparing"].map(String::from).into());
    let preparing = spans.iter().find(|s| s.parent == ordered.id && s.get("phase") == "preparing").unwrap();
    for (role, node) in [("source", "node-a"), ("target", "node-b")] {
        let side = of(role);
        assert_eq!((side.service.as_str(), side.instance.as_str()), ("gantry-node-agent", node));
        assert_eq!(side.parent, preparing.id, "{side:?}");
        assert_eq!(side.get("epoch"), migration.epoch.to_string());
        assert_eq!(phases(side), PHASES.map(String::from).into(), "{role}");
    }
    assert!(spans.iter().filter(|s| s.name == "migration").all(|s| s.get("id") == migration.name));

    // The next one is another trace.
    let second = runtime.block_on(cluster.move_something());
    assert_ne!(second.uid, migration.uid);
    wait_for("the spans of the second one", || {
        let trace = second.uid.replace('-', "");
        let all = collector.0.lock().unwrap();
        all.iter().filter(|span| span.trace == trace && span.name == "migration").count() == 3
    });
    wait_for("the agent counts them", || {
        let text = cluster.monitored();
        let sent =
            text.lines().find_map(|line| line.strip_prefix("gantry_trace_spans_total{result=\"sent\"} "));
        sent.is_some_and(|sent| sent.parse::<u64>().unwrap() >= 6)
    });
}

fn a_collector_that_never_answers_changes_nothing() {
    // Connections are made, and nobody ever reads what comes.
    let deaf = TcpListener::bind(free_address()).unwrap();
    deaf.set_nonblocking(true).unwrap();
    let runtime = runtime();
    let _entered = runtime.enter();
    let mut cluster = Cluster::start(deaf.local_addr().unwrap());
    runtime.block_on(cluster.move_something());
    // Its spans are on their way soon, and would be for seconds. A connection that is let go would be an answer.
    let mut tried = None;
    wait_for("an exporter tries", || {
        tried = tried.take().or_else(|| deaf.accept().ok());
        tried.is_some()
    });
    let begun = Instant::now();
    kill(Pid::from_raw(cluster.coordinator.id().cast_signed()), Signal::SIGTERM).unwrap();
    assert!(cluster.coordinator.wait().unwrap().success());
    for agent in &mut cluster.agents {
        assert!(agent.signal(Signal::SIGTERM).success());
    }
    assert!(begun.elapsed() < Duration::from_secs(4), "three daemons took {:?}", begun.elapsed());
}
