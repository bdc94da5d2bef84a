//! What the runtime gives to migrations, on the real kernel: the sandbox of a copy, its files, the network
//! lock and the hand-over of held frames. Needs root.

#![allow(clippy::unwrap_used, reason = "a failed step is the test's failure")]

mod common;

use std::fs;
use std::io;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{Lan, Node, chain, request, unique, wait_for};
use node_agent::network::{Lock, lift_leftovers};
use node_agent::runtime::{ContainerName, MovingNode, State};
use node_agent::session::clocks::{Distance, Span};
use node_agent::session::ports::{FileSink, Incoming, Node as _, PortError, Settled};
use serde_json::json;

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Batches, applied at once.
struct Apply<'a>(&'a mut dyn node_agent::session::ports::FileTarget);

impl FileSink for Apply<'_> {
    fn batch(&mut self, batch: &[u8]) -> io::Result<()> {
        self.0.apply(batch).map_err(io::Error::other)
    }
}

fn start(
    node: &Node,
    lan: Option<&Lan>,
    args: &[&str],
    change: impl FnOnce(&mut serde_json::Value),
) -> ContainerName {
    let bundle = node.bundle_with(args, change);
    let name = ContainerName::new(unique("m")).unwrap();
    let mut request = request(&name, &bundle);
    request.ip = lan.map(|lan| format!("{}/24", lan.address(2)).parse().unwrap());
    node.runtime.run(request).unwrap_or_else(|error| panic!("{}", chain(&error)));
    name
}

fn moving(node: &Node) -> MovingNode {
    MovingNode::new(Arc::new(node.reopened()))
}

fn incoming(name: &ContainerName, spec: Vec<u8>) -> Incoming {
    Incoming {
        container: name.to_string(),
        migration: "m-1".to_owned(),
        epoch: 7,
        spec,
        clocks: Distance::default(),
    }
}

#[test]
fn a_copy_gets_the_same_sandbox_and_files() {
    let (source, target) = (Node::new(None), Node::new(None));
    let script = "mkdir -p /data /tmp/deep; echo one > /data/file; ln /data/file /data/link; \
        echo temporary > /tmp/deep/file; echo shared > /dev/shm/seg; echo started; sleep 1000";
    let name = start(&source, None, &["sh", "-c", script], |_| {});
    wait_for("it has written", || source.log(&name) == "started\n");

    let mut leaving = moving(&source).source(name.as_str()).unwrap();
    let coming = moving(&target);
    let mut copy = coming
        .incoming(&incoming(&name, leaving.spec().unwrap()))
        .unwrap_or_else(|e| panic!("{}", chain(&e)));
    let status = target.runtime.get(&name).unwrap();
    assert_eq!(status.state, State::Incoming);
    let (mut from, mut to) = (leaving.files().unwrap(), copy.files().unwrap());
    let round = from.round(&mut Apply(to.as_mut())).unwrap();
    assert!(round.entries > 5, "{round:?}");
    // Directories in memory come with the mounts.
    let state = leaving.mounts().unwrap().expect("it was never told");
    copy.mounts(&state).unwrap_or_else(|e| panic!("{}", chain(&e)));
    assert!(from.round(&mut Apply(to.as_mut())).unwrap().entries > 2);
    leaving.settle(Settled::Migrating, 7);
    assert_eq!(source.runtime.get(&name).unwrap().state, State::Migrating);
    source.runtime.stop(&name, Duration::ZERO).unwrap_err();
    fs::write(source.runtime.record(&name).unwrap().rootfs.join("data/file"), "two\n").unwrap();
    assert!(leaving.mounts().unwrap().is_none(), "nothing was mounted since");
    from.last(&mut Apply(to.as_mut())).unwrap();
    copy.settle_mounts().unwrap_or_else(|e| panic!("{}", chain(&e)));

    // Its first process waits as pid 1 of namespaces of its own, in the copy's groups, with the socket open.
    let options = copy.options().unwrap();
    let pid = options.root.pid;
    let proc = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap();
    assert!(
        proc("status").lines().any(|line| line.starts_with("NSpid:") && line.ends_with("\t1")),
        "{}",
        proc("status")
    );
    let link = fs::read_link(format!("/proc/{pid}/fd/{}", options.root.channel_fd)).unwrap();
    assert!(link.to_str().unwrap().starts_with("socket:"), "{}", link.display());
    for ns in ["pid", "mnt", "net", "uts", "ipc", "cgroup"] {
        let of = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/{ns}")).unwrap();
        assert_ne!(of(&pid.to_string()), of("self"), "{ns}");
    }
    assert!(copy.cgroup().join("cgroup.procs").exists());
    let mounts = |pid: i32| -> Vec<String> {
        let text = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap();
        text.lines().map(|line| line.split(' ').nth(4).unwrap().to_owned()).collect()
    };
    let root_pid = source.runtime.get(&name).unwrap().pid.unwrap();
    assert_eq!(mounts(pid), mounts(root_pid));
    let read = |path: &str| fs::read_to_string(format!("/proc/{pid}/root{path}")).unwrap();
    assert_eq!(read("/data/link"), "two\n");
    assert_eq!(read("/tmp/deep/file"), "temporary\n");
    assert_eq!(read("/dev/shm/seg"), "shared\n");
    assert_eq!(target.log(&name), "started\n");

    assert!(moving(&target).reopen(name.as_str(), "m-1").unwrap().is_none(), "it is not complete");
    copy.ready(pid).unwrap();
    assert!(moving(&target).reopen(name.as_str(), "another").unwrap().is_none());
    let mut again = moving(&target).reopen(name.as_str(), "m-1").unwrap().expect("it is complete");
    again.adopt(7).unwrap();
    let status = target.runtime.get(&name).unwrap();
    assert_eq!((status.state, status.epoch), (State::Running, 7));
    moving(&target).kill_incoming(name.as_str(), "m-1").unwrap();
    assert_eq!(target.runtime.get(&name).unwrap().state, State::Running, "an adopted one is not incoming");

    // The source goes.
    leaving.kill().unwrap();
    leaving.remove().unwrap();
    leaving.remove().unwrap();
    assert!(source.runtime.list().unwrap().is_empty());
}

#[test]
fn clocks_of_another_host_do_not_jump_back() {
    let (source, target) = (Node::new(None), Node::new(None));
    let name = start(&source, None, &["sleep", "1000"], |_| {});
    let leaving = moving(&source).source(name.as_str()).unwrap();
    // As from a host that has been up for a thousand seconds longer.
    let longer = Span { least: 999_999_000_000, most: 1_000_000_000_000 };
    let clocks = Distance { monotonic: longer, boottime: longer };
    let request = Incoming { clocks, ..incoming(&name, leaving.spec().unwrap()) };
    let mut copy = moving(&target).incoming(&request).unwrap_or_else(|e| panic!("{}", chain(&e)));
    let pid = copy.options().unwrap().root.pid;
    let offsets = fs::read_to_string(format!("/proc/{pid}/timens_offsets")).unwrap();
    let of = |clock: &str| -> i64 {
        let line = offsets.lines().find(|line| line.starts_with(clock)).unwrap();
        line.split_ascii_whitespace().nth(1).unwrap().parse().unwrap()
    };
    for clock in ["monotonic", "boottime"] {
        assert_eq!(of(clock), 1000, "{offsets}");
    }
    let of = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/time")).unwrap();
    assert_ne!(of(&pid.to_string()), of("self"));
    copy.ready(pid).unwrap();
    copy.adopt(7).unwrap();
    // Commands see them, too.
    let uptime = target.exec(&name, &["cat", "/proc/uptime"]);
    let seconds = |text: &str| text.split('.').next().unwrap().parse::<i64>().unwrap();
    let ours = seconds(&fs::read_to_string("/proc/uptime").unwrap());
    assert!(seconds(&text(&uptime.stdout)) > ours + 990, "{}", text(&uptime.stdout));
}

#[test]
fn a_copy_that_is_not_adopted_goes_without_a_trace() {
    let lan = Lan::new();
    let (source, target) = (Node::new(Some(lan.bridge.clone())), Node::new(Some(lan.bridge.clone())));
    let name = start(&source, Some(&lan), &["sleep", "1000"], |_| {});
    let spec = moving(&source).source(name.as_str()).unwrap().spec().unwrap();
    let mut copy =
        moving(&target).incoming(&incoming(&name, spec.clone())).unwrap_or_else(|e| panic!("{}", chain(&e)));
    let record = target.runtime.record(&name).unwrap();
    let is_up = || fs::exists(format!("/sys/class/net/{}", record.link)).unwrap();
    assert!(is_up());
    let master = fs::exists(format!("/sys/class/net/{}/master", record.link)).unwrap();
    assert!(!master, "its host end is attached at commit");
    copy.discard().unwrap();
    copy.discard().unwrap();
    assert!(!is_up() && target.runtime.list().unwrap().is_empty() && !record.bundle.exists());
    // Another agent killed what a dead one was building.
    let copy = moving(&target).incoming(&incoming(&name, spec)).unwrap();
    drop(copy);
    moving(&target).kill_incoming(name.as_str(), "m-1").unwrap();
    moving(&target).kill_incoming(name.as_str(), "m-1").unwrap();
    assert!(!is_up() && target.runtime.list().unwrap().is_empty());
    assert_eq!(source.runtime.get(&name).unwrap().state, State::Running);
}

#[test]
fn what_the_target_lacks_is_refused_by_path() {
    let (source, target) = (Node::new(None), Node::new(None));
    let only_here = source.dir.path().join("only-here");
    fs::create_dir(&only_here).unwrap();
    let name = start(&source, None, &["sleep", "1000"], |config| {
        let mount = json!({"destination": "/only", "type": "bind", "source": only_here, "options": ["bind"]});
        config["mounts"].as_array_mut().unwrap().push(mount);
    });
    let spec = moving(&source).source(name.as_str()).unwrap().spec().unwrap();
    fs::rename(&only_here, source.dir.path().join("gone")).unwrap();
    let error = moving(&target).incoming(&incoming(&name, spec)).err().expect("refused");
    let PortError::Refused(refusals) = error else { panic!("{}", chain(&error)) };
    assert!(refusals[0].to_string().contains("only-here"), "{}", refusals[0]);
    // A shared root directory needs its marker.
    let shared = start(&source, None, &["sleep", "1000"], |config| {
        config["annotations"] = json!({"dev.gantry.rootfs": "shared"});
    });
    let leaving = moving(&source).source(shared.as_str()).unwrap();
    let PortError::Refused(refusals) = leaving.spec().expect_err("refused") else { panic!("not by name") };
    assert!(refusals[0].to_string().contains(".gantry-shared"), "{}", refusals[0]);
    fs::write(source.runtime.record(&shared).unwrap().rootfs.join(".gantry-shared"), "4711").unwrap();
    let spec = leaving.spec().unwrap();
    let mut copy =
        moving(&target).incoming(&incoming(&shared, spec)).unwrap_or_else(|e| panic!("{}", chain(&e)));
    assert_eq!(
        target.runtime.record(&shared).unwrap().rootfs,
        source.runtime.record(&shared).unwrap().rootfs
    );
    copy.discard().unwrap();
    assert!(source.runtime.record(&shared).unwrap().rootfs.join(".gantry-shared").exists());
}

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
