//! What the model knows: two nodes with a journal each, the messages in flight, the coordinator, and what only the
//! checker knows (which copy is behind).

use node_agent::commit::{Answer, Committed, Copy, Epoch, Owner, SourceView, TargetView};

/// Epochs that a run can use, resolutions included.
pub(crate) const EPOCHS: usize = 3;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Role {
    Source,
    Target,
}

/// The journal's records (`journal::Record`), for one container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Record {
    Epoch(Epoch),
    Begin(Epoch, Role),
    /// With the boot in which the copy lives.
    Ready(Epoch, u8),
    Committed(Epoch),
    CommitSeen(Epoch),
    Owned(Epoch),
    Ended(Epoch),
    Resolved(Epoch, Owner),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Open {
    pub(crate) epoch: Epoch,
    pub(crate) role: Role,
    pub(crate) committed: bool,
    pub(crate) ready: Option<u8>,
    pub(crate) seen: bool,
}

/// `journal::Entry` without the names, and without `ended`, which no decision reads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Entry {
    pub(crate) highest: Epoch,
    pub(crate) open: Option<Open>,
    pub(crate) owned: Option<Epoch>,
    pub(crate) resolved: Option<(Epoch, Owner)>,
}

impl Entry {
    /// As `journal::State::apply`; `journal_and_model_agree` compares the two.
    pub(crate) fn apply(&mut self, record: Record) {
        let (Record::Epoch(epoch)
        | Record::Begin(epoch, _)
        | Record::Ready(epoch, _)
        | Record::Committed(epoch)
        | Record::CommitSeen(epoch)
        | Record::Owned(epoch)
        | Record::Ended(epoch)
        | Record::Resolved(epoch, _)) = record;
        let session = self.open.as_mut().filter(|open| open.epoch == epoch);
        match record {
            Record::Ready(_, boot) => return session.into_iter().for_each(|open| open.ready = Some(boot)),
            Record::Committed(_) => return session.into_iter().for_each(|open| open.committed = true),
            Record::CommitSeen(_) => return session.into_iter().for_each(|open| open.seen = true),
            Record::Epoch(_) => {}
            Record::Begin(_, role) => {
                self.open = Some(Open { epoch, role, committed: false, ready: None, seen: false });
            }
            Record::Owned(_) => {
                self.owned = self.owned.max(Some(epoch));
                self.open.take_if(|open| open.epoch <= epoch);
            }
            Record::Ended(_) => {
                self.open.take_if(|open| open.epoch == epoch);
            }
            Record::Resolved(_, owner) => self.resolved = Some((epoch, owner)),
        }
        self.highest = self.highest.max(epoch);
    }
}

/// A journal whose last records may not be on disk yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Journal {
    /// What the agent reads.
    pub(crate) now: Entry,
    /// What a host crash leaves at least.
    pub(crate) disk: Entry,
    /// Appended since; a host crash leaves any first part of them.
    pub(crate) tail: [Option<Record>; 4],
    /// fsync failed: the page cache may drop the tail with the agent.
    pub(crate) suspect: bool,
}

impl Journal {
    pub(crate) fn append(&mut self, record: Record) {
        self.now.apply(record);
        let free =
            self.tail.iter_mut().find(|slot| slot.is_none()).expect("more unsynced records than modelled");
        *free = Some(record);
    }

    pub(crate) fn sync(&mut self) {
        *self = Self { now: self.now, disk: self.now, ..Self::default() };
    }

    pub(crate) fn append_sync(&mut self, record: Record) {
        self.now.apply(record);
        self.sync();
    }

    /// Only `kept` of the unsynced records are found again.
    pub(crate) fn cut(&mut self, kept: usize) {
        self.now = self.disk;
        for record in self.tail.into_iter().take(kept).flatten() {
            self.now.apply(record);
        }
        self.sync();
    }

    pub(crate) fn unsynced(&self) -> usize {
        self.tail.iter().flatten().count()
    }
}

/// Where a source's thread stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum SourcePhase {
    /// BEGIN is on disk, the container runs.
    Open,
    /// It stands frozen, the image is on its way.
    Frozen,
    /// The target said Ready.
    Ready,
    /// Given back; the record is not ended.
    Undoing,
    /// COMMITTED is written.
    Appended,
    /// COMMITTED is synced; Commit is told until it is answered.
    Telling,
    /// The target said Lost: waits for an operator.
    Stays,
    /// The copy is dead; the record is not ended.
    Killed,
    /// Late frames are relayed.
    Relaying,
    /// After a restart, before the journal's demand was looked at.
    Recovering,
    /// Committed, and the copy here died.
    WithoutCopy,
    /// Resolved for the source: ended on disk, not given back yet.
    Resolved,
}

/// `SourceHandle` and its thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Source {
    pub(crate) epoch: Epoch,
    pub(crate) phase: SourcePhase,
    pub(crate) cancelled: bool,
    pub(crate) synced: bool,
}

/// Where a target's thread stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Serving {
    /// Announced by Prepare; no session.
    Expected,
    /// A session builds the copy.
    Building,
    /// READY is written, not told.
    Recorded,
    /// Ready was told.
    Waiting,
    /// COMMIT_SEEN is written.
    Taking,
    /// Thawed, and still an incoming copy.
    Thawed,
    /// The runtime has it as its own container.
    Adopted,
    /// The copy is dead; the record is not ended.
    Discarding,
    /// After a restart, before the journal's demand was looked at.
    Recovering,
}

/// `TargetHandle` and its thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Target {
    pub(crate) epoch: Epoch,
    pub(crate) serving: Serving,
}

/// An incoming copy's processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Incoming {
    Building,
    /// Complete and held by its frozen cgroup alone.
    Complete,
    Running,
}

/// A host with its agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Node {
    pub(crate) host: bool,
    pub(crate) agent: bool,
    pub(crate) boot: u8,
    /// The agent's incarnation.
    pub(crate) run: u8,
    pub(crate) journal: Journal,
    /// The container itself, as the runtime knows it.
    pub(crate) own: Copy,
    pub(crate) incoming: Option<(Epoch, Incoming)>,
    pub(crate) source: Option<Source>,
    pub(crate) target: Option<Target>,
    /// A Prepare that was let through and waits until an older session has given way.
    pub(crate) giving_way: Option<Epoch>,
    /// For the checker: another copy has run since this one stood still.
    pub(crate) stale: bool,
}

impl Node {
    pub(crate) fn new(own: Copy) -> Self {
        Self {
            host: true,
            agent: true,
            boot: 0,
            run: 0,
            journal: Journal::default(),
            own,
            incoming: None,
            source: None,
            target: None,
            giving_way: None,
            stale: false,
        }
    }

    fn serves(&self) -> bool {
        self.target.is_some_and(|target| target.serving != Serving::Expected)
    }

    /// Image of `Agent::source_view`.
    pub(crate) fn source_view(&self) -> SourceView {
        let entry = &self.journal.now;
        let open = entry.open.filter(|open| open.role == Role::Source);
        SourceView {
            highest: entry.highest,
            open: open.map(|open| open.epoch),
            committed: open.filter(|open| open.committed).map(|open| Committed {
                epoch: open.epoch,
                synced: self.source.is_some_and(|source| source.epoch == open.epoch && source.synced),
            }),
            relaying: self.source.is_some_and(|source| source.phase == SourcePhase::Relaying),
            incoming: self.serves() || entry.open.is_some_and(|open| open.role == Role::Target),
            copy: self.own,
        }
    }

    /// Image of `Agent::target_view`.
    pub(crate) fn target_view(&self) -> TargetView {
        let entry = &self.journal.now;
        let open = entry.open.filter(|open| open.role == Role::Target);
        TargetView {
            highest: entry.highest,
            expected: self.target.map(|target| target.epoch).or(open.map(|open| open.epoch)),
            ready: open.filter(|open| open.ready == Some(self.boot)).map(|open| open.epoch),
            seen: open.filter(|open| open.seen).map(|open| open.epoch),
            owned: entry.owned,
            leaving: entry.open.is_some_and(|open| open.role == Role::Source) || self.source.is_some(),
            copy: if self.serves() { Copy::Frozen } else { self.own },
        }
    }

    /// Image of `Agent::resolution`.
    pub(crate) fn resolution(&self, epoch: Epoch) -> Option<Owner> {
        self.journal.now.resolved.filter(|(at, _)| *at > epoch).map(|(_, owner)| owner)
    }
}

/// What is under way. Sent twice before it is delivered, it is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Message {
    /// Orders. The answer to Prepare becomes the Start with the incarnation in it.
    Prepare(Epoch),
    Start(Epoch, u8),
    Cancel(Epoch),
    /// The session's connection: Hello to Spec as one, bound to the target's incarnation.
    Open(Epoch, u8),
    Prepared(Epoch),
    Switchover(Epoch),
    Ready(Epoch),
    Failed(Epoch),
    /// On the session's connection or on one of their own.
    Commit(Epoch),
    Abort(Epoch),
    Ack(Epoch),
    Lost(Epoch),
    Stale(Epoch, Epoch, Option<Owner>),
    Query(Epoch),
    Answer(Epoch, Answer),
    /// What a source publishes, on its way to the coordinator.
    Report(Epoch, Answer),
}

/// Every message has a bit.
const KINDS: u32 = 34;
const ANSWERS: [Answer; 4] = [Answer::Committed, Answer::Undecided, Answer::Aborted, Answer::Unknown];

impl Message {
    fn kind(self) -> (u32, Epoch) {
        let answer = |answer| ANSWERS.iter().position(|known| *known == answer).map_or(0, |at| at as u32);
        match self {
            Self::Prepare(e) => (0, e),
            Self::Cancel(e) => (1, e),
            Self::Prepared(e) => (2, e),
            Self::Switchover(e) => (3, e),
            Self::Ready(e) => (4, e),
            Self::Failed(e) => (5, e),
            Self::Commit(e) => (6, e),
            Self::Abort(e) => (7, e),
            Self::Ack(e) => (8, e),
            Self::Lost(e) => (9, e),
            Self::Query(e) => (10, e),
            Self::Start(e, run) => (11 + u32::from(run), e),
            Self::Open(e, run) => (16 + u32::from(run), e),
            Self::Answer(e, what) => (21 + answer(what), e),
            Self::Report(e, what) => (25 + answer(what), e),
            Self::Stale(e, newer, owner) => (29 + 2 * (newer as u32 - 2) + u32::from(owner.is_some()), e),
        }
    }

    fn of(kind: u32, e: Epoch) -> Self {
        match kind {
            0 => Self::Prepare(e),
            1 => Self::Cancel(e),
            2 => Self::Prepared(e),
            3 => Self::Switchover(e),
            4 => Self::Ready(e),
            5 => Self::Failed(e),
            6 => Self::Commit(e),
            7 => Self::Abort(e),
            8 => Self::Ack(e),
            9 => Self::Lost(e),
            10 => Self::Query(e),
            11..16 => Self::Start(e, (kind - 11) as u8),
            16..21 => Self::Open(e, (kind - 16) as u8),
            21..25 => Self::Answer(e, ANSWERS[kind as usize - 21]),
            25..29 => Self::Report(e, ANSWERS[kind as usize - 25]),
            _ => {
                let owner = kind.is_multiple_of(2).then_some(Owner::Target);
                Self::Stale(e, Epoch::from((kind - 29) / 2) + 2, owner)
            }
        }
    }
}

/// Messages in flight, in no order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Network(u128);

impl Network {
    fn bit(message: Message) -> u128 {
        let (kind, epoch) = message.kind();
        assert!((1..=EPOCHS as u64).contains(&epoch), "{message:?}");
        1 << (kind * EPOCHS as u32 + epoch as u32 - 1)
    }

    pub(crate) fn send(&mut self, message: Message) {
        self.0 |= Self::bit(message);
    }

    pub(crate) fn take(&mut self, message: Message) {
        self.0 &= !Self::bit(message);
    }

    pub(crate) fn iter(self) -> impl Iterator<Item = Message> {
        let mut rest = self.0;
        std::iter::from_fn(move || {
            let at = (rest != 0).then(|| rest.trailing_zeros())?;
            rest &= rest - 1;
            Some(Message::of(at / EPOCHS as u32, Epoch::from(at % EPOCHS as u32) + 1))
        })
    }
}

const _: () = assert!(KINDS * (EPOCHS as u32) < 128);

/// How often each may still happen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Bounds {
    pub(crate) attempts: u8,
    pub(crate) agent_crashes: u8,
    pub(crate) host_crashes: u8,
    pub(crate) losses: u8,
    pub(crate) duplicates: u8,
    pub(crate) sync_errors: u8,
    pub(crate) cancels: u8,
    pub(crate) resolves: u8,
}

/// Everything at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct State {
    pub(crate) nodes: [Node; 2],
    pub(crate) network: Network,
    pub(crate) left: Bounds,
    /// The highest epoch that the coordinator has used, and each attempt's source.
    pub(crate) used: Epoch,
    pub(crate) from: [u8; EPOCHS],
    /// What the source of each attempt has reported.
    pub(crate) reported: [Option<Answer>; EPOCHS],
    /// A fenced node that must be told (epoch, owner) before it is admitted.
    pub(crate) owed: Option<(u8, Epoch, Owner)>,
    /// For the checker: an operator has spoken; a host has crashed.
    pub(crate) resolved: bool,
    pub(crate) crashed: bool,
    /// For the checker, by epoch: the source ran on after the image was taken, told Commit, the target told Ack.
    pub(crate) image_stale: [bool; EPOCHS],
    pub(crate) told: [bool; EPOCHS],
    pub(crate) acked: [bool; EPOCHS],
    /// For the checker: a rule that a single step broke.
    pub(crate) broken: Option<&'static str>,
}

pub(crate) fn at(epoch: Epoch) -> usize {
    epoch as usize - 1
}

impl State {
    /// The container runs on node 0.
    pub(crate) fn new(left: Bounds) -> Self {
        Self {
            nodes: [Node::new(Copy::Running), Node::new(Copy::None)],
            network: Network::default(),
            left,
            used: 0,
            from: [0; EPOCHS],
            reported: [None; EPOCHS],
            owed: None,
            resolved: false,
            crashed: false,
            image_stale: [false; EPOCHS],
            told: [false; EPOCHS],
            acked: [false; EPOCHS],
            broken: None,
        }
    }

    pub(crate) fn source_of(&self, epoch: Epoch) -> usize {
        usize::from(self.from[at(epoch)])
    }

    /// Node `n` has a copy that is the container's newest state and runs or can be thawed.
    fn holds(&self, n: usize) -> bool {
        let node = &self.nodes[n];
        let complete = |(epoch, copy)| copy != Incoming::Building && !self.image_stale[at(epoch)];
        node.own != Copy::None && !node.stale || node.incoming.is_some_and(complete)
    }

    pub(crate) fn lives(&self) -> bool {
        self.holds(0) || self.holds(1)
    }

    /// No thread has anything to do.
    fn idle(&self, n: usize) -> bool {
        let node = &self.nodes[n];
        let free = node.target.is_none_or(|target| target.serving == Serving::Expected);
        node.agent
            && node.journal.now.open.is_none()
            && node.source.is_none()
            && free
            && node.giving_way.is_none()
    }

    /// It runs in one place, and nothing is left of any attempt; or all copies died with their hosts.
    pub(crate) fn is_over(&self) -> bool {
        let [a, b] = &self.nodes;
        let runs = (a.own == Copy::Running) != (b.own == Copy::Running);
        let none = a.own == Copy::None && b.own == Copy::None && self.crashed;
        let frozen = a.own == Copy::Frozen || b.own == Copy::Frozen;
        let left = a.incoming.is_some() || b.incoming.is_some();
        self.idle(0) && self.idle(1) && (runs || none) && !frozen && !left && self.owed.is_none()
    }

    /// The node that an operator must name: the other host's copy is gone, and only it has one.
    pub(crate) fn needs_operator(&self) -> Option<usize> {
        let waits = |n: usize| {
            let node = &self.nodes[n];
            let source = node.source.is_some_and(|source| source.phase == SourcePhase::Stays);
            let target = node.target.is_some_and(|target| target.serving == Serving::Waiting);
            self.idle(1 - n) && (source || target) && self.nodes[1 - n].own == Copy::None
        };
        if self.crashed { (0..2).find(|n| waits(*n)) } else { None }
    }
}
