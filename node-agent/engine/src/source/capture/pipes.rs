//! Pipes and fifos.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use image::files::Pipe;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use sys::fds::PipePeek;
use sys::{Errno, fds};

use super::table::{Open, Table};
use super::unix::OUTSIDE;
use crate::source::SourceError;
use crate::source::descriptor::Class;
use crate::source::findings::Findings;

const O_ACCMODE: u32 = 3;
const O_RDONLY: u32 = 0;
const O_DIRECT: u32 = 0o40_000;
/// The longest packet (PIPE_BUF).
const PACKET: usize = 4096;
/// What one look into a pipe of plain bytes takes, as long as there is more.
const PEEKED: usize = fds::PEEKED;

/// Pipes by inode, with their place in the image.
#[derive(Debug, Default)]
pub(crate) struct Pipes {
    places: BTreeMap<(u64, u64), u32>,
    pub(crate) pipes: Vec<Pipe>,
}

impl Pipes {
    /// The place of the pipe behind this description.
    pub(crate) fn place(&self, open: &Open) -> u32 {
        self.places.get(&open.key).copied().unwrap_or(0)
    }

    /// Reads all pipes of the tree.
    pub(crate) fn capture(table: &Table, findings: &mut Findings) -> Result<Self, SourceError> {
        let mut ends: BTreeMap<(u64, u64), Vec<&Open>> = BTreeMap::new();
        for open in &table.open {
            if matches!(open.class, Class::Pipe { .. }) {
                ends.entry(open.key).or_default().push(open);
            }
        }
        let mut all = Self::default();
        let mut peek = PipePeek::default();
        for (key, ends) in ends {
            let place = u32::try_from(all.pipes.len()).unwrap_or(u32::MAX);
            all.places.insert(key, place);
            all.pipes.push(one(&ends, &mut peek, findings)?);
        }
        Ok(all)
    }
}

fn one(ends: &[&Open], peek: &mut PipePeek, findings: &mut Findings) -> Result<Pipe, SourceError> {
    let first = ends[0];
    let (pid, fd) = first.holder;
    let fail = |errno| SourceError::kernel("read a pipe", first.holder_pid, errno);
    let Class::Pipe { fifo } = &first.class else {
        return Err(fail(Errno::EINVAL));
    };
    let access = |open: &&&Open| open.info.flags & O_ACCMODE;
    let reader = ends.iter().find(|open| access(open) != 1);
    let writer = ends.iter().find(|open| access(open) != O_RDONLY);
    let mut packets = Vec::new();
    match (reader, writer) {
        (Some(reader), Some(_)) => packets = read(reader, peek).map_err(fail)?,
        (Some(reader), None) => {
            // A fifo that nobody has opened for writing shows no hang-up before the first writer came.
            if fifo.is_none() && !has(reader.file.as_fd(), PollFlags::POLLHUP).map_err(fail)? {
                findings.fd(pid, fd, "pipe whose writing end is outside of the container", OUTSIDE);
            }
            packets = read(reader, peek).map_err(fail)?;
        }
        (None, Some(writer)) => {
            if !has(writer.file.as_fd(), PollFlags::POLLERR).map_err(fail)? {
                findings.fd(pid, fd, "pipe whose reading end is outside of the container", OUTSIDE);
            }
        }
        (None, None) => {}
    }
    let capacity = fds::pipe_size(first.file.as_fd()).map_err(fail)?;
    let packet_mode = ends.iter().any(|open| open.info.flags & O_DIRECT != 0);
    let lengths = lengths(&packets, packet_mode).unwrap_or_else(|| {
        findings.fd(
            pid,
            fd,
            "pipe with packets (O_DIRECT) and other data in it: their borders would be lost",
            "try again when the reader has caught up",
        );
        Vec::new()
    });
    Ok(Pipe {
        capacity: u32::try_from(capacity).unwrap_or(0),
        content: packets.concat(),
        packets: lengths,
        fifo: fifo.clone(),
    })
}

/// The lengths of packets; empty for plain bytes, `None` for a mixture.
///
/// Only a writer's O_DIRECT makes packets, and they stay when it is gone: several short reads tell of them as well.
fn lengths(read: &[Vec<u8>], packet_mode: bool) -> Option<Vec<u32>> {
    let Some((last, before)) = read.split_last() else { return Some(Vec::new()) };
    if before.iter().chain([last]).all(|part| part.len() <= PACKET) {
        let packets = packet_mode || !before.is_empty();
        return Some(
            read.iter().filter(|_| packets).filter_map(|part| u32::try_from(part.len()).ok()).collect(),
        );
    }
    before.iter().all(|part| part.len() == PEEKED).then(Vec::new)
}

fn read(reader: &Open, peek: &mut PipePeek) -> Result<Vec<Vec<u8>>, Errno> {
    let second;
    let mut source = reader.file.as_fd();
    // tee(2) from a descriptor that is open for both would find its own writer: it works all the same, but a
    // read end of its own keeps flags such as O_NONBLOCK out of the way.
    if reader.info.flags & O_ACCMODE != O_RDONLY {
        second = reopen(reader)?;
        source = second.as_fd();
    }
    peek.packets(source)
}

fn reopen(open: &Open) -> Result<OwnedFd, Errno> {
    let path = format!("/proc/{}/fd/{}", open.holder_pid, open.holder.1);
    File::options()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
        .map(OwnedFd::from)
        .map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)))
}

/// Whether poll(2) reports this at once.
pub(crate) fn has(fd: BorrowedFd<'_>, event: PollFlags) -> Result<bool, Errno> {
    let mut polled = [PollFd::new(fd, PollFlags::empty())];
    poll(&mut polled, PollTimeout::ZERO)?;
    Ok(polled[0].revents().is_some_and(|got| got.contains(event)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_are_told_from_bytes() {
        let parts = |lengths: &[usize]| lengths.iter().map(|len| vec![0; *len]).collect::<Vec<_>>();
        assert_eq!(lengths(&[], true), Some(Vec::new()));
        assert_eq!(lengths(&parts(&[5]), false), Some(Vec::new()));
        assert_eq!(lengths(&parts(&[5]), true), Some(vec![5]));
        assert_eq!(lengths(&parts(&[5, 4096, 1]), false), Some(vec![5, 4096, 1]));
        assert_eq!(lengths(&parts(&[PEEKED, PEEKED, 9]), true), Some(Vec::new()));
        assert_eq!(lengths(&parts(&[5, 4097]), true), None);
    }
}
