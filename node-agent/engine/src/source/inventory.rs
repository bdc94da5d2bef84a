//! Everything that a tree has, item by item, with the verdict on each.

use std::collections::BTreeMap;
use std::os::fd::AsFd;

use image::shape::{Backing, ObjectKind, Shape, Vma};
use image::{Pid, Refusal, Subject};
use sys::sock::{self, Address};

use super::descriptor::{Class, Descriptor};
use super::look::{Look, ProcessLook, TableLook};
use super::sockets::{Kind, tcp_state};

/// One thing that a tree has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// `process`, `thread`, `memory`, `descriptor`, `mount` or `container`.
    pub kind: &'static str,
    /// The process that has it, in the numbering of the container; 0 when it is the container's own.
    pub pid: Pid,
    /// Which part of the process.
    pub subject: Subject,
    /// What it is.
    pub what: String,
    /// Why it cannot move; `None` = it moves.
    pub refusal: Option<Refusal>,
}

/// Refusals that have not found their item yet, in the order in which they were found.
struct Open<'a>(Vec<Option<&'a Refusal>>);

impl Open<'_> {
    /// The first one about this part.
    fn take(&mut self, pid: Pid, subject: &Subject) -> Option<Refusal> {
        let about = |refusal: &Refusal| refusal.pid == pid && refusal.subject == *subject;
        let found = self.0.iter_mut().find(|refusal| refusal.is_some_and(about))?;
        found.take().cloned()
    }
}

/// Lists it: processes with their memory and descriptors, then what stands against the move besides.
pub(crate) fn list(look: &Look, refusals: &[Refusal]) -> Vec<Item> {
    let mut open = Open(refusals.iter().map(Some).collect());
    let mut items = Vec::new();
    for found in &look.processes {
        let pid = found.process.inner;
        let mut add = |kind, subject: Subject, what| {
            let refusal = open.take(pid, &subject);
            items.push(Item { kind, pid, subject, what, refusal });
        };
        add("process", Subject::Process, process(found, look));
        for (what, start) in memory(found, &look.shape) {
            // What is refused of it has a row of its own.
            add("memory", Subject::Address(start), what);
        }
        for table in &found.tables {
            for descriptor in &table.descriptors {
                add("descriptor", Subject::Fd(descriptor.fd), describe(table, descriptor));
            }
        }
    }
    for refusal in open.0.into_iter().flatten() {
        let kind = match refusal.subject {
            Subject::Process => "process",
            Subject::Thread(_) => "thread",
            Subject::Fd(_) => "descriptor",
            Subject::Address(_) => "memory",
            Subject::Mount(_) => "mount",
            Subject::Container => "container",
        };
        items.push(Item {
            kind,
            pid: refusal.pid,
            subject: refusal.subject.clone(),
            what: String::new(),
            refusal: Some(refusal.clone()),
        });
    }
    items
}

fn process(found: &ProcessLook, look: &Look) -> String {
    let shape = look.shape.processes.iter().find(|shape| shape.pid == found.process.inner);
    let exe = shape.map(|shape| shape.mm.exe.path.as_str()).filter(|path| !path.is_empty());
    let name = exe.map_or_else(|| String::from_utf8_lossy(&found.process.status.name), Into::into);
    if found.process.is_zombie() {
        return format!("{name}, which has ended and was not waited for");
    }
    match found.process.tids.len() {
        1 => name.into_owned(),
        threads => format!("{name}, {threads} threads"),
    }
}

/// What is behind mappings, those with the same behind them as one; with the first address.
fn memory(found: &ProcessLook, shape: &Shape) -> Vec<(String, u64)> {
    let mut groups: BTreeMap<String, (u64, usize, u64)> = BTreeMap::new();
    for mapping in &found.mappings {
        let vma = &mapping.vma;
        let group = groups.entry(behind(vma, shape)).or_insert((vma.start, 0, 0));
        group.1 += 1;
        group.2 += vma.len();
    }
    let text = |(what, (start, count, bytes)): (String, (u64, usize, u64))| {
        let mappings = if count == 1 { String::new() } else { format!(", {count} mappings") };
        (format!("{what}, {} KiB{mappings}", bytes >> 10), start)
    };
    let mut rows: Vec<(String, u64)> = groups.into_iter().map(text).collect();
    rows.sort_by_key(|(_, start)| *start);
    rows
}

fn behind(vma: &Vma, shape: &Shape) -> String {
    match &vma.backing {
        Backing::Anonymous if vma.huge != 0 => format!("private huge pages of {} KiB", vma.huge >> 10),
        Backing::Anonymous => "private memory".to_owned(),
        Backing::File { file, shared, .. } => {
            let shared = if *shared { ", shared" } else { "" };
            let deleted = if file.ghost.is_some() { " (deleted)" } else { "" };
            format!("{}{deleted}{shared}", file.path)
        }
        Backing::Object { id, .. } => match shape.objects.iter().find(|object| object.id == *id) {
            Some(object) => match &object.kind {
                ObjectKind::SharedAnonymous => "shared memory".to_owned(),
                ObjectKind::Memfd { name, .. } => format!("memory file {name}"),
                ObjectKind::Segment(segment) => format!("System V shared memory {}", segment.id),
            },
            None => "shared memory".to_owned(),
        },
        Backing::Vdso => "[vdso]".to_owned(),
        Backing::Vvar(name) => name.clone(),
    }
}

fn describe(found: &TableLook, descriptor: &Descriptor) -> String {
    match &descriptor.class {
        Class::External(key) => format!("from the runtime: {key}"),
        Class::File { file, directory } => {
            let deleted = if file.ghost.is_some() { " (deleted)" } else { "" };
            let kind = if *directory { "directory" } else { "file" };
            format!("{kind} {}{deleted}", file.path)
        }
        Class::Device { path, .. } => format!("device {path}"),
        Class::Pseudo { path } => format!("file {path}"),
        Class::Pipe { fifo: Some(path) } => format!("fifo {path}"),
        Class::Pipe { fifo: None } => format!("pipe {}", descriptor.key.1),
        Class::Terminal(end) => match end.index {
            Some(index) => format!("terminal /dev/pts/{index}"),
            None => "terminal".to_owned(),
        },
        Class::EventFd => "eventfd".to_owned(),
        Class::TimerFd => "timerfd".to_owned(),
        Class::SignalFd => "signalfd".to_owned(),
        Class::Epoll => "epoll".to_owned(),
        Class::Inotify => "inotify".to_owned(),
        Class::PidFd => "pidfd".to_owned(),
        Class::Memfd { .. } => "memory file".to_owned(),
        Class::Socket => socket(found, descriptor.fd),
        Class::PosixQueue(seen) => {
            format!("POSIX message queue /{}", String::from_utf8_lossy(&seen.queue.name))
        }
        Class::Refused => String::new(),
    }
}

fn socket(found: &TableLook, fd: i32) -> String {
    let kind = found.sockets.get(&fd);
    let names = names(found.task, fd);
    let (own, peer) = names.as_ref().map_or((None, None), |(own, peer)| (address(own), address(peer)));
    let own = own.unwrap_or_else(|| "unbound".to_owned());
    let ends = match &peer {
        Some(peer) => format!("{own} to {peer}"),
        None => own.clone(),
    };
    match kind {
        Some(Kind::Tcp(tcp)) => {
            let name = if tcp.protocol == libc::IPPROTO_TCP { "TCP" } else { "multipath TCP" };
            if tcp.state == tcp_state::LISTEN {
                format!("{name} listening on {own}")
            } else {
                format!("{name} {ends}")
            }
        }
        Some(Kind::Udp { .. }) => format!("UDP {ends}"),
        Some(Kind::Unix(socket_type)) => {
            let form = match *socket_type {
                libc::SOCK_STREAM => "stream",
                libc::SOCK_DGRAM => "datagram",
                _ => "packet",
            };
            match names.and_then(|(own, _)| address(&own)) {
                Some(name) => format!("unix {form} socket {name}"),
                None => format!("unix {form} socket"),
            }
        }
        Some(Kind::Netlink { .. }) => "netlink socket".to_owned(),
        Some(Kind::Raw { socket_type: libc::SOCK_RAW, protocol, .. }) => {
            format!("raw socket of protocol {protocol}")
        }
        Some(Kind::Raw { .. }) => "ping socket".to_owned(),
        Some(Kind::Packet(_)) => "packet socket".to_owned(),
        None => "socket".to_owned(),
    }
}

/// Its own name and its peer's, when it can still be asked.
fn names(pid: i32, fd: i32) -> Option<(Address, Address)> {
    let pidfd = sys::pidfd::open_task(pid).ok()?;
    let socket = sys::pidfd::getfd(pidfd.as_fd(), fd).ok()?;
    let own = sock::local_name(socket.as_fd()).ok()?;
    // One that is not connected has no peer.
    let peer = sock::peer_name(socket.as_fd()).unwrap_or(Address::Other(Vec::new()));
    Some((own, peer))
}

fn address(name: &Address) -> Option<String> {
    match name {
        Address::Inet(address) if address.port() == 0 => None,
        Address::Inet(address) => Some(address.to_string()),
        Address::Unix(name) => match name.split_first() {
            None => None,
            Some((0, rest)) => Some(format!("@{}", String::from_utf8_lossy(rest))),
            Some(_) => Some(String::from_utf8_lossy(name).into_owned()),
        },
        Address::Other(_) => None,
    }
}
