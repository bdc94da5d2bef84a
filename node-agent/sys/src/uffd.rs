//! userfaultfd(2): asynchronous write-protection, the dirty tracker's other half.
//!
//! A descriptor belongs to the address space that made it, whoever holds it: one that was made inside a target
//! and taken out with pidfd_getfd(2) is served from here. Closing the last copy unregisters everything.

use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use crate::abi::new_fd;
use crate::{Errno, Result};

/// `UFFD_FEATURE_*` bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features(pub u64);

impl Features {
    /// Whether all of `other` are here.
    #[must_use]
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

/// `UFFD_FEATURE_SIGBUS`: a page that is missing is an error to whoever touches it, and nobody waits.
pub const SIGBUS: Features = Features(1 << 7);
/// `UFFD_FEATURE_WP_HUGETLBFS_SHMEM`.
pub const WP_HUGETLBFS_SHMEM: Features = Features(1 << 12);
/// `UFFD_FEATURE_WP_UNPOPULATED`.
pub const WP_UNPOPULATED: Features = Features(1 << 13);
/// `UFFD_FEATURE_WP_ASYNC`.
pub const WP_ASYNC: Features = Features(1 << 15);
/// The three that dirty tracking needs.
pub const TRACKING: Features = Features(WP_HUGETLBFS_SHMEM.0 | WP_UNPOPULATED.0 | WP_ASYNC.0);

/// Flag of userfaultfd(2): serve faults of user mode only, which needs no privilege.
pub const UFFD_USER_MODE_ONLY: i32 = 1;

const UFFD_API: u64 = 0xaa;
const UFFDIO_REGISTER_MODE_MISSING: u64 = 1;
const UFFDIO_REGISTER_MODE_WP: u64 = 1 << 1;
const UFFDIO_WRITEPROTECT_MODE_WP: u64 = 1;

/// `struct uffdio_api`.
#[repr(C)]
struct ApiArg {
    api: u64,
    features: u64,
    ioctls: u64,
}
const _: () = assert!(size_of::<ApiArg>() == 24);

/// `struct uffdio_range`.
#[repr(C)]
struct RangeArg {
    start: u64,
    len: u64,
}
const _: () = assert!(size_of::<RangeArg>() == 16);

/// `struct uffdio_register`.
#[repr(C)]
struct RegisterArg {
    range: RangeArg,
    mode: u64,
    ioctls: u64,
}
const _: () = assert!(size_of::<RegisterArg>() == 32);

/// `struct uffdio_writeprotect`.
#[repr(C)]
struct WriteProtectArg {
    range: RangeArg,
    mode: u64,
}
const _: () = assert!(size_of::<WriteProtectArg>() == 24);

/// `_IOWR(0xaa, 0x3f, struct uffdio_api)`.
const UFFDIO_API: libc::Ioctl = 0xc018_aa3f;
/// `_IOWR(0xaa, 0x00, struct uffdio_register)`.
const UFFDIO_REGISTER: libc::Ioctl = 0xc020_aa00;
/// `_IOR(0xaa, 0x01, struct uffdio_range)`.
const UFFDIO_UNREGISTER: libc::Ioctl = 0x8010_aa01;
/// `_IOWR(0xaa, 0x06, struct uffdio_writeprotect)`.
const UFFDIO_WRITEPROTECT: libc::Ioctl = 0xc018_aa06;

/// A userfaultfd.
#[derive(Debug)]
pub struct Uffd {
    fd: OwnedFd,
}

impl From<OwnedFd> for Uffd {
    /// Wraps a descriptor that userfaultfd(2) made, here or in another process.
    fn from(fd: OwnedFd) -> Self {
        Self { fd }
    }
}

impl AsFd for Uffd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn range_arg(range: &Range<u64>) -> Result<RangeArg> {
    let len = range.end.checked_sub(range.start).filter(|&len| len > 0).ok_or(Errno::EINVAL)?;
    Ok(RangeArg { start: range.start, len })
}

impl Uffd {
    /// Makes one for this process, close-on-exec and non-blocking. `flags`: 0 or [`UFFD_USER_MODE_ONLY`].
    ///
    /// # Errors
    /// `EPERM` without CAP_SYS_PTRACE (and without `UFFD_USER_MODE_ONLY`), `ENOSYS`.
    pub fn create(flags: i32) -> Result<Self> {
        // SAFETY: userfaultfd takes one integer. Nothing is registered yet, so no memory changes its behaviour.
        let ret = unsafe { libc::syscall(libc::SYS_userfaultfd, flags | libc::O_CLOEXEC | libc::O_NONBLOCK) };
        Ok(Self { fd: new_fd(ret)? })
    }

    /// `UFFDIO_API`: asks for `features`, once, before anything else. Returns what the kernel has.
    ///
    /// # Errors
    /// `EINVAL` a feature is missing or it was called before.
    pub fn api(&self, features: Features) -> Result<Features> {
        let mut arg = ApiArg { api: UFFD_API, features: features.0, ioctls: 0 };
        // SAFETY: `arg` is the structure this request reads and writes, alive across the call.
        let ret = unsafe { libc::ioctl(self.fd.as_raw_fd(), UFFDIO_API, std::ptr::from_mut(&mut arg)) };
        Errno::result(ret)?;
        Ok(Features(arg.features))
    }

    /// Registers `range` (page aligned, whole mappings) for write-protection. Pages count as written until a
    /// scan with re-protection has armed them.
    ///
    /// # Errors
    /// `EINVAL` nothing mapped there, or unaligned, `EBUSY` another userfaultfd has it, `EPERM` such memory
    /// cannot be watched, `ESRCH` the address space is gone.
    pub fn register_wp(&self, range: &Range<u64>) -> Result<()> {
        // With WP_ASYNC the kernel resolves every fault itself, so the memory's owner cannot be made to wait.
        self.register(range, UFFDIO_REGISTER_MODE_WP)
    }

    /// Registers `range` so that pages which are not there are not made. With [`SIGBUS`], nobody is made to wait.
    ///
    /// # Errors
    /// As [`Uffd::register_wp`].
    pub fn register_missing(&self, range: &Range<u64>) -> Result<()> {
        self.register(range, UFFDIO_REGISTER_MODE_MISSING)
    }

    fn register(&self, range: &Range<u64>, mode: u64) -> Result<()> {
        let mut arg = RegisterArg { range: range_arg(range)?, mode, ioctls: 0 };
        // SAFETY: `arg` is the structure this request reads and writes.
        let ret = unsafe { libc::ioctl(self.fd.as_raw_fd(), UFFDIO_REGISTER, std::ptr::from_mut(&mut arg)) };
        Errno::result(ret).map(drop)
    }

    /// Ends the watch over `range`; its pages become writable again.
    ///
    /// # Errors
    /// `EINVAL` nothing mapped there or unaligned, `ESRCH` the address space is gone.
    pub fn unregister(&self, range: &Range<u64>) -> Result<()> {
        let mut arg = range_arg(range)?;
        // SAFETY: `arg` is the structure this request reads.
        let ret =
            unsafe { libc::ioctl(self.fd.as_raw_fd(), UFFDIO_UNREGISTER, std::ptr::from_mut(&mut arg)) };
        Errno::result(ret).map(drop)
    }

    /// Protects a registered range, or takes the protection away.
    ///
    /// # Errors
    /// `ENOENT` not registered, `EAGAIN` the mappings are changing: try again, `ESRCH`.
    pub fn writeprotect(&self, range: &Range<u64>, protect: bool) -> Result<()> {
        let mode = if protect { UFFDIO_WRITEPROTECT_MODE_WP } else { 0 };
        let mut arg = WriteProtectArg { range: range_arg(range)?, mode };
        // SAFETY: `arg` is the structure this request reads.
        let ret =
            unsafe { libc::ioctl(self.fd.as_raw_fd(), UFFDIO_WRITEPROTECT, std::ptr::from_mut(&mut arg)) };
        Errno::result(ret).map(drop)
    }
}

/// The features of this kernel.
///
/// # Errors
/// Those of [`Uffd::create`]: there is no userfaultfd for us.
pub fn probe() -> Result<Features> {
    let uffd = match Uffd::create(0) {
        Err(Errno::EPERM) => Uffd::create(UFFD_USER_MODE_ONLY)?,
        other => other?,
    };
    uffd.api(Features(0))
}
