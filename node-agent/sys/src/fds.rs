//! Descriptors other than sockets: making the special ones, and reading what fcntl(2) and ioctl(2) tell.

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::fcntl::{FcntlArg, FdFlag, OFlag, OpenHow, ResolveFlag, SealFlag};
use nix::sys::stat::Mode;

use crate::abi::{new_fd, small};
use crate::{Errno, Result};

/// eventfd(2), close-on-exec unless the caller clears it. `flags`: EFD_SEMAPHORE, EFD_NONBLOCK.
///
/// # Errors
/// `EMFILE`, `EINVAL`.
pub fn eventfd(count: u32, flags: i32) -> Result<OwnedFd> {
    // SAFETY: eventfd takes two integers.
    new_fd(unsafe { libc::eventfd(count, flags | libc::EFD_CLOEXEC) })
}

/// epoll_create1(2), close-on-exec.
///
/// # Errors
/// `EMFILE`.
pub fn epoll() -> Result<OwnedFd> {
    // SAFETY: epoll_create1 takes one integer.
    new_fd(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })
}

/// epoll_ctl(2), EPOLL_CTL_ADD: the kernel files the entry under `target`'s number in this process.
///
/// # Errors
/// `EEXIST`, `ELOOP`, `EPERM` the target cannot be polled.
pub fn epoll_add(epoll: BorrowedFd<'_>, target: BorrowedFd<'_>, events: u32, data: u64) -> Result<()> {
    let mut event = libc::epoll_event { events, u64: data };
    // SAFETY: the kernel reads `event`, which lives across the call.
    small(unsafe {
        libc::epoll_ctl(epoll.as_raw_fd(), libc::EPOLL_CTL_ADD, target.as_raw_fd(), &raw mut event)
    })
    .map(drop)
}

/// Asking for how long an epoll set asks devices itself (ioctl_eventpoll(2)).
const EPIOCGPARAMS: libc::c_ulong = 0x8008_8a02;
const EPIOCSPARAMS: libc::c_ulong = 0x4008_8a01;

/// How an epoll set asks devices itself (EPIOCGPARAMS): `struct epoll_params`; zeros before Linux 6.9.
///
/// # Errors
/// `EBADF`.
pub fn epoll_busy(epoll: BorrowedFd<'_>) -> Result<[u8; 8]> {
    let mut params = [0; 8];
    // SAFETY: the kernel writes the eight bytes of this structure.
    match small(unsafe { libc::ioctl(epoll.as_raw_fd(), EPIOCGPARAMS, params.as_mut_ptr()) }) {
        Ok(_) => Ok(params),
        Err(Errno::ENOTTY | Errno::EINVAL | Errno::EOPNOTSUPP) => Ok([0; 8]),
        Err(errno) => Err(errno),
    }
}

/// Sets it (EPIOCSPARAMS).
///
/// # Errors
/// `EPERM` a larger budget without `CAP_NET_ADMIN`, `ENOTTY` before Linux 6.9.
pub fn set_epoll_busy(epoll: BorrowedFd<'_>, params: &[u8; 8]) -> Result<()> {
    // SAFETY: the kernel reads the eight bytes of this structure.
    small(unsafe { libc::ioctl(epoll.as_raw_fd(), EPIOCSPARAMS, params.as_ptr()) }).map(drop)
}

/// timerfd_create(2), close-on-exec. `flags`: TFD_NONBLOCK.
///
/// # Errors
/// `EINVAL` unknown clock, `EPERM` an alarm clock without CAP_WAKE_ALARM.
pub fn timerfd(clock: i32, flags: i32) -> Result<OwnedFd> {
    // SAFETY: timerfd_create takes two integers.
    new_fd(unsafe { libc::timerfd_create(clock, flags | libc::TFD_CLOEXEC) })
}

/// A timer's setting, nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TimerSetting {
    /// Period; 0 = fires once.
    pub interval: u64,
    /// Time left, or with TFD_TIMER_ABSTIME the time it fires; 0 = disarmed.
    pub value: u64,
}

fn timespec(nanos: u64) -> Result<libc::timespec> {
    let seconds = i64::try_from(nanos / 1_000_000_000).map_err(|_| Errno::EINVAL)?;
    let rest = i64::try_from(nanos % 1_000_000_000).map_err(|_| Errno::EINVAL)?;
    Ok(libc::timespec { tv_sec: seconds, tv_nsec: rest })
}

fn nanos(time: libc::timespec) -> Result<u64> {
    let seconds = u64::try_from(time.tv_sec).map_err(|_| Errno::EINVAL)?;
    let rest = u64::try_from(time.tv_nsec).map_err(|_| Errno::EINVAL)?;
    seconds.checked_mul(1_000_000_000).and_then(|all| all.checked_add(rest)).ok_or(Errno::EOVERFLOW)
}

/// timerfd_settime(2). `flags`: TFD_TIMER_ABSTIME, TFD_TIMER_CANCEL_ON_SET.
///
/// # Errors
/// `EINVAL` no timerfd.
pub fn timerfd_set(fd: BorrowedFd<'_>, flags: i32, setting: &TimerSetting) -> Result<()> {
    let new =
        libc::itimerspec { it_interval: timespec(setting.interval)?, it_value: timespec(setting.value)? };
    // SAFETY: the kernel reads `new`; the null pointer says that the old setting is not wanted.
    small(unsafe { libc::timerfd_settime(fd.as_raw_fd(), flags, &raw const new, std::ptr::null_mut()) })
        .map(drop)
}

/// timerfd_gettime(2).
///
/// # Errors
/// `EINVAL` no timerfd.
pub fn timerfd_get(fd: BorrowedFd<'_>) -> Result<TimerSetting> {
    let zero = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    let mut now = libc::itimerspec { it_interval: zero, it_value: zero };
    // SAFETY: the kernel writes one itimerspec to `now`.
    small(unsafe { libc::timerfd_gettime(fd.as_raw_fd(), &raw mut now) })?;
    Ok(TimerSetting { interval: nanos(now.it_interval)?, value: nanos(now.it_value)? })
}

/// `TFD_IOC_SET_TICKS`: how many expirations the next read returns; not 0.
///
/// # Errors
/// `EINVAL` 0, `ENOTTY` the kernel lacks CONFIG_CHECKPOINT_RESTORE, `ECANCELED` the clock was set.
pub fn timerfd_set_ticks(fd: BorrowedFd<'_>, ticks: u64) -> Result<()> {
    /// `_IOW('T', 0, __u64)`.
    const TFD_IOC_SET_TICKS: libc::Ioctl = 0x4008_5400;
    // SAFETY: the request reads one 64-bit integer, which lives across the call.
    small(unsafe { libc::ioctl(fd.as_raw_fd(), TFD_IOC_SET_TICKS, &raw const ticks) }).map(drop)
}

/// signalfd(2) for a set of signals (bit N-1 = signal N), close-on-exec. `flags`: SFD_NONBLOCK.
///
/// # Errors
/// `EMFILE`.
pub fn signalfd(signals: u64, flags: i32) -> Result<OwnedFd> {
    let flags = flags | libc::SFD_CLOEXEC;
    // SAFETY: the kernel reads the 8 bytes of `signals`, which is the size of its own signal set.
    new_fd(unsafe { libc::syscall(libc::SYS_signalfd4, -1, &raw const signals, size_of::<u64>(), flags) })
}

/// memfd_create(2). `flags`: MFD_*; close-on-exec unless the caller clears it.
///
/// # Errors
/// `EINVAL` name longer than 249 bytes or unknown flags, `EMFILE`.
pub fn memfd(name: &[u8], flags: u32) -> Result<OwnedFd> {
    let name = CString::new(name).map_err(|_| Errno::EINVAL)?;
    // SAFETY: `name` is NUL-terminated and outlives the call.
    new_fd(unsafe { libc::memfd_create(name.as_ptr(), flags | libc::MFD_CLOEXEC) })
}

/// The seals of a memfd (F_GET_SEALS).
///
/// # Errors
/// `EINVAL` not a file that can be sealed.
pub fn seals(fd: BorrowedFd<'_>) -> Result<i32> {
    nix::fcntl::fcntl(fd, FcntlArg::F_GET_SEALS)
}

/// Adds seals (F_ADD_SEALS).
///
/// # Errors
/// `EPERM` sealed against it, `EBUSY` mapped writable.
pub fn add_seals(fd: BorrowedFd<'_>, seals: i32) -> Result<()> {
    nix::fcntl::fcntl(fd, FcntlArg::F_ADD_SEALS(SealFlag::from_bits_retain(seals))).map(drop)
}

/// pipe2(2): (read end, write end), close-on-exec. `flags`: O_NONBLOCK, O_DIRECT.
///
/// # Errors
/// `EMFILE`, `ENFILE`.
pub fn pipe(flags: i32) -> Result<(OwnedFd, OwnedFd)> {
    nix::unistd::pipe2(OFlag::from_bits_retain(flags) | OFlag::O_CLOEXEC)
}

/// Bytes a pipe can hold (F_GETPIPE_SZ).
///
/// # Errors
/// `EBADF` no pipe.
pub fn pipe_size(fd: BorrowedFd<'_>) -> Result<i32> {
    nix::fcntl::fcntl(fd, FcntlArg::F_GETPIPE_SZ)
}

/// Sets it (F_SETPIPE_SZ).
///
/// # Errors
/// `EPERM` above the system's limit, `EBUSY` less than it holds.
pub fn set_pipe_size(fd: BorrowedFd<'_>, size: i32) -> Result<()> {
    nix::fcntl::fcntl(fd, FcntlArg::F_SETPIPE_SZ(size)).map(drop)
}

/// Looks at everything in a pipe (or fifo) and leaves it there, by tee(2) into a pipe of our own. `fd` is a read
/// end. For a packet-mode pipe see [`peek_packets`]. Nobody else may read it meanwhile.
///
/// # Errors
/// `EBADF` no read end, `EINVAL` no pipe, `EPERM` our own pipe could not be made large enough.
pub fn peek_pipe(fd: BorrowedFd<'_>) -> Result<Vec<u8>> {
    Ok(peek_packets(fd)?.concat())
}

/// As [`peek_pipe`], packet by packet as O_DIRECT wrote them (for other pipes the pieces mean nothing).
///
/// # Errors
/// As [`peek_pipe`].
pub fn peek_packets(fd: BorrowedFd<'_>) -> Result<Vec<Vec<u8>>> {
    PipePeek::default().packets(fd)
}

/// What one piece of [`peek_packets`] has at most.
pub const PEEKED: usize = 65536;

/// Looks into pipes one after the other, through a pipe of its own.
#[derive(Debug, Default)]
pub struct PipePeek {
    scratch: Option<Scratch>,
}

#[derive(Debug)]
struct Scratch {
    read: OwnedFd,
    write: OwnedFd,
    size: i32,
    buffer: Vec<u8>,
}

impl PipePeek {
    /// As [`peek_packets`].
    ///
    /// # Errors
    /// As [`peek_pipe`].
    pub fn packets(&mut self, fd: BorrowedFd<'_>) -> Result<Vec<Vec<u8>>> {
        // Nearly all are empty.
        if crate::tcp::inq(fd)? == 0 {
            return Ok(Vec::new());
        }
        // One that failed may hold what it copied.
        let mut scratch = match self.scratch.take() {
            Some(scratch) => scratch,
            None => Scratch::new()?,
        };
        let packets = scratch.packets(fd)?;
        self.scratch = Some(scratch);
        Ok(packets)
    }
}

impl Scratch {
    fn new() -> Result<Self> {
        // tee copies slots; O_DIRECT on our write end makes the reads below keep the boundaries that the slots carry.
        let (read, write) = pipe(libc::O_NONBLOCK | libc::O_DIRECT)?;
        let size = pipe_size(write.as_fd())?;
        Ok(Self { read, write, size, buffer: vec![0; PEEKED] })
    }

    fn packets(&mut self, fd: BorrowedFd<'_>) -> Result<Vec<Vec<u8>>> {
        let size = pipe_size(fd)?;
        if size > self.size {
            set_pipe_size(self.write.as_fd(), size)?;
            self.size = size;
        }
        let flags = libc::SPLICE_F_NONBLOCK;
        // SAFETY: tee takes two descriptors and two integers.
        let copied = unsafe { libc::tee(fd.as_raw_fd(), self.write.as_raw_fd(), usize::MAX >> 33, flags) };
        match Errno::result(copied) {
            Err(Errno::EAGAIN) | Ok(0) => return Ok(Vec::new()),
            other => drop(other?),
        }
        let mut packets = Vec::new();
        loop {
            match nix::unistd::read(&self.read, &mut self.buffer) {
                Ok(0) | Err(Errno::EAGAIN) => return Ok(packets),
                Ok(len) => packets.push(self.buffer[..len].to_vec()),
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// Who gets SIGIO (F_GETOWN_EX).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// F_OWNER_TID (0), F_OWNER_PID (1) or F_OWNER_PGRP (2).
    pub kind: i32,
    /// Its number, in our pid namespace; 0 = nobody.
    pub id: i32,
}

/// `struct f_owner_ex`.
#[repr(C)]
struct OwnerArg {
    kind: i32,
    id: i32,
}
const _: () = assert!(size_of::<OwnerArg>() == 8);
const F_SETSIG: i32 = 10;
const F_GETSIG: i32 = 11;
const F_SETOWN_EX: i32 = 15;
const F_GETOWN_EX: i32 = 16;

/// F_GETOWN_EX.
///
/// # Errors
/// `EBADF`.
pub fn owner(fd: BorrowedFd<'_>) -> Result<Owner> {
    let mut arg = OwnerArg { kind: 0, id: 0 };
    // SAFETY: this command writes one f_owner_ex to `arg`.
    small(unsafe { libc::fcntl(fd.as_raw_fd(), F_GETOWN_EX, &raw mut arg) })?;
    Ok(Owner { kind: arg.kind, id: arg.id })
}

/// F_SETOWN_EX.
///
/// # Errors
/// `ESRCH` no such process.
pub fn set_owner(fd: BorrowedFd<'_>, owner: Owner) -> Result<()> {
    let arg = OwnerArg { kind: owner.kind, id: owner.id };
    // SAFETY: this command reads one f_owner_ex from `arg`.
    small(unsafe { libc::fcntl(fd.as_raw_fd(), F_SETOWN_EX, &raw const arg) }).map(drop)
}

/// F_GETSIG: the signal sent instead of SIGIO; 0 = SIGIO.
///
/// # Errors
/// `EBADF`.
pub fn owner_signal(fd: BorrowedFd<'_>) -> Result<i32> {
    // SAFETY: this command takes no argument.
    small(unsafe { libc::fcntl(fd.as_raw_fd(), F_GETSIG) })
}

/// F_SETSIG.
///
/// # Errors
/// `EINVAL` no such signal.
pub fn set_owner_signal(fd: BorrowedFd<'_>, signal: i32) -> Result<()> {
    // SAFETY: this command takes an integer.
    small(unsafe { libc::fcntl(fd.as_raw_fd(), F_SETSIG, signal) }).map(drop)
}

/// File status flags (F_GETFL), access mode among them.
///
/// # Errors
/// `EBADF`.
pub fn status_flags(fd: BorrowedFd<'_>) -> Result<i32> {
    nix::fcntl::fcntl(fd, FcntlArg::F_GETFL)
}

/// Sets O_APPEND, O_ASYNC, O_DIRECT, O_NOATIME, O_NONBLOCK (F_SETFL).
///
/// # Errors
/// `EPERM`, `EINVAL`.
pub fn set_status_flags(fd: BorrowedFd<'_>, flags: i32) -> Result<()> {
    nix::fcntl::fcntl(fd, FcntlArg::F_SETFL(OFlag::from_bits_retain(flags))).map(drop)
}

/// Sets or clears close-on-exec.
///
/// # Errors
/// `EBADF`.
pub fn set_cloexec(fd: BorrowedFd<'_>, on: bool) -> Result<()> {
    let flags = if on { FdFlag::FD_CLOEXEC } else { FdFlag::empty() };
    nix::fcntl::fcntl(fd, FcntlArg::F_SETFD(flags)).map(drop)
}

/// Duplicates to the lowest free number that is at least `least`, close-on-exec.
///
/// # Errors
/// `EMFILE`, `EINVAL` beyond the limit.
pub fn duplicate_above(fd: BorrowedFd<'_>, least: i32) -> Result<OwnedFd> {
    new_fd(nix::fcntl::fcntl(fd, FcntlArg::F_DUPFD_CLOEXEC(least))?)
}

/// dup3(2) onto a number, for a child about to exec: whatever was open there is closed. Keeps it open across
/// the exec.
///
/// # Errors
/// `EBADF` number beyond the limit, `EBUSY`.
pub fn install_at(fd: BorrowedFd<'_>, number: i32) -> Result<()> {
    if fd.as_raw_fd() == number {
        return set_cloexec(fd, false);
    }
    // SAFETY: dup3 takes integers. A descriptor that this process owns under `number` is replaced: the caller is a
    // child about to exec, in which nobody uses its descriptors afterwards.
    small(unsafe { libc::dup3(fd.as_raw_fd(), number, 0) }).map(drop)
}

/// Marks every descriptor from `first` on close-on-exec (close_range(2)): what exec must not leak.
///
/// # Errors
/// `EINVAL`.
pub fn cloexec_from(first: u32) -> Result<()> {
    const CLOSE_RANGE_CLOEXEC: u32 = 4;
    // SAFETY: close_range takes three integers and with this flag closes nothing now.
    small(unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, CLOSE_RANGE_CLOEXEC) }).map(drop)
}

/// openat2(2) with RESOLVE_IN_ROOT: `path` is resolved as if `root` were "/", whatever links it meets.
///
/// # Errors
/// Those of open(2); `EXDEV`, `EAGAIN` the tree changed meanwhile: try again.
pub fn open_in_root(root: BorrowedFd<'_>, path: &Path, flags: i32, mode: u32) -> Result<OwnedFd> {
    let how = OpenHow::new()
        .flags(OFlag::from_bits_retain(flags) | OFlag::O_CLOEXEC)
        .mode(Mode::from_bits_truncate(mode))
        .resolve(ResolveFlag::RESOLVE_IN_ROOT);
    nix::fcntl::openat2(root, path, how)
}

/// linkat(2) of an open file (O_TMPFILE, or deleted with a count left) to a path.
///
/// # Errors
/// `ENOENT` its count is zero and it was not made by O_TMPFILE, `EEXIST`, `EPERM`.
pub fn link_at(fd: BorrowedFd<'_>, path: &Path) -> Result<()> {
    let from = CString::new(format!("/proc/self/fd/{}", fd.as_raw_fd())).map_err(|_| Errno::EINVAL)?;
    let to = CString::new(path.as_os_str().as_bytes()).map_err(|_| Errno::EINVAL)?;
    let (cwd, follow) = (libc::AT_FDCWD, libc::AT_SYMLINK_FOLLOW);
    // SAFETY: both paths are NUL-terminated and outlive the call.
    small(unsafe { libc::linkat(cwd, from.as_ptr(), cwd, to.as_ptr(), follow) }).map(drop)
}

/// Raises this process's limit of open descriptors to the hard limit; returns it.
///
/// # Errors
/// Those of setrlimit(2).
pub fn raise_nofile_limit() -> Result<u64> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    Ok(hard)
}

/// flock(2) without waiting: exclusive, or shared. The lock is the open file description's.
///
/// # Errors
/// `EWOULDBLOCK` another has it.
pub fn flock(fd: BorrowedFd<'_>, exclusive: bool) -> Result<()> {
    let operation = libc::LOCK_NB | if exclusive { libc::LOCK_EX } else { libc::LOCK_SH };
    // SAFETY: flock takes two integers.
    small(unsafe { libc::flock(fd.as_raw_fd(), operation) }).map(drop)
}

/// The kernel's `struct flock`, as fcntl(2) reads it: a lock of `length` bytes from `start` (0 = to the end).
#[must_use]
pub fn lock_argument(write: bool, start: i64, length: i64) -> [u8; 32] {
    const _: () = assert!(size_of::<libc::flock>() == 32);
    const _: () = assert!(std::mem::offset_of!(libc::flock, l_start) == 8);
    const _: () = assert!(std::mem::offset_of!(libc::flock, l_len) == 16);
    let kind = if write { libc::F_WRLCK } else { libc::F_RDLCK };
    let mut bytes = [0; 32];
    // l_type is a short; l_whence stays SEEK_SET, which is 0.
    bytes[..2].copy_from_slice(&i16::try_from(kind).unwrap_or(0).to_ne_bytes());
    bytes[8..16].copy_from_slice(&start.to_ne_bytes());
    bytes[16..24].copy_from_slice(&length.to_ne_bytes());
    bytes
}

/// Takes a lock of the open file description (F_OFD_SETLK) without waiting.
///
/// # Errors
/// `EAGAIN` another has it, `EBADF` not opened for that.
pub fn lock_description(fd: BorrowedFd<'_>, write: bool, start: i64, length: i64) -> Result<()> {
    let argument = lock_argument(write, start, length);
    // SAFETY: this command reads one struct flock, whose form the array has; nothing is written back.
    small(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_OFD_SETLK, argument.as_ptr()) }).map(drop)
}

/// open_by_handle_at(2) with O_PATH: the file with this handle in the file system that `mount` is on.
///
/// # Errors
/// `ESTALE` there is none, `EPERM` without CAP_DAC_READ_SEARCH, `EOPNOTSUPP`, `EINVAL`.
pub fn open_handle(mount: BorrowedFd<'_>, kind: i32, handle: &[u8]) -> Result<OwnedFd> {
    /// MAX_HANDLE_SZ.
    const MOST: usize = 128;
    #[repr(C)]
    struct Handle {
        bytes: u32,
        kind: i32,
        handle: [u8; MOST],
    }
    const _: () = assert!(size_of::<Handle>() == 8 + MOST);
    let room = handle.len().min(MOST);
    let bytes = u32::try_from(handle.len()).map_err(|_| Errno::EINVAL)?;
    let mut argument = Handle { bytes, kind, handle: [0; MOST] };
    argument.handle[..room].copy_from_slice(&handle[..room]);
    if room < handle.len() {
        return Err(Errno::EINVAL);
    }
    let flags = libc::O_PATH | libc::O_CLOEXEC;
    // SAFETY: the kernel reads a file_handle of `bytes` bytes, all of which `argument` holds.
    new_fd(unsafe {
        libc::syscall(libc::SYS_open_by_handle_at, mount.as_raw_fd(), &raw const argument, flags)
    })
}
