//! Two agents, and programs that move from one to the other.

#![allow(dead_code, reason = "each test uses a part of it")]
#![allow(clippy::unwrap_used, reason = "a failed step is the test's failure")]

use std::fs;
use std::rc::Rc;
use std::time::Duration;

use node_agent::runtime::cgroup::{Cgroup, Layout};
use proto::v1;
use proto::v1::node_agent_client::NodeAgentClient;
use serde_json::Value;
use tokio_stream::StreamExt as _;
use tonic::transport::Channel;

use super::agent::{Agent, Ca};
use super::{bundle, unique, wait_for};

pub(crate) const COORDINATOR: &str = "main.coordinator.gantry";

/// Two agents and the clients of both.
pub(crate) struct Pair {
    pub(crate) one: Agent,
    pub(crate) two: Agent,
}

impl Pair {
    pub(crate) async fn new(extra: &str) -> Self {
        let ca = Rc::new(Ca::new());
        let mut one = Agent::named("node-a", Rc::clone(&ca), extra);
        let mut two = Agent::named("node-b", ca, extra);
        one.start();
        two.start();
        Self { one, two }
    }

    pub(crate) async fn to_one(&self) -> NodeAgentClient<Channel> {
        self.one.client(COORDINATOR).await
    }

    /// Starts a program on the first node.
    pub(crate) async fn run(&self, args: &[&str], change: impl FnOnce(&mut Value)) -> String {
        let name = unique("r");
        let bundle = bundle(self.one.dir.path(), args, change);
        let bundle = bundle.to_str().unwrap().to_owned();
        let request = v1::RunContainerRequest { name: name.clone(), bundle, ..Default::default() };
        self.to_one().await.run_container(request).await.unwrap();
        name
    }

    /// Begins to move a container to the second node; gives the migration's name.
    pub(crate) async fn begin(&self, name: &str, epoch: u64, policy: v1::Policy) -> String {
        self.begin_through(name, epoch, policy, |address| address).await
    }

    /// The same, and the source dials what `way` makes of the target's address.
    pub(crate) async fn begin_through(
        &self,
        name: &str,
        epoch: u64,
        policy: v1::Policy,
        way: impl FnOnce(String) -> String,
    ) -> String {
        let migration = format!("{name}-{epoch}");
        let (mut one, mut two) = (self.to_one().await, self.two.client(COORDINATOR).await);
        let prepare = v1::PrepareRequest {
            migration: migration.clone(),
            epoch,
            container: name.to_owned(),
            source_node: self.one.name.clone(),
            memory_bytes: 0,
        };
        let prepared = two.prepare(prepare).await.unwrap().into_inner();
        let start = v1::StartRequest {
            migration: migration.clone(),
            epoch,
            container: name.to_owned(),
            target_node: self.two.name.clone(),
            target_address: way(prepared.peer_address),
            target_incarnation: prepared.incarnation,
            policy: Some(policy),
        };
        one.start(start).await.unwrap();
        migration
    }

    /// Follows a migration until `until` says so, or to its end.
    pub(crate) async fn follow(
        &self,
        migration: &str,
        mut until: impl FnMut(&v1::MigrationStatus) -> bool,
    ) -> v1::MigrationStatus {
        let request = v1::GetAgentMigrationRequest { migration: migration.to_owned() };
        let mut one = self.to_one().await;
        let mut states = one.watch_migration(request).await.unwrap().into_inner();
        let mut last = v1::MigrationStatus::default();
        while let Some(state) = states.next().await {
            last = state.unwrap();
            if until(&last) {
                break;
            }
        }
        last
    }

    pub(crate) async fn moved(&self, name: &str, epoch: u64, policy: v1::Policy) -> v1::MigrationStatus {
        let migration = self.begin(name, epoch, policy).await;
        self.follow(&migration, |_| false).await
    }
}

pub(crate) fn log(agent: &Agent, name: &str) -> String {
    fs::read_to_string(agent.dir.path().join("state/containers").join(name).join("log")).unwrap_or_default()
}

/// It does something on this node.
pub(crate) fn runs(agent: &Agent, name: &str) {
    let before = log(agent, name).len();
    wait_for(&format!("{name} runs on {}", agent.name), || log(agent, name).len() > before);
}

/// What a migration did, for messages.
pub(crate) fn told(status: &v1::MigrationStatus) -> String {
    let rounds: Vec<String> = status
        .rounds
        .iter()
        .map(|round| {
            format!(
                "{} {} pages {} bytes {:.2} s dirty {:.1} MB/s transfer {:.1} MB/s {} ({})",
                round.index,
                round.pages,
                round.bytes,
                round.seconds,
                round.dirty_bytes_per_second / 1e6,
                round.transfer_bytes_per_second / 1e6,
                round.decision,
                round.reason
            )
        })
        .collect();
    format!(
        "{:?} {} {}\n{}\n{}",
        status.phase(),
        status.reason,
        status.message,
        rounds.join("\n"),
        status.events.join("\n")
    )
}

pub(crate) async fn container(agent: &Agent, name: &str) -> Option<v1::Container> {
    let mut client = agent.client(COORDINATOR).await;
    let all = client.list_containers(v1::ListAgentContainersRequest::default()).await.unwrap().into_inner();
    all.containers.into_iter().find(|container| container.name == name)
}

/// No container, no directory and no control group of it.
pub(crate) async fn nothing_at(agent: &Agent, name: &str) {
    for _ in 0..200 {
        let cgroup = Cgroup::at(&Layout::read().unwrap(), &agent.parent, name);
        let left = cgroup.groups.iter().any(|group| group.path.exists())
            || agent.dir.path().join("state/containers").join(name).exists();
        if !left && container(agent, name).await.is_none() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("something of {name} is left on {}", agent.name);
}
