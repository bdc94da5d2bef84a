//! Tracked connections: made comparable, and made again. See
//! include/uapi/linux/netfilter/nfnetlink_conntrack.h.
//!
//! Not carried: the windows of TCP (learned again from the next packets), accounting, time stamps.

use sys::net::Message;
use sys::net::conntrack::{HEADER, delete, make};
use sys::net::message::Attributes;

use super::item::{Item, flat, nested};

const ORIGINAL: u16 = 1;
const REPLY: u16 = 2;
const STATUS: u16 = 3;
const PROTOCOL: u16 = 4;
const NAT_SOURCE: u16 = 6;
const TIMEOUT: u16 = 7;
const NAT_DESTINATION: u16 = 13;
const ZONE: u16 = 18;
/// Original and reply direction, status, protocol's state, helper, NAT's sequence numbers, timeout, mark, zone, labels,
/// synproxy.
const KEPT: [u16; 13] = [1, 2, 3, 4, 5, 7, 8, 14, 15, 16, 18, 22, 24];

const ZERO_IF_UNUSED: [u16; 3] = [15, 16, 24];

/// In a direction: addresses, ports.
const TUPLE_ADDRESSES: u16 = 1;
const TUPLE_PORTS: u16 = 2;
const TUPLE_ZONE: u16 = 3;
const PORTS_PROTOCOL: u16 = 1;
const SOURCE_PORT: u16 = 2;
const DESTINATION_PORT: u16 = 3;

/// A tracked connection without counters and number.
#[must_use]
pub fn connection(payload: &[u8]) -> Item {
    let mut item = Item::parse(payload, HEADER);
    if let Some(rest) = item.header.get_mut(1..) {
        rest.fill(0);
    }
    item.keep(&KEPT);
    // SYN proxy and shifted sequence numbers that are not in use show as zeros here and not at all there.
    let unused = |data: &[u8]| Attributes(data).all(|(_, value)| value.iter().all(|byte| *byte == 0));
    item.attributes.retain(|(kind, data)| !ZERO_IF_UNUSED.contains(kind) || !unused(data));
    if let Some(status) = item.get(STATUS).and_then(network) {
        item.set(STATUS, (status & !VOLATILE).to_be_bytes().to_vec());
    }
    item
}

fn network(data: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(data.get(..4)?.try_into().ok()?))
}

/// IPS_*: with hardware or a flow table (offload), dying, untracked and template entries never leave a list.
const VOLATILE: u32 = 1 << 9 | 1 << 14 | 1 << 15;
/// IPS_SRC_NAT, IPS_DST_NAT.
const SOURCE_NAT: u32 = 1 << 4;
const DESTINATION_NAT: u32 = 1 << 5;
/// What other attributes set: expected (by the connection that it belongs to), source and destination NAT, sequence
/// numbers, both done.
const BY_OTHERS: u32 = 1 | SOURCE_NAT | DESTINATION_NAT | 1 << 6 | 1 << 7 | 1 << 8;

/// Two entries are the same when they stand for the same connection in the same state, with about the same time left.
#[must_use]
pub fn same(one: &Item, other: &Item) -> bool {
    let split = |item: &Item| {
        let mut rest = item.clone();
        let timeout = item.get(TIMEOUT).and_then(network).unwrap_or(0);
        // Whether NAT was considered is no state of the connection; what it did is in the directions.
        let status = item.get(STATUS).and_then(network).unwrap_or(0) & !(1 << 7 | 1 << 8);
        rest.set(STATUS, status.to_be_bytes().to_vec());
        rest.without(&[TIMEOUT]);
        rest.attributes.sort();
        (rest, timeout)
    };
    let ((one, a), (other, b)) = (split(one), split(other));
    one == other && a.abs_diff(b) <= 5
}

/// What names a connection: family, original direction, zone.
#[must_use]
pub fn key(item: &Item) -> (Vec<u8>, Vec<u8>, Vec<u8>) {
    let of = |kind| item.get(kind).unwrap_or(&[]).to_vec();
    (item.header.clone(), of(ORIGINAL), of(ZONE))
}

/// The message that deletes it.
#[must_use]
pub fn remove(item: &Item) -> Message {
    let mut message = delete(&item.header);
    for (kind, data) in item.attributes.iter().filter(|(kind, _)| matches!(*kind, ORIGINAL | ZONE)) {
        message.attr(*kind, data);
    }
    message
}

/// The message that makes it.
///
/// The kernel takes no entry with NAT in it: it wants one that goes straight, and the NAT to be done.
#[must_use]
pub fn create(item: &Item) -> Message {
    let status = item.get(STATUS).and_then(network).unwrap_or(0);
    let mut message = make(&item.header);
    for (kind, data) in &item.attributes {
        match *kind {
            STATUS => {
                message.attr(STATUS, &(status & !BY_OTHERS).to_be_bytes());
            }
            REPLY if status & (SOURCE_NAT | DESTINATION_NAT) != 0 => {
                let original = item.get(ORIGINAL).unwrap_or(&[]);
                message.attr(REPLY, &inverted(original));
            }
            PROTOCOL => {
                message.attr(PROTOCOL, &with_masks(data));
            }
            kind => {
                message.attr(kind, data);
            }
        }
    }
    let reply = item.get(REPLY).unwrap_or(&[]);
    if status & DESTINATION_NAT != 0 {
        message.attr(NAT_DESTINATION, &range(reply, true));
    }
    if status & SOURCE_NAT != 0 {
        message.attr(NAT_SOURCE, &range(reply, false));
    }
    message
}

/// A direction turned round.
fn inverted(tuple: &[u8]) -> Vec<u8> {
    let swap = |data: &[u8], pairs: &[(u16, u16)]| {
        let mut all = nested(data);
        for (kind, _) in &mut all {
            let other = pairs.iter().find_map(|(a, b)| match *kind {
                k if k == *a => Some(*b),
                k if k == *b => Some(*a),
                _ => None,
            });
            *kind = other.unwrap_or(*kind);
        }
        all.sort();
        flat(&all)
    };
    let mut all = nested(tuple);
    for (kind, data) in &mut all {
        *data = match *kind {
            // CTA_IP_V4_SRC, _DST, CTA_IP_V6_SRC, _DST.
            TUPLE_ADDRESSES => swap(data, &[(1, 2), (3, 4)]),
            TUPLE_PORTS => swap(data, &[(SOURCE_PORT, DESTINATION_PORT)]),
            _ => std::mem::take(data),
        };
    }
    all.retain(|(kind, _)| *kind != TUPLE_ZONE);
    flat(&all)
}

/// CTA_NAT_*: the one address and port that a reply comes from (`source`) or goes to.
fn range(reply: &[u8], source: bool) -> Vec<u8> {
    let addresses = Attributes(reply).find(TUPLE_ADDRESSES).unwrap_or(&[]);
    let ports = Attributes(reply).find(TUPLE_PORTS).unwrap_or(&[]);
    let mut all = Vec::new();
    let (v4, v6, port) = if source { (1, 3, SOURCE_PORT) } else { (2, 4, DESTINATION_PORT) };
    // CTA_NAT_V4_MINIP, _MAXIP; CTA_NAT_V6_MINIP, _MAXIP.
    for (kind, least, most) in [(v4, 1, 2), (v6, 4, 5)] {
        if let Some(address) = Attributes(addresses).find(kind) {
            all.push((least, address.to_vec()));
            all.push((most, address.to_vec()));
        }
    }
    let port = Attributes(ports).find(port);
    // ICMP has a number instead, and no port to map.
    if let (Some(port), Some(_)) = (port, Attributes(ports).find(PORTS_PROTOCOL)) {
        all.push((3, flat(&[(1, port.to_vec()), (2, port.to_vec())])));
    }
    flat(&all)
}

/// CTA_PROTOINFO with the masks of TCP's flags, which are set only where a mask says so and are listed without one.
fn with_masks(info: &[u8]) -> Vec<u8> {
    const TCP: u16 = 1;
    const FLAGS: [u16; 2] = [4, 5];
    let mut all = nested(info);
    for (_, data) in all.iter_mut().filter(|(kind, _)| *kind == TCP) {
        let mut tcp = nested(data);
        for (_, flags) in tcp.iter_mut().filter(|(kind, _)| FLAGS.contains(kind)) {
            if let Some(mask) = flags.get_mut(1) {
                *mask = u8::MAX;
            }
        }
        *data = flat(&tcp);
    }
    flat(&all)
}

/// Whether it belongs to another connection, which must be there first.
#[must_use]
pub fn is_related(item: &Item) -> bool {
    item.get(14).is_some()
}
