//! Operations on a tracee that stands still.

use super::{Core, Error, Options, Running, Stop, Tid, TraceEvent, kill, plain, request};
use crate::regs::UserRegs;

/// A tracee that stands still. Dropped, it goes on untraced (or dies, with [`Options::EXITKILL`]).
#[derive(Debug)]
pub struct Stopped {
    pub(super) core: Core,
    stop: Stop,
    /// This stop used up an interrupt that was asked for.
    interrupt_again: bool,
}

/// NT_X86_XSTATE.
const NT_X86_XSTATE: usize = 0x202;
/// More than any xsave area of today (AMX: 11 KiB); grown when it is filled.
const XSTATE_GUESS: usize = 16 * 1024;

impl Stopped {
    pub(super) fn new(core: Core, stop: Stop, interrupting: bool) -> Self {
        let interrupt_again = interrupting && !matches!(stop, Stop::Interrupt | Stop::Group(_));
        Self { core, stop, interrupt_again }
    }

    /// It stopped for what was waited for: an interrupt asked for before is not wanted any more.
    pub(crate) fn forget_interrupt(&mut self) {
        self.interrupt_again = false;
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

    /// Why it stands still.
    #[must_use]
    pub fn stop(&self) -> Stop {
        self.stop
    }

    pub(super) fn set_stop(&mut self, stop: Stop) {
        self.stop = stop;
    }

    /// The options it is traced with.
    #[must_use]
    pub fn options(&self) -> Options {
        self.core.options
    }

    pub(super) fn call(&self, what: &'static str, result: crate::Result<i64>) -> Result<i64, Error> {
        self.core.call(what, result)
    }

    /// One request that reads or fills `value`.
    pub(super) fn with<T>(
        &self,
        what: &'static str,
        number: libc::c_uint,
        addr: usize,
        value: &mut T,
    ) -> Result<i64, Error> {
        let data = std::ptr::from_mut(value).expose_provenance();
        // SAFETY: callers pass the very structure that `number` reads or writes, alive for the call; where
        // the request takes a size, `addr` is that structure's size.
        let answer = unsafe { request(number, self.tid(), addr, data) };
        self.call(what, answer)
    }

    /// General registers, with an interrupted system call not yet applied (see [`crate::restart`]).
    ///
    /// # Errors
    /// [`Error::Gone`].
    pub fn regs(&self) -> Result<UserRegs, Error> {
        let mut regs = UserRegs::default();
        self.with("PTRACE_GETREGS", libc::PTRACE_GETREGS, 0, &mut regs)?;
        Ok(regs)
    }

    /// Sets all general registers at once. With `orig_rax` >= 0 and a restart code in `rax`, the kernel
    /// restarts the call on resume as after a signal.
    ///
    /// # Errors
    /// [`Error::Gone`]; EIO for selectors that no user code can have.
    pub fn set_regs(&mut self, regs: &UserRegs) -> Result<(), Error> {
        self.put_regs(regs)
    }

    pub(crate) fn put_regs(&self, regs: &UserRegs) -> Result<(), Error> {
        self.with("PTRACE_SETREGS", libc::PTRACE_SETREGS, 0, &mut { *regs }).map(drop)
    }

    /// The whole xsave area.
    ///
    /// # Errors
    /// [`Error::Gone`]; ENODEV without xsave.
    pub fn xstate(&self) -> Result<Vec<u8>, Error> {
        let mut area = vec![0u8; XSTATE_GUESS];
        loop {
            let mut iov = libc::iovec { iov_base: area.as_mut_ptr().cast(), iov_len: area.len() };
            self.with("PTRACE_GETREGSET", libc::PTRACE_GETREGSET, NT_X86_XSTATE, &mut iov)?;
            if iov.iov_len < area.len() {
                area.truncate(iov.iov_len);
                return Ok(area);
            }
            let doubled = area.len() * 2;
            area.resize(doubled, 0);
        }
    }

    /// Sets the whole xsave area.
    ///
    /// # Errors
    /// [`Error::Gone`]; EINVAL or EFAULT when size or features do not fit this CPU.
    pub fn set_xstate(&mut self, area: &[u8]) -> Result<(), Error> {
        let mut iov = libc::iovec { iov_base: area.as_ptr().cast_mut().cast(), iov_len: area.len() };
        self.with("PTRACE_SETREGSET", libc::PTRACE_SETREGSET, NT_X86_XSTATE, &mut iov).map(drop)
    }

    /// Blocked signals; inside sigsuspend and its like the mask that will be put back.
    ///
    /// # Errors
    /// [`Error::Gone`].
    pub fn sigmask(&self) -> Result<u64, Error> {
        let mut mask = 0u64;
        self.with("PTRACE_GETSIGMASK", libc::PTRACE_GETSIGMASK, size_of::<u64>(), &mut mask)?;
        Ok(mask)
    }

    /// Sets the blocked signals. The setting outlives the tracer: on a source only ever put its own mask
    /// back.
    ///
    /// # Errors
    /// [`Error::Gone`].
    pub fn set_sigmask(&mut self, mask: u64) -> Result<(), Error> {
        self.with("PTRACE_SETSIGMASK", libc::PTRACE_SETSIGMASK, size_of::<u64>(), &mut { mask }).map(drop)
    }

    /// PTRACE_GETEVENTMSG.
    ///
    /// # Errors
    /// [`Error::Gone`].
    pub fn event_message(&self) -> Result<u64, Error> {
        let mut message = 0u64;
        self.with("PTRACE_GETEVENTMSG", libc::PTRACE_GETEVENTMSG, 0, &mut message)?;
        Ok(message)
    }

    /// The task that this one has just made ([`Stop::Event`]), attached by the options. Take it once.
    #[must_use]
    pub fn newborn(&self) -> Option<Running> {
        match self.stop {
            Stop::Event(TraceEvent::Clone | TraceEvent::Fork | TraceEvent::Vfork, message) => {
                Tid::try_from(message).ok().map(|tid| Running::adopted(tid, self.options()))
            }
            _ => None,
        }
    }

    /// Replaces the options.
    ///
    /// # Errors
    /// [`Error::Gone`]; EPERM for SUSPEND_SECCOMP without CAP_SYS_ADMIN.
    pub fn set_options(&mut self, options: Options) -> Result<(), Error> {
        self.call("PTRACE_SETOPTIONS", plain(libc::PTRACE_SETOPTIONS, self.tid(), 0, options.bits()))?;
        self.core.options = options;
        Ok(())
    }

    /// Lets it run, delivering `signal` (0 = none). At [`Stop::Signal`] that is how the signal arrives.
    ///
    /// # Errors
    /// [`Error::Gone`].
    pub fn cont(self, signal: i32) -> Result<Running, Error> {
        self.resume("PTRACE_CONT", libc::PTRACE_CONT, signal)
    }

    /// Lets it run one instruction; it then stops by SIGTRAP. For skeletons only: the trap flag outlives
    /// the tracer.
    ///
    /// # Errors
    /// [`Error::Gone`].
    pub fn step(self) -> Result<Running, Error> {
        self.resume("PTRACE_SINGLESTEP", libc::PTRACE_SINGLESTEP, 0)
    }

    /// For a [`Stop::Group`] tracee: stays stopped as job control wants it, and reports SIGCONT.
    ///
    /// # Errors
    /// [`Error::Gone`]; EIO when it is not in a group stop.
    pub fn listen(self) -> Result<Running, Error> {
        self.resume("PTRACE_LISTEN", libc::PTRACE_LISTEN, 0)
    }

    /// Goes on as it would without us: a job-control stopped one listens, a signal is delivered, others run.
    ///
    /// # Errors
    /// [`Error::Gone`].
    pub fn resume_as_found(self) -> Result<Running, Error> {
        match self.stop {
            Stop::Group(_) => self.listen(),
            Stop::Signal(signal) => self.cont(signal),
            Stop::Interrupt | Stop::Event(..) => self.cont(0),
        }
    }

    fn resume(self, what: &'static str, number: libc::c_uint, signal: i32) -> Result<Running, Error> {
        let signal = usize::try_from(signal).unwrap_or(0);
        let again = self.interrupt_again;
        if again {
            // Its failure is death, which the resume reports.
            let _ = plain(libc::PTRACE_INTERRUPT, self.tid(), 0, 0);
        }
        let result = self.call(what, plain(number, self.tid(), 0, signal));
        // Also on failure it is not ours to detach any more: the only failure is death.
        let core = self.into_core();
        if result.is_err() {
            super::wait::reap_dying(core.tid);
        }
        result.map(|_| Running::new(core, again))
    }

    /// Asks for another stop right after the next resume, before user code.
    ///
    /// # Errors
    /// [`Error::Gone`].
    pub fn interrupt_next(&mut self) -> Result<(), Error> {
        self.call("PTRACE_INTERRUPT", plain(libc::PTRACE_INTERRUPT, self.tid(), 0, 0)).map(drop)
    }

    /// Ends the tracing; it goes on, with `signal` delivered (0 = none). A process that job control had
    /// stopped stays stopped.
    ///
    /// # Errors
    /// [`Error::Gone`].
    pub fn detach(self, signal: i32) -> Result<(), Error> {
        let core = self.into_core();
        let signal = usize::try_from(signal).unwrap_or(0);
        let result = core.call("PTRACE_DETACH", plain(libc::PTRACE_DETACH, core.tid, 0, signal));
        if result.is_err() {
            super::wait::reap_dying(core.tid);
        }
        result.map(drop)
    }

    /// Kills it; the tracing ends with its death.
    pub fn kill(self) {
        kill(self.tid());
    }
}

/// Kills these tracees, which were seized with [`Options::EXITKILL`], all at once: those of one process die together, and
/// none of them need be the last.
pub fn kill_all(tracees: impl IntoIterator<Item = Stopped>) {
    let tids: Vec<Tid> =
        tracees.into_iter().map(|stopped| std::mem::ManuallyDrop::new(stopped).core.tid).collect();
    tids.iter().for_each(|tid| kill(*tid));
    super::wait::reap_all(tids);
}

impl Drop for Stopped {
    fn drop(&mut self) {
        if self.core.options.has(Options::EXITKILL) {
            kill(self.core.tid);
            super::wait::reap(self.core.tid);
            return;
        }
        let signal = if let Stop::Signal(signal) = self.stop { signal } else { 0 };
        if plain(libc::PTRACE_DETACH, self.core.tid, 0, usize::try_from(signal).unwrap_or(0)).is_err() {
            super::wait::reap_dying(self.core.tid);
        }
    }
}
