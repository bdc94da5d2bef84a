//! Shared memory, semaphores and message queues that live in an IPC namespace and not in a process.
//!
//! See sysvipc(7), mq_overview(7), proc_sysvipc(5).

use std::os::fd::AsFd;

use sys::Errno;
use sys::ns::{self, Kind};

use super::error::InspectError;
use super::findings::Findings;
use super::mqueue;
use super::sysv::{Found, Tables, field};
use crate::proc::ipc::settings;

const REMOVE: &str = "remove it (ipcrm), or end the program that made it, before the move";

/// What is in the container's own namespace.
#[derive(Debug, Default)]
pub(crate) struct Contents {
    /// System V objects.
    pub(crate) sysv: Found,
    /// POSIX message queues; none at a look at segments alone.
    pub(crate) queues: mqueue::Listed,
    /// Settings; read when the tree stands still.
    pub(crate) settings: Vec<(String, String)>,
}

/// What there is in the IPC namespace of `root`; `None` when the tree shares it with the host: then it is answerable
/// only for what names one of its processes, and that is refused. `held`: segments of shared memory that are open already.
pub(crate) fn look(
    root: i32,
    tree: &[i32],
    held: &[i32],
    how: How,
    findings: &mut Findings,
) -> Result<Option<Contents>, InspectError> {
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
    let look = || {
        let sysv = Found::look(held, how == How::Contents)?;
        let queues = if how == How::Segments { Ok(mqueue::Listed::default()) } else { mqueue::list() };
        let queues = queues.map_err(kernel("list POSIX message queues"))?;
        let settings = if how == How::Contents { settings()? } else { Vec::new() };
        Ok(Some(Contents { sysv, queues, settings }))
    };
    ns::within(namespace.as_fd(), Kind::Ipc, look).map_err(kernel("enter the IPC namespace"))?
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
