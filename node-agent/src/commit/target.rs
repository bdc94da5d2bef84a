//! The target's decisions.

use super::{Answer, Copy, Epoch, Owner};

/// What a target agent knows of one container.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct TargetView {
    /// The highest epoch ever acted on here.
    pub highest: Epoch,
    /// The epoch that Prepare announced, or whose session is open, or whose copy waits.
    pub expected: Option<Epoch>,
    /// READY of this boot without an end.
    pub ready: Option<Epoch>,
    /// COMMIT_SEEN without an end: the copy is (being) taken over.
    pub seen: Option<Epoch>,
    /// The newest OWNED.
    pub owned: Option<Epoch>,
    /// This agent's source side holds a session or an unacknowledged commit of the container.
    pub leaving: bool,
    /// The copy here, of this boot.
    pub copy: Copy,
}

/// Answer to a Prepare order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnPrepare {
    /// Make the epoch durable and expect the session.
    Expect,
    /// The order was repeated and no session has come yet.
    Continue,
    /// The epoch is not higher than the highest one known.
    Stale(Epoch),
    /// Another incoming copy of the container is here.
    Busy,
    /// The container itself is here.
    Here,
}

/// Whether a Prepare order may announce a session.
#[must_use]
pub fn target_on_prepare(view: &TargetView, epoch: Epoch) -> OnPrepare {
    if view.expected == Some(epoch) && view.ready.is_none() && view.seen.is_none() {
        return OnPrepare::Continue;
    }
    if epoch <= view.highest {
        return OnPrepare::Stale(view.highest);
    }
    if view.ready.is_some() || view.seen.is_some() || view.leaving {
        return OnPrepare::Busy;
    }
    // An announced session that never became Ready gives way to a newer attempt.
    if view.copy == Copy::Running || (view.expected.is_none() && view.copy != Copy::None) {
        return OnPrepare::Here;
    }
    OnPrepare::Expect
}

/// Whether a source may open the session of `epoch` that was prepared: the epoch must be the expected
/// one, which no later order has overtaken, and the nonce must be of this run of the agent.
#[must_use]
pub fn target_on_session(view: &TargetView, epoch: Epoch, nonce_matches: bool) -> bool {
    nonce_matches
        && view.expected == Some(epoch)
        && view.highest == epoch
        && view.ready.is_none()
        && view.seen.is_none()
}

/// Answer to Commit(epoch), repeated or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnCommit {
    /// Write COMMIT_SEEN, attach, announce, deliver, thaw, sync OWNED, then Ack.
    Take,
    /// It is being taken over; the Ack follows when OWNED is on disk.
    UnderWay,
    /// OWNED is on disk: Ack again.
    Ack,
    /// This agent has gone on to a newer epoch, with this owner as far as it knows.
    Stale(Epoch, Option<Owner>),
    /// No living copy is here and none was ever owned under this epoch.
    Lost,
    /// A session is open and not Ready: a Commit cannot belong to it.
    Refuse,
}

/// What a target does with Commit(epoch).
#[must_use]
pub fn target_on_commit(view: &TargetView, epoch: Epoch) -> OnCommit {
    if let Some(owned) = view.owned.filter(|owned| *owned >= epoch) {
        return if owned == epoch { OnCommit::Ack } else { OnCommit::Stale(owned, Some(Owner::Target)) };
    }
    if view.seen == Some(epoch) {
        return if view.copy == Copy::None { OnCommit::Lost } else { OnCommit::UnderWay };
    }
    if view.ready == Some(epoch) {
        return if view.copy == Copy::None { OnCommit::Lost } else { OnCommit::Take };
    }
    if view.expected == Some(epoch) && view.copy != Copy::None {
        return OnCommit::Refuse;
    }
    if epoch < view.highest {
        return OnCommit::Stale(view.highest, None);
    }
    OnCommit::Lost
}

/// Whether a copy goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnDiscard {
    /// Kill it and end the record.
    Discard,
    /// Keep it: the order is not about it, or has no say.
    Keep,
}

/// On Abort(epoch) from the source itself.
#[must_use]
pub fn target_on_abort(view: &TargetView, epoch: Epoch) -> OnDiscard {
    let taken = view.seen == Some(epoch) || view.owned.is_some_and(|owned| owned >= epoch);
    if !taken && (view.expected == Some(epoch) || view.ready == Some(epoch)) {
        OnDiscard::Discard
    } else {
        OnDiscard::Keep
    }
}

/// What a Ready target does with an answer to its question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnAnswer {
    /// As on Commit.
    Take,
    /// As on Abort.
    Discard,
    /// Stay frozen and ask again.
    Wait,
}

/// What an answer, of the source or relayed by the coordinator, means for a Ready copy of `epoch`.
#[must_use]
pub fn target_on_answer(view: &TargetView, epoch: Epoch, answer: Answer) -> OnAnswer {
    match answer {
        Answer::Committed if target_on_commit(view, epoch) == OnCommit::Take => OnAnswer::Take,
        Answer::Aborted if target_on_abort(view, epoch) == OnDiscard::Discard => OnAnswer::Discard,
        _ => OnAnswer::Wait,
    }
}

/// What a restarted target agent does first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TargetRestart {
    /// Nothing is open.
    Nothing,
    /// Kill what an unfinished session left.
    Kill(Epoch),
    /// Ask the source, then the coordinator, until one can tell.
    Ask(Epoch),
    /// The takeover had begun: finish it.
    Finish(Epoch),
    /// The copy died with its host: answer Lost when the source commits. Never Ack.
    Lost(Epoch),
}

/// What the journal of an earlier run demands. In `view`, `expected` is a BEGIN without an end; `ready`
/// counts only when it is of this boot.
#[must_use]
pub fn target_on_restart(view: &TargetView) -> TargetRestart {
    let alive = view.copy != Copy::None;
    match (view.seen, view.ready, view.expected) {
        (Some(epoch), _, _) | (None, Some(epoch), _) if !alive => TargetRestart::Lost(epoch),
        (Some(epoch), _, _) => TargetRestart::Finish(epoch),
        (None, Some(epoch), _) => TargetRestart::Ask(epoch),
        (None, None, Some(epoch)) => TargetRestart::Kill(epoch),
        (None, None, None) => TargetRestart::Nothing,
    }
}

/// Answer of the migration's target to an operator's resolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnResolveTarget {
    /// The Ready copy here is the container: take it over.
    Take,
    /// The copy here is not the container: discard it.
    Discard,
    /// It was done already, or nothing is here to discard.
    Done,
    /// The resolution's epoch is not higher than the highest one known.
    Stale(Epoch),
    /// No complete copy is here that could own it, or it is being taken over.
    Refuse,
}

/// An operator has said who owns the container; `epoch` is the resolution's own, new one.
#[must_use]
pub fn target_on_resolve(
    view: &TargetView,
    epoch: Epoch,
    owner: Owner,
    resolved: Option<Owner>,
) -> OnResolveTarget {
    if epoch == view.highest && resolved == Some(owner) {
        return OnResolveTarget::Done;
    }
    if epoch <= view.highest {
        return OnResolveTarget::Stale(view.highest);
    }
    let waiting = view.ready.is_some() && view.seen.is_none() && view.copy != Copy::None;
    match owner {
        Owner::Target if waiting => OnResolveTarget::Take,
        Owner::Target if view.owned.is_some() && view.expected.is_none() && view.copy != Copy::None => {
            OnResolveTarget::Done
        }
        Owner::Target => OnResolveTarget::Refuse,
        Owner::Source if view.seen.is_some() => OnResolveTarget::Refuse,
        Owner::Source if view.expected.is_some() || view.ready.is_some() => OnResolveTarget::Discard,
        Owner::Source => OnResolveTarget::Done,
    }
}
