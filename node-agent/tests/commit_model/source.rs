//! The source's steps: `session/{source,switchover,recover}.rs` and `Migrations::{start,abort}`.

use node_agent::commit::{
    Answer, Copy, Epoch, OnAbort, OnAck, OnStart, Owner, SourceRestart, source_on_abort, source_on_ack,
    source_on_lost, source_on_query, source_on_restart, source_on_stale, source_on_start,
};

use super::state::{Message, Record, Role, Source, SourcePhase, at};
use super::steps::{Rule, SourceStep, World};

/// What its thread may do next.
pub(crate) fn steps(source: &Source) -> &'static [SourceStep] {
    match source.phase {
        SourcePhase::Open | SourcePhase::Frozen => &[SourceStep::GiveUp],
        SourcePhase::Ready => &[SourceStep::GiveUp, SourceStep::AppendCommitted],
        SourcePhase::Undoing => &[SourceStep::EndUndo],
        SourcePhase::Appended => &[SourceStep::SyncCommitted, SourceStep::SyncFails, SourceStep::GiveUp],
        SourcePhase::Telling => &[SourceStep::TellCommit, SourceStep::ObeyOperator],
        SourcePhase::WithoutCopy => &[SourceStep::TellCommit, SourceStep::ObeyOperator],
        SourcePhase::Stays => &[SourceStep::ObeyOperator],
        SourcePhase::Killed => &[SourceStep::EndKilled],
        SourcePhase::Relaying => &[SourceStep::EndRelay],
        SourcePhase::Resolved => &[SourceStep::EndResolved],
        SourcePhase::Recovering => &[SourceStep::Recover],
    }
}

impl World {
    fn phase(&mut self, n: usize, phase: SourcePhase) {
        if let Some(source) = &mut self.node(n).source {
            source.phase = phase;
        }
    }

    /// What its status says from now on.
    fn publish(&mut self, epoch: Epoch, answer: Answer) {
        self.send(Message::Report(epoch, answer));
    }

    fn tell_commit(&mut self, epoch: Epoch) {
        self.state.told[at(epoch)] = true;
        self.send(Message::Commit(epoch));
    }

    /// The frozen copy runs on: what was read of it is behind from now on.
    fn thaw_own(&mut self, n: usize, epoch: Epoch) {
        if self.node(n).own == Copy::Frozen {
            self.node(n).own = Copy::Running;
            self.state.image_stale[at(epoch)] = true;
        }
    }

    pub(crate) fn source_hears(&mut self, n: usize, epoch: Epoch, message: Message) -> Option<()> {
        let view = self.node(n).source_view();
        let source = self.node(n).source.filter(|source| source.epoch == epoch);
        let phase = source.map(|source| source.phase);
        match message {
            Message::Start(_, run) => self.start(n, epoch, run),
            // Image of `Migrations::abort`: it sets a flag that the thread looks at.
            Message::Cancel(_) => {
                let early =
                    matches!(phase, Some(SourcePhase::Open | SourcePhase::Frozen | SourcePhase::Ready));
                if early && source_on_abort(&view, epoch) == OnAbort::Undo {
                    self.node(n).source.as_mut()?.cancelled = true;
                }
            }
            // Image of `Session::switchover`, from the freeze to the image.
            Message::Prepared(_) if phase == Some(SourcePhase::Open) && !source?.cancelled => {
                self.node(n).own = Copy::Frozen;
                self.phase(n, SourcePhase::Frozen);
                self.send(Message::Switchover(epoch));
            }
            Message::Ready(_) if phase == Some(SourcePhase::Frozen) => self.phase(n, SourcePhase::Ready),
            Message::Failed(_) => return self.source_step(n, SourceStep::GiveUp),
            // Image of `peer::question`.
            Message::Query(_) => {
                let mut answer = source_on_query(&view, epoch);
                if self.breaks(Rule::AbortedWithoutCopy) && answer == Answer::Unknown {
                    answer = Answer::Aborted;
                }
                self.state.told[at(epoch)] |= answer == Answer::Committed;
                self.send(Message::Answer(epoch, answer));
            }
            // Image of `Session::await_ack` and `until_acknowledged`.
            Message::Ack(_) | Message::Lost(_) | Message::Stale(..)
                if phase == Some(SourcePhase::Telling) =>
            {
                let what = match message {
                    Message::Ack(_) => source_on_ack(&view, epoch),
                    Message::Lost(_) if self.breaks(Rule::KillOnLost) => source_on_ack(&view, epoch),
                    Message::Lost(_) => source_on_lost(&view, epoch),
                    Message::Stale(_, newer, owner) => source_on_stale(&view, epoch, newer, owner),
                    _ => OnAck::Ignore,
                };
                match what {
                    OnAck::Kill => {
                        self.node(n).own = Copy::None;
                        self.phase(n, SourcePhase::Killed);
                    }
                    OnAck::StayFrozen => {
                        self.phase(n, SourcePhase::Stays);
                        self.publish(epoch, Answer::Unknown);
                    }
                    OnAck::Ignore => {}
                }
            }
            // Image of `tell_without_copy`.
            Message::Ack(_) if phase == Some(SourcePhase::WithoutCopy) => {
                self.end_without_copy(n, epoch, Answer::Committed);
            }
            Message::Lost(_) if phase == Some(SourcePhase::WithoutCopy) => {
                self.end_without_copy(n, epoch, Answer::Aborted);
            }
            Message::Stale(_, newer, owner)
                if phase == Some(SourcePhase::WithoutCopy)
                    && source_on_stale(&view, epoch, newer, owner) == OnAck::Kill =>
            {
                self.end_without_copy(n, epoch, Answer::Committed);
            }
            _ => {}
        }
        Some(())
    }

    fn end_without_copy(&mut self, n: usize, epoch: Epoch, answer: Answer) {
        self.node(n).journal.append_sync(Record::Ended(epoch));
        self.node(n).source = None;
        self.publish(epoch, answer);
    }

    /// Image of `Migrations::start`, and of the session up to its first message.
    fn start(&mut self, n: usize, epoch: Epoch, run: u8) {
        if self.is_shut_out(n) {
            return;
        }
        let again = self.breaks(Rule::EpochUsedTwice);
        let node = self.node(n);
        let mut view = node.source_view();
        if view.copy == Copy::Frozen && view.open.is_none() {
            view.copy = Copy::Running;
        }
        let begins = match source_on_start(&view, epoch) {
            OnStart::Begin => true,
            OnStart::Stale(_) => again && view.copy == Copy::Running,
            _ => false,
        };
        if !begins || node.source.is_some() {
            return;
        }
        if node.journal.now.highest >= epoch {
            self.state.broken = Some("an epoch is used twice");
        }
        let node = self.node(n);
        node.journal.append_sync(Record::Begin(epoch, Role::Source));
        node.source = Some(Source { epoch, phase: SourcePhase::Open, cancelled: false, synced: false });
        self.send(Message::Open(epoch, run));
    }

    pub(crate) fn source_step(&mut self, n: usize, step: SourceStep) -> Option<()> {
        let source = self.node(n).source?;
        let epoch = source.epoch;
        let view = self.node(n).source_view();
        match step {
            // Image of `Session::undo`: a time limit, a lost link, a cancel, any error.
            SourceStep::GiveUp => {
                let early =
                    matches!(source.phase, SourcePhase::Open | SourcePhase::Frozen | SourcePhase::Ready);
                let late = source.phase == SourcePhase::Appended && self.breaks(Rule::UndoAfterCommitted);
                if !(early && source_on_abort(&view, epoch) == OnAbort::Undo || late) {
                    return None;
                }
                self.thaw_own(n, epoch);
                self.phase(n, SourcePhase::Undoing);
            }
            SourceStep::EndUndo => {
                self.node(n).journal.append(Record::Ended(epoch));
                self.node(n).source = None;
                self.send(Message::Abort(epoch));
                self.publish(epoch, Answer::Aborted);
            }
            // Image of `Session::commit_point`.
            SourceStep::AppendCommitted => {
                if source.cancelled {
                    return None;
                }
                self.node(n).journal.append(Record::Committed(epoch));
                self.phase(n, SourcePhase::Appended);
                if self.breaks(Rule::CommitBeforeSync) {
                    self.tell_commit(epoch);
                }
            }
            SourceStep::SyncFails => {
                if self.state.left.sync_errors == 0 {
                    return None;
                }
                self.state.left.sync_errors -= 1;
                self.node(n).journal.suspect = true;
                self.publish(epoch, Answer::Unknown);
            }
            // To the end of it, and the first message of `Session::complete`.
            SourceStep::SyncCommitted => {
                self.node(n).journal.sync();
                self.node(n).source.as_mut()?.synced = true;
                self.phase(n, SourcePhase::Telling);
                self.tell_commit(epoch);
                self.publish(epoch, Answer::Committed);
            }
            SourceStep::TellCommit => self.tell_commit(epoch),
            // Image of `killed`, after the kill itself.
            SourceStep::EndKilled => {
                self.node(n).journal.append_sync(Record::Ended(epoch));
                self.phase(n, SourcePhase::Relaying);
                self.publish(epoch, Answer::Committed);
            }
            SourceStep::EndRelay => self.node(n).source = None,
            // Image of `resolved`, and of the end of `tell_without_copy`.
            SourceStep::ObeyOperator => match (self.node(n).resolution(epoch)?, source.phase) {
                (Owner::Target, SourcePhase::WithoutCopy) => {
                    self.end_without_copy(n, epoch, Answer::Committed);
                }
                (Owner::Source, SourcePhase::WithoutCopy) if self.breaks(Rule::ResolvedTellsOn) => {
                    return None;
                }
                (Owner::Source, SourcePhase::WithoutCopy) => {
                    self.end_without_copy(n, epoch, Answer::Aborted);
                }
                (Owner::Target, _) => {
                    self.node(n).own = Copy::None;
                    self.phase(n, SourcePhase::Killed);
                }
                (Owner::Source, _) => {
                    if self.breaks(Rule::ResolvedEndsFirst) {
                        self.node(n).journal.append_sync(Record::Ended(epoch));
                    } else {
                        self.thaw_own(n, epoch);
                        self.node(n).stale = false;
                    }
                    self.phase(n, SourcePhase::Resolved);
                }
            },
            SourceStep::EndResolved => {
                if self.breaks(Rule::ResolvedEndsFirst) {
                    self.thaw_own(n, epoch);
                    self.node(n).stale = false;
                } else {
                    self.node(n).journal.append_sync(Record::Ended(epoch));
                }
                self.node(n).source = None;
            }
            // Image of `recover_source`.
            SourceStep::Recover => match source_on_restart(&view) {
                SourceRestart::Recommit(_) => {
                    if !self.breaks(Rule::RecommitWithoutSync) {
                        self.node(n).journal.sync();
                    }
                    self.node(n).source.as_mut()?.synced = true;
                    let gone = view.copy == Copy::None;
                    self.phase(n, if gone { SourcePhase::WithoutCopy } else { SourcePhase::Telling });
                    self.publish(epoch, Answer::Committed);
                }
                SourceRestart::Undo(_) => {
                    self.thaw_own(n, epoch);
                    self.phase(n, SourcePhase::Undoing);
                }
                SourceRestart::Forget(_) => {
                    let failed = self.breaks(Rule::ForgottenIsFailed);
                    let answer = if failed { Answer::Aborted } else { Answer::Unknown };
                    self.end_without_copy(n, epoch, answer);
                }
                SourceRestart::Nothing => self.node(n).source = None,
            },
        }
        Some(())
    }
}
