//! TCP and UDP sockets.

use std::os::fd::{AsFd, BorrowedFd};

use image::sockets::{Tcp, TcpConnection, TcpState, Udp};
use libc::{IPPROTO_TCP, IPPROTO_UDP, SOCK_DGRAM, SOCK_STREAM};
use sys::{Errno, sock, tcp};

use super::options::Reader;
use super::table::Open;
use crate::source::SourceError;
use crate::source::findings::Findings;
use crate::source::sockets::tcp_state;

/// A TCP socket that is in repair mode now and must be taken out of it on abort.
#[derive(Debug)]
pub(crate) struct InRepair {
    /// A duplicate of its descriptor.
    pub(crate) socket: std::os::fd::OwnedFd,
    /// SO_REUSEADDR, which repair mode overwrites.
    pub(crate) reuse_address: bool,
}

const UDP_CORK: i32 = 1;
const UDP_ENCAP: i32 = 100;
const CLOSE: &str = "have the program close it before the move";

/// Reads a TCP socket. A connection stays in repair mode: it is added to `in_repair`.
pub(crate) fn capture_tcp(
    open: &Open,
    family: i32,
    state: u8,
    options: &mut Reader,
    in_repair: &mut Vec<InRepair>,
    findings: &mut Findings,
) -> Result<Tcp, SourceError> {
    let fd = open.file.as_fd();
    let fail = |what: &str, errno| SourceError::kernel(what, open.holder_pid, errno);
    let options = options
        .options(fd, family, SOCK_STREAM, IPPROTO_TCP)
        .map_err(|errno| fail("read socket options", errno))?;
    let local = || sock::local_name(fd).map_err(|errno| fail("getsockname", errno));
    let state = match state {
        tcp_state::CLOSE => TcpState::Closed { local: local()?.inet().filter(|address| address.port() != 0) },
        tcp_state::LISTEN => {
            let info = tcp::info(fd).map_err(|errno| fail("TCP_INFO", errno))?;
            TcpState::Listen {
                local: local()?.inet().ok_or_else(|| fail("getsockname", Errno::EAFNOSUPPORT))?,
                backlog: info.sacked,
            }
        }
        _ => match connection(open, in_repair) {
            Ok(connection) => TcpState::Connected(Box::new(connection)),
            Err(error @ tcp::DumpError::Kernel { .. }) => {
                return Err(SourceError::kernel(
                    "read a TCP connection",
                    open.holder_pid,
                    std::io::Error::other(error),
                ));
            }
            Err(error) => {
                let (pid, number) = open.holder;
                findings.fd(pid, number, error.to_string(), "try again in a moment");
                TcpState::Closed { local: None }
            }
        },
    };
    Ok(Tcp { family, options, state })
}

fn connection(open: &Open, in_repair: &mut Vec<InRepair>) -> Result<TcpConnection, tcp::DumpError> {
    let kernel = |what| {
        move |source: std::io::Error| tcp::DumpError::Kernel {
            what,
            source: Errno::from_raw(source.raw_os_error().unwrap_or(libc::EIO)),
        }
    };
    // The way out of repair mode is kept before the way in is taken.
    let socket = open.file.try_clone().map_err(kernel("dup"))?;
    let dump = tcp::dump(open.file.as_fd())?;
    in_repair.push(InRepair { socket, reuse_address: dump.reuse_address });
    let window = dump.window;
    Ok(TcpConnection {
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
        pending_on: None,
    })
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
    let queue = sock::peek_queue(fd).map_err(|errno| fail("read waiting datagrams", errno))?;
    Ok(Udp {
        family,
        protocol,
        options: options
            .options(fd, family, SOCK_DGRAM, protocol)
            .map_err(|errno| fail("read socket options", errno))?,
        local: local.inet().filter(|address| address.port() != 0),
        peer,
        queue: queue.into_iter().filter_map(|message| Some((message.from?.inet()?, message.data))).collect(),
    })
}

fn refuse_udp(fd: BorrowedFd<'_>, open: &Open, findings: &mut Findings) {
    let (pid, number) = open.holder;
    if sock::get_int(fd, IPPROTO_UDP, UDP_CORK).unwrap_or(0) != 0 && tcp::outq(fd).unwrap_or(0) > 0 {
        findings.fd(pid, number, "UDP socket that holds back data (UDP_CORK)", "try again in a moment");
    }
    if sock::get_int(fd, IPPROTO_UDP, UDP_ENCAP).unwrap_or(0) != 0 {
        findings.fd(pid, number, "UDP socket with encapsulation in the kernel", CLOSE);
    }
}
