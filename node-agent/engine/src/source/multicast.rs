//! Multicast memberships, which are not carried yet.

use std::os::fd::{AsFd, BorrowedFd};

use sys::ns::{self, Kind};
use sys::{Errno, sock};

use super::error::InspectError;
use super::findings::Findings;
use crate::proc::multicast::Group;

/// The group among `groups` that a UDP socket is a member of.
pub(crate) fn membership(fd: BorrowedFd<'_>, groups: &[Group]) -> Result<Option<String>, Errno> {
    let six = sock::domain(fd)? == libc::AF_INET6;
    for group in groups.iter().filter(|group| six || group.address.is_ipv4()) {
        if sock::is_member(fd, group.interface, group.address)? {
            return Ok(Some(format!(
                "socket that is a member of the multicast group {} at {}: memberships are not carried yet",
                group.address, group.device
            )));
        }
    }
    Ok(None)
}

/// Groups of the container's own network namespace that no socket of it has joined: somebody else did.
pub(crate) fn check(root: i32, groups: &[Group], findings: &mut Findings) -> Result<(), InspectError> {
    let kernel = |errno| InspectError::kernel("look at the network namespace", root, errno);
    let ours = ns::open_own(Kind::Net).and_then(|fd| ns::id_of(fd.as_fd())).map_err(kernel)?;
    if ours == ns::id(root, Kind::Net).map_err(kernel)? {
        return Ok(());
    }
    for group in groups.iter().filter(|group| !group.is_kernels_own()) {
        let place = format!("multicast group {} at {}:", group.address, group.device);
        if findings.list.iter().any(|refusal| refusal.reason.contains(&place)) {
            continue;
        }
        findings.container(
            format!(
                "interface {} is in the multicast group {}: memberships are not carried yet",
                group.device, group.address
            ),
            "have it leave the group before the move",
        );
    }
    Ok(())
}
