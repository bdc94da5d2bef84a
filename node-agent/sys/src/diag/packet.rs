//! Packet sockets (packet(7)).

use super::{Diag, SOCK_DIAG_BY_FAMILY};
use crate::Result;
use crate::net::Answer;
use crate::net::message::{Attributes, Message, number, short};

/// A packet socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PacketSocket {
    /// Inode of its descriptor.
    pub inode: u32,
    /// SOCK_RAW or SOCK_DGRAM; SOCK_PACKET is obsolete.
    pub kind: u8,
    /// The protocol that it hears, in the host's byte order; 0 = none.
    pub protocol: u16,
    /// The interface that it is bound to; 0 = all.
    pub interface: u32,
    /// PACKET_COPY_THRESH.
    pub copy_threshold: u32,
    /// It has a ring, to receive or to send.
    pub has_ring: bool,
    /// It is in a group (PACKET_FANOUT).
    pub has_fanout: bool,
    /// What it has made interfaces listen to.
    pub memberships: Vec<PacketMembership>,
}

/// PACKET_ADD_MEMBERSHIP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PacketMembership {
    /// The interface.
    pub interface: u32,
    /// How often it was asked for.
    pub count: u32,
    /// PACKET_MR_MULTICAST ...
    pub kind: u16,
    /// The address, for those that have one.
    pub address: Vec<u8>,
}

const HEADER: usize = 16;
/// Bytes of `struct packet_diag_mclist`.
const MEMBERSHIP: usize = 44;

impl Diag {
    /// All packet sockets.
    ///
    /// # Errors
    /// `ENOENT` the kernel does not tell (`CONFIG_PACKET_DIAG`); as [`crate::net::Netlink::dump`].
    pub fn packet(&mut self) -> Result<Vec<PacketSocket>> {
        const SHOW_INFO_MEMBERSHIPS_RINGS_FANOUT: u32 = 15;
        // struct packet_diag_req: family, protocol, pad, inode, show, cookie.
        let mut request = [0_u8; 20];
        request[0] = u8::try_from(libc::AF_PACKET).unwrap_or(0);
        request[8..12].copy_from_slice(&SHOW_INFO_MEMBERSHIPS_RINGS_FANOUT.to_ne_bytes());
        let answers = self.netlink.dump(&Message::new(SOCK_DIAG_BY_FAMILY, 0, &request))?;
        Ok(answers.iter().filter_map(socket).collect())
    }
}

fn socket(answer: &Answer) -> Option<PacketSocket> {
    const INFO: u16 = 0;
    const MEMBERSHIPS: u16 = 1;
    const RINGS: [u16; 2] = [2, 3];
    const FANOUT: u16 = 4;
    let payload = answer.payload.as_slice();
    let attributes = Attributes::after(payload, HEADER);
    let info = attributes.find(INFO)?;
    let memberships = attributes.find(MEMBERSHIPS).unwrap_or(&[]).chunks_exact(MEMBERSHIP);
    Some(PacketSocket {
        kind: *payload.get(1)?,
        protocol: short(payload, 2)?,
        inode: number(payload, 4)?,
        interface: number(info, 0)?,
        copy_threshold: number(info, 12)?,
        has_ring: RINGS.iter().any(|ring| attributes.find(*ring).is_some()),
        has_fanout: attributes.find(FANOUT).is_some(),
        memberships: memberships.map(membership).collect::<Option<_>>()?,
    })
}

fn membership(bytes: &[u8]) -> Option<PacketMembership> {
    let length = usize::from(short(bytes, 10)?);
    Some(PacketMembership {
        interface: number(bytes, 0)?,
        count: number(bytes, 4)?,
        kind: short(bytes, 8)?,
        address: bytes.get(12..12 + length)?.to_vec(),
    })
}
