//! Freezing and giving back, again and again, without the program noticing.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod source_support;

use std::time::{Duration, Instant};

use engine::source::Source;
use source_support::{Cgroup, Copy, Workload, tracer, traces, wait_until};

/// Threads in every kind of sleep that a stop could disturb. `report` tells what went wrong so far.
const SENSITIVE: &str = r"
import ctypes, os, select, signal, socket, subprocess, sys, threading, time
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.argtypes = [ctypes.c_long] * 7
errors = []
counts = {}
def count(name): counts[name] = counts.get(name, 0) + 1
def check(name, value, expected):
    if value != expected: errors.append('%s: %r errno %d' % (name, value, ctypes.get_errno()))
    count(name)
class Spec(ctypes.Structure): _fields_ = [('s', ctypes.c_long), ('n', ctypes.c_long)]
class Event(ctypes.Structure): _pack_ = 1; _fields_ = [('e', ctypes.c_uint), ('d', ctypes.c_ulong)]
ep = libc.epoll_create1(0)
def epoll():
    ev = (Event * 4)()
    t = time.monotonic(); r = libc.syscall(232, ep, ctypes.addressof(ev), 4, 30, 0, 0); took = time.monotonic() - t
    check('epoll_wait', r, 0)
    if took < .028 or took > 3: errors.append('epoll_wait took %f' % took)
def nap():
    s = Spec(0, 20_000_000); t = time.monotonic()
    r = libc.syscall(35, ctypes.addressof(s), 0, 0, 0, 0, 0); took = time.monotonic() - t
    check('nanosleep', r, 0)
    if took < .0199: errors.append('nanosleep took %f' % took)
def poll():
    t = time.monotonic(); r = libc.syscall(7, 0, 0, 25, 0, 0, 0); took = time.monotonic() - t
    check('poll', r, 0)
    if took < .0249: errors.append('poll took %f' % took)
word = ctypes.c_int(7)
def futex():
    s = Spec(0, 15_000_000)
    r = libc.syscall(202, ctypes.addressof(word), 128, 7, ctypes.addressof(s), 0, 0)
    check('futex', (r, ctypes.get_errno()), (-1, 110))
pr, pw = os.pipe()
buf = ctypes.create_string_buffer(16)
def reader():
    r = libc.syscall(0, pr, ctypes.addressof(buf), 1, 0, 0, 0)
    check('read', r, 1)
a, b = socket.socketpair()
def receiver():
    c = ctypes.create_string_buffer(16)
    r = libc.syscall(45, a.fileno(), ctypes.addressof(c), 1, 0, 0, 0)
    check('recv', r, 1)
def feeder():
    time.sleep(.01); os.write(pw, b'x'); b.send(b'y'); count('feed')
mask = ctypes.c_ulong(1 << (signal.SIGUSR2 - 1))
def sigwait():
    s = Spec(0, 10_000_000)
    r = libc.syscall(128, ctypes.addressof(mask), 0, ctypes.addressof(s), 8, 0, 0)
    check('sigtimedwait', (r, ctypes.get_errno()), (-1, 11))
def crunch():
    x = 1.5
    for i in range(20000): x = x * 1.0000001
    check('crunch', abs(x - 1.5 * 1.0000001 ** 20000) < 1e-6, True)
def child():
    p = os.fork()
    if p == 0: os._exit(3)
    _, status = os.waitpid(p, 0)
    check('child', os.waitstatus_to_exitcode(status), 3)
def loop(f):
    while True: f()
works = [epoll, nap, poll, futex, reader, receiver, feeder, sigwait, crunch]
if len(sys.argv) > 1: works.append(child)
# The timer's signal is for the main thread alone: in the others it would interrupt calls by right.
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])
for f in works: threading.Thread(target=loop, args=(f,), daemon=True).start()
signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGALRM])
ticks = [0]
def tick(*_): ticks[0] += 1
signal.signal(signal.SIGALRM, tick); signal.setitimer(signal.ITIMER_REAL, .01, .01)
print('ready')
while True:
    line = sys.stdin.readline()
    if not line: break
    print(len(errors), errors[:3], min(counts.values()) if len(counts) == len(works) else 0, ticks[0], flush=True)
";

fn report(workload: &mut Workload) -> (usize, String, u64) {
    let line = workload.ask("");
    let errors = line.split(' ').next().unwrap().parse().unwrap();
    let mut end = line.rsplit(' ').skip(1);
    let fewest = end.next().unwrap().parse().unwrap();
    (errors, line, fewest)
}

fn fifty_times(workload: &mut Workload, cgroup: Option<&Cgroup>, capture: bool) {
    let pid = workload.pid();
    let mut spec = workload.spec();
    if let Some(cgroup) = cgroup {
        cgroup.add(pid);
        spec.cgroup = Some(cgroup.0.clone());
    }
    wait_until(|| report(workload).2 > 0);
    let before = traces(pid);
    let mut frozen = Duration::ZERO;
    for turn in 0..50 {
        let (_, _, fewest) = report(workload);
        let mut source = attach(&spec);
        let mut copy = Copy::default();
        source.shape().unwrap();
        source.round(&mut copy).unwrap();
        let begin = Instant::now();
        source.freeze().unwrap();
        source.last_pages(&mut copy).unwrap();
        if capture {
            source.capture().unwrap();
        }
        frozen += begin.elapsed();
        source.abort().unwrap();
        let (errors, line, _) = report(workload);
        assert_eq!(errors, 0, "turn {turn}: {line}");
        // Everything goes on.
        wait_until(|| report(workload).2 > fewest + 1);
    }
    eprintln!("mean time frozen: {:?}", frozen / 50);
    let (errors, line, _) = report(workload);
    assert_eq!(errors, 0, "{line}");
    assert_eq!(tracer(pid), 0);
    let after = traces(pid);
    assert_eq!(after.1, before.1);
    assert!(!after.0.iter().any(|line| line.contains("gantry")), "{after:?}");
}

/// A fork in flight is refused by name, and this program forks all the time.
fn attach(spec: &engine::source::TreeSpec) -> Source {
    let mut last = None;
    for _ in 0..50 {
        match Source::attach(spec) {
            Ok(source) => return source,
            Err(error) => last = Some(error),
        }
    }
    panic!("{last:?}");
}

#[test]
fn fifty_freezes_by_ptrace() {
    let mut workload = Workload::python(SENSITIVE);
    fifty_times(&mut workload, None, true);
}

#[test]
fn fifty_freezes_in_a_cgroup() {
    let cgroup = Cgroup::new("freeze");
    let mut workload = Workload::python(SENSITIVE);
    fifty_times(&mut workload, Some(&cgroup), true);
}

#[test]
fn fifty_freezes_of_a_program_that_forks() {
    let cgroup = Cgroup::new("forks");
    let mut command = std::process::Command::new("python3");
    command.args(["-u", "-c", SENSITIVE, "forks"]);
    let mut workload = Workload::start(command);
    fifty_times(&mut workload, Some(&cgroup), false);
}
