//! Interfaces, addresses, routes, neighbours, the network lock and its TAP.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::io::{Read, Write};
use std::net::{IpAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::time::{Duration, Instant, SystemTime};

use common::{join, netns, wait_for};
use sys::Errno;
use sys::net::departures::{Departure, Departures};
use sys::net::link::NewLink;
use sys::net::neigh::{self, Neighbour};
use sys::net::packet::{self, PacketSocket};
use sys::net::tap::Tap;
use sys::net::tc::{Direction, redirect_syn_messages};
use sys::net::{Netlink, route};

#[test]
fn links_are_made_changed_and_moved() {
    let (one, two) = (netns(), netns());
    join(&one, &two);
    let two_fd = two.netns().unwrap();
    one.run(move || {
        let mut nl = Netlink::open().unwrap();
        let eth0 = nl.link("eth0").unwrap();
        assert_eq!((eth0.index, eth0.mac.as_slice()), (11, &[2, 0, 0, 0, 0, 1][..]));
        assert_eq!(eth0.kind.as_deref(), Some("veth"));
        assert_eq!(eth0.lower, Some(12));
        assert!(eth0.lower_netns.is_some() && eth0.is_up());

        nl.add_bridge("br0").unwrap();
        let bridge = nl.link("br0").unwrap().index;
        assert_eq!(nl.add_bridge("br0"), Err(Errno::EEXIST));
        let veth = |name| NewLink { name, ..NewLink::default() };
        nl.add_veth(&veth("va"), &NewLink { mtu: Some(1400), ..veth("vb") }).unwrap();
        let va = nl.link("va").unwrap().index;
        nl.set_master(va, Some(bridge)).unwrap();
        assert_eq!(nl.link_by_index(va).unwrap().master, Some(bridge));
        nl.set_forwarding(va, [2, 9, 9, 9, 9, 9]).unwrap();
        nl.set_master(va, None).unwrap();
        assert_eq!(nl.link_by_index(va).unwrap().master, None);
        nl.rename(va, "vc").unwrap();
        nl.set_mac(va, [2, 1, 2, 3, 4, 5]).unwrap();
        nl.set_mtu(va, 1280).unwrap();
        nl.set_tx_queue(va, 77).unwrap();
        nl.set_up(va, true).unwrap();
        let vc = nl.link("vc").unwrap();
        assert_eq!((vc.mtu, vc.tx_queue, vc.mac.as_slice()), (1280, 77, &[2, 1, 2, 3, 4, 5][..]));
        assert!(vc.is_up());
        nl.set_up(va, false).unwrap();
        assert!(!nl.link("vc").unwrap().is_up());
        assert_eq!(nl.link("vb").unwrap().mtu, 1400);
        nl.move_to(va, two_fd.as_fd(), Some("moved")).unwrap();
        assert_eq!(nl.link("vc").unwrap_err(), Errno::ENODEV);
        assert!(nl.links().unwrap().iter().any(|l| l.name == "vb"));
        let vb = nl.link("vb").unwrap().index;
        nl.delete_link(vb).unwrap();
    })
    .unwrap();
    two.run(|| {
        // The other end went along.
        assert_eq!(Netlink::open().unwrap().link("moved").unwrap_err(), Errno::ENODEV);
    })
    .unwrap();
}

#[test]
fn addresses_routes_and_neighbours_are_read_and_set_again() {
    let (one, two) = (netns(), netns());
    join(&one, &two);
    let ip = |text: &str| text.parse::<IpAddr>().unwrap();
    let (addresses, routes, rules) = one
        .run(move || {
            let mut nl = Netlink::open().unwrap();
            nl.add_route(None, Some(ip("10.77.0.9")), 11).unwrap();
            nl.add_route(Some((ip("192.0.2.0"), 24)), None, 11).unwrap();
            nl.add_route(Some((ip("2001:db8::"), 32)), Some(ip("fd77::9")), 11).unwrap();
            assert_eq!(nl.add_route(None, Some(ip("10.77.0.9")), 11), Err(Errno::EEXIST));
            nl.set_neighbour(&Neighbour {
                index: 11,
                ip: ip("10.77.0.9"),
                mac: Some(vec![2, 5, 5, 5, 5, 5]),
                state: neigh::PERMANENT,
                flags: 0,
            })
            .unwrap();
            let found = nl.neighbours().unwrap();
            let entry = found.iter().find(|n| n.ip == ip("10.77.0.9")).unwrap();
            assert_eq!(
                (entry.state, entry.mac.as_deref()),
                (neigh::PERMANENT, Some(&[2, 5, 5, 5, 5, 5][..]))
            );
            nl.remove_neighbour(11, ip("10.77.0.9")).unwrap();
            assert!(nl.neighbours().unwrap().iter().all(|n| n.ip != ip("10.77.0.9")));
            assert_eq!(nl.rules(2).unwrap().len(), 3);
            (nl.addresses().unwrap(), nl.routes().unwrap(), nl.rules(10).unwrap())
        })
        .unwrap();
    assert!(addresses.iter().any(|a| a.ip == ip("10.77.0.1") && a.prefix == 24 && a.index == 11));
    assert!(addresses.iter().any(|a| a.ip == ip("fd77::1") && a.prefix == 64));
    assert!(routes.iter().any(|r| r.destination.is_none() && r.gateway == Some(ip("10.77.0.9"))));
    assert!(rules.len() >= 2);

    // A fresh namespace with an interface of the same number gets the same tables.
    let (three, four) = (netns(), netns());
    let made = addresses.clone();
    let expected = routes.clone();
    join(&three, &four);
    three
        .run(move || {
            let mut nl = Netlink::open().unwrap();
            for address in nl.addresses().unwrap().iter().filter(|a| a.index == 11 && a.scope != 253) {
                nl.remove_address(11, address.ip, address.prefix).unwrap();
            }
            for address in made.iter().filter(|a| a.index == 11 && a.scope != 253) {
                nl.replay_address(&address.raw, 11).unwrap();
            }
            for route in expected.iter().filter(|r| r.table == route::MAIN && r.protocol != route::BY_KERNEL)
            {
                nl.replay_route(&route.raw).unwrap();
            }
            let key = |r: &route::Route| (r.family, r.destination, r.gateway, r.index, r.table, r.metric);
            let link_local: IpAddr = "fe80::".parse().unwrap();
            let main = |routes: &[route::Route]| {
                // Link-local ones come and go with the link.
                let ours =
                    |r: &&route::Route| r.table == route::MAIN && r.destination != Some((link_local, 64));
                let mut keys: Vec<_> = routes.iter().filter(ours).map(key).collect();
                keys.sort_unstable();
                keys
            };
            assert_eq!(main(&nl.routes().unwrap()), main(&expected));
            nl.remove_route(None, Some("10.77.0.9".parse().unwrap()), 11).unwrap();
            assert!(!nl.routes().unwrap().iter().any(|r| r.family == 2 && r.destination.is_none()));
        })
        .unwrap();
}

/// Locks `eth0` of one side into a TAP: nothing passes, every frame can be read, delivered and passes again.
#[test]
fn the_lock_holds_frames_and_gives_them_back() {
    let (one, two) = (netns(), netns());
    join(&one, &two);
    let receiver = two.run(|| UdpSocket::bind("10.77.0.2:700").unwrap()).unwrap();
    receiver.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let sender = one.run(|| UdpSocket::bind("10.77.0.1:0").unwrap()).unwrap();
    let mut buffer = [0; 64];
    sender.send_to(b"before", "10.77.0.2:700").unwrap();
    assert_eq!(receiver.recv(&mut buffer).unwrap(), 6);

    let tap = one
        .run(|| {
            let mut nl = Netlink::open().unwrap();
            let tap = Tap::create(&mut nl, "held%d").unwrap();
            assert_eq!(tap.name(), "held0");
            nl.add_clsact(11).unwrap();
            nl.add_clsact(11).unwrap();
            nl.add_redirect(11, Direction::Egress, 1, tap.index()).unwrap();
            nl.add_redirect(11, Direction::Ingress, 2, tap.index()).unwrap();
            let filters = nl.filters(11, Direction::Egress).unwrap();
            assert_eq!(filters.len(), 1, "{filters:?}");
            assert_eq!((filters[0].kind.as_str(), filters[0].redirect_to), ("u32", Some(tap.index())));
            tap
        })
        .unwrap();
    for i in 0..100_u8 {
        sender.send_to(&[i], "10.77.0.2:700").unwrap();
    }
    receiver.set_nonblocking(true).unwrap();
    assert!(receiver.recv(&mut buffer).is_err(), "a frame passed the lock");
    let mut frames = Vec::new();
    let mut frame = vec![0; 65536];
    while let Some(len) = tap.read_frame(&mut frame).unwrap() {
        frames.push(frame[..len].to_vec());
    }
    // Neighbour discovery may add some.
    let data = frames.iter().filter(|f| f.len() == 43 && f[12..14] == [8, 0]).count();
    assert_eq!(data, 100);
    // Held frames go past the lock.
    one.run(move || {
        let out = PacketSocket::open(11).unwrap();
        out.bypass_filters(true).unwrap();
        frames.iter().for_each(|frame| out.send(frame).unwrap());
    })
    .unwrap();
    receiver.set_nonblocking(false).unwrap();
    for i in 0..100_u8 {
        assert_eq!(receiver.recv(&mut buffer).unwrap(), 1);
        assert_eq!(buffer[0], i);
    }
    one.run(|| {
        let mut nl = Netlink::open().unwrap();
        nl.remove_filters(11, Direction::Egress, 1).unwrap();
        assert!(nl.filters(11, Direction::Egress).unwrap().is_empty());
        assert_eq!(nl.filters(11, Direction::Ingress).unwrap().len(), 1);
    })
    .unwrap();
    sender.send_to(b"after", "10.77.0.2:700").unwrap();
    assert_eq!(receiver.recv(&mut buffer).unwrap(), 5);
    one.run(|| {
        let mut nl = Netlink::open().unwrap();
        nl.remove_clsact(11).unwrap();
        nl.remove_clsact(11).unwrap();
        assert!(!nl.has_clsact(11).unwrap());
        assert!(nl.filters(11, Direction::Ingress).unwrap().is_empty());
    })
    .unwrap();
}

/// The holder of the TAP dies: frames are dropped, they do not pass.
#[test]
fn the_lock_fails_closed() {
    let (one, two) = (netns(), netns());
    join(&one, &two);
    let receiver = two.run(|| UdpSocket::bind("10.77.0.2:700").unwrap()).unwrap();
    receiver.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    let sender = one.run(|| UdpSocket::bind("10.77.0.1:0").unwrap()).unwrap();
    one.run(|| {
        let mut nl = Netlink::open().unwrap();
        let tap = Tap::create(&mut nl, "held").unwrap();
        nl.add_clsact(11).unwrap();
        nl.add_redirect(11, Direction::Egress, 1, tap.index()).unwrap();
        drop(tap);
        assert_eq!(nl.link("held").unwrap_err(), Errno::ENODEV);
    })
    .unwrap();
    sender.send_to(b"x", "10.77.0.2:700").unwrap();
    assert!(receiver.recv(&mut [0; 8]).is_err(), "a frame passed the lock of a dead holder");
}

/// First segments of connections are held, over IPv4 and IPv6; all else passes.
#[test]
fn newcomers_alone_are_held() {
    let (one, two) = (netns(), netns());
    join(&one, &two);
    for (address, from) in [("10.77.0.2:701", "10.77.0.1:0"), ("[fd77::2]:701", "[fd77::1]:0")] {
        let listener = two.run(move || TcpListener::bind(address).unwrap()).unwrap();
        let mut before = one.run(move || TcpStream::connect(address).unwrap()).unwrap();
        let (mut accepted, _) = listener.accept().unwrap();
        let tap = one
            .run(|| {
                let mut nl = Netlink::open().unwrap();
                let tap = Tap::create(&mut nl, "new%d").unwrap();
                nl.add_clsact(11).unwrap();
                for message in redirect_syn_messages(11, Direction::Egress, [2, 3], tap.index()) {
                    nl.execute(&message).unwrap();
                }
                tap
            })
            .unwrap();
        let newcomer = std::thread::scope(|scope| {
            let netns = one.netns().unwrap();
            let waiting = scope.spawn(move || {
                sys::ns::in_netns(netns.as_fd(), move || TcpStream::connect(address)).unwrap().unwrap()
            });
            // The one of before goes on, both ways, with a datagram beside it.
            before.write_all(b"question").unwrap();
            let mut buffer = [0; 8];
            accepted.read_exact(&mut buffer).unwrap();
            accepted.write_all(b"answered").unwrap();
            before.read_exact(&mut buffer).unwrap();
            assert_eq!(&buffer, b"answered");
            let receiver = two.run(move || UdpSocket::bind(address).unwrap()).unwrap();
            let sender = one.run(move || UdpSocket::bind(from).unwrap()).unwrap();
            sender.send_to(b"datagram", address).unwrap();
            assert_eq!(receiver.recv(&mut buffer).unwrap(), 8);
            let mut frame = vec![0; 65536];
            let end = Instant::now() + Duration::from_secs(10);
            let held = loop {
                if let Some(length) = tap.read_frame(&mut frame).unwrap() {
                    break frame[..length].to_vec();
                }
                assert!(Instant::now() < end, "no segment was held");
                std::thread::sleep(Duration::from_millis(1));
            };
            listener.set_nonblocking(true).unwrap();
            assert!(listener.accept().is_err(), "a newcomer passed");
            listener.set_nonblocking(false).unwrap();
            one.run(move || {
                let mut nl = Netlink::open().unwrap();
                for priority in [2, 3] {
                    nl.remove_filters(11, Direction::Egress, priority).unwrap();
                }
                assert_eq!(nl.filters(11, Direction::Egress).unwrap(), []);
                PacketSocket::open(11).unwrap().send(&held).unwrap();
            })
            .unwrap();
            let _ = listener.accept().unwrap();
            waiting.join().unwrap()
        });
        drop(newcomer);
    }
}

#[test]
fn announcements_teach_the_neighbours() {
    let (one, two) = (netns(), netns());
    join(&one, &two);
    let (v4, v6): (IpAddr, IpAddr) = ("10.77.0.1".parse().unwrap(), "fd77::1".parse().unwrap());
    two.run(move || {
        let mut nl = Netlink::open().unwrap();
        for ip in [v4, v6] {
            let old =
                Neighbour { index: 12, ip, mac: Some(vec![2, 7, 7, 7, 7, 7]), state: neigh::STALE, flags: 0 };
            nl.set_neighbour(&old).unwrap();
        }
    })
    .unwrap();
    one.run(move || {
        let out = PacketSocket::open(11).unwrap();
        for ip in [v4, v6] {
            out.send(&packet::announcement([2, 0, 0, 0, 0, 1], ip)).unwrap();
        }
    })
    .unwrap();
    two.run(move || {
        let mut nl = Netlink::open().unwrap();
        for ip in [v4, v6] {
            wait_for(&format!("{ip} to be learned"), || {
                let found = nl.neighbours().unwrap();
                found.iter().any(|n| n.ip == ip && n.mac.as_deref() == Some(&[2, 0, 0, 0, 0, 1]))
            });
        }
    })
    .unwrap();
}

#[test]
fn settings_belong_to_the_namespace() {
    let (one, two) = (netns(), netns());
    let name = "ipv4/ip_local_port_range";
    one.run(move || sys::net::set_sysctl(name, "20000 20100").unwrap()).unwrap();
    let read =
        move || sys::net::sysctl(name).unwrap().split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(one.run(read).unwrap(), ["20000", "20100"]);
    assert_ne!(two.run(read).unwrap(), ["20000", "20100"]);
    assert_eq!(sys::net::sysctl("../kernel/hostname"), Err(Errno::EINVAL));
}

/// Frames that the other end sends are seen from the beginning on, with the time of their sending; what goes to it is not.
#[test]
fn departures_are_seen_with_their_time() {
    let (host, inside) = (netns(), netns());
    join(&host, &inside);
    let seen = host.run(|| Departures::open(11).unwrap()).unwrap();
    let to_inside = host.run(|| UdpSocket::bind("10.77.0.1:700").unwrap()).unwrap();
    let to_host = inside.run(|| UdpSocket::bind("10.77.0.2:700").unwrap()).unwrap();
    // Both know where the other is: no ARP from here on.
    to_host.send_to(b"early", "10.77.0.1:700").unwrap();
    let mut buffer = [0; 64];
    assert_eq!(to_inside.recv(&mut buffer).unwrap(), 5);
    assert_eq!(seen.next().unwrap(), None, "nothing was to be seen yet");

    seen.begin().unwrap();
    to_inside.send_to(b"not this way", "10.77.0.2:700").unwrap();
    let before = SystemTime::now();
    to_host.send_to(b"first", "10.77.0.1:700").unwrap();
    let after = SystemTime::now();
    to_host.send_to(b"second", "10.77.0.1:700").unwrap();
    let mut frames = Vec::new();
    wait_for("both frames", || {
        frames.extend(seen.next().unwrap());
        frames.iter().any(|frame: &Departure| frame.head.ends_with(b"second"))
    });
    let udp: Vec<_> = frames.iter().filter(|frame| frame.head[12..14] == [8, 0]).collect();
    assert!(udp.len() == 2 && udp[0].head.ends_with(b"first"), "{frames:?}");
    assert!((before..=after).contains(&udp[0].at), "{before:?} {:?} {after:?}", udp[0].at);
}
