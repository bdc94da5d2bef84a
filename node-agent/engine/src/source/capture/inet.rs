//! TCP and UDP sockets.

use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use image::sockets::{Datagram, Membership, Tcp, TcpConnection, TcpState, Udp};
use libc::{IPPROTO_MPTCP, IPPROTO_UDP, SOCK_DGRAM, SOCK_STREAM};
use rayon::prelude::*;
use sys::sock::multicast::Filter;
use sys::tcp::state;
use sys::udp::Destination;
use sys::{Errno, ns, sock, tcp, udp};

use super::options::Reader;
use super::table::Open;
use super::unix::Peers;
use crate::proc::multicast::Group;
use crate::source::SourceError;
use crate::source::error::TRY_AGAIN;
use crate::source::findings::Findings;
use crate::source::multicast;
use crate::source::sockets::{TcpKind, tcp_state};

/// A TCP socket that is in repair mode now and must be taken out of it on abort.
#[derive(Debug)]
pub(crate) struct InRepair {
    /// Our duplicate of its descriptor.
    pub(crate) socket: Arc<OwnedFd>,
    /// SO_REUSEADDR, which repair mode overwrites.
    pub(crate) reuse_address: bool,
}

/// Sockets that one thread reads at a time.
const AT_A_TIME: usize = 16;
const UDP_ENCAP: i32 = 100;
/// The loopback interface carries 65536 bytes in one piece, 48 of which are headers.
const MAX_OVER_IPV6: usize = 65536 - 48;
const CLOSE: &str = "have the program close it before the move";

/// A TCP socket that was read.
pub(crate) struct Read {
    pub(crate) tcp: Tcp,
    /// For a connection, which stays in repair mode.
    pub(crate) in_repair: Option<InRepair>,
    /// Why it cannot move at this moment.
    pub(crate) refusal: Option<String>,
}

/// Reads TCP sockets, on all processors. The connections that could be read are in repair mode, whatever became of the others.
pub(crate) fn read_tcp(
    sockets: &[(&Open, TcpKind)],
    options: &mut Reader,
    peers: &Peers,
) -> Result<Vec<Result<Read, SourceError>>, SourceError> {
    for (open, kind) in sockets {
        options
            .know(kind.family, SOCK_STREAM, kind.protocol)
            .map_err(|errno| SourceError::kernel("read socket options", open.holder_pid, errno))?;
    }
    let options = &*options;
    let read = |(open, kind): &(&Open, TcpKind)| one_tcp(open, *kind, options, peers);
    Ok(sockets.par_iter().with_min_len(AT_A_TIME).map(read).collect())
}

fn one_tcp(open: &Open, kind: TcpKind, options: &Reader, peers: &Peers) -> Result<Read, SourceError> {
    let fd = open.file.as_fd();
    let fail = |what: &str, errno| SourceError::kernel(what, open.holder_pid, errno);
    let options = options.changed_tcp(fd, kind);
    let local = || sock::local_name(fd).map_err(|errno| fail("getsockname", errno));
    let (mut in_repair, mut refusal) = (None, None);
    let state = match kind.state {
        tcp_state::CLOSE => {
            // The port of an address alone is chosen when it connects.
            let alone = sock::get_int(fd, libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT).unwrap_or(0) != 0;
            let bound = |address: &SocketAddr| {
                address.port() != 0 || alone && !address.ip().to_canonical().is_unspecified()
            };
            TcpState::Closed { local: local()?.inet().filter(bound) }
        }
        tcp_state::LISTEN => {
            let info = tcp::info(fd).map_err(|errno| fail("TCP_INFO", errno))?;
            TcpState::Listen {
                local: local()?.inet().ok_or_else(|| fail("getsockname", Errno::EAFNOSUPPORT))?,
                backlog: info.sacked,
            }
        }
        tcp_state::SYN_SENT => {
            let reuse_address = sock::get_int(fd, libc::SOL_SOCKET, libc::SO_REUSEADDR)
                .map_err(|errno| fail("SO_REUSEADDR", errno))?
                != 0;
            in_repair = Some(InRepair { socket: Arc::clone(&open.file), reuse_address });
            match (tcp::opening::first_sequence(fd), peers.connecting(open)) {
                (Ok(first), Some(socket)) if socket.unacked <= 1 && socket.shutdown == 0 => {
                    let (local, peer) = (socket.local, socket.peer);
                    TcpState::Connecting { local, peer, first, reuse_address }
                }
                // It is answered by now; or it has data in its SYN.
                (Ok(_) | Err(Errno::EAGAIN), _) => {
                    refusal = Some("TCP connection that is just being made".to_owned());
                    TcpState::Closed { local: None }
                }
                // In repair mode, or not: it may have ended.
                (Err(errno), _) => {
                    refusal = Some(format!("TCP connection that was just being made: {errno}"));
                    TcpState::Closed { local: None }
                }
            }
        }
        // The peer's FIN shows in the same way; of that the state tells.
        _ => match tcp::dump(fd) {
            Ok(dump) => {
                let events = sock::events(fd, libc::POLLRDHUP).map_err(|errno| fail("poll", errno))?;
                let shut_reading = events & libc::POLLRDHUP != 0
                    && matches!(dump.state, state::ESTABLISHED | state::FIN_WAIT1 | state::FIN_WAIT2);
                let socket = Arc::clone(&open.file);
                in_repair = Some(InRepair { socket, reuse_address: dump.reuse_address });
                TcpState::Connected(Box::new(TcpConnection { shut_reading, ..connection(dump) }))
            }
            Err(error @ tcp::DumpError::Kernel { .. }) => {
                return Err(SourceError::kernel(
                    "read a TCP connection",
                    open.holder_pid,
                    std::io::Error::other(error),
                ));
            }
            Err(error) => {
                refusal = Some(error.to_string());
                TcpState::Closed { local: None }
            }
        },
    };
    let tcp = Tcp { family: kind.family, multipath: kind.protocol == IPPROTO_MPTCP, options, state };
    Ok(Read { tcp, in_repair, refusal })
}

fn connection(dump: tcp::TcpDump) -> TcpConnection {
    let window = dump.window;
    TcpConnection {
        local: dump.local,
        peer: dump.peer,
        kernel_state: dump.state,
        recv_seq: dump.recv_seq,
        recv_queue: dump.recv_queue,
        send_seq: dump.send_seq,
        send_queue: dump.send_queue,
        unsent: dump.unsent,
        mss: dump.mss,
        window_scale: dump.window_scale,
        sack: dump.sack,
        timestamp: dump.timestamp,
        window: [window.snd_wl1, window.snd_wnd, window.max_window, window.rcv_wnd, window.rcv_wup],
        fin_unsent: dump.fin_unsent,
        buffers: [dump.buffers.send, dump.buffers.receive, dump.buffers.locks],
        reuse_address: dump.reuse_address,
        shut_reading: false,
        pending_on: None,
    }
}

/// Reads a UDP socket with what waits in it.
pub(crate) fn capture_udp(
    open: &Open,
    family: i32,
    protocol: i32,
    options: &mut Reader,
    findings: &mut Findings,
) -> Result<Udp, SourceError> {
    let fd = open.file.as_fd();
    let fail = |what: &str, errno| SourceError::kernel(what, open.holder_pid, errno);
    refuse_udp(fd, open, findings);
    let peer = match sock::peer_name(fd) {
        Ok(peer) => peer.inet(),
        Err(Errno::ENOTCONN) => None,
        Err(errno) => return Err(fail("getpeername", errno)),
    };
    let local = sock::local_name(fd).map_err(|errno| fail("getsockname", errno))?;
    let queue = udp::waiting(fd).map_err(|errno| fail("read waiting datagrams", errno))?;
    refuse_datagrams(&queue, open, findings)?;
    Ok(Udp {
        family,
        protocol,
        options: options
            .options(fd, family, SOCK_DGRAM, protocol)
            .map_err(|errno| fail("read socket options", errno))?,
        local: local.inet().filter(|address| address.port() != 0),
        peer,
        queue: queue.into_iter().map(datagram).collect(),
        memberships: Vec::new(),
        shutdown: shut(fd).map_err(|errno| fail("poll", errno))?,
    })
}

/// The memberships of a UDP socket in these groups.
pub(crate) fn memberships(open: &Open, groups: &[Group]) -> Result<Vec<Membership>, SourceError> {
    let found = multicast::memberships(open.file.as_fd(), groups)
        .map_err(|errno| SourceError::kernel("ask a socket for memberships", open.holder_pid, errno))?;
    let membership = |(group, filter): (&Group, Filter)| Membership {
        device: group.device.clone(),
        group: group.address,
        exclude: filter.exclude,
        sources: filter.sources,
    };
    Ok(found.into_iter().map(membership).collect())
}

/// How a UDP socket was shut down, as far as poll(2) shows it: not when it was for writing alone.
pub(crate) fn shut(fd: BorrowedFd<'_>) -> Result<u8, Errno> {
    let events = sock::events(fd, libc::POLLRDHUP)?;
    Ok(match (events & libc::POLLRDHUP != 0, events & libc::POLLHUP != 0) {
        (_, true) => 3,
        (true, false) => 1,
        (false, false) => 0,
    })
}

fn datagram(waiting: udp::Datagram) -> Datagram {
    let udp::Datagram { from, to, hops, class, data } = waiting;
    let scope = [from, to].into_iter().find_map(|address| match address {
        SocketAddr::V6(address) if address.scope_id() != 0 => Some(address.scope_id()),
        _ => None,
    });
    Datagram { from, to, scope: scope.unwrap_or(0), hops, class, data }
}

/// Those that cannot be put into the socket again.
fn refuse_datagrams(
    queue: &[udp::Datagram],
    open: &Open,
    findings: &mut Findings,
) -> Result<(), SourceError> {
    if queue.is_empty() {
        return Ok(());
    }
    let fail = |what: &str, errno| SourceError::kernel(what, open.holder_pid, errno);
    let netns =
        ns::open(open.holder_pid, ns::Kind::Net).map_err(|errno| fail("open a network namespace", errno))?;
    let places: Result<Vec<Destination>, Errno> =
        ns::in_netns(netns.as_fd(), || queue.iter().map(|datagram| udp::destination(datagram.to)).collect())
            .and_then(|places| places);
    let places = places.map_err(|errno| fail("ask whose an address is", errno))?;
    let (pid, number) = open.holder;
    for (datagram, place) in queue.iter().zip(places) {
        let what = format!("unread datagram from {} to {}", datagram.from, datagram.to);
        match place {
            Destination::Here if datagram.data.len() > MAX_OVER_IPV6 && !is_ipv4(&datagram.to) => {
                let length = datagram.data.len();
                findings.fd(pid, number, format!("{what}: {length} bytes over IPv6 are too many"), TRY_AGAIN);
            }
            Destination::Here => {}
            Destination::Many => findings.fd(
                pid,
                number,
                format!("{what}: broadcast and multicast cannot be put back"),
                TRY_AGAIN,
            ),
            Destination::Elsewhere => findings.fd(
                pid,
                number,
                format!("{what}: the address is no longer the container's"),
                TRY_AGAIN,
            ),
        }
    }
    Ok(())
}

fn is_ipv4(address: &SocketAddr) -> bool {
    address.ip().to_canonical().is_ipv4()
}

fn refuse_udp(fd: BorrowedFd<'_>, open: &Open, findings: &mut Findings) {
    let (pid, number) = open.holder;
    // Also what waits for a device, or for the address of a neighbour: it would be lost.
    if tcp::outq(fd).unwrap_or(0) > 0 {
        findings.fd(
            pid,
            number,
            "UDP socket with data that has not left yet (UDP_CORK, MSG_MORE, or a device that is busy)",
            TRY_AGAIN,
        );
    }
    if sock::get_int(fd, IPPROTO_UDP, UDP_ENCAP).unwrap_or(0) != 0 {
        findings.fd(pid, number, "UDP socket with encapsulation in the kernel", CLOSE);
    }
}
