//! The lock on a container's network while it is switched over.
//!
//! Before that newcomers alone are held: [`Lock::hold_newcomers`].
//!
//! Both directions of the host end are redirected into TAPs of this process. When it dies the TAPs go, and
//! the redirects drop every frame: the lock fails closed. Everything that takes time is prepared by
//! [`Lock::prepare`]; engaging is two messages to the kernel.
//!
//! What is meant for the container is kept until the lock is lifted or released. What the container still
//! sent while it was being stopped is kept, too: it goes out where the container runs on, because the
//! peer would otherwise wait for a retransmission. Only the first [`Lock::held`] takes it along: later
//! the copy here is dead, and what its kernel says (FIN, RST) must reach nobody.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use sys::Errno;
use sys::net::tap::Tap;
use sys::net::tc::{Direction, redirect_message};
use sys::net::{Message, Netlink};

use super::newcomers::{self, Newcomers, Unsettled};
use super::port::Replay;
use super::{Context as _, Mac, NetworkError};

/// Priority of the filters, so that others on the link are left alone.
pub(super) const PRIORITY: u16 = 1;

/// How long frames may still come after the filters went.
const SETTLE: Duration = Duration::from_millis(2);

/// Largest frame: a segment that the link's offloading has not cut.
pub(super) const MAX_FRAME: usize = 128 * 1024;

/// A lock, open at first.
#[derive(Debug)]
pub struct Lock {
    link: String,
    /// Keeps the container's namespace, and so the link, until [`Lock::release`].
    netns: Option<OwnedFd>,
    index: u32,
    netlink: Netlink,
    towards: Tap,
    away: Tap,
    mac: Mac,
    engage: [Message; 2],
    replay: Replay,
    newcomers: Newcomers,
    engaged: bool,
    /// The first [`Lock::held`] is over.
    taken: bool,
    held: Vec<Vec<u8>>,
    buffer: Vec<u8>,
}

impl Lock {
    /// Prepares the lock of the link with host end `link`, of a container with network
    /// namespace `netns` and MAC address `mac`. Filters that an earlier agent
    /// left stay in place.
    ///
    /// # Errors
    /// When the link is not there or a TAP cannot be made.
    pub fn prepare(link: &str, netns: OwnedFd, mac: Mac) -> Result<Self, NetworkError> {
        let what = || format!("prepare the network lock of {link}");
        let mut netlink = Netlink::open().during(what)?;
        let index = netlink.link(link).during(what)?.index;
        let suffix = link.strip_prefix("gv").unwrap_or(link);
        let towards = Tap::create(&mut netlink, &format!("gi{suffix}")).during(what)?;
        let away = Tap::create(&mut netlink, &format!("go{suffix}")).during(what)?;
        // There already on links that this program made; see `veth`.
        netlink.add_clsact(index).during(what)?;
        let engage = [
            redirect_message(index, Direction::Egress, PRIORITY, towards.index()),
            redirect_message(index, Direction::Ingress, PRIORITY, away.index()),
        ];
        let replay = Replay::open(index, netns.as_fd(), mac).during(what)?;
        let newcomers = Newcomers::prepare(index, netns.as_fd(), towards.index()).during(what)?;
        Ok(Self {
            link: link.to_owned(),
            netns: Some(netns),
            index,
            netlink,
            towards,
            away,
            mac,
            engage,
            replay,
            newcomers,
            engaged: false,
            taken: false,
            held: Vec::new(),
            buffer: vec![0; MAX_FRAME],
        })
    }

    /// From Ok on no connection to the container is begun: the first segments of TCP are kept, all else passes.
    ///
    /// # Errors
    /// When a filter is refused; newcomers then pass as before.
    pub fn hold_newcomers(&mut self) -> Result<(), NetworkError> {
        let held = self.newcomers.hold(&mut self.netlink);
        held.during(|| format!("hold new connections to {}", self.link))
    }

    /// The connections of the container that are just being made, accepted or ended.
    ///
    /// # Errors
    /// When they cannot be looked at.
    pub fn unsettled(&mut self) -> Result<Unsettled, NetworkError> {
        self.newcomers.unsettled().during(|| format!("look at the connections behind {}", self.link))
    }

    /// From Ok on no frame reaches the container and none leaves it; what arrives is kept.
    ///
    /// # Errors
    /// When a filter is refused; the lock is then open as before.
    pub fn engage(&mut self) -> Result<(), NetworkError> {
        if self.engaged {
            return Ok(());
        }
        let [towards, away] = &self.engage;
        let done = self.netlink.execute(towards).and_then(|()| self.netlink.execute(away));
        if done.is_err() {
            let _ = self.netlink.remove_filters(self.index, Direction::Egress, PRIORITY);
            let _ = self.netlink.remove_filters(self.index, Direction::Ingress, PRIORITY);
        }
        self.engaged = done.is_ok();
        self.taken = false;
        done.during(|| format!("lock the network of {}", self.link))
    }

    /// The frames that arrived since the last call. A copy of each is kept for [`Lock::lift`]. Waits up to
    /// `wait` for the first one.
    ///
    /// # Errors
    /// When the TAP cannot be read.
    pub fn held(&mut self, wait: Duration) -> Result<Vec<Vec<u8>>, NetworkError> {
        let mut frames = self.arrived()?;
        if !self.taken {
            self.taken = true;
            frames.extend(self.sent()?);
        }
        if frames.is_empty() && !wait.is_zero() {
            let end = Instant::now() + wait;
            while frames.is_empty() && Instant::now() < end {
                let left = end.saturating_duration_since(Instant::now());
                let limit = Timespec::try_from(left).unwrap_or_default();
                let mut fds = [PollFd::new(&self.towards, PollFlags::IN)];
                poll(&mut fds, Some(&limit)).during(|| format!("wait for frames of {}", self.link))?;
                frames = self.arrived()?;
            }
        }
        self.held.extend(frames.iter().cloned());
        Ok(frames)
    }

    /// Becomes readable when a frame has arrived for [`Lock::held`].
    #[must_use]
    pub fn arrivals(&self) -> BorrowedFd<'_> {
        self.towards.as_fd()
    }

    /// What arrived for the container. Frames with its own source address are echoes of what it (or its copy on
    /// another node) sent: a bridge floods them; passed on they would go round for ever.
    fn arrived(&mut self) -> Result<Vec<Vec<u8>>, NetworkError> {
        let mut frames =
            drain(&self.towards, &mut self.buffer).during(|| format!("read held frames of {}", self.link))?;
        let own = self.mac.0;
        frames.retain(|frame| frame.get(6..12).is_some_and(|source| source != own));
        Ok(frames)
    }

    /// What the container sent since the lock was engaged.
    fn sent(&mut self) -> Result<Vec<Vec<u8>>, NetworkError> {
        drain(&self.away, &mut self.buffer).during(|| format!("read what {} sent", self.link))
    }

    /// Opens the lock and delivers every kept frame to the container. Removes filters that an earlier agent
    /// left, too. May be called again.
    ///
    /// # Errors
    /// When a filter is left.
    pub fn lift(&mut self) -> Result<(), NetworkError> {
        let what = || format!("unlock the network of {}", self.link);
        for direction in [Direction::Egress, Direction::Ingress] {
            self.netlink
                .remove_filters(self.index, direction, PRIORITY)
                .or_else(gone_is_fine)
                .during(what)?;
        }
        self.newcomers.release(&mut self.netlink).or_else(gone_is_fine).during(what)?;
        self.engaged = false;
        self.replay()?;
        // A processor that had found the filter just before it went may still be on its way into a TAP.
        std::thread::sleep(SETTLE);
        self.replay()
    }

    /// Puts every kept frame back on the link.
    fn replay(&mut self) -> Result<(), NetworkError> {
        let what = || format!("read held frames of {}", self.link);
        self.held.extend(drain(&self.towards, &mut self.buffer).during(what)?);
        self.held.extend(drain(&self.away, &mut self.buffer).during(what)?);
        for frame in self.held.drain(..) {
            // A frame that cannot be delivered is lost as any frame can be.
            if let Err(error) = self.replay.send(&frame) {
                tracing::debug!(link = self.link, %error, "a held frame was not delivered");
            }
        }
        Ok(())
    }

    /// After the container is gone: removes the link with the lock on it, and forgets the frames. May be
    /// called again.
    ///
    /// # Errors
    /// When the link is left.
    pub fn release(&mut self) -> Result<(), NetworkError> {
        self.netlink
            .delete_link(self.index)
            .or_else(gone_is_fine)
            .during(|| format!("remove {}", self.link))?;
        self.held.clear();
        self.netns = None;
        Ok(())
    }
}

impl Drop for Lock {
    /// An open lock leaves no filter; an engaged one stays closed (its filters then drop every frame).
    fn drop(&mut self) {
        tracing::trace!(away = self.away.name(), towards = ?self.towards.as_fd(), "network lock dropped");
    }
}

/// Every frame that waits in a TAP.
pub(super) fn drain(tap: &Tap, buffer: &mut [u8]) -> sys::Result<Vec<Vec<u8>>> {
    let mut frames = Vec::new();
    while let Some(length) = tap.read_frame(buffer)? {
        frames.push(buffer[..length].to_vec());
    }
    Ok(frames)
}

/// Removes the filters of a dead agent from a container's link. Ok when there are none. Idempotent.
///
/// # Errors
/// When a filter is left.
pub fn lift_leftovers(link: &str) -> Result<(), NetworkError> {
    let lift = || -> io::Result<()> {
        let mut netlink = Netlink::open()?;
        match netlink.link(link) {
            Ok(found) => {
                for direction in [Direction::Egress, Direction::Ingress] {
                    netlink.remove_filters(found.index, direction, PRIORITY).or_else(gone_is_fine)?;
                }
                newcomers::remove(&mut netlink, found.index).or_else(gone_is_fine)?;
                Ok(())
            }
            Err(Errno::ENODEV) => Ok(()),
            Err(error) => Err(error.into()),
        }
    };
    lift().during(|| format!("unlock the network of {link}"))
}

pub(super) fn gone_is_fine(error: Errno) -> sys::Result<()> {
    if error == Errno::ENODEV { Ok(()) } else { Err(error) }
}
