//! Soft-dirty bits (Documentation/admin-guide/mm/soft-dirty.rst), for kernels without `PAGEMAP_SCAN`.
//!
//! The bit alone does not tell of everything that changes contents: a page that was given back and read again is the
//! zero page, without the bit; mremap(2) moves whole page tables with the bits as they are; a mapping that is joined to
//! its neighbour loses the mark that it is new. In all of these the page frame is another one. So a page counts as
//! unchanged only when its bit is clear *and* its entry in pagemap is the one of the last look, frame number included,
//! and only when every clearing since went together with a look at it. What the program runs on with is read after the
//! look; a page that is another one by then is taken for changed the next time.

use std::collections::BTreeMap;
use std::ops::Range;

use sys::Errno;
use sys::pagemap::{self, Entry, Pagemap};

use super::sent::{EXTENT, join};
use super::tracker::{Dirty, Tracker};

const PAGE: u64 = image::PAGE_SIZE;
/// Entries of an extent.
const ENTRIES: usize = 512;

/// No entry's contents: the page is to be taken for changed.
const OTHER: u64 = u64::MAX;

/// What the pages of an extent were.
type Extent = Box<[u64; ENTRIES]>;

/// Looks and clears while nothing runs; answers from what it saw afterwards.
#[derive(Debug)]
pub(crate) struct SoftDirty {
    pid: i32,
    /// The entries of the last look; an extent that is not there held nothing.
    seen: BTreeMap<u64, Extent>,
    /// What the last look found, ascending and disjoint.
    found: Vec<Range<u64>>,
    /// Huge pages of the last look, each of which has one bit.
    huge: Vec<Range<u64>>,
    entries: Vec<Entry>,
}

impl SoftDirty {
    /// Tracks the address space that the process has now.
    pub(crate) fn new(pid: i32) -> Self {
        Self { pid, seen: BTreeMap::new(), found: Vec::new(), huge: Vec::new(), entries: Vec::new() }
    }

    /// What a page was in the last look.
    fn looked(&self, page: u64) -> u64 {
        self.seen.get(&(page / EXTENT)).map_or(0, |extent| extent[place(page)])
    }

    /// Takes a page for changed in the next look.
    fn doubt(&mut self, page: u64) {
        self.seen.entry(page / EXTENT).or_insert_with(|| Box::new([0; ENTRIES]))[place(page)] = OTHER;
    }

    /// Compares the pages of one extent that belong to a mapping with the last look.
    fn compare(&mut self, part: &Range<u64>, now: &mut BTreeMap<u64, Extent>) {
        let number = part.start / EXTENT;
        if is_huge(&self.entries) {
            self.huge.push(part.clone());
        }
        let first = place(part.start);
        let before = self.seen.get(&number);
        let mut kept = now.remove(&number);
        for (place, entry) in (first..).zip(&self.entries) {
            let what = entry.contents();
            if what != before.map_or(0, |extent| extent[place]) || (what != 0 && entry.soft_dirty()) {
                let page = number * EXTENT + place as u64 * PAGE;
                match self.found.last_mut() {
                    Some(last) if last.end == page => last.end = page + PAGE,
                    _ => self.found.push(page..page + PAGE),
                }
            }
            if what != 0 {
                kept.get_or_insert_with(|| Box::new([0; ENTRIES]))[place] = what;
            }
        }
        if let Some(kept) = kept {
            now.insert(number, kept);
        }
    }
}

/// Whether an extent is one huge page, or 512 pages whose frames lie as in one.
fn is_huge(entries: &[Entry]) -> bool {
    let Some(first) = entries.first().filter(|_| entries.len() == ENTRIES) else { return false };
    let frames = first.frame()..first.frame() + ENTRIES as u64;
    let aligned = frames.start != 0 && frames.start.is_multiple_of(ENTRIES as u64);
    let ours = |entry: &Entry| entry.present() && !entry.file();
    aligned && entries.iter().zip(frames).all(|(entry, frame)| ours(entry) && entry.frame() == frame)
}

/// Where a page is in its extent.
fn place(page: u64) -> usize {
    usize::try_from(page % EXTENT / PAGE).unwrap_or(0)
}

impl Tracker for SoftDirty {
    fn look_ahead(&mut self, pagemap: &Pagemap, mappings: &[Range<u64>], again: bool) -> Result<(), Errno> {
        self.found.clear();
        self.huge.clear();
        // What no mapping of this look covers is forgotten: its bits are cleared unseen.
        let mut now = BTreeMap::new();
        for mapping in mappings {
            let mut at = mapping.start;
            while at < mapping.end {
                let end = (at / EXTENT * EXTENT + EXTENT).min(mapping.end);
                self.entries.clear();
                pagemap.entries(at..end, &mut self.entries)?;
                if self.entries.len() as u64 != (end - at) / PAGE {
                    // The address space is gone.
                    return Err(Errno::ESRCH);
                }
                self.compare(&(at..end), &mut now);
                at = end;
            }
        }
        join(&mut self.found);
        join(&mut self.huge);
        self.seen = now;
        if again { pagemap::clear_soft_dirty(self.pid) } else { Ok(()) }
    }

    fn dirty(&mut self, _pagemap: &Pagemap, mapping: &Range<u64>, _again: bool) -> Result<Dirty, Errno> {
        let first = self.found.partition_point(|range| range.end <= mapping.start);
        let ranges = self.found[first..]
            .iter()
            .take_while(|range| range.start < mapping.end)
            .map(|range| range.start.max(mapping.start)..range.end.min(mapping.end))
            .collect();
        Ok(Dirty { ranges, fresh: false })
    }

    /// A page table that was taken away (madvise(2), reclaim) takes the bits of shared pages along.
    fn only_looks(&self) -> bool {
        true
    }

    fn coarse(&self) -> &[Range<u64>] {
        &self.huge
    }

    fn met(&mut self, start: u64, entries: &[Entry]) {
        for (page, entry) in (start..).step_by(4096).zip(entries) {
            if self.looked(page) != entry.contents() {
                self.doubt(page);
            }
        }
    }

    fn missed(&mut self, range: &Range<u64>) {
        for page in range.clone().step_by(4096) {
            let looked = self.looked(page);
            if looked != 0 && !Entry(looked).file() {
                self.doubt(page);
            }
        }
    }
}
