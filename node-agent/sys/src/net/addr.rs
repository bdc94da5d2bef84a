//! Addresses of interfaces.

use std::net::IpAddr;

use super::message::{Attributes, CREATE, EXCLUSIVE, Message, family, ip, number};
use super::{Answer, Netlink};
use crate::{Errno, Result};

const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_GETADDR: u16 = 22;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_BROADCAST: u16 = 4;
const IFA_FLAGS: u16 = 8;
/// Bytes of `struct ifaddrmsg`.
const HEADER: usize = 8;

/// No duplicate address detection: usable at once.
pub const NODAD: u32 = 0x02;
/// Detection is under way: not usable.
pub const TENTATIVE: u32 = 0x40;
/// Has no lifetime.
pub const PERMANENT: u32 = 0x80;

/// An address of an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InterfaceAddress {
    /// Interface.
    pub index: u32,
    /// Address.
    pub ip: IpAddr,
    /// Length of the network part.
    pub prefix: u8,
    /// [`PERMANENT`] and its like.
    pub flags: u32,
    /// RT_SCOPE_*: 0 universe, 253 link, 254 host.
    pub scope: u8,
    /// The other end of a point-to-point address.
    pub peer: Option<IpAddr>,
    /// The whole entry as the kernel gave it, for [`Netlink::replay_address`].
    pub raw: Vec<u8>,
}

fn parse(answer: &Answer) -> Option<InterfaceAddress> {
    let payload = &answer.payload;
    let attributes = Attributes::after(payload, HEADER);
    let address = attributes.find(IFA_ADDRESS).and_then(ip);
    let local = attributes.find(IFA_LOCAL).and_then(ip);
    let own = local.or(address)?;
    Some(InterfaceAddress {
        index: number(payload, 4)?,
        ip: own,
        prefix: *payload.get(1)?,
        flags: attributes.find_u32(IFA_FLAGS).unwrap_or(u32::from(*payload.get(2)?)),
        scope: *payload.get(3)?,
        peer: address.filter(|peer| *peer != own),
        raw: payload.clone(),
    })
}

fn header(ip: IpAddr, prefix: u8, index: u32) -> [u8; HEADER] {
    let mut header = [family(ip), prefix, 0, 0, 0, 0, 0, 0];
    header[4..].copy_from_slice(&index.to_ne_bytes());
    header
}

impl Netlink {
    /// All addresses of the namespace.
    ///
    /// # Errors
    /// As [`Netlink::dump`].
    pub fn addresses(&mut self) -> Result<Vec<InterfaceAddress>> {
        let answers = self.dump(&Message::new(RTM_GETADDR, 0, &[0; HEADER]))?;
        Ok(answers.iter().filter(|a| a.kind == RTM_NEWADDR).filter_map(parse).collect())
    }

    /// Adds an address. IPv6 ones are usable at once (no duplicate address detection).
    ///
    /// # Errors
    /// `EEXIST`, `ENODEV`, `EACCES` IPv6 is disabled there.
    pub fn add_address(&mut self, index: u32, ip: IpAddr, prefix: u8) -> Result<()> {
        let mut message = Message::new(RTM_NEWADDR, CREATE | EXCLUSIVE, &header(ip, prefix, index));
        message.attr_ip(IFA_LOCAL, ip).attr_ip(IFA_ADDRESS, ip);
        match ip {
            IpAddr::V4(v4) if prefix < 31 => {
                let host = u32::MAX >> prefix;
                message.attr(IFA_BROADCAST, &(u32::from(v4) | host).to_be_bytes());
            }
            IpAddr::V4(_) => {}
            IpAddr::V6(_) => {
                message.attr_u32(IFA_FLAGS, NODAD);
            }
        }
        self.execute(&message)
    }

    /// Sets a listed address again, on the interface that has `index` now, with all its attributes. IPv6 ones
    /// are usable at once.
    ///
    /// # Errors
    /// As [`Netlink::add_address`]; `EINVAL` not an entry.
    pub fn replay_address(&mut self, raw: &[u8], index: u32) -> Result<()> {
        let mut header: [u8; HEADER] =
            raw.get(..HEADER).and_then(|h| h.try_into().ok()).ok_or(Errno::EINVAL)?;
        header[4..].copy_from_slice(&index.to_ne_bytes());
        let mut message = Message::new(RTM_NEWADDR, CREATE | EXCLUSIVE, &header);
        let mut flags = u32::from(header[2]);
        for (kind, data) in Attributes::after(raw, HEADER) {
            match kind {
                IFA_FLAGS => flags = number(data, 0).unwrap_or(flags),
                _ => {
                    message.attr(kind, data);
                }
            }
        }
        message.attr_u32(IFA_FLAGS, (flags & !TENTATIVE) | NODAD);
        self.execute(&message)
    }

    /// Removes an address.
    ///
    /// # Errors
    /// `EADDRNOTAVAIL`, `ENODEV`.
    pub fn remove_address(&mut self, index: u32, ip: IpAddr, prefix: u8) -> Result<()> {
        let mut message = Message::new(RTM_DELADDR, 0, &header(ip, prefix, index));
        message.attr_ip(IFA_LOCAL, ip);
        self.execute(&message)
    }
}
