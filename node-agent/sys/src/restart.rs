//! How a system call that a stop interrupted goes on: pure decisions, no kernel call.
//!
//! A stop interrupts a sleeping call as a signal does. Most calls answer one of the kernel's private codes,
//! and the kernel restarts them itself when the thread resumes **with these registers** (so on a source that
//! is resumed by its live tracer nothing needs deciding: set the registers as they were found). A decision is
//! needed when the thread resumes elsewhere, when it must resume by itself, and for the calls that answer
//! -EINTR at every stop.
//!
//! Use: [`timeout_address`] says which `timespec` to read, [`decide`] gives the [`Resume`], [`by_kernel`] puts it
//! into registers of a thread that its tracer lets go, [`apply`] into those of one that goes on by itself.

use crate::regs::{NO_SYSCALL, UserRegs};

/// -ERESTARTSYS: restarted unless a handler without SA_RESTART ran.
pub const ERESTARTSYS: i64 = -512;
/// -ERESTARTNOINTR: always restarted.
pub const ERESTARTNOINTR: i64 = -513;
/// -ERESTARTNOHAND: restarted when no handler ran.
pub const ERESTARTNOHAND: i64 = -514;
/// -ERESTART_RESTARTBLOCK: goes on through restart_syscall(2).
pub const ERESTART_RESTARTBLOCK: i64 = -516;
const EINTR: i64 = -4;
/// restart_syscall(2).
pub const NR_RESTART_SYSCALL: u64 = 219;
/// Length of the `syscall` instruction.
const SYSCALL_LEN: u64 = 2;

/// How a thread goes on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Resume {
    /// The registers are right as they are.
    #[default]
    AsIs,
    /// It enters system call `nr` again, arguments unchanged.
    Reissue {
        /// System call number.
        nr: u64,
    },
    /// As [`Resume::Reissue`], with one argument register replaced.
    ReissueWith {
        /// System call number.
        nr: u64,
        /// Which argument, 0 = rdi ... 5 = r9.
        arg: u8,
        /// Its new value.
        value: u64,
    },
    /// As [`Resume::Reissue`]; the timeout is a `timespec` in the program's memory that argument `arg` points
    /// to, and this much of it remains. On a source the call is entered with the whole timeout again: the
    /// program's memory is not ours to change.
    ReissueTimespec {
        /// System call number.
        nr: u64,
        /// The pointer argument.
        arg: u8,
        /// What remains, nanoseconds.
        remaining_ns: u64,
    },
    /// The call sleeps through its restart block. Source: restart_syscall(2). Elsewhere: enter the call for
    /// the remaining time, interrupt it, then restart_syscall(2).
    RestartBlock {
        /// System call number; [`NR_RESTART_SYSCALL`] when only that is known.
        nr: u64,
        /// Where its timeout stands.
        timeout: Timeout,
        /// What remains, nanoseconds; `None` = without limit.
        remaining_ns: Option<u64>,
    },
}

/// Where a call's relative timeout stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Timeout {
    /// It has none (or an absolute one, which needs no change).
    None,
    /// Argument `0`, an int of milliseconds, negative = without limit.
    Millis(u8),
    /// Argument `0` points to a `timespec`, null = without limit.
    Timespec(u8),
}

/// An interrupted thread.
#[derive(Clone, Copy, Debug)]
pub struct Interruption<'a> {
    /// Its registers as the stop found them.
    pub regs: &'a UserRegs,
    /// How long the call has slept, all its stops together, nanoseconds.
    pub slept_ns: u64,
    /// The timeout read from [`timeout_address`], nanoseconds.
    pub timeout_ns: Option<u64>,
    /// What remains of a restart block's time, nanoseconds, where that is known otherwise ([`Note`]).
    pub remaining_ns: Option<u64>,
    /// The call that it was in before an earlier stop turned it into restart_syscall(2).
    pub origin: Option<u64>,
    /// A signal that is not blocked and has a handler is pending: it, not our stop, interrupted the call.
    pub handled_signal_pending: bool,
}

/// Calls that answer -EINTR where others restart, and their timeouts.
const EINTR_CALLS: &[(i64, Timeout)] = &[
    (libc::SYS_epoll_wait, Timeout::Millis(3)),
    (libc::SYS_epoll_pwait, Timeout::Millis(3)),
    (libc::SYS_epoll_pwait2, Timeout::Timespec(3)),
    (libc::SYS_rt_sigtimedwait, Timeout::Timespec(2)),
    (libc::SYS_semop, Timeout::None),
    (libc::SYS_semtimedop, Timeout::Timespec(3)),
    (libc::SYS_io_getevents, Timeout::Timespec(4)),
    // Sockets with SO_RCVTIMEO or SO_SNDTIMEO, and inotify: nothing was transferred.
    (libc::SYS_read, Timeout::None),
    (libc::SYS_readv, Timeout::None),
    (libc::SYS_write, Timeout::None),
    (libc::SYS_writev, Timeout::None),
    (libc::SYS_recvfrom, Timeout::None),
    (libc::SYS_recvmsg, Timeout::None),
    (libc::SYS_recvmmsg, Timeout::None),
    (libc::SYS_sendto, Timeout::None),
    (libc::SYS_sendmsg, Timeout::None),
    (libc::SYS_sendmmsg, Timeout::None),
    (libc::SYS_accept, Timeout::None),
    (libc::SYS_accept4, Timeout::None),
    (libc::SYS_connect, Timeout::None),
];

const FUTEX_CMD_MASK: u64 = 0x7f;
const FUTEX_WAIT: u64 = 0;
const TIMER_ABSTIME: u64 = 1;

/// Where the relative timeout of the restart block call `nr` stands.
fn block_timeout(nr: u64, regs: &UserRegs) -> Timeout {
    match nr.cast_signed() {
        libc::SYS_nanosleep => Timeout::Timespec(0),
        libc::SYS_clock_nanosleep if regs.rsi & TIMER_ABSTIME == 0 => Timeout::Timespec(2),
        libc::SYS_futex if regs.rsi & FUTEX_CMD_MASK == FUTEX_WAIT => Timeout::Timespec(3),
        libc::SYS_poll => Timeout::Millis(2),
        _ => Timeout::None,
    }
}

fn eintr_timeout(nr: u64) -> Option<Timeout> {
    EINTR_CALLS.iter().find(|(call, _)| *call == nr.cast_signed()).map(|(_, timeout)| *timeout)
}

/// The call a thread was stopped in, with an earlier stop's restart_syscall(2) seen through.
fn call_of(regs: &UserRegs, origin: Option<u64>) -> Option<u64> {
    match regs.syscall()? {
        NR_RESTART_SYSCALL => Some(origin.unwrap_or(NR_RESTART_SYSCALL)),
        nr => Some(nr),
    }
}

fn timeout_of(regs: &UserRegs, origin: Option<u64>) -> Option<(u64, Timeout)> {
    let nr = call_of(regs, origin)?;
    let timeout = match regs.result() {
        ERESTART_RESTARTBLOCK => block_timeout(nr, regs),
        EINTR => eintr_timeout(nr)?,
        _ => return None,
    };
    Some((nr, timeout))
}

/// Address of the `timespec` whose value [`decide`] wants as `timeout_ns`, if it wants one.
#[must_use]
pub fn timeout_address(regs: &UserRegs, origin: Option<u64>) -> Option<u64> {
    match timeout_of(regs, origin)?.1 {
        Timeout::Timespec(arg) => regs.argument(arg).filter(|&address| address != 0),
        _ => None,
    }
}

/// How the thread goes on.
#[must_use]
pub fn decide(stop: &Interruption<'_>) -> Resume {
    let regs = stop.regs;
    let Some(nr) = regs.syscall() else { return Resume::AsIs };
    match regs.result() {
        ERESTARTSYS | ERESTARTNOINTR | ERESTARTNOHAND => Resume::Reissue { nr },
        ERESTART_RESTARTBLOCK => restart_block(stop),
        EINTR if !stop.handled_signal_pending => reissue(stop, nr),
        _ => Resume::AsIs,
    }
}

/// What is left of a millisecond argument; `None` = without limit.
fn millis_left(raw: u64, slept_ns: u64) -> Option<u64> {
    // The kernel reads an int.
    let total = u64::try_from((raw & 0xffff_ffff).cast_signed() << 32 >> 32).ok()?;
    Some((total * 1_000_000).saturating_sub(slept_ns))
}

fn reissue(stop: &Interruption<'_>, nr: u64) -> Resume {
    match eintr_timeout(nr) {
        None => Resume::AsIs,
        Some(Timeout::None) => Resume::Reissue { nr },
        Some(Timeout::Millis(arg)) => {
            match millis_left(stop.regs.argument(arg).unwrap_or(0), stop.slept_ns) {
                None => Resume::Reissue { nr },
                Some(left) => Resume::ReissueWith { nr, arg, value: left.div_ceil(1_000_000) },
            }
        }
        Some(Timeout::Timespec(arg)) => match stop.timeout_ns {
            None => Resume::Reissue { nr },
            Some(total) => {
                Resume::ReissueTimespec { nr, arg, remaining_ns: total.saturating_sub(stop.slept_ns) }
            }
        },
    }
}

fn restart_block(stop: &Interruption<'_>) -> Resume {
    let nr = call_of(stop.regs, stop.origin).unwrap_or(NR_RESTART_SYSCALL);
    let timeout = block_timeout(nr, stop.regs);
    let remaining_ns = match timeout {
        Timeout::None => None,
        _ if stop.remaining_ns.is_some() => stop.remaining_ns,
        Timeout::Millis(arg) => millis_left(stop.regs.argument(arg).unwrap_or(0), stop.slept_ns),
        Timeout::Timespec(_) => stop.timeout_ns.map(|total| total.saturating_sub(stop.slept_ns)),
    };
    Resume::RestartBlock { nr, timeout, remaining_ns }
}

/// The registers with which a thread of **this** kernel goes on by itself, without the kernel's own restart.
/// Where `rip` no longer follows a `syscall` instruction nothing may be applied: pass a fresh stop only.
#[must_use]
pub fn apply(regs: &UserRegs, resume: &Resume) -> UserRegs {
    let mut out = *regs;
    let nr = match *resume {
        Resume::AsIs => None,
        Resume::Reissue { nr } | Resume::ReissueTimespec { nr, .. } => Some(nr),
        Resume::ReissueWith { nr, arg, value } => {
            out.set_argument(arg, value);
            Some(nr)
        }
        Resume::RestartBlock { .. } => Some(NR_RESTART_SYSCALL),
    };
    if let Some(nr) = nr {
        out.rax = nr;
        out.rip = out.rip.wrapping_sub(SYSCALL_LEN);
    }
    out.orig_rax = NO_SYSCALL;
    out
}

/// The registers with which a stopped thread is let go, so that the kernel itself enters call `nr` again where no
/// signal with a handler comes before that, and ends it as that signal would have ended it otherwise. `regs` are those
/// of a stop inside the call; a call that answers EINTR at every stop is entered again by the rules of
/// [`ERESTARTNOHAND`]. Holds for every kernel on which the thread is stopped for a signal or by its tracer, not only
/// for the one that interrupted it (`arch_do_signal_or_restart` in the kernel's arch/x86/kernel/signal.c).
#[must_use]
pub fn by_kernel(regs: &UserRegs, nr: u64) -> UserRegs {
    let code = match regs.result() {
        code @ (ERESTARTSYS | ERESTARTNOINTR | ERESTARTNOHAND) => code,
        _ => ERESTARTNOHAND,
    };
    UserRegs { orig_rax: nr, rax: code.cast_unsigned(), ..*regs }
}

/// Whether the kernel restarts this call itself when the thread resumes with the registers as found.
#[must_use]
pub fn kernel_restarts(regs: &UserRegs) -> bool {
    regs.syscall().is_some()
        && matches!(regs.result(), ERESTARTSYS | ERESTARTNOINTR | ERESTARTNOHAND | ERESTART_RESTARTBLOCK)
}

/// Whether how long the call has slept can matter to [`decide`].
#[must_use]
pub fn is_timed(regs: &UserRegs) -> bool {
    regs.syscall().is_some() && matches!(regs.result(), EINTR | ERESTART_RESTARTBLOCK)
}

/// The call behind a restart_syscall(2), guessed from where the thread sleeps (/proc/TID/wchan, read while it
/// slept) and its arguments. `None` when it cannot be told.
#[must_use]
pub fn origin_from_wchan(wchan: &str, regs: &UserRegs) -> Option<u64> {
    let has = |part: &str| wchan.contains(part);
    // A nanosleep that goes on is hidden: all its functions count as the scheduler's.
    let nr = if has("nanosleep") || has("restart_syscall") || has("do_syscall_64") {
        // clock_nanosleep(clock, flags, ...) has two small numbers where nanosleep has pointers.
        if regs.rdi < 4096 { libc::SYS_clock_nanosleep } else { libc::SYS_nanosleep }
    } else if has("futex") {
        libc::SYS_futex
    } else if has("poll") {
        libc::SYS_poll
    } else {
        return None;
    };
    Some(nr.cast_unsigned())
}

/// Bytes below the stack pointer that a function may use without moving it (System V ABI, x86-64).
pub const RED_ZONE: u64 = 128;

/// Below the red zone the memory is nobody's: there it may stand what a thread that sleeps has no register for. A signal
/// frame may be written over it, but then the call is not entered again.
#[must_use]
pub fn spare(rsp: u64) -> u64 {
    rsp.wrapping_sub(RED_ZONE + 64) & !15
}

/// Until when a restored thread sleeps in its restart block, left at [`spare`] for whoever moves it on: its arguments still
/// say how long it wanted to sleep in all, and the kernel tells nobody what is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Note {
    /// The call.
    pub nr: u64,
    /// CLOCK_MONOTONIC of this host, nanoseconds.
    pub deadline_ns: u64,
}

impl Note {
    const MARK: u64 = 0x4761_6e74_7279_0001;

    /// As it stands in memory.
    #[must_use]
    pub fn words(&self, rip: u64) -> [u64; 2] {
        [Self::MARK ^ self.nr ^ rip << 16, self.deadline_ns]
    }

    /// What remains at `now_ns` of call `nr` at `rip`, if the words are a note about it. One whose time is over is about an
    /// earlier call: nobody sleeps beyond its deadline.
    #[must_use]
    pub fn remaining(words: [u64; 2], nr: u64, rip: u64, now_ns: u64) -> Option<u64> {
        let note = Self { nr, deadline_ns: words[1] };
        (note.words(rip) == words).then(|| words[1].checked_sub(now_ns)).flatten().filter(|left| *left > 0)
    }
}

/// A critical section of rseq(2): `struct rseq_cs`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CriticalSection {
    /// Its first instruction.
    pub start_ip: u64,
    /// Its length in bytes.
    pub post_commit_offset: u64,
    /// Where it goes when it is interrupted.
    pub abort_ip: u64,
}

impl CriticalSection {
    /// Where a thread interrupted at `rip` must go on: being stopped is a preemption.
    #[must_use]
    pub fn resume_at(&self, rip: u64) -> u64 {
        let inside = rip.checked_sub(self.start_ip).is_some_and(|offset| offset < self.post_commit_offset);
        if inside { self.abort_ip } else { rip }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn regs(nr: i64, result: i64) -> UserRegs {
        UserRegs {
            rip: 0x1002,
            orig_rax: nr.cast_unsigned(),
            rax: result.cast_unsigned(),
            rdi: 0x7000,
            ..UserRegs::default()
        }
    }

    fn stop(regs: &UserRegs) -> Interruption<'_> {
        Interruption {
            regs,
            slept_ns: 0,
            timeout_ns: None,
            remaining_ns: None,
            origin: None,
            handled_signal_pending: false,
        }
    }

    #[test]
    fn a_note_is_about_one_call_that_has_not_ended() {
        let words = Note { nr: 35, deadline_ns: 1_000 }.words(0x1002);
        assert_eq!(Note::remaining(words, 35, 0x1002, 400), Some(600));
        assert_eq!(Note::remaining(words, 35, 0x1002, 1_000), None);
        assert_eq!(Note::remaining(words, 230, 0x1002, 400), None);
        assert_eq!(Note::remaining(words, 35, 0x1004, 400), None);
        assert_eq!(Note::remaining([0, 1_000], 35, 0x1002, 400), None);
    }

    #[test]
    fn table() {
        let nr = |n: i64| n.cast_unsigned();
        let cases: &[(i64, i64, Resume)] = &[
            (libc::SYS_read, ERESTARTSYS, Resume::Reissue { nr: nr(libc::SYS_read) }),
            (libc::SYS_futex, ERESTARTNOINTR, Resume::Reissue { nr: nr(libc::SYS_futex) }),
            (libc::SYS_pause, ERESTARTNOHAND, Resume::Reissue { nr: nr(libc::SYS_pause) }),
            (libc::SYS_read, 17, Resume::AsIs),
            (libc::SYS_read, -11, Resume::AsIs),
            (libc::SYS_close, EINTR, Resume::AsIs),
            (libc::SYS_accept4, EINTR, Resume::Reissue { nr: nr(libc::SYS_accept4) }),
            (libc::SYS_rt_sigtimedwait, EINTR, Resume::Reissue { nr: nr(libc::SYS_rt_sigtimedwait) }),
            (-1, ERESTARTSYS, Resume::AsIs),
        ];
        for (call, result, want) in cases {
            assert_eq!(decide(&stop(&regs(*call, *result))), *want, "call {call} result {result}");
        }
    }

    #[test]
    fn epoll_wait_keeps_what_remains() {
        let mut r = regs(libc::SYS_epoll_wait, EINTR);
        r.r10 = 2000;
        let nr = libc::SYS_epoll_wait.cast_unsigned();
        let late = Interruption { slept_ns: 1_500_400_000, ..stop(&r) };
        assert_eq!(decide(&late), Resume::ReissueWith { nr, arg: 3, value: 500 });
        let over = Interruption { slept_ns: 9_000_000_000, ..stop(&r) };
        assert_eq!(decide(&over), Resume::ReissueWith { nr, arg: 3, value: 0 });
        let signal = Interruption { handled_signal_pending: true, ..stop(&r) };
        assert_eq!(decide(&signal), Resume::AsIs);
        // int -1, with and without its upper half.
        for forever in [0xffff_ffff, u64::MAX] {
            r.r10 = forever;
            assert_eq!(decide(&stop(&r)), Resume::Reissue { nr });
        }
    }

    #[test]
    fn restart_blocks_know_their_timeouts() {
        let mut r = regs(libc::SYS_clock_nanosleep, ERESTART_RESTARTBLOCK);
        r.rdx = 0x5000;
        assert_eq!(timeout_address(&r, None), Some(0x5000));
        let slept = Interruption { timeout_ns: Some(2_000), slept_ns: 500, ..stop(&r) };
        let nr = libc::SYS_clock_nanosleep.cast_unsigned();
        let want = Resume::RestartBlock { nr, timeout: Timeout::Timespec(2), remaining_ns: Some(1_500) };
        assert_eq!(decide(&slept), want);
        let own = apply(&r, &want);
        assert_eq!((own.rax, own.rip, own.orig_rax), (NR_RESTART_SYSCALL, 0x1000, NO_SYSCALL));

        let mut poll = regs(libc::SYS_poll, ERESTART_RESTARTBLOCK);
        poll.rdx = 0xffff_ffff;
        assert!(matches!(decide(&stop(&poll)), Resume::RestartBlock { remaining_ns: None, .. }));
        poll.rdx = 20;
        assert!(matches!(decide(&stop(&poll)), Resume::RestartBlock { remaining_ns: Some(20_000_000), .. }));
        // FUTEX_WAIT_BITSET takes an absolute time.
        let mut futex = regs(libc::SYS_futex, ERESTART_RESTARTBLOCK);
        futex.rsi = 9 | 128;
        futex.r10 = 0x5000;
        assert_eq!(timeout_address(&futex, None), None);
        futex.rsi = 128;
        assert_eq!(timeout_address(&futex, None), Some(0x5000));
    }

    #[test]
    fn a_second_stop_sees_through_restart_syscall() {
        let r = regs(219, ERESTART_RESTARTBLOCK);
        assert!(matches!(decide(&stop(&r)), Resume::RestartBlock { nr: 219, timeout: Timeout::None, .. }));
        let origin = Some(libc::SYS_nanosleep.cast_unsigned());
        assert_eq!(timeout_address(&r, origin), Some(0x7000));
        let known = Interruption { origin, timeout_ns: Some(10), slept_ns: 4, ..stop(&r) };
        assert!(matches!(decide(&known), Resume::RestartBlock { nr: 35, remaining_ns: Some(6), .. }));
        assert_eq!(origin_from_wchan("hrtimer_nanosleep", &r), origin);
        assert_eq!(origin_from_wchan("do_syscall_64", &r), origin);
        assert_eq!(origin_from_wchan("0", &r), None);
    }

    #[test]
    fn apply_rewinds_and_replaces() {
        let r = regs(libc::SYS_epoll_wait, EINTR);
        let own = apply(&r, &Resume::ReissueWith { nr: 232, arg: 3, value: 7 });
        assert_eq!((own.rax, own.rip, own.r10, own.orig_rax), (232, 0x1000, 7, NO_SYSCALL));
        let as_is = apply(&r, &Resume::AsIs);
        assert_eq!((as_is.rax, as_is.rip), (r.rax, r.rip));
        assert!(kernel_restarts(&regs(0, ERESTARTSYS)) && !kernel_restarts(&r));
    }

    #[test]
    fn critical_sections_abort() {
        let cs = CriticalSection { start_ip: 100, post_commit_offset: 10, abort_ip: 500 };
        assert_eq!([99, 100, 109, 110].map(|ip| cs.resume_at(ip)), [99, 500, 500, 110]);
    }
}
