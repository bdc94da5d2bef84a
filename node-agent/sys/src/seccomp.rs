//! What a seccomp filter would answer: an interpreter for the classic BPF that seccomp(2) accepts.
//!
//! Used before a tape runs in a filtered thread: filters are suspended while the tracer lives, and in force
//! for the calls that the thread still makes when the tracer dies.

use crate::ptrace::InstalledFilter;
use crate::tape::Program;

/// What happens to a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// The process is killed.
    KillProcess,
    /// The thread is killed.
    KillThread,
    /// SIGSYS.
    Trap,
    /// The call fails with this error number.
    Errno(u16),
    /// A supervisor decides.
    UserNotify,
    /// A tracer decides; ENOSYS without one.
    Trace,
    /// Allowed and logged.
    Log,
    /// Allowed.
    Allow,
}

/// AUDIT_ARCH_X86_64.
const ARCH: u32 = 0xc000_003e;

/// `struct seccomp_data`.
#[derive(Clone, Copy, Debug, Default)]
struct Data {
    nr: u32,
    ip: u64,
    args: [u64; 6],
}

impl Data {
    fn word(&self, offset: u32) -> Option<u32> {
        let half = |value: u64, high: bool| {
            let bytes = value.to_le_bytes();
            let at = if high { 4 } else { 0 };
            u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        let high = offset & 4 != 0;
        Some(match offset {
            _ if !offset.is_multiple_of(4) => return None,
            0 => self.nr,
            4 => ARCH,
            8 | 12 => half(self.ip, high),
            16..64 => half(*self.args.get(((offset - 16) / 8) as usize)?, high),
            _ => return None,
        })
    }
}

/// The verdict of all `filters` on one 64-bit call: the strictest wins. A malformed program counts as
/// [`Verdict::KillProcess`].
#[must_use]
pub fn verdict(filters: &[InstalledFilter], nr: u64, args: [u64; 6]) -> Verdict {
    let nr = u32::try_from(nr & 0xffff_ffff).unwrap_or(u32::MAX);
    let data = Data { nr, ip: 0, args };
    let answers =
        filters.iter().map(|filter| run(&filter.program, &data).map_or(Verdict::KillProcess, decode));
    answers.min().unwrap_or(Verdict::Allow)
}

fn decode(value: u32) -> Verdict {
    match value & 0xffff_0000 {
        0x8000_0000 => Verdict::KillProcess,
        0x0003_0000 => Verdict::Trap,
        0x0005_0000 => Verdict::Errno((value & 0xffff).try_into().unwrap_or(u16::MAX)),
        0x7fc0_0000 => Verdict::UserNotify,
        0x7ff0_0000 => Verdict::Trace,
        0x7ffc_0000 => Verdict::Log,
        0x7fff_0000 => Verdict::Allow,
        0 => Verdict::KillThread,
        // The kernel kills for an action it does not know.
        _ => Verdict::KillProcess,
    }
}

/// Runs one program; `None` when it is malformed.
fn run(program: &[u8], data: &Data) -> Option<u32> {
    let instructions = program.as_chunks::<8>().0;
    let (mut a, mut x) = (0u32, 0u32);
    let mut memory = [0u32; 16];
    let mut at = 0usize;
    // Jumps only go forward, so each instruction runs at most once.
    loop {
        let &[c0, c1, jt, jf, k0, k1, k2, k3] = instructions.get(at)?;
        let code = u16::from_le_bytes([c0, c1]);
        let k = u32::from_le_bytes([k0, k1, k2, k3]);
        at += 1;
        let source = if code & 8 != 0 { x } else { k };
        match code & 7 {
            0 => {
                a = match code & 0xf0 {
                    0x20 => data.word(k)?,
                    0x80 => 64,
                    0x00 => k,
                    0x60 => *memory.get(k as usize)?,
                    _ => return None,
                }
            }
            1 => {
                x = match code & 0xe0 {
                    0x00 => k,
                    0x60 => *memory.get(k as usize)?,
                    0x80 => 64,
                    _ => return None,
                }
            }
            2 => *memory.get_mut(k as usize)? = a,
            3 => *memory.get_mut(k as usize)? = x,
            4 => {
                a = match code & 0xf0 {
                    0x00 => a.wrapping_add(source),
                    0x10 => a.wrapping_sub(source),
                    0x20 => a.wrapping_mul(source),
                    0x30 => a.checked_div(source)?,
                    0x40 => a | source,
                    0x50 => a & source,
                    0x60 => a.checked_shl(source)?,
                    0x70 => a.checked_shr(source)?,
                    0x80 => a.wrapping_neg(),
                    0x90 => a.checked_rem(source)?,
                    0xa0 => a ^ source,
                    _ => return None,
                }
            }
            5 => {
                let taken = match code & 0xf0 {
                    0x00 => {
                        at = at.checked_add(k as usize)?;
                        continue;
                    }
                    0x10 => a == source,
                    0x20 => a > source,
                    0x30 => a >= source,
                    0x40 => a & source != 0,
                    _ => return None,
                };
                at += usize::from(if taken { jt } else { jf });
            }
            6 => return Some(if code & 0x18 == 0x10 { a } else { k }),
            _ => match code & 0xf8 {
                0x00 => x = a,
                0x80 => a = x,
                _ => return None,
            },
        }
    }
}

/// A call that a thread whose tracer died could not make without harm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the seccomp filter answers {verdict:?} to system call {nr}, which a thread must make to restore itself"
)]
pub struct Unsafe {
    /// The call.
    pub nr: u64,
    /// The filter's answer.
    pub verdict: Verdict,
}

/// Whether a thread under `filters` would survive the tracer's death in the middle of `program`: its calls
/// may fail but not kill or wait, and rt_sigprocmask(2) must be allowed.
///
/// # Errors
/// The first call that is not safe.
pub fn check_tape(filters: &[InstalledFilter], program: &Program) -> Result<(), Unsafe> {
    let own = [libc::SYS_getpid, libc::SYS_gettid, libc::SYS_tgkill].map(|nr| (nr.cast_unsigned(), [0; 6]));
    for (nr, args) in own.into_iter().chain(program.seccomp_calls()) {
        let verdict = verdict(filters, nr, args);
        if verdict <= Verdict::Trap || verdict == Verdict::UserNotify {
            return Err(Unsafe { nr, verdict });
        }
    }
    let nr = libc::SYS_rt_sigprocmask.cast_unsigned();
    match verdict(filters, nr, [2, 0, 0, 8, 0, 0]) {
        Verdict::Allow | Verdict::Log => Ok(()),
        verdict => Err(Unsafe { nr, verdict }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(instructions: &[(u16, u8, u8, u32)]) -> InstalledFilter {
        let mut program = Vec::new();
        for (code, jt, jf, k) in instructions {
            program.extend_from_slice(&code.to_le_bytes());
            program.extend_from_slice(&[*jt, *jf]);
            program.extend_from_slice(&k.to_le_bytes());
        }
        InstalledFilter { program, flags: 0 }
    }

    const ALLOW: u32 = 0x7fff_0000;

    /// Allows everything but `nr`, which gets `action`.
    fn deny(nr: i64, action: u32) -> InstalledFilter {
        let nr = u32::try_from(nr).unwrap();
        filter(&[(0x20, 0, 0, 0), (0x15, 0, 1, nr), (0x06, 0, 0, action), (0x06, 0, 0, ALLOW)])
    }

    #[test]
    fn the_strictest_filter_wins() {
        let filters = [deny(libc::SYS_mmap, 0x0005_0001), deny(libc::SYS_mmap, 0x8000_0000), deny(1, 0)];
        assert_eq!(verdict(&filters, libc::SYS_mmap.cast_unsigned(), [0; 6]), Verdict::KillProcess);
        assert_eq!(verdict(&filters[..1], libc::SYS_mmap.cast_unsigned(), [0; 6]), Verdict::Errno(1));
        assert_eq!(verdict(&filters, 1, [0; 6]), Verdict::KillThread);
        assert_eq!(verdict(&filters, 2, [0; 6]), Verdict::Allow);
        assert_eq!(verdict(&[], 2, [0; 6]), Verdict::Allow);
    }

    #[test]
    fn arguments_and_architecture_are_seen() {
        // Second argument's low word > 10 is killed; a foreign architecture would be too.
        let f = filter(&[
            (0x20, 0, 0, 4),
            (0x15, 0, 3, ARCH),
            (0x20, 0, 0, 24),
            (0x25, 1, 0, 10),
            (0x06, 0, 0, ALLOW),
            (0x06, 0, 0, 0),
        ]);
        assert_eq!(verdict(std::slice::from_ref(&f), 9, [0, 10, 0, 0, 0, 0]), Verdict::Allow);
        assert_eq!(verdict(&[f], 9, [0, 11, 0, 0, 0, 0]), Verdict::KillThread);
    }

    #[test]
    fn malformed_programs_kill() {
        assert_eq!(verdict(&[filter(&[(0x20, 0, 0, 0)])], 1, [0; 6]), Verdict::KillProcess);
        assert_eq!(
            verdict(&[filter(&[(0x20, 0, 0, 70), (0x06, 0, 0, ALLOW)])], 1, [0; 6]),
            Verdict::KillProcess
        );
    }

    #[test]
    fn a_tape_needs_its_mask_back() {
        let mut program = Program::new();
        program.call(libc::SYS_userfaultfd, &[]);
        assert_eq!(check_tape(&[deny(libc::SYS_userfaultfd, 0x0005_0001)], &program), Ok(()));
        assert!(check_tape(&[deny(libc::SYS_userfaultfd, 0x8000_0000)], &program).is_err());
        let mask = check_tape(&[deny(libc::SYS_rt_sigprocmask, 0x0005_0001)], &Program::new());
        assert_eq!(mask.map_err(|e| e.nr), Err(14));
    }
}
