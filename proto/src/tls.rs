//! Mutual TLS 1.3 between Gantry's peers. There is no plaintext mode and no older version.
//!
//! [`Tls::load`] reads one peer's CA, certificate and key. The same value serves both of Gantry's transports:
//! gRPC ([`listen`], [`connect`]) and the agents' own blocking protocol ([`Tls::server_config`],
//! [`Tls::client_config`], [`peer_identity`]). [`keep_fresh`] takes up files that were replaced.

mod client;
mod credentials;
mod reload;
mod server;
#[cfg(test)]
mod tests;
mod verifier;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::SystemTime;

use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ServerConfig};

use crate::identity::{Identity, IdentityError, Role};

use credentials::Credentials;
use reload::Reloads;

pub use client::{ConnectError, channel_lazy, connect};
pub use reload::{Reload, keep_fresh};
pub use server::{Connection, HANDSHAKE_TIMEOUT, Incoming, Peer, listen, listen_counting, peer};

/// ALPN of HTTP/2, which gRPC speaks (RFC 9113 section 3.1).
const H2: &[u8] = b"h2";

/// Where one peer's credentials lie. All three are PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// Certificates of the authorities that peers are checked against.
    pub ca: PathBuf,
    /// This peer's certificate, then its intermediates if there are any.
    pub cert: PathBuf,
    /// This peer's private key.
    pub key: PathBuf,
}

impl TlsFiles {
    /// The names that a directory of credentials uses: `ca.crt`, `tls.crt`, `tls.key`.
    #[must_use]
    pub fn in_dir(dir: &Path) -> Self {
        Self { ca: dir.join("ca.crt"), cert: dir.join("tls.crt"), key: dir.join("tls.key") }
    }
}

/// Why credentials cannot be used. Each names the file.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The file is missing, unreadable or not PEM of the right kind.
    #[error("cannot read {what} from {}", path.display())]
    Read {
        /// What was looked for.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: rustls::pki_types::pem::Error,
    },
    /// The file is PEM and has no certificate in it.
    #[error("{} holds no certificate", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// The certificate is not an identity of Gantry.
    #[error("the certificate in {} names no peer of Gantry", path.display())]
    Identity {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: IdentityError,
    },
    /// rustls refuses what the file holds.
    #[error("{what} in {} cannot be used", path.display())]
    Use {
        /// What was refused.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: rustls::Error,
    },
    /// Another peer's, where this one's is expected.
    #[error("the certificate in {} is of {found}, not of {expected}", path.display())]
    Other {
        /// The file.
        path: PathBuf,
        /// Who was expected.
        expected: Identity,
        /// Whom it names.
        found: Identity,
    },
    /// The certificate has ended, and was not to be taken for one that has not.
    #[error("the certificate in {} ended at {}", path.display(), humantime::format_rfc3339_seconds(*at))]
    Ended {
        /// The file.
        path: PathBuf,
        /// When.
        at: SystemTime,
    },
    /// The authorities cannot be used to check peers.
    #[error("the authorities in {} cannot be used to check peers", path.display())]
    Verifier {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: rustls::server::VerifierBuilderError,
    },
}

/// Whom a client expects at the other end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expect {
    /// Exactly this peer.
    Peer(Identity),
    /// Any peer of this role, whatever its name.
    Any(Role),
}

impl Expect {
    /// The name to hand to rustls for a connection (it becomes the SNI).
    #[must_use]
    pub fn server_name(&self) -> ServerName<'static> {
        match self {
            Self::Peer(identity) => server_name(identity),
            Self::Any(role) => dns(format!("any.{role}.gantry")),
        }
    }

    fn matches(&self, found: &Identity) -> bool {
        match self {
            Self::Peer(expected) => expected == found,
            Self::Any(role) => *role == found.role(),
        }
    }
}

impl fmt::Display for Expect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Peer(identity) => identity.fmt(f),
            Self::Any(role) => write!(f, "any {role}"),
        }
    }
}

/// The rustls name of a peer.
#[must_use]
pub fn server_name(identity: &Identity) -> ServerName<'static> {
    dns(identity.dns_name())
}

fn dns(name: String) -> ServerName<'static> {
    ServerName::try_from(name).expect("a valid identity is a valid DNS name")
}

/// The identity in the certificates that a finished handshake left (`peer_certificates()` of a rustls
/// connection). The handshake has checked the chain.
///
/// # Errors
/// When there is none, or its name is no identity.
pub fn peer_identity(certificates: Option<&[CertificateDer<'_>]>) -> Result<Identity, IdentityError> {
    Identity::from_der(certificates.and_then(<[_]>::first).ok_or(IdentityError::Missing)?)
}

/// One peer's credentials: what its files hold now. Clones share them, and [`Tls::reload`] changes them for all.
#[derive(Debug, Clone)]
pub struct Tls {
    identity: Identity,
    files: Arc<TlsFiles>,
    current: Arc<RwLock<Arc<Credentials>>>,
    reloads: Reloads,
}

impl Tls {
    /// Reads and checks credentials. After Ok the key belongs to the certificate, the certificate bears an
    /// identity, and no handshake can fail for a reason that lies in the files, but that a certificate expires.
    ///
    /// # Errors
    /// [`TlsError`], naming the file.
    pub fn load(files: &TlsFiles) -> Result<Self, TlsError> {
        Ok(Self::of(Credentials::read(files)?, files))
    }

    fn of(credentials: Credentials, files: &TlsFiles) -> Self {
        Self {
            identity: credentials.identity().clone(),
            files: Arc::new(files.clone()),
            current: Arc::new(RwLock::new(Arc::new(credentials))),
            reloads: Reloads::default(),
        }
    }

    /// Who this peer is. Never changes.
    #[must_use]
    pub const fn identity(&self) -> &Identity {
        &self.identity
    }

    /// For a server: TLS 1.3, a client certificate of the same authorities required, no ALPN. The peer's
    /// identity must be taken with [`peer_identity`] after the handshake. For one handshake: the next may need another.
    #[must_use]
    pub fn server_config(&self) -> Arc<ServerConfig> {
        self.current().server_config()
    }

    /// For a client that expects `expect`: TLS 1.3, shows this peer's certificate, no ALPN. Hand
    /// [`Expect::server_name`] to the connection. For one handshake: the next may need another.
    #[must_use]
    pub fn client_config(&self, expect: &Expect) -> Arc<ClientConfig> {
        self.current().client_config(expect)
    }

    fn current(&self) -> Arc<Credentials> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn grpc_server(&self) -> Arc<ServerConfig> {
        let mut config = (*self.server_config()).clone();
        config.alpn_protocols = vec![H2.to_vec()];
        Arc::new(config)
    }

    fn grpc_client(&self, expect: &Expect) -> Arc<ClientConfig> {
        let mut config = (*self.client_config(expect)).clone();
        config.alpn_protocols = vec![H2.to_vec()];
        Arc::new(config)
    }
}
