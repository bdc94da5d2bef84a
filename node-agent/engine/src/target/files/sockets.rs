//! TCP sockets, made in the container's network namespace.

use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use image::files::{FileKind, Files, OpenFile};
use image::sockets::{SockOpt, Tcp, TcpConnection, TcpState};
use nix::sys::socket::Shutdown;
use sys::sock;
use sys::tcp::{self, Buffers, RepairWindow, TcpDump};

use super::{Connecting, Descriptions, InRepair, fail_errno, filters, refuse, udp};
use crate::target::error::TargetError;

/// Connections that are worth a thread: so many take about a millisecond.
const WORTH_A_THREAD: usize = 32;
const SO_SNDBUF: i32 = 7;
const SO_RCVBUF: i32 = 8;
const SO_SNDBUFFORCE: i32 = 32;
const SO_RCVBUFFORCE: i32 = 33;

/// Listening sockets come first: a connection in repair mode may share their port, not the other way round.
pub(super) fn make(files: &Files, all: &mut Descriptions) -> Result<(), TargetError> {
    for file in &files.open {
        let FileKind::Tcp(socket) = &file.kind else { continue };
        match &socket.state {
            TcpState::Listen { local, backlog } => listen(file, socket, *local, *backlog, all)?,
            TcpState::Closed { local } => closed(file, socket, *local, all)?,
            TcpState::Connecting { local, peer, first, reuse_address } => {
                let fd = fresh(file, socket)?;
                tcp::opening::prepare(fd.as_fd(), *local, *first)
                    .map_err(fail_errno(file, format!("prepare the connection from {local} to {peer}")))?;
                all.put(file.id, fd);
                all.connecting.push(Connecting { id: file.id, peer: *peer, reuse_address: *reuse_address });
            }
            TcpState::Connected(_) => {}
        }
    }
    udp::make(files, all)?;
    let connections: Vec<Wanted<'_>> = files.open.iter().filter_map(wanted).collect();
    for made in beside(&connections)? {
        all.put(made.in_repair.id, made.fd);
        all.in_repair.push(made.in_repair);
    }
    Ok(())
}

type Wanted<'a> = (&'a OpenFile, &'a Tcp, &'a TcpConnection);

fn wanted(file: &OpenFile) -> Option<Wanted<'_>> {
    match &file.kind {
        FileKind::Tcp(socket) => match &socket.state {
            TcpState::Connected(connection) => Some((file, socket, connection)),
            _ => None,
        },
        _ => None,
    }
}

/// A connection that was made.
struct Made {
    fd: OwnedFd,
    in_repair: InRepair,
}

/// Makes connections, many of them on all processors: threads begin in the network namespace of the one that starts
/// them, and those end here.
fn beside(connections: &[Wanted<'_>]) -> Result<Vec<Made>, TargetError> {
    let make = |part: &[Wanted<'_>]| -> Result<Vec<Made>, TargetError> {
        part.iter().map(|(file, socket, connection)| connected(file, socket, connection)).collect()
    };
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let length = connections.len().div_ceil(processors).max(WORTH_A_THREAD);
    let Some((own, others)) = connections.split_at_checked(length) else { return make(connections) };
    std::thread::scope(|scope| {
        let start = |part| {
            let thread = std::thread::Builder::new().name("sockets".to_owned());
            (part, thread.spawn_scoped(scope, move || make(part)))
        };
        let threads: Vec<_> = others.chunks(length).map(start).collect();
        let mut made = make(own)?;
        for (part, thread) in threads {
            made.extend(match thread {
                Ok(thread) => thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?,
                // The host takes no more threads.
                Err(_) => make(part)?,
            });
        }
        Ok(made)
    })
}

/// What shutdown(2) was called with: bit 0 = reading, bit 1 = writing.
pub(super) fn how_shut(bits: u8) -> Option<Shutdown> {
    match bits & 3 {
        1 => Some(Shutdown::Read),
        2 => Some(Shutdown::Write),
        3 => Some(Shutdown::Both),
        _ => None,
    }
}

/// Sets options as they were read. Filters and their locks come later: see [`super::filters`].
pub(super) fn set_options(
    file: &OpenFile,
    fd: BorrowedFd<'_>,
    options: &[SockOpt],
) -> Result<(), TargetError> {
    for option in options.iter().filter(|option| !filters::is_one(option)) {
        let what = || format!("set socket option {} of level {}", option.name, option.level);
        // The kernel shows twice what was set, and lets the privileged exceed its limits.
        let force = match (option.level, option.name) {
            (libc::SOL_SOCKET, SO_SNDBUF) => Some(SO_SNDBUFFORCE),
            (libc::SOL_SOCKET, SO_RCVBUF) => Some(SO_RCVBUFFORCE),
            _ => None,
        };
        match (force, option.value.first_chunk::<4>()) {
            (Some(name), Some(value)) => {
                let size = i32::from_ne_bytes(*value) / 2;
                sock::set_int(fd, libc::SOL_SOCKET, name, size).map_err(fail_errno(file, what()))?;
            }
            _ => sock::set_raw(fd, option.level, option.name, &option.value)
                .map_err(fail_errno(file, what()))?,
        }
    }
    Ok(())
}

/// A socket with its options.
fn fresh(file: &OpenFile, socket: &Tcp) -> Result<OwnedFd, TargetError> {
    let protocol = if socket.multipath { libc::IPPROTO_MPTCP } else { libc::IPPROTO_TCP };
    let fd = sock::socket(socket.family, libc::SOCK_STREAM, protocol)
        .map_err(fail_errno(file, if socket.multipath { "make a socket of MPTCP" } else { "socket" }))?;
    set_options(file, fd.as_fd(), &socket.options)?;
    Ok(fd)
}

fn listen(
    file: &OpenFile,
    socket: &Tcp,
    local: SocketAddr,
    backlog: u32,
    all: &mut Descriptions,
) -> Result<(), TargetError> {
    let fd = fresh(file, socket)?;
    sock::bind(fd.as_fd(), &local.into()).map_err(fail_errno(file, format!("bind to {local}")))?;
    let backlog = i32::try_from(backlog).unwrap_or(i32::MAX);
    sock::listen(fd.as_fd(), backlog).map_err(fail_errno(file, format!("listen on {local}")))?;
    all.put(file.id, fd);
    Ok(())
}

fn closed(
    file: &OpenFile,
    socket: &Tcp,
    local: Option<SocketAddr>,
    all: &mut Descriptions,
) -> Result<(), TargetError> {
    let fd = fresh(file, socket)?;
    if let Some(local) = local {
        sock::bind(fd.as_fd(), &local.into()).map_err(fail_errno(file, format!("bind to {local}")))?;
    }
    all.put(file.id, fd);
    Ok(())
}

fn connected(file: &OpenFile, socket: &Tcp, connection: &TcpConnection) -> Result<Made, TargetError> {
    if let Some(listener) = connection.pending_on {
        return Err(refuse(
            file,
            format!("the connection from {} waits to be accepted from open file {listener}", connection.peer),
            "try again when the program has accepted it",
        ));
    }
    let [snd_wl1, snd_wnd, max_window, rcv_wnd, rcv_wup] = connection.window;
    let [send, receive, locks] = connection.buffers;
    // Not on a bound socket.
    let is_v6only = |option: &SockOpt| (option.level, option.name) == (libc::IPPROTO_IPV6, libc::IPV6_V6ONLY);
    let (before, options): (Vec<SockOpt>, Vec<SockOpt>) =
        socket.options.iter().cloned().partition(|option| is_v6only(option));
    let dump = TcpDump {
        family: socket.family,
        local: connection.local,
        peer: connection.peer,
        state: connection.kernel_state,
        recv_seq: connection.recv_seq,
        recv_queue: connection.recv_queue.clone(),
        send_seq: connection.send_seq,
        send_queue: connection.send_queue.clone(),
        unsent: connection.unsent,
        fin_unsent: connection.fin_unsent,
        mss: connection.mss,
        window_scale: connection.window_scale,
        sack: connection.sack,
        timestamp: connection.timestamp,
        window: RepairWindow { snd_wl1, snd_wnd, max_window, rcv_wnd, rcv_wup },
        buffers: Buffers { send, receive, locks },
        reuse_address: connection.reuse_address,
        v6only: before.iter().any(|option| option.value.iter().any(|byte| *byte != 0)),
    };
    let what = || format!("{} to {}", connection.local, connection.peer);
    let fd = tcp::restore(&dump).map_err(|source| TargetError::Connection {
        id: file.id,
        addresses: what(),
        source,
    })?;
    set_options(file, fd.as_fd(), &options)?;
    if connection.shut_reading {
        sock::shutdown(fd.as_fd(), Shutdown::Read).map_err(fail_errno(file, "shutdown"))?;
    }
    let in_repair = InRepair { id: file.id, window: dump.window, reuse_address: connection.reuse_address };
    Ok(Made { fd, in_repair })
}
