//! A TAP interface whose frames the agent reads: where the network lock leads.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::fcntl::OFlag;
use nix::sys::stat::Mode;

use super::Netlink;
use crate::abi::small;
use crate::{Errno, Result};

/// Frames that a TAP made here holds for its reader.
pub const QUEUE: u32 = 10_000;

/// A TAP interface that goes when this is dropped (or the process dies).
#[derive(Debug)]
pub struct Tap {
    fd: OwnedFd,
    name: String,
    index: u32,
}

/// `_IOW('T', 202, int)`.
const TUNSETIFF: libc::Ioctl = 0x4004_54ca;
const IFF_TAP: u16 = 2;
const IFF_NO_PI: u16 = 0x1000;

/// `struct ifreq`, of which TUNSETIFF uses name and flags.
#[repr(C)]
struct IfReq {
    name: [u8; 16],
    flags: u16,
    rest: [u8; 22],
}
const _: () = assert!(size_of::<IfReq>() == 40);
const _: () = assert!(size_of::<libc::ifreq>() == 40);

impl Tap {
    /// Makes one in the calling thread's network namespace, where `netlink` must be too: up, without IPv6 (so that it
    /// says nothing itself), with a queue of [`QUEUE`] frames. `name` may hold "%d".
    ///
    /// # Errors
    /// `EBUSY` the name is taken, `EPERM`, `ENOENT` no /dev/net/tun, `EINVAL` the name is too long.
    pub fn create(netlink: &mut Netlink, name: &str) -> Result<Self> {
        let flags = OFlag::O_RDWR | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let fd = nix::fcntl::open("/dev/net/tun", flags, Mode::empty())?;
        let mut request = IfReq { name: [0; 16], flags: IFF_TAP | IFF_NO_PI, rest: [0; 22] };
        if name.len() > 15 {
            return Err(Errno::EINVAL);
        }
        request.name[..name.len()].copy_from_slice(name.as_bytes());
        // SAFETY: `request` is the structure this request reads, and writes the final name to.
        small(unsafe { libc::ioctl(fd.as_raw_fd(), TUNSETIFF, &raw mut request) })?;
        let name = super::message::string(&request.name);
        let index = netlink.link(&name)?.index;
        match super::set_sysctl(&format!("ipv6/conf/{name}/disable_ipv6"), "1") {
            Ok(()) | Err(Errno::ENOENT) => {}
            Err(error) => return Err(error),
        }
        netlink.set_tx_queue(index, QUEUE)?;
        netlink.set_up(index, true)?;
        Ok(Self { fd, name, index })
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its number.
    #[must_use]
    pub const fn index(&self) -> u32 {
        self.index
    }

    /// Takes the oldest frame that was sent out by the interface; `None` when there is no more now.
    ///
    /// # Errors
    /// `EIO` the interface is down or gone.
    pub fn read_frame(&self, buffer: &mut [u8]) -> Result<Option<usize>> {
        loop {
            match nix::unistd::read(&self.fd, buffer) {
                Ok(len) => return Ok(Some(len)),
                Err(Errno::EAGAIN) => return Ok(None),
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Lets a frame arrive by the interface.
    ///
    /// # Errors
    /// `EIO` the interface is down, `EINVAL` shorter than an Ethernet header.
    pub fn write_frame(&self, frame: &[u8]) -> Result<()> {
        nix::unistd::write(&self.fd, frame).map(drop)
    }
}

impl AsFd for Tap {
    /// Readable when a frame waits.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
