//! Small JSON messages over a SOCK_SEQPACKET socket pair.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Largest message, bytes; longer texts are cut before they are sent.
const MAX: usize = 64 * 1024;

/// A connected pair, both ends close-on-exec.
///
/// # Errors
/// What socketpair(2) answers.
pub(crate) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

/// Sends one message.
///
/// # Errors
/// When the other end is closed or the message is too large.
pub(crate) fn tell<T: Serialize>(socket: impl AsFd, message: &T) -> io::Result<()> {
    let bytes = serde_json::to_vec(message)?;
    if bytes.len() > MAX {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    send(socket, &bytes, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Receives one message; `None` when the other end was closed. Waits without limit when `limit` is `None`.
///
/// # Errors
/// `TimedOut`, or when the message is not a `T`.
pub(crate) fn hear<T: DeserializeOwned>(socket: impl AsFd, limit: Option<Duration>) -> io::Result<Option<T>> {
    if let Some(limit) = limit {
        let limit = Timespec::try_from(limit).map_err(|_| io::ErrorKind::InvalidInput)?;
        let mut fds = [PollFd::new(&socket, PollFlags::IN)];
        if poll(&mut fds, Some(&limit))? == 0 {
            return Err(io::ErrorKind::TimedOut.into());
        }
    }
    let mut buffer = vec![0_u8; MAX];
    let (_, length) = match recv(&socket, &mut buffer[..], RecvFlags::empty()) {
        Ok(received) => received,
        Err(rustix::io::Errno::CONNRESET) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    if length == 0 {
        return Ok(None);
    }
    Ok(Some(serde_json::from_slice(&buffer[..length])?))
}
