//! Connections that move from one network namespace to another under their peer's eyes.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::time::{Duration, Instant};

use common::{connect, listen, netns, wait_for};
use sys::ns::NetnsThread;
use sys::tcp::{self, TcpDump, state};

/// Client namespace, source and target. Source and target have the same address; a bridge-less switch: the client's
/// wire leads to one of them at a time.
struct World {
    client: NetnsThread,
    source: NetnsThread,
    target: NetnsThread,
}

impl World {
    fn new() -> Self {
        let world = Self { client: netns(), source: netns(), target: netns() };
        common::join(&world.client, &world.source);
        world
    }

    /// Takes the source's end of the wire away: from here on nothing reaches it, and what is sent to it waits.
    fn cut(&self) {
        let target = self.target.netns().unwrap();
        self.source
            .run(move || {
                let mut netlink = sys::net::Netlink::open().unwrap();
                netlink.move_to(12, target.as_fd(), None).unwrap();
            })
            .unwrap();
        self.target
            .run(|| {
                let mut netlink = sys::net::Netlink::open().unwrap();
                sys::net::set_sysctl("ipv6/conf/eth0/accept_dad", "0").unwrap();
                netlink.add_address(12, "10.77.0.2".parse().unwrap(), 24).unwrap();
                netlink.add_address(12, "fd77::2".parse().unwrap(), 64).unwrap();
                // Up, so that there is a route, but with no way in or out: the network is attached later.
                netlink.add_clsact(12).unwrap();
                for direction in [sys::net::tc::Direction::Ingress, sys::net::tc::Direction::Egress] {
                    let hole = netlink.link("hole");
                    let hole = hole.map(|l| l.index).unwrap_or_else(|_| {
                        netlink.add_bridge("hole").unwrap();
                        netlink.link("hole").unwrap().index
                    });
                    netlink.add_redirect(12, direction, 1, hole).unwrap();
                }
                netlink.set_up(12, true).unwrap();
                // The kernel makes an IPv6 address its own some time after the interface is up.
                let own = "fd77::2".parse().unwrap();
                wait_for("the local route", || {
                    let routes = netlink.routes().unwrap();
                    routes
                        .iter()
                        .any(|r| r.table == sys::net::route::LOCAL && r.destination == Some((own, 128)))
                });
            })
            .unwrap();
    }

    /// Lets frames pass at the target.
    fn attach(&self) {
        self.target
            .run(|| {
                let mut netlink = sys::net::Netlink::open().unwrap();
                netlink.remove_clsact(12).unwrap();
            })
            .unwrap();
    }

    /// Moves a connection; the source's socket goes without a word.
    fn restore(&self, dump: &TcpDump) -> TcpStream {
        let dump = dump.clone();
        let fd = self
            .target
            .run(move || {
                let fd = tcp::restore(&dump)
                    .unwrap_or_else(|e| panic!("{e}: {:?}", std::error::Error::source(&e)));
                // Options of the program, one of which pushes: nothing may leave before the network is there.
                sys::sock::set_int(fd.as_fd(), libc::IPPROTO_TCP, libc::TCP_NODELAY, 1).unwrap();
                let unsent = dump.unsent + u32::from(dump.fin_unsent);
                assert_eq!(tcp::outq_unsent(fd.as_fd()), Ok(unsent));
                tcp::finish(fd.as_fd(), &dump.window, dump.reuse_address).unwrap();
                assert_eq!(tcp::outq_unsent(fd.as_fd()), Ok(unsent));
                fd
            })
            .unwrap();
        TcpStream::from(fd)
    }

    fn transplant(&self, socket: TcpStream) -> (TcpStream, TcpDump) {
        self.cut();
        let dump = tcp::dump(socket.as_fd()).unwrap();
        drop(socket);
        let moved = self.restore(&dump);
        self.attach();
        tcp::push(moved.as_fd()).unwrap();
        (moved, dump)
    }
}

fn pattern(start: usize, len: usize) -> Vec<u8> {
    (start..start + len).map(|i| u8::try_from((i * 7 + i / 251) % 256).unwrap()).collect()
}

/// Writes without blocking until the socket takes no more.
fn stuff(socket: &mut TcpStream, start: usize) -> usize {
    socket.set_nonblocking(true).unwrap();
    let mut total = 0;
    let mut quiet = Instant::now();
    while quiet.elapsed() < Duration::from_millis(100) {
        match socket.write(&pattern(start + total, 4096)) {
            Ok(n) => {
                total += n;
                quiet = Instant::now();
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock => std::thread::yield_now(),
            Err(e) => panic!("{e}"),
        }
    }
    socket.set_nonblocking(false).unwrap();
    total
}

fn expect(socket: &mut TcpStream, start: usize, len: usize) {
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let mut data = vec![0; len];
    socket.read_exact(&mut data).unwrap();
    assert!(data == pattern(start, len), "bytes differ");
}

fn expect_end(socket: &mut TcpStream) {
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    assert_eq!(socket.read(&mut [0; 16]).unwrap(), 0, "expected the end of the stream");
}

/// Both queues are full, with bytes sent and never sent; every byte arrives, in both directions.
fn both_queues(listen_at: &str, connect_to: &str) {
    let world = World::new();
    let (listener, at) = listen(&world.source, listen_at);
    let to: SocketAddr = format!("{connect_to}:{}", at.port()).parse().unwrap();
    let (mut client, mut server) = connect(&world.client, &listener, to);
    let up = stuff(&mut client, 0);
    let down = stuff(&mut server, 3);
    let before = tcp::info(server.as_fd()).unwrap();

    let (mut moved, dump) = world.transplant(server);
    assert!(!dump.recv_queue.is_empty() && !dump.send_queue.is_empty());
    assert!(dump.unsent > 0, "the send queue must hold bytes that were never sent");
    assert_eq!(dump.state, state::ESTABLISHED);
    let after = tcp::info(moved.as_fd()).unwrap();
    assert_eq!(before.window_scale, after.window_scale);
    assert_eq!((before.sack, before.timestamps), (after.sack, after.timestamps));
    assert_eq!(moved.local_addr().unwrap(), dump.local);
    assert_eq!(tcp::buffers(moved.as_fd()).unwrap().locks, dump.buffers.locks);

    expect(&mut moved, 0, dump.recv_queue.len());
    let rest = up - dump.recv_queue.len();
    let reader = std::thread::spawn(move || {
        expect(&mut client, 3, down);
        client.write_all(&pattern(up, 100_000)).unwrap();
        client
    });
    expect(&mut moved, dump.recv_queue.len(), rest + 100_000);
    let mut client = reader.join().unwrap();
    moved.write_all(&pattern(0, 100_000)).unwrap();
    drop(moved);
    expect(&mut client, 0, 100_000);
    expect_end(&mut client);
}

#[test]
fn both_queues_ipv4() {
    both_queues("10.77.0.2:0", "10.77.0.2");
}

#[test]
fn both_queues_ipv6() {
    both_queues("[fd77::2]:0", "[fd77::2]");
}

#[test]
fn both_queues_ipv4_mapped() {
    both_queues("[::]:0", "10.77.0.2");
}

/// Bytes held back by a cork at the source go out at once when the target attaches, not by a timer.
#[test]
fn unsent_bytes_go_out_with_a_push() {
    let world = World::new();
    let (listener, at) = listen(&world.source, "10.77.0.2:0");
    let (mut client, mut server) = connect(&world.client, &listener, at);
    sys::sock::set_int(server.as_fd(), libc::IPPROTO_TCP, libc::TCP_CORK, 1).unwrap();
    server.write_all(&pattern(0, 100)).unwrap();
    world.cut();
    let dump = tcp::dump(server.as_fd()).unwrap();
    assert_eq!((dump.unsent, dump.send_queue.len()), (100, 100));
    drop(server);
    let mut moved = world.restore(&dump);
    world.attach();
    tcp::push(moved.as_fd()).unwrap();
    assert_eq!(tcp::outq_unsent(moved.as_fd()), Ok(0), "the push sends");
    expect(&mut client, 0, 100);
    assert_eq!(tcp::info(moved.as_fd()).unwrap().total_retrans, 0);
    // Both directions work.
    client.write_all(&pattern(5, 10)).unwrap();
    expect(&mut moved, 5, 10);
}

/// A request-response client that never stops sees every answer, in order, over two moves of its server.
#[test]
fn under_load() {
    let world = World::new();
    let (listener, at) = listen(&world.source, "10.77.0.2:0");
    let (client, mut server) = connect(&world.client, &listener, at);
    client.set_nodelay(true).unwrap();
    let writer = {
        let mut client = client.try_clone().unwrap();
        std::thread::spawn(move || {
            for i in 0..400 {
                client.write_all(&pattern(i * 5000, 5000)).unwrap();
                std::thread::sleep(Duration::from_micros(200));
            }
        })
    };
    let reader = {
        let mut client = client;
        std::thread::spawn(move || {
            for i in 0..400 {
                expect(&mut client, i * 5000, 5000);
            }
        })
    };
    let mut buffer = vec![0; 70_000];
    let mut echoed = 0;
    while echoed < 500_000 {
        let n = server.read(&mut buffer).unwrap();
        server.write_all(&buffer[..n]).unwrap();
        echoed += n;
    }
    let (mut server, _) = world.transplant(server);
    while echoed < 400 * 5000 {
        let n = server.read(&mut buffer).unwrap();
        assert!(n > 0, "the connection ended after {echoed} bytes");
        server.write_all(&buffer[..n]).unwrap();
        echoed += n;
    }
    writer.join().unwrap();
    reader.join().unwrap();
}

/// The peer closed; we have unread bytes and unsent ones.
#[test]
fn close_wait() {
    let world = World::new();
    let (listener, at) = listen(&world.source, "10.77.0.2:0");
    let (mut client, mut server) = connect(&world.client, &listener, at);
    client.write_all(&pattern(0, 5000)).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    wait_for("CLOSE_WAIT", || tcp::info(server.as_fd()).unwrap().state == state::CLOSE_WAIT);
    let down = stuff(&mut server, 0);
    let (mut moved, dump) = world.transplant(server);
    assert_eq!(dump.state, state::CLOSE_WAIT);
    assert_eq!(tcp::info(moved.as_fd()).unwrap().state, state::CLOSE_WAIT);
    expect(&mut moved, 0, 5000);
    expect_end(&mut moved);
    let reader = std::thread::spawn(move || {
        expect(&mut client, 0, down + 10);
        expect_end(&mut client);
    });
    moved.write_all(&pattern(down, 10)).unwrap();
    drop(moved);
    reader.join().unwrap();
}

/// We closed with bytes unsent, so the FIN is behind them; the peer still talks.
#[test]
fn fin_wait1_with_unsent_bytes() {
    let world = World::new();
    let (listener, at) = listen(&world.source, "10.77.0.2:0");
    let (mut client, mut server) = connect(&world.client, &listener, at);
    let down = stuff(&mut server, 0);
    server.shutdown(Shutdown::Write).unwrap();
    client.write_all(&pattern(0, 3000)).unwrap();
    wait_for("the client's bytes", || tcp::inq(server.as_fd()).unwrap() == 3000);
    let (mut moved, dump) = world.transplant(server);
    assert_eq!(dump.state, state::FIN_WAIT1);
    assert!(dump.fin_unsent && dump.unsent > 0);
    expect(&mut moved, 0, 3000);
    expect(&mut client, 0, down);
    expect_end(&mut client);
    client.write_all(&pattern(9, 100)).unwrap();
    expect(&mut moved, 9, 100);
    wait_for("FIN_WAIT2", || tcp::info(moved.as_fd()).unwrap().state == state::FIN_WAIT2);
    drop(client);
    expect_end(&mut moved);
}

/// The client's namespace does not hear, and so does not acknowledge; what it sends still leaves.
fn quiet(client: &NetnsThread, on: bool) {
    client
        .run(move || {
            let mut netlink = sys::net::Netlink::open().unwrap();
            if on {
                netlink.add_clsact(11).unwrap();
                netlink.add_bridge("hole").unwrap();
                let hole = netlink.link("hole").unwrap().index;
                netlink.add_redirect(11, sys::net::tc::Direction::Ingress, 1, hole).unwrap();
            } else {
                netlink.remove_clsact(11).unwrap();
            }
        })
        .unwrap();
}

/// We closed, the FIN was sent and lost, or not acknowledged yet.
#[test]
fn fin_wait1_sent() {
    let world = World::new();
    let (listener, at) = listen(&world.source, "10.77.0.2:0");
    let (mut client, server) = connect(&world.client, &listener, at);
    quiet(&world.client, true);
    (&server).write_all(&pattern(0, 700)).unwrap();
    server.shutdown(Shutdown::Write).unwrap();
    let (moved, dump) = world.transplant(server);
    assert_eq!(dump.state, state::FIN_WAIT1);
    assert!(!dump.fin_unsent && dump.unsent == 0);
    assert_eq!(dump.send_queue.len(), 700);
    quiet(&world.client, false);
    expect(&mut client, 0, 700);
    expect_end(&mut client);
    wait_for("FIN_WAIT2", || tcp::info(moved.as_fd()).unwrap().state == state::FIN_WAIT2);
}

/// Both closed at once: our FIN is not acknowledged, the peer's has come.
#[test]
fn closing() {
    let world = World::new();
    let (listener, at) = listen(&world.source, "10.77.0.2:0");
    let (mut client, server) = connect(&world.client, &listener, at);
    quiet(&world.client, true);
    (&server).write_all(&pattern(0, 300)).unwrap();
    server.shutdown(Shutdown::Write).unwrap();
    client.write_all(&pattern(1, 200)).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    wait_for("CLOSING", || tcp::info(server.as_fd()).unwrap().state == state::CLOSING);
    let (mut moved, dump) = world.transplant(server);
    assert_eq!(dump.state, state::CLOSING);
    assert_eq!((dump.send_queue.len(), dump.recv_queue.len()), (300, 200));
    quiet(&world.client, false);
    expect(&mut moved, 1, 200);
    expect_end(&mut moved);
    expect(&mut client, 0, 300);
    expect_end(&mut client);
}

/// Our FIN is acknowledged; the peer talks on.
fn fin_wait2_at(address: &str) {
    let world = World::new();
    let (listener, at) = listen(&world.source, address);
    let (mut client, server) = connect(&world.client, &listener, at);
    (&server).write_all(&pattern(0, 50)).unwrap();
    server.shutdown(Shutdown::Write).unwrap();
    client.write_all(&pattern(0, 4000)).unwrap();
    wait_for("FIN_WAIT2", || {
        tcp::info(server.as_fd()).unwrap().state == state::FIN_WAIT2
            && tcp::inq(server.as_fd()).unwrap() == 4000
    });
    let (mut moved, dump) = world.transplant(server);
    assert_eq!(dump.state, state::FIN_WAIT2);
    expect(&mut client, 0, 50);
    expect_end(&mut client);
    client.write_all(&pattern(4000, 4000)).unwrap();
    expect(&mut moved, 0, 8000);
    drop(client);
    expect_end(&mut moved);
}

#[test]
fn fin_wait2() {
    fin_wait2_at("10.77.0.2:0");
}

#[test]
fn fin_wait2_ipv6() {
    fin_wait2_at("[fd77::2]:0");
}

/// Both closed; our FIN waits behind unsent bytes.
#[test]
fn last_ack() {
    let world = World::new();
    let (listener, at) = listen(&world.source, "10.77.0.2:0");
    let (mut client, mut server) = connect(&world.client, &listener, at);
    client.write_all(&pattern(0, 600)).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    wait_for("CLOSE_WAIT", || tcp::info(server.as_fd()).unwrap().state == state::CLOSE_WAIT);
    let down = stuff(&mut server, 0);
    server.shutdown(Shutdown::Write).unwrap();
    let (mut moved, dump) = world.transplant(server);
    assert_eq!(dump.state, state::LAST_ACK);
    assert!(dump.fin_unsent);
    expect(&mut moved, 0, 600);
    expect_end(&mut moved);
    expect(&mut client, 0, down);
    expect_end(&mut client);
}

/// Aborted on the source: it goes on as if nothing had been.
#[test]
fn abort_leaves_the_source_as_it_was() {
    let world = World::new();
    let (listener, at) = listen(&world.source, "10.77.0.2:0");
    let (mut client, mut server) = connect(&world.client, &listener, at);
    let one = 1_i32;
    sys::sock::set_int(server.as_fd(), libc::SOL_SOCKET, libc::SO_REUSEADDR, one).unwrap();
    client.write_all(&pattern(0, 1000)).unwrap();
    wait_for("bytes", || tcp::inq(server.as_fd()).unwrap() == 1000);
    let dump = tcp::dump(server.as_fd()).unwrap();
    assert!(tcp::in_repair(server.as_fd()).unwrap());
    assert!(dump.reuse_address);
    tcp::leave(server.as_fd(), dump.reuse_address).unwrap();
    assert!(!tcp::in_repair(server.as_fd()).unwrap());
    assert_eq!(sys::sock::get_int(server.as_fd(), libc::SOL_SOCKET, libc::SO_REUSEADDR).unwrap(), 1);
    expect(&mut server, 0, 1000);
    server.write_all(&pattern(0, 1000)).unwrap();
    expect(&mut client, 0, 1000);
}

#[test]
fn what_cannot_be_moved_is_refused() {
    let ns = netns();
    let (listener, at) = listen(&ns, "127.0.0.1:0");
    assert_eq!(tcp::dump(listener.as_fd()), Err(tcp::DumpError::State(state::LISTEN)));
    let (one, _other) = connect(&ns, &listener, at);
    // Urgent data is outside the stream: it must not get lost silently.
    nix::sys::socket::send(_other.as_raw_fd(), b"abc", nix::sys::socket::MsgFlags::MSG_OOB).unwrap();
    wait_for("urgent data", || tcp::inq(one.as_fd()).unwrap() >= 2);
    assert_eq!(tcp::dump(one.as_fd()), Err(tcp::DumpError::Queue));
    assert!(!tcp::in_repair(one.as_fd()).unwrap());
    let bad = TcpDump { state: state::SYN_SENT, ..dump_of(&ns, &listener, at) };
    assert_eq!(tcp::restore(&bad).unwrap_err(), tcp::RestoreError::Invalid("state"));
}

fn dump_of(ns: &NetnsThread, listener: &std::net::TcpListener, at: SocketAddr) -> TcpDump {
    let (one, _other) = connect(ns, listener, at);
    tcp::dump(one.as_fd()).unwrap()
}

#[test]
fn a_syn_that_nobody_answered_goes_out_again_as_it_was() {
    const IP_MINTTL: i32 = 21;
    let min_ttl = |listener: &std::net::TcpListener, ttl| {
        sys::sock::set_int(listener.as_fd(), libc::IPPROTO_IP, IP_MINTTL, ttl).unwrap();
    };
    let world = netns();
    let accepted = world.run(move || {
        let mut netlink = sys::net::Netlink::open().unwrap();
        netlink.set_up(1, true).unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        min_ttl(&listener, 255);
        let peer = listener.local_addr().unwrap();
        let fresh = || sys::sock::socket(libc::AF_INET, libc::SOCK_STREAM, 0).unwrap();
        let old = fresh();
        sys::fds::set_status_flags(old.as_fd(), libc::O_NONBLOCK).unwrap();
        assert!(sys::sock::connect(old.as_fd(), &peer.into()).is_err());
        let local = sys::sock::local_name(old.as_fd()).unwrap().inet().unwrap();
        let first = tcp::opening::first_sequence(old.as_fd()).unwrap();
        drop(old);
        let new = fresh();
        tcp::opening::prepare(new.as_fd(), local, first).unwrap();
        assert!(tcp::in_repair(new.as_fd()).unwrap());
        tcp::opening::begin(new.as_fd(), peer, true).unwrap();
        assert_eq!(sys::sock::get_int(new.as_fd(), libc::SOL_SOCKET, libc::SO_REUSEADDR), Ok(1));
        assert_eq!(sys::fds::status_flags(new.as_fd()).unwrap() & libc::O_NONBLOCK, 0);
        assert_eq!(tcp::opening::first_sequence(new.as_fd()), Ok(first));
        tcp::leave(new.as_fd(), true).unwrap();
        min_ttl(&listener, 0);
        let (server, from) = listener.accept().unwrap();
        assert_eq!(from, local);
        // Answered by now: there is no SYN to ask for.
        assert!(tcp::opening::first_sequence(new.as_fd()).is_err());
        drop(server);
    });
    accepted.unwrap();
}
