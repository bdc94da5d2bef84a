//! Registers with which a restored thread goes on.

use image::state::{Regs, Resume};
use libc::{SYS_clock_nanosleep, SYS_futex, SYS_nanosleep, SYS_poll};
use sys::regs::{NO_SYSCALL, UserRegs};
use sys::restart::{
    ERESTART_RESTARTBLOCK, ERESTARTNOHAND, ERESTARTNOINTR, ERESTARTSYS, Note, by_kernel, spare,
};

use super::script::{Arg, Block, Call};

const FUTEX_CMD_MASK: u64 = 127;
const FUTEX_WAIT_BITSET: u64 = 9;
const TIMER_ABSTIME: u64 = 1;

/// The kernel's form of the image's registers.
pub(crate) fn user_regs(r: &Regs) -> UserRegs {
    UserRegs {
        r15: r.r15,
        r14: r.r14,
        r13: r.r13,
        r12: r.r12,
        rbp: r.rbp,
        rbx: r.rbx,
        r11: r.r11,
        r10: r.r10,
        r9: r.r9,
        r8: r.r8,
        rax: r.rax,
        rcx: r.rcx,
        rdx: r.rdx,
        rsi: r.rsi,
        rdi: r.rdi,
        orig_rax: r.orig_rax,
        rip: r.rip,
        cs: r.cs,
        eflags: r.eflags,
        rsp: r.rsp,
        ss: r.ss,
        fs_base: r.fs_base,
        gs_base: r.gs_base,
        ds: r.ds,
        es: r.es,
        fs: r.fs,
        gs: r.gs,
    }
}

/// The call of a [`Resume::RestartBlock`] thread, entered and interrupted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entered {
    /// What it answered.
    pub(crate) answer: i64,
    /// Until when it sleeps at most, by CLOCK_MONOTONIC; `None` = not by a time that remained.
    pub(crate) deadline_ns: Option<u64>,
}

/// The registers to set, and two words to store first, a `timespec` or a note: address and contents. `entered` is for a
/// [`Resume::RestartBlock`] thread.
///
/// The kernel enters the call, not the program: a signal that comes first ends it, as it would have at the source.
pub(crate) fn registers(
    regs: &Regs,
    resume: &Resume,
    entered: Option<Entered>,
) -> (UserRegs, Option<(u64, [u64; 2])>) {
    let found = user_regs(regs);
    let primed = entered.map(|entered| entered.answer);
    let mut store = None;
    let out = match *resume {
        Resume::AsIs => UserRegs { orig_rax: NO_SYSCALL, ..found },
        Resume::Reissue { nr } => by_kernel(&found, nr),
        Resume::ReissueWith { nr, arg, value } => {
            let mut out = by_kernel(&found, nr);
            out.set_argument(arg, value);
            out
        }
        Resume::ReissueTimespec { nr, arg, remaining_ns } => {
            let mut out = by_kernel(&found, nr);
            let at = spare(regs.rsp);
            out.set_argument(arg, at);
            store = Some((at, timespec(remaining_ns)));
            out
        }
        Resume::RestartBlock { nr, .. } => match primed {
            Some(code @ (ERESTART_RESTARTBLOCK | ERESTARTSYS | ERESTARTNOINTR | ERESTARTNOHAND)) => {
                if let Some(deadline_ns) = entered.and_then(|entered| entered.deadline_ns) {
                    store = Some((spare(regs.rsp), Note { nr, deadline_ns }.words(regs.rip)));
                }
                UserRegs { orig_rax: nr, rax: code.cast_unsigned(), ..found }
            }
            Some(result) => UserRegs { orig_rax: NO_SYSCALL, rax: result.cast_unsigned(), ..found },
            None => by_kernel(&found, nr),
        },
    };
    (out, store)
}

fn timespec(ns: u64) -> [u64; 2] {
    [ns / 1_000_000_000, ns % 1_000_000_000]
}

/// The call that a thread enters so that the kernel has its restart block: the interrupted one, for the time
/// that remains. A deadline stays what it is.
pub(crate) fn entering(regs: &Regs, nr: u64, remaining_ns: Option<u64>) -> Call {
    let mut args: Vec<Arg> =
        [regs.rdi, regs.rsi, regs.rdx, regs.r10, regs.r8, regs.r9].into_iter().map(Arg::from).collect();
    if let Some(ns) = remaining_ns {
        let is = |call: i64| nr == call.cast_unsigned();
        let relative = Arg::from(Block::words(&timespec(ns)));
        if is(SYS_nanosleep) {
            args[0] = relative;
        } else if is(SYS_clock_nanosleep) && regs.rsi & TIMER_ABSTIME == 0 {
            args[2] = relative;
        } else if is(SYS_futex) && regs.rsi & FUTEX_CMD_MASK != FUTEX_WAIT_BITSET {
            args[3] = relative;
        } else if is(SYS_poll) {
            let millis = i32::try_from(ns.div_ceil(1_000_000)).unwrap_or(i32::MAX);
            args[2] = Arg::from(millis);
        }
    }
    Call { what: "the interrupted call", nr: nr.cast_signed(), args, accepted: &[] }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn regs() -> Regs {
        Regs {
            rip: 0x1002,
            rax: (-512i64).cast_unsigned(),
            orig_rax: 232,
            rsp: 0x7fff_0008,
            ..Regs::default()
        }
    }

    #[test]
    fn the_kernel_enters_a_call_again() {
        let (out, store) = registers(&regs(), &Resume::Reissue { nr: 232 }, None);
        assert_eq!((out.rip, out.result(), out.orig_rax, store), (0x1002, ERESTARTSYS, 232, None));
        let (out, _) = registers(&regs(), &Resume::ReissueWith { nr: 232, arg: 3, value: 77 }, None);
        assert_eq!((out.rip, out.r10), (0x1002, 77));
    }

    #[test]
    fn a_call_that_ends_at_every_stop_is_ended_by_a_handler_alone() {
        let ended = Regs { rax: (-4i64).cast_unsigned(), ..regs() };
        let (out, _) = registers(&ended, &Resume::Reissue { nr: 232 }, None);
        assert_eq!((out.result(), out.orig_rax), (ERESTARTNOHAND, 232));
    }

    #[test]
    fn a_finished_call_is_left_alone() {
        let (out, _) = registers(&regs(), &Resume::AsIs, None);
        assert_eq!((out.rip, out.rax, out.orig_rax), (0x1002, (-512i64).cast_unsigned(), NO_SYSCALL));
    }

    #[test]
    fn what_remains_of_a_timeout_is_stored_below_the_red_zone() {
        let resume = Resume::ReissueTimespec { nr: 128, arg: 2, remaining_ns: 2_500_000_000 };
        let (out, store) = registers(&regs(), &resume, None);
        let (at, value) = store.unwrap();
        assert!(at + 16 <= regs().rsp - sys::restart::RED_ZONE && at.is_multiple_of(16));
        assert_eq!((out.rdx, value), (at, [2, 500_000_000]));
    }

    fn entered(answer: i64) -> Option<Entered> {
        Some(Entered { answer, deadline_ns: Some(77) })
    }

    #[test]
    fn a_primed_thread_goes_on_through_its_restart_block() {
        let resume = Resume::RestartBlock { nr: 35, remaining_ns: Some(1) };
        let (out, store) = registers(&regs(), &resume, entered(-516));
        assert_eq!(store, Some((spare(regs().rsp), Note { nr: 35, deadline_ns: 77 }.words(0x1002))));
        assert_eq!((out.result(), out.orig_rax, out.rip), (ERESTART_RESTARTBLOCK, 35, 0x1002));
        let (done, _) = registers(&regs(), &resume, entered(0));
        assert_eq!((done.rax, done.orig_rax, done.rip), (0, NO_SYSCALL, 0x1002));
        assert_eq!(registers(&regs(), &resume, entered(-514)).0.result(), ERESTARTNOHAND);
    }
}
