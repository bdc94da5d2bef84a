//! From skeletons to stopped processes: everything of an image but its memory.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use image::shape::{Mm, Shared, Zombie};
use image::state::{Image, ProcessState, Resume, Thread};
use image::{Pid, Refusal, Subject};
use libc::{SYS_close, SYS_wait4};
use sys::ptrace::{Event, Exit, Stop, Stopped};
use sys::regs::NO_SYSCALL;
use sys::tape::target::TargetTape;

use crate::account;
use crate::source::clock::monotonic_ns;

use super::attributes::{self, Capabilities, Filters};
use super::error::TargetError;
use super::guards;
use super::huge;
use super::mapping;
use super::names;
use super::plan::fds;
use super::plan::tree::Spaces;
use super::plant::Channel;
use super::policies;
use super::priority;
use super::resume::{self, Entered};
use super::rootfs::RootFs;
use super::script::{Block, Call, call, load};
use super::skeleton::{Skeleton, TAPE_SIZE, Task, lost, trace};
use super::tables;
use super::terminals::Terminals;
use super::threads::run_all;
use super::tree::Tree;

/// How long an entered call may take to fall asleep.
const SLEEP_LIMIT: Duration = Duration::from_secs(5);
/// How long a process may take to die.
const EXIT_LIMIT: Duration = Duration::from_secs(5);

/// What the steps of a restore work on.
pub(crate) struct Restorer<'a> {
    pub(crate) tree: &'a mut Tree,
    pub(crate) tape: &'a TargetTape,
    pub(crate) channel: &'a Channel,
    pub(crate) image: &'a Image,
    pub(crate) capabilities: Capabilities,
}

/// The live processes of the image with their states.
pub(super) fn live(image: &Image) -> impl Iterator<Item = &ProcessState> {
    image.processes.iter()
}

fn memory_of(image: &Image, pid: Pid) -> Option<&Mm> {
    image.shape.processes.iter().find(|process| process.pid == pid).map(|process| &process.mm)
}

fn first_of(process: &ProcessState) -> Result<&Thread, TargetError> {
    let pid = process.pid;
    process.threads.first().ok_or_else(|| TargetError::Image(format!("pid {pid} has no thread")))
}

fn refused(pid: Pid, reason: impl Into<String>, way_out: &str) -> TargetError {
    TargetError::Refused(Refusal {
        pid,
        subject: Subject::Process,
        reason: reason.into(),
        way_out: way_out.to_owned(),
    })
}

impl Restorer<'_> {
    /// Each session's foreground group; all groups are there, also those of processes that are to be dead.
    pub(crate) fn foreground(&mut self, terminals: &mut Terminals, root: &RootFs) -> Result<(), TargetError> {
        let spaces = Spaces::of(&self.image.shape);
        for terminal in &self.image.files.terminals {
            let Some((leader, pgid)) = terminal.session else { continue };
            let fds = live(self.image).find(|process| process.pid == leader).map(|process| &process.fds);
            let fds = fds.ok_or_else(|| {
                TargetError::Image(format!("terminal {}: its session has no leader", terminal.index))
            })?;
            let channel = fds::plan(fds).channel;
            let skeleton = self.tree.get(leader)?;
            let unseen = || {
                refused(
                    leader,
                    "the foreground process group of its terminal is outside of its pid namespace",
                    "try again in a moment",
                )
            };
            let pgid = spaces.number(pgid, skeleton.node.place.space).ok_or_else(unseen)?;
            let request = ("TIOCSPGRP", sys::tty::TIOCSPGRP, Block::new(pgid.to_le_bytes()).into());
            terminals.ask(skeleton, request, terminal.index, (root, self.tape, self.channel, channel))?;
        }
        Ok(())
    }

    /// Dead children get their exit status.
    pub(crate) fn processes(&mut self) -> Result<(), TargetError> {
        let image = self.image;
        for shape in &image.shape.processes {
            if let Some(zombie) = &shape.zombie {
                self.tree.make_zombie(shape.pid, zombie, self.tape)?;
            }
        }
        for process in live(image) {
            set_through_proc(self.tree.get(process.pid)?, process)?;
        }
        Ok(())
    }

    /// Every process gets its signal handlers, which throws the signals away that the making of the tree caused: SIGCHLDs
    /// of helpers, of dead children and of those that were stopped, and SIGCONTs.
    pub(crate) fn handlers(&mut self) -> Result<(), TargetError> {
        self.first_threads(|process| Ok(attributes::signal_handlers(process)))
    }

    /// Has the first threads of all processes make their calls at once.
    fn first_threads(
        &mut self,
        calls: impl Fn(&ProcessState) -> Result<Vec<Call>, TargetError>,
    ) -> Result<(), TargetError> {
        let mut asked = BTreeMap::new();
        for process in live(self.image) {
            asked.insert(process.pid, calls(process)?);
        }
        let skeletons = self.tree.skeletons.iter_mut();
        let tasks = skeletons.filter_map(|(pid, skeleton)| Some((&mut skeleton.leader, asked.remove(pid)?)));
        let tasks: Vec<_> = tasks.collect();
        if let Some(pid) = asked.keys().next() {
            return Err(lost(*pid, "it does not exist"));
        }
        run_all(tasks, self.tape, |_, calls| Ok(std::mem::take(calls)), |_, _| Ok(()))
    }

    /// Makes the threads with their tids, as far as they are not there yet. First those end that are not there any
    /// more, in all processes: their numbers may be others' now.
    pub(crate) fn threads(&mut self) -> Result<(), TargetError> {
        let all: BTreeSet<Pid> = live(self.image)
            .flat_map(|process| process.threads.iter().skip(1))
            .map(|thread| thread.tid)
            .collect();
        for process in live(self.image) {
            let own: BTreeMap<Pid, &Thread> =
                process.threads.iter().map(|thread| (thread.tid, thread)).collect();
            let filtered = !attributes::one_history(process);
            let skeleton = self.tree.get(process.pid)?;
            // One that has other credentials by now, filters or directories of its own, or what it shares with another
            // thread, cannot be changed any more: it is made anew.
            let right = |task: &Task, thread: &Thread| {
                let own = thread.directories.is_some() || (filtered && thread.seccomp_mode != 0);
                thread.shared == Shared::default()
                    && task.creds.as_ref().is_none_or(|creds| *creds == thread.creds && !own)
            };
            let stay = |task: &&Task| {
                all.contains(&task.tid) && own.get(&task.tid).is_some_and(|thread| right(task, thread))
            };
            let stay: Vec<Pid> = skeleton.threads.iter().filter(stay).map(|task| task.tid).collect();
            skeleton.set_threads(self.tape, &stay)?;
        }
        for process in live(self.image) {
            let others: Vec<&Thread> = process.threads.iter().skip(1).collect();
            // Before their process changes its directories, which it may be unable to leave.
            self.tree.get(process.pid)?.make_threads(self.tape, &others)?;
        }
        Ok(())
    }

    /// The agent's number for a thread (0), process (1) or process group (2) of the container.
    pub(crate) fn host_of(&self, kind: i32, id: Pid) -> Option<i32> {
        let skeletons = &self.tree.skeletons;
        match kind {
            0 => skeletons.values().find_map(|s| s.host_of_thread(id)),
            1 => skeletons.get(&id).map(|s| s.host),
            _ => {
                let member = skeletons.values().find(|s| s.node.pgid == id)?;
                crate::proc::stat::read(member.host).ok().map(|s| s.pgrp)
            }
        }
    }

    /// Everything that makes threads and processes what they were, credentials and filters last.
    pub(crate) fn attributes(&mut self) -> Result<(), TargetError> {
        let (image, capabilities) = (self.image, self.capabilities);
        let shares = tables::shared(image);
        let shared = |pid: Pid| shares.get(&pid).copied().unwrap_or_default();
        let root = self.names_its_own()?;
        for process in live(image) {
            priority::raise_limits(self.tree.get(process.pid)?.host, process);
        }
        self.first_threads(|process| {
            let pid = process.pid;
            let mm = memory_of(image, pid);
            let first = shared(pid).is_first_of_directories(pid);
            let mut calls = attributes::process_before_credentials(process, first);
            if Some(pid) == root
                && let Some(names) = &image.names
            {
                calls.extend(names::set(names));
            }
            calls.extend(process.policies.iter().map(policies::of_range));
            calls.extend(mm.map(huge::protect).unwrap_or_default());
            // Before the locks: the kernel makes none in locked memory.
            calls.extend(guards::make(&process.guards));
            calls.extend(mm.map(|mm| guards::lock(mm, &process.guards)).unwrap_or_default());
            if process.lock_later != 0 {
                calls.push(call!("mlockall", libc::SYS_mlockall, process.lock_later));
            }
            calls.extend(attributes::posix_timers(&process.timers));
            // Whoever shares the table has no other.
            if shared(pid).is_first_of_files(pid) {
                calls.push(call!("close channel", SYS_close, fds::plan(&process.fds).channel));
            }
            calls.extend(attributes::process_signals(process).map_err(TargetError::Refused)?);
            let first = first_of(process)?;
            calls.extend(attributes::thread_before_credentials(process, first));
            calls.extend(attributes::thread_signals(process, first).map_err(TargetError::Refused)?);
            Ok(calls)
        })?;
        for process in live(image) {
            priority::apply(self.tree.get(process.pid)?.host, first_of(process)?)?;
        }
        self.other_threads()?;
        self.first_threads(|process| {
            let first = first_of(process)?;
            let all_threads = attributes::one_history(process) && process.threads.len() > 1;
            let filters = Filters { mode: first.seccomp_mode, list: &first.seccomp_filters, all_threads };
            let mut calls = Vec::from_iter(attributes::limit_of_signals(process));
            calls.extend(attributes::credentials(&first.creds, &filters, &capabilities));
            calls.extend(attributes::thread_after_credentials(first));
            calls.extend(attributes::process_after_credentials(process));
            calls.extend(memory_of(image, process.pid).map(mapping::seal_memory).unwrap_or_default());
            calls.extend(attributes::arm_posix_timers(&process.timers));
            Ok(calls)
        })
    }

    /// Threads beside the first ones, those of all processes at once.
    fn other_threads(&mut self) -> Result<(), TargetError> {
        let image = self.image;
        let mut skeletons: BTreeMap<Pid, &mut Skeleton> =
            self.tree.skeletons.iter_mut().map(|(pid, skeleton)| (*pid, skeleton)).collect();
        let mut tasks = Vec::new();
        for process in live(image) {
            let skeleton =
                skeletons.remove(&process.pid).ok_or_else(|| lost(process.pid, "it does not exist"))?;
            let filtered = !attributes::one_history(process);
            let threads = process.threads.iter().skip(1).map(|thread| (process, thread, filtered));
            tasks.extend(skeleton.threads.iter_mut().zip(threads));
        }
        let capabilities = self.capabilities;
        let program = |task: &Task, (process, thread, filtered): &mut (&ProcessState, &Thread, bool)| {
            let own =
                Filters { mode: thread.seccomp_mode, list: &thread.seccomp_filters, all_threads: false };
            let filters = if *filtered { own } else { Filters::NONE };
            let mut calls = attributes::thread_before_credentials(process, thread);
            if let Some(own) = thread.fds.as_ref().filter(|_| thread.shared.is_first_of_files(thread.tid)) {
                calls.push(call!("close channel", SYS_close, fds::plan(own).channel));
            }
            calls.extend(attributes::thread_signals(process, thread).map_err(TargetError::Refused)?);
            if task.creds.is_none() {
                calls.extend(attributes::credentials(&thread.creds, &filters, &capabilities));
            }
            calls.extend(attributes::thread_after_credentials(thread));
            Ok(calls)
        };
        run_all(tasks, self.tape, program, |task, (_, thread, _)| priority::apply(task.host, thread))
    }

    /// Threads whose call the kernel restarts by itself enter it for the time that remains, and are
    /// interrupted. What each was answered, by its tid.
    pub(crate) fn enter_calls(&mut self) -> Result<BTreeMap<Pid, Entered>, TargetError> {
        let mut answers = BTreeMap::new();
        let image = self.image;
        for process in live(image) {
            let skeleton = self.tree.get(process.pid)?;
            let mut sleepers: Vec<(&Thread, &mut Task)> = process
                .threads
                .iter()
                .zip(std::iter::once(&mut skeleton.leader).chain(&mut skeleton.threads))
                .filter(|(thread, _)| matches!(thread.resume, Resume::RestartBlock { .. }))
                .collect();
            for chunk in sleepers.chunks_mut(TAPE_SIZE.slots) {
                let mut runs = Vec::with_capacity(chunk.len());
                let mut deadlines = Vec::with_capacity(chunk.len());
                for (thread, task) in &mut *chunk {
                    let Resume::RestartBlock { nr, remaining_ns } = thread.resume else { continue };
                    let call = resume::entering(&thread.regs, nr, remaining_ns);
                    deadlines.push(remaining_ns.map(|left| left.saturating_add(monotonic_ns())));
                    let program = load(&[call], TAPE_SIZE).program;
                    runs.push(self.tape.start(task.take()?, program).map_err(on_tape(thread.tid))?);
                }
                let mut asked = Vec::with_capacity(runs.len());
                for ((thread, _), run) in chunk.iter().zip(runs) {
                    let one = self.tape.interrupt_asleep(run, SLEEP_LIMIT);
                    asked.push(one.map_err(on_tape(thread.tid))?);
                }
                for (((thread, task), asked), deadline_ns) in chunk.iter_mut().zip(asked).zip(deadlines) {
                    let (stopped, answer) =
                        self.tape.interrupted(asked, SLEEP_LIMIT).map_err(on_tape(thread.tid))?;
                    task.put(stopped);
                    answers.insert(thread.tid, Entered { answer, deadline_ns });
                }
            }
        }
        Ok(answers)
    }

    /// Registers, xsave area and signal mask of every thread; the tape goes from each process.
    pub(crate) fn registers(&mut self, entered: &BTreeMap<Pid, Entered>) -> Result<(), TargetError> {
        let image = self.image;
        for process in live(image) {
            let skeleton = self.tree.get(process.pid)?;
            let at = skeleton.syscall_instruction()?;
            let stopped = self.tape.remove(skeleton.leader.take()?, at).map_err(on_tape(process.pid))?;
            skeleton.leader.put(stopped);
            let memory = skeleton.memory.clone();
            let tasks = std::iter::once(&mut skeleton.leader).chain(&mut skeleton.threads);
            for (thread, task) in process.threads.iter().zip(tasks) {
                let entered = entered.get(&thread.tid).copied();
                let (regs, store) = resume::registers(&thread.regs, &thread.resume, entered);
                if let Some((at, words)) = store {
                    let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
                    memory.write_all_at(&bytes, at).map_err(TargetError::system(format!(
                        "write below the stack of thread {}",
                        thread.tid
                    )))?;
                }
                let stopped = task.stopped()?;
                stopped.set_xstate(&thread.xstate).map_err(trace(thread.tid))?;
                stopped.set_regs(&regs).map_err(trace(thread.tid))?;
                stopped.set_sigmask(thread.sigmask).map_err(trace(thread.tid))?;
            }
        }
        self.park_carrier()
    }

    /// A root process that only carries the tree waits for its children, and ends with the last.
    fn park_carrier(&mut self) -> Result<(), TargetError> {
        let root = self.tree.root;
        if self.image.processes.iter().any(|p| p.pid == root) {
            return Ok(());
        }
        let calls: Vec<Call> =
            (0..TAPE_SIZE.records).map(|_| call!("wait4", SYS_wait4, -1, 0, libc::__WALL, 0)).collect();
        let program = load(&calls, TAPE_SIZE).program;
        let carrier = self.tree.get(root)?;
        let (stopped, _) = self
            .tape
            .enter_and_interrupt(carrier.leader.take()?, program, SLEEP_LIMIT)
            .map_err(on_tape(root))?;
        carrier.leader.put(stopped);
        Ok(())
    }
}

fn on_tape(pid: Pid) -> impl FnOnce(sys::tape::target::TargetError) -> TargetError {
    move |source| TargetError::Tape { pid, source: Box::new(source) }
}

/// What /proc/PID takes from outside.
fn set_through_proc(skeleton: &Skeleton, process: &ProcessState) -> Result<(), TargetError> {
    let set = |name: &str, have: String, want: String| {
        if have.trim() == want {
            return Ok(());
        }
        let path = format!("/proc/{}/{name}", skeleton.host);
        std::fs::write(&path, &want)
            .map_err(TargetError::system(format!("pid {}: set {name} to {want}", process.pid)))
    };
    let get =
        |name: &str| std::fs::read_to_string(format!("/proc/{}/{name}", skeleton.host)).unwrap_or_default();
    set("oom_score_adj", get("oom_score_adj"), process.oom_score_adj.to_string())?;
    let filter = get("coredump_filter");
    if u32::from_str_radix(filter.trim(), 16).is_ok_and(|f| f != process.coredump_filter) {
        set("coredump_filter", filter, format!("{:#x}", process.coredump_filter))?;
    }
    Ok(())
}

impl Tree {
    /// Lets a skeleton die so that its parent finds this wait status.
    pub(crate) fn make_zombie(
        &mut self,
        pid: Pid,
        zombie: &Zombie,
        tape: &TargetTape,
    ) -> Result<(), TargetError> {
        let status = zombie.status;
        let (signal, code) = (status & 0x7f, (status >> 8) & 0xff);
        if status & 0x80 != 0 {
            return Err(refused(pid, "it has died and dumped core", "let its parent wait for it"));
        }
        let Some(mut skeleton) = self.skeletons.remove(&pid) else {
            return Err(lost(pid, "it does not exist"));
        };
        if skeleton.node.place.is_init() && signal != 0 {
            return Err(refused(
                pid,
                "it was the first process of a pid namespace and has been killed",
                "let its parent wait for it",
            ));
        }
        let own = skeleton.own_pid();
        skeleton.set_threads(tape, &[])?;
        let at = skeleton.syscall_instruction()?;
        let mut calls = vec![attributes::name(&zombie.comm)];
        if signal != 0 {
            let default = Block::words(&[0, 0, 0, 0]);
            let call = call!("rt_sigaction", libc::SYS_rt_sigaction, signal, default, 0, 8);
            calls.push(call.accept(&[libc::EINVAL]));
        }
        skeleton.run(tape, &calls)?;
        let (nr, args) =
            if signal == 0 { (libc::SYS_exit_group, [code, 0]) } else { (libc::SYS_kill, [own, signal]) };
        let mut stopped = skeleton.leader.take()?;
        let mut regs = stopped.regs().map_err(trace(pid))?;
        (regs.rip, regs.rax, regs.orig_rax) = (at, nr.cast_unsigned(), NO_SYSCALL);
        regs.rdi = u64::from(args[0].cast_unsigned());
        regs.rsi = u64::from(args[1].cast_unsigned());
        stopped.set_regs(&regs).map_err(trace(pid))?;
        if signal != 0 {
            stopped.set_sigmask(!(1 << (signal - 1))).map_err(trace(pid))?;
        }
        die(pid, stopped, signal, code)
    }
}

fn die(pid: Pid, mut stopped: Stopped, signal: i32, code: i32) -> Result<(), TargetError> {
    let mut deliver = 0;
    loop {
        match stopped.cont(deliver).map_err(trace(pid))?.wait(EXIT_LIMIT).map_err(trace(pid))? {
            Event::Stopped(again) => {
                deliver = if let Stop::Signal(signal) = again.stop() { signal } else { 0 };
                stopped = again;
            }
            Event::Exited(_, Exit::Code(c)) if signal == 0 && c == code => return Ok(()),
            Event::Exited(_, Exit::Signal(s)) if s == signal => return Ok(()),
            other => return Err(lost(pid, format!("it should have died: {other:?}"))),
        }
    }
}

/// Times the steps of a restore.
pub(crate) struct Stopwatch(Instant);

impl Stopwatch {
    pub(crate) fn start() -> Self {
        Self(Instant::now())
    }

    /// Time since the last call; also a step of the pause's account.
    pub(crate) fn lap(&mut self, step: &'static str) -> Duration {
        account::lap(step);
        let now = Instant::now();
        let lap = now - self.0;
        self.0 = now;
        lap
    }
}
