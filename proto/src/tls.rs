//! Mutual TLS 1.3 between Gantry's peers. There is no plaintext mode and no older version.
//!
//! [`Tls::load`] reads one peer's CA, certificate and key. The same value serves both of Gantry's transports:
//! gRPC ([`listen`], [`connect`]) and the agents' own blocking protocol ([`Tls::server_config`],
//! [`Tls::client_config`], [`peer_identity`]).

mod client;
mod server;
#[cfg(test)]
mod tests;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme,
    version,
};

use crate::identity::{Identity, IdentityError, Role};

pub use client::{ConnectError, channel_lazy, connect};
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

/// One peer's credentials, loaded and checked.
#[derive(Debug, Clone)]
pub struct Tls {
    identity: Identity,
    server: Arc<ServerConfig>,
    provider: Arc<CryptoProvider>,
    verifier: Arc<WebPkiServerVerifier>,
    chain: Vec<CertificateDer<'static>>,
    key: Arc<PrivateKeyDer<'static>>,
}

impl Tls {
    /// Reads and checks credentials. After Ok the key belongs to the certificate, the certificate bears an
    /// identity, and no handshake can fail for a reason that lies in the files, but that a certificate expires.
    ///
    /// # Errors
    /// [`TlsError`], naming the file.
    pub fn load(files: &TlsFiles) -> Result<Self, TlsError> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let roots = Arc::new(roots(&files.ca)?);
        let chain = certificates("a certificate", &files.cert)?;
        let key = PrivateKeyDer::from_pem_file(&files.key).map_err(|source| TlsError::Read {
            what: "a private key",
            path: files.key.clone(),
            source,
        })?;
        let identity = Identity::from_der(&chain[0])
            .map_err(|source| TlsError::Identity { path: files.cert.clone(), source })?;

        let unusable = |source| TlsError::Verifier { path: files.ca.clone(), source };
        let clients = WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider))
            .build()
            .map_err(unusable)?;
        let verifier = WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(&provider))
            .build()
            .map_err(unusable)?;
        let refused = |source| TlsError::Use {
            what: "the private key or certificate",
            path: files.key.clone(),
            source,
        };
        let mut server = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&version::TLS13])
            .map_err(refused)?
            .with_client_cert_verifier(clients)
            .with_single_cert(chain.clone(), key.clone_key())
            .map_err(refused)?;
        // A resumed session would be let in on a certificate that may have expired since.
        server.send_tls13_tickets = 0;
        let tls = Self { identity, server: Arc::new(server), provider, verifier, chain, key: Arc::new(key) };
        // Proves that client configurations can be made: client_config relies on it.
        tls.build_client(Expect::Any(Role::Coordinator)).map_err(refused)?;
        Ok(tls)
    }

    /// Who this peer is.
    #[must_use]
    pub const fn identity(&self) -> &Identity {
        &self.identity
    }

    /// For a server: TLS 1.3, a client certificate of the same authorities required, no ALPN. The peer's
    /// identity must be taken with [`peer_identity`] after the handshake.
    #[must_use]
    pub fn server_config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.server)
    }

    /// For a client that expects `expect`: TLS 1.3, shows this peer's certificate, no ALPN. Hand
    /// [`Expect::server_name`] to the connection.
    #[must_use]
    pub fn client_config(&self, expect: &Expect) -> Arc<ClientConfig> {
        Arc::new(self.build_client(expect.clone()).expect("load has built one from the same parts"))
    }

    fn build_client(&self, expect: Expect) -> Result<ClientConfig, rustls::Error> {
        let verifier = Arc::new(ExpectVerifier { expect, chain: Arc::clone(&self.verifier) });
        let mut config = ClientConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_protocol_versions(&[&version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_client_auth_cert(self.chain.clone(), self.key.clone_key())?;
        config.resumption = rustls::client::Resumption::disabled();
        Ok(config)
    }

    fn grpc_server(&self) -> Arc<ServerConfig> {
        let mut config = (*self.server).clone();
        config.alpn_protocols = vec![H2.to_vec()];
        Arc::new(config)
    }

    fn grpc_client(&self, expect: &Expect) -> Arc<ClientConfig> {
        let mut config = (*self.client_config(expect)).clone();
        config.alpn_protocols = vec![H2.to_vec()];
        Arc::new(config)
    }
}

fn certificates(what: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let read = |source| TlsError::Read { what, path: path.to_owned(), source };
    let all: Vec<_> =
        CertificateDer::pem_file_iter(path).map_err(read)?.collect::<Result<_, _>>().map_err(read)?;
    if all.is_empty() { Err(TlsError::Empty { path: path.to_owned() }) } else { Ok(all) }
}

fn roots(path: &Path) -> Result<RootCertStore, TlsError> {
    let mut store = RootCertStore::empty();
    for certificate in certificates("authorities", path)? {
        store.add(certificate).map_err(|source| TlsError::Use {
            what: "an authority",
            path: path.to_owned(),
            source,
        })?;
    }
    Ok(store)
}

/// The usual check of the chain, plus: the certificate is exactly one identity and the one expected.
#[derive(Debug)]
struct ExpectVerifier {
    expect: Expect,
    chain: Arc<WebPkiServerVerifier>,
}

impl ServerCertVerifier for ExpectVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let found = Identity::from_der(end_entity)
            .map_err(|e| CertificateError::Other(rustls::OtherError(Arc::new(e))))?;
        // The chain is checked for the name that the certificate itself bears, and that name against the
        // expectation: a role without a name cannot be expressed as a server name.
        let verified = self.chain.verify_server_cert(
            end_entity,
            intermediates,
            &server_name(&found),
            ocsp_response,
            now,
        )?;
        if self.expect.matches(&found) {
            Ok(verified)
        } else {
            Err(CertificateError::Other(rustls::OtherError(Arc::new(WrongPeer {
                expected: self.expect.clone(),
                found,
            })))
            .into())
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::PeerIncompatible::ServerDoesNotSupportTls12Or13.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chain.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}

/// The certificate is good and belongs to somebody else.
#[derive(Debug, thiserror::Error)]
#[error("expected {expected}, found {found}")]
struct WrongPeer {
    expected: Expect,
    found: Identity,
}
