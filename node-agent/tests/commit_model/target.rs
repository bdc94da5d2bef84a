//! The target's steps: `session/{target,waiting}.rs`, `peer.rs` and `Migrations::prepare`.

use node_agent::commit::{
    Answer, Copy, Epoch, OnAnswer, OnCommit, OnDiscard, OnPrepare, Owner, TargetRestart, target_on_abort,
    target_on_answer, target_on_commit, target_on_prepare, target_on_restart, target_on_session,
};

use super::state::{Incoming, Message, Record, Role, Serving, Target, at};
use super::steps::{Rule, TargetStep, World};

/// What its thread may do next.
pub(crate) fn steps(target: &Target) -> &'static [TargetStep] {
    match target.serving {
        Serving::Expected => &[],
        Serving::Building => &[TargetStep::GiveUp],
        Serving::Recorded => &[TargetStep::TellReady],
        Serving::Waiting => {
            &[TargetStep::Ask, TargetStep::AskCoordinator, TargetStep::ObeyOperator, TargetStep::GiveUp]
        }
        Serving::Taking => &[TargetStep::Thaw],
        Serving::Thawed => &[TargetStep::Adopt],
        Serving::Adopted => &[TargetStep::SyncOwned],
        Serving::Discarding => &[TargetStep::EndDiscarded],
        Serving::Recovering => &[TargetStep::Recover],
    }
}

impl World {
    fn serving(&mut self, n: usize, serving: Serving) {
        if let Some(target) = &mut self.node(n).target {
            target.serving = serving;
        }
    }

    fn ack(&mut self, epoch: Epoch) {
        self.state.acked[at(epoch)] = true;
        self.send(Message::Ack(epoch));
    }

    /// The first record of `Waiting::take`.
    fn take_over(&mut self, n: usize, epoch: Epoch) {
        self.node(n).journal.append(Record::CommitSeen(epoch));
        self.serving(n, Serving::Taking);
    }

    /// The first half of `Waiting::discard` and of a session's.
    fn discard(&mut self, n: usize) {
        self.node(n).incoming = None;
        self.serving(n, Serving::Discarding);
    }

    /// The end of a session that leaves nothing.
    fn end_target(&mut self, n: usize, epoch: Epoch) {
        self.node(n).incoming = None;
        self.node(n).journal.append(Record::Ended(epoch));
        self.node(n).target = None;
    }

    pub(crate) fn target_hears(&mut self, n: usize, epoch: Epoch, message: Message) -> Option<()> {
        let view = self.node(n).target_view();
        let target = self.node(n).target.filter(|target| target.epoch == epoch);
        let serving = target.map(|target| target.serving);
        let deaf = matches!(serving, Some(Serving::Recorded | Serving::Recovering));
        match message {
            Message::Prepare(_) => self.prepare(n, epoch),
            // Image of `target::open` and `Session::prepare`; the node refuses a name that it has.
            Message::Open(_, run) => {
                let node = self.node(n);
                let free = node.own == Copy::None && node.incoming.is_none();
                let expected = serving == Some(Serving::Expected);
                if free && expected && target_on_session(&view, epoch, run == node.run) {
                    node.journal.append(Record::Begin(epoch, Role::Target));
                    node.incoming = Some((epoch, Incoming::Building));
                    self.serving(n, Serving::Building);
                    self.send(Message::Prepared(epoch));
                } else {
                    self.send(Message::Failed(epoch));
                }
            }
            // Image of `Session::restore`.
            Message::Switchover(_) if serving == Some(Serving::Building) => {
                self.node(n).incoming = Some((epoch, Incoming::Complete));
                self.serving(n, Serving::Recorded);
                if self.breaks(Rule::ReadyBeforeRecord) {
                    self.send(Message::Ready(epoch));
                } else {
                    let boot = self.node(n).boot;
                    self.node(n).journal.append(Record::Ready(epoch, boot));
                }
            }
            Message::Commit(_) | Message::Abort(_) | Message::Answer(..) if deaf => return None,
            Message::Commit(_) => self.hear_commit(n, epoch, serving),
            // Image of `Session::hear`, `peer::abort_again` and `Waiting::decide`.
            Message::Abort(_)
                if matches!(serving, Some(Serving::Building | Serving::Waiting))
                    && target_on_abort(&view, epoch) == OnDiscard::Discard =>
            {
                self.discard(n);
            }
            Message::Answer(_, answer) if serving == Some(Serving::Waiting) => {
                self.obey(n, epoch, answer);
            }
            _ => {}
        }
        Some(())
    }

    /// Image of `peer::commit_again` and `Waiting::decide`.
    fn hear_commit(&mut self, n: usize, epoch: Epoch, serving: Option<Serving>) {
        let view = self.node(n).target_view();
        match target_on_commit(&view, epoch) {
            OnCommit::Take | OnCommit::UnderWay => {
                let waits = serving == Some(Serving::Waiting) && self.node(n).resolution(epoch).is_none();
                if waits && target_on_commit(&view, epoch) == OnCommit::Take {
                    self.take_over(n, epoch);
                    if self.breaks(Rule::AckBeforeOwned) {
                        self.ack(epoch);
                    }
                }
            }
            OnCommit::Ack => self.ack(epoch),
            OnCommit::Stale(newer, owner) => self.send(Message::Stale(epoch, newer, owner)),
            OnCommit::Lost if self.breaks(Rule::AckUnknown) => self.ack(epoch),
            OnCommit::Lost => self.send(Message::Lost(epoch)),
            OnCommit::Refuse => {}
        }
    }

    fn obey(&mut self, n: usize, epoch: Epoch, answer: Answer) {
        match target_on_answer(&self.node(n).target_view(), epoch, answer) {
            OnAnswer::Take => self.take_over(n, epoch),
            OnAnswer::Discard => self.discard(n),
            OnAnswer::Wait => {}
        }
    }

    /// Image of `Migrations::prepare` up to `give_way`.
    fn prepare(&mut self, n: usize, epoch: Epoch) {
        if self.is_shut_out(n) {
            return;
        }
        let again = self.breaks(Rule::EpochUsedTwice);
        let expects = match target_on_prepare(&self.node(n).target_view(), epoch) {
            OnPrepare::Expect | OnPrepare::Continue => true,
            OnPrepare::Stale(_) => again && self.node(n).target.is_none(),
            _ => false,
        };
        if expects {
            self.node(n).giving_way = Some(epoch);
        }
    }

    /// Its rest, with no second look at what `prepare` decided by.
    fn expect(&mut self, n: usize, epoch: Epoch) {
        let node = self.node(n);
        node.giving_way = None;
        match node.target {
            Some(target) if target.epoch > epoch => return,
            Some(target) if target.epoch == epoch => {}
            // The session did not give way in time.
            Some(target) if target.serving != Serving::Expected => return,
            _ => {
                node.journal.append_sync(Record::Epoch(epoch));
                node.target = Some(Target { epoch, serving: Serving::Expected });
            }
        }
        let run = node.run;
        self.send(Message::Start(epoch, run));
    }

    pub(crate) fn target_step(&mut self, n: usize, step: TargetStep) -> Option<()> {
        if step == TargetStep::GiveWay {
            let epoch = self.node(n).giving_way?;
            self.expect(n, epoch);
            return Some(());
        }
        let target = self.node(n).target?;
        let epoch = target.epoch;
        match step {
            TargetStep::GiveWay => {}
            // A time limit, a lost link, an error, a newer Prepare. Image of `session::target`, which discards what fails
            // before it is Ready; from there on the copy is `Waiting`'s, which obeys its source alone.
            TargetStep::GiveUp => {
                let view = self.node(n).target_view();
                let discards = view.expected == Some(epoch) && view.ready.is_none() && view.seen.is_none();
                if !discards && !self.breaks(Rule::TimeoutDiscardsReady) {
                    return None;
                }
                self.discard(n);
                self.send(Message::Failed(epoch));
            }
            TargetStep::TellReady => {
                if self.breaks(Rule::ReadyBeforeRecord) {
                    let boot = self.node(n).boot;
                    self.node(n).journal.append(Record::Ready(epoch, boot));
                } else {
                    self.send(Message::Ready(epoch));
                }
                self.serving(n, Serving::Waiting);
            }
            // Image of `Waiting::ask`, which asks the coordinator only when the source cannot tell.
            TargetStep::Ask => self.send(Message::Query(epoch)),
            TargetStep::AskCoordinator => {
                let presumed = if self.breaks(Rule::CoordinatorPresumesAbort) {
                    Answer::Aborted
                } else {
                    Answer::Undecided
                };
                let answer = self.state.reported[at(epoch)].unwrap_or(presumed);
                self.obey(n, epoch, answer);
            }
            // Image of `Waiting::take`, in its order.
            TargetStep::Thaw => {
                self.node(n).incoming = Some((epoch, Incoming::Running));
                let source = self.node(1 - n);
                source.stale = source.own != Copy::None;
                self.serving(n, Serving::Thawed);
            }
            TargetStep::Adopt => {
                let node = self.node(n);
                (node.own, node.incoming, node.stale) = (Copy::Running, None, false);
                self.serving(n, Serving::Adopted);
            }
            TargetStep::SyncOwned => {
                self.node(n).journal.append_sync(Record::Owned(epoch));
                self.node(n).target = None;
                self.ack(epoch);
            }
            TargetStep::EndDiscarded => self.end_target(n, epoch),
            TargetStep::ObeyOperator => match self.node(n).resolution(epoch)? {
                Owner::Target => self.take_over(n, epoch),
                Owner::Source => self.discard(n),
            },
            TargetStep::Recover => self.recover_target(n, epoch),
        }
        Some(())
    }

    /// Image of `recover_target` and `target_demand`.
    fn recover_target(&mut self, n: usize, epoch: Epoch) {
        let node = self.node(n);
        let adopted = node.own != Copy::None;
        let alive = adopted || node.incoming.is_some_and(|(_, copy)| copy != Incoming::Building);
        let thawed = node.incoming.is_some_and(|(_, copy)| copy == Incoming::Running);
        let mut view = node.target_view();
        view.copy = if alive { Copy::Frozen } else { Copy::None };
        match target_on_restart(&view) {
            TargetRestart::Ask(_) => self.serving(n, Serving::Waiting),
            TargetRestart::Finish(_) => {
                self.take_over(n, epoch);
                if adopted {
                    self.serving(n, Serving::Adopted);
                } else if thawed {
                    self.serving(n, Serving::Thawed);
                }
            }
            TargetRestart::Lost(_) | TargetRestart::Kill(_) | TargetRestart::Nothing => {
                self.end_target(n, epoch)
            }
        }
    }
}
