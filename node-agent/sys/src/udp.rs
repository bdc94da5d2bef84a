//! Datagrams that wait in a UDP socket: looked at without taking them, and put into a fresh socket.
//!
//! See udp(7), ip(7), ipv6(7). A datagram is put back over the loopback interface with its own source address, so
//! that recvfrom(2) tells the right peer.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use libc::{IPPROTO_IP, IPPROTO_IPV6, IPPROTO_UDP, SOL_SOCKET};

use crate::loopback::{Packet, checksum};
use crate::sock::{self, Address, Received};
use crate::{Errno, Result};

const IP_TOS: i32 = 1;
const IP_TTL: i32 = 2;
const IP_RECVTTL: i32 = 12;
const IP_RECVTOS: i32 = 13;
/// Also the name of the ancillary item.
const IP_RECVORIGDSTADDR: i32 = 20;
/// Also the name of the ancillary item.
const IPV6_FLOWINFO: i32 = 11;
const IPV6_RECVHOPLIMIT: i32 = 51;
const IPV6_HOPLIMIT: i32 = 52;
/// Also the name of the ancillary item.
const IPV6_RECVORIGDSTADDR: i32 = 74;
/// Also the name of the ancillary item, which tells the size of the datagrams that were joined.
const UDP_GRO: i32 = 104;
const SO_BUF_LOCK: i32 = 72;
const SO_RCVBUFFORCE: i32 = 33;
const LIMIT: usize = 65536;
/// How long the loopback interface may take.
const DELIVERY: Duration = Duration::from_secs(2);

/// A datagram that was received and not read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Datagram {
    /// Its sender.
    pub from: SocketAddr,
    /// The address and port that it was sent to.
    pub to: SocketAddr,
    /// Time to live, or hop limit, as it arrived.
    pub hops: u8,
    /// Type of service; for IPv6 traffic class and flow label, 28 bits.
    pub class: u32,
    /// Content, which may be empty.
    pub data: Vec<u8>,
}

/// Everything that waits in a UDP socket, oldest first; it stays there. What the socket tells with each datagram is
/// asked for the moment of looking and put back. Nobody else may read the socket meanwhile.
///
/// The kernel hides an empty datagram behind others when it was looked at before under SO_PEEK_OFF, also by this.
///
/// # Errors
/// `EBADMSG` the kernel did not tell where a datagram came from or went to; those of setsockopt(2) and recvmsg(2).
pub fn waiting(fd: BorrowedFd<'_>) -> Result<Vec<Datagram>> {
    if sock::events(fd, libc::POLLIN)? & libc::POLLIN == 0 {
        return Ok(Vec::new());
    }
    let mut asked =
        vec![(IPPROTO_IP, IP_RECVORIGDSTADDR), (IPPROTO_IP, IP_RECVTTL), (IPPROTO_IP, IP_RECVTOS)];
    if sock::domain(fd)? == libc::AF_INET6 {
        asked.extend(
            [IPV6_RECVORIGDSTADDR, IPV6_RECVHOPLIMIT, IPV6_FLOWINFO].map(|name| (IPPROTO_IPV6, name)),
        );
    }
    let mut before = Vec::with_capacity(asked.len());
    let mut result = Ok(Vec::new());
    for (level, name) in asked {
        match sock::get_int(fd, level, name).and_then(|value| {
            sock::set_int(fd, level, name, 1)?;
            Ok(value)
        }) {
            Ok(value) => before.push((level, name, value)),
            Err(errno) => result = Err(errno),
        }
    }
    if result.is_ok() {
        result = look(fd);
    }
    for (level, name, value) in before {
        sock::set_int(fd, level, name, value)?;
    }
    let mut datagrams = Vec::new();
    for received in result? {
        parse(&received, &mut datagrams)?;
    }
    Ok(datagrams)
}

fn look(fd: BorrowedFd<'_>) -> Result<Vec<Received>> {
    let before = sock::peek_offset(fd)?;
    sock::set_peek_offset(fd, -1)?;
    let head = sock::receive(fd, LIMIT, libc::MSG_PEEK | libc::MSG_DONTWAIT);
    let queue = sock::peek_queue(fd);
    sock::set_peek_offset(fd, before)?;
    let mut queue = queue?;
    // Once seen, an empty one is passed over by every offset.
    if let Ok(head) = head
        && head.data.is_empty()
        && head.from.is_some()
    {
        queue.insert(0, head);
    }
    Ok(queue)
}

fn parse(received: &Received, datagrams: &mut Vec<Datagram>) -> Result<()> {
    let from = received.from.as_ref().and_then(Address::inet).ok_or(Errno::EBADMSG)?;
    let mut to = None;
    let (mut hops, mut class, mut joined) = (64, 0, 0);
    for item in &received.control {
        let word = item.data.first_chunk::<4>();
        match (item.level, item.kind) {
            (IPPROTO_IP, IP_RECVORIGDSTADDR) | (IPPROTO_IPV6, IPV6_RECVORIGDSTADDR) => {
                to = Address::from_bytes(&item.data).inet();
            }
            (IPPROTO_IP, IP_TTL) | (IPPROTO_IPV6, IPV6_HOPLIMIT) => {
                hops = word.map_or(hops, |word| word[0]);
            }
            (IPPROTO_IP, IP_TOS) => class = item.data.first().map_or(0, |tos| u32::from(*tos)),
            (IPPROTO_IPV6, IPV6_FLOWINFO) => class = word.map_or(0, |word| u32::from_be_bytes(*word)),
            (IPPROTO_UDP, UDP_GRO) => {
                joined = word.map_or(0, |word| u16::from_le_bytes([word[0], word[1]]).into());
            }
            _ => {}
        }
    }
    let to = to.ok_or(Errno::EBADMSG)?;
    let mut add = |data: &[u8]| datagrams.push(Datagram { from, to, hops, class, data: data.to_vec() });
    if joined > 0 && received.data.len() > joined {
        received.data.chunks(joined).for_each(&mut add);
    } else {
        add(&received.data);
    }
    Ok(())
}

/// How a datagram could not be put back.
#[derive(Debug, thiserror::Error)]
pub enum DeliverError {
    /// It was sent to an address that is not this namespace's.
    #[error("{0} is no address of the container's interfaces")]
    NotLocal(IpAddr),
    /// It did not arrive: a filter of the namespace, or another socket with the same address, took it.
    #[error("the datagram from {0} did not arrive in the socket")]
    Lost(SocketAddr),
    /// The kernel refused.
    #[error("{what}")]
    Kernel {
        /// The step.
        what: &'static str,
        /// Why.
        #[source]
        source: Errno,
    },
}

/// Puts datagrams into a bound socket, in order, as if they came from their senders. Must run in the socket's network
/// namespace. `connect`: the socket is connected to each sender for the moment, because another
/// one has the same port; afterwards it is not connected. The size of its receive buffer is left as it was.
///
/// # Errors
/// [`DeliverError`]; some of them may have arrived.
pub fn deliver(
    fd: BorrowedFd<'_>,
    datagrams: &[Datagram],
    connect: bool,
) -> std::result::Result<(), DeliverError> {
    let kernel = |what| move |source| DeliverError::Kernel { what, source };
    let protocol = sock::protocol(fd)
        .and_then(|protocol| u8::try_from(protocol).map_err(|_| Errno::EPROTONOSUPPORT))
        .map_err(kernel("ask for the protocol"))?;
    let size = sock::get_int(fd, SOL_SOCKET, libc::SO_RCVBUF).map_err(kernel("SO_RCVBUF"))?;
    let lock = sock::get_int(fd, SOL_SOCKET, SO_BUF_LOCK).map_err(kernel("SO_BUF_LOCK"))?;
    // Packets of this interface count more than those of others.
    sock::set_int(fd, SOL_SOCKET, SO_RCVBUFFORCE, i32::MAX / 4).map_err(kernel("SO_RCVBUFFORCE"))?;
    let result = datagrams.iter().try_for_each(|datagram| deliver_one(fd, datagram, protocol, connect));
    sock::set_int(fd, SOL_SOCKET, SO_RCVBUFFORCE, size / 2).map_err(kernel("SO_RCVBUFFORCE"))?;
    sock::set_int(fd, SOL_SOCKET, SO_BUF_LOCK, lock).map_err(kernel("SO_BUF_LOCK"))?;
    result
}

fn deliver_one(
    fd: BorrowedFd<'_>,
    datagram: &Datagram,
    protocol: u8,
    connect: bool,
) -> std::result::Result<(), DeliverError> {
    let kernel = |what| move |source| DeliverError::Kernel { what, source };
    let (from, to) = (datagram.from, datagram.to);
    if destination(to).map_err(kernel("ask whose an address is"))? != Destination::Here {
        return Err(DeliverError::NotLocal(to.ip()));
    }
    let payload = with_header(datagram, protocol).map_err(kernel("make a datagram"))?;
    let before = sock::memory(fd).map_err(kernel("SO_MEMINFO"))?.receive;
    if connect {
        sock::connect(fd, &from.into()).map_err(kernel("connect to a sender"))?;
    }
    let packet = Packet { from, to, protocol, hops: datagram.hops, class: datagram.class, payload: &payload };
    packet.send().map_err(kernel("give a datagram to the loopback interface"))?;
    let end = Instant::now() + DELIVERY;
    // It usually is there when send(2) returns.
    while sock::memory(fd).map_err(kernel("SO_MEMINFO"))?.receive <= before {
        if Instant::now() > end {
            return Err(DeliverError::Lost(from));
        }
        std::thread::sleep(Duration::from_micros(100));
    }
    if connect {
        let nobody = Address::Other(vec![0; 16]);
        sock::connect(fd, &nobody).map_err(kernel("disconnect from a sender"))?;
    }
    Ok(())
}

/// Where a datagram went that was sent to an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destination {
    /// To this network namespace alone: it can be put back by [`deliver`].
    Here,
    /// To every listener: a broadcast or multicast address.
    Many,
    /// The address is not one of this namespace's.
    Elsewhere,
}

/// Whose an address is in the calling thread's network namespace.
///
/// # Errors
/// `EMFILE`, `EAFNOSUPPORT`.
pub fn destination(address: SocketAddr) -> Result<Destination> {
    let mut address = address;
    address.set_ip(address.ip().to_canonical());
    if address.ip().is_multicast() || address.ip() == Ipv4Addr::BROADCAST {
        return Ok(Destination::Many);
    }
    let family = if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let probe = sock::socket(family, libc::SOCK_DGRAM, 0)?;
    // Without SO_BROADCAST.
    if sock::connect(probe.as_fd(), &address.into()) == Err(Errno::EACCES) {
        return Ok(Destination::Many);
    }
    let probe = sock::socket(family, libc::SOCK_DGRAM, 0)?;
    address.set_port(0);
    match sock::bind(probe.as_fd(), &address.into()) {
        Ok(()) if !address.ip().is_unspecified() => Ok(Destination::Here),
        Ok(()) | Err(Errno::EADDRNOTAVAIL | Errno::EINVAL | Errno::ENODEV) => Ok(Destination::Elsewhere),
        Err(errno) => Err(errno),
    }
}

fn with_header(datagram: &Datagram, protocol: u8) -> Result<Vec<u8>> {
    let length = u16::try_from(8 + datagram.data.len()).map_err(|_| Errno::EMSGSIZE)?;
    let mut bytes = Vec::with_capacity(length.into());
    bytes.extend(datagram.from.port().to_be_bytes());
    bytes.extend(datagram.to.port().to_be_bytes());
    // UDP-Lite has its coverage here: 0 is everything.
    bytes.extend(if protocol == 17 { length } else { 0 }.to_be_bytes());
    bytes.extend([0, 0]);
    bytes.extend(&datagram.data);
    let check = match checksum(&datagram.from, &datagram.to, protocol, length.into(), &bytes) {
        // 0 says that there is none.
        0 => u16::MAX,
        check => check,
    };
    bytes[6..8].copy_from_slice(&check.to_be_bytes());
    Ok(bytes)
}
