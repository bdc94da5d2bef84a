//! Processes that share a descriptor table: what is put into one for a moment is in all of them.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod source_support;

use engine::source::Source;
use source_support::{Copy, Workload};

/// Children that share the table come, and are killed after a few milliseconds.
const SHORT_LIVES: &str = r"
import ctypes, os, select, signal, sys
libc = ctypes.CDLL(None)
child, maker = 0, os.getpid()
print('ready')
while True:
    if sys.stdin in select.select([sys.stdin], [], [], .0004)[0]:
        sys.stdin.readline()
        print(' '.join(sorted(os.readlink(f'/proc/self/fd/{n}') for n in os.listdir('/proc/self/fd') if n > '2' and os.path.islink(f'/proc/self/fd/{n}'))) or 'nothing')
    if child:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    # CLONE_FILES
    child = libc.syscall(56, 0x400 | signal.SIGCHLD, 0, 0, 0, 0)
    if child == 0:
        # It ends with its maker.
        libc.prctl(1, 9)
        while os.getppid() == maker: signal.pause()
        os._exit(0)
";

#[test]
fn holders_that_are_killed_meanwhile_leave_nothing_and_are_waited_for() {
    let mut workload = Workload::python(SHORT_LIVES);
    let spec = workload.spec();
    assert_eq!(workload.ask(""), "nothing");
    let mut attached = 0;
    for _ in 0..60 {
        // It may be refused for what comes and goes, or end because a process has just ended.
        let Ok(mut source) = Source::attach(&spec) else { continue };
        attached += 1;
        let _ = source.shape().map(|_| source.round(&mut Copy::default()));
        let _ = source.abort();
    }
    assert!(attached > 10, "only {attached}");
    assert_eq!(workload.ask(""), "nothing");
}
