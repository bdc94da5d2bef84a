//! A container's network at the target of a migration: ready before the pause, attached at commit.

use std::net::IpAddr;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::time::{Duration, Instant, SystemTime};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use sys::net::departures::Departures;
use sys::net::link::master_message;
use sys::net::packet::{PacketSocket, announcement};
use sys::net::{Message, Netlink};
use sys::ns::{self, Kind};

use super::frame;
use super::hold::Hold;
use super::{Addressing, Context as _, INSIDE, Mac, NetworkError};

/// The prepared end of a link.
#[derive(Debug)]
pub struct Port {
    link: String,
    netlink: Netlink,
    attach: Option<Message>,
    replay: Replay,
    /// What arrives directly waits here.
    hold: Hold,
    /// What the container sends, from [`Port::attach`] on.
    departures: Option<Departures>,
    mac: Mac,
    announcements: Vec<Vec<u8>>,
}

impl Port {
    /// Prepares the link with host end `link` that [`super::create`] made for process `pid`, and closes it for what
    /// arrives directly. `None` for a container without a link.
    ///
    /// # Errors
    /// When a part of it is not there.
    pub fn prepare(
        link: &str,
        network: &Addressing,
        bridge: Option<&str>,
        pid: i32,
    ) -> Result<Option<Self>, NetworkError> {
        let Some(ip) = network.ip else { return Ok(None) };
        let what = || format!("prepare the link {link}");
        let mut netlink = Netlink::open().during(what)?;
        let index = netlink.link(link).during(what)?.index;
        let attach = match bridge {
            Some(bridge) => {
                let master = netlink.link(bridge).during(|| format!("find the bridge {bridge}"))?.index;
                Some(master_message(index, Some(master)))
            }
            None => None,
        };
        let netns = ns::open(pid, Kind::Net).during(what)?;
        // An earlier agent may have closed it.
        super::lift_leftovers(link)?;
        let hold = Hold::close(&mut netlink, link, index).during(what)?;
        let replay = Replay::open(index, netns.as_fd(), network.mac).during(what)?;
        replay.outside.bypass_filters(true).during(what)?;
        let departures = Departures::open(index).during(what)?;
        Ok(Some(Self {
            replay,
            hold,
            departures: Some(departures),
            link: link.to_owned(),
            netlink,
            attach,
            mac: network.mac,
            announcements: vec![announcement(network.mac.0, ip.address)],
        }))
    }

    /// These are the addresses that [`Port::announce`] tells, instead of the one that the container was given.
    pub fn set_addresses(&mut self, addresses: &[IpAddr]) {
        if !addresses.is_empty() {
            self.announcements = addresses.iter().map(|ip| announcement(self.mac.0, *ip)).collect();
        }
    }

    /// Attaches the host end to the bridge. May be called again.
    ///
    /// # Errors
    /// When the bridge does not take it.
    pub fn attach(&mut self) -> Result<(), NetworkError> {
        if let Some(departures) = &self.departures
            && let Err(error) = departures.begin()
        {
            tracing::debug!(%error, link = self.link, "the first frame that the container sends will not be known");
        }
        let Some(message) = &self.attach else { return Ok(()) };
        self.netlink.execute(message).during(|| format!("attach {} to its bridge", self.link))
    }

    /// Lets frames that arrive directly reach the container, those first that have come since [`Port::attach`]. Called
    /// again a little later it lets the very last of these through. Answers how many had waited.
    ///
    /// # Errors
    /// When the way stays closed.
    pub fn open(&mut self) -> Result<usize, NetworkError> {
        let opened = self.hold.open(&mut self.netlink, &self.replay.outside);
        // The container may be moved on while frames still come late: they stay before the next lock.
        let opened = opened.and_then(|count| self.replay.outside.bypass_filters(false).map(|()| count));
        opened.during(|| format!("open {}", self.link))
    }

    /// How long after `since` the first frame with data left that the container's programs sent after it, if one did or
    /// does within `wait`; `None` also when it cannot be known. Frames are seen from [`Port::attach`] on.
    #[must_use]
    pub fn first_served(&self, since: SystemTime, wait: Duration) -> Option<Duration> {
        let departures = self.departures.as_ref()?;
        let end = Instant::now() + wait;
        loop {
            while let Some(departure) = departures.next().ok()? {
                if let Ok(after) = departure.at.duration_since(since)
                    && frame::has_data(&departure.head)
                {
                    return Some(after);
                }
            }
            let left = end.saturating_duration_since(Instant::now());
            let limit = Timespec::try_from(left).ok().filter(|_| !left.is_zero())?;
            let mut fds = [PollFd::new(departures, PollFlags::IN)];
            poll(&mut fds, Some(&limit)).ok()?;
        }
    }

    /// Looks at what the container sends no more.
    pub fn look_away(&mut self) {
        self.departures = None;
    }

    /// Tells the network where the container is, from inside of its namespace.
    ///
    /// # Errors
    /// When the frame cannot be sent.
    pub fn announce(&self) -> Result<(), NetworkError> {
        for frame in &self.announcements {
            self.replay.inside.send(frame).during(|| format!("announce an address behind {}", self.link))?;
        }
        Ok(())
    }

    /// Delivers frames to the container, in order; those that it sent itself go out.
    ///
    /// # Errors
    /// When the link does not take one.
    pub fn deliver(&self, frames: &[Vec<u8>]) -> Result<(), NetworkError> {
        for frame in frames {
            self.replay.send(frame).during(|| format!("deliver frames through {}", self.link))?;
        }
        Ok(())
    }
}

/// Puts frames back on a container's link, each in its own direction.
#[derive(Debug)]
pub(super) struct Replay {
    /// On the host end: what it sends arrives in the container.
    outside: PacketSocket,
    /// On the container's end: what it sends leaves the container.
    inside: PacketSocket,
    mac: Mac,
}

impl Replay {
    pub(super) fn open(index: u32, netns: BorrowedFd<'_>, mac: Mac) -> sys::Result<Self> {
        let inside = || {
            let index = Netlink::open()?.link(INSIDE)?.index;
            PacketSocket::open(index)
        };
        Ok(Self { outside: PacketSocket::open(index)?, inside: ns::in_netns(netns, inside)??, mac })
    }

    pub(super) fn send(&self, frame: &[u8]) -> sys::Result<()> {
        let from = frame.get(6..12);
        if from == Some(&self.mac.0) { self.inside.send(frame) } else { self.outside.send(frame) }
    }
}
