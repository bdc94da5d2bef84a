//! How much a program writes, found while it runs. Needs root.

#![allow(clippy::unwrap_used, reason = "a failed step is the test's failure")]

mod source_support;

use engine::source::Source;
use source_support::Workload;

const MIB: u64 = 1 << 20;

/// Does what each line says, in Python; `m` is private memory, `s` is shared with a child that does it, too.
const PROGRAM: &str = r"
import mmap, os, sys
m = mmap.mmap(-1, 16 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
s = mmap.mmap(-1, 8 << 20)
m.write(b'x' * len(m)); s.write(b'y' * len(s))
def touch(memory, pages):
    for page in range(pages): memory[page << 12] = 1 + page % 250
to_child, from_child = os.pipe(), os.pipe()
if os.fork() == 0:
    os.close(to_child[1])
    while os.read(to_child[0], 1): touch(s, 512); os.write(from_child[1], b'.')
    os._exit(0)
print('ready')
for line in sys.stdin:
    exec(line)
    print('done', flush=True)
";

#[test]
fn pages_count_once_however_often_and_by_whomever_they_are_written() {
    let mut workload = Workload::python(PROGRAM);
    let mut source = Source::attach(&workload.spec()).unwrap();
    let first = source.written().unwrap();
    // The child has the private memory, too: it counts once.
    assert!((24 * MIB..40 * MIB).contains(&first.bytes) && first.window.is_zero(), "{first:?}");
    // What runs in Python to read a line writes to some pages of its own.
    let own = MIB;
    let mut after = |line: &str| {
        source.written().unwrap();
        assert_eq!(workload.ask(line), "done");
        source.written().unwrap()
    };
    let nothing = after("0");
    assert!(nothing.bytes < own && !nothing.window.is_zero(), "{nothing:?}");
    let private = after("touch(m, 1000); touch(m, 1000)").bytes;
    assert!((1000 * 4096..1000 * 4096 + own).contains(&private), "{private}");
    let shared = after("touch(s, 512); os.write(to_child[1], b'.'); os.read(from_child[0], 1)").bytes;
    assert!((2 * MIB..2 * MIB + own).contains(&shared), "{shared}");
    source.abort().unwrap();
    assert_eq!(workload.ask("touch(m, 10)"), "done");
}
