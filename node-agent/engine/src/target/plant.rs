//! Descriptors of the agent, planted into skeletons over the channel.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use libc::{SYS_close, SYS_close_range, SYS_dup3, SYS_fcntl, SYS_recvmsg};

use super::error::TargetError;
use super::plan::fds::{FdPlan, MOST_IN_A_MESSAGE};
use super::script::{Block, Call, call};
use super::skeleton::Task;
use sys::tape::target::TargetTape;

/// The socket pair between the agent and every skeleton, which all have the same end of it at one number.
#[derive(Debug)]
pub(crate) struct Channel {
    /// The agent's end.
    pub(crate) agent: OwnedFd,
    /// The skeletons' number of the other end.
    pub(crate) number: i32,
}

/// Length of the control message for `count` descriptors (CMSG_SPACE).
fn control_len(count: usize) -> usize {
    16 + (4 * count).next_multiple_of(8)
}

/// recvmsg(2) for one message with `count` descriptors.
fn receive(channel: i32, count: usize) -> Call {
    let control = control_len(count);
    let io = Block::words(&[0, 1]).link(0, Block::new(vec![0; 8]));
    // struct msghdr: name, namelen, iov, iovlen, control, controllen, flags.
    let header =
        Block::words(&[0, 0, 0, 1, 0, control as u64, 0]).link(16, io).link(32, Block::answer(control));
    call!("recvmsg", SYS_recvmsg, channel, header, 0)
}

/// The numbers that a control message gave.
fn numbers(control: &[u8], count: usize) -> Vec<i32> {
    let raw = control.get(16..16 + 4 * count).unwrap_or_default();
    raw.chunks_exact(4).filter_map(|b| b.first_chunk().map(|b| i32::from_le_bytes(*b))).collect()
}

/// Closes everything but one descriptor.
pub(crate) fn close_but(number: i32) -> Vec<Call> {
    let mut calls = Vec::new();
    if number > 0 {
        calls.push(call!("close_range", SYS_close_range, 0, number - 1, 0));
    }
    calls.push(call!("close_range", SYS_close_range, number + 1, u32::MAX, 0));
    calls
}

impl Channel {
    /// Sends descriptors; somebody must receive them.
    pub(crate) fn send(&self, fds: &[BorrowedFd<'_>]) -> Result<(), TargetError> {
        sys::sock::send_fds(self.agent.as_fd(), fds).map_err(TargetError::errno("send descriptors"))
    }

    /// The memory that recvmsg(2) for one descriptor needs, to be placed at `at`, and where the number of the
    /// descriptor will stand.
    pub(crate) fn message(&self, at: u64) -> (Vec<u8>, u64) {
        let (io, data, control) = (at + 64, at + 96, at + 128);
        let length = control_len(1) as u64;
        let words = [0, 0, io, 1, control, length, 0, 0, data, 8];
        (words.iter().flat_map(|w| w.to_le_bytes()).collect(), control + 16)
    }

    /// Sends descriptors and has a thread receive them; they land at its lowest free numbers.
    ///
    /// # Errors
    /// As the calls behind it; also when fewer arrived than were sent (RLIMIT_NOFILE).
    pub(crate) fn plant(
        &self,
        task: &mut Task,
        tape: &TargetTape,
        at: i32,
        fds: &[BorrowedFd<'_>],
    ) -> Result<Vec<i32>, TargetError> {
        let mut landed = Vec::with_capacity(fds.len());
        for message in fds.chunks(MOST_IN_A_MESSAGE) {
            self.send(message)?;
            let run = task.run(tape, &[receive(at, message.len())])?;
            let control =
                run.answers.first().and_then(|a| a.blocks.first()).map(Vec::as_slice).unwrap_or_default();
            let length = control.first_chunk::<8>().map_or(0, |b| u64::from_le_bytes(*b));
            if length != 16 + 4 * message.len() as u64 {
                return Err(TargetError::Lost {
                    pid: task.tid,
                    what: format!(
                        "of {} descriptors sent it received {length} bytes of control data",
                        message.len()
                    ),
                });
            }
            landed.extend(numbers(control, message.len()));
        }
        Ok(landed)
    }

    /// Closes everything but the channel.
    pub(crate) fn close_others(&self) -> Vec<Call> {
        close_but(self.number)
    }

    /// Fills a table as planned that holds nothing but the channel, at `at`; `file` gives the agent's descriptor of a
    /// description. The channel stays at [`FdPlan::channel`].
    pub(crate) fn fill_table<'a>(
        &self,
        task: &mut Task,
        tape: &TargetTape,
        at: i32,
        plan: &FdPlan,
        file: &dyn Fn(u32) -> Option<BorrowedFd<'a>>,
    ) -> Result<(), TargetError> {
        let pid = task.tid;
        if plan.channel != at {
            let moves =
                [call!("dup3 channel", SYS_dup3, at, plan.channel, 0), call!("close channel", SYS_close, at)];
            task.run(tape, &moves)?;
        }
        let mut landed = Vec::with_capacity(plan.landing.len());
        for message in &plan.messages {
            let fds: Option<Vec<BorrowedFd<'_>>> = message.iter().map(|id| file(*id)).collect();
            let fds = fds.ok_or_else(|| TargetError::Image(format!("pid {pid} has an unknown open file")))?;
            landed.extend(self.plant(task, tape, plan.channel, &fds)?);
        }
        if landed != plan.landing {
            let what = format!("descriptors landed at {landed:?} and not at {:?}", plan.landing);
            return Err(TargetError::Lost { pid, what });
        }
        let mut calls = Vec::with_capacity(2 * plan.moves.len() + plan.cloexec.len());
        for m in &plan.moves {
            let flags = if m.cloexec { libc::O_CLOEXEC } else { 0 };
            calls.push(call!("dup3", SYS_dup3, m.from, m.to, flags));
            calls.push(call!("close", SYS_close, m.from));
        }
        for fd in &plan.cloexec {
            calls.push(call!("F_SETFD", SYS_fcntl, *fd, libc::F_SETFD, libc::FD_CLOEXEC));
        }
        task.run(tape, &calls)?;
        Ok(())
    }
}
