//! Raw, ping and packet sockets (raw(7), icmp(7), packet(7)) with nothing to read.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::os::fd::AsFd;

use image::sockets::{Packet, PacketMembership, Raw, SockOpt};
use libc::{AF_PACKET, SOL_PACKET};
use sys::diag::{Diag, PacketSocket};
use sys::net::Netlink;
use sys::{Errno, sock, tcp};

use super::files::Context;
use super::inet;
use super::options::Reader;
use super::table::Open;
use crate::source::SourceError;
use crate::source::error::TRY_AGAIN;

const PACKET_COPY_THRESH: i32 = 7;
const PACKET_FANOUT: i32 = 18;
/// PACKET_FANOUT_CBPF and EBPF: a program chooses.
const FANOUT_BY_PROGRAM: [u32; 2] = [6, 7];
const CLOSE: &str = "have the program close it before the move";

/// What the kernel lists of them.
#[derive(Debug, Default)]
pub(crate) struct RawSockets {
    /// Peers of raw and ping sockets, by inode.
    peers: HashMap<u64, SocketAddr>,
    packet: HashMap<u64, PacketSocket>,
    /// Names of interfaces.
    devices: HashMap<u32, String>,
}

impl RawSockets {
    /// Those of the network namespace that `root` and this thread are in.
    pub(crate) fn list(root: i32, diag: &mut Diag, packet: bool) -> sys::Result<Self> {
        let peers = crate::proc::raw::peers(root).map_err(|_| Errno::EIO)?;
        let mut found = Self { peers: peers.into_iter().collect(), ..Self::default() };
        if packet {
            let sockets = match diag.packet() {
                // This kernel does not tell.
                Err(Errno::ENOENT) => Vec::new(),
                other => other?,
            };
            let sockets = sockets.into_iter();
            found.packet = sockets.map(|socket| (u64::from(socket.inode), socket)).collect();
            let links = Netlink::open()?.links()?.into_iter();
            found.devices = links.map(|link| (link.index, link.name)).collect();
        }
        Ok(found)
    }
}

/// Reads a raw or ping socket of this family, type and protocol.
pub(crate) fn capture(
    open: &Open,
    (family, sock_type, protocol): (i32, i32, i32),
    options: &mut Reader,
    context: &mut Context<'_>,
) -> Result<Raw, SourceError> {
    let fd = open.file.as_fd();
    let fail = |what: &str, errno| SourceError::kernel(what, open.holder_pid, errno);
    let (pid, number) = open.holder;
    let peer = context.unix.raw.peers.get(&open.key.1).copied();
    if matches!(peer, Some(SocketAddr::V6(peer)) if peer.ip().is_unicast_link_local()) {
        let reason = "raw socket that is connected to a link-local address: its interface is not carried yet";
        context.findings.fd(pid, number, reason, CLOSE);
    }
    if tcp::outq(fd).unwrap_or(0) > 0 {
        context.findings.fd(pid, number, "raw socket with data that has not left yet", TRY_AGAIN);
    }
    let is_raw = sock_type == libc::SOCK_RAW;
    let local = sock::local_name(fd).map_err(|errno| fail("getsockname", errno))?.inet();
    // The port of a raw socket is its protocol.
    let bound = |local: &SocketAddr| !local.ip().is_unspecified() || !is_raw && local.port() != 0;
    Ok(Raw {
        family,
        sock_type,
        protocol,
        options: options
            .options(fd, family, sock_type, protocol)
            .map_err(|errno| fail("read socket options", errno))?,
        local: local.filter(bound),
        peer,
        memberships: Vec::new(),
        shutdown: inet::shut(fd).map_err(|errno| fail("poll", errno))?,
    })
}

/// Reads a packet socket. `None` after a refusal.
pub(crate) fn capture_packet(
    open: &Open,
    sock_type: i32,
    options: &mut Reader,
    context: &mut Context<'_>,
) -> Result<Option<Packet>, SourceError> {
    let fd = open.file.as_fd();
    let fail = |what: &str, errno| SourceError::kernel(what, open.holder_pid, errno);
    let (pid, number) = open.holder;
    let Some(socket) = context.unix.raw.packet.get(&open.key.1) else {
        context.findings.fd(pid, number, "packet socket without an entry in the kernel's list", CLOSE);
        return Ok(None);
    };
    if socket.has_ring {
        let reason = "packet socket with a ring (PACKET_RX_RING, PACKET_TX_RING): it lives in the kernel";
        context.findings.fd(pid, number, reason, CLOSE);
        return Ok(None);
    }
    let fanout =
        sock::get_int(fd, SOL_PACKET, PACKET_FANOUT).map_err(|errno| fail("PACKET_FANOUT", errno))?;
    let fanout = Some(fanout.cast_unsigned()).filter(|_| socket.has_fanout);
    if fanout.is_some_and(|fanout| FANOUT_BY_PROGRAM.contains(&(fanout >> 16 & 0xff))) {
        let reason = "packet socket in a group that a BPF program divides (PACKET_FANOUT): not carried";
        context.findings.fd(pid, number, reason, CLOSE);
        return Ok(None);
    }
    if tcp::outq(fd).unwrap_or(0) > 0 {
        context.findings.fd(pid, number, "packet socket with data that has not left yet", TRY_AGAIN);
    }
    let device = |index: u32| context.unix.raw.devices.get(&index).cloned();
    let gone = "packet socket of an interface that is gone";
    let memberships: Option<Vec<PacketMembership>> = socket
        .memberships
        .iter()
        .map(|membership| {
            Some(PacketMembership {
                device: device(membership.interface)?,
                count: membership.count,
                kind: membership.kind,
                address: membership.address.clone(),
            })
        })
        .collect();
    let bound = device(socket.interface);
    let (Some(memberships), true) = (memberships, socket.interface == 0 || bound.is_some()) else {
        context.findings.fd(pid, number, gone, CLOSE);
        return Ok(None);
    };
    let mut options =
        options.options(fd, AF_PACKET, sock_type, 0).map_err(|errno| fail("read socket options", errno))?;
    if socket.copy_threshold != 0 {
        let value = socket.copy_threshold.to_ne_bytes().to_vec();
        options.push(SockOpt { level: SOL_PACKET, name: PACKET_COPY_THRESH, value });
    }
    Ok(Some(Packet { sock_type, protocol: socket.protocol, device: bound, options, fanout, memberships }))
}
