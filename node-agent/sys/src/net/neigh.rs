//! Neighbour entries: which hardware address an IP address has.

use std::net::IpAddr;

use super::message::{Attributes, CREATE, Message, REPLACE, family, ip, number, short};
use super::{Answer, Netlink};
use crate::Result;

const RTM_NEWNEIGH: u16 = 28;
const RTM_DELNEIGH: u16 = 29;
const RTM_GETNEIGH: u16 = 30;
const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
/// Bytes of `struct ndmsg`.
const HEADER: usize = 12;
const AF_BRIDGE: u8 = 7;

/// NUD_REACHABLE: confirmed lately.
pub const REACHABLE: u16 = 0x02;
/// NUD_STALE: usable, to be confirmed at the next use.
pub const STALE: u16 = 0x04;
/// NUD_NOARP.
pub const NOARP: u16 = 0x40;
/// NUD_PERMANENT: never asked for again.
pub const PERMANENT: u16 = 0x80;

/// An entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// Interface.
    pub index: u32,
    /// Address.
    pub ip: IpAddr,
    /// Hardware address, once known.
    pub mac: Option<Vec<u8>>,
    /// NUD_* state.
    pub state: u16,
    /// NTF_* flags.
    pub flags: u8,
}

fn parse(answer: &Answer) -> Option<Neighbour> {
    let payload = &answer.payload;
    let attributes = Attributes::after(payload, HEADER);
    Some(Neighbour {
        index: number(payload, 4)?,
        ip: attributes.find(NDA_DST).and_then(ip)?,
        mac: attributes.find(NDA_LLADDR).map(<[u8]>::to_vec),
        state: short(payload, 8)?,
        flags: *payload.get(10)?,
    })
}

fn header(family: u8, index: u32, state: u16, flags: u8) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    header[0] = family;
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..10].copy_from_slice(&state.to_ne_bytes());
    header[10] = flags;
    header
}

impl Netlink {
    /// All IP neighbour entries of the namespace.
    ///
    /// # Errors
    /// As [`Netlink::dump`].
    pub fn neighbours(&mut self) -> Result<Vec<Neighbour>> {
        let answers = self.dump(&Message::new(RTM_GETNEIGH, 0, &[0; HEADER]))?;
        let ip = |a: &&Answer| a.kind == RTM_NEWNEIGH && a.payload.first() != Some(&AF_BRIDGE);
        Ok(answers.iter().filter(ip).filter_map(parse).collect())
    }

    /// Sets an entry, replacing one for the same address; the state is one of the constants here.
    ///
    /// # Errors
    /// `ENODEV`, `EINVAL`.
    pub fn set_neighbour(&mut self, entry: &Neighbour) -> Result<()> {
        let head = header(family(entry.ip), entry.index, entry.state, entry.flags);
        let mut message = Message::new(RTM_NEWNEIGH, CREATE | REPLACE, &head);
        message.attr_ip(NDA_DST, entry.ip);
        if let Some(mac) = &entry.mac {
            message.attr(NDA_LLADDR, mac);
        }
        self.execute(&message)
    }

    /// Removes an entry.
    ///
    /// # Errors
    /// `ENOENT`.
    pub fn remove_neighbour(&mut self, index: u32, ip: IpAddr) -> Result<()> {
        let mut message = Message::new(RTM_DELNEIGH, 0, &header(family(ip), index, 0, 0));
        message.attr_ip(NDA_DST, ip);
        self.execute(&message)
    }

    /// Adds a static entry to a bridge's forwarding table: frames for `mac` leave by that port (bridge(8) fdb).
    ///
    /// # Errors
    /// `ENODEV`, `EINVAL` no port of a bridge.
    pub fn set_forwarding(&mut self, port: u32, mac: [u8; 6]) -> Result<()> {
        const NTF_MASTER: u8 = 4;
        let head = header(AF_BRIDGE, port, NOARP, NTF_MASTER);
        let mut message = Message::new(RTM_NEWNEIGH, CREATE | REPLACE, &head);
        message.attr(NDA_LLADDR, &mac);
        self.execute(&message)
    }
}
