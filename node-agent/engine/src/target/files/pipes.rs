//! Pipes and fifos with what is in them.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};

use image::files::{FileKind, Files, OpenFile, Pipe};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use sys::fds;

use super::{Descriptions, Workshop, fail, fail_errno, reopen};
use crate::target::error::TargetError;

/// Makes every pipe that a description names, and all its descriptions.
pub(super) fn make(files: &Files, all: &mut Descriptions, shop: &Workshop<'_>) -> Result<(), TargetError> {
    for (index, pipe) in files.pipes.iter().enumerate() {
        let ends: Vec<(&OpenFile, bool)> = files
            .open
            .iter()
            .filter_map(|f| match f.kind {
                FileKind::Pipe { pipe, write } if usize::try_from(pipe).is_ok_and(|p| p == index) => {
                    Some((f, write))
                }
                _ => None,
            })
            .collect();
        let Some((first, _)) = ends.first() else { continue };
        match &pipe.fifo {
            None => unnamed(first, pipe, &ends, all)?,
            Some(path) => {
                let both = shop.root.open(0, path, OFlag::O_RDWR | OFlag::O_NONBLOCK)?;
                fill(first, pipe, &both)?;
                for (file, _) in &ends {
                    let flags = file.flags.cast_signed() & libc::O_ACCMODE | libc::O_NONBLOCK;
                    all.put(file.id, shop.root.open(0, path, OFlag::from_bits_retain(flags))?);
                }
            }
        }
    }
    Ok(())
}

/// pipe(2): its two own ends for the first description of each direction, further ones opened again.
fn unnamed(
    first: &OpenFile,
    pipe: &Pipe,
    ends: &[(&OpenFile, bool)],
    all: &mut Descriptions,
) -> Result<(), TargetError> {
    let (read, write) = fds::pipe(libc::O_NONBLOCK).map_err(fail_errno(first, "pipe2"))?;
    let write = File::from(write);
    fill(first, pipe, &write)?;
    let mut own: [Option<OwnedFd>; 2] = [Some(read), Some(write.into())];
    // Open again while both ends are there.
    let mut seen = [false; 2];
    for (file, write) in ends {
        let both = file.flags.cast_signed() & libc::O_ACCMODE == libc::O_RDWR;
        let direction = usize::from(*write);
        if both || seen[direction] {
            let base = own.iter().flatten().next().map(AsFd::as_fd);
            let base = base.ok_or_else(|| TargetError::Image(format!("pipe of open file {}", file.id)))?;
            // Packet mode can be set, but not opened.
            let flags = file.flags.cast_signed() & !libc::O_DIRECT | libc::O_NONBLOCK;
            all.put(file.id, reopen(base, flags).map_err(fail(file, "open again"))?);
        } else {
            seen[direction] = true;
        }
    }
    for (file, write) in ends {
        if !all.has(file.id)
            && let Some(end) = own[usize::from(*write)].take()
        {
            all.put(file.id, end);
        }
    }
    Ok(())
}

fn fill(file: &OpenFile, pipe: &Pipe, mut end: &File) -> Result<(), TargetError> {
    let capacity = i32::try_from(pipe.capacity).unwrap_or(0);
    let have = fds::pipe_size(end.as_fd()).map_err(fail_errno(file, "F_GETPIPE_SZ"))?;
    if capacity != 0 && capacity != have {
        fds::set_pipe_size(end.as_fd(), capacity).map_err(fail_errno(file, "F_SETPIPE_SZ"))?;
    }
    if pipe.packets.is_empty() {
        return end.write_all(&pipe.content).map_err(fail(file, "put its contents back"));
    }
    let mode =
        |end: &File, flags| fcntl(end, FcntlArg::F_SETFL(flags)).map_err(fail_errno(file, "set packet mode"));
    mode(end, OFlag::O_NONBLOCK | OFlag::O_DIRECT)?;
    let mut left = pipe.content.as_slice();
    for length in &pipe.packets {
        let (packet, rest) =
            usize::try_from(*length)
                .ok()
                .and_then(|length| left.split_at_checked(length))
                .ok_or_else(|| TargetError::Image(format!("packets of the pipe of open file {}", file.id)))?;
        end.write_all(packet).map_err(fail(file, "put a packet back"))?;
        left = rest;
    }
    mode(end, OFlag::O_NONBLOCK).map(drop)
}
