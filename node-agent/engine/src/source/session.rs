//! The life of a source.

use std::collections::{BTreeMap, HashMap};
use std::marker::PhantomData;
use std::time::{Duration, Instant};

use image::Pid;
use image::shape::{Ahead, Shape};
use image::state::{Image, RangePolicy, Report};
use sys::cgroup::Freezer;

use super::RoundStats;
use super::capture::inet::InRepair;
use super::capture::threads::{ProcessAsk, ThreadAsk};
use super::capture::{self, files};
use super::clock::SchedulerClock;
use super::cpu_clocks;
use super::error::{SourceError, pass};
use super::failpoint;
use super::findings::Findings;
use super::inject::{Injected, inject};
use super::look::{Depth, Flags, Look, Looker, ProcessLook};
use super::memory::last_pid;
use super::memory::objects::ObjectMemory;
use super::memory::process::{ObjectRanges, TrackedMemory};
use super::memory::readers::Readers;
use super::memory::sent::PageSet;
use super::memory::template::Template;
use super::numa;
use super::outside;
use super::owners;
use super::recover::clean;
use super::spec::TreeSpec;
use super::stopping::{Held, stop_tree};
use super::told;
use super::traced::{ParkedThread, Tapes};
use super::tree::Process;
use super::witness::Witnesses;
use crate::PageSink;
use crate::proc::{status, tasks};

/// A tree that is being migrated or checkpointed. Lives on one thread: ptrace(2) binds to it.
///
/// Dropping it does what [`Source::abort`] does, as far as that is possible.
#[derive(Debug)]
pub struct Source {
    pub(super) looker: Looker,
    pub(super) tracked: BTreeMap<i32, Tracked>,
    /// What the target holds of processes that are gone or have another address space now.
    pub(super) left_behind: HashMap<Pid, PageSet>,
    pub(super) objects: ObjectMemory,
    pub(super) readers: Readers,
    /// Found, and not sent yet.
    pub(super) template: Option<Template>,
    /// Mechanism of dirty tracking.
    pub(super) soft_dirty: bool,
    /// The last shape that was handed out: what the target is built like.
    pub(super) told: Option<Look>,
    /// The last process number at the last round.
    pub(super) last_pid: Option<u64>,
    /// When [`Source::written`] looked last.
    pub(super) looked: Option<Instant>,
    /// A process that was tracked is gone: what it wrote last to shared memory nobody saw.
    pub(super) lost_writer: bool,
    /// They end before the tree does.
    pub(super) witnesses: Witnesses,
    /// There were NUMA policies when it began.
    pub(super) policies: bool,
    pub(super) state: State,
    not_send: PhantomData<*const ()>,
}

/// A process whose memory is tracked.
#[derive(Debug)]
pub(super) struct Tracked {
    pub(super) key: (i32, u64),
    pub(super) memory: TrackedMemory,
    pub(super) tapes: Option<Tapes>,
    /// Registrations of membarrier(2).
    pub(super) barriers: u32,
}

/// How far it has come.
#[derive(Debug)]
pub(super) enum State {
    /// The tree runs.
    Tracking,
    /// A freeze was begun; perhaps only a part of the tree stands still.
    Frozen(Box<Frozen>),
    /// Nothing is left to undo.
    Done,
}

/// What is known while the tree stands still.
#[derive(Debug, Default)]
pub(super) struct Frozen {
    /// Stopped and not on a tape.
    pub(super) held: Held,
    /// Threads at the end of their tapes, by process, in the order of the process's threads.
    pub(super) parked: BTreeMap<i32, Vec<ParkedThread>>,
    pub(super) asks: BTreeMap<i32, (ThreadAsk, ProcessAsk)>,
    pub(super) freezer: Option<Freezer>,
    /// The cgroup was asked to freeze.
    pub(super) cgroup_frozen: bool,
    pub(super) look: Look,
    pub(super) in_repair: Vec<InRepair>,
    pub(super) complete: bool,
    pub(super) clocks: (u64, u64, u64),
    /// What is to be told of processes, by their numbers in the container.
    pub(super) reports: BTreeMap<Pid, Report>,
    /// Flags of mlockall(2) for what will be mapped, where there are any.
    pub(super) lock_later: BTreeMap<Pid, u32>,
    /// NUMA policies of mappings.
    pub(super) policies: BTreeMap<Pid, Vec<RangePolicy>>,
}

impl Source {
    /// Starts to track the memory of a tree. The program runs untraced when this returns.
    ///
    /// # Errors
    /// [`SourceError::Refused`] names what cannot be carried over. On any error everything is as before.
    pub fn attach(spec: &TreeSpec) -> Result<Self, SourceError> {
        raise_descriptor_limit();
        let mut looker = Looker::new(spec)?;
        let look = look_before(&mut looker)?;
        let mut findings = Findings::default();
        let policies = numa::look(&look, &mut findings)?.any;
        cpu_clocks::check(&look, &mut findings)?;
        refuse(findings)?;
        let trackers = sys::pagemap::probe();
        if !trackers.pagemap_scan && !trackers.soft_dirty {
            return Err(SourceError::NoTracker);
        }
        // Flags of userfaultfd are our own then.
        looker.tracked = trackers.pagemap_scan;
        let witnesses = Witnesses::of(spec.root, &looker.view.ids);
        let mut source = Self {
            looker,
            tracked: BTreeMap::new(),
            left_behind: HashMap::new(),
            objects: ObjectMemory::default(),
            readers: Readers::new(),
            template: None,
            soft_dirty: !trackers.pagemap_scan,
            told: None,
            last_pid: None,
            looked: None,
            lost_writer: false,
            witnesses,
            policies,
            state: State::Tracking,
            not_send: PhantomData,
        };
        failpoint!("source-attach-begin");
        // On an error the source is dropped, which undoes what was done.
        source.track(&look)?;
        failpoint!("source-attach-end");
        Ok(source)
    }

    /// The tree as it is now; starts to track processes that are new. After [`Source::freeze`] it is exact.
    ///
    /// The target must follow every shape before it takes pages of a later round: pages are sent for what the
    /// last shape tells of.
    ///
    /// # Errors
    /// See [`SourceError`]; the tree runs on.
    pub fn shape(&mut self) -> Result<Shape, SourceError> {
        match &self.state {
            State::Tracking => {}
            State::Frozen(frozen) if frozen.complete => return Ok(frozen.look.shape.clone()),
            State::Frozen(_) | State::Done => return Err(self.wrong_state("shape")),
        }
        let mut look = self.looker.look(Flags::Exact, Depth::Shape, &mut Findings::default())?;
        // A process that has just begun another program was looked at before or after: look again.
        for _ in 0..3 {
            if !self.track(&look)? {
                break;
            }
            look = self.looker.look(Flags::Exact, Depth::Shape, &mut Findings::default())?;
        }
        failpoint!("source-shape");
        let shape = look.shape.clone();
        self.tell(look);
        Ok(shape)
    }

    /// One pre-copy round: sends what was written since the last one, of what the last [`Source::shape`] told.
    ///
    /// # Errors
    /// See [`SourceError`]; the tree runs on.
    pub fn round(&mut self, sink: &mut dyn PageSink) -> Result<RoundStats, SourceError> {
        if !matches!(self.state, State::Tracking) {
            return Err(self.wrong_state("a pre-copy round"));
        }
        if self.told.is_none() {
            self.shape()?;
        }
        failpoint!("source-round");
        self.pages(sink, true)
    }

    /// Sends what was written since the last round. Only while frozen.
    ///
    /// # Errors
    /// See [`SourceError`]; the tree stays frozen until [`Source::abort`].
    pub fn last_pages(&mut self, sink: &mut dyn PageSink) -> Result<RoundStats, SourceError> {
        match &self.state {
            State::Frozen(frozen) if frozen.complete => {}
            _ => return Err(self.wrong_state("sending the last pages")),
        }
        failpoint!("source-last-pages");
        self.pages(sink, false)
    }

    /// Everything but the contents of memory. Only while frozen, after [`Source::last_pages`], which finds the guard pages.
    /// Sockets enter repair mode here.
    ///
    /// # Errors
    /// See [`SourceError`]; the tree stays frozen until [`Source::abort`].
    pub fn capture(&mut self) -> Result<Image, SourceError> {
        let wrong = self.wrong_state("a capture");
        let State::Frozen(frozen) = &mut self.state else {
            return Err(wrong);
        };
        if !frozen.complete {
            return Err(wrong);
        }
        failpoint!("source-capture-begin");
        let mut image = super::capture::image::capture(&mut self.looker, frozen)?;
        for (found, process) in files::live(&frozen.look).zip(&mut image.processes) {
            if let Some(tracked) = self.tracked.get(&found.process.pid) {
                process.guards = tracked.memory.guards(&found.mappings);
            }
        }
        failpoint!("source-capture-end");
        Ok(image)
    }

    /// What a target can prepare for the processes of the last shape before the freeze.
    ///
    /// # Errors
    /// When /proc cannot be read.
    pub fn ahead(&self) -> Result<Vec<Ahead>, SourceError> {
        let mut all = Vec::new();
        for found in self.told.iter().flat_map(files::live) {
            let mut threads = Vec::new();
            let ids = &self.looker.view.ids;
            let mut creds = capture::threads::creds(&found.process.status, ids, 0);
            for tid in found.process.tids.iter().skip(1) {
                match status::read_thread(found.process.pid, *tid) {
                    // Those in a pid namespace of their own are made when their numbers there are known.
                    Ok(_) if !found.process.levels.is_empty() => creds = None,
                    Ok(thread) => {
                        threads.push(thread.pid_at(found.process.depth));
                        creds = creds
                            .filter(|same| capture::threads::creds(&thread, ids, 0).as_ref() == Some(same));
                    }
                    Err(error) if error.is_gone() => {}
                    Err(error) => return Err(error.into()),
                }
            }
            let fds = match tasks::descriptors(found.process.pid) {
                Err(error) if error.is_gone() => continue,
                other => other?,
            };
            let highest_fd = fds.into_iter().max().unwrap_or(-1);
            all.push(Ahead { pid: found.process.inner, threads, highest_fd, creds });
        }
        Ok(all)
    }

    /// The live processes, as this process and as the container numbers them. Empty while the tree is not frozen.
    #[must_use]
    pub fn frozen(&self) -> Vec<(i32, Pid)> {
        match &self.state {
            State::Frozen(frozen) if frozen.complete => {
                files::live(&frozen.look).map(|found| (found.process.pid, found.process.inner)).collect()
            }
            State::Tracking | State::Frozen(_) | State::Done => Vec::new(),
        }
    }

    pub(super) fn wrong_state(&self, operation: &'static str) -> SourceError {
        let state = match &self.state {
            State::Tracking => "running",
            State::Frozen(frozen) if frozen.complete => "frozen",
            State::Frozen(_) => "partly frozen",
            State::Done => "finished",
        };
        SourceError::WrongState { operation, state }
    }

    /// Notes the shape that the target follows from now on.
    pub(super) fn tell(&mut self, mut look: Look) {
        for (found, shape) in look.processes.iter().zip(&mut look.shape.processes) {
            let known = self.tracked.get(&found.process.pid).map_or(0, |tracked| tracked.barriers);
            shape.mm.barriers |= known;
        }
        let before = self.told.take();
        let empty = Shape::default();
        let old = before.as_ref().map_or(&empty, |look| &look.shape);
        let mut stale = told::stale(old, &look.shape);
        for found in &look.processes {
            if let Some(tracked) = self.tracked.get_mut(&found.process.pid)
                && let Some(ranges) = stale.remove(&found.process.inner)
                && before.is_some()
            {
                tracked.memory.refresh(ranges);
            }
        }
        self.told = Some(look);
    }

    /// Starts to track what is new; forgets what is gone. True when something new is tracked now.
    fn track(&mut self, look: &Look) -> Result<bool, SourceError> {
        let gone: Vec<i32> = self
            .tracked
            .iter()
            .filter(|(pid, tracked)| !still_there(**pid, tracked, look))
            .map(|(pid, _)| *pid)
            .collect();
        for pid in gone {
            if let Some(tracked) = self.tracked.remove(&pid) {
                self.lost_writer = true;
                self.left_behind.insert(tracked.memory.inner, tracked.memory.into_sent());
            }
        }
        let new: Vec<&ProcessLook> =
            files::live(look).filter(|found| !self.tracked.contains_key(&found.process.pid)).collect();
        if new.is_empty() {
            return Ok(false);
        }
        let clock = SchedulerClock::calibrate();
        for found in new {
            match self.track_one(&found.process, &clock) {
                // It ended meanwhile.
                Err(SourceError::ThreadGone { .. }) => {}
                other => other?,
            }
            failpoint!("source-attach-process");
        }
        Ok(true)
    }

    fn track_one(&mut self, process: &Process, clock: &SchedulerClock) -> Result<(), SourceError> {
        let pid = process.pid;
        let mut findings = Findings::default();
        let witness = self.witnesses.number(process)?;
        let inject = |findings: &mut Findings| inject(process, clock, self.soft_dirty, witness, findings);
        let Injected { tracker, tapes, barriers } = match inject(&mut findings) {
            Err(SourceError::Leftover { .. }) => {
                clean(pid, &process.status)?;
                inject(&mut findings)?
            }
            other => other?,
        };
        let sent = self.left_behind.remove(&process.inner).unwrap_or_default();
        let memory = TrackedMemory::new(pid, process.inner, tracker, sent)?;
        self.tracked.insert(pid, Tracked { key: process.key(), memory, tapes: Some(tapes), barriers });
        // Now that it is known what must be taken out again.
        refuse(findings)
    }

    /// Finds and sends written pages of everything that was told.
    fn pages(&mut self, sink: &mut dyn PageSink, again: bool) -> Result<RoundStats, SourceError> {
        self.readers.begin(!again);
        let look = self.take_look();
        let result = self.still(&look, again).and_then(|()| self.pages_of(&look, sink, again));
        self.put_look(look);
        result.map(|()| self.readers.stats())
    }

    /// Lets the trackers look while nothing runs, where they need that.
    fn still(&mut self, look: &Look, again: bool) -> Result<(), SourceError> {
        if !self.soft_dirty {
            return if again { self.watch_huge_pages(look) } else { Ok(()) };
        }
        let mut held = Held::default();
        if again {
            self.time_sleepers(&mut held)?;
        }
        let start = Instant::now();
        if again {
            stop_tree(self.looker.spec.root, &mut held)?;
        }
        failpoint!("source-round-stopped");
        let scan = Instant::now();
        for found in &look.processes {
            let Some(tracked) = self.tracked.get_mut(&found.process.pid) else {
                continue;
            };
            match tracked.memory.still(&found.mappings, again) {
                // It has ended, or runs another program: the next shape tells.
                Err(_) if again && !tracked.memory.is_alive(0) => self.lost_writer = true,
                other => other?,
            }
        }
        self.readers.own().scanned(scan.elapsed());
        drop(held);
        if again {
            self.readers.own().stats.stopped = start.elapsed();
        }
        Ok(())
    }

    fn pages_of(&mut self, look: &Look, sink: &mut dyn PageSink, again: bool) -> Result<(), SourceError> {
        let forks = last_pid();
        let mut objects = ObjectRanges::new();
        let mut known: HashMap<i32, &mut Tracked> =
            self.tracked.iter_mut().map(|(pid, tracked)| (*pid, tracked)).collect();
        let work = look.processes.iter().filter_map(|found| {
            Some((&mut known.remove(&found.process.pid)?.memory, found.mappings.as_slice()))
        });
        let work = work.collect();
        let ended = self.readers.round(work, again, &mut objects, sink)?;
        self.lost_writer |= ended;
        let hidden = self.soft_dirty || self.lost_writer || forks.is_none() || self.last_pid != forks;
        self.objects.round(&self.looker.registry, objects, hidden, self.readers.own(), sink)?;
        self.looker.registry.ghosts_sent();
        self.last_pid = forks;
        self.lost_writer = false;
        Ok(())
    }
}

/// A look at everything. What passes by itself, such as a vfork(2) in flight, is given time to.
fn look_before(looker: &mut Looker) -> Result<Look, SourceError> {
    const TRIES: u32 = 40;
    for turn in 1.. {
        let mut findings = Findings::default();
        let look = looker.look(Flags::Exact, Depth::Everything, &mut findings)?;
        outside::check(&look, looker.spec.root, &mut findings)?;
        owners::check(&look, &mut findings)?;
        if turn >= TRIES || !pass(&findings.list) {
            refuse(findings)?;
            return Ok(look);
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(Look::default())
}

/// The process is the one that is tracked, with the address space that is tracked.
pub(super) fn still_there(pid: i32, tracked: &Tracked, look: &Look) -> bool {
    files::live(look)
        .find(|found| found.process.pid == pid && found.process.key() == tracked.key)
        .and_then(|found| found.mappings.first())
        .is_some_and(|_| tracked.memory.is_alive(0))
}

pub(super) fn refuse(findings: Findings) -> Result<(), SourceError> {
    if findings.list.is_empty() { Ok(()) } else { Err(SourceError::Refused(findings.list)) }
}

/// The tree's descriptors are duplicated here: this process must be allowed as many.
fn raise_descriptor_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < hard
        && let Err(errno) = setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
    {
        tracing::warn!(%errno, "the limit of open descriptors could not be raised");
    }
}
