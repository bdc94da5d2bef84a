//! Packets as if from somewhere else, given to our own stack through raw sockets: they go over the loopback
//! interface of the calling thread's network namespace and never leave it. See raw(7).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};

use crate::sock::{self, Address};
use crate::{Errno, Result};

/// A packet without its checksum.
pub(crate) struct Packet<'a> {
    /// Its source. An IPv4-mapped IPv6 address is spoken to over IPv4.
    pub(crate) from: SocketAddr,
    /// Its destination, which must be an address of this namespace.
    pub(crate) to: SocketAddr,
    /// IPPROTO_TCP ...
    pub(crate) protocol: u8,
    /// Time to live, or hop limit.
    pub(crate) hops: u8,
    /// Type of service; for IPv6 traffic class and flow label, 28 bits.
    pub(crate) class: u32,
    /// Header and content of the transport protocol.
    pub(crate) payload: &'a [u8],
}

impl Packet<'_> {
    /// Sends it to ourselves.
    ///
    /// # Errors
    /// `EAFNOSUPPORT` the addresses are of two kinds, `EMSGSIZE` it exceeds the loopback interface's MTU, `EPERM`.
    pub(crate) fn send(&self) -> Result<()> {
        let (packet, family, mut to) = match (self.from.ip().to_canonical(), self.to.ip().to_canonical()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                (self.over_ipv4(from, to)?, libc::AF_INET, SocketAddr::new(to.into(), 0))
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => (self.over_ipv6(from, to)?, libc::AF_INET6, self.to),
            _ => return Err(Errno::EAFNOSUPPORT),
        };
        to.set_port(0);
        let fd: OwnedFd = sock::socket(family, libc::SOCK_RAW, libc::IPPROTO_RAW)?;
        sock::send(fd.as_fd(), &packet, &[], None, Some(&Address::Inet(to)), 0).map(drop)
    }

    fn over_ipv4(&self, from: Ipv4Addr, to: Ipv4Addr) -> Result<Vec<u8>> {
        let length = u16::try_from(20 + self.payload.len()).map_err(|_| Errno::EMSGSIZE)?;
        let class = self.class.to_le_bytes()[0];
        // Version and header length; the kernel fills in the checksum.
        let mut packet = vec![0x45, class, 0, 0, 0, 0, 0x40, 0, self.hops, self.protocol, 0, 0];
        packet[2..4].copy_from_slice(&length.to_be_bytes());
        packet.extend(from.octets());
        packet.extend(to.octets());
        packet.extend(self.payload);
        Ok(packet)
    }

    fn over_ipv6(&self, from: Ipv6Addr, to: Ipv6Addr) -> Result<Vec<u8>> {
        let length = u16::try_from(self.payload.len()).map_err(|_| Errno::EMSGSIZE)?;
        let mut packet = (6 << 28 | self.class & 0x0fff_ffff).to_be_bytes().to_vec();
        packet.extend(length.to_be_bytes());
        packet.extend([self.protocol, self.hops]);
        packet.extend(from.octets());
        packet.extend(to.octets());
        packet.extend(self.payload);
        Ok(packet)
    }
}

/// The checksum of a transport header and content of `length` bytes over both addresses' pseudo header.
pub(crate) fn checksum(from: &SocketAddr, to: &SocketAddr, protocol: u8, length: u32, bytes: &[u8]) -> u16 {
    let address = |address: &SocketAddr| match address.ip().to_canonical() {
        IpAddr::V4(ip) => sum(&ip.octets()),
        IpAddr::V6(ip) => sum(&ip.octets()),
    };
    fold(address(from) + address(to) + u32::from(protocol) + (length >> 16) + (length & 0xffff) + sum(bytes))
}

/// Sum of 16-bit words, not folded.
fn sum(bytes: &[u8]) -> u32 {
    bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0))).sum()
}

fn fold(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(sum).map_or(0, |sum| !sum)
}

#[cfg(test)]
mod tests {
    use super::{fold, sum};

    #[test]
    fn checksum_of_a_known_header() {
        let header = [
            0x45, 0x00, 0x00, 0x73, 0x00, 0x00, 0x40, 0x00, 0x40, 0x11, 0x00, 0x00, 0xc0, 0xa8, 0x00, 0x01,
            0xc0, 0xa8, 0x00, 0xc7,
        ];
        assert_eq!(fold(sum(&header)), 0xb861);
        assert_eq!(fold(sum(&[0xff])), 0x00ff);
    }
}
