//! Socket addresses of the families that matter, and raw bytes for the rest.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

/// Bytes of `struct sockaddr_storage`.
pub(crate) const MAX: usize = 128;
/// [`MAX`] in the kernel's type.
pub(crate) const MAX_LEN: libc::socklen_t = 128;
const _: () = assert!(size_of::<libc::sockaddr_storage>() == MAX);
const _: () = assert!(size_of::<libc::sockaddr_in>() == 16);
const _: () = assert!(size_of::<libc::sockaddr_in6>() == 28);
const _: () = assert!(size_of::<libc::sockaddr_un>() == 110);

const AF_UNIX: u16 = 1;
const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;
const _: () = assert!(libc::AF_UNIX == 1 && libc::AF_INET == 2 && libc::AF_INET6 == 10);

/// A socket's name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Address {
    /// AF_INET and AF_INET6.
    Inet(SocketAddr),
    /// AF_UNIX: a path, an abstract name that begins with a NUL byte, or empty when unnamed.
    Unix(Vec<u8>),
    /// Another family: the raw `sockaddr`, family first. Empty: the kernel gave none.
    Other(Vec<u8>),
}

impl From<SocketAddr> for Address {
    fn from(address: SocketAddr) -> Self {
        Self::Inet(address)
    }
}

impl Address {
    /// The internet address, if it is one.
    #[must_use]
    pub fn inet(&self) -> Option<SocketAddr> {
        match self {
            Self::Inet(address) => Some(*address),
            Self::Unix(_) | Self::Other(_) => None,
        }
    }

    /// Reads what the kernel wrote.
    pub(crate) fn from_storage(storage: &[u8], len: libc::socklen_t) -> Self {
        let len = usize::try_from(len).unwrap_or(0).min(storage.len());
        Self::from_bytes(&storage[..len])
    }

    /// Reads a raw `sockaddr`.
    #[must_use]
    pub fn from_bytes(raw: &[u8]) -> Self {
        let Some(family) = array(raw, 0).map(u16::from_ne_bytes) else { return Self::Other(raw.to_vec()) };
        let port = array(raw, 2).map(u16::from_be_bytes);
        let parsed = match (family, port) {
            (AF_UNIX, _) => {
                let name = &raw[2..];
                // A path ends at its NUL; an abstract name is as long as the kernel says.
                let end = if name.first() == Some(&0) {
                    name.len()
                } else {
                    name.iter().position(|&b| b == 0).unwrap_or(name.len())
                };
                Some(Self::Unix(name[..end].to_vec()))
            }
            (AF_INET, Some(port)) => {
                array::<4>(raw, 4).map(|ip| Self::Inet(SocketAddrV4::new(Ipv4Addr::from(ip), port).into()))
            }
            (AF_INET6, Some(port)) => {
                let flow = array(raw, 4).map(u32::from_ne_bytes);
                let ip = array::<16>(raw, 8).map(Ipv6Addr::from);
                let scope = array(raw, 24).map(u32::from_ne_bytes);
                match (flow, ip, scope) {
                    (Some(flow), Some(ip), Some(scope)) => {
                        Some(Self::Inet(SocketAddrV6::new(ip, port, flow, scope).into()))
                    }
                    _ => None,
                }
            }
            _ => None,
        };
        parsed.unwrap_or_else(|| Self::Other(raw.to_vec()))
    }

    /// The raw `sockaddr`. A unix path is given without its NUL, which the kernel supplies.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        match self {
            Self::Inet(SocketAddr::V4(address)) => {
                let mut raw = vec![0; 16];
                raw[..2].copy_from_slice(&AF_INET.to_ne_bytes());
                raw[2..4].copy_from_slice(&address.port().to_be_bytes());
                raw[4..8].copy_from_slice(&address.ip().octets());
                raw
            }
            Self::Inet(SocketAddr::V6(address)) => {
                let mut raw = vec![0; 28];
                raw[..2].copy_from_slice(&AF_INET6.to_ne_bytes());
                raw[2..4].copy_from_slice(&address.port().to_be_bytes());
                raw[4..8].copy_from_slice(&address.flowinfo().to_ne_bytes());
                raw[8..24].copy_from_slice(&address.ip().octets());
                raw[24..28].copy_from_slice(&address.scope_id().to_ne_bytes());
                raw
            }
            Self::Unix(name) => {
                let mut raw = AF_UNIX.to_ne_bytes().to_vec();
                raw.extend_from_slice(name);
                raw
            }
            Self::Other(raw) => raw.clone(),
        }
    }
}

fn array<const N: usize>(raw: &[u8], at: usize) -> Option<[u8; N]> {
    raw.get(at..at + N)?.try_into().ok()
}
