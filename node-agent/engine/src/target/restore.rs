//! From skeletons to stopped processes: everything of an image but its memory.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use image::files::{EpollTarget, FdEntry, FileKind, FileLock, Files, LockKind};
use image::state::{Image, ProcessState, Resume, Thread};
use image::{Pid, Refusal, Subject};
use libc::{SYS_close, SYS_dup, SYS_dup3, SYS_epoll_ctl, SYS_epoll_wait, SYS_fcntl, SYS_wait4};
use sys::ptrace::{Event, Exit, Stop, Stopped};
use sys::regs::NO_SYSCALL;
use sys::tape::target::TargetTape;

use crate::account;

use super::attributes::{self, Capabilities, Filters};
use super::error::TargetError;
use super::files::Descriptions;
use super::mapping;
use super::plan::fds;
use super::plant::Channel;
use super::priority;
use super::resume;
use super::rootfs::RootFs;
use super::script::{Block, Call, call, load};
use super::skeleton::{Skeleton, TAPE_SIZE, Task, lost, trace};
use super::terminals::Terminals;
use super::threads::run_all;
use super::tree::Tree;

/// How long an entered call may take to fall asleep.
const SLEEP_LIMIT: Duration = Duration::from_secs(5);
/// How long a process may take to die.
const EXIT_LIMIT: Duration = Duration::from_secs(5);
const EPOLL_CTL_ADD: i32 = 1;

/// What the steps of a restore work on.
pub(crate) struct Restorer<'a> {
    pub(crate) tree: &'a mut Tree,
    pub(crate) tape: &'a TargetTape,
    pub(crate) channel: &'a Channel,
    pub(crate) image: &'a Image,
    pub(crate) capabilities: Capabilities,
}

/// The live processes of the image with their states.
fn live(image: &Image) -> impl Iterator<Item = &ProcessState> {
    image.processes.iter()
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
    /// Plants every descriptor at its number, then fills epoll sets.
    pub(crate) fn descriptors(&mut self, files: &Descriptions) -> Result<(), TargetError> {
        for process in live(self.image) {
            let plan = fds::plan(&process.fds);
            let skeleton = self.tree.get(process.pid)?;
            self.channel.fill_table(skeleton, self.tape, &plan, &|id| files.get(id))?;
        }
        for (id, targets) in epolls(&self.image.files) {
            self.fill_epoll(id, targets, files)?;
        }
        Ok(())
    }

    /// File locks: those of descriptions by the agent, those of processes by themselves.
    pub(crate) fn locks(&mut self, files: &Descriptions) -> Result<(), TargetError> {
        for lock in &self.image.files.locks {
            let FileLock { file, kind, write, start, length } = *lock;
            let missing = || TargetError::Image(format!("a lock of open file {file}, which is missing"));
            let held = files.get(file).ok_or_else(missing)?;
            let failed = TargetError::errno(format!("lock open file {file} again"));
            match kind {
                LockKind::Flock => sys::fds::flock(held, write).map_err(failed)?,
                LockKind::Ofd => sys::fds::lock_description(held, write, start, length).map_err(failed)?,
                LockKind::Posix(pid) => {
                    let process = live(self.image).find(|process| process.pid == pid).ok_or_else(missing)?;
                    let entry = process.fds.iter().find(|entry| entry.file == file).ok_or_else(missing)?;
                    let lock = Block::new(sys::fds::lock_argument(write, start, length));
                    let call = call!("F_SETLK", SYS_fcntl, entry.fd, libc::F_SETLK, lock);
                    self.tree.get(pid)?.run(self.tape, &[call])?;
                }
            }
        }
        Ok(())
    }

    /// Each session's foreground group; all groups are there, also those of processes that are to be dead.
    pub(crate) fn foreground(&mut self, terminals: &mut Terminals, root: &RootFs) -> Result<(), TargetError> {
        for terminal in &self.image.files.terminals {
            let Some((leader, pgid)) = terminal.session else { continue };
            let fds = live(self.image).find(|process| process.pid == leader).map(|process| &process.fds);
            let fds = fds.ok_or_else(|| {
                TargetError::Image(format!("terminal {}: its session has no leader", terminal.index))
            })?;
            let channel = fds::plan(fds).channel;
            let skeleton = self.tree.get(leader)?;
            let request = ("TIOCSPGRP", sys::tty::TIOCSPGRP, Block::new(pgid.to_le_bytes()).into());
            terminals.ask(skeleton, request, terminal.index, (root, self.tape, self.channel, channel))?;
        }
        Ok(())
    }

    /// An entry's key is the description together with the number under which it was added, so the set is
    /// filled by a process that has both.
    fn fill_epoll(
        &mut self,
        id: u32,
        targets: &[EpollTarget],
        files: &Descriptions,
    ) -> Result<(), TargetError> {
        let image = self.image;
        let holders = live(image).filter_map(|p| p.fds.iter().find(|e| e.file == id).map(|e| (p, e.fd)));
        let has = |p: &ProcessState, t: &EpollTarget| p.fds.iter().any(|e| e.fd == t.fd && e.file == t.file);
        let Some((process, epoll)) =
            holders.max_by_key(|(p, _)| targets.iter().filter(|t| has(p, t)).count())
        else {
            return Ok(());
        };
        let channel = fds::plan(&process.fds).channel;
        let skeleton = self.tree.get(process.pid)?;
        // What has fired once is disarmed: added while nothing else can answer, and fired again.
        let (fired, armed): (Vec<_>, Vec<_>) = targets.iter().partition(|t| t.fired);
        for target in fired.into_iter().chain(armed) {
            let mut calls = vec![add(epoll, target)];
            if target.fired {
                calls.push(call!("epoll_wait", SYS_epoll_wait, epoll, Block::new(vec![0; 12]), 1, 0));
            }
            if has(process, target) {
                skeleton.run(self.tape, &calls)?;
                continue;
            }
            // The number is closed, or leads elsewhere by now: it is lent for the moment.
            let file = files.get(target.file).ok_or_else(|| {
                TargetError::Image(format!("epoll {id} watches open file {}, which is missing", target.file))
            })?;
            let landed = self.channel.plant(skeleton, self.tape, channel, &[file])?;
            let number = landed.first().copied().unwrap_or(-1);
            let taken = process.fds.iter().find(|e| e.fd == target.fd).copied();
            lend(skeleton, self.tape, number, target.fd, taken, calls)?;
        }
        Ok(())
    }

    /// Dead children get their exit status; then every process its signal handlers, which throws the SIGCHLDs
    /// away that this and the making of skeletons caused.
    pub(crate) fn processes(&mut self) -> Result<(), TargetError> {
        let image = self.image;
        for shape in &image.shape.processes {
            if let Some(status) = shape.zombie {
                self.tree.make_zombie(shape.pid, status, self.tape)?;
            }
        }
        for process in live(image) {
            let skeleton = self.tree.get(process.pid)?;
            skeleton.run(self.tape, &attributes::signal_handlers(process))?;
            set_through_proc(skeleton, process)?;
        }
        Ok(())
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
            // One that has other credentials by now, or filters of its own, cannot be changed any more: it is made anew.
            let right = |task: &Task, thread: &Thread| {
                task.creds
                    .as_ref()
                    .is_none_or(|creds| *creds == thread.creds && !(filtered && thread.seccomp_mode != 0))
            };
            let stay = |task: &&Task| {
                all.contains(&task.tid) && own.get(&task.tid).is_some_and(|thread| right(task, thread))
            };
            let stay: Vec<Pid> = skeleton.threads.iter().filter(stay).map(|task| task.tid).collect();
            skeleton.set_threads(self.tape, &stay)?;
        }
        for process in live(self.image) {
            let tids: Vec<Pid> = process.threads.iter().skip(1).map(|thread| thread.tid).collect();
            self.tree.get(process.pid)?.set_threads(self.tape, &tids)?;
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
        let image = self.image;
        for process in live(image) {
            let pid = process.pid;
            let mm = image.shape.processes.iter().find(|p| p.pid == pid).map(|p| &p.mm);
            let channel = fds::plan(&process.fds).channel;
            let mut leader = attributes::process_before_credentials(process);
            leader.extend(mm.map(mapping::lock_memory).unwrap_or_default());
            leader.extend(attributes::posix_timers(&process.timers));
            leader.push(call!("close channel", SYS_close, channel));
            leader.extend(attributes::process_signals(process).map_err(TargetError::Refused)?);

            let skeleton = self.tree.get(pid)?;
            raise_limits(skeleton.host, process);
            let Some((first, others)) = process.threads.split_first() else {
                return Err(TargetError::Image(format!("pid {pid} has no thread")));
            };
            leader.extend(attributes::thread_before_credentials(process, first));
            leader.extend(attributes::thread_signals(pid, first).map_err(TargetError::Refused)?);
            skeleton.run(self.tape, &leader)?;
            priority::apply(skeleton.host, first)?;

            let one_history = attributes::one_history(process);
            let program = |task: &Task, thread: &Thread| {
                let own =
                    Filters { mode: thread.seccomp_mode, list: &thread.seccomp_filters, all_threads: false };
                let filters = if one_history { Filters::NONE } else { own };
                let mut calls = attributes::thread_before_credentials(process, thread);
                calls.extend(attributes::thread_signals(pid, thread).map_err(TargetError::Refused)?);
                if task.creds.is_none() {
                    calls.extend(attributes::credentials(&thread.creds, &filters, &self.capabilities));
                }
                calls.extend(attributes::thread_after_credentials(thread));
                Ok(calls)
            };
            let scheduled = |task: &mut Task, thread: &Thread| priority::apply(task.host, thread);
            run_all(&mut skeleton.threads, others, self.tape, program, scheduled)?;
            let all_threads = one_history && !others.is_empty();
            let filters = Filters { mode: first.seccomp_mode, list: &first.seccomp_filters, all_threads };
            let mut last = attributes::credentials(&first.creds, &filters, &self.capabilities);
            last.extend(attributes::thread_after_credentials(first));
            last.extend(attributes::process_after_credentials(process));
            last.extend(attributes::arm_posix_timers(&process.timers));
            skeleton.run(self.tape, &last)?;
        }
        Ok(())
    }

    /// Threads whose call the kernel restarts by itself enter it for the time that remains, and are
    /// interrupted. What each was answered, by its tid.
    pub(crate) fn enter_calls(&mut self) -> Result<BTreeMap<Pid, i64>, TargetError> {
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
                for (thread, task) in &mut *chunk {
                    let Resume::RestartBlock { nr, remaining_ns } = thread.resume else { continue };
                    let call = resume::entering(&thread.regs, nr, remaining_ns);
                    let program = load(&[call], TAPE_SIZE).program;
                    runs.push(self.tape.start(task.take()?, program).map_err(on_tape(thread.tid))?);
                }
                let mut asked = Vec::with_capacity(runs.len());
                for ((thread, _), run) in chunk.iter().zip(runs) {
                    let one = self.tape.interrupt_asleep(run, SLEEP_LIMIT);
                    asked.push(one.map_err(on_tape(thread.tid))?);
                }
                for ((thread, task), asked) in chunk.iter_mut().zip(asked) {
                    let (stopped, value) =
                        self.tape.interrupted(asked, SLEEP_LIMIT).map_err(on_tape(thread.tid))?;
                    task.put(stopped);
                    answers.insert(thread.tid, value);
                }
            }
        }
        Ok(answers)
    }

    /// Registers, xsave area and signal mask of every thread; the tape goes from each process.
    pub(crate) fn registers(&mut self, entered: &BTreeMap<Pid, i64>) -> Result<(), TargetError> {
        let image = self.image;
        for process in live(image) {
            let skeleton = self.tree.get(process.pid)?;
            let at = skeleton.syscall_instruction()?;
            let stopped = self.tape.remove(skeleton.leader.take()?, at).map_err(on_tape(process.pid))?;
            skeleton.leader.put(stopped);
            let memory = skeleton.memory.clone();
            let tasks = std::iter::once(&mut skeleton.leader).chain(&mut skeleton.threads);
            for (thread, task) in process.threads.iter().zip(tasks) {
                let primed = entered.get(&thread.tid).copied();
                let (regs, store) = resume::registers(&thread.regs, &thread.resume, primed);
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

    /// Job control had stopped them: they stop again, for the same signal.
    pub(crate) fn stop_stopped(&mut self) -> Result<(), TargetError> {
        for process in live(self.image).filter(|p| p.stopped) {
            let skeleton = self.tree.get(process.pid)?;
            skeleton.job_control_stop(process.stop_signal)?;
        }
        Ok(())
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

fn epolls(files: &Files) -> impl Iterator<Item = (u32, &[EpollTarget])> {
    files.open.iter().filter_map(|f| match &f.kind {
        FileKind::Epoll { targets } => Some((f.id, targets.as_slice())),
        _ => None,
    })
}

/// epoll_ctl(2) EPOLL_CTL_ADD. An entry that has fired is added armed for what is nearly always ready.
fn add(epoll: i32, target: &EpollTarget) -> Call {
    let ready = (libc::EPOLLIN | libc::EPOLLOUT).cast_unsigned();
    let events = if target.fired { target.events | ready } else { target.events };
    let mut event = events.to_le_bytes().to_vec();
    event.extend_from_slice(&target.data.to_le_bytes());
    call!("EPOLL_CTL_ADD", SYS_epoll_ctl, epoll, EPOLL_CTL_ADD, target.fd, Block::new(event))
}

/// Makes `calls` while `number` stands in for descriptor `fd`, which is `taken` by another or free.
fn lend(
    skeleton: &mut Skeleton,
    tape: &TargetTape,
    number: i32,
    fd: i32,
    taken: Option<FdEntry>,
    calls: Vec<Call>,
) -> Result<(), TargetError> {
    let mut all = Vec::new();
    let mut saved = None;
    if taken.is_some() {
        let ran = skeleton.run(tape, &[call!("dup", SYS_dup, fd)])?;
        saved = ran.answers.first().map(|a| a.value);
    }
    if number != fd {
        all.push(call!("dup3", SYS_dup3, number, fd, 0));
        all.push(call!("close", SYS_close, number));
    }
    all.extend(calls);
    match (saved, taken) {
        (Some(saved), Some(entry)) => {
            let flags = if entry.cloexec { libc::O_CLOEXEC } else { 0 };
            all.push(call!("dup3", SYS_dup3, saved, fd, flags));
            all.push(call!("close", SYS_close, saved));
        }
        _ => all.push(call!("close", SYS_close, fd)),
    }
    skeleton.run(tape, &all).map(drop)
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
        status: i32,
        tape: &TargetTape,
    ) -> Result<(), TargetError> {
        let (signal, code) = (status & 0x7f, (status >> 8) & 0xff);
        if status & 0x80 != 0 {
            return Err(refused(pid, "it has died and dumped core", "let its parent wait for it"));
        }
        let Some(mut skeleton) = self.skeletons.remove(&pid) else {
            return Err(lost(pid, "it does not exist"));
        };
        skeleton.set_threads(tape, &[])?;
        let at = skeleton.syscall_instruction()?;
        if signal != 0 {
            let default = Block::words(&[0, 0, 0, 0]);
            let calls =
                [call!("rt_sigaction", libc::SYS_rt_sigaction, signal, default, 0, 8)
                    .accept(&[libc::EINVAL])];
            skeleton.run(tape, &calls)?;
        }
        let (nr, args) =
            if signal == 0 { (libc::SYS_exit_group, [code, 0]) } else { (libc::SYS_kill, [pid, signal]) };
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

/// Raises what only the agent may raise: in a user namespace no skeleton has CAP_SYS_RESOURCE of the host, which
/// setrlimit(2) demands. Where it fails, the skeleton's own call fails as well, and says so.
fn raise_limits(host: i32, process: &ProcessState) {
    for (resource, limit) in (0..).zip(&process.rlimits) {
        if sys::prctl::rlimit(0, resource).is_ok_and(|own| limit.hard > own.hard) {
            let limit = sys::prctl::Rlimit { soft: limit.soft, hard: limit.hard };
            let _ = sys::prctl::set_rlimit(host, resource, limit);
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
