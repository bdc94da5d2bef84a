//! Unix sockets: who is connected to whom, and what waits in them.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::linux::fs::MetadataExt;

use image::namespaces::{path_in, split_path};
use image::sockets::{PeerCredentials, Unix, UnixMessage, UnixState};
use sys::diag::{Diag, InetSocket, UnixSocket};
use sys::{Errno, ns, sock};

use super::files::Context;
use super::options::Reader;
use super::raw::RawSockets;
use super::table::{Open, Table};
use crate::proc::fdinfo;
use crate::source::descriptor::{Class, Descriptor};
use crate::source::error::TRY_AGAIN;
use crate::source::facts;
use crate::source::sockets::{self, Kind, tcp_state};
use crate::source::tree::Process;
use crate::source::{InspectError, SourceError};

/// The kernel's list of unix sockets, and what is asked of the others there, by inode.
#[derive(Debug, Default)]
pub(crate) struct Peers {
    sockets: HashMap<u64, UnixSocket>,
    /// Those that wait to be accepted.
    waiting: HashSet<u64>,
    /// How UDP sockets were shut down, of which nothing else tells as a whole.
    udp: HashMap<u64, u8>,
    /// TCP sockets that are just connecting, whose peers nothing else tells.
    connecting: HashMap<u64, InetSocket>,
    /// Raw, ping and packet sockets.
    pub(crate) raw: RawSockets,
}

/// What is asked of the kernel.
#[derive(Debug, Default)]
pub(crate) struct Wanted {
    pub(crate) unix: bool,
    /// Protocols like UDP.
    pub(crate) udp: BTreeSet<u8>,
    pub(crate) connecting: bool,
    pub(crate) raw: bool,
    pub(crate) packet: bool,
}

pub(crate) const OUTSIDE: &str = "give it to the container as an external file, or close it before the move";
const CLOSE: &str = "have the program close it before the move";
/// Kernel numbers of unix socket states.
const CONNECTED: u8 = 1;
const LISTENING: u8 = 10;
const BOTH_WAYS: u8 = 3;
const SO_PASSPIDFD: i32 = 76;

impl Peers {
    /// Asks the kernel, in the network namespace of the tree.
    pub(crate) fn list(root: i32) -> Result<Self, InspectError> {
        Self::list_with(root, &Wanted { unix: true, ..Wanted::default() })
    }

    /// As [`Peers::list`], for what is wanted.
    pub(crate) fn list_with(root: i32, wanted: &Wanted) -> Result<Self, InspectError> {
        let fail = |errno| InspectError::kernel("list sockets", root, errno);
        let netns = ns::open(root, ns::Kind::Net).map_err(fail)?;
        let list = || -> sys::Result<Self> {
            let mut diag = Diag::open()?;
            let mut found = Self::default();
            if wanted.unix {
                let sockets = diag.unix()?.into_iter();
                found.sockets = sockets.map(|socket| (u64::from(socket.inode), socket)).collect();
                let waiting = found.sockets.values().flat_map(|socket| &socket.pending);
                found.waiting = waiting.map(|inode| u64::from(*inode)).collect();
            }
            for protocol in &wanted.udp {
                let sockets = diag.inet(*protocol)?.into_iter();
                found.udp.extend(sockets.map(|socket| (u64::from(socket.inode), socket.shutdown)));
            }
            if wanted.connecting {
                let sockets = diag.inet_in(6, 1 << tcp_state::SYN_SENT)?.into_iter();
                found.connecting = sockets.map(|socket| (u64::from(socket.inode), socket)).collect();
            }
            if wanted.raw || wanted.packet {
                found.raw = RawSockets::list(root, &mut diag, wanted.packet)?;
            }
            Ok(found)
        };
        ns::in_netns(netns.as_fd(), list).map_err(fail)?.map_err(fail)
    }

    /// A TCP socket that is just connecting.
    pub(crate) fn connecting(&self, open: &Open) -> Option<&InetSocket> {
        self.connecting.get(&open.key.1)
    }

    /// How a UDP socket was shut down: bit 0 = reading, bit 1 = writing. One that is not bound is not listed.
    pub(crate) fn udp_shutdown(&self, open: &Open) -> u8 {
        self.udp.get(&open.key.1).copied().unwrap_or(0)
    }

    /// The inode of a socket's peer.
    pub(crate) fn peer_of(&self, inode: u64) -> Option<u64> {
        let peer = self.sockets.get(&inode)?.peer?;
        (peer != 0).then_some(u64::from(peer))
    }

    /// Whether a message can come from this name again: from a socket of the tree, from none, or from one whose abstract
    /// name is free by now.
    fn can_send(&self, name: &[u8], tree: &HashMap<u64, u32>) -> bool {
        let mut named =
            self.sockets.values().filter(|socket| socket.name.as_deref() == Some(name)).peekable();
        name.is_empty()
            || name[0] == 0 && named.peek().is_none()
            || named.any(|socket| tree.contains_key(&u64::from(socket.inode)))
    }

    /// The sockets that wait to be accepted by a listening one, in their order, by the ids of their descriptions. `None` when
    /// one of them is outside of the tree or has sent something: nobody can look at that.
    fn waiting_for(&self, listener: &UnixSocket, tree: &HashMap<u64, u32>) -> Option<Vec<u32>> {
        let all = listener.pending.len() == usize::try_from(listener.unread).ok()?;
        let one = |inode: &u32| {
            let inode = u64::from(*inode);
            let id = tree.get(&inode)?;
            (self.sockets.get(&inode)?.unacked == 0).then_some(*id)
        };
        if all { listener.pending.iter().map(one).collect() } else { None }
    }

    fn of(&self, open: &Open) -> Option<&UnixSocket> {
        self.sockets.get(&open.key.1)
    }
}

/// Reads every unix socket, by the id of its description. Descriptors in flight are added to the table.
pub(crate) fn capture(
    table: &mut Table,
    context: &mut Context<'_>,
) -> Result<HashMap<u32, Unix>, SourceError> {
    let mut queues = HashMap::new();
    let mut next = 0;
    // The table grows by what is in flight, which may be unix sockets with queues again.
    while let Some(open) = table.open.get(next) {
        next += 1;
        if open.class != Class::Socket || sock::domain(open.file.as_fd()) != Ok(libc::AF_UNIX) {
            continue;
        }
        let id = open.id;
        let queue = queue(open, context)?;
        let mut messages = Vec::with_capacity(queue.len());
        for received in queue {
            let mut files = Vec::with_capacity(received.fds.len());
            for fd in received.fds {
                files.push(in_flight(table, fd, context)?);
            }
            messages.push(UnixMessage {
                data: received.data,
                files,
                from: match received.from {
                    Some(sock::Address::Unix(name)) => name,
                    _ => Vec::new(),
                },
            });
        }
        queues.insert(id, messages);
    }
    let by_inode: HashMap<u64, u32> =
        queues.keys().filter_map(|id| Some((table.get(*id)?.key.1, *id))).collect();
    let mut options = Reader::default();
    let mut all = HashMap::new();
    for (id, queue) in queues {
        if let Some(open) = table.get(id) {
            all.insert(id, one(open, queue, (table, &by_inode), &mut options, context)?);
        }
    }
    Ok(all)
}

fn queue(open: &Open, context: &mut Context<'_>) -> Result<Vec<sock::Received>, SourceError> {
    // A listening socket's queue holds connections, not data.
    let known = context.unix.of(open);
    let fd = open.file.as_fd();
    let fail = |errno| SourceError::kernel("ask a unix socket", open.holder_pid, errno);
    let stream = sock::kind(fd) == Ok(libc::SOCK_STREAM);
    // Looking at messages would take it away.
    if !stream && sock::events(fd, 0).map_err(fail)? & libc::POLLERR != 0 {
        let (pid, number) = open.holder;
        context.findings.fd(pid, number, "unix socket with an error that waits to be told", TRY_AGAIN);
        return Ok(Vec::new());
    }
    if known.is_some_and(|socket| socket.state == LISTENING) {
        return Ok(Vec::new());
    }
    // In a stream there is no message without a byte.
    if stream && known.is_some_and(|socket| socket.unread == 0) {
        return Ok(Vec::new());
    }
    if stream && sock::receive(fd, 1, libc::MSG_OOB | libc::MSG_PEEK | libc::MSG_DONTWAIT).is_ok() {
        let (pid, number) = open.holder;
        context.findings.fd(
            pid,
            number,
            "unix socket with a byte out of band (MSG_OOB) that waits",
            TRY_AGAIN,
        );
    }
    match sock::peek_queue(fd) {
        Ok(queue) => {
            let told = |name| sock::get_int(fd, libc::SOL_SOCKET, name).is_ok_and(|value| value != 0);
            if !queue.is_empty() && (told(libc::SO_PASSCRED) || told(SO_PASSPIDFD)) {
                let (pid, number) = open.holder;
                context.findings.fd(
                    pid,
                    number,
                    "messages wait in a unix socket with their senders' credentials (SO_PASSCRED): not carried yet",
                    TRY_AGAIN,
                );
            }
            Ok(queue)
        }
        // Not connected, or reset by its peer: nothing can be read from it.
        Err(Errno::EINVAL | Errno::ENOTCONN | Errno::ECONNRESET) => Ok(Vec::new()),
        Err(Errno::EOPNOTSUPP) => {
            let (pid, fd) = open.holder;
            context.findings.fd(pid, fd, "unix socket whose queue cannot be read", CLOSE);
            Ok(Vec::new())
        }
        Err(errno) => Err(SourceError::kernel("read what waits in a unix socket", open.holder_pid, errno)),
    }
}

/// Puts a descriptor that was in flight into the table.
fn in_flight(table: &mut Table, fd: OwnedFd, context: &mut Context<'_>) -> Result<u32, SourceError> {
    let number = fd.as_raw_fd();
    let own = i32::try_from(std::process::id()).unwrap_or(0);
    let facts = facts::descriptor(own, number)?;
    let key = crate::proc::links::identity(&facts.metadata);
    let process = Process {
        parents: Vec::new(),
        pid: own,
        inner: 0,
        parent: 0,
        depth: 0,
        levels: Vec::new(),
        stat: crate::proc::stat::Stat::default(),
        status: crate::proc::status::Status::default(),
        tids: Vec::new(),
    };
    let described = context.reader(|reader, externals| reader.descriptor(&process, facts, externals))?;
    let descriptor = match described {
        Some(descriptor) => descriptor,
        None => Descriptor { fd: number, info: fdinfo::read(own, number)?, key, class: Class::Refused },
    };
    table.add_received(fd, &descriptor)
}

fn one(
    open: &Open,
    queue: Vec<UnixMessage>,
    (table, by_inode): (&Table, &HashMap<u64, u32>),
    options: &mut Reader,
    context: &mut Context<'_>,
) -> Result<Unix, SourceError> {
    let fd = open.file.as_fd();
    let (pid, number) = open.holder;
    let fail = |what: &str, errno| SourceError::kernel(what, open.holder_pid, errno);
    let sock_type = match sockets::kind(fd, true).map_err(|errno| fail("ask a socket", errno))? {
        Ok(Kind::Unix(sock_type)) => sock_type,
        Ok(_) => libc::SOCK_STREAM,
        Err((reason, way_out)) => {
            context.findings.fd(pid, number, reason, way_out);
            libc::SOCK_STREAM
        }
    };
    let Some(socket) = context.unix.of(open).cloned() else {
        context.findings.fd(pid, number, "unix socket of another network namespace", CLOSE);
        return Ok(empty(sock_type));
    };
    let name = socket.name.clone().unwrap_or_default();
    let name = placed(name, &socket, open, context)?;
    let (name_exists, file_mode) = bound_file(&name, &socket, context);
    let state = match (socket.state, socket.peer) {
        (LISTENING, _) => {
            let waiting = context.unix.waiting_for(&socket, by_inode);
            if waiting.is_none() {
                let reason = "connections to a unix socket wait to be accepted, and have sent something, have \
                              closed or come from outside";
                let way_out = "try again in a moment; a program that never accepts must be ended";
                context.findings.fd(pid, number, reason, way_out);
            }
            UnixState::Listen { backlog: socket.unacked, waiting: waiting.unwrap_or_default() }
        }
        _ if context.unix.waiting.contains(&open.key.1) => {
            UnixState::Waiting { by: connected_by(open, table, context) }
        }
        (_, Some(peer)) if peer != 0 => match by_inode.get(&u64::from(peer)) {
            Some(&peer) => UnixState::Connected { peer },
            None => {
                context.findings.fd(
                    pid,
                    number,
                    "unix socket whose peer is outside of the container",
                    OUTSIDE,
                );
                UnixState::Unconnected
            }
        },
        // connect(2) to a datagram socket gives both this state; only the one that connected has a peer.
        (CONNECTED, None) if sock_type == libc::SOCK_DGRAM => UnixState::Unconnected,
        (CONNECTED, _) => UnixState::PeerClosed,
        _ if socket.shutdown == BOTH_WAYS && sock_type != libc::SOCK_DGRAM => UnixState::PeerClosed,
        _ => UnixState::Unconnected,
    };
    let peers_own = match state {
        UnixState::Connected { .. } => context.unix.peer_of(socket.peer.map_or(0, u64::from)),
        _ => None,
    };
    if !queue.is_empty()
        && sock_type == libc::SOCK_DGRAM
        && state != UnixState::PeerClosed
        && peers_own != Some(open.key.1)
    {
        let reason = if name.is_empty() || name[0] != 0 && !name_exists {
            Some("datagrams wait in a unix socket that has no name any more")
        } else if queue.iter().any(|message| !context.unix.can_send(&message.from, by_inode)) {
            Some("datagrams wait in a unix socket whose sender has closed, or is outside of the container")
        } else {
            None
        };
        if let Some(reason) = reason {
            context.findings.fd(pid, number, reason, TRY_AGAIN);
        }
    }
    Ok(Unix {
        sock_type,
        reset: sock_type == libc::SOCK_STREAM
            && sock::events(fd, 0).map_err(|errno| fail("ask a socket", errno))? & libc::POLLERR != 0,
        options: options
            .options(fd, libc::AF_UNIX, sock_type, 0)
            .map_err(|errno| fail("read socket options", errno))?,
        name,
        name_exists,
        file_mode,
        state,
        queue,
        shutdown: socket.shutdown,
        peer_credentials: peer_credentials(fd, context),
    })
}

/// Who has connected a socket that nobody has accepted: the process that has it open, when it is the only one.
fn connected_by(open: &Open, table: &Table, context: &mut Context<'_>) -> Option<PeerCredentials> {
    let holders: BTreeSet<i32> =
        table.numbers.iter().filter(|(_, id)| **id == open.id).map(|((pid, _), _)| *pid).collect();
    let process = match (holders.len(), holders.first()) {
        (1, Some(task)) => super::files::live(context.look).find(|found| found.process.tids.contains(task)),
        _ => None,
    };
    let ids = &context.view.ids;
    let by = process.and_then(|found| {
        let status = &found.process.status;
        let (uid, gid) = (ids.uid.inside(status.uid[1])?, ids.gid.inside(status.gid[1])?);
        let groups = status.groups.iter().filter_map(|group| ids.gid.inside(*group)).collect();
        Some(PeerCredentials { pid: found.process.inner, uid, gid, groups })
    });
    if by.is_none() {
        let (pid, number) = open.holder;
        let reason = "unix socket that waits to be accepted, and which process has connected it is not known";
        context.findings.fd(pid, number, reason, TRY_AGAIN);
    }
    by
}

/// Who is said to have made the other end, if that process is still there.
fn peer_credentials(fd: BorrowedFd<'_>, context: &Context<'_>) -> Option<PeerCredentials> {
    let mut bytes = [0; 12];
    sock::get_into(fd, libc::SOL_SOCKET, libc::SO_PEERCRED, &mut bytes).ok()?;
    let [pid, uid, gid] = [0, 4, 8].map(|at| sockets::word(&bytes, at));
    let pid = pid.cast_signed();
    let found = super::files::live(context.look).find(|found| found.process.pid == pid)?;
    let ids = &context.view.ids;
    Some(PeerCredentials {
        pid: found.process.inner,
        uid: ids.uid.inside(uid)?,
        gid: ids.gid.inside(gid)?,
        groups: peer_groups(fd)?.iter().filter_map(|group| ids.gid.inside(*group)).collect(),
    })
}

/// SO_PEERGROUPS.
fn peer_groups(fd: BorrowedFd<'_>) -> Option<Vec<u32>> {
    // Most have none. NGROUPS_MAX is 65536.
    for space in [256, 4 * 65536] {
        let mut bytes = vec![0; space];
        match sock::get_into(fd, libc::SOL_SOCKET, libc::SO_PEERGROUPS, &mut bytes) {
            Ok(length) => return Some((0..length).step_by(4).map(|at| sockets::word(&bytes, at)).collect()),
            Err(Errno::ERANGE) => {}
            Err(_) => return None,
        }
    }
    None
}

fn empty(sock_type: i32) -> Unix {
    Unix {
        sock_type,
        options: Vec::new(),
        name: Vec::new(),
        name_exists: false,
        file_mode: (0, 0, 0),
        state: UnixState::Unconnected,
        queue: Vec::new(),
        shutdown: 0,
        reset: false,
        peer_credentials: None,
    }
}

/// The name of a bound socket; of one whose file is on a mount of a nested namespace, with that, as [`path_in`] writes it.
fn placed(
    name: Vec<u8>,
    socket: &UnixSocket,
    open: &Open,
    context: &Context<'_>,
) -> Result<Vec<u8>, SourceError> {
    if context.view.spaces.is_empty() || socket.file.is_none() || name.first().is_none_or(|byte| *byte == 0) {
        return Ok(name);
    }
    let fail = |errno| SourceError::kernel("ask a unix socket for its file", open.holder_pid, errno);
    let file = sock::unix_file(open.file.as_fd()).map_err(fail)?;
    let own = i32::try_from(std::process::id()).unwrap_or(0);
    let mount = context.view.mount_of(own, &format!("fd/{}", file.as_raw_fd()))?;
    Ok(path_in(mount.map_or(0, |mount| context.view.spaces.of_mount(mount)), &name))
}

/// Whether the name of a bound socket still leads to it, and the socket file's mode, owner and group.
fn bound_file(name: &[u8], socket: &UnixSocket, context: &Context<'_>) -> (bool, (u32, u32, u32)) {
    let Some((_, inode)) = socket.file.filter(|_| name.first().is_some_and(|byte| *byte != 0)) else {
        return (false, (0, 0, 0));
    };
    // A relative name was bound in a working directory that may be another one by now.
    let mut path = context.view.inside(name);
    if !path.starts_with(b"/") && split_path(name).0 == 0 {
        path.insert(0, b'/');
    }
    match context.view.symlink_metadata(&path) {
        Some(found) if u32::try_from(found.st_ino() & 0xffff_ffff).is_ok_and(|ino| ino == inode) => {
            (true, (found.st_mode(), found.st_uid(), found.st_gid()))
        }
        _ => (false, (0, 0, 0)),
    }
}
