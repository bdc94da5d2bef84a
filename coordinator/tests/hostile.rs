//! Callers that mean no good, or are many, or slow: the coordinator refuses by name, goes on and does not grow.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::collections::HashMap;
use std::net::TcpListener;
use std::path::Path;
use std::time::Duration;

use common::{Behaviour, LIMIT, Pki, World, reason, text};
use prost::Message as _;
use prost_reflect::{DescriptorPool, DynamicMessage, FieldDescriptor, Kind, MapKey, MessageDescriptor};
use prost_reflect::{MethodDescriptor, Value};
use proto::error::ErrorDetails;
use proto::identity::Role;
use proto::tls::{Expect, Tls, TlsFiles, channel_lazy};
use proto::v1::coordinator_client::CoordinatorClient;
use proto::v1::*;
use tonic::client::Grpc;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::Channel;
use tonic::{Code, Request, Status, Streaming};

/// Messages as the bytes that they are: any method can be called with anything.
#[derive(Clone, Copy, Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, item: Vec<u8>, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        bytes::BufMut::put_slice(buffer, &item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        let mut item = vec![0; bytes::Buf::remaining(buffer)];
        bytes::Buf::copy_to_slice(buffer, &mut item);
        Ok(Some(item))
    }
}

/// Calls a method of any kind with one message; the error of a call that is refused.
async fn call(
    channel: &Channel,
    method: &MethodDescriptor,
    message: Vec<u8>,
) -> Result<Streaming<Vec<u8>>, Status> {
    let mut client = Grpc::new(channel.clone());
    client.ready().await.unwrap();
    let path = format!("/{}/{}", method.parent_service().full_name(), method.name());
    let request = Request::new(tokio_stream::once(message));
    let answer = client.streaming(request, path.parse().unwrap(), Raw);
    Ok(tokio::time::timeout(LIMIT, answer).await.unwrap()?.into_inner())
}

fn channel(world: &World, dns: &str) -> Channel {
    channel_lazy(&world.process.address, &Expect::Any(Role::Coordinator), &world.pki.tls(dns)).unwrap()
}

/// The methods of a service, from the descriptors that the coordinator serves: none can be forgotten.
fn methods(service: &str) -> Vec<MethodDescriptor> {
    let pool = DescriptorPool::decode(proto::DESCRIPTORS).unwrap();
    pool.get_service_by_name(service).unwrap().methods().collect()
}

/// What only looks, by its name; everything else changes something.
fn looks(method: &MethodDescriptor) -> bool {
    let name = method.name();
    ["Get", "List", "Watch"].iter().any(|prefix| name.starts_with(prefix))
        || ["Logs", "CheckContainer"].contains(&name)
}

#[tokio::test(flavor = "multi_thread")]
async fn no_method_is_open_to_the_wrong_role() {
    let world = World::start();
    let of = |dns| channel(&world, dns);
    let (viewer, admin) = (of("bob.viewer.gantry"), of("alice.admin.gantry"));
    let (node, other) = (of("node-x.node.gantry"), of("main.coordinator.gantry"));
    let denied = async |channel: &Channel, method: &MethodDescriptor| {
        let answer = call(channel, method, Vec::new()).await;
        answer.is_err_and(|status| {
            status.code() == Code::PermissionDenied && reason(&status) == "ROLE_NOT_ALLOWED"
        })
    };
    let of_users = methods("gantry.v1.Coordinator");
    assert!(of_users.iter().filter(|method| !looks(method)).count() > 10);
    for method in of_users {
        assert_eq!(denied(&viewer, &method).await, !looks(&method), "a viewer: {}", method.name());
        assert!(!denied(&admin, &method).await, "an admin: {}", method.name());
        assert!(denied(&node, &method).await, "a node: {}", method.name());
        assert!(denied(&other, &method).await, "a coordinator: {}", method.name());
    }
    for method in methods("gantry.v1.Registry") {
        for stranger in [&viewer, &admin, &other] {
            assert!(denied(stranger, &method).await, "{}", method.name());
        }
        assert!(!denied(&node, &method).await, "a node: {}", method.name());
    }
}

/// Every field of a message that holds text, a list or a map, however deep: its path, and the message with too much in it.
fn too_long(descriptor: &MessageDescriptor, above: &str) -> Vec<(String, DynamicMessage)> {
    let text = || Value::String("x".repeat(200_000));
    let mut found = Vec::new();
    for field in descriptor.fields() {
        let path =
            if above.is_empty() { field.name().to_owned() } else { format!("{above}.{}", field.name()) };
        let mut add = |path: &str, value: Value| {
            let mut message = DynamicMessage::new(descriptor.clone());
            message.set_field(&field, value);
            found.push((path.to_owned(), message));
        };
        if field.is_map() {
            let entry = |n: usize| (MapKey::String(n.to_string()), Value::String(String::new()));
            add(&path, Value::Map((0..65).map(entry).collect()));
            add(&path, Value::Map(HashMap::from([(MapKey::String("k".into()), text())])));
            add(
                &path,
                Value::Map(HashMap::from([(MapKey::String("x".repeat(254)), Value::String(String::new()))])),
            );
        } else if field.is_list() {
            assert_eq!(field.kind(), Kind::String, "{path}: a list that this test does not know");
            add(&path, Value::List(vec![Value::String(String::new()); 1025]));
            add(&format!("{path}[0]"), Value::List(vec![text()]));
        } else if field.kind() == Kind::String {
            add(&path, text());
        } else if let Some(inner) = inner(&field) {
            let below = too_long(&inner, &path);
            below.into_iter().for_each(|(path, value)| add(&path, Value::Message(value)));
        }
    }
    found
}

fn inner(field: &FieldDescriptor) -> Option<MessageDescriptor> {
    field.kind().as_message().filter(|message| !message.full_name().starts_with("google.")).cloned()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_field_has_a_limit() {
    let world = World::start();
    let admin = channel(&world, "alice.admin.gantry");
    let mut count = 0;
    for method in methods("gantry.v1.Coordinator") {
        for (path, message) in too_long(&method.input(), "") {
            let refused = call(&admin, &method, message.encode_to_vec()).await;
            let Err(status) = refused else { panic!("{}: {path} has no limit", method.name()) };
            assert_eq!(status.code(), Code::InvalidArgument, "{}: {path}: {status:?}", method.name());
            let fields = ErrorDetails::of(&status).fields;
            assert!(
                fields.iter().any(|(field, _)| *field == path),
                "{}: {path} in {fields:?}",
                method.name()
            );
            count += 1;
        }
    }
    assert!(count > 60, "{count} fields are too few to be all");

    // What is longer than any message may be is not even read.
    let mut client = world.client("alice.admin.gantry");
    let name = "x".repeat(5 << 20);
    let refused = client.get_node(GetNodeRequest { name }).await.unwrap_err();
    assert_eq!(refused.code(), Code::OutOfRange, "{refused:?}");
    client.list_nodes(ListNodesRequest::default()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_and_nodes_that_speak_for_others_are_refused() {
    // An address that nobody else uses.
    let metrics = TcpListener::bind("127.94.0.8:0").unwrap().local_addr().unwrap().to_string();
    let mut world = World::with(&format!("metrics_listen = {metrics:?}"));
    let a = world.agent("node-a", Behaviour::running(&["web"])).await;
    let _b = world.agent("node-b", Behaviour::default()).await;
    let c = world.agent("node-c", Behaviour::default()).await;
    world.create("web", "node-b").await;
    a.called("Session 1").await;
    let status = MigrationStatus {
        migration: "web-1".into(),
        container: "web".into(),
        epoch: 1,
        phase: Phase::Succeeded.into(),
        ..Default::default()
    };
    for as_source in [true, false] {
        let report = ReportOutcomeRequest { status: Some(status.clone()), as_source };
        let refused = c.registry().await.report_outcome(report).await.unwrap_err();
        assert_eq!((refused.code(), reason(&refused).as_str()), (Code::PermissionDenied, "NOT_A_PARTY"));
    }
    // Nor may one side speak for the other.
    let report = ReportOutcomeRequest { status: Some(status), as_source: false };
    let refused = a.registry().await.report_outcome(report).await.unwrap_err();
    assert_eq!(reason(&refused), "NOT_A_PARTY");
    let ask = AskDecisionRequest { migration: "web-1".into(), epoch: 1 };
    let refused = c.registry().await.ask_decision(ask).await.unwrap_err();
    assert_eq!(reason(&refused), "NOT_A_PARTY");
    assert_ne!(world.phase("web-1", Phase::Preparing).await.phase(), Phase::Succeeded);

    // The server looks at the client's certificate; a client that trusts it comes as far as that.
    let strangers = Pki::new();
    let foreign = TlsFiles::in_dir(&strangers.issue("alice.admin.gantry"));
    let late = TlsFiles::in_dir(&world.pki.issue_with("late.admin.gantry", |params| {
        params.not_after = rcgen::date_time_ymd(2024, 1, 1);
    }));
    let ca = TlsFiles::in_dir(&world.pki.issue("alice.admin.gantry")).ca;
    for files in [foreign, late] {
        let tls = Tls::load(&TlsFiles { ca: ca.clone(), ..files }).unwrap();
        let expect = Expect::Any(Role::Coordinator);
        let channel = channel_lazy(&world.process.address, &expect, &tls).unwrap();
        // The refusal comes as an alert after the client's side of the handshake, so its code is that of a broken
        // connection; the server says that it was it.
        CoordinatorClient::new(channel).list_nodes(ListNodesRequest::default()).await.unwrap_err();
    }
    let count = |seen: &str, name: &str| -> u64 {
        let line = seen.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap_or_else(|| panic!("no {name}: {seen}")).trim().parse().unwrap()
    };
    let seen = common::until("both are counted", || async {
        let seen = common::get(&metrics, "/metrics").await;
        (count(&seen, "gantry_connections_refused_total ") == 2).then_some(seen)
    })
    .await;
    let denied = r#"gantry_api_requests_total{method="Registry/ReportOutcome",code="PermissionDenied"} "#;
    assert_eq!(count(&seen, denied), 3);

    // Nothing of a key is in any log of all this, in any form that a line could have.
    let log = text(&world.process.log());
    assert!(log.contains("refused a connection") && log.contains("node joined"), "{log}");
    for dns in ["main.coordinator.gantry", "alice.admin.gantry", "node-a.node.gantry", "late.admin.gantry"] {
        let key = text(&TlsFiles::in_dir(&world.pki.issue(dns)).key);
        let secret: Vec<&str> = key.lines().filter(|line| !line.starts_with("-----")).collect();
        assert!(!secret.is_empty());
        assert!(
            secret.iter().all(|line| !log.contains(&line[..line.len().min(16)])),
            "the key of {dns} is in the log"
        );
    }
    assert!(!log.contains("PRIVATE KEY"));
}

/// Bytes of memory that the coordinator holds.
fn resident(world: &World) -> u64 {
    let status = text(Path::new(&format!("/proc/{}/status", world.process.pid())));
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

fn policy(n: usize) -> ApplyMigrationPolicyRequest {
    let labels = (0..50).map(|k| (format!("key-{k}"), format!("{n:0200}"))).collect();
    let limits = Some(Policy { max_rounds: 5, ..Policy::default() });
    let spec = Some(MigrationPolicySpec { limits, ..MigrationPolicySpec::default() });
    ApplyMigrationPolicyRequest { name: "busy".into(), spec, labels, validate_only: false }
}

/// Some watch and do not read. The others get everything, and what waits for the slow ones does not pile up.
#[tokio::test(flavor = "multi_thread")]
async fn slow_readers_hold_up_nobody() {
    const CHANGES: usize = 300;
    let world = World::start();
    let mut api = world.api.clone();
    let mut next = 0;
    let mut changes = async || {
        for _ in 0..CHANGES {
            next += 1;
            api.apply_migration_policy(policy(next)).await.unwrap();
        }
    };
    changes().await;
    let before = resident(&world);
    changes().await;
    let without = resident(&world).saturating_sub(before);
    let mut slow = Vec::new();
    for _ in 0..20 {
        let mut client = world.client("bob.viewer.gantry");
        slow.push(
            client
                .watch_migration_policies(WatchMigrationPoliciesRequest::default())
                .await
                .unwrap()
                .into_inner(),
        );
    }
    let mut fast = world.client("carol.viewer.gantry");
    let mut fast =
        fast.watch_migration_policies(WatchMigrationPoliciesRequest::default()).await.unwrap().into_inner();
    let reader = tokio::spawn(async move {
        let mut seen = 0;
        while seen <= CHANGES {
            fast.message().await.unwrap().unwrap();
            seen += 1;
        }
    });
    let before = resident(&world);
    changes().await;
    tokio::time::timeout(LIMIT, reader).await.expect("a reader that reads is not held up").unwrap();
    let with = resident(&world).saturating_sub(before);
    // All that 20 readers have not read would be 20 x 300 x 11 kB, 66 MB.
    println!("grew by {} kB without slow readers, by {} kB with 20", without >> 10, with >> 10);
    assert!(with < without + (33 << 20), "{without} {with}");
    // A slow one is told everything when it does read, or that it came too late.
    let mut late = slow.pop().unwrap();
    let mut last = 0;
    while last < 3 * u64::try_from(CHANGES).unwrap() {
        match tokio::time::timeout(LIMIT, late.message()).await.expect("in time") {
            Ok(event) => {
                let revision = event.unwrap().revision;
                assert!(revision == last + 1 || last == 0, "{revision} after {last}");
                last = revision;
            }
            Err(status) => {
                assert_eq!(reason(&status), "REVISION_COMPACTED");
                break;
            }
        }
    }
}

/// Watchers that have nothing to see. `GANTRY_WATCHERS=10000` makes it more.
#[tokio::test(flavor = "multi_thread")]
async fn idle_watchers_cost_little() {
    let count = std::env::var("GANTRY_WATCHERS").map_or(500, |count| count.parse().unwrap());
    let world = World::start();
    let before = resident(&world);
    let mut watchers = Vec::new();
    while watchers.len() < count {
        // Each connection has a hundred.
        let client = world.client("bob.viewer.gantry");
        for _ in 0..100 {
            let request = WatchMigrationPoliciesRequest::default();
            watchers.push(client.clone().watch_migration_policies(request).await.unwrap().into_inner());
        }
    }
    let each = resident(&world).saturating_sub(before) / count as u64;
    println!("{count} watchers: {} kB before, {each} bytes each", before >> 10);
    assert!(each < 64 << 10, "{each} bytes each");
    let began = std::time::Instant::now();
    world.api.clone().apply_migration_policy(policy(1)).await.unwrap();
    for watcher in &mut watchers {
        let event = tokio::time::timeout(Duration::from_secs(60), watcher.message()).await.unwrap();
        assert_eq!(event.unwrap().unwrap().policy.unwrap().name, "busy");
    }
    println!("all have been told after {} ms", began.elapsed().as_millis());
}
