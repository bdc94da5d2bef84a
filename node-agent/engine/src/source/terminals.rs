//! Pseudo terminals: which there are, who holds their two sides, and what stands against moving them.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::linux::fs::MetadataExt;

use image::Pid;
use image::files::TerminalSide;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use sys::{Errno, tty};

use super::capture::tty::Hidden;
use super::descriptor::{Class, Descriptor};
use super::error::{InspectError, TRY_AGAIN};
use super::findings::Findings;
use super::look::{ProcessLook, tables};
use super::mm::makedev;
use super::spec::TreeSpec;
use super::view::View;
use crate::proc::fdinfo::FdInfo;
use crate::proc::stat::Stat;

const OUTSIDE: &str = "start it without a terminal, or with the runtime's (process.terminal)";

/// A descriptor of a terminal, as /proc shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct End {
    pub(crate) side: TerminalSide,
    /// The terminal's number; /dev/tty does not show it.
    pub(crate) index: Option<u32>,
    pub(crate) path: String,
}

/// The number of the pseudo terminal whose slave is this device (`st_rdev`, or `tty_nr` of stat).
pub(crate) fn number(device: u64) -> Option<u32> {
    const SLAVES: u64 = 136;
    let minor = device & 0xff | device >> 12 & 0xf_ff00;
    if device >> 8 & 0xfff == SLAVES { u32::try_from(minor).ok() } else { None }
}

/// The number of a process's controlling terminal.
pub(crate) fn controlling(stat: &Stat) -> Option<u32> {
    number(u64::from(stat.tty_nr.cast_unsigned()))
}

/// What a character device is, when it is a side of a pseudo terminal.
pub(crate) fn end(rdev: u64, path: &str, info: &FdInfo) -> Option<End> {
    let (side, index) = if rdev == makedev(5, 2) {
        (TerminalSide::Master, Some(info.tty_index?))
    } else if rdev == makedev(5, 0) {
        (TerminalSide::Own, None)
    } else {
        (TerminalSide::Slave, Some(number(rdev)?))
    };
    Some(End { side, index, path: path.to_owned() })
}

/// The path of a slave.
pub(crate) fn path(index: u32) -> String {
    format!("/dev/pts/{index}")
}

/// The terminal that a descriptor leads to; `None` when it was hung up.
pub(crate) fn index_of(end: &End, file: BorrowedFd<'_>) -> Result<Option<u32>, Errno> {
    match tty::device(file) {
        Ok(device) => Ok(if end.side == TerminalSide::Master { end.index } else { number(device) }),
        Err(Errno::EIO) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// What poll(2) says at once. It also has the kernel finish what is under way between the two sides.
pub(crate) fn ready(fd: BorrowedFd<'_>) -> Result<PollFlags, Errno> {
    let mut polled = [PollFd::new(fd, PollFlags::POLLIN | PollFlags::POLLOUT | PollFlags::POLLPRI)];
    poll(&mut polled, PollTimeout::ZERO)?;
    Ok(polled[0].revents().unwrap_or(PollFlags::empty()))
}

/// The runtime's master of a terminal.
pub(crate) fn given(spec: &TreeSpec, index: u32) -> Option<Result<OwnedFd, Errno>> {
    let given = spec.terminals.iter().find(|given| given.index == index)?;
    Some(sys::pidfd::open(given.holder).and_then(|pidfd| sys::pidfd::getfd(pidfd.as_fd(), given.fd)))
}

/// One terminal with what the tree has of it.
#[derive(Debug, Default)]
struct Pair {
    master: Option<OwnedFd>,
    given: bool,
    slave: Option<OwnedFd>,
    /// Who has it open.
    holders: Vec<(Pid, i32)>,
}

/// All rules about terminals. `now`: they must be able to move at this moment.
pub(crate) fn check(
    processes: &[ProcessLook],
    spec: &TreeSpec,
    view: &View,
    now: bool,
    findings: &mut Findings,
) -> Result<(), InspectError> {
    let mut pairs: BTreeMap<u32, Pair> = BTreeMap::new();
    for (found, table) in tables(processes) {
        for descriptor in &table.descriptors {
            if let Class::Terminal(end) = &descriptor.class {
                add(&mut pairs, (found, table.task), descriptor, end, view, findings)?;
            }
        }
    }
    for (index, pair) in &mut pairs {
        take_given(*index, pair, spec)?;
    }
    sessions(processes, &mut pairs, spec, now, findings)?;
    for (index, pair) in &pairs {
        let Some(holder) = pair.holders.first().copied() else { continue };
        let result = match &pair.master {
            Some(master) => one(*index, pair, master.as_fd(), view, now),
            None => Ok(Some((
                format!("{}: terminal whose master is outside of the container", path(*index)),
                OUTSIDE,
            ))),
        };
        let refusal = result.map_err(|errno| InspectError::kernel("ask a terminal", spec.root, errno))?;
        if let Some((reason, way_out)) = refusal {
            findings.fd(holder.0, holder.1, reason, way_out);
        }
    }
    Ok(())
}

fn take_given(index: u32, pair: &mut Pair, spec: &TreeSpec) -> Result<(), InspectError> {
    if pair.master.is_none()
        && let Some(master) = given(spec, index)
    {
        let fail = |errno| InspectError::kernel("duplicate a terminal of the runtime", spec.root, errno);
        (pair.master, pair.given) = (Some(master.map_err(fail)?), true);
    }
    Ok(())
}

fn add(
    pairs: &mut BTreeMap<u32, Pair>,
    (found, task): (&ProcessLook, i32),
    descriptor: &Descriptor,
    end: &End,
    view: &View,
    findings: &mut Findings,
) -> Result<(), InspectError> {
    let (pid, fd) = (task, descriptor.fd);
    let asked = sys::pidfd::open_task(pid)
        .and_then(|pidfd| sys::pidfd::getfd(pidfd.as_fd(), fd))
        .and_then(|file| index_of(end, file.as_fd()).map(|index| (file, index)));
    let (file, index) = match asked {
        Ok((file, Some(index))) => (file, index),
        // Hung up: nothing to ask any more.
        Ok((_, None)) => return Ok(()),
        // Closed, or another file, since we looked; or the process ended.
        Err(Errno::EBADF | Errno::ESRCH | Errno::ENOTTY | Errno::ENOTSUP) => return Ok(()),
        Err(errno) => return Err(InspectError::kernel("ask a terminal", pid, errno)),
    };
    let pair = pairs.entry(index).or_default();
    pair.holders.push((found.process.inner, fd));
    match end.side {
        TerminalSide::Master => pair.master = Some(file),
        TerminalSide::Slave | TerminalSide::Own => pair.slave = Some(file),
    }
    let node = view.symlink_metadata(path(index).as_bytes());
    let same = node.is_some_and(|node| {
        number(node.st_rdev()) == Some(index)
            && (end.side != TerminalSide::Slave || node.st_dev() == descriptor.key.0)
    });
    if !same {
        findings.fd(
            found.process.inner,
            fd,
            format!("{}: a terminal of another devpts than the container's", end.path),
            OUTSIDE,
        );
    }
    Ok(())
}

/// Controlling terminals.
fn sessions(
    processes: &[ProcessLook],
    pairs: &mut BTreeMap<u32, Pair>,
    spec: &TreeSpec,
    now: bool,
    findings: &mut Findings,
) -> Result<(), InspectError> {
    for found in processes {
        let Some(index) = controlling(&found.process.stat) else { continue };
        let pid = found.process.inner;
        let pair = pairs.entry(index).or_default();
        take_given(index, pair, spec)?;
        let sid = found.process.sid();
        let leader = processes.iter().any(|other| other.process.inner == sid);
        if pair.master.is_none() || !leader {
            findings.process(pid, "its controlling terminal is outside of the container", OUTSIDE);
        } else if now && sid == pid && foreground(processes, &found.process.stat).is_none() {
            findings.process(pid, "the foreground process group of its terminal has ended", TRY_AGAIN);
        }
    }
    Ok(())
}

/// The foreground group of a process's terminal, in the container's numbering.
pub(crate) fn foreground(processes: &[ProcessLook], stat: &Stat) -> Option<Pid> {
    let member =
        processes.iter().map(|found| &found.process).find(|process| process.stat.pgrp == stat.tpgid)?;
    Some(member.pgid())
}

type Reason = Option<(String, &'static str)>;

fn one(index: u32, pair: &Pair, master: BorrowedFd<'_>, view: &View, now: bool) -> Result<Reason, Errno> {
    let name = path(index);
    let close = "have the program close it before the move";
    if tty::discipline(master)? != tty::N_TTY {
        return Ok(Some((format!("{name}: a terminal with a line discipline of its own"), close)));
    }
    if let Some(slave) = &pair.slave
        && (tty::discipline(slave.as_fd())? != tty::N_TTY || tty::has_locked_modes(slave.as_fd())?)
    {
        return Ok(Some((
            format!("{name}: a terminal with a line discipline of its own or locked modes"),
            close,
        )));
    }
    Ok(if now {
        busy(index, pair, master, view)?.map(|what| (format!("{name}: {what}"), TRY_AGAIN))
    } else {
        None
    })
}

/// What is under way and cannot be looked at without taking it.
fn busy(index: u32, pair: &Pair, master: BorrowedFd<'_>, view: &View) -> Result<Option<&'static str>, Errno> {
    const OUTPUT: Option<&str> = Some("output waits to be read by the terminal's master");
    const INPUT: Option<&str> = Some("input waits to be read");
    let opened;
    let mut slave = pair.slave.as_ref().map(AsFd::as_fd);
    let state = ready(master)?;
    if slave.is_none() && !pair.given {
        if !state.contains(PollFlags::POLLHUP) {
            return Ok(Some("its slave was not opened yet"));
        }
        // It was left before: opening and closing it changes nothing.
        opened = view.open_terminal(&path(index))?;
        slave = Some(opened.as_fd());
    }
    if let Some(slave) = slave {
        let state = ready(slave)?;
        if sys::tcp::inq(slave)? > 0 {
            return Ok(INPUT);
        }
        if !state.contains(PollFlags::POLLOUT) {
            return Ok(Some("its output is stopped (Ctrl-S)"));
        }
    }
    let state = ready(master)?;
    if state.contains(PollFlags::POLLPRI) || sys::tcp::inq(master)? > 0 {
        return Ok(OUTPUT);
    }
    if !state.contains(PollFlags::POLLOUT) {
        return Ok(INPUT);
    }
    if pair.given || pair.slave.is_none() {
        return Ok(None);
    }
    Ok(match Hidden::of(&tty::termios(master)?) {
        Hidden::Unreadable(why) => Some(why),
        Hidden::Nothing | Hidden::Reprint(_) => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_terminals() {
        assert_eq!(number(makedev(136, 0)), Some(0));
        assert_eq!(number(0x8801), Some(1));
        assert_eq!(number(136 << 8 | 5 | 3 << 20), Some(0x305));
        assert_eq!(number(makedev(5, 1)), None);
        assert_eq!(number(0), None);
    }
}
