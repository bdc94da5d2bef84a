//! The service object: takes orders, starts sessions, publishes their state.

use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use proto::tls::Tls;
use tokio::sync::watch;

use super::agent::{Agent, Cancel, SourceHandle, TargetHandle, is_frozen};
use super::orders::{DecisionSource, OrderError, Prepare, Prepared, Resolve, Start};
use super::ports::{Node, PortError};
use super::recover;
use super::source;
use super::status::{Role, Status};
use crate::commit::{
    self, Copy, Epoch, OnAbort, OnPrepare, OnResolveSource, OnResolveTarget, OnStart, Owner,
};
use crate::journal::{Begin, End, Journal, Record};
use crate::peer;
use crate::telemetry::chain;

/// How long a newer Prepare waits for an older, unfinished session or a relay to give way.
const GIVE_WAY: Duration = Duration::from_secs(5);

/// What [`Migrations::open`] needs.
#[derive(Debug)]
pub struct Options {
    /// Where the journal lies; must exist.
    pub state_dir: PathBuf,
    /// Credentials; their name is this node's.
    pub tls: Tls,
    /// Where other agents reach this one's listener: host:port.
    pub peer_address: String,
    /// A random number of this run of the agent, not 0.
    pub incarnation: u64,
    /// Bytes a second that all migrations of this node may send and receive together while containers run; 0 = no limit.
    pub bandwidth: u64,
    /// Bulk streams that a migration from this node opens, at most [`MAX_STREAMS`](crate::transfer::bulk::MAX_STREAMS);
    /// 0 = by its processors.
    pub bulk_streams: u32,
    /// Versions of the agents' protocol to speak, best first: see [`versions_up_to`](crate::transfer::versions_up_to).
    pub versions: &'static [u32],
}

/// Why the service cannot start.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The journal.
    #[error("cannot open the journal")]
    Journal(#[from] crate::journal::JournalError),
    /// The kernel does not say which boot this is.
    #[error("cannot read /proc/sys/kernel/random/boot_id")]
    Boot(#[source] std::io::Error),
}

/// All migrations of this agent. Methods may block for a file-system sync: call them from blocking threads.
#[derive(Clone, Debug)]
pub struct Migrations {
    agent: Arc<Agent>,
}

impl Migrations {
    /// Versions of the agents' protocol that this agent speaks, best first.
    #[must_use]
    pub fn versions(&self) -> &'static [u32] {
        self.agent.versions
    }

    /// Opens the journal. Nothing is done yet: call [`Migrations::recover_all`] next, then
    /// [`Migrations::serve`], then take orders.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(
        options: Options,
        node: Arc<dyn Node>,
        decisions: Arc<dyn DecisionSource>,
    ) -> Result<Self, OpenError> {
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").map_err(OpenError::Boot)?;
        let journal = Journal::open(&options.state_dir)?;
        let agent = Agent::new(options, journal, boot.trim().to_owned(), node, decisions);
        Ok(Self { agent: Arc::new(agent) })
    }

    /// Takes up what the journal of an earlier run demands: undoes, commits on, asks, kills. Returns at once; the
    /// work goes on by itself. The node must know its containers already.
    pub fn recover_all(&self) {
        self.recover_measured();
        recover::recover_all(&self.agent);
    }

    /// What every session shares.
    pub(super) fn agent(&self) -> &Arc<Agent> {
        &self.agent
    }

    /// Serves other agents on `listener`, on threads of its own.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn serve(&self, listener: TcpListener) -> std::io::Result<()> {
        engine::start_readers();
        peer::serve(Arc::clone(&self.agent), listener)
    }

    /// Target side: expects a session of this migration. The epoch is durable on Ok.
    ///
    /// # Errors
    /// See [`OrderError`].
    pub fn prepare(&self, order: &Prepare) -> Result<Prepared, OrderError> {
        let agent = &self.agent;
        let container = &order.container;
        Agent::identity(&order.source_node).map_err(|error| OrderError::Container(chain(&error)))?;
        self.end_relay(container);
        let free = agent.node.memory_free();
        if order.memory_bytes > free {
            return Err(OrderError::Container(format!(
                "{container} uses {} bytes of memory and this node has {free} free",
                order.memory_bytes
            )));
        }
        let view = agent.target_view(container);
        let decision = commit::target_on_prepare(&view, order.epoch);
        match decision {
            OnPrepare::Stale(known) => return Err(self.stale(container, order.epoch, known)),
            OnPrepare::Busy => return Err(self.busy(container)),
            OnPrepare::Here => {
                return Err(OrderError::Container(format!("container {container} is on this node already")));
            }
            OnPrepare::Expect | OnPrepare::Continue => {}
        }
        self.give_way(container, order)?;
        {
            // Again, and now under the lock: two orders may have come at once.
            let mut table = agent.table();
            match table.targets.get(container) {
                Some(handle) if handle.epoch > order.epoch => {
                    return Err(OrderError::Busy { migration: handle.migration.clone() });
                }
                Some(handle) if handle.epoch == order.epoch && handle.migration != order.migration => {
                    return Err(OrderError::Busy { migration: handle.migration.clone() });
                }
                Some(handle) if handle.epoch == order.epoch => {}
                _ => {
                    agent
                        .journal
                        .append_sync(&[Record::Epoch { container: container.clone(), epoch: order.epoch }])?;
                    let handle = TargetHandle {
                        migration: order.migration.clone(),
                        epoch: order.epoch,
                        source_node: order.source_node.clone(),
                        trace: order.trace.clone(),
                        serving: None,
                    };
                    table.targets.insert(container.clone(), handle);
                }
            }
        }
        tracing::info!(
            container,
            migration = order.migration,
            epoch = order.epoch,
            source = order.source_node,
            "expecting a session"
        );
        Ok(Prepared { incarnation: agent.incarnation, peer_address: agent.peer_address.clone() })
    }

    /// A container that comes back right after it left: its committed source session here is given time to clean
    /// up, and its relay of late frames ends first.
    fn end_relay(&self, container: &str) {
        self.wait_for_leaving(container, true);
    }

    /// Waits until nothing is left here of a container that has moved away, and changes nothing: its relay of late frames
    /// ends by itself in seconds. What takes longer is not waited for.
    pub fn wait_until_left(&self, container: &str) {
        self.wait_for_leaving(container, false);
    }

    fn wait_for_leaving(&self, container: &str, end_relay: bool) {
        let deadline = Instant::now() + GIVE_WAY;
        loop {
            let leaving = {
                let table = self.agent.table();
                let handle = table.sources.get(container).filter(|handle| handle.synced || handle.relaying);
                handle.map(|handle| (handle.relaying, Arc::clone(&handle.stop_relay)))
            };
            let Some((relaying, stop)) = leaving else { return };
            if relaying && end_relay {
                stop.store(true, Ordering::SeqCst);
            }
            if Instant::now() >= deadline {
                return;
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// An older session that never became Ready gives way.
    fn give_way(&self, container: &str, order: &Prepare) -> Result<(), OrderError> {
        let deadline = Instant::now() + GIVE_WAY;
        loop {
            let mut table = self.agent.table();
            let Some(handle) = table.targets.get(container).filter(|handle| handle.epoch < order.epoch)
            else {
                return Ok(());
            };
            let migration = handle.migration.clone();
            match &handle.serving {
                None => {
                    table.targets.remove(container);
                    return Ok(());
                }
                Some(serving) => {
                    serving.cancel.cancel(&format!("{} was prepared", order.migration));
                }
            }
            drop(table);
            if Instant::now() >= deadline {
                return Err(OrderError::Busy { migration });
            }
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Source side: begins to migrate a container away. The session exists on Ok; the answer is this agent's
    /// incarnation.
    ///
    /// # Errors
    /// See [`OrderError`]; nothing was touched.
    pub fn start(&self, order: &Start) -> Result<u64, OrderError> {
        let agent = &self.agent;
        let name = &order.container;
        Agent::identity(&order.target_node).map_err(|error| OrderError::Container(chain(&error)))?;
        let mut view = agent.source_view(name);
        // A paused container is refused by name in the session, not as if it were absent.
        if view.copy == Copy::Frozen && view.open.is_none() {
            view.copy = Copy::Running;
        }
        match commit::source_on_start(&view, order.epoch) {
            OnStart::Begin => {}
            OnStart::Continue => {
                let table = agent.table();
                return match table.sources.get(name) {
                    Some(handle) if handle.migration == order.migration => Ok(agent.incarnation),
                    Some(handle) => Err(OrderError::Busy { migration: handle.migration.clone() }),
                    None => Err(self.busy(name)),
                };
            }
            OnStart::Stale(known) => return Err(self.stale(name, order.epoch, known)),
            OnStart::Busy => return Err(self.busy(name)),
            OnStart::Unacknowledged => {
                return Err(OrderError::Unacknowledged { migration: self.migration_of(name) });
            }
            OnStart::NotHere => return Err(PortError::NoContainer(name.clone()).into()),
        }
        let container = agent.node.source(name)?;
        let begin = Begin {
            container: name.clone(),
            migration: order.migration.clone(),
            epoch: order.epoch,
            boot: agent.boot.clone(),
            role: Role::Source,
            peer: order.target_node.clone(),
            peer_address: order.target_address.clone(),
            cgroup: container.cgroup(),
            frozen_before: is_frozen(&container.cgroup()),
        };
        let cancel = Arc::new(Cancel::default());
        {
            let mut table = self.unmeasured(name)?;
            if let Some(handle) = table.sources.get(name) {
                return Err(OrderError::Busy { migration: handle.migration.clone() });
            }
            agent.journal.append_sync(&[Record::Begin(begin.clone())])?;
            let handle = SourceHandle {
                migration: order.migration.clone(),
                epoch: order.epoch,
                cancel: Arc::clone(&cancel),
                synced: false,
                relaying: false,
                stop_relay: Arc::default(),
            };
            table.sources.insert(name.clone(), handle);
        }
        #[cfg(feature = "failpoints")]
        proto::failpoints::load(&agent.state_dir);
        let publish = agent.publish(Role::Source, &order.migration, order.epoch, name);
        let (shared, order, record) = (Arc::clone(agent), order.clone(), begin.clone());
        let spawned = thread::Builder::new().name(format!("source-{name}")).spawn(move || {
            source::Session::new(shared, begin, &order, cancel, publish, container).run();
        });
        if let Err(error) = spawned {
            let ended = Record::Ended { container: name.clone(), epoch: record.epoch, end: End::Undone };
            agent.journal.append(&[ended])?;
            agent.table().sources.remove(name);
            return Err(OrderError::Thread(error));
        }
        Ok(agent.incarnation)
    }

    /// Source side: cancels. On Ok the session gives the container back; watch its status for the end.
    ///
    /// # Errors
    /// [`OrderError::Committed`] when it is too late, [`OrderError::NotSource`] at the target of a migration.
    pub fn abort(&self, migration: &str, epoch: Epoch, reason: &str) -> Result<(), OrderError> {
        let agent = &self.agent;
        let found = {
            let table = agent.table();
            if let Some((_, handle)) = table.targets.iter().find(|(_, handle)| handle.migration == migration)
            {
                return Err(OrderError::NotSource {
                    migration: migration.to_owned(),
                    source_node: handle.source_node.clone(),
                });
            }
            let found = table.sources.iter().find(|(_, handle)| handle.migration == migration);
            found.map(|(container, handle)| (container.clone(), Arc::clone(&handle.cancel)))
        };
        let missing = || OrderError::NoMigration(migration.to_owned());
        let (container, cancel) = found.ok_or_else(missing)?;
        match commit::source_on_abort(&agent.source_view(&container), epoch) {
            OnAbort::Undo if cancel.cancel(reason) => Ok(()),
            OnAbort::Undo | OnAbort::TooLate => Err(OrderError::Committed(migration.to_owned())),
            OnAbort::NoSession => Err(missing()),
        }
    }

    /// Obeys an operator's word on who owns a container. The other node must be fenced.
    ///
    /// # Errors
    /// See [`OrderError`]; nothing has changed then.
    pub fn resolve(&self, order: &Resolve) -> Result<(), OrderError> {
        let agent = &self.agent;
        let entry = agent.journal.entry(&order.container);
        let resolved = entry.resolved.map(|(_, owner)| owner);
        let role = entry.open.as_ref().map_or_else(
            || if entry.owned.is_some() { Role::Target } else { Role::Source },
            |open| open.begin.role,
        );
        let contrary = |why: &str| OrderError::Contrary(format!("{}: {why}", order.migration));
        let source = agent.source_view(&order.container);
        // Which side a node was is not known any more when its session has ended; without a copy it does not matter.
        let nothing = order.fenced && entry.open.is_none() && source.copy == Copy::None;
        let act = match role {
            _ if nothing && order.epoch > source.highest => false,
            Role::Source => {
                let view = source;
                match commit::source_on_resolve(&view, order.epoch, order.owner, resolved) {
                    OnResolveSource::GiveBack | OnResolveSource::Kill => true,
                    OnResolveSource::Done => false,
                    OnResolveSource::Stale(known) => {
                        return Err(self.stale(&order.container, order.epoch, known));
                    }
                    OnResolveSource::Refuse => {
                        return Err(contrary(
                            "a session decides by itself, or no copy lives here that could own it",
                        ));
                    }
                }
            }
            Role::Target => {
                let view = agent.target_view(&order.container);
                match commit::target_on_resolve(&view, order.epoch, order.owner, resolved) {
                    OnResolveTarget::Take | OnResolveTarget::Discard => true,
                    OnResolveTarget::Done => false,
                    OnResolveTarget::Stale(known) => {
                        return Err(self.stale(&order.container, order.epoch, known));
                    }
                    OnResolveTarget::Refuse => {
                        return Err(contrary("no complete copy waits here, or it is being taken over"));
                    }
                }
            }
        };
        let record =
            Record::Resolved { container: order.container.clone(), epoch: order.epoch, owner: order.owner };
        agent.journal.append_sync(&[record])?;
        tracing::warn!(container = order.container, owner = ?order.owner, epoch = order.epoch, act, "resolved by an operator");
        // The thread that holds the copy looks at the journal before each of its tries.
        if act && role == Role::Source && order.owner == Owner::Target && entry.open.is_none() {
            return self.kill_older(&order.container);
        }
        Ok(())
    }

    /// A fenced node that is readmitted: its copy is older than the owner's.
    fn kill_older(&self, container: &str) -> Result<(), OrderError> {
        let copy = self.agent.node.source(container)?;
        copy.kill()?;
        copy.remove()?;
        copy.lock()?.release()?;
        Ok(())
    }

    /// The state of one migration's side on this agent, the newest if there were several.
    #[must_use]
    pub fn status(&self, migration: &str) -> Option<Status> {
        self.watch(migration).map(|status| status.borrow().clone())
    }

    /// Every later state of it, too. The sender goes when the session has ended and the history forgets it.
    #[must_use]
    pub fn watch(&self, migration: &str) -> Option<watch::Receiver<Status>> {
        self.agent.statuses().into_iter().rev().find(|status| status.borrow().migration == migration)
    }

    /// The states of all sessions, open and ended ones that are still remembered, oldest first.
    #[must_use]
    pub fn list(&self) -> Vec<Status> {
        self.agent.statuses().iter().map(|status| status.borrow().clone()).collect()
    }

    /// What sessions have counted since the agent started.
    #[must_use]
    pub fn metrics(&self) -> &super::metrics::Metrics {
        &self.agent.metrics
    }

    /// Counts changes of any status, for whoever reports outcomes.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.agent.changes()
    }

    /// The highest epoch that this agent knows for a container.
    #[must_use]
    pub fn highest_epoch(&self, container: &str) -> Epoch {
        self.agent.journal.entry(container).highest
    }

    fn stale(&self, container: &str, epoch: Epoch, known: Epoch) -> OrderError {
        let entry = self.agent.journal.entry(container);
        let owner = match (entry.owned, entry.ended) {
            (Some(owned), _) if owned == known => Some(Owner::Target),
            (_, Some((ended, End::Killed))) if ended == known => Some(Owner::Target),
            (_, Some((ended, End::Undone))) if ended == known => Some(Owner::Source),
            _ => entry.resolved.filter(|(at, _)| *at == known).map(|(_, owner)| owner),
        };
        OrderError::Stale { epoch, known, owner }
    }

    fn busy(&self, container: &str) -> OrderError {
        OrderError::Busy { migration: self.migration_of(container) }
    }

    fn migration_of(&self, container: &str) -> String {
        let table = self.agent.table();
        let source = table.sources.get(container).map(|handle| handle.migration.clone());
        let target = table.targets.get(container).map(|handle| handle.migration.clone());
        let open = self.agent.journal.entry(container).open.map(|open| open.begin.migration);
        source.or(target).or(open).unwrap_or_default()
    }
}
