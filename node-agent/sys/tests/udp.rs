//! Unread datagrams that move from one network namespace to another.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket};
use std::os::fd::AsFd;

use common::{join, netns, wait_for};
use sys::ns::NetnsThread;
use sys::sock;
use sys::udp::{self, Datagram, DeliverError, Destination};

const REUSE_ADDRESS: (i32, i32) = (libc::SOL_SOCKET, libc::SO_REUSEADDR);
const BROADCAST: (i32, i32) = (libc::SOL_SOCKET, libc::SO_BROADCAST);
const TTL: (i32, i32) = (libc::IPPROTO_IP, 2);
const TOS: (i32, i32) = (libc::IPPROTO_IP, 1);

/// The source has a peer; the target, which has the same addresses, another one.
struct World {
    client: NetnsThread,
    source: NetnsThread,
    target: NetnsThread,
    _other: NetnsThread,
}

impl World {
    fn new() -> Self {
        let world = Self { client: netns(), source: netns(), target: netns(), _other: netns() };
        join(&world.client, &world.source);
        join(&world._other, &world.target);
        world
    }
}

fn bound(ns: &NetnsThread, address: &str, options: &[((i32, i32), i32)]) -> UdpSocket {
    let address: SocketAddr = address.parse().unwrap();
    let options = options.to_vec();
    ns.run(move || {
        let family = if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
        let fd = sock::socket(family, libc::SOCK_DGRAM, 0).unwrap();
        for ((level, name), value) in options {
            sock::set_int(fd.as_fd(), level, name, value).unwrap();
        }
        sock::bind(fd.as_fd(), &address.into()).unwrap();
        UdpSocket::from(fd)
    })
    .unwrap()
}

/// Sends a datagram and waits until it is in the socket. It is not looked at: an empty one is shown only once.
fn send(from: &UdpSocket, data: &[u8], to: impl Into<SocketAddr>, socket: &UdpSocket) {
    let memory = || {
        let mut words = [0; 64];
        sock::get_into(socket.as_fd(), libc::SOL_SOCKET, 55, &mut words).unwrap();
        u32::from_ne_bytes([words[0], words[1], words[2], words[3]])
    };
    let (before, to) = (memory(), to.into());
    // A link-local address takes a moment to be ready.
    wait_for("sending", || from.send_to(data, to).is_ok());
    wait_for("the datagram", || memory() > before);
}

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn waiting(socket: &UdpSocket, count: usize) -> Vec<Datagram> {
    let waiting = udp::waiting(socket.as_fd()).unwrap();
    assert_eq!(waiting.len(), count, "{waiting:?}");
    waiting
}

fn deliver(
    ns: &NetnsThread,
    socket: &UdpSocket,
    datagrams: &[Datagram],
    connect: bool,
) -> Result<(), DeliverError> {
    let (socket, datagrams) = (socket.try_clone().unwrap(), datagrams.to_vec());
    ns.run(move || udp::deliver(socket.as_fd(), &datagrams, connect)).unwrap()
}

/// Reads everything there is.
fn drain(socket: &UdpSocket) -> Vec<(SocketAddr, Vec<u8>)> {
    socket.set_nonblocking(true).unwrap();
    let mut buffer = vec![0; 65536];
    let mut all = Vec::new();
    while let Ok((length, from)) = socket.recv_from(&mut buffer) {
        all.push((from, buffer[..length].to_vec()));
    }
    all
}

#[test]
fn ipv4_in_order_with_empty_ones() {
    let world = World::new();
    let one = bound(&world.client, "10.77.0.1:5001", &[(TTL, 33), (TOS, 0x28)]);
    let two = bound(&world.client, "10.77.0.1:5002", &[]);
    let socket = bound(&world.source, "0.0.0.0:7001", &[]);
    let big = vec![7; 60_000];
    let sent: [(&UdpSocket, &[u8]); 5] =
        [(&one, b""), (&two, b"two"), (&one, b""), (&one, b"x"), (&two, &big)];
    for (from, data) in sent {
        send(from, data, address("10.77.0.2:7001"), &socket);
    }
    let offset = 3;
    sock::set_peek_offset(socket.as_fd(), offset).unwrap();
    let queue = waiting(&socket, 5);
    assert_eq!(sock::peek_offset(socket.as_fd()).unwrap(), offset);
    for name in [12, 13, 20] {
        assert_eq!(sock::get_int(socket.as_fd(), libc::IPPROTO_IP, name).unwrap(), 0, "option {name}");
    }
    assert_eq!((queue[0].hops, queue[0].class), (33, 0x28));
    assert_eq!((queue[1].hops, queue[1].class), (64, 0));
    let want: Vec<_> = sent.iter().map(|(from, data)| (from.local_addr().unwrap(), data.to_vec())).collect();
    assert_eq!(queue.iter().map(|d| (d.from, d.data.clone())).collect::<Vec<_>>(), want);
    assert!(queue.iter().all(|d| d.to == "10.77.0.2:7001".parse().unwrap()));

    let copy = bound(&world.target, "0.0.0.0:7001", &[]);
    let size = |name| sock::get_int(copy.as_fd(), libc::SOL_SOCKET, name).unwrap();
    let before = [size(libc::SO_RCVBUF), size(72)];
    deliver(&world.target, &copy, &queue, false).unwrap();
    assert_eq!([size(libc::SO_RCVBUF), size(72)], before);
    // Everything that recvmsg(2) can tell is the same.
    for name in [12, 13, 20] {
        sock::set_int(copy.as_fd(), libc::IPPROTO_IP, name, 1).unwrap();
    }
    let told = sock::receive(copy.as_fd(), 10, libc::MSG_DONTWAIT).unwrap();
    assert!(told.control.iter().any(|c| c.kind == 2 && c.data[0] == 33), "{:?}", told.control);
    assert!(told.control.iter().any(|c| c.kind == 1 && c.data[0] == 0x28), "{:?}", told.control);
    assert_eq!(drain(&copy), want[1..]);
    assert_eq!(drain(&socket), want);
}

#[test]
fn ipv6_mapped_and_link_local() {
    let world = World::new();
    let six = bound(&world.client, "[fd77::1]:5001", &[]);
    let four = bound(&world.client, "10.77.0.1:5002", &[]);
    let local = bound(&world.client, "[::]:5003", &[]);
    let socket = bound(&world.source, "[::]:7002", &[]);
    let link_local = world
        .source
        .run(|| {
            let text = std::fs::read_to_string("/proc/thread-self/net/if_inet6").unwrap();
            let line = text.lines().find(|l| l.starts_with("fe80") && l.ends_with("eth0")).unwrap();
            Ipv6Addr::from(u128::from_str_radix(&line[..32], 16).unwrap())
        })
        .unwrap();
    send(&six, b"six", address("[fd77::2]:7002"), &socket);
    send(&four, b"four", address("10.77.0.2:7002"), &socket);
    send(&local, b"local", SocketAddrV6::new(link_local, 7002, 0, 11), &socket);
    let mut queue = waiting(&socket, 3);
    let SocketAddr::V6(from) = queue[2].from else { panic!("{queue:?}") };
    assert!(from.ip().is_unicast_link_local() && from.scope_id() == 12, "{from:?}");
    let want = drain(&socket);
    assert_eq!(want[1].0, "[::ffff:10.77.0.1]:5002".parse().unwrap());
    // The target's link-local address is its own only because the hardware address moves along.
    wait_for("the target's link-local address", || {
        world.target.run(move || udp::destination(SocketAddrV6::new(link_local, 1, 0, 12).into())).unwrap()
            == Ok(Destination::Here)
    });
    let copy = bound(&world.target, "[::]:7002", &[]);
    deliver(&world.target, &copy, &queue, false).unwrap();
    assert_eq!(drain(&copy), want);
    queue[0].to = "[fd77::99]:7002".parse().unwrap();
    assert!(matches!(deliver(&world.target, &copy, &queue, false), Err(DeliverError::NotLocal(_))));
}

/// Two sockets with one port, one of which is connected: each gets its own.
#[test]
fn a_shared_port() {
    let world = World::new();
    let one = bound(&world.client, "10.77.0.1:5001", &[]);
    let two = bound(&world.client, "10.77.0.1:5002", &[]);
    let reuse = [(REUSE_ADDRESS, 1)];
    let listener = bound(&world.source, "0.0.0.0:7003", &reuse);
    let to = address("10.77.0.2:7003");
    send(&one, b"one", to, &listener);
    send(&two, b"before it was connected", to, &listener);
    let older = waiting(&listener, 2);
    let connected = bound(&world.source, "10.77.0.2:7003", &reuse);
    connected.connect(two.local_addr().unwrap()).unwrap();
    send(&two, b"two", to, &connected);
    let newer = waiting(&connected, 1);

    let reuse = [(REUSE_ADDRESS, 1)];
    let connected = bound(&world.target, "10.77.0.2:7003", &reuse);
    let listener = bound(&world.target, "0.0.0.0:7003", &reuse);
    // Without being connected the other one, which is bound more closely, takes them.
    assert!(matches!(deliver(&world.target, &listener, &older[..1], false), Err(DeliverError::Lost(_))));
    assert_eq!(drain(&connected).len(), 1);
    deliver(&world.target, &connected, &newer, true).unwrap();
    deliver(&world.target, &listener, &older, true).unwrap();
    assert_eq!(sock::peer_name(listener.as_fd()), Err(sys::Errno::ENOTCONN));
    assert_eq!(listener.local_addr().unwrap(), "0.0.0.0:7003".parse().unwrap());
    let data = |socket| drain(socket).into_iter().map(|(_, data)| data).collect::<Vec<_>>();
    assert_eq!(data(&listener), [b"one".to_vec(), b"before it was connected".to_vec()]);
    assert_eq!(data(&connected), [b"two"]);
}

#[test]
fn where_a_datagram_went() {
    let world = World::new();
    let ask = |text: &str| {
        let address = address(text);
        world.source.run(move || udp::destination(address)).unwrap().unwrap()
    };
    assert_eq!(ask("10.77.0.2:1"), Destination::Here);
    assert_eq!(ask("127.0.0.9:1"), Destination::Here);
    assert_eq!(ask("[fd77::2]:1"), Destination::Here);
    assert_eq!(ask("[::ffff:10.77.0.2]:1"), Destination::Here);
    assert_eq!(ask("10.77.0.255:1"), Destination::Many);
    assert_eq!(ask("255.255.255.255:1"), Destination::Many);
    assert_eq!(ask("239.1.2.3:1"), Destination::Many);
    assert_eq!(ask("[ff02::1]:1"), Destination::Many);
    assert_eq!(ask("10.77.0.1:1"), Destination::Elsewhere);
    let socket = bound(&world.source, "0.0.0.0:7004", &[]);
    let client = bound(&world.client, "10.77.0.1:5001", &[(BROADCAST, 1)]);
    send(&client, b"all", address("10.77.0.255:7004"), &socket);
    assert_eq!(waiting(&socket, 1)[0].to, address("10.77.0.255:7004"));
}
