//! The tree of skeletons: carries out [`plan::tree`](super::plan::tree).

use std::collections::BTreeMap;

use image::Pid;
use image::namespaces::Nested;
use image::shape::{Mm, ProcessShape, Shape};
use libc::{SYS_clone3, SYS_setpgid, SYS_setsid, SYS_wait4};

use super::error::TargetError;
use super::mapping::{self, Surroundings};
use super::plan::tree::{self, Node, TreeStep};
use super::script::{Arg, Block, Call, call};
use super::skeleton::{Skeleton, Span, free_span, lost, overlap, trace};
use sys::tape::target::TargetTape;

/// Every skeleton, by its pid in the container.
#[derive(Debug)]
pub(crate) struct Tree {
    /// The first process of the pid namespace.
    pub(crate) root: Pid,
    pub(crate) skeletons: BTreeMap<Pid, Skeleton>,
}

impl Tree {
    pub(crate) fn new(root: Skeleton) -> Self {
        Self { root: root.node.pid, skeletons: BTreeMap::from([(root.node.pid, root)]) }
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
        let steps = tree::plan(&existing, wanted.as_ref().unwrap_or(shape)).map_err(TargetError::Refused)?;
        if steps.iter().any(|step| matches!(step, TreeStep::Clone { .. })) {
            self.no_threads(around.tape)?;
        }
        let mut gone = Vec::new();
        for step in &steps {
            self.step(step, around, &mut gone)?;
        }
        for node in tree::outcome(&existing, &steps) {
            self.get(node.pid)?.node = node;
        }
        self.enter_namespaces(shape, around.tape)?;
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
        around: &Surroundings<'_>,
        gone: &mut Vec<Pid>,
    ) -> Result<(), TargetError> {
        let tape: &TargetTape = around.tape;
        match *step {
            TreeStep::Clone { maker, pid, sibling, exit_signal } => {
                let maker = self.get(maker)?;
                let mut ran = maker.run(tape, &[clone3(pid, sibling, exit_signal)])?;
                let made = ran.made.pop().ok_or_else(|| lost(pid, "it was not made"))?;
                // The final numbers come with the outcome of the whole plan.
                let node = Node { pid, ..maker.node };
                let mut child = maker.child(node, made)?;
                mapping::clear(&mut child, around)?;
                self.skeletons.insert(pid, child);
            }
            TreeStep::SetSid(pid) => {
                self.get(pid)?.run(tape, &[call!("setsid", SYS_setsid)])?;
            }
            TreeStep::SetPgid { pid, pgid } => {
                self.get(pid)?.run(tape, &[call!("setpgid", SYS_setpgid, 0, pgid)])?;
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
                if let Some(skeleton) = self.skeletons.remove(&pid) {
                    let controlled = skeleton.node.tty.filter(|_| skeleton.node.sid == pid);
                    skeleton.kill();
                    if let Some(tty) = controlled {
                        around.terminals.borrow_mut().leader_ended(around.root, tty)?;
                    }
                }
                self.get(parent)?.run(tape, &[wait_for(pid)])?;
                gone.push(pid);
            }
        }
        Ok(())
    }
}

impl Drop for Tree {
    /// Children first: the root process, being the init of its pid namespace, waits for all others.
    fn drop(&mut self) {
        let root = self.skeletons.remove(&self.root);
        while let Some((_, skeleton)) = self.skeletons.pop_last() {
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

/// clone3(2) of a process with a chosen pid.
fn clone3(pid: Pid, sibling: bool, exit_signal: i32) -> Call {
    let flags = if sibling { libc::CLONE_PARENT } else { 0 };
    let signal = if sibling { 0 } else { exit_signal };
    let (flags, signal) = (u64::from(flags.cast_unsigned()), u64::from(signal.cast_unsigned()));
    let args =
        Block::words(&[flags, 0, 0, 0, signal, 0, 0, 0, 0, 1, 0]).link(64, Block::new(pid.to_le_bytes()));
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
        namespaces: Nested::default(),
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
