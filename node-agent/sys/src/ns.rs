//! Namespaces: entering, leaving, and work inside a network namespace without moving the caller's thread.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};

use crate::abi::{io_errno, new_fd, small};
use crate::{Errno, Result};

/// A kind of namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// Mounts.
    Mnt,
    /// Host name.
    Uts,
    /// System V IPC and POSIX message queues.
    Ipc,
    /// Users and capabilities.
    User,
    /// Process numbers.
    Pid,
    /// Network.
    Net,
    /// View of the cgroup tree.
    Cgroup,
    /// Clock offsets.
    Time,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Self; 8] =
        [Self::Mnt, Self::Uts, Self::Ipc, Self::User, Self::Pid, Self::Net, Self::Cgroup, Self::Time];

    /// Its `CLONE_NEW*` flag.
    #[must_use]
    pub const fn flag(self) -> i32 {
        match self {
            Self::Mnt => libc::CLONE_NEWNS,
            Self::Uts => libc::CLONE_NEWUTS,
            Self::Ipc => libc::CLONE_NEWIPC,
            Self::User => libc::CLONE_NEWUSER,
            Self::Pid => libc::CLONE_NEWPID,
            Self::Net => libc::CLONE_NEWNET,
            Self::Cgroup => libc::CLONE_NEWCGROUP,
            Self::Time => 0x80,
        }
    }

    /// Its name under /proc/PID/ns.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Mnt => "mnt",
            Self::Uts => "uts",
            Self::Ipc => "ipc",
            Self::User => "user",
            Self::Pid => "pid",
            Self::Net => "net",
            Self::Cgroup => "cgroup",
            Self::Time => "time",
        }
    }
}

/// Which namespace: device and inode of its file. Two equal ids are the same namespace while it lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Id {
    /// Device of nsfs.
    pub dev: u64,
    /// Inode, the number in `net:[4026531840]`.
    pub ino: u64,
}

/// Opens a namespace of a process (or thread) `pid`.
///
/// # Errors
/// `ENOENT` no such process or kind, `EACCES` no ptrace access.
pub fn open(pid: i32, kind: Kind) -> Result<OwnedFd> {
    File::open(format!("/proc/{pid}/ns/{}", kind.name())).map(OwnedFd::from).map_err(|e| io_errno(&e))
}

/// Opens the namespace that children of `pid` will get: [`Kind::Pid`] and [`Kind::Time`] have one.
///
/// # Errors
/// As [`open`]; `ENOENT` also when no child has made the pid namespace real yet.
pub fn open_for_children(pid: i32, kind: Kind) -> Result<OwnedFd> {
    File::open(format!("/proc/{pid}/ns/{}_for_children", kind.name()))
        .map(OwnedFd::from)
        .map_err(|e| io_errno(&e))
}

/// Opens a namespace of the calling thread.
///
/// # Errors
/// `ENOENT` the kernel has no such kind.
pub fn open_own(kind: Kind) -> Result<OwnedFd> {
    File::open(format!("/proc/thread-self/ns/{}", kind.name())).map(OwnedFd::from).map_err(|e| io_errno(&e))
}

/// Which namespace of that kind `pid` is in.
///
/// # Errors
/// As [`open`].
pub fn id(pid: i32, kind: Kind) -> Result<Id> {
    let meta = std::fs::metadata(format!("/proc/{pid}/ns/{}", kind.name())).map_err(|e| io_errno(&e))?;
    Ok(Id { dev: meta.dev(), ino: meta.ino() })
}

/// Which namespace an open descriptor leads to.
///
/// # Errors
/// `EBADF`.
pub fn id_of(fd: BorrowedFd<'_>) -> Result<Id> {
    let stat = nix::sys::stat::fstat(fd)?;
    Ok(Id { dev: stat.st_dev, ino: stat.st_ino })
}

/// The pid or user namespace that one was made in.
///
/// # Errors
/// `EPERM` it is outside of the caller's own; `EINVAL` another kind.
pub fn parent(fd: BorrowedFd<'_>) -> Result<OwnedFd> {
    // NS_GET_PARENT of ioctl_nsfs(2).
    const NS_GET_PARENT: libc::Ioctl = 0xb702;
    // SAFETY: the request takes no argument.
    new_fd(unsafe { libc::ioctl(fd.as_raw_fd(), NS_GET_PARENT) })
}

/// unshare(2) for the calling thread; `flags` are `CLONE_*`.
///
/// # Errors
/// `EPERM`, `EINVAL` (a user namespace, from a process with several threads), `ENOSPC` too many.
pub fn unshare(flags: i32) -> Result<()> {
    // Sharing of memory and signal handlers cannot be undone in a threaded process, and CLONE_FILES would give
    // this thread a table in which Rust's owned descriptors of other threads mean something else.
    if flags & (libc::CLONE_FILES | libc::CLONE_VM | libc::CLONE_SIGHAND | libc::CLONE_THREAD) != 0 {
        return Err(Errno::EINVAL);
    }
    // SAFETY: unshare takes an integer; the flags that would affect memory or descriptors were refused.
    small(unsafe { libc::unshare(flags) }).map(drop)
}

/// Moves the calling thread into a namespace (for [`Kind::Pid`] and [`Kind::Time`]: its future children).
///
/// # Errors
/// `EINVAL` another kind, or the thread may not change it (mount and user namespaces need a process of
/// one thread, or own file system attributes); `EPERM`.
pub fn enter(fd: BorrowedFd<'_>, kind: Kind) -> Result<()> {
    set(fd, kind.flag())
}

/// setns(2) with any `CLONE_NEW*` flags; `fd` may be a pidfd, then all named kinds change in one step.
///
/// # Errors
/// As [`enter`].
pub fn set(fd: BorrowedFd<'_>, flags: i32) -> Result<()> {
    // SAFETY: setns takes two integers and changes kernel-side attributes of the calling thread only.
    small(unsafe { libc::setns(fd.as_raw_fd(), flags) }).map(drop)
}

/// sethostname(2) in this thread's UTS namespace.
///
/// # Errors
/// `EPERM`, `EINVAL` longer than 64 bytes.
pub fn set_hostname(name: impl AsRef<OsStr>) -> Result<()> {
    nix::unistd::sethostname(name)
}

/// setdomainname(2) in this thread's UTS namespace.
///
/// # Errors
/// `EPERM`, `EINVAL` longer than 64 bytes.
pub fn set_domainname(name: impl AsRef<OsStr>) -> Result<()> {
    let name = name.as_ref().as_bytes();
    // SAFETY: the kernel reads `name.len()` bytes.
    small(unsafe { libc::setdomainname(name.as_ptr().cast(), name.len()) }).map(drop)
}

/// Runs `work` on a fresh thread inside that network namespace and gives its answer back. A panic in `work`
/// continues in the caller.
///
/// # Errors
/// Those of setns(2), and `EAGAIN` no thread.
pub fn in_netns<T: Send>(netns: BorrowedFd<'_>, work: impl FnOnce() -> T + Send) -> Result<T> {
    within(netns, Kind::Net, work)
}

/// As [`in_netns`], for a namespace of any kind that a single thread may change: network, IPC, UTS, cgroup.
///
/// # Errors
/// As [`in_netns`]; `EINVAL` another kind.
pub fn within<T: Send>(fd: BorrowedFd<'_>, kind: Kind, work: impl FnOnce() -> T + Send) -> Result<T> {
    thread::scope(|scope| {
        let handle = thread::Builder::new()
            .name(kind.name().into())
            .spawn_scoped(scope, || {
                enter(fd, kind)?;
                Ok(work())
            })
            .map_err(|e| io_errno(&e))?;
        handle.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

type Job = Box<dyn FnOnce() + Send>;

/// A thread that stays in a network namespace (or, by [`NetnsThread::start_within`], in others) and runs work there: for the pause, where making a thread costs.
#[derive(Debug)]
pub struct NetnsThread {
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl NetnsThread {
    /// Starts the thread in that namespace.
    ///
    /// # Errors
    /// As [`in_netns`].
    pub fn start(netns: BorrowedFd<'_>) -> Result<Self> {
        let netns = netns.as_fd().try_clone_to_owned().map_err(|e| io_errno(&e))?;
        Self::start_with(move || enter(netns.as_fd(), Kind::Net))
    }

    /// Starts the thread in a network namespace that it makes.
    ///
    /// # Errors
    /// Those of unshare(2).
    pub fn start_new() -> Result<Self> {
        Self::start_with(|| unshare(libc::CLONE_NEWNET))
    }

    /// Starts the thread inside all of these namespaces, in their order, with a root and working directory of its
    /// own. For a mount namespace, whose root directory is the thread's then.
    ///
    /// # Errors
    /// Those of setns(2); a user namespace is always refused (`EINVAL`), because this process has several threads.
    pub fn start_within(namespaces: Vec<(OwnedFd, Kind)>) -> Result<Self> {
        Self::start_with(move || {
            unshare(libc::CLONE_FS)?;
            namespaces.iter().try_for_each(|(fd, kind)| enter(fd.as_fd(), *kind))
        })
    }

    fn start_with(first: impl FnOnce() -> Result<()> + Send + 'static) -> Result<Self> {
        let (jobs, queue) = mpsc::channel::<Job>();
        let (ready, started) = mpsc::sync_channel(1);
        let thread = thread::Builder::new()
            .name("netns".into())
            .spawn(move || {
                let entered = first();
                let go = entered.is_ok();
                // The receiver waits for this; it cannot be gone.
                let _gone = ready.send(entered);
                if go {
                    for job in queue {
                        job();
                    }
                }
            })
            .map_err(|e| io_errno(&e))?;
        started.recv().map_err(|_| Errno::ECHILD)??;
        Ok(Self { jobs: Some(jobs), thread: Some(thread) })
    }

    /// Runs `work` there and waits for its answer.
    ///
    /// # Errors
    /// `ECHILD`: earlier work panicked and took the thread along.
    pub fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
        let (done, answer) = mpsc::sync_channel(1);
        let job: Job = Box::new(move || drop(done.send(work())));
        self.jobs.as_ref().ok_or(Errno::ECHILD)?.send(job).map_err(|_| Errno::ECHILD)?;
        answer.recv().map_err(|_| Errno::ECHILD)
    }

    /// A descriptor of the namespace.
    ///
    /// # Errors
    /// As [`NetnsThread::run`].
    pub fn netns(&self) -> Result<OwnedFd> {
        self.run(|| open_own(Kind::Net))?
    }
}

impl Drop for NetnsThread {
    fn drop(&mut self) {
        drop(self.jobs.take());
        if let Some(thread) = self.thread.take() {
            // A panic of earlier work was reported by `run`.
            drop(thread.join());
        }
    }
}
