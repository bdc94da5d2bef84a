//! Another process's memory: process_vm_readv(2), process_vm_writev(2) and /proc/PID/mem.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;

use nix::errno::Errno;
use nix::libc;

/// The advice that makes guard pages of pages, whatever they held.
pub const MADV_GUARD_INSTALL: i32 = 102;

/// A range of the other process's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// First byte.
    pub address: u64,
    /// Length in bytes.
    pub len: usize,
}

/// The most segments one call takes (UIO_MAXIOV).
const IOV_MAX: usize = 1024;

fn remote(run: Run, skip: usize) -> io::Result<libc::iovec> {
    let address = usize::try_from(run.address).map_err(|_| io::Error::from(Errno::EFAULT))?;
    Ok(libc::iovec {
        iov_base: std::ptr::with_exposed_provenance_mut(address.wrapping_add(skip)),
        iov_len: run.len - skip,
    })
}

/// How many leading bytes of the runs were moved and where the next chunk begins.
struct Cursor<'a> {
    runs: &'a [Run],
    index: usize,
    skip: usize,
}

impl Cursor<'_> {
    fn chunk(&self) -> io::Result<Vec<libc::iovec>> {
        let mut out = Vec::with_capacity(IOV_MAX.min(self.runs.len() - self.index));
        let mut skip = self.skip;
        for run in self.runs[self.index..].iter().take(IOV_MAX) {
            out.push(remote(*run, skip)?);
            skip = 0;
        }
        Ok(out)
    }

    fn advance(&mut self, mut bytes: usize) {
        while let Some(run) = self.runs.get(self.index) {
            let left = run.len - self.skip;
            if bytes < left {
                self.skip += bytes;
                return;
            }
            bytes -= left;
            self.skip = 0;
            self.index += 1;
        }
    }

    fn done(&self) -> bool {
        self.index >= self.runs.len()
    }
}

fn total(runs: &[Run]) -> usize {
    runs.iter().map(|run| run.len).sum()
}

/// Reads `runs` of process `pid`, one after the other, into `buffer`.
///
/// Returns the bytes read: all of them, or those before the first address that cannot be read.
/// `buffer` must hold at least the sum of the runs' lengths.
///
/// # Errors
/// EFAULT when not even the first byte can be read, ESRCH when the process is gone, EPERM, EINVAL
/// when `buffer` is too small.
pub fn read_runs(pid: i32, runs: &[Run], buffer: &mut [u8]) -> io::Result<usize> {
    if buffer.len() < total(runs) {
        return Err(Errno::EINVAL.into());
    }
    let mut cursor = Cursor { runs, index: 0, skip: 0 };
    let mut moved = 0;
    while !cursor.done() {
        let remote = cursor.chunk()?;
        let want: usize = remote.iter().map(|v| v.iov_len).sum();
        let Some(part) = buffer.get_mut(moved..moved + want) else {
            return Err(Errno::EINVAL.into());
        };
        let local = libc::iovec { iov_base: part.as_mut_ptr().cast(), iov_len: part.len() };
        // SAFETY: `local` describes `part`, which is valid for writes for its whole length and borrowed
        // for the call; the remote vector names foreign memory that the kernel checks.
        let answer = unsafe {
            libc::process_vm_readv(pid, &raw const local, 1, remote.as_ptr(), remote.len() as u64, 0)
        };
        match step(answer, want, moved)? {
            Some(n) => {
                moved += n;
                cursor.advance(n);
            }
            None => return Ok(moved),
        }
    }
    Ok(moved)
}

/// Writes `data` to `runs` of process `pid`, one after the other.
///
/// Returns the bytes written: all of them, or those before the first address that cannot be written
/// (a read-only mapping: use [`ProcessMemory::write`]).
///
/// # Errors
/// EFAULT when not even the first byte can be written, ESRCH when the process is gone, EPERM, EINVAL
/// when `data` is shorter than the runs.
pub fn write_runs(pid: i32, runs: &[Run], data: &[u8]) -> io::Result<usize> {
    if data.len() < total(runs) {
        return Err(Errno::EINVAL.into());
    }
    let mut cursor = Cursor { runs, index: 0, skip: 0 };
    let mut moved = 0;
    while !cursor.done() {
        let remote = cursor.chunk()?;
        let want: usize = remote.iter().map(|v| v.iov_len).sum();
        let Some(part) = data.get(moved..moved + want) else {
            return Err(Errno::EINVAL.into());
        };
        let local = libc::iovec { iov_base: part.as_ptr().cast_mut().cast(), iov_len: part.len() };
        // SAFETY: `local` describes `part`, which is valid for reads and which the call does not write;
        // the remote vector names foreign memory that the kernel checks.
        let answer = unsafe {
            libc::process_vm_writev(pid, &raw const local, 1, remote.as_ptr(), remote.len() as u64, 0)
        };
        match step(answer, want, moved)? {
            Some(n) => {
                moved += n;
                cursor.advance(n);
            }
            None => return Ok(moved),
        }
    }
    Ok(moved)
}

/// `Some(n)`: n bytes moved, go on; `None`: the runs end here for good.
fn step(answer: isize, want: usize, moved_before: usize) -> io::Result<Option<usize>> {
    match usize::try_from(answer) {
        Ok(0) if want > 0 => Ok(None),
        Ok(n) => Ok(Some(n)),
        Err(_) => match Errno::last() {
            // A short answer is followed by the fault itself on the next call.
            Errno::EFAULT if moved_before > 0 => Ok(None),
            errno => Err(errno.into()),
        },
    }
}

/// An open /proc/PID/mem. Reads and writes go past page protections (a write into a private read-only
/// mapping makes a private copy, as a debugger's breakpoint does).
#[derive(Debug)]
pub struct ProcessMemory {
    file: File,
}

impl ProcessMemory {
    /// Opens /proc/`pid`/mem for reading and writing. It stays bound to that address space: after the
    /// process's exec or exit, operations fail or move 0 bytes.
    ///
    /// # Errors
    /// As open(2): ENOENT when there is no such process, EACCES without ptrace access.
    pub fn open(pid: i32) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open(format!("/proc/{pid}/mem"))?;
        Ok(Self { file })
    }

    /// Fills `buffer` from `address`.
    ///
    /// # Errors
    /// EIO when a page is not mapped, `UnexpectedEof` when the process is gone.
    pub fn read(&self, address: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(buffer, address)
    }

    /// Writes all of `data` at `address`, forcing private mappings.
    ///
    /// # Errors
    /// EIO when a page is not mapped or is shared and read-only, `WriteZero` when the process is gone.
    pub fn write(&self, address: u64, data: &[u8]) -> io::Result<()> {
        self.file.write_all_at(data, address)
    }

    /// Reads one little-endian 64-bit word.
    ///
    /// # Errors
    /// As [`ProcessMemory::read`].
    pub fn read_u64(&self, address: u64) -> io::Result<u64> {
        let mut word = [0; 8];
        self.read(address, &mut word)?;
        Ok(u64::from_le_bytes(word))
    }
}

/// Whether pages can be made to fault on purpose (MADV_GUARD_INSTALL, Linux 6.13).
#[must_use]
pub fn has_guard_pages() -> bool {
    // SAFETY: no byte of memory is meant; the kernel says whether it knows the advice.
    unsafe { libc::madvise(std::ptr::null_mut(), 0, MADV_GUARD_INSTALL) == 0 }
}
