//! What the tests of the target share: paused root processes in pid namespaces of their own, and a small
//! reader of address spaces.

#![allow(dead_code, reason = "each test binary uses a part")]
#![allow(clippy::unwrap_used, reason = "tests may")]

pub(crate) mod local;

use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::fs::MetadataExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use engine::proc::{maps, stat, status, tasks};
use engine::target::SkeletonRoot;
use image::pages::{Batch, Owner, Run, RunKind};
use image::shape::{Backing, FileIdentity, Mm, ProcessShape, Shape, Vma};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

/// Waits until `what` holds.
pub(crate) fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < end, "timed out: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A process that is killed at the end of the test.
#[derive(Debug)]
pub(crate) struct Victim(pub(crate) Child);

impl Victim {
    /// Starts a program, with standard streams at /dev/null.
    pub(crate) fn spawn(command: &mut Command) -> Self {
        let null = Stdio::null;
        Self(command.stdin(null()).stdout(null()).stderr(null()).spawn().unwrap())
    }

    /// Waits until it sleeps in nanosleep(2) or its like.
    pub(crate) fn asleep(self) -> Self {
        let pid = self.pid();
        wait_until("the program sleeps", || {
            fs::read_to_string(format!("/proc/{pid}/wchan")).is_ok_and(|w| w.contains("nanosleep"))
        });
        self
    }

    pub(crate) fn pid(&self) -> i32 {
        i32::try_from(self.0.id()).unwrap()
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        for pid in descendants(self.pid()) {
            let _ =
                nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// All processes below one.
pub(crate) fn descendants(pid: i32) -> Vec<i32> {
    let children = tasks::children(pid).unwrap_or_default();
    children.iter().flat_map(|c| std::iter::once(*c).chain(descendants(*c))).collect()
}

/// The init of a new pid namespace, paused, with the channel's other end.
#[derive(Debug)]
pub(crate) struct Carrier {
    outer: Child,
    pub(crate) pid: i32,
}

impl Carrier {
    /// The init and what a target needs of it.
    pub(crate) fn spawn() -> (Self, SkeletonRoot) {
        Self::spawn_with("true")
    }

    /// The same, in a mount namespace of its own in which `prepare` ran.
    pub(crate) fn spawn_with(prepare: &str) -> (Self, SkeletonRoot) {
        let (agent, other) = pair();
        let number = other.as_raw_fd();
        nix::fcntl::fcntl(&other, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty())).unwrap();
        let script = format!("{prepare} && ip link set lo up && exec setsid sleep infinity");
        let outer = Command::new("unshare")
            .args(["--pid", "--net", "--mount", "--fork", "sh", "-c", &script])
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        drop(other);
        let outer_pid = i32::try_from(outer.id()).unwrap();
        let mut pid = 0;
        wait_until("the init of the new pid namespace", || {
            let child = tasks::children(outer_pid).unwrap_or_default().first().copied();
            pid = child.unwrap_or(0);
            pid != 0 && fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|c| c == "sleep\n")
        });
        (Self { outer, pid }, SkeletonRoot { pid, channel: agent, channel_fd: number })
    }
}

impl Drop for Carrier {
    fn drop(&mut self) {
        let _ =
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.pid), nix::sys::signal::Signal::SIGKILL);
        let _ = self.outer.wait();
    }
}

fn pair() -> (OwnedFd, OwnedFd) {
    socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap()
}

/// The address space of a live process.
pub(crate) fn read_mm(pid: i32) -> Mm {
    let vmas = maps::read_smaps(pid).unwrap().into_iter().filter_map(|m| vma(&m)).collect();
    let exe = fs::read_link(format!("/proc/{pid}/exe")).unwrap();
    Mm {
        vmas,
        fields: stat::read(pid).unwrap().mm,
        auxv: fs::read(format!("/proc/{pid}/auxv")).unwrap(),
        exe: identity(exe.to_str().unwrap()),
        barriers: 0,
    }
}

pub(crate) fn identity(path: &str) -> FileIdentity {
    let meta = fs::metadata(path).unwrap();
    let mtime_ns = meta.mtime() * 1_000_000_000 + meta.mtime_nsec();
    FileIdentity { path: path.to_owned(), size: meta.size(), mtime_ns, ghost: None }
}

fn vma(m: &maps::Entry) -> Option<Vma> {
    let name = String::from_utf8(m.name.clone()).unwrap();
    let backing = match name.as_str() {
        "[vsyscall]" => return None,
        "[vdso]" => Backing::Vdso,
        "[vvar]" | "[vvar_vclock]" => Backing::Vvar(name),
        _ if m.inode != 0 => {
            Backing::File { file: identity(&name), offset: m.offset, shared: m.shared, may_write: false }
        }
        _ => Backing::Anonymous,
    };
    Some(Vma {
        start: m.start,
        end: m.end,
        prot: m.prot,
        backing,
        flags: m.flags.to_image(),
        anon_name: None,
        huge: 0,
    })
}

/// A shape of one process, under the pid that it has.
pub(crate) fn shape_of(pid: i32) -> Shape {
    let s = stat::read(pid).unwrap();
    let process = ProcessShape {
        pid,
        ppid: 0,
        pgid: s.pgrp,
        sid: s.session,
        exit_signal: 17,
        zombie: None,
        tty: None,
        levels: Vec::new(),
        namespaces: image::namespaces::Nested::default(),
        shared: image::shape::Shared::default(),
        mm: read_mm(pid),
    };
    Shape { processes: vec![process], ..Shape::default() }
}

/// The bytes of one mapping.
pub(crate) fn read_memory(pid: i32, vma: &Vma) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(vma.len()).unwrap()];
    fs::File::open(format!("/proc/{pid}/mem")).unwrap().read_exact_at(&mut bytes, vma.start).unwrap();
    bytes
}

/// Whether a mapping has contents of its own.
pub(crate) fn has_contents(vma: &Vma) -> bool {
    let elsewhere =
        matches!(vma.backing, Backing::Vdso | Backing::Vvar(_) | Backing::File { shared: true, .. });
    vma.prot & 1 != 0 && !elsewhere
}

/// Sends every private page of a process to a writer.
pub(crate) fn copy_memory(pid: i32, mm: &Mm, apply: &mut dyn FnMut(&Batch<'_>)) {
    for vma in mm.vmas.iter().filter(|v| has_contents(v)) {
        let data = read_memory(pid, vma);
        let pages = u32::try_from(vma.len() / 4096).unwrap();
        let runs = [Run { addr: vma.start, pages, kind: RunKind::Data }];
        apply(&Batch { owner: Owner::Process(pid), runs: &runs, data: &data });
    }
}

/// The pid that `host` has in its own namespace.
pub(crate) fn inner_pid(host: i32) -> i32 {
    status::read(host).unwrap().inner_pid()
}
