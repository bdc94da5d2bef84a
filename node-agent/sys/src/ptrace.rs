//! ptrace(2) as a typestate: a thread is [`Running`] or [`Stopped`], and only a stopped one can be asked.
//!
//! Tracees are seized (PTRACE_SEIZE): no signal is sent to them and job control keeps working. A tracee
//! belongs to the *thread* that seized it, so neither type is `Send`. Dropping one lets the tracee go
//! (detached, its pending signal delivered), or kills it when it was seized with [`Options::EXITKILL`].
//! A tracee that dies is an answer ([`Event::Exited`], [`Error::Gone`]), never a panic.

mod error;
mod memory;
mod seccomp;
mod stopped;
mod wait;

use std::cell::Cell;
use std::marker::PhantomData;
use std::time::Duration;

pub use error::Error;
pub use memory::{PendingSignals, RseqConfiguration};
pub use seccomp::InstalledFilter;
pub use stopped::{Stopped, kill_all};
pub use wait::{Event, Exit, Stop, StoppedAll, TraceEvent, stop_all};

use crate::Errno;

/// A thread id as this process sees it.
pub type Tid = i32;

/// PTRACE_O_* bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options(usize);

impl Options {
    /// No option.
    pub const NONE: Self = Self(0);
    /// PTRACE_O_EXITKILL: the tracee dies with its tracer thread. For skeletons, never for a source.
    pub const EXITKILL: Self = Self(libc::PTRACE_O_EXITKILL as usize);
    /// PTRACE_O_TRACECLONE: new threads are attached and start stopped.
    pub const TRACE_CLONE: Self = Self(libc::PTRACE_O_TRACECLONE as usize);
    /// PTRACE_O_TRACEFORK: new processes are attached and start stopped.
    pub const TRACE_FORK: Self = Self(libc::PTRACE_O_TRACEFORK as usize);
    /// PTRACE_O_TRACEVFORK: as [`Options::TRACE_FORK`] for vfork(2).
    pub const TRACE_VFORK: Self = Self(libc::PTRACE_O_TRACEVFORK as usize);
    /// PTRACE_O_TRACEEXEC: an exec reports itself.
    pub const TRACE_EXEC: Self = Self(libc::PTRACE_O_TRACEEXEC as usize);
    /// PTRACE_O_SUSPEND_SECCOMP: filters do not apply, also while the tracee runs. Needs CAP_SYS_ADMIN.
    /// Set it at a stop and clear it before the tracee goes back to its own code.
    pub const SUSPEND_SECCOMP: Self = Self(libc::PTRACE_O_SUSPEND_SECCOMP as usize);
    /// Every way in which a tracee makes another task.
    pub const TRACE_BIRTHS: Self = Self(Self::TRACE_CLONE.0 | Self::TRACE_FORK.0 | Self::TRACE_VFORK.0);

    /// Both.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// This without `other`.
    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Whether all of `other` are set.
    #[must_use]
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    const fn bits(self) -> usize {
        self.0
    }
}

/// Which tracee, under which options. Bound to the tracer thread.
#[derive(Clone, Copy, Debug)]
struct Core {
    tid: Tid,
    options: Options,
    not_send: PhantomData<*const ()>,
}

impl Core {
    fn call(&self, what: &'static str, result: crate::Result<i64>) -> Result<i64, Error> {
        result.map_err(|errno| Error::new(what, self.tid, errno))
    }
}

/// A tracee that runs (or is about to stop).
#[derive(Debug)]
pub struct Running {
    core: Core,
    /// An interrupt was asked for and has not been seen. Any other stop uses it up, so it is then asked for
    /// again on resume.
    interrupting: Cell<bool>,
}

/// One ptrace(2) call. `data` is a number or an address, as the request has it.
///
/// # Safety
/// When the request reads or writes through `data` (or `addr`), it points to memory of the size and
/// access that ptrace(2) names, valid for the call.
unsafe fn request(request: libc::c_uint, tid: Tid, addr: usize, data: usize) -> crate::Result<i64> {
    // SAFETY: the caller vouches for what `addr` and `data` point to; the rest are integers.
    let answer = unsafe { libc::syscall(libc::SYS_ptrace, u64::from(request), i64::from(tid), addr, data) };
    Errno::result(answer)
}

/// A ptrace(2) request whose `addr` and `data` are plain numbers.
fn plain(number: libc::c_uint, tid: Tid, addr: usize, data: usize) -> crate::Result<i64> {
    debug_assert!(matches!(
        number,
        libc::PTRACE_SEIZE
            | libc::PTRACE_INTERRUPT
            | libc::PTRACE_LISTEN
            | libc::PTRACE_CONT
            | libc::PTRACE_DETACH
            | libc::PTRACE_SINGLESTEP
            | libc::PTRACE_SETOPTIONS
    ));
    // SAFETY: the requests above take `addr` and `data` as numbers, so no memory is touched through them.
    unsafe { request(number, tid, addr, data) }
}

impl Running {
    /// Attaches to thread `tid` without stopping it.
    ///
    /// # Errors
    /// [`Error::Gone`] no such thread; [`Error::Call`] with EPERM: it is traced already, a zombie, or
    /// protected from us; EINVAL: the kernel lacks an option (or CAP_SYS_ADMIN for SUSPEND_SECCOMP: EPERM).
    pub fn seize(tid: Tid, options: Options) -> Result<Self, Error> {
        let core = Core { tid, options, not_send: PhantomData };
        core.call("PTRACE_SEIZE", plain(libc::PTRACE_SEIZE, tid, 0, options.bits()))?;
        Ok(Self::new(core, false))
    }

    /// A tracee that the kernel attached for us (PTRACE_O_TRACECLONE and its like): the message of a
    /// [`Stop::Event`] names it, `options` are those of its maker.
    #[must_use]
    pub fn adopted(tid: Tid, options: Options) -> Self {
        Self::new(Core { tid, options, not_send: PhantomData }, false)
    }

    fn new(core: Core, interrupting: bool) -> Self {
        Self { core, interrupting: Cell::new(interrupting) }
    }

    fn into_core(self) -> Core {
        let core = self.core;
        std::mem::forget(self);
        core
    }

    /// Its thread id.
    #[must_use]
    pub fn tid(&self) -> Tid {
        self.core.tid
    }

    /// Asks it to stop; [`Running::wait`] then sees the stop. When it stops for something else first, it stops
    /// again after [`Stopped::cont`]. System calls are interrupted as by a
    /// signal: see [`crate::restart`].
    ///
    /// # Errors
    /// [`Error::Gone`] when it has died.
    pub fn interrupt(&self) -> Result<(), Error> {
        self.interrupting.set(true);
        self.core.call("PTRACE_INTERRUPT", plain(libc::PTRACE_INTERRUPT, self.tid(), 0, 0)).map(drop)
    }

    /// Waits for its next stop or its end, at most `limit`.
    ///
    /// # Errors
    /// [`Error::Call`] when waitpid(2) itself fails.
    pub fn wait(self, limit: Duration) -> Result<Event, Error> {
        wait::wait(self, limit)
    }

    /// Interrupts it and waits until it stands still at a point where its registers can be changed.
    /// Signals that arrive meanwhile are delivered to it first. New tasks that it makes (when the
    /// options attach them) are put into `born`.
    ///
    /// # Errors
    /// [`Error::Timeout`] it did not stop (uninterruptible sleep); it is detached then when it lets itself.
    pub fn stop(self, limit: Duration, born: &mut Vec<Self>) -> Result<Event, Error> {
        self.interrupt().or_else(|error| if error.is_gone() { Ok(()) } else { Err(error) })?;
        wait::settle(self, limit, born)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        wait::let_go(self.core);
    }
}

/// Makes a dead tracee's exit status disappear, so that its parent or init can reap it: nothing to do for
/// a live one.
pub(crate) fn kill(tid: Tid) {
    // SAFETY: kill takes two integers. A tracee's id cannot be recycled before its tracer has waited for it.
    let _ = unsafe { libc::kill(tid, libc::SIGKILL) };
}
