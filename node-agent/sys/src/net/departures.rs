//! Frames that come out of an interface from the other end of its link, with the time at which they did.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, SystemTime};

use crate::{Errno, Result, sock};

/// How much of a frame is looked at: Ethernet, IPv6 and TCP with all options.
const HEAD: usize = 128;
const SOL_PACKET: i32 = 263;
const PACKET_IGNORE_OUTGOING: i32 = 23;
/// Every protocol, in network order.
const ALL: u16 = 3_u16.to_be();

/// A packet socket that sees what arrives at one interface: of a container's host end, what the container sends.
#[derive(Debug)]
pub struct Departures {
    fd: OwnedFd,
    index: u32,
}

/// A frame that was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Departure {
    /// Its first bytes, Ethernet header first.
    pub head: Vec<u8>,
    /// When the kernel took it from the link.
    pub at: SystemTime,
}

impl Departures {
    /// Prepares to look at interface `index` of the calling thread's network namespace. Sees nothing yet.
    ///
    /// # Errors
    /// `EPERM` without CAP_NET_RAW.
    pub fn open(index: u32) -> Result<Self> {
        let fd = sock::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_NONBLOCK, 0)?;
        // Frames get their time when they arrive only while some socket asks for it, which takes effect a little later
        // (net_enable_timestamp): so it is asked for now.
        sock::set_int(fd.as_fd(), libc::SOL_SOCKET, libc::SO_TIMESTAMPNS, 1)?;
        sock::set_int(fd.as_fd(), SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)?;
        Ok(Self { fd, index })
    }

    /// Sees every frame from now on (packet(7)). The first are kept, and those that do not fit into the receive buffer
    /// are not seen.
    ///
    /// # Errors
    /// `ENODEV` when the interface is gone.
    pub fn begin(&self) -> Result<()> {
        // struct sockaddr_ll: family, protocol, interface, unused rest.
        let mut address = vec![0; 20];
        address[..2].copy_from_slice(&17_u16.to_ne_bytes());
        address[2..4].copy_from_slice(&ALL.to_ne_bytes());
        address[4..8].copy_from_slice(&self.index.to_ne_bytes());
        sock::bind(self.fd.as_fd(), &sock::Address::Other(address))
    }

    /// The next frame that was seen, if there is one; to wait for one, poll the descriptor.
    ///
    /// # Errors
    /// `ENETDOWN` once the interface is gone.
    pub fn next(&self) -> Result<Option<Departure>> {
        let received = match sock::receive_plain(self.fd.as_fd(), HEAD, 0) {
            Err(Errno::EAGAIN) => return Ok(None),
            other => other?,
        };
        let stamped = received
            .control
            .iter()
            .find(|item| (item.level, item.kind) == (libc::SOL_SOCKET, libc::SCM_TIMESTAMPNS))
            .and_then(|item| timespec(&item.data));
        Ok(Some(Departure { head: received.data, at: stamped.ok_or(Errno::EBADMSG)? }))
    }
}

impl AsFd for Departures {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// `struct timespec`: seconds and nanoseconds.
fn timespec(bytes: &[u8]) -> Option<SystemTime> {
    let (seconds, rest) = bytes.split_first_chunk::<8>()?;
    let nanoseconds = rest.first_chunk::<8>()?;
    let seconds = u64::try_from(i64::from_ne_bytes(*seconds)).ok()?;
    let nanoseconds = u32::try_from(i64::from_ne_bytes(*nanoseconds)).ok()?;
    Some(SystemTime::UNIX_EPOCH + Duration::new(seconds, nanoseconds))
}
