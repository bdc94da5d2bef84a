//! Open file descriptions. Two descriptors that share one (dup(2), fork(2), SCM_RIGHTS) name the same
//! [`OpenFile::id`].

use serde::{Deserialize, Serialize};

use crate::Pid;
use crate::shape::FileIdentity;
use crate::sockets::{Netlink, Packet, Raw, SockOpt, Tcp, Udp, Unix};

/// Everything that hangs on descriptors.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Files {
    /// Every open file description of the tree, also those that are only in flight in a unix socket.
    pub open: Vec<OpenFile>,
    /// What is known of deleted files and directories that are still in use, when nothing runs any more.
    pub ghosts: Vec<Ghost>,
    /// Pipes and fifos' buffers; both ends name one.
    pub pipes: Vec<Pipe>,
    /// Pseudo terminals; both sides name one.
    pub terminals: Vec<Terminal>,
    /// File locks that are held.
    pub locks: Vec<FileLock>,
}

/// One descriptor of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FdEntry {
    /// Its number.
    pub fd: i32,
    /// The open file description.
    pub file: u32,
    /// FD_CLOEXEC.
    pub cloexec: bool,
}

/// One open file description.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OpenFile {
    /// Unique in the image.
    pub id: u32,
    /// F_GETFL: access mode and status flags.
    pub flags: u32,
    /// F_GETOWN_EX: 0 = none, else the type (F_OWNER_TID/PID/PGRP + 1) and the id in the container's numbering.
    pub owner: Option<(i32, Pid)>,
    /// F_GETSIG.
    pub owner_signal: i32,
    /// What it is.
    pub kind: FileKind,
}

/// What an open file description is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum FileKind {
    /// A regular file, with its position; directories too (position as lseek(2) tells it).
    Regular {
        /// Which.
        file: FileIdentity,
        /// File position, bytes.
        pos: i64,
        /// It is a directory.
        directory: bool,
    },
    /// A character or block device node that holds no state: null, zero, full, random, urandom.
    Device {
        /// Its path in the container.
        path: String,
        /// Device number (`st_rdev`).
        rdev: u64,
    },
    /// A file of procfs, sysfs or cgroupfs that is opened again by its path.
    Pseudo {
        /// Its path in the container.
        path: String,
        /// File position.
        pos: i64,
    },
    /// What the runtime gave the container: the target's runtime supplies its own (`stdio`).
    External {
        /// The runtime's key, for example `stdout`.
        key: String,
    },
    /// One end of a pipe(2) or an opened fifo(7).
    Pipe {
        /// Index into [`Files::pipes`].
        pipe: u32,
        /// It is the writing end (a fifo opened O_RDWR is both and has `flags` O_RDWR).
        write: bool,
    },
    /// One side of a pseudo terminal (pty(7)).
    Terminal {
        /// Index into [`Files::terminals`].
        terminal: u32,
        /// Which side.
        side: TerminalSide,
        /// The path under which it was opened, in the container.
        path: String,
    },
    /// A terminal's slave whose master is gone: it answers end of file for good.
    HungUp {
        /// The number that it had; one opened as /dev/tty does not tell.
        index: Option<u32>,
    },
    /// eventfd(2).
    EventFd {
        /// Counter.
        count: u64,
        /// EFD_SEMAPHORE.
        semaphore: bool,
    },
    /// timerfd_create(2).
    TimerFd {
        /// Clock id.
        clock: i32,
        /// Expirations not yet read.
        ticks: u64,
        /// Flags of timerfd_settime(2) (TFD_TIMER_ABSTIME, TFD_TIMER_CANCEL_ON_SET).
        settime_flags: i32,
        /// Time to the next expiry, nanoseconds, 0 = disarmed.
        remaining_ns: u64,
        /// Period, nanoseconds.
        interval_ns: u64,
    },
    /// signalfd(2).
    SignalFd {
        /// Its mask.
        mask: u64,
    },
    /// epoll(7).
    Epoll {
        /// What it watches.
        targets: Vec<EpollTarget>,
        /// How it asks devices itself: `struct epoll_params` of ioctl_eventpoll(2); zeros: not at all.
        busy: [u8; 8],
    },
    /// memfd_create(2): the descriptor of a [`crate::shape::MemoryObject`].
    Memfd {
        /// Its id.
        object: u32,
        /// File position.
        pos: i64,
    },
    /// A POSIX message queue (mq_open(3)).
    PosixQueue {
        /// Which [`crate::ipc::PosixQueue`].
        queue: u64,
    },
    /// pidfd_open(2).
    PidFd {
        /// The process, in the container's numbering.
        pid: Pid,
    },
    /// inotify(7) with nothing queued.
    Inotify {
        /// Watches.
        watches: Vec<InotifyWatch>,
    },
    /// AF_UNIX.
    Unix(Box<Unix>),
    /// TCP over IPv4 or IPv6.
    Tcp(Box<Tcp>),
    /// UDP over IPv4 or IPv6.
    Udp(Box<Udp>),
    /// AF_NETLINK.
    Netlink(Box<Netlink>),
    /// Raw IP, and ping sockets.
    Raw(Box<Raw>),
    /// AF_PACKET.
    Packet(Box<Packet>),
}

impl FileKind {
    /// The options of a socket.
    #[must_use]
    pub fn options(&self) -> &[SockOpt] {
        match self {
            Self::Unix(socket) => &socket.options,
            Self::Tcp(socket) => &socket.options,
            Self::Udp(socket) => &socket.options,
            Self::Netlink(socket) => &socket.options,
            Self::Raw(socket) => &socket.options,
            Self::Packet(socket) => &socket.options,
            _ => &[],
        }
    }

    /// The same, to be changed.
    pub fn options_mut(&mut self) -> Option<&mut Vec<SockOpt>> {
        match self {
            Self::Unix(socket) => Some(&mut socket.options),
            Self::Tcp(socket) => Some(&mut socket.options),
            Self::Udp(socket) => Some(&mut socket.options),
            Self::Netlink(socket) => Some(&mut socket.options),
            Self::Raw(socket) => Some(&mut socket.options),
            Self::Packet(socket) => Some(&mut socket.options),
            _ => None,
        }
    }
}

/// A side of a pseudo terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TerminalSide {
    /// What ptmx(4) gave.
    Master,
    /// The terminal.
    Slave,
    /// The terminal, opened as `/dev/tty`.
    Own,
}

/// A pseudo terminal of the container's devpts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terminal {
    /// Its number: the name of its slave in /dev/pts.
    pub index: u32,
    /// The runtime holds its master and supplies one at the target.
    pub given: bool,
    /// The kernel's `struct termios2` (TCGETS2).
    #[serde(with = "serde_bytes")]
    pub termios: Vec<u8>,
    /// Rows, columns, and pixels of both (TIOCGWINSZ).
    pub window: [u16; 4],
    /// TIOCGPTLCK.
    pub locked: bool,
    /// TIOCGPKT.
    pub packet: bool,
    /// TIOCGEXCL of the slave.
    pub exclusive: bool,
    /// Nobody has the slave open, but somebody had: the master reads EIO.
    pub left: bool,
    /// st_mode of the slave's node.
    pub mode: u32,
    /// Its owner and group.
    pub owner: (u32, u32),
    /// The leader of the session that it controls, and the session's foreground group.
    pub session: Option<(Pid, Pid)>,
    /// What was typed of a line that is not ended yet.
    #[serde(with = "serde_bytes")]
    pub line: Vec<u8>,
}

/// A held file lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileLock {
    /// The open file description, which holds flock(2) and OFD locks and leads to the file of POSIX locks.
    pub file: u32,
    /// Whose it is.
    pub kind: LockKind,
    /// A write lock, else a read lock.
    pub write: bool,
    /// First byte.
    pub start: i64,
    /// Length in bytes; 0 = to the end of the file, however far that is.
    pub length: i64,
}

/// Kinds of file locks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LockKind {
    /// flock(2).
    Flock,
    /// fcntl(2) F_SETLK of this process.
    Posix(Pid),
    /// fcntl(2) F_OFD_SETLK.
    Ofd,
}

/// One entry of an epoll instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EpollTarget {
    /// The descriptor number it was added under.
    pub fd: i32,
    /// The open file description behind it.
    pub file: u32,
    /// Events and trigger flags, as epoll_ctl(2) takes them.
    pub events: u32,
    /// epoll_data.
    pub data: u64,
    /// EPOLLONESHOT has fired: it is disarmed.
    pub fired: bool,
    /// Of an entry that waits for edges: what the file was ready for, as poll(2) tells it, when the set had nothing
    /// more to tell. The program has heard of it.
    pub told: u32,
}

/// One inotify watch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InotifyWatch {
    /// Watch descriptor.
    pub wd: i32,
    /// Path in the container.
    pub path: String,
    /// Mask.
    pub mask: u32,
}

/// A file or directory without a name. The bytes of a file travel as page frames of [`crate::pages::Owner::Ghost`], or here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ghost {
    /// Unique in the image.
    pub id: u32,
    /// The name it had; a temporary one is made beside it at the target and unlinked again.
    pub path: String,
    /// st_mode, st_uid, st_gid.
    pub mode: u32,
    /// Owner, in the host's numbering: with a user namespace, every node maps the same ids.
    pub uid: u32,
    /// Group, in the host's numbering.
    pub gid: u32,
    /// Times of the last access and change of its content, nanoseconds since the epoch.
    pub times_ns: [i64; 2],
    /// Extended attributes: name and value.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Size of a file, bytes.
    pub size: u64,
    /// All of it, when it was found after the last round (only open in a message that nobody has received); else empty.
    #[serde(with = "serde_bytes")]
    pub content: Vec<u8>,
}

/// The buffer of a pipe or fifo.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pipe {
    /// F_GETPIPE_SZ, bytes.
    pub capacity: u32,
    /// Unread bytes.
    #[serde(with = "serde_bytes")]
    pub content: Vec<u8>,
    /// Their lengths, when they are packets of a writer in packet mode; empty for plain bytes.
    pub packets: Vec<u32>,
    /// The path of a fifo; `None` for pipe(2).
    pub fifo: Option<String>,
}
