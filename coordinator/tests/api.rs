//! The API: every error one by one, and what each role may do.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::collections::HashMap;

use common::{Behaviour, World, reason};
use proto::error::ErrorDetails;
use proto::tls::{Expect, connect};
use proto::v1::*;
use tonic::{Code, Status};

fn spec(container: &str, target_node: &str) -> Option<MigrationSpec> {
    Some(MigrationSpec { container: container.into(), target_node: target_node.into(), ..Default::default() })
}

fn create(container: &str, target: &str) -> CreateMigrationRequest {
    CreateMigrationRequest { spec: spec(container, target), ..CreateMigrationRequest::default() }
}

fn run(node: &str, name: &str) -> CreateContainerRequest {
    let container =
        RunContainerRequest { name: name.into(), bundle: "/b".into(), ..RunContainerRequest::default() };
    CreateContainerRequest {
        node: node.into(),
        container: Some(container),
        ..CreateContainerRequest::default()
    }
}

fn is(status: &Status, code: Code, why: &str) {
    assert_eq!((status.code(), reason(status).as_str()), (code, why), "{status:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn creation_is_checked() {
    let mut world = World::start();
    let _a = world.agent("node-a", Behaviour::running(&["web", "old"])).await;
    let _b = world.agent("node-b", Behaviour::default()).await;
    let mut api = world.api.clone();
    let mut refused =
        async |request: CreateMigrationRequest| api.create_migration(request).await.unwrap_err();
    is(&refused(CreateMigrationRequest::default()).await, Code::InvalidArgument, "INVALID_ARGUMENT");
    is(&refused(create("No!", "")).await, Code::InvalidArgument, "INVALID_ARGUMENT");
    is(&refused(create("web", "No!")).await, Code::InvalidArgument, "INVALID_ARGUMENT");
    is(&refused(create("none", "node-b")).await, Code::NotFound, "CONTAINER_NOT_FOUND");
    is(&refused(create("web", "node-x")).await, Code::NotFound, "NODE_NOT_FOUND");
    let there = refused(create("web", "node-a")).await;
    assert_eq!(ErrorDetails::of(&there).fields[0].0, "spec.target_node");
    let named = CreateMigrationRequest { name: "Bad".into(), ..create("web", "node-b") };
    assert_eq!(ErrorDetails::of(&refused(named).await).fields[0].0, "name");
    let mut wild = create("web", "node-b");
    wild.spec.as_mut().unwrap().policy = Some(Policy { on_timeout: 9, ..Policy::default() });
    assert_eq!(ErrorDetails::of(&refused(wild).await).fields[0].0, "spec.policy.on_timeout");
    let mut wild = create("web", "node-b");
    let timeout = Some(prost_types::Duration { seconds: -1, nanos: 0 });
    wild.spec.as_mut().unwrap().policy = Some(Policy { timeout, ..Policy::default() });
    assert_eq!(ErrorDetails::of(&refused(wild).await).fields[0].0, "spec.policy.timeout");
    let long = CreateMigrationRequest { request_id: "x".repeat(129), ..create("web", "node-b") };
    assert_eq!(ErrorDetails::of(&refused(long).await).fields[0].0, "request_id");

    world.api.stop_container(StopContainerRequest { name: "old".into(), grace_seconds: 1 }).await.unwrap();
    is(
        &world.try_create("old", "node-b").await.unwrap_err(),
        Code::FailedPrecondition,
        "CONTAINER_NOT_RUNNING",
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn one_at_a_time_and_idempotent() {
    let mut world = World::start();
    let a = world.agent("node-a", Behaviour::running(&["web"])).await;
    let _b = world.agent("node-b", Behaviour::default()).await;
    let first =
        CreateMigrationRequest { request_id: "r1".into(), name: "move".into(), ..create("web", "node-b") };
    let made = world.api.create_migration(first.clone()).await.unwrap().into_inner();
    assert_eq!(made.name, "move");
    let again = world.api.create_migration(first.clone()).await.unwrap().into_inner();
    assert_eq!((again.name, again.uid), (made.name, made.uid));
    let reused = CreateMigrationRequest { name: String::new(), ..first.clone() };
    is(&world.api.create_migration(reused).await.unwrap_err(), Code::InvalidArgument, "REQUEST_ID_REUSED");
    let second = world.try_create("web", "node-b").await.unwrap_err();
    is(&second, Code::Aborted, "MIGRATION_RUNNING");
    assert_eq!(ErrorDetails::of(&second).metadata["migration"], "move");
    // Nor may it be stopped or deleted under the engine's hands.
    let stop = StopContainerRequest { name: "web".into(), grace_seconds: 1 };
    is(&world.api.stop_container(stop).await.unwrap_err(), Code::Aborted, "MIGRATION_RUNNING");
    let delete = DeleteContainerRequest { name: "web".into(), force: true };
    is(&world.api.delete_container(delete).await.unwrap_err(), Code::Aborted, "MIGRATION_RUNNING");

    a.called("Session 1").await;
    a.reaches("move", Phase::Failed);
    world.phase("move", Phase::Failed).await;
    let taken = CreateMigrationRequest { name: "move".into(), ..create("web", "node-b") };
    is(&world.api.create_migration(taken).await.unwrap_err(), Code::AlreadyExists, "MIGRATION_EXISTS");
    // Also after a restart the first answer stands.
    world.process.kill();
    world.process.restart();
    world.node("node-a", NodeState::Ready).await;
    assert_eq!(world.api.create_migration(first).await.unwrap().into_inner().phase(), Phase::Failed);
    assert_eq!(a.calls().iter().filter(|call| call.starts_with("Session")).count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_checks_and_changes_nothing() {
    let mut world = World::start();
    let refusal =
        Refusal { pid: 3, subject: "fd 7".into(), reason: "io_uring".into(), way_out: "close it".into() };
    let _a =
        world.agent("node-a", Behaviour { refusals: vec![refusal], ..Behaviour::running(&["bad"]) }).await;
    let b = world.agent("node-b", Behaviour::running(&["good"])).await;
    let mut other = Behaviour::default();
    other.facts.kernel_release = "6.1.0".into();
    let _c = world.agent("node-c", other).await;
    let lack = Refusal {
        pid: 0,
        subject: "mount /data".into(),
        reason: "is not there".into(),
        way_out: "make it".into(),
    };
    let _d = world.agent("node-d", Behaviour { lacks: vec![lack], ..Behaviour::default() }).await;
    let dry = |container: &str, target: &str| CreateMigrationRequest {
        validate_only: true,
        request_id: "dry".into(),
        ..create(container, target)
    };
    let fits = world.api.create_migration(dry("good", "node-a")).await.unwrap().into_inner();
    assert!(fits.name.is_empty());
    let refused = world.api.create_migration(dry("bad", "node-b")).await.unwrap_err();
    is(&refused, Code::FailedPrecondition, "CHECK_REFUSED");
    assert!(ErrorDetails::of(&refused).preconditions[0].subject.contains("fd 7"));
    let unfit = world.api.create_migration(dry("good", "node-c")).await.unwrap_err();
    is(&unfit, Code::FailedPrecondition, "NO_CANDIDATE");
    assert!(ErrorDetails::of(&unfit).preconditions[0].description.contains("6.1.0"));
    let all = world.api.list_migrations(ListMigrationsRequest::default()).await.unwrap().into_inner();
    assert_eq!(all.migrations.len(), 0);
    assert!(b.calls().iter().all(|call| call.starts_with("Check")), "{:?}", b.calls());

    // The same verdicts, without an error.
    let check = CheckMoveRequest { container: "good".into(), ..Default::default() };
    let verdict = world.api.check_container(check).await.unwrap().into_inner();
    let fits: Vec<_> = verdict.candidates.iter().map(|c| (c.node.as_str(), c.fits)).collect();
    assert_eq!(fits, [("node-a", true), ("node-c", false), ("node-d", false)]);
    assert_eq!(verdict.candidates[2].reasons, ["mount /data: is not there (make it)"]);
    assert!(verdict.container.unwrap().description.is_empty(), "it is for nodes alone");
    // The real thing fails for the same reason.
    world.create("good", "node-c").await;
    let failed = world.phase("good-1", Phase::Failed).await;
    assert_eq!(failed.reason, "NoCandidate");
    assert!(failed.message.contains("6.1.0"), "{}", failed.message);
}

#[tokio::test(flavor = "multi_thread")]
async fn containers_are_relayed() {
    let mut world = World::start();
    let a = world.agent("node-a", Behaviour::default()).await;
    let mut api = world.api.clone();
    is(&api.create_container(run("node-x", "web")).await.unwrap_err(), Code::NotFound, "NODE_NOT_FOUND");
    is(
        &api.create_container(run("node-a", "W")).await.unwrap_err(),
        Code::InvalidArgument,
        "INVALID_ARGUMENT",
    );
    let mut empty = run("node-a", "web");
    empty.container.as_mut().unwrap().bundle.clear();
    is(&api.create_container(empty).await.unwrap_err(), Code::InvalidArgument, "INVALID_ARGUMENT");
    let request = CreateContainerRequest { request_id: "r".into(), ..run("node-a", "web") };
    assert_eq!(api.create_container(request.clone()).await.unwrap().into_inner().node, "node-a");
    assert_eq!(api.create_container(request).await.unwrap().into_inner().node, "node-a");
    assert_eq!(a.calls(), ["Run web"]);
    is(
        &api.create_container(run("node-a", "web")).await.unwrap_err(),
        Code::AlreadyExists,
        "CONTAINER_EXISTS",
    );

    let found = api.get_container(GetContainerRequest { name: "web".into() }).await.unwrap().into_inner();
    assert_eq!(found.state(), ContainerState::Running);
    let logs = LogsRequest { name: "web".into(), follow: false };
    let chunk = api.logs(logs).await.unwrap().into_inner().message().await.unwrap().unwrap();
    assert_eq!(chunk.data, b"web on node-a\n");
    let input = [
        ExecInput { name: "web".into(), args: vec!["cat".into(), "-".into()], ..ExecInput::default() },
        ExecInput { stdin: b"hello".to_vec(), ..ExecInput::default() },
        ExecInput { stdin_closed: true, ..ExecInput::default() },
    ];
    let mut output = api.exec(tokio_stream::iter(input)).await.unwrap().into_inner();
    assert_eq!(output.message().await.unwrap().unwrap().stdout, b"hello");
    assert_eq!(output.message().await.unwrap().unwrap().exit_status, Some(2));
    let nobody = ExecInput { name: "none".into(), args: vec!["x".into()], ..ExecInput::default() };
    let error = api.exec(tokio_stream::once(nobody)).await.unwrap_err();
    is(&error, Code::NotFound, "CONTAINER_NOT_FOUND");

    let stop = StopContainerRequest { name: "web".into(), grace_seconds: 0 };
    assert_eq!(api.stop_container(stop).await.unwrap().into_inner().exit_status, Some(143));
    api.delete_container(DeleteContainerRequest { name: "web".into(), force: false }).await.unwrap();
    let gone = api.get_container(GetContainerRequest { name: "web".into() }).await.unwrap_err();
    is(&gone, Code::NotFound, "CONTAINER_NOT_FOUND");

    // Cordoned, and unreachable.
    api.cordon_node(CordonNodeRequest { name: "node-a".into(), cordoned: true }).await.unwrap();
    is(
        &api.create_container(run("node-a", "db")).await.unwrap_err(),
        Code::FailedPrecondition,
        "NODE_CORDONED",
    );
    api.cordon_node(CordonNodeRequest { name: "node-a".into(), cordoned: false }).await.unwrap();
    is(
        &api.cordon_node(CordonNodeRequest { name: "node-x".into(), cordoned: true }).await.unwrap_err(),
        Code::NotFound,
        "NODE_NOT_FOUND",
    );
    a.vanish();
    is(&api.create_container(run("node-a", "db")).await.unwrap_err(), Code::Unavailable, "NODE_UNREACHABLE");
    world.node("node-a", NodeState::Unknown).await;
    world.node("node-a", NodeState::NotReady).await;
    a.come_back().await;
    world.node("node-a", NodeState::Ready).await;
    // Every change is in the audit log with who made it, reads are not.
    let log = common::text(&world.process.log());
    for line in ["CreateContainer", "StopContainer", "DeleteContainer", "Exec", "CordonNode", "UncordonNode"]
    {
        let found = log.lines().any(|l| l.contains("audit") && l.contains(line) && l.contains("admin/alice"));
        assert!(found, "{line} is not in the audit log");
    }
    assert!(!log.lines().any(|l| l.contains("audit") && l.contains("Get")));
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_are_paged_and_filtered() {
    let mut world = World::start();
    let _a = world.agent("node-a", Behaviour::running(&["c1", "c2", "c3"])).await;
    let _b = world.agent("node-b", Behaviour::running(&["c4"])).await;
    let mut names = Vec::new();
    let mut request = ListContainersRequest { page_size: 2, ..ListContainersRequest::default() };
    loop {
        let page = world.api.list_containers(request.clone()).await.unwrap().into_inner();
        assert!(page.containers.len() <= 2);
        names.extend(page.containers.into_iter().map(|c| c.name));
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
    }
    assert_eq!(names, ["c1", "c2", "c3", "c4"]);
    let labels = HashMap::from([("app".to_owned(), "c3".to_owned())]);
    let request = ListContainersRequest { labels, ..ListContainersRequest::default() };
    assert_eq!(world.api.list_containers(request).await.unwrap().into_inner().containers.len(), 1);
    let labels = HashMap::from([("rack".to_owned(), "node-b".to_owned())]);
    let request = ListNodesRequest { labels, ..ListNodesRequest::default() };
    let nodes = world.api.list_nodes(request).await.unwrap().into_inner().nodes;
    assert_eq!((nodes.len(), nodes[0].containers), (1, 1));

    for (container, target) in [("c1", "node-b"), ("c2", "node-b"), ("c4", "node-a")] {
        world.create(container, target).await;
    }
    let list = |page_size, page_token: &str, container: &str| ListMigrationsRequest {
        page_size,
        page_token: page_token.into(),
        container: container.into(),
        ..ListMigrationsRequest::default()
    };
    let first = world.api.list_migrations(list(2, "", "")).await.unwrap().into_inner();
    let second = world.api.list_migrations(list(2, &first.next_page_token, "")).await.unwrap().into_inner();
    let names: Vec<_> = first.migrations.iter().chain(&second.migrations).map(|m| m.name.as_str()).collect();
    assert_eq!(names, ["c1-1", "c2-1", "c4-1"]);
    assert!(second.next_page_token.is_empty());
    assert_eq!(world.api.list_migrations(list(0, "", "c4")).await.unwrap().into_inner().migrations.len(), 1);
    let bad = world.api.list_migrations(list(0, "!", "")).await.unwrap_err();
    is(&bad, Code::InvalidArgument, "INVALID_ARGUMENT");
    let bad = world.api.list_nodes(ListNodesRequest { page_size: -1, ..ListNodesRequest::default() }).await;
    is(&bad.unwrap_err(), Code::InvalidArgument, "INVALID_ARGUMENT");
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_names_are_not_found() {
    let mut world = World::start();
    let name = || "none".to_owned();
    let api = &mut world.api;
    is(&api.get_node(GetNodeRequest { name: name() }).await.unwrap_err(), Code::NotFound, "NODE_NOT_FOUND");
    for status in [
        api.get_migration(GetMigrationRequest { name: name() }).await.unwrap_err(),
        api.cancel_migration(CancelMigrationRequest { name: name() }).await.unwrap_err(),
        api.resolve_migration(ResolveMigrationRequest { name: name(), ..Default::default() })
            .await
            .unwrap_err(),
        api.watch_migrations(WatchMigrationsRequest { name: name(), revision: 0 }).await.unwrap_err(),
    ] {
        is(&status, Code::NotFound, "MIGRATION_NOT_FOUND");
    }
    for status in [
        api.stop_container(StopContainerRequest { name: name(), grace_seconds: 0 }).await.unwrap_err(),
        api.delete_container(DeleteContainerRequest { name: name(), force: true }).await.unwrap_err(),
        api.logs(LogsRequest { name: name(), follow: false }).await.unwrap_err(),
        api.check_container(CheckMoveRequest { container: name(), ..Default::default() }).await.unwrap_err(),
    ] {
        is(&status, Code::NotFound, "CONTAINER_NOT_FOUND");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn roles_are_kept_apart() {
    let mut world = World::start();
    let a = world.agent("node-a", Behaviour::running(&["web"])).await;
    let mut viewer = world.client("bob.viewer.gantry");
    viewer.list_nodes(ListNodesRequest::default()).await.unwrap();
    let denied = viewer.create_migration(create("web", "")).await.unwrap_err();
    is(&denied, Code::PermissionDenied, "ROLE_NOT_ALLOWED");
    let denied = viewer.create_container(run("node-a", "db")).await.unwrap_err();
    is(&denied, Code::PermissionDenied, "ROLE_NOT_ALLOWED");
    let mut node = world.client("node-a.node.gantry");
    let denied = node.list_nodes(ListNodesRequest::default()).await.unwrap_err();
    is(&denied, Code::PermissionDenied, "ROLE_NOT_ALLOWED");
    // An admin is no node.
    let expect = Expect::Any(proto::identity::Role::Coordinator);
    let channel =
        connect(&world.process.address, &expect, &world.pki.tls("alice.admin.gantry")).await.unwrap();
    let mut registry = registry_client::RegistryClient::new(channel);
    is(&registry.join(JoinRequest::default()).await.unwrap_err(), Code::PermissionDenied, "ROLE_NOT_ALLOWED");
    // What a node says is checked.
    let bad =
        a.registry().await.join(JoinRequest { agent_address: "x".into(), ..JoinRequest::default() }).await;
    is(&bad.unwrap_err(), Code::InvalidArgument, "INVALID_ARGUMENT");
}

#[tokio::test(flavor = "multi_thread")]
async fn health_and_reflection_are_served_and_watches_end_with_the_coordinator() {
    let mut world = World::start();
    let expect = Expect::Any(proto::identity::Role::Coordinator);
    let admin = world.pki.tls("alice.admin.gantry");
    let address = world.process.address.clone();
    let channel =
        common::until("it serves", || async { connect(&address, &expect, &admin).await.ok() }).await;
    let mut health = tonic_health::pb::health_client::HealthClient::new(channel);
    let service = "gantry.v1.Coordinator".to_owned();
    let check = tonic_health::pb::HealthCheckRequest { service };
    let answer = health.check(check).await.unwrap().into_inner();
    assert_eq!(answer.status(), tonic_health::pb::health_check_response::ServingStatus::Serving);
    // Reflection names every service.
    let request = tonic_reflection::pb::v1::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(
            tonic_reflection::pb::v1::server_reflection_request::MessageRequest::ListServices(String::new()),
        ),
    };
    let channel = connect(&address, &expect, &admin).await.unwrap();
    let mut reflection =
        tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient::new(channel);
    let answer = reflection.server_reflection_info(tokio_stream::once(request)).await.unwrap();
    let answer = format!("{:?}", answer.into_inner().message().await.unwrap());
    for service in ["gantry.v1.Coordinator", "gantry.v1.Registry", "grpc.health.v1.Health"] {
        assert!(answer.contains(service), "{answer}");
    }
    let mut watch = world.api.watch_migrations(WatchMigrationsRequest::default()).await.unwrap().into_inner();
    assert!(world.process.terminate().success());
    let end = tokio::time::timeout(common::LIMIT, watch.message()).await.expect("in time").unwrap_err();
    is(&end, Code::Unavailable, "STOPPING");
}
