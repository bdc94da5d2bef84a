//! UDP sockets with what waits in them, made in the container's network namespace.

use std::net::SocketAddr;
use std::os::fd::AsFd;

use image::files::{FileKind, Files, OpenFile};
use image::sockets::{Datagram, Udp};
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
    for (file, socket) in sockets() {
        let port = socket.local.map(|local| local.port());
        let shared = sockets().any(|(other, socket)| {
            other.id != file.id && port.is_some() && socket.local.map(|local| local.port()) == port
        });
        bind(file, socket, shared, all)?;
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

/// `shared`: another socket has the same port.
fn bind(file: &OpenFile, socket: &Udp, shared: bool, all: &mut Descriptions) -> Result<(), TargetError> {
    let fd =
        sock::socket(socket.family, libc::SOCK_DGRAM, socket.protocol).map_err(fail_errno(file, "socket"))?;
    set_options(file, fd.as_fd(), &socket.options)?;
    if let Some(local) = socket.local {
        sock::bind(fd.as_fd(), &local.into()).map_err(fail_errno(file, format!("bind to {local}")))?;
    }
    if !socket.queue.is_empty() {
        let queue: Vec<udp::Datagram> = socket.queue.iter().map(datagram).collect();
        udp::deliver(fd.as_fd(), &queue, shared)
            .map_err(|error| fail(file, "put unread datagrams back")(std::io::Error::other(error)))?;
    }
    all.put(file.id, fd);
    Ok(())
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
