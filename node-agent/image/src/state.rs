//! What is read while the container is frozen.

use serde::{Deserialize, Serialize};

use crate::files::{FdEntry, Files};
use crate::ipc::Ipc;
use crate::namespaces::Namespace;
use crate::shape::{Shape, Shared};
use crate::{Addr, Pid};

/// A whole captured container, without the contents of its memory (those are page frames).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Image {
    /// The host it was captured on.
    pub host: HostFacts,
    /// Process tree and address spaces at the freeze.
    pub shape: Shape,
    /// One entry for each live process, in the order of `shape.processes`.
    pub processes: Vec<ProcessState>,
    /// Open file descriptions and what hangs on them.
    pub files: Files,
    /// What the container's IPC namespace holds.
    pub ipc: Ipc,
    /// The names of the container's UTS namespace; `None` when it lives in the host's.
    pub names: Option<Names>,
    /// The namespaces that [`crate::shape::ProcessShape::namespaces`] names.
    pub namespaces: Vec<Namespace>,
}

/// See uname(2).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Names {
    /// sethostname(2).
    #[serde(with = "serde_bytes")]
    pub host: Vec<u8>,
    /// setdomainname(2).
    #[serde(with = "serde_bytes")]
    pub domain: Vec<u8>,
}

/// What a target must match (or be told) about the source's host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostFacts {
    /// `uname -r`.
    pub kernel_release: String,
    /// Hash of the `[vdso]` image; a target with another one is refused for now.
    pub vdso_hash: u64,
    /// Size of the xsave area in bytes, as PTRACE_GETREGSET NT_X86_XSTATE returned it.
    pub xsave_size: u32,
    /// XCR0: the enabled xsave features.
    pub xcr0: u64,
    /// CLOCK_MONOTONIC at the freeze, as the container sees it, nanoseconds.
    pub monotonic_ns: u64,
    /// CLOCK_BOOTTIME at the freeze, as the container sees it, nanoseconds.
    pub boottime_ns: u64,
    /// CLOCK_REALTIME at the freeze, nanoseconds.
    pub realtime_ns: u64,
}

/// What a container needs of a target's kernel and agent beyond equal [`HostFacts`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Needs {
    /// It has timers of timer_create(2).
    pub posix_timers: bool,
    /// It has System V shared memory, semaphores or message queues.
    pub ipc_ids: bool,
    /// It has guard pages (MADV_GUARD_INSTALL).
    pub guard_pages: bool,
    /// NUMA nodes that its memory policies name.
    pub nodes: Vec<u32>,
    /// The highest hard limit of its processes for each resource, index = resource number.
    pub hard_limits: Vec<u64>,
    /// The lowest oom_score_adj of its processes.
    pub oom_score_adj: i32,
    /// Huge pages of hugetlbfs that it holds or has reserved, by size.
    pub huge_pages: Vec<HugePages>,
}

/// Huge pages of one size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HugePages {
    /// Bytes of each.
    pub size: u64,
    /// How many.
    pub count: u64,
}

/// What a target can give to a container; see [`Needs`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gives {
    /// Timers can be made with chosen ids (PR_TIMER_CREATE_RESTORE_IDS, Linux 6.15).
    pub timer_ids: bool,
    /// System V objects can be made with chosen ids (CONFIG_CHECKPOINT_RESTORE).
    pub ipc_ids: bool,
    /// Guard pages can be made (Linux 6.13).
    pub guard_pages: bool,
    /// NUMA nodes with memory; none on a kernel without NUMA.
    pub nodes: Vec<u32>,
    /// The agent's own hard limits; `None` = it may set any (`CAP_SYS_RESOURCE`).
    pub hard_limits: Option<Vec<u64>>,
    /// The lowest oom_score_adj it may set; `None` = any.
    pub oom_score_adj: Option<i32>,
    /// Huge pages that are free and not reserved, and those that the kernel may make beyond its pool; by size.
    pub huge_pages: Vec<HugePages>,
}

/// A process beyond its address space.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ProcessState {
    /// As in [`crate::shape::ProcessShape::pid`].
    pub pid: Pid,
    /// Its threads; the leader first.
    pub threads: Vec<Thread>,
    /// Signal handlers; index 0 is signal 1.
    pub sigactions: Vec<SigAction>,
    /// Signals pending for the whole process, in queue order; each a raw 128-byte `siginfo_t`.
    pub pending: Vec<SigInfo>,
    /// ITIMER_REAL, ITIMER_VIRTUAL, ITIMER_PROF.
    pub itimers: [ITimer; 3],
    /// timer_create(2) timers.
    pub timers: Vec<PosixTimer>,
    /// getrlimit(2), index = resource number.
    pub rlimits: Vec<RLimit>,
    /// umask(2).
    pub umask: u32,
    /// Working directory, as a path in the process's mount namespace.
    pub cwd: String,
    /// The directory without a name that it is instead: a [`crate::files::Ghost`].
    pub deleted_cwd: Option<u32>,
    /// Root directory, as a path in the container's root; `/` unless it called chroot(2).
    pub root: String,
    /// personality(2).
    pub personality: u32,
    /// /proc/PID/oom_score_adj.
    pub oom_score_adj: i32,
    /// PR_GET_DUMPABLE.
    pub dumpable: u8,
    /// PR_GET_THP_DISABLE: bit 0 = disabled, the others are its flags.
    pub thp_disable: u32,
    /// PR_GET_MDWE bits.
    pub mdwe: u32,
    /// PR_GET_MEMORY_MERGE: all its memory may be merged (KSM).
    pub memory_merge: bool,
    /// PR_GET_CHILD_SUBREAPER.
    pub child_subreaper: bool,
    /// /proc/PID/coredump_filter.
    pub coredump_filter: u32,
    /// True when job control had stopped it (state `T`).
    pub stopped: bool,
    /// The signal that stopped it, when `stopped`.
    pub stop_signal: i32,
    /// What wait(2) would tell its parent of that.
    pub report: Report,
    /// mlockall(2) for what will be mapped: MCL_FUTURE, MCL_ONFAULT.
    pub lock_later: u32,
    /// Guard pages (MADV_GUARD_INSTALL), as first address and end, ascending.
    pub guards: Vec<(Addr, Addr)>,
    /// NUMA policies of mappings (mbind), ascending; where there is none, those of the threads hold.
    pub policies: Vec<RangePolicy>,
    /// Descriptor table, ascending by number.
    pub fds: Vec<FdEntry>,
}

/// What a parent has not been told yet of a child that job control stopped or continued (WUNTRACED, WCONTINUED).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Report {
    /// Nothing: it never stopped, or the parent has seen it.
    #[default]
    None,
    /// That it has stopped.
    Stopped,
    /// That it goes on.
    Continued,
}

/// What CLONE_FS of clone(2) shares.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Directories {
    /// umask(2).
    pub umask: u32,
    /// As [`ProcessState::cwd`].
    pub cwd: String,
    /// As [`ProcessState::root`].
    pub root: String,
}

/// One thread.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Thread {
    /// Its tid in the container's pid namespace.
    pub tid: Pid,
    /// Its tids in the pid namespaces of [`crate::shape::ProcessShape::levels`].
    pub tids_below: Vec<Pid>,
    /// Directories that it does not share with its process: it called unshare(2) with CLONE_FS.
    pub directories: Option<Directories>,
    /// A descriptor table that it does not share with its process, ascending: it called unshare(2) with CLONE_FILES.
    pub fds: Option<Vec<FdEntry>>,
    /// Which of these it shares with other threads.
    pub shared: Shared,
    /// General registers, with the interrupted system call not yet applied.
    pub regs: Regs,
    /// The raw xsave area (PTRACE_GETREGSET NT_X86_XSTATE).
    #[serde(with = "serde_bytes")]
    pub xstate: Vec<u8>,
    /// What was interrupted and how it must go on.
    pub resume: Resume,
    /// Blocked signals.
    pub sigmask: u64,
    /// Signals pending for this thread, in queue order.
    pub pending: Vec<SigInfo>,
    /// sigaltstack(2).
    pub altstack: AltStack,
    /// rseq(2) registration.
    pub rseq: Option<Rseq>,
    /// get_robust_list(2).
    pub robust_list: Option<RobustList>,
    /// set_tid_address(2) (PR_GET_TID_ADDRESS); 0 = none.
    pub clear_child_tid: Addr,
    /// Credentials.
    pub creds: Creds,
    /// seccomp(2) state: 0 = none, 1 = strict, 2 = filters.
    pub seccomp_mode: u8,
    /// Filters, in the order in which they were installed; each raw `struct sock_filter` bytes (8 a piece).
    pub seccomp_filters: Vec<SeccompFilter>,
    /// sched_getattr(2).
    pub sched: Sched,
    /// sched_getaffinity(2), little-endian bit mask, 8 CPUs a byte.
    #[serde(with = "serde_bytes")]
    pub affinity: Vec<u8>,
    /// ioprio_get(2).
    pub ioprio: u32,
    /// PR_GET_NAME, up to 15 bytes.
    #[serde(with = "serde_bytes")]
    pub comm: Vec<u8>,
    /// PR_GET_TIMERSLACK, nanoseconds.
    pub timer_slack_ns: u64,
    /// PR_GET_PDEATHSIG.
    pub pdeath_signal: i32,
    /// What else it switched.
    pub switches: Switches,
    /// Its NUMA policy (set_mempolicy); `None` = the default one.
    pub policy: Option<Policy>,
}

/// A NUMA policy of memory; see set_mempolicy(2).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// MPOL_ mode with its flags.
    pub mode: u32,
    /// Nodes, little-endian bit mask, 8 nodes a byte.
    #[serde(with = "serde_bytes")]
    pub nodes: Vec<u8>,
}

/// The NUMA policy of a range of addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RangePolicy {
    /// First address.
    pub start: Addr,
    /// One past the last.
    pub end: Addr,
    /// The policy.
    pub policy: Policy,
}

/// Switches of a thread that have a value of their own each. Those at their defaults are not set again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Switches {
    /// PR_GET_TSC: [`Switches::TSC_SIGSEGV`] when the time stamp counter may not be read.
    pub tsc: u32,
    /// PR_MCE_KILL_GET: 0 = late, 1 = early, 2 = the system's default.
    pub machine_checks: u32,
    /// PR_GET_SPECULATION_CTRL of store bypass, indirect branches and the first-level data cache.
    pub speculation: [u32; 3],
    /// ARCH_GET_CPUID: the instruction faults.
    pub cpuid_faults: bool,
    /// PR_GET_IO_FLUSHER.
    pub io_flusher: bool,
}

impl Switches {
    /// PR_TSC_SIGSEGV.
    pub const TSC_SIGSEGV: u32 = 2;
    /// PR_MCE_KILL_DEFAULT.
    pub const MACHINE_CHECKS_DEFAULT: u32 = 2;
}

/// `struct user_regs_struct` of x86-64.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names are the architecture's")]
pub struct Regs {
    pub r15: u64,
    pub r14: u64,
    pub r13: u64,
    pub r12: u64,
    pub rbp: u64,
    pub rbx: u64,
    pub r11: u64,
    pub r10: u64,
    pub r9: u64,
    pub r8: u64,
    pub rax: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
    pub orig_rax: u64,
    pub rip: u64,
    pub cs: u64,
    pub eflags: u64,
    pub rsp: u64,
    pub ss: u64,
    pub fs_base: u64,
    pub gs_base: u64,
    pub ds: u64,
    pub es: u64,
    pub fs: u64,
    pub gs: u64,
}

/// How a thread goes on after it was stopped. Decided at capture by `sys::restart`, applied at restore.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Resume {
    /// The registers are right as they are (it ran user code, or its call had finished).
    #[default]
    AsIs,
    /// It enters system call `nr` again with the registers as they are (rip -= 2, rax = nr).
    Reissue {
        /// System call number.
        nr: u64,
    },
    /// As [`Resume::Reissue`], with one argument register replaced: the remaining timeout.
    ReissueWith {
        /// System call number.
        nr: u64,
        /// Which argument, 0 = rdi ... 5 = r9.
        arg: u8,
        /// Its new value.
        value: u64,
    },
    /// As [`Resume::Reissue`]; its timeout is a `timespec` in the program's memory that argument `arg` points to
    /// (epoll_pwait2, rt_sigtimedwait, semtimedop), and this much of it remains.
    ReissueTimespec {
        /// System call number.
        nr: u64,
        /// The pointer argument, 0 = rdi ... 5 = r9.
        arg: u8,
        /// What remains, nanoseconds.
        remaining_ns: u64,
    },
    /// A call that the kernel restarts through its restart block (-ERESTART_RESTARTBLOCK): the
    /// restored thread enters the call for the remaining time, is interrupted, and goes on with
    /// restart_syscall(2).
    RestartBlock {
        /// System call number (nanosleep, clock_nanosleep, futex, poll ...).
        nr: u64,
        /// Time that remains, nanoseconds; `None` = without limit.
        remaining_ns: Option<u64>,
    },
}

impl Thread {
    /// Its tid as it knows it itself.
    #[must_use]
    pub fn own_tid(&self) -> Pid {
        self.tids_below.last().copied().unwrap_or(self.tid)
    }
}

/// One queued signal: the raw 128-byte `siginfo_t` of PTRACE_PEEKSIGINFO.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SigInfo(#[serde(with = "serde_bytes")] pub Vec<u8>);

/// `struct kernel_sigaction`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names are the kernel's")]
pub struct SigAction {
    pub handler: u64,
    pub flags: u64,
    pub restorer: u64,
    pub mask: u64,
}

/// `stack_t`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names are the kernel's")]
pub struct AltStack {
    pub sp: u64,
    pub flags: i32,
    pub size: u64,
}

/// PTRACE_GET_RSEQ_CONFIGURATION.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names are the kernel's")]
pub struct Rseq {
    pub address: u64,
    pub size: u32,
    pub signature: u32,
    pub flags: u32,
}

/// get_robust_list(2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names are the kernel's")]
pub struct RobustList {
    pub head: u64,
    pub len: u64,
}

/// An interval timer; microseconds as setitimer(2) takes them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ITimer {
    /// Time until the next expiry, 0 = disarmed.
    pub value_us: u64,
    /// Period, 0 = once.
    pub interval_us: u64,
}

/// A POSIX timer (/proc/PID/timers and timer_gettime(2)).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PosixTimer {
    /// The id that the program knows.
    pub id: i32,
    /// Clock id.
    pub clock: i32,
    /// SIGEV_SIGNAL, SIGEV_NONE or SIGEV_THREAD_ID.
    pub notify: i32,
    /// Signal number.
    pub signal: i32,
    /// sigev_value.
    pub value: u64,
    /// Thread for SIGEV_THREAD_ID, as its process numbers it.
    pub tid: Pid,
    /// Time until the next expiry, nanoseconds, 0 = disarmed.
    pub remaining_ns: u64,
    /// Period, nanoseconds.
    pub interval_ns: u64,
    /// timer_getoverrun(2).
    pub overrun: i32,
}

/// One resource limit; `u64::MAX` is RLIM_INFINITY.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names are the kernel's")]
pub struct RLimit {
    pub soft: u64,
    pub hard: u64,
}

/// credentials(7) and capabilities(7) of a thread; all ids are those of its own user namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Creds {
    /// Real, effective, saved, file-system user id.
    pub uid: [u32; 4],
    /// Real, effective, saved, file-system group id.
    pub gid: [u32; 4],
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Capability sets, one bit a capability.
    pub cap_inheritable: u64,
    /// See capabilities(7).
    pub cap_permitted: u64,
    /// See capabilities(7).
    pub cap_effective: u64,
    /// See capabilities(7).
    pub cap_bounding: u64,
    /// See capabilities(7).
    pub cap_ambient: u64,
    /// PR_GET_SECUREBITS.
    pub securebits: u32,
    /// PR_GET_NO_NEW_PRIVS.
    pub no_new_privs: bool,
}

/// One seccomp filter.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeccompFilter {
    /// `struct sock_filter` array, raw (PTRACE_SECCOMP_GET_FILTER).
    #[serde(with = "serde_bytes")]
    pub program: Vec<u8>,
    /// SECCOMP_FILTER_FLAG_* (PTRACE_SECCOMP_GET_METADATA).
    pub flags: u64,
}

/// `struct sched_attr`, and nice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names are the kernel's")]
pub struct Sched {
    pub policy: u32,
    pub flags: u64,
    pub nice: i32,
    pub priority: u32,
    pub runtime: u64,
    pub deadline: u64,
    pub period: u64,
}
