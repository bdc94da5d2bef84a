//! /proc/PID/pagemap: the `PAGEMAP_SCAN` ioctl (Linux 6.7), raw entries and soft-dirty bits.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use crate::abi::{Pod, bytes_of_mut, io_errno, zeroed};
use crate::{Errno, Result};

/// Bytes of a small page.
pub const PAGE: u64 = 4096;

/// What a page is, as `PAGEMAP_SCAN` tells (`PAGE_IS_*`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Categories(u64);

impl Categories {
    /// Lies in a range that async write-protection watches.
    pub const WP_ALLOWED: Self = Self(1 << 0);
    /// Written since it was last protected. Holes count as written.
    pub const WRITTEN: Self = Self(1 << 1);
    /// Backed by a file (or shared memory).
    pub const FILE: Self = Self(1 << 2);
    /// In memory.
    pub const PRESENT: Self = Self(1 << 3);
    /// Swapped out; a protected never-touched page shows so too.
    pub const SWAPPED: Self = Self(1 << 4);
    /// The shared zero page.
    pub const PFNZERO: Self = Self(1 << 5);
    /// Mapped by a huge page.
    pub const HUGE: Self = Self(1 << 6);
    /// Soft-dirty bit set.
    pub const SOFT_DIRTY: Self = Self(1 << 7);
    /// A guard page (Linux 6.16).
    pub const GUARD: Self = Self(1 << 8);

    /// The union of both sets.
    #[must_use]
    pub const fn or(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether all of `other` are in this set.
    #[must_use]
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether none of `other` are in this set.
    #[must_use]
    pub const fn lacks(self, other: Self) -> bool {
        self.0 & other.0 == 0
    }

    /// The kernel's bits.
    #[must_use]
    pub const fn bits(self) -> u64 {
        self.0
    }
}

/// A run of pages of one kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Region {
    /// Addresses, page aligned.
    pub range: Range<u64>,
    /// What they are.
    pub categories: Categories,
}

/// Bits 0-54 of an entry: the page frame number, or place and type in swap.
const FRAME: u64 = (1 << 55) - 1;

/// What the place in swap says of a marker that is a guard page.
const GUARD_MARKER: u64 = 1 << 2;

/// One 64-bit entry of pagemap (Documentation/admin-guide/mm/pagemap.rst).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Entry(pub u64);

impl Entry {
    /// In memory (bit 63).
    #[must_use]
    pub const fn present(self) -> bool {
        self.0 >> 63 & 1 == 1
    }

    /// Swapped out, or one of the markers that live in swap entries (bit 62).
    #[must_use]
    pub const fn swapped(self) -> bool {
        self.0 >> 62 & 1 == 1
    }

    /// File page or shared anonymous memory (bit 61).
    #[must_use]
    pub const fn file(self) -> bool {
        self.0 >> 61 & 1 == 1
    }

    /// Mapped by this process alone (bit 56).
    #[must_use]
    pub const fn exclusive(self) -> bool {
        self.0 >> 56 & 1 == 1
    }

    /// Write-protected by userfaultfd (bit 57).
    #[must_use]
    pub const fn uffd_wp(self) -> bool {
        self.0 >> 57 & 1 == 1
    }

    /// Written since clear_refs (bit 55). Means nothing on kernels without soft-dirty.
    #[must_use]
    pub const fn soft_dirty(self) -> bool {
        self.0 >> 55 & 1 == 1
    }

    /// Swap type (bits 0-4), when [`Entry::swapped`].
    #[must_use]
    pub const fn swap_type(self) -> u8 {
        (self.0 & 0x1f) as u8
    }

    /// A guard page (MADV_GUARD_INSTALL): bit 58 since Linux 6.15, before it the kind of the marker, which is shown with
    /// `CAP_SYS_ADMIN` alone.
    #[must_use]
    pub const fn guard(self) -> bool {
        self.0 >> 58 & 1 == 1 || self.is_marker() && self.0 >> 5 & GUARD_MARKER != 0
    }

    const fn categories(self) -> Categories {
        let mut found = Categories(0);
        if self.present() {
            found = found.or(Categories::PRESENT);
        }
        if self.swapped() {
            found = found.or(Categories::SWAPPED);
        }
        if self.file() {
            found = found.or(Categories::FILE);
        }
        found
    }

    /// What is there, for comparing two looks: present, swapped, file and the frame (or place in swap), without the
    /// bits that change while the contents do not. Zero for a hole. Frames are zero without `CAP_SYS_ADMIN`.
    #[must_use]
    pub const fn contents(self) -> u64 {
        self.0 & (0b111 << 61 | FRAME)
    }

    /// The page frame, when [`Entry::present`]; 0 without `CAP_SYS_ADMIN`.
    #[must_use]
    pub const fn frame(self) -> u64 {
        self.0 & FRAME
    }

    /// A pte marker (swap type 31): write-protected but never touched, so it holds no data.
    #[must_use]
    pub const fn is_marker(self) -> bool {
        self.swapped() && !self.present() && self.swap_type() == 31
    }
}

/// Why a scan stopped.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ScanError {
    /// Part of the range is not (or no longer) registered for async write-protection: mremap(2), a new mmap(2)
    /// or the program's own userfaultfd. Register it again and treat it as written throughout.
    #[error("{:#x}-{:#x} is not registered for async write-protection", range.start, range.end)]
    Unregistered {
        /// From the address the scan had reached to the end of what was asked.
        range: Range<u64>,
    },
    /// The ioctl failed.
    #[error("PAGEMAP_SCAN failed")]
    Kernel(#[source] Errno),
}

/// `struct pm_scan_arg`.
#[repr(C)]
#[derive(Clone, Copy)]
struct ScanArg {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}
const _: () = assert!(size_of::<ScanArg>() == 96);
const _: () = assert!(std::mem::offset_of!(ScanArg, return_mask) == 88);

/// `struct page_region`.
#[repr(C)]
#[derive(Clone, Copy)]
struct PageRegion {
    start: u64,
    end: u64,
    categories: u64,
}
const _: () = assert!(size_of::<PageRegion>() == 24);
// SAFETY: three 64-bit integers without padding.
unsafe impl Pod for PageRegion {}

/// `_IOWR('f', 16, struct pm_scan_arg)`.
const PAGEMAP_SCAN: libc::Ioctl = 0xc060_6610;
const PM_SCAN_WP_MATCHING: u64 = 1;
const PM_SCAN_CHECK_WPASYNC: u64 = 2;
const BATCH: usize = 512;

/// What one scan asks.
#[derive(Clone, Copy, Debug, Default)]
pub struct Query {
    /// Protect the matching pages again in the same step.
    pub reprotect: bool,
    /// Fail with [`ScanError::Unregistered`] on ranges that are not watched.
    pub check_registered: bool,
    /// All of these, exactly as `inverted` says.
    pub all: Categories,
    /// Those of `all` and `any` that count when they are absent.
    pub inverted: Categories,
    /// At least one of these (when not empty).
    pub any: Categories,
    /// What to report of each run.
    pub report: Categories,
}

/// An open /proc/PID/pagemap.
#[derive(Debug)]
pub struct Pagemap {
    file: File,
}

impl Pagemap {
    /// Opens the pagemap of `pid` (0 = this process). It stays bound to the address space of that moment:
    /// open it again after an exec.
    ///
    /// # Errors
    /// `ENOENT` no such process, `EACCES`/`EPERM` no ptrace access.
    pub fn open(pid: i32) -> Result<Self> {
        let path = if pid == 0 { "/proc/self/pagemap".into() } else { format!("/proc/{pid}/pagemap") };
        let file = File::open(path).map_err(|e| io_errno(&e))?;
        Ok(Self { file })
    }

    /// Appends the ranges of `range` written since they were last protected, and protects them again if
    /// `reprotect`. Neighbouring ranges are joined. The fast form: asks for and returns `WRITTEN` alone.
    ///
    /// # Errors
    /// [`ScanError::Unregistered`] when part of it is not watched: what lies below `range.start` of the error was
    /// scanned and is in `out`.
    pub fn scan_written(
        &self,
        range: Range<u64>,
        reprotect: bool,
        out: &mut Vec<Range<u64>>,
    ) -> std::result::Result<(), ScanError> {
        let written = Categories::WRITTEN;
        let query =
            Query { reprotect, check_registered: true, all: written, report: written, ..Query::default() };
        self.scan(range, &query, |region| match out.last_mut() {
            Some(last) if last.end == region.start => last.end = region.end,
            _ => out.push(region.start..region.end),
        })
    }

    /// Appends the runs of `range` that hold anything (present, swapped or marked), with what they are:
    /// FILE, PRESENT, SWAPPED; with `PAGEMAP_SCAN` also PFNZERO, HUGE. What is absent from the answer is a hole.
    ///
    /// # Errors
    /// [`ScanError::Kernel`].
    pub fn classify(&self, range: Range<u64>, out: &mut Vec<Region>) -> std::result::Result<(), ScanError> {
        let any = Categories::PRESENT.or(Categories::SWAPPED);
        let report = any.or(Categories::FILE).or(Categories::PFNZERO).or(Categories::HUGE);
        match self.query(range.clone(), &Query { any, report, ..Query::default() }, out) {
            // Linux before 6.7.
            Err(ScanError::Kernel(Errno::ENOTTY)) => {
                self.classify_entries(range, out).map_err(ScanError::Kernel)
            }
            other => other,
        }
    }

    /// Appends the guard pages of `range`. Before Linux 6.7 there are none.
    ///
    /// # Errors
    /// [`ScanError::Kernel`].
    pub fn guards(&self, range: Range<u64>, out: &mut Vec<Range<u64>>) -> std::result::Result<(), ScanError> {
        let mut regions = Vec::new();
        let guard = Categories::GUARD;
        match self.query(
            range.clone(),
            &Query { all: guard, report: guard, ..Query::default() },
            &mut regions,
        ) {
            Ok(()) => out.extend(regions.into_iter().map(|region| region.range)),
            // Linux before 6.16 has no such category: a guard page shows as swapped.
            Err(ScanError::Kernel(Errno::EINVAL)) => {
                let all = Categories::SWAPPED;
                self.query(range, &Query { all, report: all, ..Query::default() }, &mut regions)?;
                let mut entries = Vec::new();
                for region in regions {
                    entries.clear();
                    self.entries(region.range.clone(), &mut entries).map_err(ScanError::Kernel)?;
                    let pages = (region.range.start..).step_by(4096).zip(&entries);
                    out.extend(pages.filter(|(_, entry)| entry.guard()).map(|(at, _)| at..at + PAGE));
                }
            }
            Err(ScanError::Kernel(Errno::ENOTTY)) => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// The same from raw entries.
    fn classify_entries(&self, range: Range<u64>, out: &mut Vec<Region>) -> Result<()> {
        let mut entries = Vec::new();
        self.entries(range.clone(), &mut entries)?;
        for (start, entry) in (range.start..).step_by(4096).zip(entries) {
            let categories = entry.categories();
            let held = Categories::PRESENT.or(Categories::SWAPPED);
            if categories.lacks(held) {
                continue;
            }
            match out.last_mut() {
                Some(last) if last.range.end == start && last.categories == categories => {
                    last.range.end = start + PAGE;
                }
                _ => out.push(Region { range: start..start + PAGE, categories }),
            }
        }
        Ok(())
    }

    /// Appends what any query finds.
    ///
    /// # Errors
    /// As [`Pagemap::scan_written`].
    pub fn query(
        &self,
        range: Range<u64>,
        query: &Query,
        out: &mut Vec<Region>,
    ) -> std::result::Result<(), ScanError> {
        self.scan(range, query, |region| {
            let categories = Categories(region.categories);
            match out.last_mut() {
                Some(last) if last.range.end == region.start && last.categories == categories => {
                    last.range.end = region.end;
                }
                _ => out.push(Region { range: region.start..region.end, categories }),
            }
        })
    }

    fn scan(
        &self,
        range: Range<u64>,
        query: &Query,
        mut found: impl FnMut(&PageRegion),
    ) -> std::result::Result<(), ScanError> {
        let mut regions = [zeroed::<PageRegion>(); BATCH];
        let mut flags = 0;
        if query.reprotect {
            flags |= PM_SCAN_WP_MATCHING;
        }
        if query.check_registered {
            flags |= PM_SCAN_CHECK_WPASYNC;
        }
        let mut start = range.start;
        while start < range.end {
            let mut arg = ScanArg {
                size: size_of::<ScanArg>() as u64,
                flags,
                start,
                end: range.end,
                walk_end: 0,
                vec: regions.as_mut_ptr().expose_provenance() as u64,
                vec_len: BATCH as u64,
                max_pages: 0,
                category_inverted: query.inverted.0,
                category_mask: query.all.0,
                category_anyof_mask: query.any.0,
                return_mask: query.report.0,
            };
            // SAFETY: `arg` has the ABI's size; its `vec` points to BATCH regions that outlive the call.
            let ret =
                unsafe { libc::ioctl(self.file.as_raw_fd(), PAGEMAP_SCAN, std::ptr::from_mut(&mut arg)) };
            let count = match Errno::result(ret) {
                Ok(count) => usize::try_from(count).unwrap_or(0).min(BATCH),
                Err(Errno::EPERM) if query.check_registered => {
                    // The kernel reports nothing of the walk that failed, but it may have protected what it passed:
                    // the caller is told from where on it must treat everything as written.
                    return Err(ScanError::Unregistered { range: start..range.end });
                }
                Err(Errno::EINTR) => continue,
                Err(error) => return Err(ScanError::Kernel(error)),
            };
            regions[..count].iter().for_each(&mut found);
            if arg.walk_end <= start {
                return Err(ScanError::Kernel(Errno::EIO));
            }
            start = arg.walk_end;
        }
        Ok(())
    }

    /// Appends one raw entry a page of `range`.
    ///
    /// # Errors
    /// Those of pread(2).
    pub fn entries(&self, range: Range<u64>, out: &mut Vec<Entry>) -> Result<()> {
        let mut buffer = [0_u64; 1024];
        let mut page = range.start / PAGE;
        let end = range.end.div_ceil(PAGE);
        while page < end {
            let want = usize::try_from(end - page).unwrap_or(usize::MAX).min(buffer.len());
            let bytes = &mut bytes_of_mut(&mut buffer)[..want * 8];
            let got = self.file.read_at(bytes, page * 8).map_err(|e| io_errno(&e))? / 8;
            if got == 0 {
                break;
            }
            out.extend(buffer[..got].iter().map(|&raw| Entry(raw)));
            page += got as u64;
        }
        Ok(())
    }
}

/// Clears the soft-dirty bits of every page of `pid` (`clear_refs` = 4).
///
/// # Errors
/// `EINVAL` the kernel has no soft-dirty bits, `ENOENT` no such process, `EACCES`.
pub fn clear_soft_dirty(pid: i32) -> Result<()> {
    let path = if pid == 0 { "/proc/self/clear_refs".into() } else { format!("/proc/{pid}/clear_refs") };
    let mut file = OpenOptions::new().write(true).open(path).map_err(|e| io_errno(&e))?;
    file.write_all(b"4").map_err(|e| io_errno(&e))
}

/// The dirty trackers that this kernel has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Trackers {
    /// `PAGEMAP_SCAN` together with userfaultfd's async write-protection.
    pub pagemap_scan: bool,
    /// Soft-dirty bits that really come on after a write, and page frames that are shown.
    pub soft_dirty: bool,
}

/// Finds out by doing: a scan of this process, and a write that must set a soft-dirty bit.
///
/// Clears this process's own soft-dirty bits on kernels that have them.
#[must_use]
pub fn probe() -> Trackers {
    Trackers {
        pagemap_scan: probe_scan() && matches!(crate::uffd::probe(), Ok(f) if f.has(crate::uffd::TRACKING)),
        soft_dirty: probe_soft_dirty().unwrap_or(false),
    }
}

fn probe_scan() -> bool {
    let page = vec![1_u8; 8192];
    let at = (page.as_ptr().addr() as u64).next_multiple_of(PAGE);
    let query = Query { all: Categories::PRESENT, report: Categories::PRESENT, ..Query::default() };
    let mut out = Vec::new();
    Pagemap::open(0).is_ok_and(|map| map.query(at..at + PAGE, &query, &mut out).is_ok())
        && out.len() == 1
        && std::hint::black_box(&page)[0] == 1
}

fn probe_soft_dirty() -> Result<bool> {
    let mut memory = std::hint::black_box(vec![1_u8; 12288]);
    let at = (memory.as_ptr().addr() as u64).next_multiple_of(PAGE);
    let index = usize::try_from(at - memory.as_ptr().addr() as u64).map_err(|_| Errno::EFAULT)?;
    let map = Pagemap::open(0)?;
    clear_soft_dirty(0)?;
    let mut entries = Vec::new();
    map.entries(at..at + PAGE, &mut entries)?;
    std::hint::black_box(&mut memory)[index] = 2;
    map.entries(at..at + PAGE, &mut entries)?;
    let dirty: Vec<bool> = entries.iter().map(|entry| entry.soft_dirty()).collect();
    let frames = entries.iter().all(|entry| entry.0 & FRAME != 0);
    Ok(dirty == [false, true] && frames && std::hint::black_box(&memory)[index] == 2)
}
