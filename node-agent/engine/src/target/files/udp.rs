//! UDP sockets with what waits in them, made in the container's network namespace.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use image::files::{FileKind, Files, OpenFile};
use image::sockets::{Datagram, Membership, Udp};
use sys::net::Netlink;
use sys::sock::multicast::{self, Filter};
use sys::{Errno, sock, udp};

use super::sockets::{how_shut, set_options};
use super::{Descriptions, fail, fail_errno};
use crate::target::error::TargetError;

/// Every socket gets what waits in it before any is connected: a datagram may be older than the connection, and
/// come from elsewhere.
pub(super) fn make(files: &Files, all: &mut Descriptions) -> Result<(), TargetError> {
    let sockets = || {
        files.open.iter().filter_map(|file| match &file.kind {
            FileKind::Udp(socket) => Some((file, socket.as_ref())),
            _ => None,
        })
    };
    let interfaces = if sockets().any(|(_, socket)| !socket.memberships.is_empty()) {
        Interfaces::list().map_err(TargetError::errno("list interfaces"))?
    } else {
        Interfaces::default()
    };
    for (file, socket) in sockets() {
        let port = socket.local.map(|local| local.port());
        let shared = sockets().any(|(other, socket)| {
            other.id != file.id && port.is_some() && socket.local.map(|local| local.port()) == port
        });
        let fd = bind(file, socket)?;
        join(file, &socket.memberships, fd.as_fd(), &interfaces)?;
        fill(file, socket, fd.as_fd(), shared)?;
        all.put(file.id, fd);
    }
    for (file, socket) in sockets() {
        if let Some(peer) = socket.peer {
            let fd = all.require(file.id)?;
            sock::connect(fd, &peer.into()).map_err(fail_errno(file, format!("connect to {peer}")))?;
        }
        if let Some(how) = how_shut(socket.shutdown) {
            match sock::shutdown(all.require(file.id)?, how) {
                // It says so of a socket without a peer, and does it.
                Ok(()) | Err(Errno::ENOTCONN) => {}
                Err(errno) => return Err(fail_errno(file, "shutdown")(errno)),
            }
        }
    }
    Ok(())
}

/// What is known of the interfaces of the container.
#[derive(Default)]
pub(super) struct Interfaces {
    pub(super) numbers: HashMap<String, u32>,
    /// The first address of each, by number.
    addresses: HashMap<u32, Ipv4Addr>,
}

impl Interfaces {
    pub(super) fn list() -> Result<Self, Errno> {
        let mut netlink = Netlink::open()?;
        let numbers = netlink.links()?.into_iter().map(|link| (link.name, link.index)).collect();
        let mut addresses = HashMap::new();
        for address in netlink.addresses()? {
            if let IpAddr::V4(ip) = address.ip {
                addresses.entry(address.index).or_insert(ip);
            }
        }
        Ok(Self { numbers, addresses })
    }
}

/// Joins multicast groups again. The address by which the program named an interface is not known, if it was one: its
/// first address it is, so that the group can be left by that.
pub(super) fn join(
    file: &OpenFile,
    memberships: &[Membership],
    fd: BorrowedFd<'_>,
    interfaces: &Interfaces,
) -> Result<(), TargetError> {
    for membership in memberships {
        let Membership { device, group, exclude, sources } = membership;
        let what = || format!("join multicast group {group} at {device}");
        let number =
            *interfaces.numbers.get(device).ok_or(Errno::ENODEV).map_err(fail_errno(file, what()))?;
        let filter = Filter { exclude: *exclude, sources: sources.clone() };
        let address = interfaces.addresses.get(&number).copied();
        multicast::join(fd, number, address, *group, &filter).map_err(fail_errno(file, what()))?;
    }
    Ok(())
}

fn bind(file: &OpenFile, socket: &Udp) -> Result<OwnedFd, TargetError> {
    let fd =
        sock::socket(socket.family, libc::SOCK_DGRAM, socket.protocol).map_err(fail_errno(file, "socket"))?;
    set_options(file, fd.as_fd(), &socket.options)?;
    if let Some(local) = socket.local {
        sock::bind(fd.as_fd(), &local.into()).map_err(fail_errno(file, format!("bind to {local}")))?;
    }
    Ok(fd)
}

/// Puts unread datagrams back. `shared`: another socket has the same port.
fn fill(file: &OpenFile, socket: &Udp, fd: BorrowedFd<'_>, shared: bool) -> Result<(), TargetError> {
    if socket.queue.is_empty() {
        return Ok(());
    }
    let queue: Vec<udp::Datagram> = socket.queue.iter().map(datagram).collect();
    udp::deliver(fd, &queue, shared)
        .map_err(|error| fail(file, "put unread datagrams back")(std::io::Error::other(error)))
}

fn datagram(waiting: &Datagram) -> udp::Datagram {
    let scoped = |address: SocketAddr| match address {
        SocketAddr::V6(mut address) if address.ip().is_unicast_link_local() => {
            address.set_scope_id(waiting.scope);
            SocketAddr::V6(address)
        }
        other => other,
    };
    udp::Datagram {
        from: scoped(waiting.from),
        to: scoped(waiting.to),
        hops: waiting.hops,
        class: waiting.class,
        data: waiting.data.clone(),
    }
}
