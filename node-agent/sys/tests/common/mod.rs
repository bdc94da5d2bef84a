//! What several tests need.
#![allow(dead_code, reason = "each test file uses a part")]

use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use sys::net::Netlink;
use sys::net::link::NewLink;
use sys::ns::NetnsThread;

/// Waits for a condition, up to ten seconds.
pub(crate) fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(10);
    while !done() {
        assert!(Instant::now() < end, "waited 10 s for {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A name that no other test process uses.
pub(crate) fn unique(prefix: &str) -> String {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("{prefix}{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// A network namespace with loopback up.
pub(crate) fn netns() -> NetnsThread {
    let ns = NetnsThread::start_new().expect("a network namespace (are you root?)");
    ns.run(|| {
        let mut netlink = Netlink::open().unwrap();
        let lo = netlink.link("lo").unwrap().index;
        netlink.set_up(lo, true).unwrap();
    })
    .unwrap();
    ns
}

/// Joins two namespaces with a veth: `eth0` in each, addresses .1 and .2 (and ::1, ::2), numbers 11 and 12.
pub(crate) fn join(one: &NetnsThread, two: &NetnsThread) {
    let (one_fd, two_fd) = (one.netns().unwrap(), two.netns().unwrap());
    let mac = |last| [2, 0, 0, 0, 0, last];
    {
        let (one_fd, two_fd) = (one_fd.try_clone().unwrap(), two_fd.try_clone().unwrap());
        one.run(move || {
            let a = NewLink {
                name: "eth0",
                mac: Some(mac(1)),
                index: Some(11),
                netns: Some(one_fd.as_fd()),
                mtu: None,
            };
            let b = NewLink { mac: Some(mac(2)), index: Some(12), netns: Some(two_fd.as_fd()), ..a };
            Netlink::open().unwrap().add_veth(&a, &b).unwrap();
        })
        .unwrap();
    }
    for (ns, index, last) in [(one, 11, 1), (two, 12, 2)] {
        ns.run(move || configure(index, last)).unwrap();
    }
    for (ns, index) in [(one, 11), (two, 12)] {
        ns.run(move || {
            const RUNNING: u32 = 0x40;
            let mut netlink = Netlink::open().unwrap();
            wait_for("the carrier", || netlink.link_by_index(index).unwrap().flags & RUNNING != 0);
        })
        .unwrap();
    }
}

fn configure(index: u32, last: u8) {
    let mut netlink = Netlink::open().unwrap();
    let v4: IpAddr = format!("10.77.0.{last}").parse().unwrap();
    let v6: IpAddr = format!("fd77::{last}").parse().unwrap();
    sys::net::set_sysctl("ipv6/conf/eth0/accept_dad", "0").unwrap();
    netlink.add_address(index, v4, 24).unwrap();
    netlink.add_address(index, v6, 64).unwrap();
    netlink.set_up(index, true).unwrap();
}

/// A listening socket in a namespace.
pub(crate) fn listen(ns: &NetnsThread, address: &str) -> (TcpListener, SocketAddr) {
    let address = address.to_owned();
    ns.run(move || {
        let listener = TcpListener::bind(address).unwrap();
        let at = listener.local_addr().unwrap();
        (listener, at)
    })
    .unwrap()
}

/// A connected pair: (the one that connected, the one that accepted).
pub(crate) fn connect(
    client: &NetnsThread,
    listener: &TcpListener,
    to: SocketAddr,
) -> (TcpStream, TcpStream) {
    let one = client.run(move || TcpStream::connect(to).unwrap()).unwrap();
    let (other, _) = listener.accept().unwrap();
    (one, other)
}
