//! Pseudo terminals of the copy: made with the numbers that they had, and held by the agent until the container
//! has its own descriptors of them.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use image::{Refusal, Subject};
use libc::{SYS_close, SYS_ioctl};
use nix::fcntl::OFlag;
use sys::tape::target::TargetTape;
use sys::tty;

use super::error::TargetError;
use super::plant::Channel;
use super::rootfs::RootFs;
use super::script::{Arg, call};
use super::skeleton::Skeleton;

/// Most masters that are opened to reach a number.
const MOST_MASTERS: usize = 1024;

/// All terminals of the copy, by number.
#[derive(Debug, Default)]
pub(crate) struct Terminals {
    pairs: BTreeMap<u32, Pair>,
}

#[derive(Debug)]
struct Pair {
    /// `None`: the runtime has it.
    master: Option<OwnedFd>,
    /// A terminal that nobody has open is no session's any more: held until the container has it open.
    slave: Option<File>,
}

/// The path of a slave in the container.
pub(crate) fn path(index: u32) -> String {
    format!("/dev/pts/{index}")
}

/// Opens a terminal of the container; it becomes nobody's controlling one.
pub(crate) fn open(root: &RootFs, path: &str, flags: OFlag) -> Result<File, TargetError> {
    root.open(0, path, flags | OFlag::O_NOCTTY)
}

fn open_slave(root: &RootFs, index: u32) -> Result<File, TargetError> {
    open(root, &path(index), OFlag::O_RDWR | OFlag::O_NONBLOCK)
}

/// A new pseudo terminal, unlocked, with this number when one is wanted. The kernel gives the lowest free one, so
/// masters are opened and held until it comes.
pub(crate) fn fresh(root: &RootFs, wanted: Option<u32>) -> Result<(OwnedFd, u32), TargetError> {
    let ask = |what: &str| TargetError::errno(format!("{what} a new terminal"));
    let mut others = Vec::new();
    while others.len() < MOST_MASTERS {
        let flags = OFlag::O_RDWR | OFlag::O_NONBLOCK;
        // /dev/ptmx may be missing where the devpts has its own.
        let master = open(root, "/dev/ptmx", flags).or_else(|_| open(root, "/dev/pts/ptmx", flags))?;
        let index = tty::index(master.as_fd()).map_err(ask("number"))?;
        if wanted.is_none_or(|wanted| wanted == index) {
            tty::set_locked(master.as_fd(), false).map_err(ask("unlock"))?;
            return Ok((master.into(), index));
        }
        if wanted.is_some_and(|wanted| index > wanted) {
            break;
        }
        others.push(master);
    }
    Err(TargetError::Refused(Refusal {
        pid: 0,
        subject: Subject::Container,
        reason: format!(
            "terminal {} cannot be had: its number is taken at the target",
            path(wanted.unwrap_or(0))
        ),
        way_out: "mount a devpts of its own (newinstance) in the container".to_owned(),
    }))
}

impl Terminals {
    fn pair(&mut self, root: &RootFs, index: u32) -> Result<&mut Pair, TargetError> {
        match self.pairs.entry(index) {
            Entry::Occupied(pair) => Ok(pair.into_mut()),
            Entry::Vacant(place) => {
                // What is there before the copy has made it is the runtime's.
                let slave = open_slave(root, index).ok();
                let master = if slave.is_none() { Some(fresh(root, Some(index))?.0) } else { None };
                Ok(place.insert(Pair { master, slave }))
            }
        }
    }

    /// The agent's descriptor of a slave. Makes the terminal when it is not there yet.
    pub(crate) fn slave(&mut self, root: &RootFs, index: u32) -> Result<BorrowedFd<'_>, TargetError> {
        let pair = self.pair(root, index)?;
        if pair.slave.is_none() {
            pair.slave = Some(open_slave(root, index)?);
        }
        let slave = pair.slave.as_ref();
        slave.map(AsFd::as_fd).ok_or_else(|| TargetError::Image(format!("no terminal {index}")))
    }

    /// The agent's descriptor of a master; `None` when it is the runtime's. Makes the terminal when it is not there.
    pub(crate) fn master(
        &mut self,
        root: &RootFs,
        index: u32,
    ) -> Result<Option<BorrowedFd<'_>>, TargetError> {
        Ok(self.pair(root, index)?.master.as_ref().map(AsFd::as_fd))
    }

    /// The leader of its session has ended, which hung the terminal up: it is opened anew.
    pub(crate) fn leader_ended(&mut self, root: &RootFs, index: u32) -> Result<(), TargetError> {
        if let Some(pair) = self.pairs.get_mut(&index) {
            pair.slave = Some(open_slave(root, index)?);
        }
        Ok(())
    }

    /// Terminals that came and went meanwhile go.
    pub(crate) fn keep_only(&mut self, wanted: &BTreeSet<u32>) {
        self.pairs.retain(|index, _| wanted.contains(index));
    }

    /// Nobody has this one open, but somebody had.
    pub(crate) fn leave(&mut self, root: &RootFs, index: u32) -> Result<(), TargetError> {
        self.slave(root, index)?;
        if let Some(pair) = self.pairs.get_mut(&index) {
            pair.slave = None;
        }
        Ok(())
    }

    /// Has a skeleton make one ioctl(2) on a terminal.
    pub(crate) fn ask(
        &mut self,
        skeleton: &mut Skeleton,
        request: (&'static str, u32, Arg),
        index: u32,
        around: (&RootFs, &TargetTape, &Channel, i32),
    ) -> Result<(), TargetError> {
        let (root, tape, channel, at) = around;
        let (what, number, argument) = request;
        let slave = self.slave(root, index)?;
        let landed = channel.plant(&mut skeleton.leader, tape, at, &[slave])?;
        let fd = landed.first().copied().unwrap_or(-1);
        let calls = [call!(what, SYS_ioctl, fd, number, argument), call!("close", SYS_close, fd)];
        skeleton.run(tape, &calls).map(drop)
    }
}
