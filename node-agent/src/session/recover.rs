//! What must go on for ever, or over a restart: undoing, committing, cleaning up.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::Duration;

use super::agent::{Agent, Cancel, Publisher, SourceHandle};
use super::ports::{ContainerSource, Died, NetLock, PortError, Settled, Throttled};
use super::source::held;
use super::status::{Phase, Role};
use super::waiting;
use crate::commit::{self, OnAck, Owner, SourceRestart, TargetRestart};
use crate::journal::{Begin, End, JournalError, Record};
use crate::peer;
use crate::telemetry::chain;
use crate::transfer::message::PeerMessage;

/// First and longest wait between two tries.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// Doubling waits.
#[derive(Debug)]
pub(super) struct Backoff(Duration);

impl Backoff {
    pub(super) fn new() -> Self {
        Self(BACKOFF.0)
    }

    /// The next wait.
    pub(super) fn next(&mut self) -> Duration {
        let now = self.0;
        self.0 = (now * 2).min(BACKOFF.1);
        now
    }
}

/// Tries until it works.
pub(super) fn retry<E: std::error::Error>(
    what: &str,
    publish: &Publisher,
    mut run: impl FnMut() -> Result<(), E>,
) {
    let mut backoff = Backoff::new();
    while let Err(error) = run() {
        if backoff.0 == BACKOFF.0 {
            publish.event(format!("cannot {what}, trying on: {}", chain(&error)));
        }
        tracing::warn!(error = %chain(&error), "cannot {what}; trying again");
        thread::sleep(backoff.next());
    }
}

/// Opens the network lock before a thaw: a few tries, then the thaw must not wait any longer. False when it
/// is still locked.
pub(super) fn lift(lock: &mut dyn NetLock) -> bool {
    for _ in 0..5 {
        match lock.lift() {
            Ok(()) => return true,
            Err(error) => tracing::warn!(error = %chain(&error), "cannot lift the network lock"),
        }
        thread::sleep(Duration::from_millis(20));
    }
    false
}

/// Makes COMMITTED durable, for ever: the copy stays frozen until it is.
pub(super) fn sync_committed(agent: &Agent, publish: &Publisher, error: &JournalError) {
    let message = format!("the commit record is written and cannot be synced: {}", chain(error));
    tracing::error!(message);
    publish.update(|status| {
        status.phase = Phase::OutcomeUnknown;
        "CommitNotDurable".clone_into(&mut status.reason);
        status.message = message;
    });
    retry("sync the commit record", publish, || agent.journal.sync());
}

/// Undoes whatever a dead or failed session left in a container: lock off, sockets out of repair, thawed, and no longer
/// throttled.
pub(super) fn give_back(
    begin: &Begin,
    container: &dyn ContainerSource,
    throttled: &Throttled,
    publish: &Publisher,
) {
    let mut lock = container.lock();
    let locked = match lock.as_mut() {
        Ok(lock) => !lift(&mut **lock),
        Err(error) => {
            tracing::error!(error = %chain(error), "cannot find the network of a container that is given back");
            false
        }
    };
    if begin.frozen_before {
        publish.event("it was frozen before the migration and stays so");
    } else {
        let tree = container.tree();
        retry("undo in the container's processes", publish, || engine::source::recover(&tree));
    }
    if locked && let Ok(lock) = lock.as_mut() {
        retry("lift the network lock", publish, || lock.lift());
    }
    if !throttled.0.is_empty() {
        retry("lift the throttle", publish, || container.unthrottle(throttled));
    }
}

/// What the session of this BEGIN has taken from the container, as the journal says.
fn throttled(agent: &Agent, begin: &Begin) -> Throttled {
    let open = agent.journal.entry(&begin.container).open;
    open.filter(|open| open.begin.epoch == begin.epoch).map(|open| open.throttled).unwrap_or_default()
}

/// The copy here is dead: removes the rest, ends the record. Late frames may be relayed until the flag is set.
pub(super) fn killed(
    agent: &Agent,
    begin: &Begin,
    container: &dyn ContainerSource,
    publish: &Publisher,
) -> Arc<AtomicBool> {
    retry("remove what is left of the container", publish, || container.remove());
    let ended = Record::Ended { container: begin.container.clone(), epoch: begin.epoch, end: End::Killed };
    let mut table = agent.table();
    let stop = table.sources.get_mut(&begin.container).map(|handle| {
        handle.relaying = true;
        Arc::clone(&handle.stop_relay)
    });
    drop(table);
    retry("journal the end", publish, || agent.journal.append_sync(std::slice::from_ref(&ended)));
    stop.unwrap_or_default()
}

/// A committed copy that waits, frozen, for its target's Ack.
pub(super) struct Unacknowledged {
    pub(super) container: Box<dyn ContainerSource>,
    pub(super) lock: Option<Box<dyn NetLock>>,
}

/// Tells Commit until it is acknowledged or an operator decides. COMMITTED is synced.
pub(super) fn until_acknowledged(
    agent: &Arc<Agent>,
    begin: &Begin,
    publish: &Publisher,
    mut copy: Unacknowledged,
) {
    let mut backoff = Backoff::new();
    let mut stays = false;
    loop {
        if let Some(owner) = agent.resolution(&begin.container, begin.epoch) {
            return resolved(agent, begin, publish, copy, owner);
        }
        if !stays {
            let commit = PeerMessage::Commit { held: held(&mut copy.lock, Duration::ZERO) };
            let answer =
                peer::ask(agent, &begin.peer, &begin.peer_address, begin, &commit, peer::QUESTION_TIMEOUT);
            let view = agent.source_view(&begin.container);
            let what = match &answer {
                Ok(PeerMessage::Ack { .. }) => commit::source_on_ack(&view, begin.epoch),
                Ok(PeerMessage::Lost) => commit::source_on_lost(&view, begin.epoch),
                Ok(PeerMessage::Stale { epoch, owner }) => {
                    commit::source_on_stale(&view, begin.epoch, *epoch, *owner)
                }
                Ok(other) => {
                    tracing::debug!(answer = other.name(), "no Ack yet");
                    OnAck::Ignore
                }
                Err(error) => {
                    tracing::warn!(error = %chain(error), "the target does not answer Commit; trying again");
                    OnAck::Ignore
                }
            };
            match what {
                OnAck::Kill => return acknowledged(agent, begin, publish, copy),
                OnAck::StayFrozen => {
                    stays = true;
                    publish.end(
                        Phase::OutcomeUnknown,
                        "TargetLostCopy",
                        "the target has no copy and never owned one; the copy here stays frozen, see `migrate resolve`",
                    );
                }
                OnAck::Ignore => publish.update(|status| {
                    if status.phase != Phase::OutcomeUnknown && backoff.0 >= Duration::from_secs(1) {
                        status.phase = Phase::OutcomeUnknown;
                        "TargetSilent".clone_into(&mut status.reason);
                        "committed; the target does not acknowledge".clone_into(&mut status.message);
                    }
                }),
            }
        }
        thread::sleep(backoff.next());
    }
}

fn acknowledged(agent: &Agent, begin: &Begin, publish: &Publisher, mut copy: Unacknowledged) {
    publish.event("the target acknowledged");
    retry("kill the copy that was moved away", publish, || copy.container.kill());
    killed(agent, begin, &*copy.container, publish);
    release(agent, begin, publish, &mut copy);
    publish.end(Phase::Succeeded, "Committed", "acknowledged after the session's connection was lost");
}

/// Lock last, then the container may come back.
fn release(agent: &Agent, begin: &Begin, publish: &Publisher, copy: &mut Unacknowledged) {
    if let Some(lock) = copy.lock.as_mut() {
        retry("release the network lock", publish, || lock.release());
    }
    agent.table().sources.remove(&begin.container);
}

fn resolved(agent: &Agent, begin: &Begin, publish: &Publisher, mut copy: Unacknowledged, owner: Owner) {
    let ended = Record::Ended { container: begin.container.clone(), epoch: begin.epoch, end: End::Resolved };
    match owner {
        Owner::Target => {
            retry("kill the copy that was moved away", publish, || copy.container.kill());
            killed(agent, begin, &*copy.container, publish);
            release(agent, begin, publish, &mut copy);
            publish.end(Phase::Succeeded, "Resolved", "an operator said that the target owns it");
        }
        Owner::Source => {
            let throttled = throttled(agent, begin);
            if let Some(mut lock) = copy.lock.take() {
                lift(&mut *lock);
            }
            give_back(begin, &*copy.container, &throttled, publish);
            copy.container.settle(Settled::Running, begin.epoch);
            // The record last: a restart before it finds the resolution, and gives the copy back again.
            retry("journal the end", publish, || agent.journal.append_sync(std::slice::from_ref(&ended)));
            agent.table().sources.remove(&begin.container);
            publish.end(Phase::Failed, "Resolved", "an operator said that the source owns it; it runs here");
        }
    }
}

/// Goes through the journal after a restart and takes up what it demands, on threads of its own.
pub(super) fn recover_all(agent: &Arc<Agent>) {
    for (container, entry) in agent.journal.state().entries {
        let Some(open) = entry.open else { continue };
        let begin = open.begin;
        tracing::info!(container, migration = begin.migration, role = ?begin.role, "the journal has an open session");
        let publish = agent.publish(begin.role, &begin.migration, begin.epoch, &container);
        if begin.role == Role::Source {
            let handle = SourceHandle {
                migration: begin.migration.clone(),
                epoch: begin.epoch,
                cancel: Arc::new(Cancel::default()),
                synced: false,
                relaying: false,
                stop_relay: Arc::default(),
            };
            agent.table().sources.insert(container.clone(), handle);
        }
        // Registered before any peer is served: a Commit must not find a copy that has not been looked for.
        let inbox = (begin.role == Role::Target).then(|| waiting::register(agent, &begin));
        let agent = Arc::clone(agent);
        let spawned =
            thread::Builder::new().name(format!("recover-{container}")).spawn(move || match inbox {
                Some(inbox) => waiting::recover_target(&agent, begin, publish, inbox),
                None => recover_source(&agent, &begin, &publish),
            });
        if let Err(error) = spawned {
            tracing::error!(%error, container, "cannot start the recovery of a container; restart the agent");
        }
    }
}

fn recover_source(agent: &Arc<Agent>, begin: &Begin, publish: &Publisher) {
    let mut backoff = Backoff::new();
    let container = loop {
        match agent.node.source(&begin.container) {
            Ok(container) => break Some(container),
            Err(PortError::NoContainer(_)) => break None,
            Err(error) => {
                tracing::error!(error = %chain(&error), container = begin.container, "cannot look at a container; trying again");
                thread::sleep(backoff.next());
            }
        }
    };
    let end = |end| Record::Ended { container: begin.container.clone(), epoch: begin.epoch, end };
    let view = agent.source_view(&begin.container);
    match (commit::source_on_restart(&view), container) {
        (SourceRestart::Recommit(_), container) => {
            publish.event("the agent was restarted; the migration is committed");
            if let Some(container) = &container {
                container.settle(Settled::Frozen, begin.epoch);
            }
            retry("sync the commit record", publish, || agent.journal.sync());
            if let Some(handle) = agent.table().sources.get_mut(&begin.container) {
                handle.synced = true;
            }
            // The coordinator relays this as Committed.
            publish.update(|status| status.phase = Phase::Completing);
            match container {
                Some(container) => {
                    let lock = container.lock().ok();
                    until_acknowledged(agent, begin, publish, Unacknowledged { container, lock });
                }
                None => tell_without_copy(agent, begin, publish),
            }
        }
        (SourceRestart::Undo(_), Some(container)) => {
            publish.event("the agent was restarted; giving the container back");
            give_back(begin, &*container, &throttled(agent, begin), publish);
            container.settle(Settled::Running, begin.epoch);
            retry("journal the end", publish, || agent.journal.append(&[end(End::Undone)]));
            agent.table().sources.remove(&begin.container);
            let reason = "the source agent was restarted".to_owned();
            let abort = PeerMessage::Abort { reason: reason.clone() };
            publish.end(Phase::Failed, "AgentRestarted", reason);
            let mut backoff = Backoff::new();
            for _ in 0..5 {
                // Best effort: a Ready copy asks by itself, any other died with its connection.
                if peer::ask(agent, &begin.peer, &begin.peer_address, begin, &abort, peer::ANSWER_TIMEOUT)
                    .is_ok()
                {
                    break;
                }
                thread::sleep(backoff.next());
            }
        }
        (SourceRestart::Forget(_) | SourceRestart::Undo(_), _) => {
            bury(agent, begin, publish, Died::Here);
            retry("journal the end", publish, || agent.journal.append_sync(&[end(End::Lost)]));
            agent.table().sources.remove(&begin.container);
            // Not Failed: the coordinator would relay that as an abort, and a Ready copy may be the last one.
            publish.end(
                Phase::OutcomeUnknown,
                "CopyLost",
                "the container is not here any more; nothing was told to the target",
            );
        }
        (SourceRestart::Nothing, _) => {
            agent.table().sources.remove(&begin.container);
        }
    }
}

/// The container's processes here are dead: deals with the rest.
fn bury(agent: &Agent, begin: &Begin, publish: &Publisher, died: Died) {
    retry("remove what is left of the container", publish, || {
        agent.node.bury(&begin.container, begin.epoch, died)
    });
}

/// Committed, and the copy here died, with its host or because it was being killed after the Ack: the target must
/// still hear Commit, and an Ack ends it.
fn tell_without_copy(agent: &Arc<Agent>, begin: &Begin, publish: &Publisher) {
    let ended = |end| Record::Ended { container: begin.container.clone(), epoch: begin.epoch, end };
    let mut backoff = Backoff::new();
    loop {
        let commit = PeerMessage::Commit { held: Vec::new() };
        let answer =
            peer::ask(agent, &begin.peer, &begin.peer_address, begin, &commit, peer::QUESTION_TIMEOUT);
        let view = agent.source_view(&begin.container);
        let owned_there = match &answer {
            Ok(PeerMessage::Ack { .. }) => commit::source_on_ack(&view, begin.epoch) == OnAck::Kill,
            Ok(PeerMessage::Stale { epoch, owner }) => {
                commit::source_on_stale(&view, begin.epoch, *epoch, *owner) == OnAck::Kill
            }
            _ => false,
        };
        let resolution = agent.resolution(&begin.container, begin.epoch);
        if owned_there || resolution == Some(Owner::Target) {
            bury(agent, begin, publish, Died::Moved);
            retry("journal the end", publish, || agent.journal.append_sync(&[ended(End::Killed)]));
            agent.table().sources.remove(&begin.container);
            return publish.end(Phase::Succeeded, "Committed", "the target owns it");
        }
        match (answer, resolution) {
            // Or an operator gave it to the copy that is dead here, and the target has dropped its own.
            (Ok(PeerMessage::Lost), _) | (_, Some(Owner::Source)) => {
                bury(agent, begin, publish, Died::Here);
                retry("journal the end", publish, || agent.journal.append_sync(&[ended(End::Lost)]));
                agent.table().sources.remove(&begin.container);
                return publish.end(Phase::Failed, "CopyLost", "both copies died with their hosts");
            }
            _ => thread::sleep(backoff.next()),
        }
    }
}

/// What a restarted target does first; separate from doing it so that it is one decision.
pub(super) fn target_demand(agent: &Agent, begin: &Begin, alive: bool) -> TargetRestart {
    let mut view = agent.target_view(&begin.container);
    view.copy = if alive { commit::Copy::Frozen } else { commit::Copy::None };
    commit::target_on_restart(&view)
}
