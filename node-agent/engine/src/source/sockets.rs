//! What can be told about a socket without touching it.

use std::net::SocketAddr;
use std::os::fd::BorrowedFd;

use libc::{
    AF_INET, AF_INET6, AF_NETLINK, AF_PACKET, AF_UNIX, IPPROTO_ICMP, IPPROTO_ICMPV6, IPPROTO_IP,
    IPPROTO_IPV6, IPPROTO_MPTCP, IPPROTO_TCP, IPPROTO_UDP, IPPROTO_UDPLITE, NETLINK_KOBJECT_UEVENT,
    NETLINK_ROUTE, NETLINK_SOCK_DIAG, SOCK_DGRAM, SOCK_RAW, SOCK_STREAM,
};
use sys::{Errno, sock};

use super::error::TRY_AGAIN;

/// Kernel numbers of TCP states.
pub(crate) mod tcp_state {
    pub(crate) const ESTABLISHED: u8 = 1;
    pub(crate) const SYN_SENT: u8 = 2;
    pub(crate) const SYN_RECV: u8 = 3;
    pub(crate) const CLOSE: u8 = 7;
    pub(crate) const LISTEN: u8 = 10;
}

const TCP_INFO: i32 = 11;
const TCP_SAVED_SYN: i32 = 28;
const TCP_ULP: i32 = 31;
const IP_RECVERR: i32 = 11;
const IPV6_RECVERR: i32 = 25;
const SO_TIMESTAMPING: i32 = 37;
const SO_ZEROCOPY: i32 = 60;
const SO_RESERVE_MEM: i32 = 73;
const TCP_AO_INFO: i32 = 40;
/// IPV6_HOPOPTS, RTHDRDSTOPTS, RTHDR, DSTOPTS: headers that go with every packet.
const EXTENSION_HEADERS: [i32; 4] = [54, 55, 57, 59];

/// A socket by what the engine does with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// AF_UNIX of this type.
    Unix(i32),
    /// TCP, or a multipath one that has no connection.
    Tcp(TcpKind),
    /// UDP or UDP-Lite.
    Udp { family: i32, protocol: i32 },
    /// AF_NETLINK of a protocol without state in the kernel.
    Netlink { socket_type: i32, protocol: i32 },
    /// Raw IP of either family, and ping sockets.
    Raw { family: i32, socket_type: i32, protocol: i32 },
    /// AF_PACKET of this type.
    Packet(i32),
}

/// What a TCP socket is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TcpKind {
    pub(crate) family: i32,
    /// IPPROTO_TCP or IPPROTO_MPTCP.
    pub(crate) protocol: i32,
    /// The kernel's number.
    pub(crate) state: u8,
    /// It has memory for options, and nothing that it tells of itself explains why: perhaps keys of signatures.
    /// See [`super::connections`].
    pub(crate) unexplained: bool,
}

/// Why a socket cannot move, and what to do.
pub(crate) type Reason = (String, &'static str);

const CLOSE: &str = "have the program close it before the move";

/// What a socket is; `Ok(Err(..))` when it cannot move. `now`: it must be able to move at this moment; otherwise
/// what passes by itself (a connection just being made) is no reason.
pub(crate) fn kind(fd: BorrowedFd<'_>, now: bool) -> Result<Result<Kind, Reason>, Errno> {
    let family = sock::domain(fd)?;
    let socket_type = sock::kind(fd)?;
    let protocol = sock::protocol(fd)?;
    if family == AF_INET6 && is_link_local(fd) {
        return Ok(Err((
            "socket with a link-local IPv6 address: its interface is not carried yet".to_owned(),
            CLOSE,
        )));
    }
    match (family, socket_type, protocol) {
        (AF_UNIX, _, _) => Ok(Ok(Kind::Unix(socket_type))),
        (AF_INET | AF_INET6, SOCK_STREAM, IPPROTO_TCP | IPPROTO_MPTCP) => tcp(fd, family, protocol, now),
        (AF_INET | AF_INET6, SOCK_DGRAM, IPPROTO_UDP | IPPROTO_UDPLITE) => {
            Ok(udp(fd, family, now)?.map(|()| Kind::Udp { family, protocol }))
        }
        (AF_INET | AF_INET6, SOCK_RAW, _)
        | (AF_INET | AF_INET6, SOCK_DGRAM, IPPROTO_ICMP | IPPROTO_ICMPV6) => {
            Ok(raw(fd, family, now)?.map(|()| Kind::Raw { family, socket_type, protocol }))
        }
        (AF_PACKET, SOCK_RAW | SOCK_DGRAM, _) => Ok(packet(fd, now)?.map(|()| Kind::Packet(socket_type))),
        // Nothing hangs on sockets of these but the groups that they listen to.
        (AF_NETLINK, _, NETLINK_ROUTE | NETLINK_SOCK_DIAG | NETLINK_KOBJECT_UEVENT) => {
            Ok(netlink(fd, now)?.map(|()| Kind::Netlink { socket_type, protocol }))
        }
        _ => Ok(Err((format!("{}: not carried", describe(family, socket_type, protocol)), CLOSE))),
    }
}

/// Its address, or its peer's, belongs to one interface.
fn is_link_local(fd: BorrowedFd<'_>) -> bool {
    [sock::local_name(fd), sock::peer_name(fd)].into_iter().flatten().any(|name| match name.inet() {
        Some(SocketAddr::V6(address)) => address.scope_id() != 0,
        _ => false,
    })
}

fn netlink(fd: BorrowedFd<'_>, now: bool) -> Result<Result<(), Reason>, Errno> {
    if super::capture::netlink::name(&sock::peer_name(fd)?) != (0, 0) {
        return Ok(Err(("netlink socket that is connected to another one: not carried".to_owned(), CLOSE)));
    }
    if now && sock::events(fd, libc::POLLIN)? & (libc::POLLIN | libc::POLLERR) != 0 {
        return Ok(Err(("netlink socket with messages that wait to be read".to_owned(), TRY_AGAIN)));
    }
    Ok(Ok(()))
}

fn udp(fd: BorrowedFd<'_>, family: i32, now: bool) -> Result<Result<(), Reason>, Errno> {
    // Memberships are asked for elsewhere.
    if let Held::Refused(reason) = held(fd, family, now)? {
        return Ok(Err(reason));
    }
    pending_error(fd, "UDP", family, now)
}

fn raw(fd: BorrowedFd<'_>, family: i32, now: bool) -> Result<Result<(), Reason>, Errno> {
    if let Held::Refused(reason) = held(fd, family, now)? {
        return Ok(Err(reason));
    }
    if let Some(reason) = waiting(fd, "raw", now)? {
        return Ok(Err(reason));
    }
    pending_error(fd, "raw", family, now)
}

fn packet(fd: BorrowedFd<'_>, now: bool) -> Result<Result<(), Reason>, Errno> {
    if let Some(reason) = waiting(fd, "packet", now)? {
        return Ok(Err(reason));
    }
    pending_error(fd, "packet", AF_PACKET, now)
}

/// Packets that cannot be put back.
fn waiting(fd: BorrowedFd<'_>, name: &str, now: bool) -> Result<Option<Reason>, Errno> {
    if now && sock::events(fd, libc::POLLIN)? & libc::POLLIN != 0 {
        return Ok(Some((format!("{name} socket with packets that wait to be read"), TRY_AGAIN)));
    }
    Ok(None)
}

/// An error that waits to be told, or messages in an error queue.
fn pending_error(
    fd: BorrowedFd<'_>,
    name: &str,
    family: i32,
    now: bool,
) -> Result<Result<(), Reason>, Errno> {
    if now && sock::events(fd, 0)? & libc::POLLERR != 0 {
        let mut options = vec![
            (IPPROTO_IP, IP_RECVERR),
            (libc::SOL_SOCKET, SO_TIMESTAMPING),
            (libc::SOL_SOCKET, SO_ZEROCOPY),
        ];
        if family == AF_INET6 {
            options.push((IPPROTO_IPV6, IPV6_RECVERR));
        }
        let has_queue = options
            .into_iter()
            .any(|(level, name)| sock::get_int(fd, level, name).is_ok_and(|value| value != 0));
        // Which error it is, only taking it tells.
        let what = if has_queue { "messages in its error queue" } else { "an error that waits to be told" };
        return Ok(Err((format!("{name} socket with {what}"), TRY_AGAIN)));
    }
    Ok(Ok(()))
}

/// What a socket's memory tells of what it holds.
enum Held {
    Nothing,
    /// Something that it does not tell.
    Unexplained,
    Refused(Reason),
}

/// Asks for the memory of an internet socket, and for more only when it has some.
fn held(fd: BorrowedFd<'_>, family: i32, now: bool) -> Result<Held, Errno> {
    let memory = sock::memory(fd)?;
    let option = |level, name| sock::get_int(fd, level, name).is_ok_and(|value| value != 0);
    let refused = |reason: &str, way_out| Ok(Held::Refused((reason.to_owned(), way_out)));
    if memory.forward + memory.receive + memory.send > 0 && option(libc::SOL_SOCKET, SO_RESERVE_MEM) {
        return refused("socket with memory set aside (SO_RESERVE_MEM): not carried", CLOSE);
    }
    if memory.options == 0 {
        return Ok(Held::Nothing);
    }
    let has_header =
        |name| sock::get_into(fd, IPPROTO_IPV6, name, &mut [0; 256]).is_ok_and(|length| length > 0);
    if family == AF_INET6 && EXTENSION_HEADERS.into_iter().any(has_header) {
        return refused("socket with extension headers of IPv6: not carried yet", CLOSE);
    }
    if option(libc::SOL_SOCKET, SO_ZEROCOPY) {
        let due = "socket with data sent by MSG_ZEROCOPY, of which the program is still to be told";
        return if now { refused(due, TRY_AGAIN) } else { Ok(Held::Nothing) };
    }
    match sock::get_into(fd, IPPROTO_TCP, TCP_AO_INFO, &mut [0; 48]) {
        // It has no such keys, or the kernel or the protocol does not know them.
        Err(Errno::ENOENT | Errno::ENOPROTOOPT | Errno::EOPNOTSUPP) => Ok(Held::Unexplained),
        _ => refused(SIGNED, UNSIGNED),
    }
}

/// Of a socket with keys.
pub(crate) const SIGNED: &str =
    "TCP socket with keys of signatures (TCP_MD5SIG, TCP_AO): they are not carried";
pub(crate) const UNSIGNED: &str = "have the program close it, or start it without signatures";

fn tcp(fd: BorrowedFd<'_>, family: i32, protocol: i32, now: bool) -> Result<Result<Kind, Reason>, Errno> {
    let info = sock::get_raw(fd, IPPROTO_TCP, TCP_INFO)?;
    let state = info.first().copied().unwrap_or(0);
    let is_multipath = protocol == IPPROTO_MPTCP;
    if is_multipath && !matches!(state, tcp_state::LISTEN | tcp_state::CLOSE) {
        return Ok(Err((
            "MPTCP connection: its subflows cannot be made again".to_owned(),
            "start the program with plain TCP",
        )));
    }
    if !is_multipath
        && let Ok(ulp) = sock::get_raw(fd, IPPROTO_TCP, TCP_ULP)
        && ulp.first().is_some_and(|byte| *byte != 0)
    {
        let name = String::from_utf8_lossy(&ulp).trim_end_matches('\0').to_owned();
        return Ok(Err((
            format!("TCP socket with {name} in the kernel: its keys cannot be read"),
            "start the program without kernel TLS",
        )));
    }
    // A buffer that is too small leaves it there. See `TCP_SAVE_SYN` of tcp(7).
    if sock::get_into(fd, IPPROTO_TCP, TCP_SAVED_SYN, &mut [0]) == Err(Errno::EINVAL) {
        return Ok(Err((
            "TCP connection with headers of its SYN that nobody has read (TCP_SAVED_SYN): not carried"
                .to_owned(),
            "have the program read them, or start it without TCP_SAVE_SYN",
        )));
    }
    let unexplained = match held(fd, family, now)? {
        Held::Refused(reason) => return Ok(Err(reason)),
        Held::Unexplained => true,
        Held::Nothing => false,
    };
    let events = if now { sock::events(fd, libc::POLLRDHUP)? } else { 0 };
    Ok(match state {
        // What it was, what is left to read, why it ended: none of it can be given to a fresh socket.
        tcp_state::CLOSE if events & libc::POLLRDHUP != 0 => Err((
            "TCP connection that has ended, which the program has not closed: not carried yet".to_owned(),
            "try again in a moment; a program that keeps it must close it",
        )),
        tcp_state::SYN_RECV if now => {
            Err(("TCP connection that is just being made".to_owned(), "try again in a moment"))
        }
        // For a listening socket: connections that wait for accept(2).
        tcp_state::LISTEN if now && word(&info, 24) > 0 => Err((
            format!("{} TCP connection(s) wait to be accepted", word(&info, 24)),
            "try again in a moment; a program that never accepts must be ended",
        )),
        _ if events & libc::POLLERR != 0 => Err((
            "TCP socket with an error that waits to be told, or messages in its error queue".to_owned(),
            TRY_AGAIN,
        )),
        _ => Ok(Kind::Tcp(TcpKind { family, protocol, state, unexplained })),
    })
}

/// A 32-bit field of `struct tcp_info`.
pub(crate) fn word(info: &[u8], at: usize) -> u32 {
    info.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_ne_bytes)
}

/// Whether it has a packet filter.
pub(crate) fn has_filter(fd: BorrowedFd<'_>) -> Result<Result<bool, Reason>, Errno> {
    match sock::filter::len(fd) {
        Ok(length) => Ok(Ok(length > 0)),
        Err(Errno::EACCES) => {
            Ok(Err(("socket with a program of eBPF (SO_ATTACH_BPF): not carried".to_owned(), CLOSE)))
        }
        Err(Errno::ENOPROTOOPT | Errno::EOPNOTSUPP) => Ok(Ok(false)),
        Err(errno) => Err(errno),
    }
}

fn describe(family: i32, socket_type: i32, protocol: i32) -> String {
    let name = match family {
        libc::AF_NETLINK => "netlink socket",
        libc::AF_PACKET => "packet socket of type SOCK_PACKET",
        libc::AF_VSOCK => "vsock socket",
        libc::AF_ALG => "AF_ALG (kernel cryptography) socket",
        libc::AF_XDP => "AF_XDP socket",
        libc::AF_CAN => "CAN socket",
        AF_INET | AF_INET6 if protocol == libc::IPPROTO_SCTP => "SCTP socket",
        _ => return format!("socket of family {family}, type {socket_type}, protocol {protocol}"),
    };
    name.to_owned()
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream, UdpSocket};
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn sockets_by_kind() {
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        assert_eq!(
            kind(udp.as_fd(), true).unwrap(),
            Ok(Kind::Udp { family: AF_INET, protocol: IPPROTO_UDP })
        );
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let plain =
            |state| Kind::Tcp(TcpKind { family: AF_INET, protocol: IPPROTO_TCP, state, unexplained: false });
        let listening = plain(tcp_state::LISTEN);
        assert_eq!(kind(listener.as_fd(), true).unwrap(), Ok(listening));
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        assert!(kind(listener.as_fd(), true).unwrap().unwrap_err().0.contains("wait to be accepted"));
        assert_eq!(kind(listener.as_fd(), false).unwrap(), Ok(listening));
        let (server, _) = listener.accept().unwrap();
        let connected = plain(tcp_state::ESTABLISHED);
        assert_eq!(kind(server.as_fd(), true).unwrap(), Ok(connected));
        assert_eq!(kind(listener.as_fd(), true).unwrap(), Ok(listening));
        drop(client);
        // Nobody answers at the discarded port: an ICMP message comes back.
        let gone = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        sock::set_int(udp.as_fd(), IPPROTO_IP, IP_RECVERR, 1).unwrap();
        udp.send_to(b"x", gone).unwrap();
        assert!(kind(udp.as_fd(), true).unwrap().unwrap_err().0.contains("error queue"));
        assert!(kind(udp.as_fd(), false).unwrap().is_ok());
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        udp.connect(gone).unwrap();
        udp.send(b"x").unwrap();
        assert!(kind(udp.as_fd(), true).unwrap().unwrap_err().0.contains("an error that waits"));
        udp.take_error().unwrap().unwrap();
        assert!(kind(udp.as_fd(), true).unwrap().is_ok());
        let udp = UdpSocket::bind("[::1]:0").unwrap();
        assert_eq!(
            kind(udp.as_fd(), true).unwrap(),
            Ok(Kind::Udp { family: AF_INET6, protocol: IPPROTO_UDP })
        );
        // A header of padding alone.
        sock::set_raw(udp.as_fd(), IPPROTO_IPV6, 59, &[0, 0, 1, 4, 0, 0, 0, 0]).unwrap();
        assert!(kind(udp.as_fd(), false).unwrap().unwrap_err().0.contains("extension headers"));
        let udp = sock::socket(AF_INET6, SOCK_DGRAM, 0).unwrap();
        // IPV6_FREEBIND: no interface need have it.
        sock::set_int(udp.as_fd(), IPPROTO_IPV6, 78, 1).unwrap();
        let address: SocketAddr = "[fe80::1%1]:0".parse().unwrap();
        sock::bind(udp.as_fd(), &address.into()).unwrap();
        assert!(kind(udp.as_fd(), false).unwrap().unwrap_err().0.contains("link-local"));
        let netlink = sock::socket(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_GENERIC).unwrap();
        assert!(kind(netlink.as_fd(), true).unwrap().unwrap_err().0.starts_with("netlink"));
        let raw = sock::socket(AF_INET, libc::SOCK_RAW, 1).unwrap();
        assert_eq!(
            kind(raw.as_fd(), true).unwrap(),
            Ok(Kind::Raw { family: AF_INET, socket_type: SOCK_RAW, protocol: IPPROTO_ICMP })
        );
        let vsock = sock::socket(libc::AF_VSOCK, SOCK_STREAM, 0);
        if let Ok(vsock) = vsock {
            assert!(kind(vsock.as_fd(), true).unwrap().unwrap_err().0.starts_with("vsock"));
        }
    }
}
