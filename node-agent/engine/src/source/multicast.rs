//! Multicast memberships.

use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};

use sys::ns::{self, Kind};
use sys::sock::multicast::{self, Filter};
use sys::{Errno, sock};

use super::error::InspectError;
use super::findings::Findings;
use crate::proc::multicast::Group;

/// The groups among `groups` that a UDP socket is a member of, and whom it hears there.
pub(crate) fn memberships<'a>(
    fd: BorrowedFd<'_>,
    groups: &'a [Group],
) -> Result<Vec<(&'a Group, Filter)>, Errno> {
    // A membership takes memory.
    if groups.is_empty() || sock::memory(fd)?.options == 0 {
        return Ok(Vec::new());
    }
    let six = sock::domain(fd)? == libc::AF_INET6;
    let mut found = Vec::new();
    for group in groups.iter().filter(|group| six || group.address.is_ipv4()) {
        if let Some(filter) = multicast::membership(fd, group.interface, group.address)? {
            found.push((group, filter));
        }
    }
    Ok(found)
}

/// Groups of the container's own network namespace that no socket of it has joined: somebody else did.
pub(crate) fn check(
    root: i32,
    groups: &[Group],
    joined: &[(u32, IpAddr)],
    findings: &mut Findings,
) -> Result<(), InspectError> {
    let kernel = |errno| InspectError::kernel("look at the network namespace", root, errno);
    let ours = ns::open_own(Kind::Net).and_then(|fd| ns::id_of(fd.as_fd())).map_err(kernel)?;
    if ours == ns::id(root, Kind::Net).map_err(kernel)? {
        return Ok(());
    }
    for group in groups.iter().filter(|group| !group.is_kernels_own()) {
        if joined.contains(&(group.interface, group.address)) {
            continue;
        }
        findings.container(
            format!(
                "interface {} is in the multicast group {}, and no socket that moves is a member of it",
                group.device, group.address
            ),
            "have it leave the group before the move",
        );
    }
    Ok(())
}
