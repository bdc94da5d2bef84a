//! The dialling side of gRPC.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Endpoint, Uri};

use super::{Expect, Tls};

/// How long TCP and TLS may take together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A silent peer is asked for a sign of life this often, and given up after the same time again.
const KEEP_ALIVE: Duration = Duration::from_secs(5);

/// Why a peer could not be reached. To be retried, unless [`ConnectError::is_refusal`].
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Not `host:port`.
    #[error("{address:?} is not an address of the form HOST:PORT")]
    Address {
        /// What was given.
        address: String,
        /// Why.
        #[source]
        source: tonic::transport::Error,
    },
    /// No connection, or no trust.
    #[error("cannot connect to {expect} at {address}")]
    Connect {
        /// Where.
        address: String,
        /// Who was expected.
        expect: Expect,
        /// Why.
        #[source]
        source: tonic::transport::Error,
    },
}

impl ConnectError {
    /// Whether the peer was reached and not trusted: retrying does not help.
    #[must_use]
    pub fn is_refusal(&self) -> bool {
        let mut next: Option<&(dyn std::error::Error + 'static)> = Some(self);
        while let Some(error) = next {
            if error.is::<rustls::Error>() {
                return true;
            }
            // io::Error::source skips the error that it wraps; that one is what is looked for.
            next = match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
                Some(inner) => Some(inner),
                None => error.source(),
            };
        }
        false
    }
}

/// Connects to `address` (`host:port`). After Ok the server is `expect`.
///
/// A client certificate that the server refuses shows only at the first call, as UNAVAILABLE: in TLS 1.3 the
/// client's part of the handshake ends before the server has seen the certificate.
///
/// # Errors
/// When nobody answers within 5 s or the server is somebody else.
pub async fn connect(address: &str, expect: &Expect, tls: &Tls) -> Result<Channel, ConnectError> {
    let connector = Dialer::new(address, expect, tls);
    endpoint(address)?.connect_with_connector(connector).await.map_err(|source| ConnectError::Connect {
        address: address.to_owned(),
        expect: expect.clone(),
        source,
    })
}

/// Like [`connect`], and the connection is made at the first call; each call fails with UNAVAILABLE while the
/// server cannot be reached.
///
/// # Errors
/// [`ConnectError::Address`] when the address is not one.
pub fn channel_lazy(address: &str, expect: &Expect, tls: &Tls) -> Result<Channel, ConnectError> {
    Ok(endpoint(address)?.connect_with_connector_lazy(Dialer::new(address, expect, tls)))
}

fn endpoint(address: &str) -> Result<Endpoint, ConnectError> {
    // TLS is the connector's affair, so for tonic this is a plain connection.
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .map_err(|source| ConnectError::Address { address: address.to_owned(), source })?;
    Ok(endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE)
        .keep_alive_while_idle(true))
}

/// Makes the connections of one channel.
#[derive(Clone)]
struct Dialer {
    address: String,
    expect: Expect,
    tls: Tls,
}

impl Dialer {
    fn new(address: &str, expect: &Expect, tls: &Tls) -> Self {
        Self { address: address.to_owned(), expect: expect.clone(), tls: tls.clone() }
    }

    async fn dial(self) -> io::Result<TokioIo<TlsStream<TcpStream>>> {
        let connecting = async {
            let tcp = TcpStream::connect(&self.address).await?;
            tcp.set_nodelay(true)?;
            TlsConnector::from(self.tls.grpc_client(&self.expect))
                .connect(self.expect.server_name(), tcp)
                .await
        };
        match tokio::time::timeout(CONNECT_TIMEOUT, connecting).await {
            Ok(stream) => Ok(TokioIo::new(stream?)),
            Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "no TLS connection in time")),
        }
    }
}

impl tower::Service<Uri> for Dialer {
    type Response = TokioIo<TlsStream<TcpStream>>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        Box::pin(self.clone().dial())
    }
}
