//! sock_diag(7): all sockets of the calling thread's network namespace.

mod packet;

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};

use crate::net::message::{Attributes, Message, number, short, string};
use crate::net::{Answer, Netlink};
use crate::{Errno, Result};

pub use packet::{PacketMembership, PacketSocket};

const NETLINK_SOCK_DIAG: i32 = 4;
const SOCK_DIAG_BY_FAMILY: u16 = 20;

/// An internet socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InetSocket {
    /// AF_INET 2 or AF_INET6 10.
    pub family: u8,
    /// IPPROTO_TCP, IPPROTO_UDP ...
    pub protocol: u8,
    /// A number of [`crate::tcp::state`]; UDP: 7 unconnected, 1 connected.
    pub state: u8,
    /// Our address.
    pub local: SocketAddr,
    /// The peer's; unspecified when there is none.
    pub peer: SocketAddr,
    /// Interface it is bound to; 0 = none.
    pub interface: u32,
    /// SO_COOKIE.
    pub cookie: u64,
    /// Inode of its descriptor, as in `socket:[N]`; 0 = it has none (not accepted yet, or closed).
    pub inode: u32,
    /// Bytes not read; of a listening socket, connections that wait for accept(2).
    pub unread: u32,
    /// Bytes not acknowledged; of a listening socket, its backlog.
    pub unacked: u32,
    /// Owner.
    pub uid: u32,
    /// shutdown(2): bit 0 reading, bit 1 writing.
    pub shutdown: u8,
    /// TCP congestion control.
    pub congestion: Option<String>,
    /// IPV6_V6ONLY.
    pub v6_only: bool,
    /// TCP: what it waits for: [`InetSocket::RETRANSMITTING`], or another number of `idiag_timer`.
    pub timer: u8,
    /// TCP: how often that was due in vain, one after the other.
    pub retransmits: u8,
    /// See [`Diag::unsigned`].
    signed: bool,
}

impl InetSocket {
    /// Everything that was sent last waits to be acknowledged, or sent again.
    pub const RETRANSMITTING: u8 = 1;
}

/// A unix socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnixSocket {
    /// Inode of its descriptor, as in `socket:[N]`.
    pub inode: u32,
    /// SOCK_STREAM 1, SOCK_DGRAM 2, SOCK_SEQPACKET 5.
    pub kind: u8,
    /// 1 connected, 7 not, 10 listening.
    pub state: u8,
    /// SO_COOKIE.
    pub cookie: u64,
    /// Name: a path, or an abstract name that begins with a NUL byte; none = unnamed.
    pub name: Option<Vec<u8>>,
    /// Device and inode of the socket file, for a path: (dev as the kernel numbers it inside, inode).
    pub file: Option<(u32, u32)>,
    /// Inode of the peer.
    pub peer: Option<u32>,
    /// Of a listening socket: inodes of the *connecting* sockets that wait for accept(2).
    pub pending: Vec<u32>,
    /// Bytes that wait to be read (first message of a datagram socket); of a listening one, how many wait.
    pub unread: u32,
    /// Bytes of our own not yet read by the peer; of a listening one, its backlog.
    pub unacked: u32,
    /// shutdown(2): bit 0 reading, bit 1 writing.
    pub shutdown: u8,
    /// Owner.
    pub uid: Option<u32>,
}

/// A sock_diag client, in the network namespace that the thread was in when it opened it.
#[derive(Debug)]
pub struct Diag {
    netlink: Netlink,
}

/// Bytes of `struct inet_diag_msg` and `struct unix_diag_msg`.
const INET_HEADER: usize = 72;
const UNIX_HEADER: usize = 16;

impl Diag {
    /// Opens one.
    ///
    /// # Errors
    /// `EPROTONOSUPPORT` the kernel has no sock_diag, `EMFILE`.
    pub fn open() -> Result<Self> {
        Ok(Self { netlink: Netlink::open_protocol(NETLINK_SOCK_DIAG)? })
    }

    /// All TCP sockets of both families, in every state.
    ///
    /// # Errors
    /// As [`Netlink::dump`].
    pub fn tcp(&mut self) -> Result<Vec<InetSocket>> {
        self.inet(6)
    }

    /// All UDP sockets of both families.
    ///
    /// # Errors
    /// As [`Netlink::dump`].
    pub fn udp(&mut self) -> Result<Vec<InetSocket>> {
        self.inet(17)
    }

    /// All sockets of an internet protocol. A protocol that the kernel has no sock_diag for has none.
    ///
    /// # Errors
    /// As [`Netlink::dump`].
    pub fn inet(&mut self, protocol: u8) -> Result<Vec<InetSocket>> {
        self.inet_in(protocol, u32::MAX)
    }

    /// The same in some states alone: bit n for state n of [`crate::tcp::state`], bit 12 for connections that a listening
    /// socket is just making (shown in state `SYN_RECV`).
    ///
    /// # Errors
    /// As [`Netlink::dump`].
    pub fn inet_in(&mut self, protocol: u8, states: u32) -> Result<Vec<InetSocket>> {
        const INET_DIAG_CONG: u8 = 4;
        const INET_DIAG_SHUTDOWN: u8 = 8;
        self.ask(protocol, states, 1 << (INET_DIAG_CONG - 1) | 1 << (INET_DIAG_SHUTDOWN - 1))
    }

    /// Inodes of the TCP sockets that have no keys of `TCP_MD5SIG`. Closed ones need not be among them. Only those with
    /// `CAP_NET_ADMIN` are told.
    ///
    /// # Errors
    /// As [`Netlink::dump`].
    pub fn unsigned(&mut self) -> Result<HashSet<u32>> {
        const INET_DIAG_INFO: u8 = 2;
        // What is particular to the protocol comes with its information only.
        let sockets = self.ask(6, u32::MAX, 1 << (INET_DIAG_INFO - 1))?;
        Ok(sockets.iter().filter(|socket| !socket.signed).map(|socket| socket.inode).collect())
    }

    fn ask(&mut self, protocol: u8, states: u32, extensions: u8) -> Result<Vec<InetSocket>> {
        let mut found = Vec::new();
        for family in [2_u8, 10] {
            // struct inet_diag_req_v2: family, protocol, extensions, pad, states, sockid.
            let mut request = [0_u8; 56];
            request[0] = family;
            request[1] = protocol;
            request[2] = extensions;
            request[4..8].copy_from_slice(&states.to_ne_bytes());
            let answers = match self.netlink.dump(&Message::new(SOCK_DIAG_BY_FAMILY, 0, &request)) {
                Err(Errno::ENOENT) => continue,
                other => other?,
            };
            found.extend(answers.iter().filter_map(|answer| inet(answer, protocol)));
        }
        Ok(found)
    }

    /// All unix sockets.
    ///
    /// # Errors
    /// As [`Netlink::dump`].
    pub fn unix(&mut self) -> Result<Vec<UnixSocket>> {
        const SHOW_NAME_VFS_PEER_ICONS_RQLEN_UID: u32 = 0x5f;
        // struct unix_diag_req: family, protocol, pad, states, inode, show, cookie.
        let mut request = [0_u8; 24];
        request[0] = 1;
        request[4..8].fill(0xff);
        request[12..16].copy_from_slice(&SHOW_NAME_VFS_PEER_ICONS_RQLEN_UID.to_ne_bytes());
        let answers = self.netlink.dump(&Message::new(SOCK_DIAG_BY_FAMILY, 0, &request))?;
        Ok(answers.iter().filter_map(unix).collect())
    }
}

fn cookie(payload: &[u8], at: usize) -> Option<u64> {
    Some(u64::from(number(payload, at)?) | u64::from(number(payload, at + 4)?) << 32)
}

fn inet(answer: &Answer, protocol: u8) -> Option<InetSocket> {
    const INET_DIAG_CONG: u16 = 4;
    const INET_DIAG_SHUTDOWN: u16 = 8;
    const INET_DIAG_SKV6ONLY: u16 = 11;
    const INET_DIAG_MD5SIG: u16 = 18;
    let payload = answer.payload.as_slice();
    let family = *payload.first()?;
    let interface = number(payload, 40)?;
    let address = |ip: usize, port: usize| -> Option<SocketAddr> {
        let port = u16::from_be(short(payload, port)?);
        if family == 2 {
            let ip = <[u8; 4]>::try_from(payload.get(ip..ip + 4)?).ok()?;
            return Some(SocketAddr::new(IpAddr::V4(Ipv4Addr::from(ip)), port));
        }
        let ip = Ipv6Addr::from(<[u8; 16]>::try_from(payload.get(ip..ip + 16)?).ok()?);
        let scope = if ip.is_unicast_link_local() { interface } else { 0 };
        Some(SocketAddrV6::new(ip, port, 0, scope).into())
    };
    let attributes = Attributes::after(payload, INET_HEADER);
    let byte = |kind| attributes.find(kind).and_then(|data| data.first().copied());
    Some(InetSocket {
        family,
        protocol,
        state: *payload.get(1)?,
        local: address(8, 4)?,
        peer: address(24, 6)?,
        interface,
        cookie: cookie(payload, 44)?,
        unread: number(payload, 56)?,
        unacked: number(payload, 60)?,
        uid: number(payload, 64)?,
        inode: number(payload, 68)?,
        shutdown: byte(INET_DIAG_SHUTDOWN).unwrap_or(0),
        congestion: attributes.find(INET_DIAG_CONG).map(string),
        v6_only: byte(INET_DIAG_SKV6ONLY).unwrap_or(0) != 0,
        timer: *payload.get(2)?,
        retransmits: *payload.get(3)?,
        signed: attributes.find(INET_DIAG_MD5SIG).is_some(),
    })
}

fn unix(answer: &Answer) -> Option<UnixSocket> {
    const NAME: u16 = 0;
    const VFS: u16 = 1;
    const PEER: u16 = 2;
    const ICONS: u16 = 3;
    const RQLEN: u16 = 4;
    const SHUTDOWN: u16 = 6;
    const UID: u16 = 7;
    let payload = answer.payload.as_slice();
    let attributes = Attributes::after(payload, UNIX_HEADER);
    let queues = attributes.find(RQLEN).unwrap_or(&[]);
    let pending = attributes.find(ICONS).unwrap_or(&[]).chunks_exact(4);
    Some(UnixSocket {
        inode: number(payload, 4)?,
        kind: *payload.get(1)?,
        state: *payload.get(2)?,
        cookie: cookie(payload, 8)?,
        name: attributes.find(NAME).map(name),
        file: attributes.find(VFS).and_then(|file| Some((number(file, 4)?, number(file, 0)?))),
        peer: attributes.find_u32(PEER),
        pending: pending.filter_map(|inode| number(inode, 0)).collect(),
        unread: number(queues, 0).unwrap_or(0),
        unacked: number(queues, 4).unwrap_or(0),
        shutdown: attributes.find(SHUTDOWN).and_then(|data| data.first().copied()).unwrap_or(0),
        uid: attributes.find_u32(UID),
    })
}

/// A path comes with its NUL or without; an abstract name is all of its bytes.
fn name(raw: &[u8]) -> Vec<u8> {
    match raw.first() {
        Some(0) | None => raw.to_vec(),
        Some(_) => raw.split(|&b| b == 0).next().unwrap_or(raw).to_vec(),
    }
}
