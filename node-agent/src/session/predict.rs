//! What a migration would cost: the container's writes and the links to its targets are measured, and the policy is
//! played through with them. The container is neither stopped nor read.

mod fit;
mod probe;

use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, MutexGuard};
use std::time::{Duration, Instant};

use engine::source::{Inventory, Source, Written};

use super::agent::{Agent, Table, is_frozen};
use super::migrations::Migrations;
use super::orders::{Limits, OrderError};
use super::ports::PortError;
use super::simulate::{Path, Workload, simulate};
use crate::telemetry::chain;
pub(crate) use probe::serve;

/// A question.
#[derive(Clone, Debug, PartialEq)]
pub struct Question {
    /// The container's name.
    pub container: String,
    /// Limits that the migration would have.
    pub limits: Limits,
    /// Nodes and where their agents listen for peers.
    pub targets: Vec<(String, String)>,
}

/// How a migration would go, of memory and state; files beside them are not foreseen.
#[derive(Clone, Debug, PartialEq)]
pub struct Prediction {
    /// Pre-copy rounds.
    pub rounds: u32,
    /// Bytes of memory that are sent.
    pub bytes: u64,
    /// Until the container runs at the target, or until the migration is given up.
    pub total: Duration,
    /// Pause; zero when it is given up.
    pub pause: Duration,
    /// It ends with a pause that the limits allow, or that was asked for all the same.
    pub converges: bool,
    /// Why the rounds end.
    pub reason: String,
    /// Per cent of its CPU time that the container lacks in the end.
    pub throttle: u32,
    /// Bytes of pages that the container wrote a second.
    pub dirty_rate: u64,
    /// Bytes of memory that it writes to at all.
    pub working_set: u64,
    /// Bytes that hold anything.
    pub memory: u64,
    /// Bytes a second that a migration gets through.
    pub transfer_rate: u64,
}

/// The same for one target, or why it cannot be told.
#[derive(Clone, Debug, PartialEq)]
pub struct Forecast {
    /// The node.
    pub node: String,
    /// What was found.
    pub prediction: Result<Prediction, String>,
}

/// Windows in which written pages are counted: short ones tell how fast, the long one how many different ones.
const WINDOWS: [Duration; 4] = [
    Duration::from_millis(40),
    Duration::from_millis(40),
    Duration::from_millis(40),
    Duration::from_millis(600),
];

/// What a migration does before its first round: the sandbox at the target, trackers. As measured with idle programs.
const PREPARING: Duration = Duration::from_millis(150);
/// How long a measurement may take to end when it is asked to.
const STOPS: Duration = Duration::from_secs(5);

/// What a pause costs beside pages, as measured with idle programs in `docs/performance.md`.
fn state_cost(of: &Inventory) -> Duration {
    const PROGRAM: Duration = Duration::from_micros(6000);
    const PROCESS: Duration = Duration::from_micros(1000);
    const THREAD: Duration = Duration::from_micros(160);
    const DESCRIPTOR: Duration = Duration::from_micros(28);
    const CONNECTION: Duration = Duration::from_micros(20);
    let times =
        |price: Duration, count: usize| price.saturating_mul(u32::try_from(count).unwrap_or(u32::MAX));
    PROGRAM
        + times(PROCESS, of.processes.saturating_sub(1))
        + times(THREAD, of.threads.saturating_sub(of.processes))
        + times(DESCRIPTOR, of.descriptors)
        + times(CONNECTION, of.connections)
}

impl Migrations {
    /// Measures and foresees. Takes about a second, and less than half a second for each target. A migration of the
    /// container that begins meanwhile goes first.
    ///
    /// # Errors
    /// [`OrderError::Busy`] while the container is migrated; [`OrderError::NotMeasured`] when it cannot be measured.
    pub fn predict(&self, question: &Question) -> Result<Vec<Forecast>, OrderError> {
        let agent = self.agent();
        let container = agent.node.source(&question.container)?;
        if is_frozen(&container.cgroup()) {
            return Err(OrderError::NotMeasured("it is frozen".to_owned()));
        }
        let tree = container.tree();
        let failed = |error: &dyn std::error::Error| OrderError::NotMeasured(error.to_string());
        let inventory = engine::source::inspect(&tree).map_err(|error| failed(&error))?;
        let mut measuring = Measuring::begin(agent, &question.container)?;
        let mut source = Source::attach(&tree).map_err(|error| failed(&error))?;
        let counted = measuring.count(&mut source);
        let undone = source.abort();
        measuring.left = undone.is_err();
        drop(measuring);
        let looks = counted?;
        undone.map_err(|error| failed(&error))?;
        let writes = fit::fit(&looks);
        tracing::debug!(container = question.container, ?writes, ?looks, "measured what is written");
        let forecast = |(node, address): &(String, String)| {
            let prediction = probe::link(agent, node, address)
                .map(|link| foresee(&question.limits, &writes, &inventory, &looks, &link))
                .map_err(|error| format!("the link could not be measured: {}", chain(&error)));
            Forecast { node: node.clone(), prediction }
        };
        Ok(question.targets.iter().map(forecast).collect())
    }

    /// The sessions, while nobody measures this container: whoever does is asked to stop.
    pub(super) fn unmeasured(&self, container: &str) -> Result<MutexGuard<'_, Table>, OrderError> {
        let began = Instant::now();
        loop {
            let table = self.agent().table();
            match table.measuring.get(container) {
                None => return Ok(table),
                Some(stop) => stop.store(true, Ordering::Relaxed),
            }
            drop(table);
            if began.elapsed() > STOPS {
                return Err(OrderError::NotMeasured("a measurement of it does not end".to_owned()));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Takes out what an agent that died while it measured left in containers.
    pub(super) fn recover_measured(&self) {
        let agent = self.agent();
        for entry in fs::read_dir(markers(agent)).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            // A migration that came after it does its own undoing, or has been committed: then nothing may run again.
            let migrated = agent.journal.entry(&name).open.is_some();
            let undone = match agent.node.source(&name) {
                _ if migrated => Ok(()),
                // A measurement freezes nothing. Who did may know why, and recovery thaws.
                Ok(container) if is_frozen(&container.cgroup()) => Err("it is frozen".to_owned()),
                Ok(container) => {
                    engine::source::recover(&container.tree()).map_err(|error| error.to_string())
                }
                Err(PortError::NoContainer(_)) => Ok(()),
                Err(error) => Err(error.to_string()),
            };
            match undone {
                Ok(()) => drop(fs::remove_file(entry.path())),
                Err(error) => {
                    tracing::warn!(container = name, error, "what a measurement left could not be taken out");
                }
            }
        }
    }
}

#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "sizes and rates are positive and need no more than 52 bits"
)]
fn foresee(
    limits: &Limits,
    writes: &fit::Writes,
    inventory: &Inventory,
    looks: &[Written],
    link: &probe::Rate,
) -> Prediction {
    let memory = looks.first().map_or(0, |first| first.bytes);
    let look = looks.iter().skip(1).map(|look| look.look).max().unwrap_or_default();
    let workload = Workload {
        size: memory as f64,
        rate: writes.rate,
        working_set: writes.working_set.min(memory as f64),
        pattern: super::simulate::Pattern::Random,
    };
    let path =
        Path { rate: link.bytes_per_second, fixed: look + link.round_trip, state: state_cost(inventory) };
    let course = simulate(limits, &workload, &path);
    Prediction {
        rounds: u32::try_from(course.rounds).unwrap_or(u32::MAX),
        bytes: course.bytes as u64,
        total: PREPARING + course.elapsed + course.pause,
        pause: course.pause,
        converges: course.end.next == super::policy::Next::Cut,
        reason: course.end.reason,
        throttle: course.throttle,
        dirty_rate: writes.rate as u64,
        working_set: workload.working_set as u64,
        memory,
        transfer_rate: path.rate as u64,
    }
}

/// The container is being measured: known to whoever wants to migrate it, and to the next run of the agent should this
/// one die.
#[derive(Debug)]
struct Measuring<'a> {
    agent: &'a Arc<Agent>,
    container: &'a str,
    marker: PathBuf,
    stop: Arc<AtomicBool>,
    /// Something of it is still in the container: the marker stays for the next run of the agent.
    left: bool,
}

fn markers(agent: &Agent) -> PathBuf {
    agent.state_dir.join("measuring")
}

impl<'a> Measuring<'a> {
    fn begin(agent: &'a Arc<Agent>, container: &'a str) -> Result<Self, OrderError> {
        let stop = Arc::new(AtomicBool::new(false));
        {
            let mut table = agent.table();
            if let Some(handle) = table.sources.get(container) {
                return Err(OrderError::Busy { migration: handle.migration.clone() });
            }
            if table.measuring.contains_key(container) {
                return Err(OrderError::NotMeasured("it is being measured for somebody else".to_owned()));
            }
            table.measuring.insert(container.to_owned(), Arc::clone(&stop));
        }
        let marker = markers(agent).join(container);
        let this = Self { agent, container, marker, stop, left: false };
        let written: io::Result<()> =
            fs::create_dir_all(markers(agent)).and_then(|()| fs::write(&this.marker, ""));
        written
            .map_err(|error| OrderError::NotMeasured(format!("write {}: {error}", this.marker.display())))?;
        Ok(this)
    }

    /// Counts in each window; the first look comes before them.
    fn count(&self, source: &mut Source) -> Result<Vec<Written>, OrderError> {
        let mut look = || source.written().map_err(|error| OrderError::NotMeasured(error.to_string()));
        let mut looks = vec![look()?];
        for window in WINDOWS {
            let began = Instant::now();
            while began.elapsed() < window {
                if self.stop.load(Ordering::Relaxed) {
                    return Err(OrderError::NotMeasured("a migration of it begins".to_owned()));
                }
                std::thread::sleep(Duration::from_millis(5).min(window.saturating_sub(began.elapsed())));
            }
            looks.push(look()?);
        }
        Ok(looks)
    }
}

impl Drop for Measuring<'_> {
    fn drop(&mut self) {
        if !self.left {
            let _ = fs::remove_file(&self.marker);
        }
        self.agent.table().measuring.remove(self.container);
    }
}
