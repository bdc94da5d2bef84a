//! The tape of a live program: **self-restoring**.
//!
//! A thread enters by one PTRACE_SETREGS and is from then on able to finish alone: it blocks its signals,
//! makes its calls, *parks* by sending itself a signal that stops a traced thread and that an untraced one
//! ignores, puts its mask, flags and registers back and goes on where it was, the interrupted system call
//! re-entered. So whenever the tracer dies, the program lives. rsp never changes.
//!
//! A live tracer does not use that way out: at the park it sets mask and registers **as the stop found
//! them** ([`Parked::release`]), and the kernel itself decides how the interrupted call goes on, a signal that
//! came meanwhile included. After the park the thread then makes no system call, so that seccomp filters
//! (suspended while the tape runs) are in force again without meeting anything of ours. Only a thread whose
//! tracer died makes calls under its filter: check with [`crate::seccomp`] that it allows them.
//!
//! Known limits, all of them only when the tracer dies within the milliseconds of a tape: pause(2) does not
//! return for a handler that ran meanwhile; flags that need an alignment check or ID bit are refused
//! beforehand ([`SourceError::Flags`]).

mod context;
mod flight;
mod parked;

use std::cell::RefCell;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

pub use context::{Context, choose_park_signal};
pub use parked::{InFlight, Parked};

use super::area::SharedArea;
use super::layout::{Size, Slot, SlotLayout};
use super::program::{Program, TooBig};
use super::slack::{Boot, BootArg, BootCall, Slack};
use super::vdso::{Vdso, VdsoError};
use crate::mem::ProcessMemory;
use crate::ptrace::{Error as TraceError, Options, Running, Stopped, Tid};
use crate::{Errno, pidfd};
use flight::{Flight, Place};

/// Time a tape's own bookkeeping calls may take.
const BOOT_LIMIT: Duration = Duration::from_secs(5);

/// Why a source's tape failed. The program goes on as it was in every case.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// Tracing failed, or the thread died.
    #[error(transparent)]
    Trace(#[from] TraceError),
    /// The vDSO cannot carry the bootstrap code.
    #[error(transparent)]
    Vdso(#[from] VdsoError),
    /// The program does not fit.
    #[error(transparent)]
    TooBig(#[from] TooBig),
    /// All slots are in use.
    #[error("all slots of the tape in process {pid} are in use")]
    NoSlot {
        /// The process.
        pid: Tid,
    },
    /// Threads are still on the tape.
    #[error("threads of process {pid} are still on the tape")]
    Busy {
        /// The process.
        pid: Tid,
    },
    /// The thread runs 32-bit code.
    #[error("thread {tid} runs 32-bit code")]
    NotNative {
        /// Which.
        tid: Tid,
    },
    /// The thread has flags that code cannot restore.
    #[error("thread {tid} has processor flags {eflags:#x} that cannot be restored")]
    Flags {
        /// Which.
        tid: Tid,
        /// The flags.
        eflags: u64,
    },
    /// A bootstrap call failed inside the process.
    #[error("{what} inside process {pid}")]
    Boot {
        /// Which call.
        what: &'static str,
        /// The process.
        pid: Tid,
        /// Its answer.
        source: Errno,
    },
    /// The tape's memory or the process's could not be used from here.
    #[error("{what} of process {pid}")]
    Memory {
        /// What was tried.
        what: &'static str,
        /// The process.
        pid: Tid,
        /// Why.
        source: io::Error,
    },
}

/// How to install a tape.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// Its memory.
    pub size: Size,
    /// A signal whose disposition is default-ignored or ignored: [`choose_park_signal`].
    pub park_signal: i32,
    /// The process has seccomp filters: suspend them while a tape runs (CAP_SYS_ADMIN).
    pub suspend_seccomp: bool,
}

/// A tape in one live process.
#[derive(Debug)]
pub struct SourceTape {
    pid: Tid,
    config: Config,
    memory: ProcessMemory,
    slack: Slack,
    area: SharedArea,
    layout: SlotLayout,
    base: u64,
    free: RefCell<Vec<Slot>>,
}

impl SourceTape {
    /// Puts a tape into process `pid` with the help of one of its threads, which is parked on it afterwards.
    ///
    /// After Ok the process has one mapping more (two lines in its maps, [`SourceTape::range`]), which its
    /// children do not inherit. After Err it is as before, and the thread goes on untraced.
    ///
    /// # Errors
    /// [`SourceError`]; [`VdsoError::Leftover`] asks for [`super::cleanup_leftovers`] first.
    pub fn install(
        pid: Tid,
        thread: Stopped,
        context: Context,
        config: Config,
    ) -> Result<(Self, Parked), SourceError> {
        let memory = ProcessMemory::open(pid).map_err(|source| SourceError::Memory {
            what: "open the memory",
            pid,
            source,
        })?;
        let range = Vdso::find(pid)?.unused_slack(pid, &memory)?;
        let slack = Slack { pid, range };
        let layout = SlotLayout::with_code_slots(config.size);
        let boot = boot_install(&layout);
        let place = Place::Slack { slack: &slack, memory: &memory, boot: &boot, config: &config };
        let flight = Flight::enter(place, thread, context)?;
        let landed = flight::land(flight, place, &memory, BOOT_LIMIT)?;
        let installed = take_area(pid, &landed.stopped, &layout, boot.calls.len());
        // Closes the descriptor in the process, whatever else happened.
        let landed = flight::run_after(landed, place, &memory, BOOT_LIMIT)?;
        let (area, base) = match installed {
            Ok(installed) => installed,
            Err(error) => {
                flight::detach(landed)?;
                slack.clear(&memory)?;
                return Err(error);
            }
        };
        let free = RefCell::new((0..layout.slots).rev().map(Slot).collect());
        let tape = Self { pid, config, memory, slack, area, layout, base, free };
        let parked = tape.adopt(landed)?;
        tape.slack.clear(&tape.memory)?;
        Ok((tape, parked))
    }

    /// The process.
    #[must_use]
    pub fn pid(&self) -> Tid {
        self.pid
    }

    /// Where the tape lies: to be left out of everything that is captured or tracked.
    #[must_use]
    pub fn range(&self) -> Range<u64> {
        self.base..self.base + self.layout.total() as u64
    }

    /// Its code: a mapping of its own within that range.
    #[must_use]
    pub fn code_range(&self) -> Range<u64> {
        self.base..self.base + self.layout.code_len() as u64
    }

    /// The process's memory.
    #[must_use]
    pub fn memory(&self) -> &ProcessMemory {
        &self.memory
    }

    /// Slots that are free.
    #[must_use]
    pub fn free_slots(&self) -> usize {
        self.free.borrow().len()
    }

    /// Starts `program` on a thread that stands still on its way to user code. Collect it with
    /// [`SourceTape::wait`]; many threads may be started before.
    ///
    /// # Errors
    /// [`SourceError`]; the thread goes on untraced then, as it was.
    pub fn start(
        &self,
        thread: Stopped,
        context: Context,
        program: Program,
    ) -> Result<InFlight, SourceError> {
        let slot = self.take_slot()?;
        let place = Place::Slot { tape: self, slot, program: &program };
        match Flight::enter(place, thread, context) {
            Ok(flight) => Ok(InFlight { flight, slot, program }),
            Err(error) => {
                self.put_slot(slot);
                Err(error)
            }
        }
    }

    /// Waits until a started thread has parked.
    ///
    /// A signal that arrived before the thread could block its signals is delivered first, as if we were not
    /// there; [`Parked::context`] is the one that counts.
    ///
    /// # Errors
    /// [`SourceError::Trace`]: it died, or needs longer than `limit` (it goes on untraced and comes out of
    /// the tape by itself).
    pub fn wait(&self, flight: InFlight, limit: Duration) -> Result<Parked, SourceError> {
        let InFlight { flight, slot, program } = flight;
        let place = Place::Slot { tape: self, slot, program: &program };
        let landed = flight::land(flight, place, &self.memory, limit)?;
        let outcome = program.outcome(&self.area, &self.layout, slot);
        Ok(Parked { landed, slot, outcome })
    }

    /// Takes the tape out of the process with the help of its last parked thread, which then runs on.
    ///
    /// # Errors
    /// [`SourceError::Busy`] when other threads are on it; otherwise as [`SourceTape::install`]. After Err the
    /// tape's mapping may remain: [`super::cleanup_leftovers`].
    pub fn remove(self, thread: Parked) -> Result<Running, SourceError> {
        if self.free_slots() + 1 != self.layout.slots {
            return Err(SourceError::Busy { pid: self.pid });
        }
        let boot = Boot {
            calls: vec![BootCall {
                nr: libc::SYS_munmap,
                args: vec![BootArg::Value(self.base), BootArg::Value(self.layout.total() as u64)],
            }],
            ..Boot::default()
        };
        let place =
            Place::Slack { slack: &self.slack, memory: &self.memory, boot: &boot, config: &self.config };
        let flight = Flight::switch(place, thread.landed)?;
        let landed = flight::land(flight, place, &self.memory, BOOT_LIMIT)?;
        let results = Slack::results(&landed.stopped, 1);
        let running = flight::release(landed)?;
        self.slack.clear(&self.memory)?;
        match results?.first() {
            Some(0) => Ok(running),
            other => Err(boot_error("munmap", self.pid, other.copied().unwrap_or(-1))),
        }
    }

    fn take_slot(&self) -> Result<Slot, SourceError> {
        self.free.borrow_mut().pop().ok_or(SourceError::NoSlot { pid: self.pid })
    }

    fn put_slot(&self, slot: Slot) {
        self.free.borrow_mut().push(slot);
    }

    /// Moves a thread that is parked in the slack into a slot.
    fn adopt(&self, landed: flight::Landed) -> Result<Parked, SourceError> {
        let slot = self.take_slot()?;
        let program = Program::new();
        let place = Place::Slot { tape: self, slot, program: &program };
        let flight = Flight::switch(place, landed)?;
        let landed = flight::land(flight, place, &self.memory, BOOT_LIMIT)?;
        Ok(Parked { landed, slot, outcome: program.outcome(&self.area, &self.layout, slot) })
    }

    /// Options for a thread on the tape.
    fn tape_options(config: &Config, options: Options) -> Options {
        if config.suspend_seccomp { options.with(Options::SUSPEND_SECCOMP) } else { options }
    }
}

fn boot_error(what: &'static str, pid: Tid, result: i64) -> SourceError {
    let errno = i32::try_from(-result).map_or(Errno::UnknownErrno, Errno::from_raw);
    SourceError::Boot { what, pid, source: errno }
}

const BOOT_NAMES: [&str; 4] = ["memfd_create", "mmap of the tape", "mmap of the tape's code", "madvise"];

/// memfd_create, one mapping for all, its head mapped again as code, not inherited by children.
fn boot_install(layout: &SlotLayout) -> Boot {
    use BootArg::{Result, Text, Value};
    let bits = |flags: i32| Value(flags.unsigned_abs().into());
    let (total, code) = (layout.total() as u64, layout.code_len() as u64);
    let rw = libc::PROT_READ | libc::PROT_WRITE;
    let rx = libc::PROT_READ | libc::PROT_EXEC;
    let calls = vec![
        BootCall { nr: libc::SYS_memfd_create, args: vec![Text, Value(super::area::memfd_flags())] },
        BootCall {
            nr: libc::SYS_mmap,
            args: vec![Value(0), Value(total), bits(rw), bits(libc::MAP_SHARED), Result(0), Value(0)],
        },
        BootCall {
            nr: libc::SYS_mmap,
            args: vec![
                Result(1),
                Value(code),
                bits(rx),
                bits(libc::MAP_SHARED | libc::MAP_FIXED),
                Result(0),
                Value(0),
            ],
        },
        BootCall { nr: libc::SYS_madvise, args: vec![Result(1), Value(total), bits(libc::MADV_DONTFORK)] },
    ];
    Boot { calls, close_after: Some(0), text: b"gantry-tape\0" }
}

fn take_area(
    pid: Tid,
    thread: &Stopped,
    layout: &SlotLayout,
    calls: usize,
) -> Result<(SharedArea, u64), SourceError> {
    let results = Slack::results(thread, calls)?;
    for (result, what) in results.iter().zip(BOOT_NAMES) {
        if (-4095..0).contains(result) {
            return Err(boot_error(what, pid, *result));
        }
    }
    let (Some(fd), Some(base)) = (results.first(), results.get(1)) else {
        return Err(boot_error(BOOT_NAMES[0], pid, -1));
    };
    let fd = i32::try_from(*fd).map_err(|_| boot_error(BOOT_NAMES[0], pid, -9))?;
    let memfd = take_fd(pid, fd)?;
    let area = SharedArea::map(memfd, layout.total()).map_err(|source| SourceError::Memory {
        what: "map the tape",
        pid,
        source,
    })?;
    Ok((area, base.cast_unsigned()))
}

/// A duplicate of descriptor `fd` of process `pid`.
fn take_fd(pid: Tid, fd: i32) -> Result<OwnedFd, SourceError> {
    let take = || pidfd::getfd(pidfd::open(pid)?.as_fd(), fd);
    take().map_err(|errno| SourceError::Memory { what: "take a descriptor", pid, source: errno.into() })
}

/// Runs `boot` once on a thread, which then goes on untraced.
pub(super) fn boot_once(
    pid: Tid,
    thread: Stopped,
    context: Context,
    slack: &Slack,
    memory: &ProcessMemory,
    boot: &Boot,
    config: &Config,
) -> Result<(), SourceError> {
    let place = Place::Slack { slack, memory, boot, config };
    let flight = Flight::enter(place, thread, context)?;
    let landed = flight::land(flight, place, memory, BOOT_LIMIT)?;
    let results = Slack::results(&landed.stopped, boot.calls.len());
    flight::detach(landed)?;
    match results?.into_iter().find(|result| *result != 0) {
        None => Ok(()),
        Some(result) => Err(boot_error("munmap", pid, result)),
    }
}
