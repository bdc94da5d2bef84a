//! TCP connections taken out of one kernel and put into another: the `TCP_REPAIR` socket option.
//!
//! [`dump`] and [`restore`] move a whole connection; the primitives below are what they are made of. While a socket
//! is in repair mode it answers no frame and sends none on its own account, and a program that touches it gets
//! wrong data: enter it only when the program is frozen.

mod connection;
mod inject;
pub mod opening;

use std::os::fd::{AsRawFd, BorrowedFd};

use nix::sys::socket::MsgFlags;

pub use self::connection::{DumpError, RestoreError, TcpDump, dump, finish, leave, push, restore};
use crate::abi::{Pod, bytes_of};
use crate::{Errno, Result, sock};

pub(crate) const TCP: i32 = libc::IPPROTO_TCP;

/// Kernel state numbers (`include/net/tcp_states.h`).
pub mod state {
    /// Open in both directions.
    pub const ESTABLISHED: u8 = 1;
    /// connect(2) is under way.
    pub const SYN_SENT: u8 = 2;
    /// A passive open is under way (TCP Fast Open shows it to programs).
    pub const SYN_RECV: u8 = 3;
    /// We closed; our FIN is not acknowledged.
    pub const FIN_WAIT1: u8 = 4;
    /// We closed; our FIN is acknowledged.
    pub const FIN_WAIT2: u8 = 5;
    /// Both closed; nothing left but the wait.
    pub const TIME_WAIT: u8 = 6;
    /// Not connected.
    pub const CLOSE: u8 = 7;
    /// The peer closed.
    pub const CLOSE_WAIT: u8 = 8;
    /// The peer closed, then we; our FIN is not acknowledged.
    pub const LAST_ACK: u8 = 9;
    /// Listening.
    pub const LISTEN: u8 = 10;
    /// We closed, then the peer; our FIN is not acknowledged.
    pub const CLOSING: u8 = 11;
}

/// Which queue the repair calls mean (`TCP_REPAIR_QUEUE`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Queue {
    /// None.
    None = 0,
    /// What the peer sent and the program has not read.
    Receive = 1,
    /// What the program wrote and the peer has not acknowledged.
    Send = 2,
}

/// How to leave repair mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leave {
    /// Send a window probe, so that the peer tells where it stands.
    Probe,
    /// Send nothing.
    Silent,
}

/// `struct tcp_repair_window`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RepairWindow {
    /// Sequence number of the segment that last changed the send window.
    pub snd_wl1: u32,
    /// Send window.
    pub snd_wnd: u32,
    /// Largest send window seen.
    pub max_window: u32,
    /// Receive window.
    pub rcv_wnd: u32,
    /// `rcv_nxt` when the receive window was last announced.
    pub rcv_wup: u32,
}
const _: () = assert!(size_of::<RepairWindow>() == 20);
// SAFETY: five 32-bit integers without padding.
unsafe impl Pod for RepairWindow {}

/// One entry of `TCP_REPAIR_OPTIONS` (`struct tcp_repair_opt`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RepairOption {
    /// Maximum segment size.
    Mss(u32),
    /// Window scale: (send, receive).
    WindowScale(u8, u8),
    /// Selective acknowledgement is allowed.
    Sack,
    /// Timestamps are on.
    Timestamps,
}

impl RepairOption {
    const fn code_value(self) -> [u32; 2] {
        match self {
            Self::Mss(mss) => [2, mss],
            Self::WindowScale(send, receive) => [3, send as u32 | (receive as u32) << 16],
            Self::Sack => [4, 0],
            Self::Timestamps => [8, 0],
        }
    }
}

/// The part of `struct tcp_info` that is read.
#[repr(C)]
#[derive(Clone, Copy)]
struct RawInfo {
    bytes: [u8; 8],
    words: [u32; 24],
}
const _: () = assert!(size_of::<RawInfo>() == 104);
const _: () = assert!(std::mem::offset_of!(libc::tcp_info, tcpi_unacked) == 24);
const _: () = assert!(std::mem::offset_of!(libc::tcp_info, tcpi_total_retrans) == 100);
// SAFETY: integers; the two fields lie without a gap.
unsafe impl Pod for RawInfo {}

/// The fields of `TCP_INFO` that matter here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Info {
    /// A number of [`state`].
    pub state: u8,
    /// Timestamps were negotiated.
    pub timestamps: bool,
    /// Selective acknowledgement was negotiated.
    pub sack: bool,
    /// Window scaling was negotiated: (send, receive).
    pub window_scale: Option<(u8, u8)>,
    /// Data was carried in the SYN (Fast Open).
    pub syn_data: bool,
    /// Retransmission timeout, microseconds.
    pub rto: u32,
    /// Segment size used for sending, bytes.
    pub snd_mss: u32,
    /// Unacknowledged segments; for a listening socket, connections that wait for accept(2).
    pub unacked: u32,
    /// Selectively acknowledged segments; for a listening socket, its backlog.
    pub sacked: u32,
    /// Round-trip time, microseconds.
    pub rtt: u32,
    /// Congestion window, segments.
    pub snd_cwnd: u32,
    /// Segment size announced to the peer.
    pub advmss: u32,
    /// Retransmissions so far.
    pub total_retrans: u32,
}

/// Reads `TCP_INFO`.
///
/// # Errors
/// `ENOPROTOOPT`/`EOPNOTSUPP` no TCP socket.
pub fn info(fd: BorrowedFd<'_>) -> Result<Info> {
    const TIMESTAMPS: u8 = 1;
    const SACK: u8 = 2;
    const WSCALE: u8 = 4;
    const SYN_DATA: u8 = 32;
    let raw: RawInfo = sock::get_pod(fd, TCP, libc::TCP_INFO)?;
    let options = raw.bytes[5];
    let scales = (raw.bytes[6] & 0xf, raw.bytes[6] >> 4);
    Ok(Info {
        state: raw.bytes[0],
        timestamps: options & TIMESTAMPS != 0,
        sack: options & SACK != 0,
        window_scale: (options & WSCALE != 0).then_some(scales),
        syn_data: options & SYN_DATA != 0,
        rto: raw.words[0],
        snd_mss: raw.words[2],
        unacked: raw.words[4],
        sacked: raw.words[5],
        rtt: raw.words[15],
        snd_cwnd: raw.words[18],
        advmss: raw.words[19],
        total_retrans: raw.words[23],
    })
}

/// Enters repair mode.
///
/// # Errors
/// `EPERM` without CAP_NET_ADMIN, or the socket listens.
pub fn repair_on(fd: BorrowedFd<'_>) -> Result<()> {
    sock::set_int(fd, TCP, libc::TCP_REPAIR, 1)
}

/// Leaves repair mode. The kernel then resets SO_REUSEADDR to off: set it again if it was on.
///
/// # Errors
/// `EPERM`.
pub fn repair_off(fd: BorrowedFd<'_>, how: Leave) -> Result<()> {
    sock::set_int(fd, TCP, libc::TCP_REPAIR, if how == Leave::Probe { 0 } else { -1 })
}

/// Whether the socket is in repair mode.
///
/// # Errors
/// `ENOPROTOOPT`.
pub fn in_repair(fd: BorrowedFd<'_>) -> Result<bool> {
    Ok(sock::get_int(fd, TCP, libc::TCP_REPAIR)? == 1)
}

/// Chooses the queue that [`queue_seq`], [`set_queue_seq`], [`peek`] and [`fill`] mean.
///
/// # Errors
/// `EPERM` not in repair mode.
pub fn select_queue(fd: BorrowedFd<'_>, queue: Queue) -> Result<()> {
    sock::set_int(fd, TCP, libc::TCP_REPAIR_QUEUE, queue as i32)
}

/// Sequence number after the last byte of the chosen queue.
///
/// # Errors
/// `EINVAL` no queue chosen.
pub fn queue_seq(fd: BorrowedFd<'_>) -> Result<u32> {
    sock::get_pod(fd, TCP, libc::TCP_QUEUE_SEQ)
}

/// Sets it; only before connect.
///
/// # Errors
/// `EPERM` connected already, `EINVAL` no queue chosen.
pub fn set_queue_seq(fd: BorrowedFd<'_>, seq: u32) -> Result<()> {
    sock::set_pod(fd, TCP, libc::TCP_QUEUE_SEQ, &seq)
}

/// `TCP_REPAIR_OPTIONS`: what the handshake negotiated; after connect.
///
/// # Errors
/// `EPERM` not in repair mode or not established, `EFBIG` a window scale above 14.
pub fn set_options(fd: BorrowedFd<'_>, options: &[RepairOption]) -> Result<()> {
    let raw: Vec<u8> =
        options.iter().flat_map(|option| option.code_value()).flat_map(u32::to_ne_bytes).collect();
    sock::set_raw(fd, TCP, libc::TCP_REPAIR_OPTIONS, &raw)
}

/// The timestamp clock of this connection, now.
///
/// # Errors
/// `ENOPROTOOPT`.
pub fn timestamp(fd: BorrowedFd<'_>) -> Result<u32> {
    sock::get_pod(fd, TCP, libc::TCP_TIMESTAMP)
}

/// Sets it.
///
/// # Errors
/// `EPERM` not in repair mode.
pub fn set_timestamp(fd: BorrowedFd<'_>, value: u32) -> Result<()> {
    sock::set_pod(fd, TCP, libc::TCP_TIMESTAMP, &value)
}

/// `TCP_REPAIR_WINDOW`.
///
/// # Errors
/// `EPERM` not in repair mode.
pub fn repair_window(fd: BorrowedFd<'_>) -> Result<RepairWindow> {
    sock::get_pod(fd, TCP, TCP_REPAIR_WINDOW)
}

/// Sets `TCP_REPAIR_WINDOW`.
///
/// # Errors
/// `EPERM` not in repair mode, `EINVAL` the numbers contradict the queues.
pub fn set_repair_window(fd: BorrowedFd<'_>, window: &RepairWindow) -> Result<()> {
    sock::set_raw(fd, TCP, TCP_REPAIR_WINDOW, bytes_of(window))
}

const TCP_REPAIR_WINDOW: i32 = 29;

mod request {
    nix::ioctl_read_bad!(inq, libc::FIONREAD, libc::c_int);
    nix::ioctl_read_bad!(outq, libc::TIOCOUTQ, libc::c_int);
    nix::ioctl_read_bad!(outq_unsent, 0x894b, libc::c_int);
}

/// `SIOCINQ`: bytes (for datagram sockets: of the first message) not yet read.
///
/// # Errors
/// `EINVAL` listening, `ENOTTY`.
pub fn inq(fd: BorrowedFd<'_>) -> Result<u32> {
    let mut value = 0;
    // SAFETY: the request writes one integer to `value`.
    unsafe { request::inq(fd.as_raw_fd(), &raw mut value) }?;
    u32::try_from(value).map_err(|_| Errno::EOVERFLOW)
}

/// `SIOCOUTQ`: bytes not yet acknowledged, a FIN among them counting one.
///
/// # Errors
/// `EINVAL` listening.
pub fn outq(fd: BorrowedFd<'_>) -> Result<u32> {
    let mut value = 0;
    // SAFETY: the request writes one integer to `value`.
    unsafe { request::outq(fd.as_raw_fd(), &raw mut value) }?;
    u32::try_from(value).map_err(|_| Errno::EOVERFLOW)
}

/// `SIOCOUTQNSD`: bytes never sent, a FIN among them counting one.
///
/// # Errors
/// `EINVAL` listening.
pub fn outq_unsent(fd: BorrowedFd<'_>) -> Result<u32> {
    let mut value = 0;
    // SAFETY: the request writes one integer to `value`.
    unsafe { request::outq_unsent(fd.as_raw_fd(), &raw mut value) }?;
    u32::try_from(value).map_err(|_| Errno::EOVERFLOW)
}

/// Looks at the chosen queue, which holds `len` bytes.
///
/// # Errors
/// `ENODATA` it holds fewer, or more without a mark between them.
pub fn peek(fd: BorrowedFd<'_>, len: u32) -> Result<Vec<u8>> {
    if len == 0 {
        return Ok(Vec::new());
    }
    let len = usize::try_from(len).map_err(|_| Errno::EOVERFLOW)?;
    let mut data = vec![0; len + 1];
    let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
    let got = nix::sys::socket::recv(fd.as_raw_fd(), &mut data, flags)?;
    if got != len {
        return Err(Errno::ENODATA);
    }
    data.truncate(len);
    Ok(data)
}

/// Puts bytes into the chosen queue; in repair mode none is sent.
///
/// # Errors
/// `EAGAIN`/`ENOMEM` the socket's buffer is too small: [`restore`] widens it first.
pub fn fill(fd: BorrowedFd<'_>, mut data: &[u8]) -> Result<()> {
    // The kernel takes a receive queue's piece as one linear buffer: large ones may not be had.
    const CHUNK: usize = 16384;
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    while !data.is_empty() {
        let chunk = &data[..data.len().min(CHUNK)];
        let sent = nix::sys::socket::send(fd.as_raw_fd(), chunk, flags)?;
        data = &data[sent..];
    }
    Ok(())
}

/// Buffer sizes and whether the program fixed them (`SO_BUF_LOCK`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Buffers {
    /// SO_SNDBUF as getsockopt shows it (twice what was set).
    pub send: u32,
    /// SO_RCVBUF as getsockopt shows it.
    pub receive: u32,
    /// Bit 0: the send buffer was fixed; bit 1: the receive buffer was. What is not fixed, the kernel tunes.
    pub locks: u32,
}

const SO_BUF_LOCK: i32 = 72;

/// Reads them.
///
/// # Errors
/// `ENOTSOCK`.
pub fn buffers(fd: BorrowedFd<'_>) -> Result<Buffers> {
    Ok(Buffers {
        send: sock::get_pod(fd, libc::SOL_SOCKET, libc::SO_SNDBUF)?,
        receive: sock::get_pod(fd, libc::SOL_SOCKET, libc::SO_RCVBUF)?,
        locks: sock::get_pod(fd, libc::SOL_SOCKET, SO_BUF_LOCK)?,
    })
}

/// Sets them, beyond the system's limits if need be.
///
/// # Errors
/// `EPERM` without CAP_NET_ADMIN.
pub fn set_buffers(fd: BorrowedFd<'_>, buffers: &Buffers) -> Result<()> {
    sock::set_pod(fd, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, &(buffers.send / 2))?;
    sock::set_pod(fd, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, &(buffers.receive / 2))?;
    sock::set_pod(fd, libc::SOL_SOCKET, SO_BUF_LOCK, &(buffers.locks & 3))
}

/// The name of a TCP upper layer protocol in charge (`TCP_ULP`: "tls", "mptcp"), empty when there is none.
///
/// # Errors
/// `ENOTSOCK`.
pub fn upper_layer(fd: BorrowedFd<'_>) -> Result<String> {
    let mut name = [0_u8; 16];
    let len = sock::get_into(fd, TCP, libc::TCP_ULP, &mut name)?;
    let end = name[..len].iter().position(|&b| b == 0).unwrap_or(len);
    Ok(String::from_utf8_lossy(&name[..end]).into_owned())
}
