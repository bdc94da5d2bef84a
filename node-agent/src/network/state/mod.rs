//! What a container has in its network namespace besides the link that the runtime gave it: read at the source, set at
//! the target.
//!
//! Everything is read from the kernel's tables (rtnetlink(7), nfnetlink, /proc/sys/net) and kept in their bytes, made
//! comparable by [`normal`]. The target is brought to the wanted state by differences ([`plan`], pure): it lists what it has, does
//! what is missing, and lists again until nothing is missing. What it cannot take over is therefore found by itself, before
//! the freeze: the whole state is set once while the container still runs, and in the pause only what changed since.
//!
//! [`read::Reader`] reads, [`apply::apply`] sets, [`check::refusals`] names what cannot be carried.

pub mod apply;
pub mod check;
pub mod conntrack;
pub mod item;
pub mod links;
pub mod nft;
pub mod normal;
pub mod plan;
pub mod read;
pub mod sysctl;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use image::codec;
use serde::{Deserialize, Serialize};

pub use self::item::Item;
pub use self::links::Link;
pub use self::nft::Ruleset;
pub use self::sysctl::Setting;

/// Version of [`NetState`]'s bytes.
const VERSION: u8 = 1;

/// Largest state that is carried, bytes; twice as much fits a message between agents.
pub const MAX_STATE: usize = 16 * 1024 * 1024;

/// A part of the state, which is read, compared and sent by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Section {
    /// Interfaces.
    Links,
    /// /proc/sys/net.
    Sysctls,
    /// Addresses.
    Addresses,
    /// Next hop objects.
    Nexthops,
    /// Routes.
    Routes,
    /// Rules of both families.
    Rules,
    /// Neighbours, also permanent ones and proxies.
    Neighbours,
    /// Static entries of bridges' forwarding tables.
    Forwarding,
    /// Queueing disciplines.
    Qdiscs,
    /// nftables.
    Nft,
    /// Tracked connections.
    Conntrack,
}

impl Section {
    /// All, in the order in which they are set: each may need the ones before it.
    pub const ALL: [Self; 11] = [
        Self::Links,
        Self::Sysctls,
        Self::Addresses,
        Self::Nexthops,
        Self::Routes,
        Self::Rules,
        Self::Neighbours,
        Self::Forwarding,
        Self::Qdiscs,
        Self::Nft,
        Self::Conntrack,
    ];

    /// What it holds, in words.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Links => "interfaces",
            Self::Sysctls => "sysctls",
            Self::Addresses => "addresses",
            Self::Nexthops => "next hops",
            Self::Routes => "routes",
            Self::Rules => "routing rules",
            Self::Neighbours => "neighbours",
            Self::Forwarding => "forwarding entries",
            Self::Qdiscs => "queueing disciplines",
            Self::Nft => "nftables",
            Self::Conntrack => "tracked connections",
        }
    }
}

/// The state, or those sections of it that are spoken of. A section that is missing is not spoken of.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetState {
    /// Interfaces by number.
    pub links: Option<BTreeMap<u32, Link>>,
    /// Settings under /proc/sys/net by name.
    pub sysctls: Option<BTreeMap<String, Setting>>,
    /// nftables.
    pub nft: Option<Ruleset>,
    /// Every other section: entries in the kernel's order.
    pub tables: BTreeMap<Section, Vec<Item>>,
}

/// Why bytes are no state.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// Another version of this program wrote them.
    #[error("the network state has version {0}, not {VERSION}")]
    Version(u8),
    /// More than [`MAX_STATE`].
    #[error("the network state has {0} bytes, more than {MAX_STATE}")]
    Size(usize),
    /// They are broken.
    #[error("the network state is not understood")]
    Malformed(#[source] codec::CodecError),
}

impl NetState {
    /// As bytes.
    ///
    /// # Errors
    /// When they are more than [`MAX_STATE`].
    pub fn encode(&self) -> Result<Vec<u8>, DecodeError> {
        let mut bytes = vec![VERSION];
        bytes.extend(codec::encode(self).map_err(DecodeError::Malformed)?);
        if bytes.len() > MAX_STATE { Err(DecodeError::Size(bytes.len())) } else { Ok(bytes) }
    }

    /// From bytes that another agent sent. Memory is allocated only as bytes back it.
    ///
    /// # Errors
    /// When they are not a state of this version and of at most [`MAX_STATE`] bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        if bytes.len() > MAX_STATE {
            return Err(DecodeError::Size(bytes.len()));
        }
        match bytes.split_first() {
            Some((&VERSION, rest)) => codec::decode(rest).map_err(DecodeError::Malformed),
            Some((version, _)) => Err(DecodeError::Version(*version)),
            None => Err(DecodeError::Version(0)),
        }
    }

    /// The sections that it speaks of.
    #[must_use]
    pub fn sections(&self) -> Vec<Section> {
        Section::ALL.into_iter().filter(|section| self.has(*section)).collect()
    }

    fn has(&self, section: Section) -> bool {
        match section {
            Section::Links => self.links.is_some(),
            Section::Sysctls => self.sysctls.is_some(),
            Section::Nft => self.nft.is_some(),
            other => self.tables.contains_key(&other),
        }
    }

    /// The entries of a table; none when it is not spoken of.
    #[must_use]
    pub fn table(&self, section: Section) -> &[Item] {
        self.tables.get(&section).map_or(&[], Vec::as_slice)
    }

    /// What `self` says otherwise than `before`: only sections that differ.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        let differs = |section: &Section| self.tables.get(section) != before.tables.get(section);
        Self {
            links: self.links.clone().filter(|_| self.links != before.links),
            sysctls: self.sysctls.clone().filter(|_| self.sysctls != before.sysctls),
            nft: self.nft.clone().filter(|_| self.nft != before.nft),
            tables: self
                .tables
                .iter()
                .filter(|(section, _)| differs(section))
                .map(|(section, items)| (*section, items.clone()))
                .collect(),
        }
    }

    /// Takes over every section that `changes` speaks of.
    pub fn update(&mut self, changes: Self) {
        self.links = changes.links.or(self.links.take());
        self.sysctls = changes.sysctls.or(self.sysctls.take());
        self.nft = changes.nft.or(self.nft.take());
        self.tables.extend(changes.tables);
    }

    /// These sections alone.
    #[must_use]
    pub fn only(&self, sections: &[Section]) -> Self {
        let has = |section| sections.contains(&section);
        Self {
            links: self.links.clone().filter(|_| has(Section::Links)),
            sysctls: self.sysctls.clone().filter(|_| has(Section::Sysctls)),
            nft: self.nft.clone().filter(|_| has(Section::Nft)),
            tables: self
                .tables
                .iter()
                .filter(|(section, _)| has(**section))
                .map(|(section, items)| (*section, items.clone()))
                .collect(),
        }
    }

    /// Whether it says nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.sections().is_empty()
    }

    /// Addresses of an interface that other hosts may know: not those of its link alone.
    #[must_use]
    pub fn addresses_of(&self, index: u32) -> Vec<std::net::IpAddr> {
        normal::global_addresses(self.table(Section::Addresses), index)
    }
}
