//! One skeleton process: making, clearing, running calls in it.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Duration;

use image::namespaces::Nested;
use image::shape::Mm;
use image::state::Creds;
use image::{Addr, Pid};
use libc::SYS_munmap;
use sys::Errno;
use sys::ptrace::{Event, Options, Running, Stopped};
use sys::tape::Size;
use sys::tape::target::{TargetDone, TargetRun, TargetTape, step_call};

use super::error::TargetError;
use super::nested::NestedMount;
use super::plan::memory::is_special;
use super::plan::tree::{Node, Place, Tables};
use super::plant::Channel;
use super::script::{Call, Loaded, call, load};
use crate::proc::maps;

/// End of what user space can map.
const USER_END: Addr = 0x7fff_ffff_f000;
/// Where tapes are put if nothing is in the way.
const TAPE_HOME: Addr = 0x100_0000_0000;
/// How far the next try is.
const TAPE_STRIDE: Addr = 0x100_0000;
/// How long one run of the tape may take: it opens files, which a network file system may delay.
const RUN_LIMIT: Duration = Duration::from_secs(60);
/// What one program on the tape may have, and how many threads may be on it at once.
pub(crate) const TAPE_SIZE: Size = Size { slots: 256, records: 1024, scratch: 192 * 1024 };
/// How long a stop may take.
const STOP_LIMIT: Duration = Duration::from_secs(10);

/// A range of addresses.
pub(crate) type Span = (Addr, Addr);

/// One thread of a skeleton.
#[derive(Debug)]
pub(crate) struct Task {
    /// Its tid in the container.
    pub(crate) tid: Pid,
    /// Its tid as the agent sees it.
    pub(crate) host: i32,
    /// What it may do, if that was set ahead: nothing that takes a privilege can be asked of it any more.
    pub(crate) creds: Option<Creds>,
    /// The tracee, except while it runs.
    stopped: Option<Stopped>,
}

/// A skeleton of a process.
#[derive(Debug)]
pub(crate) struct Skeleton {
    /// Who it is in the container.
    pub(crate) node: Node,
    /// Its pid as the agent sees it.
    pub(crate) host: i32,
    /// A pidfd of it.
    pub(crate) pidfd: OwnedFd,
    /// Its /proc/PID/mem.
    pub(crate) memory: Arc<File>,
    /// `[vvar]`, `[vvar_vclock]` and `[vdso]`, where they are now, ascending.
    pub(crate) special: Vec<(String, Span)>,
    /// Its pids in pid namespaces below the container's, the outermost first.
    pub(crate) pids_below: Vec<Pid>,
    /// Namespaces that are not the container's.
    pub(crate) namespaces: Nested,
    /// The mount namespace that it entered, when that is not the container's: one may be made anew under its number.
    pub(crate) entered: Option<Arc<NestedMount>>,
    /// What is mapped, as the last shape said it.
    pub(crate) mm: Mm,
    /// It holds nothing but tape and special mappings, and no descriptor but the channel; a template, if it has one.
    pub(crate) cleared: bool,
    /// What is mapped is the template: a process that it makes begins with it.
    pub(crate) template: bool,
    /// Its other threads: they die before the first one, which reports its death last.
    pub(crate) threads: Vec<Task>,
    /// Its first thread.
    pub(crate) leader: Task,
}

/// What a call answered.
#[derive(Clone, Debug, Default)]
pub(crate) struct Answer {
    /// Its return value.
    pub(crate) value: i64,
    /// What it left in its answer blocks, in their order.
    pub(crate) blocks: Vec<Vec<u8>>,
}

/// What a run of calls did.
#[derive(Debug, Default)]
pub(crate) struct Ran {
    /// One for each call.
    pub(crate) answers: Vec<Answer>,
    /// The processes and threads made, in order. Each is stopped, with all signals blocked.
    pub(crate) made: Vec<Stopped>,
}

fn open_memory(pid: Pid, host: i32) -> Result<Arc<File>, TargetError> {
    let path = format!("/proc/{host}/mem");
    let file = File::options().read(true).write(true).open(&path);
    Ok(Arc::new(file.map_err(|source| TargetError::Open { pid, path, source })?))
}

pub(crate) fn failed(pid: Pid, what: impl Into<String>) -> impl FnOnce(Errno) -> TargetError {
    let what = what.into();
    move |source| TargetError::Skeleton { pid, what, source }
}

pub(crate) fn lost(pid: Pid, what: impl Into<String>) -> TargetError {
    TargetError::Lost { pid, what: what.into() }
}

pub(crate) fn trace(pid: Pid) -> impl Fn(sys::ptrace::Error) -> TargetError {
    move |source| TargetError::Trace { pid, source }
}

fn on_tape(pid: Pid) -> impl Fn(sys::tape::target::TargetError) -> TargetError {
    move |source| TargetError::Tape { pid, source: Box::new(source) }
}

impl Task {
    /// A thread that was just made or seized.
    pub(crate) fn new(tid: Pid, mut stopped: Stopped) -> Result<Self, TargetError> {
        // Every signal waits until the restored mask is set: nothing interrupts the tape.
        stopped.set_sigmask(u64::MAX).map_err(trace(tid))?;
        Ok(Self { tid, host: stopped.tid(), creds: None, stopped: Some(stopped) })
    }

    /// The stopped tracee.
    ///
    /// # Errors
    /// [`TargetError::Lost`] when a failed step has killed it.
    pub(crate) fn stopped(&mut self) -> Result<&mut Stopped, TargetError> {
        let tid = self.tid;
        self.stopped.as_mut().ok_or_else(|| lost(tid, "it was killed by a failed step"))
    }

    /// Takes the stopped tracee away; [`Task::put`] brings it back.
    pub(crate) fn take(&mut self) -> Result<Stopped, TargetError> {
        let tid = self.tid;
        self.stopped.take().ok_or_else(|| lost(tid, "it was killed by a failed step"))
    }

    /// Brings the tracee back.
    pub(crate) fn put(&mut self, stopped: Stopped) {
        self.stopped = Some(stopped);
    }

    /// Makes one system call with the `syscall` instruction at `at`, without the tape.
    fn raw(&mut self, at: Addr, nr: i64, args: [u64; 6]) -> Result<u64, TargetError> {
        let (stopped, value) = step_call(self.take()?, at, nr, args).map_err(on_tape(self.tid))?;
        self.put(stopped);
        Ok(value.cast_unsigned())
    }

    /// Runs calls; the thread is stopped before and after.
    ///
    /// # Errors
    /// [`TargetError::Skeleton`] with the first call that failed and may not; those after it were not made.
    pub(crate) fn run(&mut self, tape: &TargetTape, calls: &[Call]) -> Result<Ran, TargetError> {
        let mut ran = Ran::default();
        while ran.answers.len() < calls.len() {
            let left = &calls[ran.answers.len()..];
            let (run, loaded) = self.start(tape, left)?;
            self.finish(tape, run, &loaded, left, &mut ran)?;
        }
        Ok(ran)
    }

    /// Sends the thread off to make calls; [`Task::land`] collects it.
    ///
    /// # Errors
    /// As [`Task::run`].
    pub(crate) fn send_off(&mut self, tape: &TargetTape, calls: Vec<Call>) -> Result<Flight, TargetError> {
        let (run, loaded) = self.start(tape, &calls)?;
        Ok(Flight { run, loaded, calls })
    }

    /// Waits until the thread stands still again, all its calls made.
    ///
    /// # Errors
    /// As [`Task::run`].
    pub(crate) fn land(&mut self, tape: &TargetTape, flight: Flight) -> Result<(), TargetError> {
        let Flight { run, loaded, calls } = flight;
        let mut ran = Ran::default();
        self.finish(tape, run, &loaded, &calls, &mut ran)?;
        // What did not fit.
        self.run(tape, &calls[ran.answers.len()..]).map(drop)
    }

    /// Starts as many calls as fit.
    fn start(&mut self, tape: &TargetTape, calls: &[Call]) -> Result<(TargetRun, Loaded), TargetError> {
        let mut loaded = load(calls, TAPE_SIZE);
        if loaded.count == 0 && !calls.is_empty() {
            return Err(TargetError::Image(format!(
                "pid {}: {} needs too much memory",
                self.tid, calls[0].what
            )));
        }
        let program = std::mem::take(&mut loaded.program);
        let run = tape.start(self.take()?, program).map_err(on_tape(self.tid))?;
        Ok((run, loaded))
    }

    fn finish(
        &mut self,
        tape: &TargetTape,
        run: TargetRun,
        loaded: &Loaded,
        calls: &[Call],
        ran: &mut Ran,
    ) -> Result<(), TargetError> {
        let TargetDone { stopped, outcome, born } = tape.finish(run, RUN_LIMIT).map_err(on_tape(self.tid))?;
        self.put(stopped);
        ran.made.extend(born);
        let refused = calls.iter().zip(outcome.results()).find(|(call, value)| {
            let errno = i32::try_from(-**value).unwrap_or(0);
            (1..=4095).contains(&errno) && !call.accepted.contains(&errno)
        });
        if let Some((call, value)) = refused {
            let errno = Errno::from_raw(i32::try_from(-value).unwrap_or(0));
            return Err(failed(self.tid, describe(call))(errno));
        }
        for (index, value) in outcome.results().iter().enumerate() {
            let blocks = loaded.answers.iter().filter(|(call, _)| *call == index);
            let blocks = blocks.map(|(_, block)| outcome.bytes(*block).to_vec()).collect();
            ran.answers.push(Answer { value: *value, blocks });
        }
        Ok(())
    }
}

/// A thread that makes its calls.
#[derive(Debug)]
pub(crate) struct Flight {
    run: TargetRun,
    loaded: Loaded,
    calls: Vec<Call>,
}

impl Skeleton {
    /// Takes the container's root process over and puts the tape into it.
    pub(crate) fn adopt(host: i32, channel: &Channel) -> Result<(Self, TargetTape), TargetError> {
        let base = Options::EXITKILL.with(Options::TRACE_BIRTHS).with(Options::SUSPEND_SECCOMP);
        let pidfd = sys::pidfd::open(host).map_err(failed(0, "pidfd_open"))?;
        let running = Running::seize(host, base).map_err(trace(0))?;
        let stopped = running.stop(STOP_LIMIT, &mut Vec::new()).and_then(Event::stopped).map_err(trace(0))?;
        let status = crate::proc::status::read(host).map_err(|e| lost(0, e.to_string()))?;
        let innermost = |list: &[i32]| list.last().copied().unwrap_or(0);
        let node = Node {
            pid: status.inner_pid(),
            ppid: 0,
            pgid: innermost(&status.ns_pgid),
            sid: innermost(&status.ns_sid),
            exit_signal: libc::SIGCHLD,
            tty: None,
            place: Place::default(),
            tables: Tables::own(status.inner_pid()),
        };
        let mut skeleton = Self {
            memory: open_memory(node.pid, host)?,
            node,
            host,
            pidfd,
            special: Vec::new(),
            pids_below: Vec::new(),
            namespaces: Nested::default(),
            entered: None,
            mm: Mm::default(),
            cleared: false,
            template: false,
            leader: Task::new(node.pid, stopped)?,
            threads: Vec::new(),
        };
        let tape = skeleton.install_tape(channel)?;
        Ok((skeleton, tape))
    }

    /// A process that `self` has just made; it is stopped and has a copy of everything of `self`.
    pub(crate) fn child(
        &self,
        node: Node,
        pids_below: Vec<Pid>,
        stopped: Stopped,
    ) -> Result<Self, TargetError> {
        let host = stopped.tid();
        Ok(Self {
            node,
            host,
            pidfd: sys::pidfd::open(host).map_err(failed(node.pid, "pidfd_open"))?,
            memory: open_memory(node.pid, host)?,
            special: self.special.clone(),
            pids_below,
            namespaces: self.namespaces,
            entered: self.entered.clone(),
            mm: if self.template { self.mm.clone() } else { Mm::default() },
            cleared: false,
            template: self.template,
            leader: Task::new(node.pid, stopped)?,
            threads: Vec::new(),
        })
    }

    /// Its pid as it knows it itself.
    pub(crate) fn own_pid(&self) -> Pid {
        self.pids_below.last().copied().unwrap_or(self.node.pid)
    }

    /// Its pid as a process at that place knows it, whose pid namespace is its own or around it.
    pub(crate) fn pid_at(&self, place: &Place) -> Pid {
        let below = place.depth.checked_sub(1).and_then(|at| self.pids_below.get(at));
        below.copied().unwrap_or(self.node.pid)
    }

    /// The agent's number of one of its threads.
    pub(crate) fn host_of_thread(&self, tid: Pid) -> Option<i32> {
        std::iter::once(&self.leader).chain(&self.threads).find(|t| t.tid == tid).map(|t| t.host)
    }

    /// The rseq(2) registration of the first thread: address, size, signature.
    pub(crate) fn rseq(&mut self) -> Result<Option<(Addr, u32, u32)>, TargetError> {
        let pid = self.node.pid;
        let rseq = self.leader.stopped()?.rseq().map_err(trace(pid))?;
        Ok(rseq.map(|r| (r.address, r.size, r.signature)))
    }

    /// Maps the tape; its memory comes over the channel.
    fn install_tape(&mut self, channel: &Channel) -> Result<TargetTape, TargetError> {
        let pid = self.node.pid;
        let tape = TargetTape::create(TAPE_SIZE).map_err(on_tape(pid))?;
        let mapped = self.read_maps()?;
        self.special = special_of(&mapped);
        let at = self.syscall_instruction()?;
        // Its own memory is of no use any more: a page of its stack holds the message.
        let writable =
            mapped.iter().find(|m| m.name == b"[stack]").or_else(|| mapped.iter().find(|m| m.prot & 2 != 0));
        let page = writable.ok_or_else(|| lost(pid, "the root process has no writable memory"))?.end - 4096;
        channel.send(&[tape.fd()])?;
        let (message, control) = channel.message(page);
        self.poke(page, &message)?;
        let number = u64::from(channel.number.cast_unsigned());
        self.leader.raw(at, libc::SYS_recvmsg, [number, page, 0, 0, 0, 0])?;
        let mut landed = [0; 4];
        self.memory.read_exact_at(&mut landed, control).map_err(TargetError::system("read a message"))?;

        let spans: Vec<Span> = mapped.iter().map(|m| (m.start, m.end)).collect();
        let home = free_span(tape.len(), &[&spans]);
        let stopped =
            tape.install(self.leader.take()?, at, home, i32::from_le_bytes(landed)).map_err(on_tape(pid))?;
        self.leader.put(stopped);
        Ok(tape)
    }

    /// The kernel's list of its mappings.
    pub(crate) fn read_maps(&self) -> Result<Vec<maps::Entry>, TargetError> {
        maps::read_maps(self.host).map_err(|e| lost(self.node.pid, e.to_string()))
    }

    fn poke(&self, at: Addr, bytes: &[u8]) -> Result<(), TargetError> {
        self.memory
            .write_all_at(bytes, at)
            .map_err(TargetError::system(format!("write to pid {}", self.node.pid)))
    }

    /// The address of a `syscall` instruction in the vDSO.
    pub(crate) fn syscall_instruction(&self) -> Result<Addr, TargetError> {
        let pid = self.node.pid;
        let (_, (start, end)) =
            self.special.iter().find(|(n, _)| n == "[vdso]").ok_or_else(|| lost(pid, "it has no vDSO"))?;
        let mut code = vec![0; usize::try_from(end - start).unwrap_or(0)];
        self.memory.read_exact_at(&mut code, *start).map_err(TargetError::system("read the vDSO"))?;
        let offset = code.windows(2).position(|w| w == [0x0f, 0x05]);
        Ok(start + offset.ok_or_else(|| lost(pid, "its vDSO has no syscall instruction"))? as u64)
    }

    /// A file of the shared memory that is mapped at `start`, `size` bytes of it.
    pub(crate) fn open_mapping(&self, start: Addr, size: u64) -> Result<File, TargetError> {
        let end = start + size.next_multiple_of(image::PAGE_SIZE);
        let path = format!("/proc/{}/map_files/{start:x}-{end:x}", self.host);
        let file = File::options().read(true).write(true).open(&path);
        file.map_err(|source| TargetError::Open { pid: self.node.pid, path, source })
    }

    /// Runs calls on the first thread.
    pub(crate) fn run(&mut self, tape: &TargetTape, calls: &[Call]) -> Result<Ran, TargetError> {
        self.leader.run(tape, calls)
    }

    /// Unmaps everything but the tape, the kernel's mappings and the template.
    pub(crate) fn clearing(&self, tape: &TargetTape) -> Vec<Call> {
        let mut keep: Vec<Span> = self.special.iter().map(|(_, span)| *span).collect();
        keep.push((tape.address(), tape.address() + tape.len()));
        if self.template {
            let own = self.mm.vmas.iter().filter(|vma| !is_special(vma));
            keep.extend(own.map(|vma| (vma.start, vma.end)));
        }
        keep.sort_unstable();
        let mut calls = Vec::new();
        let mut from = 0;
        for (start, end) in keep.into_iter().chain([(USER_END, USER_END)]) {
            if start > from {
                calls.push(call!("munmap", SYS_munmap, from, start - from));
            }
            from = end;
        }
        calls
    }

    /// Kills it, waits until it is dead and takes its exit status, so that its parent can have it.
    pub(crate) fn kill(self) {
        let tasks = self.threads.into_iter().chain(std::iter::once(self.leader));
        sys::ptrace::kill_all(tasks.filter_map(|task| task.stopped));
    }
}

/// A call with its arguments, as far as they are numbers.
fn describe(call: &Call) -> String {
    let args: Vec<String> = call.args.iter().map(ToString::to_string).collect();
    format!("{}({})", call.what, args.join(", "))
}

pub(crate) fn overlap(a: Span, b: Span) -> bool {
    a.0 < b.1 && b.0 < a.1
}

/// The kernel's own mappings.
fn special_of(mapped: &[maps::Entry]) -> Vec<(String, Span)> {
    let names = ["[vdso]", "[vvar]", "[vvar_vclock]"];
    mapped
        .iter()
        .filter_map(|m| {
            let name = std::str::from_utf8(&m.name).ok()?;
            names.contains(&name).then(|| (name.to_owned(), (m.start, m.end)))
        })
        .collect()
}

/// `len` bytes that none of the lists holds.
pub(crate) fn free_span(len: u64, held: &[&[Span]]) -> Addr {
    let mut at = TAPE_HOME;
    while held.iter().flat_map(|h| h.iter()).any(|s| overlap(*s, (at, at + len))) {
        at += TAPE_STRIDE;
    }
    at
}
