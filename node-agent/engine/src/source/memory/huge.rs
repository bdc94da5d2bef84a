//! Huge pages of hugetlbfs.
//!
//! One is there as a whole or not at all, and what is not there is made by whoever touches it: so pages are looked for
//! before they are read, and a page of zeros is told of, which takes one of the pool all the same. Write protection marks
//! whole pages, so contents are compared with what was sent, page by small page. The marks outlive a page that is given back
//! (MADV_DONTNEED, MADV_REMOVE): one that was fetched again and not written shows as unchanged, and holds zeros. So of
//! every page that shows so, a small one that was not zero is looked at.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt};

use image::PAGE_SIZE;
use image::shape::Backing;
use sys::Errno;
use sys::huge::Presence;

use super::objects::Known;
use super::process::TrackedMemory;
use super::sent::{EXTENT, join, subtract, within};
use super::tracker::Dirty;
use crate::proc::maps;
use crate::source::SourceError;
use crate::source::mm::Mapping;

/// Ranges of addresses, ascending and disjoint.
type Ranges = Vec<Range<u64>>;

/// Small pages looked at in one read.
const MANY: usize = 256;
const PAGE: usize = 4096;

/// Makes ranges be of whole huge pages.
pub(crate) fn whole(ranges: &mut Ranges, size: u64) {
    for range in ranges.iter_mut() {
        *range = range.start / size * size..range.end.next_multiple_of(size);
    }
    join(ranges);
}

/// The huge pages of ascending, disjoint ranges.
pub(super) fn pages(ranges: &[Range<u64>], size: u64) -> impl Iterator<Item = Range<u64>> {
    let step = usize::try_from(size).unwrap_or(usize::MAX);
    ranges.iter().flat_map(move |range| (range.start..range.end).step_by(step)).map(move |at| at..at + size)
}

/// Ranges of mappings in which whole huge pages show as written.
pub(super) fn coarse(mappings: &[Mapping]) -> impl Iterator<Item = Range<u64>> {
    mappings.iter().filter(|mapping| mapping.vma.huge != 0).map(|mapping| mapping.vma.start..mapping.vma.end)
}

impl TrackedMemory {
    /// Whether a mapping of huge pages is watched. Those with larger ones cannot be: PAGEMAP_SCAN takes every page of
    /// hugetlbfs for one of 2 MiB.
    pub(super) fn is_watched(&self, mapping: &Mapping) -> bool {
        let vma = &mapping.vma;
        vma.huge == 0 || (vma.huge <= EXTENT && self.tracker.watches_whole(&(vma.start..vma.end)))
    }

    /// The mappings of huge pages that could be watched, and are not yet.
    fn to_be_watched<'a>(&'a self, mappings: &'a [Mapping]) -> impl Iterator<Item = Range<u64>> + 'a {
        let able = mappings.iter().filter(|mapping| mapping.vma.huge != 0 && mapping.vma.huge <= EXTENT);
        able.filter(|mapping| !self.is_watched(mapping)).map(|mapping| mapping.vma.start..mapping.vma.end)
    }

    /// Whether there are any.
    pub(crate) fn must_watch(&self, mappings: &[Mapping]) -> bool {
        self.to_be_watched(mappings).next().is_some()
    }

    /// Watches mappings of huge pages from now on, as far as they are still what they were. Nothing of the tree runs.
    pub(crate) fn watch_whole(&mut self, mappings: &[Mapping]) -> Result<(), SourceError> {
        let now = match maps::read_maps(self.pid) {
            Ok(now) => now,
            // It has ended: the next shape tells.
            Err(error) if error.is_gone() => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let asked: Ranges = self.to_be_watched(mappings).collect();
        for range in asked
            .into_iter()
            .filter(|range| now.iter().any(|is| (is.start, is.end) == (range.start, range.end)))
        {
            match self.tracker.watch_whole(&range) {
                // It runs another program, or others watch it by now: it is compared.
                Ok(()) | Err(Errno::ESRCH | Errno::EBUSY | Errno::EPERM | Errno::EINVAL) => {}
                Err(errno) => return Err(SourceError::kernel("watch huge pages", self.pid, errno)),
            }
        }
        Ok(())
    }

    /// What of a mapping was written since the last call.
    pub(super) fn dirty(&mut self, mapping: &Mapping, again: bool) -> Result<Dirty, SourceError> {
        let range = mapping.vma.start..mapping.vma.end;
        if !self.is_watched(mapping) {
            // All of it is compared.
            return Ok(Dirty { ranges: vec![range], ..Dirty::default() });
        }
        self.tracker
            .dirty(&self.pagemap, &range, again)
            .map_err(|errno| SourceError::kernel("look for written pages", self.pid, errno))
    }

    /// Adds the huge pages of a mapping that do not show as written, and have been given back and fetched again since they
    /// were sent.
    pub(super) fn emptied(&mut self, mapping: &Mapping, written: &mut Ranges) -> Result<(), SourceError> {
        let vma = &mapping.vma;
        if vma.huge == 0 || !self.is_watched(mapping) || mapping.shared_object().is_some() {
            return Ok(());
        }
        let held = self.own_pages(&(vma.start..vma.end))?;
        let quiet: Ranges = held.iter().flat_map(|part| subtract(part, written)).collect();
        let asked: Ranges = pages(&quiet, vma.huge)
            .filter_map(|page| self.digests.witness(&page))
            .map(|small| small..small + PAGE_SIZE)
            .collect();
        let mut buffer = vec![0; MANY * PAGE];
        let contents = self.contents(vma.prot & 1 != 0, true);
        let mut found = Vec::new();
        for chunk in asked.chunks(MANY) {
            let mut rest = chunk;
            while !rest.is_empty() {
                let got = contents
                    .copy(rest, &mut buffer[..rest.len() * PAGE])
                    .map_err(|error| SourceError::kernel("look at huge pages", contents.pid, error))?;
                for (small, bytes) in rest.iter().zip(buffer[..got].chunks_exact(PAGE)) {
                    if bytes.iter().all(|byte| *byte == 0) {
                        found.push(small.clone());
                    }
                }
                // The page at which it ended has been given back just now: the comparison of what is there tells.
                rest = rest.get(got / PAGE + 1..).unwrap_or_default();
            }
        }
        whole(&mut found, vma.huge);
        written.append(&mut found);
        join(written);
        Ok(())
    }
}

impl Known {
    /// What of the object is there.
    fn present(&mut self, file: &File, size: u64) -> io::Result<Ranges> {
        let metadata = file.metadata()?;
        let len = metadata.len() / size * size;
        if self.presence.as_ref().is_none_or(|presence| presence.len() != len) {
            self.presence = Presence::new(file.as_fd(), len, size)?;
        }
        let held = metadata.blocks() * 512;
        Ok(self.presence.as_ref().map_or(Ok(Vec::new()), |presence| presence.look(held))?)
    }

    /// What of an object of huge pages is to be read: of `dirty` that which is there, with pages that are there and were never
    /// told of, and those that were given back and fetched again. Second, whole pages that the target holds and that are not
    /// there any more.
    pub(super) fn of_huge(
        &mut self,
        file: &File,
        end: u64,
        size: u64,
        mut dirty: Ranges,
    ) -> io::Result<(Ranges, Ranges)> {
        let present = self.present(file, size)?;
        let mut gone: Ranges =
            self.sent.runs(&(0..end)).iter().flat_map(|run| subtract(run, &present)).collect();
        whole(&mut gone, size);
        let mut small = [0; PAGE];
        let mut more = Vec::new();
        for page in pages(&present, size) {
            if !self.sent.has(page.start) {
                more.push(page);
            } else if within(&dirty, &page).is_empty()
                && let Some(witness) = self.witness(&page)
            {
                file.read_exact_at(&mut small, witness)?;
                if small.iter().all(|byte| *byte == 0) {
                    more.push(page);
                }
            }
        }
        dirty.append(&mut more);
        join(&mut dirty);
        let there = dirty.iter().flat_map(|range| {
            within(&present, range)
                .iter()
                .map(|part| part.start.max(range.start)..part.end.min(range.end))
                .collect::<Vec<_>>()
        });
        Ok((there.collect(), gone))
    }
}

/// Whether a mapping is of private huge pages, which are there or not for its process alone.
pub(crate) fn is_private(mapping: &Mapping) -> bool {
    mapping.vma.huge != 0
        && matches!(mapping.vma.backing, Backing::Anonymous | Backing::Object { shared: false, .. })
}
