//! Pseudo terminals with their modes, and the descriptors of both sides.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::Permissions;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::linux::fs::MetadataExt;
use std::os::unix::fs::PermissionsExt;

use image::files::{FileKind, Files, OpenFile, Terminal, TerminalSide};
use libc::{SYS_close, SYS_openat};
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use sys::Errno;
use sys::tty::{self, Termios, WindowSize};

use super::simple::open_flags;
use super::{Descriptions, Workshop, fail, fail_errno, refuse};
use crate::source::terminal_number;
use crate::target::error::TargetError;
use crate::target::script::{Block, call};
use crate::target::terminals::{self, fresh};

const ICANON: u32 = 2;

/// Makes every terminal and all its descriptions.
pub(super) fn make(
    files: &Files,
    all: &mut Descriptions,
    shop: &mut Workshop<'_>,
) -> Result<(), TargetError> {
    let numbers: BTreeSet<u32> = files.terminals.iter().map(|terminal| terminal.index).collect();
    shop.terminals.keep_only(&numbers);
    for terminal in &files.terminals {
        set_up(terminal, shop)?;
    }
    hung_up(files, all, shop)?;
    for file in &files.open {
        let FileKind::Terminal { terminal, side, path } = &file.kind else { continue };
        let place = usize::try_from(*terminal).ok().and_then(|at| files.terminals.get(at));
        let terminal =
            place.ok_or_else(|| TargetError::Image(format!("open file {} names no terminal", file.id)))?;
        let fd = match side {
            TerminalSide::Master => master(file, terminal, shop)?,
            TerminalSide::Slave => slave(file, terminal, path, shop)?,
            TerminalSide::Own => own(file, terminal, path, shop)?,
        };
        if terminal.exclusive && *side != TerminalSide::Master {
            tty::set_exclusive(fd.as_fd()).map_err(fail_errno(file, "TIOCEXCL"))?;
        }
        all.put(file.id, fd);
    }
    for terminal in &files.terminals {
        finish(terminal, shop)?;
    }
    Ok(())
}

/// Owner, modes, size and the line that was begun.
fn set_up(terminal: &Terminal, shop: &mut Workshop<'_>) -> Result<(), TargetError> {
    let index = terminal.index;
    let named = |what: &str| TargetError::errno(format!("{what} of terminal {index}"));
    let termios = Termios::from_bytes(&terminal.termios)
        .ok_or_else(|| TargetError::Image(format!("the modes of terminal {index}")))?;
    let ours = shop.terminals.master(shop.root, index)?.is_some();
    if ours == terminal.given {
        return Err(TargetError::Image(format!(
            "terminal {index} is {} the runtime's here",
            if ours { "not" } else { "also" }
        )));
    }
    let node = shop.root.open(0, &terminals::path(index), OFlag::O_PATH)?;
    let node = format!("/proc/self/fd/{}", node.as_raw_fd());
    let attributes = || {
        std::os::unix::fs::chown(&node, Some(terminal.owner.0), Some(terminal.owner.1))?;
        std::fs::set_permissions(&node, Permissions::from_mode(terminal.mode & 0o7777))
    };
    attributes().map_err(TargetError::system(format!("set the owner of terminal {index}")))?;
    if !terminal.line.is_empty() {
        type_line(terminal, &termios, shop).map_err(named("put back the line"))??;
    }
    let side = match shop.terminals.master(shop.root, index)? {
        Some(master) => master,
        None => shop.terminals.slave(shop.root, index)?,
    };
    tty::set_termios(side, &termios).map_err(named("set the modes"))?;
    let [rows, columns, x_pixels, y_pixels] = terminal.window;
    tty::set_window_size(side, WindowSize { rows, columns, x_pixels, y_pixels })
        .map_err(named("set the size"))
}

/// Types what there was of a line, while the terminal neither shows nor heeds it.
fn type_line(
    terminal: &Terminal,
    termios: &Termios,
    shop: &mut Workshop<'_>,
) -> Result<Result<(), TargetError>, Errno> {
    let quiet = Termios { lflag: ICANON, iflag: 0, cc: [0; 19], ..*termios };
    let index = terminal.index;
    let lost = || TargetError::Image(format!("terminal {index} has a line and no master"));
    let master = match shop.terminals.master(shop.root, index) {
        Ok(Some(master)) => master,
        Ok(None) => return Ok(Err(lost())),
        Err(error) => return Ok(Err(error)),
    };
    tty::set_termios(master, &quiet)?;
    let mut rest = terminal.line.as_slice();
    while !rest.is_empty() {
        let written = nix::unistd::write(master, rest)?;
        rest = &rest[written.min(rest.len())..];
    }
    let slave = match shop.terminals.slave(shop.root, index) {
        Ok(slave) => slave,
        Err(error) => return Ok(Err(error)),
    };
    // Has the kernel finish what is on its way there, before the modes change.
    let mut polled = [PollFd::new(slave, PollFlags::POLLIN)];
    poll(&mut polled, PollTimeout::ZERO)?;
    Ok(Ok(()))
}

fn master(file: &OpenFile, terminal: &Terminal, shop: &mut Workshop<'_>) -> Result<OwnedFd, TargetError> {
    let held = shop.terminals.master(shop.root, terminal.index)?;
    let held =
        held.ok_or_else(|| TargetError::Image(format!("open file {}: a master of the runtime", file.id)))?;
    held.try_clone_to_owned().map_err(fail(file, "duplicate the master"))
}

fn slave(
    file: &OpenFile,
    terminal: &Terminal,
    path: &str,
    shop: &mut Workshop<'_>,
) -> Result<OwnedFd, TargetError> {
    let opened = terminals::open(shop.root, path, open_flags(file))?;
    let device = opened.metadata().map_err(fail(file, "fstat"))?.st_rdev();
    if terminal_number(device) != Some(terminal.index) {
        return Err(refuse(
            file,
            format!("{path} is not terminal {} here", terminal.index),
            "mend /dev of the container",
        ));
    }
    Ok(opened.into())
}

/// /dev/tty, which only a process that the terminal controls can open.
fn own(
    file: &OpenFile,
    terminal: &Terminal,
    path: &str,
    shop: &mut Workshop<'_>,
) -> Result<OwnedFd, TargetError> {
    let mut skeletons = shop.tree.skeletons.values_mut();
    let Some(skeleton) = skeletons.find(|skeleton| skeleton.node.tty == Some(terminal.index)) else {
        // All that could have opened it have ended or given it up: the same terminal by its name.
        return slave(file, terminal, &terminals::path(terminal.index), shop);
    };
    let flags = (open_flags(file) | OFlag::O_NOCTTY).bits();
    let open = call!("open /dev/tty", SYS_openat, libc::AT_FDCWD, Block::text(path), flags, 0);
    let ran = skeleton.run(shop.tape, &[open])?;
    let number = ran.answers.first().and_then(|answer| i32::try_from(answer.value).ok()).unwrap_or(-1);
    let taken = sys::pidfd::open(skeleton.host)
        .and_then(|pidfd| sys::pidfd::getfd(pidfd.as_fd(), number))
        .map_err(fail_errno(file, "take /dev/tty"))?;
    skeleton.run(shop.tape, &[call!("close", SYS_close, number)])?;
    Ok(taken)
}

/// Slaves whose masters have been closed. A number stays taken as long as one of its slaves is open.
fn hung_up(files: &Files, all: &mut Descriptions, shop: &Workshop<'_>) -> Result<(), TargetError> {
    let mut masters: BTreeMap<u32, OwnedFd> = BTreeMap::new();
    // Those with a number first.
    let numbered = files.open.iter().filter(|file| matches!(file.kind, FileKind::HungUp { index: Some(_) }));
    let others = files.open.iter().filter(|file| matches!(file.kind, FileKind::HungUp { index: None }));
    for file in numbered.chain(others) {
        let FileKind::HungUp { index } = file.kind else { continue };
        let number = match index {
            Some(index) if masters.contains_key(&index) => index,
            wanted => {
                let (master, index) = fresh(shop.root, wanted)?;
                masters.insert(index, master);
                index
            }
        };
        let slave = terminals::open(shop.root, &terminals::path(number), open_flags(file))?;
        all.put(file.id, slave);
    }
    Ok(())
}

/// What would have stood in the way.
fn finish(terminal: &Terminal, shop: &mut Workshop<'_>) -> Result<(), TargetError> {
    let index = terminal.index;
    let named = |what: &str| TargetError::errno(format!("{what} of terminal {index}"));
    if terminal.left {
        shop.terminals.leave(shop.root, index)?;
    }
    if let Some(master) = shop.terminals.master(shop.root, index)? {
        tty::set_packet(master, terminal.packet).map_err(named("set the packet mode"))?;
        tty::set_locked(master, terminal.locked).map_err(named("set the lock"))?;
    }
    Ok(())
}
