//! What an epoll instance watches.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::os::fd::AsRawFd;

use image::files::EpollTarget;
use sys::{Errno, kcmp};

use super::files::live;
use super::table::{Open, Table};
use crate::source::look::Look;

/// EPOLLWAKEUP, EPOLLONESHOT, EPOLLET, EPOLLEXCLUSIVE: flags, not events.
const FLAGS: u32 = 0xf000_0000;
const EPOLLONESHOT: u32 = 1 << 30;

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
        match file_of(epoll, line.fd, *offset, table, look)? {
            Some(file) => targets.push(EpollTarget {
                fd: line.fd,
                file,
                events: line.events,
                data: line.data,
                fired: line.events & EPOLLONESHOT != 0 && line.events & !FLAGS == 0,
            }),
            None => missing.push(line.fd),
        }
        *offset += 1;
    }
    Ok((targets, missing))
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
    let pids = std::iter::once(epoll.holder_pid).chain(live(look).map(|found| found.process.pid));
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
