//! The shim: the parent of one container's root process, so that a container outlives its agent.
//!
//! It is this program executed again with a hidden first argument, single-threaded, in the host's
//! namespaces and outside of the container's groups. Standard input is the control socket, standard error
//! the shim's log. It makes the first process in new pid and user namespaces, says its pid, waits for its
//! end and writes that down.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::Path;
use std::process::{Command, ExitCode, ExitStatus, Stdio};
use std::time::SystemTime;

use nix::sys::signal::SigSet;
use nix::unistd::setsid;
use sys::clone::{Child, Spec, fork_single};
use sys::ns::Kind;
use sys::prctl::own;

use super::channel;
use super::paths::write_atomic;
use super::sandbox::{ClockOffsets, Event, Exit, Sandbox};
use super::terminals::{self, LINK_FD};
use super::userns::UserNamespace;

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
    if let Some(clocks) = sandbox.clocks {
        make_clocks(clocks)?;
    }
    let log = File::options().append(true).create(true).open(&sandbox.log)?;
    let count = terminals::places(&sandbox.spec).len();
    let (link, theirs) =
        if count == 0 { (None, None) } else { channel::pair().map(|(a, b)| (Some(a), Some(b)))? };
    let child = first_process(path, &sandbox, &control, theirs, log)?;
    let told = channel::tell(&control, &Event::Pid(child.pid));
    if told.is_err() {
        // Nobody would ever know of it.
        kill(&child);
    }
    close_control(control)?;
    if let Some(link) = link {
        // Without them the first process has ended, and said why.
        match terminals::receive(&link, count) {
            Ok(masters) => terminals::log_until_end(&masters, &sandbox.log, child.pid)?,
            Err(error) => writeln!(io::stderr(), "shim: no terminals: {error}")?,
        }
    }
    let status = wait(&child)?;
    told?;
    write_exit(&sandbox.exit, status)
}

/// Makes the first process, in its pid and user namespaces; it executes this program again.
/// `terminals`: its way to hand terminals over.
fn first_process(
    path: &Path,
    sandbox: &Sandbox,
    control: &OwnedFd,
    terminals: Option<OwnedFd>,
    log: File,
) -> io::Result<Child> {
    let user = UserNamespace::of(&sandbox.spec);
    if let Some(user) = &user {
        own_log(&log, user, &sandbox.spec)?;
    }
    let description = File::open(path)?;
    let (hear, say) = io::pipe()?;
    let mut say = Some(say);
    let own_users = if user.is_some() { Kind::User.flag() } else { 0 };
    let flags = u64::from((Kind::Pid.flag() | own_users).cast_unsigned());
    let spec = Spec { flags, ..Spec::default() };
    let mut streams = Some((hear, control.try_clone()?, description, terminals, log));
    let child = fork_single(&spec, || {
        let Some((hear, control, description, terminals, log)) = streams.take() else { return 1 };
        // Or the end of the shim would not be heard.
        drop(say.take());
        if let Some(link) = &terminals
            && let Err(error) = sys::fds::install_at(link.as_fd(), LINK_FD)
        {
            let _ = writeln!(io::stderr(), "first process: {error}");
            return 1;
        }
        let error = become_init(hear, user.is_some(), control, description, log);
        let _ = writeln!(io::stderr(), "first process: {error}");
        1
    })?;
    drop(streams);
    if let Some(user) = &user {
        raise(child.pid, &sandbox.spec);
        if let Err(error) = user.map(child.pid) {
            kill(&child);
            let _ = wait(&child);
            return Err(error);
        }
    }
    if let Some(mut say) = say {
        say.write_all(&[1])?;
    }
    Ok(child)
}

/// In the first process: becomes root of its user namespace, which keeps its capabilities over the exec.
fn become_init(
    mut hear: io::PipeReader,
    user: bool,
    control: OwnedFd,
    description: File,
    log: File,
) -> io::Error {
    // Ends without a word when the shim is gone or could not make the mappings.
    if let Err(error) = hear.read_exact(&mut [0]) {
        return error;
    }
    if user {
        let root = own::set_groups(&[]).and_then(|()| own::set_gid(0)).and_then(|()| own::set_uid(0));
        if let Err(error) = root {
            return error.into();
        }
    }
    let error = Command::new("/proc/self/exe")
        .arg0("gantry-init")
        .arg(INIT)
        .env_clear()
        .stdin(Stdio::from(control))
        .stdout(Stdio::from(description))
        .stderr(Stdio::from(log))
        .exec();
    if user && error.kind() == io::ErrorKind::PermissionDenied {
        let why = "a container with a user namespace needs this program's file to be readable and executable by all";
        return io::Error::new(error.kind(), format!("{why}: {error}"));
    }
    error
}

/// The container may open its standard output again by a name of it, such as /dev/stdout.
fn own_log(log: &File, user: &UserNamespace, spec: &oci_spec::runtime::Spec) -> io::Result<()> {
    let process = spec.process().as_ref().map(oci_spec::runtime::Process::user);
    let (uid, gid) = process.map_or((0, 0), |user| (user.uid(), user.gid()));
    std::os::unix::fs::fchown(log, user.uid(uid), user.gid(gid))
}

/// Raises limits as this process may and one in a user namespace may not, see setrlimit(2) and proc_pid_oom_score_adj(5).
/// What fails here fails there as well, and is named there.
fn raise(pid: i32, spec: &oci_spec::runtime::Spec) {
    let Some(process) = spec.process() else { return };
    for limit in process.rlimits().iter().flatten() {
        let number = super::init::resource(limit.typ()) as u32;
        if let Ok(now) = sys::prctl::rlimit(pid, number)
            && limit.hard() > now.hard
        {
            let raised = sys::prctl::Rlimit { soft: now.soft, hard: limit.hard() };
            let _ = sys::prctl::set_rlimit(pid, number, raised);
        }
    }
    if let Some(value) = process.oom_score_adj() {
        let _ = fs::write(format!("/proc/{pid}/oom_score_adj"), value.to_string());
    }
}

fn kill(child: &Child) {
    let _ = sys::pidfd::send_signal(child.pidfd.as_fd(), nix::libc::SIGKILL);
}

fn wait(child: &Child) -> io::Result<ExitStatus> {
    let pid = rustix::process::Pid::from_raw(child.pid).ok_or(io::ErrorKind::InvalidData)?;
    loop {
        match rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty()) {
            Ok(Some((_, status))) => return Ok(ExitStatus::from_raw(status.as_raw())),
            Ok(None) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// A time namespace for the first process. This one stays in its own.
fn make_clocks(clocks: ClockOffsets) -> io::Result<()> {
    sys::ns::unshare(Kind::Time.flag())?;
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
