//! The network lock: every frame in one direction of an interface goes to another interface instead.
//!
//! A clsact qdisc carries a catch-all u32 filter whose action is a mirred redirect. When the interface it leads to
//! is gone (a TAP whose holder died) the frames are dropped: the lock fails closed. See tc-u32(8), tc-mirred(8).

use super::message::{Attributes, CREATE, EXCLUSIVE, Message, number, string};
use super::{Answer, Netlink};
use crate::{Errno, Result};

const RTM_NEWQDISC: u16 = 36;
const RTM_DELQDISC: u16 = 37;
const RTM_GETQDISC: u16 = 38;
const RTM_NEWTFILTER: u16 = 44;
const RTM_DELTFILTER: u16 = 45;
const RTM_GETTFILTER: u16 = 46;
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_U32_SEL: u16 = 5;
const TCA_U32_ACT: u16 = 7;
const TCA_ACT_KIND: u16 = 1;
const TCA_ACT_OPTIONS: u16 = 2;
const TCA_MIRRED_PARMS: u16 = 2;
/// Bytes of `struct tcmsg`.
const HEADER: usize = 20;
const CLSACT_PARENT: u32 = 0xffff_fff1;
const CLSACT_HANDLE: u32 = 0xffff_0000;
const ETH_P_ALL: u16 = 3;
const ETH_P_IP: u16 = 0x0800;
const ETH_P_IPV6: u16 = 0x86dd;

/// What a u32 filter compares: from so many bytes into the network header on, four bytes in network order.
type Key = (i32, u32, u32);

/// Whatever there is.
const ANYTHING: &[Key] = &[(0, 0, 0)];
/// The first segment of a TCP connection, SYN without ACK: behind an IPv4 header without options ...
const SYN_OVER_IP: &[Key] =
    &[(0, 0x0f00_0000, 0x0500_0000), (8, 0x00ff_0000, 0x0006_0000), (32, 0x0012_0000, 0x0002_0000)];
/// ... and behind an IPv6 header without extensions.
const SYN_OVER_IPV6: &[Key] = &[(4, 0x0000_ff00, 0x0000_0600), (52, 0x0012_0000, 0x0002_0000)];

/// Which way frames go, seen from the interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Frames that arrive by it.
    Ingress,
    /// Frames that leave by it.
    Egress,
}

impl Direction {
    const fn parent(self) -> u32 {
        match self {
            Self::Ingress => 0xffff_fff2,
            Self::Egress => 0xffff_fff3,
        }
    }
}

/// A filter in place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    /// "u32" ...
    pub kind: String,
    /// Lower ones come first.
    pub priority: u16,
    /// Its number.
    pub handle: u32,
    /// The interface to which its action redirects, if it is of our kind.
    pub redirect_to: Option<u32>,
}

fn header(index: u32, handle: u32, parent: u32, info: u32) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..12].copy_from_slice(&handle.to_ne_bytes());
    header[12..16].copy_from_slice(&parent.to_ne_bytes());
    header[16..].copy_from_slice(&info.to_ne_bytes());
    header
}

fn info(priority: u16, protocol: u16) -> u32 {
    u32::from(priority) << 16 | u32::from(protocol.to_be())
}

/// The prepared message that redirects every frame of one direction of interface `index` to interface `to`, where
/// it leaves (into a TAP's queue). Other filters of the same `priority` than u32 ones make it fail. Give the two
/// directions different priorities: the kernel lists u32 filters of one qdisc and priority together.
#[must_use]
pub fn redirect_message(index: u32, direction: Direction, priority: u16, to: u32) -> Message {
    redirect(index, direction, (priority, ETH_P_ALL), ANYTHING, to)
}

/// The prepared messages that redirect the first segments of TCP connections, over IPv4 and over IPv6, with one priority
/// for each, as [`redirect_message`] does everything. IP options and extension headers hide a segment.
#[must_use]
pub fn redirect_syn_messages(
    index: u32,
    direction: Direction,
    priorities: [u16; 2],
    to: u32,
) -> [Message; 2] {
    let [ip, ipv6] = priorities;
    [
        redirect(index, direction, (ip, ETH_P_IP), SYN_OVER_IP, to),
        redirect(index, direction, (ipv6, ETH_P_IPV6), SYN_OVER_IPV6, to),
    ]
}

fn redirect(
    index: u32,
    direction: Direction,
    (priority, protocol): (u16, u16),
    keys: &[Key],
    to: u32,
) -> Message {
    const TC_U32_TERMINAL: u8 = 1;
    const TC_ACT_STOLEN: u32 = 4;
    const TCA_EGRESS_REDIR: u32 = 1;
    // struct tc_u32_sel, and struct tc_u32_key: mask, value, offset, mask of a further offset.
    let mut select = vec![0_u8; 16];
    select[0] = TC_U32_TERMINAL;
    select[2] = u8::try_from(keys.len()).unwrap_or(0);
    for (offset, mask, value) in keys {
        select.extend(mask.to_be_bytes().into_iter().chain(value.to_be_bytes()));
        select.extend(offset.to_ne_bytes().into_iter().chain([0; 4]));
    }
    // struct tc_mirred: index, capab, action, refcnt, bindcnt, eaction, ifindex.
    let words = [0, 0, TC_ACT_STOLEN, 0, 0, TCA_EGRESS_REDIR, to];
    let mirred: Vec<u8> = words.into_iter().flat_map(u32::to_ne_bytes).collect();
    let head = header(index, 0, direction.parent(), info(priority, protocol));
    let mut message = Message::new(RTM_NEWTFILTER, CREATE | EXCLUSIVE, &head);
    message.attr_str(TCA_KIND, "u32").nest(TCA_OPTIONS, |options| {
        options.attr(TCA_U32_SEL, &select).nest(TCA_U32_ACT, |actions| {
            actions.nest(1, |action| {
                action.attr_str(TCA_ACT_KIND, "mirred").nest(TCA_ACT_OPTIONS, |options| {
                    options.attr(TCA_MIRRED_PARMS, &mirred);
                });
            });
        });
    });
    message
}

/// The prepared message that removes all filters of one direction and priority.
#[must_use]
pub fn remove_message(index: u32, direction: Direction, priority: u16) -> Message {
    // Protocol 0: of whichever protocol they are.
    Message::new(RTM_DELTFILTER, 0, &header(index, 0, direction.parent(), info(priority, 0)))
}

impl Netlink {
    /// Adds the clsact qdisc that holds filters of both directions. One that is there already is fine.
    ///
    /// # Errors
    /// `ENODEV`, `EEXIST` an ingress qdisc of another kind is in its place, `ENOENT` the kernel has no clsact.
    pub fn add_clsact(&mut self, index: u32) -> Result<()> {
        if self.has_clsact(index)? {
            return Ok(());
        }
        let head = header(index, CLSACT_HANDLE, CLSACT_PARENT, 0);
        let mut message = Message::new(RTM_NEWQDISC, CREATE | EXCLUSIVE, &head);
        message.attr_str(TCA_KIND, "clsact");
        self.execute(&message)
    }

    /// Whether it has one.
    ///
    /// # Errors
    /// As [`Netlink::dump`].
    pub fn has_clsact(&mut self, index: u32) -> Result<bool> {
        let answers = self.dump(&Message::new(RTM_GETQDISC, 0, &header(index, 0, 0, 0)))?;
        Ok(answers.iter().filter(|a| a.kind == RTM_NEWQDISC).any(|a| {
            let kind = Attributes::after(&a.payload, HEADER).find(TCA_KIND).map(string);
            number(&a.payload, 4) == Some(index) && kind.as_deref() == Some("clsact")
        }))
    }

    /// Removes the clsact qdisc with all its filters. One that is not there is fine.
    ///
    /// # Errors
    /// `ENODEV`.
    pub fn remove_clsact(&mut self, index: u32) -> Result<()> {
        let head = header(index, CLSACT_HANDLE, CLSACT_PARENT, 0);
        match self.execute(&Message::new(RTM_DELQDISC, 0, &head)) {
            Err(Errno::ENOENT | Errno::EINVAL) => Ok(()),
            other => other,
        }
    }

    /// Redirects every frame of one direction; the interface needs a clsact qdisc. See [`redirect_message`].
    ///
    /// # Errors
    /// `EINVAL` no clsact, `ENODEV` no such target.
    pub fn add_redirect(&mut self, index: u32, direction: Direction, priority: u16, to: u32) -> Result<()> {
        self.execute(&redirect_message(index, direction, priority, to))
    }

    /// Removes all filters of one direction and priority. None there is fine.
    ///
    /// # Errors
    /// `ENODEV`.
    pub fn remove_filters(&mut self, index: u32, direction: Direction, priority: u16) -> Result<()> {
        match self.execute(&remove_message(index, direction, priority)) {
            Err(Errno::ENOENT | Errno::EINVAL) => Ok(()),
            other => other,
        }
    }

    /// The filters of one direction.
    ///
    /// # Errors
    /// As [`Netlink::dump`]; none and no clsact both answer an empty list.
    pub fn filters(&mut self, index: u32, direction: Direction) -> Result<Vec<Filter>> {
        let message = Message::new(RTM_GETTFILTER, 0, &header(index, 0, direction.parent(), 0));
        let answers = match self.dump(&message) {
            Err(Errno::EINVAL | Errno::ENOENT) => return Ok(Vec::new()),
            other => other?,
        };
        // A u32 filter shows its hash table first: an entry without a selector.
        Ok(answers.iter().filter(|a| a.kind == RTM_NEWTFILTER).filter_map(parse).collect())
    }
}

fn parse(answer: &Answer) -> Option<Filter> {
    let payload = &answer.payload;
    let attributes = Attributes::after(payload, HEADER);
    let kind = string(attributes.find(TCA_KIND)?);
    let options = Attributes(attributes.find(TCA_OPTIONS).unwrap_or(&[]));
    if kind == "u32" {
        options.find(TCA_U32_SEL)?;
    }
    let redirect_to = options.find(TCA_U32_ACT).and_then(|actions| {
        let (_, action) = Attributes(actions).next()?;
        let action = Attributes(action);
        if string(action.find(TCA_ACT_KIND)?) != "mirred" {
            return None;
        }
        number(Attributes(action.find(TCA_ACT_OPTIONS)?).find(TCA_MIRRED_PARMS)?, 24)
    });
    let priority = u16::try_from(number(payload, 16)? >> 16).ok()?;
    Some(Filter { kind, priority, handle: number(payload, 8)?, redirect_to })
}
