//! The daemon as a process: configuration errors, gRPC with roles, containers that outlive it. Needs root.

#![allow(clippy::unwrap_used, reason = "a failed step is the test's failure")]

mod common;

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use common::agent::{Agent, Ca, free_address};
use common::pair::{Pair, runs, told};
use common::{bundle, unique, wait_for};
use nix::sys::signal::Signal;
use node_agent::runtime::cgroup::{Cgroup, Layout, remove_parent};
use proto::error::ErrorDetails;
use proto::tls::{Expect, connect};
use proto::v1;
use proto::v1::registry_server::{Registry, RegistryServer};
use tokio_stream::StreamExt as _;
use tonic::{Code, Request, Response, Status, Streaming};

fn agent(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_node-agent")).args(args).output().unwrap()
}

fn one_line(output: &Output) -> String {
    let text = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(text.lines().count(), 1, "{text}");
    text
}

#[test]
fn bad_flags_and_configurations_start_nothing() {
    assert_eq!(agent(&["serve"]).status.code(), Some(2));
    assert_eq!(agent(&["no-such-command"]).status.code(), Some(2));
    let missing = agent(&["serve", "--config", "/no/such/file"]);
    assert_eq!(missing.status.code(), Some(64));
    assert!(one_line(&missing).contains("/no/such/file"));

    let agent_with = |change: &dyn Fn(String) -> String| {
        let subject = Agent::new("");
        let text = change(fs::read_to_string(subject.config()).unwrap());
        fs::write(subject.config(), text).unwrap();
        let output = agent(&["serve", "--config", subject.config().to_str().unwrap()]);
        assert!(!subject.dir.path().join("state").exists(), "nothing was started");
        assert_eq!(output.status.code(), Some(64));
        one_line(&output)
    };
    assert!(agent_with(&|text| text.replace("peer_listen", "peer_lisen")).contains("peer_lisen"));
    assert!(agent_with(&|text| text.replace("node-a\"", "node-b\"")).contains("not of node/node-b"));
    assert!(agent_with(&|text| text.replace("tls.key", "no.key")).contains("no.key"));
    assert!(
        agent_with(&|text| text.replace("[tls]", "bridge = \"nosuchbridge\"\n[tls]"))
            .contains("nosuchbridge")
    );
}

#[test]
fn check_tells_the_host_facts() {
    let output = agent(&["check", "-o", "json"]);
    let facts: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    assert_eq!(facts["kernel"], release.trim());
    assert!(["PagemapScan", "SoftDirty", "none"].contains(&facts["tracker"].as_str().unwrap()));
    assert!(facts["cgroup"]["hierarchies"].as_array().is_some_and(|list| !list.is_empty()));
    let child = { Command::new("sleep") }.arg("100").stdin(Stdio::null()).stdout(Stdio::null()).spawn();
    let mut child = child.unwrap();
    let output = agent(&["check", "--pid", &child.id().to_string(), "-o", "json"]);
    let verdict: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(verdict["processes"], 1, "{verdict}");
}

fn run_request(name: &str, bundle: &Path) -> v1::RunContainerRequest {
    v1::RunContainerRequest {
        name: name.to_owned(),
        bundle: bundle.to_str().unwrap().to_owned(),
        labels: [("team".to_owned(), "shop".to_owned())].into(),
        ..Default::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn containers_outlive_the_agent_and_are_served_again() {
    let mut subject = Agent::new("");
    subject.start();
    let mut admin = subject.client("root.admin.gantry").await;
    let script = "trap 'exit 4' TERM; echo up; while :; do sleep 0.05; done";
    let bundle = bundle(subject.dir.path(), &["sh", "-c", script], |_| {});
    let name = unique("c");
    let started = admin.run_container(run_request(&name, &bundle)).await.unwrap().into_inner();
    assert_eq!((started.state(), started.node.as_str()), (v1::ContainerState::Running, "node-a"));
    assert_eq!(started.labels["team"], "shop");
    let again = admin.run_container(run_request(&name, &bundle)).await.unwrap_err();
    assert_eq!(
        (again.code(), ErrorDetails::of(&again).reason.as_str()),
        (Code::AlreadyExists, "CONTAINER_EXISTS")
    );
    let wrong = admin.run_container(run_request("No Name", &bundle)).await.unwrap_err();
    assert_eq!(
        (wrong.code(), ErrorDetails::of(&wrong).fields[0].0.as_str()),
        (Code::InvalidArgument, "name")
    );

    // A graceful stop, and a crash.
    let status = subject.signal(Signal::SIGTERM);
    assert_eq!(status.code(), Some(0), "see {}", subject.log().display());
    subject.start();
    let mut admin = subject.client("root.admin.gantry").await;
    let list =
        admin.list_containers(v1::ListAgentContainersRequest {}).await.unwrap().into_inner().containers;
    assert_eq!((list.len(), list[0].pid, list[0].state()), (1, started.pid, v1::ContainerState::Running));
    subject.signal(Signal::SIGKILL);
    subject.start();
    let mut admin = subject.client("coordinator.coordinator.gantry").await;

    // Its log, followed to its end; a command inside it.
    let follow = v1::LogsRequest { name: name.clone(), follow: true };
    let mut logs = admin.logs(follow).await.unwrap().into_inner();
    assert_eq!(logs.next().await.unwrap().unwrap().data, b"up\n");
    let inputs = [
        v1::ExecInput {
            name: name.clone(),
            args: ["sh", "-c", "cat; echo err >&2; exit 9"].map(String::from).to_vec(),
            ..Default::default()
        },
        v1::ExecInput { stdin: b"through".to_vec(), ..Default::default() },
        v1::ExecInput { stdin_closed: true, ..Default::default() },
    ];
    let mut outputs = admin.exec(tokio_stream::iter(inputs)).await.unwrap().into_inner();
    let (mut stdout, mut stderr, mut exit) = (Vec::new(), Vec::new(), None);
    while let Some(output) = outputs.next().await {
        let output = output.unwrap();
        stdout.extend(output.stdout);
        stderr.extend(output.stderr);
        exit = output.exit_status.or(exit);
    }
    assert_eq!(
        (stdout.as_slice(), stderr.as_slice(), exit),
        (b"through".as_slice(), b"err\n".as_slice(), Some(9))
    );

    // A client that goes away takes its command along.
    let sleeper = v1::ExecInput {
        name: name.clone(),
        args: ["sleep", "4711"].map(String::from).to_vec(),
        ..Default::default()
    };
    let (sender, receiver) = tokio::sync::mpsc::channel(1);
    sender.send(sleeper).await.unwrap();
    let outputs = admin.exec(tokio_stream::wrappers::ReceiverStream::new(receiver)).await.unwrap();
    let layout = node_agent::runtime::cgroup::Layout::read().unwrap();
    let cgroup = node_agent::runtime::cgroup::Cgroup::at(&layout, &subject.parent, &name);
    let sleeps = || {
        let pids = cgroup.processes().unwrap();
        pids.iter()
            .any(|pid| fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line == b"sleep\x004711\0"))
    };
    wait_for("the command", sleeps);
    drop(outputs);
    drop(sender);
    wait_for("its end", || !sleeps());

    let stop = v1::StopContainerRequest { name: name.clone(), grace_seconds: 10 };
    let stopped = admin.stop_container(stop).await.unwrap().into_inner();
    assert_eq!((stopped.state(), stopped.exit_status), (v1::ContainerState::Stopped, Some(4)));
    assert!(logs.next().await.is_none(), "the log ends with the container");
    admin.delete_container(v1::DeleteContainerRequest { name: name.clone(), force: false }).await.unwrap();
    let gone = admin.stop_container(v1::StopContainerRequest { name, grace_seconds: 1 }).await.unwrap_err();
    assert_eq!(gone.code(), Code::NotFound);
}

/// Supervisors such as a kubelet end everything in the agent's own control group.
#[tokio::test(flavor = "multi_thread")]
async fn containers_outlive_the_end_of_the_agents_group() {
    let (layout, pod) = (Layout::read().unwrap(), unique("gantry-test-pod"));
    let own = Cgroup::at(&layout, &pod, "agent");
    own.create().unwrap();
    let mut subject = Agent::new("");
    let mut command = Command::new("sh");
    let script = "for group in $GROUPS_OF_IT; do echo $$ > $group/cgroup.procs; done; exec \"$AGENT\" \"$@\"";
    let groups: Vec<_> = own.groups.iter().map(|group| group.path.to_str().unwrap()).collect();
    command.env("GROUPS_OF_IT", groups.join(" ")).env("AGENT", env!("CARGO_BIN_EXE_node-agent"));
    command.args(["-c", script, "sh"]);
    subject.start_with(command);
    let mut admin = subject.client("root.admin.gantry").await;
    let script = "trap 'exit 4' TERM; while :; do sleep 0.05; done";
    let bundle = bundle(subject.dir.path(), &["sh", "-c", script], |_| {});
    let name = unique("c");
    let started = admin.run_container(run_request(&name, &bundle)).await.unwrap().into_inner();
    let agent = i32::try_from(subject.pid()).unwrap();
    assert!(own.processes().unwrap().contains(&agent), "the test is about nothing");
    own.kill(Duration::from_secs(10)).unwrap();
    assert!(!subject.wait().success());
    own.remove().unwrap();

    subject.start();
    let mut admin = subject.client("root.admin.gantry").await;
    let found =
        admin.list_containers(v1::ListAgentContainersRequest {}).await.unwrap().into_inner().containers;
    assert_eq!((found.len(), found[0].pid, found[0].state()), (1, started.pid, v1::ContainerState::Running));
    // Its shim is there, too: it writes down how the container ends.
    let stop = v1::StopContainerRequest { name: name.clone(), grace_seconds: 10 };
    assert_eq!(admin.stop_container(stop).await.unwrap().into_inner().exit_status, Some(4));
    admin.delete_container(v1::DeleteContainerRequest { name, force: false }).await.unwrap();
    remove_parent(&layout, &pod);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_coordinator_and_administrators_may_call() {
    let mut subject = Agent::new("");
    subject.start();
    for dns in ["node-b.node.gantry", "alice.viewer.gantry"] {
        let refused = subject.client(dns).await.get_facts(v1::GetFactsRequest {}).await.unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied, "{dns}");
        assert_eq!(ErrorDetails::of(&refused).reason, "ROLE_NOT_ALLOWED");
    }
    for dns in ["coordinator.coordinator.gantry", "alice.admin.gantry"] {
        let facts = subject.client(dns).await.get_facts(v1::GetFactsRequest {}).await.unwrap().into_inner();
        assert!(facts.incarnation != 0 && facts.facts.unwrap().vdso_hash != 0);
    }
    let other = Ca::new();
    let expect = Expect::Peer("node-a.node.gantry".parse().unwrap());
    assert!(connect(&subject.listen.to_string(), &expect, &other.tls("alice.admin.gantry")).await.is_err());
    // A second agent must not work on the same directory.
    let text = fs::read_to_string(subject.config()).unwrap();
    let text = text.replace(&subject.listen.to_string(), &free_address().to_string());
    let peers = text.lines().find_map(|line| line.strip_prefix("peer_listen = ")).unwrap().to_owned();
    let second = subject.dir.path().join("second.toml");
    fs::write(&second, text.replace(&peers, &format!("\"{}\"", free_address()))).unwrap();
    let output = agent(&["serve", "--config", second.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(error.contains("another agent uses"), "{error}");
}

/// A registry that tells the test what it hears.
struct Fake(tokio::sync::mpsc::UnboundedSender<String>);

#[tonic::async_trait]
impl Registry for Fake {
    type HeartbeatStream =
        std::pin::Pin<Box<dyn tokio_stream::Stream<Item = Result<v1::HeartbeatResponse, Status>> + Send>>;

    async fn join(&self, request: Request<v1::JoinRequest>) -> Result<Response<v1::JoinResponse>, Status> {
        let node = proto::tls::peer(&request)?.identity.to_string();
        let request = request.into_inner();
        let _ = self.0.send(format!("join {node} {} {}", request.agent_address, request.labels["rack"]));
        Ok(Response::new(v1::JoinResponse { heartbeat_milliseconds: 50 }))
    }

    async fn heartbeat(
        &self,
        request: Request<Streaming<v1::HeartbeatRequest>>,
    ) -> Result<Response<Self::HeartbeatStream>, Status> {
        let mut heartbeats = request.into_inner();
        let sender = self.0.clone();
        let (tell, receiver) = tokio::sync::mpsc::channel(1);
        tokio::spawn(async move {
            // Two of them, then the connection is cut.
            for _ in 0..2 {
                if heartbeats.next().await.is_none_or(|heartbeat| heartbeat.is_err()) {
                    return;
                }
                let _ = sender.send("heartbeat".to_owned());
                let _ = tell.send(Ok(v1::HeartbeatResponse {})).await;
            }
        });
        Ok(Response::new(Box::pin(tokio_stream::wrappers::ReceiverStream::new(receiver))))
    }

    async fn report_outcome(
        &self,
        _: Request<v1::ReportOutcomeRequest>,
    ) -> Result<Response<v1::ReportOutcomeResponse>, Status> {
        Ok(Response::new(v1::ReportOutcomeResponse {}))
    }

    async fn ask_decision(
        &self,
        _: Request<v1::AskDecisionRequest>,
    ) -> Result<Response<v1::AskDecisionResponse>, Status> {
        Err(Status::unimplemented("not asked in this test"))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn agents_whose_logs_have_no_room_migrate_all_the_same() {
    let mut pair = Pair::new("").await;
    for agent in [&mut pair.one, &mut pair.two] {
        agent.signal(Signal::SIGKILL);
        fs::remove_file(agent.log()).unwrap();
        std::os::unix::fs::symlink("/dev/full", agent.log()).unwrap();
        agent.start();
    }
    let program = "import time\nwhile True: print('here', flush=True); time.sleep(0.01)";
    let name = pair.run(&["python3", "-c", program], |_| {}).await;
    let ended = pair.moved(&name, 1, v1::Policy::default()).await;
    assert_eq!(ended.phase(), v1::Phase::Succeeded, "{}", told(&ended));
    runs(&pair.two, &name);
}

#[tokio::test(flavor = "multi_thread")]
async fn it_joins_beats_and_joins_again() {
    let address = free_address();
    let mut subject = Agent::new(&format!("coordinator = \"{address}\"\nlabels = {{ rack = \"r1\" }}"));
    // The agent comes first: it waits for its coordinator.
    subject.start();
    subject.client("root.admin.gantry").await;
    let tls = subject.ca.tls("main.coordinator.gantry");
    let (sender, mut heard) = tokio::sync::mpsc::unbounded_channel();
    let listener = tokio::net::TcpListener::bind(address).await.unwrap();
    let server = tonic::transport::Server::builder()
        .add_service(RegistryServer::new(Fake(sender)))
        .serve_with_incoming(proto::tls::listen(listener, &tls));
    let server = tokio::spawn(server);
    let join = format!("join node/node-a {} r1", subject.listen);
    for expected in [join.as_str(), "heartbeat", "heartbeat", join.as_str(), "heartbeat"] {
        let next = tokio::time::timeout(std::time::Duration::from_secs(20), heard.recv()).await;
        assert_eq!(next.unwrap().unwrap(), expected);
    }
    server.abort();
}
