//! General registers of a stopped thread (`struct user_regs_struct`, x86-64).

/// The general registers as PTRACE_GETREGS gives them and PTRACE_SETREGS takes them.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are the architecture's")]
pub struct UserRegs {
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
    /// Number of the system call the thread is in; [`NO_SYSCALL`] when it is in none.
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

const _: () = assert!(size_of::<UserRegs>() == size_of::<libc::user_regs_struct>());
const _: () = assert!(std::mem::offset_of!(UserRegs, rip) == 16 * 8);
const _: () = assert!(std::mem::offset_of!(UserRegs, gs) == 26 * 8);

/// The value of `orig_rax` outside a system call.
pub const NO_SYSCALL: u64 = u64::MAX;

/// Code segment selector of 64-bit user code.
pub const USER_CS_64: u64 = 0x33;

impl UserRegs {
    /// The system call the thread was stopped in, if it was in one.
    #[must_use]
    pub fn syscall(&self) -> Option<u64> {
        (self.orig_rax.cast_signed() >= 0).then_some(self.orig_rax)
    }

    /// What the system call answered so far, as the kernel holds it (`-ERESTARTSYS` is -512).
    #[must_use]
    pub fn result(&self) -> i64 {
        self.rax.cast_signed()
    }

    /// System call argument `index` (0 = rdi ... 5 = r9), or `None` past the sixth.
    #[must_use]
    pub fn argument(&self, index: u8) -> Option<u64> {
        Some(match index {
            0 => self.rdi,
            1 => self.rsi,
            2 => self.rdx,
            3 => self.r10,
            4 => self.r8,
            5 => self.r9,
            _ => return None,
        })
    }

    /// Sets system call argument `index` (0 = rdi ... 5 = r9); past the sixth nothing happens.
    pub fn set_argument(&mut self, index: u8, value: u64) {
        match index {
            0 => self.rdi = value,
            1 => self.rsi = value,
            2 => self.rdx = value,
            3 => self.r10 = value,
            4 => self.r8 = value,
            5 => self.r9 = value,
            _ => {}
        }
    }

    /// True for 64-bit user code; everything else (compat, vm86) the engine refuses.
    #[must_use]
    pub fn is_64_bit(&self) -> bool {
        self.cs == USER_CS_64
    }
}
