//! The source's decisions.

use super::{Answer, Committed, Copy, Epoch, Owner};

/// What a source agent knows of one container.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct SourceView {
    /// The highest epoch ever acted on here.
    pub highest: Epoch,
    /// The epoch of the open session, from BEGIN until it has ended or been undone. A session that has
    /// written COMMITTED is in `committed` too.
    pub open: Option<Epoch>,
    /// A COMMITTED record whose copy has not been killed.
    pub committed: Option<Committed>,
    /// An earlier migration's late frames are still being relayed.
    pub relaying: bool,
    /// An incoming copy is being built here, or waits.
    pub incoming: bool,
    /// The container's own copy here, of this boot.
    pub copy: Copy,
}

/// Answer to a Start order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnStart {
    /// Make the epoch durable, write BEGIN, begin.
    Begin,
    /// The order was repeated; its session is open.
    Continue,
    /// The epoch is not higher than the highest one known.
    Stale(Epoch),
    /// Another session of the container is open.
    Busy,
    /// An earlier migration is committed and not acknowledged.
    Unacknowledged,
    /// No running copy is here.
    NotHere,
}

/// Whether a Start order may begin a session.
#[must_use]
pub fn source_on_start(view: &SourceView, epoch: Epoch) -> OnStart {
    if view.open == Some(epoch) && view.committed.is_none() {
        OnStart::Continue
    } else if view.committed.is_some() {
        OnStart::Unacknowledged
    } else if view.open.is_some() || view.relaying || view.incoming {
        OnStart::Busy
    } else if epoch <= view.highest {
        OnStart::Stale(view.highest)
    } else if view.copy != Copy::Running {
        OnStart::NotHere
    } else {
        OnStart::Begin
    }
}

/// The answer to a target (or coordinator) that asks what was decided.
#[must_use]
pub fn source_on_query(view: &SourceView, epoch: Epoch) -> Answer {
    if let Some(committed) = view.committed.filter(|committed| committed.epoch == epoch) {
        return if committed.synced { Answer::Committed } else { Answer::Undecided };
    }
    if view.open == Some(epoch) {
        return Answer::Undecided;
    }
    // An epoch that this agent has never seen: its own memory may be what is missing.
    if epoch > view.highest || view.copy == Copy::None {
        return Answer::Unknown;
    }
    Answer::Aborted
}

/// Answer to a cancel order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnAbort {
    /// Undo; the container runs on here.
    Undo,
    /// COMMITTED is written, synced or not.
    TooLate,
    /// No session of that epoch is open.
    NoSession,
}

/// Whether a session may still be undone: by a cancel, a time limit, a lost link or any error.
#[must_use]
pub fn source_on_abort(view: &SourceView, epoch: Epoch) -> OnAbort {
    if view.committed.is_some_and(|committed| committed.epoch == epoch) {
        OnAbort::TooLate
    } else if view.open == Some(epoch) {
        OnAbort::Undo
    } else {
        OnAbort::NoSession
    }
}

/// What to do with the target's answer to Commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnAck {
    /// Kill the frozen copy, remove its netns, end the record, lift the lock last.
    Kill,
    /// Stay frozen and wait for an operator's resolution.
    StayFrozen,
    /// Not about a commit that is pending here.
    Ignore,
}

fn pending(view: &SourceView, epoch: Epoch) -> bool {
    view.committed == Some(Committed { epoch, synced: true })
}

/// On Ack(epoch): the target has OWNED on disk.
#[must_use]
pub fn source_on_ack(view: &SourceView, epoch: Epoch) -> OnAck {
    if pending(view, epoch) { OnAck::Kill } else { OnAck::Ignore }
}

/// On Lost(epoch): the target has no living copy and never owned one.
#[must_use]
pub fn source_on_lost(view: &SourceView, epoch: Epoch) -> OnAck {
    if pending(view, epoch) { OnAck::StayFrozen } else { OnAck::Ignore }
}

/// On Stale in answer to Commit(`epoch`): the target has gone on to `newer`, and says who owned the
/// container there. Only its own ownership proves that the container lives on without the copy here.
#[must_use]
pub fn source_on_stale(view: &SourceView, epoch: Epoch, newer: Epoch, owner: Option<Owner>) -> OnAck {
    if !pending(view, epoch) || newer <= epoch {
        OnAck::Ignore
    } else if owner == Some(Owner::Target) {
        OnAck::Kill
    } else {
        OnAck::StayFrozen
    }
}

/// What a restarted source agent does first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SourceRestart {
    /// Nothing is open.
    Nothing,
    /// Give the container back as it was (repair off, lock off, frames delivered, thaw), then tell the
    /// target Abort.
    Undo(Epoch),
    /// The copy is gone (the host was restarted): end the record and tell nobody anything.
    Forget(Epoch),
    /// Sync the record again, then tell Commit until it is answered.
    Recommit(Epoch),
}

/// What the journal of an earlier run demands. In `view`, `open` is a BEGIN without an end.
#[must_use]
pub fn source_on_restart(view: &SourceView) -> SourceRestart {
    match (view.committed, view.open) {
        (Some(committed), _) => SourceRestart::Recommit(committed.epoch),
        (None, Some(epoch)) if view.copy == Copy::None => SourceRestart::Forget(epoch),
        (None, Some(epoch)) => SourceRestart::Undo(epoch),
        (None, None) => SourceRestart::Nothing,
    }
}

/// Answer of the migration's source to an operator's resolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnResolveSource {
    /// The copy here is the container: give it back, end the migration.
    GiveBack,
    /// The copy here is not the container: kill it, end the migration.
    Kill,
    /// It was done already.
    Done,
    /// The resolution's epoch is not higher than the highest one known.
    Stale(Epoch),
    /// A session decides by itself, or the copy that should own it does not live.
    Refuse,
}

/// An operator has said who owns the container; `epoch` is the resolution's own, new one.
#[must_use]
pub fn source_on_resolve(
    view: &SourceView,
    epoch: Epoch,
    owner: Owner,
    resolved: Option<Owner>,
) -> OnResolveSource {
    if epoch == view.highest && resolved == Some(owner) {
        return OnResolveSource::Done;
    }
    if epoch <= view.highest {
        return OnResolveSource::Stale(view.highest);
    }
    match (owner, view.committed, view.open, view.copy) {
        // Before COMMITTED the source undoes by itself, without an operator.
        (_, None, Some(_), _) => OnResolveSource::Refuse,
        (Owner::Source, Some(_), _, Copy::None) => OnResolveSource::Refuse,
        (Owner::Source, Some(_), _, _) => OnResolveSource::GiveBack,
        (Owner::Source, None, None, Copy::None) => OnResolveSource::Refuse,
        (Owner::Source, None, None, _) => OnResolveSource::Done,
        (Owner::Target, _, _, Copy::None) if view.committed.is_none() => OnResolveSource::Done,
        (Owner::Target, ..) => OnResolveSource::Kill,
    }
}
