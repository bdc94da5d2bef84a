//! A whole connection, out of one kernel and into another.

use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::Shutdown;

use super::inject::{Segment, inject};
use super::{
    Buffers, Leave, Queue, RepairOption, RepairWindow, TCP, buffers, fill, info, inq, outq, outq_unsent,
    peek, queue_seq, repair_off, repair_on, repair_window, select_queue, set_buffers, set_options,
    set_queue_seq, set_repair_window, set_timestamp, state, timestamp, upper_layer,
};
use crate::{Errno, sock};

/// An established or half-closed connection.
///
/// Sequence numbers are those of bytes: a FIN is told by `state` and [`TcpDump::fin_unsent`], and never counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TcpDump {
    /// AF_INET or AF_INET6 (which may speak IPv4-mapped).
    pub family: i32,
    /// Our address.
    pub local: SocketAddr,
    /// The peer's address.
    pub peer: SocketAddr,
    /// ESTABLISHED, FIN_WAIT1, FIN_WAIT2, CLOSE_WAIT, LAST_ACK or CLOSING of [`state`].
    pub state: u8,
    /// Sequence number after the last byte received.
    pub recv_seq: u32,
    /// Bytes received and not read.
    pub recv_queue: Vec<u8>,
    /// Sequence number after the last byte written.
    pub send_seq: u32,
    /// Bytes written and not acknowledged, sent ones first.
    pub send_queue: Vec<u8>,
    /// How many bytes at the end of `send_queue` were never sent.
    pub unsent: u32,
    /// Our FIN waits behind the unsent bytes.
    pub fin_unsent: bool,
    /// Largest segment the peer takes, as clamped by the program (TCP_MAXSEG in repair mode).
    pub mss: u32,
    /// Window scaling was negotiated: (send, receive).
    pub window_scale: Option<(u8, u8)>,
    /// Selective acknowledgement was negotiated.
    pub sack: bool,
    /// The timestamp clock, if timestamps were negotiated.
    pub timestamp: Option<u32>,
    /// TCP_REPAIR_WINDOW.
    pub window: RepairWindow,
    /// Buffer sizes.
    pub buffers: Buffers,
    /// SO_REUSEADDR, which repair mode overwrites.
    pub reuse_address: bool,
    /// IPV6_V6ONLY, which cannot be set once the socket is bound.
    pub v6only: bool,
}

/// Why a connection could not be read. Whatever the cause, the socket is out of repair mode again and as before.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum DumpError {
    /// It stands where no connection can be rebuilt.
    #[error("the connection is in TCP state {0}, which cannot be moved")]
    State(u8),
    /// Another protocol sits on top of TCP in the kernel.
    #[error("the kernel runs {0} on top of this connection, which cannot be moved")]
    UpperLayer(String),
    /// Urgent data waits in it, or the queue changed while it was read.
    #[error("a queue of the connection cannot be read whole (urgent data?)")]
    Queue,
    /// A call failed.
    #[error("{what} failed")]
    Kernel {
        /// Which.
        what: &'static str,
        /// How.
        #[source]
        source: Errno,
    },
}

/// Why a connection could not be rebuilt. The new socket is gone, and nothing was sent.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum RestoreError {
    /// Its description contradicts itself.
    #[error("the connection's description is invalid: {0}")]
    Invalid(&'static str),
    /// The kernel did not take the FIN or ACK given to it in the peer's name: the loopback interface is down, or a
    /// filter dropped it.
    #[error("the connection reached TCP state {reached} instead of {wanted}")]
    State {
        /// Where it had to come.
        wanted: u8,
        /// Where it stands.
        reached: u8,
    },
    /// A call failed.
    #[error("{what} failed")]
    Kernel {
        /// Which.
        what: &'static str,
        /// How.
        #[source]
        source: Errno,
    },
}

trait What<T> {
    fn dumping(self, what: &'static str) -> Result<T, DumpError>;
    fn restoring(self, what: &'static str) -> Result<T, RestoreError>;
}

impl<T> What<T> for crate::Result<T> {
    fn dumping(self, what: &'static str) -> Result<T, DumpError> {
        self.map_err(|source| DumpError::Kernel { what, source })
    }
    fn restoring(self, what: &'static str) -> Result<T, RestoreError> {
        self.map_err(|source| RestoreError::Kernel { what, source })
    }
}

/// The peer has sent its FIN.
const fn fin_received(kernel_state: u8) -> bool {
    matches!(kernel_state, state::CLOSE_WAIT | state::LAST_ACK | state::CLOSING)
}

/// Our FIN is queued or sent, and not acknowledged.
const fn fin_pending(kernel_state: u8) -> bool {
    matches!(kernel_state, state::FIN_WAIT1 | state::LAST_ACK | state::CLOSING)
}

/// Reads a connection. On `Ok` the socket **stays in repair mode**: [`leave`] it on abort, or close it there
/// (which sends neither FIN nor RST). The program that owns it must not run, nor frames reach it.
///
/// # Errors
/// See [`DumpError`]: the socket is then as before.
pub fn dump(fd: BorrowedFd<'_>) -> Result<TcpDump, DumpError> {
    let known = info(fd).dumping("TCP_INFO")?;
    if !matches!(
        known.state,
        state::ESTABLISHED
            | state::FIN_WAIT1
            | state::FIN_WAIT2
            | state::CLOSE_WAIT
            | state::LAST_ACK
            | state::CLOSING
    ) {
        return Err(DumpError::State(known.state));
    }
    let layer = upper_layer(fd).dumping("TCP_ULP")?;
    if !layer.is_empty() {
        return Err(DumpError::UpperLayer(layer));
    }
    if has_urgent(fd)? {
        return Err(DumpError::Queue);
    }
    // Repair mode itself shows as 2.
    let reuse_address = sock::get_int(fd, libc::SOL_SOCKET, libc::SO_REUSEADDR).dumping("SO_REUSEADDR")? == 1;
    repair_on(fd).dumping("TCP_REPAIR")?;
    let result = dump_in_repair(fd, reuse_address);
    if result.is_err() {
        leave(fd, reuse_address).dumping("TCP_REPAIR off")?;
    }
    result
}

/// Urgent data lies outside the stream: a queue read as bytes would lose the mark, and perhaps the byte.
fn has_urgent(fd: BorrowedFd<'_>) -> Result<bool, DumpError> {
    let mut poll_fd = [PollFd::new(fd, PollFlags::POLLPRI)];
    let ready = poll(&mut poll_fd, PollTimeout::ZERO).dumping("poll")?;
    Ok(ready > 0 && poll_fd[0].revents().is_some_and(|events| events.contains(PollFlags::POLLPRI)))
}

fn dump_in_repair(fd: BorrowedFd<'_>, reuse_address: bool) -> Result<TcpDump, DumpError> {
    // Read again: from here on nothing but frames could change it.
    let known = info(fd).dumping("TCP_INFO")?;
    let fin_out = fin_pending(known.state) || known.state == state::FIN_WAIT2;
    let fin_counts = u32::from(fin_pending(known.state));

    let unread = inq(fd).dumping("SIOCINQ")?;
    let pending = outq(fd).dumping("SIOCOUTQ")?;
    let unsent = outq_unsent(fd).dumping("SIOCOUTQNSD")?;
    // In FIN_WAIT1 and its like the FIN is the last thing written: whatever was not sent, it is among it.
    let fin_unsent = fin_counts == 1 && unsent > 0;
    let send_len = pending.checked_sub(fin_counts).ok_or(DumpError::Queue)?;

    // A program's own SO_PEEK_OFF would move what MSG_PEEK shows.
    let peek_offset = sock::peek_offset(fd).unwrap_or(-1);
    if peek_offset >= 0 {
        sock::set_peek_offset(fd, -1).dumping("SO_PEEK_OFF")?;
    }
    let queues = read_queues(fd, unread, send_len);
    if peek_offset >= 0 {
        sock::set_peek_offset(fd, peek_offset).dumping("SO_PEEK_OFF")?;
    }
    let (recv_seq, recv_queue, send_seq, send_queue) = queues?;

    let timestamp = match known.timestamps {
        true => Some(timestamp(fd).dumping("TCP_TIMESTAMP")?),
        false => None,
    };
    let address = |name: crate::Result<sock::Address>, what| {
        name.dumping(what)?.inet().ok_or(DumpError::Kernel { what, source: Errno::EAFNOSUPPORT })
    };
    let family = sock::domain(fd).dumping("SO_DOMAIN")?;
    let v6only = family == libc::AF_INET6
        && sock::get_int(fd, libc::IPPROTO_IPV6, libc::IPV6_V6ONLY).dumping("IPV6_V6ONLY")? != 0;
    Ok(TcpDump {
        family,
        local: address(sock::local_name(fd), "getsockname")?,
        peer: address(sock::peer_name(fd), "getpeername")?,
        state: known.state,
        recv_seq: recv_seq.wrapping_sub(u32::from(fin_received(known.state))),
        recv_queue,
        send_seq: send_seq.wrapping_sub(u32::from(fin_out)),
        send_queue,
        unsent: unsent - u32::from(fin_unsent),
        fin_unsent,
        mss: sock::get_pod(fd, TCP, libc::TCP_MAXSEG).dumping("TCP_MAXSEG")?,
        window_scale: known.window_scale,
        sack: known.sack,
        timestamp,
        window: repair_window(fd).dumping("TCP_REPAIR_WINDOW")?,
        buffers: buffers(fd).dumping("SO_SNDBUF, SO_RCVBUF")?,
        reuse_address,
        v6only,
    })
}

type Queues = (u32, Vec<u8>, u32, Vec<u8>);

fn read_queues(fd: BorrowedFd<'_>, unread: u32, pending: u32) -> Result<Queues, DumpError> {
    let whole = |data: crate::Result<Vec<u8>>| match data {
        Err(Errno::ENODATA | Errno::EAGAIN) => Err(DumpError::Queue),
        other => other.dumping("recv(MSG_PEEK)"),
    };
    select_queue(fd, Queue::Receive).dumping("TCP_REPAIR_QUEUE")?;
    let recv_seq = queue_seq(fd).dumping("TCP_QUEUE_SEQ")?;
    let recv_queue = whole(peek(fd, unread))?;
    select_queue(fd, Queue::Send).dumping("TCP_REPAIR_QUEUE")?;
    let send_seq = queue_seq(fd).dumping("TCP_QUEUE_SEQ")?;
    let send_queue = whole(peek(fd, pending))?;
    select_queue(fd, Queue::None).dumping("TCP_REPAIR_QUEUE")?;
    Ok((recv_seq, recv_queue, send_seq, send_queue))
}

/// Takes a dumped socket out of repair mode, silently, as it was: for an abort on the source.
///
/// # Errors
/// Those of setsockopt(2).
pub fn leave(fd: BorrowedFd<'_>, reuse_address: bool) -> crate::Result<()> {
    repair_off(fd, Leave::Silent)?;
    if reuse_address {
        sock::set_int(fd, libc::SOL_SOCKET, libc::SO_REUSEADDR, 1)?;
    }
    Ok(())
}

/// Builds the connection in this thread's network namespace, where its local address must exist and a route to
/// the peer must be. The new socket **stays in repair mode**; set the program's options on it, then
/// [`finish`] it (not [`leave`], which is for a source). Bytes that were never sent are queued as such: the first frame from the peer, a [`push`] or the
/// kernel's own timer sends them.
///
/// A state in which the peer has closed, or has acknowledged our FIN, is reached by segments given to our own stack
/// in the peer's name. What the kernel answers to them would reach the peer if the network were attached; it is a
/// plain duplicate acknowledgement.
///
/// # Errors
/// See [`RestoreError`]: the socket was closed in repair mode, so that nothing went out.
pub fn restore(dump: &TcpDump) -> Result<OwnedFd, RestoreError> {
    let len = |queue: &[u8]| u32::try_from(queue.len()).map_err(|_| RestoreError::Invalid("queue length"));
    let (recv_len, send_len) = (len(&dump.recv_queue)?, len(&dump.send_queue)?);
    let sent_len = send_len.checked_sub(dump.unsent).ok_or(RestoreError::Invalid("unsent bytes"))?;
    let fin_out = fin_pending(dump.state) || dump.state == state::FIN_WAIT2;
    if !fin_out && !matches!(dump.state, state::ESTABLISHED | state::CLOSE_WAIT) {
        return Err(RestoreError::Invalid("state"));
    }
    if (dump.fin_unsent || dump.unsent > 0) && fin_out && !(dump.fin_unsent && fin_pending(dump.state)) {
        return Err(RestoreError::Invalid("bytes behind the FIN"));
    }

    let fd = sock::socket(dump.family, libc::SOCK_STREAM, TCP).restoring("socket")?;
    let socket = fd.as_fd();
    repair_on(socket).restoring("TCP_REPAIR")?;
    // Room for the queues: each byte may cost several of buffer. Before connect, which derives the window from it.
    let room = |queue: u32, size: u32| size.max(queue.saturating_mul(4).min(1 << 30));
    let wide = Buffers {
        send: room(send_len, dump.buffers.send),
        receive: room(recv_len, dump.buffers.receive),
        ..dump.buffers
    };
    set_buffers(socket, &wide).restoring("SO_SNDBUFFORCE, SO_RCVBUFFORCE")?;
    if dump.family == libc::AF_INET6 {
        let v6only = i32::from(dump.v6only);
        sock::set_int(socket, libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, v6only).restoring("IPV6_V6ONLY")?;
    }
    sock::bind(socket, &dump.local.into()).restoring("bind")?;
    set_seq(socket, Queue::Receive, dump.recv_seq.wrapping_sub(recv_len))?;
    set_seq(socket, Queue::Send, dump.send_seq.wrapping_sub(send_len))?;
    sock::connect(socket, &dump.peer.into()).restoring("connect")?;

    let mut options = vec![RepairOption::Mss(dump.mss)];
    if let Some((send, receive)) = dump.window_scale {
        options.push(RepairOption::WindowScale(send, receive));
    }
    if dump.sack {
        options.push(RepairOption::Sack);
    }
    if dump.timestamp.is_some() {
        options.push(RepairOption::Timestamps);
    }
    set_options(socket, &options).restoring("TCP_REPAIR_OPTIONS")?;
    if let Some(timestamp) = dump.timestamp {
        set_timestamp(socket, timestamp).restoring("TCP_TIMESTAMP")?;
    }

    select_queue(socket, Queue::Receive).restoring("TCP_REPAIR_QUEUE")?;
    fill(socket, &dump.recv_queue).restoring("filling the receive queue")?;
    select_queue(socket, Queue::Send).restoring("TCP_REPAIR_QUEUE")?;
    let (sent, unsent) = dump.send_queue.split_at(usize::try_from(sent_len).unwrap_or(0));
    fill(socket, sent).restoring("filling the send queue")?;

    let peer_acks = dump.send_seq.wrapping_sub(send_len);
    if fin_received(dump.state) && dump.state != state::CLOSING {
        receive_fin(socket, dump, peer_acks, state::CLOSE_WAIT)?;
    }
    if dump.unsent > 0 || dump.fin_unsent {
        queue_unsent(socket, dump, unsent)?;
    }
    if fin_out && !dump.fin_unsent {
        // With the send queue chosen, repair mode marks the FIN as sent and sends nothing.
        select_queue(socket, Queue::Send).restoring("TCP_REPAIR_QUEUE")?;
        sock::shutdown(socket, Shutdown::Write).restoring("shutdown")?;
    }
    match dump.state {
        state::CLOSING => receive_fin(socket, dump, peer_acks, state::CLOSING)?,
        state::FIN_WAIT2 => {
            give(dump, dump.recv_seq, dump.send_seq.wrapping_add(1), false)?;
            reached(socket, state::FIN_WAIT2)?;
        }
        wanted => reached(socket, wanted)?,
    }
    select_queue(socket, Queue::None).restoring("TCP_REPAIR_QUEUE")?;
    let window = if dump.unsent > 0 || dump.fin_unsent { shut(dump) } else { dump.window };
    set_repair_window(socket, &window).restoring("TCP_REPAIR_WINDOW")?;
    if wide != dump.buffers {
        set_buffers(socket, &dump.buffers).restoring("SO_SNDBUFFORCE, SO_RCVBUFFORCE")?;
    }
    Ok(fd)
}

fn set_seq(fd: BorrowedFd<'_>, queue: Queue, seq: u32) -> Result<(), RestoreError> {
    select_queue(fd, queue).restoring("TCP_REPAIR_QUEUE")?;
    set_queue_seq(fd, seq).restoring("TCP_QUEUE_SEQ")
}

/// The loopback interface usually delivers within the send, but on a busy CPU a kernel thread does it later.
fn reached(fd: BorrowedFd<'_>, wanted: u8) -> Result<(), RestoreError> {
    let end = Instant::now() + DELIVERY;
    loop {
        let reached = info(fd).restoring("TCP_INFO")?.state;
        if reached == wanted {
            return Ok(());
        }
        if Instant::now() >= end {
            return Err(RestoreError::State { wanted, reached });
        }
        std::thread::yield_now();
    }
}

/// How long a segment given to our own stack may take.
const DELIVERY: Duration = Duration::from_millis(500);

/// The peer's FIN, right behind the receive queue.
fn receive_fin(fd: BorrowedFd<'_>, dump: &TcpDump, ack: u32, wanted: u8) -> Result<(), RestoreError> {
    // The receive window need not have room for the queue just filled, and a FIN outside it would be dropped.
    let open = RepairWindow {
        snd_wl1: dump.recv_seq,
        rcv_wnd: dump.window.rcv_wnd.max(65535),
        rcv_wup: dump.recv_seq,
        ..dump.window
    };
    set_repair_window(fd, &open).restoring("TCP_REPAIR_WINDOW")?;
    give(dump, dump.recv_seq, ack, true)?;
    reached(fd, wanted)
}

fn give(dump: &TcpDump, seq: u32, ack: u32, fin: bool) -> Result<(), RestoreError> {
    let scale = dump.window_scale.map_or(0, |(send, _)| send);
    let window = u16::try_from(dump.window.snd_wnd >> scale).unwrap_or(u16::MAX);
    let segment = Segment { from: dump.peer, to: dump.local, seq, ack, window, fin };
    inject(&segment).restoring("giving a segment to the loopback interface")
}

/// The saved window, with no room at the peer: nothing that is queued behind it leaves.
const fn shut(dump: &TcpDump) -> RepairWindow {
    RepairWindow { snd_wnd: 0, ..dump.window }
}

/// Queues bytes (and a FIN) that were never sent so that they still are not: behind a send window of zero.
fn queue_unsent(fd: BorrowedFd<'_>, dump: &TcpDump, unsent: &[u8]) -> Result<(), RestoreError> {
    // In states whose FIN was just received, rcv_nxt is one ahead, which the saved numbers allow for.
    select_queue(fd, Queue::None).restoring("TCP_REPAIR_QUEUE")?;
    set_repair_window(fd, &shut(dump)).restoring("TCP_REPAIR_WINDOW")?;
    repair_off(fd, Leave::Silent).restoring("TCP_REPAIR off")?;
    let queued = fill(fd, unsent).restoring("queueing unsent bytes").and_then(|()| {
        if dump.fin_unsent {
            sock::shutdown(fd, Shutdown::Write).restoring("shutdown")?;
        }
        Ok(())
    });
    // Back into repair mode whatever happened: closing it there sends nothing.
    repair_on(fd).restoring("TCP_REPAIR")?;
    queued
}

/// Takes a restored socket out of repair mode without sending anything: it is live. `window` and `reuse_address`
/// are those of the [`TcpDump`]. Until here the send window of a socket with unsent bytes was shut, because setting
/// an option such as TCP_NODELAY sends what it can, even in repair mode.
///
/// # Errors
/// Those of setsockopt(2).
pub fn finish(fd: BorrowedFd<'_>, window: &RepairWindow, reuse_address: bool) -> crate::Result<()> {
    set_repair_window(fd, window)?;
    leave(fd, reuse_address)
}

/// Sends what is queued and may be sent now. For the moment the network is attached: bytes that were queued
/// unsent otherwise wait for a frame from the peer or a timer.
///
/// # Errors
/// Those of getsockopt(2) and setsockopt(2).
pub fn push(fd: BorrowedFd<'_>) -> crate::Result<()> {
    // Taking the cork out of an uncorked socket changes nothing but pushes; a corked one holds back on purpose.
    if sock::get_int(fd, TCP, libc::TCP_CORK)? == 0 {
        sock::set_int(fd, TCP, libc::TCP_CORK, 0)?;
    }
    Ok(())
}
