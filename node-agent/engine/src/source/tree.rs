//! Which processes and threads there are.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet, VecDeque};
use std::os::fd::AsFd;
use std::path::Path;

use image::Pid;
use image::namespaces::Level;
use sys::Errno;
use sys::ns::{self, Kind};

use super::error::InspectError;
use crate::proc::stat::{self, Stat};
use crate::proc::status::{self, Status};
use crate::proc::{ProcError, links, tasks};

/// One process as /proc shows it.
#[derive(Clone, Debug)]
pub(crate) struct Process {
    /// Its pid as this process sees it.
    pub(crate) pid: i32,
    /// Its pid in the container.
    pub(crate) inner: Pid,
    /// Its parent's pid in the container; 0 for the root.
    pub(crate) parent: Pid,
    /// How far the container's pid namespace is below this process's.
    pub(crate) depth: usize,
    /// What it is in pid namespaces below the container's, the outermost first.
    pub(crate) levels: Vec<Level>,
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

    /// Its process group, as the container numbers it.
    pub(crate) fn pgid(&self) -> Pid {
        self.status.ns_pgid.get(self.depth).copied().unwrap_or(0)
    }

    /// Its session, as the container numbers it.
    pub(crate) fn sid(&self) -> Pid {
        self.status.ns_sid.get(self.depth).copied().unwrap_or(0)
    }

    /// The number of its pid namespace, when that is not the container's.
    pub(crate) fn pid_namespace(&self) -> Option<u64> {
        self.levels.last().map(|level| level.namespace)
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
    let mut spaces = Spaces::default();
    while let Some((pid, parent)) = queue.pop_front() {
        match look(pid, parent, &mut spaces) {
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

fn look(pid: i32, parent: Pid, spaces: &mut Spaces) -> Result<(Process, Vec<i32>), ProcError> {
    let stat = stat::read(pid)?;
    let status = status::read(pid)?;
    let tids = tasks::threads(pid)?;
    let (parents, children): (Vec<i32>, Vec<Vec<i32>>) =
        tasks::children_by_thread(pid, &tids)?.into_iter().unzip();
    let depth = *spaces.depth.get_or_insert(status.depth());
    let levels = spaces.levels(pid, &status, depth)?;
    let inner = status.pid_at(depth);
    let process = Process { pid, inner, parent, depth, levels, tids, parents, stat, status };
    Ok((process, children.concat()))
}

/// The pid namespaces of a tree.
#[derive(Default)]
struct Spaces {
    /// How far that of its root is below this process's.
    depth: Option<usize>,
    /// Each namespace below that of the root, with those around it, the outermost first.
    known: HashMap<u64, Vec<u64>>,
}

impl Spaces {
    fn levels(&mut self, pid: i32, status: &Status, depth: usize) -> Result<Vec<Level>, ProcError> {
        let count = status.depth().saturating_sub(depth);
        if count == 0 {
            return Ok(Vec::new());
        }
        let own = links::namespace(pid, "pid")?;
        let failed = |errno: Errno| {
            let path = format!("/proc/{pid}/ns/pid");
            ProcError::Read { path, source: errno.into() }
        };
        let path = match self.known.entry(own) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => new.insert(path(pid, own, count).map_err(failed)?),
        };
        let at = |list: &[i32], below: usize| list.get(depth + 1 + below).copied().unwrap_or(0);
        let level = |(below, namespace): (usize, &u64)| Level {
            namespace: *namespace,
            pid: at(&status.ns_pid, below),
            pgid: at(&status.ns_pgid, below),
            sid: at(&status.ns_sid, below),
        };
        Ok(path.iter().enumerate().map(level).collect())
    }
}

/// The namespaces around that of a process, which ends the list; the outermost first.
fn path(pid: i32, own: u64, count: usize) -> sys::Result<Vec<u64>> {
    let mut at = ns::open(pid, Kind::Pid)?;
    let mut path = vec![own];
    while path.len() < count {
        at = ns::parent(at.as_fd())?;
        path.push(ns::id_of(at.as_fd())?.ino);
    }
    path.reverse();
    Ok(path)
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
