//! Kernel keyrings, see keyrings(7) and keyctl(2).

use crate::abi::small;
use crate::{Errno, Result};

/// `KEYCTL_GET_KEYRING_ID`.
pub const GET_KEYRING_ID: i32 = 0;
/// `KEYCTL_DESCRIBE`.
pub const DESCRIBE: i32 = 6;
/// `KEYCTL_READ`.
pub const READ: i32 = 11;
/// `KEY_SPEC_THREAD_KEYRING`.
pub const THREAD: i32 = -1;
/// `KEY_SPEC_PROCESS_KEYRING`.
pub const PROCESS: i32 = -2;
/// `KEY_SPEC_SESSION_KEYRING`.
pub const SESSION: i32 = -3;

/// The number of the calling thread's session keyring.
///
/// # Errors
/// `ENOSYS` a kernel without keyrings, `EDQUOT`.
pub fn session() -> Result<i32> {
    // SAFETY: this operation takes integers only.
    small(unsafe { libc::syscall(libc::SYS_keyctl, GET_KEYRING_ID, SESSION, 0) })
}

/// Gives the calling thread, and what it starts, an empty session keyring of its own.
///
/// # Errors
/// `EDQUOT`. A kernel without keyrings has nothing to give.
pub fn join_new_session() -> Result<()> {
    const JOIN_SESSION_KEYRING: i32 = 1;
    let name: *const libc::c_char = std::ptr::null();
    // SAFETY: a null pointer asks for a keyring without a name.
    match small(unsafe { libc::syscall(libc::SYS_keyctl, JOIN_SESSION_KEYRING, name) }) {
        Ok(_) | Err(Errno::ENOSYS) => Ok(()),
        Err(errno) => Err(errno),
    }
}
