//! kcmp(2): do two processes share a kernel object?
//!
//! The order is the kernel's own (obfuscated addresses): stable while the objects live, so it can sort them.

use std::cmp::Ordering;

use crate::{Errno, Result};

const KCMP_FILE: i32 = 0;
const KCMP_VM: i32 = 1;
const KCMP_FILES: i32 = 2;
const KCMP_FS: i32 = 3;
const KCMP_SIGHAND: i32 = 4;
const KCMP_IO: i32 = 5;
const KCMP_SYSVSEM: i32 = 6;
const KCMP_EPOLL_TFD: i32 = 7;

/// `struct kcmp_epoll_slot`.
#[repr(C)]
struct Slot {
    efd: u32,
    tfd: u32,
    toff: u32,
}
const _: () = assert!(size_of::<Slot>() == 12);

fn ordering(ret: i64) -> Result<Ordering> {
    match Errno::result(ret)? {
        0 => Ok(Ordering::Equal),
        1 => Ok(Ordering::Less),
        2 => Ok(Ordering::Greater),
        _ => Err(Errno::EOPNOTSUPP),
    }
}

fn compare(pid1: i32, pid2: i32, kind: i32, a: u64, b: u64) -> Result<Ordering> {
    // SAFETY: for every kind this is called with, all arguments are integers.
    ordering(unsafe { libc::syscall(libc::SYS_kcmp, pid1, pid2, kind, a, b) })
}

/// Open file descriptions behind two descriptors.
///
/// # Errors
/// `EBADF` one is not open, `ESRCH` no such process, `EPERM` no ptrace access.
pub fn file(pid1: i32, fd1: i32, pid2: i32, fd2: i32) -> Result<Ordering> {
    let fd1 = u64::try_from(fd1).map_err(|_| Errno::EBADF)?;
    let fd2 = u64::try_from(fd2).map_err(|_| Errno::EBADF)?;
    compare(pid1, pid2, KCMP_FILE, fd1, fd2)
}

/// Address spaces (`CLONE_VM`).
///
/// # Errors
/// `ESRCH`, `EPERM`.
pub fn vm(pid1: i32, pid2: i32) -> Result<Ordering> {
    compare(pid1, pid2, KCMP_VM, 0, 0)
}

/// Descriptor tables (`CLONE_FILES`).
///
/// # Errors
/// `ESRCH`, `EPERM`.
pub fn files(pid1: i32, pid2: i32) -> Result<Ordering> {
    compare(pid1, pid2, KCMP_FILES, 0, 0)
}

/// Root, working directory and umask (`CLONE_FS`).
///
/// # Errors
/// `ESRCH`, `EPERM`.
pub fn fs(pid1: i32, pid2: i32) -> Result<Ordering> {
    compare(pid1, pid2, KCMP_FS, 0, 0)
}

/// Signal handler tables (`CLONE_SIGHAND`).
///
/// # Errors
/// `ESRCH`, `EPERM`.
pub fn sighand(pid1: i32, pid2: i32) -> Result<Ordering> {
    compare(pid1, pid2, KCMP_SIGHAND, 0, 0)
}

/// I/O contexts (`CLONE_IO`).
///
/// # Errors
/// `ESRCH`, `EPERM`.
pub fn io(pid1: i32, pid2: i32) -> Result<Ordering> {
    compare(pid1, pid2, KCMP_IO, 0, 0)
}

/// System V semaphore undo lists (`CLONE_SYSVSEM`).
///
/// # Errors
/// `ESRCH`, `EPERM`, `EOPNOTSUPP` the kernel has no System V IPC.
pub fn sysvsem(pid1: i32, pid2: i32) -> Result<Ordering> {
    compare(pid1, pid2, KCMP_SYSVSEM, 0, 0)
}

/// Is descriptor `fd` of `pid` the open file description that entry `offset` (0 = first) registered under
/// number `target` in epoll descriptor `epoll_fd` of `epoll_pid` watches?
///
/// # Errors
/// `ENOENT` no such entry, `EBADF`, `ESRCH`, `EPERM`.
pub fn epoll_target(
    pid: i32,
    fd: i32,
    epoll_pid: i32,
    epoll_fd: i32,
    target: i32,
    offset: u32,
) -> Result<Ordering> {
    let slot = Slot {
        efd: u32::try_from(epoll_fd).map_err(|_| Errno::EBADF)?,
        tfd: u32::try_from(target).map_err(|_| Errno::EBADF)?,
        toff: offset,
    };
    let fd = u64::try_from(fd).map_err(|_| Errno::EBADF)?;
    // SAFETY: the fifth argument points to a `kcmp_epoll_slot` that lives across the call; it is only read.
    ordering(unsafe {
        libc::syscall(libc::SYS_kcmp, pid, epoll_pid, KCMP_EPOLL_TFD, fd, std::ptr::from_ref(&slot))
    })
}
