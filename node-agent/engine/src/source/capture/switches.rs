//! Switches of a thread that only it can tell.

use image::state::Switches;
use sys::tape::{Block, CallId, Outcome, Program};

const PR_MCE_KILL_GET: i32 = 34;
const PR_GET_SPECULATION_CTRL: i32 = 52;
const PR_GET_IO_FLUSHER: i32 = 58;
const ARCH_GET_CPUID: i32 = 0x1011;

/// What a thread is asked. A kernel or a processor that lacks one of them says so, and then it is at its default.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ask {
    tsc: Block,
    machine_checks: CallId,
    speculation: [CallId; 3],
    cpuid: CallId,
    io_flusher: CallId,
}

impl Ask {
    /// Adds the calls to a program.
    pub(crate) fn add(program: &mut Program) -> Self {
        let tsc = program.space(8);
        program.try_call(libc::SYS_prctl, &[libc::PR_GET_TSC.into(), tsc.into()]);
        let machine_checks = program.try_call(libc::SYS_prctl, &[PR_MCE_KILL_GET.into()]);
        let speculation = [0, 1, 2]
            .map(|which| program.try_call(libc::SYS_prctl, &[PR_GET_SPECULATION_CTRL.into(), which.into()]));
        let cpuid = program.try_call(libc::SYS_arch_prctl, &[ARCH_GET_CPUID.into(), 0.into()]);
        let io_flusher = program.try_call(libc::SYS_prctl, &[PR_GET_IO_FLUSHER.into()]);
        Self { tsc, machine_checks, speculation, cpuid, io_flusher }
    }

    /// What it answered.
    pub(crate) fn read(&self, outcome: &Outcome) -> Switches {
        let value = |call, default| u32::try_from(outcome.result(call)).unwrap_or(default);
        Switches {
            tsc: u32::try_from(outcome.word(self.tsc)).unwrap_or(0),
            machine_checks: value(self.machine_checks, Switches::MACHINE_CHECKS_DEFAULT),
            speculation: self.speculation.map(|call| value(call, 0)),
            cpuid_faults: outcome.result(self.cpuid) == 0,
            io_flusher: outcome.result(self.io_flusher) == 1,
        }
    }
}
