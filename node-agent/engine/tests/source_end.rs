//! The ends of a source: killed, left frozen, dropped half-way, found by a restarted agent.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod source_support;

use std::os::fd::AsFd;

use engine::source::{Source, recover};
use source_support::{Cgroup, Copy, Workload, tracer, traces, wait_until};

const CONNECTED: &str = r"
import os, socket, sys, threading, time
l = socket.socket(); l.bind(('127.0.0.1', 0)); l.listen(7)
c = socket.create_connection(l.getsockname()); s, _ = l.accept()
if os.fork() == 0:
    import ctypes; ctypes.CDLL(None).prctl(1, 9)
    while True: time.sleep(.001)
print('ready')
n = 0
for line in sys.stdin:
    n += 1
    c.sendall(b'%08d' % n)
    print(s.recv(8).decode(), flush=True)
";

fn frozen(cgroup: &Cgroup) -> bool {
    std::fs::read_to_string(cgroup.0.join("cgroup.events")).unwrap().contains("frozen 1")
}

fn in_cgroup(name: &str) -> (Workload, Cgroup, engine::source::TreeSpec) {
    let cgroup = Cgroup::new(name);
    let workload = Workload::python(CONNECTED);
    cgroup.add(workload.pid());
    let children = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", workload.pid())).unwrap();
    cgroup.add(children.trim().parse().unwrap());
    let mut spec = workload.spec();
    spec.cgroup = Some(cgroup.0.clone());
    (workload, cgroup, spec)
}

fn freeze(source: &mut Source) {
    let mut copy = Copy::default();
    source.shape().unwrap();
    source.round(&mut copy).unwrap();
    source.freeze().unwrap();
    source.last_pages(&mut copy).unwrap();
    source.capture().unwrap();
}

#[test]
fn kill_leaves_nothing() {
    let (workload, cgroup, spec) = in_cgroup("kill");
    let mut source = Source::attach(&spec).unwrap();
    freeze(&mut source);
    source.kill().unwrap();
    wait_until(|| std::fs::read_to_string(cgroup.0.join("cgroup.procs")).unwrap().is_empty());
    drop(workload);
}

#[test]
fn kill_without_a_cgroup() {
    let workload = Workload::python(CONNECTED);
    let spec = workload.spec();
    let child: i32 = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", workload.pid()))
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    let mut source = Source::attach(&spec).unwrap();
    freeze(&mut source);
    source.kill().unwrap();
    for pid in [workload.pid(), child] {
        // A zombie of somebody else's child has no executable any more.
        wait_until(|| std::fs::read_link(format!("/proc/{pid}/exe")).is_err());
    }
}

#[test]
fn left_frozen_and_recovered() {
    let (mut workload, cgroup, spec) = in_cgroup("left");
    let before = traces(workload.pid());
    let mut source = Source::attach(&spec).unwrap();
    freeze(&mut source);
    source.into_frozen();
    assert!(frozen(&cgroup));
    assert_eq!(tracer(workload.pid()), 0);
    recover(&spec).unwrap();
    assert!(!frozen(&cgroup));
    assert_eq!(workload.ask(""), "00000001");
    assert_eq!(traces(workload.pid()), before);
    // It can be frozen again, and recovering what is whole does nothing.
    recover(&spec).unwrap();
    let mut source = Source::attach(&spec).unwrap();
    freeze(&mut source);
    source.abort().unwrap();
    assert_eq!(workload.ask(""), "00000002");
}

#[test]
fn dropping_gives_back() {
    let (mut workload, cgroup, spec) = in_cgroup("drop");
    let before = traces(workload.pid());
    for stage in 0..4 {
        let mut source = Source::attach(&spec).unwrap();
        if stage >= 1 {
            source.round(&mut Copy::default()).unwrap();
        }
        if stage >= 2 {
            source.freeze().unwrap();
        }
        if stage >= 3 {
            source.capture().unwrap();
        }
        drop(source);
        assert!(!frozen(&cgroup));
        assert_eq!(workload.ask(""), format!("{:08}", stage + 1));
        assert_eq!(traces(workload.pid()), before, "stage {stage}");
    }
}

#[test]
fn what_came_up_since_attach_is_refused_at_the_freeze() {
    let code = r"
import ctypes, os, sys
libc = ctypes.CDLL(None)
print('ready')
fds = []
for line in sys.stdin:
    fds.append(libc.fanotify_init(0, 0)); print(fds[-1], flush=True)
";
    let mut workload = Workload::python(code);
    let spec = workload.spec();
    let mut source = Source::attach(&spec).unwrap();
    let fd: i32 = workload.ask("").parse().unwrap();
    let before_freeze = traces(workload.pid()).1;
    match source.freeze() {
        Err(engine::source::SourceError::Refused(list)) => {
            assert_eq!(list.len(), 1, "{list:?}");
            assert_eq!(list[0].subject, image::Subject::Fd(fd));
            assert!(list[0].reason.contains("fanotify"), "{list:?}");
        }
        other => panic!("{other:?}"),
    }
    source.abort().unwrap();
    assert_ne!(workload.ask(""), "");
    assert_eq!(traces(workload.pid()).1.len(), before_freeze.len() + 1);
}

/// Sockets that a dead agent left in repair mode are found.
#[test]
fn recover_takes_sockets_out_of_repair() {
    let (mut workload, _cgroup, spec) = in_cgroup("repair");
    let pidfd = sys::pidfd::open(workload.pid()).unwrap();
    let socket = sys::pidfd::getfd(pidfd.as_fd(), 4).unwrap();
    sys::tcp::repair_on(socket.as_fd()).unwrap();
    assert!(sys::tcp::in_repair(socket.as_fd()).unwrap());
    recover(&spec).unwrap();
    assert!(!sys::tcp::in_repair(socket.as_fd()).unwrap());
    assert_eq!(workload.ask(""), "00000001");
}
