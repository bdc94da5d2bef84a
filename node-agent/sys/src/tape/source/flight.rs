//! Entering, following and leaving self-restoring code.

use std::time::{Duration, Instant};

use super::{Config, Context, SourceError, SourceTape};
use crate::mem::ProcessMemory;
use crate::ptrace::{Error as TraceError, Event, Options, Running, Stop, Stopped};
use crate::regs::{NO_SYSCALL, UserRegs};
use crate::tape::code::{self, Entries, SlotCode};
use crate::tape::layout::Slot;
use crate::tape::program::Program;
use crate::tape::slack::{Boot, Slack, quiet_mask};

/// Where code is put, and what it does.
#[derive(Clone, Copy)]
pub(super) enum Place<'a> {
    Slack { slack: &'a Slack, memory: &'a ProcessMemory, boot: &'a Boot, config: &'a Config },
    Slot { tape: &'a SourceTape, slot: Slot, program: &'a Program },
}

/// Code that was put somewhere: its absolute addresses, and the registers it wants.
#[derive(Clone, Copy, Debug)]
pub(super) struct Prepared {
    entries: Entries,
    records: u64,
    count: u64,
}

/// A thread in self-restoring code.
#[derive(Debug)]
pub(super) struct Flight {
    running: Running,
    context: Context,
    prepared: Prepared,
}

/// A thread at its park.
#[derive(Debug)]
pub(super) struct Landed {
    pub(super) stopped: Stopped,
    pub(super) context: Context,
    prepared: Prepared,
}

impl Place<'_> {
    fn config(&self) -> &Config {
        match self {
            Place::Slack { config, .. } => config,
            Place::Slot { tape, .. } => &tape.config,
        }
    }

    /// Writes the code that ends in `context`.
    fn prepare(&self, context: &Context) -> Result<Prepared, SourceError> {
        match *self {
            Place::Slack { slack, memory, boot, config } => {
                let entries =
                    slack.write(memory, boot, config.park_signal, context.sigmask, &context.alone)?;
                Ok(Prepared { entries: absolute(entries, slack.range.start), records: 0, count: 0 })
            }
            Place::Slot { tape, slot, .. } => {
                let data = tape.layout.data_offset(slot);
                let address = tape.base + data as u64;
                tape.area.write_words(data, &[quiet_mask(tape.config.park_signal), context.sigmask, 0, 0]);
                let slot_code = SlotCode {
                    quiet_mask: address,
                    own_mask: address + 8,
                    after: address + 16,
                    signal: tape.config.park_signal,
                };
                let (bytes, entries) = code::source(&slot_code, &context.alone);
                let offset = tape.layout.code_offset(slot);
                tape.area.write(offset, &bytes);
                self.load(Prepared {
                    entries: absolute(entries, tape.base + offset as u64),
                    records: 0,
                    count: 0,
                })
            }
        }
    }

    /// Writes the program's records.
    fn load(&self, prepared: Prepared) -> Result<Prepared, SourceError> {
        let Place::Slot { tape, slot, program } = *self else { return Ok(prepared) };
        let data = tape.layout.data_offset(slot);
        // Nothing to do after the park until the new records are complete.
        tape.area.write_word(data + 16, 0);
        let loaded = program.load(&tape.area, &tape.layout, slot, tape.base + data as u64)?;
        tape.area.write_word(data + 24, loaded.after);
        tape.area.write_word(data + 16, loaded.after_count);
        Ok(Prepared { records: loaded.records, count: loaded.count, ..prepared })
    }
}

fn absolute(entries: Entries, base: u64) -> Entries {
    Entries {
        begin: base + entries.begin,
        walk: base + entries.walk,
        parked: base + entries.parked,
        after: base + entries.after,
    }
}

impl Flight {
    /// Sends a thread from user code into `place`. The register change is the single switch.
    pub(super) fn enter(
        place: Place<'_>,
        mut stopped: Stopped,
        context: Context,
    ) -> Result<Self, SourceError> {
        let prepared = place.prepare(&context)?;
        let options = SourceTape::tape_options(place.config(), stopped.options());
        if options != stopped.options() {
            stopped.set_options(options)?;
        }
        let regs = enter_regs(&context.found, &prepared);
        stopped.set_regs(&regs)?;
        Ok(Self { running: stopped.cont(0)?, context, prepared })
    }

    /// Sends a parked thread into other code.
    pub(super) fn switch(place: Place<'_>, landed: Landed) -> Result<Self, SourceError> {
        let Landed { mut stopped, context, .. } = landed;
        let prepared = place.prepare(&context)?;
        stopped.set_regs(&enter_regs(&context.found, &prepared))?;
        Ok(Self { running: stopped.cont(0)?, context, prepared })
    }

    /// Gives a parked thread another program in the code where it is.
    pub(super) fn again(place: Place<'_>, landed: Landed) -> Result<Self, SourceError> {
        let Landed { mut stopped, context, prepared } = landed;
        let prepared = place.load(prepared)?;
        let mut regs = enter_regs(&context.found, &prepared);
        regs.rip = prepared.entries.walk;
        stopped.set_regs(&regs)?;
        Ok(Self { running: stopped.cont(0)?, context, prepared })
    }
}

fn enter_regs(found: &UserRegs, prepared: &Prepared) -> UserRegs {
    UserRegs {
        rip: prepared.entries.begin,
        rbx: prepared.records,
        rbp: prepared.count,
        orig_rax: NO_SYSCALL,
        rax: 0,
        ..*found
    }
}

/// Runs the calls after the park and parks again.
pub(super) fn run_after(
    landed: Landed,
    place: Place<'_>,
    memory: &ProcessMemory,
    limit: Duration,
) -> Result<Landed, SourceError> {
    let Landed { mut stopped, context, prepared } = landed;
    let mut regs = stopped.regs()?;
    regs.rip = prepared.entries.after;
    regs.r15 = 1;
    regs.orig_rax = NO_SYSCALL;
    stopped.set_regs(&regs)?;
    let flight = Flight { running: stopped.cont(0)?, context, prepared };
    land(flight, place, memory, limit)
}

/// Follows a thread to its park.
pub(super) fn land(
    flight: Flight,
    place: Place<'_>,
    memory: &ProcessMemory,
    limit: Duration,
) -> Result<Landed, SourceError> {
    let Flight { mut running, mut context, mut prepared } = flight;
    let park_signal = place.config().park_signal;
    let end = Instant::now() + limit;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let stopped = running.wait(left)?.stopped()?;
        running = match stopped.stop() {
            Stop::Signal(signal) => {
                let rip = stopped.regs()?.rip;
                let entries = prepared.entries;
                if signal == park_signal && rip == entries.parked {
                    return Ok(Landed { stopped, context, prepared });
                }
                if signal == park_signal {
                    // Somebody else's, and ignored by the program.
                    stopped.cont(0)?
                } else if (entries.begin..entries.walk.max(entries.begin + 1)).contains(&rip) {
                    // It came before the mask was set: no call was made. As if we were not there.
                    let again = deliver(stopped, &context, signal, left)?;
                    context = Context::read(&again, memory, Duration::ZERO)?;
                    let flight = Flight::enter(place, again, context)?;
                    prepared = flight.prepared;
                    flight.running
                } else {
                    // SIGSTOP, or a fault in the making: let the kernel have its way.
                    stopped.cont(signal)?
                }
            }
            Stop::Interrupt | Stop::Group(_) | Stop::Event(..) => stopped.cont(0)?,
        };
    }
}

/// Delivers `signal` to the thread in its own registers and stops it again.
fn deliver(
    mut stopped: Stopped,
    context: &Context,
    signal: i32,
    limit: Duration,
) -> Result<Stopped, SourceError> {
    clear_suspend(&mut stopped)?;
    // One with a handler is what interrupted the call now. One that is ignored only shows because we trace.
    let caught = super::context::is_caught(stopped.tid(), signal);
    stopped.set_regs(if caught { &context.found } else { &context.release })?;
    let mut born = Vec::new();
    let event = stopped.cont(signal)?.stop(limit.max(Duration::from_millis(100)), &mut born)?;
    Ok(event.stopped()?)
}

fn clear_suspend(stopped: &mut Stopped) -> Result<(), TraceError> {
    let options = stopped.options();
    if options.has(Options::SUSPEND_SECCOMP) {
        stopped.set_options(options.without(Options::SUSPEND_SECCOMP))?;
    }
    Ok(())
}

/// Puts mask and registers back; the thread is still stopped, and in no code of ours.
fn give_back(landed: Landed) -> Result<(Stopped, Context), TraceError> {
    let Landed { mut stopped, context, .. } = landed;
    clear_suspend(&mut stopped)?;
    // Until the registers follow, the thread would still restore itself, the mask a second time.
    stopped.set_sigmask(context.sigmask)?;
    stopped.set_regs(&context.release)?;
    Ok((stopped, context))
}

/// Lets a parked thread go on as it was before the tape, still traced.
pub(super) fn release(landed: Landed) -> Result<Running, SourceError> {
    let (mut stopped, context) = give_back(landed)?;
    if !context.group_stopped {
        return Ok(stopped.cont(0)?);
    }
    // Job control holds it: stop again before user code, then listen.
    stopped.interrupt_next()?;
    match stopped.cont(0)?.wait(Duration::from_secs(5))? {
        Event::Stopped(stopped) => Ok(stopped.resume_as_found()?),
        Event::Exited(tid, _) => Err(TraceError::Gone { tid }.into()),
        Event::TimedOut(running) => Ok(running),
    }
}

/// As [`release`], ending the tracing in the same step.
pub(super) fn detach(landed: Landed) -> Result<(), SourceError> {
    let (stopped, _) = give_back(landed)?;
    Ok(stopped.detach(0)?)
}
