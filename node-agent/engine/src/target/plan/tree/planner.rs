//! The search for a way: who makes whom, in which order, with which helpers.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use image::{Pid, Refusal};

use super::state::State;
use super::{HIGHEST_HELPER, Node, Place, SIGCHLD, Share, TreeStep, Wanted, no_sharer, refusal};

/// Finds the steps, each tried against the rules before it is taken.
pub(super) struct Planner<'a> {
    wanted: &'a Wanted,
    keep: &'a BTreeSet<Pid>,
    state: State,
    steps: Vec<TreeStep>,
    helpers: Vec<Pid>,
    next_helper: Pid,
}

impl<'a> Planner<'a> {
    pub(super) fn new(existing: &[Node], wanted: &'a Wanted, keep: &'a BTreeSet<Pid>) -> Self {
        Self {
            wanted,
            keep,
            state: State::new(existing),
            steps: Vec::new(),
            helpers: Vec::new(),
            next_helper: HIGHEST_HELPER,
        }
    }

    pub(super) fn run(mut self) -> Result<Vec<TreeStep>, Refusal> {
        let mut gone: Vec<Node> =
            self.state.nodes.values().copied().filter(|node| !self.keep.contains(&node.pid)).collect();
        // The first process of a pid namespace after all that are in it.
        gone.sort_by_key(|node| (Reverse(node.place.depth), node.place.is_init()));
        let gone: Vec<Pid> = gone.into_iter().map(|node| node.pid).collect();
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
            self.unshare(want)?;
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
        if !self.is_visible(step) || !self.state.apply(step) {
            let (TreeStep::Clone { pid, .. }
            | TreeStep::Unshare { pid, .. }
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

    /// Whether the process that takes a step can name whom it is about.
    fn is_visible(&self, step: TreeStep) -> bool {
        let space = |pid: Pid| self.state.nodes.get(&pid).map_or(0, |node| node.place.space);
        let spaces = &self.wanted.spaces;
        match step {
            TreeStep::Clone { maker, place, .. } => spaces.is_within(place.space, space(maker)),
            TreeStep::SetPgid { pid, pgid } => pid == pgid || spaces.number(pgid, space(pid)).is_some(),
            _ => true,
        }
    }

    fn end(&mut self, pid: Pid) -> Result<(), Refusal> {
        let parent = self.state.nodes.get(&pid).map_or(self.wanted.root, |n| n.ppid);
        self.push(TreeStep::End { pid, parent })
    }

    /// A process that was there before leaves what it is to have for itself: others get it from it then.
    fn unshare(&mut self, want: &Node) -> Result<(), Refusal> {
        let Some(have) = self.state.nodes.get(&want.pid).copied() else { return Ok(()) };
        let share = Share {
            files: want.tables.files == want.pid && have.tables.files != want.pid,
            directories: want.tables.directories == want.pid && have.tables.directories != want.pid,
        };
        if share == Share::NOTHING { Ok(()) } else { self.push(TreeStep::Unshare { pid: want.pid, share }) }
    }

    fn sid(&self, pid: Pid) -> Option<Pid> {
        self.state.nodes.get(&pid).map(|n| n.sid)
    }

    /// Makes one process, in its session. Its children that must be born before its setsid(2) come along.
    fn make(&mut self, want: &Node) -> Result<(), Refusal> {
        let leader = want.sid == want.pid;
        if !self.state.nodes.contains_key(&want.pid) {
            if want.place.is_init()
                && let Some(parent) = self.wanted.by_pid.get(&want.ppid).copied()
            {
                // What cannot be had yet is tried once more in the end.
                let _ = self.group(&parent);
            }
            if leader {
                self.birth_of_leader(want)?;
            } else {
                self.birth(want, Some(want.sid))?;
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
                return self.birth(want, Some(child.sid));
            }
        }
        self.birth(want, None)
    }

    /// Whether a child of `parent` could be born into `session` as things stand.
    fn can_be_born(&self, parent: Pid, session: Pid) -> bool {
        let brother = |n: &Node| n.ppid == parent && n.sid == session && n.pid != self.wanted.root;
        self.sid(parent) == Some(session) || self.state.nodes.values().any(brother)
    }

    /// Makes `want` a child of its parent, born into `session` (`None` = any), with what it shares.
    fn birth(&mut self, want: &Node, session: Option<Pid>) -> Result<(), Refusal> {
        let (pid, parent, exit_signal, place) = (want.pid, want.ppid, want.exit_signal, want.place);
        let share = want.tables.share(pid);
        let fits =
            |n: &Node| session.is_none_or(|session| n.sid == session) && n.tables.give(&want.tables, pid);
        if self.state.nodes.get(&parent).is_some_and(fits) {
            self.push(TreeStep::Clone { maker: parent, pid, sibling: false, exit_signal, place, share })?;
            return Ok(());
        }
        // A brother in that session makes it (the init of a pid namespace may not use CLONE_PARENT).
        let brother = self
            .state
            .nodes
            .values()
            .find(|n| {
                n.ppid == parent
                    && fits(n)
                    && n.pid != self.wanted.root
                    && n.place.space == place.space
                    && !n.place.is_init()
                    && n.exit_signal == exit_signal
            })
            .map(|n| n.pid);
        if let Some(maker) = brother {
            self.push(TreeStep::Clone { maker, pid, sibling: true, exit_signal, place, share })?;
            return Ok(());
        }
        // A grandchild of a member falls to the root process, or to the first one of its pid namespace, when its own
        // parent ends.
        let member = self.state.nodes.values().find(|n| fits(n) && n.place.space == place.space);
        if let Some(member) = member.map(|n| n.pid)
            && parent == self.state.reaper(place.space)
            && exit_signal == SIGCHLD
        {
            let helper = self.free_pid();
            self.push(TreeStep::Clone {
                maker: member,
                pid: helper,
                sibling: false,
                exit_signal: SIGCHLD,
                place: Place { own: if place.depth == 0 { 0 } else { helper }, ..place },
                share,
            })?;
            self.push(TreeStep::Clone { maker: helper, pid, sibling: false, exit_signal, place, share })?;
            return self.end(helper);
        }
        match session {
            Some(session) if self.state.nodes.values().all(|n| n.sid != session) => {
                self.birth_into_new(want, session)
            }
            _ if share != Share::NOTHING => Err(no_sharer(pid)),
            _ => Err(no_session(pid)),
        }
    }

    /// Makes `want` in a session that nobody is in yet.
    fn birth_into_new(&mut self, want: &Node, session: Pid) -> Result<(), Refusal> {
        let (pid, parent, exit_signal, place) = (want.pid, want.ppid, want.exit_signal, want.place);
        let share = want.tables.share(pid);
        let leader_comes = self.wanted.by_pid.contains_key(&session);
        if leader_comes && self.is_reachable(session, pid) {
            // The leader of that session comes later in the order: have it made first.
            let leader = self.wanted.by_pid[&session];
            self.make(&leader)?;
            return if self.sid(session) == Some(session) {
                self.birth(want, Some(session))
            } else {
                Err(no_session(pid))
            };
        }
        // The helper that leads it has what its maker has.
        let given = self.state.nodes.get(&parent).is_some_and(|n| n.tables.give(&want.tables, pid));
        if !given {
            return Err(no_sharer(pid));
        }
        if leader_comes || exit_signal != SIGCHLD || session == 0 {
            return Err(no_session(pid));
        }
        self.push(TreeStep::Clone {
            maker: parent,
            pid: session,
            sibling: false,
            exit_signal: SIGCHLD,
            place: self.wanted.spaces.place(session),
            share,
        })?;
        self.push(TreeStep::SetSid(session))?;
        self.helpers.push(session);
        self.push(TreeStep::Clone { maker: session, pid, sibling: true, exit_signal, place, share })
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
                || self.wanted.spaces.is_taken(pid)
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
                        place: self.wanted.spaces.place(pgid),
                        share: Share::NOTHING,
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
