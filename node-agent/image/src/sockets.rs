//! Sockets.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::Pid;

/// Socket options that were read with getsockopt(2) and are set again as they were: raw bytes, so that
/// none needs a type here. SO_ATTACH_FILTER stands for the instructions of a packet filter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SockOpt {
    /// SOL_SOCKET, IPPROTO_TCP, IPPROTO_IP, IPPROTO_IPV6 ...
    pub level: i32,
    /// Option name.
    pub name: i32,
    /// Value, as the kernel gave it: SO_SNDBUF and SO_RCVBUF are twice what setsockopt(2) takes.
    #[serde(with = "serde_bytes")]
    pub value: Vec<u8>,
}

/// A TCP socket. See tcp(7) and the TCP_REPAIR notes of the engine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tcp {
    /// Address family: AF_INET or AF_INET6 (an IPv6 socket may speak IPv4-mapped).
    pub family: i32,
    /// It was made for MPTCP, and has no connection.
    pub multipath: bool,
    /// Options to set again, in order.
    pub options: Vec<SockOpt>,
    /// Where it stands.
    pub state: TcpState,
}

/// The states that a program can see and that this version carries.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TcpState {
    /// socket(2), perhaps bound, neither listening nor connected.
    Closed {
        /// bind(2) address.
        local: Option<SocketAddr>,
    },
    /// listen(2). Connections in its accept queue are separate descriptions in `pending`.
    Listen {
        /// Bound address.
        local: SocketAddr,
        /// Backlog as given to listen(2).
        backlog: u32,
    },
    /// connect(2) is under way, and nobody has answered.
    Connecting {
        /// Our address.
        local: SocketAddr,
        /// The peer's.
        peer: SocketAddr,
        /// Sequence number of the SYN.
        first: u32,
        /// SO_REUSEADDR, which repair mode overwrites.
        reuse_address: bool,
    },
    /// Established or half-closed.
    Connected(Box<TcpConnection>),
}

/// An established (or half-closed) connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TcpConnection {
    /// Our address.
    pub local: SocketAddr,
    /// The peer's address.
    pub peer: SocketAddr,
    /// Kernel state number: 1 ESTABLISHED, 4 FIN_WAIT1, 5 FIN_WAIT2, 8 CLOSE_WAIT, 9 LAST_ACK, 11 CLOSING.
    pub kernel_state: u8,
    /// Sequence number after the last byte of the receive queue.
    pub recv_seq: u32,
    /// Unread bytes.
    #[serde(with = "serde_bytes")]
    pub recv_queue: Vec<u8>,
    /// Sequence number after the last byte of the send queue (write_seq).
    pub send_seq: u32,
    /// Bytes written by the program and not yet acknowledged, sent ones first.
    #[serde(with = "serde_bytes")]
    pub send_queue: Vec<u8>,
    /// How many bytes at the end of `send_queue` were never sent (SIOCOUTQNSD).
    pub unsent: u32,
    /// Maximum segment size (TCP_MAXSEG in repair mode).
    pub mss: u32,
    /// Window scaling was negotiated: (send, receive).
    pub window_scale: Option<(u8, u8)>,
    /// Selective acknowledgement was negotiated.
    pub sack: bool,
    /// Timestamps were negotiated: the TCP_TIMESTAMP value.
    pub timestamp: Option<u32>,
    /// TCP_REPAIR_WINDOW: snd_wl1, snd_wnd, max_window, rcv_wnd, rcv_wup.
    pub window: [u32; 5],
    /// Our FIN waits behind the unsent bytes.
    pub fin_unsent: bool,
    /// SO_SNDBUF and SO_RCVBUF as getsockopt(2) shows them, and SO_BUF_LOCK: bit 0 = the program fixed
    /// the first, bit 1 = the second; what is not fixed, the kernel tunes.
    pub buffers: [u32; 3],
    /// SO_REUSEADDR, which repair mode overwrites.
    pub reuse_address: bool,
    /// shutdown(2) for reading.
    pub shut_reading: bool,
    /// It was not yet taken by accept(2): the id of the listening description.
    pub pending_on: Option<u32>,
}

/// A UDP socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Udp {
    /// AF_INET or AF_INET6.
    pub family: i32,
    /// IPPROTO_UDP (17) or IPPROTO_UDPLITE.
    pub protocol: i32,
    /// Options to set again, in order.
    pub options: Vec<SockOpt>,
    /// bind(2) address.
    pub local: Option<SocketAddr>,
    /// connect(2) address.
    pub peer: Option<SocketAddr>,
    /// Datagrams not yet read, oldest first.
    pub queue: Vec<Datagram>,
    /// Multicast groups that it is a member of.
    pub memberships: Vec<Membership>,
    /// shutdown(2): bit 0 = reading, bit 1 = writing.
    pub shutdown: u8,
}

/// What a socket hears of a multicast group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Membership {
    /// The interface's name.
    pub device: String,
    /// The group.
    pub group: IpAddr,
    /// It hears all but the sources; else only them.
    pub exclude: bool,
    /// The sources.
    pub sources: Vec<IpAddr>,
}

/// A datagram that was received and not read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Datagram {
    /// Its sender.
    pub from: SocketAddr,
    /// Where it was sent to.
    pub to: SocketAddr,
    /// The interface to which a link-local address of IPv6 belongs; 0 = none.
    pub scope: u32,
    /// Time to live, or hop limit, as it arrived.
    pub hops: u8,
    /// Type of service; for IPv6 traffic class and flow label.
    pub class: u32,
    /// Content.
    #[serde(with = "serde_bytes")]
    pub data: Vec<u8>,
}

/// A raw(7) or ping socket (icmp(7)) with nothing to read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Raw {
    /// AF_INET or AF_INET6.
    pub family: i32,
    /// SOCK_RAW; SOCK_DGRAM for ping sockets.
    pub sock_type: i32,
    /// IPPROTO_ICMP and so on.
    pub protocol: i32,
    /// Options to set again, in order.
    pub options: Vec<SockOpt>,
    /// bind(2) address; its port is the identifier of a ping socket.
    pub local: Option<SocketAddr>,
    /// connect(2) address.
    pub peer: Option<SocketAddr>,
    /// Multicast groups that it is a member of.
    pub memberships: Vec<Membership>,
    /// shutdown(2): bit 0 = reading, bit 1 = writing.
    pub shutdown: u8,
}

/// A packet(7) socket without rings and with nothing to read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Packet {
    /// SOCK_RAW or SOCK_DGRAM.
    pub sock_type: i32,
    /// The protocol that it hears, in the host's byte order; 0 = none.
    pub protocol: u16,
    /// The interface that it is bound to.
    pub device: Option<String>,
    /// Options to set again, in order.
    pub options: Vec<SockOpt>,
    /// PACKET_FANOUT, as it is set.
    pub fanout: Option<u32>,
    /// What it has made interfaces listen to.
    pub memberships: Vec<PacketMembership>,
}

/// PACKET_ADD_MEMBERSHIP.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PacketMembership {
    /// The interface's name.
    pub device: String,
    /// How often it was asked for.
    pub count: u32,
    /// PACKET_MR_MULTICAST ...
    pub kind: u16,
    /// The address, for those that have one.
    #[serde(with = "serde_bytes")]
    pub address: Vec<u8>,
}

/// A netlink(7) socket with nothing to read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Netlink {
    /// NETLINK_ROUTE and so on.
    pub protocol: i32,
    /// SOCK_RAW or SOCK_DGRAM.
    pub sock_type: i32,
    /// Options to set again, in order.
    pub options: Vec<SockOpt>,
    /// Port (`nl_pid`), 0 = not bound.
    pub port: u32,
    /// Multicast groups, by number.
    pub groups: Vec<u32>,
}

/// A unix(7) socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unix {
    /// SOCK_STREAM, SOCK_DGRAM or SOCK_SEQPACKET.
    pub sock_type: i32,
    /// Options to set again, in order.
    pub options: Vec<SockOpt>,
    /// Raw name: a path, or an abstract name that begins with a NUL byte; empty = unnamed.
    #[serde(with = "serde_bytes")]
    pub name: Vec<u8>,
    /// The bound path still leads to this socket (it was not unlinked or replaced).
    pub name_exists: bool,
    /// Mode, uid, gid (in the host's numbering) of the socket file when `name` is a path.
    pub file_mode: (u32, u32, u32),
    /// Where it stands.
    pub state: UnixState,
    /// What it has received and not read, oldest first. One entry a message (for a stream: a piece of bytes
    /// with one set of credentials and descriptors).
    pub queue: Vec<UnixMessage>,
    /// shutdown(2): bit 0 = reading, bit 1 = writing.
    pub shutdown: u8,
    /// Its peer closed without having read everything: `ECONNRESET` waits to be told.
    pub reset: bool,
    /// SO_PEERCRED and SO_PEERGROUPS, when that process is in the tree: who has made the pair, connected, or listened.
    pub peer_credentials: Option<PeerCredentials>,
}

/// Who has made the other end of a unix socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerCredentials {
    /// The process in the container.
    pub pid: Pid,
    /// Its effective user then, in the container's numbering.
    pub uid: u32,
    /// And group.
    pub gid: u32,
    /// And its further groups, those that the container has numbers for.
    pub groups: Vec<u32>,
}

/// Where a unix socket stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum UnixState {
    /// Neither listening nor connected.
    Unconnected,
    /// listen(2).
    Listen {
        /// Backlog.
        backlog: u32,
        /// The sockets that have connected and were not accepted, by the ids of their descriptions, in their order.
        waiting: Vec<u32>,
    },
    /// Connected to a listening socket of the tree, not accepted, and nothing was sent.
    Waiting {
        /// What the accepted socket is to say of it.
        by: Option<PeerCredentials>,
    },
    /// Connected to another socket of the tree.
    Connected {
        /// The peer's open file description.
        peer: u32,
    },
    /// Its peer has closed.
    PeerClosed,
}

/// One received message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnixMessage {
    /// Payload.
    #[serde(with = "serde_bytes")]
    pub data: Vec<u8>,
    /// Descriptors in flight (SCM_RIGHTS): ids of open file descriptions.
    pub files: Vec<u32>,
    /// Sender's name for datagram sockets.
    #[serde(with = "serde_bytes")]
    pub from: Vec<u8>,
}
