//! Names of containers.

use std::fmt;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// Longest name, bytes: a DNS label.
const MAX: usize = 63;

/// A container's name: 1 to 63 of `a-z`, `0-9` and `-`, with a letter or digit at both ends.
///
/// It becomes a directory, a cgroup and part of a host name, so nothing else is let in.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ContainerName(String);

/// A string that cannot name a container.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a container name: use 1 to 63 of a-z, 0-9 and -, beginning and ending with a letter or digit"
)]
pub struct InvalidName(pub String);

impl ContainerName {
    /// Checks a name.
    ///
    /// # Errors
    /// [`InvalidName`] when it has another form.
    pub fn new(name: impl Into<String>) -> Result<Self, InvalidName> {
        let name = name.into();
        let bytes = name.as_bytes();
        let edge = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
        let inside = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || *byte == b'-';
        if bytes.len() <= MAX && edge(bytes.first()) && edge(bytes.last()) && bytes.iter().all(inside) {
            Ok(Self(name))
        } else {
            Err(InvalidName(name))
        }
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ContainerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl AsRef<Path> for ContainerName {
    fn as_ref(&self) -> &Path {
        Path::new(&self.0)
    }
}

impl TryFrom<String> for ContainerName {
    type Error = InvalidName;

    fn try_from(name: String) -> Result<Self, Self::Error> {
        Self::new(name)
    }
}

impl From<ContainerName> for String {
    fn from(name: ContainerName) -> Self {
        name.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_dns_labels() {
        for good in ["a", "web", "web-1", "0", &"a".repeat(63)] {
            assert!(ContainerName::new(good).is_ok(), "{good}");
        }
        for bad in ["", "-a", "a-", "A", "a_b", "a.b", "a/b", "..", "a b", "ä", &"a".repeat(64)] {
            assert!(ContainerName::new(bad).is_err(), "{bad}");
        }
    }
}
