//! What all sessions of an agent share, and what it knows about a container at one moment.

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::mpsc::{Sender, SyncSender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use proto::identity::{Identity, Role as PeerRole};
use proto::telemetry::Parent;
use proto::tls::Tls;
use tokio::sync::watch;

use super::metrics::{Metrics, Seen};
use super::orders::DecisionSource;
use super::ports::Node;
use super::status::{Phase, Role, Status};
use super::target::Arrivals;
use crate::commit::{Committed, Copy, Epoch, Owner, SourceView, TargetView};
use crate::journal::Journal;
use crate::transfer::bulk::{MAX_STREAMS, streams_for};
use crate::transfer::message::PeerMessage;
use crate::transfer::pace::Budget;

/// How many ended migrations are remembered.
const HISTORY: usize = 256;

/// What every session of this agent shares.
#[derive(Debug)]
pub(crate) struct Agent {
    /// Credentials, for peers.
    pub(crate) tls: Tls,
    /// Versions of the agents' protocol that it speaks, best first.
    pub(crate) versions: &'static [u32],
    /// Where this agent listens for peers: host:port, as others dial it.
    pub(crate) peer_address: String,
    /// A number of this run of the agent.
    pub(crate) incarnation: u64,
    /// This boot of the host.
    pub(crate) boot: String,
    /// Where the journal and the failpoints are.
    pub(crate) state_dir: PathBuf,
    pub(crate) journal: Journal,
    pub(crate) node: Arc<dyn Node>,
    pub(crate) decisions: Arc<dyn DecisionSource>,
    /// Bandwidth that all migrations share, in and out.
    pub(crate) budget: Arc<Budget>,
    /// Bulk streams that a migration from here opens when nothing stands against it.
    pub(crate) streams: u32,
    /// What sessions count.
    pub(crate) metrics: Metrics,
    table: Mutex<Table>,
    changes: watch::Sender<u64>,
}

/// Open sessions, and ended ones.
#[derive(Debug, Default)]
pub(crate) struct Table {
    /// By container.
    pub(crate) sources: BTreeMap<String, SourceHandle>,
    /// By container.
    pub(crate) targets: BTreeMap<String, TargetHandle>,
    /// Containers that are being measured, by name; set to stop it.
    pub(crate) measuring: BTreeMap<String, Arc<AtomicBool>>,
    /// Published states, newest last.
    statuses: VecDeque<watch::Receiver<Status>>,
}

/// A source session as others see it.
#[derive(Clone, Debug)]
pub(crate) struct SourceHandle {
    pub(crate) migration: String,
    pub(crate) epoch: Epoch,
    pub(crate) cancel: Arc<Cancel>,
    /// COMMITTED of this epoch was synced by this run of the agent.
    pub(crate) synced: bool,
    /// Killed and ended; late frames are still relayed, until `stop_relay`.
    pub(crate) relaying: bool,
    pub(crate) stop_relay: Arc<AtomicBool>,
}

/// An expected, open or waiting target session as others see it.
#[derive(Debug)]
pub(crate) struct TargetHandle {
    pub(crate) migration: String,
    pub(crate) epoch: Epoch,
    pub(crate) source_node: String,
    /// Where the migration's trace goes on.
    pub(crate) trace: Option<Parent>,
    /// Set once a session (or a recovery) serves it.
    pub(crate) serving: Option<Serving>,
}

/// How to reach the thread of a target session.
#[derive(Clone, Debug)]
pub(crate) struct Serving {
    /// Give way to a newer attempt, if not Ready.
    pub(crate) cancel: Arc<Cancel>,
    /// Takes bulk streams for it; `None` when it takes no more.
    pub(crate) bulk: Option<Arrivals>,
    /// Messages that came on question connections.
    pub(crate) inbox: Sender<Mail>,
}

/// A message from a question connection.
#[derive(Debug)]
pub(crate) struct Mail {
    pub(crate) message: PeerMessage,
    pub(crate) reply: SyncSender<PeerMessage>,
}

const OPEN: u8 = 0;
const CANCELLED: u8 = 1;
const COMMITTING: u8 = 2;

/// A cancel flag that loses to the commit point, whichever comes first.
#[derive(Debug, Default)]
pub(crate) struct Cancel {
    state: AtomicU8,
    reason: Mutex<String>,
}

impl Cancel {
    /// Cancels; false when the commit point came first.
    pub(crate) fn cancel(&self, why: &str) -> bool {
        why.clone_into(&mut self.reason.lock().unwrap_or_else(PoisonError::into_inner));
        self.state.compare_exchange(OPEN, CANCELLED, Ordering::SeqCst, Ordering::SeqCst) != Err(COMMITTING)
    }

    /// Passes the commit point; false when it was cancelled before.
    pub(crate) fn commit(&self) -> bool {
        self.state.compare_exchange(OPEN, COMMITTING, Ordering::SeqCst, Ordering::SeqCst) != Err(CANCELLED)
    }

    pub(crate) fn is_cancelled(&self) -> bool {
        self.state.load(Ordering::SeqCst) == CANCELLED
    }

    pub(crate) fn reason(&self) -> String {
        self.reason.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Publishes the state of one side of a migration.
#[derive(Debug)]
pub(crate) struct Publisher {
    status: watch::Sender<Status>,
    agent: Arc<Agent>,
    began: Instant,
    /// When its phase began.
    entered: Mutex<Instant>,
    /// Nobody is woken for a change.
    hushed: AtomicBool,
}

impl Publisher {
    /// Changes the published state.
    pub(crate) fn update(&self, change: impl FnOnce(&mut Status)) {
        let loud = !self.hushed.load(Ordering::Relaxed);
        self.status.send_if_modified(|status| {
            let before = Seen::of(status);
            if !status.phase.is_terminal() {
                status.total = self.began.elapsed();
            }
            change(status);
            let mut entered = self.entered.lock().unwrap_or_else(PoisonError::into_inner);
            self.agent.metrics.changed(before, status, entered.elapsed());
            if before.left(status) {
                *entered = Instant::now();
            }
            loud
        });
        if loud {
            self.agent.changes.send_modify(|count| *count += 1);
        }
    }

    /// From now on nobody is woken for a change, until [`Publisher::speak`] or [`Publisher::end`]: whoever watches looks from time to time. Those
    /// who would be woken, and the coordinator's disk when it is on this host, take processors from the pause.
    pub(crate) fn hush(&self) {
        self.hushed.store(true, Ordering::Relaxed);
    }

    /// Whoever watches is woken again.
    pub(crate) fn speak(&self) {
        self.hushed.store(false, Ordering::Relaxed);
    }

    /// Adds a line to the decision log.
    pub(crate) fn event(&self, text: impl Into<String>) {
        let text = text.into();
        tracing::info!(event = %text);
        self.update(|status| status.events.push(text));
    }

    /// The end, or the lack of one.
    pub(crate) fn end(&self, phase: Phase, reason: &str, message: impl Into<String>) {
        let message = message.into();
        self.hushed.store(false, Ordering::Relaxed);
        self.update(|status| {
            status.phase = phase;
            reason.clone_into(&mut status.reason);
            status.message = message;
        });
    }
}

impl Agent {
    pub(crate) fn new(
        options: super::Options,
        journal: Journal,
        boot: String,
        node: Arc<dyn Node>,
        decisions: Arc<dyn DecisionSource>,
    ) -> Self {
        Self {
            tls: options.tls,
            peer_address: options.peer_address,
            incarnation: options.incarnation,
            boot,
            state_dir: options.state_dir,
            journal,
            node,
            decisions,
            versions: options.versions,
            budget: Arc::new(Budget::new(options.bandwidth)),
            streams: match options.bulk_streams {
                0 => streams_for(std::thread::available_parallelism().map_or(1, usize::from)),
                given => given.min(MAX_STREAMS),
            },
            metrics: Metrics::default(),
            table: Mutex::default(),
            changes: watch::Sender::new(0),
        }
    }

    pub(crate) fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// The published states, oldest first.
    pub(crate) fn statuses(&self) -> Vec<watch::Receiver<Status>> {
        self.table().statuses.iter().cloned().collect()
    }

    /// Begins to publish one side of a migration.
    pub(crate) fn publish(
        self: &Arc<Self>,
        role: Role,
        migration: &str,
        epoch: Epoch,
        container: &str,
    ) -> Publisher {
        let status = Status {
            migration: migration.to_owned(),
            epoch,
            container: container.to_owned(),
            role,
            ..Status::default()
        };
        let (sender, receiver) = watch::channel(status);
        let mut table = self.table();
        table.statuses.push_back(receiver);
        while table.statuses.len() > HISTORY {
            let ended = table.statuses.iter().position(|status| status.borrow().phase.is_terminal());
            let Some(ended) = ended else { break };
            table.statuses.remove(ended);
        }
        drop(table);
        let began = Instant::now();
        Publisher {
            status: sender,
            agent: Arc::clone(self),
            began,
            entered: Mutex::new(began),
            hushed: AtomicBool::new(false),
        }
    }

    /// The identity of a node's agent.
    pub(crate) fn identity(name: &str) -> Result<Identity, proto::identity::IdentityError> {
        Identity::new(PeerRole::Node, name)
    }

    /// The copy of the container that runs or stands frozen here, not counting incoming ones.
    fn own_copy(&self, container: &str) -> Copy {
        match self.node.source(container) {
            Ok(source) if is_frozen(&source.cgroup()) => Copy::Frozen,
            Ok(_) => Copy::Running,
            Err(_) => Copy::None,
        }
    }

    /// What is known about a container as a source.
    pub(crate) fn source_view(&self, container: &str) -> SourceView {
        let copy = self.own_copy(container);
        let table = self.table();
        let entry = self.journal.entry(container);
        let handle = table.sources.get(container);
        let open = entry.open.as_ref().filter(|open| open.begin.role == Role::Source);
        SourceView {
            highest: entry.highest,
            open: open.map(|open| open.begin.epoch),
            committed: open.filter(|open| open.committed).map(|open| Committed {
                epoch: open.begin.epoch,
                synced: handle.is_some_and(|handle| handle.epoch == open.begin.epoch && handle.synced),
            }),
            relaying: handle.is_some_and(|handle| handle.relaying),
            // An expectation that no session has come for does not hold the container.
            incoming: table.targets.get(container).is_some_and(|handle| handle.serving.is_some())
                || entry.open.is_some_and(|open| open.begin.role == Role::Target),
            copy,
        }
    }

    /// What is known about a container as a target. A copy that a session or a recovery serves counts as frozen.
    pub(crate) fn target_view(&self, container: &str) -> TargetView {
        let served = self.table().targets.get(container).is_some_and(|handle| handle.serving.is_some());
        // The runtime is not asked while a session answers: this is on the way from Commit to the thaw.
        let copy = if served { Copy::Frozen } else { self.own_copy(container) };
        let table = self.table();
        let entry = self.journal.entry(container);
        let handle = table.targets.get(container);
        let open = entry.open.as_ref().filter(|open| open.begin.role == Role::Target);
        let ready = open.filter(|open| open.ready.as_ref() == Some(&self.boot));
        TargetView {
            highest: entry.highest,
            expected: handle.map(|handle| handle.epoch).or_else(|| open.map(|open| open.begin.epoch)),
            ready: ready.map(|open| open.begin.epoch),
            seen: open.filter(|open| open.seen).map(|open| open.begin.epoch),
            owned: entry.owned,
            leaving: entry.open.as_ref().is_some_and(|open| open.begin.role == Role::Source)
                || table.sources.contains_key(container),
            copy,
        }
    }

    /// The last resolution of a container that is newer than `epoch`.
    pub(crate) fn resolution(&self, container: &str, epoch: Epoch) -> Option<Owner> {
        self.journal.entry(container).resolved.filter(|(at, _)| *at > epoch).map(|(_, owner)| owner)
    }
}

/// Whether a cgroup v2 directory is frozen (cgroup.events).
pub(crate) fn is_frozen(cgroup: &Path) -> bool {
    std::fs::read_to_string(cgroup.join("cgroup.events"))
        .is_ok_and(|events| events.lines().any(|line| line == "frozen 1"))
}

/// Stops or resumes a cgroup v2 directory (cgroup.freeze).
pub(crate) fn set_frozen(cgroup: &Path, frozen: bool) -> std::io::Result<()> {
    std::fs::write(cgroup.join("cgroup.freeze"), if frozen { "1" } else { "0" })
}
