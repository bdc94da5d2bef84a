//! Contents of the pages that belong to one process.

use std::io;
use std::ops::Range;

use image::PAGE_SIZE;
use sys::Errno;
use sys::mem::{ProcessMemory, Run};
use sys::pagemap::{Entry, Pagemap};

use super::batch::Contents;
use super::tracker::Tracker;

/// Private pages, to be read.
#[derive(Debug)]
pub(super) struct PrivatePages<'a> {
    pub(super) pid: i32,
    pub(super) mem: &'a ProcessMemory,
    pub(super) pagemap: &'a Pagemap,
    pub(super) tracker: &'a mut dyn Tracker,
    /// The mapping may be read.
    pub(super) readable: bool,
    /// It has huge pages of hugetlbfs, which reading would make where they are not there.
    pub(super) huge: bool,
}

impl PrivatePages<'_> {
    fn entries(&self, ranges: &[Range<u64>]) -> io::Result<Vec<Entry>> {
        let mut entries = Vec::new();
        for range in ranges {
            self.pagemap.entries(range.clone(), &mut entries).map_err(io::Error::from)?;
        }
        Ok(entries)
    }
}

/// Whether another process may hold one of these pages as copy-on-write. process_vm_readv(2) pins what it reads, and the
/// kernel gives a pinned page to one process alone: it would make the copy that nobody has written yet, out of the
/// container's memory.
fn shared(entries: &[Entry]) -> bool {
    let held = |entry: &Entry| entry.present() || entry.swapped();
    entries.iter().any(|entry| held(entry) && !entry.file() && !entry.exclusive())
}

/// The ranges up to the first page that is not there.
fn there(ranges: &[Range<u64>], entries: &[Entry]) -> Vec<Range<u64>> {
    let absent = |entry: &Entry| !(entry.present() || entry.swapped() && !entry.is_marker());
    let first = entries.iter().position(absent).unwrap_or(entries.len());
    let mut left = first as u64 * PAGE_SIZE;
    let mut kept = Vec::new();
    for range in ranges {
        let part = left.min(range.end - range.start);
        left -= part;
        kept.push(range.start..range.start + part);
    }
    kept.retain(|range| !range.is_empty());
    kept
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

    /// Reads the ranges one after the other, up to the first page that cannot be read.
    pub(super) fn copy(&self, ranges: &[Range<u64>], buffer: &mut [u8]) -> io::Result<usize> {
        let entries = if self.huge || self.readable { self.entries(ranges)? } else { Vec::new() };
        let kept = self.huge.then(|| there(ranges, &entries));
        let ranges = kept.as_deref().unwrap_or(ranges);
        if self.readable && !ranges.is_empty() && !shared(&entries) {
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
