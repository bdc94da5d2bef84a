//! The few shapes in which this crate talks to the kernel.

use std::mem::MaybeUninit;
use std::os::fd::{FromRawFd, OwnedFd};

use crate::{Errno, Result};

/// Plain data that the kernel reads and writes.
///
/// # Safety
/// Every bit pattern is a value of the type, and it holds neither references nor padding bytes.
pub(crate) unsafe trait Pod: Copy {}

// SAFETY: integers have neither padding nor invalid bit patterns.
unsafe impl Pod for u8 {}
// SAFETY: as above.
unsafe impl Pod for u32 {}
// SAFETY: as above.
unsafe impl Pod for i32 {}
// SAFETY: as above.
unsafe impl Pod for u64 {}
// SAFETY: an array has no padding beyond its elements'.
unsafe impl<T: Pod, const N: usize> Pod for [T; N] {}

/// The value whose bytes are all zero.
pub(crate) fn zeroed<T: Pod>() -> T {
    // SAFETY: `Pod` promises that every bit pattern, so also all zeros, is a value.
    unsafe { MaybeUninit::zeroed().assume_init() }
}

/// The bytes of a value.
pub(crate) fn bytes_of<T: Pod>(value: &T) -> &[u8] {
    // SAFETY: a `Pod` value is `size_of::<T>()` initialised bytes, borrowed as long as the slice.
    unsafe { std::slice::from_raw_parts(std::ptr::from_ref(value).cast::<u8>(), size_of::<T>()) }
}

/// The bytes of a value, to be filled.
pub(crate) fn bytes_of_mut<T: Pod>(value: &mut T) -> &mut [u8] {
    // SAFETY: as in `bytes_of`; any bytes written form a value again, because `T` is `Pod`.
    unsafe { std::slice::from_raw_parts_mut(std::ptr::from_mut(value).cast::<u8>(), size_of::<T>()) }
}

/// A value from its bytes; missing bytes at the end count as zero, surplus ones are ignored.
pub(crate) fn from_bytes<T: Pod>(bytes: &[u8]) -> T {
    let mut value = zeroed::<T>();
    let len = bytes.len().min(size_of::<T>());
    bytes_of_mut(&mut value)[..len].copy_from_slice(&bytes[..len]);
    value
}

/// Takes ownership of the descriptor that a system call has just returned, or its error.
pub(crate) fn new_fd(ret: impl Into<i64>) -> Result<OwnedFd> {
    let fd = Errno::result(ret.into())?;
    let fd = i32::try_from(fd).map_err(|_| Errno::EBADF)?;
    // SAFETY: the callers pass what a descriptor-creating system call returned: open and owned by nobody.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A system call's answer that is known to fit an `i32` (counts of descriptors, options, small sizes).
pub(crate) fn small(ret: impl Into<i64>) -> Result<i32> {
    let value = Errno::result(ret.into())?;
    i32::try_from(value).map_err(|_| Errno::EOVERFLOW)
}

/// The error number of a standard library call on files.
pub(crate) fn io_errno(error: &std::io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO))
}
