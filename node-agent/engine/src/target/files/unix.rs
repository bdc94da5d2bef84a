//! Unix sockets: pairs, names, listeners, connections, and what is queued in them.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use image::files::{FileKind, Files, OpenFile};
use image::namespaces::split_path;
use image::sockets::{PeerCredentials, Unix, UnixState};
use libc::{AF_UNIX, SYS_bind, SYS_chdir, SYS_close};
use nix::fcntl::{AtFlags, OFlag};
use nix::unistd::{UnlinkatFlags, unlinkat};
use sys::ns::Kind;
use sys::sock::{self, Address};

use super::makers;
use super::sockets::{how_shut, set_options};
use super::{Descriptions, Workshop, fail, fail_errno, refuse};
use crate::target::error::TargetError;
use crate::target::script::{Block, call};

/// A socket file that lay where one of ours had to be bound: kept under another name until the restore is
/// final, because a shared file system may be the source's, which needs it when the migration is given up.
#[derive(Debug)]
pub(crate) struct Aside {
    dir: File,
    name: String,
    kept: String,
}

impl Aside {
    /// Puts the old socket file back.
    pub(crate) fn undo(&self) {
        let _ = nix::fcntl::renameat(&self.dir, self.kept.as_str(), &self.dir, self.name.as_str());
    }

    /// The old socket file is of no use any more.
    pub(crate) fn forget(&self) {
        let _ = unlinkat(&self.dir, self.kept.as_str(), UnlinkatFlags::NoRemoveDir);
    }
}

/// The unix sockets of an image, by the id of their description.
fn all_unix(files: &Files) -> BTreeMap<u32, (&OpenFile, &Unix)> {
    files
        .open
        .iter()
        .filter_map(|f| if let FileKind::Unix(u) = &f.kind { Some((f.id, (f, u.as_ref()))) } else { None })
        .collect()
}

/// Makes every unix socket, connected and bound, with empty queues.
pub(super) fn make(
    files: &Files,
    all: &mut Descriptions,
    shop: &mut Workshop<'_>,
) -> Result<(), TargetError> {
    let sockets = all_unix(files);
    // Listeners first: what they accepted has their name.
    for (file, socket) in sockets.values() {
        if let UnixState::Listen { backlog, .. } = socket.state {
            let fd = single(file, socket, all, shop)?;
            let backlog = i32::try_from(backlog).unwrap_or(i32::MAX);
            makers::listen(file, fd.as_fd(), backlog, socket.peer_credentials.as_ref(), shop)?;
            all.put(file.id, fd);
        }
    }
    for (file, socket) in sockets.values() {
        if all.has(file.id) {
            continue;
        }
        match socket.state {
            UnixState::Listen { .. } | UnixState::Waiting { .. } => {}
            UnixState::Unconnected => {
                let fd = single(file, socket, all, shop)?;
                all.put(file.id, fd);
            }
            UnixState::Connected { peer } => connected(file, socket, peer, &sockets, all, shop)?,
            UnixState::PeerClosed => lonely(file, socket, &sockets, all, shop)?,
        }
    }
    // Those that were accepted have come out of the same queues.
    for (_, listening) in sockets.values() {
        let UnixState::Listen { waiting, .. } = &listening.state else { continue };
        for id in waiting {
            let (file, socket) =
                sockets.get(id).ok_or_else(|| TargetError::Image(format!("unix socket {id} is missing")))?;
            let UnixState::Waiting { by } = &socket.state else {
                return Err(TargetError::Image(format!("unix socket {id} does not wait")));
            };
            let fd = connect(file, socket, listening, by.as_ref(), all, shop)?;
            set_options(file, fd.as_fd(), &socket.options)?;
            all.put(*id, fd);
        }
    }
    Ok(())
}

/// A socket that is not connected, with its options and name.
fn single(
    file: &OpenFile,
    socket: &Unix,
    all: &mut Descriptions,
    shop: &mut Workshop<'_>,
) -> Result<OwnedFd, TargetError> {
    let fd = sock::socket(AF_UNIX, socket.sock_type, 0).map_err(fail_errno(file, "socket"))?;
    set_options(file, fd.as_fd(), &socket.options)?;
    bind(file, socket, fd.as_fd(), all, shop)?;
    Ok(fd)
}

fn bind(
    file: &OpenFile,
    socket: &Unix,
    fd: BorrowedFd<'_>,
    all: &mut Descriptions,
    shop: &mut Workshop<'_>,
) -> Result<(), TargetError> {
    match socket.name.first() {
        None => Ok(()),
        // An abstract name belongs to the network namespace that this thread is in.
        Some(0) => sock::bind(fd, &Address::Unix(socket.name.clone())).map_err(fail_errno(file, "bind")),
        Some(_) => bind_path(file, socket, fd, all, shop),
    }
}

/// bind(2) by the container's first skeleton, or one in the mount namespace of the name: the kernel keeps the path as it
/// was given, and it must be resolved there.
fn bind_path(
    file: &OpenFile,
    socket: &Unix,
    fd: BorrowedFd<'_>,
    all: &mut Descriptions,
    shop: &mut Workshop<'_>,
) -> Result<(), TargetError> {
    let path = String::from_utf8(socket.name.clone())
        .map_err(|_| refuse(file, "its path is not UTF-8", "bind it to another path"))?;
    if !split_path(path.as_bytes()).1.starts_with(b"/") {
        return Err(refuse(
            file,
            format!("it is bound to the relative path {path}"),
            "bind it to an absolute path",
        ));
    }
    let (parent, name) = path.rsplit_once('/').unwrap_or(("", &path));
    let parent = if parent.is_empty() { "/" } else { parent };
    let dir = shop.root.open(0, parent, OFlag::O_RDONLY | OFlag::O_DIRECTORY)?;
    let exists = nix::sys::stat::fstatat(&dir, name, AtFlags::AT_SYMLINK_NOFOLLOW).is_ok();
    let aside = exists.then(|| format!(".{name}.gantry-{}", file.id));
    if let Some(kept) = &aside {
        nix::fcntl::renameat(&dir, name, &dir, kept.as_str())
            .map_err(fail_errno(file, format!("move {path} aside")))?;
    }
    let bound = bind_by_skeleton(socket, fd, shop);
    if let Err(error) = bound {
        if let Some(kept) = &aside {
            let _ = nix::fcntl::renameat(&dir, kept.as_str(), &dir, name);
        }
        return Err(error);
    }
    let (mode, uid, gid) = socket.file_mode;
    if socket.name_exists {
        let owner = (Some(uid.into()), Some(gid.into()));
        nix::unistd::fchownat(&dir, name, owner.0, owner.1, AtFlags::AT_SYMLINK_NOFOLLOW)
            .map_err(fail_errno(file, format!("chown {path}")))?;
        let mode = nix::sys::stat::Mode::from_bits_truncate(mode & 0o7777);
        nix::sys::stat::fchmodat(&dir, name, mode, nix::sys::stat::FchmodatFlags::FollowSymlink)
            .map_err(fail_errno(file, format!("chmod {path}")))?;
        if let Some(kept) = aside {
            all.aside.push(Aside { dir, name: name.to_owned(), kept });
        }
        return Ok(());
    }
    // The name leads elsewhere: only the socket itself knows it.
    unlinkat(&dir, name, UnlinkatFlags::NoRemoveDir).map_err(fail_errno(file, format!("unlink {path}")))?;
    if let Some(kept) = aside {
        nix::fcntl::renameat(&dir, kept.as_str(), &dir, name)
            .map_err(fail_errno(file, format!("put {path} back")))?;
    }
    Ok(())
}

fn bind_by_skeleton(socket: &Unix, fd: BorrowedFd<'_>, shop: &mut Workshop<'_>) -> Result<(), TargetError> {
    let (space, name) = split_path(&socket.name);
    let nobody = || TargetError::Image(format!("nobody is in mount namespace {space}"));
    let binder = shop.tree.member(Kind::Mnt, space).ok_or_else(nobody)?;
    let skeleton = shop.tree.get(binder)?;
    let number = shop.channel.plant(&mut skeleton.leader, shop.tape, shop.channel.number, &[fd])?;
    let number = number.first().copied().unwrap_or(-1);
    let mut address = 1u16.to_ne_bytes().to_vec();
    address.extend_from_slice(name);
    address.push(0);
    let len = address.len();
    let calls = [
        call!("chdir", SYS_chdir, Block::text("/")),
        call!("bind", SYS_bind, number, Block::new(address), len),
        call!("close", SYS_close, number),
    ];
    skeleton.run(shop.tape, &calls).map(drop)
}

/// Two connected sockets.
fn connected(
    file: &OpenFile,
    socket: &Unix,
    peer: u32,
    sockets: &BTreeMap<u32, (&OpenFile, &Unix)>,
    all: &mut Descriptions,
    shop: &mut Workshop<'_>,
) -> Result<(), TargetError> {
    let (peer_file, peer_socket) = sockets
        .get(&peer)
        .copied()
        .ok_or_else(|| TargetError::Image(format!("unix socket {peer} is missing")))?;
    let mutual = matches!(peer_socket.state, UnixState::Connected { peer } if peer == file.id);
    if !mutual {
        return one_way(file, socket, (peer_file, peer_socket), all, shop);
    }
    let named = |s: &Unix| !s.name.is_empty();
    let (one, other) = if !named(socket) && !named(peer_socket) {
        let by = socket.peer_credentials.as_ref().or(peer_socket.peer_credentials.as_ref());
        makers::pair(file, socket.sock_type, by, shop)?
    } else if socket.sock_type == libc::SOCK_DGRAM {
        let one = single(file, socket, all, shop)?;
        let other = single(peer_file, peer_socket, all, shop)?;
        connect_in_container(file, one.as_fd(), &peer_socket.name, shop)?;
        connect_in_container(peer_file, other.as_fd(), &socket.name, shop)?;
        (one, other)
    } else {
        // One of the two was accepted, and has its listener's name.
        if let Some((id, l)) = listener(peer_socket, sockets) {
            accept(file, socket, (id, l), peer_socket.peer_credentials.as_ref(), all, shop)?
        } else if let Some((id, l)) = listener(socket, sockets) {
            let (other, one) =
                accept(peer_file, peer_socket, (id, l), socket.peer_credentials.as_ref(), all, shop)?;
            (one, other)
        } else {
            return Err(refuse(
                file,
                "the socket that accepted this connection does not listen any more",
                "restart the server so that it listens",
            ));
        }
    };
    set_options(file, one.as_fd(), &socket.options)?;
    set_options(peer_file, other.as_fd(), &peer_socket.options)?;
    all.put(file.id, one);
    all.put(peer, other);
    Ok(())
}

/// The listener whose name an accepted socket has.
fn listener<'a>(accepted: &Unix, sockets: &BTreeMap<u32, (&OpenFile, &'a Unix)>) -> Option<(u32, &'a Unix)> {
    let same =
        |(_, l): &&(&OpenFile, &Unix)| l.name == accepted.name && matches!(l.state, UnixState::Listen { .. });
    let found = (!accepted.name.is_empty()).then(|| sockets.values().find(same)).flatten();
    found.map(|(file, socket)| (file.id, *socket))
}

/// Connects a client to a listener of the image, as the process that did: (client, accepted).
fn accept(
    file: &OpenFile,
    client: &Unix,
    (listener, listening): (u32, &Unix),
    by: Option<&PeerCredentials>,
    all: &mut Descriptions,
    shop: &mut Workshop<'_>,
) -> Result<(OwnedFd, OwnedFd), TargetError> {
    let fd = connect(file, client, listening, by, all, shop)?;
    let accepted = sock::accept(all.require(listener)?).map_err(fail_errno(file, "accept"))?;
    Ok((fd, accepted))
}

/// Connects a client to a listener of the image, as the process that did.
fn connect(
    file: &OpenFile,
    client: &Unix,
    listening: &Unix,
    by: Option<&PeerCredentials>,
    all: &mut Descriptions,
    shop: &mut Workshop<'_>,
) -> Result<OwnedFd, TargetError> {
    if listening.name.first() != Some(&0) && !listening.name_exists {
        return Err(refuse(file, "the name of the listening socket was removed", "restart the server"));
    }
    let fd = sock::socket(AF_UNIX, client.sock_type, 0).map_err(fail_errno(file, "socket"))?;
    bind(file, client, fd.as_fd(), all, shop)?;
    match by {
        Some(by) => makers::connect(fd.as_fd(), &listening.name, by, shop)?,
        None => connect_in_container(file, fd.as_fd(), &listening.name, shop)?,
    }
    Ok(fd)
}

/// connect(2) to a name of the container.
fn connect_in_container(
    file: &OpenFile,
    fd: BorrowedFd<'_>,
    name: &[u8],
    shop: &Workshop<'_>,
) -> Result<(), TargetError> {
    let (to, _dir) = reach(name, shop)?;
    sock::connect(fd, &to).map_err(fail_errno(file, format!("connect to {}", String::from_utf8_lossy(name))))
}

/// The address by which the agent reaches a name of the container, good as long as what comes with it is open.
fn reach(name: &[u8], shop: &Workshop<'_>) -> Result<(Address, Option<OwnedFd>), TargetError> {
    use std::os::fd::AsRawFd;
    if name.first() == Some(&0) {
        return Ok((Address::Unix(name.to_vec()), None));
    }
    let path = String::from_utf8_lossy(name);
    let (parent, leaf) = path.rsplit_once('/').unwrap_or(("", &path));
    let parent = if parent.is_empty() { "/" } else { parent };
    let dir = shop.root.open(0, parent, OFlag::O_PATH | OFlag::O_DIRECTORY)?;
    let through = format!("/proc/self/fd/{}/{leaf}", dir.as_raw_fd());
    Ok((Address::Unix(through.into_bytes()), Some(dir.into())))
}

/// A datagram socket connected to one that is not connected back.
fn one_way(
    file: &OpenFile,
    socket: &Unix,
    peer: (&OpenFile, &Unix),
    all: &mut Descriptions,
    shop: &mut Workshop<'_>,
) -> Result<(), TargetError> {
    if socket.sock_type != libc::SOCK_DGRAM || peer.1.name.is_empty() {
        return Err(refuse(file, "its connection has one end only", "restart the program"));
    }
    if !all.has(peer.0.id) {
        let fd = single(peer.0, peer.1, all, shop)?;
        all.put(peer.0.id, fd);
    }
    let fd = single(file, socket, all, shop)?;
    connect_in_container(file, fd.as_fd(), &peer.1.name, shop)?;
    all.put(file.id, fd);
    Ok(())
}

/// A socket whose peer has closed: the peer is made, gives what was still unread, and closes.
fn lonely(
    file: &OpenFile,
    socket: &Unix,
    sockets: &BTreeMap<u32, (&OpenFile, &Unix)>,
    all: &mut Descriptions,
    shop: &mut Workshop<'_>,
) -> Result<(), TargetError> {
    let (one, other) = match listener(socket, sockets) {
        Some((id, listening)) if listening.name.first() == Some(&0) || listening.name_exists => {
            let client = Unix { name: Vec::new(), ..socket.clone() };
            let (client, accepted) =
                accept(file, &client, (id, listening), socket.peer_credentials.as_ref(), all, shop)?;
            (accepted, client)
        }
        _ => {
            if !socket.name.is_empty() {
                tracing::warn!(file = file.id, "the name of a closed connection is not restored");
            }
            makers::pair(file, socket.sock_type, socket.peer_credentials.as_ref(), shop)?
        }
    };
    set_options(file, one.as_fd(), &socket.options)?;
    let empty = Descriptions::default();
    if socket.queue.iter().any(|m| !m.files.is_empty()) {
        return Err(refuse(file, "descriptors wait in a closed connection", "let the program read them"));
    }
    send_queue(file, socket, other.as_fd(), &empty)?;
    if socket.reset {
        // What it has not read when it closes makes the error.
        sock::send(one.as_fd(), &[0], &[], None, None, libc::MSG_DONTWAIT)
            .map_err(fail_errno(file, "leave something unread"))?;
    }
    drop(other);
    all.put(file.id, one);
    Ok(())
}

/// Puts unread messages back and shuts down what was shut down.
pub(super) fn fill(files: &Files, all: &Descriptions, shop: &Workshop<'_>) -> Result<(), TargetError> {
    let sockets = all_unix(files);
    for (file, socket) in sockets.values() {
        match socket.state {
            UnixState::PeerClosed | UnixState::Waiting { .. } => continue,
            UnixState::Connected { peer } => {
                let peer_back = sockets.get(&peer).is_some_and(
                    |(_, p)| matches!(p.state, UnixState::Connected { peer } if peer == file.id),
                );
                if peer_back {
                    send_queue(file, socket, all.require(peer)?, all)?;
                } else {
                    send_datagrams(file, socket, &sockets, all, shop)?;
                }
            }
            UnixState::Unconnected => send_datagrams(file, socket, &sockets, all, shop)?,
            UnixState::Listen { .. } => {
                if !socket.queue.is_empty() {
                    return Err(refuse(file, "connections wait to be accepted", "try again when they were"));
                }
            }
        }
    }
    for (file, socket) in sockets.values() {
        let Some(how) = how_shut(socket.shutdown) else { continue };
        if matches!(socket.state, UnixState::PeerClosed) {
            continue;
        }
        sock::shutdown(all.require(file.id)?, how).map_err(fail_errno(file, "shutdown"))?;
    }
    Ok(())
}

/// Sends what waits in `socket` from its peer's end.
fn send_queue(
    file: &OpenFile,
    socket: &Unix,
    from: BorrowedFd<'_>,
    all: &Descriptions,
) -> Result<(), TargetError> {
    for message in &socket.queue {
        let fds: Result<Vec<BorrowedFd<'_>>, TargetError> =
            message.files.iter().map(|id| all.require(*id)).collect();
        let mut left = message.data.as_slice();
        let mut fds = fds?;
        loop {
            let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
            let sent = although_full(from, || sock::send(from, left, &fds, None, None, flags))
                .map_err(fail_errno(file, "put an unread message back"))?;
            fds.clear();
            left = left.get(sent..).unwrap_or_default();
            if left.is_empty() || socket.sock_type != libc::SOCK_STREAM {
                break;
            }
        }
    }
    Ok(())
}

/// Sends, with more room if the sender's own does not do: what waits may have needed less of it (pages of sendfile(2)
/// and splice(2)), or the program has made its buffer smaller since.
fn although_full(from: BorrowedFd<'_>, send: impl Fn() -> sys::Result<usize>) -> sys::Result<usize> {
    match send() {
        Err(sys::Errno::EAGAIN) => {}
        other => return other,
    }
    let room = |bytes| sock::set_int(from, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, bytes);
    // It shows twice what was set.
    let own = sock::get_int(from, libc::SOL_SOCKET, libc::SO_SNDBUF)? / 2;
    room(i32::MAX / 2)?;
    let sent = send();
    room(own)?;
    sent
}

/// Sends what waits in a datagram socket, each message from a socket with its sender's name.
fn send_datagrams(
    file: &OpenFile,
    socket: &Unix,
    sockets: &BTreeMap<u32, (&OpenFile, &Unix)>,
    all: &Descriptions,
    shop: &Workshop<'_>,
) -> Result<(), TargetError> {
    if socket.queue.is_empty() {
        return Ok(());
    }
    let (to, _dir) = reach(&socket.name, shop)?;
    for message in &socket.queue {
        let named =
            sockets.values().find(|(_, s)| !s.name.is_empty() && split_path(&s.name).1 == message.from);
        let fds: Result<Vec<BorrowedFd<'_>>, TargetError> =
            message.files.iter().map(|id| all.require(*id)).collect();
        let fresh;
        let from = match named {
            Some((sender, _)) => all.require(sender.id)?,
            None => {
                fresh = sock::socket(AF_UNIX, libc::SOCK_DGRAM, 0).map_err(fail_errno(file, "socket"))?;
                if message.from.first() == Some(&0) {
                    // Its sender has closed.
                    sock::bind(fresh.as_fd(), &Address::Unix(message.from.clone()))
                        .map_err(fail_errno(file, "take the name of a sender"))?;
                }
                fresh.as_fd()
            }
        };
        let fds = fds?;
        although_full(from, || sock::send(from, &message.data, &fds, None, Some(&to), libc::MSG_DONTWAIT))
            .map_err(|errno| fail(file, "put an unread datagram back")(errno.into()))?;
    }
    Ok(())
}
