//! The shim: the parent of one container's root process, so that a container outlives its agent.
//!
//! It is this program executed again with a hidden first argument, single-threaded, in the host's
//! namespaces and outside of the container's groups. Standard input is the control socket, standard error
//! the shim's log. It makes the pid namespace, starts the first process, says its pid, waits for its end
//! and writes that down.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::Path;
use std::process::{Command, ExitCode, ExitStatus, Stdio};
use std::time::SystemTime;

use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::SigSet;
use nix::unistd::setsid;

use super::channel;
use super::paths::write_atomic;
use super::sandbox::{ClockOffsets, Event, Exit, Sandbox};

/// clone(2)'s flag for a time namespace.
const CLONE_NEWTIME: i32 = 0x80;

/// The hidden first argument that makes a shim.
pub(super) const SHIM: &str = "__shim";
/// The hidden first argument that makes the first process of a container.
pub(super) const INIT: &str = "__init";

/// Runs a shim; `sandbox` is the path of a [`Sandbox`] in JSON.
#[must_use]
pub(super) fn main(sandbox: &Path) -> ExitCode {
    match supervise(sandbox) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let message = format!("shim: {error}");
            let _ = writeln!(io::stderr(), "{message}");
            let _ = channel::tell(io::stdin().as_fd(), &Event::Failed(message));
            ExitCode::FAILURE
        }
    }
}

fn supervise(path: &Path) -> io::Result<()> {
    let sandbox: Sandbox = serde_json::from_reader(File::open(path)?)?;
    let control = io::stdin().as_fd().try_clone_to_owned()?;
    // A signal meant for the agent's process group must not end the shim. The first process
    // resets its signals before it executes the program.
    let _ = setsid();
    SigSet::all().thread_block()?;
    unshare(CloneFlags::CLONE_NEWPID)?;
    if let Some(clocks) = sandbox.clocks {
        make_clocks(clocks)?;
    }
    let log = File::options().append(true).create(true).open(&sandbox.log)?;
    let mut child = Command::new("/proc/self/exe")
        .arg0("gantry-init")
        .arg(INIT)
        .arg(path)
        .env_clear()
        .stdin(Stdio::from(control.try_clone()?))
        .stdout(Stdio::from(log.try_clone()?))
        .stderr(Stdio::from(log))
        .spawn()?;
    let pid = i32::try_from(child.id()).map_err(|_| io::ErrorKind::InvalidData)?;
    let told = channel::tell(&control, &Event::Pid(pid));
    if told.is_err() {
        // Nobody would ever know of it.
        let _ = child.kill();
    }
    close_control(control)?;
    let status = child.wait()?;
    told?;
    write_exit(&sandbox.exit, status)
}

/// A time namespace for the first process. This one stays in its own.
fn make_clocks(clocks: ClockOffsets) -> io::Result<()> {
    sys::ns::unshare(CLONE_NEWTIME)?;
    let line = |clock: &str, offset: i64| {
        let (seconds, nanos) = (offset.div_euclid(1_000_000_000), offset.rem_euclid(1_000_000_000));
        format!("{clock} {seconds} {nanos}\n")
    };
    let text = line("monotonic", clocks.monotonic) + &line("boottime", clocks.boottime);
    fs::write("/proc/self/timens_offsets", text)
}

/// Lets go of the control socket: its end must be seen when the first process closes it.
fn close_control(control: OwnedFd) -> io::Result<()> {
    drop(control);
    let null = File::options().read(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    Ok(())
}

fn write_exit(path: &Path, status: ExitStatus) -> io::Result<()> {
    let status = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(255);
    let at = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    match write_atomic(path, &serde_json::to_vec(&Exit { status, at })?) {
        // The container was deleted meanwhile.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}
