//! What job control had stopped stops again, and its parent is told as much of it as at the source.
//!
//! All of it while the threads are on the tape: it takes no registers, and the signals that it causes are thrown away
//! when handlers are set. A process that was stopped so runs calls of its tape all the same, and stops again when it is
//! let go.

use image::Pid;
use image::state::Report;
use libc::{SIGSTOP, SYS_getpid, SYS_rt_sigaction, SYS_waitid};
use std::os::fd::AsFd;
use std::time::Duration;
use sys::ptrace::{Event, Stop, Stopped};
use sys::tape::target::TargetTape;

use super::error::TargetError;
use super::restore::Restorer;
use super::script::{Block, call};
use super::skeleton::{Skeleton, failed, lost, trace};

/// How long a stop may take.
const STOP_LIMIT: Duration = Duration::from_secs(10);
/// `sizeof(siginfo_t)`, and where its `si_pid` is.
const SIGINFO: usize = 128;
const SI_PID: usize = 16;

impl Restorer<'_> {
    /// Stops what was stopped. All threads must be there.
    pub(crate) fn stops(&mut self) -> Result<(), TargetError> {
        let image = self.image;
        for process in &image.processes {
            let continued = process.report == Report::Continued;
            if !process.stopped && !continued {
                continue;
            }
            let skeleton = self.tree.get(process.pid)?;
            let signal = if continued || process.stop_signal == 0 { SIGSTOP } else { process.stop_signal };
            skeleton.job_control_stop(signal, self.tape)?;
            if continued {
                skeleton.job_control_continue(self.tape)?;
            } else if process.report == Report::None {
                let shape = image.shape.processes.iter().find(|shape| shape.pid == process.pid);
                let parent = shape.map_or(0, |shape| shape.ppid);
                if image.processes.iter().any(|process| process.pid == parent) {
                    let place = self.tree.get(parent)?.node.place;
                    let child = self.tree.get(process.pid)?.pid_at(&place);
                    self.tree.get(parent)?.has_seen_stop(child, self.tape)?;
                }
            }
        }
        Ok(())
    }
}

impl Skeleton {
    /// Stops it as job control does.
    fn job_control_stop(&mut self, signal: i32, tape: &TargetTape) -> Result<(), TargetError> {
        let pid = self.node.pid;
        if signal != SIGSTOP {
            let default = Block::words(&[0, 0, 0, 0]);
            self.run(tape, &[call!("rt_sigaction", SYS_rt_sigaction, signal, default, 0, 8)])?;
        }
        sys::pidfd::send_signal(self.pidfd.as_fd(), SIGSTOP).map_err(failed(pid, "pidfd_send_signal"))?;
        let next = |stopped: Stopped, signal: i32| {
            let stopped = stopped.cont(signal).and_then(|running| running.wait(STOP_LIMIT));
            stopped.and_then(Event::stopped).map_err(trace(pid))
        };
        // The first thread takes the signal while the others stand still, and stops.
        let mut leader = next(self.leader.take()?, 0)?;
        while leader.stop() == Stop::Interrupt {
            leader = next(leader, 0)?;
        }
        if leader.stop() != Stop::Signal(SIGSTOP) {
            return Err(lost(pid, format!("it should have taken SIGSTOP: {:?}", leader.stop())));
        }
        // One that is blocked would wait.
        leader.set_sigmask(!(1 << (signal - 1))).map_err(trace(pid))?;
        let mut leader = next(leader, signal)?;
        leader.set_sigmask(u64::MAX).map_err(trace(pid))?;
        let stopped = |stopped: &Stopped| match stopped.stop() {
            Stop::Group(_) => Ok(()),
            stop => Err(lost(pid, format!("it should have stopped: {stop:?}"))),
        };
        stopped(&leader)?;
        self.leader.put(leader);
        // They are to stop by now: none of them gets as far as an instruction.
        for task in &mut self.threads {
            let thread = next(task.take()?, 0)?;
            stopped(&thread)?;
            task.put(thread);
        }
        Ok(())
    }

    /// Has it go on as job control does.
    fn job_control_continue(&mut self, tape: &TargetTape) -> Result<(), TargetError> {
        let pid = self.node.pid;
        sys::pidfd::send_signal(self.pidfd.as_fd(), libc::SIGCONT)
            .map_err(failed(pid, "pidfd_send_signal"))?;
        // Its parent gets the SIGCHLD for that when it runs next.
        self.run(tape, &[call!("getpid", SYS_getpid)]).map(drop)
    }

    /// Takes what wait(2) tells of a child that has stopped, by the number that it knows it by.
    fn has_seen_stop(&mut self, child: Pid, tape: &TargetTape) -> Result<(), TargetError> {
        let options = libc::WSTOPPED | libc::WNOHANG | libc::__WALL;
        let wait = call!("waitid", SYS_waitid, libc::P_PID, child, Block::answer(SIGINFO), options, 0);
        let ran = self.run(tape, &[wait])?;
        let told = ran.answers.first().and_then(|answer| answer.blocks.first());
        let told = told.and_then(|info| info.get(SI_PID..)?.first_chunk::<4>());
        if told != Some(&child.to_le_bytes()) {
            return Err(lost(child, "it should have stopped, and its parent hears nothing of it"));
        }
        Ok(())
    }
}
