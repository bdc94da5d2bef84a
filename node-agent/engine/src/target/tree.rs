//! The tree of skeletons: carries out [`plan::tree`](super::plan::tree).

use std::cmp::Reverse;
use std::collections::BTreeMap;

use image::Pid;
use image::namespaces::Nested;
use image::shape::{Mm, ProcessShape, Shape, Shared};
use libc::{SYS_clone3, SYS_setpgid, SYS_setsid, SYS_unshare, SYS_wait4};

use super::error::TargetError;
use super::mapping::{self, Surroundings};
use super::plan::tree::{self, Node, Share, Spaces, TreeStep};
use super::script::{Arg, Block, Call, call};
use super::skeleton::{Skeleton, Span, free_span, lost, overlap, trace};
use sys::tape::target::TargetTape;

/// Every skeleton, by its pid in the container.
#[derive(Debug)]
pub(crate) struct Tree {
    /// The first process of the pid namespace.
    pub(crate) root: Pid,
    pub(crate) skeletons: BTreeMap<Pid, Skeleton>,
    /// By pid namespace, 0 for the container's: the number that its next one comes after.
    pub(crate) last_pids: BTreeMap<u64, Pid>,
}

impl Tree {
    pub(crate) fn new(root: Skeleton) -> Self {
        Self {
            root: root.node.pid,
            skeletons: BTreeMap::from([(root.node.pid, root)]),
            last_pids: BTreeMap::new(),
        }
    }

    pub(crate) fn get(&mut self, pid: Pid) -> Result<&mut Skeleton, TargetError> {
        self.skeletons.get_mut(&pid).ok_or_else(|| lost(pid, "it does not exist"))
    }

    /// The root process's pid, as the agent sees it.
    pub(crate) fn root_host(&self) -> i32 {
        self.skeletons.get(&self.root).map_or(0, |s| s.host)
    }

    /// Ends the tracing of every thread: it goes on, unless its cgroup is frozen.
    ///
    /// # Errors
    /// [`TargetError::Trace`]; those that are still traced die.
    pub(crate) fn detach(mut self) -> Result<(), TargetError> {
        for skeleton in std::mem::take(&mut self.skeletons).into_values() {
            let Skeleton { node, threads, leader, .. } = skeleton;
            for mut task in threads.into_iter().chain([leader]) {
                task.take()?.detach(0).map_err(trace(node.pid))?;
            }
        }
        Ok(())
    }

    /// Makes and kills processes until the tree is the shape's. Returns the pids that are gone.
    pub(crate) fn reconcile(
        &mut self,
        shape: &Shape,
        around: &Surroundings<'_>,
    ) -> Result<Vec<Pid>, TargetError> {
        let existing = self.nodes();
        let first = existing.first().copied().ok_or_else(|| lost(self.root, "it does not exist"))?;
        let wanted = with_carrier(&first, shape);
        let wanted = wanted.as_ref().unwrap_or(shape);
        let steps = tree::plan(&existing, wanted).map_err(TargetError::Refused)?;
        let spaces = Spaces::of(wanted);
        if steps.iter().any(|step| matches!(step, TreeStep::Clone { .. })) {
            self.no_threads(around.tape)?;
        }
        let mut gone = Vec::new();
        for step in &steps {
            self.step(step, &spaces, around, &mut gone)?;
        }
        for node in tree::outcome(&existing, &steps) {
            self.get(node.pid)?.node = node;
        }
        self.enter_namespaces(shape, around)?;
        Ok(gone)
    }

    /// Moves the tape, in every skeleton at once, when it lies where one of them needs its addresses.
    pub(crate) fn make_way(&mut self, shape: &Shape, tape: &TargetTape) -> Result<(), TargetError> {
        let vmas = shape.processes.iter().flat_map(|p| &p.mm.vmas).chain(&shape.template);
        let wanted: Vec<Span> = vmas.map(|v| (v.start, v.end)).collect();
        let now = (tape.address(), tape.address() + tape.len());
        if !wanted.iter().any(|w| overlap(*w, now)) {
            return Ok(());
        }
        let mut held = Vec::new();
        let mut movers = Vec::new();
        let mut order = Vec::new();
        for (pid, skeleton) in &mut self.skeletons {
            held.extend(skeleton.read_maps()?.iter().map(|m| (m.start, m.end)));
            let at = skeleton.syscall_instruction()?;
            order.push(*pid);
            movers.push((skeleton.leader.take()?, at));
        }
        let to = free_span(tape.len(), &[&wanted, &held]);
        let root = self.root;
        let moved = tape
            .relocate(movers, to)
            .map_err(|source| TargetError::Tape { pid: root, source: Box::new(source) })?;
        for (pid, stopped) in order.into_iter().zip(moved) {
            self.get(pid)?.leader.put(stopped);
        }
        Ok(())
    }

    /// Takes the template from who carries the tree and is not in the shape.
    pub(crate) fn end_template(
        &mut self,
        shape: &Shape,
        around: &Surroundings<'_>,
    ) -> Result<(), TargetError> {
        let root = self.root;
        let carrier = self.get(root)?;
        if carrier.template && shape.processes.iter().all(|process| process.pid != root) {
            mapping::empty(carrier, around)?;
        }
        Ok(())
    }

    /// The root first.
    fn nodes(&self) -> Vec<Node> {
        let root = self.skeletons.get(&self.root);
        let others = self.skeletons.values().filter(|s| s.node.pid != self.root);
        root.into_iter().chain(others).map(|s| s.node).collect()
    }

    fn step(
        &mut self,
        step: &TreeStep,
        spaces: &Spaces,
        around: &Surroundings<'_>,
        gone: &mut Vec<Pid>,
    ) -> Result<(), TargetError> {
        let tape: &TargetTape = around.tape;
        match *step {
            TreeStep::Clone { maker, pid, sibling, exit_signal, place, share } => {
                let below = spaces.numbers(pid, &place);
                // The kernel takes them from the innermost namespace outwards.
                let numbers: Vec<Pid> = below.iter().rev().copied().chain([pid]).collect();
                let birth = if place.is_init() { spaces.around(place.space) } else { place.space };
                let clone = clone3(&numbers, sibling, exit_signal, place.is_init(), share);
                let made = if self.get(maker)?.node.place.space == birth {
                    self.get(maker)?.run(tape, &[clone])?.made.pop()
                } else {
                    self.clone_below(maker, birth, clone, around)?
                };
                let made = made.ok_or_else(|| lost(pid, "it was not made"))?;
                let maker = self.get(maker)?;
                // The final numbers come with the outcome of the whole plan.
                let node = Node { pid, place, ..maker.node };
                let mut child = maker.child(node, below, made)?;
                mapping::clear(&mut child, around)?;
                self.skeletons.insert(pid, child);
            }
            TreeStep::Unshare { pid, share } => {
                let skeleton = self.get(pid)?;
                // Threads would keep what it leaves.
                skeleton.set_threads(tape, &[])?;
                skeleton.run(tape, &[call!("unshare", SYS_unshare, share.flags())])?;
            }
            TreeStep::SetSid(pid) => {
                self.get(pid)?.run(tape, &[call!("setsid", SYS_setsid)])?;
            }
            TreeStep::SetPgid { pid, pgid } => {
                let skeleton = self.get(pid)?;
                let seen =
                    spaces.number(pgid, skeleton.node.place.space).filter(|_| pgid != pid).unwrap_or(0);
                skeleton.run(tape, &[call!("setpgid", SYS_setpgid, 0, seen)])?;
            }
            TreeStep::TakeTty { pid, tty } => {
                let request = ("TIOCSCTTY", sys::tty::TIOCSCTTY, 0.into());
                ask_terminal(self.get(pid)?, request, tty, around)?;
            }
            TreeStep::DropTty { pid, tty } => {
                let request = ("TIOCNOTTY", sys::tty::TIOCNOTTY, 0.into());
                ask_terminal(self.get(pid)?, request, tty, around)?;
            }
            TreeStep::End { pid, parent } => {
                let place = self.get(parent)?.node.place;
                let mut number = pid;
                if let Some(skeleton) = self.skeletons.remove(&pid) {
                    number = skeleton.pid_at(&place);
                    let controlled = skeleton.node.tty.filter(|_| skeleton.node.sid == pid);
                    skeleton.kill();
                    if let Some(tty) = controlled {
                        around.terminals.borrow_mut().leader_ended(around.root, tty)?;
                    }
                }
                self.get(parent)?.run(tape, &[wait_for(number)])?;
                gone.push(pid);
            }
        }
        Ok(())
    }
}

impl Drop for Tree {
    /// Children first: the root process, being the init of its pid namespace, waits for all others, and so does the first
    /// process of one below it for those that are in it.
    fn drop(&mut self) {
        let root = self.skeletons.remove(&self.root);
        let mut others: Vec<Skeleton> = std::mem::take(&mut self.skeletons).into_values().rev().collect();
        others.sort_by_key(|skeleton| (Reverse(skeleton.node.place.depth), skeleton.node.place.is_init()));
        for skeleton in others {
            skeleton.kill();
        }
        if let Some(root) = root {
            root.kill();
        }
    }
}

/// The parent takes the exit status of a dead child.
fn wait_for(pid: Pid) -> Call {
    call!("wait4", SYS_wait4, pid, 0, libc::__WALL, 0)
}

fn ask_terminal(
    skeleton: &mut Skeleton,
    request: (&'static str, u32, Arg),
    tty: u32,
    around: &Surroundings<'_>,
) -> Result<(), TargetError> {
    let Surroundings { root, tape, channel, terminals, .. } = *around;
    terminals.borrow_mut().ask(skeleton, request, tty, (root, tape, channel, channel.number))
}

/// clone3(2) of a process with chosen pids, the innermost first.
fn clone3(pids: &[Pid], sibling: bool, exit_signal: i32, new_space: bool, share: Share) -> Call {
    let flags = if sibling { libc::CLONE_PARENT } else { 0 };
    let flags = flags | share.flags() | if new_space { libc::CLONE_NEWPID } else { 0 };
    let signal = if sibling { 0 } else { exit_signal };
    let (flags, signal) = (u64::from(flags.cast_unsigned()), u64::from(signal.cast_unsigned()));
    let chosen = Block::new(pids.iter().flat_map(|pid| pid.to_le_bytes()).collect::<Vec<u8>>());
    let args = Block::words(&[flags, 0, 0, 0, signal, 0, 0, 0, 0, pids.len() as u64, 0]).link(64, chosen);
    call!("clone3", SYS_clone3, args, 88)
}

/// When the process that was prepared is not the tree's root but carries it (as the init of a pid
/// namespace made for a tree that was not the first process of its own), the shape with that process put
/// in front.
fn with_carrier(carrier: &Node, shape: &Shape) -> Option<Shape> {
    let first = shape.processes.first()?;
    if first.pid == carrier.pid {
        return None;
    }
    let (outside_sid, outside_pgid) = (first.sid, first.pgid);
    let in_tree = |pid: Pid| shape.processes.iter().any(|p| p.pid == pid);
    let (map_sid, map_pgid) = (!in_tree(outside_sid), !in_tree(outside_pgid));
    let mut processes = vec![ProcessShape {
        pid: carrier.pid,
        ppid: 0,
        pgid: carrier.pgid,
        sid: carrier.sid,
        exit_signal: carrier.exit_signal,
        zombie: None,
        tty: None,
        levels: Vec::new(),
        namespaces: Nested::default(),
        shared: Shared::default(),
        mm: Mm::default(),
    }];
    processes.extend(shape.processes.iter().map(|p| ProcessShape {
        ppid: if p.pid == first.pid { carrier.pid } else { p.ppid },
        sid: if map_sid && p.sid == outside_sid { carrier.sid } else { p.sid },
        pgid: if map_pgid && p.pgid == outside_pgid { carrier.pgid } else { p.pgid },
        mm: Mm::default(),
        ..p.clone()
    }));
    Some(Shape { processes, ..Shape::default() })
}
