//! What an epoll instance watches.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd};

use image::files::EpollTarget;
use sys::{Errno, kcmp};

use super::table::{Open, Table};
use crate::proc::fdinfo::EpollLine;
use crate::readiness;
use crate::source::descriptor::Class;
use crate::source::look::{Look, tables};

/// EPOLLWAKEUP, EPOLLONESHOT, EPOLLET, EPOLLEXCLUSIVE: flags, not events.
const FLAGS: u32 = 0xf000_0000;
const EPOLLONESHOT: u32 = 1 << 30;
const EPOLLET: u32 = 1 << 31;

/// The entries of an epoll instance, and the numbers of those whose file was not found.
pub(crate) fn targets(
    epoll: &Open,
    table: &Table,
    look: &Look,
) -> Result<(Vec<EpollTarget>, Vec<i32>), Errno> {
    let mut targets = Vec::new();
    let mut missing = Vec::new();
    // Several entries may bear one number: the descriptor was closed while a duplicate kept the file.
    let mut seen: HashMap<i32, u32> = HashMap::new();
    for line in &epoll.info.epoll {
        let offset = seen.entry(line.fd).or_default();
        let file = match socket_under(epoll, line, table) {
            Some(file) => Some(file),
            None => file_of(epoll, line.fd, *offset, table, look)?,
        };
        match file {
            Some(file) => targets.push(target(line, file)),
            None => missing.push(line.fd),
        }
        *offset += 1;
    }
    told(epoll, &mut targets, table)?;
    Ok((targets, missing))
}

/// Notes which edges have been heard of. Which entry has something to tell shows nowhere; that none has, poll(2) says
/// of the set itself.
fn told(epoll: &Open, targets: &mut [EpollTarget], table: &Table) -> Result<(), Errno> {
    let classes = || targets.iter().filter_map(|t| Some(&table.get(t.file)?.class));
    // A signalfd answers each reader for itself: this process has no such signals, and its question would take the
    // entry from those that have something to tell.
    if classes().any(|class| matches!(class, Class::SignalFd | Class::Epoll)) {
        return Ok(());
    }
    let mut edges: Vec<(&mut EpollTarget, &Open)> = targets
        .iter_mut()
        .filter(|t| t.events & (EPOLLET | EPOLLONESHOT) == EPOLLET)
        .filter_map(|t| table.get(t.file).map(|open| (t, open)))
        // A timer may run out once more at any moment.
        .filter(|(_, open)| open.class != Class::TimerFd)
        .collect();
    let input = libc::EPOLLIN.cast_unsigned();
    if edges.is_empty() || readiness::of(&[(epoll.file.as_fd(), input)])? != [0] {
        return Ok(());
    }
    let asked: Vec<_> = edges.iter().map(|(t, open)| (open.file.as_fd(), t.events)).collect();
    let ready = readiness::of(&asked)?;
    for ((target, _), ready) in edges.iter_mut().zip(ready) {
        target.told = ready;
    }
    Ok(())
}

fn target(line: &EpollLine, file: u32) -> EpollTarget {
    EpollTarget {
        fd: line.fd,
        file,
        events: line.events,
        data: line.data,
        fired: line.events & EPOLLONESHOT != 0 && line.events & !FLAGS == 0,
        told: 0,
    }
}

/// The socket that the holder still has open under an entry's number. No two descriptions share a socket's inode, so
/// that its number tells as much as kcmp(2) does, which walks the set for every question.
fn socket_under(epoll: &Open, line: &EpollLine, table: &Table) -> Option<u32> {
    let open = table.get(*table.numbers.get(&(epoll.holder_pid, line.fd))?)?;
    let same = open.class == Class::Socket && open.key.1 == line.inode && dev_of(open.key.0) == line.device;
    same.then_some(open.id)
}

/// A device number of stat(2) in the kernel's own encoding.
fn dev_of(device: u64) -> u64 {
    u64::from(libc::major(device)) << 20 | u64::from(libc::minor(device))
}

fn file_of(epoll: &Open, number: i32, offset: u32, table: &Table, look: &Look) -> Result<Option<u32>, Errno> {
    let is = |pid: i32, fd: i32| {
        let order = kcmp::epoll_target(pid, fd, epoll.holder_pid, epoll.holder.1, number, offset);
        match order {
            Ok(order) => Ok(order == Ordering::Equal),
            Err(Errno::EBADF | Errno::ENOENT) => Ok(false),
            Err(errno) => Err(errno),
        }
    };
    let own = i32::try_from(std::process::id()).map_err(|_| Errno::ESRCH)?;
    // Nearly always it is still open under its number, in the process that holds the epoll instance.
    let pids = std::iter::once(epoll.holder_pid).chain(tables(&look.processes).map(|(_, table)| table.task));
    for pid in pids {
        if let Some(&id) = table.numbers.get(&(pid, number))
            && is(pid, number)?
        {
            return Ok(Some(id));
        }
    }
    for open in &table.open {
        if is(own, open.file.as_raw_fd())? {
            return Ok(Some(open.id));
        }
    }
    Ok(None)
}
