//! Options, names, messages with descriptors, queues, and what sock_diag lists.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::io::{Read, Write};
use std::net::UdpSocket;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener, UnixStream};

use common::{connect, listen, netns, unique};
use sys::Errno;
use sys::diag::Diag;
use sys::sock::{self, Address};

fn inode(fd: impl AsFd) -> u32 {
    let file = std::fs::File::from(fd.as_fd().try_clone_to_owned().unwrap());
    u32::try_from(file.metadata().unwrap().ino()).unwrap()
}

#[test]
fn options_and_identity() {
    let (one, two) = sock::pair(libc::AF_UNIX, libc::SOCK_SEQPACKET, 0).unwrap();
    assert_eq!(sock::domain(one.as_fd()), Ok(libc::AF_UNIX));
    assert_eq!(sock::kind(one.as_fd()), Ok(libc::SOCK_SEQPACKET));
    assert_eq!(sock::protocol(one.as_fd()), Ok(0));
    assert_ne!(sock::cookie(one.as_fd()).unwrap(), sock::cookie(two.as_fd()).unwrap());
    sock::set_int(one.as_fd(), libc::SOL_SOCKET, libc::SO_PASSCRED, 1).unwrap();
    let raw = sock::get_raw(one.as_fd(), libc::SOL_SOCKET, libc::SO_PASSCRED).unwrap();
    assert_eq!(raw, 1_i32.to_ne_bytes());
    assert_eq!(sock::get_int(two.as_fd(), libc::SOL_SOCKET, 9999), Err(Errno::ENOPROTOOPT));
    // A filter is given by pointer: refused rather than followed.
    let filter = sock::set_raw(one.as_fd(), libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &[0; 16]);
    assert_eq!(filter, Err(Errno::EOPNOTSUPP));
    assert_eq!(sock::domain(std::fs::File::open("/dev/null").unwrap().as_fd()), Err(Errno::ENOTSOCK));
    assert_eq!(sock::local_name(one.as_fd()), Ok(Address::Unix(Vec::new())));
}

#[test]
fn names() {
    let name = unique("sys-test-");
    let abstract_name = SocketAddr::from_abstract_name(&name).unwrap();
    let listener = UnixListener::bind_addr(&abstract_name).unwrap();
    let expected = [&b"\0"[..], name.as_bytes()].concat();
    assert_eq!(sock::local_name(listener.as_fd()), Ok(Address::Unix(expected.clone())));
    let client = sock::socket(libc::AF_UNIX, libc::SOCK_STREAM, 0).unwrap();
    sock::connect(client.as_fd(), &Address::Unix(expected.clone())).unwrap();
    assert_eq!(sock::peer_name(client.as_fd()), Ok(Address::Unix(expected)));

    let path = std::env::temp_dir().join(unique("sys-sock-"));
    let bound = sock::socket(libc::AF_UNIX, libc::SOCK_DGRAM, 0).unwrap();
    let address = Address::Unix(path.to_str().unwrap().into());
    sock::bind(bound.as_fd(), &address).unwrap();
    assert_eq!(sock::local_name(bound.as_fd()), Ok(address));
    std::fs::remove_file(&path).unwrap();

    let udp = UdpSocket::bind("[::1]:0").unwrap();
    assert_eq!(sock::local_name(udp.as_fd()).unwrap().inet(), Some(udp.local_addr().unwrap()));
    assert_eq!(sock::peer_name(udp.as_fd()), Err(Errno::ENOTCONN));
    for raw in [&[][..], &[2], &[2, 0, 0], &[10, 0, 1, 2], &[99, 0, 1, 2, 3]] {
        assert_eq!(Address::from_bytes(raw), Address::Other(raw.to_vec()));
    }
}

#[test]
fn a_stream_with_descriptors_in_flight_is_looked_at_and_stays() {
    let (one, two) = sock::pair(libc::AF_UNIX, libc::SOCK_STREAM, 0).unwrap();
    let (read, write) = sys::fds::pipe(0).unwrap();
    sock::send(one.as_fd(), b"plain", &[], None, None, 0).unwrap();
    sock::send(one.as_fd(), b"files", &[read.as_fd(), write.as_fd()], None, None, 0).unwrap();
    sock::send(one.as_fd(), &[b'z'; 100_000], &[], None, None, 0).unwrap();
    sock::set_peek_offset(two.as_fd(), 2).unwrap();
    for _ in 0..2 {
        let queue = sock::peek_queue(two.as_fd()).unwrap();
        let data: Vec<u8> = queue.iter().flat_map(|part| part.data.clone()).collect();
        assert_eq!(data.len(), 100_010);
        let with: Vec<_> = queue.iter().filter(|part| !part.fds.is_empty()).collect();
        assert_eq!(with.len(), 1);
        assert_eq!(with[0].data, b"files", "the descriptors belong to these bytes");
        assert_eq!(with[0].fds.len(), 2);
        let pid = i32::try_from(std::process::id()).unwrap();
        let same = sys::kcmp::file(pid, with[0].fds[0].as_raw_fd(), pid, read.as_raw_fd());
        assert_eq!(same, Ok(std::cmp::Ordering::Equal));
        assert_eq!(sock::peek_offset(two.as_fd()), Ok(2));
    }
    sock::set_peek_offset(two.as_fd(), -1).unwrap();
    drop(one);
    let mut all = Vec::new();
    UnixStream::from(two).read_to_end(&mut all).unwrap();
    assert_eq!(all.len(), 100_010);
}

#[test]
fn empty_messages_are_not_the_end() {
    for kind in [libc::SOCK_DGRAM, libc::SOCK_SEQPACKET] {
        for close in [false, true] {
            let (one, two) = sock::pair(libc::AF_UNIX, kind, 0).unwrap();
            for data in [&b""[..], b"one", b"", b"", b"two", b""] {
                sock::send(one.as_fd(), data, &[], None, None, 0).unwrap();
            }
            let one = (!close).then_some(one);
            let queue = sock::peek_queue(two.as_fd()).unwrap();
            let lengths: Vec<_> = queue.iter().map(|part| part.data.len()).collect();
            assert_eq!(lengths, [0, 3, 0, 0, 3, 0], "kind {kind}");
            assert_eq!(sock::get_int(two.as_fd(), libc::SOL_SOCKET, libc::SO_PASSCRED), Ok(0));
            drop(one);
        }
    }
}

#[test]
fn datagrams_keep_sender_size_and_credentials() {
    let name = |n: &str| SocketAddr::from_abstract_name(unique(n)).unwrap();
    let (to, from) = (name("sys-to-"), name("sys-from-"));
    let receiver = UnixDatagram::bind_addr(&to).unwrap();
    let sender = UnixDatagram::bind_addr(&from).unwrap();
    sock::set_int(receiver.as_fd(), libc::SOL_SOCKET, libc::SO_PASSCRED, 1).unwrap();
    let big = vec![7; 90_000];
    for data in [&b"first"[..], &big, b"last"] {
        sender.send_to_addr(data, &to).unwrap();
    }
    let queue = sock::peek_queue(receiver.as_fd()).unwrap();
    assert_eq!(queue.len(), 3);
    assert_eq!(
        (queue[0].data.as_slice(), queue[1].data.len(), queue[2].data.as_slice()),
        (&b"first"[..], 90_000, &b"last"[..])
    );
    let expected = [&b"\0"[..], from.as_abstract_name().unwrap()].concat();
    for part in &queue {
        assert_eq!(part.from, Some(Address::Unix(expected.clone())));
        assert_eq!(part.credentials.unwrap().pid.unsigned_abs(), std::process::id());
    }
    let mut buffer = [0; 16];
    assert_eq!(receiver.recv(&mut buffer).unwrap(), 5);
}

#[test]
fn udp_queues_are_looked_at() {
    let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
    let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
    for data in [&b"a"[..], &[3; 60_000], b"ccc"] {
        sender.send_to(data, receiver.local_addr().unwrap()).unwrap();
    }
    let queue = sock::peek_queue(receiver.as_fd()).unwrap();
    let sizes: Vec<_> = queue.iter().map(|part| part.data.len()).collect();
    assert_eq!(sizes, [1, 60_000, 3]);
    assert_eq!(queue[0].from.as_ref().and_then(Address::inet), Some(sender.local_addr().unwrap()));
    let mut buffer = [0; 8];
    assert_eq!(receiver.recv(&mut buffer).unwrap(), 1);
}

#[test]
fn many_descriptors_cross_in_chunks() {
    let (one, two) = sock::pair(libc::AF_UNIX, libc::SOCK_SEQPACKET, 0).unwrap();
    let files: Vec<OwnedFd> = (0..600).map(|i| sys::fds::eventfd(i, libc::EFD_NONBLOCK).unwrap()).collect();
    let borrowed: Vec<_> = files.iter().map(AsFd::as_fd).collect();
    sock::send_fds(one.as_fd(), &borrowed).unwrap();
    let received = sock::receive_fds(two.as_fd(), 600).unwrap();
    for (i, fd) in received.iter().enumerate().skip(1) {
        let mut count = [0; 8];
        nix::unistd::read(fd, &mut count).unwrap();
        assert_eq!(u64::from_ne_bytes(count), i as u64);
    }
    drop(one);
    assert_eq!(sock::receive_fds(two.as_fd(), 1).unwrap_err(), Errno::EPIPE);
}

#[test]
fn diag_lists_tcp_and_udp() {
    let ns = netns();
    let (listener, at) = listen(&ns, "127.0.0.1:0");
    let (one, mut two) = connect(&ns, &listener, at);
    two.write_all(b"12345").unwrap();
    one.shutdown(std::net::Shutdown::Write).unwrap();
    common::wait_for("bytes, FIN and its acknowledgement", || {
        sys::tcp::inq(one.as_fd()) == Ok(5) && sys::tcp::info(one.as_fd()).unwrap().state == 5
    });
    // A third connection waits in the accept queue.
    let _third = ns.run(move || std::net::TcpStream::connect(at).unwrap()).unwrap();
    let udp = ns.run(|| UdpSocket::bind("127.0.0.1:0").unwrap()).unwrap();
    let (tcp, udps) = ns
        .run(|| {
            let mut diag = Diag::open().unwrap();
            (diag.tcp().unwrap(), diag.udp().unwrap())
        })
        .unwrap();
    assert_eq!(tcp.len(), 5);
    let find = |fd: u32| tcp.iter().find(|s| s.inode == fd).unwrap();
    let client = find(inode(&one));
    assert_eq!((client.local, client.peer), (one.local_addr().unwrap(), at));
    assert_eq!((client.unread, client.state, client.shutdown), (5, 5, 2));
    assert_eq!(client.cookie, sock::cookie(one.as_fd()).unwrap());
    assert!(client.congestion.is_some());
    let listening = find(inode(&listener));
    assert_eq!((listening.state, listening.unread), (10, 1));
    assert_eq!(tcp.iter().filter(|s| s.inode == 0).count(), 1, "the one not accepted has no inode");
    assert_eq!(udps.len(), 1);
    assert_eq!((udps[0].local, udps[0].inode), (udp.local_addr().unwrap(), inode(&udp)));
}

#[test]
fn diag_lists_unix_sockets() {
    let ns = netns();
    let path = std::env::temp_dir().join(unique("sys-diag-"));
    let made = path.clone();
    let (listener, client, pair, found) = ns
        .run(move || {
            let listener = UnixListener::bind(&made).unwrap();
            let client = UnixStream::connect(&made).unwrap();
            let pair = UnixStream::pair().unwrap();
            (&pair.0).write_all(b"abc").unwrap();
            pair.1.shutdown(std::net::Shutdown::Write).unwrap();
            (listener, client, pair, Diag::open().unwrap().unix().unwrap())
        })
        .unwrap();
    let find = |fd: u32| found.iter().find(|s| s.inode == fd).unwrap();
    let l = find(inode(&listener));
    assert_eq!(l.state, 10);
    assert_eq!(l.name.as_deref(), Some(path.to_str().unwrap().as_bytes()));
    assert_eq!(u64::from(l.file.unwrap().1), std::fs::metadata(&path).unwrap().ino());
    assert_eq!((l.pending.as_slice(), l.unread), (&[inode(&client)][..], 1));
    let one = find(inode(&pair.1));
    assert_eq!((one.peer, one.unread, one.shutdown), (Some(inode(&pair.0)), 3, 2));
    std::fs::remove_file(&path).unwrap();
}
