//! Open file descriptions, made by the agent.
//!
//! The agent makes each description once, holds it, and plants it into every process that has it, so that
//! sharing after dup(2), fork(2) and SCM_RIGHTS comes out exactly.

mod filters;
mod inotify;
mod makers;
mod netlink;
mod pipes;
mod raw;
mod simple;
mod sockets;
mod tty;
mod udp;
mod unix;

pub(crate) use unix::Aside;

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use image::files::{FileKind, Files, OpenFile};
use image::{Pid, Refusal, Subject};
use sys::Errno;
use sys::tape::target::TargetTape;

use super::Externals;
use super::error::TargetError;
use super::ghosts::Ghosts;
use super::mqueue::Queues;
use super::objects::Objects;
use super::plant::Channel;
use super::rootfs::RootFs;
use super::terminals::Terminals;
use super::tree::Tree;

/// Status flags that F_SETFL can change.
const SETTABLE: i32 = libc::O_APPEND | libc::O_ASYNC | libc::O_DIRECT | libc::O_NOATIME | libc::O_NONBLOCK;

/// What making descriptions needs.
pub(crate) struct Workshop<'a> {
    pub(crate) tree: &'a mut Tree,
    pub(crate) tape: &'a TargetTape,
    pub(crate) channel: &'a Channel,
    pub(crate) root: &'a RootFs,
    pub(crate) objects: &'a Objects,
    pub(crate) queues: &'a Queues,
    pub(crate) ghosts: &'a mut Ghosts,
    pub(crate) terminals: &'a mut Terminals,
    pub(crate) externals: &'a mut dyn Externals,
    pub(crate) netns: BorrowedFd<'a>,
}

/// A TCP connection in repair mode.
#[derive(Debug)]
pub(crate) struct InRepair {
    /// The open file.
    pub(crate) id: u32,
    /// Its windows, of which the send window is shut while bytes that were never sent wait.
    pub(crate) window: sys::tcp::RepairWindow,
    /// SO_REUSEADDR, which repair mode overwrites.
    pub(crate) reuse_address: bool,
}

/// A TCP socket in repair mode that is to connect.
#[derive(Debug)]
pub(crate) struct Connecting {
    /// The open file.
    pub(crate) id: u32,
    /// To whom.
    pub(crate) peer: SocketAddr,
    /// SO_REUSEADDR, which repair mode overwrites.
    pub(crate) reuse_address: bool,
}

/// Every description of the container, held by the agent.
#[derive(Debug, Default)]
pub(crate) struct Descriptions {
    held: BTreeMap<u32, OwnedFd>,
    pub(crate) in_repair: Vec<InRepair>,
    pub(crate) connecting: Vec<Connecting>,
    /// Socket files that were moved aside.
    pub(crate) aside: Vec<Aside>,
}

/// A step failed for one description.
fn fail(file: &OpenFile, what: impl Into<String>) -> impl FnOnce(io::Error) -> TargetError {
    let (id, kind, what) = (file.id, kind_name(&file.kind), what.into());
    move |source| TargetError::File { id, kind, what, source }
}

/// The same, from an error number.
fn fail_errno(file: &OpenFile, what: impl Into<String>) -> impl FnOnce(Errno) -> TargetError {
    let fail = fail(file, what);
    move |errno| fail(errno.into())
}

/// A description that this version cannot make.
fn refuse(file: &OpenFile, reason: impl Into<String>, way_out: &str) -> TargetError {
    TargetError::Refused(Refusal {
        pid: 0,
        subject: Subject::Container,
        reason: format!("open file {} ({}): {}", file.id, kind_name(&file.kind), reason.into()),
        way_out: way_out.to_owned(),
    })
}

fn kind_name(kind: &FileKind) -> &'static str {
    match kind {
        FileKind::Regular { .. } => "regular file",
        FileKind::Device { .. } => "device",
        FileKind::Pseudo { .. } => "file of a pseudo file system",
        FileKind::External { .. } => "file of the runtime",
        FileKind::Pipe { .. } => "pipe",
        FileKind::Terminal { .. } | FileKind::HungUp { .. } => "terminal",
        FileKind::EventFd { .. } => "eventfd",
        FileKind::TimerFd { .. } => "timerfd",
        FileKind::SignalFd { .. } => "signalfd",
        FileKind::Epoll { .. } => "epoll",
        FileKind::Memfd { .. } => "memory file",
        FileKind::PosixQueue { .. } => "POSIX message queue",
        FileKind::PidFd { .. } => "pidfd",
        FileKind::Inotify { .. } => "inotify",
        FileKind::Unix(_) => "unix socket",
        FileKind::Tcp(_) => "TCP socket",
        FileKind::Udp(_) => "UDP socket",
        FileKind::Netlink(_) => "netlink socket",
        FileKind::Raw(_) => "raw socket",
        FileKind::Packet(_) => "packet socket",
    }
}

/// Whether something leads to threads.
pub(crate) fn lead_to_threads(files: &Files) -> bool {
    files.open.iter().any(simple::is_thread)
}

impl Descriptions {
    /// Makes every description of `files`.
    pub(crate) fn make(files: &Files, shop: &mut Workshop<'_>) -> Result<Self, TargetError> {
        let mut all = Self::default();
        all.in_netns(shop.netns, |all| {
            sockets::make(files, all)?;
            netlink::make(files, all)?;
            unix::make(files, all, shop)?;
            // They would hear what is put back into others.
            raw::make(files, all)
        })?;
        pipes::make(files, &mut all, shop)?;
        tty::make(files, &mut all, shop)?;
        // inotify last: it would tell of what is opened here.
        let (watching, others): (Vec<_>, Vec<_>) =
            files.open.iter().partition(|file| matches!(file.kind, FileKind::Inotify { .. }));
        for file in others.into_iter().chain(watching) {
            simple::make(file, &mut all, shop)?;
        }
        // What is under way in a unix socket can be any description.
        all.in_netns(shop.netns, |all| unix::fill(files, all, shop))?;
        filters::attach(files, &all)?;
        for file in &files.open {
            all.set_flags(file)?;
        }
        Ok(all)
    }

    /// The agent's descriptor.
    pub(crate) fn get(&self, id: u32) -> Option<BorrowedFd<'_>> {
        self.held.get(&id).map(AsFd::as_fd)
    }

    fn put(&mut self, id: u32, fd: impl Into<OwnedFd>) {
        self.held.insert(id, fd.into());
    }

    fn has(&self, id: u32) -> bool {
        self.held.contains_key(&id)
    }

    fn require(&self, id: u32) -> Result<BorrowedFd<'_>, TargetError> {
        self.get(id).ok_or_else(|| TargetError::Image(format!("open file {id} is not in the image")))
    }

    /// Runs `work` with this thread in the container's network namespace: sockets belong to the namespace of
    /// the thread that makes them.
    fn in_netns<T>(
        &mut self,
        netns: BorrowedFd<'_>,
        work: impl FnOnce(&mut Self) -> Result<T, TargetError>,
    ) -> Result<T, TargetError> {
        let own =
            sys::ns::open_own(sys::ns::Kind::Net).map_err(TargetError::errno("open /proc/self/ns/net"))?;
        sys::ns::enter(netns, sys::ns::Kind::Net)
            .map_err(TargetError::errno("enter the network namespace"))?;
        let result = work(self);
        // A thread that stays in the container's namespace would mistake it for the host's.
        sys::ns::enter(own.as_fd(), sys::ns::Kind::Net)
            .map_err(TargetError::errno("leave the network namespace"))?;
        result
    }

    /// Status flags, except O_ASYNC, which needs an owner first.
    fn set_flags(&self, file: &OpenFile) -> Result<(), TargetError> {
        let wanted = file.flags.cast_signed() & SETTABLE & !libc::O_ASYNC;
        if file.flags.cast_signed() & libc::O_PATH != 0 {
            return Ok(());
        }
        let fd = self.require(file.id)?;
        let have = sys::fds::status_flags(fd).map_err(fail_errno(file, "F_GETFL"))?;
        if have & SETTABLE != wanted && !matches!(file.kind, FileKind::External { .. }) {
            sys::fds::set_status_flags(fd, wanted).map_err(fail_errno(file, "F_SETFL"))?;
        }
        Ok(())
    }

    /// Who gets SIGIO; threads must exist. `host` gives the agent's number of a thread, process or group.
    pub(crate) fn set_owners(
        &self,
        files: &Files,
        host: &dyn Fn(i32, Pid) -> Option<i32>,
    ) -> Result<(), TargetError> {
        for file in &files.open {
            let fd = self.require(file.id)?;
            if file.owner_signal != 0 {
                sys::fds::set_owner_signal(fd, file.owner_signal).map_err(fail_errno(file, "F_SETSIG"))?;
            }
            if let Some((kind, id)) = file.owner {
                let kind = kind - 1;
                // An owner that is gone gets nothing here either.
                if let Some(id) = host(kind, id) {
                    let owner = sys::fds::Owner { kind, id };
                    sys::fds::set_owner(fd, owner).map_err(fail_errno(file, "F_SETOWN_EX"))?;
                }
            }
            let flags = file.flags.cast_signed();
            if flags & libc::O_ASYNC != 0 && flags & libc::O_PATH == 0 {
                sys::fds::set_status_flags(fd, flags & SETTABLE).map_err(fail_errno(file, "F_SETFL"))?;
            }
        }
        Ok(())
    }

    /// Takes every connection out of repair mode, silently. Gives those that have something to send.
    pub(crate) fn leave_repair(&mut self) -> Result<Vec<OwnedFd>, TargetError> {
        let mut waiting = Vec::new();
        for connection in self.in_repair.drain(..) {
            if let Some(fd) = self.held.get(&connection.id) {
                sys::tcp::finish(fd.as_fd(), &connection.window, connection.reuse_address).map_err(
                    TargetError::errno(format!("take open file {} out of repair mode", connection.id)),
                )?;
                if sys::tcp::outq_unsent(fd.as_fd()).is_ok_and(|bytes| bytes > 0)
                    && let Ok(fd) = fd.as_fd().try_clone_to_owned()
                {
                    waiting.push(fd);
                }
            }
        }
        // After those to which they may connect. A SYN that nobody hears yet is sent again by the kernel.
        for connection in self.connecting.drain(..) {
            if let Some(fd) = self.held.get(&connection.id) {
                let Connecting { id, peer, reuse_address } = connection;
                sys::tcp::opening::begin(fd.as_fd(), peer, reuse_address)
                    .map_err(TargetError::errno(format!("connect open file {id} to {peer}")))?;
            }
        }
        Ok(waiting)
    }
}

/// A second description of something that the agent holds, opened through /proc/self/fd.
pub(crate) fn reopen(fd: BorrowedFd<'_>, flags: i32) -> io::Result<File> {
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::OpenOptionsExt;
    let access = flags & libc::O_ACCMODE;
    let mut again = libc::O_NONBLOCK | libc::O_APPEND | libc::O_DIRECT | libc::O_SYNC | libc::O_DSYNC;
    // O_TMPFILE, which the file keeps, has this bit in it.
    if flags & libc::O_TMPFILE != libc::O_TMPFILE {
        again |= libc::O_DIRECTORY;
    }
    File::options()
        .read(access != libc::O_WRONLY)
        .write(access != libc::O_RDONLY)
        .custom_flags(flags & again)
        .open(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}
