//! A thread on the tape, and one that has parked.

use std::os::fd::OwnedFd;
use std::time::Duration;

use super::flight::{self, Flight, Landed, Place};
use super::{Context, SourceError, SourceTape, take_fd};
use crate::ptrace::{Running, Stopped, Tid};
use crate::tape::layout::Slot;
use crate::tape::program::{Outcome, Program};

/// A thread that runs a program: [`SourceTape::wait`].
#[derive(Debug)]
pub struct InFlight {
    pub(super) flight: Flight,
    pub(super) slot: Slot,
    pub(super) program: Program,
}

/// A thread that has made its calls and stands at the end of the tape.
///
/// Leave it so for as long as the process is to stand still; it restores itself should the tracer die or this
/// be dropped (its slot is then not used again).
#[derive(Debug)]
pub struct Parked {
    pub(super) landed: Landed,
    pub(super) slot: Slot,
    pub(super) outcome: Outcome,
}

impl Parked {
    /// Its thread id.
    #[must_use]
    pub fn tid(&self) -> Tid {
        self.landed.stopped.tid()
    }

    /// Its own registers and mask.
    #[must_use]
    pub fn context(&self) -> &Context {
        &self.landed.context
    }

    /// The stopped thread, for what ptrace can ask. Its general registers and mask are the tape's, its xsave
    /// area is its own.
    #[must_use]
    pub fn thread(&self) -> &Stopped {
        &self.landed.stopped
    }

    /// What its calls returned.
    #[must_use]
    pub fn outcome(&self) -> &Outcome {
        &self.outcome
    }

    /// A duplicate of descriptor `fd` of its process.
    ///
    /// # Errors
    /// [`SourceError::Memory`] with the answer of pidfd_getfd(2).
    pub fn take_fd(&self, tape: &SourceTape, fd: i32) -> Result<OwnedFd, SourceError> {
        take_fd(tape.pid, fd)
    }

    /// Makes the calls of [`Program::after`] that are left, and parks again. They are also made without this,
    /// by a thread whose tracer died; a live [`Parked::release`] does **not** make them.
    ///
    /// # Errors
    /// As [`SourceTape::wait`].
    pub fn run_after(self, tape: &SourceTape, limit: Duration) -> Result<Self, SourceError> {
        let program = Program::new();
        let place = Place::Slot { tape, slot: self.slot, program: &program };
        let landed = flight::run_after(self.landed, place, &tape.memory, limit)?;
        Ok(Self { landed, ..self })
    }

    /// Gives it another program, without going back to user code in between.
    ///
    /// # Errors
    /// As [`SourceTape::start`].
    pub fn start(self, tape: &SourceTape, program: Program) -> Result<InFlight, SourceError> {
        let place = Place::Slot { tape, slot: self.slot, program: &program };
        let flight = Flight::again(place, self.landed)?;
        Ok(InFlight { flight, slot: self.slot, program })
    }

    /// Lets it go on as it was before the tape, still traced: every later signal stops it until the tracer
    /// passes it on, so rather [`Parked::detach`] when nobody waits for it.
    ///
    /// # Errors
    /// [`SourceError::Trace`]: it died.
    pub fn release(self, tape: &SourceTape) -> Result<Running, SourceError> {
        let running = flight::release(self.landed)?;
        tape.put_slot(self.slot);
        Ok(running)
    }

    /// Lets it go on as it was before the tape, untraced.
    ///
    /// # Errors
    /// [`SourceError::Trace`]: it died.
    pub fn detach(self, tape: &SourceTape) -> Result<(), SourceError> {
        flight::detach(self.landed)?;
        tape.put_slot(self.slot);
        Ok(())
    }
}
