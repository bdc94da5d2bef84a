//! What can happen next, and what happens then. Here are the faults, the coordinator and the operator; the agents'
//! own steps are in `source.rs` and `target.rs`.

use node_agent::commit::{
    Answer, Copy, Epoch, OnResolveSource, OnResolveTarget, Owner, source_on_resolve, target_on_resolve,
};

use super::state::{EPOCHS, Incoming, Message, Node, Role, Serving, Source, SourcePhase, State, Target, at};

/// One step. The number is a node's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// The coordinator persists a new epoch and orders Prepare; the container is to leave this node.
    Order(usize),
    Cancel(Epoch),
    Deliver(Message),
    /// And it is delivered once more, some time.
    Repeat(Message),
    Lose(Message),
    Source(usize, SourceStep),
    Target(usize, TargetStep),
    CrashAgent(usize),
    /// The page cache drops what fsync could not write.
    CrashAgentAndTail(usize),
    /// So many of the unsynced records are found again.
    CrashHost(usize, usize),
    Boot(usize),
    StartAgent(usize),
    /// An operator powers off the other node and says that this one owns the container.
    Resolve(usize),
    Readmit(usize),
}

/// What a source's thread does by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SourceStep {
    GiveUp,
    EndUndo,
    AppendCommitted,
    SyncCommitted,
    SyncFails,
    TellCommit,
    EndKilled,
    EndRelay,
    ObeyOperator,
    EndResolved,
    Recover,
}

/// What a target's thread does by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TargetStep {
    GiveWay,
    GiveUp,
    TellReady,
    Ask,
    AskCoordinator,
    Thaw,
    Adopt,
    SyncOwned,
    EndDiscarded,
    ObeyOperator,
    Recover,
}

/// A rule that a mutated step breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rule {
    /// The target acknowledges as soon as it hears Commit.
    AckBeforeOwned,
    /// An error of fsync at COMMITTED is undone.
    UndoAfterCommitted,
    /// A Ready copy has a time limit.
    TimeoutDiscardsReady,
    /// The source takes Lost for an Ack.
    KillOnLost,
    /// A restarted source trusts the COMMITTED that it reads.
    RecommitWithoutSync,
    /// The coordinator takes silence for an abort.
    CoordinatorPresumesAbort,
    /// Orders are taken again under an epoch that was used.
    EpochUsedTwice,
    /// A source that has no copy answers Aborted.
    AbortedWithoutCopy,
    /// A source that has no copy reports a failure, not that it cannot tell.
    ForgottenIsFailed,
    /// The target acknowledges a Commit that it knows nothing of.
    AckUnknown,
    /// Ready is told before it is written.
    ReadyBeforeRecord,
    /// A Commit is told before its record is synced.
    CommitBeforeSync,
    /// Resolved for the source: the record is ended before the copy is given back.
    ResolvedEndsFirst,
    /// Resolved for a source whose copy has died since: it tells Commit for ever.
    ResolvedTellsOn,
    /// A fenced node whose session has ended guesses which side it was.
    FencedGuessesItsSide,
}

impl Step {
    /// What must not be needed for an end.
    pub(crate) fn is_fault(self) -> bool {
        matches!(
            self,
            Self::Order(_)
                | Self::Cancel(_)
                | Self::Repeat(_)
                | Self::Lose(_)
                | Self::Source(_, SourceStep::SyncFails)
                | Self::CrashAgent(_)
                | Self::CrashAgentAndTail(_)
                | Self::CrashHost(..)
                | Self::Resolve(_)
        )
    }

    /// Copies may end by it.
    pub(crate) fn ends_copies(self) -> bool {
        matches!(self, Self::CrashHost(..) | Self::Resolve(_))
    }
}

impl State {
    /// Copies that run.
    pub(crate) fn running(&self) -> usize {
        let running = |node: &Node| {
            usize::from(node.own == Copy::Running)
                + usize::from(node.incoming.is_some_and(|(_, copy)| copy == Incoming::Running))
        };
        self.nodes.iter().map(running).sum()
    }

    /// One of them is behind another.
    pub(crate) fn runs_stale(&self) -> bool {
        self.nodes.iter().any(|node| {
            let incoming = node
                .incoming
                .is_some_and(|(epoch, copy)| copy == Incoming::Running && self.image_stale[at(epoch)]);
            node.own == Copy::Running && node.stale || incoming
        })
    }

    /// Nothing more has to happen: it is over, or only an operator can go on.
    pub(crate) fn is_end(&self) -> bool {
        self.is_over() || self.needs_operator().is_some()
    }
}

/// Everything that may happen in `state`; [`run`] says which of it does.
pub(crate) fn steps(state: &State, steps: &mut Vec<Step>) {
    let left = &state.left;
    let free = usize::try_from(state.used).is_ok_and(|used| used < EPOCHS);
    if left.attempts > 0 && free {
        steps.extend([Step::Order(0), Step::Order(1)]);
    }
    if left.cancels > 0 && state.used > 0 {
        steps.push(Step::Cancel(state.used));
    }
    for message in state.network.iter() {
        steps.push(Step::Deliver(message));
        if left.losses > 0 {
            steps.push(Step::Lose(message));
        }
        let question = matches!(
            message,
            Message::Prepare(_)
                | Message::Start(..)
                | Message::Commit(_)
                | Message::Ack(_)
                | Message::Abort(_)
        );
        if left.duplicates > 0 && question {
            steps.push(Step::Repeat(message));
        }
    }
    for (n, node) in state.nodes.iter().enumerate() {
        if node.agent {
            if let Some(source) = node.source {
                steps.extend(super::source::steps(&source).iter().map(|step| Step::Source(n, *step)));
            }
            if let Some(target) = node.target {
                steps.extend(super::target::steps(&target).iter().map(|step| Step::Target(n, *step)));
            }
            if node.giving_way.is_some() {
                steps.push(Step::Target(n, TargetStep::GiveWay));
            }
            if left.agent_crashes > 0 {
                steps.push(Step::CrashAgent(n));
                if node.journal.suspect {
                    steps.push(Step::CrashAgentAndTail(n));
                }
            }
            if left.resolves > 0 && state.used > 0 && free {
                steps.push(Step::Resolve(n));
            }
            if state.owed.is_some_and(|(fenced, ..)| usize::from(fenced) == n) {
                steps.push(Step::Readmit(n));
            }
        }
        if node.host && left.host_crashes > 0 {
            steps.extend((0..=node.journal.unsynced()).map(|kept| Step::CrashHost(n, kept)));
        }
        if !node.host {
            steps.push(Step::Boot(n));
        }
        if node.host && !node.agent {
            steps.push(Step::StartAgent(n));
        }
    }
}

/// The state after `step`, or `None` when it cannot happen now or changes nothing.
pub(crate) fn run(state: &State, step: Step, rule: Option<Rule>) -> Option<State> {
    let mut world = World { state: *state, rule };
    world.take(step)?;
    world.tidy();
    (world.state != *state).then_some(world.state)
}

/// A state that a step is changing.
pub(crate) struct World {
    pub(crate) state: State,
    pub(crate) rule: Option<Rule>,
}

impl World {
    pub(crate) fn breaks(&self, rule: Rule) -> bool {
        self.rule == Some(rule)
    }

    pub(crate) fn send(&mut self, message: Message) {
        self.state.network.send(message);
    }

    pub(crate) fn node(&mut self, n: usize) -> &mut Node {
        &mut self.state.nodes[n]
    }

    fn take(&mut self, step: Step) -> Option<()> {
        match step {
            Step::Order(n) => {
                self.state.left.attempts -= 1;
                self.state.used += 1;
                let epoch = self.state.used;
                self.state.from[at(epoch)] = u8::try_from(n).ok()?;
                self.send(Message::Prepare(epoch));
            }
            Step::Cancel(epoch) => {
                self.state.left.cancels -= 1;
                self.send(Message::Cancel(epoch));
            }
            Step::Deliver(message) => {
                self.state.network.take(message);
                self.deliver(message)?;
            }
            Step::Repeat(message) => {
                self.state.left.duplicates -= 1;
                self.deliver(message)?;
                self.send(message);
            }
            Step::Lose(message) => {
                self.state.left.losses -= 1;
                self.state.network.take(message);
            }
            Step::Source(n, step) => self.source_step(n, step)?,
            Step::Target(n, step) => self.target_step(n, step)?,
            Step::CrashAgent(n) => {
                self.state.left.agent_crashes -= 1;
                self.crash_agent(n);
            }
            Step::CrashAgentAndTail(n) => {
                self.state.left.agent_crashes -= 1;
                self.crash_agent(n);
                self.node(n).journal.cut(0);
            }
            Step::CrashHost(n, kept) => {
                self.state.left.host_crashes -= 1;
                self.crash_host(n, kept);
            }
            Step::Boot(n) => self.node(n).host = true,
            Step::StartAgent(n) => self.start_agent(n),
            Step::Resolve(n) => self.resolve(n)?,
            Step::Readmit(n) => {
                let (_, epoch, owner) = self.state.owed?;
                self.ordered(n, epoch, owner, true)?;
                self.state.owed = None;
            }
        }
        Some(())
    }

    /// `None` when the receiver is down, or does not listen now.
    fn deliver(&mut self, message: Message) -> Option<()> {
        let (Message::Prepare(epoch)
        | Message::Start(epoch, _)
        | Message::Cancel(epoch)
        | Message::Open(epoch, _)
        | Message::Prepared(epoch)
        | Message::Switchover(epoch)
        | Message::Ready(epoch)
        | Message::Failed(epoch)
        | Message::Commit(epoch)
        | Message::Abort(epoch)
        | Message::Ack(epoch)
        | Message::Lost(epoch)
        | Message::Stale(epoch, ..)
        | Message::Query(epoch)
        | Message::Answer(epoch, _)
        | Message::Report(epoch, _)) = message;
        let source = self.state.source_of(epoch);
        match message {
            Message::Report(_, answer) => {
                // Image of the coordinator's `merge`: nothing after a resolution, and Committed stays.
                let known = &mut self.state.reported[at(epoch)];
                if !self.state.resolved && *known != Some(Answer::Committed) {
                    *known = Some(answer);
                }
                Some(())
            }
            Message::Prepare(_)
            | Message::Open(..)
            | Message::Switchover(_)
            | Message::Commit(_)
            | Message::Abort(_)
            | Message::Answer(..) => {
                let n = 1 - source;
                if self.node(n).agent { self.target_hears(n, epoch, message) } else { None }
            }
            _ if self.node(source).agent => self.source_hears(source, epoch, message),
            _ => None,
        }
    }

    /// A node that was fenced takes no orders before it was told who owns what.
    pub(crate) fn is_shut_out(&self, n: usize) -> bool {
        self.state.owed.is_some_and(|(fenced, ..)| usize::from(fenced) == n)
    }

    fn crash_agent(&mut self, n: usize) {
        let used = self.state.used;
        for epoch in 1..=used {
            // Its connections end; what was under way to it is gone.
            let inward = if self.state.source_of(epoch) == n {
                [Message::Prepared(epoch), Message::Ready(epoch), Message::Failed(epoch)].to_vec()
            } else {
                let run = self.node(n).run;
                [Message::Open(epoch, run), Message::Switchover(epoch)].to_vec()
            };
            inward.into_iter().for_each(|message| self.state.network.take(message));
        }
        let node = self.node(n);
        node.agent = false;
        (node.source, node.target, node.giving_way) = (None, None, None);
        // Until it is Ready every process of a copy dies with its agent.
        node.incoming.take_if(|(_, copy)| *copy == Incoming::Building);
    }

    fn crash_host(&mut self, n: usize, kept: usize) {
        self.crash_agent(n);
        self.state.crashed = true;
        let node = self.node(n);
        node.host = false;
        (node.own, node.incoming, node.stale) = (Copy::None, None, false);
        node.boot += 1;
        node.journal.cut(kept);
        let entry = node.journal.now;
        for epoch in 1..=self.state.used {
            let open = entry.open.filter(|open| open.epoch == epoch);
            if self.state.source_of(epoch) == n {
                let forgotten = open.is_some_and(|open| open.role == Role::Source && !open.committed);
                if self.state.told[at(epoch)] && forgotten {
                    self.state.broken = Some("a host crash makes the source forget a Commit that it told");
                }
            } else if self.state.acked[at(epoch)] && entry.owned < Some(epoch) {
                self.state.broken = Some("a host crash makes the target forget what it acknowledged");
            }
        }
    }

    /// Image of `Migrations::open` and `recover_all`.
    fn start_agent(&mut self, n: usize) {
        let synced = !self.breaks(Rule::RecommitWithoutSync);
        let node = self.node(n);
        node.agent = true;
        node.run += 1;
        if synced {
            // Opening a journal writes a new one.
            node.journal.sync();
        }
        let Some(open) = node.journal.now.open else { return };
        match open.role {
            Role::Source => {
                let phase = SourcePhase::Recovering;
                node.source = Some(Source { epoch: open.epoch, phase, cancelled: false, synced: false });
            }
            Role::Target => node.target = Some(Target { epoch: open.epoch, serving: Serving::Recovering }),
        }
    }

    /// Image of the coordinator's resolution: fenced, recorded, told to the owner.
    fn resolve(&mut self, n: usize) -> Option<()> {
        let owner = if self.state.source_of(self.state.used) == n { Owner::Source } else { Owner::Target };
        self.state.left.resolves -= 1;
        self.state.used += 1;
        let epoch = self.state.used;
        let fenced = 1 - n;
        self.state.from[at(epoch)] = self.state.from[at(epoch - 1)];
        if self.node(fenced).host {
            let kept = self.node(fenced).journal.unsynced();
            self.crash_host(fenced, kept);
        }
        self.state.resolved = true;
        self.state.owed = Some((u8::try_from(fenced).ok()?, epoch, owner));
        self.ordered(n, epoch, owner, false)
    }

    /// Image of `Migrations::resolve`. `None` when it is refused.
    fn ordered(&mut self, n: usize, epoch: Epoch, owner: Owner, fenced: bool) -> Option<()> {
        let guesses = self.breaks(Rule::FencedGuessesItsSide);
        let node = self.node(n);
        let entry = node.journal.now;
        let resolved = entry.resolved.map(|(_, owner)| owner);
        let (source, target) = (node.source_view(), node.target_view());
        let role = match entry.open {
            Some(open) => open.role,
            None if entry.owned.is_some() => Role::Target,
            None => Role::Source,
        };
        let nothing = fenced && entry.open.is_none() && source.copy == Copy::None && !guesses;
        let act = match role {
            _ if nothing && epoch > source.highest => false,
            Role::Source => match source_on_resolve(&source, epoch, owner, resolved) {
                OnResolveSource::GiveBack | OnResolveSource::Kill => true,
                OnResolveSource::Done => false,
                OnResolveSource::Stale(_) | OnResolveSource::Refuse => return None,
            },
            Role::Target => match target_on_resolve(&target, epoch, owner, resolved) {
                OnResolveTarget::Take | OnResolveTarget::Discard => true,
                OnResolveTarget::Done => false,
                OnResolveTarget::Stale(_) | OnResolveTarget::Refuse => return None,
            },
        };
        node.journal.append_sync(super::state::Record::Resolved(epoch, owner));
        if act && role == Role::Source && owner == Owner::Target && entry.open.is_none() {
            node.own = Copy::None;
        }
        Some(())
    }

    /// Takes messages out that nobody can act on any more, so that states which differ in nothing else are one.
    fn tidy(&mut self) {
        if self.breaks(Rule::EpochUsedTwice) {
            return;
        }
        for message in self.state.network.iter() {
            let idle = match message {
                Message::Start(epoch, _) => {
                    self.state.nodes[self.state.source_of(epoch)].journal.now.highest >= epoch
                }
                Message::Prepared(epoch) | Message::Ready(epoch) | Message::Failed(epoch) => {
                    let node = &self.state.nodes[self.state.source_of(epoch)];
                    let open = node.source.is_some_and(|source| {
                        source.epoch == epoch
                            && matches!(source.phase, SourcePhase::Open | SourcePhase::Frozen)
                    });
                    node.journal.now.highest >= epoch && !open
                }
                Message::Ack(epoch) | Message::Lost(epoch) | Message::Stale(epoch, ..) => {
                    let open = self.state.nodes[self.state.source_of(epoch)].journal.now.open;
                    open.is_none_or(|open| open.epoch != epoch)
                }
                Message::Open(epoch, run) => run != self.state.nodes[1 - self.state.source_of(epoch)].run,
                Message::Switchover(epoch) | Message::Answer(epoch, _) => {
                    let node = &self.state.nodes[1 - self.state.source_of(epoch)];
                    node.agent && node.target.is_none_or(|target| target.epoch != epoch)
                }
                _ => false,
            };
            if idle {
                self.state.network.take(message);
            }
        }
    }
}
