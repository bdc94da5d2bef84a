//! Huge pages of hugetlbfs: what a host has of them, which pages of such a file are there, and writing to one.
//!
//! A page that is not there is made by whoever touches it, out of a pool that others have a claim on, and write(2) is not
//! implemented: so such files are looked at and written through mappings of this process, by calls that answer an error
//! where a program would be killed.

use std::fs::File;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;

use crate::mem::{self, Run};
use crate::pagemap::{Categories, Pagemap, Query, ScanError};
use crate::uffd::{SIGBUS, UFFD_USER_MODE_ONLY, Uffd};
use crate::{Errno, Result};

const POOLS: &str = "/sys/kernel/mm/hugepages";
/// Where the flags of mmap(2), memfd_create(2) and shmget(2) have the size of huge pages, as a logarithm.
const SIZE_SHIFT: u32 = 26;
/// Pages asked for in one call.
const MANY: usize = 512;

/// Huge pages of one size that a host has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pool {
    /// Bytes of each.
    pub size: u64,
    /// Those that somebody may still have: free and not reserved, or to be made on demand (`nr_overcommit_hugepages`).
    pub available: u64,
}

/// The pools of this host; none on a kernel without hugetlbfs.
#[must_use]
pub fn pools() -> Vec<Pool> {
    let Ok(entries) = std::fs::read_dir(POOLS) else { return Vec::new() };
    let mut pools: Vec<Pool> = entries
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let name = entry.file_name();
            let kib: u64 = name.to_str()?.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
            let number = |file: &str| -> u64 {
                let text = std::fs::read_to_string(entry.path().join(file)).unwrap_or_default();
                text.trim().parse().unwrap_or(0)
            };
            let free = number("free_hugepages").saturating_sub(number("resv_hugepages"));
            let more = number("nr_overcommit_hugepages").saturating_sub(number("surplus_hugepages"));
            Some(Pool { size: kib << 10, available: free + more })
        })
        .collect();
    pools.sort_unstable_by_key(|pool| pool.size);
    pools
}

/// What asks mmap(2) and shmget(2) for pages of this size, beside `MAP_HUGETLB` and `SHM_HUGETLB`; `None` when there can be
/// none of that size.
#[must_use]
pub fn size_flags(size: u64) -> Option<i32> {
    let valid = size.is_power_of_two() && size > 4096;
    valid.then(|| i32::try_from(size.trailing_zeros() << SIZE_SHIFT).ok()).flatten()
}

/// A part of a file in this process's memory.
#[derive(Debug)]
struct View {
    /// Exposed: only the kernel goes there, by address.
    address: u64,
    len: usize,
}

impl View {
    fn new(file: BorrowedFd<'_>, range: &Range<u64>, prot: i32, flags: i32) -> Result<Self> {
        let len = usize::try_from(range.end - range.start).map_err(|_| Errno::ENOMEM)?;
        let offset = i64::try_from(range.start).map_err(|_| Errno::EOVERFLOW)?;
        let flags = flags | libc::MAP_NORESERVE;
        // SAFETY: a new mapping at an address of the kernel's choice; it overlaps nothing, and no reference is made into
        // it: only the kernel reads and writes there, by address.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), len, prot, flags, file.as_raw_fd(), offset) };
        if start == libc::MAP_FAILED {
            return Err(Errno::last());
        }
        Ok(Self { address: start.expose_provenance() as u64, len })
    }
}

impl Drop for View {
    fn drop(&mut self) {
        let start = usize::try_from(self.address).unwrap_or(0);
        // SAFETY: the mapping was made by `new` with this length, and nothing points into it.
        unsafe { libc::munmap(std::ptr::with_exposed_provenance_mut(start), self.len) };
    }
}

/// Tells which parts of a file of huge pages are there. None is made by looking, and what was found is not looked for again.
#[derive(Debug)]
pub struct Presence {
    view: View,
    /// Whoever touches a page of the view that is not there gets an error as long as this is open.
    _uffd: Uffd,
    pagemap: Pagemap,
    len: u64,
    size: u64,
}

impl Presence {
    /// Prepares to look at the first `len` bytes of a file with pages of `size`; `None` when that is not even one.
    ///
    /// # Errors
    /// `EINVAL` there are no such pages; those of mmap(2) and userfaultfd(2).
    pub fn new(file: BorrowedFd<'_>, len: u64, size: u64) -> Result<Option<Self>> {
        size_flags(size).ok_or(Errno::EINVAL)?;
        let len = len / size * size;
        if len == 0 {
            return Ok(None);
        }
        // Private, so that no seal stands against it, and it against no seal.
        let view = View::new(file, &(0..len), libc::PROT_READ, libc::MAP_PRIVATE)?;
        let uffd = Uffd::create(UFFD_USER_MODE_ONLY)?;
        uffd.api(SIGBUS)?;
        uffd.register_missing(&(view.address..view.address + len))?;
        Ok(Some(Self { view, _uffd: uffd, pagemap: Pagemap::open(0)?, len, size }))
    }

    /// How many bytes are looked at.
    #[must_use]
    pub const fn len(&self) -> u64 {
        self.len
    }

    /// Whether that is none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// What is there, ascending. `held`: the bytes that the file says it holds (`st_blocks`).
    ///
    /// # Errors
    /// Those of process_vm_readv(2) and of pagemap.
    pub fn look(&self, held: u64) -> Result<Vec<Range<u64>>> {
        if held == 0 {
            return Ok(Vec::new());
        }
        let found = self.mapped()?;
        if found.iter().map(|part| part.end - part.start).sum::<u64>() == held {
            return Ok(found);
        }
        let mut at = 0;
        for part in found.into_iter().chain(std::iter::once(self.len..self.len)) {
            self.touch(at..part.start)?;
            at = part.end;
        }
        self.mapped()
    }

    /// What of it this process has in its page tables. A page that is taken out of the file goes from there, too.
    fn mapped(&self) -> Result<Vec<Range<u64>>> {
        let start = self.view.address;
        let present = Categories::PRESENT;
        let query = Query { all: present, report: present, ..Query::default() };
        let mut regions = Vec::new();
        match self.pagemap.query(start..start + self.len, &query, &mut regions) {
            Ok(()) => {}
            Err(ScanError::Kernel(errno)) => return Err(errno),
            Err(ScanError::Unregistered { .. }) => return Err(Errno::EPERM),
        }
        Ok(regions.into_iter().map(|region| region.range.start - start..region.range.end - start).collect())
    }

    /// Has what is there of a range in this process's page tables.
    fn touch(&self, range: Range<u64>) -> Result<()> {
        let own = i32::try_from(std::process::id()).map_err(|_| Errno::EOVERFLOW)?;
        let step = usize::try_from(self.size).map_err(|_| Errno::EINVAL)?;
        let mut bytes = [0; MANY];
        let mut at = range.start;
        while at < range.end {
            let offsets = (at..range.end).step_by(step).take(MANY);
            let runs: Vec<Run> =
                offsets.map(|offset| Run { address: self.view.address + offset, len: 1 }).collect();
            let there = match mem::read_runs(own, &runs, &mut bytes) {
                Ok(there) => there,
                Err(error) if error.raw_os_error() == Some(Errno::EFAULT as i32) => 0,
                Err(error) => return Err(crate::abi::io_errno(&error)),
            };
            // The one at which it ended is not there.
            at += (there + usize::from(there < runs.len())) as u64 * self.size;
        }
        Ok(())
    }
}

/// [`Presence::look`], once.
///
/// # Errors
/// As there.
pub fn present(file: &File, size: u64) -> Result<Vec<Range<u64>>> {
    let metadata = file.metadata().map_err(|error| crate::abi::io_errno(&error))?;
    let presence = Presence::new(file.as_fd(), metadata.len(), size)?;
    presence.map_or(Ok(Vec::new()), |presence| presence.look(metadata.blocks() * 512))
}

/// Writes `data` to a file of huge pages, to one run after the other, whose addresses are offsets in it. Pages that are not
/// there are made.
///
/// # Errors
/// `ENOMEM` no huge page is free; those of mmap(2).
pub fn write(file: BorrowedFd<'_>, size: u64, runs: &[Run], data: &[u8]) -> Result<()> {
    size_flags(size).ok_or(Errno::EINVAL)?;
    let ends = runs.iter().map(|run| run.address.saturating_add(run.len as u64));
    let (Some(first), Some(last)) = (runs.iter().map(|run| run.address).min(), ends.max()) else {
        return Ok(());
    };
    let end = last.checked_next_multiple_of(size).ok_or(Errno::EFBIG)?;
    let hull = first / size * size..end;
    let view = View::new(file, &hull, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED)?;
    let own = i32::try_from(std::process::id()).map_err(|_| Errno::EOVERFLOW)?;
    let placed: Vec<Run> =
        runs.iter().map(|run| Run { address: view.address + (run.address - hull.start), ..*run }).collect();
    match mem::write_runs(own, &placed, data) {
        Ok(done) if done == data.len() => Ok(()),
        Ok(_) => Err(Errno::ENOMEM),
        Err(error) if error.raw_os_error() == Some(Errno::EFAULT as i32) => Err(Errno::ENOMEM),
        Err(error) => Err(crate::abi::io_errno(&error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_logarithms() {
        assert_eq!(size_flags(2 << 20), Some(21 << 26));
        assert_eq!(size_flags(1 << 30), Some(30 << 26));
        assert_eq!([0, 4096, 3 << 20, 1 << 32].map(size_flags), [None, None, None, None]);
    }

    /// Files of huge pages can be made where there are none.
    fn file(pages: u64) -> Option<File> {
        let flags = libc::MFD_HUGETLB | libc::MFD_CLOEXEC;
        // Only a kernel without hugetlbfs refuses it.
        let file = File::from(crate::fds::memfd(b"huge", flags).ok()?);
        file.set_len(pages * file.metadata().unwrap().blksize()).unwrap();
        Some(file)
    }

    #[test]
    fn looking_makes_no_page() {
        let Some(file) = file(3) else { return };
        let size = file.metadata().unwrap().blksize();
        let presence = Presence::new(file.as_fd(), 3 * size, size).unwrap().unwrap();
        assert_eq!(presence.look(0), Ok(vec![]));
        // It says that there is one, so that each is touched.
        assert_eq!(presence.look(size), Ok(vec![]));
        assert_eq!(file.metadata().unwrap().blocks(), 0);
        assert!(Presence::new(file.as_fd(), size - 1, size).unwrap().is_none());
        assert!(Presence::new(file.as_fd(), size, 0).is_err());
    }

    #[test]
    fn what_cannot_be_written_is_an_error() {
        let Some(file) = file(2) else { return };
        let size = file.metadata().unwrap().blksize();
        // Behind its end there is no page, however many the host has.
        let runs = [Run { address: 2 * size, len: 1 }];
        assert_eq!(write(file.as_fd(), size, &runs, &[1]), Err(Errno::ENOMEM));
        assert_eq!(write(file.as_fd(), size, &[], &[]), Ok(()));
        assert_eq!(write(file.as_fd(), 3, &runs, &[1]), Err(Errno::EINVAL));
    }

    #[test]
    fn pools_are_those_of_the_host() {
        for pool in pools() {
            assert!(size_flags(pool.size).is_some(), "{pool:?}");
        }
    }
}
