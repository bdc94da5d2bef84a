//! What a process sets on itself: for a container's first process, between fork and exec, in this order: limits
//! and session first, then groups, users, capabilities, and the filter last.

use std::ffi::CString;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::{CAP_VERSION_3, CapHeader, Caps, prctl_ints};
use crate::abi::{Pod, small};
use crate::{Errno, Result};

/// Orphaned descendants become this process's children (PR_SET_CHILD_SUBREAPER).
///
/// # Errors
/// None known.
pub fn set_child_subreaper(on: bool) -> Result<()> {
    prctl_ints(libc::PR_SET_CHILD_SUBREAPER, u64::from(on), 0, 0, 0).map(drop)
}

/// The signal this process gets when the thread that made it ends; 0 = none. Reset by exec of a set-id file.
///
/// # Errors
/// `EINVAL` no such signal.
pub fn set_parent_death_signal(signal: u8) -> Result<()> {
    prctl_ints(libc::PR_SET_PDEATHSIG, u64::from(signal), 0, 0, 0).map(drop)
}

/// The calling thread's name, cut at 15 bytes.
///
/// # Errors
/// `EINVAL` a NUL byte in it.
pub fn set_name(name: &str) -> Result<()> {
    let name = CString::new(name).map_err(|_| Errno::EINVAL)?;
    // SAFETY: the kernel reads at most 16 bytes and stops at the NUL, which is there.
    small(unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr()) }).map(drop)
}

/// exec never gives privileges again.
///
/// # Errors
/// None known.
pub fn set_no_new_privs() -> Result<()> {
    prctl_ints(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0).map(drop)
}

/// Keep permitted capabilities when all user ids leave 0; reset by exec.
///
/// # Errors
/// `EPERM` locked by the secure bits.
pub fn set_keep_caps(on: bool) -> Result<()> {
    prctl_ints(libc::PR_SET_KEEPCAPS, u64::from(on), 0, 0, 0).map(drop)
}

/// The secure bits of this thread.
///
/// # Errors
/// None known.
pub fn securebits() -> Result<i32> {
    prctl_ints(libc::PR_GET_SECUREBITS, 0, 0, 0, 0)
}

/// Sets them.
///
/// # Errors
/// `EPERM` without CAP_SETPCAP, or a locked bit.
pub fn set_securebits(bits: u32) -> Result<()> {
    prctl_ints(libc::PR_SET_SECUREBITS, u64::from(bits), 0, 0, 0).map(drop)
}

/// capset(2) for the calling thread.
///
/// # Errors
/// `EPERM` more than is permitted.
pub fn set_caps(caps: &Caps) -> Result<()> {
    let head = CapHeader { version: CAP_VERSION_3, pid: 0 };
    let words = |set: u64| {
        let bytes = set.to_ne_bytes();
        let word = |at: usize| u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        (word(0), word(4))
    };
    let ((e0, e1), (p0, p1), (i0, i1)) =
        (words(caps.effective), words(caps.permitted), words(caps.inheritable));
    let data = [e0, p0, i0, e1, p1, i1];
    // SAFETY: version 3 reads two structures of three words from `data`.
    small(unsafe { libc::syscall(libc::SYS_capset, &raw const head, data.as_ptr()) }).map(drop)
}

/// Takes a capability out of the bounding set for good.
///
/// # Errors
/// `EPERM` without CAP_SETPCAP, `EINVAL` the kernel knows no such capability.
pub fn drop_bounding(capability: u8) -> Result<()> {
    prctl_ints(libc::PR_CAPBSET_DROP, u64::from(capability), 0, 0, 0).map(drop)
}

/// Whether the bounding set has a capability.
///
/// # Errors
/// `EINVAL` the kernel knows no such capability: the highest known is one below the first that says so.
pub fn in_bounding(capability: u8) -> Result<bool> {
    prctl_ints(libc::PR_CAPBSET_READ, u64::from(capability), 0, 0, 0).map(|answer| answer == 1)
}

/// Puts a capability, which must be permitted and inheritable, into the ambient set, or clears that set (`None`).
///
/// # Errors
/// `EPERM`.
pub fn set_ambient(capability: Option<u8>) -> Result<()> {
    const RAISE: u64 = 2;
    const CLEAR_ALL: u64 = 4;
    match capability {
        Some(capability) => prctl_ints(libc::PR_CAP_AMBIENT, RAISE, u64::from(capability), 0, 0),
        None => prctl_ints(libc::PR_CAP_AMBIENT, CLEAR_ALL, 0, 0, 0),
    }
    .map(drop)
}

/// setgroups(2) for the calling thread alone: the process must have no other.
///
/// # Errors
/// `EPERM`, `EINVAL` more than 65536.
pub fn set_groups(groups: &[u32]) -> Result<()> {
    // SAFETY: the kernel reads `groups.len()` ids.
    small(unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) }).map(drop)
}

/// setresgid(2) with one id, and so the file system id, for the calling thread alone.
///
/// # Errors
/// `EPERM`, `EINVAL` not mapped in this user namespace.
pub fn set_gid(gid: u32) -> Result<()> {
    // SAFETY: setresgid takes three integers.
    small(unsafe { libc::syscall(libc::SYS_setresgid, gid, gid, gid) }).map(drop)
}

/// setresuid(2) with one id, and so the file system id, for the calling thread alone.
///
/// # Errors
/// `EPERM`, `EINVAL` not mapped in this user namespace, `EAGAIN` RLIMIT_NPROC.
pub fn set_uid(uid: u32) -> Result<()> {
    // SAFETY: setresuid takes three integers.
    small(unsafe { libc::syscall(libc::SYS_setresuid, uid, uid, uid) }).map(drop)
}

/// umask(2); returns the former.
#[must_use]
pub fn set_umask(mask: u32) -> u32 {
    // SAFETY: umask takes one integer and cannot fail.
    unsafe { libc::umask(mask & 0o777) }
}

/// personality(2); returns the former. `0xffff_ffff` only asks.
///
/// # Errors
/// `EINVAL`.
pub fn personality(persona: u32) -> Result<i32> {
    // SAFETY: personality takes one integer; it changes how later mappings and execs are laid out.
    small(unsafe { libc::personality(u64::from(persona)) })
}

/// setsid(2): a new session without a terminal.
///
/// # Errors
/// `EPERM` a process group leader already.
pub fn new_session() -> Result<()> {
    nix::unistd::setsid().map(drop)
}

/// Makes a terminal the session's controlling one (TIOCSCTTY); `steal` takes it from another session.
///
/// # Errors
/// `EPERM` no session leader, or taken.
pub fn set_controlling_terminal(terminal: BorrowedFd<'_>, steal: bool) -> Result<()> {
    // SAFETY: this request takes an integer.
    small(unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSCTTY, i32::from(steal)) }).map(drop)
}

/// One classic BPF instruction (`struct sock_filter`).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instruction {
    /// Operation.
    pub code: u16,
    /// Jump if true.
    pub jt: u8,
    /// Jump if false.
    pub jf: u8,
    /// Operand.
    pub k: u32,
}
const _: () = assert!(size_of::<Instruction>() == 8);
// SAFETY: integers without gaps (asserted by the size).
unsafe impl Pod for Instruction {}

/// `struct sock_fprog`.
#[repr(C)]
struct Program {
    len: u16,
    filter: *const Instruction,
}
const _: () = assert!(size_of::<Program>() == 16);
const _: () = assert!(std::mem::offset_of!(Program, filter) == 8);

/// Adds a seccomp filter to the calling thread (SECCOMP_SET_MODE_FILTER), from the raw bytes of its
/// instructions. `flags`: SECCOMP_FILTER_FLAG_*, but no listener.
///
/// # Errors
/// `EACCES` without CAP_SYS_ADMIN or no_new_privs, `EINVAL` the filter is not valid, `ENOMEM`.
pub fn add_seccomp_filter(raw: &[u8], flags: u32) -> Result<()> {
    const SECCOMP_SET_MODE_FILTER: u32 = 1;
    const SECCOMP_FILTER_FLAG_NEW_LISTENER: u32 = 1 << 3;
    if !raw.len().is_multiple_of(size_of::<Instruction>()) || flags & SECCOMP_FILTER_FLAG_NEW_LISTENER != 0 {
        return Err(Errno::EINVAL);
    }
    let filter: Vec<Instruction> =
        raw.chunks_exact(size_of::<Instruction>()).map(crate::abi::from_bytes).collect();
    let len = u16::try_from(filter.len()).map_err(|_| Errno::EINVAL)?;
    let program = Program { len, filter: filter.as_ptr() };
    // SAFETY: `program` names `len` instructions that outlive the call; the kernel copies them.
    small(unsafe { libc::syscall(libc::SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &raw const program) })
        .map(drop)
}

/// Gives every signal its default action and unblocks all: what a program that is executed may expect. Ignored
/// signals and the mask are inherited through execve(2) otherwise.
///
/// # Errors
/// Those of rt_sigprocmask(2).
pub fn default_signals() -> Result<()> {
    for signal in 1..=64 {
        // `struct kernel_sigaction` of zeros: SIG_DFL, no flags, empty mask.
        let default = [0_u64; 4];
        let none: *mut u64 = std::ptr::null_mut();
        // SAFETY: rt_sigaction reads the four words of `default` and writes nothing. It refuses SIGKILL and
        // SIGSTOP, which have no other action.
        let _ = unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, default.as_ptr(), none, 8_usize) };
    }
    let empty = 0_u64;
    let none: *mut u64 = std::ptr::null_mut();
    let set: *const u64 = &raw const empty;
    // SAFETY: rt_sigprocmask reads one word and writes nothing.
    let ret = unsafe { libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, set, none, 8_usize) };
    Errno::result(ret).map(drop)
}

/// The calling thread makes files as another user while this lives, with the capabilities that it had.
///
/// A file system that was mounted in a user namespace takes new files of mapped owners alone (`EOVERFLOW`), whatever
/// the capabilities of who makes them. Dropping it brings the old ids back. The thread must not become another
/// user meanwhile.
#[derive(Debug)]
pub struct FileUser {
    uid: u32,
    gid: u32,
    dumpable: i32,
    // Ids belong to the thread that set them.
    not_send: std::marker::PhantomData<*const ()>,
}

impl FileUser {
    /// setfsuid(2) and setfsgid(2) for the calling thread.
    ///
    /// # Errors
    /// `EPERM` without CAP_SETUID and CAP_SETGID. Nothing has changed then.
    pub fn set(uid: u32, gid: u32) -> Result<Self> {
        let caps = super::caps(0)?;
        let dumpable = prctl_ints(libc::PR_GET_DUMPABLE, 0, 0, 0, 0)?;
        let old_gid = set_file_id(libc::SYS_setfsgid, gid);
        let old_uid = set_file_id(libc::SYS_setfsuid, uid);
        let user = Self { uid: old_uid, gid: old_gid, dumpable, not_send: std::marker::PhantomData };
        // Neither call says whether it worked: an id that is none changes nothing and answers the present one.
        let now = (set_file_id(libc::SYS_setfsuid, u32::MAX), set_file_id(libc::SYS_setfsgid, u32::MAX));
        if now != (uid, gid) {
            return Err(Errno::EPERM);
        }
        // Leaving user 0 took the capabilities over files out of force.
        set_caps(&caps)?;
        user.stay_dumpable();
        Ok(user)
    }

    /// A change of ids takes the right to be dumped from the whole process.
    fn stay_dumpable(&self) {
        if self.dumpable == 1 {
            let _ = prctl_ints(libc::PR_SET_DUMPABLE, 1, 0, 0, 0);
        }
    }
}

impl Drop for FileUser {
    fn drop(&mut self) {
        let caps = super::caps(0);
        set_file_id(libc::SYS_setfsuid, self.uid);
        set_file_id(libc::SYS_setfsgid, self.gid);
        // They were in force a moment ago and are permitted.
        if let Ok(caps) = caps {
            let _ = set_caps(&caps);
        }
        self.stay_dumpable();
    }
}

/// setfsuid(2) or setfsgid(2); answers the id before.
fn set_file_id(call: i64, id: u32) -> u32 {
    // SAFETY: both calls take one integer and change the credentials of the calling thread only.
    let before = unsafe { libc::syscall(call, id) };
    u32::try_from(before & 0xffff_ffff).unwrap_or(u32::MAX)
}
