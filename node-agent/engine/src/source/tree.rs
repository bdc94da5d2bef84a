//! Which processes and threads there are.

use std::collections::{HashSet, VecDeque};
use std::path::Path;

use image::Pid;

use super::error::InspectError;
use crate::proc::stat::{self, Stat};
use crate::proc::status::{self, Status};
use crate::proc::{ProcError, tasks};

/// One process as /proc shows it.
#[derive(Clone, Debug)]
pub(crate) struct Process {
    /// Its pid as this process sees it.
    pub(crate) pid: i32,
    /// Its pid in the container.
    pub(crate) inner: Pid,
    /// Its parent's pid in the container; 0 for the root.
    pub(crate) parent: Pid,
    /// /proc/PID/stat.
    pub(crate) stat: Stat,
    /// /proc/PID/status.
    pub(crate) status: Status,
    /// Its threads as this process sees them, the leader first.
    pub(crate) tids: Vec<i32>,
    /// Those of them that have children.
    pub(crate) parents: Vec<i32>,
}

impl Process {
    /// It has exited and waits for its parent.
    pub(crate) fn is_zombie(&self) -> bool {
        matches!(self.stat.state, b'Z' | b'X')
    }

    /// Names the process for good: numbers are used again, start times are not.
    pub(crate) fn key(&self) -> (i32, u64) {
        (self.pid, self.stat.start_time)
    }
}

/// The whole tree, parents before their children.
///
/// Exact only while the tree is stopped; processes that come and go meanwhile may be missing.
pub(crate) fn walk(root: i32) -> Result<Vec<Process>, InspectError> {
    let mut found = Vec::new();
    let mut queue = VecDeque::from([(root, 0)]);
    let mut seen = HashSet::from([root]);
    while let Some((pid, parent)) = queue.pop_front() {
        match look(pid, parent) {
            Ok((process, children)) => {
                for child in children {
                    if seen.insert(child) {
                        queue.push_back((child, process.inner));
                    }
                }
                found.push(process);
            }
            Err(error) if error.is_gone() && pid == root => {
                return Err(InspectError::NoSuchProcess { pid });
            }
            Err(error) if error.is_gone() => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(found)
}

fn look(pid: i32, parent: Pid) -> Result<(Process, Vec<i32>), ProcError> {
    let stat = stat::read(pid)?;
    let status = status::read(pid)?;
    let tids = tasks::threads(pid)?;
    let (parents, children): (Vec<i32>, Vec<Vec<i32>>) =
        tasks::children_by_thread(pid, &tids)?.into_iter().unzip();
    let process = Process { pid, inner: status.inner_pid(), parent, tids, parents, stat, status };
    Ok((process, children.concat()))
}

/// All processes of a cgroup and of the groups below it, which are the container's own.
pub(crate) fn cgroup_members(cgroup: &Path) -> std::io::Result<Vec<i32>> {
    let mut pids = Vec::new();
    let mut dirs = vec![cgroup.to_owned()];
    while let Some(dir) = dirs.pop() {
        let below = dir != cgroup;
        match std::fs::read_to_string(dir.join("cgroup.procs")) {
            Ok(text) => pids.extend(text.lines().filter_map(|line| line.parse::<i32>().ok())),
            // The processes of a threaded group are listed by the group at the top of the threaded part.
            Err(error) if below && error.raw_os_error() == Some(libc::EOPNOTSUPP) => {}
            // The container removed it meanwhile.
            Err(error) if below && is_removed(&error) => continue,
            Err(error) => return Err(error),
        }
        let entries = match std::fs::read_dir(&dir) {
            Err(error) if below && is_removed(&error) => continue,
            other => other?,
        };
        for entry in entries {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                dirs.push(entry.path());
            }
        }
    }
    pids.sort_unstable();
    Ok(pids)
}

/// The cgroup was removed while it was read.
fn is_removed(error: &std::io::Error) -> bool {
    error.kind() == std::io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ENODEV)
}
