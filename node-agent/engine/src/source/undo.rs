//! Giving the tree back, killing it, leaving it.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::SourceError;
use super::capture::inet::InRepair;
use super::failpoint;
use super::session::{Frozen, Source, State};
use super::stopping::stop_one;
use super::traced::{ParkedThread, Tapes};
use super::tree;
use super::witness::Witnesses;
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
        // The pid namespace would wait for them.
        self.witnesses = Witnesses::of(root, &self.looker.view.ids);
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
            let reap_all = || tids.iter().chain([pid]).for_each(|tid| reap(*tid));
            loop {
                // A leader's end shows only after that of its last thread: all are looked at, again and again.
                reap_all();
                match sys::pidfd::wait_exit(pidfd.as_fd(), Duration::from_millis(1)) {
                    Ok(true) => {
                        // It may have ended after it was looked at, and its parent waits for us.
                        reap_all();
                        break;
                    }
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
                if let Some(Err(error)) = tapes.map(|tapes| tapes.detach_all(threads)) {
                    tracing::warn!(%error, "a frozen thread could not be let go in order");
                }
            }
        }
    }

    /// Lets a frozen tree run on and keeps tracking it: rounds and another [`Source::freeze`] may follow. For
    /// what was refused and passes by itself ([`SourceError::is_transient`]).
    ///
    /// # Errors
    /// When a step failed: [`Source::abort`] then.
    pub fn thaw(&mut self) -> Result<(), SourceError> {
        let State::Frozen(frozen) = std::mem::replace(&mut self.state, State::Tracking) else {
            return Err(self.wrong_state("a thaw"));
        };
        let mut result = Ok(());
        for (pid, threads) in self.release(*frozen)? {
            let tapes = self.tracked.get(&pid).and_then(|tracked| tracked.tapes.as_ref());
            // Without their tapes' owner they restore themselves when they are dropped.
            if let Some(tapes) = tapes {
                result = result.and(tapes.detach_all(threads));
            }
        }
        result
    }

    /// Takes every socket out of repair mode while the tree still stands, so that the network may be opened
    /// before it runs on. Does nothing when it is not frozen.
    ///
    /// # Errors
    /// When a socket stays in repair mode; may be called again, and [`Source::abort`] tries again.
    pub fn leave_repair(&mut self) -> Result<(), SourceError> {
        match &mut self.state {
            State::Frozen(frozen) => leave_repair(&mut frozen.in_repair, self.looker.spec.root),
            State::Tracking | State::Done => Ok(()),
        }
    }

    /// Sockets out of repair mode, cgroup thawed, held threads let go. Gives the parked threads.
    fn release(&mut self, frozen: Frozen) -> Result<BTreeMap<i32, Vec<ParkedThread>>, SourceError> {
        let root = self.looker.spec.root;
        let Frozen { held, parked, freezer, cgroup_frozen, mut in_repair, look, complete, .. } = frozen;
        // No mount is busy because of us.
        self.looker.view.spaces = Arc::default();
        // The order matters: a program that runs with a socket in repair mode gets corrupted data.
        // Better frozen than corrupted: the threads' detaching meets the frozen cgroup. recover() tries again.
        leave_repair(&mut in_repair, root)?;
        if let Some(freezer) = freezer
            && cgroup_frozen
        {
            freezer.thaw().map_err(|errno| SourceError::kernel("thaw the cgroup", root, errno))?;
        }
        drop(held);
        if complete {
            self.told = Some(look);
        }
        Ok(parked)
    }

    pub(super) fn undo(&mut self) -> Result<(), SourceError> {
        let mut parked = match std::mem::replace(&mut self.state, State::Done) {
            State::Frozen(frozen) => self.release(*frozen)?,
            State::Tracking | State::Done => BTreeMap::new(),
        };
        let mut result = Ok(());
        for (pid, tracked) in std::mem::take(&mut self.tracked) {
            let threads = parked.remove(&pid).unwrap_or_default();
            let Some(tapes) = tracked.tapes else {
                continue;
            };
            let removed = if tapes.is_current() { remove_tapes(tapes, threads) } else { Ok(()) };
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

/// Takes sockets out of repair mode; those that stay in it stay in the list.
fn leave_repair(in_repair: &mut Vec<InRepair>, root: i32) -> Result<(), SourceError> {
    let mut failed = None;
    in_repair.retain(|socket| {
        let left = sys::tcp::leave(socket.socket.as_fd(), socket.reuse_address);
        failed = left.err().or(failed);
        left.is_err()
    });
    failed.map_or(Ok(()), |errno| Err(SourceError::kernel("take a socket out of repair mode", root, errno)))
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
        let clock = super::clock::SchedulerClock::calibrate();
        let Some((thread, nap)) = stop_one(pid, &clock)? else {
            return Ok(());
        };
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
