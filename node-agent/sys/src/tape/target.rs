//! The tape of a skeleton: it dies with its tracer, so the tape may end with a breakpoint.
//!
//! One memory is shared by all skeletons of a restore; children that a skeleton clones inherit it.

use std::cell::{Cell, RefCell};
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use super::area::{SharedArea, create_memfd};
use super::code;
use super::layout::{Size, Slot, SlotLayout};
use super::program::{Outcome, Program, TooBig};
use crate::Errno;
use crate::mem::ProcessMemory;
use crate::ptrace::{Error as TraceError, Event, Running, Stop, Stopped, Tid};
use crate::regs::{NO_SYSCALL, UserRegs};

/// Why a skeleton's tape failed. The skeleton is dead or will be killed by dropping it.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// Tracing failed.
    #[error(transparent)]
    Trace(#[from] TraceError),
    /// The program does not fit.
    #[error(transparent)]
    TooBig(#[from] TooBig),
    /// All slots are in use.
    #[error("all slots of the tape are in use")]
    NoSlot,
    /// The shared memory could not be made.
    #[error("make the tape's memory")]
    Memory(#[source] io::Error),
    /// A system call made by single step failed.
    #[error("system call {nr} in skeleton {tid}")]
    Step {
        /// The skeleton.
        tid: Tid,
        /// The call.
        nr: i64,
        /// Its answer.
        source: Errno,
    },
    /// The skeleton stopped for something else than the end of its tape.
    #[error("skeleton {tid} stopped on its tape: {stop:?} at {rip:#x}")]
    Unexpected {
        /// The skeleton.
        tid: Tid,
        /// Why it stopped.
        stop: Stop,
        /// Where.
        rip: u64,
    },
}

/// The memory of a restore's tapes.
#[derive(Debug)]
pub struct TargetTape {
    area: SharedArea,
    layout: SlotLayout,
    base: Cell<u64>,
    free: RefCell<Vec<Slot>>,
}

/// A skeleton on its tape.
#[derive(Debug)]
pub struct TargetRun {
    running: Running,
    slot: Slot,
    program: Program,
}

/// A skeleton that was interrupted in the call that it entered, or has ended its tape before.
#[derive(Debug)]
pub struct TargetAsked {
    entered: Entered,
    slot: Slot,
    program: Program,
}

#[derive(Debug)]
enum Entered {
    Ended(Stopped),
    Interrupted(Running),
}

/// A skeleton whose tape has ended.
#[derive(Debug)]
pub struct TargetDone {
    /// The skeleton.
    pub stopped: Stopped,
    /// What its calls returned.
    pub outcome: Outcome,
    /// Threads and processes that it made, stopped before their first instruction. Their registers are a
    /// copy of their maker's: give each a program (or registers) before it runs.
    pub born: Vec<Stopped>,
}

impl TargetTape {
    /// Makes the memory. No skeleton has it yet.
    ///
    /// # Errors
    /// [`TargetError::Memory`].
    pub fn create(size: Size) -> Result<Self, TargetError> {
        let code = code::target();
        let layout = SlotLayout::new(size, code.len());
        let fd = create_memfd().map_err(|errno| TargetError::Memory(errno.into()))?;
        let area = SharedArea::map(fd, layout.total()).map_err(TargetError::Memory)?;
        area.write(0, &code);
        let free = RefCell::new((0..layout.slots).rev().map(Slot).collect());
        Ok(Self { area, layout, base: Cell::new(0), free })
    }

    /// The memory's descriptor: a skeleton needs a copy when the tape is installed.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.area.as_fd()
    }

    /// Bytes of address space it takes.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.layout.total() as u64
    }

    /// Never: it holds at least its code.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Where it lies in every skeleton; 0 before the first [`TargetTape::install`].
    #[must_use]
    pub fn address(&self) -> u64 {
        self.base.get()
    }

    /// Maps the tape into `skeleton` at `address`, which must be free there. `fd` is the number under which
    /// the skeleton has [`TargetTape::fd`]; it may be closed afterwards. All skeletons must use one address.
    /// All its signals are blocked from now on; set its own mask last.
    ///
    /// # Errors
    /// [`TargetError::Step`]: EEXIST the address is taken. The skeleton is dropped, so killed.
    pub fn install(
        &self,
        mut skeleton: Stopped,
        syscall_at: u64,
        address: u64,
        fd: i32,
    ) -> Result<Stopped, TargetError> {
        skeleton.set_sigmask(u64::MAX)?;
        let fd = i64::from(fd).cast_unsigned();
        let flags = (libc::MAP_SHARED | libc::MAP_FIXED_NOREPLACE).unsigned_abs().into();
        let code = self.layout.code_len() as u64;
        let rx = (libc::PROT_READ | libc::PROT_EXEC).unsigned_abs().into();
        let rw = (libc::PROT_READ | libc::PROT_WRITE).unsigned_abs().into();
        let (skeleton, _) =
            step_call(skeleton, syscall_at, libc::SYS_mmap, [address, code, rx, flags, fd, 0])?;
        let rest = [address + code, self.len() - code, rw, flags, fd, code];
        let (skeleton, _) = step_call(skeleton, syscall_at, libc::SYS_mmap, rest)?;
        self.base.set(address);
        Ok(skeleton)
    }

    /// Moves the tape in all `skeletons` (one task an address space, all tasks off the tape) to `to`, which
    /// must be free in each.
    ///
    /// # Errors
    /// As [`TargetTape::install`].
    pub fn relocate(&self, skeletons: Vec<(Stopped, u64)>, to: u64) -> Result<Vec<Stopped>, TargetError> {
        let from = self.address();
        let code = self.layout.code_len() as u64;
        let flags = (libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED).unsigned_abs().into();
        let mut moved = Vec::with_capacity(skeletons.len());
        for (skeleton, at) in skeletons {
            let (skeleton, _) = step_call(skeleton, at, libc::SYS_mremap, [from, code, code, flags, to, 0])?;
            let data = self.len() - code;
            let args = [from + code, data, data, flags, to + code, 0];
            let (skeleton, _) = step_call(skeleton, at, libc::SYS_mremap, args)?;
            moved.push(skeleton);
        }
        self.base.set(to);
        Ok(moved)
    }

    /// Unmaps the tape from `skeleton`; its registers are left in the vDSO and must be set before it runs.
    ///
    /// # Errors
    /// As [`TargetTape::install`].
    pub fn remove(&self, skeleton: Stopped, syscall_at: u64) -> Result<Stopped, TargetError> {
        let args = [self.address(), self.len(), 0, 0, 0, 0];
        Ok(step_call(skeleton, syscall_at, libc::SYS_munmap, args)?.0)
    }

    /// Starts `program` on a stopped skeleton thread. General registers are overwritten.
    ///
    /// # Errors
    /// [`TargetError::NoSlot`], [`TargetError::TooBig`], or tracing.
    pub fn start(&self, mut skeleton: Stopped, program: Program) -> Result<TargetRun, TargetError> {
        let slot = self.free.borrow_mut().pop().ok_or(TargetError::NoSlot)?;
        let started = self.load(&mut skeleton, slot, &program);
        match started.and_then(|()| Ok(skeleton.cont(0)?)) {
            Ok(running) => Ok(TargetRun { running, slot, program }),
            Err(error) => {
                self.free.borrow_mut().push(slot);
                Err(error)
            }
        }
    }

    fn load(&self, skeleton: &mut Stopped, slot: Slot, program: &Program) -> Result<(), TargetError> {
        let data = self.address() + self.layout.data_offset(slot) as u64;
        let mut all = program.clone();
        all.append_after();
        let loaded = all.load(&self.area, &self.layout, slot, data)?;
        let old = skeleton.regs()?;
        let regs = UserRegs {
            rip: self.address(),
            rbx: loaded.records,
            rbp: loaded.count,
            orig_rax: NO_SYSCALL,
            eflags: 0x202,
            ..old
        };
        Ok(skeleton.set_regs(&regs)?)
    }

    /// Waits until the tape of `run` has ended.
    ///
    /// # Errors
    /// [`TargetError::Trace`]: it died or needs longer than `limit`; [`TargetError::Unexpected`]. Failed calls
    /// are in the outcome.
    pub fn finish(&self, run: TargetRun, limit: Duration) -> Result<TargetDone, TargetError> {
        let TargetRun { running, slot, program } = run;
        let result = self.until_end(running, limit);
        let done = result.map(|(stopped, born)| TargetDone {
            stopped,
            outcome: program.outcome(&self.area, &self.layout, slot),
            born,
        });
        self.free.borrow_mut().push(slot);
        done
    }

    /// [`TargetTape::start`] and [`TargetTape::finish`].
    ///
    /// # Errors
    /// Of both.
    pub fn run(
        &self,
        skeleton: Stopped,
        program: Program,
        limit: Duration,
    ) -> Result<TargetDone, TargetError> {
        let run = self.start(skeleton, program)?;
        self.finish(run, limit)
    }

    fn until_end(&self, running: Running, limit: Duration) -> Result<(Stopped, Vec<Stopped>), TargetError> {
        let end = Instant::now() + limit;
        let mut born = Vec::new();
        let mut running = running;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let stopped = running.wait(left)?.stopped()?;
            match stopped.stop() {
                Stop::Signal(libc::SIGTRAP) => {
                    let rip = stopped.regs()?.rip;
                    if rip != self.address() + code::TARGET_END {
                        return Err(TargetError::Unexpected {
                            tid: stopped.tid(),
                            stop: stopped.stop(),
                            rip,
                        });
                    }
                    return Ok((stopped, born));
                }
                Stop::Event(..) => {
                    if let Some(child) = stopped.newborn() {
                        let left = end.saturating_duration_since(Instant::now());
                        born.push(child.wait(left)?.stopped()?);
                    }
                    running = stopped.cont(0)?;
                }
                Stop::Interrupt | Stop::Group(_) => running = stopped.cont(0)?,
                stop @ Stop::Signal(_) => {
                    let rip = stopped.regs()?.rip;
                    return Err(TargetError::Unexpected { tid: stopped.tid(), stop, rip });
                }
            }
        }
    }

    /// Lets `skeleton` enter the one call of `program`, interrupts it once it sleeps, and returns it with the
    /// result register: -516 (ERESTART_RESTARTBLOCK) means that its restart block is set, so that
    /// restart_syscall(2) sleeps for what remains; another value is what the call returned.
    ///
    /// # Errors
    /// As [`TargetTape::finish`].
    pub fn enter_and_interrupt(
        &self,
        skeleton: Stopped,
        program: Program,
        limit: Duration,
    ) -> Result<(Stopped, i64), TargetError> {
        let run = self.start(skeleton, program)?;
        let asked = self.interrupt_asleep(run, limit)?;
        self.interrupted(asked, limit)
    }

    /// The second third of [`TargetTape::enter_and_interrupt`], for many threads at once: while one wakes up, the next is
    /// interrupted.
    ///
    /// # Errors
    /// As [`TargetTape::finish`].
    pub fn interrupt_asleep(&self, run: TargetRun, limit: Duration) -> Result<TargetAsked, TargetError> {
        let TargetRun { running, slot, program } = run;
        match self.wait_asleep(running, limit) {
            Ok(entered) => Ok(TargetAsked { entered, slot, program }),
            Err(error) => {
                self.free.borrow_mut().push(slot);
                Err(error)
            }
        }
    }

    /// The last third.
    ///
    /// # Errors
    /// As [`TargetTape::finish`].
    pub fn interrupted(&self, asked: TargetAsked, limit: Duration) -> Result<(Stopped, i64), TargetError> {
        let TargetAsked { entered, slot, program } = asked;
        let result = match entered {
            Entered::Ended(stopped) => Ok((stopped, None)),
            Entered::Interrupted(running) => self.stopped_asleep(running, limit),
        };
        let answer = result.map(|(stopped, interrupted)| {
            let outcome = program.outcome(&self.area, &self.layout, slot);
            let value = interrupted.unwrap_or_else(|| outcome.results().first().copied().unwrap_or(0));
            (stopped, value)
        });
        self.free.borrow_mut().push(slot);
        answer
    }

    fn wait_asleep(&self, mut running: Running, limit: Duration) -> Result<Entered, TargetError> {
        let tid = running.tid();
        let end = Instant::now() + limit;
        while is_runnable(tid) && Instant::now() < end {
            running = match running.wait(Duration::ZERO)? {
                Event::TimedOut(running) => running,
                Event::Stopped(stopped) => return self.ended(stopped).map(Entered::Ended),
                Event::Exited(tid, _) => return Err(TraceError::Gone { tid }.into()),
            };
        }
        running.interrupt()?;
        Ok(Entered::Interrupted(running))
    }

    fn stopped_asleep(
        &self,
        running: Running,
        limit: Duration,
    ) -> Result<(Stopped, Option<i64>), TargetError> {
        let stopped = running.wait(limit)?.stopped()?;
        // The latter where job control has stopped the process.
        if !matches!(stopped.stop(), Stop::Interrupt | Stop::Group(_)) {
            return Ok((self.ended(stopped)?, None));
        }
        let regs = stopped.regs()?;
        if regs.syscall().is_some() {
            return Ok((stopped, Some(regs.result())));
        }
        // Interrupted between two instructions of the loop: let it end.
        let (stopped, _) = self.until_end(stopped.cont(0)?, limit)?;
        Ok((stopped, None))
    }

    fn ended(&self, mut stopped: Stopped) -> Result<Stopped, TargetError> {
        let rip = stopped.regs()?.rip;
        if stopped.stop() == Stop::Signal(libc::SIGTRAP) && rip == self.address() + code::TARGET_END {
            stopped.forget_interrupt();
            return Ok(stopped);
        }
        Err(TargetError::Unexpected { tid: stopped.tid(), stop: stopped.stop(), rip })
    }
}

/// Whether thread `tid` is on a CPU or waits for one.
fn is_runnable(tid: Tid) -> bool {
    // Not /proc/TID/stat, for which the kernel adds up all threads of the process.
    let Ok(stat) = fs::read_to_string(format!("/proc/{tid}/task/{tid}/stat")) else { return false };
    stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('R'))
}

/// One system call in a skeleton by single step at the `syscall` instruction at `at`. Its general registers
/// are overwritten; signals must be blocked.
///
/// # Errors
/// [`TargetError::Step`] with the call's error, or tracing. The skeleton is dropped then, so killed.
pub fn step_call(
    mut skeleton: Stopped,
    at: u64,
    nr: i64,
    args: [u64; 6],
) -> Result<(Stopped, i64), TargetError> {
    let old = skeleton.regs()?;
    let [rdi, rsi, rdx, r10, r8, r9] = args;
    let regs = UserRegs {
        rip: at,
        rax: nr.cast_unsigned(),
        orig_rax: NO_SYSCALL,
        rdi,
        rsi,
        rdx,
        r10,
        r8,
        r9,
        eflags: 0x202,
        ..old
    };
    skeleton.set_regs(&regs)?;
    let tid = skeleton.tid();
    loop {
        skeleton = skeleton.step()?.wait(Duration::from_secs(10))?.stopped()?;
        match skeleton.stop() {
            // A pending interrupt was reported first.
            Stop::Interrupt | Stop::Group(_) => {}
            Stop::Signal(libc::SIGTRAP) => break,
            stop => return Err(TargetError::Unexpected { tid, stop, rip: skeleton.regs()?.rip }),
        }
    }
    let result = skeleton.regs()?.result();
    if (-4095..0).contains(&result) {
        let source = Errno::from_raw(i32::try_from(-result).unwrap_or(0));
        return Err(TargetError::Step { tid, nr, source });
    }
    Ok((skeleton, result))
}

/// Address of a `syscall` instruction in the vDSO of `pid`, for [`step_call`].
///
/// # Errors
/// When it cannot be found or read.
pub fn syscall_instruction(pid: i32) -> Result<u64, super::VdsoError> {
    let memory = ProcessMemory::open(pid).map_err(|source| super::VdsoError::Read { pid, source })?;
    super::Vdso::find(pid)?.syscall_instruction(pid, &memory)
}
