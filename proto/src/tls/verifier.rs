//! The client's check of a server.

use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, DigitallySignedStruct, SignatureScheme};

use super::{Expect, server_name};
use crate::identity::Identity;

/// The usual check of the chain, plus: the certificate is exactly one identity and the one expected.
#[derive(Debug)]
pub(super) struct ExpectVerifier {
    pub(super) expect: Expect,
    pub(super) chain: Arc<WebPkiServerVerifier>,
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
