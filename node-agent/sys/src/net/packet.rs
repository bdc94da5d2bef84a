//! Whole Ethernet frames out of an interface, and the frames that tell a network where an address lives now.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::{Result, sock};

/// A raw socket bound to one interface that sends and receives nothing.
#[derive(Debug)]
pub struct PacketSocket {
    fd: OwnedFd,
}

const SOL_PACKET: i32 = 263;
const PACKET_QDISC_BYPASS: i32 = 20;

impl PacketSocket {
    /// Opens one on interface `index` of the calling thread's network namespace.
    ///
    /// # Errors
    /// `ENODEV`, `EPERM` without CAP_NET_RAW.
    pub fn open(index: u32) -> Result<Self> {
        let fd = sock::socket(libc::AF_PACKET, libc::SOCK_RAW, 0)?;
        // struct sockaddr_ll: family, protocol 0 (receive nothing), interface, unused rest.
        let mut address = vec![0; 20];
        address[..2].copy_from_slice(&17_u16.to_ne_bytes());
        address[4..8].copy_from_slice(&index.to_ne_bytes());
        sock::bind(fd.as_fd(), &sock::Address::Other(address))?;
        Ok(Self { fd })
    }

    /// Sends past queueing disciplines and egress filters (PACKET_QDISC_BYPASS), so past a network lock, or no longer.
    ///
    /// # Errors
    /// None known.
    pub fn bypass_filters(&self, past: bool) -> Result<()> {
        sock::set_int(self.fd.as_fd(), SOL_PACKET, PACKET_QDISC_BYPASS, i32::from(past))
    }

    /// Sends a frame, Ethernet header first.
    ///
    /// # Errors
    /// `ENETDOWN`, `EMSGSIZE` longer than the interface's MTU, `ENXIO` the interface is gone, `ENOBUFS`.
    pub fn send(&self, frame: &[u8]) -> Result<()> {
        sock::send(self.fd.as_fd(), frame, &[], None, None, 0).map(drop)
    }
}

impl AsFd for PacketSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The frame that announces where `ip` lives: gratuitous ARP or an unsolicited neighbour advertisement.
#[must_use]
pub fn announcement(mac: [u8; 6], ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => gratuitous_arp(mac, ip),
        IpAddr::V6(ip) => neighbour_advertisement(mac, ip),
    }
}

/// An ARP request for one's own address, to all (RFC 5227, announcement).
#[must_use]
pub fn gratuitous_arp(mac: [u8; 6], ip: Ipv4Addr) -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend(mac);
    // ARP; Ethernet, IPv4, lengths 6 and 4, request.
    frame.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend(mac);
    frame.extend(ip.octets());
    frame.extend([0; 6]);
    frame.extend(ip.octets());
    frame
}

/// An unsolicited neighbour advertisement with the override flag, to all nodes (RFC 4861, 7.2.6).
#[must_use]
pub fn neighbour_advertisement(mac: [u8; 6], ip: Ipv6Addr) -> Vec<u8> {
    let all_nodes = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    // Type 136, code 0, checksum, flags: override; target; option 2: target's link-layer address.
    let mut icmp = vec![136, 0, 0, 0, 0x20, 0, 0, 0];
    icmp.extend(ip.octets());
    icmp.extend([2, 1]);
    icmp.extend(mac);
    let check = checksum(&[&ip.octets(), &all_nodes.octets(), &[0, 0, 0, 32, 0, 0, 0, 58], &icmp]);
    icmp[2..4].copy_from_slice(&check.to_be_bytes());

    let mut frame = vec![0x33, 0x33, 0, 0, 0, 1];
    frame.extend(mac);
    // IPv6; version 6, length 32, ICMPv6, hop limit 255.
    frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 32, 58, 255]);
    frame.extend(ip.octets());
    frame.extend(all_nodes.octets());
    frame.extend(icmp);
    frame
}

/// The internet checksum of parts of even length.
fn checksum(parts: &[&[u8]]) -> u16 {
    let words = parts.iter().flat_map(|part| part.chunks_exact(2));
    let mut sum: u32 = words.map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(sum).map_or(0, |sum| !sum)
}
