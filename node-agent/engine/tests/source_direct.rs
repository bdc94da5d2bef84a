//! Memory that a device writes to: reads past the page cache (O_DIRECT, open(2)) that are under way while pages are looked at.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod source_support;

use std::os::linux::fs::MetadataExt;
use std::path::PathBuf;

use image::shape::Shape;
use source_support::compare::{attach, compare, follow};
use source_support::{Copy, Workload};

/// Threads that clear a buffer, have it read into, and leave it alone for a while.
const READER: &str = r"
import ctypes, mmap, os, sys, tempfile, threading, time
libc = ctypes.CDLL(None, use_errno=True)
libc.prctl(1, 9)
B = 1 << 20
with tempfile.NamedTemporaryFile(dir='/var/tmp') as file:
    file.write(os.urandom(B)); file.flush(); os.fsync(file.fileno())
    fd = os.open(file.name, os.O_RDONLY | os.O_DIRECT)
def reader():
    buffers = [mmap.mmap(-1, B, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) for _ in range(4)]
    places = [ctypes.addressof(ctypes.c_char.from_buffer(b)) for b in buffers]
    n = 0
    while True:
        ctypes.memset(places[n % 4], n % 451, B)
        assert os.preadv(fd, [buffers[n % 4]], 0) == B
        time.sleep(.01)
        n += 1
for _ in range(3): threading.Thread(target=reader, daemon=True).start()
print('ready')
for line in sys.stdin: print('ok', flush=True)
";

/// A group whose reads from the disk of /var/tmp are slowed down, so that one is always under way; none without the
/// controller, or when the file system has no disk of its own.
struct Slow(PathBuf);

impl Slow {
    fn begin(pid: i32) -> Option<Self> {
        let device = std::fs::metadata("/var/tmp").unwrap().st_dev();
        let group = PathBuf::from(format!("/sys/fs/cgroup/blkio/gantry-direct-{pid}"));
        std::fs::create_dir(&group).ok()?;
        let slow = Self(group);
        let (major, minor) = (device >> 8 & 0xfff, device & 0xff);
        std::fs::write(slow.0.join("blkio.throttle.read_bps_device"), format!("{major}:{minor} 12000000"))
            .ok()?;
        std::fs::write(slow.0.join("cgroup.procs"), pid.to_string()).ok()?;
        Some(slow)
    }
}

impl Drop for Slow {
    fn drop(&mut self) {
        // Its processes go back to the group above.
        let members = std::fs::read_to_string(self.0.join("cgroup.procs")).unwrap_or_default();
        for pid in members.lines() {
            let _ = std::fs::write(self.0.join("../cgroup.procs"), pid);
        }
        let _ = std::fs::remove_dir(&self.0);
    }
}

#[test]
fn what_a_device_writes_while_pages_are_looked_at_is_sent() {
    let mut command = std::process::Command::new("python3");
    command.args(["-u", "-c", READER]);
    let mut workload = Workload::start(command);
    let spec = workload.spec();
    let _slow = Slow::begin(workload.pid());
    let mut source = attach(&spec);
    let mut copy = Copy::default();
    let mut told = Shape::default();
    for _ in 0..4 {
        let shape = source.shape().unwrap();
        follow(&mut copy, &told, &shape);
        told = shape;
        source.round(&mut copy).unwrap();
    }
    source.freeze().unwrap();
    let shape = source.shape().unwrap();
    follow(&mut copy, &told, &shape);
    source.last_pages(&mut copy).unwrap();
    assert!(compare(workload.pid(), &shape, &copy) > 1000);
    source.abort().unwrap();
    assert_eq!(workload.ask(""), "ok");
}
