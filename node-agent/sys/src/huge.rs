//! Huge pages of hugetlbfs: what a host has of them, which pages of such a file are there, and writing to one.
//!
//! A page that is not there is made by whoever touches it, out of a pool that others have a claim on, and write(2) is not
//! implemented: so such files are looked at and written through mappings of this process, by calls that answer an error
//! where a program would be killed.

use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;

use crate::mem::{self, Run};
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
struct View {
    start: NonNull<libc::c_void>,
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
        NonNull::new(start).map(|start| Self { start, len }).ok_or(Errno::ENOMEM)
    }

    fn address(&self) -> u64 {
        self.start.as_ptr().expose_provenance() as u64
    }
}

impl Drop for View {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `new` with this length, and nothing points into it.
        unsafe { libc::munmap(self.start.as_ptr(), self.len) };
    }
}

/// The parts of the first `len` bytes of a file of huge pages that are there, ascending. None is made by looking.
///
/// # Errors
/// Those of mmap(2) and userfaultfd(2).
pub fn present(file: BorrowedFd<'_>, len: u64, size: u64) -> Result<Vec<Range<u64>>> {
    size_flags(size).ok_or(Errno::EINVAL)?;
    let len = len / size * size;
    let mut found: Vec<Range<u64>> = Vec::new();
    if len == 0 {
        return Ok(found);
    }
    // Private, so that no seal stands against it, and it against no seal.
    let view = View::new(file, &(0..len), libc::PROT_READ, libc::MAP_PRIVATE)?;
    let uffd = Uffd::create(UFFD_USER_MODE_ONLY)?;
    uffd.api(SIGBUS)?;
    uffd.register_missing(&(view.address()..view.address() + len))?;
    let own = i32::try_from(std::process::id()).map_err(|_| Errno::EOVERFLOW)?;
    let mut byte = [0; MANY];
    let mut at = 0;
    while at < len {
        let runs: Vec<Run> = (at..len)
            .step_by(usize::try_from(size).map_err(|_| Errno::EINVAL)?)
            .take(MANY)
            .map(|offset| Run { address: view.address() + offset, len: 1 })
            .collect();
        let there = match mem::read_runs(own, &runs, &mut byte) {
            Ok(there) => there as u64,
            Err(error) if error.raw_os_error() == Some(Errno::EFAULT as i32) => 0,
            Err(error) => return Err(crate::abi::io_errno(&error)),
        };
        let end = at + there * size;
        match found.last_mut() {
            _ if there == 0 => {}
            Some(last) if last.end == at => last.end = end,
            _ => found.push(at..end),
        }
        // The one at which it ended is not there.
        at = if there < runs.len() as u64 { end + size } else { end };
    }
    Ok(found)
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
        runs.iter().map(|run| Run { address: view.address() + (run.address - hull.start), ..*run }).collect();
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

    #[test]
    fn pools_are_those_of_the_host() {
        for pool in pools() {
            assert!(size_flags(pool.size).is_some(), "{pool:?}");
        }
    }
}
