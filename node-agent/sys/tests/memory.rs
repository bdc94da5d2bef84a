//! Dirty tracking: async write-protection with PAGEMAP_SCAN, from inside and from outside a process.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::num::NonZeroUsize;
use std::ops::Range;

use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags};
use sys::pagemap::{self, Categories, PAGE, Pagemap, Region, ScanError};
use sys::uffd::{self, Uffd};

/// Anonymous memory of our own, unmapped at the end.
struct Memory {
    at: std::ptr::NonNull<std::ffi::c_void>,
    len: usize,
}

impl Memory {
    fn new(pages: usize) -> Self {
        let len = NonZeroUsize::new(pages * 4096).unwrap();
        let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_ANONYMOUS;
        // SAFETY: a new mapping where the kernel likes.
        let at = unsafe {
            nix::sys::mman::mmap_anonymous(None, len, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, flags)
        }
        .unwrap();
        // SAFETY: the range was just mapped.
        unsafe { nix::sys::mman::madvise(at, len.get(), MmapAdvise::MADV_NOHUGEPAGE) }.unwrap();
        Self { at, len: len.get() }
    }

    fn range(&self) -> Range<u64> {
        let start = self.at.addr().get() as u64;
        start..start + self.len as u64
    }

    fn page(&self, index: u64) -> Range<u64> {
        let start = self.range().start + index * PAGE;
        start..start + PAGE
    }

    fn write(&self, page: usize, value: u8) {
        // SAFETY: within the mapping.
        let at = unsafe { self.at.cast::<u8>().add(page * 4096) };
        // SAFETY: mapped writable, and nothing borrows it.
        unsafe { at.write_volatile(value) };
    }

    fn read(&self, page: usize) -> u8 {
        // SAFETY: within the mapping.
        let at = unsafe { self.at.cast::<u8>().add(page * 4096) };
        // SAFETY: mapped readable.
        unsafe { at.read_volatile() }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: nothing refers to it any more.
        unsafe { nix::sys::mman::munmap(self.at, self.len) }.unwrap();
    }
}

fn tracker(memory: &Memory) -> (Uffd, Pagemap) {
    let uffd = Uffd::create(0).unwrap();
    assert!(uffd.api(uffd::TRACKING).unwrap().has(uffd::TRACKING));
    uffd.register_wp(&memory.range()).unwrap();
    (uffd, Pagemap::open(0).unwrap())
}

fn written(map: &Pagemap, range: Range<u64>, reprotect: bool) -> Vec<Range<u64>> {
    let mut out = Vec::new();
    map.scan_written(range, reprotect, &mut out).unwrap();
    out
}

/// PAGEMAP_SCAN came with Linux 6.7: there it must be found, and nowhere else.
fn needs_scan() -> bool {
    let release = nix::sys::utsname::uname().unwrap().release().to_str().unwrap().to_owned();
    let mut numbers = release.split(['.', '-']).map(|n| n.parse::<u32>().unwrap_or(0));
    let version = (numbers.next().unwrap(), numbers.next().unwrap());
    let found = pagemap::probe().pagemap_scan;
    assert_eq!(found, version >= (6, 7), "Linux {release}");
    found
}

#[test]
fn this_kernel_has_a_tracker() {
    let trackers = pagemap::probe();
    assert!(trackers.pagemap_scan || trackers.soft_dirty, "{trackers:?}");
    assert_eq!(trackers, pagemap::probe());
}

#[test]
fn rounds_see_exactly_what_was_written() {
    if !needs_scan() {
        return;
    }
    let memory = Memory::new(5000);
    (0..5000).for_each(|page| memory.write(page, 1));
    let (_uffd, map) = tracker(&memory);
    assert_eq!(written(&map, memory.range(), true), [memory.range()]);
    assert!(written(&map, memory.range(), true).is_empty());
    // More runs than one call of the ioctl returns.
    (0..5000).step_by(3).for_each(|page| memory.write(page, 2));
    let expected: Vec<_> = (0..5000).step_by(3).map(|page| memory.page(page)).collect();
    assert_eq!(written(&map, memory.range(), false), expected);
    assert_eq!(written(&map, memory.range(), true), expected);
    assert!(written(&map, memory.range(), true).is_empty());
    // A read is no write; dropping a page is one.
    assert_eq!(memory.read(1), 1);
    assert!(written(&map, memory.range(), true).is_empty());
    memory.write(7, 9);
    assert_eq!(written(&map, memory.range(), true), [memory.page(7)]);
}

#[test]
fn classification_tells_holes_zero_pages_and_markers() {
    if !needs_scan() {
        return;
    }
    let memory = Memory::new(8);
    memory.write(1, 5);
    assert_eq!(memory.read(3), 0);
    let map = Pagemap::open(0).unwrap();
    let mut out = Vec::new();
    map.classify(memory.range(), &mut out).unwrap();
    assert_eq!(
        out,
        [
            Region { range: memory.page(1), categories: Categories::PRESENT },
            Region { range: memory.page(3), categories: Categories::PRESENT.or(Categories::PFNZERO) },
        ]
    );
    // Arming marks the untouched ones.
    let (_uffd, map) = tracker(&memory);
    written(&map, memory.range(), true);
    out.clear();
    map.classify(memory.page(5), &mut out).unwrap();
    assert_eq!(out.len(), 1);
    assert!(out[0].categories.has(Categories::SWAPPED) && out[0].categories.lacks(Categories::PRESENT));
    let mut entries = Vec::new();
    map.entries(memory.range(), &mut entries).unwrap();
    assert_eq!(entries.len(), 8);
    assert!(entries[5].is_marker() && !entries[5].present());
    assert!(entries[1].present() && !entries[1].is_marker() && !entries[1].file());
    // Reading a marked page brings the zero page; writing ends the mark.
    memory.write(5, 1);
    assert_eq!(written(&map, memory.range(), true), [memory.page(5)]);
}

#[test]
fn a_lost_registration_is_an_error_of_its_own() {
    if !needs_scan() {
        return;
    }
    let memory = Memory::new(16);
    (0..16).for_each(|page| memory.write(page, 1));
    let (uffd, map) = tracker(&memory);
    uffd.unregister(&(memory.page(8).start..memory.range().end)).unwrap();
    let mut out = Vec::new();
    let error = map.scan_written(memory.range(), true, &mut out).unwrap_err();
    assert!(
        matches!(&error, ScanError::Unregistered { range } if range.end == memory.range().end),
        "{error}"
    );
    // Registered again, it goes on.
    uffd.register_wp(&memory.range()).unwrap();
    assert_eq!(written(&map, memory.page(8).start..memory.range().end, true).len(), 1);
    uffd.writeprotect(&memory.page(2), false).unwrap();
    assert_eq!(written(&map, memory.page(2), true), [memory.page(2)]);
}

#[test]
fn soft_dirty_is_refused_or_works() {
    // The test runs beside others that write: only their effect on our own page counts, and the probe says which.
    if pagemap::probe().soft_dirty {
        assert_eq!(pagemap::clear_soft_dirty(0), Ok(()));
    }
    assert!(Pagemap::open(i32::MAX).is_err());
}
