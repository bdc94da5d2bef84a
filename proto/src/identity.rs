//! Who a peer is: a role and a name, carried by its certificate as one DNS name `<name>.<role>.gantry`.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

/// The last label of every identity.
const DOMAIN: &str = "gantry";

/// The longest resource name, in bytes: one DNS label (RFC 1035 section 2.3.4).
pub const MAX_NAME: usize = 63;

/// Why a name or a certificate is not an identity.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum IdentityError {
    /// Not `[a-z0-9-]{1,63}`, or a hyphen at an end.
    #[error("{0:?} is not a valid name: use 1 to 63 of a-z, 0-9 and '-', with a letter or digit at each end")]
    Name(String),
    /// The middle label is not a role.
    #[error("{0:?} is not a role: use node, coordinator, admin or viewer")]
    Role(String),
    /// Not of the form `<name>.<role>.gantry`.
    #[error("{0:?} is not of the form NAME.ROLE.{DOMAIN}")]
    Form(String),
    /// The bytes are not an X.509 certificate.
    #[error("the certificate cannot be parsed")]
    Der(#[source] x509_parser::error::X509Error),
    /// The certificate has no, or more than one, subject alternative name.
    #[error("the certificate has {0} subject alternative names; an identity has exactly one, a DNS name")]
    Count(usize),
    /// The peer showed no certificate.
    #[error("the peer showed no certificate")]
    Missing,
}

/// What a peer is allowed to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// An agent on a node.
    Node,
    /// The coordinator.
    Coordinator,
    /// A person or program that may read and change everything.
    Admin,
    /// A person or program that may read everything.
    Viewer,
}

impl Role {
    /// Every role.
    pub const ALL: [Self; 4] = [Self::Node, Self::Coordinator, Self::Admin, Self::Viewer];

    /// The role's label in a certificate.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Node => "node",
            Self::Coordinator => "coordinator",
            Self::Admin => "admin",
            Self::Viewer => "viewer",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Role {
    type Err = IdentityError;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|r| r.as_str() == s).ok_or_else(|| IdentityError::Role(s.to_owned()))
    }
}

/// A peer's role and name. Its name is always valid.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Identity {
    role: Role,
    name: String,
}

impl Identity {
    /// An identity of `role` called `name`.
    ///
    /// # Errors
    /// [`IdentityError::Name`] when the name is not valid.
    pub fn new(role: Role, name: &str) -> Result<Self, IdentityError> {
        check_name(name)?;
        Ok(Self { role, name: name.to_owned() })
    }

    /// The role.
    #[must_use]
    pub const fn role(&self) -> Role {
        self.role
    }

    /// The name, unique within the role.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The DNS name that a certificate bears: `<name>.<role>.gantry`.
    #[must_use]
    pub fn dns_name(&self) -> String {
        format!("{}.{}.{DOMAIN}", self.name, self.role)
    }

    /// The identity in a certificate in DER form. Only the name is read; whether the certificate may be
    /// trusted is for the TLS handshake to say.
    ///
    /// # Errors
    /// When the bytes are no certificate, or its subject alternative name is not exactly one identity.
    pub fn from_der(der: &[u8]) -> Result<Self, IdentityError> {
        let (_, certificate) = X509Certificate::from_der(der).map_err(|e| IdentityError::Der(flatten(e)))?;
        let san = certificate.subject_alternative_name().map_err(IdentityError::Der)?;
        let names = san.as_ref().map_or(&[][..], |san| &san.value.general_names);
        match names {
            [GeneralName::DNSName(dns)] => dns.parse(),
            others => Err(IdentityError::Count(others.len())),
        }
    }
}

/// When a certificate in DER form ends (RFC 5280 section 4.1.2.5).
///
/// # Errors
/// When the bytes are no certificate.
pub fn not_after(der: &[u8]) -> Result<SystemTime, IdentityError> {
    let (_, certificate) = X509Certificate::from_der(der).map_err(|e| IdentityError::Der(flatten(e)))?;
    let seconds = u64::try_from(certificate.validity().not_after.timestamp()).unwrap_or(0);
    Ok(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds))
}

fn flatten(error: x509_parser::nom::Err<x509_parser::error::X509Error>) -> x509_parser::error::X509Error {
    match error {
        x509_parser::nom::Err::Error(e) | x509_parser::nom::Err::Failure(e) => e,
        x509_parser::nom::Err::Incomplete(_) => x509_parser::error::X509Error::InvalidCertificate,
    }
}

impl fmt::Display for Identity {
    /// `role/name`, as logs and messages show it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.role, self.name)
    }
}

impl FromStr for Identity {
    type Err = IdentityError;

    /// Parses `<name>.<role>.gantry`.
    fn from_str(dns: &str) -> Result<Self, Self::Err> {
        let labels: Vec<&str> = dns.split('.').collect();
        match labels[..] {
            [name, role, DOMAIN] => Self::new(role.parse()?, name),
            _ => Err(IdentityError::Form(dns.to_owned())),
        }
    }
}

/// Whether `name` may name a node, a container, a migration or a peer: 1 to 63 of `[a-z0-9-]`, with a letter
/// or digit at each end (one DNS label, so that it fits into a certificate).
///
/// # Errors
/// [`IdentityError::Name`] when it may not.
pub fn check_name(name: &str) -> Result<(), IdentityError> {
    let bytes = name.as_bytes();
    let inner = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-';
    let edge = |b: Option<&u8>| b.is_some_and(|b| *b != b'-');
    if bytes.len() <= MAX_NAME && bytes.iter().all(inner) && edge(bytes.first()) && edge(bytes.last()) {
        Ok(())
    } else {
        Err(IdentityError::Name(name.chars().take(MAX_NAME + 1).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn der(sans: &[&str]) -> Vec<u8> {
        let sans: Vec<String> = sans.iter().map(|s| (*s).to_owned()).collect();
        let key = rcgen::KeyPair::generate().unwrap();
        rcgen::CertificateParams::new(sans).unwrap().self_signed(&key).unwrap().der().to_vec()
    }

    #[test]
    fn names() {
        let longest = "a".repeat(63);
        for good in ["a", "0", "web-1", "a--b", longest.as_str()] {
            assert_eq!(check_name(good), Ok(()), "{good}");
        }
        let too_long = "a".repeat(64);
        for bad in ["", "-", "-a", "a-", "A", "a.b", "a_b", "ü", "a b", "a/b", too_long.as_str()] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn certificates() {
        let id = Identity::new(Role::Node, "node-a").unwrap();
        assert_eq!(id.dns_name(), "node-a.node.gantry");
        assert_eq!(id.to_string(), "node/node-a");
        assert_eq!(Identity::from_der(&der(&["node-a.node.gantry"])), Ok(id));
        for role in Role::ALL {
            let id = Identity::new(role, "x").unwrap();
            assert_eq!(id.dns_name().parse(), Ok(id));
        }
        assert_eq!(Identity::from_der(&der(&[])), Err(IdentityError::Count(0)));
        assert_eq!(
            Identity::from_der(&der(&["a.node.gantry", "a.admin.gantry"])),
            Err(IdentityError::Count(2))
        );
        assert_eq!(Identity::from_der(&der(&["10.0.0.1"])), Err(IdentityError::Count(1)));
        assert!(matches!(Identity::from_der(&der(&["a.king.gantry"])), Err(IdentityError::Role(_))));
        assert!(matches!(Identity::from_der(&der(&["a.node.example"])), Err(IdentityError::Form(_))));
        assert!(matches!(Identity::from_der(&der(&["a.b.node.gantry"])), Err(IdentityError::Form(_))));
        assert!(matches!(Identity::from_der(&der(&["*.node.gantry"])), Err(IdentityError::Name(_))));
        assert!(matches!(Identity::from_der(b"nonsense"), Err(IdentityError::Der(_))));
    }
}
