//! pidfd_open(2), pidfd_getfd(2), pidfd_send_signal(2): a process that cannot be mistaken for a later one.

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::abi::new_fd;
use crate::{Errno, Result};

/// Opens a descriptor of the process (thread group leader) `pid`, close-on-exec.
///
/// # Errors
/// `ESRCH` no such process, `EINVAL` the pid of a thread that is no leader (`ENOENT` from Linux 6.17).
pub fn open(pid: i32) -> Result<OwnedFd> {
    // SAFETY: pidfd_open takes two integers and touches no memory of ours.
    new_fd(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })
}

/// Opens a descriptor of one thread (`PIDFD_THREAD`, Linux 6.9).
///
/// # Errors
/// `ESRCH` no such thread, `EINVAL` the kernel is older.
pub fn open_thread(tid: i32) -> Result<OwnedFd> {
    // SAFETY: pidfd_open takes two integers and touches no memory of ours.
    new_fd(unsafe { libc::syscall(libc::SYS_pidfd_open, tid, libc::O_EXCL) })
}

/// Opens a descriptor of a process, or of a thread that is none (`PIDFD_THREAD`, Linux 6.9): for the descriptor table that
/// a thread may have of its own.
///
/// # Errors
/// `ESRCH` no such process or thread, `EINVAL` a thread and an older kernel.
pub fn open_task(tid: i32) -> Result<OwnedFd> {
    match open(tid) {
        Err(Errno::EINVAL | Errno::ENOENT) => open_thread(tid),
        other => other,
    }
}

/// Duplicates descriptor `fd` of that process: the same open file description, close-on-exec.
///
/// # Errors
/// `EBADF` it has no such descriptor, `ESRCH` it is gone (a zombie has none), `EPERM` no ptrace access.
pub fn getfd(pidfd: BorrowedFd<'_>, fd: i32) -> Result<OwnedFd> {
    // SAFETY: pidfd_getfd takes three integers and touches no memory of ours.
    new_fd(unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), fd, 0) })
}

/// Sends a signal; 0 only asks whether the process is there.
///
/// # Errors
/// `ESRCH` it has ended and was waited for, `EPERM` not allowed, `EINVAL` no such signal.
pub fn send_signal(pidfd: BorrowedFd<'_>, signal: i32) -> Result<()> {
    let info: *const libc::siginfo_t = std::ptr::null();
    // SAFETY: a null siginfo asks the kernel to fill it as kill(2) does; nothing else is a pointer.
    let ret = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, info, 0) };
    Errno::result(ret).map(drop)
}

/// Waits until the process has ended (is a zombie or gone). `Ok(false)`: the time is over and it lives.
///
/// # Errors
/// Those of poll(2) but `EINTR`, after which the wait goes on.
pub fn wait_exit(pidfd: BorrowedFd<'_>, timeout: Duration) -> Result<bool> {
    let end = Instant::now() + timeout;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        // Rounded up, so that the last millisecond is not spent spinning.
        let millis = i32::try_from(left.as_nanos().div_ceil(1_000_000)).unwrap_or(i32::MAX);
        let limit = PollTimeout::try_from(millis).map_err(|_| Errno::EINVAL)?;
        match poll(&mut [PollFd::new(pidfd, PollFlags::POLLIN)], limit) {
            Ok(n) if n > 0 => return Ok(true),
            Ok(_) if left.is_zero() => return Ok(false),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error),
        }
    }
}
