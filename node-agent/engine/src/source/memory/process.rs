//! Private memory of one process.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::time::Instant;

use image::pages::Owner;
use image::{PAGE_SIZE, Pid};
use sys::Errno;
use sys::mem::{ProcessMemory, Run};
use sys::pagemap::{Categories, Entry, Pagemap, Region, ScanError};

use super::batch::{Batcher, Contents, Outcome};
use super::digests::Digests;
use super::guards::Guards;
use super::hot::Hot;
use super::sent::{PageSet, join, subtract, within};
use super::template::Inherited;
use super::tracker::Tracker;
use crate::PageSink;
use crate::source::SourceError;
use crate::source::mm::Mapping;

/// The memory of a tracked process.
#[derive(Debug)]
pub(crate) struct TrackedMemory {
    /// Its pid as this process sees it.
    pub(crate) pid: i32,
    /// Its pid in the container.
    pub(crate) inner: Pid,
    /// Stays bound to the address space of the moment in which it was opened.
    mem: ProcessMemory,
    pagemap: Pagemap,
    /// Dropping it ends the tracking.
    pub(crate) tracker: Box<dyn Tracker>,
    /// Pages of which the target holds contents.
    pub(super) sent: PageSet,
    /// What the target holds for this process since it made it.
    pub(super) inherited: Option<Inherited>,
    /// What they are, where the tracker is coarse.
    digests: Digests,
    /// Pages that wait for the last round.
    hot: Hot,
    /// Ranges whose contents the target may have lost: they count as written in the next round.
    refresh: Vec<Range<u64>>,
    /// Pages that MADV_GUARD_INSTALL made fault on purpose.
    guards: Guards,
    /// Nothing was looked at yet since the tracker was made: all of it counts as written.
    first: bool,
}

/// Ranges of addresses, ascending and disjoint.
type Ranges = Vec<Range<u64>>;

/// What matters of a mapping when its pages are read and sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct How {
    readable: bool,
    over_file: bool,
}

/// Written ranges of shared objects, by object: found through one process's mappings.
pub(crate) type ObjectRanges = BTreeMap<u32, Vec<Range<u64>>>;

impl TrackedMemory {
    /// Takes over a tracker that was just made in the process. `sent`: what the target already holds under
    /// this pid.
    pub(crate) fn new(
        pid: i32,
        inner: Pid,
        tracker: Box<dyn Tracker>,
        sent: PageSet,
    ) -> Result<Self, SourceError> {
        let failed = |what: &str, error: io::Error| match error.raw_os_error().map(Errno::from_raw) {
            // It has ended since it was looked at.
            Some(Errno::ESRCH | Errno::ENOENT) => SourceError::ThreadGone { tid: pid },
            _ => SourceError::kernel(what, pid, error),
        };
        Ok(Self {
            pid,
            inner,
            mem: ProcessMemory::open(pid).map_err(|error| failed("open mem", error))?,
            pagemap: Pagemap::open(pid).map_err(|error| failed("open pagemap", error.into()))?,
            tracker,
            sent,
            inherited: None,
            digests: Digests::default(),
            hot: Hot::default(),
            refresh: Vec::new(),
            guards: Guards::default(),
            first: true,
        })
    }

    /// Has these ranges sent again in the next round.
    pub(crate) fn refresh(&mut self, ranges: Vec<Range<u64>>) {
        self.digests.forget_all(&ranges);
        self.inherited.iter_mut().for_each(|inherited| inherited.forget(&ranges));
        self.refresh.extend(ranges);
        join(&mut self.refresh);
    }

    /// What the target holds, to go on with when the process got another address space.
    pub(crate) fn into_sent(self) -> PageSet {
        self.sent
    }

    /// False after exec or exit: the address space that is tracked exists no more.
    pub(crate) fn is_alive(&self, any_address: u64) -> bool {
        let mut byte = [0];
        // A dead address space ends at once; a live one gives bytes or EIO.
        !matches!(self.mem.read(any_address, &mut byte), Err(error) if error.kind() == io::ErrorKind::UnexpectedEof)
    }

    /// Lets the tracker look at everything before the round: see [`Tracker::look_ahead`].
    pub(crate) fn look_ahead(&mut self, mappings: &[Mapping], again: bool) -> Result<(), SourceError> {
        let tracked = mappings.iter().filter(|mapping| self.is_tracked(mapping));
        let ranges: Ranges = tracked.map(|mapping| mapping.vma.start..mapping.vma.end).collect();
        self.tracker
            .look_ahead(&self.pagemap, &ranges, again)
            .map_err(|errno| SourceError::kernel("look for written pages", self.pid, errno))
    }

    fn is_tracked(&self, mapping: &Mapping) -> bool {
        match mapping.shared_object() {
            Some(_) => !self.tracker.only_looks(),
            None => mapping.has_private_pages(),
        }
    }

    /// Sends what was written since the last call; adds the written ranges of shared objects.
    pub(crate) fn round(
        &mut self,
        mappings: &[Mapping],
        again: bool,
        objects: &mut ObjectRanges,
        batcher: &mut Batcher,
        sink: &mut dyn PageSink,
    ) -> Result<(), SourceError> {
        let owner = Owner::Process(self.inner);
        let mut found: BTreeMap<How, Ranges> = BTreeMap::new();
        let coarse = self.tracker.coarse().to_vec();
        for mapping in mappings {
            let range = mapping.vma.start..mapping.vma.end;
            let object = mapping.shared_object();
            let scan = Instant::now();
            if !self.is_tracked(mapping) {
                if !again {
                    self.guards.look(self.pid, &self.pagemap, mapping, std::slice::from_ref(&range))?;
                    batcher.scanned(scan.elapsed());
                }
                continue;
            }
            let mut dirty = self
                .tracker
                .dirty(&self.pagemap, &range, again)
                .map_err(|errno| SourceError::kernel("look for written pages", self.pid, errno))?;
            if self.first {
                dirty.ranges = vec![range.clone()];
            } else {
                for lost in &self.refresh {
                    let start = lost.start.max(range.start);
                    dirty.ranges.push(start..lost.end.min(range.end).max(start));
                }
                join(&mut dirty.ranges);
            }
            if let Some((id, offset)) = object {
                let shifted = dirty
                    .ranges
                    .iter()
                    .map(|dirty| dirty.start - range.start + offset..dirty.end - range.start + offset);
                objects.entry(id).or_default().extend(shifted);
                self.guards.look(self.pid, &self.pagemap, mapping, &dirty.ranges)?;
                batcher.scanned(scan.elapsed());
                continue;
            }
            let written = dirty.ranges;
            let mut all = written.clone();
            all.extend(self.hot.held(&range));
            join(&mut all);
            let (mut data, drops) = self.classify(mapping, &all)?;
            if again {
                // What is dirty because its neighbour is may well be sent; what did not change is not, see `Outcome::same`.
                let coarse = within(&coarse, &range);
                let single: Ranges = data.iter().flat_map(|part| subtract(part, coarse)).collect();
                let whole = data.iter().flat_map(|part| subtract(part, &single)).collect();
                data = whole;
                let written: Ranges = written.iter().flat_map(|part| subtract(part, coarse)).collect();
                data.extend(self.hot.sift(single, &written));
                join(&mut data);
            }
            batcher.scanned(scan.elapsed());
            for range in &drops {
                self.sent.set(range, false);
            }
            batcher.drop_pages(owner, &drops, sink)?;
            let how = How { readable: mapping.vma.prot & 1 != 0, over_file: mapping.is_over_file() };
            found.entry(how).or_default().append(&mut data);
        }
        // Many mappings together: a process may have thousands with a page in each.
        for (how, data) in &found {
            self.send(owner, *how, data, &coarse, batcher, sink)?;
        }
        let held = self.hot.end_round(self.first);
        batcher.held_back(held);
        self.first = false;
        self.inherited = None;
        self.refresh.clear();
        Ok(())
    }

    /// Bytes of private pages that were written since the last call; adds the written ranges of shared objects. At the first
    /// call all that are there. Nothing is read or kept: no [`TrackedMemory::round`] may follow.
    pub(crate) fn written(
        &mut self,
        mappings: &[Mapping],
        objects: &mut ObjectRanges,
    ) -> Result<u64, SourceError> {
        let mut bytes = 0;
        for mapping in mappings.iter().filter(|mapping| self.is_tracked(mapping)).collect::<Vec<_>>() {
            let range = mapping.vma.start..mapping.vma.end;
            let dirty = self
                .tracker
                .dirty(&self.pagemap, &range, true)
                .map_err(|errno| SourceError::kernel("look for written pages", self.pid, errno))?;
            for part in &dirty.ranges {
                match mapping.shared_object() {
                    Some((id, offset)) => {
                        let shifted = part.start - range.start + offset..part.end - range.start + offset;
                        objects.entry(id).or_default().push(shifted);
                    }
                    None => bytes += self.own_pages(part)?.iter().map(|own| own.end - own.start).sum::<u64>(),
                }
            }
        }
        Ok(bytes)
    }

    /// The guard pages of these mappings, as the last round found them.
    pub(crate) fn guards(&self, mappings: &[Mapping]) -> Vec<(u64, u64)> {
        self.guards.of(mappings)
    }

    /// Nothing was sent yet.
    pub(crate) fn is_new(&self) -> bool {
        self.first
    }

    pub(super) fn pagemap(&self) -> &Pagemap {
        &self.pagemap
    }

    /// The contents of its own pages, in mappings that may be read or not.
    pub(super) fn contents(&mut self, readable: bool) -> PrivatePages<'_> {
        let Self { pid, mem, pagemap, tracker, .. } = self;
        PrivatePages { pid: *pid, mem, pagemap, tracker: &mut **tracker, readable }
    }

    fn send(
        &mut self,
        owner: Owner,
        how: How,
        data: &[Range<u64>],
        coarse: &[Range<u64>],
        batcher: &mut Batcher,
        sink: &mut dyn PageSink,
    ) -> Result<(), SourceError> {
        let Self { pid, mem, pagemap, tracker, sent, inherited, digests, .. } = self;
        let mut contents =
            PrivatePages { pid: *pid, mem, pagemap, tracker: &mut **tracker, readable: how.readable };
        let inherited = inherited.as_ref();
        let mut outcome = SentPages { sent, inherited, digests, coarse, over_file: how.over_file };
        for range in data {
            batcher.push(owner, range, &mut contents, &mut outcome, sink)?;
        }
        batcher.flush(owner, &mut contents, &mut outcome, sink)
    }

    /// Splits written ranges into pages with contents of the process's own and pages that the target must
    /// drop because it holds some and the process does not.
    fn classify(
        &mut self,
        mapping: &Mapping,
        written: &[Range<u64>],
    ) -> Result<(Ranges, Ranges), SourceError> {
        let bounds = mapping.vma.start..mapping.vma.end;
        let mut data = Vec::new();
        let mut drops = Vec::new();
        for range in written {
            // A page becomes a guard page, or ends being one, as it is written.
            self.guards.forget(range);
            let held = self.own_pages(range)?;
            for gone in subtract(range, &held) {
                drops.extend(self.sent.runs(&gone));
                self.tracker.missed(&gone);
            }
            data.extend(held);
        }
        // A page of a private file mapping that was given back keeps its write protection and so does not
        // count as written: what the target holds is compared with what is there.
        if mapping.is_over_file() {
            for range in self.sent.runs(&bounds) {
                let gone = subtract(&range, &self.own_pages(&range)?);
                gone.iter().for_each(|gone| self.tracker.missed(gone));
                drops.extend(gone);
            }
            join(&mut drops);
            // What was given back between the two looks: a page is told of once in a round, see `PageSink`.
            data = data.iter().flat_map(|part| subtract(part, within(&drops, part))).collect();
        }
        Ok((data, drops))
    }

    /// The pages of a range that belong to the process: present or swapped, and not a file's.
    pub(super) fn own_pages(&mut self, range: &Range<u64>) -> Result<Vec<Range<u64>>, SourceError> {
        let mut regions: Vec<Region> = Vec::new();
        self.pagemap.classify(range.clone(), &mut regions).map_err(|error| match error {
            ScanError::Kernel(errno) => SourceError::kernel("classify pages", self.pid, errno),
            ScanError::Unregistered { .. } => SourceError::kernel("classify pages", self.pid, Errno::EPERM),
        })?;
        let mut own = Vec::new();
        for region in regions {
            if region.categories.has(Categories::FILE) {
                continue;
            }
            if region.categories.has(Categories::PRESENT) {
                own.push(region.range);
            } else {
                self.swapped_pages(&region.range, &mut own)?;
            }
        }
        join(&mut own);
        Ok(own)
    }

    /// Of pages that show as swapped: those that are, and not a mere marker.
    fn swapped_pages(&mut self, range: &Range<u64>, own: &mut Vec<Range<u64>>) -> Result<(), SourceError> {
        let mut entries = Vec::new();
        self.pagemap
            .entries(range.clone(), &mut entries)
            .map_err(|errno| SourceError::kernel("read pagemap", self.pid, errno))?;
        for (page, entry) in (0_u64..).zip(entries) {
            let start = range.start + page * PAGE_SIZE;
            if entry.guard() {
                self.guards.found(&(start..start + PAGE_SIZE));
            } else if (entry.swapped() || entry.present()) && !entry.is_marker() {
                own.push(start..start + PAGE_SIZE);
            }
        }
        Ok(())
    }
}

pub(super) struct PrivatePages<'a> {
    pid: i32,
    mem: &'a ProcessMemory,
    pagemap: &'a Pagemap,
    tracker: &'a mut dyn Tracker,
    readable: bool,
}

impl PrivatePages<'_> {
    /// Whether another process may hold one of these pages as copy-on-write. process_vm_readv(2) pins what it reads,
    /// and the kernel gives a pinned page to one process alone: it would make the copy that nobody has written yet, out
    /// of the container's memory.
    fn shared(&self, ranges: &[Range<u64>]) -> io::Result<bool> {
        let mut entries = Vec::new();
        for range in ranges {
            self.pagemap.entries(range.clone(), &mut entries).map_err(io::Error::from)?;
        }
        let held = |entry: &Entry| entry.present() || entry.swapped();
        Ok(entries.iter().any(|entry| held(entry) && !entry.file() && !entry.exclusive()))
    }
}

impl Contents for PrivatePages<'_> {
    fn read(&mut self, ranges: &[Range<u64>], buffer: &mut [u8]) -> io::Result<usize> {
        self.tell_tracker(ranges)?;
        let got = self.copy(ranges, buffer)?;
        self.tell_tracker(ranges)?;
        if let Some(page) = page_at(ranges, got) {
            self.tracker.missed(&(page..page + PAGE_SIZE));
        }
        Ok(got)
    }
}

/// The page at which reading these ranges ended; none when they were read whole.
fn page_at(ranges: &[Range<u64>], got: usize) -> Option<u64> {
    let mut left = got as u64;
    for range in ranges {
        if left < range.end - range.start {
            return Some((range.start + left) / PAGE_SIZE * PAGE_SIZE);
        }
        left -= range.end - range.start;
    }
    None
}

impl PrivatePages<'_> {
    /// Shows a tracker that only looks what the pages are now, on both sides of reading them.
    fn tell_tracker(&mut self, ranges: &[Range<u64>]) -> io::Result<()> {
        if !self.tracker.only_looks() {
            return Ok(());
        }
        let mut entries = Vec::new();
        for range in ranges {
            entries.clear();
            self.pagemap.entries(range.clone(), &mut entries).map_err(io::Error::from)?;
            self.tracker.met(range.start, &entries);
        }
        Ok(())
    }

    fn copy(&self, ranges: &[Range<u64>], buffer: &mut [u8]) -> io::Result<usize> {
        if self.readable && !self.shared(ranges)? {
            let runs: Vec<Run> = ranges
                .iter()
                .map(|range| Run {
                    address: range.start,
                    len: usize::try_from(range.end - range.start).unwrap_or(0),
                })
                .collect();
            match sys::mem::read_runs(self.pid, &runs, buffer) {
                Ok(got) if got > 0 => return Ok(got),
                // Its protection may have changed meanwhile; below, protections do not count.
                Ok(_) => {}
                Err(error) if error.raw_os_error() == Some(Errno::EFAULT as i32) => {}
                Err(error) => return Err(error),
            }
        }
        let mut done = 0;
        for range in ranges {
            let len = usize::try_from(range.end - range.start).unwrap_or(0);
            match self.mem.read(range.start, &mut buffer[done..done + len]) {
                Ok(()) => {
                    done += len;
                    continue;
                }
                Err(error) if is_unmapped(&error) => {}
                Err(error) => return Err(error),
            }
            // Page by page: it ends exactly at the first that is not there.
            for page in (range.start..range.end).step_by(4096) {
                match self.mem.read(page, &mut buffer[done..done + 4096]) {
                    Ok(()) => done += 4096,
                    Err(error) if is_unmapped(&error) => return Ok(done),
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(done)
    }
}

fn is_unmapped(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::UnexpectedEof
        || [Errno::EIO, Errno::EFAULT].iter().any(|errno| error.raw_os_error() == Some(*errno as i32))
}

struct SentPages<'a> {
    sent: &'a mut PageSet,
    inherited: Option<&'a Inherited>,
    digests: &'a mut Digests,
    coarse: &'a [Range<u64>],
    over_file: bool,
}

impl SentPages<'_> {
    fn is_coarse(&self, page: u64) -> bool {
        let at = self.coarse.partition_point(|range| range.end <= page);
        self.coarse.get(at).is_some_and(|range| range.start <= page)
    }
}

impl Outcome for SentPages<'_> {
    fn sent(&mut self, page: u64, contents: &[u8]) {
        self.sent.set(&(page..page + PAGE_SIZE), true);
        if self.is_coarse(page) {
            self.digests.set(page, contents);
        } else {
            self.digests.forget(page);
        }
    }

    fn same(&self, page: u64, contents: &[u8]) -> bool {
        self.inherited.is_some_and(|inherited| inherited.same(page, contents))
            || (self.is_coarse(page) && self.sent.has(page) && self.digests.same(page, contents))
    }

    fn must_tell_zero(&self, page: u64) -> bool {
        self.over_file || self.sent.has(page)
    }
}
