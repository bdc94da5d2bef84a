//! The agent dies at any moment: the program lives, and the next agent finds everything in order.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod source_support;

use std::process::{Command, Stdio};
use std::time::Duration;

use engine::source::{Namespaces, Source, TreeSpec, recover};
use source_support::{Cgroup, Copy, Workload, tracer, traces, wait_until};

const AGENT: &str = "GANTRY_TEST_AGENT";

const PROGRAM: &str = r"
import socket, sys, threading, time, os
ticks = [0] * 4
def work(n):
    while True:
        time.sleep(.0005); ticks[n] += 1
        if n > 1: sum(range(2000))
for n in range(4): threading.Thread(target=work, args=(n,), daemon=True).start()
l = socket.socket(); l.bind(('127.0.0.1', 0)); l.listen(7)
c = socket.create_connection(l.getsockname()); s, _ = l.accept()
data = bytearray(8 << 20)
def dirty():
    while True:
        for i in range(0, len(data), 4096): data[i] = (data[i] + 1) & 255
        time.sleep(.001)
threading.Thread(target=dirty, daemon=True).start()
print('ready')
n = 0
for line in sys.stdin:
    n += 1; before = list(ticks); c.sendall(b'%08d' % n); got = s.recv(8).decode()
    end = time.monotonic() + 8
    while any(a == b for a, b in zip(before, ticks)) and time.monotonic() < end: time.sleep(.001)
    print(got if all(a != b for a, b in zip(before, ticks)) else 'stuck', flush=True)
";

/// It reads past the page cache as well: it is stopped in each round, too.
const DIRECT: &str = r"
import mmap, os, tempfile, threading
with tempfile.NamedTemporaryFile(dir='/var/tmp') as file:
    file.write(bytes(1 << 20)); file.flush()
    direct = os.open(file.name, os.O_RDONLY | os.O_DIRECT)
block = mmap.mmap(-1, 1 << 20)
def read():
    while True: os.preadv(direct, [block], 0)
threading.Thread(target=read, daemon=True).start()
";

/// Not a test: the agent that the tests kill. It goes round and round.
#[test]
fn agent() {
    let Ok(pid) = std::env::var(AGENT) else { return };
    let (pid, cgroup) = pid.split_once(' ').unwrap();
    let spec = TreeSpec {
        root: pid.parse().unwrap(),
        cgroup: (!cgroup.is_empty()).then(|| cgroup.into()),
        externals: source_support::standard_streams(pid.parse().unwrap()),
        terminals: Vec::new(),
        namespaces: Namespaces::Host,
        mounts: engine::source::MountNamespaces::default(),
    };
    loop {
        let mut source = Source::attach(&spec).unwrap();
        let mut copy = Copy::default();
        source.shape().unwrap();
        source.round(&mut copy).unwrap();
        source.freeze().unwrap();
        source.shape().unwrap();
        source.last_pages(&mut copy).unwrap();
        source.capture().unwrap();
        source.abort().unwrap();
    }
}

fn killed_often(cgroup: Option<&Cgroup>) {
    let direct = if cgroup.is_some() { DIRECT } else { "" };
    let mut workload = Workload::python(&format!("{direct}{PROGRAM}"));
    let pid = workload.pid();
    let mut spec = workload.spec();
    if let Some(cgroup) = cgroup {
        cgroup.add(pid);
        spec.cgroup = Some(cgroup.0.clone());
    }
    let before = traces(pid);
    let path = cgroup.map(|cgroup| cgroup.0.display().to_string()).unwrap_or_default();
    let mut state = 12345_u64;
    for turn in 1..=60 {
        let mut agent = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "agent", "--nocapture"])
            .env(AGENT, format!("{pid} {path}"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // A moment that differs from turn to turn.
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        std::thread::sleep(Duration::from_micros(20_000 + (state >> 33) % 60_000));
        assert!(agent.try_wait().unwrap().is_none(), "turn {turn}: the agent ended by itself");
        agent.kill().unwrap();
        agent.wait().unwrap();
        wait_until(|| tracer(pid) == 0);
        wait_until(|| recover(&spec).is_ok() && traces(pid).0.iter().all(|line| !line.contains("gantry")));
        assert_eq!(workload.ask(""), format!("{turn:08}"), "turn {turn}");
    }
    assert_eq!(traces(pid).1, before.1);
}

#[test]
fn killed_often_without_a_cgroup() {
    killed_often(None);
}

#[test]
fn killed_often_with_a_cgroup() {
    killed_often(Some(&Cgroup::new("crash")));
}
