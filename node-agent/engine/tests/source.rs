//! The source side on real processes: looking, tracking, freezing, giving back.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod source_support;

use engine::source::{Source, inspect, inspect_items};
use image::Subject;
use source_support::{Copy, Workload, tracer, traces};

const RICH: &str = r"
import os, select, socket, threading, time, signal, tempfile, mmap, sys
r, w = os.pipe(); os.write(w, b'in the pipe')
ev = os.eventfd(5, os.EFD_SEMAPHORE)
ep = select.epoll(); ep.register(r, select.EPOLLIN | select.EPOLLET); ep.register(ev, select.EPOLLIN | select.EPOLLONESHOT)
a, b = socket.socketpair(); a.send(b'hello'); socket.send_fds(a, [b'with fd'], [ev])
d = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); d.bind('\0gantry-test-%d' % os.getpid())
l = socket.socket(); l.bind(('127.0.0.1', 0)); l.listen(7)
c = socket.create_connection(l.getsockname()); s, _ = l.accept(); c.send(b'unread'); c.setsockopt(6, 1, 1)
u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); u.bind(('127.0.0.1', 0)); u.sendto(b'datagram', u.getsockname())
f = tempfile.TemporaryFile(); f.write(b'ghost content'); f.flush()
m = os.memfd_create('mem'); os.ftruncate(m, 8192); mm = mmap.mmap(m, 8192); mm[0:4] = b'abcd'
sh = mmap.mmap(-1, 16384); sh[5000:5004] = b'shar'
dn = open('/dev/null', 'w')
signal.signal(signal.SIGUSR1, lambda *a: None)
signal.setitimer(signal.ITIMER_REAL, 1000, 5)
ticks = [0, 0, 0]
def work(n):
    while True:
        time.sleep(0.001); ticks[n] += 1
for n in range(3): threading.Thread(target=work, args=(n,), daemon=True).start()
print('ready')
for line in sys.stdin:
    print(' '.join(map(str, ticks)), f.tell(), flush=True)
";

#[test]
fn inspect_sees_a_rich_program() {
    let workload = Workload::python(RICH);
    let before = traces(workload.pid());
    let inventory = inspect(&workload.spec()).unwrap();
    assert_eq!(inventory.refusals, []);
    assert_eq!((inventory.processes, inventory.threads), (1, 4));
    assert_eq!(inventory.connections, 2);
    assert!(inventory.descriptors >= 15, "{}", inventory.descriptors);
    assert!(inventory.resident_bytes > 1 << 20);
    assert_eq!(inventory.shape.objects.len(), 2);
    assert_eq!(traces(workload.pid()), before);
}

/// Twenty open files whose names change all the time.
const RENAMES: &str = r"
import os, sys, threading
files = [open('%s/%d' % (sys.argv[1], n), 'w') for n in range(20)]
def rename():
    turn = 0
    while True:
        for n in range(20):
            os.rename('%s/%d' % (sys.argv[1], n + turn * 20), '%s/%d' % (sys.argv[1], n + turn * 20 + 20))
        turn += 1
threading.Thread(target=rename, daemon=True).start()
print('ready')
sys.stdin.read()
";

#[test]
fn names_that_change_meanwhile_are_no_reason() {
    let dir = std::env::temp_dir().join(format!("gantry-renames-{}", std::process::id()));
    std::fs::create_dir(&dir).unwrap();
    let workload = Workload::python(&RENAMES.replace("sys.argv[1]", &format!("'{}'", dir.display())));
    let looks: Vec<_> = (0..100).map(|_| inspect(&workload.spec()).unwrap().refusals).collect();
    drop(workload);
    std::fs::remove_dir_all(&dir).unwrap();
    assert_eq!(looks.concat(), []);
}

#[test]
fn rounds_and_abort_leave_no_trace() {
    let mut workload = Workload::python(RICH);
    let pid = workload.pid();
    let before = traces(pid);
    let mut source = Source::attach(&workload.spec()).unwrap();
    assert_eq!(tracer(pid), 0, "untraced during pre-copy");
    let shape = source.shape().unwrap();
    assert_eq!(shape.processes.len(), 1);
    let mut copy = Copy::default();
    let first = source.round(&mut copy).unwrap();
    assert!(first.pages > 100, "{first:?}");
    let second = source.round(&mut copy).unwrap();
    assert!(second.pages < first.pages / 2, "{first:?} {second:?}");
    let ticks = workload.ask("");
    source.abort().unwrap();
    assert_ne!(workload.ask(""), ticks);
    assert_eq!(traces(pid), before);
    assert_eq!(tracer(pid), 0);
}

#[test]
fn freeze_capture_abort() {
    let mut workload = Workload::python(RICH);
    let pid = workload.pid();
    let before = traces(pid);
    let mut source = Source::attach(&workload.spec()).unwrap();
    source.shape().unwrap();
    let mut copy = Copy::default();
    source.round(&mut copy).unwrap();
    let report = source.freeze().unwrap();
    assert_eq!((report.processes, report.threads), (1, 4));
    source.last_pages(&mut copy).unwrap();
    let image = source.capture().unwrap();
    assert_eq!(image.processes[0].threads.len(), 4);
    eprintln!("{report:?}");
    eprintln!("{:#?}", image.files);
    source.abort().unwrap();
    workload.ask("");
    assert_eq!(traces(pid), before);
}

/// Everything has a row, once, with its verdict.
#[test]
fn an_inventory_lists_what_a_tree_has() {
    let mut workload = Workload::python(
        "import ctypes, os, socket, sys, time\n\
         l = socket.create_server(('127.0.0.1', 0)); c = socket.create_connection(l.getsockname()); a = l.accept()\n\
         p = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 16); r, w = os.pipe()\n\
         child = os.fork()\n\
         if child == 0: ctypes.CDLL(None).prctl(1, 9); time.sleep(1000)\n\
         print('ready'); print(l.fileno(), p.fileno(), r, l.getsockname()[1], flush=True)\n\
         for line in sys.stdin: print('ok')\n",
    );
    let numbers: Vec<i32> = workload.line().split(' ').map(|number| number.parse().unwrap()).collect();
    let [listener, netlink, pipe, port] = numbers[..] else { panic!("{numbers:?}") };
    let found = inspect_items(&workload.spec()).unwrap();
    assert_eq!(found.refusals, inspect(&workload.spec()).unwrap().refusals);
    let of =
        |fd: i32| -> Vec<_> { found.items.iter().filter(|item| item.subject == Subject::Fd(fd)).collect() };
    // In the parent and in the child.
    assert_eq!(of(listener).len(), 2);
    assert_eq!(of(listener)[0].what, format!("TCP listening on 127.0.0.1:{port}"));
    assert_eq!(of(listener)[0].refusal, None);
    assert!(of(pipe)[0].what.starts_with("pipe "));
    let reasons: Vec<&str> =
        of(netlink).iter().filter_map(|item| Some(item.refusal.as_ref()?.reason.as_str())).collect();
    assert_eq!(reasons.len(), 2, "{:?}", of(netlink));
    assert!(reasons[0].starts_with("netlink socket"), "{reasons:?}");
    let descriptors = found.items.iter().filter(|item| item.kind == "descriptor").count();
    assert_eq!(descriptors, found.descriptors);
    assert_eq!(found.items.iter().filter(|item| item.kind == "process").count(), 2);
    let memory =
        |what: &str| found.items.iter().any(|item| item.kind == "memory" && item.what.contains(what));
    assert!(memory("private memory") && memory("libc") && memory("[vdso]"));
    assert_eq!(found.items.iter().filter(|item| item.refusal.is_some()).count(), found.refusals.len());
}
