//! Segments as if from the peer, given to our own stack: how a FIN gets into a receive queue, and an
//! acknowledgement into a send queue. They go over the loopback interface of the calling thread's network
//! namespace and never leave it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::sock::{self, Address};
use crate::{Errno, Result};

/// What a segment says.
pub(super) struct Segment {
    /// Its source: the peer.
    pub(super) from: SocketAddr,
    /// Its destination: us.
    pub(super) to: SocketAddr,
    pub(super) seq: u32,
    pub(super) ack: u32,
    /// As on the wire: already scaled down.
    pub(super) window: u16,
    pub(super) fin: bool,
}

/// An IPv4-mapped IPv6 address is spoken to over IPv4.
fn wire(address: &SocketAddr) -> IpAddr {
    address.ip().to_canonical()
}

/// Sends it to ourselves.
pub(super) fn inject(segment: &Segment) -> Result<()> {
    let (from, to) = (wire(&segment.from), wire(&segment.to));
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let tcp = tcp(segment, sum(&from.octets()) + sum(&to.octets()));
            let packet = ipv4(from, to, &tcp);
            let fd = sock::socket(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_RAW)?;
            send(&fd, &packet, SocketAddr::new(to.into(), 0))
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let tcp = tcp(segment, sum(&from.octets()) + sum(&to.octets()));
            let packet = ipv6(from, to, &tcp);
            let fd = sock::socket(libc::AF_INET6, libc::SOCK_RAW, libc::IPPROTO_RAW)?;
            let mut to = segment.to;
            to.set_port(0);
            send(&fd, &packet, to)
        }
        _ => Err(Errno::EAFNOSUPPORT),
    }
}

fn send(fd: &std::os::fd::OwnedFd, packet: &[u8], to: SocketAddr) -> Result<()> {
    use std::os::fd::AsFd;
    sock::send(fd.as_fd(), packet, &[], None, Some(&Address::Inet(to)), 0).map(drop)
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

fn tcp(segment: &Segment, addresses: u32) -> [u8; 20] {
    const FIN: u8 = 1;
    const ACK: u8 = 16;
    let mut tcp = [0_u8; 20];
    tcp[..2].copy_from_slice(&segment.from.port().to_be_bytes());
    tcp[2..4].copy_from_slice(&segment.to.port().to_be_bytes());
    tcp[4..8].copy_from_slice(&segment.seq.to_be_bytes());
    tcp[8..12].copy_from_slice(&segment.ack.to_be_bytes());
    tcp[12] = 5 << 4;
    tcp[13] = if segment.fin { FIN | ACK } else { ACK };
    tcp[14..16].copy_from_slice(&segment.window.to_be_bytes());
    // The pseudo header: addresses, protocol 6, length 20.
    let check = fold(addresses + 6 + 20 + sum(&tcp));
    tcp[16..18].copy_from_slice(&check.to_be_bytes());
    tcp
}

fn ipv4(from: Ipv4Addr, to: Ipv4Addr, tcp: &[u8; 20]) -> Vec<u8> {
    // Version and header length, length 40, time to live 64, protocol 6; the kernel fills in the checksum.
    let mut packet = vec![0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0];
    packet.extend(from.octets());
    packet.extend(to.octets());
    packet.extend(tcp);
    packet
}

fn ipv6(from: Ipv6Addr, to: Ipv6Addr, tcp: &[u8; 20]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0, 0, 20, 6, 64];
    packet.extend(from.octets());
    packet.extend(to.octets());
    packet.extend(tcp);
    packet
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
