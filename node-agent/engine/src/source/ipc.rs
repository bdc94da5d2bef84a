//! Shared memory, semaphores and message queues that live in an IPC namespace and not in a process.
//!
//! See sysvipc(7), mq_overview(7), proc_sysvipc(5).

use std::os::fd::{AsFd, AsRawFd};

use sys::ns::{self, Kind};
use sys::{Errno, mount};

use super::error::InspectError;
use super::findings::Findings;
use super::sysv::{Found, Tables, field};

const REMOVE: &str = "remove it (ipcrm), or end the program that made it, before the move";
const UNLINK: &str = "have the program unlink it (mq_unlink) before the move";

/// What there is in the IPC namespace of `root`; `None` when the tree shares it with the host: then it is answerable
/// only for what names one of its processes, and that is refused. `held`: segments of shared memory that are open already.
pub(crate) fn look(
    root: i32,
    tree: &[i32],
    held: &[i32],
    how: How,
    findings: &mut Findings,
) -> Result<Option<Found>, InspectError> {
    let kernel = |what: &'static str| move |errno| InspectError::kernel(what, root, errno);
    if !is_own(root)? {
        if how != How::Segments {
            report(&Tables::read()?, tree, findings);
        }
        return Ok(None);
    }
    let namespace = match ns::open(root, Kind::Ipc) {
        Ok(namespace) => namespace,
        // A process that is gone: the walk over the tree tells.
        Err(Errno::ENOENT | Errno::ESRCH) => return Ok(None),
        Err(errno) => return Err(kernel("open the IPC namespace")(errno)),
    };
    let (found, queues) = ns::within(namespace.as_fd(), Kind::Ipc, || {
        let queues = if how == How::Segments { Ok(Vec::new()) } else { queues() };
        (Found::look(held, how == How::Contents), queues)
    })
    .map_err(kernel("enter the IPC namespace"))?;
    for name in queues.map_err(kernel("list POSIX message queues"))? {
        findings.container(format!("POSIX message queue /{name}: queues are not carried yet"), UNLINK);
    }
    found.map(Some)
}

/// How much is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum How {
    /// Segments of shared memory.
    Segments,
    /// All there is.
    All,
    /// With what is in semaphores and message queues.
    Contents,
}

/// Whether a process has an IPC namespace of its own.
pub(crate) fn is_own(root: i32) -> Result<bool, InspectError> {
    let kernel = |what: &'static str| move |errno| InspectError::kernel(what, root, errno);
    let theirs = match ns::id(root, Kind::Ipc) {
        Ok(id) => id,
        // A kernel without them, or a process that is gone: the walk over the tree tells.
        Err(Errno::ENOENT | Errno::ESRCH) => return Ok(false),
        Err(errno) => return Err(kernel("look at the IPC namespace")(errno)),
    };
    let ours = ns::open_own(Kind::Ipc).and_then(|fd| ns::id_of(fd.as_fd()));
    Ok(ours.map_err(kernel("look at our IPC namespace"))? != theirs)
}

/// What processes of the tree made or used last in the host's namespace.
fn report(tables: &Tables, tree: &[i32], findings: &mut Findings) {
    let concerns = |row: &[i64], pids: &[usize]| {
        pids.iter().any(|at| tree.iter().any(|pid| i64::from(*pid) == field(row, *at)))
    };
    for row in &tables.segments {
        // One that is attached is refused where it is mapped.
        if field(row, 6) == 0 && concerns(row, &[4, 5]) {
            let (key, id, size) = (field(row, 0), field(row, 1), field(row, 3));
            findings.container(
                format!("System V shared memory {id} (key {key}, {size} bytes) of the host's IPC namespace, that nobody has attached"),
                REMOVE,
            );
        }
    }
    for row in &tables.queues {
        if concerns(row, &[5, 6]) {
            let (key, id, count) = (field(row, 0), field(row, 1), field(row, 4));
            findings.container(
                format!(
                    "System V message queue {id} (key {key}, {count} messages) of the host's IPC namespace"
                ),
                REMOVE,
            );
        }
    }
}

/// The names in the message queue file system of this thread's namespace, which is mounted nowhere for it.
pub(crate) fn queues() -> Result<Vec<String>, Errno> {
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
