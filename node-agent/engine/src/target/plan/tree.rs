//! The order in which processes are made, so that parents, sessions and process groups come out right.
//!
//! A process gets its session from its maker and can only leave it as leader of a new one (setsid(2)), so
//! a member of a session must be made by another member. Its parent is its maker, or its maker's parent
//! (CLONE_PARENT), or the container's root process when its maker exits. A session or group whose leader is
//! gone is made by a helper with the leader's pid that exits again: the number stays taken as long as the
//! session or group has members.
//!
//! A process can be born into a pid namespace below its maker's, and sees only what has a number in its own: the first
//! process of one is in its group before it is made, because nobody inside can enter a group that has no number there.
//!
//! A descriptor table and directories are shared with one's maker alone, and left one by one (unshare(2)). Of those that
//! share the first one has them for itself, and the others are made by one that has them already.

mod planner;
mod spaces;
mod state;

use std::collections::{BTreeMap, BTreeSet};

use image::shape::{ProcessShape, Shape, Shared};
use image::{Pid, Refusal, Subject};

use planner::Planner;
pub use spaces::Place;
pub(crate) use spaces::Spaces;
use state::State;

/// SIGCHLD: the exit signal of helpers, and the one that CLONE_PARENT hands on.
const SIGCHLD: i32 = 17;
/// Temporary helpers count down from here; every pid namespace allows at least this pid.
const HIGHEST_HELPER: Pid = 32_000;

/// A process that exists already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its pid.
    pub pid: Pid,
    /// Its parent; 0 for the root.
    pub ppid: Pid,
    /// Its process group.
    pub pgid: Pid,
    /// Its session.
    pub sid: Pid,
    /// What its parent gets at its exit.
    pub exit_signal: i32,
    /// Its controlling terminal.
    pub tty: Option<u32>,
    /// Its pid namespace.
    pub place: Place,
    /// What it may share.
    pub tables: Tables,
}

/// What processes can share, each named by the process that had it first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tables {
    /// The descriptor table.
    pub files: Pid,
    /// The directories.
    pub directories: Pid,
}

impl Tables {
    /// Those of a process that shares nothing.
    #[must_use]
    pub fn own(pid: Pid) -> Self {
        Self { files: pid, directories: pid }
    }

    fn of(process: &ProcessShape) -> Self {
        let or_own = |first: Pid| if first == 0 { process.pid } else { first };
        Self { files: or_own(process.shared.files), directories: or_own(process.shared.directories) }
    }

    /// Whether one that has these can make process `pid` with what it wants.
    fn give(&self, wanted: &Self, pid: Pid) -> bool {
        let fits = |have: Pid, want: Pid| want == pid || have == want;
        fits(self.files, wanted.files) && fits(self.directories, wanted.directories)
    }

    /// What process `pid` shares with its maker.
    fn share(&self, pid: Pid) -> Share {
        Share { files: self.files != pid, directories: self.directories != pid }
    }
}

/// Of a descriptor table and directories those that are meant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Share {
    /// CLONE_FILES.
    pub files: bool,
    /// CLONE_FS.
    pub directories: bool,
}

impl Share {
    /// Neither.
    pub const NOTHING: Self = Self { files: false, directories: false };

    /// The flags of clone(2) and unshare(2).
    pub(crate) fn flags(self) -> i32 {
        let flag = |set: bool, flag: i32| if set { flag } else { 0 };
        flag(self.files, libc::CLONE_FILES) | flag(self.directories, libc::CLONE_FS)
    }
}

/// One step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TreeStep {
    /// `maker` calls clone3(2).
    Clone {
        /// Who calls.
        maker: Pid,
        /// The new pid.
        pid: Pid,
        /// CLONE_PARENT: the new process becomes a child of the maker's parent.
        sibling: bool,
        /// Exit signal (without meaning for a sibling, which has its maker's).
        exit_signal: i32,
        /// Its pid namespace: the maker's, or one below it.
        place: Place,
        /// What it shares with its maker.
        share: Share,
    },
    /// The process calls unshare(2).
    Unshare {
        /// Who calls.
        pid: Pid,
        /// What it shares no more.
        share: Share,
    },
    /// The process calls setsid(2).
    SetSid(Pid),
    /// The process calls setpgid(2) for itself.
    SetPgid {
        /// Who calls.
        pid: Pid,
        /// The group.
        pgid: Pid,
    },
    /// The process, a session's leader without one, takes a controlling terminal.
    TakeTty {
        /// Who calls.
        pid: Pid,
        /// The terminal's number.
        tty: u32,
    },
    /// The process, no session's leader, gives its controlling terminal up.
    DropTty {
        /// Who calls.
        pid: Pid,
        /// The terminal's number.
        tty: u32,
    },
    /// The process is killed and its parent waits for it; its children go to the root process.
    End {
        /// Who ends.
        pid: Pid,
        /// Its parent.
        parent: Pid,
    },
}

/// Plans the way from the processes that exist to those of `wanted`.
///
/// `existing` begins with the root process. A session or group that the root process of `wanted` is in
/// and does not lead lies outside the container; it stands for the one that the existing root is in.
///
/// # Errors
/// A [`Refusal`] that names the process whose parent, session and group cannot be had together.
pub fn plan(existing: &[Node], wanted: &Shape) -> Result<Vec<TreeStep>, Refusal> {
    let Some(root) = existing.first() else {
        return Err(refusal(0, "there is no root process to begin with"));
    };
    let wanted = Wanted::new(root, wanted)?;
    let keep = kept(existing, &wanted);
    Planner::new(existing, &wanted, &keep).run().or_else(|first| {
        // What exists may stand in the way; what the root process makes anew may not.
        let only_root = BTreeSet::from([root.pid]);
        if keep == only_root {
            return Err(first);
        }
        Planner::new(existing, &wanted, &only_root).run()
    })
}

/// The processes that `steps` leave, in the order of their pids, when they begin with `existing`.
#[must_use]
pub fn outcome(existing: &[Node], steps: &[TreeStep]) -> Vec<Node> {
    let mut state = State::new(existing);
    for step in steps {
        let done = state.apply(*step);
        debug_assert!(done, "{step:?} is against the kernel's rules");
    }
    state.nodes.into_values().collect()
}

/// Whether processes that share something can be made so.
///
/// # Errors
/// A [`Refusal`] that names one that cannot.
pub(crate) fn shares(shape: &Shape) -> Result<(), Refusal> {
    let Some(first) = shape.processes.first() else { return Ok(()) };
    if shape.processes.iter().all(|process| process.shared == Shared::default()) {
        return Ok(());
    }
    let (pid, pgid, sid) = (first.pid, first.pgid, first.sid);
    let (exit_signal, tty) = (first.exit_signal, first.tty);
    let (place, tables) = (Place::default(), Tables::own(pid));
    let root = Node { pid, ppid: 0, pgid, sid, exit_signal, tty, place, tables };
    match plan(&[root], shape) {
        // The others are found where it is made.
        Err(refusal) if refusal.reason == NO_SHARER => Err(refusal),
        _ => Ok(()),
    }
}

/// Why a process cannot be made that shares something.
const NO_SHARER: &str = "it shares its descriptor table (CLONE_FILES) or its directories (CLONE_FS) with a process that can \
    neither have made it nor be its brother";

fn no_sharer(pid: Pid) -> Refusal {
    Refusal { way_out: "end one of them before the move".to_owned(), ..refusal(pid, NO_SHARER) }
}

fn refusal(pid: Pid, reason: &str) -> Refusal {
    Refusal {
        pid,
        subject: Subject::Process,
        reason: reason.to_owned(),
        way_out: "restart the process so that it is in the session and group of its parent".to_owned(),
    }
}

/// The wanted processes, with sessions and groups outside the container replaced by the root's own.
struct Wanted {
    root: Pid,
    order: Vec<Node>,
    by_pid: BTreeMap<Pid, Node>,
    spaces: Spaces,
}

impl Wanted {
    fn new(root: &Node, shape: &Shape) -> Result<Self, Refusal> {
        let Some(first) = shape.processes.first() else {
            return Err(refusal(0, "the shape has no process"));
        };
        if first.pid != root.pid {
            return Err(refusal(
                first.pid,
                "it is the root of the tree, but another pid was prepared for it",
            ));
        }
        // In a pid namespace of its own, what lies outside reads as 0. A tree that shared its namespace
        // shows the number of its maker's session.
        let numbered = first.sid != first.pid && first.sid != 0;
        let outside_sid = (first.sid != first.pid).then_some(first.sid);
        let outside_pgid = if numbered && shape.processes.iter().all(|p| p.pid != first.pgid) {
            Some(first.pgid)
        } else {
            (first.pgid == 0).then_some(0)
        };
        let node = |p: &ProcessShape| Node {
            pid: p.pid,
            ppid: if p.pid == root.pid { 0 } else { p.ppid },
            pgid: if Some(p.pgid) == outside_pgid { root.pgid } else { p.pgid },
            sid: if Some(p.sid) == outside_sid { root.sid } else { p.sid },
            exit_signal: p.exit_signal,
            tty: p.tty,
            place: Place::of(&p.levels),
            tables: Tables::of(p),
        };
        let order: Vec<Node> = shape.processes.iter().map(node).collect();
        let by_pid: BTreeMap<Pid, Node> = order.iter().map(|n| (n.pid, *n)).collect();
        if by_pid.len() != order.len() {
            return Err(refusal(0, "two processes of the shape have one pid"));
        }
        if let Some(orphan) = order.iter().skip(1).find(|n| !by_pid.contains_key(&n.ppid)) {
            return Err(refusal(orphan.pid, "its parent is not in the shape"));
        }
        Ok(Self { root: root.pid, order, by_pid, spaces: Spaces::of(shape) })
    }

    /// Children of `parent` that stay in a session which neither they nor their parent lead.
    fn early_children(&self, parent: Pid) -> impl Iterator<Item = &Node> {
        self.order
            .iter()
            .filter(move |c| c.ppid == parent && c.sid != c.pid && c.sid != parent && c.pid != parent)
    }
}

/// Which existing processes can stay: same parent once the others are gone, same session or able to make
/// their own.
fn kept(existing: &[Node], wanted: &Wanted) -> BTreeSet<Pid> {
    let root = wanted.root;
    let mut keep: BTreeSet<Pid> = existing.iter().map(|n| n.pid).collect();
    loop {
        let before = keep.len();
        let kept = |pid: Pid| existing.iter().find(|node| node.pid == pid && keep.contains(&pid));
        let lost: Vec<Place> = (existing.iter())
            .filter(|node| node.place.is_init() && kept(node.pid).is_none())
            .map(|node| node.place)
            .collect();
        for node in existing.iter().skip(1) {
            // With its first process a namespace ends.
            let ended = lost.iter().any(|init| {
                init.space == node.place.space || wanted.spaces.is_within(node.place.space, init.space)
            });
            let fits = !ended
                && wanted.by_pid.get(&node.pid).is_some_and(|want| {
                    let parent =
                        if keep.contains(&node.ppid) { node.ppid } else { reaper(existing, node, root) };
                    let session = want.sid == node.sid
                        || (want.sid == node.pid && node.pgid != node.pid && node.sid != node.pid);
                    // The number of a session whose leader is to be made again must become free.
                    let free = keep.contains(&node.sid) || !wanted.by_pid.contains_key(&node.sid);
                    let will_lead = want.sid == node.pid;
                    // A leader can take a terminal, any other can give its own up, setsid(2) takes it away.
                    let tty = want.tty == node.tty
                        || (will_lead && (node.tty.is_none() || node.sid != node.pid))
                        || (!will_lead && want.tty.is_none());
                    // It can leave what it shares, and share with nobody who is there already.
                    let tables = |of: fn(&Tables) -> Pid| {
                        of(&want.tables) == of(&node.tables) || of(&want.tables) == node.pid
                    };
                    want.place == node.place
                        && tables(|tables| tables.files)
                        && tables(|tables| tables.directories)
                        && parent == want.ppid
                        && session
                        && free
                        && tty
                        && want.exit_signal == node.exit_signal
                });
            if !fits {
                keep.remove(&node.pid);
            }
        }
        if keep.len() == before {
            return keep;
        }
    }
}

/// Who a process falls to when its parent ends: the first process of the parent's pid namespace.
fn reaper(existing: &[Node], node: &Node, root: Pid) -> Pid {
    let space = existing.iter().find(|other| other.pid == node.ppid).map_or(0, |parent| parent.place.space);
    let init = existing.iter().find(|other| other.place.space == space && other.place.is_init());
    init.map_or(root, |init| init.pid)
}

#[cfg(test)]
mod tests;
