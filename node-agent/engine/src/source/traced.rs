//! One process under observation: its tape, its tracker, and its threads while they are parked.

use std::time::{Duration, Instant};

use sys::ptrace::{Stop, Stopped};
use sys::restart;
use sys::tape::source::{Config, Context, Parked, SourceTape};
use sys::tape::{Program, Size, VdsoError};
use sys::uffd::Uffd;

use super::error::{SourceError, TRY_AGAIN};
use super::resuming::{Known, as_landed, park_signal, read_context};
use super::stopping::{Held, Nap, let_go, let_running_go, places, signal_targets_last};
use super::tree::Process;
use crate::proc::status::Status;

/// Longest time that a tape may take.
pub(crate) const TAPE_LIMIT: Duration = Duration::from_secs(10);

/// O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY.
const UFFD_FLAGS: u64 = 0o2_000_000 | 0o4_000 | 1;

/// A tape error as ours.
pub(crate) fn tape_error(what: &str, pid: i32, error: sys::tape::source::SourceError) -> SourceError {
    match error {
        sys::tape::source::SourceError::Trace(error) => super::stopping::trace_error(what, error),
        sys::tape::source::SourceError::Vdso(VdsoError::Leftover { pid }) => SourceError::Leftover { pid },
        other => SourceError::kernel(what, pid, std::io::Error::other(other)),
    }
}

/// The tapes of one process. One is enough, unless threads were made after it.
#[derive(Debug)]
pub(crate) struct Tapes {
    pub(crate) pid: i32,
    tapes: Vec<SourceTape>,
    pub(crate) park_signal: i32,
    /// The thread that was stopped to put the first one in, and since when its call had slept.
    asleep: Option<(i32, Instant)>,
}

/// A thread that stands at the end of a tape, with what was known when it was stopped.
#[derive(Debug)]
pub(crate) struct ParkedThread {
    pub(crate) tid: i32,
    pub(crate) parked: Parked,
    /// Which of the process's tapes it is on.
    tape: usize,
    pub(crate) stop: Stop,
    pub(crate) resume: restart::Resume,
    /// /proc/PID/task/TID/status since it stands still.
    pub(crate) status: Status,
    /// Index of each program that was run on it with its outcome.
    pub(crate) outcomes: Vec<sys::tape::Outcome>,
}

impl Tapes {
    /// Puts a tape into a process; the thread is parked on it afterwards.
    pub(crate) fn install(
        process: &Process,
        thread: Stopped,
        nap: &Nap,
    ) -> Result<(Self, ParkedThread), SourceError> {
        let pid = process.pid;
        let Some(park_signal) = park_signal(&process.status) else {
            let_go(thread, nap)?;
            return Err(SourceError::Refused(vec![image::Refusal {
                pid: process.inner,
                subject: image::Subject::Process,
                reason: "it handles SIGWINCH, SIGURG and SIGCHLD, or they wait for it: none is left to stop its threads by"
                    .to_owned(),
                way_out: "have the program leave one of them to its default".to_owned(),
            }]));
        };
        let mut tapes = Self { pid, tapes: Vec::new(), park_signal, asleep: None };
        let stopped = Instant::now();
        let parked = tapes.add(process, thread, nap)?;
        let slept = nap.unbroken(&parked.status).slept;
        // Of a call that goes on already only its own note tells.
        let fresh = parked.parked.context().regs().syscall() != Some(restart::NR_RESTART_SYSCALL);
        let known = fresh && !slept.is_zero();
        tapes.asleep = stopped.checked_sub(slept).filter(|_| known).map(|since| (parked.tid, since));
        Ok((tapes, parked))
    }

    /// Puts one more tape in.
    fn add(&mut self, process: &Process, thread: Stopped, nap: &Nap) -> Result<ParkedThread, SourceError> {
        let config = Config {
            size: Size { slots: (process.tids.len() * 4).max(64), ..Size::default() },
            park_signal: self.park_signal,
            suspend_seccomp: process.status.seccomp != 0,
        };
        let stop = thread.stop();
        let tid = thread.tid();
        let memory = super::stopping::memory(self.pid);
        let (thread, (context, resume, status)) =
            self.look(thread, nap, |thread| read_context(self.pid, &memory?, thread, nap, None))?;
        let (tape, parked) = SourceTape::install(self.pid, thread, context, config)
            .map_err(|error| tape_error("put a tape in", self.pid, error))?;
        self.tapes.push(tape);
        let resume = as_landed(self.pid, &parked, &context, resume, nap);
        Ok(ParkedThread {
            tid,
            parked,
            tape: self.tapes.len() - 1,
            stop,
            resume,
            status,
            outcomes: Vec::new(),
        })
    }

    /// Looks at a thread before it goes on a tape; lets it go when that cannot be.
    fn look(
        &self,
        thread: Stopped,
        nap: &Nap,
        read: impl FnOnce(&Stopped) -> Result<Known, SourceError>,
    ) -> Result<(Stopped, Known), SourceError> {
        let looked = read(&thread).and_then(|known| self.nothing_waits(&known.2).map(|()| known));
        match looked {
            Ok(known) => Ok((thread, known)),
            Err(error) => {
                let_go(thread, nap)?;
                Err(error)
            }
        }
    }

    /// The tape would take the signal that threads are parked by from the program.
    fn nothing_waits(&self, status: &Status) -> Result<(), SourceError> {
        let waits = (status.sig_pending | status.shared_pending) >> (self.park_signal - 1) & 1 == 1;
        if !waits {
            return Ok(());
        }
        Err(SourceError::Refused(vec![image::Refusal {
            pid: status.inner_pid(),
            subject: image::Subject::Process,
            reason: format!(
                "signal {} waits for it, by which its threads are to be stopped",
                self.park_signal
            ),
            way_out: TRY_AGAIN.to_owned(),
        }]))
    }

    /// Runs a program on each thread; all run at once. Every thread is parked afterwards.
    pub(crate) fn run(
        &mut self,
        process: &Process,
        held: &mut Held,
        threads: Vec<Stopped>,
        program: impl Fn(usize) -> Program,
    ) -> Result<Vec<ParkedThread>, SourceError> {
        let sent = self.send_off(process, held, threads, program);
        self.land(process, sent)
    }

    /// Has each thread run a program, and waits for none; [`Tapes::land`] must follow, whatever else fails.
    pub(crate) fn send_off(
        &mut self,
        process: &Process,
        held: &mut Held,
        threads: Vec<Stopped>,
        program: impl Fn(usize) -> Program,
    ) -> SentOff {
        let mut sent = SentOff { flights: Vec::with_capacity(threads.len()), ..SentOff::default() };
        for (index, thread) in threads.into_iter().enumerate() {
            let nap = held.nap(thread.tid());
            if sent.failed.is_some() {
                held.stopped.push(thread);
                continue;
            }
            match self.start(process, thread, &nap, program(index)) {
                Ok(Started::Flying(flight)) => sent.flights.push(*flight),
                Ok(Started::Parked(parked)) => sent.done.push(*parked),
                // It was killed meanwhile; the process is ending.
                Err(SourceError::ThreadGone { .. }) => {}
                Err(error) => sent.failed = Some(error),
            }
        }
        sent
    }

    /// Waits until all threads that were sent off are parked.
    pub(crate) fn land(
        &mut self,
        process: &Process,
        sent: SentOff,
    ) -> Result<Vec<ParkedThread>, SourceError> {
        let SentOff { flights, mut done, mut failed } = sent;
        for flight in flights {
            let Flying { tid, flight, tape, stop, context, resume, status, nap } = flight;
            match self.tapes[tape].wait(flight, TAPE_LIMIT) {
                Ok(parked) => done.push(ParkedThread {
                    tid,
                    outcomes: vec![parked.outcome().clone()],
                    resume: as_landed(self.pid, &parked, &context, resume, &nap),
                    parked,
                    tape,
                    stop,
                    status,
                }),
                Err(sys::tape::source::SourceError::Trace(error)) if error.is_gone() => {}
                Err(error) => {
                    failed.get_or_insert(tape_error("run a tape", self.pid, error));
                }
            }
        }
        let places = places(&process.tids);
        done.sort_by_key(|thread| places.get(&thread.tid).copied());
        match failed {
            None => Ok(done),
            Some(error) => {
                for thread in done {
                    self.detach(thread)?;
                }
                Err(error)
            }
        }
    }

    fn start(
        &mut self,
        process: &Process,
        thread: Stopped,
        nap: &Nap,
        program: Program,
    ) -> Result<Started, SourceError> {
        let Some(tape) = self.tapes.iter().position(|tape| tape.free_slots() > 0) else {
            let parked = self.add(process, thread, nap)?;
            return Ok(Started::Parked(Box::new(self.again(parked, program)?)));
        };
        let earlier = self.asleep_for(thread.tid());
        let memory = self.tapes[tape].memory();
        let (thread, (context, resume, status)) =
            self.look(thread, nap, |thread| read_context(self.pid, memory, thread, nap, earlier))?;
        let (stop, tid) = (thread.stop(), thread.tid());
        let flight = self.tapes[tape]
            .start(thread, context, program)
            .map_err(|error| tape_error("start a tape", self.pid, error))?;
        let nap = nap.clone();
        Ok(Started::Flying(Box::new(Flying { tid, flight, tape, stop, context, resume, status, nap })))
    }

    /// How long the call has slept by now that was interrupted when the first tape was put in, if it was this thread's.
    fn asleep_for(&self, tid: i32) -> Option<Duration> {
        self.asleep.filter(|(asleep, _)| *asleep == tid).map(|(_, since)| since.elapsed())
    }

    /// Whether the process still has them: an exec takes them away.
    pub(crate) fn is_current(&self) -> bool {
        self.tapes.iter().all(|tape| has_tape(self.pid, &tape.code_range()))
    }

    /// Parks a stopped thread on the first tape.
    pub(crate) fn park(&self, thread: Stopped, nap: &Nap) -> Result<ParkedThread, SourceError> {
        let earlier = self.asleep_for(thread.tid());
        let memory = self.tapes[0].memory();
        let (thread, (context, resume, status)) =
            self.look(thread, nap, |thread| read_context(self.pid, memory, thread, nap, earlier))?;
        let (stop, tid) = (thread.stop(), thread.tid());
        let fail = |error| tape_error("park a thread", self.pid, error);
        let tape = &self.tapes[0];
        let flight = tape.start(thread, context, Program::new()).map_err(fail)?;
        let parked = tape.wait(flight, TAPE_LIMIT).map_err(fail)?;
        let resume = as_landed(self.pid, &parked, &context, resume, nap);
        Ok(ParkedThread { tid, parked, tape: 0, stop, resume, status, outcomes: Vec::new() })
    }

    /// Runs one more program on a parked thread.
    pub(crate) fn again(&self, thread: ParkedThread, program: Program) -> Result<ParkedThread, SourceError> {
        let tape = &self.tapes[thread.tape];
        let fail = |error| tape_error("run a tape", self.pid, error);
        let parked = thread.parked.start(tape, program).map_err(fail)?;
        let parked = tape.wait(parked, TAPE_LIMIT).map_err(fail)?;
        let mut outcomes = thread.outcomes;
        outcomes.push(parked.outcome().clone());
        Ok(ParkedThread { parked, outcomes, ..thread })
    }

    /// Makes a userfaultfd inside the process with the help of a parked thread and takes it out.
    pub(crate) fn make_uffd(&self, thread: ParkedThread) -> Result<(Uffd, ParkedThread), SourceError> {
        let mut program = Program::new();
        let call = program.call(libc::SYS_userfaultfd, &[UFFD_FLAGS.into()]);
        program.after(libc::SYS_close, &[call.into()]);
        let mut thread = self.again(thread, program)?;
        let outcome = thread.outcomes.pop().unwrap_or_default();
        let tape = &self.tapes[thread.tape];
        let made = match outcome.failed() {
            Some(failed) => {
                Err(SourceError::kernel("userfaultfd inside the process", self.pid, failed.errno))
            }
            None => i32::try_from(outcome.result(call))
                .map_err(|_| {
                    SourceError::kernel("userfaultfd inside the process", self.pid, sys::Errno::EBADF)
                })
                .and_then(|fd| {
                    thread
                        .parked
                        .take_fd(tape, fd)
                        .map_err(|error| tape_error("take the userfaultfd out", self.pid, error))
                }),
        };
        // The descriptor in the process is closed whatever came of it.
        let thread = self.undo(thread, "close the userfaultfd inside the process")?;
        match made {
            Ok(fd) => Ok((Uffd::from(fd), thread)),
            Err(error) => {
                self.detach(thread)?;
                Err(error)
            }
        }
    }

    /// Runs the calls of [`Program::after`].
    pub(crate) fn undo(&self, thread: ParkedThread, what: &str) -> Result<ParkedThread, SourceError> {
        let parked = thread.parked.run_after(&self.tapes[thread.tape], TAPE_LIMIT);
        let parked = parked.map_err(|error| tape_error(what, self.pid, error))?;
        Ok(ParkedThread { parked, ..thread })
    }

    /// Lets a parked thread run on untraced, as it was.
    pub(crate) fn detach(&self, thread: ParkedThread) -> Result<(), SourceError> {
        match thread.parked.detach(&self.tapes[thread.tape]) {
            Err(sys::tape::source::SourceError::Trace(error)) if error.is_gone() => Ok(()),
            other => other.map_err(|error| tape_error("let a thread go", self.pid, error)),
        }
    }

    /// Lets parked threads run on untraced.
    pub(crate) fn detach_all(&self, mut threads: Vec<ParkedThread>) -> Result<(), SourceError> {
        self.signal_targets_last(&mut threads);
        let mut result = Ok(());
        for thread in threads.into_iter().rev() {
            result = result.and(self.detach(thread));
        }
        result
    }

    fn signal_targets_last(&self, threads: &mut [ParkedThread]) {
        let tids: Vec<i32> = threads.iter().map(|thread| thread.tid).collect();
        let places = places(&signal_targets_last(self.pid, &tids));
        threads.sort_by_key(|thread| places.get(&thread.tid).copied());
    }

    /// Lets all parked threads run on and takes the tapes out of the process.
    pub(crate) fn remove(mut self, mut threads: Vec<ParkedThread>) -> Result<(), SourceError> {
        let mut result = Ok(());
        // One thread of each tape stays to unmap it.
        let mut last: Vec<Option<ParkedThread>> = self.tapes.iter().map(|_| None).collect();
        self.signal_targets_last(&mut threads);
        for thread in threads.drain(..).rev() {
            // The last that comes stays.
            if let Some(before) = last[thread.tape].replace(thread) {
                result = result.and(self.detach(before));
            }
        }
        for (tape, thread) in self.tapes.drain(..).zip(last) {
            let Some(thread) = thread else {
                tracing::warn!(
                    pid = self.pid,
                    "a tape is left in the process: no thread of it is parked there"
                );
                continue;
            };
            let code = tape.code_range();
            let removed = match tape.remove(thread.parked) {
                Ok(running) => let_running_go(running),
                // It ended, or runs another program since: nothing of ours is left in it.
                Err(_) if !has_tape(self.pid, &code) => Ok(()),
                Err(error) => Err(tape_error("take a tape out", self.pid, error)),
            };
            result = result.and(removed);
        }
        result
    }
}

/// Whether a tape is still in the process; `code`: the mapping of its code.
fn has_tape(pid: i32, code: &std::ops::Range<u64>) -> bool {
    // One mapping, not all of them: a process may have tens of thousands.
    let link = format!("map_files/{:x}-{:x}", code.start, code.end);
    crate::proc::links::read(pid, &link).is_ok_and(|name| is_tape(&name))
}

/// Whether a name in maps is that of a tape.
pub(crate) fn is_tape(name: &[u8]) -> bool {
    name.strip_prefix(b"/memfd:").is_some_and(|name| name.starts_with(sys::tape::AREA_NAME.as_bytes()))
}

enum Started {
    Flying(Box<Flying>),
    Parked(Box<ParkedThread>),
}

/// Threads on their way over a tape.
#[derive(Debug, Default)]
pub(crate) struct SentOff {
    flights: Vec<Flying>,
    done: Vec<ParkedThread>,
    failed: Option<SourceError>,
}

#[derive(Debug)]
struct Flying {
    tid: i32,
    flight: sys::tape::source::InFlight,
    tape: usize,
    stop: Stop,
    /// As it was when the thread was sent off, and what was decided from that.
    context: Context,
    resume: restart::Resume,
    status: Status,
    nap: Nap,
}
