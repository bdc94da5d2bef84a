//! clone3(2): processes with chosen ids, namespaces and cgroup.

use std::fs;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::abi::new_fd;
use crate::{Errno, Result};

/// What the new process is to be.
#[derive(Clone, Copy, Debug, Default)]
pub struct Spec<'a> {
    /// CLONE_NEW* flags, CLONE_PARENT. Flags that share memory or descriptors with this process are refused.
    pub flags: u64,
    /// Its pid in each pid namespace, innermost first; empty = the kernel chooses. Needs CAP_SYS_ADMIN or
    /// CAP_CHECKPOINT_RESTORE in the namespaces' owners.
    pub set_tid: &'a [i32],
    /// The cgroup v2 directory it is born in.
    pub cgroup: Option<BorrowedFd<'a>>,
}

/// Whom a paused child runs as: one user and one group, without any capability, in a user namespace.
#[derive(Clone, Copy, Debug)]
pub struct Identity<'a> {
    /// `None` = this process's own.
    pub user_namespace: Option<BorrowedFd<'a>>,
    /// Its real, effective and saved user, as the namespace numbers it.
    pub uid: u32,
    /// The same of its group.
    pub gid: u32,
}

/// A process that was made here.
#[derive(Debug)]
pub struct Child {
    /// Its pid as this process sees it.
    pub pid: i32,
    /// Names it without doubt.
    pub pidfd: OwnedFd,
}

/// `struct clone_args`, version 2.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}
const _: () = assert!(size_of::<CloneArgs>() == 88);

const CLONE_PIDFD: u64 = 0x1000;
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
/// CLONE_VM, FS, FILES, SIGHAND, VFORK, THREAD, SETTLS, PARENT_SETTID, CHILD_CLEARTID, CHILD_SETTID.
const SHARING: u64 =
    0x100 | 0x200 | 0x400 | 0x800 | 0x4000 | 0x1_0000 | 0x8_0000 | 0x10_0000 | 0x20_0000 | 0x100_0000;

/// Answer of [`clone3`].
enum Side {
    Parent(Child),
    Child,
}

/// clone3(2) without shared memory.
///
/// # Safety
/// When this process has other threads, the child must run only code that is safe in a signal handler: other
/// threads' locks are held for ever in its copy of the memory.
unsafe fn clone3(spec: &Spec<'_>) -> Result<Side> {
    if spec.flags & SHARING != 0 {
        return Err(Errno::EINVAL);
    }
    let mut pidfd: RawFd = -1;
    let mut args = CloneArgs {
        flags: spec.flags | CLONE_PIDFD,
        pidfd: (&raw mut pidfd).expose_provenance() as u64,
        exit_signal: libc::SIGCHLD.unsigned_abs().into(),
        set_tid: if spec.set_tid.is_empty() { 0 } else { spec.set_tid.as_ptr().expose_provenance() as u64 },
        set_tid_size: spec.set_tid.len() as u64,
        ..CloneArgs::default()
    };
    if let Some(cgroup) = spec.cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = u64::from(cgroup.as_raw_fd().unsigned_abs());
    }
    // SAFETY: `args` and what it points to live across the call; without CLONE_VM the child has a copy of
    // everything; what it may do is the caller's promise.
    let answer = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<CloneArgs>()) };
    match Errno::result(answer)? {
        0 => Ok(Side::Child),
        pid => {
            let pid = i32::try_from(pid).map_err(|_| Errno::EOVERFLOW)?;
            Ok(Side::Parent(Child { pid, pidfd: new_fd(pidfd)? }))
        }
    }
}

/// All signals blocked until this is dropped.
struct Blocked(libc::sigset_t);

impl Blocked {
    fn all() -> Self {
        let mut full = std::mem::MaybeUninit::<libc::sigset_t>::zeroed();
        // SAFETY: the pointer is to a sigset_t, which the call initialises.
        unsafe { libc::sigfillset(full.as_mut_ptr()) };
        let mut old = std::mem::MaybeUninit::<libc::sigset_t>::zeroed();
        // SAFETY: both point to live signal sets; blocking signals for a moment breaks no invariant.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, full.as_ptr(), old.as_mut_ptr()) };
        // SAFETY: a signal set is integers: zeros are a value, and the call above has filled it.
        Self(unsafe { old.assume_init() })
    }
}

impl Drop for Blocked {
    fn drop(&mut self) {
        // SAFETY: the set is the one that pthread_sigmask returned; null asks for no old set.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.0, std::ptr::null_mut()) };
    }
}

/// Makes a process that sleeps until it is seized, killed, or this *thread* ends (PR_SET_PDEATHSIG). All its
/// signals are blocked. It keeps the descriptors `keep` under the same numbers and closes all others. Safe to
/// call from a process with many threads.
///
/// # Errors
/// `ECHILD` it was killed before it slept, `EEXIST` a pid of `set_tid` is taken (zombies count), `EPERM` no capability or too many levels, `EINVAL`
/// flags that share with this process, `EAGAIN`, `ENOMEM`, `EBUSY` or `EOPNOTSUPP` the cgroup takes no
/// process.
pub fn spawn_paused(spec: &Spec<'_>, keep: &[BorrowedFd<'_>]) -> Result<Child> {
    spawn(spec, keep, None)
}

/// As [`spawn_paused`], and the process has become somebody else by the time that this returns. Others of that identity
/// may look at it (PR_SET_DUMPABLE).
///
/// # Errors
/// As [`spawn_paused`]; `ECHILD` also when it could not become that.
pub fn spawn_paused_as(spec: &Spec<'_>, identity: &Identity<'_>) -> Result<Child> {
    spawn(spec, &[], Some(identity))
}

fn spawn(spec: &Spec<'_>, keep: &[BorrowedFd<'_>], identity: Option<&Identity<'_>>) -> Result<Child> {
    let mut numbers: Vec<RawFd> = keep.iter().map(AsRawFd::as_raw_fd).collect();
    numbers.sort_unstable();
    numbers.dedup();
    let flag = Flag::new()?;
    let blocked = Blocked::all();
    // SAFETY: the child only goes through `sleep_for_ever`: system calls and a slice that exists already.
    let side = unsafe { clone3(spec) };
    match side {
        Ok(Side::Child) => sleep_for_ever(&numbers, &flag, identity),
        Ok(Side::Parent(child)) => {
            drop(blocked);
            flag.wait(&child)?;
            Ok(child)
        }
        Err(errno) => Err(errno),
    }
}

/// A word that parent and child share: the child says that it has got to its sleep.
struct Flag(std::ptr::NonNull<u32>);

impl Flag {
    fn new() -> Result<Self> {
        // SAFETY: a new mapping at an address of the kernel's choice; it overlaps nothing.
        let page = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                4096,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if page == libc::MAP_FAILED {
            return Err(Errno::last());
        }
        std::ptr::NonNull::new(page.cast()).map(Self).ok_or(Errno::ENOMEM)
    }

    fn word(&self) -> &AtomicU32 {
        // SAFETY: the mapping is zeroed, aligned, lives as long as `self`, and is only used through atomics.
        unsafe { AtomicU32::from_ptr(self.0.as_ptr()) }
    }

    /// In the child: the last thing before it sleeps.
    fn set(&self) {
        self.word().store(1, Ordering::Release);
        // SAFETY: FUTEX_WAKE takes the word's address and touches nothing.
        unsafe { libc::syscall(libc::SYS_futex, self.0.as_ptr(), libc::FUTEX_WAKE, 1, 0, 0, 0) };
    }

    /// In the parent.
    fn wait(&self, child: &Child) -> Result<()> {
        while self.word().load(Ordering::Acquire) == 0 {
            if crate::pidfd::wait_exit(child.pidfd.as_fd(), Duration::ZERO)? {
                return Err(Errno::ECHILD);
            }
            let time = libc::timespec { tv_sec: 0, tv_nsec: 10_000_000 };
            let limit = &raw const time;
            // SAFETY: FUTEX_WAIT reads the word and the time, both alive.
            unsafe { libc::syscall(libc::SYS_futex, self.0.as_ptr(), libc::FUTEX_WAIT, 0, limit, 0, 0) };
        }
        Ok(())
    }
}

impl Drop for Flag {
    fn drop(&mut self) {
        // SAFETY: the page mapped in `new`; no reference to it outlives `self`.
        unsafe { libc::munmap(self.0.as_ptr().cast(), 4096) };
    }
}

/// The whole life of a paused child: no allocation, no lock, no panic.
fn sleep_for_ever(keep: &[RawFd], ready: &Flag, identity: Option<&Identity<'_>>) -> ! {
    if identity.is_some_and(|identity| !identity.take()) {
        // SAFETY: ends this process, which shares nothing with another.
        unsafe { libc::syscall(libc::SYS_exit_group, 1) };
    }
    // A change of users has taken it away.
    // SAFETY: prctl with integers only.
    unsafe { libc::syscall(libc::SYS_prctl, libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0) };
    let mut from: libc::c_uint = 0;
    for &fd in keep {
        let fd = fd.unsigned_abs();
        if fd > from {
            close_range(from, fd - 1);
        }
        from = fd + 1;
    }
    close_range(from, libc::c_uint::MAX);
    ready.set();
    loop {
        // SAFETY: pause takes nothing; with all signals blocked it does not return.
        unsafe { libc::syscall(libc::SYS_pause) };
    }
}

impl Identity<'_> {
    /// In the paused child: system calls alone. False when one of them failed.
    fn take(&self) -> bool {
        /// `struct __user_cap_header_struct` of version 3, of the caller.
        const HEADER: [u32; 2] = [0x2008_0522, 0];
        const NONE: [u32; 6] = [0; 6];
        let ok = |answer: libc::c_long| answer == 0;
        let entered = self.user_namespace.is_none_or(|fd| {
            // SAFETY: integers only; this process has one thread.
            ok(unsafe { libc::syscall(libc::SYS_setns, fd.as_raw_fd(), libc::CLONE_NEWUSER) })
        });
        // SAFETY: integers and null pointers only.
        entered && ok(unsafe { libc::syscall(libc::SYS_setresgid, self.gid, self.gid, self.gid) })
            // SAFETY: as above.
            && ok(unsafe { libc::syscall(libc::SYS_setresuid, self.uid, self.uid, self.uid) })
            // SAFETY: both structures have the size that this version says.
            && ok(unsafe { libc::syscall(libc::SYS_capset, HEADER.as_ptr(), NONE.as_ptr()) })
            // SAFETY: integers only.
            && ok(unsafe { libc::syscall(libc::SYS_prctl, libc::PR_SET_DUMPABLE, 1, 0, 0, 0) })
    }
}

fn close_range(first: libc::c_uint, last: libc::c_uint) {
    // SAFETY: in the paused child, which uses no descriptor but the kept ones; nothing here owns the rest.
    unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
}

/// Runs `f` in a new process, whose exit status is what `f` returns. Only for a process with one thread.
///
/// The child is a raw clone: the C library's own idea of its thread id is the parent's, so `f` must not use
/// thread-directed signals of the C library (raise, abort).
///
/// # Errors
/// `EDEADLK` this process has several threads; otherwise those of [`spawn_paused`].
pub fn fork_single(spec: &Spec<'_>, f: impl FnOnce() -> i32) -> Result<Child> {
    if thread_count() != Some(1) {
        return Err(Errno::EDEADLK);
    }
    // SAFETY: this process has one thread, so nothing in its memory is locked by another.
    let side = unsafe { clone3(spec) }?;
    match side {
        Side::Parent(child) => Ok(child),
        Side::Child => {
            let code = f();
            // SAFETY: ends this process at once; handlers and buffers belong to the parent.
            unsafe { libc::_exit(code) }
        }
    }
}

fn thread_count() -> Option<u32> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    status.lines().find_map(|line| line.strip_prefix("Threads:"))?.trim().parse().ok()
}
