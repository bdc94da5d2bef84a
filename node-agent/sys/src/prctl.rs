//! Attributes of tasks: what can be read of another one from outside, and what a process sets on itself.
//!
//! The second half serves a container's first process: single-threaded, between fork and exec.

pub mod own;

use std::ops::BitOr;

use crate::abi::{Pod, bytes_of_mut, small, zeroed};
use crate::{Errno, Result};

/// Scheduling policy and its parameters (`struct sched_attr`, its first 56 bytes).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SchedAttr {
    /// Bytes of the structure; set by the calls here.
    pub size: u32,
    /// SCHED_OTHER 0, FIFO 1, RR 2, BATCH 3, IDLE 5, DEADLINE 6.
    pub policy: u32,
    /// SCHED_FLAG_RESET_ON_FORK 1, ...
    pub flags: u64,
    /// Nice value, for OTHER and BATCH.
    pub nice: i32,
    /// Static priority, for FIFO and RR.
    pub priority: u32,
    /// DEADLINE: run time, nanoseconds (for OTHER: the slice asked for).
    pub runtime: u64,
    /// DEADLINE: deadline, nanoseconds.
    pub deadline: u64,
    /// DEADLINE: period, nanoseconds.
    pub period: u64,
    /// Utilization clamp, least.
    pub util_min: u32,
    /// Utilization clamp, most.
    pub util_max: u32,
}
const _: () = assert!(size_of::<SchedAttr>() == 56);
const _: () = assert!(std::mem::offset_of!(SchedAttr, runtime) == 24);
// SAFETY: integers, each at an offset that its size divides, without gaps (asserted by the size).
unsafe impl Pod for SchedAttr {}

/// sched_getattr(2).
///
/// # Errors
/// `ESRCH`.
pub fn sched_attr(tid: i32) -> Result<SchedAttr> {
    let mut attr = SchedAttr::default();
    // SAFETY: the kernel writes at most the size given to `attr`.
    small(unsafe { libc::syscall(libc::SYS_sched_getattr, tid, &raw mut attr, size_of::<SchedAttr>(), 0) })?;
    Ok(attr)
}

/// sched_setattr(2).
///
/// # Errors
/// `EPERM` realtime or a lower nice value without CAP_SYS_NICE, `EINVAL`, `EBUSY`, `ESRCH`.
pub fn set_sched_attr(tid: i32, attr: &SchedAttr) -> Result<()> {
    let attr = SchedAttr { size: 56, ..*attr };
    // SAFETY: the kernel reads the bytes that `size` names.
    small(unsafe { libc::syscall(libc::SYS_sched_setattr, tid, &raw const attr, 0) }).map(drop)
}

/// sched_getaffinity(2): bit N of the answer = CPU N, as the kernel's words.
///
/// # Errors
/// `ESRCH`.
pub fn affinity(tid: i32) -> Result<Vec<u64>> {
    let mut mask = [0_u64; 128];
    // SAFETY: the kernel writes at most the size given to `mask`.
    let len = small(unsafe {
        libc::syscall(libc::SYS_sched_getaffinity, tid, size_of_val(&mask), mask.as_mut_ptr())
    })?;
    let words = usize::try_from(len).unwrap_or(0) / 8;
    Ok(mask[..words].to_vec())
}

/// sched_setaffinity(2).
///
/// # Errors
/// `EINVAL` none of those CPUs is allowed here, `EPERM`, `ESRCH`.
pub fn set_affinity(tid: i32, mask: &[u64]) -> Result<()> {
    // SAFETY: the kernel reads the bytes of `mask`.
    small(unsafe { libc::syscall(libc::SYS_sched_setaffinity, tid, size_of_val(mask), mask.as_ptr()) })
        .map(drop)
}

/// ioprio_get(2) of a thread: class << 13 | level; 0 = from the nice value.
///
/// # Errors
/// `ESRCH`.
pub fn ioprio(tid: i32) -> Result<i32> {
    const IOPRIO_WHO_PROCESS: i32 = 1;
    // SAFETY: ioprio_get takes two integers.
    small(unsafe { libc::syscall(libc::SYS_ioprio_get, IOPRIO_WHO_PROCESS, tid) })
}

/// ioprio_set(2) of a thread.
///
/// # Errors
/// `EPERM` the realtime class without privilege, `ESRCH`.
pub fn set_ioprio(tid: i32, value: i32) -> Result<()> {
    const IOPRIO_WHO_PROCESS: i32 = 1;
    // SAFETY: ioprio_set takes three integers.
    small(unsafe { libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, tid, value) }).map(drop)
}

/// Nice value of a thread, -20 to 19 (getpriority(2)).
///
/// # Errors
/// `ESRCH`.
pub fn nice(tid: i32) -> Result<i32> {
    // The system call itself answers 20 - nice, so that no value looks like an error.
    // SAFETY: getpriority takes two integers.
    small(unsafe { libc::syscall(libc::SYS_getpriority, libc::PRIO_PROCESS, tid) }).map(|value| 20 - value)
}

/// Sets it (setpriority(2)).
///
/// # Errors
/// `EACCES` a lower one without CAP_SYS_NICE, `EPERM`, `ESRCH`.
pub fn set_nice(tid: i32, value: i32) -> Result<()> {
    // SAFETY: setpriority takes three integers.
    small(unsafe { libc::syscall(libc::SYS_setpriority, libc::PRIO_PROCESS, tid, value) }).map(drop)
}

/// get_robust_list(2): (head address, length) in that thread's address space; (0, _) = none.
///
/// # Errors
/// `ESRCH`, `EPERM` no ptrace access.
pub fn robust_list(tid: i32) -> Result<(u64, u64)> {
    let (mut head, mut len) = (0_u64, 0_u64);
    // SAFETY: the kernel writes one word to each of the two.
    small(unsafe { libc::syscall(libc::SYS_get_robust_list, tid, &raw mut head, &raw mut len) })?;
    Ok((head, len))
}

/// A resource limit; `u64::MAX` = none.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rlimit {
    /// Soft limit.
    pub soft: u64,
    /// Hard limit.
    pub hard: u64,
}
const _: () = assert!(size_of::<Rlimit>() == 16);
// SAFETY: two 64-bit integers.
unsafe impl Pod for Rlimit {}

/// Whether timer_create(2) can be told which id to give (`PR_TIMER_CREATE_RESTORE_IDS`, Linux 6.15).
#[must_use]
pub fn has_timer_restore_ids() -> bool {
    const PR_TIMER_CREATE_RESTORE_IDS: i32 = 77;
    const GET: u64 = 2;
    prctl_ints(PR_TIMER_CREATE_RESTORE_IDS, GET, 0, 0, 0).is_ok()
}

/// Number of resources (RLIMIT_NLIMITS).
pub const RLIMITS: u32 = 16;

/// prlimit(2), reading. 0 = the caller.
///
/// # Errors
/// `EPERM` another user's process without CAP_SYS_RESOURCE, `ESRCH`.
pub fn rlimit(pid: i32, resource: u32) -> Result<Rlimit> {
    let mut limit = zeroed::<Rlimit>();
    let new: *const Rlimit = std::ptr::null();
    // SAFETY: the kernel writes one rlimit64 to `limit`; a null pointer sets nothing.
    small(unsafe { libc::syscall(libc::SYS_prlimit64, pid, resource, new, &raw mut limit) })?;
    Ok(limit)
}

/// prlimit(2), setting. 0 = the caller.
///
/// # Errors
/// `EPERM` raising a hard limit without CAP_SYS_RESOURCE, `EINVAL`, `ESRCH`.
pub fn set_rlimit(pid: i32, resource: u32, limit: Rlimit) -> Result<()> {
    let old: *mut Rlimit = std::ptr::null_mut();
    // SAFETY: the kernel reads one rlimit64 from `limit`; a null pointer wants nothing back.
    small(unsafe { libc::syscall(libc::SYS_prlimit64, pid, resource, &raw const limit, old) }).map(drop)
}

/// Capability sets of a thread, as bit N = capability N.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Caps {
    /// In force.
    pub effective: u64,
    /// May be put in force.
    pub permitted: u64,
    /// Kept across exec of files with inheritable capabilities.
    pub inheritable: u64,
}

/// `struct __user_cap_header_struct`, version 3.
#[repr(C)]
struct CapHeader {
    version: u32,
    pid: i32,
}
const _: () = assert!(size_of::<CapHeader>() == 8);
const CAP_VERSION_3: u32 = 0x2008_0522;

/// capget(2). 0 = the calling thread.
///
/// # Errors
/// `ESRCH`.
pub fn caps(tid: i32) -> Result<Caps> {
    let mut head = CapHeader { version: CAP_VERSION_3, pid: tid };
    // Two times effective, permitted, inheritable: low words, then high words.
    let mut data = [0_u32; 6];
    // SAFETY: version 3 writes two structures of three words to `data`, and may correct `head`.
    small(unsafe { libc::syscall(libc::SYS_capget, &raw mut head, bytes_of_mut(&mut data).as_mut_ptr()) })?;
    let join = |low: usize| u64::from(data[low]).bitor(u64::from(data[low + 3]) << 32);
    Ok(Caps { effective: join(0), permitted: join(1), inheritable: join(2) })
}

/// prctl(2) with integers, for the operations that take no pointer.
fn prctl_ints(option: i32, arg2: u64, arg3: u64, arg4: u64, arg5: u64) -> Result<i32> {
    // SAFETY: every option that this is called with takes integers only.
    small(unsafe { libc::prctl(option, arg2, arg3, arg4, arg5) })
}

/// Whether a value is an errno that means "this kernel does not know that".
#[must_use]
pub const fn unknown_to_kernel(error: Errno) -> bool {
    matches!(error, Errno::EINVAL | Errno::ENOSYS | Errno::EOPNOTSUPP)
}
