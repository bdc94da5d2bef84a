//! A connection that is just being made: its SYN was sent, and nobody has answered.

use std::net::SocketAddr;
use std::os::fd::BorrowedFd;

use super::{Queue, info, leave, queue_seq, repair_on, select_queue, set_queue_seq, state};
use crate::{Errno, Result, fds, sock};

/// The sequence number of a SYN that was sent. The socket **stays in repair mode**: see [`leave`].
///
/// # Errors
/// `EAGAIN` the socket waits for no answer any more, `EPERM` without CAP_NET_ADMIN.
pub fn first_sequence(fd: BorrowedFd<'_>) -> Result<u32> {
    repair_on(fd)?;
    select_queue(fd, Queue::Send)?;
    let next = queue_seq(fd)?;
    select_queue(fd, Queue::None)?;
    if info(fd)?.state != state::SYN_SENT {
        return Err(Errno::EAGAIN);
    }
    Ok(next.wrapping_sub(1))
}

/// Gives a fresh socket its address and the sequence number of its SYN. It **stays in repair mode** until [`begin`],
/// and shares its port meanwhile.
///
/// # Errors
/// Those of bind(2); `EPERM` without CAP_NET_ADMIN.
pub fn prepare(fd: BorrowedFd<'_>, local: SocketAddr, first: u32) -> Result<()> {
    repair_on(fd)?;
    select_queue(fd, Queue::Send)?;
    set_queue_seq(fd, first)?;
    select_queue(fd, Queue::None)?;
    sock::bind(fd, &local.into())
}

/// Leaves repair mode and sends the SYN; does not wait for the answer. `reuse_address`: SO_REUSEADDR, which repair mode
/// overwrites.
///
/// # Errors
/// Those of connect(2), but `EINPROGRESS`.
pub fn begin(fd: BorrowedFd<'_>, peer: SocketAddr, reuse_address: bool) -> Result<()> {
    leave(fd, reuse_address)?;
    let flags = fds::status_flags(fd)?;
    fds::set_status_flags(fd, flags | libc::O_NONBLOCK)?;
    let begun = sock::connect(fd, &peer.into());
    fds::set_status_flags(fd, flags)?;
    match begun {
        Ok(()) | Err(Errno::EINPROGRESS) => Ok(()),
        Err(errno) => Err(errno),
    }
}
