//! Links of procfs: files behind descriptors and mappings, directories, namespaces.

use std::fs::{self, Metadata};
use std::os::linux::fs::MetadataExt;
use std::os::unix::ffi::OsStringExt;

use super::{ProcError, text};

/// Names in /proc/PID/ns that the engine compares. `pid_for_children` and `time_for_children` differ from
/// the task's own ones after unshare(2).
pub const NAMESPACES: [&str; 10] =
    ["cgroup", "ipc", "mnt", "net", "pid", "pid_for_children", "time", "time_for_children", "user", "uts"];

/// Reads a link of /proc/PID, raw.
///
/// # Errors
/// [`ProcError::Read`].
pub fn read(pid: i32, name: &str) -> Result<Vec<u8>, ProcError> {
    let path = format!("/proc/{pid}/{name}");
    fs::read_link(&path)
        .map(|target| target.into_os_string().into_vec())
        .map_err(|source| ProcError::Read { path, source })
}

/// Metadata of what a link of /proc/PID leads to.
///
/// # Errors
/// [`ProcError::Read`].
pub fn metadata(pid: i32, name: &str) -> Result<Metadata, ProcError> {
    let path = format!("/proc/{pid}/{name}");
    fs::metadata(&path).map_err(|source| ProcError::Read { path, source })
}

/// Inode number of a namespace: what `net:[4026531833]` tells.
///
/// # Errors
/// [`ProcError`]; a kernel without that namespace gives ENOENT.
pub fn namespace(pid: i32, name: &str) -> Result<u64, ProcError> {
    let target = read(pid, &format!("ns/{name}"))?;
    parse_bracketed(&target).ok_or_else(|| ProcError::parse(&format!("/proc/{pid}/ns/{name}"), text(&target)))
}

/// The number in `socket:[123]`, `pipe:[123]`, `net:[123]`.
#[must_use]
pub fn parse_bracketed(target: &[u8]) -> Option<u64> {
    let open = target.iter().rposition(|byte| *byte == b'[')?;
    super::number(target.get(open + 1..)?.strip_suffix(b"]")?)
}

/// `st_dev` and `st_ino`.
#[must_use]
pub fn identity(metadata: &Metadata) -> (u64, u64) {
    (metadata.st_dev(), metadata.st_ino())
}

/// Modification time in nanoseconds since the epoch.
#[must_use]
pub fn mtime_ns(metadata: &Metadata) -> i64 {
    metadata.st_mtime().saturating_mul(1_000_000_000).saturating_add(metadata.st_mtime_nsec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn namespaces_of_this_process() {
        let pid = i32::try_from(std::process::id()).unwrap();
        for name in NAMESPACES {
            assert!(namespace(pid, name).unwrap() > 0, "{name}");
        }
        assert!(read(pid, "exe").unwrap().starts_with(b"/"));
        assert_eq!(parse_bracketed(b"socket:[30647]"), Some(30647));
        assert_eq!(parse_bracketed(b"/tmp/[x"), None);
    }
}
