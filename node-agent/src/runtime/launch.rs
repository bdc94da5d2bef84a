//! The agent's side of building a sandbox: shim, control groups, network, first process.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::cgroup::Cgroup;
use super::channel;
use super::error::RuntimeError;
use super::lifecycle::wait_for;
use super::name::ContainerName;
use super::paths::ContainerDir;
use super::record::Process;
use super::sandbox::{Event, Order, Sandbox};
use super::shim::SHIM;
use super::sources;

/// How long one step of the sandbox may take.
const STEP: Duration = Duration::from_secs(20);

/// A sandbox whose first process waits. Dropping it kills that process and waits for its shim.
#[derive(Debug)]
pub(super) struct Launched {
    pub(super) root: Process,
    pub(super) shim: Process,
    control: OwnedFd,
    name: ContainerName,
    keep: bool,
}

/// Starts the shim, puts the first process into its groups and has it build the sandbox. `network` is
/// called with its pid when its network namespace exists.
///
/// # Errors
/// What failed; no process is left.
pub(super) fn launch(
    exe: &std::path::Path,
    name: &ContainerName,
    dir: &ContainerDir,
    sandbox: &Sandbox,
    cgroup: Option<&Cgroup>,
    network: impl FnOnce(i32) -> Result<(), RuntimeError>,
) -> Result<Launched, RuntimeError> {
    let path = dir.sandbox();
    let json = serde_json::to_vec(sandbox).map_err(io::Error::from);
    json.and_then(|json| fs::write(&path, json)).map_err(RuntimeError::file("write", &path))?;
    let shim_error = |source| RuntimeError::Shim { name: name.clone(), log: dir.shim_log(), source };
    let (ours, theirs) = channel::pair().map_err(shim_error)?;
    let log = File::options().append(true).create(true).open(dir.shim_log()).map_err(shim_error)?;
    let mut child = Command::new(exe)
        .arg(SHIM)
        .arg(&path)
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::from(theirs))
        .stdout(Stdio::null())
        .stderr(Stdio::from(log))
        .spawn()
        .map_err(shim_error)?;
    let shim = i32::try_from(child.id()).map_err(|_| shim_error(io::ErrorKind::InvalidData.into()))?;
    let shelter = cgroup.map_or(Ok(()), |cgroup| cgroup.enter_shims(shim));
    let shim = Process::of(shim).map_err(shim_error);
    // The agent is the shim's parent for as long as it lives; nobody else would reap it.
    thread::spawn(move || child.wait());
    // A shim that nobody hears ends by itself.
    shelter?;

    let talk = Talk { name, dir, control: &ours };
    let (pid, mut unshared) = match talk.next("start its shim")? {
        Event::Pid(pid) => (pid, false),
        Event::Unshared => match talk.next("start its shim")? {
            Event::Pid(pid) => (pid, true),
            other => return Err(talk.unexpected(&other)),
        },
        other => return Err(talk.unexpected(&other)),
    };
    let root = Process::of(pid).map_err(shim_error)?;
    let launched = Launched {
        root,
        shim: shim?,
        control: ours.try_clone().map_err(shim_error)?,
        name: name.clone(),
        keep: false,
    };
    if let Some(cgroup) = cgroup {
        cgroup.enter(pid)?;
    }
    if !unshared {
        unshared = talk.next("make its namespaces")? == Event::Unshared;
    }
    debug_assert!(unshared, "events arrive in order");
    network(pid)?;
    let sources = sources::open(sandbox, pid)
        .map_err(|error| RuntimeError::Sandbox { name: name.clone(), message: error.to_string() })?;
    talk.order(Order::Build)?;
    let sources: Vec<_> = sources.iter().map(|source| source.as_fd()).collect();
    sys::sock::send_fds(ours.as_fd(), &sources)
        .map_err(|error| talk.failed("take the sources of its mounts", error.into()))?;
    match talk.next("build its sandbox")? {
        Event::Built => {
            // What the container mounts itself is told by the difference.
            let mounts = fs::read(format!("/proc/{pid}/mountinfo")).map_err(shim_error)?;
            fs::write(dir.mounts(), mounts).map_err(RuntimeError::file("write", dir.mounts()))?;
            Ok(launched)
        }
        other => Err(talk.unexpected(&other)),
    }
}

impl Launched {
    /// Executes the program; Ok when execve(2) succeeded.
    ///
    /// # Errors
    /// What failed; no process is left.
    pub(super) fn run(mut self, dir: &ContainerDir) -> Result<(Process, Process), RuntimeError> {
        let talk = Talk { name: &self.name, dir, control: &self.control };
        talk.order(Order::Run)?;
        // The socket is closed by execve(2).
        match channel::hear::<Event>(&self.control, Some(STEP)) {
            Ok(None) => {}
            Ok(Some(event)) => return Err(talk.unexpected(&event)),
            Err(error) => return Err(talk.failed("execute its program", error)),
        }
        self.keep = true;
        Ok((self.root.clone(), self.shim.clone()))
    }

    /// Hands the first process over to whoever fills it: root, shim and the control socket.
    pub(super) fn into_parts(mut self) -> io::Result<(Process, Process, OwnedFd)> {
        let control = self.control.try_clone()?;
        self.keep = true;
        Ok((self.root.clone(), self.shim.clone(), control))
    }
}

impl Drop for Launched {
    fn drop(&mut self) {
        if self.keep {
            return;
        }
        if self.root.is_alive() {
            let _ = kill(Pid::from_raw(self.root.pid), Signal::SIGKILL);
        }
        // It still writes down how that process ended, into a directory that is about to be removed.
        wait_for(&self.shim, STEP);
    }
}

struct Talk<'a> {
    name: &'a ContainerName,
    dir: &'a ContainerDir,
    control: &'a OwnedFd,
}

impl Talk<'_> {
    fn next(&self, what: &'static str) -> Result<Event, RuntimeError> {
        match channel::hear(self.control, Some(STEP)) {
            Ok(Some(Event::Failed(message))) => {
                Err(RuntimeError::Sandbox { name: self.name.clone(), message })
            }
            Ok(Some(event)) => Ok(event),
            Ok(None) => Err(self.failed(what, io::ErrorKind::UnexpectedEof.into())),
            Err(error) => Err(self.failed(what, error)),
        }
    }

    fn order(&self, order: Order) -> Result<(), RuntimeError> {
        channel::tell(self.control, &order).map_err(|error| self.failed("take an order", error))
    }

    fn failed(&self, what: &'static str, source: io::Error) -> RuntimeError {
        if source.kind() == io::ErrorKind::TimedOut {
            return RuntimeError::TimedOut { name: self.name.clone(), what, seconds: STEP.as_secs() };
        }
        RuntimeError::Shim { name: self.name.clone(), log: self.dir.shim_log(), source }
    }

    fn unexpected(&self, event: &Event) -> RuntimeError {
        let message = match event {
            Event::Failed(message) => message.clone(),
            other => format!("answered {other:?} at the wrong time"),
        };
        RuntimeError::Sandbox { name: self.name.clone(), message }
    }
}
