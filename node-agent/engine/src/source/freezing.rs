//! Bringing a whole tree to a stand.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use nix::time::ClockId;
use sys::cgroup::Freezer;
use sys::ptrace::Stopped;
use sys::tape::Program;

use super::barrier::{Barrier, Open};
use super::capture::files;
use super::capture::threads::{ProcessAsk, ThreadAsk};
use super::clock::{SchedulerClock, nanoseconds};
use super::error::SourceError;
use super::findings::Findings;
use super::locked;
use super::look::{Depth, Flags, Look, Standstill};
use super::memory::process::TrackedMemory;
use super::memory::sent::PageSet;
use super::memory::tracker::Tracker;
use super::numa;
use super::recover::clean;
use super::reports;
use super::session::{Frozen, Source, State, Tracked, refuse, still_there};
use super::stopping::{Held, places, stop_tree};
use super::traced::{SentOff, Tapes};
use super::tree::Process;
use super::{FreezeReport, failpoint};
use crate::account;
use crate::proc::status::{self, Status};
use crate::proc::timers;

/// How often a freeze is tried when what stands against it passes by itself; some 120 ms in all.
const FREEZE_TRIES: u32 = 16;
/// How many of these in a row behind the raised barrier: a busy server has work again at once without it, and a client that waits
/// for an answer gets none with it.
const BEHIND_BARRIER: u32 = 4;

/// Longest time until a cgroup whose tasks are all stopped reports itself frozen.
const FREEZE_LIMIT: Duration = Duration::from_secs(5);
/// More threads than this are not timed one by one before a freeze: their relative timeouts start anew.
const MAX_TIMED: usize = 4096;

impl Source {
    /// Stops the tree, which nothing is kept from: see [`Source::freeze_behind`].
    ///
    /// # Errors
    /// As [`Source::freeze_behind`].
    pub fn freeze(&mut self) -> Result<FreezeReport, SourceError> {
        self.freeze_behind(&mut Open)
    }

    /// Stops the tree: nothing of it runs any more when this returns, and the barrier is raised. Afterwards
    /// [`Source::shape`] is exact; the target must follow it before it takes the last pages.
    ///
    /// What passes by itself ([`SourceError::is_transient`]) is given time to: the tree runs on for some milliseconds, at first
    /// with the barrier raised, so that what it has to do is not followed by more, then without.
    ///
    /// # Errors
    /// [`SourceError::Refused`] for what came up since [`Source::attach`], [`SourceError::Barrier`]. The tree may be
    /// stopped in part, and the barrier raised; [`Source::abort`] lets it run on.
    pub fn freeze_behind(&mut self, barrier: &mut dyn Barrier) -> Result<FreezeReport, SourceError> {
        if !matches!(self.state, State::Tracking) {
            return Err(self.wrong_state("a freeze"));
        }
        let mut began = Instant::now();
        for turn in 1.. {
            match self.try_freeze(barrier) {
                Err(error) if error.is_transient() && turn < FREEZE_TRIES => {
                    tracing::debug!(%error, turn, "not frozen yet");
                    let lower = turn % BEHIND_BARRIER == 0;
                    if lower {
                        barrier.lower().map_err(SourceError::Barrier)?;
                    }
                    self.thaw()?;
                    std::thread::sleep(Duration::from_millis(turn.into()));
                    if lower {
                        began = Instant::now();
                    }
                }
                // A child of a thread that was on its tape.
                Err(SourceError::Leftover { pid }) if turn < FREEZE_TRIES => {
                    self.thaw()?;
                    clean(pid, &status::read(pid).unwrap_or_default())?;
                }
                // It was kept from the world before, too.
                Ok(report) if turn > 1 => return Ok(FreezeReport { began, ..report }),
                other => return other,
            }
        }
        Err(self.wrong_state("a freeze"))
    }

    fn try_freeze(&mut self, barrier: &mut dyn Barrier) -> Result<FreezeReport, SourceError> {
        let mut frozen = Box::<Frozen>::default();
        if let Some(cgroup) = &self.looker.spec.cgroup {
            let freezer = Freezer::open(cgroup)
                .map_err(|errno| SourceError::kernel("open the freezer", self.looker.spec.root, errno))?;
            frozen.freezer = Some(freezer);
        }
        self.time_sleepers(&mut frozen.held)?;
        // Nothing of the tree stands still before this.
        account::begin(Instant::now());
        self.state = State::Frozen(frozen);
        failpoint!("source-freeze-begin");
        let report = self.stop_all(barrier)?;
        failpoint!("source-freeze-end");
        Ok(report)
    }

    /// Notes how long each thread has slept, before it is woken by being stopped.
    pub(super) fn time_sleepers(&self, held: &mut Held) -> Result<(), SourceError> {
        let tree = super::tree::walk(self.looker.spec.root)?;
        if tree.iter().map(|process| process.tids.len()).sum::<usize>() > MAX_TIMED {
            return Ok(());
        }
        let clock = SchedulerClock::calibrate();
        for process in &tree {
            for tid in &process.tids {
                held.set_nap(*tid, clock.nap(process.pid, *tid));
            }
        }
        Ok(())
    }

    fn stop_all(&mut self, barrier: &mut dyn Barrier) -> Result<FreezeReport, SourceError> {
        let began = Instant::now();
        let root = self.looker.spec.root;
        let State::Frozen(frozen) = &mut self.state else {
            return Err(self.wrong_state("a freeze"));
        };
        let tree = stop_tree(root, &mut frozen.held)?;
        let stop = began.elapsed();
        account::lap("freeze.stop");
        failpoint!("source-freeze-stopped");
        let threads = frozen.held.stopped.len();
        let start = Instant::now();
        self.park_all(&tree)?;
        let tapes = start.elapsed();
        account::lap("freeze.tapes");
        failpoint!("source-freeze-parked");
        let start = Instant::now();
        self.freeze_cgroup()?;
        let cgroup = start.elapsed();
        account::lap("freeze.cgroup");
        failpoint!("source-freeze-cgroup");
        // Not before it stands still: what it sends would wait. And before anything is asked that the world can change.
        barrier.raise().map_err(SourceError::Barrier)?;
        account::lap("freeze.lock");
        let processes = tree.len();
        self.look_frozen(tree)?;
        Ok(FreezeReport { processes, threads, began, stop, tapes, cgroup })
    }

    /// Sends every thread over its tape.
    fn park_all(&mut self, tree: &[Process]) -> Result<(), SourceError> {
        let State::Frozen(frozen) = &mut self.state else {
            return Ok(());
        };
        let mut by_process: HashMap<i32, Vec<Stopped>> = HashMap::new();
        let of = |process: &Process| process.tids.iter().map(|tid| (*tid, process.pid)).collect::<Vec<_>>();
        let pids: HashMap<i32, i32> = tree.iter().flat_map(of).collect();
        for stopped in std::mem::take(&mut frozen.held.stopped) {
            let pid = pids.get(&stopped.tid()).copied().unwrap_or(0);
            by_process.entry(pid).or_default().push(stopped);
        }
        let mut result = Ok(());
        // All processes at once.
        let mut under_way = Vec::with_capacity(tree.len());
        for process in tree {
            let mut stopped = by_process.remove(&process.pid).unwrap_or_default();
            if result.is_err() {
                frozen.held.stopped.append(&mut stopped);
                continue;
            }
            let places = places(&process.tids);
            stopped.sort_by_key(|thread| places.get(&thread.tid()).copied());
            let witness = match self.witnesses.number(process) {
                Ok(witness) => witness,
                Err(error) => {
                    frozen.held.stopped.append(&mut stopped);
                    result = Err(error);
                    continue;
                }
            };
            match send_process(&mut self.tracked, frozen, process, stopped, witness) {
                Ok(Some(sent)) => under_way.push((process, sent)),
                Ok(None) => {}
                Err(error) => result = Err(error),
            }
        }
        for (process, sent) in under_way {
            let Some(tapes) = self.tracked.get_mut(&process.pid).and_then(|known| known.tapes.as_mut())
            else {
                continue;
            };
            match tapes.land(process, sent) {
                Ok(parked) => drop(frozen.parked.insert(process.pid, parked)),
                Err(error) => result = result.and(Err(error)),
            }
        }
        for (_, mut stopped) in by_process {
            frozen.held.stopped.append(&mut stopped);
        }
        result?;
        reports::read(tree, &self.tracked, frozen)?;
        numa::read(tree, self.policies, &self.tracked, frozen)?;
        locked::read(tree, &self.tracked, frozen)
    }

    fn freeze_cgroup(&mut self) -> Result<(), SourceError> {
        let root = self.looker.spec.root;
        let State::Frozen(frozen) = &mut self.state else {
            return Ok(());
        };
        if let Some(freezer) = &frozen.freezer {
            // Noted first: a failed write may have frozen all the same.
            frozen.cgroup_frozen = true;
            freezer
                .freeze(FREEZE_LIMIT)
                .map_err(|errno| SourceError::kernel("freeze the cgroup", root, errno))?;
        }
        Ok(())
    }

    /// The exact look, with every rule once more. `tree`: since it stands still.
    fn look_frozen(&mut self, tree: Vec<Process>) -> Result<(), SourceError> {
        let mut findings = Findings::default();
        let parked = match &self.state {
            State::Frozen(frozen) => frozen.parked.values().flatten(),
            State::Tracking | State::Done => return Ok(()),
        };
        let statuses: HashMap<i32, Status> =
            parked.map(|thread| (thread.tid, thread.status.clone())).collect();
        // What has ended since, or was about to when the tree was walked, is something else by now.
        let exact = tree.iter().filter(|process| !process.is_zombie()).flat_map(|process| &process.tids);
        let tree = if exact.clone().all(|tid| statuses.contains_key(tid)) {
            tree
        } else {
            super::tree::walk(self.looker.spec.root)?
        };
        self.looker.stopped = Some(Standstill { tracer: own_tid(), statuses });
        let look = self.looker.look_at(tree, Flags::Remembered, Depth::Everything, &mut findings);
        self.looker.stopped = None;
        let mut look = look?;
        self.objects.late(&self.looker.registry, &mut findings);
        let State::Frozen(frozen) = &mut self.state else {
            return Ok(());
        };
        numa::check(&look, &frozen.policies, &mut findings);
        for (found, shape) in look.processes.iter().zip(&mut look.shape.processes) {
            let Some((_, ask)) = frozen.asks.get(&found.process.pid) else {
                continue;
            };
            if let Some(leader) = frozen.parked.get(&found.process.pid).and_then(|threads| threads.first())
                && let Some(outcome) = leader.outcomes.first()
            {
                shape.mm.fields.brk = ask.brk(outcome);
                shape.mm.barriers = ask.space.barriers(outcome);
                let (monotonic, boottime) = ask.clocks(outcome);
                if frozen.clocks.0 == 0 {
                    frozen.clocks = (monotonic, boottime, nanoseconds(ClockId::CLOCK_REALTIME));
                }
            }
        }
        refuse(findings)?;
        account::lap("freeze.look");
        // The target follows this shape before it takes the last pages.
        self.retrack_frozen(&look)?;
        self.note_direct_readers(&look);
        self.tell(look);
        if let State::Frozen(frozen) = &mut self.state {
            frozen.look = self.told.take().unwrap_or_default();
            frozen.complete = true;
        }
        account::lap("freeze.tell");
        Ok(())
    }

    /// Processes that came since the last shape, or run another program: all of their memory is to be sent.
    fn retrack_frozen(&mut self, look: &Look) -> Result<(), SourceError> {
        for found in files::live(look) {
            let process = &found.process;
            let known =
                self.tracked.get(&process.pid).is_some_and(|tracked| still_there(process.pid, tracked, look));
            if known {
                continue;
            }
            self.lost_writer = true;
            let (mut sent, tapes) = match self.tracked.remove(&process.pid) {
                Some(tracked) => (tracked.memory.into_sent(), tracked.tapes),
                None => (PageSet::default(), None),
            };
            if let Some(before) = self.left_behind.remove(&process.inner) {
                sent.add(&before);
            }
            let memory = TrackedMemory::new(process.pid, process.inner, Box::new(AllWritten), sent)?;
            self.tracked.insert(process.pid, Tracked { key: process.key(), memory, tapes, barriers: 0 });
        }
        if self.tracked.len() > look.processes.len() {
            self.lost_writer = true;
        }
        Ok(())
    }
}

/// For a process that is first seen frozen: everything it holds counts as written.
#[derive(Debug)]
struct AllWritten;

impl Tracker for AllWritten {
    fn look_ahead(
        &mut self,
        _pagemap: &sys::pagemap::Pagemap,
        _mappings: &[std::ops::Range<u64>],
        _again: bool,
    ) -> Result<(), sys::Errno> {
        Ok(())
    }

    fn dirty(
        &mut self,
        _pagemap: &sys::pagemap::Pagemap,
        mapping: &std::ops::Range<u64>,
        _again: bool,
    ) -> Result<super::memory::tracker::Dirty, sys::Errno> {
        Ok(super::memory::tracker::Dirty { ranges: vec![mapping.clone()], fresh: true })
    }
}

/// Has all threads of a process run the capture program. `None`: they are parked already.
fn send_process(
    tracked: &mut BTreeMap<i32, Tracked>,
    frozen: &mut Frozen,
    process: &Process,
    mut stopped: Vec<Stopped>,
    witness: Option<i32>,
) -> Result<Option<SentOff>, SourceError> {
    if stopped.is_empty() {
        return Ok(None);
    }
    let timers = match timers::read(process.pid) {
        Ok(timers) => timers,
        Err(error) => {
            frozen.held.stopped.append(&mut stopped);
            return Err(error.into());
        }
    };
    let mut whole = Program::new();
    let thread_ask = ThreadAsk::add(&mut whole, witness);
    let process_ask = ProcessAsk::add(&mut whole, &timers, !process.parents.is_empty());
    let mut own = Program::new();
    // The first calls are the same ones: what they leave where is the same, too.
    ThreadAsk::add(&mut own, witness);
    let program = |index: usize| if index == 0 { whole.clone() } else { own.clone() };
    frozen.asks.insert(process.pid, (thread_ask, process_ask));
    let tapes = tracked.get_mut(&process.pid).and_then(|tracked| tracked.tapes.as_mut());
    if let Some(tapes) = tapes.filter(|tapes| tapes.is_current()) {
        return Ok(Some(tapes.send_off(process, &mut frozen.held, stopped, program)));
    }
    let first = stopped.remove(0);
    let nap = frozen.held.nap(first.tid());
    let (mut tapes, thread) = match Tapes::install(process, first, &nap) {
        Ok(installed) => installed,
        Err(error) => {
            frozen.held.stopped.append(&mut stopped);
            return Err(error);
        }
    };
    let mut parked = vec![tapes.again(thread, whole.clone())?];
    let result = tapes.run(process, &mut frozen.held, stopped, |index| program(index + 1));
    let result = result.map(|mut threads| parked.append(&mut threads));
    frozen.parked.insert(process.pid, parked);
    keep_tapes(tracked, process, tapes)?;
    result.map(|()| None)
}

/// Remembers the tapes of a process that was first seen at the freeze.
fn keep_tapes(
    tracked: &mut BTreeMap<i32, Tracked>,
    process: &Process,
    tapes: Tapes,
) -> Result<(), SourceError> {
    if let Some(known) = tracked.get_mut(&process.pid) {
        known.tapes = Some(tapes);
        return Ok(());
    }
    let memory = TrackedMemory::new(process.pid, process.inner, Box::new(AllWritten), PageSet::default())?;
    tracked.insert(
        process.pid,
        Tracked {
            // No start time is 0: it will be tracked anew, with its tapes kept.
            key: (process.pid, 0),
            memory,
            tapes: Some(tapes),
            barriers: 0,
        },
    );
    Ok(())
}

/// This thread, as /proc of the traced shows it.
fn own_tid() -> i32 {
    std::fs::read_link("/proc/thread-self")
        .ok()
        .and_then(|link| link.file_name()?.to_str()?.parse().ok())
        .unwrap_or(0)
}
