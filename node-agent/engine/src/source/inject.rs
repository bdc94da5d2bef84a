//! What is put into a process before it is copied: a tape and a tracker.

use sys::tape::Program;

use super::address_space;
use super::clock::SchedulerClock;
use super::error::SourceError;
use super::findings::Findings;
use super::keyrings;
use super::memory::soft_dirty::SoftDirty;
use super::memory::tracker::{PagemapScan, Tracker};
use super::stopping::{stop_one, stop_thread};
use super::traced::Tapes;
use super::tree::Process;
use super::witness;

/// What was put in, and what it told.
pub(super) struct Injected {
    pub(super) tracker: Box<dyn Tracker>,
    pub(super) tapes: Tapes,
    /// Registrations of membarrier(2).
    pub(super) barriers: u32,
}

/// Puts a tape, and a userfaultfd where that tracks, into a process, and asks it what can only be asked so; it runs on
/// untraced. `only`: the one thread by which this is to be done.
pub(super) fn inject(
    process: &Process,
    only: Option<i32>,
    clock: &SchedulerClock,
    soft_dirty: bool,
    witness: Option<i32>,
    findings: &mut Findings,
) -> Result<Injected, SourceError> {
    let pid = process.pid;
    let stopped = match only {
        Some(tid) => stop_thread(pid, tid, clock)?,
        None => stop_one(pid, clock)?,
    };
    let Some((thread, nap)) = stopped else {
        return Err(SourceError::ThreadGone { tid: pid });
    };
    let (tapes, parked) = Tapes::install(process, thread, &nap)?;
    let (uffd, parked) = if soft_dirty {
        (None, parked)
    } else {
        let (uffd, parked) = tapes.make_uffd(parked)?;
        (Some(uffd), parked)
    };
    let mut program = Program::new();
    let keys = keyrings::Ask::add(&mut program);
    let sandbox = witness::Ask::add(&mut program, witness);
    let space = address_space::Ask::add(&mut program);
    let mut barriers = 0;
    let parked = tapes.again(parked, program)?;
    if let Some(outcome) = parked.outcomes.last() {
        let sandbox = sandbox.refusal(outcome, &process.status, &parked.status);
        for (reason, way_out) in
            [keys.refusal(outcome), sandbox, space.refusal(outcome)].into_iter().flatten()
        {
            findings.process(process.inner, reason, way_out);
        }
        barriers = space.barriers(outcome);
    }
    tapes.detach(parked)?;
    let tracker: Box<dyn Tracker> = match uffd {
        None => Box::new(SoftDirty::new(pid)),
        Some(uffd) => Box::new(
            PagemapScan::new(uffd)
                .map_err(|errno| SourceError::kernel("set up write tracking", pid, errno))?,
        ),
    };
    Ok(Injected { tracker, tapes, barriers })
}
