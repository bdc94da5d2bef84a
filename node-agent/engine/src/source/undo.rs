//! Giving the tree back, killing it, leaving it.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use super::SourceError;
use super::failpoint;
use super::session::{Frozen, Source, State};
use super::stopping::{Held, stop_threads};
use super::traced::{ParkedThread, Tapes};
use super::tree;
use crate::proc::status;

/// Longest time until killed processes are gone.
const KILL_LIMIT: Duration = Duration::from_secs(10);

impl Source {
    /// Gives the tree back: it runs on as if nothing had happened. Possible in every state.
    ///
    /// # Errors
    /// When a step failed; all the others were done all the same.
    pub fn abort(mut self) -> Result<(), SourceError> {
        self.undo()
    }

    /// Kills the tree: after commit it lives at the target.
    ///
    /// # Errors
    /// When a process is still there after the time limit.
    pub fn kill(mut self) -> Result<(), SourceError> {
        let frozen = match std::mem::replace(&mut self.state, State::Done) {
            State::Frozen(frozen) => frozen,
            State::Tracking | State::Done => Box::default(),
        };
        let root = self.looker.spec.root;
        // Pidfds first: numbers are free for others once the processes are gone.
        let mut pidfds: Vec<(i32, OwnedFd)> = Vec::new();
        for process in tree::walk(root).unwrap_or_default() {
            if let Ok(pidfd) = sys::pidfd::open(process.pid) {
                pidfds.push((process.pid, pidfd));
            }
        }
        failpoint!("source-kill");
        let killed = frozen.freezer.as_ref().is_some_and(|freezer| freezer.kill().is_ok());
        if !killed {
            for (_, pidfd) in &pidfds {
                // The root of a pid namespace takes all others along; each is tried all the same.
                let _ = sys::pidfd::send_signal(pidfd.as_fd(), libc::SIGKILL);
            }
        }
        // Sockets in repair mode are closed there: neither FIN nor RST goes out.
        drop(frozen.in_repair);
        let parked: Vec<ParkedThread> = frozen.parked.into_values().flatten().collect();
        let held = frozen.held.into_stopped();
        // What we trace shows its end to us first, and to its parent only then.
        let tids: Vec<i32> =
            parked.iter().map(|thread| thread.tid).chain(held.iter().map(|thread| thread.tid())).collect();
        drop((parked, held));
        let end = Instant::now() + KILL_LIMIT;
        for (pid, pidfd) in &pidfds {
            loop {
                // A leader's end shows only after that of its last thread: all are looked at, again and again.
                tids.iter().chain([pid]).for_each(|tid| reap(*tid));
                match sys::pidfd::wait_exit(pidfd.as_fd(), Duration::from_millis(1)) {
                    Ok(true) => break,
                    Ok(false) if Instant::now() < end => {}
                    Ok(false) => {
                        return Err(SourceError::Timeout {
                            what: format!("the end of killed process {pid}"),
                            limit_ms: u64::try_from(KILL_LIMIT.as_millis()).unwrap_or(u64::MAX),
                        });
                    }
                    Err(errno) => return Err(SourceError::kernel("wait for a killed process", *pid, errno)),
                }
            }
        }
        Ok(())
    }

    /// Leaves the frozen tree in its cgroup and lets go of it: it stays frozen when this process ends. A
    /// later [`super::recover`] gives it back; killing its cgroup ends it.
    pub fn into_frozen(mut self) {
        if let State::Frozen(frozen) = std::mem::replace(&mut self.state, State::Done)
            && frozen.cgroup_frozen
        {
            // Detached at the end of its tape a thread gets its registers back and meets the freezer before it
            // runs one instruction.
            for (pid, threads) in frozen.parked {
                let tapes = self.tracked.get(&pid).and_then(|tracked| tracked.tapes.as_ref());
                for thread in threads {
                    if let Some(tapes) = tapes
                        && let Err(error) = tapes.detach(thread)
                    {
                        tracing::warn!(%error, "a frozen thread could not be let go in order");
                    }
                }
            }
        }
    }

    pub(super) fn undo(&mut self) -> Result<(), SourceError> {
        let state = std::mem::replace(&mut self.state, State::Done);
        let mut parked = std::collections::BTreeMap::new();
        let mut result = Ok(());
        if let State::Frozen(frozen) = state {
            let Frozen {
                held,
                parked: threads,
                freezer,
                cgroup_frozen,
                in_repair,
                ..
            } = *frozen;
            // The order matters: a program that runs with a socket in repair mode gets corrupted data.
            for socket in in_repair {
                let left = sys::tcp::leave(socket.socket.as_fd(), socket.reuse_address);
                result = result.and(
                    left.map_err(|errno| SourceError::kernel("take a socket out of repair mode", self.looker.spec.root, errno)),
                );
            }
            if let Err(error) = result {
                // Better frozen than corrupted; recover() tries again.
                drop((held, threads));
                return Err(error);
            }
            if let Some(freezer) = freezer
                && cgroup_frozen
            {
                result = freezer
                    .thaw()
                    .map_err(|errno| SourceError::kernel("thaw the cgroup", self.looker.spec.root, errno));
            }
            drop(held);
            parked = threads;
        }
        for (pid, tracked) in std::mem::take(&mut self.tracked) {
            let threads = parked.remove(&pid).unwrap_or_default();
            let Some(tapes) = tracked.tapes else {
                continue;
            };
            let removed = if tapes.is_current() {
                remove_tapes(tapes, threads)
            } else {
                Ok(())
            };
            match removed {
                // It has ended meanwhile.
                Err(SourceError::ThreadGone { .. }) => {}
                other => result = result.and(other),
            }
            // The tracker goes with `tracked`: closing its last descriptor ends the write protection.
        }
        result
    }
}

/// Takes the tapes out of a process, stopping a thread of it for that when none is parked.
fn remove_tapes(tapes: Tapes, mut threads: Vec<ParkedThread>) -> Result<(), SourceError> {
    let pid = tapes.pid;
    if threads.is_empty() {
        let Ok(status) = status::read(pid) else {
            return Ok(());
        };
        if matches!(status.state, b'Z' | b'X') {
            return Ok(());
        }
        let mut held = Held::default();
        let clock = super::clock::SchedulerClock::calibrate();
        let nap = clock.nap(pid, pid);
        stop_threads(&mut held, &[pid])?;
        let Some(index) = held.stopped.iter().position(|thread| thread.tid() == pid) else {
            return Ok(());
        };
        let thread = held.stopped.swap_remove(index);
        drop(held);
        threads.push(tapes.park(thread, &nap)?);
    }
    tapes.remove(threads)
}

/// Takes what a task that we traced, or that is our child, has to show: stops, and in the end its exit status.
fn reap(tid: i32) {
    use nix::errno::Errno;
    use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
    let flags = WaitPidFlag::__WALL | WaitPidFlag::WNOHANG;
    loop {
        match waitpid(nix::unistd::Pid::from_raw(tid), Some(flags)) {
            Ok(WaitStatus::StillAlive | WaitStatus::Exited(..) | WaitStatus::Signaled(..)) => return,
            // A stop, or one that nix has no name for.
            Ok(_) | Err(Errno::EINTR | Errno::EINVAL) => {}
            Err(_) => return,
        }
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        if !matches!(self.state, State::Done)
            && let Err(error) = self.undo()
        {
            tracing::error!(%error, "the source could not be given back in order");
        }
    }
}
