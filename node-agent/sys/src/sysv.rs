//! System V shared memory, semaphores and message queues of this thread's IPC namespace, see sysvipc(7).

use std::fs::File;

use crate::abi::{io_errno, small};
use crate::{Errno, Result};

/// `IPC_RMID`.
pub const REMOVE: i32 = 0;
/// `IPC_SET`.
pub const SET: i32 = 1;
const STAT: i32 = 2;
/// `SHM_LOCK`.
pub const LOCK: i32 = 11;
/// `SETVAL`.
pub const SET_VALUE: i32 = 16;
const GET_PID: i32 = 11;
const GET_ALL: i32 = 13;
const MSG_COPY: i32 = 0o40_000;

/// A file of the segment's memory. It keeps the memory, and does not count as attached.
///
/// # Errors
/// `EINVAL` no such segment, `EACCES`, `EPERM` without `CAP_CHECKPOINT_RESTORE`.
pub fn open_segment(id: i32) -> Result<File> {
    // SAFETY: a null address lets the kernel choose a free one; nothing of this process is replaced.
    let address = unsafe { libc::shmat(id, std::ptr::null(), libc::SHM_RDONLY) };
    if address.addr() == usize::MAX {
        return Err(Errno::last());
    }
    let file = file_at(address.addr());
    // SAFETY: the mapping was made above, and nothing points into it.
    small(unsafe { libc::shmdt(address) })?;
    file
}

/// The file behind the mapping of this process that begins at an address.
fn file_at(address: usize) -> Result<File> {
    let maps = std::fs::read_dir("/proc/self/map_files").map_err(|error| io_errno(&error))?;
    let prefix = format!("{address:x}-");
    for entry in maps {
        let entry = entry.map_err(|error| io_errno(&error))?;
        if entry.file_name().to_string_lossy().starts_with(&prefix) {
            return File::open(entry.path()).map_err(|error| io_errno(&error));
        }
    }
    Err(Errno::ENOENT)
}

/// The values of a set of `count` semaphores.
///
/// # Errors
/// `EINVAL`, `EIDRM` no such set, `EACCES`.
pub fn semaphores(id: i32, count: usize) -> Result<Vec<u16>> {
    let mut values = vec![0u16; count];
    // A set keeps its size, but its number may be another's by now.
    if semaphore_count(id)? != count {
        return Err(Errno::EIDRM);
    }
    // SAFETY: the kernel writes one value a semaphore of the set, and there is room for as many.
    small(unsafe { libc::semctl(id, 0, GET_ALL, values.as_mut_ptr()) })?;
    Ok(values)
}

fn semaphore_count(id: i32) -> Result<usize> {
    // SAFETY: all-zero bytes are a value of this plain C structure.
    let mut about: libc::semid_ds = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel fills a structure of this type.
    small(unsafe { libc::semctl(id, 0, STAT, std::ptr::from_mut(&mut about)) })?;
    usize::try_from(about.sem_nsems).map_err(|_| Errno::EOVERFLOW)
}

/// The process that changed a semaphore last, as this thread's pid namespace numbers it; 0 = none, or one elsewhere.
///
/// # Errors
/// As [`semaphores`].
pub fn semaphore_pid(id: i32, index: usize) -> Result<i32> {
    let index = i32::try_from(index).map_err(|_| Errno::EINVAL)?;
    // SAFETY: this operation takes integers only.
    small(unsafe { libc::semctl(id, index, GET_PID) })
}

/// How many bytes a message queue may hold.
///
/// # Errors
/// As [`semaphores`].
pub fn queue_capacity(id: i32) -> Result<u64> {
    // SAFETY: all-zero bytes are a value of this plain C structure.
    let mut about: libc::msqid_ds = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel fills a structure of this type.
    small(unsafe { libc::msgctl(id, STAT, std::ptr::from_mut(&mut about)) })?;
    Ok(about.msg_qbytes)
}

/// The message at a place of a queue, 0 = the oldest: its type and its text of at most `size` bytes. It stays where it is.
/// `None`: there is none.
///
/// # Errors
/// As [`semaphores`]; `ENOSYS` the kernel does not do this (`CONFIG_CHECKPOINT_RESTORE`), `E2BIG`.
pub fn peek_message(id: i32, index: usize, size: usize) -> Result<Option<(i64, Vec<u8>)>> {
    const HEAD: usize = 8;
    let mut buffer = vec![0u8; HEAD + size];
    let index = i64::try_from(index).map_err(|_| Errno::EINVAL)?;
    let flags = MSG_COPY | libc::IPC_NOWAIT;
    // SAFETY: the buffer has room for the type and `size` bytes of text.
    let answer = unsafe { libc::msgrcv(id, buffer.as_mut_ptr().cast(), size, index, flags) };
    match small(i64::try_from(answer).map_err(|_| Errno::EOVERFLOW)?) {
        Ok(length) => {
            let kind = buffer.first_chunk::<HEAD>().map_or(0, |kind| i64::from_le_bytes(*kind));
            let length = usize::try_from(length).map_err(|_| Errno::EOVERFLOW)?;
            buffer.truncate(HEAD + length);
            buffer.drain(..HEAD);
            Ok(Some((kind, buffer)))
        }
        Err(Errno::ENOMSG) => Ok(None),
        Err(errno) => Err(errno),
    }
}
