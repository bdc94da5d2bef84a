//! What one peer's files hold, checked as far as it can be without another peer.

use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use rustls::client::WebPkiServerVerifier;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig, version};

use super::verifier::ExpectVerifier;
use super::{Expect, TlsError, TlsFiles};
use crate::identity::{self, Identity, Role};

/// One peer's credentials, loaded and checked.
#[derive(Debug, Clone)]
pub(super) struct Credentials {
    identity: Identity,
    ends: SystemTime,
    authorities: Vec<CertificateDer<'static>>,
    server: Arc<ServerConfig>,
    provider: Arc<CryptoProvider>,
    verifier: Arc<WebPkiServerVerifier>,
    chain: Vec<CertificateDer<'static>>,
    key: Arc<PrivateKeyDer<'static>>,
}

impl Credentials {
    /// See [`super::Tls::load`].
    pub(super) fn read(files: &TlsFiles) -> Result<Self, TlsError> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let authorities = certificates("authorities", &files.ca)?;
        let roots = Arc::new(roots(&authorities, &files.ca)?);
        let chain = certificates("a certificate", &files.cert)?;
        let key = PrivateKeyDer::from_pem_file(&files.key).map_err(|source| TlsError::Read {
            what: "a private key",
            path: files.key.clone(),
            source,
        })?;
        let unnamed = |source| TlsError::Identity { path: files.cert.clone(), source };
        let identity = Identity::from_der(&chain[0]).map_err(unnamed)?;
        let mut ends = identity::not_after(&chain[0]).map_err(unnamed)?;
        for certificate in &chain[1..] {
            ends = ends.min(identity::not_after(certificate).map_err(unnamed)?);
        }

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
        let (server, key) = (Arc::new(server), Arc::new(key));
        let read = Self { identity, ends, authorities, server, provider, verifier, chain, key };
        // Proves that client configurations can be made: client_config relies on it.
        read.build_client(Expect::Any(Role::Coordinator)).map_err(refused)?;
        Ok(read)
    }

    /// Who this peer is.
    pub(super) const fn identity(&self) -> &Identity {
        &self.identity
    }

    /// When the first of its certificates ends.
    pub(super) const fn ends(&self) -> SystemTime {
        self.ends
    }

    /// Whether the files held the same when `other` was read.
    pub(super) fn same(&self, other: &Self) -> bool {
        (&self.authorities, &self.chain, &self.key) == (&other.authorities, &other.chain, &other.key)
    }

    /// See [`super::Tls::server_config`].
    pub(super) fn server_config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.server)
    }

    /// See [`super::Tls::client_config`].
    pub(super) fn client_config(&self, expect: &Expect) -> Arc<ClientConfig> {
        Arc::new(self.build_client(expect.clone()).expect("load has built one from the same parts"))
    }

    /// The same with another certificate, which is not looked at.
    #[cfg(test)]
    pub(super) fn with(&self, chain: Vec<CertificateDer<'static>>, key: PrivateKeyDer<'static>) -> Self {
        Self { chain, key: Arc::new(key), ..self.clone() }
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
}

pub(super) fn certificates(
    what: &'static str,
    path: &Path,
) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let read = |source| TlsError::Read { what, path: path.to_owned(), source };
    let all: Vec<_> =
        CertificateDer::pem_file_iter(path).map_err(read)?.collect::<Result<_, _>>().map_err(read)?;
    if all.is_empty() { Err(TlsError::Empty { path: path.to_owned() }) } else { Ok(all) }
}

pub(super) fn roots(authorities: &[CertificateDer<'static>], path: &Path) -> Result<RootCertStore, TlsError> {
    let mut store = RootCertStore::empty();
    for certificate in authorities {
        let refused = |source| TlsError::Use { what: "an authority", path: path.to_owned(), source };
        store.add(certificate.clone()).map_err(refused)?;
    }
    Ok(store)
}
