//! Many watchers, and how soon each of them has each change.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use proto::v1::coordinator_client::CoordinatorClient;
use proto::v1::{CancelMigrationRequest, MigrationEvent, WatchMigrationsRequest};
use serde::{Deserialize, Serialize};
use tonic::transport::Channel;
use tonic::{Status, Streaming};

use super::api::create;
use super::crowd::{self, Crowd};
use super::latency::Latency;
use super::usage::Usage;

/// Watchers of one connection.
const EACH: usize = 100;
/// From one change to the next.
const APART: Duration = Duration::from_millis(100);
/// How long any of it may take.
const LIMIT: Duration = Duration::from_secs(60);

/// Watchers and changes, as the client is told them.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Load {
    /// Watchers.
    #[arg(long)]
    watchers: usize,
    /// Changes.
    #[arg(long)]
    changes: usize,
}

/// What the client saw.
#[derive(Debug, Serialize, Deserialize)]
pub struct Seen {
    /// From the call that made a change to each watcher's having it.
    pub each: Latency,
    /// The same until the last watcher has it.
    pub last: Latency,
    /// From that call to its answer.
    pub answer: Latency,
    /// Events that came to all watchers together.
    pub events: usize,
}

/// What one watcher got: when, by revision.
type Got = BTreeMap<u64, Instant>;

/// What watchers share.
#[derive(Debug)]
struct Shared {
    /// Those who have had something.
    begun: AtomicUsize,
    /// The revision that is the last one.
    end: AtomicU64,
}

impl Load {
    /// Connections that the watchers are spread on, and one for the changes.
    pub(super) fn connections(&self) -> usize {
        self.watchers.div_ceil(EACH) + 1
    }

    /// Starts the watchers, makes the changes and looks at what came.
    ///
    /// # Errors
    /// When a call fails, or a watcher missed a revision.
    pub async fn run(&self, channels: &[Channel]) -> Result<Seen> {
        let (own, channels) = channels.split_first().context("no connection")?;
        let mut changes = Changes { api: CoordinatorClient::new(own.clone()), open: None, made: 0 };
        let from = changes.make().await?.revision;
        let shared = Arc::new(Shared { begun: AtomicUsize::new(0), end: AtomicU64::new(u64::MAX) });
        let mut watchers = Vec::new();
        for channel in channels.iter().cycle().take(self.watchers) {
            let request = WatchMigrationsRequest { name: String::new(), revision: from };
            let mut api = CoordinatorClient::new(channel.clone());
            let events = api.watch_migrations(request).await.context("watch")?.into_inner();
            watchers.push(tokio::spawn(listen(events, from, Arc::clone(&shared))));
        }
        let begun = async {
            while shared.begun.load(Ordering::Relaxed) < self.watchers {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(LIMIT, begun).await.context("a watcher has had nothing")?;

        let mut made = Vec::new();
        let mut ticks = tokio::time::interval(APART);
        for _ in 0..self.changes {
            ticks.tick().await;
            made.push(changes.make().await?);
        }
        shared.end.store(made.last().context("no change")?.revision, Ordering::Relaxed);
        // Whoever has had the last one hears of the end by one more.
        changes.make().await?;
        let mut got = Vec::new();
        for watcher in watchers {
            got.push(tokio::time::timeout(LIMIT, watcher).await.context("a watcher waits still")???);
        }
        seen(from, &made, &got)
    }
}

/// A change that was made.
#[derive(Clone, Copy, Debug)]
struct Made {
    revision: u64,
    sent: Instant,
    answered: Instant,
}

/// Creates migrations and cancels them, in turns.
struct Changes {
    api: CoordinatorClient<Channel>,
    open: Option<String>,
    made: usize,
}

impl Changes {
    async fn make(&mut self) -> Result<Made, Status> {
        let sent = Instant::now();
        let migration = match self.open.take() {
            Some(name) => self.api.cancel_migration(CancelMigrationRequest { name }).await?.into_inner(),
            None => {
                self.made += 1;
                let made = self.api.create_migration(create(crowd::waiting(self.made), false)).await?;
                let migration = made.into_inner();
                self.open = Some(migration.name.clone());
                migration
            }
        };
        Ok(Made { revision: migration.revision, sent, answered: Instant::now() })
    }
}

async fn listen(
    mut events: Streaming<MigrationEvent>,
    from: u64,
    shared: Arc<Shared>,
) -> Result<Got, Status> {
    let mut got = Got::new();
    let mut begun = false;
    while let Some(event) = events.message().await? {
        if !std::mem::replace(&mut begun, true) {
            shared.begun.fetch_add(1, Ordering::Relaxed);
        }
        if event.revision > from {
            got.insert(event.revision, Instant::now());
        }
        if event.revision >= shared.end.load(Ordering::Relaxed) {
            return Ok(got);
        }
    }
    Err(Status::unknown("the watch ended"))
}

/// # Errors
/// When a watcher lacks a revision between the first and the last change.
fn seen(from: u64, made: &[Made], got: &[Got]) -> Result<Seen> {
    let last = made.last().context("no change")?.revision;
    for (number, got) in got.iter().enumerate() {
        let missed = (from + 1..=last).find(|revision| !got.contains_key(revision));
        ensure!(missed.is_none(), "watcher {number} missed revision {missed:?} of {from} to {last}");
    }
    let times = |change: &Made| -> Vec<Duration> {
        let at = |got: &Got| Some(got.get(&change.revision)?.saturating_duration_since(change.sent));
        got.iter().filter_map(at).collect()
    };
    Ok(Seen {
        each: Latency::of(made.iter().flat_map(times)),
        last: Latency::of(made.iter().filter_map(|change| times(change).into_iter().max())),
        answer: Latency::of(made.iter().map(|change| change.answered.duration_since(change.sent))),
        events: got.iter().map(BTreeMap::len).sum(),
    })
}

/// What was measured.
#[derive(Debug, Serialize)]
pub struct Figures {
    watchers: u32,
    changes: u32,
    seen: Seen,
    coordinator_cpu_seconds: f64,
    coordinator_rss_mib: f64,
}

/// Measures it.
///
/// # Errors
/// When hosts cannot be made, or a watcher missed a change.
pub fn measure(watchers: u32, changes: u32) -> Result<Figures> {
    let crowd = Crowd::gather()?;
    let pid = crowd.coordinator()?;
    let before = Usage::of(pid)?;
    let (many, often) = (watchers.to_string(), changes.to_string());
    let seen = crowd.client(&["watch", "--watchers", &many, "--changes", &often])?;
    let after = Usage::of(pid)?;
    crowd.cluster.passed();
    Ok(Figures {
        watchers,
        changes,
        seen: serde_json::from_value(seen).context("what the client saw")?,
        coordinator_cpu_seconds: after.cpu_seconds - before.cpu_seconds,
        coordinator_rss_mib: after.peak_mib,
    })
}

impl Figures {
    /// A table.
    #[must_use]
    pub fn text(&self) -> String {
        let head = format!("{} watchers", self.watchers);
        let Seen { each, last, answer, events } = &self.seen;
        let used = format!(
            "{} changes, {events} events, none missed; coordinator {:.1} s of a processor, {:.0} MiB at most\n",
            self.changes, self.coordinator_cpu_seconds, self.coordinator_rss_mib
        );
        let rows = [each.row("each watcher"), last.row("the last watcher"), answer.row("who made it")];
        [Latency::head(&head), rows.concat(), used].concat()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_revision_that_is_missing_is_found() {
        let sent = Instant::now();
        let at = |ms: u64| sent + Duration::from_millis(ms);
        let made = [5, 7].map(|revision| Made { revision, sent, answered: at(1) });
        let all = Got::from([(5, at(2)), (6, at(3)), (7, at(4))]);
        let slow = Got::from([(5, at(9)), (6, at(9)), (7, at(9)), (8, at(9))]);
        let found = seen(4, &made, &[all.clone(), slow.clone()]).unwrap();
        assert_eq!((found.each.count, found.events), (4, 7));
        assert_eq!((found.each.p50_ms, found.last.p50_ms, found.answer.max_ms), (4.0, 9.0, 1.0));
        let mut gap = slow;
        gap.remove(&6);
        let missed = seen(4, &made, &[all, gap]).unwrap_err().to_string();
        assert!(missed.contains("watcher 1 missed revision Some(6)"), "{missed}");
    }
}
