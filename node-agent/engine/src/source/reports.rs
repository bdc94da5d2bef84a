//! What a parent has not been told yet of children that job control stopped or continued: wait(2) would tell it now.
//!
//! Asked on the parent's tape with WNOWAIT, which leaves it to be told.

use std::collections::BTreeMap;

use image::Pid;
use image::state::Report;
use sys::tape::{Block, Outcome, Program};

use super::error::SourceError;
use super::session::{Frozen, Tracked};
use super::tree::Process;

const OPTIONS: i32 = libc::WSTOPPED | libc::WCONTINUED | libc::WNOHANG | libc::WNOWAIT | libc::__WALL;
/// `sizeof(siginfo_t)`.
const SIGINFO: usize = 128;
const CLD_STOPPED: u32 = 5;
const CLD_CONTINUED: u32 = 6;
/// Children asked about at once: what fits on a tape.
const AT_ONCE: usize = 256;

/// One question: of any child, or of one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ask {
    info: Block,
}

impl Ask {
    /// Asks whether there is anything to tell of any child.
    pub(crate) fn add(program: &mut Program) -> Self {
        Self::about(program, libc::P_ALL, 0)
    }

    fn about(program: &mut Program, kind: libc::idtype_t, pid: Pid) -> Self {
        let info = program.space(SIGINFO);
        let kind = u64::from(kind);
        program.try_call(libc::SYS_waitid, &[kind.into(), pid.into(), info.into(), OPTIONS.into()]);
        Self { info }
    }

    fn answer(self, outcome: &Outcome) -> Report {
        let code = outcome.bytes(self.info).get(8..12).and_then(|code| code.try_into().ok());
        match code.map(u32::from_le_bytes) {
            Some(CLD_STOPPED) => Report::Stopped,
            Some(CLD_CONTINUED) => Report::Continued,
            _ => Report::None,
        }
    }

    fn is_any(self, outcome: &Outcome) -> bool {
        self.answer(outcome) != Report::None
    }
}

/// What is to be told of each process of the tree. All threads are parked.
pub(super) fn read(
    tree: &[Process],
    tracked: &BTreeMap<i32, Tracked>,
    frozen: &mut Frozen,
) -> Result<(), SourceError> {
    for process in tree {
        let Some(ask) = frozen.asks.get(&process.pid).and_then(|(_, ask)| ask.reports) else { continue };
        let Some(threads) = frozen.parked.get_mut(&process.pid) else { continue };
        let outcome = threads.first().and_then(|leader| leader.outcomes.first());
        if !outcome.is_some_and(|outcome| ask.is_any(outcome)) {
            continue;
        }
        let Some(tapes) = tracked.get(&process.pid).and_then(|tracked| tracked.tapes.as_ref()) else {
            continue;
        };
        let children = tree.iter().filter(|child| child.parent == process.inner && !child.is_zombie());
        let children: Vec<Pid> = children.map(|child| child.inner).collect();
        for children in children.chunks(AT_ONCE) {
            let mut program = Program::new();
            let asks: Vec<(Pid, Ask)> = children
                .iter()
                .map(|child| (*child, Ask::about(&mut program, libc::P_PID, *child)))
                .collect();
            let mut leader = tapes.again(threads.remove(0), program)?;
            let outcome = leader.outcomes.pop().unwrap_or_default();
            threads.insert(0, leader);
            frozen.reports.extend(asks.into_iter().map(|(child, ask)| (child, ask.answer(&outcome))));
        }
    }
    Ok(())
}
