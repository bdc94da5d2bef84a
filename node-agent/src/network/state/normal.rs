//! Entries made comparable: what the kernel only counts, remembers or derives is taken away, so that equal bytes are an
//! equal state and can be set again. `None` is an entry that is not carried because the kernel makes it by itself.

use std::net::IpAddr;

use sys::net::message::{ip, number, short};

use super::item::Item;

/// Lifetime that does not end.
const FOREVER: u32 = u32::MAX;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// Attributes of addresses.
mod ifa {
    pub(super) const ADDRESS: u16 = 1;
    pub(super) const LOCAL: u16 = 2;
    pub(super) const CACHE_INFO: u16 = 6;
    pub(super) const FLAGS: u16 = 8;
}

/// Attributes of routes.
mod rta {
    pub(super) const OIF: u16 = 4;
    pub(super) const GATEWAY: u16 = 5;
    pub(super) const MULTIPATH: u16 = 9;
    pub(super) const CACHE_INFO: u16 = 12;
    pub(super) const VIA: u16 = 18;
    pub(super) const ENCAP_TYPE: u16 = 21;
    pub(super) const ENCAP: u16 = 22;
    pub(super) const EXPIRES: u16 = 23;
    pub(super) const NEXTHOP: u16 = 30;
}

/// Attributes of neighbours.
pub(super) mod nda {
    pub(crate) const LLADDR: u16 = 2;
    pub(crate) const CACHE_INFO: u16 = 3;
    pub(crate) const PROBES: u16 = 4;
    pub(crate) const MASTER: u16 = 9;
}

/// An address with its lifetimes and without its time stamps. Detection of duplicates is over for all of them: the
/// container had them already.
#[must_use]
pub fn address(payload: &[u8]) -> Option<Item> {
    /// Deprecated and permanent (they follow from the lifetime), tentative, optimistic, detection failed.
    const DERIVED: u32 = 0x20 | 0x80 | 0x40 | 0x04 | 0x08;
    /// How the kernel chose an IPv6 address: at random, by a secret. Nobody else can say so.
    const CHOSEN: u32 = 0x01 | 0x800;
    /// No duplicate address detection.
    const NODAD: u32 = 0x02;
    let mut item = Item::parse(payload, 8);
    let family = *item.header.first()?;
    let flags = item.number(ifa::FLAGS).unwrap_or(u32::from(*item.header.get(2)?)) & !DERIVED;
    let flags = if family == AF_INET6 { flags & !CHOSEN | NODAD } else { flags };
    *item.header.get_mut(2)? = 0;
    item.set(ifa::FLAGS, flags.to_ne_bytes().to_vec());
    // struct ifa_cacheinfo: preferred, valid, created, updated.
    let times = item.get(ifa::CACHE_INFO).map_or([FOREVER; 2], |info| {
        [number(info, 0).unwrap_or(FOREVER), number(info, 4).unwrap_or(FOREVER)]
    });
    let info = [times[0], times[1], 0, 0].into_iter().flat_map(u32::to_ne_bytes).collect();
    item.set(ifa::CACHE_INFO, info);
    Some(item)
}

/// Two addresses are the same when nothing but their lifetimes differ, by a few seconds.
#[must_use]
pub fn same_address(one: &Item, other: &Item) -> bool {
    let times = |item: &Item| {
        let info = item.get(ifa::CACHE_INFO).unwrap_or(&[]);
        [number(info, 0).unwrap_or(FOREVER), number(info, 4).unwrap_or(FOREVER)]
    };
    without_lifetime(one) == without_lifetime(other)
        && times(one).iter().zip(times(other)).all(|(a, b)| near(*a, b))
}

/// An address without its lifetimes.
#[must_use]
pub fn without_lifetime(item: &Item) -> Item {
    let mut rest = item.clone();
    rest.without(&[ifa::CACHE_INFO]);
    rest.attributes.sort();
    rest
}

/// Lifetimes in seconds that are equal but for the time that passes meanwhile.
fn near(a: u32, b: u32) -> bool {
    a == b || a != FOREVER && b != FOREVER && a.abs_diff(b) <= 5
}

/// What names an address among others: family, prefix, interface, address.
#[must_use]
pub fn address_key(item: &Item) -> (Vec<u8>, Vec<u8>) {
    let mut header = item.header.clone();
    // Flags and scope.
    if let Some(bytes) = header.get_mut(2..4) {
        bytes.fill(0);
    }
    let of = |kind| item.get(kind).map(<[u8]>::to_vec);
    (header, of(ifa::LOCAL).or_else(|| of(ifa::ADDRESS)).unwrap_or_default())
}

/// Addresses of interface `index` of scope "universe".
#[must_use]
pub(super) fn global_addresses(items: &[Item], index: u32) -> Vec<IpAddr> {
    let global = items.iter().filter(|item| item.header_number(4) == index && item.header.get(3) == Some(&0));
    global.filter_map(|item| ip(item.get(ifa::LOCAL).or_else(|| item.get(ifa::ADDRESS))?)).collect()
}

/// A route. Left out are copies of others, families that are refused, and what the kernel keeps in IPv6's table `local`: it
/// follows from the addresses, as soon as each has been found to be free.
#[must_use]
pub fn route(payload: &[u8]) -> Option<Item> {
    const CLONED: u32 = 0x200;
    const ONLINK: u32 = 4;
    const LOCAL: u8 = 255;
    const BY_KERNEL: u8 = 2;
    let mut item = Item::parse(payload, 12);
    let flags = item.header_number(8);
    if flags & CLONED != 0 || !matches!(item.header.first(), Some(&AF_INET | &AF_INET6)) {
        return None;
    }
    let (table, protocol) = (*item.header.get(4)?, *item.header.get(5)?);
    if (*item.header.first()?, table, protocol) == (AF_INET6, LOCAL, BY_KERNEL) {
        return None;
    }
    item.set_header(8, flags & ONLINK);
    // struct rta_cacheinfo: references, last use, expires (1/100 s) ...
    let expires = item.get(rta::CACHE_INFO).and_then(|info| number(info, 8)).unwrap_or(0) / 100;
    item.without(&[rta::CACHE_INFO]);
    if expires != 0 {
        item.set(rta::EXPIRES, expires.to_ne_bytes().to_vec());
    }
    if item.get(rta::NEXTHOP).is_some() {
        // The object says where to.
        item.without(&[rta::OIF, rta::GATEWAY, rta::MULTIPATH, rta::VIA, rta::ENCAP, rta::ENCAP_TYPE]);
    }
    if let Some(hops) = item.get(rta::MULTIPATH) {
        let hops = multipath(hops);
        item.set(rta::MULTIPATH, hops);
    }
    Some(item)
}

/// The next hops of a route (`struct rtnexthop`: length, flags, weight, interface) without their condition.
fn multipath(hops: &[u8]) -> Vec<u8> {
    const ONLINK: u8 = 4;
    let mut hops = hops.to_vec();
    let mut at = 0;
    while let Some(length) = short(&hops, at).map(usize::from).filter(|length| *length >= 8) {
        if let Some(flags) = hops.get_mut(at + 2) {
            *flags &= ONLINK;
        }
        at += length.next_multiple_of(4);
    }
    hops
}

/// A route without its time to live.
#[must_use]
pub fn route_key(item: &Item) -> Item {
    let mut rest = item.clone();
    rest.without(&[rta::EXPIRES]);
    rest
}

/// Two routes are the same when nothing but their time to live differs, by a few seconds.
#[must_use]
pub fn same_route(one: &Item, other: &Item) -> bool {
    let left = |item: &Item| item.number(rta::EXPIRES).unwrap_or(FOREVER);
    route_key(one) == route_key(other) && near(left(one), left(other))
}

/// How far a route depends on others: those without a gateway come first.
#[must_use]
pub fn route_order(item: &Item) -> u8 {
    let far =
        [rta::GATEWAY, rta::VIA, rta::NEXTHOP, rta::MULTIPATH].iter().any(|kind| item.get(*kind).is_some());
    u8::from(far)
}

/// A next hop object without its condition.
#[must_use]
pub fn nexthop(payload: &[u8]) -> Option<Item> {
    const ONLINK: u32 = 4;
    /// NHA_HW_STATS_ENABLE and what follows is of hardware; NHA_RES_GROUP has timers inside.
    const LAST: u16 = 11;
    let mut item = Item::parse(payload, 8);
    let flags = item.header_number(4);
    item.set_header(4, flags & ONLINK);
    // The scope follows from the address.
    *item.header.get_mut(1)? = 0;
    item.attributes.retain(|(kind, _)| *kind <= LAST);
    Some(item)
}

/// A routing rule.
#[must_use]
pub fn rule(payload: &[u8]) -> Option<Item> {
    const INVERT: u32 = 2;
    const PAD: u16 = 18;
    let mut item = Item::parse(payload, 12);
    let flags = item.header_number(8);
    item.set_header(8, flags & INVERT);
    item.without(&[PAD]);
    Some(item)
}

/// A neighbour: permanent ones as they are, learned ones as such that are to be confirmed at their next use.
#[must_use]
pub fn neighbour(payload: &[u8]) -> Option<Item> {
    /// Reachable, stale, delay, probe.
    const LEARNED: u16 = 0x02 | 0x04 | 0x08 | 0x10;
    const STALE: u16 = 0x04;
    const PERMANENT: u16 = 0x80;
    /// Router, proxy, learned by another program.
    const FLAGS: u8 = 0x80 | 0x08 | 0x10;
    const PROXY: u8 = 0x08;
    let mut item = Item::parse(payload, 12);
    if !matches!(item.header.first(), Some(&AF_INET | &AF_INET6)) {
        return None;
    }
    let state = short(&item.header, 8)?;
    let flags = *item.header.get(10)? & FLAGS;
    let state = match state {
        PERMANENT => PERMANENT,
        _ if flags & PROXY != 0 => PERMANENT,
        learned if learned & LEARNED != 0 && item.get(nda::LLADDR).is_some() => STALE,
        _ => return None,
    };
    let [low, high] = state.to_ne_bytes();
    item.header.get_mut(8..12)?.copy_from_slice(&[low, high, flags, 0]);
    item.without(&[nda::CACHE_INFO, nda::PROBES]);
    Some(item)
}

/// What names a neighbour: family, interface, kind of entry, address.
#[must_use]
pub fn neighbour_key(item: &Item) -> (u8, u32, bool, Vec<u8>) {
    let proxy = item.header.get(10).is_some_and(|flags| flags & 0x08 != 0);
    let family = item.header.first().copied().unwrap_or(0);
    (family, item.header_number(4), proxy, item.get(1).unwrap_or(&[]).to_vec())
}

/// A static entry of a bridge's forwarding table; those that a bridge learned or made for itself come again.
#[must_use]
pub fn forwarding(payload: &[u8]) -> Option<Item> {
    const STATIC: u16 = 0x40;
    const AF_BRIDGE: u8 = 7;
    /// By the interface's master; sticky.
    const MASTER: u8 = 4;
    const STICKY: u8 = 0x40;
    let mut item = Item::parse(payload, 12);
    if item.header.first() != Some(&AF_BRIDGE) || item.get(nda::MASTER).is_none() {
        return None;
    }
    if short(&item.header, 8)? & STATIC == 0 {
        return None;
    }
    let flags = *item.header.get(10)? & STICKY | MASTER;
    item.header.get_mut(10..12)?.copy_from_slice(&[flags, 0]);
    item.without(&[nda::CACHE_INFO, nda::PROBES, nda::MASTER]);
    Some(item)
}

/// A queueing discipline that somebody set; those of the kernel's own choice have no number.
#[must_use]
pub fn qdisc(payload: &[u8]) -> Option<Item> {
    const KIND: u16 = 1;
    const OPTIONS: u16 = 2;
    let mut item = Item::parse(payload, 20);
    if item.header_number(8) == 0 {
        return None;
    }
    // References.
    item.set_header(16, 0);
    item.keep(&[KIND, OPTIONS]);
    Some(item)
}

/// The kind of a queueing discipline.
#[must_use]
pub fn qdisc_kind(item: &Item) -> String {
    item.get(1).map(sys::net::message::string).unwrap_or_default()
}
