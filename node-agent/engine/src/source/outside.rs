//! Pipes and unix sockets whose other end is not in the tree, found before anything is touched.

use std::collections::{BTreeMap, HashSet};
use std::os::fd::AsFd;

use nix::poll::PollFlags;
use sys::Errno;

use super::capture::pipes::has;
use super::capture::unix::{OUTSIDE, Peers};
use super::descriptor::{Class, Descriptor};
use super::error::InspectError;
use super::findings::Findings;
use super::look::{Look, ProcessLook, TableLook, tables};
use super::sockets::Kind;

/// Adds a refusal for each end whose other end is outside.
pub(crate) fn check(look: &Look, root: i32, findings: &mut Findings) -> Result<(), InspectError> {
    pipes(look, findings)?;
    unix(look, root, findings)
}

type End<'a> = (&'a ProcessLook, &'a TableLook, &'a Descriptor);

fn pipes(look: &Look, findings: &mut Findings) -> Result<(), InspectError> {
    // A reader and a writer of each pipe.
    let mut ends: BTreeMap<(u64, u64), [Option<End<'_>>; 2]> = BTreeMap::new();
    for (found, table) in tables(&look.processes) {
        for descriptor in &table.descriptors {
            if descriptor.class == (Class::Pipe { fifo: None }) {
                let pair = ends.entry(descriptor.key).or_default();
                match descriptor.info.flags & 3 {
                    0 => pair[0] = Some((found, table, descriptor)),
                    1 => pair[1] = Some((found, table, descriptor)),
                    _ => *pair = [Some((found, table, descriptor)); 2],
                }
            }
        }
    }
    for pair in ends.into_values() {
        let (end, event, reason) = match pair {
            [Some(end), None] => {
                (end, PollFlags::POLLHUP, "pipe whose writing end is outside of the container")
            }
            [None, Some(end)] => {
                (end, PollFlags::POLLERR, "pipe whose reading end is outside of the container")
            }
            _ => continue,
        };
        let (found, table, descriptor) = end;
        if !other_end_is_closed(table, descriptor, event)? {
            findings.fd(found.process.inner, descriptor.fd, reason, OUTSIDE);
        }
    }
    Ok(())
}

fn other_end_is_closed(
    table: &TableLook,
    descriptor: &Descriptor,
    event: PollFlags,
) -> Result<bool, InspectError> {
    let pid = table.task;
    let asked = sys::pidfd::open_task(pid)
        .and_then(|pidfd| sys::pidfd::getfd(pidfd.as_fd(), descriptor.fd))
        .and_then(|pipe| has(pipe.as_fd(), event));
    match asked {
        Ok(closed) => Ok(closed),
        // Closed, or the process ended, since we looked.
        Err(Errno::EBADF | Errno::ESRCH) => Ok(true),
        Err(errno) => Err(InspectError::kernel("ask a pipe", pid, errno)),
    }
}

fn unix(look: &Look, root: i32, findings: &mut Findings) -> Result<(), InspectError> {
    let sockets = || {
        tables(&look.processes).flat_map(|(found, table)| {
            table
                .descriptors
                .iter()
                .filter(|descriptor| matches!(table.sockets.get(&descriptor.fd), Some(Kind::Unix(_))))
                .map(move |descriptor| (found, descriptor))
        })
    };
    let inside: HashSet<u64> = sockets().map(|(_, descriptor)| descriptor.key.1).collect();
    if inside.is_empty() {
        return Ok(());
    }
    let peers = Peers::list(root)?;
    for (found, descriptor) in sockets() {
        if peers.peer_of(descriptor.key.1).is_some_and(|peer| !inside.contains(&peer)) {
            findings.fd(
                found.process.inner,
                descriptor.fd,
                "unix socket whose peer is outside of the container",
                OUTSIDE,
            );
        }
    }
    Ok(())
}
