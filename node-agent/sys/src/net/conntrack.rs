//! Connection tracking through nfnetlink: see include/uapi/linux/netfilter/nfnetlink_conntrack.h.

use super::Netlink;
use super::message::{CREATE, EXCLUSIVE, Message};
use crate::{Errno, Result};

/// Bytes of `struct nfgenmsg`.
pub const HEADER: usize = 4;

const NEW: u16 = 1 << 8;
const GET: u16 = 1 << 8 | 1;
const DELETE: u16 = 1 << 8 | 2;
const GET_EXPECTED: u16 = 2 << 8 | 1;

/// The message that makes an entry.
#[must_use]
pub fn make(header: &[u8]) -> Message {
    Message::new(NEW, CREATE | EXCLUSIVE, header)
}

/// The message that deletes one.
#[must_use]
pub fn delete(header: &[u8]) -> Message {
    Message::new(DELETE, 0, header)
}

impl Netlink {
    /// Every connection that is tracked here. Empty when the kernel tracks none.
    ///
    /// # Errors
    /// As [`Netlink::dump`].
    pub fn connections(&mut self) -> Result<Vec<Vec<u8>>> {
        self.tracked(GET)
    }

    /// Every connection that a helper expects.
    ///
    /// # Errors
    /// As [`Netlink::dump`].
    pub fn expected(&mut self) -> Result<Vec<Vec<u8>>> {
        self.tracked(GET_EXPECTED)
    }

    fn tracked(&mut self, kind: u16) -> Result<Vec<Vec<u8>>> {
        match self.dump(&Message::new(kind, 0, &[0; HEADER])) {
            Ok(answers) => Ok(answers.into_iter().map(|a| a.payload).filter(|p| p.len() >= HEADER).collect()),
            Err(Errno::EINVAL | Errno::EOPNOTSUPP) => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }
}
