//! Stopping threads, and letting them go as if nothing had happened.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use sys::mem::ProcessMemory;
use sys::ptrace::{Error as TraceError, Event, Options, Running, Stop, Stopped};
use sys::restart::{self, Interruption};

use super::clock::SchedulerClock;
use super::error::SourceError;
use super::tree::{self, Process};
use crate::proc::status::{self, Status};
use crate::proc::tasks;

/// A source is never killed with its tracer; new tasks are held, so that none escapes a freeze.
pub(crate) const OPTIONS: Options = Options::TRACE_BIRTHS;

/// Longest time that one thread may take to stop.
pub(crate) const STOP_LIMIT: Duration = Duration::from_secs(5);

/// For errors of the tracing layer.
pub(crate) fn trace_error(what: &str, error: TraceError) -> SourceError {
    let tid = error.tid();
    match error {
        TraceError::Gone { .. } => SourceError::ThreadGone { tid },
        TraceError::Timeout { .. } => SourceError::Timeout {
            what: format!("{what}: thread {tid}"),
            limit_ms: u64::try_from(STOP_LIMIT.as_millis()).unwrap_or(u64::MAX),
        },
        other => SourceError::kernel(what, tid, std::io::Error::other(other)),
    }
}

/// What was known about a thread's sleep just before it was stopped.
#[derive(Clone, Debug, Default)]
pub(crate) struct Nap {
    /// How long its system call has slept; zero when it is not known.
    pub(crate) slept: Duration,
    /// /proc/PID/task/TID/wchan; empty when it is not known.
    pub(crate) place: String,
    /// How often it had gone to sleep by then.
    pub(crate) switches: u64,
}

impl Nap {
    /// The time in nanoseconds.
    pub(crate) fn slept_ns(&self) -> u64 {
        u64::try_from(self.slept.as_nanos()).unwrap_or(u64::MAX)
    }

    /// The same, with a time only if it is of the sleep that the stop ended: a thread that woke and slept again before
    /// it was stopped counts as not having slept. `now`: its status, read after its registers, which were read after
    /// the stop.
    pub(crate) fn unbroken(&self, now: &Status) -> Self {
        // The stop itself is one more switch.
        let unbroken = self.slept.is_zero() || now.voluntary_switches == self.switches + 1;
        Self { slept: if unbroken { self.slept } else { Duration::ZERO }, ..self.clone() }
    }
}

/// Threads that stand still. Dropped, they are let go quietly.
#[derive(Debug, Default)]
pub(crate) struct Held {
    pub(crate) stopped: Vec<Stopped>,
    naps: HashMap<i32, Nap>,
    /// Threads in the order in which they were seized.
    order: Vec<i32>,
}

impl Held {
    /// What was known about a thread's sleep.
    pub(crate) fn nap(&self, tid: i32) -> Nap {
        self.naps.get(&tid).cloned().unwrap_or_default()
    }

    /// Hands the threads over: they are not let go by dropping this any more.
    pub(crate) fn into_stopped(mut self) -> Vec<Stopped> {
        std::mem::take(&mut self.stopped)
    }

    /// Notes it.
    pub(crate) fn set_nap(&mut self, tid: i32, nap: Nap) {
        self.naps.insert(tid, nap);
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // Seized last, let go first: see `signal_targets_last`.
        let places = places(&self.order);
        self.stopped.sort_by_key(|stopped| std::cmp::Reverse(places.get(&stopped.tid()).copied()));
        for stopped in std::mem::take(&mut self.stopped) {
            let nap = self.nap(stopped.tid());
            if let Err(error) = let_go(stopped, &nap) {
                tracing::warn!(%error, "a thread could not be let go in order");
            }
        }
    }
}

/// Stops these threads: all are asked first, then waited for. Those that have died are left out.
pub(crate) fn stop_threads(held: &mut Held, tids: &[i32]) -> Result<(), SourceError> {
    let mut running = Vec::with_capacity(tids.len());
    let mut failed = None;
    held.order.extend(tids);
    for tid in tids {
        match Running::seize(*tid, OPTIONS) {
            Ok(thread) => running.push(thread),
            Err(error) if error.is_gone() => {}
            // A thread that has exited but is not reaped cannot be traced, nor need it be.
            Err(_) if is_dead(*tid) => {}
            Err(error) => {
                failed = Some(error);
                break;
            }
        }
    }
    // Not one by one: while none of them stands still, each takes its own signals.
    for thread in &running {
        match thread.interrupt() {
            Err(error) if !error.is_gone() => failed = failed.or(Some(error)),
            _ => {}
        }
    }
    let end = Instant::now() + STOP_LIMIT;
    // Also after a failure: what was seized must stop before it can be let go in order.
    while let Some(thread) = running.pop() {
        let nap = held.nap(thread.tid());
        if let Err(error) = settle(thread, end, &nap, &mut held.stopped, &mut running) {
            failed.get_or_insert(error);
        }
    }
    failed.map_or(Ok(()), |error| Err(trace_error("stop a thread", error)))
}

/// The threads of a process, those last through which its signals come: the leader, and threads that have
/// children.
///
/// A signal that the process ignores (SIGCHLD above all) is dropped when it is sent, unless the thread it is sent
/// to is traced. Then it is queued for any thread that is not stopped, and ends an epoll_wait(2) of an untraced
/// one. So those threads are traced only while all others are: seized last, let go first.
pub(crate) fn signal_targets_last(pid: i32, tids: &[i32]) -> Vec<i32> {
    let parents =
        tasks::children_by_thread(pid, tids).unwrap_or_default().into_iter().map(|(tid, _)| tid).collect();
    targets_last(pid, tids, &parents)
}

fn targets_last(pid: i32, tids: &[i32], parents: &HashSet<i32>) -> Vec<i32> {
    let (targets, mut order): (Vec<i32>, Vec<i32>) =
        tids.iter().partition(|tid| **tid == pid || parents.contains(*tid));
    order.extend(targets);
    order
}

/// Waits until a thread that was interrupted stands still. New tasks are added to `born`.
fn settle(
    mut thread: Running,
    end: Instant,
    nap: &Nap,
    stopped: &mut Vec<Stopped>,
    born: &mut Vec<Running>,
) -> Result<(), TraceError> {
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let mut found = match thread.wait(left)? {
            Event::Stopped(found) => found,
            Event::Exited(..) => return Ok(()),
            Event::TimedOut(thread) => return Err(TraceError::Timeout { tid: thread.tid() }),
        };
        let resumed = match found.stop() {
            Stop::Interrupt | Stop::Group(_) => {
                stopped.push(found);
                return Ok(());
            }
            Stop::Signal(signal) => {
                continue_call(&mut found, nap)?;
                found.cont(signal)
            }
            Stop::Event(..) => {
                born.extend(found.newborn());
                found.cont(0)
            }
        };
        thread = match resumed {
            Err(error) if error.is_gone() => return Ok(()),
            other => other?,
        };
    }
}

/// Puts a stopped thread back to where its system call goes on, if the kernel would not do so: calls that answer
/// EINTR at every stop (epoll_wait(2) above all). A call that a signal with a handler ended stays ended.
fn continue_call(stopped: &mut Stopped, nap: &Nap) -> Result<(), TraceError> {
    let regs = stopped.regs()?;
    if regs.syscall().is_none() || restart::kernel_restarts(&regs) {
        return Ok(());
    }
    // A traced thread stops, and wakes, for signals that it ignores, too.
    let about_to_handle = match stopped.stop() {
        Stop::Signal(signal) => is_caught(stopped.tid(), signal),
        _ => false,
    };
    let now = status::read(stopped.tid()).unwrap_or_default();
    let decision = restart::decide(&Interruption {
        regs: &regs,
        slept_ns: nap.unbroken(&now).slept_ns(),
        remaining_ns: None,
        timeout_ns: None,
        origin: None,
        handled_signal_pending: about_to_handle || handled_signal_pending(&now),
    });
    let again = match decision {
        restart::Resume::AsIs | restart::Resume::RestartBlock { .. } => return Ok(()),
        restart::Resume::ReissueWith { nr, arg, value } => {
            let mut again = restart::by_kernel(&regs, nr);
            again.set_argument(arg, value);
            again
        }
        // The memory of the program is not ours to change: it sleeps for the whole time again.
        restart::Resume::Reissue { nr } | restart::Resume::ReissueTimespec { nr, .. } => {
            restart::by_kernel(&regs, nr)
        }
    };
    stopped.set_regs(&again)?;
    Ok(())
}

fn is_caught(tid: i32, signal: i32) -> bool {
    let bit = 1_u64 << (signal.unsigned_abs().saturating_sub(1) & 63);
    // In doubt the kernel's answer stands.
    status::read(tid).map_or(true, |status| status.sig_caught & bit != 0)
}

/// Stops one thread of a process, one that no signal is sent to if there is such a one. `None`: it has ended.
pub(crate) fn stop_one(pid: i32, clock: &SchedulerClock) -> Result<Option<(Stopped, Nap)>, SourceError> {
    let tids = match tasks::threads(pid) {
        Err(error) if error.is_gone() => return Ok(None),
        other => other?,
    };
    for tid in signal_targets_last(pid, &tids) {
        if let Some(stopped) = stop_thread(pid, tid, clock)? {
            return Ok(Some(stopped));
        }
    }
    Ok(None)
}

/// Stops this thread. `None`: it has ended.
pub(crate) fn stop_thread(
    pid: i32,
    tid: i32,
    clock: &SchedulerClock,
) -> Result<Option<(Stopped, Nap)>, SourceError> {
    let nap = clock.nap(pid, tid);
    let mut held = Held::default();
    held.set_nap(tid, nap.clone());
    stop_threads(&mut held, &[tid])?;
    let found = held.stopped.iter().position(|thread| thread.tid() == tid);
    Ok(found.map(|index| (held.stopped.swap_remove(index), nap)))
}

/// Where each of these stands in its list.
pub(crate) fn places(order: &[i32]) -> HashMap<i32, usize> {
    order.iter().enumerate().map(|(place, tid)| (*tid, place)).collect()
}

fn is_dead(tid: i32) -> bool {
    crate::proc::stat::read(tid).map_or(true, |stat| matches!(stat.state, b'Z' | b'X'))
}

/// Stops every thread of every process, until a look at the whole tree finds no other one.
pub(crate) fn stop_tree(root: i32, held: &mut Held) -> Result<Vec<Process>, SourceError> {
    stop_tree_but(root, None, held)
}

/// The same, but for one thread.
pub(crate) fn stop_tree_but(
    root: i32,
    but: Option<i32>,
    held: &mut Held,
) -> Result<Vec<Process>, SourceError> {
    let mut known: HashSet<i32> = held.stopped.iter().map(Stopped::tid).chain(but).collect();
    // Each turn stops the tasks that the ones before could still make: two or three are enough, unless
    // something makes tasks faster than they can be stopped.
    for _ in 0..100 {
        let tree = tree::walk(root)?;
        let new: Vec<i32> = tree
            .iter()
            .filter(|process| !process.is_zombie() || process.tids.len() > 1)
            .flat_map(|process| {
                targets_last(process.pid, &process.tids, &process.parents.iter().copied().collect())
            })
            .filter(|tid| !known.contains(tid))
            .collect();
        let before = held.stopped.len();
        stop_threads(held, &new)?;
        known.extend(new);
        known.extend(held.stopped.iter().map(Stopped::tid));
        if held.stopped.len() == before {
            return Ok(tree);
        }
    }
    Err(SourceError::Timeout {
        what: "stop a tree that makes new tasks all the time".to_owned(),
        limit_ms: 0,
    })
}

/// Ends the tracing of a stopped thread. An interrupted system call goes on: also those that answer EINTR at every
/// stop (epoll_wait(2) above all), which the kernel does not restart by itself.
pub(crate) fn let_go(mut stopped: Stopped, nap: &Nap) -> Result<(), SourceError> {
    let result = (|| {
        if !matches!(stopped.stop(), Stop::Event(..)) {
            continue_call(&mut stopped, nap)?;
        }
        let signal = match stopped.stop() {
            Stop::Signal(signal) => signal,
            _ => 0,
        };
        stopped.detach(signal)
    })();
    match result {
        Err(error) if !error.is_gone() => Err(trace_error("let a thread go", error)),
        _ => Ok(()),
    }
}

/// Stops a thread that runs under our tracing and lets it go in order.
pub(crate) fn let_running_go(thread: Running) -> Result<(), SourceError> {
    let interrupted = thread.interrupt();
    if interrupted.is_err_and(|error| error.is_gone()) {
        return Ok(());
    }
    let mut stopped = Vec::new();
    let mut born = Vec::new();
    let end = Instant::now() + STOP_LIMIT;
    let settled = settle(thread, end, &Nap::default(), &mut stopped, &mut born);
    while let Some(thread) = born.pop() {
        settle(thread, end, &Nap::default(), &mut stopped, &mut born)
            .map_err(|error| trace_error("stop a thread", error))?;
    }
    for stopped in stopped {
        let_go(stopped, &Nap::default())?;
    }
    settled.map_err(|error| trace_error("stop a thread", error))
}

/// Whether a signal that has a handler and is not blocked waits for the thread: it, not our stop, ended the call.
pub(crate) fn handled_signal_pending(status: &Status) -> bool {
    (status.sig_pending | status.shared_pending) & !status.sig_blocked & status.sig_caught != 0
}

/// The memory of a process, for reading what its registers point to.
pub(crate) fn memory(pid: i32) -> Result<ProcessMemory, SourceError> {
    ProcessMemory::open(pid).map_err(|error| SourceError::kernel("open the memory", pid, error))
}
