//! Landlock, see landlock(7).

use std::sync::OnceLock;

/// Whether this kernel has it, and has it switched on.
#[must_use]
pub fn is_there() -> bool {
    static THERE: OnceLock<bool> = OnceLock::new();
    *THERE.get_or_init(|| {
        const VERSION: libc::c_ulong = 1;
        let nothing: *const libc::c_void = std::ptr::null();
        // SAFETY: with this flag the call takes no structure and answers a number.
        let version = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, nothing, 0_usize, VERSION) };
        version > 0
    })
}
