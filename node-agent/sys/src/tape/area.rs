//! Memory shared by tracer and tracees: a memfd, mapped here for as long as the tape lives.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::OnceLock;

use crate::Errno;
use crate::abi::new_fd;

/// MFD_EXEC (Linux 6.3): says that the memory is to be executable, as vm.memfd_noexec wants to know.
const MFD_EXEC: libc::c_uint = 0x10;

/// A memfd and this process's mapping of it.
#[derive(Debug)]
pub(super) struct SharedArea {
    fd: OwnedFd,
    start: NonNull<u64>,
    len: usize,
}

/// Flags for a tape's memfd_create(2) inside a source; found out here, because both run on one kernel.
pub(super) fn memfd_flags() -> u64 {
    static FLAGS: OnceLock<u64> = OnceLock::new();
    *FLAGS.get_or_init(|| {
        let exec = make_memfd(libc::MFD_CLOEXEC | MFD_EXEC).is_ok();
        u64::from(libc::MFD_CLOEXEC | if exec { MFD_EXEC } else { 0 })
    })
}

fn make_memfd(flags: libc::c_uint) -> crate::Result<OwnedFd> {
    // SAFETY: the name is a NUL-terminated literal.
    new_fd(unsafe { libc::memfd_create(c"gantry-tape".as_ptr(), flags) })
}

/// A new close-on-exec memfd for a tape.
pub(super) fn create_memfd() -> crate::Result<OwnedFd> {
    // Kernels before 6.3 know no MFD_EXEC and make every memfd executable.
    make_memfd(libc::MFD_CLOEXEC | MFD_EXEC).or_else(|errno| match errno {
        Errno::EINVAL => make_memfd(libc::MFD_CLOEXEC),
        other => Err(other),
    })
}

impl SharedArea {
    /// Sizes `fd` to `len` bytes (a multiple of the page size) and maps it.
    pub(super) fn map(fd: OwnedFd, len: usize) -> io::Result<Self> {
        let size = i64::try_from(len).map_err(|_| io::Error::from(Errno::EFBIG))?;
        nix::unistd::ftruncate(&fd, size)?;
        // SAFETY: a new mapping at an address of the kernel's choice; it overlaps nothing.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                fd.as_raw_fd(),
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the mapping just made; a child of this process does without it.
        unsafe { libc::madvise(start, len, libc::MADV_DONTFORK) };
        let start = NonNull::new(start.cast::<u64>()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { fd, start, len })
    }

    fn word(&self, offset: usize) -> *mut u64 {
        assert!(offset.is_multiple_of(8) && offset + 8 <= self.len, "tape offset {offset} of {}", self.len);
        // SAFETY: `offset` is inside the mapping, which starts at `start` and is `len` bytes long.
        unsafe { self.start.as_ptr().byte_add(offset) }
    }

    /// Reads the word at a multiple of 8.
    pub(super) fn read_word(&self, offset: usize) -> u64 {
        // SAFETY: `word` checked that the address is aligned and inside the mapping, which lives as long as
        // `self`; the access is volatile because the tracee writes there too.
        unsafe { self.word(offset).read_volatile() }
    }

    /// Writes the word at a multiple of 8.
    pub(super) fn write_word(&self, offset: usize, value: u64) {
        // SAFETY: as in `read_word`.
        unsafe { self.word(offset).write_volatile(value) }
    }

    /// Writes words from a multiple of 8 on.
    pub(super) fn write_words(&self, offset: usize, words: &[u64]) {
        for (index, word) in words.iter().enumerate() {
            self.write_word(offset + index * 8, *word);
        }
    }

    /// Writes bytes from a multiple of 8 on; the last word is padded with zeros.
    pub(super) fn write(&self, offset: usize, bytes: &[u8]) {
        for (index, chunk) in bytes.chunks(8).enumerate() {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.write_word(offset + index * 8, u64::from_le_bytes(word));
        }
    }

    /// Reads bytes from a multiple of 8 on.
    pub(super) fn read(&self, offset: usize, bytes: &mut [u8]) {
        for (index, chunk) in bytes.chunks_mut(8).enumerate() {
            let word = self.read_word(offset + index * 8).to_le_bytes();
            chunk.copy_from_slice(&word[..chunk.len()]);
        }
    }
}

impl AsFd for SharedArea {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for SharedArea {
    fn drop(&mut self) {
        // SAFETY: start and length are those of the mapping made in `map`, and no reference into it exists:
        // all accesses are by value.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
    }
}
