//! Finding and sending written memory.

pub(crate) mod batch;
pub(crate) mod contents;
pub(crate) mod digests;
pub(crate) mod guards;
pub(crate) mod hot;
pub(crate) mod huge;
pub(crate) mod objects;
pub(crate) mod process;
pub(crate) mod readers;
pub(crate) mod sent;
pub(crate) mod soft_dirty;
pub(crate) mod template;
pub(crate) mod tracker;

/// The number of the last process or thread made, in this process's pid namespace: while it stays the same,
/// nobody below forked.
pub(crate) fn last_pid() -> Option<u64> {
    let bytes = crate::proc::read_path("/proc/loadavg").ok()?;
    let last = crate::proc::words(bytes.trim_ascii()).last()?;
    crate::proc::number(last)
}
