//! Who gets the signals of open files: F_SETOWN, and F_NOTIFY of directories (fcntl(2)).

use std::os::fd::{AsFd, BorrowedFd};

use image::Pid;
use sys::{Errno, fds};

use super::descriptor::{Class, O_PATH};
use super::error::InspectError;
use super::findings::Findings;
use super::look::{Look, ProcessLook, tables};
use super::tree::Process;
use crate::proc::status;

const F_OWNER_TID: i32 = 0;
const F_OWNER_PID: i32 = 1;

/// Why an owner cannot be carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// It is no process of the container.
    Outside,
    /// F_NOTIFY makes its caller the owner. Of which changes it wants to hear, and whether it still does, shows nowhere.
    Directory,
}

impl Refused {
    /// Adds the refusal.
    pub(crate) fn tell(self, pid: Pid, fd: i32, findings: &mut Findings) {
        let (reason, way_out) = match self {
            Self::Outside => (
                "its signals go to a process outside of the container (F_SETOWN)",
                "have the program close it before the move",
            ),
            Self::Directory => (
                "signals when the directory changes (F_NOTIFY): which changes, the kernel does not show",
                "have the program close it, or use inotify",
            ),
        };
        findings.fd(pid, fd, reason, way_out);
    }
}

/// The owner of an open file, as fcntl(2) names its kind (plus one) and as the container numbers it.
pub(crate) fn of(
    file: BorrowedFd<'_>,
    directory: bool,
    processes: &[ProcessLook],
) -> Result<Result<Option<(i32, Pid)>, Refused>, Errno> {
    let owner = fds::owner(file)?;
    if owner.id == 0 {
        return Ok(Ok(None));
    }
    if directory {
        return Ok(Err(Refused::Directory));
    }
    let mut all = processes.iter().map(|found| &found.process);
    let inner = match owner.kind {
        F_OWNER_PID => inner_pid(owner.id, processes),
        F_OWNER_TID => inner_tid(owner.id, processes),
        _ => all.find(|process| process.stat.pgrp == owner.id).map(Process::pgid),
    };
    Ok(inner.map(|inner| Some((owner.kind + 1, inner))).ok_or(Refused::Outside))
}

/// Translates a pid of this process's view.
pub(crate) fn inner_pid(pid: i32, processes: &[ProcessLook]) -> Option<Pid> {
    processes.iter().find(|found| found.process.pid == pid).map(|found| found.process.inner)
}

/// The same for a thread.
pub(crate) fn inner_tid(tid: i32, processes: &[ProcessLook]) -> Option<Pid> {
    let process = &processes.iter().find(|found| found.process.tids.contains(&tid))?.process;
    let status = status::read_thread(process.pid, tid).ok()?;
    Some(status.pid_at(process.depth))
}

/// Adds a refusal for each owner that cannot be carried.
pub(crate) fn check(look: &Look, findings: &mut Findings) -> Result<(), InspectError> {
    for (found, table) in tables(&look.processes) {
        let Ok(pidfd) = sys::pidfd::open_task(table.task) else { continue };
        // fcntl(2) tells nothing of a descriptor that only stands for a path.
        let asked =
            table.descriptors.iter().filter(|d| d.class != Class::Refused && d.info.flags & O_PATH == 0);
        for descriptor in asked {
            let directory = matches!(descriptor.class, Class::File { directory: true, .. });
            let owner = sys::pidfd::getfd(pidfd.as_fd(), descriptor.fd)
                .and_then(|file| of(file.as_fd(), directory, &look.processes));
            match owner {
                Ok(Ok(_)) => {}
                Ok(Err(refused)) => refused.tell(found.process.inner, descriptor.fd, findings),
                // Closed, or the process ended, since we looked.
                Err(Errno::EBADF | Errno::ESRCH) => {}
                Err(errno) => return Err(InspectError::kernel("F_GETOWN_EX", found.process.pid, errno)),
            }
        }
    }
    Ok(())
}
