//! Settings of an IPC namespace below /proc/sys, see proc_sys_kernel(5), proc_sys_fs(5).

use super::ProcError;

/// What may be set of an IPC namespace, below /proc/sys. A kernel may lack some.
const SETTINGS: [&str; 14] = [
    "kernel/auto_msgmni",
    "kernel/msgmax",
    "kernel/msgmnb",
    "kernel/msgmni",
    "kernel/sem",
    "kernel/shm_rmid_forced",
    "kernel/shmall",
    "kernel/shmmax",
    "kernel/shmmni",
    "fs/mqueue/msg_default",
    "fs/mqueue/msg_max",
    "fs/mqueue/msgsize_default",
    "fs/mqueue/msgsize_max",
    "fs/mqueue/queues_max",
];

/// The settings of this thread's namespace, each with its text.
///
/// # Errors
/// When one can be seen and not read.
pub(crate) fn settings() -> Result<Vec<(String, String)>, ProcError> {
    let mut all = Vec::with_capacity(SETTINGS.len());
    for name in SETTINGS {
        match super::read_path(&format!("/proc/sys/{name}")) {
            Ok(text) => {
                all.push((name.to_owned(), String::from_utf8_lossy(text.trim_ascii()).into_owned()));
            }
            Err(error) if error.is_gone() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(all)
}
