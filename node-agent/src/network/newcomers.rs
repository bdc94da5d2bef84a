//! Just before a container is stopped: nobody new comes in, and those who are coming or going may finish.
//!
//! A connection in the middle of its handshake has no socket yet that could be moved, and one that its program has closed
//! has none any more, while its last bytes are on their way. Both are over within a round trip or so. What is left of
//! them when the container moves, its peer sees end in a reset.

use std::fmt;
use std::os::fd::BorrowedFd;

use sys::diag::Diag;
use sys::net::tc::{Direction, redirect_syn_messages};
use sys::net::{Message, Netlink};
use sys::ns;
use sys::tcp::state;

/// Priorities of the filters, behind those of the lock.
const PRIORITIES: [u16; 2] = [2, 3];
const IPPROTO_TCP: u8 = 6;
/// A listening socket is making it: `TCP_NEW_SYN_RECV` of the kernel.
const NEW_SYN_RECV: u8 = 12;

/// Connections that are in between.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unsettled {
    /// In the middle of their handshake.
    pub begun: usize,
    /// Made, and not accepted by the program.
    pub waiting: usize,
    /// Closed by the program, with bytes that the peer has not acknowledged.
    pub ending: usize,
}

impl Unsettled {
    /// There are none.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        *self == Self::default()
    }
}

impl fmt::Display for Unsettled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { begun, waiting, ending } = self;
        write!(f, "{begun} being made, {waiting} not accepted, {ending} closed with data on its way")
    }
}

/// Holds newcomers of one link.
#[derive(Debug)]
pub(super) struct Newcomers {
    index: u32,
    redirect: [Message; 2],
    diag: Diag,
    held: bool,
}

impl Newcomers {
    /// For the link with host end `index`, of a container with this network namespace; they will go to interface `to`.
    pub(super) fn prepare(index: u32, netns: BorrowedFd<'_>, to: u32) -> sys::Result<Self> {
        let redirect = redirect_syn_messages(index, Direction::Egress, PRIORITIES, to);
        Ok(Self { index, redirect, diag: ns::in_netns(netns, Diag::open)??, held: false })
    }

    pub(super) fn hold(&mut self, netlink: &mut Netlink) -> sys::Result<()> {
        if self.held {
            return Ok(());
        }
        let done = self.redirect.iter().try_for_each(|message| netlink.execute(message));
        if done.is_err() {
            let _ = remove(netlink, self.index);
        }
        self.held = done.is_ok();
        done
    }

    pub(super) fn release(&mut self, netlink: &mut Netlink) -> sys::Result<()> {
        self.held = false;
        remove(netlink, self.index)
    }

    pub(super) fn unsettled(&mut self) -> sys::Result<Unsettled> {
        let ending = [state::FIN_WAIT1, state::LAST_ACK, state::CLOSING];
        let states = [state::LISTEN, state::SYN_RECV, NEW_SYN_RECV].into_iter().chain(ending);
        let mut found = Unsettled::default();
        for socket in self.diag.inet_in(IPPROTO_TCP, states.map(|state| 1 << state).sum())? {
            match socket.state {
                state::LISTEN => found.waiting += usize::try_from(socket.unread).unwrap_or(0),
                state::SYN_RECV | NEW_SYN_RECV => found.begun += 1,
                // One that is still open moves with its descriptor.
                _ => found.ending += usize::from(socket.inode == 0),
            }
        }
        Ok(found)
    }
}

/// Removes the filters. None there is fine.
pub(super) fn remove(netlink: &mut Netlink, index: u32) -> sys::Result<()> {
    PRIORITIES.iter().try_for_each(|priority| netlink.remove_filters(index, Direction::Egress, *priority))
}
