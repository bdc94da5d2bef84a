//! pidfd, kcmp, attributes of tasks, CPU.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::cmp::Ordering;
use std::os::fd::{AsFd, AsRawFd};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::wait_for;
use sys::prctl::{self, Caps, Rlimit, own};
use sys::{Errno, kcmp, pidfd};

/// A child that waits for its standard input to end.
struct Waiting(Child);

impl Waiting {
    fn new() -> Self {
        let child =
            Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().expect("cat is there");
        Self(child)
    }

    fn pid(&self) -> i32 {
        i32::try_from(self.0.id()).unwrap()
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn own_pid() -> i32 {
    i32::try_from(std::process::id()).unwrap()
}

#[test]
fn a_pidfd_waits_signals_and_takes_descriptors() {
    let mut child = Waiting::new();
    let pid = child.pid();
    let fd = pidfd::open(pid).unwrap();
    let began = Instant::now();
    assert_eq!(pidfd::wait_exit(fd.as_fd(), Duration::from_millis(30)), Ok(false));
    assert!(began.elapsed() >= Duration::from_millis(30));
    pidfd::send_signal(fd.as_fd(), 0).unwrap();
    let stdin = pidfd::getfd(fd.as_fd(), 0).unwrap();
    assert_eq!(kcmp::file(own_pid(), stdin.as_raw_fd(), pid, 0), Ok(Ordering::Equal));
    assert_ne!(kcmp::file(own_pid(), stdin.as_raw_fd(), pid, 1), Ok(Ordering::Equal));
    assert_eq!(pidfd::getfd(fd.as_fd(), 999).unwrap_err(), Errno::EBADF);
    pidfd::send_signal(fd.as_fd(), libc::SIGTERM).unwrap();
    assert_eq!(pidfd::wait_exit(fd.as_fd(), Duration::from_secs(10)), Ok(true));
    child.0.wait().unwrap();
    assert_eq!(pidfd::send_signal(fd.as_fd(), 0), Err(Errno::ESRCH));
    assert_eq!(pidfd::open(pid).unwrap_err(), Errno::ESRCH);
}

#[test]
fn kcmp_tells_what_is_shared() {
    let child = Waiting::new();
    let (me, other) = (own_pid(), child.pid());
    let thread = nix::unistd::gettid().as_raw();
    for compare in [kcmp::vm, kcmp::files, kcmp::fs, kcmp::sighand] {
        assert_eq!(compare(me, thread), Ok(Ordering::Equal));
        let order = compare(me, other).unwrap();
        assert_ne!(order, Ordering::Equal);
        assert_eq!(compare(other, me), Ok(order.reverse()));
    }
    assert_eq!(kcmp::file(me, 0, other, 99), Err(Errno::EBADF));
}

#[test]
fn attributes_of_another_process() {
    let child = Waiting::new();
    let pid = child.pid();
    prctl::set_nice(pid, 7).unwrap();
    assert_eq!(prctl::nice(pid), Ok(7));
    let mut attr = prctl::sched_attr(pid).unwrap();
    assert_eq!((attr.policy, attr.nice), (0, 7));
    attr.policy = 3;
    attr.nice = 9;
    prctl::set_sched_attr(pid, &attr).unwrap();
    let again = prctl::sched_attr(pid).unwrap();
    assert_eq!((again.policy, again.nice), (3, 9));
    prctl::set_affinity(pid, &[1]).unwrap();
    assert_eq!(prctl::affinity(pid).unwrap()[0], 1);
    prctl::set_ioprio(pid, 2 << 13 | 6).unwrap();
    assert_eq!(prctl::ioprio(pid), Ok(2 << 13 | 6));
    let core = prctl::rlimit(pid, 4).unwrap();
    prctl::set_rlimit(pid, 4, Rlimit { soft: 0, hard: core.hard }).unwrap();
    assert_eq!(prctl::rlimit(pid, 4).unwrap().soft, 0);
    // glibc registers one as it starts.
    wait_for("the robust list", || prctl::robust_list(pid).unwrap().0 != 0);
    assert_eq!(prctl::robust_list(pid).unwrap().1, 24);
    assert!(prctl::caps(pid).unwrap().permitted != 0);
    assert_eq!(prctl::nice(i32::MAX), Err(Errno::ESRCH));
}

/// Runs `work` in a forked child, whose answer is its exit status: what it changes is gone with it.
fn in_child(work: impl FnOnce() -> bool) {
    // SAFETY: the child calls thin wrappers of system calls and _exit; the test's threads hold no lock it needs,
    // for the allocator of glibc is usable after fork.
    match unsafe { nix::unistd::fork() }.unwrap() {
        nix::unistd::ForkResult::Child => {
            let code = i32::from(!work());
            // SAFETY: ends the child without running the parent's destructors.
            unsafe { libc::_exit(code) }
        }
        nix::unistd::ForkResult::Parent { child } => {
            let status = nix::sys::wait::waitpid(child, None).unwrap();
            assert_eq!(status, nix::sys::wait::WaitStatus::Exited(child, 0));
        }
    }
}

#[test]
fn a_containers_first_process_gives_up_its_privileges() {
    in_child(|| {
        own::new_session().is_ok()
            && own::set_name("a-name-that-is-too-long").is_ok()
            && own::set_child_subreaper(true).is_ok()
            && own::set_parent_death_signal(9).is_ok()
            && own::set_umask(0o27) != 0o27
            && own::set_umask(0o22) == 0o27
            && own::personality(0x0004_0000).is_ok()
            && own::personality(u32::MAX) == Ok(0x0004_0000)
            && own::drop_bounding(21).is_ok()
            && own::in_bounding(21) == Ok(false)
            && own::in_bounding(0) == Ok(true)
            && own::set_groups(&[5, 6]).is_ok()
            && own::set_gid(1234).is_ok()
            && own::set_keep_caps(true).is_ok()
            && own::set_uid(1234).is_ok()
            && own::set_caps(&Caps { effective: 1 << 10, permitted: 1 << 10, inheritable: 1 << 10 }).is_ok()
            && own::set_ambient(Some(10)).is_ok()
            && own::set_no_new_privs().is_ok()
            && {
                let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
                let has = |line: &str| status.lines().any(|l| l == line);
                has("Name:\ta-name-that-is-")
                    && has("Uid:\t1234\t1234\t1234\t1234")
                    && has("Gid:\t1234\t1234\t1234\t1234")
                    && status.contains("Groups:\t5 6")
                    && has("CapEff:\t0000000000000400")
                    && has("CapAmb:\t0000000000000400")
                    && has("NoNewPrivs:\t1")
            }
            && own::set_ambient(None).is_ok()
            && own::set_uid(0) == Err(Errno::EPERM)
            && own::securebits() == Ok(16)
    });
}

#[test]
fn a_seccomp_filter_from_raw_bytes() {
    in_child(|| {
        // Load the call number; getppid (110) answers EPERM, everything else is allowed.
        let program: [(u16, u8, u8, u32); 4] =
            [(0x20, 0, 0, 0), (0x15, 0, 1, 110), (0x06, 0, 0, 0x0005_0001), (0x06, 0, 0, 0x7fff_0000)];
        let mut raw = Vec::new();
        for (code, jt, jf, k) in program {
            raw.extend(code.to_ne_bytes());
            raw.extend([jt, jf]);
            raw.extend(k.to_ne_bytes());
        }
        // SAFETY: getppid takes nothing.
        let ask = || unsafe { libc::syscall(libc::SYS_getppid) };
        ask() > 0
            && own::add_seccomp_filter(&raw[1..], 0) == Err(Errno::EINVAL)
            && own::add_seccomp_filter(&raw, 1 << 3) == Err(Errno::EINVAL)
            && own::add_seccomp_filter(&raw, 0).is_ok()
            && ask() == -1
            && Errno::last() == Errno::EPERM
    });
}

#[test]
fn the_cpu_and_the_vdso() {
    let xsave = sys::cpu::xsave().expect("every x86-64 CPU of this decade");
    assert_eq!(xsave.features & 3, 3, "x87 and SSE");
    assert!(xsave.size >= 576);
    assert!(sys::cpu::cpuid().iter().any(|(leaf, _, r)| *leaf == 0 && r[0] >= 7));
    let image = sys::cpu::vdso_image().unwrap();
    assert!(image.starts_with(b"\x7fELF"));
    assert_eq!(sys::cpu::vdso_hash().unwrap(), sys::cpu::hash(&image));
    assert_ne!(sys::cpu::hash(&image), sys::cpu::hash(&image[1..]));
}

#[test]
fn files_are_made_as_another_user_with_all_capabilities() {
    use std::os::unix::fs::MetadataExt as _;
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let dir = std::env::temp_dir().join(format!("gantry-file-user-{}", own_pid()));
    std::fs::create_dir(&dir).unwrap();
    std::fs::set_permissions(&dir, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    // Nobody else may write here: the right to do so all the same must stay.
    let owner = |name: &str| {
        let path = dir.join(name);
        std::fs::write(&path, "x").unwrap();
        let made = std::fs::metadata(path).unwrap();
        (made.uid(), made.gid())
    };
    let caps = sys::prctl::caps(0).unwrap();
    let user = sys::prctl::own::FileUser::set(100_000, 100_007).unwrap();
    assert_eq!(owner("theirs"), (100_000, 100_007));
    assert_eq!(sys::prctl::caps(0).unwrap(), caps);
    drop(user);
    assert_eq!(owner("ours"), (0, 0));
    assert_eq!(sys::prctl::caps(0).unwrap(), caps);
    std::fs::remove_dir_all(&dir).unwrap();
}
