//! The order in which processes are made, so that parents, sessions and process groups come out right.
//!
//! A process gets its session from its maker and can only leave it as leader of a new one (setsid(2)), so
//! a member of a session must be made by another member. Its parent is its maker, or its maker's parent
//! (CLONE_PARENT), or the container's root process when its maker exits. A session or group whose leader is
//! gone is made by a helper with the leader's pid that exits again: the number stays taken as long as the
//! session or group has members.

use std::collections::{BTreeMap, BTreeSet};

use image::shape::{ProcessShape, Shape};
use image::{Pid, Refusal, Subject};

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
        };
        let order: Vec<Node> = shape.processes.iter().map(node).collect();
        let by_pid: BTreeMap<Pid, Node> = order.iter().map(|n| (n.pid, *n)).collect();
        if by_pid.len() != order.len() {
            return Err(refusal(0, "two processes of the shape have one pid"));
        }
        if let Some(orphan) = order.iter().skip(1).find(|n| !by_pid.contains_key(&n.ppid)) {
            return Err(refusal(orphan.pid, "its parent is not in the shape"));
        }
        Ok(Self { root: root.pid, order, by_pid })
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
        for node in existing.iter().skip(1) {
            let fits = wanted.by_pid.get(&node.pid).is_some_and(|want| {
                let parent = if keep.contains(&node.ppid) { node.ppid } else { root };
                let session = want.sid == node.sid
                    || (want.sid == node.pid && node.pgid != node.pid && node.sid != node.pid);
                // The number of a session whose leader is to be made again must become free.
                let free = keep.contains(&node.sid) || !wanted.by_pid.contains_key(&node.sid);
                let will_lead = want.sid == node.pid;
                // A leader can take a terminal, any other can give its own up, setsid(2) takes it away.
                let tty = want.tty == node.tty
                    || (will_lead && (node.tty.is_none() || node.sid != node.pid))
                    || (!will_lead && want.tty.is_none());
                parent == want.ppid && session && free && tty && want.exit_signal == node.exit_signal
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

/// Who exists at one moment of the plan.
struct State {
    root: Pid,
    nodes: BTreeMap<Pid, Node>,
}

impl State {
    fn new(existing: &[Node]) -> Self {
        Self {
            root: existing.first().map_or(0, |n| n.pid),
            nodes: existing.iter().map(|n| (n.pid, *n)).collect(),
        }
    }

    /// True when the number is a process's, or still a session's or a group's: clone3(2) answers EEXIST.
    fn in_use(&self, pid: Pid) -> bool {
        self.nodes.values().any(|n| n.pid == pid || n.sid == pid || n.pgid == pid)
    }

    /// Carries one step out under the kernel's rules; false when the kernel would refuse it.
    fn apply(&mut self, step: TreeStep) -> bool {
        match step {
            TreeStep::Clone { maker, pid, sibling, exit_signal } => {
                let Some(m) = self.nodes.get(&maker).copied() else { return false };
                if self.in_use(pid) || (sibling && maker == self.root) {
                    return false;
                }
                let node =
                    if sibling { Node { pid, ..m } } else { Node { pid, ppid: maker, exit_signal, ..m } };
                self.nodes.insert(pid, node);
                true
            }
            TreeStep::SetSid(pid) => {
                if self.nodes.values().any(|n| n.pgid == pid) {
                    return false;
                }
                self.nodes.get_mut(&pid).map(|n| (n.sid, n.pgid, n.tty) = (pid, pid, None)).is_some()
            }
            TreeStep::SetPgid { pid, pgid } => {
                let Some(n) = self.nodes.get(&pid).copied() else { return false };
                let joins = pgid != pid && !self.nodes.values().any(|o| o.pgid == pgid && o.sid == n.sid);
                if pgid == 0 || n.sid == pid || joins {
                    return false;
                }
                self.nodes.get_mut(&pid).map(|n| n.pgid = pgid).is_some()
            }
            TreeStep::TakeTty { pid, tty } => {
                if self.nodes.values().any(|n| n.tty == Some(tty)) {
                    return false;
                }
                let leader = self.nodes.get_mut(&pid).filter(|n| n.sid == pid && n.tty.is_none());
                leader.map(|n| n.tty = Some(tty)).is_some()
            }
            TreeStep::DropTty { pid, tty } => {
                let member = self.nodes.get_mut(&pid).filter(|n| n.sid != pid && n.tty == Some(tty));
                member.map(|n| n.tty = None).is_some()
            }
            TreeStep::End { pid, parent } => {
                if self.nodes.get(&pid).is_none_or(|n| n.ppid != parent) {
                    return false;
                }
                self.nodes.remove(&pid);
                // With its leader a session loses its terminal.
                self.nodes.values_mut().filter(|n| n.sid == pid).for_each(|n| n.tty = None);
                for child in self.nodes.values_mut().filter(|c| c.ppid == pid) {
                    child.ppid = self.root;
                    child.exit_signal = SIGCHLD;
                }
                true
            }
        }
    }
}

struct Planner<'a> {
    wanted: &'a Wanted,
    keep: &'a BTreeSet<Pid>,
    state: State,
    steps: Vec<TreeStep>,
    helpers: Vec<Pid>,
    next_helper: Pid,
}

impl<'a> Planner<'a> {
    fn new(existing: &[Node], wanted: &'a Wanted, keep: &'a BTreeSet<Pid>) -> Self {
        Self {
            wanted,
            keep,
            state: State::new(existing),
            steps: Vec::new(),
            helpers: Vec::new(),
            next_helper: HIGHEST_HELPER,
        }
    }

    fn run(mut self) -> Result<Vec<TreeStep>, Refusal> {
        let gone: Vec<Pid> = self.state.nodes.keys().copied().filter(|p| !self.keep.contains(p)).collect();
        for pid in gone {
            self.end(pid)?;
        }
        let wanted = self.wanted;
        // So must the number of a group whose leader is to be made again.
        let in_the_way: Vec<Pid> = (self.state.nodes.values())
            .filter(|n| wanted.by_pid.contains_key(&n.pgid) && !self.state.nodes.contains_key(&n.pgid))
            .map(|n| n.pid)
            .collect();
        for pid in in_the_way {
            self.push(TreeStep::SetPgid { pid, pgid: pid })?;
        }
        for want in &wanted.order {
            if self.sid(want.pid) == Some(want.pid) {
                self.take_tty(want)?;
            }
        }
        for want in &wanted.order {
            self.make(want)?;
        }
        for want in &wanted.order {
            self.group(want)?;
        }
        for want in wanted.order.iter().filter(|want| want.tty.is_none() && want.sid != want.pid) {
            if let Some(tty) = self.state.nodes.get(&want.pid).and_then(|n| n.tty) {
                self.push(TreeStep::DropTty { pid: want.pid, tty })?;
            }
        }
        for helper in std::mem::take(&mut self.helpers).into_iter().rev() {
            self.end(helper)?;
        }
        for want in &wanted.order {
            let have = self.state.nodes.get(&want.pid);
            if have != Some(want) {
                return Err(refusal(want.pid, "its parent, session and group cannot be had together"));
            }
        }
        Ok(self.steps)
    }

    fn push(&mut self, step: TreeStep) -> Result<(), Refusal> {
        if !self.state.apply(step) {
            let (TreeStep::Clone { pid, .. }
            | TreeStep::SetSid(pid)
            | TreeStep::SetPgid { pid, .. }
            | TreeStep::TakeTty { pid, .. }
            | TreeStep::DropTty { pid, .. }
            | TreeStep::End { pid, .. }) = step;
            return Err(refusal(pid, "its number, session or group is in another's way"));
        }
        self.steps.push(step);
        Ok(())
    }

    fn end(&mut self, pid: Pid) -> Result<(), Refusal> {
        let parent = self.state.nodes.get(&pid).map_or(self.wanted.root, |n| n.ppid);
        self.push(TreeStep::End { pid, parent })
    }

    fn sid(&self, pid: Pid) -> Option<Pid> {
        self.state.nodes.get(&pid).map(|n| n.sid)
    }

    /// Makes one process, in its session. Its children that must be born before its setsid(2) come along.
    fn make(&mut self, want: &Node) -> Result<(), Refusal> {
        let leader = want.sid == want.pid;
        if !self.state.nodes.contains_key(&want.pid) {
            if leader {
                self.birth_of_leader(want)?;
            } else {
                self.birth(want, want.sid)?;
            }
        }
        if leader && self.sid(want.pid) != Some(want.pid) {
            let wanted = self.wanted;
            for child in wanted.early_children(want.pid) {
                // Children of another session than ours find their maker elsewhere, later.
                if self.sid(want.pid) == Some(child.sid) {
                    self.make(child)?;
                }
            }
            self.push(TreeStep::SetSid(want.pid))?;
            // Before it has children that are to have it too.
            self.take_tty(want)?;
        }
        Ok(())
    }

    /// A leader's controlling terminal, when it has none yet.
    fn take_tty(&mut self, want: &Node) -> Result<(), Refusal> {
        match (want.tty, self.state.nodes.get(&want.pid)) {
            (Some(tty), Some(have)) if have.tty.is_none() => {
                self.push(TreeStep::TakeTty { pid: want.pid, tty })
            }
            _ => Ok(()),
        }
    }

    /// A future session leader is born into the session that its early children need, if any has one.
    fn birth_of_leader(&mut self, want: &Node) -> Result<(), Refusal> {
        let wanted = self.wanted;
        for child in wanted.early_children(want.pid) {
            if self.can_be_born(want.ppid, child.sid) {
                return self.birth(want, child.sid);
            }
        }
        self.push(TreeStep::Clone {
            maker: want.ppid,
            pid: want.pid,
            sibling: false,
            exit_signal: want.exit_signal,
        })?;
        Ok(())
    }

    /// Whether a child of `parent` could be born into `session` as things stand.
    fn can_be_born(&self, parent: Pid, session: Pid) -> bool {
        let brother = |n: &Node| n.ppid == parent && n.sid == session && n.pid != self.wanted.root;
        self.sid(parent) == Some(session) || self.state.nodes.values().any(brother)
    }

    /// Makes `want` a child of its parent, born into `session`.
    fn birth(&mut self, want: &Node, session: Pid) -> Result<(), Refusal> {
        let (pid, parent, exit_signal) = (want.pid, want.ppid, want.exit_signal);
        if self.sid(parent) == Some(session) {
            self.push(TreeStep::Clone { maker: parent, pid, sibling: false, exit_signal })?;
            return Ok(());
        }
        // A brother in that session makes it (the init of a pid namespace may not use CLONE_PARENT).
        let brother = self
            .state
            .nodes
            .values()
            .find(|n| {
                n.ppid == parent
                    && n.sid == session
                    && n.pid != self.wanted.root
                    && n.exit_signal == exit_signal
            })
            .map(|n| n.pid);
        if let Some(maker) = brother {
            self.push(TreeStep::Clone { maker, pid, sibling: true, exit_signal })?;
            return Ok(());
        }
        let member = self.state.nodes.values().find(|n| n.sid == session).map(|n| n.pid);
        let leader_comes = self.wanted.by_pid.contains_key(&session);
        match member {
            // A grandchild of a member falls to the root process when its own parent ends.
            Some(member) if parent == self.wanted.root && exit_signal == SIGCHLD => {
                let helper = self.free_pid();
                self.push(TreeStep::Clone {
                    maker: member,
                    pid: helper,
                    sibling: false,
                    exit_signal: SIGCHLD,
                })?;
                self.push(TreeStep::Clone { maker: helper, pid, sibling: false, exit_signal })?;
                self.end(helper)?;
                Ok(())
            }
            None if !leader_comes && exit_signal == SIGCHLD && session != 0 => {
                self.push(TreeStep::Clone {
                    maker: parent,
                    pid: session,
                    sibling: false,
                    exit_signal: SIGCHLD,
                })?;
                self.push(TreeStep::SetSid(session))?;
                self.helpers.push(session);
                self.push(TreeStep::Clone { maker: session, pid, sibling: true, exit_signal })?;
                Ok(())
            }
            // The leader of that session comes later in the order: have it made first.
            None if leader_comes && self.is_reachable(session, want.pid) => {
                let leader = self.wanted.by_pid[&session];
                self.make(&leader)?;
                if self.sid(session) == Some(session) {
                    self.birth(want, session)
                } else {
                    Err(no_session(pid))
                }
            }
            _ => Err(no_session(pid)),
        }
    }

    /// Whether `leader` can be made now: its parent exists, and it is not on the way to `child` itself.
    fn is_reachable(&self, leader: Pid, child: Pid) -> bool {
        let Some(node) = self.wanted.by_pid.get(&leader) else { return false };
        let mut up = node.ppid;
        while let Some(n) = self.wanted.by_pid.get(&up) {
            if up == child {
                return false;
            }
            up = n.ppid;
        }
        self.state.nodes.contains_key(&node.ppid)
    }

    fn free_pid(&mut self) -> Pid {
        loop {
            let pid = self.next_helper;
            self.next_helper -= 1;
            let taken = self.state.nodes.contains_key(&pid)
                || self.wanted.order.iter().any(|n| n.pid == pid || n.sid == pid || n.pgid == pid);
            if !taken {
                return pid;
            }
        }
    }

    /// Puts one process into its group.
    fn group(&mut self, want: &Node) -> Result<(), Refusal> {
        let Some(have) = self.state.nodes.get(&want.pid).copied() else {
            return Err(no_session(want.pid));
        };
        if have.pgid == want.pgid {
            return Ok(());
        }
        let pgid = want.pgid;
        if pgid == 0 {
            return Err(refusal(want.pid, "its process group lies outside the container"));
        }
        if pgid != want.pid && !self.state.nodes.values().any(|n| n.pgid == pgid && n.sid == want.sid) {
            match self.wanted.by_pid.get(&pgid).copied() {
                Some(leader) if leader.pgid == pgid => self.group(&leader)?,
                // The number is the pid of a process that has left the group: it founds it now and leaves
                // it when its own turn comes.
                Some(founder) => self.push(TreeStep::SetPgid { pid: founder.pid, pgid })?,
                None => {
                    self.push(TreeStep::Clone {
                        maker: want.pid,
                        pid: pgid,
                        sibling: false,
                        exit_signal: SIGCHLD,
                    })?;
                    self.helpers.push(pgid);
                    self.push(TreeStep::SetPgid { pid: pgid, pgid })?;
                }
            }
        }
        self.push(TreeStep::SetPgid { pid: want.pid, pgid })?;
        Ok(())
    }
}

fn no_session(pid: Pid) -> Refusal {
    refusal(pid, "it is in a session that neither its parent nor a brother can put it into")
}

#[cfg(test)]
mod tests;
