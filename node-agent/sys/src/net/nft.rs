//! nftables through nfnetlink: lists in the kernel's own bytes, and transactions. See libnftnl and
//! include/uapi/linux/netfilter/nf_tables.h.

use std::os::fd::AsFd as _;

use super::Netlink;
use super::message::{self, Message, string};
use crate::{Errno, Result, sock};

/// Bytes of `struct nfgenmsg`, which every message begins with: family, version, resource.
pub const HEADER: usize = 4;

const SUBSYSTEM: u16 = 10 << 8;
const GENERATION: u16 = SUBSYSTEM | 16;
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;

/// What a ruleset consists of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Part {
    /// Tables.
    Table,
    /// Chains.
    Chain,
    /// Rules.
    Rule,
    /// Sets and maps.
    Set,
    /// Elements of one set.
    Element,
    /// Stateful objects: counters, quotas, helpers.
    Object,
    /// Flow tables.
    Flowtable,
}

impl Part {
    /// Type of the message that makes one, of the one that lists them, of the one that deletes.
    const fn kinds(self) -> (u16, u16, u16) {
        let (new, get, delete) = match self {
            Self::Table => (0, 1, 2),
            Self::Chain => (3, 4, 5),
            Self::Rule => (6, 7, 8),
            Self::Set => (9, 10, 11),
            Self::Element => (12, 13, 14),
            Self::Object => (18, 19, 20),
            Self::Flowtable => (22, 23, 24),
        };
        (SUBSYSTEM | new, SUBSYSTEM | get, SUBSYSTEM | delete)
    }

    /// The message that makes one, for [`Netlink::nft_transaction`]. `flags` as [`message::CREATE`].
    #[must_use]
    pub fn make(self, flags: u16, header: &[u8]) -> Message {
        Message::new(self.kinds().0, flags, header)
    }

    /// The message that deletes one.
    #[must_use]
    pub fn delete(self, header: &[u8]) -> Message {
        Message::new(self.kinds().2, 0, header)
    }
}

/// A message of a transaction that the kernel refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Its number; `None` when the transaction as a whole failed.
    pub at: Option<usize>,
    /// Why.
    pub error: Errno,
}

impl Netlink {
    /// Number of the ruleset's generation: another one means that something was changed. `None` when the kernel has no
    /// nftables.
    ///
    /// # Errors
    /// As [`Netlink::query`].
    pub fn nft_generation(&mut self) -> Result<Option<u32>> {
        const NFTA_GEN_ID: u16 = 1;
        match self.query(&Message::new(GENERATION, 0, &[0; HEADER])) {
            Ok(answers) => Ok(answers
                .iter()
                .find_map(|a| super::Attributes::after(&a.payload, HEADER).find(NFTA_GEN_ID))
                .and_then(|id| Some(u32::from_be_bytes(id.try_into().ok()?)))),
            Err(Errno::EINVAL | Errno::EOPNOTSUPP) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Every part of that kind, of all families: header and attributes. [`Part::Element`] has its own list.
    ///
    /// # Errors
    /// As [`Netlink::dump`].
    pub fn nft_list(&mut self, part: Part) -> Result<Vec<Vec<u8>>> {
        self.nft_dump(part, &Message::new(part.kinds().1, 0, &[0; HEADER]))
    }

    /// The elements of one set: messages that hold lists.
    ///
    /// # Errors
    /// As [`Netlink::dump`]; `ENOENT` no such set.
    pub fn nft_elements(&mut self, family: u8, table: &[u8], set: &[u8]) -> Result<Vec<Vec<u8>>> {
        let mut message = Message::new(Part::Element.kinds().1, 0, &[family, 0, 0, 0]);
        message.attr_str(1, &string(table)).attr_str(2, &string(set));
        self.nft_dump(Part::Element, &message)
    }

    fn nft_dump(&mut self, part: Part, message: &Message) -> Result<Vec<Vec<u8>>> {
        match self.dump(message) {
            Ok(answers) => Ok(answers
                .into_iter()
                .filter(|a| a.kind == part.kinds().0 && a.payload.len() >= HEADER)
                .map(|a| a.payload)
                .collect()),
            // No nftables, or no such part in this kernel.
            Err(Errno::EOPNOTSUPP) => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    /// Carries out all messages or none.
    ///
    /// # Errors
    /// The first one that the kernel refused; nothing has changed then.
    pub fn nft_transaction(&mut self, messages: &[Message]) -> std::result::Result<(), Refused> {
        let whole = |error| Refused { at: None, error };
        let begin = self.sequence.wrapping_add(1).max(1);
        // Resource: the subsystem, in network order.
        let frame = [0, 0, 0, 10];
        let mut bytes = Message::new(BATCH_BEGIN, 0, &frame).finish(message::REQUEST, begin);
        let mut sequence = begin;
        for message in messages {
            sequence = sequence.wrapping_add(1);
            bytes.extend_from_slice(&message.finish(message::REQUEST, sequence));
        }
        sequence = sequence.wrapping_add(1);
        bytes.extend_from_slice(&Message::new(BATCH_END, 0, &frame).finish(message::REQUEST, sequence));
        self.sequence = sequence;
        let size = i32::try_from(bytes.len() + 4096).map_err(|_| whole(Errno::EMSGSIZE))?;
        // SO_SNDBUFFORCE and SO_RCVBUFFORCE; the kernel doubles them. Without CAP_NET_ADMIN here a large ruleset is
        // refused by the send.
        let _ = sock::set_int(self.socket.as_fd(), libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, size);
        let _ = sock::set_int(self.socket.as_fd(), libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, 4 << 20);
        sock::send(self.socket.as_fd(), &bytes, &[], None, None, 0).map_err(whole)?;
        let mut refused: Option<Refused> = None;
        let count = messages.len();
        let read = self.drain(|sequence, error| {
            let at = (sequence.wrapping_sub(begin) as usize).checked_sub(1).filter(|at| *at < count);
            if refused.is_none_or(|first| at < first.at) {
                refused = Some(Refused { at, error });
            }
        });
        match (read, refused) {
            (_, Some(refused)) => Err(refused),
            // More errors than the socket holds.
            (Err(error), None) => Err(whole(error)),
            (Ok(()), None) => Ok(()),
        }
    }
}
