//! Routes and routing rules.

use std::net::IpAddr;

use super::message::{Attributes, CREATE, EXCLUSIVE, Message, family, ip};
use super::{Answer, Netlink};
use crate::{Errno, Result};

const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
const RTM_GETROUTE: u16 = 26;
const RTM_NEWRULE: u16 = 32;
const RTM_GETRULE: u16 = 34;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;
const RTA_PREFSRC: u16 = 7;
const RTA_CACHEINFO: u16 = 12;
const RTA_TABLE: u16 = 15;
/// Bytes of `struct rtmsg` and of `struct fib_rule_hdr`.
const HEADER: usize = 12;

/// Table "main".
pub const MAIN: u32 = 254;
/// Table "local", which the kernel keeps itself.
pub const LOCAL: u32 = 255;
/// RTPROT_KERNEL: made by the kernel along with an address.
pub const BY_KERNEL: u8 = 2;
const BY_BOOT: u8 = 3;
const CLONED: u32 = 0x200;

/// A route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// AF_INET 2 or AF_INET6 10.
    pub family: u8,
    /// Destination and its prefix length; none = default.
    pub destination: Option<(IpAddr, u8)>,
    /// Next hop.
    pub gateway: Option<IpAddr>,
    /// Interface.
    pub index: Option<u32>,
    /// Source address to prefer.
    pub source: Option<IpAddr>,
    /// Table.
    pub table: u32,
    /// Who made it.
    pub protocol: u8,
    /// RT_SCOPE_*.
    pub scope: u8,
    /// RTN_*: 1 unicast, 2 local, 3 broadcast, 6 blackhole, 7 unreachable.
    pub kind: u8,
    /// Metric.
    pub metric: Option<u32>,
    /// The whole entry as the kernel gave it, for [`Netlink::replay_route`].
    pub raw: Vec<u8>,
}

fn parse(answer: &Answer) -> Option<Route> {
    let payload = &answer.payload;
    let attributes = Attributes::after(payload, HEADER);
    let flags = super::message::number(payload, 8)?;
    if answer.kind != RTM_NEWROUTE || flags & CLONED != 0 {
        return None;
    }
    let prefix = *payload.get(1)?;
    Some(Route {
        family: *payload.first()?,
        destination: attributes.find(RTA_DST).and_then(ip).map(|ip| (ip, prefix)),
        gateway: attributes.find(RTA_GATEWAY).and_then(ip),
        index: attributes.find_u32(RTA_OIF),
        source: attributes.find(RTA_PREFSRC).and_then(ip),
        table: attributes.find_u32(RTA_TABLE).unwrap_or(u32::from(*payload.get(4)?)),
        protocol: *payload.get(5)?,
        scope: *payload.get(6)?,
        kind: *payload.get(7)?,
        metric: attributes.find_u32(RTA_PRIORITY),
        raw: payload.clone(),
    })
}

fn message(
    kind: u16,
    flags: u16,
    destination: Option<(IpAddr, u8)>,
    gateway: Option<IpAddr>,
    index: u32,
) -> Result<Message> {
    let some = destination.map(|(ip, _)| ip).or(gateway).ok_or(Errno::EINVAL)?;
    let scope = if gateway.is_some() || some.is_ipv6() { 0 } else { 253 };
    let prefix = destination.map_or(0, |(_, prefix)| prefix);
    let header = [family(some), prefix, 0, 0, 254, BY_BOOT, scope, 1, 0, 0, 0, 0];
    let mut message = Message::new(kind, flags, &header);
    if let Some((ip, _)) = destination {
        message.attr_ip(RTA_DST, ip);
    }
    if let Some(gateway) = gateway {
        message.attr_ip(RTA_GATEWAY, gateway);
    }
    message.attr_u32(RTA_OIF, index);
    Ok(message)
}

impl Netlink {
    /// All routes of all tables, of both families, in the kernel's order.
    ///
    /// # Errors
    /// As [`Netlink::dump`].
    pub fn routes(&mut self) -> Result<Vec<Route>> {
        let answers = self.dump(&Message::new(RTM_GETROUTE, 0, &[0; HEADER]))?;
        Ok(answers.iter().filter_map(parse).collect())
    }

    /// Adds a unicast route to table main. Without a destination it is the default route.
    ///
    /// # Errors
    /// `EEXIST`, `ENETUNREACH` the gateway is not reachable, `ENODEV`, `EINVAL` neither given.
    pub fn add_route(
        &mut self,
        destination: Option<(IpAddr, u8)>,
        gateway: Option<IpAddr>,
        index: u32,
    ) -> Result<()> {
        self.execute(&message(RTM_NEWROUTE, CREATE | EXCLUSIVE, destination, gateway, index)?)
    }

    /// Removes one.
    ///
    /// # Errors
    /// `ESRCH` no such route.
    pub fn remove_route(
        &mut self,
        destination: Option<(IpAddr, u8)>,
        gateway: Option<IpAddr>,
        index: u32,
    ) -> Result<()> {
        self.execute(&message(RTM_DELROUTE, 0, destination, gateway, index)?)
    }

    /// Sets a listed route again, with all its attributes; interface numbers must be the same.
    ///
    /// # Errors
    /// As [`Netlink::add_route`].
    pub fn replay_route(&mut self, raw: &[u8]) -> Result<()> {
        self.execute(&replay(RTM_NEWROUTE, raw)?)
    }

    /// All routing rules of one family (AF_INET 2, AF_INET6 10), raw, in their order.
    ///
    /// # Errors
    /// As [`Netlink::dump`].
    pub fn rules(&mut self, family: u8) -> Result<Vec<Vec<u8>>> {
        let mut header = [0; HEADER];
        header[0] = family;
        let answers = self.dump(&Message::new(RTM_GETRULE, 0, &header))?;
        Ok(answers.into_iter().filter(|a| a.kind == RTM_NEWRULE).map(|a| a.payload).collect())
    }

    /// Sets a listed rule again.
    ///
    /// # Errors
    /// `EEXIST` (the three that every namespace begins with), `EINVAL`.
    pub fn replay_rule(&mut self, raw: &[u8]) -> Result<()> {
        self.execute(&replay(RTM_NEWRULE, raw)?)
    }
}

fn replay(kind: u16, raw: &[u8]) -> Result<Message> {
    let mut header: [u8; HEADER] = raw.get(..HEADER).and_then(|h| h.try_into().ok()).ok_or(Errno::EINVAL)?;
    if kind == RTM_NEWROUTE {
        // Flags that tell a route's condition, not its setting: dead, link down, offload.
        const SETTABLE: u32 = 4;
        let flags = super::message::number(raw, 8).unwrap_or(0) & SETTABLE;
        header[8..].copy_from_slice(&flags.to_ne_bytes());
    }
    let mut message = Message::new(kind, CREATE | EXCLUSIVE, &header);
    for (attribute, data) in Attributes::after(raw, HEADER) {
        if kind != RTM_NEWROUTE || attribute != RTA_CACHEINFO {
            message.attr(attribute, data);
        }
    }
    Ok(message)
}
