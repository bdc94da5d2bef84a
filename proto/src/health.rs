//! Asking a daemon how it is (`grpc.health.v1`), as probes do that cannot present a certificate themselves.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::tls::{ConnectError, Expect, Tls, connect};

/// Why a daemon is not known to be well.
#[derive(Debug, thiserror::Error)]
pub enum HealthError {
    /// It cannot be reached.
    #[error("cannot connect to {0}")]
    Connect(String, #[source] ConnectError),
    /// It gave no answer.
    #[error("{address} does not answer: {message}")]
    Answer {
        /// Who.
        address: String,
        /// What came instead.
        message: String,
    },
    /// It says that it does not serve.
    #[error("{address} says {status}")]
    NotServing {
        /// Who.
        address: String,
        /// What it said.
        status: &'static str,
    },
}

/// Where a daemon of this host that listens on `address` is reached: the loopback address when it listens on all.
#[must_use]
pub fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

/// Asks the daemon at `address` (host:port), which must be `expect`, for a service such as `gantry.v1.Coordinator`. Ok
/// means that it serves.
///
/// # Errors
/// [`HealthError`], after `limit` at the latest.
pub async fn ask(
    address: &str,
    service: &str,
    expect: &Expect,
    tls: &Tls,
    limit: Duration,
) -> Result<(), HealthError> {
    let failed = |message: String| HealthError::Answer { address: address.to_owned(), message };
    let request = HealthCheckRequest { service: service.to_owned() };
    let asked = async {
        let channel = connect(address, expect, tls).await;
        let channel = channel.map_err(|error| HealthError::Connect(address.to_owned(), error))?;
        let answer = HealthClient::new(channel).check(request).await;
        match answer.map_err(|status| failed(status.message().to_owned()))?.into_inner().status() {
            ServingStatus::Serving => Ok(()),
            other => {
                Err(HealthError::NotServing { address: address.to_owned(), status: other.as_str_name() })
            }
        }
    };
    tokio::time::timeout(limit, asked).await.unwrap_or_else(|_| Err(failed(format!("nothing in {limit:?}"))))
}
