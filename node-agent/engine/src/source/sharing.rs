//! Processes and threads that share what others have for themselves, and threads that do not share what others do.

use std::cmp::Ordering;

use image::Pid;
use sys::{Errno, kcmp};

use super::error::InspectError;
use super::findings::Findings;
use super::rules::{END, ends};
use super::tree::Process;

/// A thread with a working directory, root directory and umask of its own.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Apart {
    /// Its tid as this process sees it.
    pub(crate) tid: i32,
    /// Its process, as the container numbers it.
    pub(super) process: Pid,
    /// Itself, as the container numbers it.
    pub(super) inner: Pid,
}

/// Processes that share what processes usually have for themselves.
pub(super) fn sharing(
    tree: &[Process],
    apart: &[Apart],
    findings: &mut Findings,
) -> Result<(), InspectError> {
    type Compare = fn(i32, i32) -> sys::Result<Ordering>;
    let kinds: [(&str, Compare); 3] = [
        ("its address space (vfork or CLONE_VM)", kcmp::vm),
        ("its descriptor table (CLONE_FILES)", kcmp::files),
        ("its working directory (CLONE_FS)", kcmp::fs),
    ];
    // Those of the last kind.
    let mut directories = Vec::new();
    for (what, compare) in kinds {
        // Sorted by the kernel's order. Inserted one by one, because a process that ends meanwhile has none.
        let mut sorted: Vec<(i32, Pid)> = Vec::new();
        for process in tree.iter().filter(|process| !process.is_zombie()) {
            match place(&sorted, process.pid, compare) {
                // What has ended shares having nothing.
                Ok(Ok(twin)) if ends(process.pid) || ends(sorted[twin].0) => {}
                Ok(Ok(twin)) => findings.process(
                    process.inner,
                    format!("it shares {what} with process {}", sorted[twin].1),
                    "try again in a moment; if it stays so, end one of them",
                ),
                Ok(Err(at)) => sorted.insert(at, (process.pid, process.inner)),
                Err(Errno::ESRCH) => {}
                Err(errno) => return Err(InspectError::kernel("kcmp", process.pid, errno)),
            }
        }
        directories = sorted;
    }
    for Apart { tid, process, inner } in apart.iter().copied() {
        match place(&directories, tid, kcmp::fs) {
            Ok(Ok(twin)) => findings.thread(
                process,
                inner,
                format!(
                    "it shares its working directory (CLONE_FS) with {}, and not with its process",
                    directories[twin].1
                ),
                END,
            ),
            Ok(Err(at)) => directories.insert(at, (tid, inner)),
            Err(Errno::ESRCH) => {}
            Err(errno) => return Err(InspectError::kernel("kcmp", tid, errno)),
        }
    }
    Ok(())
}

/// Where a process or thread stands in the sorted ones, each with its number in the container: `Ok` with its equal, `Err` with the place to insert it.
fn place(
    sorted: &[(i32, Pid)],
    pid: i32,
    compare: fn(i32, i32) -> sys::Result<Ordering>,
) -> sys::Result<Result<usize, usize>> {
    let (mut low, mut high) = (0, sorted.len());
    while low < high {
        let middle = usize::midpoint(low, high);
        match compare(sorted[middle].0, pid)? {
            Ordering::Equal => return Ok(Ok(middle)),
            Ordering::Less => low = middle + 1,
            Ordering::Greater => high = middle,
        }
    }
    Ok(Err(low))
}
