//! A blocking TLS connection with the socket options that a migration needs.

use std::io::{self, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::socket::{setsockopt, sockopt};
use proto::identity::Identity;
use proto::tls::{Expect, Tls, peer_identity};
use rustls::{ClientConnection, Connection, ServerConnection};

/// How much ciphertext is gathered before a write(2), and read ahead by a read(2).
const BUFFER: usize = 512 * 1024;
/// Bytes of ciphertext that may wait unacknowledged this long before the connection is given up; also the
/// idle time after which the kernel probes the peer (tcp(7) TCP_USER_TIMEOUT, TCP_KEEPIDLE).
pub const LOST_AFTER: Duration = Duration::from_secs(3);
/// The same for a bulk stream.
pub const BULK_LOST_AFTER: Duration = Duration::from_secs(6);
/// How long a connection may take to be made: TCP and TLS together.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a started frame may take to arrive in full.
const FRAME_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a connection could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The address is not one, or does not resolve.
    #[error("cannot resolve {0}")]
    Address(String, #[source] io::Error),
    /// No address of the peer answers.
    #[error("cannot connect to {0}")]
    Connect(String, #[source] io::Error),
    /// The socket does not take an option.
    #[error("cannot set socket option {0}")]
    Option(&'static str, #[source] io::Error),
    /// TLS failed: wrong authority, wrong name, no TLS at all.
    #[error("TLS handshake failed")]
    Handshake(#[source] io::Error),
    /// The certificate names no peer of Gantry.
    #[error("the peer's certificate names no identity")]
    Identity(#[from] proto::identity::IdentityError),
}

/// A TLS connection over TCP. Writes are gathered until [`Write::flush`] or until its buffer is full.
#[derive(Debug)]
pub struct TlsStream {
    tls: Connection,
    tcp: BufReader<TcpStream>,
    peer: Identity,
    /// Plaintext that is decrypted and not yet read.
    ready: usize,
}

impl TlsStream {
    /// Dials `address` (host:port) and expects `expect` there.
    ///
    /// # Errors
    /// After at most [`CONNECT_TIMEOUT`] or so; nothing is left open.
    pub fn connect(tls: &Tls, expect: &Identity, address: &str) -> Result<Self, ConnectError> {
        let resolved: Vec<SocketAddr> = address
            .to_socket_addrs()
            .map_err(|source| ConnectError::Address(address.to_owned(), source))?
            .collect();
        let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
        for candidate in resolved {
            match TcpStream::connect_timeout(&candidate, CONNECT_TIMEOUT) {
                Ok(tcp) => {
                    let expect = Expect::Peer(expect.clone());
                    let client = ClientConnection::new(tls.client_config(&expect), expect.server_name())
                        .map_err(|error| ConnectError::Handshake(io::Error::other(error)))?;
                    return Self::finish(Connection::Client(client), tcp);
                }
                Err(error) => last = error,
            }
        }
        Err(ConnectError::Connect(address.to_owned(), last))
    }

    /// The server's side of an accepted connection. Any peer of the same authority passes: look at
    /// [`TlsStream::peer`].
    ///
    /// # Errors
    /// After at most [`CONNECT_TIMEOUT`] or so.
    pub fn accept(tls: &Tls, tcp: TcpStream) -> Result<Self, ConnectError> {
        let server = ServerConnection::new(tls.server_config())
            .map_err(|error| ConnectError::Handshake(io::Error::other(error)))?;
        Self::finish(Connection::Server(server), tcp)
    }

    fn finish(mut tls: Connection, mut tcp: TcpStream) -> Result<Self, ConnectError> {
        tune(&tcp)?;
        let deadline = Instant::now() + CONNECT_TIMEOUT;
        while tls.is_handshaking() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(ConnectError::Handshake(io::ErrorKind::TimedOut.into()));
            }
            let timeouts = tcp.set_read_timeout(Some(left)).and_then(|()| tcp.set_write_timeout(Some(left)));
            timeouts.map_err(|source| ConnectError::Option("SO_RCVTIMEO", source))?;
            tls.complete_io(&mut tcp).map_err(ConnectError::Handshake)?;
        }
        let peer = peer_identity(tls.peer_certificates())?;
        let timeouts = tcp
            .set_read_timeout(Some(FRAME_TIMEOUT))
            .and_then(|()| tcp.set_write_timeout(Some(FRAME_TIMEOUT)));
        timeouts.map_err(|source| ConnectError::Option("SO_RCVTIMEO", source))?;
        tls.set_buffer_limit(Some(BUFFER));
        // The handshake may have read application data already.
        let ready = tls
            .process_new_packets()
            .map_err(|error| ConnectError::Handshake(io::Error::other(error)))?
            .plaintext_bytes_to_read();
        Ok(Self { tls, tcp: BufReader::with_capacity(BUFFER, tcp), peer, ready })
    }

    /// Whom the handshake found at the other end.
    #[must_use]
    pub fn peer(&self) -> &Identity {
        &self.peer
    }

    /// How long a read may wait for data that has not begun to arrive; `None` = for ever. Links that are
    /// lost end such a wait too, see [`LOST_AFTER`].
    ///
    /// # Errors
    /// When the socket does not take it.
    pub fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        self.tcp.get_ref().set_read_timeout(timeout)
    }

    /// For a stream of bulk data, whose receiver may be busy for longer than a control link's: how long it
    /// may take nothing (tcp(7) TCP_USER_TIMEOUT counts a full receiver, too).
    ///
    /// # Errors
    /// When the socket does not take it.
    pub fn set_bulk(&self) -> io::Result<()> {
        let socket = self.tcp.get_ref();
        congestion(socket, ["cubic", "reno"]);
        let limit = u32::try_from(BULK_LOST_AFTER.as_millis()).unwrap_or(u32::MAX);
        setsockopt(socket, sockopt::TcpUserTimeout, &limit)?;
        socket.set_write_timeout(Some(BULK_LOST_AFTER))
    }

    /// A second handle to the socket, to shut it down from another thread.
    ///
    /// # Errors
    /// When the descriptor cannot be duplicated.
    pub fn socket(&self) -> io::Result<TcpStream> {
        self.tcp.get_ref().try_clone()
    }

    /// Says that nothing more will be sent, then reads and throws away what comes until the peer closes, something
    /// fails or `limit` has passed.
    pub fn close(&mut self, limit: Duration) {
        self.tls.send_close_notify();
        if self.send().and_then(|()| self.tcp.get_ref().shutdown(Shutdown::Write)).is_err() {
            return;
        }
        let deadline = Instant::now() + limit;
        let mut waste = [0; 16 * 1024];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || self.set_read_timeout(Some(left)).is_err() {
                return;
            }
            // Ciphertext: what it says does not matter any more.
            match self.tcp.get_mut().read(&mut waste) {
                Ok(0) => return,
                Err(error) if error.kind() != io::ErrorKind::Interrupted => return,
                _ => {}
            }
        }
    }

    /// Waits until something can be read (data, the end, or an error) or `timeout` has passed. False on
    /// timeout. What came may be less than a frame.
    ///
    /// # Errors
    /// When poll(2) fails.
    pub fn wait(&mut self, timeout: Duration) -> io::Result<bool> {
        self.wait_beside(timeout, None)
    }

    /// As [`TlsStream::wait`]; false also when `other` can be read.
    ///
    /// # Errors
    /// When poll(2) fails.
    pub fn wait_beside(&mut self, timeout: Duration, other: Option<BorrowedFd<'_>>) -> io::Result<bool> {
        if self.ready > 0 || !self.tcp.buffer().is_empty() {
            return Ok(true);
        }
        let mut fds = vec![PollFd::new(self.tcp.get_ref().as_fd(), PollFlags::POLLIN)];
        fds.extend(other.map(|other| PollFd::new(other, PollFlags::POLLIN)));
        let timeout = PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX);
        match nix::poll::poll(&mut fds, timeout) {
            Ok(_) => Ok(fds[0].revents().is_none_or(|found| !found.is_empty())),
            Err(nix::errno::Errno::EINTR) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    }

    fn send(&mut self) -> io::Result<()> {
        while self.tls.wants_write() {
            match self.tls.write_tls(self.tcp.get_mut()) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

impl Read for TlsStream {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            if self.ready > 0 {
                let n = self.tls.reader().read(buf)?;
                self.ready -= n.min(self.ready);
                return Ok(n);
            }
            let n = self.tls.read_tls(&mut self.tcp)?;
            let state = self.tls.process_new_packets().map_err(io::Error::other)?;
            self.ready = state.plaintext_bytes_to_read();
            if self.tls.wants_write() {
                self.send()?;
            }
            if self.ready == 0 {
                if state.peer_has_closed() {
                    return Ok(0);
                }
                if n == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
            }
        }
    }
}

impl Write for TlsStream {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        loop {
            let n = self.tls.writer().write(buf)?;
            if n > 0 {
                return Ok(n);
            }
            self.send()?;
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.send()
    }
}

impl Drop for TlsStream {
    fn drop(&mut self) {
        // Best effort: the peer reads a clean end instead of an error. Never waits for a full socket.
        self.tls.send_close_notify();
        if self.tcp.get_ref().set_nonblocking(true).is_ok() {
            let _ = self.tls.write_tls(self.tcp.get_mut());
        }
    }
}

/// Chooses the first congestion control that the kernel has; else the host's default stays.
fn congestion(tcp: &TcpStream, names: [&str; 2]) {
    let _ = names
        .iter()
        .any(|name| setsockopt(tcp, sockopt::TcpCongestion, &std::ffi::OsString::from(name)).is_ok());
}

/// Sets what a migration needs: no Nagle, lost links noticed within [`LOST_AFTER`], large buffers, and a
/// congestion control without pacing (bbr, some hosts' default, costs a fifth of the rate in a LAN).
fn tune(tcp: &TcpStream) -> Result<(), ConnectError> {
    let failed = |name| move |source: io::Error| ConnectError::Option(name, source);
    let seconds = u32::try_from(LOST_AFTER.as_secs()).unwrap_or(u32::MAX);
    tcp.set_nodelay(true).map_err(failed("TCP_NODELAY"))?;
    setsockopt(tcp, sockopt::KeepAlive, &true).map_err(|e| failed("SO_KEEPALIVE")(e.into()))?;
    setsockopt(tcp, sockopt::TcpKeepIdle, &1).map_err(|e| failed("TCP_KEEPIDLE")(e.into()))?;
    setsockopt(tcp, sockopt::TcpKeepInterval, &1).map_err(|e| failed("TCP_KEEPINTVL")(e.into()))?;
    setsockopt(tcp, sockopt::TcpKeepCount, &seconds).map_err(|e| failed("TCP_KEEPCNT")(e.into()))?;
    setsockopt(tcp, sockopt::TcpUserTimeout, &(seconds * 1000))
        .map_err(|e| failed("TCP_USER_TIMEOUT")(e.into()))?;
    // Without the early end of slow start that cubic has: a control connection carries little but the image, at once.
    congestion(tcp, ["reno", "cubic"]);
    // The kernel doubles these, and caps them at net.core.{w,r}mem_max without CAP_NET_ADMIN. The receive
    // buffer is left to the kernel's own tuning, which reaches further than that cap.
    let _ = setsockopt(tcp, sockopt::SndBufForce, &(4 << 20))
        .or_else(|_| setsockopt(tcp, sockopt::SndBuf, &(4 << 20)));
    Ok(())
}
