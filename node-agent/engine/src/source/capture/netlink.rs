//! Netlink sockets (netlink(7)) with nothing to read. One whose queue is empty has no dump under way either: the kernel
//! fills it again as soon as the last message was taken.

use std::os::fd::{AsFd, BorrowedFd};

use image::sockets::Netlink;
use libc::{AF_NETLINK, SOL_NETLINK};
use sys::sock::{self, Address};
use sys::{Errno, Result};

use super::options::Reader;

const NETLINK_LIST_MEMBERSHIPS: i32 = 9;

/// Reads one.
pub(crate) fn capture(
    fd: BorrowedFd<'_>,
    sock_type: i32,
    protocol: i32,
    options: &mut Reader,
) -> Result<Netlink> {
    let groups = sock::get_raw(fd, SOL_NETLINK, NETLINK_LIST_MEMBERSHIPS)?;
    let member = |group: &u32| {
        let bit = usize::try_from(group - 1).unwrap_or(usize::MAX);
        groups.get(bit / 8).is_some_and(|byte| byte >> (bit % 8) & 1 == 1)
    };
    let most = u32::try_from(groups.len() * 8).map_err(|_| Errno::EOVERFLOW)?;
    Ok(Netlink {
        protocol,
        sock_type,
        options: options.options(fd.as_fd(), AF_NETLINK, sock_type, protocol)?,
        port: name(&sock::local_name(fd)?).0,
        groups: (1..=most).filter(member).collect(),
    })
}

/// Port and groups of a `struct sockaddr_nl`.
pub(crate) fn name(address: &Address) -> (u32, u32) {
    let Address::Other(raw) = address else { return (0, 0) };
    let word =
        |at: usize| raw.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_ne_bytes);
    (word(4), word(8))
}
