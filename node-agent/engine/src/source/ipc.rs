//! Shared memory, semaphores and message queues that live in an IPC namespace and not in a process.
//!
//! See sysvipc(7), mq_overview(7), proc_sysvipc(5).

use std::os::fd::{AsFd, AsRawFd};

use sys::ns::{self, Kind};
use sys::{Errno, mount};

use super::error::InspectError;
use super::findings::Findings;
use crate::proc::{self, ProcError};

const REMOVE: &str = "remove it (ipcrm), or end the program that made it, before the move";
const UNLINK: &str = "have the program unlink it (mq_unlink) before the move";

/// Refuses everything in the IPC namespace of `root`. A tree that shares the namespace with the host is answerable
/// only for what names one of its processes.
pub(crate) fn check(root: i32, tree: &[i32], findings: &mut Findings) -> Result<(), InspectError> {
    let kernel = |what: &'static str| move |errno| InspectError::kernel(what, root, errno);
    let own = |pid| ns::id(pid, Kind::Ipc);
    let theirs = match own(root) {
        Ok(id) => id,
        // A kernel without them, or a process that is gone: the walk over the tree tells.
        Err(Errno::ENOENT | Errno::ESRCH) => return Ok(()),
        Err(errno) => return Err(kernel("look at the IPC namespace")(errno)),
    };
    let ours = ns::open_own(Kind::Ipc).and_then(|fd| ns::id_of(fd.as_fd()));
    if ours.map_err(kernel("look at our IPC namespace"))? == theirs {
        return report(&sysv()?, Some(tree), findings);
    }
    let namespace = ns::open(root, Kind::Ipc).map_err(kernel("open the IPC namespace"))?;
    let (sysv, queues) = ns::within(namespace.as_fd(), Kind::Ipc, || (sysv(), queues()))
        .map_err(kernel("enter the IPC namespace"))?;
    report(&sysv?, None, findings)?;
    for name in queues.map_err(kernel("list POSIX message queues"))? {
        findings.container(format!("POSIX message queue /{name}: queues are not carried yet"), UNLINK);
    }
    Ok(())
}

/// The tables of System V objects of this thread's namespace: shared memory, semaphores, message queues.
fn sysv() -> Result<[Vec<Vec<i64>>; 3], ProcError> {
    Ok([table("shm")?, table("sem")?, table("msg")?])
}

/// The rows of a table as numbers, without its head. Modes are octal, which does not matter here.
fn table(name: &str) -> Result<Vec<Vec<i64>>, ProcError> {
    let path = format!("/proc/sysvipc/{name}");
    let bytes = match proc::read_path(&path) {
        Ok(bytes) => bytes,
        // A kernel without them.
        Err(error) if error.is_gone() => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let row = |line| -> Option<Vec<i64>> { proc::words(line).map(proc::number).collect() };
    proc::lines(&bytes)
        .skip(1)
        .map(|line| row(line).ok_or_else(|| ProcError::parse(&path, proc::text(line))))
        .collect()
}

/// `tree`: only what its processes made or used last; `None` = everything.
fn report(
    tables: &[Vec<Vec<i64>>; 3],
    tree: Option<&[i32]>,
    findings: &mut Findings,
) -> Result<(), InspectError> {
    let [segments, semaphores, queues] = tables;
    let field = |row: &[i64], at: usize| row.get(at).copied().unwrap_or(0);
    let concerns = |row: &[i64], pids: &[usize]| {
        tree.is_none_or(|tree| {
            pids.iter().any(|at| tree.iter().any(|pid| i64::from(*pid) == field(row, *at)))
        })
    };
    for row in segments {
        // key shmid perms size cpid lpid nattch. One that is attached is refused where it is mapped.
        if field(row, 6) == 0 && concerns(row, &[4, 5]) {
            let (key, id, size) = (field(row, 0), field(row, 1), field(row, 3));
            findings.container(
                format!("System V shared memory {id} (key {key}, {size} bytes) that nobody has attached: not carried yet"),
                REMOVE,
            );
        }
    }
    for row in semaphores {
        // key semid perms nsems. Nobody's pid is told.
        if tree.is_none() {
            let (key, id, count) = (field(row, 0), field(row, 1), field(row, 3));
            findings.container(
                format!("System V semaphores {id} (key {key}, {count} of them): not carried yet"),
                REMOVE,
            );
        }
    }
    for row in queues {
        // key msqid perms cbytes qnum lspid lrpid.
        if concerns(row, &[5, 6]) {
            let (key, id, count) = (field(row, 0), field(row, 1), field(row, 4));
            findings.container(
                format!("System V message queue {id} (key {key}, {count} messages): not carried yet"),
                REMOVE,
            );
        }
    }
    Ok(())
}

/// The names in the message queue file system of this thread's namespace, which is mounted nowhere for it.
fn queues() -> Result<Vec<String>, Errno> {
    let fs = match mount::FsContext::open("mqueue").and_then(|context| context.mount(0)) {
        Ok(fs) => fs,
        // A kernel without them.
        Err(Errno::ENODEV) => return Ok(Vec::new()),
        Err(errno) => return Err(errno),
    };
    let errno = |error: std::io::Error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO));
    let entries = std::fs::read_dir(format!("/proc/thread-self/fd/{}", fs.as_raw_fd())).map_err(errno)?;
    entries.map(|entry| Ok(entry.map_err(errno)?.file_name().to_string_lossy().into_owned())).collect()
}
