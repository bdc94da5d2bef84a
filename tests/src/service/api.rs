//! The API under an open-loop load: requests begin at fixed moments, whether or not earlier ones were answered, and each
//! one's time counts from the moment at which it should have begun.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use proto::v1::coordinator_client::CoordinatorClient;
use proto::v1::{
    CancelMigrationRequest, CreateMigrationRequest, GetContainerRequest, GetMigrationRequest,
    ListContainersRequest, ListMigrationsRequest, ListNodesRequest, MigrationSpec, Phase,
    WatchMigrationsRequest,
};
use serde::{Deserialize, Serialize};
use tokio::runtime::Runtime;
use tonic::transport::Channel;
use tonic::{Code, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use super::crowd::{self, Crowd, UNDER_WAY, WAITING};
use super::latency::Latency;
use super::usage::Usage;
use crate::stage::NODES;

/// Connections that the load is spread on.
pub const CONNECTIONS: usize = 4;
/// How long the last answers are waited for.
const LAST: Duration = Duration::from_secs(30);
/// How long the reference is measured, seconds.
const REFERENCE: u32 = 5;

/// What is asked, and how often among a hundred requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
enum Kind {
    GetMigration,
    GetContainer,
    ListMigrations,
    ListContainers,
    ListNodes,
    WatchStart,
    Validate,
    /// Creates a migration, or cancels one.
    Write,
    Health,
}

const MIX: [(Kind, u32); 8] = [
    (Kind::GetMigration, 38),
    (Kind::GetContainer, 16),
    (Kind::ListMigrations, 14),
    (Kind::ListContainers, 10),
    (Kind::ListNodes, 6),
    (Kind::WatchStart, 10),
    (Kind::Validate, 2),
    (Kind::Write, 4),
];

/// What agents answer, not the coordinator.
const CHECK: &str = "Validate";

/// The kind of the request with this number: the kinds are spread evenly, the same in each run.
fn kind(index: u32) -> Kind {
    // 61 has no factor in common with 100: a hundred requests in succession are the whole mix.
    let mut left = (index % 100) * 61 % 100;
    for (kind, share) in MIX {
        if left < share {
            return kind;
        }
        left -= share;
    }
    Kind::GetMigration
}

/// A load, as the client is told it.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Load {
    /// Requests a second.
    #[arg(long)]
    rate: u32,
    /// How long.
    #[arg(long)]
    seconds: u32,
    /// The health method alone.
    #[arg(long)]
    health: bool,
}

/// What the client saw.
#[derive(Debug, Serialize, Deserialize)]
pub struct Seen {
    /// Of all requests.
    pub all: Latency,
    /// Of those that the coordinator answers by itself: all but the checks, in which agents look at a container.
    pub own: Latency,
    /// By what was asked.
    pub kinds: BTreeMap<String, Latency>,
    /// How late requests were sent: the client's own part.
    pub late: Latency,
    /// What went wrong; empty when nothing did.
    pub errors: Vec<String>,
}

/// Migrations that the load made.
#[derive(Debug)]
struct Writes {
    free: Vec<String>,
    /// Container and migration, oldest first.
    made: VecDeque<(String, String)>,
}

enum Write {
    Create(String),
    Cancel(String, String),
}

impl Writes {
    /// What is written next; `None` while every container has a call under way.
    fn next(&mut self) -> Option<Write> {
        if self.made.len() * 2 < WAITING
            && let Some(container) = self.free.pop()
        {
            return Some(Write::Create(container));
        }
        self.made.pop_front().map(|(container, migration)| Write::Cancel(container, migration))
    }
}

struct Answer {
    kind: String,
    took: Duration,
    late: Duration,
    error: Option<String>,
}

struct Caller {
    api: CoordinatorClient<Channel>,
    health: HealthClient<Channel>,
    writes: Arc<Mutex<Writes>>,
}

impl Load {
    /// Sends it, and waits for the answers.
    ///
    /// # Errors
    /// When answers are missing at the end.
    pub fn run(&self, runtime: &Runtime, channels: &[Channel]) -> Result<Seen> {
        let free = (0..WAITING).map(crowd::waiting).collect();
        let writes = Arc::new(Mutex::new(Writes { free, made: VecDeque::new() }));
        let (sender, mut answers) = tokio::sync::mpsc::unbounded_channel();
        let total = self.rate * self.seconds;
        let start = Instant::now() + Duration::from_millis(100);
        // On a thread of its own, with the kernel's timers: those of the runtime have milliseconds.
        for (index, channel) in (0..total).zip(channels.iter().cycle()) {
            let due = start + Duration::from_secs(1) * index / self.rate;
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            let kind = if self.health { Kind::Health } else { kind(index) };
            let caller = Caller {
                api: CoordinatorClient::new(channel.clone()),
                health: HealthClient::new(channel.clone()),
                writes: Arc::clone(&writes),
            };
            let sender = sender.clone();
            runtime.spawn(async move {
                let late = due.elapsed();
                let (kind, answer) = caller.call(kind, index as usize).await;
                let error =
                    answer.err().map(|status| format!("{kind}: {:?} {}", status.code(), status.message()));
                // Whoever received them has given up.
                let _ = sender.send(Answer { kind, took: due.elapsed(), late, error });
            });
        }
        drop(sender);
        let all = runtime.block_on(async {
            let mut all = Vec::new();
            let gather = async {
                while let Some(answer) = answers.recv().await {
                    all.push(answer);
                }
            };
            let _ = tokio::time::timeout(LAST, gather).await;
            all
        });
        ensure!(all.len() == total as usize, "{} of {total} requests were answered", all.len());
        Ok(seen(&all))
    }
}

fn seen(answers: &[Answer]) -> Seen {
    let mut kinds: BTreeMap<String, Vec<Duration>> = BTreeMap::new();
    for answer in answers {
        kinds.entry(answer.kind.clone()).or_default().push(answer.took);
    }
    Seen {
        all: Latency::of(answers.iter().map(|answer| answer.took)),
        own: Latency::of(answers.iter().filter(|a| a.kind != CHECK).map(|answer| answer.took)),
        kinds: kinds.into_iter().map(|(kind, times)| (kind, Latency::of(times))).collect(),
        late: Latency::of(answers.iter().map(|answer| answer.late)),
        errors: answers.iter().filter_map(|answer| answer.error.clone()).collect(),
    }
}

impl Caller {
    /// Makes one call; answers what it was.
    async fn call(mut self, kind: Kind, index: usize) -> (String, Result<(), Status>) {
        let name = format!("{kind:?}");
        let migration = || GetMigrationRequest { name: UNDER_WAY.into() };
        let api = &mut self.api;
        let answer = match kind {
            Kind::GetMigration => api.get_migration(migration()).await.map(drop),
            Kind::GetContainer => {
                api.get_container(GetContainerRequest { name: crowd::checked(index) }).await.map(drop)
            }
            Kind::ListMigrations => {
                let request = ListMigrationsRequest { page_size: 20, ..ListMigrationsRequest::default() };
                api.list_migrations(request).await.map(drop)
            }
            Kind::ListContainers => {
                let request = ListContainersRequest { page_size: 20, ..ListContainersRequest::default() };
                api.list_containers(request).await.map(drop)
            }
            Kind::ListNodes => api.list_nodes(ListNodesRequest::default()).await.map(drop),
            Kind::WatchStart => {
                let request = WatchMigrationsRequest { name: UNDER_WAY.into(), revision: 0 };
                first_event(api, request).await
            }
            Kind::Validate => {
                let request = create(crowd::checked(index), true);
                api.create_migration(request).await.map(drop)
            }
            Kind::Health => {
                let request = HealthCheckRequest { service: "gantry.v1.Coordinator".into() };
                self.health.check(request).await.map(drop)
            }
            Kind::Write => return self.write().await,
        };
        (name, answer)
    }

    async fn write(mut self) -> (String, Result<(), Status>) {
        let lock = |writes: &Arc<Mutex<Writes>>, change: &dyn Fn(&mut Writes)| {
            change(&mut writes.lock().unwrap_or_else(PoisonError::into_inner));
        };
        let next = self.writes.lock().unwrap_or_else(PoisonError::into_inner).next();
        match next {
            Some(Write::Create(container)) => {
                let made = self.api.create_migration(create(container.clone(), false)).await;
                let answer = made.map(|made| {
                    let name = made.into_inner().name;
                    lock(&self.writes, &|writes| writes.made.push_back((container.clone(), name.clone())));
                });
                ("Create".into(), answer)
            }
            Some(Write::Cancel(container, name)) => {
                let cancelled = self.api.cancel_migration(CancelMigrationRequest { name }).await;
                let answer = cancelled.and_then(|migration| {
                    let phase = migration.into_inner().phase();
                    if phase != Phase::Cancelled {
                        return Err(Status::unknown(format!("a migration that waited is {phase:?}")));
                    }
                    lock(&self.writes, &|writes| writes.free.push(container.clone()));
                    Ok(())
                });
                ("Cancel".into(), answer)
            }
            None => {
                let answer = self.api.get_migration(GetMigrationRequest { name: UNDER_WAY.into() }).await;
                ("GetMigration".into(), answer.map(drop))
            }
        }
    }
}

async fn first_event(
    api: &mut CoordinatorClient<Channel>,
    request: WatchMigrationsRequest,
) -> Result<(), Status> {
    let mut events = api.watch_migrations(request).await?.into_inner();
    let first = events.message().await?;
    first.map(drop).ok_or_else(|| Status::new(Code::Unknown, "the watch ended"))
}

/// A migration of a container to the other node.
pub(super) fn create(container: String, validate_only: bool) -> CreateMigrationRequest {
    let spec = MigrationSpec { container, target_node: NODES[1].into(), ..MigrationSpec::default() };
    CreateMigrationRequest { spec: Some(spec), validate_only, ..CreateMigrationRequest::default() }
}

/// What was measured.
#[derive(Debug, Serialize)]
pub struct Figures {
    rate: u32,
    seconds: u32,
    load: Seen,
    /// The health method alone, at the same rate.
    health: Seen,
    p50_over_health: f64,
    p99_over_health: f64,
    /// Of one processor.
    coordinator_cpu_percent: f64,
    coordinator_rss_mib: f64,
}

/// Measures it.
///
/// # Errors
/// When hosts cannot be made, or any request failed.
pub fn measure(rate: u32, seconds: u32) -> Result<Figures> {
    let crowd = Crowd::gather()?;
    let rate_text = rate.to_string();
    let run = |seconds: u32, more: &[&str]| -> Result<Seen> {
        let seconds = seconds.to_string();
        let args = [&["api", "--rate", &rate_text, "--seconds", &seconds], more].concat();
        let seen: Seen = serde_json::from_value(crowd.client(&args)?).context("what the client saw")?;
        ensure!(seen.errors.is_empty(), "{} errors, the first: {}", seen.errors.len(), seen.errors[0]);
        Ok(seen)
    };
    let health = run(REFERENCE, &["--health"])?;
    let pid = crowd.coordinator()?;
    let before = Usage::of(pid)?;
    let load = run(seconds, &[])?;
    let after = Usage::of(pid)?;
    crowd.cluster.passed();
    Ok(Figures {
        rate,
        seconds,
        p50_over_health: load.own.p50_ms / health.all.p50_ms.max(1e-3),
        p99_over_health: load.own.p99_ms / health.all.p99_ms.max(1e-3),
        coordinator_cpu_percent: (after.cpu_seconds - before.cpu_seconds) / f64::from(seconds) * 100.0,
        coordinator_rss_mib: after.rss_mib,
        load,
        health,
    })
}

impl Figures {
    /// A table.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = Latency::head(&format!("{}/s, {} s", self.rate, self.seconds));
        for (kind, latency) in &self.load.kinds {
            text.push_str(&latency.row(kind));
        }
        text.push_str(&self.load.own.row("all but Validate"));
        text.push_str(&self.health.all.row("health alone"));
        text.push_str(&self.load.late.row("of it: sent late"));
        text.push_str(&format!(
            "0 errors in {}; over health alone: p50 {:.1}, p99 {:.1}; coordinator {:.0} % of a processor, {:.0} MiB\n",
            self.load.all.count, self.p50_over_health, self.p99_over_health, self.coordinator_cpu_percent, self.coordinator_rss_mib
        ));
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hundred_requests_are_the_mix() {
        assert_eq!(MIX.iter().map(|(_, share)| share).sum::<u32>(), 100);
        for (wanted, share) in MIX {
            let found = (300..400).filter(|index| kind(*index) == wanted).count();
            assert_eq!(found, share as usize, "{wanted:?}");
        }
    }

    #[test]
    fn half_of_the_containers_have_a_migration_in_the_end() {
        let free = (0..WAITING).map(crowd::waiting).collect();
        let mut writes = Writes { free, made: VecDeque::new() };
        let (mut created, mut cancelled) = (0, 0);
        for _ in 0..100 {
            match writes.next() {
                Some(Write::Create(container)) => {
                    created += 1;
                    writes.made.push_back((container, "m".into()));
                }
                Some(Write::Cancel(container, _)) => {
                    cancelled += 1;
                    writes.free.push(container);
                }
                None => panic!("nothing is under way"),
            }
        }
        assert_eq!(created - cancelled, WAITING / 2);
    }
}
