//! Who is in which group.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use image::groups::{Group, Member};
use image::{Pid, Refusal, Subject};

use super::read::{ReadError, refusal};
use crate::runtime::cgroup::CgroupError;

/// Processes and threads by the numbers that this process has for them.
pub trait Tasks {
    /// The process of a thread as we number it, and both as the container does. `None`: it is gone.
    fn member(&self, tid: Pid) -> Option<(Pid, Member)>;
}

/// The kernel's own word, from /proc.
#[derive(Clone, Copy, Debug)]
pub struct Proc;

impl Tasks for Proc {
    fn member(&self, tid: Pid) -> Option<(Pid, Member)> {
        let thread = engine::proc::status::read(tid).ok()?;
        if matches!(thread.state, b'Z' | b'X') && thread.tgid == tid && thread.threads <= 1 {
            return None;
        }
        // A container's pid namespace is made in ours; there may be others below it.
        let depth = thread.depth().min(1);
        let pid = thread.ns_tgid.get(depth).copied().unwrap_or(thread.tgid);
        Some((thread.tgid, Member { pid, tid: thread.pid_at(depth) }))
    }
}

/// Asks about each process once: it may be in a group of every hierarchy.
pub(super) struct Memo<'a> {
    tasks: &'a dyn Tasks,
    known: RefCell<HashMap<Pid, Option<(Pid, Member)>>>,
}

impl<'a> Memo<'a> {
    /// `known`: processes as we and as the container number them, from whoever holds them still.
    pub(super) fn new(tasks: &'a dyn Tasks, known: &[(Pid, Pid)]) -> Self {
        let of = |(host, pid): &(Pid, Pid)| (*host, Some((*host, Member { pid: *pid, tid: *pid })));
        Self { tasks, known: RefCell::new(known.iter().map(of).collect()) }
    }
}

impl Tasks for Memo<'_> {
    fn member(&self, tid: Pid) -> Option<(Pid, Member)> {
        *self.known.borrow_mut().entry(tid).or_insert_with(|| self.tasks.member(tid))
    }
}

/// Fills the members of `groups`, whose directories are below `root`, and gives every process in them.
pub(super) fn read(
    root: &Path,
    unified: bool,
    groups: &mut [Group],
    tasks: &dyn Tasks,
) -> Result<BTreeSet<Pid>, ReadError> {
    let threaded = groups.iter().any(|group| group.threaded);
    let mut listed: Vec<Vec<Pid>> = Vec::with_capacity(groups.len());
    let mut places: BTreeMap<Pid, u32> = BTreeMap::new();
    for group in groups.iter() {
        // The processes of a threaded group are listed by the group at the top of the threaded part, those of an
        // invalid one by nobody.
        let list = if unified && threaded { "cgroup.threads" } else { "cgroup.procs" };
        let mut pids = numbers(&root.join(&group.path), list)?;
        if list == "cgroup.threads" {
            pids = pids.into_iter().filter_map(|tid| tasks.member(tid)).map(|(pid, _)| pid).collect();
            pids.sort_unstable();
        }
        pids.dedup();
        for pid in &pids {
            *places.entry(*pid).or_default() += 1;
        }
        listed.push(pids);
    }
    let split = |pid: &Pid| places.get(pid).is_some_and(|count| *count > 1);
    for (group, pids) in groups.iter_mut().zip(&listed) {
        group.residents = u32::try_from(pids.len()).unwrap_or(u32::MAX);
        group.processes.clear();
        group.threads.clear();
        if !group.path.is_empty() {
            let whole = pids.iter().filter(|pid| !split(pid));
            group.processes = whole.filter_map(|pid| Some(tasks.member(*pid)?.1.pid)).collect();
        }
        if pids.iter().any(split) {
            let list = if unified { "cgroup.threads" } else { "tasks" };
            for tid in numbers(&root.join(&group.path), list)? {
                group
                    .threads
                    .extend(tasks.member(tid).filter(|(pid, _)| split(pid)).map(|(_, member)| member));
            }
        }
    }
    Ok(places.into_keys().collect())
}

/// A list of processes or threads. Those of a group that cannot have any are none.
fn numbers(dir: &Path, file: &str) -> Result<Vec<Pid>, ReadError> {
    let path = dir.join(file);
    match fs::read_to_string(&path) {
        Ok(text) => {
            let mut numbers: Vec<Pid> = text.lines().filter_map(|line| line.parse().ok()).collect();
            numbers.sort_unstable();
            Ok(numbers)
        }
        Err(error) if error.raw_os_error() == Some(nix::libc::EOPNOTSUPP) => Ok(Vec::new()),
        Err(error) => Err(CgroupError::file("read", path)(error).into()),
    }
}

/// Who is in the container's groups of one hierarchy.
#[derive(Debug)]
pub(super) struct Crowd {
    /// The hierarchy's name in messages.
    pub(super) name: String,
    /// cgroup v2.
    pub(super) unified: bool,
    /// The container's own group.
    pub(super) root: PathBuf,
    /// Every process in it or below, as we number them.
    pub(super) pids: BTreeSet<Pid>,
}

impl Crowd {
    /// Those of `suspects` that live and are not in these groups now. A process is born into its parent's groups: one
    /// that was in any of the container's groups before this look is in these, or was moved away.
    fn lacks<'a>(
        &self,
        mut suspects: impl Iterator<Item = &'a Pid>,
        tasks: &dyn Tasks,
    ) -> Result<Vec<(Pid, Member)>, ReadError> {
        let Some(first) = suspects.next() else { return Ok(Vec::new()) };
        let now: BTreeSet<Pid> = super::super::processes_below(&self.root)?.into_iter().collect();
        let missing = std::iter::once(first).chain(suspects).filter(|pid| !now.contains(pid));
        Ok(missing.filter_map(|pid| Some((*pid, tasks.member(*pid)?.1))).collect())
    }
}

/// Processes that are in some of the container's trees and not in others. The one of cgroup v2 says who belongs to the
/// container; the engine compares it with the processes themselves.
pub(super) fn outside(crowds: &[Crowd], tasks: &dyn Tasks) -> Result<Vec<Refusal>, ReadError> {
    let Some(own) = crowds.iter().find(|crowd| crowd.unified) else { return Ok(Vec::new()) };
    let mut refusals = Vec::new();
    for crowd in crowds {
        for (_, member) in crowd.lacks(own.pids.difference(&crowd.pids), tasks)? {
            refusals.push(Refusal {
                pid: member.pid,
                subject: Subject::Process,
                reason: format!(
                    "it is outside of the container's control group in the hierarchy {}",
                    crowd.name
                ),
                way_out: "move it back into the group".to_owned(),
            });
        }
        for (pid, _) in own.lacks(crowd.pids.difference(&own.pids), tasks)? {
            refusals.push(refusal(
                format!(
                    "process {pid} (host numbering) is in its control group in the hierarchy {} and not a part of it",
                    crowd.name
                ),
                "move that process out of the group",
            ));
        }
    }
    Ok(refusals)
}
