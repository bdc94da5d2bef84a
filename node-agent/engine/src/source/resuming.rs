//! What a stopped thread must get back, and how its system call goes on.

use std::time::Duration;

use sys::mem::ProcessMemory;
use sys::ptrace::Stopped;
use sys::restart::{self, Interruption};
use sys::tape::source::{Context, Parked, choose_park_signal};

use super::error::SourceError;
use super::stopping::Nap;
use super::traced::tape_error;
use crate::proc::status::{self, Status};

/// What is known of a thread before it goes on a tape.
pub(crate) type Known = (Context, restart::Resume, Status);

/// The signal by which the threads of a process are parked; `None` when none is left for that.
pub(crate) fn park_signal(status: &Status) -> Option<i32> {
    choose_park_signal(status.sig_caught, status.sig_blocked, status.sig_pending | status.shared_pending)
}

/// How the system call of a thread goes on, now that it is parked. A signal may have come before the tape began: the
/// thread took it and was stopped again, with other registers than those that `resume` was decided from. In its
/// handler no call is to be entered again.
pub(crate) fn as_landed(
    pid: i32,
    parked: &Parked,
    before: &Context,
    resume: restart::Resume,
    nap: &Nap,
) -> restart::Resume {
    if parked.context().regs() == before.regs() {
        return resume;
    }
    // Nothing is known of how long a call has slept since; a thread in a handler is in none.
    let nap = Nap { slept: std::time::Duration::ZERO, ..nap.clone() };
    match super::stopping::memory(pid) {
        Ok(memory) => {
            let now = status::read(parked.thread().tid()).unwrap_or_default();
            decide(&memory, parked.context(), &nap, &now, None)
        }
        Err(_) => restart::Resume::AsIs,
    }
}

/// What the thread must get back, and how its system call goes on elsewhere.
pub(crate) fn read_context(
    pid: i32,
    memory: &ProcessMemory,
    thread: &Stopped,
    nap: &Nap,
    earlier: Option<Duration>,
) -> Result<Known, SourceError> {
    let regs = thread.regs().map_err(|error| super::stopping::trace_error("read a thread", error))?;
    let status = match status::read_thread(pid, thread.tid()) {
        // It was killed meanwhile: reading on will say so.
        Err(error) if error.is_gone() => Status::default(),
        other => other?,
    };
    let dispatches = thread.dispatches_calls();
    if dispatches.map_err(|error| super::stopping::trace_error("read a thread", error))? {
        return Err(SourceError::Refused(vec![image::Refusal {
            pid: status.inner_pid(),
            subject: image::Subject::Process,
            reason:
                "it dispatches system calls itself (PR_SET_SYSCALL_USER_DISPATCH), which is not carried yet"
                    .to_owned(),
            way_out: "start the program without".to_owned(),
        }]));
    }
    let mut nap = if restart::is_timed(&regs) { nap.unbroken(&status) } else { nap.clone() };
    if let Some(earlier) = earlier.filter(|_| regs.syscall() == Some(restart::NR_RESTART_SYSCALL)) {
        nap.slept = nap.slept.max(earlier);
    }
    let nap = &nap;
    let context =
        Context::read(thread, memory, nap.slept).map_err(|error| tape_error("read a thread", pid, error))?;
    let resume = decide(memory, &context, nap, &status, earlier);
    Ok((context, resume, status))
}

fn decide(
    memory: &ProcessMemory,
    context: &Context,
    nap: &Nap,
    now: &Status,
    earlier: Option<Duration>,
) -> restart::Resume {
    let regs = context.regs();
    // A thread that an earlier stop interrupted sleeps in restart_syscall(2). Which call it was shows in what it
    // slept on.
    let origin = (regs.syscall() == Some(restart::NR_RESTART_SYSCALL))
        .then(|| restart::origin_from_wchan(&nap.place, regs))
        .flatten();
    let timeout_ns = restart::timeout_address(regs, origin).and_then(|address| {
        let seconds = memory.read_u64(address).ok()?;
        let nanos = memory.read_u64(address + 8).ok()?;
        seconds.checked_mul(1_000_000_000)?.checked_add(nanos)
    });
    let remaining_ns = origin.filter(|_| earlier.is_none()).and_then(|nr| {
        let at = restart::spare(regs.rsp);
        let words = [memory.read_u64(at).ok()?, memory.read_u64(at + 8).ok()?];
        restart::Note::remaining(words, nr, regs.rip, super::clock::monotonic_ns())
    });
    restart::decide(&Interruption {
        regs,
        slept_ns: nap.slept_ns(),
        timeout_ns,
        remaining_ns,
        origin,
        handled_signal_pending: super::stopping::handled_signal_pending(now),
    })
}
