//! The container's terminals, seen from its first process; see [`crate::runtime::terminals`].

use std::fs::{File, Permissions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{PermissionsExt as _, fchown};

use oci_spec::runtime::{Process, Spec};
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::mount::mount_bind;
use sys::tty;

use super::{Context as _, InitError, refuse};
use crate::runtime::terminals::{self, LINK_FD};

/// Makes them, mounts each where it shows, and sends the masters to the shim.
pub(super) fn make(spec: &Spec) -> Result<(), InitError> {
    let places = terminals::places(spec);
    let mut masters: Vec<OwnedFd> = Vec::with_capacity(places.len());
    for (place, expected) in places.iter().zip(0..) {
        let what = || format!("make {}", place.display());
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let master = openat(CWD, "/dev/ptmx", flags, Mode::empty())
            .or_else(|_| openat(CWD, "/dev/pts/ptmx", flags, Mode::empty()))
            .step(|| format!("{} (the bundle needs a mount of type devpts on /dev/pts)", what()))?;
        let index = tty::index(master.as_fd()).map_err(io::Error::from).step(what)?;
        if index != expected {
            return refuse(what(), "the devpts is not new: add the option newinstance to its mount");
        }
        tty::set_locked(master.as_fd(), false).map_err(io::Error::from).step(what)?;
        match File::options().write(true).create_new(true).open(place) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            other => {
                let file = other.step(what)?;
                file.set_permissions(Permissions::from_mode(0o600)).step(what)?;
            }
        }
        mount_bind(format!("/dev/pts/{index}"), place).step(what)?;
        masters.push(master);
    }
    if let Some(size) = spec.process().as_ref().and_then(|process| process.console_size())
        && terminals::has_console(spec)
    {
        let number = |value: u64| u16::try_from(value).unwrap_or(u16::MAX);
        let size = tty::WindowSize {
            rows: number(size.height()),
            columns: number(size.width()),
            ..tty::WindowSize::default()
        };
        let set = masters.first().map_or(Ok(()), |master| tty::set_window_size(master.as_fd(), size));
        set.map_err(io::Error::from).step(|| "set process.consoleSize".to_owned())?;
    }
    if masters.is_empty() {
        Ok(())
    } else {
        hand_over(&masters).step(|| "hand the terminals to the shim".to_owned())
    }
}

fn hand_over(masters: &[OwnedFd]) -> io::Result<()> {
    let own = i32::try_from(std::process::id()).map_err(|_| io::ErrorKind::InvalidData)?;
    let link = sys::pidfd::open(own).and_then(|own| sys::pidfd::getfd(own.as_fd(), LINK_FD))?;
    for master in masters {
        sys::sock::send_fds(link.as_fd(), &[master.as_fd()])?;
    }
    Ok(())
}

/// The console becomes the standard streams and the controlling terminal, and the user's.
pub(super) fn attach(process: &Process) -> Result<(), InitError> {
    let what = || "open /dev/console".to_owned();
    // A session's leader that opens its first terminal gets it as the controlling one.
    let console = File::options().read(true).write(true).open("/dev/console").step(what)?;
    fchown(&console, Some(process.user().uid()), None).step(what)?;
    rustix::stdio::dup2_stdin(&console).step(what)?;
    rustix::stdio::dup2_stdout(&console).step(what)?;
    rustix::stdio::dup2_stderr(&console).step(what)
}
