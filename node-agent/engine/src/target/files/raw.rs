//! Raw, ping and packet sockets, made in the container's network namespace.

use std::os::fd::AsFd;

use image::files::{FileKind, Files, OpenFile};
use image::sockets::{Packet, PacketMembership, Raw};
use libc::{AF_PACKET, SOL_PACKET};
use sys::Errno;
use sys::sock::{self, Address};

use super::sockets::{how_shut, set_options};
use super::udp::{Interfaces, join};
use super::{Descriptions, fail_errno, filters};
use crate::target::error::TargetError;

const PACKET_ADD_MEMBERSHIP: i32 = 1;
const PACKET_FANOUT: i32 = 18;

/// Makes them all.
pub(super) fn make(files: &Files, all: &mut Descriptions) -> Result<(), TargetError> {
    let needs_interfaces = |file: &OpenFile| match &file.kind {
        FileKind::Raw(socket) => !socket.memberships.is_empty(),
        FileKind::Packet(socket) => socket.device.is_some() || !socket.memberships.is_empty(),
        _ => false,
    };
    let interfaces = if files.open.iter().any(needs_interfaces) {
        Interfaces::list().map_err(TargetError::errno("list interfaces"))?
    } else {
        Interfaces::default()
    };
    for file in &files.open {
        match &file.kind {
            FileKind::Raw(socket) => raw(file, socket, &interfaces, all)?,
            FileKind::Packet(socket) => packet(file, socket, &interfaces, all)?,
            _ => {}
        }
    }
    Ok(())
}

fn raw(
    file: &OpenFile,
    socket: &Raw,
    interfaces: &Interfaces,
    all: &mut Descriptions,
) -> Result<(), TargetError> {
    let fd =
        sock::socket(socket.family, socket.sock_type, socket.protocol).map_err(fail_errno(file, "socket"))?;
    filters::set(file, fd.as_fd())?;
    set_options(file, fd.as_fd(), &socket.options)?;
    if let Some(local) = socket.local {
        sock::bind(fd.as_fd(), &local.into()).map_err(fail_errno(file, format!("bind to {local}")))?;
    }
    join(file, &socket.memberships, fd.as_fd(), interfaces)?;
    if let Some(peer) = socket.peer {
        sock::connect(fd.as_fd(), &peer.into()).map_err(fail_errno(file, format!("connect to {peer}")))?;
    }
    if let Some(how) = how_shut(socket.shutdown) {
        sock::shutdown(fd.as_fd(), how).map_err(fail_errno(file, "shutdown"))?;
    }
    all.put(file.id, fd);
    Ok(())
}

fn packet(
    file: &OpenFile,
    socket: &Packet,
    interfaces: &Interfaces,
    all: &mut Descriptions,
) -> Result<(), TargetError> {
    // It hears nothing before it is bound.
    let fd = sock::socket(AF_PACKET, socket.sock_type, 0).map_err(fail_errno(file, "socket"))?;
    filters::set(file, fd.as_fd())?;
    set_options(file, fd.as_fd(), &socket.options)?;
    let number = |device: &str| {
        let number = interfaces.numbers.get(device).copied();
        number.ok_or(Errno::ENODEV).map_err(fail_errno(file, format!("find interface {device}")))
    };
    let interface = socket.device.as_deref().map(number).transpose()?;
    if interface.is_some() || socket.protocol != 0 {
        sock::bind(fd.as_fd(), &address(socket.protocol, interface.unwrap_or(0)))
            .map_err(fail_errno(file, "bind"))?;
    }
    for membership in &socket.memberships {
        let request = request(number(&membership.device)?, membership);
        for _ in 0..membership.count {
            sock::set_raw(fd.as_fd(), SOL_PACKET, PACKET_ADD_MEMBERSHIP, &request)
                .map_err(fail_errno(file, "PACKET_ADD_MEMBERSHIP"))?;
        }
    }
    if let Some(fanout) = socket.fanout {
        sock::set_int(fd.as_fd(), SOL_PACKET, PACKET_FANOUT, fanout.cast_signed())
            .map_err(fail_errno(file, "PACKET_FANOUT"))?;
    }
    all.put(file.id, fd);
    Ok(())
}

/// `struct sockaddr_ll`.
fn address(protocol: u16, interface: u32) -> Address {
    let mut name = vec![0; 20];
    name[..2].copy_from_slice(&u16::try_from(AF_PACKET).unwrap_or(0).to_ne_bytes());
    name[2..4].copy_from_slice(&protocol.to_be_bytes());
    name[4..8].copy_from_slice(&interface.to_ne_bytes());
    Address::Other(name)
}

/// `struct packet_mreq`, or the longer one for a longer address.
fn request(interface: u32, membership: &PacketMembership) -> Vec<u8> {
    const SHORT: usize = 8;
    let mut request = interface.to_ne_bytes().to_vec();
    request.extend(membership.kind.to_ne_bytes());
    request.extend(u16::try_from(membership.address.len()).unwrap_or(0).to_ne_bytes());
    request.extend(&membership.address);
    request.resize((8 + SHORT).max(request.len()), 0);
    request
}
