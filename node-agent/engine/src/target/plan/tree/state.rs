//! What the kernel makes of each step: the rules for pids, sessions, groups and terminals.

use std::collections::BTreeMap;

use image::Pid;

use super::{Node, SIGCHLD, Share, Tables, TreeStep};

/// Who exists at one moment of the plan.
pub(super) struct State {
    pub(super) root: Pid,
    pub(super) nodes: BTreeMap<Pid, Node>,
}

impl State {
    pub(super) fn new(existing: &[Node]) -> Self {
        Self {
            root: existing.first().map_or(0, |n| n.pid),
            nodes: existing.iter().map(|n| (n.pid, *n)).collect(),
        }
    }

    /// True when the number is a process's, or still a session's or a group's: clone3(2) answers EEXIST.
    pub(super) fn in_use(&self, pid: Pid) -> bool {
        self.nodes.values().any(|n| n.pid == pid || n.sid == pid || n.pgid == pid)
    }

    /// The first process of a pid namespace below the container's.
    fn init(&self, space: u64) -> Option<Pid> {
        let mut all = self.nodes.values();
        all.find(|n| n.place.space == space && n.place.is_init()).map(|n| n.pid)
    }

    /// Who the children of a process in that pid namespace fall to.
    pub(super) fn reaper(&self, space: u64) -> Pid {
        self.init(space).unwrap_or(self.root)
    }

    /// Whether nothing that somebody has bears the name of what `pid` is to have for itself.
    fn is_free(&self, pid: Pid, own: Share) -> bool {
        let is_one = |tables: Tables| {
            (own.files && tables.files == pid) || (own.directories && tables.directories == pid)
        };
        !self.nodes.values().any(|n| is_one(n.tables))
    }

    /// Carries one step out under the kernel's rules; false when the kernel would refuse it.
    pub(super) fn apply(&mut self, step: TreeStep) -> bool {
        match step {
            TreeStep::Clone { maker, pid, sibling, exit_signal, place, share } => {
                let Some(m) = self.nodes.get(&maker).copied() else { return false };
                let below = place.space != m.place.space;
                // The first process of a pid namespace makes no siblings.
                if self.in_use(pid) || (sibling && (maker == self.root || m.place.is_init() || below)) {
                    return false;
                }
                if place.space != 0 && place.is_init() == self.init(place.space).is_some() {
                    return false;
                }
                let fresh = Share { files: !share.files, directories: !share.directories };
                if !self.is_free(pid, fresh) {
                    return false;
                }
                let tables = leave(m.tables, fresh, pid);
                let node = if sibling {
                    Node { pid, place, tables, ..m }
                } else {
                    Node { pid, ppid: maker, exit_signal, place, tables, ..m }
                };
                self.nodes.insert(pid, node);
                true
            }
            TreeStep::Unshare { pid, share } => {
                if !self.is_free(pid, share) {
                    return false;
                }
                self.nodes.get_mut(&pid).map(|n| n.tables = leave(n.tables, share, pid)).is_some()
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
                let Some(ended) = self.nodes.remove(&pid) else { return false };
                let space = ended.place.space;
                if ended.place.is_init() && self.nodes.values().any(|n| n.place.space == space) {
                    return false;
                }
                let reaper = self.reaper(space);
                // With its leader a session loses its terminal.
                self.nodes.values_mut().filter(|n| n.sid == pid).for_each(|n| n.tty = None);
                for child in self.nodes.values_mut().filter(|c| c.ppid == pid) {
                    child.ppid = reaper;
                    child.exit_signal = SIGCHLD;
                }
                true
            }
        }
    }
}

/// What a process has that has left some of it.
fn leave(tables: Tables, what: Share, pid: Pid) -> Tables {
    Tables {
        files: if what.files { pid } else { tables.files },
        directories: if what.directories { pid } else { tables.directories },
    }
}
