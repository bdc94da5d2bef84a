//! Which pages of a process were written: one trait; [`super::soft_dirty`] is the other mechanism.

use std::collections::HashMap;
use std::ops::Range;

use sys::pagemap::{Categories, Entry, Pagemap, ScanError};
use sys::uffd::Uffd;
use sys::{Errno, pagemap};

use super::sent::{EXTENT, PageSet, join, subtract};

/// What a tracker says about one mapping.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Dirty {
    /// Ranges that may have changed since the last look, ascending and disjoint.
    pub(crate) ranges: Vec<Range<u64>>,
    /// The mapping is not the one that was tracked before: everything that the target holds of it and
    /// that is not in memory here must be dropped there.
    pub(crate) fresh: bool,
}

/// Finds written pages of one address space.
pub(crate) trait Tracker: std::fmt::Debug + Send {
    /// What of a mapping was written since the last call for it. With `again` the pages are watched for
    /// the next call; without, they are only looked at (nothing runs any more).
    ///
    /// # Errors
    /// `ESRCH` the address space is gone (exec or exit); others as the kernel gave them.
    fn dirty(&mut self, pagemap: &Pagemap, mapping: &Range<u64>, again: bool) -> Result<Dirty, Errno>;

    /// Called before a round, with the mappings that [`Tracker::dirty`] will be asked for, which answers from what is seen
    /// here. A tracker that cannot look and watch again in one step does both here, and for it nothing of the tree runs.
    /// The others are only called where a look must come before everything that is read.
    ///
    /// # Errors
    /// As [`Tracker::dirty`].
    fn look_ahead(&mut self, pagemap: &Pagemap, mappings: &[Range<u64>], again: bool) -> Result<(), Errno>;

    /// Watches a mapping of huge pages from now on, which must not be told of otherwise. Nothing runs, and it is there with
    /// these very edges: the kernel cuts a mapping at the edges of what is watched, and never joins those of huge pages again.
    ///
    /// # Errors
    /// As the kernel gave them.
    fn watch_whole(&mut self, _mapping: &Range<u64>) -> Result<(), Errno> {
        Ok(())
    }

    /// Whether it watches a mapping of huge pages.
    fn watches_whole(&self, _mapping: &Range<u64>) -> bool {
        true
    }

    /// It knows page tables from looks alone: memory that processes share is compared as a whole then, and it is
    /// [told](Tracker::met) what pages were when they were read.
    fn only_looks(&self) -> bool {
        false
    }

    /// Ranges in which the last look could not tell single pages apart, ascending and disjoint: not every page of what it
    /// calls written need have been written.
    fn coarse(&self) -> &[Range<u64>] {
        &[]
    }

    /// What pages were, from `start` on, when they were read after the look. A page that was another one than in the
    /// look counts as written in the next.
    fn met(&mut self, _start: u64, _entries: &[Entry]) {}

    /// Here the process had no pages of its own to be read. Those that it had in the look count as written in the next.
    fn missed(&mut self, _range: &Range<u64>) {}
}

/// `PAGEMAP_SCAN` with asynchronous write protection by userfaultfd.
///
/// Only extents that hold pages are armed: arming a hole makes the kernel allocate page tables.
#[derive(Debug)]
pub(crate) struct PagemapScan {
    uffd: Uffd,
    /// Extents (by their number) that are armed, as page sets of whole extents clipped to mappings.
    armed: PageSet,
    /// What was seen before the round.
    ahead: HashMap<Range<u64>, Dirty>,
    /// Mappings that are watched with these edges, or not at all.
    whole: Vec<Range<u64>>,
}

impl PagemapScan {
    /// Tracks the address space that made the userfaultfd. UFFDIO_API is called here.
    ///
    /// # Errors
    /// `EINVAL` the kernel lacks a feature.
    pub(crate) fn new(uffd: Uffd) -> Result<Self, Errno> {
        uffd.api(sys::uffd::TRACKING)?;
        Ok(Self { uffd, armed: PageSet::default(), ahead: HashMap::new(), whole: Vec::new() })
    }

    /// Protects again and reports what was written; registers the mapping if need be.
    fn scan(
        &self,
        pagemap: &Pagemap,
        mapping: &Range<u64>,
        part: &Range<u64>,
        again: bool,
        dirty: &mut Dirty,
    ) -> Result<(), Errno> {
        let mut tried = false;
        let mut from = part.start;
        loop {
            match pagemap.scan_written(from..part.end, again, &mut dirty.ranges) {
                Ok(()) => return Ok(()),
                Err(ScanError::Kernel(errno)) => return Err(errno),
                Err(ScanError::Unregistered { range }) => {
                    dirty.fresh = true;
                    if !again || tried || self.watches_whole(mapping) {
                        dirty.ranges.push(range);
                        return Ok(());
                    }
                    tried = true;
                    from = part.start;
                    match self.uffd.register_wp(mapping) {
                        Ok(()) => {}
                        // It changed under our hands. All of it counts as written, and the next look finds
                        // the new state.
                        Err(
                            Errno::EINVAL
                            | Errno::ENOMEM
                            | Errno::EAGAIN
                            | Errno::ENOENT
                            | Errno::EPERM
                            | Errno::EBUSY,
                        ) => {
                            dirty.ranges.push(part.clone());
                            return Ok(());
                        }
                        Err(errno) => return Err(errno),
                    }
                }
            }
        }
    }
}

impl PagemapScan {
    /// Another mapping is where one of huge pages was watched.
    fn lost_whole(&mut self, mapping: &Range<u64>) -> Dirty {
        self.whole.retain(|whole| whole != mapping);
        self.armed.set(mapping, false);
        Dirty { ranges: vec![mapping.clone()], fresh: true }
    }
}

impl Tracker for PagemapScan {
    fn look_ahead(&mut self, pagemap: &Pagemap, mappings: &[Range<u64>], again: bool) -> Result<(), Errno> {
        // A round that did not ask for all of it failed, and the migration with it.
        self.ahead.clear();
        for mapping in mappings {
            let dirty = self.dirty(pagemap, mapping, again)?;
            self.ahead.insert(mapping.clone(), dirty);
        }
        Ok(())
    }

    fn watch_whole(&mut self, mapping: &Range<u64>) -> Result<(), Errno> {
        self.uffd.register_wp(mapping)?;
        self.armed.set(mapping, false);
        self.whole.push(mapping.clone());
        Ok(())
    }

    fn watches_whole(&self, mapping: &Range<u64>) -> bool {
        self.whole.contains(mapping)
    }

    fn dirty(&mut self, pagemap: &Pagemap, mapping: &Range<u64>, again: bool) -> Result<Dirty, Errno> {
        if let Some(seen) = self.ahead.remove(mapping).filter(|_| again) {
            return Ok(seen);
        }
        let mut dirty = Dirty::default();
        let armed = self.armed.runs(mapping);
        for part in &armed {
            self.scan(pagemap, mapping, part, again, &mut dirty)?;
            if dirty.fresh {
                break;
            }
        }
        if dirty.fresh && self.watches_whole(mapping) {
            return Ok(self.lost_whole(mapping));
        }
        let unarmed = if dirty.fresh {
            // Another mapping than before. What the scans said is void: all of it counts as written.
            self.armed.set(mapping, false);
            dirty.ranges.clear();
            vec![mapping.clone()]
        } else {
            subtract(mapping, &armed)
        };
        let populated = populated(pagemap, mapping, &unarmed)?;
        for part in &populated {
            if again {
                // The answer is everything in it, because nothing of it was protected; what counts is the arming.
                let mut arming = Dirty::default();
                self.scan(pagemap, mapping, part, true, &mut arming)?;
                if arming.fresh && self.watches_whole(mapping) {
                    return Ok(self.lost_whole(mapping));
                }
                self.armed.set(part, true);
            }
            dirty.ranges.push(part.clone());
        }
        if !armed.is_empty() && dirty.fresh {
            dirty.ranges.push(mapping.clone());
        }
        join(&mut dirty.ranges);
        Ok(dirty)
    }
}

/// The extents of `ranges`, clipped to the mapping, that hold any page or swap entry.
fn populated(
    pagemap: &Pagemap,
    mapping: &Range<u64>,
    ranges: &[Range<u64>],
) -> Result<Vec<Range<u64>>, Errno> {
    let held = Categories::PRESENT.or(Categories::SWAPPED);
    let query = pagemap::Query { any: held, report: held, ..pagemap::Query::default() };
    let mut regions = Vec::new();
    for range in ranges {
        pagemap.query(range.clone(), &query, &mut regions).map_err(|error| match error {
            ScanError::Kernel(errno) => errno,
            ScanError::Unregistered { .. } => Errno::EPERM,
        })?;
    }
    let mut extents: Vec<Range<u64>> = regions
        .into_iter()
        .map(|region| {
            let start = region.range.start / EXTENT * EXTENT;
            let end = region.range.end.next_multiple_of(EXTENT);
            start.max(mapping.start)..end.min(mapping.end)
        })
        .collect();
    join(&mut extents);
    Ok(extents)
}
