//! Stopping threads, and letting them go as if nothing had happened.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use sys::mem::ProcessMemory;
use sys::ptrace::{Error as TraceError, Event, Options, Running, Stop, Stopped};
use sys::restart::{self, Interruption};

use super::error::SourceError;
use super::tree::{self, Process};
use crate::proc::status;

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
}

impl Nap {
    /// The time in nanoseconds.
    pub(crate) fn slept_ns(&self) -> u64 {
        u64::try_from(self.slept.as_nanos()).unwrap_or(u64::MAX)
    }
}

/// Threads that stand still. Dropped, they are let go quietly.
#[derive(Debug, Default)]
pub(crate) struct Held {
    pub(crate) stopped: Vec<Stopped>,
    naps: std::collections::HashMap<i32, Nap>,
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
    for tid in tids {
        match Running::seize(*tid, OPTIONS).and_then(|thread| thread.interrupt().map(|()| thread)) {
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
    let end = Instant::now() + STOP_LIMIT;
    // Also after a failure: what was seized must stop before it can be let go in order.
    while let Some(thread) = running.pop() {
        if let Err(error) = settle(thread, end, &mut held.stopped, &mut running) {
            failed.get_or_insert(error);
        }
    }
    failed.map_or(Ok(()), |error| Err(trace_error("stop a thread", error)))
}

/// Waits until a thread that was interrupted stands still. New tasks are added to `born`.
fn settle(
    mut thread: Running,
    end: Instant,
    stopped: &mut Vec<Stopped>,
    born: &mut Vec<Running>,
) -> Result<(), TraceError> {
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let found = match thread.wait(left)? {
            Event::Stopped(found) => found,
            Event::Exited(..) => return Ok(()),
            Event::TimedOut(thread) => return Err(TraceError::Timeout { tid: thread.tid() }),
        };
        let resumed = match found.stop() {
            Stop::Interrupt | Stop::Group(_) => {
                stopped.push(found);
                return Ok(());
            }
            Stop::Signal(signal) => found.cont(signal),
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

fn is_dead(tid: i32) -> bool {
    crate::proc::stat::read(tid).map_or(true, |stat| matches!(stat.state, b'Z' | b'X'))
}

/// Stops every thread of every process, until a look at the whole tree finds no other one.
pub(crate) fn stop_tree(root: i32, held: &mut Held) -> Result<Vec<Process>, SourceError> {
    let mut known: HashSet<i32> = held.stopped.iter().map(Stopped::tid).collect();
    // Each turn stops the tasks that the ones before could still make: two or three are enough, unless
    // something makes tasks faster than they can be stopped.
    for _ in 0..100 {
        let tree = tree::walk(root)?;
        let new: Vec<i32> = tree
            .iter()
            .filter(|process| !process.is_zombie() || process.tids.len() > 1)
            .flat_map(|process| process.tids.iter().copied())
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
        let regs = stopped.regs()?;
        let free = matches!(stopped.stop(), Stop::Interrupt | Stop::Group(_));
        if free && regs.syscall().is_some() && !restart::kernel_restarts(&regs) {
            let interruption = Interruption {
                regs: &regs,
                slept_ns: nap.slept_ns(),
                timeout_ns: None,
                origin: None,
                handled_signal_pending: handled_signal_pending(stopped.tid()),
            };
            let decision = restart::decide(&interruption);
            if decision != restart::Resume::AsIs {
                stopped.set_regs(&restart::apply(&regs, &decision))?;
            }
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
    let settled = settle(thread, end, &mut stopped, &mut born);
    while let Some(thread) = born.pop() {
        settle(thread, end, &mut stopped, &mut born).map_err(|error| trace_error("stop a thread", error))?;
    }
    for stopped in stopped {
        let_go(stopped, &Nap::default())?;
    }
    settled.map_err(|error| trace_error("stop a thread", error))
}

/// Whether a signal that has a handler and is not blocked waits for the thread: it, not our stop, ended the call.
pub(crate) fn handled_signal_pending(tid: i32) -> bool {
    status::read(tid).is_ok_and(|status| {
        (status.sig_pending | status.shared_pending) & !status.sig_blocked & status.sig_caught != 0
    })
}

/// The memory of a process, for reading what its registers point to.
pub(crate) fn memory(pid: i32) -> Result<ProcessMemory, SourceError> {
    ProcessMemory::open(pid).map_err(|error| SourceError::kernel("open the memory", pid, error))
}
