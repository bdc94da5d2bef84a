//! Bootstrap: the first calls in a source run from the unused bytes at the end of its vDSO.
//!
//! /proc/PID/mem writes there force a private copy of that page for this process alone, as a debugger's
//! breakpoint does. No code or data of the program is touched and nothing needs to be mapped before.

use std::ops::Range;

use super::code::{self, Code, Entries, Reg};
use super::vdso::VdsoError;
use crate::mem::ProcessMemory;
use crate::ptrace::Stopped;
use crate::regs::UserRegs;

/// Registers that keep results: unchanged by system calls.
const RESULTS: [Reg; 5] = [Reg::R12, Reg::R13, Reg::R14, Reg::Rbx, Reg::Rbp];

/// An argument of a bootstrap call.
#[derive(Clone, Copy, Debug)]
pub(super) enum BootArg {
    Value(u64),
    /// What the call of that number returned.
    Result(usize),
    /// Address of the text.
    Text,
}

/// A bootstrap call.
#[derive(Clone, Debug)]
pub(super) struct BootCall {
    pub(super) nr: i64,
    pub(super) args: Vec<BootArg>,
}

/// What is to be done from the slack.
#[derive(Debug, Default)]
pub(super) struct Boot {
    /// At most five; the rest are skipped after the first that fails.
    pub(super) calls: Vec<BootCall>,
    /// Made once after the park: close the descriptor that this call returned.
    pub(super) close_after: Option<usize>,
    /// A string for the calls.
    pub(super) text: &'static [u8],
}

/// The slack of one process.
#[derive(Debug)]
pub(super) struct Slack {
    pub(super) pid: i32,
    pub(super) range: Range<u64>,
}

impl Slack {
    /// Writes the code for `boot`. No thread may be in the slack.
    pub(super) fn write(
        &self,
        memory: &ProcessMemory,
        boot: &Boot,
        signal: i32,
        mask: u64,
        regs: &UserRegs,
    ) -> Result<Entries, VdsoError> {
        let (bytes, entries) = build(self.range.start, boot, signal, mask, regs);
        let have = usize::try_from(self.range.end - self.range.start).unwrap_or(0);
        if bytes.len() > have {
            return Err(VdsoError::TooSmall { pid: self.pid, have, need: bytes.len() });
        }
        memory.write(self.range.start, &bytes).map_err(|source| VdsoError::Read { pid: self.pid, source })?;
        Ok(entries)
    }

    /// Zeroes it. No thread may be in it.
    pub(super) fn clear(&self, memory: &ProcessMemory) -> Result<(), VdsoError> {
        let len = usize::try_from(self.range.end - self.range.start).unwrap_or(0);
        memory
            .write(self.range.start, &vec![0; len])
            .map_err(|source| VdsoError::Read { pid: self.pid, source })
    }

    /// The results of the calls, read at the park; -1 for a call that was not made.
    pub(super) fn results(stopped: &Stopped, count: usize) -> Result<Vec<i64>, crate::ptrace::Error> {
        let regs = stopped.regs()?;
        let all = [regs.r12, regs.r13, regs.r14, regs.rbx, regs.rbp];
        Ok(all.iter().take(count).map(|value| value.cast_signed()).collect())
    }
}

/// Bytes before the code: two masks and the text.
const MASKS: usize = 16;

fn build(base: u64, boot: &Boot, signal: i32, mask: u64, regs: &UserRegs) -> (Vec<u8>, Entries) {
    let mut code = Code::default();
    code.raw(&quiet_mask(signal).to_le_bytes());
    code.raw(&mask.to_le_bytes());
    code.raw(boot.text);
    code.raw(&vec![0; boot.text.len().next_multiple_of(16) - boot.text.len()]);
    let begin = code.here();
    code::set_mask(&mut code, base);
    for reg in RESULTS {
        code.load(reg, u64::MAX);
    }
    let mut failed = Vec::new();
    for (call, result) in boot.calls.iter().zip(RESULTS) {
        for (arg, reg) in call.args.iter().zip(code::ARGUMENTS) {
            match *arg {
                BootArg::Value(value) => code.load(reg, value),
                BootArg::Text => code.load(reg, base + MASKS as u64),
                BootArg::Result(from) => {
                    if let Some(from) = RESULTS.get(from) {
                        code.copy(reg, *from);
                    }
                }
            }
        }
        code.load(Reg::Rax, call.nr.cast_unsigned());
        code.syscall();
        code.copy(result, Reg::Rax);
        code.raw(code::CMP_RAX_ERROR);
        failed.push(code.jump(code::JAE));
    }
    for jump in &failed {
        code.land(jump);
    }
    let park_at = code.here();
    code::park(&mut code, signal);
    let parked = code.here();
    code.load(Reg::R15, 0);
    let after = code.here();
    if let Some(reg) = boot.close_after.and_then(|from| RESULTS.get(from)) {
        code.copy(Reg::Rdi, *reg);
        code.load(*reg, u64::MAX); // once only
        code.load(Reg::Rax, libc::SYS_close.cast_unsigned());
        code.syscall();
    }
    code.raw(&[0x4d, 0x85, 0xff]); // test r15, r15
    code.jump_back(&[0x0f, 0x85], park_at);
    code::set_mask(&mut code, base + 8);
    code::restore(&mut code, regs);
    let at = |offset: usize| offset as u64;
    let entries = Entries { begin: at(begin), walk: at(begin), parked: at(parked), after: at(after) };
    (code.into_bytes(), entries)
}

/// All signals but the one to park by (SIGKILL and SIGSTOP cannot be blocked anyway).
pub(super) fn quiet_mask(signal: i32) -> u64 {
    !(1u64 << (signal.unsigned_abs().saturating_sub(1) & 63))
}
