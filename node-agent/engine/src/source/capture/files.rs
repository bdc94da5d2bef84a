//! Open file descriptions, one kind after the other.

use std::collections::{HashMap, HashSet};
use std::os::fd::{AsFd, AsRawFd};

use image::Pid;
use image::files::{EpollTarget, FdEntry, FileKind, Files, OpenFile};
use image::sockets::Unix;
use sys::{Errno, fds};

use crate::account;
use crate::proc::fdinfo::{self, FdInfo, TimerFd};

use super::options::Reader;
use super::pipes::Pipes;
use super::table::{Holder, Open, Table};
use super::tty::Terminals;
use super::{epoll, filters, ghosts, inet, netlink, raw, unix};
use crate::proc::multicast::Group;
use crate::source::descriptor::{Class, O_PATH};
use crate::source::findings::Findings;
use crate::source::look::{self, Look, ProcessLook};
use crate::source::mm::{self, MmReader};
use crate::source::owners;
use crate::source::registry::Registry;
use crate::source::sockets::{self, Kind, Reason, SIGNED, UNSIGNED};
use crate::source::spec::{External, TreeSpec};
use crate::source::view::View;
use crate::source::{InspectError, SourceError, locks, watches};

/// What capturing files yields.
#[derive(Debug, Default)]
pub(crate) struct Captured {
    pub(crate) files: Files,
    /// Descriptor tables, by who has them in the container.
    pub(crate) tables: HashMap<Pid, Vec<FdEntry>>,
}

/// All that is needed on the way.
#[derive(Debug)]
pub(crate) struct Context<'a> {
    pub(crate) look: &'a Look,
    pub(crate) view: &'a View,
    pub(crate) spec: &'a TreeSpec,
    pub(crate) registry: &'a mut Registry,
    pub(crate) findings: &'a mut Findings,
    pub(crate) in_repair: &'a mut Vec<inet::InRepair>,
    pub(crate) unix: unix::Peers,
    /// Multicast groups of the network namespace.
    pub(crate) groups: &'a [Group],
}

impl Context<'_> {
    /// For one more look at a descriptor.
    pub(crate) fn reader<T>(&mut self, work: impl FnOnce(&mut MmReader<'_>, &[External]) -> T) -> T {
        let mut reader = MmReader {
            view: self.view,
            registry: self.registry,
            findings: self.findings,
            mounts: &mut HashMap::new(),
            files: &mut mm::Files::default(),
            tracked: true,
            own_ipc: false,
            left_ipc: false,
        };
        work(&mut reader, &self.spec.externals)
    }
}

/// PIDFD_THREAD of pidfd_open(2), which is O_EXCL.
const PIDFD_THREAD: u32 = 0o200;
const O_CLOEXEC: u32 = 0o2_000_000;
const CLOSE: &str = "have the program close it before the move";

/// Takes a duplicate of every open file description of the tree.
pub(crate) fn collect(look: &Look) -> Result<(Table, HashMap<Pid, Vec<FdEntry>>), SourceError> {
    let mut table = Table::default();
    let mut tables = HashMap::new();
    for (_, table_look) in look::tables(&look.processes) {
        let pid = table_look.task;
        let pidfd =
            sys::pidfd::open_task(pid).map_err(|errno| SourceError::kernel("pidfd_open", pid, errno))?;
        let holder = Holder { pid, inner: table_look.inner, pidfd: pidfd.as_fd() };
        let mut entries = Vec::with_capacity(table_look.descriptors.len());
        for descriptor in table_look.descriptors.iter().filter(|d| d.class != Class::Refused) {
            let file = table.add(holder, descriptor)?;
            table.numbers.insert((pid, descriptor.fd), file);
            entries.push(FdEntry {
                fd: descriptor.fd,
                file,
                cloexec: descriptor.info.flags & O_CLOEXEC != 0,
            });
        }
        tables.insert(table_look.inner, entries);
    }
    Ok((table, tables))
}

pub(crate) fn live(look: &Look) -> impl Iterator<Item = &ProcessLook> {
    look.processes.iter().filter(|found| !found.process.is_zombie())
}

/// Reads everything that hangs on descriptors. TCP connections enter repair mode.
pub(crate) fn capture(context: &mut Context<'_>) -> Result<Captured, SourceError> {
    let (mut table, tables) = collect(context.look)?;
    account::lap("capture.descriptors");
    // Unix sockets first: descriptors in flight are open files too, perhaps sockets again.
    let unix = unix::capture(&mut table, context)?;
    let pipes = Pipes::capture(&table, context.findings)?;
    let terminals = Terminals::capture(&table, context.look, context.spec, context.view, context.findings)?;
    account::lap("capture.pipes");
    let mut options = Reader::default();
    let mut sockets = sockets(&table, &unix, &mut options, context)?;
    account::lap("capture.sockets");
    let mut files = Files::default();
    for open in &table.open {
        let kind = match &open.class {
            Class::Socket => sockets.remove(&open.id).unwrap_or_else(nothing),
            Class::Terminal(end) => match terminals.kind(open, end)? {
                Some(kind) => kind,
                None => {
                    refused(context.findings, open, "a terminal whose master is outside of the container")
                }
            },
            _ => kind(open, &pipes, &table, context)?,
        };
        // fcntl(2) tells nothing of a descriptor that only stands for a path.
        let asked = open.info.flags & O_PATH == 0;
        files.open.push(OpenFile {
            id: open.id,
            flags: open.info.flags & !O_CLOEXEC,
            owner: if asked { owner(open, context)? } else { None },
            owner_signal: if asked { owner_signal(open)? } else { 0 },
            kind,
        });
    }
    files.pipes = pipes.pipes;
    files.terminals = terminals.terminals;
    files.locks = locks::capture(context.look, &table);
    // Now, while what was in a message is held here.
    ghosts::capture(context.registry, &mut files.ghosts, context.findings)?;
    Ok(Captured { files, tables })
}

/// All sockets, by the id of their description. TCP connections enter repair mode.
fn sockets(
    table: &Table,
    unix: &HashMap<u32, Unix>,
    options: &mut Reader,
    context: &mut Context<'_>,
) -> Result<HashMap<u32, FileKind>, SourceError> {
    // What they are was asked since everything stands still, but for those that are only in flight.
    let asked: HashMap<i32, &HashMap<i32, Kind>> =
        look::tables(&context.look.processes).map(|(_, table)| (table.task, &table.sockets)).collect();
    let mut kinds = HashMap::new();
    let mut tcp = Vec::new();
    for open in table.open.iter().filter(|open| open.class == Class::Socket) {
        if let Some(socket) = unix.get(&open.id) {
            kinds.insert(open.id, FileKind::Unix(Box::new(socket.clone())));
            continue;
        }
        let known = asked.get(&open.holder_pid).and_then(|sockets| sockets.get(&open.holder.1));
        let kind = match known {
            Some(kind) => Ok(*kind),
            None => sockets::kind(open.file.as_fd(), true)
                .map_err(|errno| SourceError::kernel("ask a socket", open.holder_pid, errno))?,
        };
        match kind {
            // Only in flight: the kernel's list was not asked for it.
            Ok(Kind::Tcp(socket)) if socket.unexplained && known.is_none() => {
                let kind = Err((SIGNED.to_owned(), UNSIGNED));
                kinds.insert(open.id, other_socket(open, kind, options, context)?);
            }
            Ok(Kind::Tcp(socket)) => tcp.push((open, socket)),
            kind => {
                kinds.insert(open.id, other_socket(open, kind, options, context)?);
            }
        }
    }
    let mut failed = None;
    for ((open, ..), read) in tcp.iter().zip(inet::read_tcp(&tcp, options, &context.unix)?) {
        match read {
            Ok(inet::Read { tcp, in_repair, refusal }) => {
                context.in_repair.extend(in_repair);
                if let Some(reason) = refusal {
                    let (pid, number) = open.holder;
                    context.findings.fd(pid, number, reason, "try again in a moment");
                }
                kinds.insert(open.id, FileKind::Tcp(Box::new(tcp)));
            }
            Err(error) => failed = failed.or(Some(error)),
        }
    }
    failed.map_or(Ok(()), Err)?;
    let filtered: HashMap<i32, &HashSet<i32>> =
        look::tables(&context.look.processes).map(|(_, table)| (table.task, &table.filtered)).collect();
    for open in table.open.iter().filter(|open| open.class == Class::Socket) {
        let known = asked.get(&open.holder_pid).is_some_and(|sockets| sockets.contains_key(&open.holder.1));
        let has = |filtered: &&HashSet<i32>| filtered.contains(&open.holder.1);
        if let Some(kind) = kinds.get_mut(&open.id)
            && (!known || filtered.get(&open.holder_pid).is_some_and(has))
        {
            filters::add(open, kind, context.findings)?;
        }
    }
    Ok(kinds)
}

fn other_socket(
    open: &Open,
    kind: Result<Kind, Reason>,
    options: &mut Reader,
    context: &mut Context<'_>,
) -> Result<FileKind, SourceError> {
    let (pid, number) = open.holder;
    Ok(match kind {
        Ok(Kind::Udp { family, protocol }) => {
            let shutdown = context.unix.udp_shutdown(open);
            let mut socket = inet::capture_udp(open, family, protocol, options, context.findings)?;
            socket.shutdown |= shutdown;
            socket.memberships = inet::memberships(open, context.groups)?;
            FileKind::Udp(Box::new(socket))
        }
        Ok(Kind::Netlink { socket_type, protocol }) => {
            let socket = netlink::capture(open.file.as_fd(), socket_type, protocol, options)
                .map_err(|errno| SourceError::kernel("read a netlink socket", open.holder_pid, errno))?;
            FileKind::Netlink(Box::new(socket))
        }
        Ok(Kind::Raw { family, socket_type, protocol }) => {
            let mut socket = raw::capture(open, (family, socket_type, protocol), options, context)?;
            socket.memberships = inet::memberships(open, context.groups)?;
            FileKind::Raw(Box::new(socket))
        }
        Ok(Kind::Packet(socket_type)) => match raw::capture_packet(open, socket_type, options, context)? {
            Some(socket) => FileKind::Packet(Box::new(socket)),
            None => nothing(),
        },
        Ok(Kind::Unix(_)) => {
            refused(context.findings, open, "unix socket without an entry in the kernel's list")
        }
        Ok(Kind::Tcp(_)) => nothing(),
        Err((reason, way_out)) => {
            context.findings.fd(pid, number, reason, way_out);
            nothing()
        }
    })
}

/// Stands in for a file that was refused: the capture fails in the end, with all refusals.
fn nothing() -> FileKind {
    FileKind::External { key: String::new() }
}

fn refused(findings: &mut Findings, open: &Open, reason: impl Into<String>) -> FileKind {
    let (pid, number) = open.holder;
    findings.fd(pid, number, reason, CLOSE);
    nothing()
}

fn kind(
    open: &Open,
    pipes: &Pipes,
    table: &Table,
    context: &mut Context<'_>,
) -> Result<FileKind, SourceError> {
    let info = &open.info;
    let fail = |what: &str, errno: Errno| SourceError::kernel(what, open.holder_pid, errno);
    Ok(match &open.class {
        Class::External(key) => FileKind::External { key: key.clone() },
        Class::File { file, directory } => {
            FileKind::Regular { file: file.clone(), pos: info.pos, directory: *directory }
        }
        Class::Device { path, rdev } => FileKind::Device { path: path.clone(), rdev: *rdev },
        Class::Pseudo { path } => FileKind::Pseudo { path: path.clone(), pos: info.pos },
        Class::Pipe { .. } => FileKind::Pipe { pipe: pipes.place(open), write: info.flags & 3 == 1 },
        Class::EventFd => {
            let (count, semaphore) = info.eventfd.unwrap_or_default();
            FileKind::EventFd { count, semaphore }
        }
        Class::TimerFd => {
            let timer = timer(open)?;
            FileKind::TimerFd {
                clock: timer.clock,
                ticks: timer.ticks,
                settime_flags: timer.settime_flags,
                remaining_ns: timer.remaining_ns,
                interval_ns: timer.interval_ns,
            }
        }
        Class::SignalFd => FileKind::SignalFd { mask: info.signalfd.unwrap_or_default() },
        Class::Epoll => FileKind::Epoll {
            targets: epoll_targets(open, table, context)?,
            busy: fds::epoll_busy(open.file.as_fd()).map_err(|errno| fail("EPIOCGPARAMS", errno))?,
        },
        Class::Memfd { object } => FileKind::Memfd { object: *object, pos: info.pos },
        Class::PosixQueue(seen) => FileKind::PosixQueue { queue: seen.queue.id },
        Class::PidFd => match pidfd_of(info, context) {
            Some(pid) => FileKind::PidFd { pid },
            None => refused(context.findings, open, "pidfd of a process that is not in the container"),
        },
        Class::Inotify => {
            let queued = sys::tcp::inq(open.file.as_fd()).map_err(|errno| fail("FIONREAD", errno))?;
            match watches::paths(open.holder_pid, &open.info.inotify, context.view)? {
                Ok(watches) if queued == 0 => FileKind::Inotify { watches },
                Ok(_) => refused(context.findings, open, "inotify with events that wait to be read"),
                Err(_) => refused(context.findings, open, "inotify watch of a file without a path"),
            }
        }
        Class::Socket | Class::Terminal(_) | Class::Refused => nothing(),
    })
}

/// Whom a pidfd names: one that was opened with PIDFD_THREAD a thread.
fn pidfd_of(info: &FdInfo, context: &Context<'_>) -> Option<Pid> {
    let processes = &context.look.processes;
    let number = info.pidfd?;
    if info.flags & PIDFD_THREAD != 0 {
        owners::inner_tid(number, processes)
    } else {
        owners::inner_pid(number, processes)
    }
}

/// A timer. The kernel starts the next period of one that has run out, and counts those that have passed since, only
/// when somebody reads it or asks for the time that is left: until then fdinfo shows one tick and no time left.
fn timer(open: &Open) -> Result<TimerFd, SourceError> {
    const TRIES: u32 = 3;
    let fail = |errno| SourceError::kernel("read a timer", open.holder_pid, errno);
    let mut timer = open.info.timerfd.unwrap_or_default();
    let own = i32::try_from(std::process::id()).unwrap_or(0);
    for _ in 0..TRIES {
        if timer.interval_ns == 0 || timer.ticks == 0 || timer.remaining_ns != 0 {
            return Ok(timer);
        }
        fds::timerfd_get(open.file.as_fd()).map_err(fail)?;
        let now = fdinfo::read(own, open.file.as_raw_fd()).map_err(InspectError::from)?;
        timer = now.timerfd.unwrap_or_default();
    }
    // Its period is shorter than asking takes.
    timer.remaining_ns = timer.interval_ns;
    Ok(timer)
}

fn epoll_targets(
    open: &Open,
    table: &Table,
    context: &mut Context<'_>,
) -> Result<Vec<EpollTarget>, SourceError> {
    let (targets, missing) = epoll::targets(open, table, context.look)
        .map_err(|errno| InspectError::kernel("find what epoll watches", open.holder_pid, errno))?;
    for number in missing {
        let (pid, fd) = open.holder;
        context.findings.fd(
            pid,
            fd,
            format!(
                "epoll watches a file added as descriptor {number} that no process of the container has open"
            ),
            CLOSE,
        );
    }
    Ok(targets)
}

fn owner_signal(open: &Open) -> Result<i32, SourceError> {
    fds::owner_signal(open.file.as_fd())
        .map_err(|errno| SourceError::kernel("F_GETSIG", open.holder_pid, errno))
}

fn owner(open: &Open, context: &mut Context<'_>) -> Result<Option<(i32, Pid)>, SourceError> {
    let directory = matches!(open.class, Class::File { directory: true, .. });
    let asked = owners::of(open.file.as_fd(), directory, &context.look.processes)
        .map_err(|errno| SourceError::kernel("F_GETOWN_EX", open.holder_pid, errno))?;
    let (pid, number) = open.holder;
    Ok(asked.unwrap_or_else(|refused| {
        refused.tell(pid, number, context.findings);
        None
    }))
}
