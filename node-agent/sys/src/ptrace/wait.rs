//! Waiting for stops: one tracee, or many at once.

use std::cell::RefCell;
use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::{Core, Error, Options, Running, Stopped, Tid, kill, plain};
use crate::Errno;

/// How a tracee ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// exit(2) with this status.
    Code(i32),
    /// Killed by this signal.
    Signal(i32),
    /// Already waited for, or its leader went on after an exec.
    Unknown,
}

/// Why a tracee stands still.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// PTRACE_INTERRUPT, or a new tracee's first stop. On its way to user code: registers are free.
    Interrupt,
    /// Job control: the process was stopped by this signal. Registers are free.
    Group(i32),
    /// About to receive this signal. Registers are free; resume with the signal, or it is lost.
    Signal(i32),
    /// In the middle of a system call, with this event: registers must be left alone.
    Event(TraceEvent, u64),
}

/// PTRACE_EVENT_*; the number beside it in [`Stop::Event`] is PTRACE_GETEVENTMSG.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TraceEvent {
    /// A new thread (message: its tid).
    Clone,
    /// A new process (message: its pid).
    Fork,
    /// A new process by vfork (message: its pid).
    Vfork,
    /// execve(2) succeeded (message: the former tid).
    Exec,
    /// Another event, by number.
    Other(i32),
}

/// What a wait found.
#[derive(Debug)]
pub enum Event {
    /// It stands still.
    Stopped(Stopped),
    /// It is dead.
    Exited(Tid, Exit),
    /// The time is over and it still runs.
    TimedOut(Running),
}

impl Event {
    /// The stopped tracee.
    ///
    /// # Errors
    /// [`Error::Gone`] or [`Error::Timeout`] for the other two.
    pub fn stopped(self) -> Result<Stopped, Error> {
        match self {
            Self::Stopped(stopped) => Ok(stopped),
            Self::Exited(tid, _) => Err(Error::Gone { tid }),
            Self::TimedOut(running) => Err(Error::Timeout { tid: running.tid() }),
        }
    }
}

/// How long the wait only yields the CPU before it sleeps between looks.
const SPIN: Duration = Duration::from_millis(2);
const NAP: Duration = Duration::from_micros(100);

fn look(tid: Tid) -> crate::Result<Option<i32>> {
    let mut status = 0;
    let flags = libc::__WALL | libc::__WNOTHREAD | libc::WNOHANG;
    // SAFETY: `status` is a live integer for the kernel to fill.
    let answer = unsafe { libc::waitpid(tid, &raw mut status, flags) };
    Ok((Errno::result(answer)? > 0).then_some(status))
}

fn poll(tid: Tid, limit: Duration) -> crate::Result<Option<i32>> {
    let start = Instant::now();
    loop {
        match look(tid) {
            Ok(Some(status)) => return Ok(Some(status)),
            Ok(None) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
        let waited = start.elapsed();
        if waited >= limit {
            return Ok(None);
        }
        if waited < SPIN {
            std::thread::yield_now();
        } else {
            std::thread::sleep(NAP);
        }
    }
}

fn classify(status: i32) -> Stop {
    let signal = (status >> 8) & 0xff;
    match status >> 16 {
        0 => Stop::Signal(signal),
        libc::PTRACE_EVENT_STOP if signal == libc::SIGTRAP => Stop::Interrupt,
        libc::PTRACE_EVENT_STOP => Stop::Group(signal),
        libc::PTRACE_EVENT_CLONE => Stop::Event(TraceEvent::Clone, 0),
        libc::PTRACE_EVENT_FORK => Stop::Event(TraceEvent::Fork, 0),
        libc::PTRACE_EVENT_VFORK => Stop::Event(TraceEvent::Vfork, 0),
        libc::PTRACE_EVENT_EXEC => Stop::Event(TraceEvent::Exec, 0),
        other => Stop::Event(TraceEvent::Other(other), 0),
    }
}

pub(super) fn wait(running: Running, limit: Duration) -> Result<Event, Error> {
    let tid = running.tid();
    let status = match poll(tid, limit) {
        Ok(Some(status)) => status,
        Ok(None) => return Ok(Event::TimedOut(running)),
        Err(Errno::ECHILD) => {
            let _ = running.into_core();
            return Ok(Event::Exited(tid, Exit::Unknown));
        }
        Err(errno) => return Err(Error::new("waitpid", tid, errno)),
    };
    let interrupting = running.interrupting.get();
    let core = running.into_core();
    if libc::WIFEXITED(status) {
        return Ok(Event::Exited(tid, Exit::Code(libc::WEXITSTATUS(status))));
    }
    if libc::WIFSIGNALED(status) {
        return Ok(Event::Exited(tid, Exit::Signal(libc::WTERMSIG(status))));
    }
    let mut stopped = Stopped::new(core, classify(status), interrupting);
    if let Stop::Event(event, _) = stopped.stop() {
        let message = stopped.event_message().unwrap_or(0);
        stopped.set_stop(Stop::Event(event, message));
    }
    Ok(Event::Stopped(stopped))
}

/// Waits for an interrupt's or a group stop; lets signals and events pass.
pub(super) fn settle(mut running: Running, limit: Duration, born: &mut Vec<Running>) -> Result<Event, Error> {
    let end = Instant::now() + limit;
    loop {
        let tid = running.tid();
        let left = end.saturating_duration_since(Instant::now());
        let stopped = match wait(running, left)? {
            Event::Stopped(stopped) => stopped,
            other => return Ok(other),
        };
        let resumed = match stopped.stop() {
            Stop::Interrupt | Stop::Group(_) => return Ok(Event::Stopped(stopped)),
            Stop::Signal(signal) => stopped.cont(signal),
            Stop::Event(event, message) => {
                if matches!(event, TraceEvent::Clone | TraceEvent::Fork | TraceEvent::Vfork)
                    && let Ok(child) = Tid::try_from(message)
                {
                    born.push(Running::adopted(child, stopped.options()));
                }
                stopped.cont(0)
            }
        };
        running = match resumed {
            Ok(running) => running,
            // Killed while stopped: its status is yet to come.
            Err(error) if error.is_gone() => Running::adopted(tid, Options::NONE),
            Err(error) => return Err(error),
        };
    }
}

/// What [`stop_all`] achieved.
#[derive(Debug, Default)]
pub struct StoppedAll {
    /// Standing still, in the order given; tasks born meanwhile follow.
    pub stopped: Vec<Stopped>,
    /// Those that had died.
    pub exited: Vec<(Tid, Exit)>,
    /// Tasks born between the call and the stop, attached and among `stopped`.
    pub born: Vec<Tid>,
}

/// Interrupts all of `tasks`, then waits for each: the price is one wake-up a thread, not one round trip.
/// Signals that arrive are delivered; new tasks (when the options attach them) are stopped too.
///
/// # Errors
/// [`Error::Timeout`] naming the first thread that did not stop; every tracee is let go then.
pub fn stop_all(tasks: Vec<Running>, limit: Duration) -> Result<StoppedAll, Error> {
    for task in &tasks {
        match task.interrupt() {
            Err(error) if !error.is_gone() => return Err(error),
            _ => {}
        }
    }
    let end = Instant::now() + limit;
    let mut out = StoppedAll::default();
    let mut queue = tasks;
    while !queue.is_empty() {
        let mut born = Vec::new();
        for task in queue {
            let left = end.saturating_duration_since(Instant::now());
            match settle(task, left, &mut born)? {
                Event::Stopped(stopped) => out.stopped.push(stopped),
                Event::Exited(tid, exit) => out.exited.push((tid, exit)),
                Event::TimedOut(running) => return Err(Error::Timeout { tid: running.tid() }),
            }
        }
        // An attached newborn stops by itself before its first instruction.
        out.born.extend(born.iter().map(Running::tid));
        queue = born;
    }
    Ok(out)
}

/// Ends the tracing of a tracee that is dropped while it runs.
pub(super) fn let_go(core: Core) {
    if core.options.has(Options::EXITKILL) {
        kill(core.tid);
        let _ = poll(core.tid, Duration::from_secs(1));
        return;
    }
    if plain(libc::PTRACE_INTERRUPT, core.tid, 0, 0).is_err() {
        reap_dying(core.tid);
        return;
    }
    // Whatever it stops for, detaching there is right: a signal is passed on.
    if let Ok(Some(status)) = poll(core.tid, Duration::from_millis(500))
        && libc::WIFSTOPPED(status)
    {
        drop(Stopped::new(core, classify(status), false));
    }
}

/// Takes the statuses of tracees that were killed, as they die: the last thread of a pid namespace's first process dies
/// only when the others are gone, see pid_namespaces(7). For at most two seconds.
pub(super) fn reap_all(mut tids: Vec<Tid>) {
    let end = Instant::now() + Duration::from_secs(2);
    while !tids.is_empty() && Instant::now() < end {
        tids.retain(|tid| match look(*tid) {
            Ok(Some(status)) => libc::WIFSTOPPED(status),
            Ok(None) | Err(Errno::EINTR) => true,
            Err(_) => false,
        });
        std::thread::yield_now();
    }
}

thread_local! {
    /// Tracees that were killed while they stood still, and have not shown their end yet.
    static DYING: RefCell<Vec<Tid>> = const { RefCell::new(Vec::new()) };
}

/// Takes the status of a tracee that was killed while it stood still: its parent hears of its end only then. A leader shows
/// its end after its other threads, and so does the last thread of a pid namespace's first process: those that have not
/// shown theirs are asked again with the next one.
pub(super) fn reap_dying(tid: Tid) {
    const OWN: Duration = Duration::from_millis(2);
    const LAST: Duration = Duration::from_millis(20);
    DYING.with_borrow_mut(|tids| {
        tids.push(tid);
        let began = Instant::now();
        loop {
            tids.retain(|tid| match look(*tid) {
                Ok(Some(status)) => libc::WIFSTOPPED(status),
                Ok(None) | Err(Errno::EINTR) => true,
                Err(_) => false,
            });
            let passed = began.elapsed();
            let own = passed < OWN && tids.contains(&tid);
            if !own && (passed >= LAST || !are_last(tids)) {
                return;
            }
            std::thread::yield_now();
        }
    });
}

/// Whether among these are all the threads that are left of a process, and dead. One that is not may have to wait for others
/// itself, as the first process of a pid namespace does.
fn are_last(tids: &[Tid]) -> bool {
    let mut groups: HashMap<i32, (usize, usize)> = HashMap::new();
    for tid in tids {
        let text = std::fs::read_to_string(format!("/proc/{tid}/status")).unwrap_or_default();
        let word =
            |key: &str| text.lines().find_map(|line| line.strip_prefix(key))?.split_whitespace().next();
        let (Some(group), Some(left)) = (word("Tgid:"), word("Threads:")) else { continue };
        let (Ok(group), Ok(left)) = (group.parse(), left.parse()) else { continue };
        let (here, all) = groups.entry(group).or_insert((0, left));
        *here += 1;
        if word("State:") != Some("Z") {
            *all = usize::MAX;
        }
    }
    groups.values().any(|(here, all)| here >= all)
}

/// Takes the status of a tracee that was killed, for at most a second.
pub(super) fn reap(tid: Tid) {
    while let Ok(Some(status)) = poll(tid, Duration::from_secs(1)) {
        if !libc::WIFSTOPPED(status) {
            return;
        }
    }
}
