//! Socket options that differ from those of a fresh socket of the same kind.

use std::borrow::Cow;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::os::fd::{AsFd, BorrowedFd};

use image::sockets::SockOpt;
use libc::{
    AF_INET, AF_INET6, IPPROTO_IP, IPPROTO_IPV6, IPPROTO_MPTCP, IPPROTO_TCP, IPPROTO_UDP, IPPROTO_UDPLITE,
    SOL_SOCKET,
};
use sys::{Errno, sock};

use crate::source::sockets::{TcpKind, tcp_state};

/// Level and names, in the order in which they are set again.
type Table = (i32, &'static [i32]);

/// SO_DEBUG, REUSEADDR, DONTROUTE, BROADCAST, KEEPALIVE, OOBINLINE, NO_CHECK, LINGER, REUSEPORT, PASSCRED, RCVLOWAT,
/// RCVTIMEO, SNDTIMEO, BINDTODEVICE, TIMESTAMP, PASSSEC, TIMESTAMPNS, MARK, TIMESTAMPING, RXQ_OVFL, WIFI_STATUS,
/// PEEK_OFF, NOFCS, SELECT_ERR_QUEUE, BUSY_POLL, MAX_PACING_RATE, ZEROCOPY, PREFER_BUSY_POLL, PASSPIDFD, RCVPRIORITY,
/// PASSRIGHTS, INQ, INCOMING_CPU, TXTIME, TIMESTAMP_NEW, TIMESTAMPNS_NEW, TIMESTAMPING_NEW, TXREHASH.
const SOCKET: Table = (
    SOL_SOCKET,
    &[
        1, 2, 5, 6, 9, 10, 11, 13, 15, 16, 18, 20, 21, 25, 29, 34, 35, 36, 37, 40, 41, 42, 43, 45, 46, 47,
        60, 69, 76, 82, 83, 84, 49, 61, 63, 64, 65, 74,
    ],
);
/// SO_PRIORITY, which IP_TOS sets as well, and SO_LOCK_FILTER: after all others.
const LAST: Table = (SOL_SOCKET, &[12, 44]);
/// SO_SNDBUF, SO_RCVBUF and then SO_BUF_LOCK. Connections of TCP carry them apart.
const BUFFERS: Table = (SOL_SOCKET, &[7, 8, 72]);
/// NODELAY, KEEPIDLE, KEEPINTVL, KEEPCNT, SYNCNT, LINGER2, DEFER_ACCEPT, CONGESTION, THIN_LINEAR_TIMEOUTS,
/// USER_TIMEOUT, FASTOPEN, NOTSENT_LOWAT, SAVE_SYN, FASTOPEN_CONNECT, FASTOPEN_NO_COOKIE, INQ, TX_DELAY, RTO_MAX_MS, RTO_MIN_US, DELACK_MAX_US; CORK last,
/// because it holds back.
const TCP: Table =
    (IPPROTO_TCP, &[1, 4, 5, 6, 7, 8, 9, 13, 16, 18, 23, 25, 27, 30, 34, 36, 37, 44, 45, 46, 3]);
/// MAXSEG and WINDOW_CLAMP, which for a connection are not what the program set; FASTOPEN_KEY.
const TCP_UNCONNECTED: Table = (IPPROTO_TCP, &[2, 10, 33]);
/// SEGMENT, GRO, NO_CHECK6_TX, NO_CHECK6_RX; CORK, which nothing is held back by.
const UDP: Table = (IPPROTO_UDP, &[103, 104, 101, 102, 1]);
/// SEND_CSCOV, RECV_CSCOV.
const UDPLITE: Table = (IPPROTO_UDPLITE, &[10, 11]);
/// TOS, TTL, OPTIONS, RECVOPTS, RETOPTS, PKTINFO, MTU_DISCOVER, RECVERR, RECVTTL, RECVTOS, FREEBIND, TRANSPARENT,
/// RECVORIGDSTADDR, MINTTL, BIND_ADDRESS_NO_PORT, UNICAST_IF, LOCAL_PORT_RANGE, PASSSEC, CHECKSUM, RECVFRAGSIZE, RECVERR_RFC4884.
const IP: Table =
    (IPPROTO_IP, &[1, 2, 4, 6, 7, 8, 10, 11, 12, 13, 15, 19, 20, 21, 24, 50, 51, 18, 23, 25, 26]);
/// MULTICAST_IF, MULTICAST_TTL, MULTICAST_LOOP, MULTICAST_ALL: not for streams, which take none of them.
const IP_MULTICAST: Table = (IPPROTO_IP, &[32, 33, 34, 49]);
/// MULTICAST_IF, MULTICAST_HOPS, MULTICAST_LOOP, MULTICAST_ALL.
const IPV6_MULTICAST: Table = (IPPROTO_IPV6, &[17, 18, 19, 29]);
/// FLOWINFO_SEND, UNICAST_HOPS, MTU_DISCOVER, RECVERR, V6ONLY, RECVPKTINFO, RECVHOPLIMIT, DONTFRAG, RECVTCLASS, TCLASS, AUTOFLOWLABEL, ADDR_PREFERENCES, MINHOPCOUNT, ORIGDSTADDR,
/// TRANSPARENT, UNICAST_IF, RECVFRAGSIZE, FREEBIND, FLOWINFO,
/// RECVERR_RFC4884, RECVHOPOPTS, RECVRTHDR, RECVDSTOPTS, RECVPATHMTU.
const IPV6: Table = (
    IPPROTO_IPV6,
    &[33, 16, 23, 25, 26, 49, 51, 62, 66, 67, 70, 72, 73, 74, 75, 76, 77, 78, 11, 31, 53, 56, 58, 60],
);
/// ROUTER_ALERT, HDRINCL, NODEFRAG; of ICMP its filter.
const RAW: [Table; 2] = [(IPPROTO_IP, &[5, 3, 22]), (SOL_RAW, &[1])];
/// CHECKSUM, ROUTER_ALERT, HDRINCL; of ICMPv6 its filter.
const RAW_IPV6: [Table; 2] = [(IPPROTO_IPV6, &[7, 22, 36]), (libc::IPPROTO_ICMPV6, &[1])];
/// AUXDATA, ORIGDEV, VERSION, RESERVE, LOSS, VNET_HDR, TIMESTAMP, TX_HAS_OFF, QDISC_BYPASS, IGNORE_OUTGOING, VNET_HDR_SZ.
const PACKET: Table = (libc::SOL_PACKET, &[8, 9, 10, 12, 14, 15, 17, 19, 20, 23, 24]);
const SOL_RAW: i32 = 255;
/// PKTINFO, BROADCAST_ERROR, NO_ENOBUFS, LISTEN_ALL_NSID, CAP_ACK, EXT_ACK, GET_STRICT_CHK.
const NETLINK: Table = (libc::SOL_NETLINK, &[3, 4, 5, 8, 10, 11, 12]);
const TCP_CONGESTION: (i32, i32) = (IPPROTO_TCP, 13);
const SO_REUSEADDR: (i32, i32) = (SOL_SOCKET, 2);
const SO_PEEK_OFF: (i32, i32) = (SOL_SOCKET, 42);
const SO_INCOMING_CPU: (i32, i32) = (SOL_SOCKET, 49);
const TCP_FASTOPEN_KEY: (i32, i32) = (IPPROTO_TCP, 33);

/// Reads options; remembers what a fresh socket of each kind has.
#[derive(Debug, Default)]
pub(crate) struct Reader {
    fresh: HashMap<(i32, i32, i32), Vec<SockOpt>>,
}

impl Reader {
    /// The options of a socket that must be set again on a fresh one. Must be called before the socket
    /// enters repair mode.
    pub(crate) fn options(
        &mut self,
        fd: BorrowedFd<'_>,
        family: i32,
        kind: i32,
        protocol: i32,
    ) -> Result<Vec<SockOpt>, Errno> {
        self.know(family, kind, protocol)?;
        Ok(self.changed(fd, family, kind, protocol))
    }

    /// Finds out what a fresh socket of a kind has, for [`Reader::changed`].
    pub(crate) fn know(&mut self, family: i32, kind: i32, protocol: i32) -> Result<(), Errno> {
        if let Entry::Vacant(place) = self.fresh.entry((family, kind, protocol)) {
            let socket = sock::socket(family, kind, protocol)?;
            place.insert(read_all(socket.as_fd(), &tables(family, protocol)));
        }
        Ok(())
    }

    /// As [`Reader::options`], for a kind that is known.
    pub(crate) fn changed(&self, fd: BorrowedFd<'_>, family: i32, kind: i32, protocol: i32) -> Vec<SockOpt> {
        let known = self.fresh.get(&(family, kind, protocol)).map_or(&[][..], Vec::as_slice);
        let mut buffer = [0; 256];
        let mut changed = Vec::new();
        // What a fresh one does not have this one has neither: the kernel or the protocol does not know it.
        for fresh in known {
            let (level, name) = (fresh.level, fresh.name);
            let Some(value) = value(fd, level, name, &mut buffer) else { continue };
            // The default algorithm differs from host to host; all others are the kernel's.
            let differs = (level, name) == TCP_CONGESTION || *value != fresh.value;
            let off = (level, name) == SO_PEEK_OFF && *value == (-1_i32).to_ne_bytes();
            if differs && !off {
                changed.push(SockOpt { level, name, value: value.into_owned() });
            }
        }
        changed
    }

    /// As [`Reader::changed`], for a TCP socket in this state: without what a connection carries in another way, or
    /// has from the kernel and not from its program.
    pub(crate) fn changed_tcp(&self, fd: BorrowedFd<'_>, kind: TcpKind) -> Vec<SockOpt> {
        let TcpKind { family, protocol, state, .. } = kind;
        let mut changed = self.changed(fd, family, libc::SOCK_STREAM, protocol);
        let connected = !matches!(state, tcp_state::CLOSE | tcp_state::LISTEN);
        let connecting = state == tcp_state::SYN_SENT;
        changed.retain(|option| {
            let key = (option.level, option.name);
            let within = |(level, names): Table| level == key.0 && names.contains(&key.1);
            let apart = within(TCP_UNCONNECTED) || within(BUFFERS) && !connecting;
            // The keys of the network namespace show where the socket has none of its own.
            let key_of_listener = state == tcp_state::LISTEN && !option.value.is_empty();
            !(connected && (apart || key == SO_INCOMING_CPU)) && (key != TCP_FASTOPEN_KEY || key_of_listener)
        });
        changed
    }
}

fn tables(family: i32, protocol: i32) -> Vec<Table> {
    let mut tables = vec![SOCKET];
    let is_tcp = matches!(protocol, IPPROTO_TCP | IPPROTO_MPTCP);
    if family == libc::AF_NETLINK {
        tables.extend([BUFFERS, NETLINK]);
    } else if family == libc::AF_PACKET {
        tables.extend([BUFFERS, PACKET]);
    } else if is_tcp && family != libc::AF_UNIX {
        tables.extend([BUFFERS, TCP_UNCONNECTED, TCP]);
    } else {
        tables.push(BUFFERS);
    }
    if matches!(family, AF_INET | AF_INET6) {
        if !is_tcp {
            tables.extend([UDP, IP_MULTICAST]);
            tables.extend(RAW);
        }
        if protocol == IPPROTO_UDPLITE {
            tables.push(UDPLITE);
        }
        tables.push(IP);
    }
    if family == AF_INET6 {
        tables.push(IPV6);
        if !is_tcp {
            tables.push(IPV6_MULTICAST);
            tables.extend(RAW_IPV6);
        }
    }
    tables.push(LAST);
    tables
}

/// All options that this kind of socket has.
fn read_all(fd: BorrowedFd<'_>, tables: &[Table]) -> Vec<SockOpt> {
    let mut buffer = [0; 256];
    let mut options = Vec::new();
    for (level, names) in tables {
        for name in *names {
            if let Some(value) = value(fd, *level, *name, &mut buffer) {
                options.push(SockOpt { level: *level, name: *name, value: value.into_owned() });
            }
        }
    }
    options
}

/// The value of an option, in `buffer` when it fits; `None` when this kind of socket does not have it.
fn value<'a>(fd: BorrowedFd<'_>, level: i32, name: i32, buffer: &'a mut [u8]) -> Option<Cow<'a, [u8]>> {
    let length = sock::get_into(fd, level, name, buffer).ok()?;
    if length == buffer.len() {
        // Perhaps there is more.
        return sock::get_raw(fd, level, name).ok().map(Cow::Owned);
    }
    if (level, name) == SO_REUSEADDR && buffer.first() == Some(&2) {
        // Repair mode shows so.
        return Some(Cow::Owned(1_i32.to_ne_bytes().to_vec()));
    }
    Some(Cow::Borrowed(&buffer[..length]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_changed() {
        let mut reader = Reader::default();
        let socket = sock::socket(AF_INET, libc::SOCK_STREAM, IPPROTO_TCP).unwrap();
        let read = |reader: &mut Reader| {
            let mut all = reader.options(socket.as_fd(), AF_INET, libc::SOCK_STREAM, IPPROTO_TCP).unwrap();
            all.retain(|option| (option.level, option.name) != TCP_CONGESTION);
            all
        };
        assert_eq!(read(&mut reader), []);
        sock::set_int(socket.as_fd(), IPPROTO_TCP, 1, 1).unwrap();
        sock::set_int(socket.as_fd(), SOL_SOCKET, 2, 1).unwrap();
        let names: Vec<_> = read(&mut reader).iter().map(|o| (o.level, o.name)).collect();
        assert_eq!(names, [(SOL_SOCKET, 2), (IPPROTO_TCP, 1)]);
    }
}
