//! Switches of a thread, set again where they are not at their defaults.

use image::state::Switches;
use libc::{SYS_arch_prctl, SYS_prctl};

use super::script::{Call, call};

const PR_MCE_KILL: i32 = 33;
const PR_MCE_KILL_SET: i32 = 1;
const PR_SET_SPECULATION_CTRL: i32 = 53;
const PR_SET_IO_FLUSHER: i32 = 57;
const ARCH_SET_CPUID: i32 = 0x1012;

/// Those that take a capability (CAP_SYS_RESOURCE).
pub(super) fn before_credentials(switches: &Switches) -> Vec<Call> {
    let mut calls = Vec::new();
    if switches.io_flusher {
        calls.push(call!("PR_SET_IO_FLUSHER", SYS_prctl, PR_SET_IO_FLUSHER, 1, 0, 0, 0));
    }
    calls
}

/// The others.
pub(super) fn after_credentials(switches: &Switches) -> Vec<Call> {
    let mut calls = Vec::new();
    if switches.machine_checks != Switches::MACHINE_CHECKS_DEFAULT {
        let value = switches.machine_checks;
        calls.push(call!("PR_MCE_KILL", SYS_prctl, PR_MCE_KILL, PR_MCE_KILL_SET, value, 0, 0));
    }
    for (which, value) in switches.speculation.into_iter().enumerate() {
        if let Some(wanted) = mitigation(value) {
            calls.push(call!(
                "PR_SET_SPECULATION_CTRL",
                SYS_prctl,
                PR_SET_SPECULATION_CTRL,
                which,
                wanted,
                0,
                0
            ));
        }
    }
    if switches.cpuid_faults {
        calls.push(call!("ARCH_SET_CPUID", SYS_arch_prctl, ARCH_SET_CPUID, 0));
    }
    if switches.tsc == Switches::TSC_SIGSEGV {
        calls.push(call!("PR_SET_TSC", SYS_prctl, libc::PR_SET_TSC, switches.tsc, 0, 0, 0));
    }
    calls
}

/// What PR_GET_SPECULATION_CTRL said, as PR_SET_SPECULATION_CTRL takes it; `None` for what the thread did not ask for.
fn mitigation(value: u32) -> Option<u32> {
    const BY_PRCTL: u32 = 1;
    const DISABLE: u32 = 4;
    const FORCE_DISABLE: u32 = 8;
    const DISABLE_UNTIL_EXEC: u32 = 16;
    if value & BY_PRCTL == 0 {
        return None;
    }
    [FORCE_DISABLE, DISABLE_UNTIL_EXEC, DISABLE].into_iter().find(|bit| value & bit != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_thread_did_not_ask_for_is_not_set() {
        assert_eq!(mitigation(0), None, "not affected");
        assert_eq!(mitigation(4), None, "off for all");
        assert_eq!((mitigation(3), mitigation(5)), (None, Some(4)));
        assert_eq!((mitigation(1 | 8), mitigation(1 | 4 | 16)), (Some(8), Some(16)));
    }

    #[test]
    fn defaults_take_no_calls() {
        let default = Switches { machine_checks: Switches::MACHINE_CHECKS_DEFAULT, ..Switches::default() };
        assert!(before_credentials(&default).is_empty() && after_credentials(&default).is_empty());
    }
}
