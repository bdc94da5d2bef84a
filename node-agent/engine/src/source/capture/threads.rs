//! What only a thread itself can tell, and what ptrace(2) and /proc tell about it.

use image::Pid;
use image::shape::Shared;
use image::state::{
    AltStack, Creds, ITimer, Names, PosixTimer, ProcessState, RLimit, Regs, Report, Resume, RobustList, Rseq,
    Sched, SeccompFilter, SigAction, SigInfo, Thread,
};
use sys::ptrace::{PendingSignals, Stop};
use sys::regs::UserRegs;
use sys::tape::{Block, CallId, Outcome, Program};
use sys::{prctl, restart};

use super::directories::directory;
use super::switches;
use crate::proc::idmap::{IdMap, IdMaps};
use crate::proc::{self, limits, status, timers};
use crate::source::address_space;
use crate::source::cpu_clocks;
use crate::source::error::SourceError;
use crate::source::findings::Findings;
use crate::source::keyrings;
use crate::source::look::ProcessLook;
use crate::source::numa;
use crate::source::reports;
use crate::source::stopping::trace_error;
use crate::source::traced::ParkedThread;
use crate::source::view::View;
use crate::source::witness;

const SIGNALS: i32 = 64;
/// A field of `struct new_utsname`: of six, the names of the host and of its domain are the second and the last.
const NAME: usize = 65;
const UTSNAME: usize = 6 * NAME;
const SIGSET_BYTES: u64 = 8;
const PR_GET_MDWE: i32 = 66;
const PR_GET_MEMORY_MERGE: i32 = 68;
const PR_GET_TID_ADDRESS: i32 = 40;
const PR_GET_TIMERSLACK: i32 = 30;
const PR_GET_SECUREBITS: i32 = 27;

/// What every thread is asked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ThreadAsk {
    altstack: Block,
    tid_address: Block,
    death_signal: Block,
    securebits: CallId,
    timer_slack: CallId,
    policy: numa::Ask,
    keyrings: keyrings::Ask,
    switches: switches::Ask,
    sandbox: witness::Ask,
}

impl ThreadAsk {
    /// Adds the calls to a program; `witness` is the process's, see [`witness`].
    pub(crate) fn add(program: &mut Program, witness: Option<i32>) -> Self {
        let altstack = program.space(24);
        program.call(libc::SYS_sigaltstack, &[0.into(), altstack.into()]);
        let tid_address = program.space(8);
        program.try_call(libc::SYS_prctl, &[PR_GET_TID_ADDRESS.into(), tid_address.into()]);
        let death_signal = program.space(8);
        program.call(libc::SYS_prctl, &[libc::PR_GET_PDEATHSIG.into(), death_signal.into()]);
        let securebits = program.call(libc::SYS_prctl, &[PR_GET_SECUREBITS.into()]);
        let timer_slack = program.call(libc::SYS_prctl, &[PR_GET_TIMERSLACK.into()]);
        let policy = numa::Ask::own(program);
        let keyrings = keyrings::Ask::add(program);
        let switches = switches::Ask::add(program);
        Self {
            altstack,
            tid_address,
            death_signal,
            securebits,
            timer_slack,
            policy,
            keyrings,
            switches,
            sandbox: witness::Ask::add(program, witness),
        }
    }

    /// The thread has a NUMA policy.
    pub(crate) fn has_policy(&self, outcome: &Outcome) -> bool {
        self.policy.read(outcome).is_some()
    }
}

/// What one thread of each process is asked for all of it.
#[derive(Clone, Debug)]
pub(crate) struct ProcessAsk {
    actions: Vec<Block>,
    itimers: [Block; 3],
    dumpable: CallId,
    thp_disable: CallId,
    mdwe: CallId,
    memory_merge: CallId,
    subreaper: Block,
    brk: CallId,
    /// Of its address space.
    pub(crate) space: address_space::Ask,
    names: Block,
    monotonic: Block,
    boottime: Block,
    timers: Vec<(timers::Timer, Block, CallId)>,
    /// Of a process with children.
    pub(crate) reports: Option<reports::Ask>,
}

impl ProcessAsk {
    /// Adds the calls to a program. `timers`: those of the process; `parent`: it has children.
    pub(crate) fn add(program: &mut Program, timers: &[timers::Timer], parent: bool) -> Self {
        let actions = (1..=SIGNALS)
            .map(|signal| {
                let block = program.space(32);
                program.try_call(
                    libc::SYS_rt_sigaction,
                    &[signal.into(), 0.into(), block.into(), SIGSET_BYTES.into()],
                );
                block
            })
            .collect();
        let itimers = [0, 1, 2].map(|which| {
            let block = program.space(32);
            program.call(libc::SYS_getitimer, &[which.into(), block.into()]);
            block
        });
        let dumpable = program.call(libc::SYS_prctl, &[libc::PR_GET_DUMPABLE.into()]);
        let thp_disable = program.try_call(libc::SYS_prctl, &[libc::PR_GET_THP_DISABLE.into()]);
        let mdwe = program.try_call(libc::SYS_prctl, &[PR_GET_MDWE.into()]);
        let memory_merge = program.try_call(libc::SYS_prctl, &[PR_GET_MEMORY_MERGE.into()]);
        let subreaper = program.space(8);
        program.call(libc::SYS_prctl, &[libc::PR_GET_CHILD_SUBREAPER.into(), subreaper.into()]);
        let brk = program.call(libc::SYS_brk, &[0.into()]);
        let space = address_space::Ask::add(program);
        let names = program.space(UTSNAME);
        program.call(libc::SYS_uname, &[names.into()]);
        let mut clock = |id: i32| {
            let block = program.space(16);
            program.call(libc::SYS_clock_gettime, &[id.into(), block.into()]);
            block
        };
        let monotonic = clock(libc::CLOCK_MONOTONIC);
        let boottime = clock(libc::CLOCK_BOOTTIME);
        let timers = timers
            .iter()
            .map(|timer| {
                let block = program.space(32);
                program.call(libc::SYS_timer_gettime, &[timer.id.into(), block.into()]);
                let overrun = program.call(libc::SYS_timer_getoverrun, &[timer.id.into()]);
                (*timer, block, overrun)
            })
            .collect();
        Self {
            actions,
            itimers,
            dumpable,
            thp_disable,
            mdwe,
            memory_merge,
            subreaper,
            brk,
            space,
            names,
            monotonic,
            boottime,
            timers,
            reports: parent.then(|| reports::Ask::add(program)),
        }
    }

    /// The end of the heap.
    pub(crate) fn brk(&self, outcome: &Outcome) -> u64 {
        outcome.result(self.brk).cast_unsigned()
    }

    /// The names of its UTS namespace.
    pub(crate) fn names(&self, outcome: &Outcome) -> Names {
        let field = |index: usize| {
            let all = outcome.bytes(self.names).get(index * NAME..(index + 1) * NAME).unwrap_or_default();
            all.split(|byte| *byte == 0).next().unwrap_or_default().to_vec()
        };
        Names { host: field(1), domain: field(5) }
    }

    /// CLOCK_MONOTONIC and CLOCK_BOOTTIME as the process sees them, nanoseconds.
    pub(crate) fn clocks(&self, outcome: &Outcome) -> (u64, u64) {
        let time = |block| words(outcome, block, 0) * 1_000_000_000 + words(outcome, block, 1);
        (time(self.monotonic), time(self.boottime))
    }
}

/// A word of a block.
fn words(outcome: &Outcome, block: Block, index: usize) -> u64 {
    outcome
        .bytes(block)
        .get(index * 8..index * 8 + 8)
        .and_then(|bytes| bytes.try_into().ok())
        .map_or(0, u64::from_le_bytes)
}

fn low_i32(word: u64) -> i32 {
    // The kernel wrote an int into the block.
    i32::from_le_bytes([
        word.to_le_bytes()[0],
        word.to_le_bytes()[1],
        word.to_le_bytes()[2],
        word.to_le_bytes()[3],
    ])
}

/// Reads a thread.
pub(crate) fn thread(
    found: &ProcessLook,
    parked: &ParkedThread,
    ask: &ThreadAsk,
    ids: &IdMaps,
    findings: &mut Findings,
) -> Result<Thread, SourceError> {
    let tid = parked.tid;
    let fail = |error| trace_error("read a thread", error);
    let kernel = |what: &'static str| move |errno| SourceError::kernel(what, tid, errno);
    let status = &parked.status;
    let stopped = parked.parked.thread();
    let outcome = parked.outcomes.first().cloned().unwrap_or_default();
    let inner = status.pid_at(found.process.depth);
    if let Some(failed) = outcome.failed() {
        return Err(SourceError::kernel("ask a thread", tid, std::io::Error::other(failed)));
    }
    if let Some((reason, way_out)) = ask.keyrings.refusal(&outcome) {
        findings.thread(found.process.inner, inner, reason, way_out);
    }
    if let Some((reason, way_out)) = ask.sandbox.refusal(&outcome, &found.process.status, status) {
        findings.thread(found.process.inner, inner, reason, way_out);
    }
    let seccomp_filters = match status.seccomp {
        2 => stopped.seccomp_filters().map_err(fail)?,
        _ => Vec::new(),
    };
    if seccomp_filters.iter().any(|filter| notifies(&filter.program)) {
        findings.thread(
            found.process.inner,
            inner,
            "its seccomp filter asks a supervisor (SECCOMP_RET_USER_NOTIF), which cannot move",
            "start the container without seccomp user notification",
        );
    }
    let attr = prctl::sched_attr(tid).map_err(kernel("sched_getattr"))?;
    let affinity = prctl::affinity(tid).map_err(kernel("sched_getaffinity"))?;
    let (head, len) = prctl::robust_list(tid).map_err(kernel("get_robust_list"))?;
    Ok(Thread {
        tid: inner,
        tids_below: status.ns_pid.get(found.process.depth + 1..).unwrap_or_default().to_vec(),
        directories: None,
        fds: None,
        shared: Shared::default(),
        regs: regs(parked.parked.context().regs()),
        xstate: stopped.xstate().map_err(fail)?,
        resume: resume(parked.resume),
        sigmask: parked.parked.context().sigmask(),
        pending: pending(parked, PendingSignals::Thread)?,
        altstack: AltStack {
            sp: words(&outcome, ask.altstack, 0),
            flags: low_i32(words(&outcome, ask.altstack, 1)),
            size: words(&outcome, ask.altstack, 2),
        },
        rseq: stopped.rseq().map_err(fail)?.map(|rseq| Rseq {
            address: rseq.address,
            size: rseq.size,
            signature: rseq.signature,
            flags: rseq.flags,
        }),
        robust_list: (head != 0).then_some(RobustList { head, len }),
        clear_child_tid: outcome.word(ask.tid_address),
        creds: creds(status, ids, outcome.result(ask.securebits))
            .ok_or_else(|| SourceError::kernel("read the users of", tid, sys::Errno::EOVERFLOW))?,
        seccomp_mode: status.seccomp,
        seccomp_filters: seccomp_filters
            .into_iter()
            .map(|filter| SeccompFilter { program: filter.program, flags: filter.flags })
            .collect(),
        sched: Sched {
            policy: attr.policy,
            flags: attr.flags,
            nice: attr.nice,
            priority: attr.priority,
            runtime: attr.runtime,
            deadline: attr.deadline,
            period: attr.period,
        },
        affinity: affinity.iter().flat_map(|word| word.to_le_bytes()).collect(),
        ioprio: u32::try_from(prctl::ioprio(tid).map_err(kernel("ioprio_get"))?).unwrap_or(0),
        comm: status.name.clone(),
        timer_slack_ns: u64::try_from(outcome.result(ask.timer_slack)).unwrap_or(0),
        pdeath_signal: low_i32(outcome.word(ask.death_signal)),
        switches: ask.switches.read(&outcome),
        policy: ask.policy.read(&outcome),
    })
}

/// Whether a filter can answer SECCOMP_RET_USER_NOTIF: a BPF_RET | BPF_K instruction with that value.
fn notifies(program: &[u8]) -> bool {
    const BPF_RET_K: u16 = 0x06;
    const USER_NOTIF: u32 = 0x7fc0_0000;
    program.chunks_exact(8).any(|instruction| {
        let code = u16::from_le_bytes([instruction[0], instruction[1]]);
        let value = u32::from_le_bytes([instruction[4], instruction[5], instruction[6], instruction[7]]);
        code == BPF_RET_K && value & 0xffff_0000 == USER_NOTIF
    })
}

fn pending(parked: &ParkedThread, which: PendingSignals) -> Result<Vec<SigInfo>, SourceError> {
    let queue =
        parked.parked.thread().pending(which).map_err(|error| trace_error("read pending signals", error))?;
    Ok(queue.iter().map(|info| SigInfo(info.to_vec())).collect())
}

/// Credentials as the thread itself sees them; `None` when its user namespace does not have one of its ids.
pub(crate) fn creds(status: &status::Status, ids: &IdMaps, securebits: i64) -> Option<Creds> {
    let [inheritable, permitted, effective, bounding, ambient] = status.caps;
    let four = |map: &IdMap, list: &[u32; 4]| -> Option<[u32; 4]> {
        let list: Option<Vec<u32>> = list.iter().map(|id| map.inside(*id)).collect();
        list?.try_into().ok()
    };
    Some(Creds {
        uid: four(&ids.uid, &status.uid)?,
        gid: four(&ids.gid, &status.gid)?,
        groups: status.groups.iter().map(|id| ids.gid.inside(*id)).collect::<Option<_>>()?,
        cap_inheritable: inheritable,
        cap_permitted: permitted,
        cap_effective: effective,
        cap_bounding: bounding,
        cap_ambient: ambient,
        securebits: u32::try_from(securebits).unwrap_or(0),
        no_new_privs: status.no_new_privs,
    })
}

fn resume(decision: restart::Resume) -> Resume {
    match decision {
        restart::Resume::AsIs => Resume::AsIs,
        restart::Resume::Reissue { nr } => Resume::Reissue { nr },
        restart::Resume::ReissueWith { nr, arg, value } => Resume::ReissueWith { nr, arg, value },
        restart::Resume::ReissueTimespec { nr, arg, remaining_ns } => {
            Resume::ReissueTimespec { nr, arg, remaining_ns }
        }
        restart::Resume::RestartBlock { nr, remaining_ns, .. } => Resume::RestartBlock { nr, remaining_ns },
    }
}

fn regs(regs: &UserRegs) -> Regs {
    Regs {
        r15: regs.r15,
        r14: regs.r14,
        r13: regs.r13,
        r12: regs.r12,
        rbp: regs.rbp,
        rbx: regs.rbx,
        r11: regs.r11,
        r10: regs.r10,
        r9: regs.r9,
        r8: regs.r8,
        rax: regs.rax,
        rcx: regs.rcx,
        rdx: regs.rdx,
        rsi: regs.rsi,
        rdi: regs.rdi,
        orig_rax: regs.orig_rax,
        rip: regs.rip,
        cs: regs.cs,
        eflags: regs.eflags,
        rsp: regs.rsp,
        ss: regs.ss,
        fs_base: regs.fs_base,
        gs_base: regs.gs_base,
        ds: regs.ds,
        es: regs.es,
        fs: regs.fs,
        gs: regs.gs,
    }
}

/// Reads what belongs to a process as a whole; `threads` are its threads in order, with their states.
pub(crate) fn process(
    found: &ProcessLook,
    leader: &ParkedThread,
    ask: &ProcessAsk,
    view: &View,
    findings: &mut Findings,
) -> Result<ProcessState, SourceError> {
    let pid = found.process.pid;
    let outcome = leader.outcomes.first().cloned().unwrap_or_default();
    let status = &found.process.status;
    if let Some((reason, way_out)) = ask.space.refusal(&outcome) {
        findings.process(found.process.inner, reason, way_out);
    }
    Ok(ProcessState {
        pid: found.process.inner,
        threads: Vec::new(),
        sigactions: ask.actions.iter().map(|block| action(&outcome, *block)).collect(),
        pending: pending(leader, PendingSignals::Process)?,
        itimers: ask.itimers.map(|block| itimer(&outcome, block)),
        timers: posix_timers(found, ask, &outcome, findings)?,
        rlimits: rlimits(pid)?,
        umask: status.umask.unwrap_or(0o022),
        cwd: directory(found, "", "cwd", view, findings)?,
        deleted_cwd: None,
        root: directory(found, "", "root", view, findings)?,
        personality: u32::try_from(proc::read_number(pid, "personality", 16)?).unwrap_or(0),
        oom_score_adj: i32::try_from(proc::read_number(pid, "oom_score_adj", 10)?).unwrap_or(0),
        dumpable: u8::try_from(outcome.result(ask.dumpable)).unwrap_or(1),
        thp_disable: u32::try_from(outcome.result(ask.thp_disable)).unwrap_or(0),
        mdwe: u32::try_from(outcome.result(ask.mdwe)).unwrap_or(0),
        memory_merge: outcome.result(ask.memory_merge) == 1,
        child_subreaper: low_i32(outcome.word(ask.subreaper)) != 0,
        coredump_filter: u32::try_from(proc::read_number(pid, "coredump_filter", 16)?).unwrap_or(0),
        stopped: matches!(leader.stop, Stop::Group(_)),
        stop_signal: match leader.stop {
            Stop::Group(signal) => signal,
            _ => 0,
        },
        report: Report::None,
        lock_later: 0,
        guards: Vec::new(),
        policies: Vec::new(),
        fds: Vec::new(),
    })
}

fn rlimits(pid: i32) -> Result<Vec<RLimit>, SourceError> {
    Ok(limits::read(pid)?)
}

/// The kernel's order is handler, flags, restorer, mask.
fn action(outcome: &Outcome, block: Block) -> SigAction {
    SigAction {
        handler: words(outcome, block, 0),
        flags: words(outcome, block, 1),
        restorer: words(outcome, block, 2),
        mask: words(outcome, block, 3),
    }
}

/// `struct itimerval`: interval, then value, each seconds and microseconds.
fn itimer(outcome: &Outcome, block: Block) -> ITimer {
    ITimer {
        value_us: words(outcome, block, 2) * 1_000_000 + words(outcome, block, 3),
        interval_us: words(outcome, block, 0) * 1_000_000 + words(outcome, block, 1),
    }
}

fn posix_timers(
    found: &ProcessLook,
    ask: &ProcessAsk,
    outcome: &Outcome,
    findings: &mut Findings,
) -> Result<Vec<PosixTimer>, SourceError> {
    const SIGEV_THREAD_ID: i32 = 4;
    let mut all = Vec::with_capacity(ask.timers.len());
    for (timer, block, overrun) in &ask.timers {
        cpu_clocks::judge(found.process.inner, timer, findings);
        all.push(PosixTimer {
            id: timer.id,
            clock: timer.clock,
            notify: timer.notify,
            signal: timer.signal,
            value: timer.value,
            tid: if timer.notify == SIGEV_THREAD_ID { inner_tid(found, timer.target)? } else { 0 },
            remaining_ns: words(outcome, *block, 2) * 1_000_000_000 + words(outcome, *block, 3),
            interval_ns: words(outcome, *block, 0) * 1_000_000_000 + words(outcome, *block, 1),
            overrun: i32::try_from(outcome.result(*overrun)).unwrap_or(0),
        });
    }
    Ok(all)
}

fn inner_tid(found: &ProcessLook, tid: i32) -> Result<Pid, SourceError> {
    match status::read_thread(found.process.pid, tid) {
        Ok(status) => Ok(status.inner_pid()),
        // Its thread has ended: the timer fires into nothing.
        Err(error) if error.is_gone() => Ok(0),
        Err(error) => Err(error.into()),
    }
}
