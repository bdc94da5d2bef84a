//! Interfaces of a container, as far as they can be made again.

use serde::{Deserialize, Serialize};
use sys::net::message::{Attributes, number, short, string};

use super::item::nested;

/// Attributes of a link (`IFLA_*`).
pub(super) mod attr {
    pub(crate) const ADDRESS: u16 = 1;
    pub(crate) const NAME: u16 = 3;
    pub(crate) const MTU: u16 = 4;
    pub(crate) const LINK: u16 = 5;
    pub(crate) const MASTER: u16 = 10;
    pub(crate) const TX_QUEUE: u16 = 13;
    pub(crate) const INFO: u16 = 18;
    pub(crate) const ALIAS: u16 = 20;
    pub(crate) const AF_SPEC: u16 = 26;
    pub(crate) const GROUP: u16 = 27;
    pub(crate) const LINK_NETNSID: u16 = 37;
    pub(crate) const XDP: u16 = 43;
    pub(crate) const PROPERTIES: u16 = 52;
    pub(crate) const ALT_NAME: u16 = 53;
    pub(crate) const INFO_KIND: u16 = 1;
    pub(crate) const INFO_DATA: u16 = 2;
    pub(crate) const INFO_PORT_KIND: u16 = 4;
    pub(crate) const INFO_PORT_DATA: u16 = 5;
    /// Numbers of 32 bits that are set as they are listed: largest segments that the link takes and builds.
    pub(crate) const SEGMENTS: [u16; 5] = [40, 41, 58, 63, 64];
}

/// IFF_UP.
pub(super) const UP: u32 = 1;
/// Flags that a user sets: up, debug, no ARP, promiscuous, all multicast, multicast, dynamic.
const FLAGS: u32 = UP | 0x4 | 0x80 | 0x100 | 0x200 | 0x1000 | 0x8000;

/// An interface.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// Its number.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// `veth`, `bridge` ...; `None` for loopback and hardware.
    pub kind: Option<String>,
    /// ARPHRD_*.
    pub hardware: u16,
    /// Hardware address.
    pub mac: Vec<u8>,
    /// Largest packet.
    pub mtu: u32,
    /// Length of the transmit queue, packets.
    pub tx_queue: u32,
    /// IFF_* flags that a user sets.
    pub flags: u32,
    /// The user's comment.
    pub alias: String,
    /// Group.
    pub group: u32,
    /// Other names.
    pub alt_names: Vec<String>,
    /// The bridge that it is a port of.
    pub master: Option<u32>,
    /// A veth's other end; the interface below a macvlan or VLAN.
    pub lower: Option<u32>,
    /// `lower` counts in another network namespace.
    pub outside: bool,
    /// Settings of its kind that can be set.
    pub settings: Vec<(u16, Vec<u8>)>,
    /// Settings as a port of its bridge.
    pub port: Vec<(u16, Vec<u8>)>,
    /// Attributes of 32 bits.
    pub segments: Vec<(u16, u32)>,
    /// Features that are switched: `tx-checksum-ip-generic` ...
    pub features: Vec<(String, bool)>,
    /// Why it cannot be made again, besides its kind.
    pub obstacle: Option<String>,
}

/// Settings of a kind that are set as they are listed; `None` for a kind that cannot be made again.
pub(super) fn settable(kind: &str) -> Option<&'static [u16]> {
    Some(match kind {
        "veth" | "dummy" | "ifb" => &[],
        "bridge" => &[
            1, 2, 3, 4, 5, 6, 9, 20, 22, 23, 24, 25, 27, 28, 29, 30, 31, 32, 33, 34, 35, 36, 37, 38, 42, 43,
            44, 46, 49,
        ],
        // Mode, flags, length of the broadcast queue.
        "macvlan" | "macvtap" => &[1, 2, 7],
        // Number, flags, maps of priorities, protocol.
        "vlan" => &[1, 2, 3, 4, 5],
        _ => return None,
    })
}

/// Settings of a bridge's port; its spanning tree's state is not among them.
const PORT: [u16; 24] =
    [2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 25, 27, 28, 29, 30, 31, 32, 33, 34, 37, 39, 40, 42, 43];

/// Interfaces that a kernel makes by itself in every network namespace.
pub(super) fn is_fallback(name: &str, kind: Option<&str>) -> bool {
    let pair = (name, kind.unwrap_or(""));
    matches!(
        pair,
        ("sit0", "sit")
            | ("tunl0", "ipip")
            | ("gre0", "gre")
            | ("gretap0", "gretap")
            | ("erspan0", "erspan")
            | ("ip_vti0", "vti")
            | ("ip6_vti0", "vti6")
            | ("ip6tnl0", "ip6tnl")
            | ("ip6gre0", "ip6gre")
    )
}

impl Link {
    /// From a listed entry; `None` for an interface that every namespace has and nobody uses.
    pub(super) fn parse(payload: &[u8]) -> Option<Self> {
        let attributes = Attributes::after(payload, 16);
        let info = Attributes(attributes.find(attr::INFO).unwrap_or(&[]));
        let kind = info.find(attr::INFO_KIND).map(string);
        let name = string(attributes.find(attr::NAME)?);
        let flags = number(payload, 8)?;
        if is_fallback(&name, kind.as_deref()) && flags & UP == 0 {
            return None;
        }
        let data = nested(info.find(attr::INFO_DATA).unwrap_or(&[]));
        let known = kind.as_deref().and_then(settable).unwrap_or(&[]);
        let obstacle = obstacle(attributes, kind.as_deref(), &data, info);
        let mut settings = data;
        settings.retain(|(found, _)| known.contains(found));
        let is_port = info.find(attr::INFO_PORT_KIND).map(string).as_deref() == Some("bridge");
        let mut port = nested(info.find(attr::INFO_PORT_DATA).filter(|_| is_port).unwrap_or(&[]));
        port.retain(|(found, _)| PORT.contains(found));
        let text = |kind| attributes.find(kind).map(string).unwrap_or_default();
        let one = |kind| attributes.find_u32(kind);
        let names = Attributes(attributes.find(attr::PROPERTIES).unwrap_or(&[]));
        Some(Self {
            index: number(payload, 4)?,
            hardware: short(payload, 2)?,
            mac: attributes.find(attr::ADDRESS).unwrap_or(&[]).to_vec(),
            mtu: one(attr::MTU).unwrap_or(0),
            tx_queue: one(attr::TX_QUEUE).unwrap_or(0),
            flags: flags & FLAGS,
            alias: text(attr::ALIAS),
            group: one(attr::GROUP).unwrap_or(0),
            alt_names: names.filter(|(found, _)| *found == attr::ALT_NAME).map(|(_, n)| string(n)).collect(),
            master: one(attr::MASTER).filter(|master| *master != 0),
            lower: one(attr::LINK).filter(|lower| *lower != 0),
            outside: attributes.find(attr::LINK_NETNSID).is_some(),
            segments: attr::SEGMENTS.iter().filter_map(|kind| Some((*kind, one(*kind)?))).collect(),
            features: Vec::new(),
            settings,
            port,
            kind,
            name,
            obstacle,
        })
    }
}

fn obstacle(
    attributes: Attributes<'_>,
    kind: Option<&str>,
    data: &[(u16, Vec<u8>)],
    info: Attributes<'_>,
) -> Option<String> {
    const XDP_ATTACHED: u16 = 2;
    const AF_INET6: u16 = 10;
    const INET6_TOKEN: u16 = 7;
    let setting = |wanted: u16| data.iter().find(|(found, _)| *found == wanted).map(|(_, data)| &data[..]);
    let xdp = Attributes(attributes.find(attr::XDP).unwrap_or(&[])).find(XDP_ATTACHED);
    if xdp.is_some_and(|attached| attached != [0]) {
        return Some("an XDP program is attached to it".to_owned());
    }
    let inet6 = Attributes(attributes.find(attr::AF_SPEC).unwrap_or(&[])).find(AF_INET6).unwrap_or(&[]);
    if Attributes(inet6).find(INET6_TOKEN).is_some_and(|token| token.iter().any(|byte| *byte != 0)) {
        return Some("it has an IPv6 token".to_owned());
    }
    match kind {
        Some("bridge") if setting(7).is_some_and(|on| on != [0]) => {
            return Some("it is a bridge that filters VLANs".to_owned());
        }
        Some("macvlan" | "macvtap") if setting(1).is_some_and(|mode| number(mode, 0) == Some(16)) => {
            return Some("it is a macvlan in source mode".to_owned());
        }
        _ => {}
    }
    let port = info.find(attr::INFO_PORT_KIND).map(string);
    port.filter(|port| port != "bridge").map(|port| format!("it is a port of a {port}"))
}
