//! Interfaces.

use std::os::fd::{AsRawFd, BorrowedFd};

use super::message::{Attributes, CREATE, EXCLUSIVE, Message, number, short, string};
use super::{Answer, Netlink};
use crate::{Errno, Result};

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINK: u16 = 5;
const IFLA_MASTER: u16 = 10;
const IFLA_TXQLEN: u16 = 13;
const IFLA_LINKINFO: u16 = 18;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_LINK_NETNSID: u16 = 37;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const VETH_INFO_PEER: u16 = 1;

/// Bytes of `struct ifinfomsg`.
const HEADER: usize = 16;
const IFF_UP: u32 = 1;

/// An interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its number in its network namespace.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// ARPHRD_*: 1 Ethernet, 772 loopback.
    pub hardware: u16,
    /// IFF_* flags.
    pub flags: u32,
    /// Hardware address.
    pub mac: Vec<u8>,
    /// Largest packet, bytes.
    pub mtu: u32,
    /// Length of the transmit queue, packets.
    pub tx_queue: u32,
    /// The bridge (or bond, VRF) it is a port of.
    pub master: Option<u32>,
    /// "veth", "bridge", "macvlan" ...; none for physical ones and loopback.
    pub kind: Option<String>,
    /// The interface it is bound to: a veth's other end, a VLAN's or macvlan's lower one.
    pub lower: Option<u32>,
    /// `lower` is in another namespace, which this one knows by that number.
    pub lower_netns: Option<i32>,
    /// IFLA_LINKINFO as the kernel gave it: the kind's own settings.
    pub info: Vec<u8>,
}

impl Link {
    /// Whether it is up.
    #[must_use]
    pub const fn is_up(&self) -> bool {
        self.flags & IFF_UP != 0
    }

    fn parse(answer: &Answer) -> Option<Self> {
        if answer.kind != RTM_NEWLINK {
            return None;
        }
        let payload = &answer.payload;
        let attributes = Attributes::after(payload, HEADER);
        let info = attributes.find(IFLA_LINKINFO).unwrap_or(&[]);
        Some(Self {
            index: number(payload, 4)?,
            name: string(attributes.find(IFLA_IFNAME)?),
            hardware: short(payload, 2)?,
            flags: number(payload, 8)?,
            mac: attributes.find(IFLA_ADDRESS).unwrap_or(&[]).to_vec(),
            mtu: attributes.find_u32(IFLA_MTU).unwrap_or(0),
            tx_queue: attributes.find_u32(IFLA_TXQLEN).unwrap_or(0),
            master: attributes.find_u32(IFLA_MASTER),
            kind: Attributes(info).find(IFLA_INFO_KIND).map(string),
            lower: attributes.find_u32(IFLA_LINK),
            lower_netns: attributes.find_u32(IFLA_LINK_NETNSID).map(u32::cast_signed),
            info: info.to_vec(),
        })
    }
}

/// What a new interface shall be.
#[derive(Clone, Copy, Debug, Default)]
pub struct NewLink<'a> {
    /// Name.
    pub name: &'a str,
    /// Hardware address; otherwise random.
    pub mac: Option<[u8; 6]>,
    /// Largest packet.
    pub mtu: Option<u32>,
    /// The number it shall have.
    pub index: Option<u32>,
    /// The network namespace it shall be in; otherwise that of the socket.
    pub netns: Option<BorrowedFd<'a>>,
}

impl NewLink<'_> {
    fn header(&self) -> [u8; HEADER] {
        header(self.index.unwrap_or(0), 0, 0)
    }

    fn attributes(&self, message: &mut Message) {
        message.attr_str(IFLA_IFNAME, self.name);
        if let Some(mac) = self.mac {
            message.attr(IFLA_ADDRESS, &mac);
        }
        if let Some(mtu) = self.mtu {
            message.attr_u32(IFLA_MTU, mtu);
        }
        if let Some(netns) = self.netns {
            message.attr(IFLA_NET_NS_FD, &netns.as_raw_fd().to_ne_bytes());
        }
    }
}

fn header(index: u32, flags: u32, change: u32) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..12].copy_from_slice(&flags.to_ne_bytes());
    header[12..].copy_from_slice(&change.to_ne_bytes());
    header
}

fn change(index: u32) -> Message {
    Message::new(RTM_NEWLINK, 0, &header(index, 0, 0))
}

/// The prepared message that makes an interface a port of `master`, or of nothing: for the pause.
#[must_use]
pub fn master_message(index: u32, master: Option<u32>) -> Message {
    let mut message = change(index);
    message.attr_u32(IFLA_MASTER, master.unwrap_or(0));
    message
}

/// The prepared message that takes an interface up or down.
#[must_use]
pub fn up_message(index: u32, up: bool) -> Message {
    Message::new(RTM_NEWLINK, 0, &header(index, if up { IFF_UP } else { 0 }, IFF_UP))
}

impl Netlink {
    /// All interfaces of the namespace.
    ///
    /// # Errors
    /// As [`Netlink::dump`].
    pub fn links(&mut self) -> Result<Vec<Link>> {
        let answers = self.dump(&Message::new(RTM_GETLINK, 0, &[0; HEADER]))?;
        Ok(answers.iter().filter_map(Link::parse).collect())
    }

    /// One interface by name.
    ///
    /// # Errors
    /// `ENODEV` no such interface.
    pub fn link(&mut self, name: &str) -> Result<Link> {
        let mut message = Message::new(RTM_GETLINK, 0, &[0; HEADER]);
        message.attr_str(IFLA_IFNAME, name);
        let answers = self.query(&message)?;
        answers.iter().find_map(Link::parse).ok_or(Errno::ENODEV)
    }

    /// One interface by number.
    ///
    /// # Errors
    /// `ENODEV` no such interface.
    pub fn link_by_index(&mut self, index: u32) -> Result<Link> {
        let answers = self.query(&Message::new(RTM_GETLINK, 0, &header(index, 0, 0)))?;
        answers.iter().find_map(Link::parse).ok_or(Errno::ENODEV)
    }

    /// Creates a pair of veth interfaces.
    ///
    /// # Errors
    /// `EEXIST` a name is taken, `EBUSY` a number is, `EPERM`.
    pub fn add_veth(&mut self, one: &NewLink<'_>, other: &NewLink<'_>) -> Result<()> {
        let mut message = Message::new(RTM_NEWLINK, CREATE | EXCLUSIVE, &one.header());
        one.attributes(&mut message);
        message.nest(IFLA_LINKINFO, |info| {
            info.attr_str(IFLA_INFO_KIND, "veth").nest(IFLA_INFO_DATA, |data| {
                data.nest_after(VETH_INFO_PEER, &other.header(), |peer| other.attributes(peer));
            });
        });
        self.execute(&message)
    }

    /// Creates a bridge (or another kind that needs no settings: "ifb").
    ///
    /// # Errors
    /// `EEXIST`, `EOPNOTSUPP` unknown kind, `EPERM`.
    pub fn add_plain(&mut self, kind: &str, link: &NewLink<'_>) -> Result<()> {
        let mut message = Message::new(RTM_NEWLINK, CREATE | EXCLUSIVE, &link.header());
        link.attributes(&mut message);
        message.nest(IFLA_LINKINFO, |info| {
            info.attr_str(IFLA_INFO_KIND, kind);
        });
        self.execute(&message)
    }

    /// Creates a bridge.
    ///
    /// # Errors
    /// `EEXIST`, `EPERM`.
    pub fn add_bridge(&mut self, name: &str) -> Result<()> {
        self.add_plain("bridge", &NewLink { name, ..NewLink::default() })
    }

    /// Deletes an interface (a veth's other end goes along).
    ///
    /// # Errors
    /// `ENODEV`, `EOPNOTSUPP` it cannot be deleted.
    pub fn delete_link(&mut self, index: u32) -> Result<()> {
        self.execute(&Message::new(RTM_DELLINK, 0, &header(index, 0, 0)))
    }

    /// Takes it up or down.
    ///
    /// # Errors
    /// `ENODEV`, `EPERM`.
    pub fn set_up(&mut self, index: u32, up: bool) -> Result<()> {
        self.execute(&up_message(index, up))
    }

    /// Makes it a port of `master`, or of nothing.
    ///
    /// # Errors
    /// `ENODEV`, `EBUSY`, `EINVAL` that is no master.
    pub fn set_master(&mut self, index: u32, master: Option<u32>) -> Result<()> {
        self.execute(&master_message(index, master))
    }

    /// Renames it.
    ///
    /// # Errors
    /// `EEXIST`, `EINVAL`, `ENODEV`.
    pub fn rename(&mut self, index: u32, name: &str) -> Result<()> {
        let mut message = change(index);
        message.attr_str(IFLA_IFNAME, name);
        self.execute(&message)
    }

    /// Sets its hardware address.
    ///
    /// # Errors
    /// `EADDRNOTAVAIL`, `EBUSY` some kinds must be down, `ENODEV`.
    pub fn set_mac(&mut self, index: u32, mac: [u8; 6]) -> Result<()> {
        let mut message = change(index);
        message.attr(IFLA_ADDRESS, &mac);
        self.execute(&message)
    }

    /// Sets its largest packet.
    ///
    /// # Errors
    /// `EINVAL` out of the driver's range, `ENODEV`.
    pub fn set_mtu(&mut self, index: u32, mtu: u32) -> Result<()> {
        let mut message = change(index);
        message.attr_u32(IFLA_MTU, mtu);
        self.execute(&message)
    }

    /// Sets the length of its transmit queue, packets.
    ///
    /// # Errors
    /// `ENODEV`.
    pub fn set_tx_queue(&mut self, index: u32, packets: u32) -> Result<()> {
        let mut message = change(index);
        message.attr_u32(IFLA_TXQLEN, packets);
        self.execute(&message)
    }

    /// Moves it to another network namespace, under a new name if one is given. It arrives down.
    ///
    /// # Errors
    /// `EEXIST` the name is taken there, `EINVAL` such an interface is bound to its namespace.
    pub fn move_to(&mut self, index: u32, netns: BorrowedFd<'_>, name: Option<&str>) -> Result<()> {
        let mut message = change(index);
        message.attr(IFLA_NET_NS_FD, &netns.as_raw_fd().to_ne_bytes());
        if let Some(name) = name {
            message.attr_str(IFLA_IFNAME, name);
        }
        self.execute(&message)
    }
}
