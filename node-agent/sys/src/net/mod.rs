//! Network configuration: a small blocking netlink client, and what it is used for.
//!
//! Messages are built by hand, from bytes the caller keeps: inside the pause a prepared [`Message`] costs one send
//! and one receive; and an entry that was listed (route, rule, neighbour) is set again from the same bytes, with
//! every attribute that this crate does not know. See rtnetlink(7).

pub mod addr;
pub mod conntrack;
pub mod departures;
pub mod ethtool;
pub mod link;
pub mod message;
pub mod neigh;
pub mod nft;
pub mod packet;
pub mod route;
pub mod table;
pub mod tap;
pub mod tc;
pub mod xtables;

use std::os::fd::{AsFd, OwnedFd};

use nix::sys::socket::sockopt::ReceiveTimeout;
use nix::sys::time::{TimeVal, TimeValLike};

pub use self::message::{Attributes, Message};
use crate::abi::io_errno;
use crate::{Errno, Result, sock};

/// A netlink socket in the network namespace that the thread was in when it opened it.
#[derive(Debug)]
pub struct Netlink {
    socket: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

/// One answer: type and payload (family header and attributes).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// RTM_NEWLINK ...
    pub kind: u16,
    /// What follows the netlink header.
    pub payload: Vec<u8>,
}

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_DUMP_INTR: u16 = 0x10;

/// How one exchange ended.
enum End {
    Complete(Vec<Answer>),
    /// The tables changed during a dump.
    Interrupted,
}

impl Netlink {
    /// Opens an rtnetlink socket.
    ///
    /// # Errors
    /// `EMFILE`.
    pub fn open() -> Result<Self> {
        Self::open_protocol(libc::NETLINK_ROUTE)
    }

    pub(crate) fn open_protocol(protocol: i32) -> Result<Self> {
        let socket = sock::socket(libc::AF_NETLINK, libc::SOCK_RAW, protocol)?;
        // The kernel always answers; a limit turns a mistake into an error instead of a hang.
        nix::sys::socket::setsockopt(&socket, ReceiveTimeout, &TimeVal::seconds(LIMIT))?;
        sock::set_int(socket.as_fd(), libc::SOL_NETLINK, NETLINK_CAP_ACK, 1)?;
        Ok(Self { socket, sequence: 0, buffer: vec![0; 1 << 18] })
    }

    /// Opens a socket to netfilter: nftables, connection tracking, IP sets.
    ///
    /// # Errors
    /// `EPROTONOSUPPORT` the kernel has none, `EMFILE`.
    pub fn open_netfilter() -> Result<Self> {
        Self::open_protocol(libc::NETLINK_NETFILTER)
    }

    /// Sends many requests at once and reads what went wrong: (number of the message, error), in order. Kernel
    /// tables answer while they are told, so nothing is waited for.
    ///
    /// # Errors
    /// `EMSGSIZE` one of them is larger than the socket takes.
    pub fn execute_all(&mut self, messages: &[Message]) -> Result<Vec<(usize, Errno)>> {
        const CHUNK: usize = 96 * 1024;
        let mut failed = Vec::new();
        let (mut begin, mut bytes) = (0, Vec::new());
        for (at, message) in messages.iter().enumerate() {
            self.sequence = self.sequence.wrapping_add(1).max(1);
            bytes.extend_from_slice(&message.finish(message::REQUEST, self.sequence));
            if bytes.len() >= CHUNK || at + 1 == messages.len() {
                let first = self.sequence.wrapping_sub(u32::try_from(at - begin).unwrap_or(u32::MAX));
                sock::send(self.socket.as_fd(), &bytes, &[], None, None, 0)?;
                self.drain(|sequence, error| {
                    failed.push((begin + sequence.wrapping_sub(first) as usize, error));
                })?;
                bytes.clear();
                begin = at + 1;
            }
        }
        Ok(failed)
    }

    /// Reads the acknowledgements that wait, and hands the errors on.
    pub(crate) fn drain(&mut self, mut failed: impl FnMut(u32, Errno)) -> Result<()> {
        use nix::sys::socket::{MsgFlags, recv};
        use std::os::fd::AsRawFd;
        loop {
            let flags = MsgFlags::MSG_DONTWAIT;
            let len = match recv(self.socket.as_raw_fd(), &mut self.buffer, flags) {
                Ok(len) => len,
                Err(Errno::EINTR) => continue,
                Err(Errno::EAGAIN) => return Ok(()),
                Err(error) => return Err(error),
            };
            let mut rest = &self.buffer[..len];
            while let Some((head, payload, next)) = message::split(rest) {
                rest = next;
                let code = message::number(payload, 0).map_or(0, u32::cast_signed);
                if head.kind == NLMSG_ERROR && code != 0 {
                    failed(head.sequence, Errno::from_raw(-code));
                }
            }
        }
    }

    /// Sends a request and waits for the acknowledgement.
    ///
    /// # Errors
    /// The kernel's refusal (`EEXIST`, `ENODEV`, `EPERM` ...); `EAGAIN` no answer within 10 s.
    pub fn execute(&mut self, message: &Message) -> Result<()> {
        match self.exchange(message, message::REQUEST | message::ACK)? {
            End::Complete(_) => Ok(()),
            End::Interrupted => Err(Errno::EAGAIN),
        }
    }

    /// Sends a request that is answered by one or few messages.
    ///
    /// # Errors
    /// As [`Netlink::execute`].
    pub fn query(&mut self, message: &Message) -> Result<Vec<Answer>> {
        match self.exchange(message, message::REQUEST | message::ACK)? {
            End::Complete(answers) => Ok(answers),
            End::Interrupted => Err(Errno::EAGAIN),
        }
    }

    /// Lists a table; begins again while the kernel says that it changed meanwhile.
    ///
    /// # Errors
    /// As [`Netlink::execute`]; `EAGAIN` it kept changing.
    pub fn dump(&mut self, message: &Message) -> Result<Vec<Answer>> {
        for _ in 0..16 {
            if let End::Complete(answers) = self.exchange(message, message::REQUEST | message::DUMP)? {
                return Ok(answers);
            }
        }
        Err(Errno::EAGAIN)
    }

    fn exchange(&mut self, message: &Message, flags: u16) -> Result<End> {
        self.sequence = self.sequence.wrapping_add(1).max(1);
        let request = message.finish(flags, self.sequence);
        sock::send(self.socket.as_fd(), &request, &[], None, None, 0)?;
        let mut answers = Vec::new();
        let mut interrupted = false;
        loop {
            let len = self.receive()?;
            let mut rest = &self.buffer[..len];
            while let Some((head, payload, next)) = message::split(rest) {
                rest = next;
                if head.sequence != self.sequence {
                    continue;
                }
                interrupted |= head.flags & NLM_F_DUMP_INTR != 0;
                match head.kind {
                    NLMSG_ERROR | NLMSG_DONE => {
                        let code = message::number(payload, 0).map_or(0, u32::cast_signed);
                        if code != 0 {
                            return Err(Errno::from_raw(-code));
                        }
                        return Ok(if interrupted { End::Interrupted } else { End::Complete(answers) });
                    }
                    kind => answers.push(Answer { kind, payload: payload.to_vec() }),
                }
            }
        }
    }

    fn receive(&mut self) -> Result<usize> {
        use nix::sys::socket::{MsgFlags, recv};
        use std::os::fd::AsRawFd;
        loop {
            match recv(self.socket.as_raw_fd(), &mut self.buffer, MsgFlags::MSG_TRUNC) {
                Ok(len) if len > self.buffer.len() => return Err(Errno::EMSGSIZE),
                Err(Errno::EINTR) => {}
                other => return other,
            }
        }
    }
}

/// Seconds.
const LIMIT: i64 = 10;
const NETLINK_CAP_ACK: i32 = 10;

/// Reads a file of /proc/sys/net, as the calling thread's network namespace has it. `name` is like
/// `ipv6/conf/eth0/disable_ipv6`.
///
/// # Errors
/// `ENOENT` no such setting.
pub fn sysctl(name: &str) -> Result<String> {
    let text = std::fs::read_to_string(sysctl_path(name)?).map_err(|e| io_errno(&e))?;
    Ok(text.trim_end().to_owned())
}

/// Writes a file of /proc/sys/net.
///
/// # Errors
/// `ENOENT` no such setting, `EINVAL` not a value, `EACCES` /proc/sys is mounted read-only.
pub fn set_sysctl(name: &str, value: &str) -> Result<()> {
    std::fs::write(sysctl_path(name)?, value).map_err(|e| io_errno(&e))
}

fn sysctl_path(name: &str) -> Result<String> {
    if name.split('/').any(|part| part.is_empty() || part == "..") {
        return Err(Errno::EINVAL);
    }
    Ok(format!("/proc/sys/net/{name}"))
}
