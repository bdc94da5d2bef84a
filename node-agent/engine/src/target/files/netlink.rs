//! Netlink sockets, made in the container's network namespace.

use std::os::fd::AsFd;

use image::files::{FileKind, Files};
use libc::{AF_NETLINK, SOL_NETLINK};
use sys::sock::{self, Address};

use super::sockets::set_options;
use super::{Descriptions, fail_errno};
use crate::target::error::TargetError;

const NETLINK_ADD_MEMBERSHIP: i32 = 1;

/// Makes every netlink socket, under the port that it had and with its groups.
pub(super) fn make(files: &Files, all: &mut Descriptions) -> Result<(), TargetError> {
    for file in &files.open {
        let FileKind::Netlink(socket) = &file.kind else { continue };
        let fd = sock::socket(AF_NETLINK, socket.sock_type, socket.protocol)
            .map_err(fail_errno(file, "socket"))?;
        set_options(file, fd.as_fd(), &socket.options)?;
        if socket.port != 0 {
            // struct sockaddr_nl: family, padding, port, the first 32 groups.
            let mut name = u16::try_from(AF_NETLINK).unwrap_or(0).to_ne_bytes().to_vec();
            name.extend([0; 2]);
            name.extend(socket.port.to_ne_bytes());
            name.extend([0; 4]);
            sock::bind(fd.as_fd(), &Address::Other(name))
                .map_err(fail_errno(file, format!("bind to netlink port {}", socket.port)))?;
        }
        for group in &socket.groups {
            sock::set_raw(fd.as_fd(), SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, &group.to_ne_bytes())
                .map_err(fail_errno(file, format!("join netlink group {group}")))?;
        }
        all.put(file.id, fd);
    }
    Ok(())
}
