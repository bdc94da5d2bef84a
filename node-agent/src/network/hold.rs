//! Order at the target: what arrives directly waits until all has come that the source still had.
//!
//! From its making on, frames for the container are redirected into a TAP, and the port sends past the redirect. So
//! frames that were held at the source go first, those that were late there second, and what came to this host since
//! the announcement third.

use sys::net::tap::Tap;
use sys::net::tc::{Direction, redirect_message};
use sys::net::{Netlink, packet::PacketSocket};

use super::lock::{MAX_FRAME, PRIORITY, drain, gone_is_fine};

/// A held direction of a link. Dropped while it is closed it stays so: its filter then drops every frame.
#[derive(Debug)]
pub(super) struct Hold {
    index: u32,
    tap: Tap,
    closed: bool,
    buffer: Vec<u8>,
}

impl Hold {
    /// Closes the way to the container behind the host end `index` of the link `link`.
    pub(super) fn close(netlink: &mut Netlink, link: &str, index: u32) -> sys::Result<Self> {
        let suffix = link.strip_prefix("gv").unwrap_or(link);
        let tap = Tap::create(netlink, &format!("gh{suffix}"))?;
        netlink.add_clsact(index)?;
        netlink.execute(&redirect_message(index, Direction::Egress, PRIORITY, tap.index()))?;
        Ok(Self { index, tap, closed: true, buffer: vec![0; MAX_FRAME] })
    }

    /// Sends what has come, in order, through `port`, and opens the way. A frame that comes in the moment of opening
    /// may overtake one that came just before it. Called again, it sends what a processor had sent on its way into the
    /// TAP just before. Answers how many there were.
    pub(super) fn open(&mut self, netlink: &mut Netlink, port: &PacketSocket) -> sys::Result<usize> {
        let mut count = 0;
        loop {
            match self.pass(port)? {
                0 => break,
                more => count += more,
            }
        }
        if !self.closed {
            return Ok(count);
        }
        netlink.remove_filters(self.index, Direction::Egress, PRIORITY).or_else(gone_is_fine)?;
        self.closed = false;
        Ok(count + self.pass(port)?)
    }

    fn pass(&mut self, port: &PacketSocket) -> sys::Result<usize> {
        let frames = drain(&self.tap, &mut self.buffer)?;
        for frame in &frames {
            // A frame that cannot be delivered is lost as any frame can be.
            if let Err(error) = port.send(frame) {
                tracing::debug!(%error, "a frame that waited was not delivered");
            }
        }
        Ok(frames.len())
    }
}
