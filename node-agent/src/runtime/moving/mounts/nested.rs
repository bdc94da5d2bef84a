//! Mount namespaces that processes of a container have beside its own.

use std::collections::BTreeMap;
use std::fs;

use image::Pid;
use sys::ns::{self, Kind};

/// One of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::runtime::moving) struct Nested {
    /// Its number.
    pub(in crate::runtime::moving) number: u64,
    /// A process that is in it.
    pub(in crate::runtime::moving) pid: i32,
    /// The same, in the container's numbering.
    pub(super) inner: Pid,
    /// That process sees all of its mounts.
    whole: bool,
}

/// Whether mount namespaces below the container's own can be made at a target. Processes of a user namespace cannot enter
/// what belongs to the agent's users.
pub(in crate::runtime::moving) fn can_nest(root: i32) -> bool {
    let users = |pid: i32| ns::id(pid, Kind::User).map(|id| id.ino);
    users(root) == users(std::process::id().cast_signed())
}

/// Those that `processes` of the container are in whose root process is `root`; none where [`can_nest`] says no.
pub(in crate::runtime::moving) fn nested(root: i32, processes: &[i32]) -> Vec<Nested> {
    let mounts = |pid: i32| ns::id(pid, Kind::Mnt).map(|id| id.ino);
    let (Ok(own), Ok(others)) = (mounts(root), mounts(std::process::id().cast_signed())) else {
        return Vec::new();
    };
    if !can_nest(root) {
        return Vec::new();
    }
    let mut found: BTreeMap<u64, Nested> = BTreeMap::new();
    for pid in processes.iter().copied() {
        // It ended, or nobody looks at it any more.
        let Ok(number) = mounts(pid) else { continue };
        // Who came in from outside is refused as such.
        if number == own || number == others || found.get(&number).is_some_and(|known| known.whole) {
            continue;
        }
        let whole = fs::read_link(format!("/proc/{pid}/root")).is_ok_and(|path| path.as_os_str() == "/");
        found.insert(number, Nested { number, pid, inner: inner(pid, root), whole });
    }
    found.into_values().collect()
}

/// mountinfo of the container and of each of these; `None` when something may have changed that does not show there.
pub(in crate::runtime::moving) fn shown(root: i32, nested: &[Nested]) -> std::io::Result<Option<Vec<u8>>> {
    let mut text = fs::read(format!("/proc/{root}/mountinfo"))?;
    for one in nested {
        if !one.whole {
            return Ok(None);
        }
        text.extend_from_slice(format!("{}\n", one.number).as_bytes());
        match fs::read(format!("/proc/{}/mountinfo", one.pid)) {
            Ok(mounts) => text.extend(mounts),
            // It has just ended.
            Err(_) => return Ok(None),
        }
    }
    Ok(Some(text))
}

/// A process as the container numbers it: the level of its root process in NSpid.
fn inner(pid: i32, root: i32) -> Pid {
    let numbers = |pid: i32| -> Vec<Pid> {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap_or_default();
        line.split_whitespace().filter_map(|word| word.parse().ok()).collect()
    };
    let depth = numbers(root).len();
    depth.checked_sub(1).and_then(|at| numbers(pid).get(at).copied()).unwrap_or(0)
}
