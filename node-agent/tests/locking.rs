//! The network lock of a container that moves, and the hand-over of held frames, on the real kernel. Needs root.

#![allow(clippy::unwrap_used, reason = "a failed step is the test's failure")]

mod common;

use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::moving::{incoming, moving, start, text};
use common::{Lan, Node, chain, wait_for};
use node_agent::network::{Lock, lift_leftovers};
use node_agent::session::ports::Node as _;

/// A client that counts answers of an echo server and reports its longest wait.
const PINGER: &str = "
import socket, sys, time
s = socket.create_connection((sys.argv[1], 7000)); s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
s.settimeout(20); longest = 0; n = 0; end = time.time() + float(sys.argv[2])
print('up', flush=True)
while time.time() < end:
    t = time.time(); m = b'%08d' % n; s.sendall(m); r = b''
    while len(r) < 8:
        d = s.recv(8 - len(r))
        if not d: sys.exit('closed')
        r += d
    if r != m: sys.exit('mismatch')
    longest = max(longest, time.time() - t); n += 1; time.sleep(0.001)
retrans = int.from_bytes(s.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)[100:104], 'little')
print(n, round(longest * 1000), retrans)
";

const ECHO: &str = "
import socket
l = socket.create_server(('0.0.0.0', 7000)); s, _ = l.accept(); s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
while True:
    d = s.recv(64)
    if not d: break
    s.sendall(d)
";

/// Ends well when the address answers a connection to a closed port, within less than TCP's first retransmission.
const PROBE: &str = "
import socket, sys
try: socket.create_connection((sys.argv[1], 9), float(sys.argv[2]))
except ConnectionRefusedError: sys.exit(0)
except OSError: sys.exit(1)
";

fn answers(lan: &Lan, address: &str) -> bool {
    lan.client(&["python3", "-c", PROBE, address, "0.5"]).status.success()
}

fn pinger(lan: &Lan, seconds: &str) -> Child {
    let address = lan.address(2).to_string();
    Command::new("ip")
        .args(["netns", "exec", &lan.client, "python3", "-c", PINGER, &address, seconds])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

#[test]
fn the_lock_holds_frames_and_lifting_it_delivers_them() {
    let lan = Lan::new();
    let node = Node::new(Some(lan.bridge.clone()));
    let name = start(&node, Some(&lan), &["python3", "-c", ECHO], |_| {});
    let listens =
        || text(&node.exec(&name, &["cat", "/proc/net/tcp"]).stdout).contains(":1B58 00000000:0000 0A");
    wait_for("the server", listens);
    let client = pinger(&lan, "3");
    let established = || text(&node.exec(&name, &["cat", "/proc/net/tcp"]).stdout).contains(" 01 ");
    wait_for("a connection", established);

    let leaving = moving(&node).source(name.as_str()).unwrap();
    let mut lock = leaving.lock().unwrap();
    let mut pause = Duration::ZERO;
    for _ in 0..5 {
        let since = Instant::now();
        lock.engage().unwrap();
        let frames = lock.held(Duration::from_secs(5)).unwrap();
        assert!(!frames.is_empty(), "the client's next segment is held");
        std::thread::sleep(Duration::from_millis(40));
        lock.lift().unwrap();
        pause = pause.max(since.elapsed());
        std::thread::sleep(Duration::from_millis(50));
    }
    lock.lift().unwrap();
    drop(lock);
    let output = client.wait_with_output().unwrap();
    let seen = text(&output.stdout);
    let numbers: Vec<u64> = seen.lines().last().unwrap().split(' ').map(|n| n.parse().unwrap()).collect();
    let [answers, longest, retransmitted] = numbers.as_slice() else {
        panic!("{seen} {}", text(&output.stderr))
    };
    assert!(*answers > 100, "{seen}");
    // A lost frame costs 200 ms. The pause itself is 40 ms, or more when the kernel's network lock is busy.
    let pause = u64::try_from(pause.as_millis()).unwrap();
    assert!(*longest < pause + 100, "the client waited {longest} ms for a pause of {pause} ms");
    assert!(pause > 150 || *retransmitted == 0, "{retransmitted} retransmissions for a pause of {pause} ms");
    let link = node.runtime.record(&name).unwrap().link;
    for direction in ["ingress", "egress"] {
        let filters = Command::new("tc").args(["filter", "show", "dev", &link, direction]).output().unwrap();
        assert!(text(&filters.stdout).trim().is_empty(), "{}", text(&filters.stdout));
    }
}

/// Counts numbered datagrams and says which are missing when the last one has come.
const COLLECT: &str = "
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(('0.0.0.0', 7001)); print('up', flush=True)
seen = set()
while True:
    n = int(s.recv(64))
    if n < 0: break
    seen.add(n)
last = -n
print('missing', sorted(set(range(last)) - seen), flush=True)
";

/// Sends numbered datagrams, then says how many. Not so fast that a receiver that gets no processor for a while
/// overflows its buffer: that loss would be no fault of the lock.
const SPRAY: &str = "
import socket, sys, time
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.connect((sys.argv[1], 7001))
end = time.time() + float(sys.argv[2]); n = 0
while time.time() < end:
    s.send(b'%d' % n); n += 1; time.sleep(0.001)
time.sleep(0.3)
try:
    for _ in range(20): s.send(b'%d' % -n); time.sleep(0.01)
except ConnectionRefusedError: pass
";

#[test]
fn no_datagram_is_lost_by_locking() {
    let lan = Lan::new();
    let node = Node::new(Some(lan.bridge.clone()));
    let name = start(&node, Some(&lan), &["python3", "-u", "-c", COLLECT], |_| {});
    wait_for("the receiver", || node.log(&name) == "up\n");
    let address = lan.address(2).to_string();
    wait_for("it is reached", || answers(&lan, &address));
    let mut client = Command::new("ip")
        .args(["netns", "exec", &lan.client, "python3", "-c", SPRAY, &address, "3"])
        .spawn()
        .unwrap();
    let leaving = moving(&node).source(name.as_str()).unwrap();
    let mut lock = leaving.lock().unwrap();
    for _ in 0..20 {
        lock.engage().unwrap();
        lock.held(Duration::from_secs(5)).unwrap();
        std::thread::sleep(Duration::from_millis(10));
        lock.lift().unwrap();
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(client.wait().unwrap().success());
    wait_for("the count", || node.log(&name).contains("missing"));
    assert_eq!(node.log(&name), "up\nmissing []\n");
}

#[test]
fn a_lock_whose_holder_dies_stays_closed_until_it_is_lifted() {
    let lan = Lan::new();
    let node = Node::new(Some(lan.bridge.clone()));
    let name = start(&node, Some(&lan), &["sleep", "1000"], |_| {});
    let address = lan.address(2).to_string();
    let ping = || answers(&lan, &address);
    wait_for("it answers", ping);
    let record = node.runtime.record(&name).unwrap();
    let netns = fs::File::open(format!("/proc/{}/ns/net", record.root.unwrap().pid)).unwrap();
    let mut lock = Lock::prepare(&record.link, netns.into(), record.network.mac).unwrap();
    lock.engage().unwrap();
    // As when the process dies: the TAPs go, the filters stay.
    drop(lock);
    assert!(!ping(), "it fails closed");
    let again = moving(&node).source(name.as_str()).unwrap();
    let mut lock = again.lock().unwrap();
    assert!(!ping(), "preparing another lock opens nothing");
    lock.lift().unwrap();
    assert!(ping());
    lift_leftovers(&record.link).unwrap();
    lift_leftovers("gvnosuchlink").unwrap();
    assert!(ping());
}

/// Prints what UDP datagrams to port 4000 say, in the order in which they come.
const SNIFFER: &str = "
import socket
s = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0800))
print('ready', flush=True)
while True:
    packet = s.recv(2000)
    if packet[9] == 17 and packet[22:24] == (4000).to_bytes(2, 'big'): print(packet[28:].decode(), flush=True)
";

/// Sends datagrams to port 4000.
fn send(lan: &Lan, address: &str, text: &str) {
    let program = "import socket, sys; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(sys.argv[2].encode(), (sys.argv[1], 4000))";
    assert!(lan.client(&["python3", "-c", program, address, text]).status.success());
}

/// What was held until a datagram that says `text` was; others (neighbours that are looked for) come at any time.
fn held(lock: &mut Lock, text: &str) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    wait_for(text, || {
        frames.extend(lock.held(Duration::from_millis(100)).unwrap());
        frames.iter().any(|frame| frame.ends_with(text.as_bytes()))
    });
    frames
}

#[test]
fn what_arrives_directly_waits_for_what_the_source_still_had() {
    let lan = Lan::new();
    let node = Node::new(Some(lan.bridge.clone()));
    let name = start(&node, Some(&lan), &["sleep", "1000"], |_| {});
    let record = node.runtime.record(&name).unwrap();
    let address = lan.address(2).to_string();
    wait_for("it answers", || answers(&lan, &address));
    let netns = fs::File::open(format!("/proc/{}/ns/net", record.root.clone().unwrap().pid)).unwrap();
    let mut lock = Lock::prepare(&record.link, netns.into(), record.network.mac).unwrap();
    let other = Node::new(Some(lan.bridge.clone()));
    let spec = moving(&node).source(name.as_str()).unwrap().spec().unwrap();
    let mut copy =
        moving(&other).incoming(&incoming(&name, spec)).unwrap_or_else(|e| panic!("{}", chain(&e)));
    let inside = other.runtime.record(&name).unwrap().root.unwrap().pid;
    let mut sniffer = Command::new("nsenter")
        .args(["-t", &inside.to_string(), "-n", "python3", "-c", SNIFFER])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(sniffer.stdout.take().unwrap()));
    let mut line = || lines.next().unwrap().unwrap();
    assert_eq!(line(), "ready");

    lock.engage().unwrap();
    send(&lan, &address, "held");
    let frames = held(&mut lock, "held");
    send(&lan, &address, "late");
    let late = held(&mut lock, "late");
    copy.attach().unwrap();
    copy.deliver(&frames).unwrap();
    copy.announce().unwrap();
    for n in 0..5 {
        send(&lan, &address, &format!("direct {n}"));
    }
    copy.deliver(&late).unwrap();
    copy.open().unwrap();
    send(&lan, &address, "open");
    copy.open().unwrap();
    let came: Vec<String> = std::iter::repeat_with(line).take(8).collect();
    assert_eq!(came, ["held", "late", "direct 0", "direct 1", "direct 2", "direct 3", "direct 4", "open"]);
    // What still comes late while it is being moved on is held by the next lock.
    let there = other.runtime.record(&name).unwrap();
    let netns = fs::File::open(format!("/proc/{inside}/ns/net")).unwrap();
    let mut next = Lock::prepare(&there.link, netns.into(), there.network.mac).unwrap();
    next.engage().unwrap();
    copy.deliver(&late).unwrap();
    held(&mut next, "late");
    sniffer.kill().unwrap();
    sniffer.wait().unwrap();
    lock.release().unwrap();
    copy.discard().unwrap();
}

#[test]
fn held_frames_reach_the_container_at_its_new_place() {
    // The same addresses behind two links: the old one locked, the new one attached at commit.
    let lan = Lan::new();
    let node = Node::new(Some(lan.bridge.clone()));
    let name = start(&node, Some(&lan), &["sleep", "1000"], |_| {});
    let record = node.runtime.record(&name).unwrap();
    let address = lan.address(2).to_string();
    wait_for("it answers", || answers(&lan, &address));
    let netns = fs::File::open(format!("/proc/{}/ns/net", record.root.clone().unwrap().pid)).unwrap();
    let mut lock = Lock::prepare(&record.link, netns.into(), record.network.mac).unwrap();

    let other = Node::new(Some(lan.bridge.clone()));
    let spec = moving(&node).source(name.as_str()).unwrap().spec().unwrap();
    let mut copy =
        moving(&other).incoming(&incoming(&name, spec)).unwrap_or_else(|e| panic!("{}", chain(&e)));
    lock.engage().unwrap();
    let ping = Command::new("ip")
        .args(["netns", "exec", &lan.client, "python3", "-c", PROBE, &address, "0.9"])
        .spawn()
        .unwrap();
    let frames = lock.held(Duration::from_secs(5)).unwrap();
    assert!(!frames.is_empty(), "the request to connect");
    copy.attach().unwrap();
    copy.attach().unwrap();
    copy.announce().unwrap();
    copy.deliver(&frames).unwrap();
    copy.open().unwrap();
    let ended = { ping }.wait().unwrap();
    assert!(ended.success(), "the held request was answered from the new place");
    let mac = record.network.mac.0;
    let late = lock.held(Duration::ZERO).unwrap();
    assert!(late.iter().all(|frame| frame[..6] != mac), "the bridge has learned the new place");
    lock.release().unwrap();
    lock.release().unwrap();
    copy.discard().unwrap();
}
