//! The lock on a container's network while it is switched over.
//!
//! Both directions of the host end are redirected: what is meant for the container into a TAP that this
//! process reads, what comes from it into one that nobody reads. When this process dies the TAPs go, and
//! the redirects drop every frame: the lock fails closed. Everything that takes time is prepared by
//! [`Lock::prepare`]; engaging is two messages to the kernel.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use sys::Errno;
use sys::net::packet::PacketSocket;
use sys::net::tap::Tap;
use sys::net::tc::{Direction, redirect_message};
use sys::net::{Message, Netlink};

use super::{Context as _, NetworkError};

/// Priority of the filters, so that others on the link are left alone.
const PRIORITY: u16 = 1;

/// Largest frame: a segment that the link's offloading has not cut.
const MAX_FRAME: usize = 128 * 1024;

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
    engage: [Message; 2],
    replay: PacketSocket,
    engaged: bool,
    held: Vec<Vec<u8>>,
    buffer: Vec<u8>,
}

impl Lock {
    /// Prepares the lock of the link with host end `link`, of a container whose network namespace is `netns`. Filters that an earlier agent
    /// left stay in place.
    ///
    /// # Errors
    /// When the link is not there or a TAP cannot be made.
    pub fn prepare(link: &str, netns: OwnedFd) -> Result<Self, NetworkError> {
        let what = || format!("prepare the network lock of {link}");
        let mut netlink = Netlink::open().during(what)?;
        let index = netlink.link(link).during(what)?.index;
        let suffix = link.strip_prefix("gv").unwrap_or(link);
        let towards = Tap::create(&mut netlink, &format!("gi{suffix}")).during(what)?;
        let away = Tap::create(&mut netlink, &format!("go{suffix}")).during(what)?;
        netlink.add_clsact(index).during(what)?;
        let engage = [
            redirect_message(index, Direction::Egress, PRIORITY, towards.index()),
            redirect_message(index, Direction::Ingress, PRIORITY, away.index()),
        ];
        let replay = PacketSocket::open(index).during(what)?;
        Ok(Self {
            link: link.to_owned(),
            netns: Some(netns),
            index,
            netlink,
            towards,
            away,
            engage,
            replay,
            engaged: false,
            held: Vec::new(),
            buffer: vec![0; MAX_FRAME],
        })
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
        done.during(|| format!("lock the network of {}", self.link))
    }

    /// The frames that arrived since the last call. A copy of each is kept for [`Lock::lift`]. Waits up to
    /// `wait` for the first one.
    ///
    /// # Errors
    /// When the TAP cannot be read.
    pub fn held(&mut self, wait: Duration) -> Result<Vec<Vec<u8>>, NetworkError> {
        let mut frames = self.drain()?;
        if frames.is_empty() && !wait.is_zero() {
            let end = Instant::now() + wait;
            while frames.is_empty() && Instant::now() < end {
                let left = end.saturating_duration_since(Instant::now());
                let limit = Timespec::try_from(left).unwrap_or_default();
                let mut fds = [PollFd::new(&self.towards, PollFlags::IN)];
                poll(&mut fds, Some(&limit)).during(|| format!("wait for frames of {}", self.link))?;
                frames = self.drain()?;
            }
        }
        self.held.extend(frames.iter().cloned());
        Ok(frames)
    }

    /// What waits in the TAP and is not the TAP's own business.
    fn drain(&mut self) -> Result<Vec<Vec<u8>>, NetworkError> {
        let mut frames = Vec::new();
        while let Some(length) = self
            .towards
            .read_frame(&mut self.buffer)
            .during(|| format!("read held frames of {}", self.link))?
        {
            frames.push(self.buffer[..length].to_vec());
        }
        Ok(frames)
    }

    /// Opens the lock and delivers every kept frame to the container. Removes filters that an earlier agent
    /// left, too. May be called again.
    ///
    /// # Errors
    /// When a filter is left.
    pub fn lift(&mut self) -> Result<(), NetworkError> {
        let what = || format!("unlock the network of {}", self.link);
        match self.netlink.remove_clsact(self.index) {
            Ok(()) | Err(Errno::ENODEV) => {}
            Err(error) => return Err(error).during(what),
        }
        self.engaged = false;
        let late = self.drain()?;
        self.held.extend(late);
        for frame in self.held.drain(..) {
            // A frame that cannot be delivered is lost as any frame can be.
            if let Err(error) = self.replay.send(&frame) {
                tracing::debug!(link = self.link, %error, "a held frame was not delivered");
            }
        }
        self.netlink.add_clsact(self.index).or_else(gone_is_fine).during(|| format!("prepare the lock of {}", self.link))
    }

    /// After the container is gone: removes the link with the lock on it, and forgets the frames. May be
    /// called again.
    ///
    /// # Errors
    /// When the link is left.
    pub fn release(&mut self) -> Result<(), NetworkError> {
        self.netlink.delete_link(self.index).or_else(gone_is_fine).during(|| format!("remove {}", self.link))?;
        self.held.clear();
        self.netns = None;
        Ok(())
    }
}

impl Drop for Lock {
    /// An open lock leaves nothing; an engaged one stays closed (its filters then drop every frame).
    fn drop(&mut self) {
        if !self.engaged {
            let _ = self.netlink.remove_clsact(self.index);
        }
        tracing::trace!(away = self.away.name(), towards = ?self.towards.as_fd(), "network lock dropped");
    }
}

/// Removes the filters of a dead agent from a container's link. Ok when there are none. Idempotent.
///
/// # Errors
/// When a filter is left.
pub fn lift_leftovers(link: &str) -> Result<(), NetworkError> {
    let lift = || -> io::Result<()> {
        let mut netlink = Netlink::open()?;
        match netlink.link(link) {
            Ok(found) => Ok(netlink.remove_clsact(found.index).or_else(gone_is_fine)?),
            Err(Errno::ENODEV) => Ok(()),
            Err(error) => Err(error.into()),
        }
    };
    lift().during(|| format!("unlock the network of {link}"))
}

fn gone_is_fine(error: Errno) -> sys::Result<()> {
    if error == Errno::ENODEV { Ok(()) } else { Err(error) }
}
