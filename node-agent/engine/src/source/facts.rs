//! What the kernel says of a process, only read: processes and descriptors side by side, on all processors. What it
//! means is told afterwards, one after the other.

use std::fs::{File, Metadata};
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::linux::fs::MetadataExt;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::FileTypeExt;

use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use rayon::prelude::*;
use sys::Errno;

use super::descriptor::O_PATH;
use super::error::InspectError;
use super::look::{Depth, Flags};
use super::sharing::Apart;
use super::sockets::{self, Kind, Reason};
use super::tree::Process;
use super::{multicast, traced};
use crate::proc::fdinfo::{self, FdInfo};
use crate::proc::maps::{self, Entry};
use crate::proc::multicast::Group;
use crate::proc::{ProcError, tasks};

/// Below this much resident memory smaps is cheap (about 10 ms a GiB).
const SMALL_PAGES: u64 = 16 * 1024;
/// Descriptors that one thread reads at a time.
const AT_A_TIME: usize = 16;

/// How the facts are read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked<'a> {
    pub(crate) flags: Flags,
    pub(crate) depth: Depth,
    /// The tree stands still: what sockets hold at this moment matters.
    pub(crate) now: bool,
    /// Multicast groups of the network namespace.
    pub(crate) groups: &'a [Group],
}

/// Of a process.
#[derive(Debug, Default)]
pub(crate) struct Facts {
    /// Its mappings with their flags, without those of this engine's tape.
    pub(crate) entries: Vec<Entry>,
    /// Its descriptor table, then those that threads have of their own; each with whose it is.
    pub(crate) tables: Vec<(i32, Vec<DescriptorFacts>)>,
}

/// Of a descriptor.
#[derive(Debug)]
pub(crate) struct DescriptorFacts {
    pub(crate) fd: i32,
    /// Where its link in /proc leads, as text.
    pub(crate) target: Vec<u8>,
    /// And what stat(2) says of that.
    pub(crate) metadata: Metadata,
    pub(crate) info: FdInfo,
    /// For a socket, when it was asked for.
    pub(crate) socket: Option<SocketFacts>,
}

/// Of a socket.
#[derive(Debug)]
pub(crate) struct SocketFacts {
    pub(crate) kind: Result<Kind, Reason>,
    /// It has a packet filter.
    pub(crate) filtered: bool,
    /// The multicast groups that it is a member of: interface and group.
    pub(crate) groups: Vec<(u32, IpAddr)>,
}

/// Reads all processes. `known` gives the mappings with their flags as they were last read; `apart`: threads with
/// descriptor tables of their own. A process that has ended gives its error.
pub(crate) fn read_all<'a>(
    tree: &[Process],
    asked: Asked<'_>,
    known: impl Fn(&Process) -> Option<&'a [Entry]> + Sync,
    apart: &[Apart],
) -> Vec<Result<Facts, InspectError>> {
    tree.par_iter().map(|process| read(process, asked, known(process), apart)).collect()
}

fn read(
    process: &Process,
    asked: Asked<'_>,
    known: Option<&[Entry]>,
    apart: &[Apart],
) -> Result<Facts, InspectError> {
    if process.is_zombie() {
        return Ok(Facts::default());
    }
    let entries = entries(process, asked.flags, known)?;
    let mut tables = vec![(process.pid, table(process.pid, asked)?)];
    for thread in apart.iter().filter(|thread| thread.process == process.inner && thread.has_table()) {
        match table(thread.tid, asked) {
            Ok(found) => tables.push((thread.tid, found)),
            // It ended meanwhile.
            Err(InspectError::Proc(error)) if error.is_gone() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(Facts { entries, tables })
}

/// The descriptors of a process, or of a thread that has its own.
fn table(task: i32, asked: Asked<'_>) -> Result<Vec<DescriptorFacts>, InspectError> {
    let numbers = tasks::descriptors(task)?;
    let place = Place::open(task)?;
    let read = |fd: &i32| match place.read(*fd, asked) {
        Ok(facts) => Ok(Some(facts)),
        // It was closed meanwhile.
        Err(InspectError::Proc(error)) if error.is_gone() => Ok(None),
        Err(error) => Err(error),
    };
    let descriptors: Vec<Option<DescriptorFacts>> =
        numbers.par_iter().with_min_len(AT_A_TIME).map(read).collect::<Result<_, _>>()?;
    Ok(descriptors.into_iter().flatten().collect())
}

/// Where a process's descriptors are read: paths are walked once, not for each of them.
struct Place {
    pid: i32,
    pidfd: OwnedFd,
    links: OwnedFd,
    infos: OwnedFd,
}

impl Place {
    fn open(pid: i32) -> Result<Self, InspectError> {
        let dir = |name: &str| {
            let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
            let path = format!("/proc/{pid}/{name}");
            nix::fcntl::open(path.as_str(), flags, Mode::empty())
                .map_err(|errno| ProcError::Read { path, source: errno.into() })
        };
        let pidfd = sys::pidfd::open_task(pid)
            .map_err(|errno| ProcError::Read { path: format!("/proc/{pid}"), source: errno.into() })?;
        Ok(Self { pid, pidfd, links: dir("fd")?, infos: dir("fdinfo")? })
    }

    fn read(&self, fd: i32, asked: Asked<'_>) -> Result<DescriptorFacts, InspectError> {
        let whole = asked.depth == Depth::Everything;
        let path = || format!("/proc/{}/fd/{fd}", self.pid);
        let failed = |source| ProcError::Read { path: path(), source };
        // A program that runs is not to notice that others hold its files: then only sockets are held, while they are
        // asked.
        let held = if asked.now && whole { Some(self.hold(fd)?) } else { None };
        let metadata = match &held {
            Some(file) => file.metadata(),
            None => std::fs::metadata(path()),
        };
        let metadata = metadata.map_err(failed)?;
        let info = fdinfo::read_in(self.infos.as_fd(), fd)?;
        let is_socket = metadata.file_type().is_socket() && info.flags & O_PATH == 0;
        let target = if is_socket {
            format!("socket:[{}]", metadata.st_ino()).into_bytes()
        } else {
            let target = nix::fcntl::readlinkat(&self.links, fd.to_string().as_str());
            target.map_err(|errno| failed(errno.into()))?.into_vec()
        };
        let socket = match held {
            _ if !is_socket || !whole => None,
            Some(file) => socket(self.pid, &file, asked)?,
            None => socket(self.pid, &self.hold(fd)?, asked)?,
        };
        Ok(DescriptorFacts { fd, target, metadata, info, socket })
    }

    fn hold(&self, fd: i32) -> Result<File, InspectError> {
        match sys::pidfd::getfd(self.pidfd.as_fd(), fd) {
            Ok(file) => Ok(file.into()),
            Err(Errno::EBADF | Errno::ESRCH) => {
                let path = format!("/proc/{}/fd/{fd}", self.pid);
                Err(ProcError::Read { path, source: Errno::ENOENT.into() }.into())
            }
            Err(errno) => Err(InspectError::kernel("duplicate a descriptor", self.pid, errno)),
        }
    }
}

/// Reads what the kernel says of one descriptor; a socket is not asked.
pub(crate) fn descriptor(pid: i32, fd: i32) -> Result<DescriptorFacts, InspectError> {
    let asked = Asked { flags: Flags::Exact, depth: Depth::Shape, now: false, groups: &[] };
    Place::open(pid)?.read(fd, asked)
}

fn entries(process: &Process, flags: Flags, known: Option<&[Entry]>) -> Result<Vec<Entry>, InspectError> {
    if flags == Flags::Remembered
        && process.stat.rss_pages > SMALL_PAGES
        && let Some(known) = known
    {
        let now = own_lines_out(maps::read_maps(process.pid)?);
        let same = now.len() == known.len() && now.iter().zip(known).all(|(a, b)| a.same_line(b));
        if same {
            return Ok(known.to_vec());
        }
    }
    Ok(own_lines_out(maps::read_smaps(process.pid)?))
}

/// The lines of a process's mappings without those of this engine's tape.
fn own_lines_out(mut entries: Vec<Entry>) -> Vec<Entry> {
    entries.retain(|entry| !traced::is_tape(&entry.name));
    entries
}

/// What a socket is. `None`: it is none, its number is another file's by now.
fn socket(pid: i32, socket: &File, asked: Asked<'_>) -> Result<Option<SocketFacts>, InspectError> {
    let kind = match sockets::kind(socket.as_fd(), asked.now) {
        Ok(kind) => kind,
        Err(Errno::ENOTSOCK) => return Ok(None),
        Err(errno) => return Err(InspectError::kernel("ask a socket", pid, errno)),
    };
    let fail = |errno| InspectError::kernel("ask a socket for its filter", pid, errno);
    let (kind, filtered) = match sockets::has_filter(socket.as_fd()).map_err(fail)? {
        Ok(filtered) => (kind, filtered),
        Err(reason) => (kind.and(Err(reason)), false),
    };
    let groups = match kind {
        Ok(Kind::Udp { .. } | Kind::Raw { .. }) => multicast::memberships(socket.as_fd(), asked.groups)
            .map_err(|errno| InspectError::kernel("ask a socket for memberships", pid, errno))?
            .into_iter()
            .map(|(group, _)| (group.interface, group.address))
            .collect(),
        _ => Vec::new(),
    };
    Ok(Some(SocketFacts { kind, filtered, groups }))
}
