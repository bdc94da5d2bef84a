//! After this process's predecessor died: what it left in a tree is taken out.

use std::cmp::Ordering;
use std::os::fd::AsFd;
use std::time::Duration;

use super::resuming::park_signal;
use super::spec::TreeSpec;
use super::{SourceError, tree};
use crate::proc::status::Status;
use crate::proc::tasks;

/// Time for threads to come out of a dead agent's tape.
const LIMIT: Duration = Duration::from_secs(2);

/// Undoes what a dead agent left in a tree: sockets out of repair mode, thawed, tape and trackers removed.
///
/// Does nothing to a tree in which nothing was left.
///
/// # Errors
/// When a part of it failed; the rest was tried all the same. A tree with a socket that cannot be taken out of
/// repair mode stays frozen: running, its program would get corrupted data.
pub fn recover(spec: &TreeSpec) -> Result<(), SourceError> {
    let tree = tree::walk(spec.root)?;
    for process in tree.iter().filter(|process| !process.is_zombie()) {
        sockets_out_of_repair(process.pid)?;
        for tid in process.tids.iter().skip(1) {
            // It may have sockets that its process has not.
            if sys::kcmp::files(process.pid, *tid).is_ok_and(|order| order != Ordering::Equal) {
                match sockets_out_of_repair(*tid) {
                    // It ended meanwhile.
                    Err(_) if tasks::descriptors(*tid).is_err_and(|error| error.is_gone()) => {}
                    other => other?,
                }
            }
        }
    }
    let mut result = Ok(());
    if let Some(cgroup) = &spec.cgroup {
        let fail = |errno| SourceError::kernel("thaw the cgroup", spec.root, errno);
        let freezer = sys::cgroup::Freezer::open(cgroup).map_err(fail)?;
        if freezer.requested().map_err(fail)? {
            freezer.thaw().map_err(fail)?;
        }
    }
    for process in tree.iter().filter(|process| !process.is_zombie()) {
        result = result.and(clean(process.pid, &process.status));
    }
    result
}

/// Removes a tape that nobody uses from a process whose threads run untraced.
pub(crate) fn clean(pid: i32, status: &Status) -> Result<(), SourceError> {
    let signal = park_signal(status).unwrap_or(libc::SIGWINCH);
    let tids = match tasks::threads(pid) {
        Err(error) if error.is_gone() => return Ok(()),
        other => other?,
    };
    match sys::tape::cleanup_leftovers(pid, &tids, signal, LIMIT) {
        Ok(left) if left.in_use => {
            tracing::warn!(pid, "a thread is still inside an old tape: it is left there");
            Ok(())
        }
        Ok(_) => Ok(()),
        Err(error) => Err(super::traced::tape_error("remove an old tape", pid, error)),
    }
}

fn sockets_out_of_repair(pid: i32) -> Result<(), SourceError> {
    let fail = |errno| SourceError::kernel("take a socket out of repair mode", pid, errno);
    let pidfd = sys::pidfd::open_task(pid).map_err(fail)?;
    for fd in tasks::descriptors(pid)? {
        let Ok(link) = crate::proc::links::read(pid, &format!("fd/{fd}")) else {
            continue;
        };
        if !link.starts_with(b"socket:[") {
            continue;
        }
        let socket = sys::pidfd::getfd(pidfd.as_fd(), fd).map_err(fail)?;
        let is_tcp = sys::sock::protocol(socket.as_fd()) == Ok(libc::IPPROTO_TCP)
            && sys::sock::domain(socket.as_fd()).is_ok_and(|family| family != libc::AF_UNIX);
        if is_tcp && sys::tcp::in_repair(socket.as_fd()).map_err(fail)? {
            // SO_REUSEADDR was overwritten by repair mode; on is what servers' connections have.
            sys::tcp::leave(socket.as_fd(), true).map_err(fail)?;
        }
    }
    Ok(())
}
