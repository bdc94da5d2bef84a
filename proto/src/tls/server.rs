//! The accepting side of gRPC: every handshake in its own task, so that none can hold up another.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::Stream;
use tonic::transport::server::Connected;

use super::{Tls, peer_identity};
use crate::identity::Identity;

/// How long a client may take for its handshake.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// Handshakes under way at once; further clients wait in the kernel's queue.
const HANDSHAKES: usize = 256;

/// The client of a request: who and from where. In the extensions of every request that came through
/// [`listen`].
#[derive(Debug, Clone)]
pub struct Peer {
    /// Whom its certificate names.
    pub identity: Identity,
    /// Its address.
    pub address: SocketAddr,
}

/// The client of a request.
///
/// # Errors
/// UNAUTHENTICATED when the request came without one; cannot happen on a server that serves [`listen`].
pub fn peer<T>(request: &tonic::Request<T>) -> Result<&Peer, tonic::Status> {
    request.extensions().get().ok_or_else(|| tonic::Status::unauthenticated("no client certificate"))
}

/// Accepts connections and yields those whose handshake succeeded, for `serve_with_incoming`. A client that
/// fails is logged and dropped; the stream ends only with the process. Accepting stops when the stream is
/// dropped.
#[must_use]
pub fn listen(listener: TcpListener, tls: &Tls) -> Incoming {
    listen_with(listener, tls, HANDSHAKE_TIMEOUT, Counter::default())
}

/// As [`listen`], and counts the clients that failed.
#[must_use]
pub fn listen_counting(listener: TcpListener, tls: &Tls, refused: Counter) -> Incoming {
    listen_with(listener, tls, HANDSHAKE_TIMEOUT, refused)
}

pub(super) fn listen_with(listener: TcpListener, tls: &Tls, timeout: Duration, refused: Counter) -> Incoming {
    let (sender, receiver) = mpsc::channel(HANDSHAKES);
    tokio::spawn(accept(listener, tls.clone(), sender, timeout, refused));
    Incoming { receiver }
}

async fn accept(
    listener: TcpListener,
    tls: Tls,
    sender: mpsc::Sender<io::Result<Connection>>,
    timeout: Duration,
    refused: Counter,
) {
    let slots = Arc::new(Semaphore::new(HANDSHAKES));
    loop {
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = sender.closed() => return,
        };
        match accepted {
            Ok((stream, address)) => {
                let refused = refused.clone();
                let task = Handshake {
                    acceptor: TlsAcceptor::from(tls.grpc_server()),
                    sender: sender.clone(),
                    timeout,
                    refused,
                    slot,
                };
                tokio::spawn(task.run(stream, address));
            }
            Err(error) => {
                // EMFILE and the like (accept(2)): the queue is kept, so wait for descriptors to come free.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

struct Handshake {
    acceptor: TlsAcceptor,
    sender: mpsc::Sender<io::Result<Connection>>,
    timeout: Duration,
    refused: Counter,
    slot: OwnedSemaphorePermit,
}

impl Handshake {
    async fn run(self, stream: TcpStream, address: SocketAddr) {
        let shaken = tokio::time::timeout(self.timeout, self.acceptor.accept(stream)).await;
        drop(self.slot);
        let result = match shaken {
            Ok(Ok(stream)) => Connection::new(stream, address),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "no handshake in time")),
        };
        match result {
            // A closed channel: the server stops, and the connection with it.
            Ok(connection) => drop(self.sender.send(Ok(connection)).await),
            Err(error) => {
                self.refused.inc();
                tracing::info!(%address, %error, "refused a connection");
            }
        }
    }
}

/// Connections whose handshake succeeded. See [`listen`].
#[derive(Debug)]
pub struct Incoming {
    receiver: mpsc::Receiver<io::Result<Connection>>,
}

impl Stream for Incoming {
    type Item = io::Result<Connection>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.receiver.poll_recv(cx)
    }
}

/// One client's connection after its handshake.
#[derive(Debug)]
pub struct Connection {
    stream: TlsStream<TcpStream>,
    peer: Peer,
}

impl Connection {
    fn new(stream: TlsStream<TcpStream>, address: SocketAddr) -> io::Result<Self> {
        let (tcp, session) = stream.get_ref();
        let identity = peer_identity(session.peer_certificates())
            .map_err(|e| io::Error::new(io::ErrorKind::PermissionDenied, e))?;
        tcp.set_nodelay(true)?;
        Ok(Self { stream, peer: Peer { identity, address } })
    }
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
