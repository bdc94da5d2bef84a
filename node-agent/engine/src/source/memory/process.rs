//! Private memory of one process.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::time::Instant;

use image::pages::Owner;
use image::{PAGE_SIZE, Pid};
use sys::Errno;
use sys::mem::ProcessMemory;
use sys::pagemap::{Categories, Pagemap, Region, ScanError};

use super::batch::{Batcher, Outcome};
use super::contents::PrivatePages;
use super::digests::Digests;
use super::guards::Guards;
use super::hot::Hot;
use super::huge;
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
    pub(super) pagemap: Pagemap,
    /// Dropping it ends the tracking.
    pub(crate) tracker: Box<dyn Tracker>,
    /// Pages of which the target holds contents.
    pub(super) sent: PageSet,
    /// What the target holds for this process since it made it.
    pub(super) inherited: Option<Inherited>,
    /// What they are, where the tracker is coarse.
    pub(super) digests: Digests,
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
    huge: u64,
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
        let asked = |mapping: &&Mapping| self.is_tracked(mapping) && self.is_watched(mapping);
        let tracked = mappings.iter().filter(asked);
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
        let mut coarse: Ranges =
            self.tracker.coarse().iter().cloned().chain(huge::coarse(mappings)).collect();
        join(&mut coarse);
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
            let mut dirty = self.dirty(mapping, again)?;
            if self.first {
                dirty.ranges = vec![range.clone()];
            } else {
                self.emptied(mapping, &mut dirty.ranges)?;
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
            let (readable, over_file, huge) =
                (mapping.vma.prot & 1 != 0, mapping.is_over_file(), mapping.vma.huge);
            let how = How { readable, over_file, huge };
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
            let dirty = self.dirty(mapping, true)?;
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

    /// The contents of its own pages, in mappings that may be read or not, and have huge pages or not.
    pub(super) fn contents(&mut self, readable: bool, huge: bool) -> PrivatePages<'_> {
        let Self { pid, mem, pagemap, tracker, .. } = self;
        PrivatePages { pid: *pid, mem, pagemap, tracker: &mut **tracker, readable, huge }
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
        let readable = how.readable;
        let mut contents =
            PrivatePages { pid: *pid, mem, pagemap, tracker: &mut **tracker, readable, huge: how.huge != 0 };
        let inherited = inherited.as_ref();
        let mut outcome = SentPages { sent, inherited, digests, coarse, how };
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
        // A page of a private file mapping, or a huge one, that was given back keeps its write protection and so does not
        // count as written: what the target holds is compared with what is there.
        let size = mapping.vma.huge;
        if mapping.is_over_file() || size != 0 {
            for range in self.sent.runs(&bounds) {
                let gone = subtract(&range, &self.own_pages(&range)?);
                gone.iter().for_each(|gone| self.tracker.missed(gone));
                drops.extend(gone);
            }
            join(&mut drops);
            if size != 0 {
                huge::whole(&mut drops, size);
                drops.iter().for_each(|gone| self.digests.forget_all(std::slice::from_ref(gone)));
            }
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

struct SentPages<'a> {
    sent: &'a mut PageSet,
    inherited: Option<&'a Inherited>,
    digests: &'a mut Digests,
    coarse: &'a [Range<u64>],
    how: How,
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
        // A huge page of zeros is one of the pool all the same.
        let huge = self.how.huge;
        self.how.over_file || self.sent.has(page) || (huge != 0 && page.is_multiple_of(huge))
    }
}
