//! Pages: whatever a program does to its memory, what was sent is what it holds at the freeze.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod source_support;

use image::shape::Shape;
use source_support::compare::{attach, begin, children, compare, follow};
use source_support::{Cgroup, Copy, Workload};

/// Does random things to its memory, in several processes, as fast as it can.
const MUTATOR: &str = r"
import ctypes, mmap, os, random, sys, tempfile, threading, time
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
libc.mremap.restype = ctypes.c_void_p
libc.mremap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
P = 4096
rnd = random.Random(int(sys.argv[1]))
FAILED = ctypes.c_void_p(-1).value
path = tempfile.mktemp()
with open(path, 'wb') as f: f.write(os.urandom(64 * P))
fd = os.open(path, os.O_RDWR)
os.unlink(path) if rnd.random() < .5 else None
memfd = os.memfd_create('obj'); os.ftruncate(memfd, 256 * P)
areas = []
def store(a, n):
    for _ in range(n):
        k = rnd.randrange(a[1] // P)
        ctypes.memmove(a[0] + k * P + rnd.randrange(4000), os.urandom(16), 16)
def new():
    kind = rnd.choice(['anon', 'file', 'shared', 'memfd', 'memfdpriv', 'sparse', 'big'])
    n = rnd.randrange(1, 64) * P; off = 0
    flags, f = {'anon': (0x22, -1), 'file': (2, fd), 'shared': (0x21, -1), 'memfd': (1, memfd), 'memfdpriv': (2, memfd),
                'sparse': (0x4022, -1), 'big': (0x22, -1)}[kind]
    if kind in ('sparse', 'big'): n = rnd.randrange(600, 3000) * P
    if f >= 0: off = rnd.randrange(0, 8) * P; n = min(n, 50 * P)
    # Often where something was before.
    at = rnd.choice(gone)[0] if gone and rnd.random() < .5 else None
    p = libc.mmap(at, n, 3, flags, f, off)
    if p != FAILED:
        a = [p, n, kind]; areas.append(a); store(a, rnd.randrange(0, 40))
gone = []
def step():
    r = rnd.random()
    if len(areas) < 4 or r < .12 and len(areas) < 40: return new()
    a = rnd.choice(areas)
    if r < .70: store(a, rnd.randrange(1, 20))
    elif r < .76:
        areas.remove(a); gone.append((a[0], a[1])); del gone[:-20]; libc.munmap(a[0], a[1])
    elif r < .84:
        k = rnd.randrange(a[1] // P); libc.madvise(a[0] + k * P, rnd.randrange(1, a[1] // P - k + 1) * P, 4)
    elif r < .87 and a[2] in ('shared', 'memfd'):
        k = rnd.randrange(a[1] // P); libc.madvise(a[0] + k * P, P, 9)
    elif r < .91:
        n = max(P, a[1] + rnd.randrange(-20, 20) * P)
        if a[2] in ('file', 'memfd', 'memfdpriv'): n = min(n, a[1])
        if a[2] == 'shared': n = a[1]
        fixed = 1
        p = libc.mremap(a[0], a[1], n, fixed, None)
        if p != FAILED: a[0], a[1] = p, n
    elif r < .94: os.pwrite(memfd, os.urandom(16), rnd.randrange(250 * P))
    elif r < .96:
        m = mmap.mmap(memfd, 256 * P); k = rnd.randrange(250 * P); m[k:k+8] = os.urandom(8); m.close()
    elif r < .97:
        libc.mprotect(a[0], P, 0); ctypes.get_errno(); time.sleep(0); libc.mprotect(a[0], P, 3)
    elif r < .985:
        pid = os.fork()
        if pid == 0:
            for b in areas:
                if b[2] in ('shared', 'memfd'): store(b, 3)
            os._exit(0)
        os.waitpid(pid, 0)
    else:
        k = rnd.randrange(8)
        ctypes.memmove(area[0] + k * 512 * P, b'x' * 64, 64)
area = [libc.mmap(None, 8 * 512 * P, 3, 0x22, -1, 0), 8 * 512 * P, 'huge']; libc.madvise(area[0], area[1], 14)
state = {'run': True}
def loop():
    while True:
        if state['run']: step()
        else: time.sleep(.001)
threading.Thread(target=loop, daemon=True).start()
if rnd.random() < .7 and os.fork() == 0:
    libc.prctl(1, 9)
    state['child'] = True
    threading.Thread(target=loop, daemon=True).start()
    if rnd.random() < .5:
        time.sleep(rnd.random() * .3)
        os.execv('/proc/self/exe', ['python3', '-c', 'x = bytearray(1 << 20)\nimport time\nwhile True:\n for i in range(0, len(x), 4096): x[i] = (x[i] + 1) % 256\n time.sleep(.001)'])
    time.sleep(1000)
print('ready')
for line in sys.stdin: print('ok', flush=True)
";

fn mutator(seed: u64) -> Workload {
    let mut command = std::process::Command::new("python3");
    command.args(["-u", "-c", MUTATOR, &seed.to_string()]);
    Workload::start(command)
}

fn migrate(seed: u64) {
    let cgroup = Cgroup::new(&format!("memory{seed}"));
    let mut workload = mutator(seed);
    let mut spec = workload.spec();
    // All of the tree, wherever it was born.
    cgroup.add(workload.pid());
    for pid in children(workload.pid()) {
        cgroup.add(pid);
    }
    spec.cgroup = Some(cgroup.0.clone());
    let mut source = attach(&spec);
    let mut copy = Copy::default();
    let mut told = Shape::default();
    for turn in 0..6 {
        let shape = source.shape().unwrap();
        follow(&mut copy, &told, &shape);
        if turn == 0
            && let Some(template) = source.template().unwrap()
        {
            source.template_pages(&mut copy).unwrap();
            begin(&mut copy, &template, &shape);
        }
        told = shape;
        source.round(&mut copy).unwrap();
    }
    source.freeze().unwrap();
    let shape = source.shape().unwrap();
    follow(&mut copy, &told, &shape);
    source.last_pages(&mut copy).unwrap();
    let compared = compare(workload.pid(), &shape, &copy);
    assert!(compared > 1000);
    source.abort().unwrap();
    assert_eq!(workload.ask(""), "ok");
}

/// KiB of written memory that a process shares with others as copy-on-write.
fn shared_dirty(pid: i32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let line = text.lines().find(|line| line.starts_with("Shared_Dirty:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn reading_memory_that_is_shared_as_copy_on_write_makes_no_copies_of_it() {
    const CODE: &str = "
import ctypes, os, sys, time
memory = bytearray(b'gantry!!' * 512) * (16 << 8)
if os.fork() == 0:
    ctypes.CDLL(None).prctl(1, 9)
    time.sleep(1000)
print('ready')
for line in sys.stdin: print('ok', flush=True)
";
    let mut workload = Workload::python(CODE);
    let pid = workload.pid();
    let before = shared_dirty(pid);
    assert!(before > 16 << 10, "{before} KiB are shared");
    let mut source = attach(&workload.spec());
    let mut copy = Copy::default();
    source.shape().unwrap();
    source.round(&mut copy).unwrap();
    source.freeze().unwrap();
    source.shape().unwrap();
    source.last_pages(&mut copy).unwrap();
    let after = shared_dirty(pid);
    assert!(after > 16 << 10, "{after} KiB of {before} are shared still");
    source.abort().unwrap();
    assert_eq!(workload.ask(""), "ok");
}

#[test]
fn what_was_sent_is_what_there_is() {
    let seeds = std::env::var("GANTRY_SEEDS").ok().and_then(|n| n.parse().ok()).unwrap_or(6);
    for seed in 0..seeds {
        eprintln!("seed {seed}");
        migrate(seed);
    }
}
