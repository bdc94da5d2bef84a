//! What only a process itself can tell of its address space: membarrier(2), modify_ldt(2).

use sys::tape::{CallId, Outcome, Program};

/// MEMBARRIER_CMD_GET_REGISTRATIONS, Linux 6.3.
const GET_REGISTRATIONS: i32 = 1 << 9;
/// The four commands that register.
const ALL: u32 = 1 << 2 | 1 << 4 | 1 << 6 | 1 << 8;

/// What one thread is asked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ask {
    barriers: CallId,
    segments: CallId,
}

impl Ask {
    /// Adds the calls to a program.
    pub(crate) fn add(program: &mut Program) -> Self {
        let barriers =
            program.try_call(libc::SYS_membarrier, &[GET_REGISTRATIONS.into(), 0.into(), 0.into()]);
        let table = program.space(8);
        let segments = program.try_call(libc::SYS_modify_ldt, &[0.into(), table.into(), 8.into()]);
        Self { barriers, segments }
    }

    /// The registering commands of membarrier(2) that were made. An older kernel does not tell: then all of them, since
    /// a program whose registration is missing fails, and one too many does no harm.
    pub(crate) fn barriers(&self, outcome: &Outcome) -> u32 {
        u32::try_from(outcome.result(self.barriers)).unwrap_or(ALL)
    }

    /// What it has that would be lost: reason and way out.
    pub(crate) fn refusal(&self, outcome: &Outcome) -> Option<(&'static str, &'static str)> {
        // Without a table of its own it reads nothing.
        (outcome.result(self.segments) > 0).then_some((
            "it has a local descriptor table (modify_ldt), which is not carried yet",
            "start the program without 16-bit and thread segments of its own",
        ))
    }
}
