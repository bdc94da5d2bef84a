//! Rounds, step by step: what a program did to its memory between two of them, and what the target holds at the end.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod source_support;

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use engine::source::{RoundStats, Source};
use image::shape::Shape;
use source_support::compare::{attach, compare, follow};
use source_support::{Cgroup, Copy, Workload};

/// Does what it is told, a line of python at a time.
const PUPPET: &str = r"
import ctypes, mmap, os, sys, time
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
libc.mremap.restype = ctypes.c_void_p
libc.mremap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p]
libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
P, M = 4096, 1 << 20
def new(size, flags=0x22, fd=-1, prot=3):
    at = libc.mmap(None, size, prot, flags, fd, 0)
    assert at != ctypes.c_void_p(-1).value, os.strerror(ctypes.get_errno())
    return at
def put(at, size, text=None):
    for page in range(at, at + size, P): ctypes.memmove(page + 100, text or os.urandom(16), 16)
def fork():
    pid = os.fork()
    if pid == 0: libc.prctl(1, 9)
    return pid
print('ready')
for line in sys.stdin:
    exec(line)
    print('ok', flush=True)
";

/// A program under migration.
struct Subject {
    workload: Workload,
    source: Source,
    copy: Copy,
    told: Shape,
    _cgroup: Cgroup,
}

impl Subject {
    /// Does `first` and is looked at for the first time.
    fn new(name: &str, first: &str) -> Self {
        let cgroup = Cgroup::new(&format!("rounds-{name}"));
        let mut command = Command::new("python3");
        command.args(["-u", "-c", PUPPET]);
        let mut workload = Workload::start(command);
        cgroup.add(workload.pid());
        assert_eq!(workload.ask(first), "ok");
        let mut spec = workload.spec();
        spec.cgroup = Some(cgroup.0.clone());
        let source = attach(&spec);
        let mut subject =
            Self { workload, source, copy: Copy::default(), told: Shape::default(), _cgroup: cgroup };
        subject.round();
        subject
    }

    fn shape(&mut self) {
        let shape = self.source.shape().unwrap();
        follow(&mut self.copy, &self.told, &shape);
        self.told = shape;
    }

    fn round(&mut self) -> RoundStats {
        self.shape();
        self.source.round(&mut self.copy).unwrap()
    }

    /// The program does something while it is migrated.
    fn tell(&mut self, line: &str) {
        assert_eq!(self.workload.ask(line), "ok");
    }

    /// Freezes it, compares every page, and gives it back: it goes on.
    fn end(mut self) -> RoundStats {
        self.source.freeze().unwrap();
        self.shape();
        let last = self.source.last_pages(&mut self.copy).unwrap();
        let compared = compare(self.workload.pid(), &self.told, &self.copy);
        assert!(compared > 500, "{compared} pages");
        self.source.abort().unwrap();
        assert_eq!(self.workload.ask("pass"), "ok");
        last
    }

    fn processes(&self) -> usize {
        self.told.processes.len()
    }
}

fn status(pid: i32, field: &str) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(field)).unwrap();
    line.trim_start_matches(':').split_whitespace().next().unwrap().parse().unwrap()
}

#[test]
fn what_mremap_moves_grows_and_leaves_behind_arrives() {
    let mut subject = Subject::new("mremap", "a = new(8 * M); put(a, 8 * M); b = new(4 * M); put(b, 4 * M)");
    // Moved to another place, and something new where it was.
    subject.tell("hole = new(64 * M, prot=0)");
    subject
        .tell("c = libc.mremap(a, 8 * M, 8 * M, 3, hole); assert c == hole; d = new(8 * M); put(d, 2 * M)");
    subject.round();
    subject.tell("b2 = libc.mremap(b, 4 * M, 12 * M, 1, None); put(b2 + 4 * M, 3 * M); put(c + 5 * P, P)");
    subject.round();
    subject.tell("c2 = libc.mremap(c, 8 * M, 1 * M, 1, None); put(c2, 3 * P)");
    subject.end();
}

#[test]
fn what_is_given_back_reads_as_zeros_at_the_target() {
    let mut subject = Subject::new("dontneed", "a = new(8 * M); put(a, 8 * M)");
    subject.tell("libc.madvise(a + 2 * M, 3 * M, 4)");
    let stats = subject.round();
    assert!(stats.dropped_pages >= 768, "{stats:?}");
    subject.tell("put(a + 3 * M, 10 * P); libc.madvise(a + 7 * M, M, 4)");
    subject.round();
    // In the last interval, too.
    subject.tell("libc.madvise(a, M, 4); put(a + 2 * P, P)");
    let last = subject.end();
    assert!(last.dropped_pages >= 255, "{last:?}");
}

#[test]
fn children_that_are_born_exec_and_exit_between_rounds_arrive_as_they_are() {
    let mut subject = Subject::new("fork", "a = new(4 * M); put(a, 4 * M)");
    let before = subject.processes();
    subject.tell("one = fork() or (put(a, M), put(new(2 * M), 2 * M), time.sleep(1000))");
    subject.round();
    assert_eq!(subject.processes(), before + 1);
    subject.tell("put(a, P); two = fork() or os.execvp('sleep', ['sleep', '1000'])");
    subject.round();
    assert_eq!(subject.processes(), before + 2);
    // One goes, another comes, before the target is told of either.
    subject.tell("os.kill(one, 9); os.waitpid(one, 0); three = fork() or (put(a + M, M), time.sleep(1000))");
    subject.round();
    assert_eq!(subject.processes(), before + 2);
    subject
        .tell("four = fork() or (put(a + 2 * M, M), time.sleep(1000)); os.kill(two, 9); os.waitpid(two, 0)");
    subject.end();
}

#[test]
fn shared_memory_is_sent_once_and_its_last_writers_are_not_missed() {
    let first = "a = new(8 * M, 0x21); put(a, 8 * M); m = os.memfd_create('m'); os.ftruncate(m, 4 * M); \
        b = new(4 * M, 1, m); put(b, 4 * M); kids = [fork() or time.sleep(1000) for _ in range(4)]";
    let mut subject = Subject::new("shared", first);
    // Five processes map 12 MiB: page by page it has been sent once.
    let sent: usize = subject
        .copy
        .pages
        .keys()
        .filter(|(owner, _)| matches!(owner, image::pages::Owner::Object(_)))
        .count();
    assert_eq!(sent, 12 << 8);
    let nothing = subject.round();
    assert!(nothing.bytes < 4 << 20, "{nothing:?}");
    // A process that comes, writes to both and is gone again before anybody saw it; write(2) leaves no trace at all.
    subject.tell("pid = os.fork() or (put(a + M, M), put(b, 3 * P), os._exit(0)); os.waitpid(pid, 0)");
    subject.tell("os.pwrite(m, b'by descriptor', 2 * M + 5)");
    let stats = subject.round();
    assert!(stats.pages >= 260, "{stats:?}");
    subject.tell("pid = os.fork() or (put(a + 3 * M, 5 * P), os._exit(0)); os.waitpid(pid, 0)");
    subject.tell("libc.madvise(a + 4 * M, M, 9)");
    subject.end();
}

#[test]
fn huge_pages_arrive_and_are_still_huge_where_nothing_was_written() {
    let mut subject = Subject::new(
        "huge",
        "a = new(34 * M); a = (a + 2 * M - 1) // (2 * M) * (2 * M); libc.madvise(a, 32 * M, 14); put(a, 32 * M)",
    );
    let pid = subject.workload.pid();
    let huge = |pid: i32| -> u64 {
        let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix("AnonHugePages:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    };
    let before = huge(pid);
    assert!(before >= 24 << 10, "{before} KiB in huge pages: the kernel gives none");
    subject.tell("put(a + 4 * M, 3 * P); put(a + 20 * M, P)");
    let stats = subject.round();
    // The pages that were written are sent, or at most the two huge ones they are in; the other fourteen are not.
    assert!(stats.bytes < 6 << 20, "{stats:?}");
    let after = huge(pid);
    println!("{before} KiB in huge pages before, {after} KiB after two of them were written to");
    assert!(after + (3 * 2048) >= before, "{after} of {before}");
    subject.tell("libc.madvise(a + 8 * M, 2 * M, 4); put(a + 30 * M, M)");
    subject.end();
}

#[test]
fn a_reserve_of_64_gib_costs_no_page_tables_and_no_time() {
    let mut subject =
        Subject::new("reserve", "a = new(64 << 30, 0x4022, prot=0); b = new(16 * M); put(b, 16 * M)");
    let pid = subject.workload.pid();
    let before = status(pid, "VmPTE");
    subject.round();
    // As Go and Java do: some of it becomes memory, far apart, and some of that is given back.
    subject.tell("libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]");
    subject.tell("[libc.mprotect(a + (n << 33), 4 * M, 3) or put(a + (n << 33), 4 * M) for n in range(8)]");
    subject.round();
    subject.tell("libc.madvise(a + (3 << 33), 4 * M, 4); put(a + (5 << 33), P)");
    let begin = Instant::now();
    let stats = subject.round();
    let (took, after) = (begin.elapsed(), status(pid, "VmPTE"));
    println!(
        "page tables: {before} KiB before, {after} KiB after three rounds; a round takes {took:?}, scan {:?}",
        stats.scan
    );
    // Eight extents of 4 MiB have at most three tables of 4 KiB each for their own pages, and two above them.
    assert!(after < before + 256, "page tables grew from {before} to {after} KiB");
    assert!(stats.scan < Duration::from_millis(60), "{stats:?}");
    // Comparing 64 GiB page by page would take for ever: the reserve goes first.
    subject.tell("libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]; libc.munmap(a, 64 << 30)");
    subject.end();
}

/// A file to swap to, used while this lives.
struct Swap(PathBuf);

impl Swap {
    fn new() -> Self {
        let path = std::env::temp_dir().join(format!("gantry-swap-{}", std::process::id()));
        let of = format!("of={}", path.display());
        let run = |program: &str, args: &[&str]| {
            let out = Command::new(program).args(args).output().unwrap();
            assert!(out.status.success(), "{program}: {}", String::from_utf8_lossy(&out.stderr));
        };
        run("dd", &["if=/dev/zero", &of, "bs=1M", "count=64"]);
        let swap = Self(path);
        let file = swap.0.to_str().unwrap();
        run("chmod", &["600", file]);
        run("mkswap", &[file]);
        run("swapon", &[file]);
        swap
    }
}

impl Drop for Swap {
    fn drop(&mut self) {
        let _ = Command::new("swapoff").arg(&self.0).output();
        let _ = std::fs::remove_file(&self.0);
    }
}

#[test]
fn what_is_swapped_out_arrives() {
    let swap = Swap::new();
    let mut subject =
        Subject::new("swap", "a = new(16 * M); put(a, 16 * M); assert libc.madvise(a, 16 * M, 21) == 0");
    let pid = subject.workload.pid();
    subject.tell("put(a + M, M); assert libc.madvise(a, 8 * M, 21) == 0");
    let swapped = status(pid, "VmSwap");
    assert!(swapped > 4 << 10, "{swapped} KiB are swapped out: the kernel swaps nothing");
    subject.round();
    // Out of swap by a read: nothing has changed. By a write: it has. Given back while swapped: gone.
    subject.tell("assert libc.madvise(a, 16 * M, 21) == 0; x = ctypes.string_at(a + 4 * M, M)");
    subject.tell("put(a + 6 * M, M); libc.madvise(a + 10 * M, 2 * M, 4)");
    let stats = subject.round();
    println!("{} KiB swapped; then {stats:?}", status(pid, "VmSwap"));
    subject.tell("assert libc.madvise(a + 12 * M, 4 * M, 21) == 0; put(a + 13 * M, P)");
    subject.end();
    drop(swap);
}

#[test]
fn a_page_that_is_written_in_every_round_is_sent_twice_and_in_the_end() {
    const HOT: u64 = 4 << 20;
    let mut subject =
        Subject::new("hot", "a = new(16 * M); put(a, 16 * M); s = new(8 * M, 0x21); put(s, 8 * M)");
    let write = "put(a, 4 * M); put(s, 4 * M)";
    subject.tell(write);
    let second = subject.round();
    assert!(second.bytes >= 2 * HOT && second.held_back == 0, "{second:?}");
    for round in 3..8 {
        subject.tell(write);
        let stats = subject.round();
        assert!(stats.held_back >= 2 * HOT && stats.bytes < HOT, "round {round}: {stats:?}");
    }
    // Half of it cools down: it is sent then, and not again.
    subject.tell("put(a, 2 * M); put(s, 2 * M)");
    let cooled = subject.round();
    assert!(cooled.bytes >= HOT && cooled.bytes < 2 * HOT, "{cooled:?}");
    assert!(cooled.held_back >= HOT && cooled.held_back < 2 * HOT, "{cooled:?}");
    // What is held back and given back is gone; what is held back and moved arrives.
    subject.tell("libc.madvise(a, M, 4); hole = new(8 * M, prot=0); libc.mremap(a + M, M, M, 3, hole)");
    let last = subject.end();
    assert!(last.bytes >= HOT / 2 && last.held_back == 0, "{last:?}");
}

/// The pages of the deleted file that were sent.
fn of_ghosts(copy: &Copy) -> Vec<(u64, &Vec<u8>)> {
    let of_ghosts =
        copy.pages.iter().filter(|((owner, _), _)| matches!(owner, image::pages::Owner::Ghost(_)));
    of_ghosts.map(|((_, at), page)| (*at, page)).collect()
}

#[test]
fn of_a_deleted_file_goes_what_has_changed() {
    let path = std::env::temp_dir().join(format!("gantry-ghost-{}", std::process::id()));
    let first = format!(
        "f = os.open('{0}', os.O_CREAT | os.O_RDWR); os.ftruncate(f, 70 * M); os.unlink('{0}'); \
         [os.pwrite(f, os.urandom(P), n * M) for n in range(70)]",
        path.display()
    );
    let mut subject = Subject::new("ghost", &first);
    assert_eq!(of_ghosts(&subject.copy).len(), 70, "holes are not sent");
    subject.copy.pages.clear();
    // Until its times are believed.
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(100) {
        subject.round();
    }
    assert_eq!(of_ghosts(&subject.copy), []);
    subject.tell("os.pwrite(f, b'by write', 5 * M + 7)");
    subject.tell("m = mmap.mmap(f, 70 * M); m[6 * M:6 * M + 8] = b'a map of'");
    subject.round();
    let changed: Vec<u64> = of_ghosts(&subject.copy).iter().map(|(at, _)| *at >> 20).collect();
    assert_eq!(changed, [5, 6]);
    subject.copy.pages.clear();
    // The page is writable by now: no time tells of it.
    subject.tell("m[6 * M:6 * M + 8] = b'once more'[:8]");
    subject.round();
    subject.tell("os.ftruncate(f, 69 * M)");
    subject.round();
    subject.tell("os.ftruncate(f, 71 * M); m.close(); os.pwrite(f, b'last', 71 * M - 4)");
    let source = &mut subject.source;
    source.freeze().unwrap();
    source.shape().unwrap();
    source.last_pages(&mut subject.copy).unwrap();
    let image = source.capture().unwrap();
    let [ghost] = image.files.ghosts.as_slice() else { panic!("{:?}", image.files.ghosts) };
    assert_eq!((ghost.size, ghost.content.len()), (71 << 20, 0));
    let pages = of_ghosts(&subject.copy);
    let places: Vec<(u64, &[u8])> = pages.iter().map(|(at, page)| (*at, &page[..4])).collect();
    // What was cut off has become a hole, which must be told.
    assert_eq!(places.len(), 3, "{places:?}");
    assert_eq!((places[0].0, places[0].1), (6 << 20, &b"once"[..]));
    assert_eq!((places[1].0, places[1].1), (69 << 20, &[0; 4][..]));
    assert_eq!((places[2].0, &pages[2].1[4092..]), ((71 << 20) - 4096, &b"last"[..]));
    subject.source.abort().unwrap();
}

#[test]
fn a_large_file_that_is_deleted_after_the_last_round_goes_in_one_more() {
    let path = std::env::temp_dir().join(format!("gantry-late-{}", std::process::id()));
    let mut subject = Subject::new("late", "pass");
    subject.tell(&format!(
        "f = os.open('{0}', os.O_CREAT | os.O_RDWR); os.ftruncate(f, 65 * M); os.unlink('{0}')",
        path.display()
    ));
    let source = &mut subject.source;
    let error = source.freeze().unwrap_err();
    assert!(error.is_transient() && error.to_string().contains("deleted just now"), "{error}");
    subject.source.abort().unwrap();
}
