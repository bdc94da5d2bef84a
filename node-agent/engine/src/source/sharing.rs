//! Processes and threads that share what others have for themselves, and threads that do not share what others do.

use std::cmp::Ordering;
use std::collections::HashMap;

use image::Pid;
use image::shape::{Shape, Shared};
use sys::{Errno, kcmp};

use super::error::InspectError;
use super::findings::Findings;
use super::rules::{END, ends};
use super::tree::Process;
use crate::target::plan::{threads, tree as planned};

/// A thread with a descriptor table of its own, or with a working directory, root directory and umask of its own.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Apart {
    /// Its tid as this process sees it.
    pub(crate) tid: i32,
    /// Its process, as the container numbers it.
    pub(crate) process: Pid,
    /// Itself, as the container numbers it.
    pub(crate) inner: Pid,
    /// The table is its own.
    pub(crate) files: bool,
    /// The directories are.
    pub(crate) directories: bool,
    /// What of these it shares with other threads of its process.
    pub(crate) shared: Shared,
}

impl Apart {
    /// It is the first one that has its descriptor table.
    pub(crate) fn has_table(&self) -> bool {
        self.files && self.shared.is_first_of_files(self.inner)
    }
}

/// What processes share, by pid and start time; those that share nothing are not among them.
pub(crate) type SharedOf = HashMap<(i32, u64), Shared>;

type Compare = fn(i32, i32) -> sys::Result<Ordering>;

/// Somebody who has a table or directories: a process, or a thread apart from its process.
#[derive(Clone, Copy, Debug)]
struct Holder {
    /// As this process numbers it.
    task: i32,
    /// As the container numbers it.
    inner: Pid,
    /// Its process, when it is a thread.
    thread_of: Option<Pid>,
}

/// The first holder of each, sorted by the kernel's order.
#[derive(Debug, Default)]
struct Sorted(Vec<Holder>);

impl Sorted {
    /// Adds one; gives the holder that has the same.
    fn add(&mut self, holder: Holder, compare: Compare) -> Result<Option<Holder>, InspectError> {
        let (mut low, mut high) = (0, self.0.len());
        while low < high {
            let middle = usize::midpoint(low, high);
            match compare(self.0[middle].task, holder.task) {
                Ok(Ordering::Equal) => return Ok(Some(self.0[middle])),
                Ok(Ordering::Less) => low = middle + 1,
                Ok(Ordering::Greater) => high = middle,
                // One that has ended meanwhile has none.
                Err(Errno::ESRCH) => return Ok(None),
                Err(errno) => return Err(InspectError::kernel("kcmp", holder.task, errno)),
            }
        }
        self.0.insert(low, holder);
        Ok(None)
    }
}

/// What processes share with each other, and who has it.
#[derive(Debug, Default)]
pub(super) struct Sharing {
    pub(super) of: SharedOf,
    files: Sorted,
    directories: Sorted,
}

impl Sharing {
    /// Descriptor tables and directories of processes.
    pub(super) fn look(tree: &[Process]) -> Result<Self, InspectError> {
        let mut sharing = Self::default();
        let keys: HashMap<i32, (i32, u64)> =
            tree.iter().map(|process| (process.pid, process.key())).collect();
        let of: fn(&mut Shared) -> [&mut Pid; 2] = |shared| [&mut shared.files, &mut shared.directories];
        for (kind, compare) in [kcmp::files as Compare, kcmp::fs].into_iter().enumerate() {
            let sorted = if kind == 0 { &mut sharing.files } else { &mut sharing.directories };
            for process in tree.iter().filter(|process| !process.is_zombie()) {
                let holder = Holder { task: process.pid, inner: process.inner, thread_of: None };
                let Some(first) = sorted.add(holder, compare)? else { continue };
                // What has ended shares having nothing.
                if ends(process.pid) || ends(first.task) {
                    continue;
                }
                for key in keys.get(&first.task).into_iter().chain([&process.key()]) {
                    *of(sharing.of.entry(*key).or_default())[kind] = first.inner;
                }
            }
        }
        Ok(sharing)
    }

    /// What threads have that is not their process's: which of them share it.
    pub(super) fn threads(
        &mut self,
        apart: &mut [Apart],
        findings: &mut Findings,
    ) -> Result<(), InspectError> {
        let mut firsts: Vec<(Pid, bool)> = Vec::new();
        for thread in &mut *apart {
            let holder = Holder { task: thread.tid, inner: thread.inner, thread_of: Some(thread.process) };
            let kinds: [(bool, &mut Sorted, Compare, &str); 2] = [
                (thread.files, &mut self.files, kcmp::files, "its descriptor table (CLONE_FILES)"),
                (thread.directories, &mut self.directories, kcmp::fs, "its working directory (CLONE_FS)"),
            ];
            for (is_files, (own, sorted, compare, what)) in [true, false].into_iter().zip(kinds) {
                let Some(first) = (if own { sorted.add(holder, compare)? } else { None }) else { continue };
                if first.thread_of != Some(thread.process) {
                    findings.thread(
                        thread.process,
                        thread.inner,
                        format!("it shares {what} with {}, and not with its process", first.inner),
                        END,
                    );
                    continue;
                }
                let number = if is_files { &mut thread.shared.files } else { &mut thread.shared.directories };
                *number = first.inner;
                firsts.push((first.inner, is_files));
            }
        }
        for thread in apart {
            for (first, is_files) in &firsts {
                if *first == thread.inner {
                    let number =
                        if *is_files { &mut thread.shared.files } else { &mut thread.shared.directories };
                    *number = thread.inner;
                }
            }
        }
        Ok(())
    }
}

/// Processes that share an address space, which cannot be carried.
pub(super) fn address_spaces(tree: &[Process], findings: &mut Findings) -> Result<(), InspectError> {
    let mut sorted = Sorted::default();
    for process in tree.iter().filter(|process| !process.is_zombie()) {
        let holder = Holder { task: process.pid, inner: process.inner, thread_of: None };
        if let Some(first) = sorted.add(holder, kcmp::vm)?
            && !ends(process.pid)
            && !ends(first.task)
        {
            findings.process(
                process.inner,
                format!("it shares its address space (vfork or CLONE_VM) with process {}", first.inner),
                "try again in a moment; if it stays so, end one of them",
            );
        }
    }
    Ok(())
}

/// That who shares can be made so again: only clone(2) shares, at the birth of a process or thread.
pub(super) fn check_makers(shape: &Shape, apart: &[Apart], findings: &mut Findings) {
    if let Err(refusal) = planned::shares(shape) {
        findings.process(refusal.pid, refusal.reason, &refusal.way_out);
    }
    let mut processes: Vec<Pid> = apart.iter().map(|thread| thread.process).collect();
    processes.dedup();
    for process in processes {
        let threads: Vec<threads::Wanted> = apart
            .iter()
            .filter(|thread| thread.process == process)
            .map(|thread| threads::Wanted {
                tid: thread.inner,
                files: thread.files,
                directories: thread.directories,
                shared: thread.shared,
            })
            .collect();
        if let Err(tid) = threads::plan(&threads) {
            findings.thread(process, tid, threads::NO_MAKER, END);
        }
    }
}
