//! The tables of rtnetlink(7) as they are: entries in the kernel's own bytes, to be listed, compared and set again
//! without knowing every attribute.

use super::Netlink;
use super::message::Message;
use crate::{Errno, Result};

/// A table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Table {
    /// Interfaces: `struct ifinfomsg`.
    Links,
    /// Addresses: `struct ifaddrmsg`.
    Addresses,
    /// Next hop objects: `struct nhmsg`.
    Nexthops,
    /// Routes of all tables: `struct rtmsg`.
    Routes,
    /// Routing rules of IPv4: `struct fib_rule_hdr`.
    Rules4,
    /// Routing rules of IPv6.
    Rules6,
    /// Neighbours: `struct ndmsg`.
    Neighbours,
    /// Addresses that are answered for (proxy ARP): `struct ndmsg`.
    Proxies,
    /// Forwarding tables of bridges: `struct ndmsg`.
    Forwarding,
    /// Multicast groups of bridges: `struct br_port_msg`.
    Groups,
    /// Queueing disciplines: `struct tcmsg`.
    Qdiscs,
}

impl Table {
    /// Type of the message that adds an entry; the next one removes it, the one after lists.
    const fn kind(self) -> u16 {
        match self {
            Self::Links => 16,
            Self::Addresses => 20,
            Self::Routes => 24,
            Self::Neighbours | Self::Proxies | Self::Forwarding => 28,
            Self::Rules4 | Self::Rules6 => 32,
            Self::Qdiscs => 36,
            Self::Groups => 84,
            Self::Nexthops => 104,
        }
    }

    /// Bytes of the structure before the attributes.
    #[must_use]
    pub const fn header(self) -> usize {
        match self {
            Self::Links => 16,
            Self::Addresses | Self::Nexthops | Self::Groups => 8,
            Self::Routes
            | Self::Rules4
            | Self::Rules6
            | Self::Neighbours
            | Self::Proxies
            | Self::Forwarding => 12,
            Self::Qdiscs => 20,
        }
    }

    /// The message that adds an entry; `flags` as [`super::message::CREATE`].
    #[must_use]
    pub fn add(self, flags: u16, header: &[u8]) -> Message {
        Message::new(self.kind(), flags, header)
    }

    /// The message that removes an entry.
    #[must_use]
    pub fn remove(self, header: &[u8]) -> Message {
        Message::new(self.kind() + 1, 0, header)
    }

    fn list(self) -> Message {
        const NTF_PROXY: u8 = 8;
        const IFLA_EXT_MASK: u16 = 29;
        /// RTEXT_FILTER_SKIP_STATS.
        const NO_COUNTERS: u32 = 8;
        const AF_INET: u8 = 2;
        const AF_INET6: u8 = 10;
        const AF_BRIDGE: u8 = 7;
        let mut header = vec![0; self.header()];
        match self {
            Self::Rules4 => header[0] = AF_INET,
            Self::Rules6 => header[0] = AF_INET6,
            Self::Forwarding | Self::Groups => header[0] = AF_BRIDGE,
            Self::Proxies => header[10] = NTF_PROXY,
            _ => {}
        }
        let mut message = Message::new(self.kind() + 2, 0, &header);
        if self == Self::Links {
            message.attr_u32(IFLA_EXT_MASK, NO_COUNTERS);
        }
        message
    }
}

impl Netlink {
    /// Every entry of a table: header and attributes. A table that the kernel does not have is empty.
    ///
    /// # Errors
    /// As [`Netlink::dump`].
    pub fn entries(&mut self, table: Table) -> Result<Vec<Vec<u8>>> {
        match self.dump(&table.list()) {
            Ok(answers) => Ok(answers
                .into_iter()
                .filter(|a| a.kind == table.kind() && a.payload.len() >= table.header())
                .map(|a| a.payload)
                .collect()),
            Err(Errno::EOPNOTSUPP | Errno::EAFNOSUPPORT) => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    /// Whether this network namespace has IPsec policies or associations (NETLINK_XFRM). False when the kernel has no
    /// IPsec.
    ///
    /// # Errors
    /// As [`Netlink::dump`].
    pub fn has_ipsec() -> Result<bool> {
        /// Type of a list request, bytes of its structure.
        const LISTS: [(u16, usize); 2] = [(18, 40), (21, 64)];
        let mut netlink = match Self::open_protocol(libc::NETLINK_XFRM) {
            Err(Errno::EPROTONOSUPPORT) => return Ok(false),
            other => other?,
        };
        for (kind, size) in LISTS {
            // A socket's own policy is listed, too, and is told by its socket.
            if !netlink.dump(&Message::new(kind, 0, &vec![0; size]))?.is_empty() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether this network namespace has IP sets. False when the kernel has none.
    ///
    /// # Errors
    /// As [`Netlink::dump`].
    pub fn has_ip_sets(&mut self) -> Result<bool> {
        const IPSET_LIST: u16 = 6 << 8 | 7;
        const PROTOCOL: u16 = 1;
        const SETNAME: u16 = 2;
        let mut message = Message::new(IPSET_LIST, 0, &[0; 4]);
        message.attr(PROTOCOL, &[6]);
        match self.dump(&message) {
            Ok(answers) => {
                Ok(answers.iter().any(|a| super::Attributes::after(&a.payload, 4).find(SETNAME).is_some()))
            }
            // The kernel has no sets, or their subsystem is not loaded.
            Err(Errno::EINVAL | Errno::EOPNOTSUPP | Errno::ENOENT | Errno::EPERM) => Ok(false),
            Err(error) => Err(error),
        }
    }
}
