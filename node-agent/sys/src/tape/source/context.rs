//! What a thread must get back.

use std::time::Duration;

use super::SourceError;
use crate::mem::ProcessMemory;
use crate::ptrace::{Error as TraceError, Stop, Stopped};
use crate::regs::UserRegs;
use crate::restart::{self, CriticalSection, Interruption};
use crate::tape::code;

/// What a thread must get back: registers and mask as the stop found them, and how it goes on.
#[derive(Clone, Copy, Debug)]
pub struct Context {
    /// As the stop found them (inside an rseq critical section: at its abort handler).
    pub(super) found: UserRegs,
    pub(super) sigmask: u64,
    /// Set by a live tracer: the kernel finishes the interrupted call.
    pub(super) release: UserRegs,
    /// Restored by the thread alone: the call is entered again.
    pub(super) alone: UserRegs,
    /// Job control had stopped it.
    pub(super) group_stopped: bool,
}

const EINTR: i64 = -4;
/// Offset of rseq_cs in `struct rseq`.
const RSEQ_CS: u64 = 8;

impl Context {
    /// Reads it from a thread that stands still on its way to user code. `slept` is how long its system call
    /// has slept so far (zero when unknown: a relative timeout of epoll_wait(2) then starts anew).
    ///
    /// A call that answers -EINTR at every stop (epoll_wait(2) ...) is repaired in the thread's registers at
    /// once; read the context of every thread right after the stop, and from then on its registers here.
    ///
    /// # Errors
    /// [`TraceError::WrongStop`] in the middle of a system call or with a signal about to be delivered;
    /// [`SourceError::NotNative`], [`SourceError::Flags`].
    pub fn read(thread: &Stopped, memory: &ProcessMemory, slept: Duration) -> Result<Self, SourceError> {
        let tid = thread.tid();
        let group_stopped = match thread.stop() {
            Stop::Interrupt => false,
            Stop::Group(_) => true,
            Stop::Signal(_) | Stop::Event(..) => return Err(TraceError::WrongStop { tid }.into()),
        };
        let mut found = thread.regs()?;
        if !found.is_64_bit() {
            return Err(SourceError::NotNative { tid });
        }
        if !code::restorable(found.eflags) {
            return Err(SourceError::Flags { tid, eflags: found.eflags });
        }
        if found.syscall().is_none()
            && let Some(section) = critical_section(thread, memory)?
        {
            found.rip = section.resume_at(found.rip);
        }
        let interruption = Interruption {
            regs: &found,
            slept_ns: u64::try_from(slept.as_nanos()).unwrap_or(u64::MAX),
            timeout_ns: None,
            remaining_ns: None,
            origin: None,
            handled_signal_pending: found.result() == EINTR
                && found.syscall().is_some()
                && handled_pending(tid),
        };
        let alone = restart::apply(&found, &restart::decide(&interruption));
        let release = if restart::kernel_restarts(&found) { found } else { alone };
        let sigmask = thread.sigmask()?;
        if found.result() == EINTR && release != found && found.syscall().is_some() {
            // At once: from here on a dying tracer leaves no -EINTR behind.
            thread.put_regs(&release)?;
        }
        Ok(Self { found, sigmask, release, alone, group_stopped })
    }

    /// Lets a thread that was stopped, but never put on a tape, go on untraced as if it had not been: the calls
    /// that answer -EINTR at every stop are entered again. (Dropping the thread would let the program see it.)
    ///
    /// # Errors
    /// [`SourceError::Trace`]: it died.
    pub fn detach(&self, mut thread: Stopped) -> Result<(), SourceError> {
        thread.set_regs(&self.release)?;
        Ok(thread.detach(0)?)
    }

    /// General registers as the stop found them, the interrupted call not yet applied.
    #[must_use]
    pub fn regs(&self) -> &UserRegs {
        &self.found
    }

    /// Its own signal mask.
    #[must_use]
    pub fn sigmask(&self) -> u64 {
        self.sigmask
    }

    /// Whether job control had stopped it.
    #[must_use]
    pub fn group_stopped(&self) -> bool {
        self.group_stopped
    }
}

/// The rseq critical section that the thread announced, if any.
fn critical_section(
    thread: &Stopped,
    memory: &ProcessMemory,
) -> Result<Option<CriticalSection>, SourceError> {
    let Some(rseq) = thread.rseq()? else { return Ok(None) };
    // Unreadable: the kernel would kill the program for it at its next preemption; not ours to judge.
    let Ok(address) = memory.read_u64(rseq.address + RSEQ_CS) else { return Ok(None) };
    if address == 0 {
        return Ok(None);
    }
    let word = |offset: u64| memory.read_u64(address.wrapping_add(offset));
    let (Ok(start_ip), Ok(post_commit_offset), Ok(abort_ip)) = (word(8), word(16), word(24)) else {
        return Ok(None);
    };
    Ok(Some(CriticalSection { start_ip, post_commit_offset, abort_ip }))
}

/// Whether the process has a handler for a signal.
pub(super) fn is_caught(tid: i32, signal: i32) -> bool {
    let Ok(status) = std::fs::read_to_string(format!("/proc/{tid}/status")) else { return true };
    let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
    let caught = caught.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    caught.is_none_or(|caught| caught >> (signal.unsigned_abs().saturating_sub(1) & 63) & 1 == 1)
}

/// Whether a signal that is not blocked and has a handler waits for the thread.
fn handled_pending(tid: i32) -> bool {
    let Ok(status) = std::fs::read_to_string(format!("/proc/{tid}/status")) else { return false };
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        u64::from_str_radix(line.trim(), 16).ok()
    };
    let (Some(thread), Some(process), Some(blocked), Some(caught)) =
        (field("SigPnd:"), field("ShdPnd:"), field("SigBlk:"), field("SigCgt:"))
    else {
        return false;
    };
    (thread | process) & !blocked & caught != 0
}

/// The signal to park by: one of SIGWINCH, SIGURG and SIGCHLD (all ignored by default) that has no handler and does
/// not wait for the program, which would lose it; rather one that is not blocked, so that it cannot come to wait. The
/// masks are SigCgt, SigBlk and what SigPnd and ShdPnd have together, of /proc/PID/status. `None`: there is none.
#[must_use]
pub fn choose_park_signal(caught: u64, blocked: u64, pending: u64) -> Option<i32> {
    let bit = |signal: i32| 1 << (signal.unsigned_abs() - 1);
    let fit = |without: u64| {
        [libc::SIGWINCH, libc::SIGURG, libc::SIGCHLD].into_iter().find(|signal| bit(*signal) & without == 0)
    };
    fit(caught | pending | blocked).or_else(|| fit(caught | pending))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_park_signal_has_no_handler_and_does_not_wait() {
        let (window, urgent) = (1 << 27, 1 << 22);
        assert_eq!(choose_park_signal(0, 0, 0), Some(libc::SIGWINCH));
        assert_eq!(choose_park_signal(window, 0, 0), Some(libc::SIGURG));
        assert_eq!(choose_park_signal(window | urgent, 0, 0), Some(libc::SIGCHLD));
        assert_eq!(choose_park_signal(0, window, 0), Some(libc::SIGURG));
        assert_eq!(choose_park_signal(0, u64::MAX, window), Some(libc::SIGURG));
        assert_eq!(choose_park_signal(0, u64::MAX, 0), Some(libc::SIGWINCH));
        assert_eq!(choose_park_signal(urgent, 0, u64::MAX), None);
        assert_eq!(choose_park_signal(u64::MAX, 0, 0), None);
    }
}
