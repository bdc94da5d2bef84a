//! Terminals that a container gets from its runtime: /dev/console for `process.terminal`, /dev/tty1 and so on for the
//! annotation.
//!
//! Each is a pseudo terminal of the container's own devpts, made before anything else there, so that its number is
//! its place in the list on every node. The shim holds the masters and writes what comes out into the container's
//! log. Nothing is ever typed on them.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use engine::source::GivenTerminal;
use oci_spec::runtime::Spec;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FlockOperation, OFlags, fcntl_getfl, fcntl_setfl, flock};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// Annotation: how many terminals /dev/tty1 and so on the container gets.
pub(super) const TTYS_ANNOTATION: &str = "dev.gantry.ttys";
/// Most of them.
const MOST_TTYS: u32 = 12;
/// The first process's descriptor of a socket to the shim, over which it hands the masters over.
pub(super) const LINK_FD: i32 = 690;
/// The shim's descriptor of the first master; the others follow. High, where it has none of its own.
const FIRST_FD: i32 = 700;
/// How long the shim waits before it looks again at terminals that nobody has open.
const NOBODY: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };

/// How many the annotation asks for; `Err` says what is wrong with it.
pub(super) fn ttys(spec: &Spec) -> Result<u32, String> {
    let Some(text) = spec.annotations().as_ref().and_then(|map| map.get(TTYS_ANNOTATION)) else {
        return Ok(0);
    };
    let number = text.parse().ok().filter(|number| *number <= MOST_TTYS);
    number
        .ok_or_else(|| format!("annotation {TTYS_ANNOTATION}: {text} is not a number from 0 to {MOST_TTYS}"))
}

/// Whether the program gets a console.
pub(super) fn has_console(spec: &Spec) -> bool {
    spec.process().as_ref().is_some_and(|process| process.terminal() == Some(true))
}

/// Where the terminals show in the container, in the order of their numbers.
pub(super) fn places(spec: &Spec) -> Vec<PathBuf> {
    let console = has_console(spec).then(|| PathBuf::from("/dev/console"));
    let ttys = (1..=ttys(spec).unwrap_or(0)).map(|number| PathBuf::from(format!("/dev/tty{number}")));
    console.into_iter().chain(ttys).collect()
}

/// Where the engine finds their masters.
pub(super) fn given(spec: &Spec, shim: i32) -> Vec<GivenTerminal> {
    (0..)
        .zip(FIRST_FD..)
        .take(places(spec).len())
        .map(|(index, fd)| GivenTerminal { index, holder: shim, fd })
        .collect()
}

/// Puts the masters, received from the container's first process, where the agent looks for them.
pub(super) fn receive(link: &OwnedFd, count: usize) -> io::Result<Vec<File>> {
    let masters = sys::sock::receive_fds(link.as_fd(), count).map_err(io::Error::from)?;
    for (master, place) in masters.iter().zip(FIRST_FD..) {
        // Whatever the agent's own starter left open at that number is of no use here.
        sys::fds::install_at(master.as_fd(), place).map_err(io::Error::from)?;
        fcntl_setfl(master, fcntl_getfl(master)? | OFlags::NONBLOCK)?;
    }
    Ok(masters.into_iter().map(File::from).collect())
}

/// Writes what comes out of the terminals into the log until the process `pid` has ended.
///
/// The log is locked from before something is taken from a terminal until it is written: who sees a terminal empty and
/// then has had the lock knows that everything is in the log.
pub(super) fn log_until_end(masters: &[File], log: &Path, pid: i32) -> io::Result<()> {
    let mut log = File::options().append(true).create(true).open(log)?;
    let pid = Pid::from_raw(pid).ok_or(io::ErrorKind::InvalidInput)?;
    let child = pidfd_open(pid, PidfdFlags::empty())?;
    loop {
        let (ended, idle) = {
            let mut fds = vec![PollFd::new(&child, PollFlags::IN)];
            fds.extend(masters.iter().map(|master| PollFd::new(master, PollFlags::IN)));
            poll(&mut fds, None)?;
            let data = fds[1..].iter().any(|fd| fd.revents().contains(PollFlags::IN));
            (!fds[0].revents().is_empty(), !data)
        };
        for master in masters {
            copy(master, &mut log)?;
        }
        if ended {
            return Ok(());
        }
        if idle {
            // Only hang-ups: nobody has these open now, and poll(2) would say so again at once.
            poll(&mut [PollFd::new(&child, PollFlags::IN)], Some(&NOBODY))?;
        }
    }
}

/// What waits in a terminal goes into the log.
fn copy(mut master: &File, log: &mut File) -> io::Result<()> {
    flock(&*log, FlockOperation::LockExclusive)?;
    let mut buffer = vec![0; 16 * 1024];
    let copied = loop {
        match master.read(&mut buffer) {
            Ok(0) => break Ok(()),
            Err(error) => match Errno::from_io_error(&error) {
                // EIO: nobody has it open.
                Some(Errno::AGAIN | Errno::IO) => break Ok(()),
                Some(Errno::INTR) => {}
                _ => break Err(error),
            },
            Ok(length) => {
                if let Err(error) = log.write_all(&buffer[..length]) {
                    break Err(error);
                }
            }
        }
    };
    flock(&*log, FlockOperation::Unlock)?;
    copied
}

/// Waits until everything that the shim took from terminals is in the log.
pub(super) fn wait_for_log(log: &Path) -> io::Result<()> {
    let log = File::open(log)?;
    flock(&log, FlockOperation::LockShared)?;
    Ok(())
}
