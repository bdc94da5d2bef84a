//! Control groups, namespaces and mounts.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::ffi::OsStr;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use common::{netns, unique, wait_for};
use nix::mount::MsFlags;
use sys::cgroup::{self, Freezer};
use sys::mount::{self, FsContext, attr};
use sys::ns::{self, Kind};
use sys::{Errno, pidfd};

/// A cgroup of the test, removed at the end with all in it.
struct Group(PathBuf);

impl Group {
    fn new() -> Self {
        let path = cgroup::v2_mount().unwrap().join(unique("sys-test-"));
        cgroup::create(&path).unwrap();
        Self(path)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Ok(freezer) = Freezer::open(&self.0) {
            let _ = freezer.kill();
            let _ = freezer.wait_empty(Duration::from_secs(5));
        }
        let _ = cgroup::remove_tree(&self.0, Duration::from_secs(5));
    }
}

struct Busy(Child);

impl Busy {
    fn start() -> Self {
        Self(Command::new("sh").args(["-c", "while :; do :; done"]).spawn().unwrap())
    }

    fn pid(&self) -> i32 {
        i32::try_from(self.0.id()).unwrap()
    }

    /// User plus system time, ticks.
    fn time(&self) -> u64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap();
        let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

const LIMIT: Duration = Duration::from_secs(10);

#[test]
fn a_cgroup_is_frozen_thawed_and_killed() {
    let group = Group::new();
    let below = group.0.join("below");
    cgroup::create(&below).unwrap();
    cgroup::create(&below).unwrap();
    let (mut one, two) = (Busy::start(), Busy::start());
    cgroup::add_process(&group.0, one.pid()).unwrap();
    cgroup::add_process(&below, two.pid()).unwrap();
    let freezer = Freezer::open(&group.0).unwrap();
    assert!(freezer.is_populated().unwrap() && !freezer.is_frozen().unwrap());
    let mut both = vec![one.pid(), two.pid()];
    both.sort_unstable();
    assert_eq!(freezer.processes().unwrap(), both);
    assert_eq!(cgroup::processes(&group.0).unwrap(), [one.pid()]);
    let place = cgroup::membership(two.pid()).unwrap();
    assert!(place.iter().any(|m| m.controllers.is_empty() && m.path.ends_with("below")), "{place:?}");

    for _ in 0..20 {
        freezer.freeze(LIMIT).unwrap();
        assert!(freezer.is_frozen().unwrap() && freezer.requested().unwrap());
        freezer.thaw().unwrap();
        assert!(!freezer.requested().unwrap());
    }
    freezer.freeze(LIMIT).unwrap();
    let before = (one.time(), two.time());
    std::thread::sleep(Duration::from_millis(60));
    assert_eq!((one.time(), two.time()), before, "frozen programs use no time");
    freezer.thaw().unwrap();
    wait_for("both to run", || one.time() > before.0 && two.time() > before.1);
    assert_eq!(cgroup::remove(&group.0, Duration::ZERO), Err(Errno::EBUSY));
    freezer.freeze(LIMIT).unwrap();
    let fd = pidfd::open(one.pid()).unwrap();
    freezer.kill().unwrap();
    assert_eq!(pidfd::wait_exit(fd.as_fd(), LIMIT), Ok(true));
    one.0.wait().unwrap();
    freezer.wait_empty(LIMIT).unwrap();
    cgroup::remove_tree(&group.0, LIMIT).unwrap();
    assert!(!group.0.exists());
}

#[test]
fn the_freezer_reports_what_it_cannot_do() {
    let group = Group::new();
    let freezer = Freezer::open(&group.0).unwrap();
    // Nobody in it: frozen at once; files and errors.
    freezer.freeze(LIMIT).unwrap();
    assert_eq!(cgroup::read(&group.0, "cgroup.freeze").unwrap(), "1\n");
    assert_eq!(cgroup::write(&group.0, "cgroup.freeze", "7"), Err(Errno::ERANGE));
    assert_eq!(cgroup::read(&group.0, "no.such"), Err(Errno::ENOENT));
    assert_eq!(freezer.wait_empty(Duration::ZERO), Ok(()));
    freezer.thaw().unwrap();
    let child = Busy::start();
    cgroup::add_process(&group.0, child.pid()).unwrap();
    assert_eq!(freezer.wait_frozen(Duration::from_millis(20)), Err(Errno::ETIMEDOUT));
    assert!(Freezer::open(&group.0.join("missing")).is_err());
}

#[test]
fn v1_hierarchies_are_found_where_they_are() {
    let all = cgroup::hierarchies().unwrap();
    for hierarchy in all.iter().filter(|h| !h.v2) {
        let controller = &hierarchy.controllers[0];
        assert_eq!(&cgroup::v1_mount(controller).unwrap(), &hierarchy.mount_point);
        assert!(hierarchy.mount_point.join("cgroup.procs").exists());
    }
    assert_eq!(cgroup::v1_mount("no-such-controller"), Err(Errno::ENOENT));
}

#[test]
fn work_in_another_network_namespace() {
    let target = netns();
    let fd = target.netns().unwrap();
    let own = ns::id(own_pid(), Kind::Net).unwrap();
    let there =
        ns::in_netns(fd.as_fd(), || ns::id_of(ns::open_own(Kind::Net).unwrap().as_fd()).unwrap()).unwrap();
    assert_eq!(there, ns::id_of(fd.as_fd()).unwrap());
    assert_ne!(there, own);
    assert_eq!(ns::id_of(ns::open(own_pid(), Kind::Net).unwrap().as_fd()).unwrap(), own);
    let null = std::fs::File::open("/dev/null").unwrap();
    assert_eq!(ns::in_netns(null.as_fd(), || ()), Err(Errno::EINVAL));
    // Work that panics takes its thread along, and says so.
    let broken = netns();
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    assert_eq!(broken.run(|| -> () { panic!("on purpose") }), Err(Errno::ECHILD));
    std::panic::set_hook(hook);
    assert_eq!(broken.run(|| 1), Err(Errno::ECHILD));
}

fn own_pid() -> i32 {
    i32::try_from(std::process::id()).unwrap()
}

#[test]
fn unsharing_is_this_threads_own_business() {
    std::thread::spawn(|| {
        ns::unshare(Kind::Uts.flag()).unwrap();
        ns::set_hostname("inside").unwrap();
        ns::set_domainname("there").unwrap();
        let name = nix::sys::utsname::uname().unwrap();
        assert_eq!(name.nodename(), "inside");
        assert_eq!(name.domainname(), "there");
    })
    .join()
    .unwrap();
    assert_ne!(nix::sys::utsname::uname().unwrap().nodename(), "inside");
    assert_eq!(ns::unshare(libc::CLONE_FILES), Err(Errno::EINVAL));
    for kind in Kind::ALL {
        assert!(ns::id(own_pid(), kind).is_ok(), "{kind:?}");
    }
}

/// In a mount namespace of a thread of its own: the thread shares nothing of the file system with the others.
fn in_mount_namespace(work: impl FnOnce(&Path) + Send + 'static) {
    let dir = std::env::temp_dir().join(unique("sys-mount-"));
    std::fs::create_dir(&dir).unwrap();
    let at = dir.clone();
    let result = std::thread::spawn(move || {
        ns::unshare(libc::CLONE_NEWNS | libc::CLONE_FS).unwrap();
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount::mount(None, Path::new("/"), None, private, None).unwrap();
        work(&at);
    })
    .join();
    std::fs::remove_dir_all(&dir).unwrap();
    result.unwrap();
}

#[test]
fn mounts_by_descriptor() {
    in_mount_namespace(|dir| {
        let (a, b) = (dir.join("a"), dir.join("b"));
        std::fs::create_dir(&a).unwrap();
        std::fs::create_dir(&b).unwrap();
        let tmpfs = FsContext::open("tmpfs").unwrap();
        tmpfs.set_string("size", OsStr::new("1M")).unwrap();
        assert_eq!(tmpfs.set_string("no-such-option", OsStr::new("1")), Err(Errno::EINVAL));
        let mounted = tmpfs.mount(attr::NOSUID | attr::NODEV).unwrap();
        mount::move_mount(mounted.as_fd(), None, &a).unwrap();
        std::fs::write(a.join("file"), "x").unwrap();
        mount::mknod(None, &a.join("fifo"), libc::S_IFIFO | 0o600, 0).unwrap();
        let clone = mount::open_tree(None, &a, mount::OPEN_TREE_CLONE).unwrap();
        mount::move_mount(clone.as_fd(), None, &b).unwrap();
        assert_eq!(std::fs::read_to_string(b.join("file")).unwrap(), "x");
        mount::set_attributes(None, &b, false, attr::RDONLY, 0, 0).unwrap();
        let refused = std::fs::write(b.join("file"), "y").unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EROFS));
        std::fs::write(a.join("file"), "z").unwrap();
        mount::set_attributes(None, &b, false, 0, attr::RDONLY, libc::MS_SHARED).unwrap();
        std::fs::write(b.join("file"), "y").unwrap();
        assert_eq!(mount::umount(&b), Err(Errno::EBUSY), "a descriptor of it is open");
        drop(clone);
        // A process that another test has forked holds a copy of every descriptor until its exec.
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while let Err(error) = mount::umount(&b) {
            assert!(error == Errno::EBUSY && std::time::Instant::now() < deadline, "{error}");
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        mount::detach(&a).unwrap();
        assert!(!a.join("file").exists());
        assert_eq!(mount::detach(&a), Err(Errno::EINVAL));
    });
}

#[test]
fn the_root_is_switched() {
    in_mount_namespace(|dir| {
        mount::mount(None, dir, Some("tmpfs"), MsFlags::empty(), None).unwrap();
        std::fs::write(dir.join("marker"), "new root").unwrap();
        let inode = std::fs::metadata(dir).unwrap().ino();
        mount::switch_root(dir).unwrap();
        assert_eq!(std::fs::read_to_string("/marker").unwrap(), "new root");
        assert_eq!(std::fs::metadata("/").unwrap().ino(), inode);
        assert!(!Path::new("/usr").exists(), "the old root is gone");
    });
}
