//! The machine code of tapes, generated with its addresses as immediates.
//!
//! Rules of all source code here: the stack pointer never changes (a signal's frame goes where it would have
//! gone anyway), nothing depends on registers that a signal handler could have changed, and every path leads
//! to the restore stub.

use crate::regs::UserRegs;

/// Registers by their number in an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Reg {
    Rax = 0,
    Rcx = 1,
    Rdx = 2,
    Rbx = 3,
    Rbp = 5,
    Rsi = 6,
    Rdi = 7,
    R8 = 8,
    R9 = 9,
    R10 = 10,
    R11 = 11,
    R12 = 12,
    R13 = 13,
    R14 = 14,
    R15 = 15,
}

/// System call arguments in order.
pub(super) const ARGUMENTS: [Reg; 6] = [Reg::Rdi, Reg::Rsi, Reg::Rdx, Reg::R10, Reg::R8, Reg::R9];

/// Machine code in the making.
#[derive(Debug, Default)]
pub(super) struct Code {
    bytes: Vec<u8>,
}

/// A forward jump whose distance is not known yet (rel32).
pub(super) struct Jump(usize);

impl Code {
    pub(super) fn here(&self) -> usize {
        self.bytes.len()
    }

    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    pub(super) fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    fn rex(reg: Reg, wide: bool) -> u8 {
        0x40 | (u8::from(wide) << 3) | u8::from(reg as u8 >= 8)
    }

    /// `mov reg, value` in its shortest form that leaves the flags alone.
    pub(super) fn load(&mut self, reg: Reg, value: u64) {
        let opcode = 0xb8 | (reg as u8 & 7);
        if let Ok(small) = u32::try_from(value) {
            if reg as u8 >= 8 {
                self.raw(&[0x41]);
            }
            self.raw(&[opcode]);
            self.raw(&small.to_le_bytes());
        } else {
            self.raw(&[Self::rex(reg, true), opcode]);
            self.raw(&value.to_le_bytes());
        }
    }

    /// `mov to, from`.
    pub(super) fn copy(&mut self, to: Reg, from: Reg) {
        let rex = 0x48 | (u8::from(from as u8 >= 8) << 2) | u8::from(to as u8 >= 8);
        self.raw(&[rex, 0x89, 0xc0 | ((from as u8 & 7) << 3) | (to as u8 & 7)]);
    }

    /// `mov to, [rbx + offset]`.
    fn load_field(&mut self, to: Reg, offset: u8) {
        let rex = 0x48 | (u8::from(to as u8 >= 8) << 2);
        self.raw(&[rex, 0x8b, 0x43 | ((to as u8 & 7) << 3), offset]);
    }

    pub(super) fn syscall(&mut self) {
        self.raw(&[0x0f, 0x05]);
    }

    /// A conditional (`0x0f 0x8?`) or plain (`0xe9`) forward jump.
    pub(super) fn jump(&mut self, opcode: &[u8]) -> Jump {
        self.raw(opcode);
        self.raw(&[0; 4]);
        Jump(self.here())
    }

    /// Makes `jump` come here.
    pub(super) fn land(&mut self, jump: &Jump) {
        let distance = u32::try_from(self.here() - jump.0).unwrap_or(0);
        self.bytes[jump.0 - 4..jump.0].copy_from_slice(&distance.to_le_bytes());
    }

    /// A jump back to `target`.
    pub(super) fn jump_back(&mut self, opcode: &[u8], target: usize) {
        self.raw(opcode);
        let distance = u32::try_from(self.here() + 4 - target).unwrap_or(0).wrapping_neg();
        self.raw(&distance.to_le_bytes());
    }
}

const JMP: &[u8] = &[0xe9];
pub(super) const JAE: &[u8] = &[0x0f, 0x83];
const JE: &[u8] = &[0x0f, 0x84];
const JNE: &[u8] = &[0x0f, 0x85];
/// `cmp rax, -4095`: above or equal means an error.
pub(super) const CMP_RAX_ERROR: &[u8] = &[0x48, 0x3d, 0x01, 0xf0, 0xff, 0xff];

/// Walks rbp records from rbx on; falls through at the end or at the first error.
fn walk(code: &mut Code) {
    let top = code.here();
    code.raw(&[0x48, 0x85, 0xed]); // test rbp, rbp
    let done = code.jump(JE);
    record_call(code);
    code.load_field(Reg::Rcx, 72);
    code.raw(&[0x48, 0x89, 0x01]); // mov [rcx], rax
    code.raw(&[0x48, 0x83, 0x7b, 64, 0]); // cmp qword [rbx+64], 0
    let tolerant = code.jump(JNE);
    code.raw(CMP_RAX_ERROR);
    let failed = code.jump(JAE);
    code.land(&tolerant);
    code.raw(&[0x48, 0x83, 0xc3, 80]); // add rbx, 80
    code.raw(&[0x48, 0xff, 0xcd]); // dec rbp
    code.jump_back(JMP, top);
    code.land(&done);
    code.land(&failed);
}

/// Makes the call of the record at rbx and stores its result.
fn record_call(code: &mut Code) {
    load_record(code);
    code.syscall();
    store_result(code);
}

fn load_record(code: &mut Code) {
    code.load_field(Reg::Rax, 0);
    for (offset, reg) in (8u8..).step_by(8).zip(ARGUMENTS) {
        code.load_field(reg, offset);
    }
}

fn store_result(code: &mut Code) {
    code.raw(&[0x48, 0x89, 0x43, 56]); // mov [rbx+56], rax
}

/// Offset of the address behind the breakpoint at the end of [`target`].
pub(super) const TARGET_END: u64 = TARGET_LEN as u64;
const TARGET_LEN: usize = 86;

/// The skeletons' loop. Entered with rbx = records, rbp = their number.
pub(super) fn target() -> Vec<u8> {
    let mut code = Code::default();
    walk(&mut code);
    code.raw(&[0xcc]);
    let bytes = code.into_bytes();
    debug_assert_eq!(bytes.len(), TARGET_LEN);
    bytes
}

/// rt_sigprocmask(SIG_SETMASK, address, NULL, 8).
pub(super) fn set_mask(code: &mut Code, address: u64) {
    code.load(Reg::Rax, 14);
    code.load(Reg::Rdi, 2);
    code.load(Reg::Rsi, address);
    code.load(Reg::Rdx, 0);
    code.load(Reg::R10, 8);
    code.syscall();
}

/// tgkill(getpid(), gettid(), signal): a stop when traced, nothing when not.
pub(super) fn park(code: &mut Code, signal: i32) {
    code.load(Reg::Rax, 39);
    code.syscall();
    code.copy(Reg::Rdi, Reg::Rax);
    code.load(Reg::Rax, 186);
    code.syscall();
    code.copy(Reg::Rsi, Reg::Rax);
    code.load(Reg::Rdx, signal.unsigned_abs().into());
    code.load(Reg::Rax, 234);
    code.syscall();
}

/// Flags that the stub can restore, and those that are always so in user code (IF and bit 1, RF).
const RESTORABLE: u64 = 0xcd5 | 0x1_0202;

/// Whether [`restore`] can bring these flags back (not: alignment check, trap, nested task, ID).
pub(super) fn restorable(eflags: u64) -> bool {
    eflags & !RESTORABLE == 0
}

/// Restores flags and all general registers but rsp, and goes on at `regs.rip`.
pub(super) fn restore(code: &mut Code, regs: &UserRegs) {
    let flag = |bit: u32| regs.eflags >> bit & 1 == 1;
    // OF: 0x7f + 1 overflows, 0 + 1 does not.
    code.raw(&[0xb0, if flag(11) { 0x7f } else { 0 }]); // mov al, x
    code.raw(&[0x04, 0x01]); // add al, 1
    let low = u8::try_from(regs.eflags & 0xd5).unwrap_or(0) | 2;
    code.raw(&[0xb4, low, 0x9e]); // mov ah, flags; sahf
    code.raw(&[if flag(10) { 0xfd } else { 0xfc }]); // std or cld
    for (reg, value) in [
        (Reg::Rax, regs.rax),
        (Reg::Rcx, regs.rcx),
        (Reg::Rdx, regs.rdx),
        (Reg::Rbx, regs.rbx),
        (Reg::Rbp, regs.rbp),
        (Reg::Rsi, regs.rsi),
        (Reg::Rdi, regs.rdi),
        (Reg::R8, regs.r8),
        (Reg::R9, regs.r9),
        (Reg::R10, regs.r10),
        (Reg::R11, regs.r11),
        (Reg::R12, regs.r12),
        (Reg::R13, regs.r13),
        (Reg::R14, regs.r14),
        (Reg::R15, regs.r15),
    ] {
        code.load(reg, value);
    }
    code.raw(&[0xff, 0x25, 0, 0, 0, 0]); // jmp [rip+0]
    code.raw(&regs.rip.to_le_bytes());
}

/// What the code of a source slot is made from.
#[derive(Clone, Copy, Debug)]
pub(super) struct SlotCode {
    /// Address of the mask that the tape runs under.
    pub(super) quiet_mask: u64,
    /// Address of the thread's own mask.
    pub(super) own_mask: u64,
    /// Address of {calls left after the park, address of the next record}.
    pub(super) after: u64,
    /// The signal it parks by.
    pub(super) signal: i32,
}

/// Entry points of generated code, from its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entries {
    /// Sets the mask first. Registers as for `walk`.
    pub(super) begin: u64,
    /// The mask is set already: rbx = records, rbp = their number.
    pub(super) walk: u64,
    /// rip at the park.
    pub(super) parked: u64,
    /// Runs the calls after the park; with r15 = 1 it parks again.
    pub(super) after: u64,
}

/// A source thread's code: tape, park, calls after the park, restore.
pub(super) fn source(slot: &SlotCode, regs: &UserRegs) -> (Vec<u8>, Entries) {
    let mut code = Code::default();
    set_mask(&mut code, slot.quiet_mask);
    let walk_at = code.here();
    walk(&mut code);
    let park_at = code.here();
    park(&mut code, slot.signal);
    let parked = code.here();
    code.load(Reg::R15, 0);
    let after = code.here();
    code.load(Reg::R12, slot.after);
    let top = code.here();
    code.raw(&[0x49, 0x83, 0x3c, 0x24, 0]); // cmp qword [r12], 0
    let done = code.jump(JE);
    code.raw(&[0x49, 0x8b, 0x5c, 0x24, 8]); // mov rbx, [r12+8]
    load_record(&mut code);
    code.raw(&[0x49, 0x83, 0x44, 0x24, 8, 80]); // add qword [r12+8], 80
    code.raw(&[0x49, 0xff, 0x0c, 0x24]); // dec qword [r12]
    code.syscall();
    store_result(&mut code);
    code.jump_back(JMP, top);
    code.land(&done);
    code.raw(&[0x4d, 0x85, 0xff]); // test r15, r15
    code.jump_back(JNE, park_at);
    set_mask(&mut code, slot.own_mask);
    restore(&mut code, regs);
    let entries = Entries { begin: 0, walk: walk_at as u64, parked: parked as u64, after: after as u64 };
    (code.into_bytes(), entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_holds_the_longest_code() {
        let all = u64::MAX;
        let slot = SlotCode { quiet_mask: all, own_mask: all, after: all, signal: 64 };
        let regs = UserRegs {
            r15: all,
            r14: all,
            r13: all,
            r12: all,
            rbp: all,
            rbx: all,
            r11: all,
            r10: all,
            r9: all,
            r8: all,
            rax: all,
            rcx: all,
            rdx: all,
            rsi: all,
            rdi: all,
            ..UserRegs::default()
        };
        let (bytes, _) = source(&slot, &regs);
        assert!(bytes.len() <= super::super::layout::CODE_SLOT, "{} bytes", bytes.len());
    }

    #[test]
    fn the_target_loop_ends_with_a_breakpoint() {
        let bytes = target();
        assert_eq!(bytes.len(), TARGET_LEN);
        assert_eq!(bytes.last(), Some(&0xcc));
    }

    #[test]
    fn flags_beyond_reach_are_named() {
        assert!(restorable(0x246));
        assert!(restorable(0xed7));
        assert!(!restorable(0x40246), "alignment check");
        assert!(!restorable(0x346), "trap flag");
    }
}
