//! System calls that give a skeleton the attributes of a process or thread.
//!
//! Pure: from an image to lists of calls. The order within each list matters and is explained there.

use image::state::{Creds, PosixTimer, ProcessState, RLimit, SeccompFilter, Thread};
use image::{Pid, Refusal, Subject};
use libc::{
    SYS_capset, SYS_chdir, SYS_chroot, SYS_personality, SYS_prctl, SYS_prlimit64, SYS_rseq, SYS_rt_sigaction,
    SYS_rt_sigqueueinfo, SYS_rt_tgsigqueueinfo, SYS_sched_setaffinity, SYS_seccomp, SYS_set_robust_list,
    SYS_set_tid_address, SYS_setfsgid, SYS_setfsuid, SYS_setgroups, SYS_setitimer, SYS_setresgid,
    SYS_setresuid, SYS_sigaltstack, SYS_timer_create, SYS_timer_settime, SYS_umask,
};

use super::policies;
use super::script::{Block, Call, call};
use super::switches;

const SIGKILL: u64 = 9;
const SIGSTOP: u64 = 19;
const SIG_IGN: u64 = 1;
/// `sizeof(sigset_t)` of the kernel.
const SIGSET: u64 = 8;
const PR_SET_MDWE: i32 = 65;
const PR_SET_MEMORY_MERGE: i32 = 67;
const PR_TIMER_CREATE_RESTORE_IDS: i32 = 77;
pub(crate) const SECBIT_NO_SETUID_FIXUP: u64 = 4;
const SS_ONSTACK: i32 = 1;
const SS_DISABLE: i32 = 2;
/// _LINUX_CAPABILITY_VERSION_3.
/// `RLIMIT_SIGPENDING`.
const SIGPENDING: u32 = 11;
const CAPABILITY_VERSION: u32 = 0x2008_0522;

/// Signal handlers. Whatever was queued by the making of skeletons (SIGCHLD of helpers) is thrown away: a
/// signal that becomes ignored loses what is pending of it.
pub(crate) fn signal_handlers(process: &ProcessState) -> Vec<Call> {
    let mut calls = Vec::with_capacity(2 * process.sigactions.len());
    for (signal, action) in (1u64..).zip(&process.sigactions) {
        if signal == SIGKILL || signal == SIGSTOP {
            continue;
        }
        let ignore = Block::words(&[SIG_IGN, 0, 0, 0]);
        calls.push(call!("rt_sigaction", SYS_rt_sigaction, signal, ignore, 0, SIGSET));
        let own = Block::words(&[action.handler, action.flags, action.restorer, action.mask]);
        calls.push(call!("rt_sigaction", SYS_rt_sigaction, signal, own, 0, SIGSET));
    }
    calls
}

/// What belongs to the process and needs no capability, or must come before they go: limits, directories. `first`: it is
/// the first one that has its directories.
pub(crate) fn process_before_credentials(process: &ProcessState, first: bool) -> Vec<Call> {
    let mut calls = Vec::new();
    let later = has_pending(process);
    for (resource, limit) in
        (0..).zip(&process.rlimits).filter(|(resource, _)| !later || *resource != SIGPENDING)
    {
        calls.push(set_limit(resource, *limit));
    }
    // One that was deleted is set by its descriptor.
    let cwd = process.deleted_cwd.is_none().then_some(process.cwd.as_str());
    if first {
        calls.extend(directories(process.umask, cwd, &process.root));
    }
    if process.child_subreaper {
        calls.push(prctl("PR_SET_CHILD_SUBREAPER", libc::PR_SET_CHILD_SUBREAPER, 1));
    }
    let (on, flags) = (process.thp_disable & 1, process.thp_disable & !1);
    if process.memory_merge {
        calls.push(prctl("PR_SET_MEMORY_MERGE", PR_SET_MEMORY_MERGE, 1));
    }
    calls.push(call!("PR_SET_THP_DISABLE", SYS_prctl, libc::PR_SET_THP_DISABLE, on, flags, 0, 0));
    calls
}

fn set_limit(resource: u32, limit: RLimit) -> Call {
    let value = Block::words(&[limit.soft, limit.hard]);
    call!("prlimit64", SYS_prlimit64, 0, resource, value, 0)
}

fn has_pending(process: &ProcessState) -> bool {
    !process.pending.is_empty() || process.threads.iter().any(|thread| !thread.pending.is_empty())
}

/// The limit of signals that wait, when all are queued: there may be more.
pub(crate) fn limit_of_signals(process: &ProcessState) -> Option<Call> {
    let limit = process.rlimits.get(SIGPENDING as usize).filter(|_| has_pending(process));
    limit.map(|limit| set_limit(SIGPENDING, *limit))
}

/// umask(2) and directories, of a process or of a thread that has its own. Both are paths in the container's root.
fn directories(umask: u32, cwd: Option<&str>, root: &str) -> Vec<Call> {
    let mut calls = vec![call!("umask", SYS_umask, umask)];
    // The working directory may lie outside of the root directory.
    calls.extend(cwd.map(|cwd| call!("chdir", SYS_chdir, Block::text(cwd))));
    if root != "/" && !root.is_empty() {
        calls.push(call!("chroot", SYS_chroot, Block::text(root)));
    }
    calls
}

/// What belongs to the process and comes last of all, when every thread has its credentials.
pub(crate) fn process_after_credentials(process: &ProcessState) -> Vec<Call> {
    let mut calls = Vec::new();
    if process.mdwe != 0 {
        calls.push(prctl("PR_SET_MDWE", PR_SET_MDWE, u64::from(process.mdwe)));
    }
    // A change of credentials resets it. 2 is what such a change leaves; it cannot be set.
    if process.dumpable < 2 {
        calls.push(prctl("PR_SET_DUMPABLE", libc::PR_SET_DUMPABLE, u64::from(process.dumpable)));
    }
    for (which, timer) in process.itimers.iter().enumerate().filter(|(_, t)| t.value_us != 0) {
        let part = |us: u64| [us / 1_000_000, us % 1_000_000];
        let value = [part(timer.interval_us), part(timer.value_us)].concat();
        calls.push(call!("setitimer", SYS_setitimer, which, Block::words(&value), 0));
    }
    calls
}

/// The name of a thread.
pub(crate) fn name(comm: &[u8]) -> Call {
    let mut comm = comm.to_vec();
    comm.resize(16, 0);
    call!("PR_SET_NAME", SYS_prctl, libc::PR_SET_NAME, Block::new(comm), 0, 0, 0)
}

pub(crate) fn prctl(what: &'static str, option: i32, value: u64) -> Call {
    call!(what, SYS_prctl, option, value, 0, 0, 0)
}

/// POSIX timers with the ids that the program knows. Threads must exist.
/// Takes PR_TIMER_CREATE_RESTORE_IDS (Linux 6.15).
pub(crate) fn posix_timers(timers: &[PosixTimer]) -> Vec<Call> {
    if timers.is_empty() {
        return Vec::new();
    }
    let mut calls = vec![prctl("PR_TIMER_CREATE_RESTORE_IDS", PR_TIMER_CREATE_RESTORE_IDS, 1)];
    for timer in timers {
        let mut event = [0u8; 64];
        event[..8].copy_from_slice(&timer.value.to_le_bytes());
        event[8..12].copy_from_slice(&timer.signal.to_le_bytes());
        event[12..16].copy_from_slice(&timer.notify.to_le_bytes());
        event[16..20].copy_from_slice(&timer.tid.to_le_bytes());
        let id = Block::new(timer.id.to_le_bytes());
        calls.push(call!("timer_create", SYS_timer_create, timer.clock, Block::new(event), id));
    }
    calls.push(prctl("PR_TIMER_CREATE_RESTORE_IDS", PR_TIMER_CREATE_RESTORE_IDS, 0));
    calls
}

/// Arms the timers: as late as possible.
pub(crate) fn arm_posix_timers(timers: &[PosixTimer]) -> Vec<Call> {
    let armed = timers.iter().filter(|t| t.remaining_ns != 0);
    armed
        .map(|timer| {
            let part = |ns: u64| [ns / 1_000_000_000, ns % 1_000_000_000];
            let value = [part(timer.interval_ns), part(timer.remaining_ns)].concat();
            call!("timer_settime", SYS_timer_settime, timer.id, 0, Block::words(&value), 0)
        })
        .collect()
}

/// Signals that wait for the whole process. Must be made by its first thread: the kernel takes its own
/// `si_code` values from the receiver alone.
///
/// # Errors
/// A pending SIGKILL or SIGSTOP cannot be queued.
pub(crate) fn process_signals(process: &ProcessState) -> Result<Vec<Call>, Refusal> {
    let own = process.threads.first().map_or(process.pid, Thread::own_tid);
    let make = |signal: i32, info: Block| call!("rt_sigqueueinfo", SYS_rt_sigqueueinfo, own, signal, info);
    process.pending.iter().map(|i| queued(process.pid, &i.0).map(|(s, b)| make(s, b))).collect()
}

/// Signals that wait for one thread; made by itself.
///
/// # Errors
/// As [`process_signals`].
pub(crate) fn thread_signals(process: &ProcessState, thread: &Thread) -> Result<Vec<Call>, Refusal> {
    let pid = process.pid;
    let own = process.threads.first().map_or(pid, Thread::own_tid);
    let make = |signal: i32, info: Block| {
        call!("rt_tgsigqueueinfo", SYS_rt_tgsigqueueinfo, own, thread.own_tid(), signal, info)
    };
    thread.pending.iter().map(|i| queued(pid, &i.0).map(|(s, b)| make(s, b))).collect()
}

fn queued(pid: Pid, info: &[u8]) -> Result<(i32, Block), Refusal> {
    let signal = info.first_chunk::<4>().map_or(0, |b| i32::from_le_bytes(*b));
    if info.len() != 128 || signal <= 0 || signal == 9 || signal == 19 {
        return Err(Refusal {
            pid,
            subject: Subject::Process,
            reason: format!("signal {signal} is pending and cannot be queued again"),
            way_out: "try again when it has been delivered".to_owned(),
        });
    }
    Ok((signal, Block::new(info)))
}

/// Attributes of a thread that need no capability later on.
pub(crate) fn thread_before_credentials(process: &ProcessState, thread: &Thread) -> Vec<Call> {
    let mut calls = vec![call!("set_tid_address", SYS_set_tid_address, thread.clear_child_tid)];
    if let Some(own) = &thread.directories
        && thread.shared.is_first_of_directories(thread.tid)
    {
        calls.extend(directories(own.umask, Some(&own.cwd), &own.root));
    }
    if let Some(list) = thread.robust_list {
        calls.push(call!("set_robust_list", SYS_set_robust_list, list.head, list.len));
    }
    // Always: the program that became the first process may have set one of its own, whose memory is gone.
    let stack = thread.altstack;
    let words = if stack.flags & SS_DISABLE == 0 && stack.size != 0 {
        [stack.sp, u64::from((stack.flags & !SS_ONSTACK).cast_unsigned()), stack.size]
    } else {
        [0, u64::from(SS_DISABLE.cast_unsigned()), 0]
    };
    calls.push(call!("sigaltstack", SYS_sigaltstack, Block::words(&words), 0));
    if let Some(rseq) = thread.rseq {
        calls.push(call!("rseq", SYS_rseq, rseq.address, rseq.size, 0, rseq.signature));
    }
    calls.push(name(&thread.comm));
    if !thread.affinity.is_empty() {
        let len = thread.affinity.len().next_multiple_of(8);
        let mut mask = thread.affinity.clone();
        mask.resize(len, 0);
        calls.push(call!("sched_setaffinity", SYS_sched_setaffinity, 0, len, Block::new(mask)));
    }
    if thread.timer_slack_ns != 0 {
        calls.push(prctl("PR_SET_TIMERSLACK", libc::PR_SET_TIMERSLACK, thread.timer_slack_ns));
    }
    calls.push(call!("personality", SYS_personality, process.personality));
    calls.extend(thread.policy.as_ref().map(policies::own));
    calls.extend(switches::before_credentials(&thread.switches));
    calls
}

/// What skeletons may do.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Capabilities {
    /// The highest capability that this kernel knows.
    pub(crate) last: u32,
    /// Those that skeletons have, permitted.
    pub(crate) held: u64,
}

/// Credentials, no_new_privs and seccomp filters of a thread, in the one order that works.
///
/// Inheritable capabilities may exceed the bounding set, so they come before it shrinks. User ids change
/// under NO_SETUID_FIXUP, so that no capability is lost on the way. A filter without no_new_privs takes
/// CAP_SYS_ADMIN, so it comes before the last capset(2); PTRACE_O_SUSPEND_SECCOMP keeps it from acting.
pub(crate) fn credentials(creds: &Creds, filters: &Filters<'_>, kernel: &Capabilities) -> Vec<Call> {
    let Capabilities { last: last_cap, held } = *kernel;
    let mut calls = vec![capset("capset for restore", held, held, creds.cap_inheritable)];
    for cap in (0..=last_cap).filter(|c| creds.cap_bounding & (1 << c) == 0) {
        calls.push(prctl("PR_CAPBSET_DROP", libc::PR_CAPBSET_DROP, u64::from(cap)));
    }
    let groups: Vec<u8> = creds.groups.iter().flat_map(|g| g.to_le_bytes()).collect();
    calls.push(call!("setgroups", SYS_setgroups, creds.groups.len(), Block::new(groups)));
    calls.push(prctl("PR_SET_SECUREBITS", libc::PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP));
    let [gid, egid, sgid, fsgid] = creds.gid;
    let [uid, euid, suid, fsuid] = creds.uid;
    calls.push(call!("setresgid", SYS_setresgid, gid, egid, sgid));
    calls.push(call!("setfsgid", SYS_setfsgid, fsgid));
    calls.push(call!("setresuid", SYS_setresuid, uid, euid, suid));
    calls.push(call!("setfsuid", SYS_setfsuid, fsuid));
    let ambient = |what, op: i32, cap: u64| call!(what, SYS_prctl, libc::PR_CAP_AMBIENT, op, cap, 0, 0);
    calls.push(ambient("PR_CAP_AMBIENT_CLEAR_ALL", libc::PR_CAP_AMBIENT_CLEAR_ALL, 0));
    for cap in (0..=last_cap).filter(|c| creds.cap_ambient & (1 << c) != 0) {
        calls.push(ambient("PR_CAP_AMBIENT_RAISE", libc::PR_CAP_AMBIENT_RAISE, u64::from(cap)));
    }
    calls.push(prctl("PR_SET_SECUREBITS", libc::PR_SET_SECUREBITS, u64::from(creds.securebits)));
    if creds.no_new_privs {
        calls.push(prctl("PR_SET_NO_NEW_PRIVS", libc::PR_SET_NO_NEW_PRIVS, 1));
    }
    calls.extend(filters.calls());
    calls.push(capset("capset", creds.cap_effective, creds.cap_permitted, creds.cap_inheritable));
    calls
}

fn capset(what: &'static str, effective: u64, permitted: u64, inheritable: u64) -> Call {
    let mut header = CAPABILITY_VERSION.to_le_bytes().to_vec();
    header.extend_from_slice(&0u32.to_le_bytes());
    let half = |set: u64, shift: u32| ((set >> shift) & 0xffff_ffff).to_le_bytes()[..4].to_vec();
    let data: Vec<u8> = [0, 32]
        .into_iter()
        .flat_map(|shift| [effective, permitted, inheritable].map(|set| half(set, shift)).concat())
        .collect();
    call!(what, SYS_capset, Block::new(header), Block::new(data))
}

/// The seccomp state that a thread sets.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Filters<'a> {
    /// 0 = none, 1 = strict, 2 = filters.
    pub(crate) mode: u8,
    /// In the order of installation.
    pub(crate) list: &'a [SeccompFilter],
    /// For all threads of the process at once, so that they share one history of filters, which a later
    /// SECCOMP_FILTER_FLAG_TSYNC of the program demands.
    pub(crate) all_threads: bool,
}

impl Filters<'_> {
    /// A thread that sets none.
    pub(crate) const NONE: Self = Filters { mode: 0, list: &[], all_threads: false };

    fn calls(&self) -> Vec<Call> {
        const SET_MODE_FILTER: i32 = 1;
        const TSYNC: u64 = 1;
        if self.mode == 1 {
            return vec![prctl("PR_SET_SECCOMP", libc::PR_SET_SECCOMP, 1)];
        }
        let flags = |f: &SeccompFilter| f.flags | if self.all_threads { TSYNC } else { 0 };
        self.list
            .iter()
            .map(|f| {
                let program =
                    Block::words(&[(f.program.len() / 8) as u64, 0]).link(8, Block::new(f.program.clone()));
                call!("seccomp", SYS_seccomp, SET_MODE_FILTER, flags(f), program)
            })
            .collect()
    }
}

/// What a thread sets after its credentials, which reset it. Always: a first process that was made to die with
/// its maker must not do so any more.
pub(crate) fn thread_after_credentials(thread: &Thread) -> Vec<Call> {
    let mut calls =
        vec![call!("PR_SET_PDEATHSIG", SYS_prctl, libc::PR_SET_PDEATHSIG, thread.pdeath_signal, 0, 0, 0)];
    calls.extend(switches::after_credentials(&thread.switches));
    calls
}

/// Whether every thread has the same filters.
pub(crate) fn one_history(process: &ProcessState) -> bool {
    let mut threads = process.threads.iter();
    let Some(first) = threads.next() else { return true };
    threads.all(|t| (t.seccomp_mode, &t.seccomp_filters) == (first.seccomp_mode, &first.seccomp_filters))
}
