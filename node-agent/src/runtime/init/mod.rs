//! The first process of a container: it builds the sandbox around itself.
//!
//! The same steps for both purposes. For a start it ends in execve(2) of the bundle's program. For a
//! restore it waits, as process 1 of the new pid namespace, for the engine to take it over; nothing of
//! user, capabilities, seccomp and limits is applied then, because the engine restores them.

mod devices;
mod mounts;
mod options;
mod path;
mod process;
mod root;
pub(super) mod seccomp;
mod terminals;

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::ExitCode;

use nix::sched::{CloneFlags, unshare};
use nix::unistd::{pause, setsid};
use oci_spec::runtime::{LinuxNamespaceType, Spec};

use super::sandbox::{CONTROL_FD, Event, Order, Purpose, Sandbox};
use super::{channel, sources};

pub(super) use path::open as open_inside;
pub(super) use process::{Credentials, resource, search_path};

/// A step that failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what}: {source}")]
pub(super) struct InitError {
    what: String,
    source: io::Error,
}

/// Names the step that failed.
pub(super) trait Context<T> {
    /// `what` completes the sentence "cannot ...".
    fn step(self, what: impl FnOnce() -> String) -> Result<T, InitError>;
}

impl<T, E: Into<io::Error>> Context<T> for Result<T, E> {
    fn step(self, what: impl FnOnce() -> String) -> Result<T, InitError> {
        self.map_err(|source| InitError { what: what(), source: source.into() })
    }
}

/// A refusal of our own, without an errno.
fn refuse<T>(what: String, why: impl Into<String>) -> Result<T, InitError> {
    Err(InitError { what, source: io::Error::new(io::ErrorKind::Unsupported, why.into()) })
}

/// Builds the sandbox that is described, as JSON, in the file that standard output is: where that lies, this process
/// need not be able to look. Standard input is the control socket, standard error the container's log. Returns only
/// when it failed.
#[must_use]
pub(super) fn main(_: &Path) -> ExitCode {
    let Ok(control) = io::stdin().as_fd().try_clone_to_owned() else { return ExitCode::FAILURE };
    if let Err(error) = build(&control) {
        let _ = channel::tell(&control, &Event::Failed(error.to_string()));
    }
    ExitCode::FAILURE
}

/// Reads what is to be built, and puts the log in its place.
fn description() -> io::Result<Sandbox> {
    let file = File::from(io::stdout().as_fd().try_clone_to_owned()?);
    let sandbox = serde_json::from_reader(io::BufReader::new(file))?;
    rustix::stdio::dup2_stdout(io::stderr())?;
    Ok(sandbox)
}

fn build(control: &OwnedFd) -> Result<(), InitError> {
    let sandbox = description().step(|| "read what to build".to_owned())?;
    let spec = &sandbox.spec;
    // Programs of the container must not reach into this process before it has become one of them.
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)
        .step(|| "become undumpable".to_owned())?;
    setsid().step(|| "make a session".to_owned())?;
    // The agent's own keys are none of the container's.
    sys::keys::join_new_session().map_err(io::Error::from).step(|| "make a session keyring".to_owned())?;
    let wanted = [
        (LinuxNamespaceType::Mount, CloneFlags::CLONE_NEWNS),
        (LinuxNamespaceType::Network, CloneFlags::CLONE_NEWNET),
        (LinuxNamespaceType::Uts, CloneFlags::CLONE_NEWUTS),
        (LinuxNamespaceType::Ipc, CloneFlags::CLONE_NEWIPC),
    ];
    let flags = wanted.into_iter().filter(|(kind, _)| has(spec, *kind)).map(|(_, flag)| flag).collect();
    unshare(flags).step(|| "make namespaces".to_owned())?;
    say(control, &Event::Unshared)?;
    wait_for(control, Order::Build)?;
    let sources = sys::sock::receive_fds(control.as_fd(), sources::paths(&sandbox).len())
        .step(|| "receive the sources of mounts".to_owned())?;
    if has(spec, LinuxNamespaceType::Cgroup) {
        unshare(CloneFlags::CLONE_NEWCGROUP).step(|| "make a cgroup namespace".to_owned())?;
    }
    if has(spec, LinuxNamespaceType::Uts) {
        names(&sandbox)?;
    }
    // Writable pages of /proc/sys are still reachable here.
    sysctls(spec)?;
    if sandbox.purpose == Purpose::Restore {
        // The engine closes it; the root need not have one.
        null_stdin()?;
    }
    let mut sources = sources.into_iter();
    if let Some(source) = sources.next() {
        let new_root = root::prepare(&sandbox, source)?;
        mounts::all(&sandbox, &new_root, sources)?;
        devices::all(spec, &new_root)?;
        root::enter(&sandbox, new_root)?;
        terminals::make(spec)?;
        root::protect(spec)?;
    }
    match sandbox.purpose {
        Purpose::Start => start(spec, control),
        Purpose::Restore => restore(control),
    }
}

fn start(spec: &Spec, control: &OwnedFd) -> Result<(), InitError> {
    let Some(process) = spec.process() else {
        return refuse("start".to_owned(), "the bundle has no process");
    };
    let plan = process::Plan::new(process, spec)?;
    null_stdin()?;
    plan.limits()?;
    say(control, &Event::Built)?;
    wait_for(control, Order::Run)?;
    if super::terminals::has_console(spec) {
        terminals::attach(process)?;
    }
    // What this agent's own starter left open must not come into the container.
    sys::fds::cloexec_from(3).map_err(io::Error::from).step(|| "close inherited descriptors".to_owned())?;
    plan.execute()
}

fn restore(control: &OwnedFd) -> Result<(), InitError> {
    let end = rustix::io::fcntl_dupfd_cloexec(control, CONTROL_FD).step(|| "place the socket".to_owned())?;
    let number = rustix::fd::AsRawFd::as_raw_fd(&end);
    if number != CONTROL_FD {
        return refuse("place the socket".to_owned(), format!("descriptor {CONTROL_FD} is taken"));
    }
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::Dumpable)
        .step(|| "become dumpable".to_owned())?;
    say(control, &Event::Built)?;
    loop {
        pause();
    }
}

/// Standard input is /dev/null.
fn null_stdin() -> Result<(), InitError> {
    let null = File::open("/dev/null").step(|| "open /dev/null".to_owned())?;
    rustix::stdio::dup2_stdin(&null).step(|| "set standard input".to_owned())
}

fn names(sandbox: &Sandbox) -> Result<(), InitError> {
    let name = sandbox.spec.hostname().as_deref().unwrap_or(&sandbox.name);
    rustix::system::sethostname(name.as_bytes()).step(|| format!("set the host name {name}"))?;
    if let Some(domain) = sandbox.spec.domainname() {
        rustix::system::setdomainname(domain.as_bytes()).step(|| format!("set the domain name {domain}"))?;
    }
    Ok(())
}

/// Only what belongs to the container's own namespaces can be set; the rest would change the host.
fn sysctls(spec: &Spec) -> Result<(), InitError> {
    const OWN: [&str; 8] = [
        "net.",
        "fs.mqueue.",
        "kernel.msg",
        "kernel.sem",
        "kernel.shm",
        "kernel.shmmni",
        "kernel.domainname",
        "kernel.hostname",
    ];
    let Some(map) = spec.linux().as_ref().and_then(|linux| linux.sysctl().as_ref()) else { return Ok(()) };
    for (name, value) in map {
        if !OWN.iter().any(|own| name.starts_with(own)) || name.contains("..") {
            return refuse(format!("set sysctl {name}"), "it is not a part of the container's namespaces");
        }
        let what = || format!("set sysctl {name}");
        // The files of these two belong to the host's root alone.
        match name.as_str() {
            "kernel.hostname" => rustix::system::sethostname(value.as_bytes()).step(what)?,
            "kernel.domainname" => rustix::system::setdomainname(value.as_bytes()).step(what)?,
            _ => fs::write(Path::new("/proc/sys").join(name.replace('.', "/")), value).step(what)?,
        }
    }
    Ok(())
}

/// The configuration asks for a namespace of this kind.
pub(super) fn has(spec: &Spec, kind: LinuxNamespaceType) -> bool {
    spec.linux()
        .as_ref()
        .and_then(|linux| linux.namespaces().as_ref())
        .is_some_and(|list| list.iter().any(|namespace| namespace.typ() == kind))
}

fn say(control: &OwnedFd, event: &Event) -> Result<(), InitError> {
    channel::tell(control, event).step(|| "answer the agent".to_owned())
}

fn wait_for(control: &OwnedFd, order: Order) -> Result<(), InitError> {
    match channel::hear::<Order>(control, None).step(|| "hear the agent".to_owned())? {
        Some(heard) if heard == order => Ok(()),
        Some(other) => refuse(format!("wait for {order:?}"), format!("the agent said {other:?}")),
        None => refuse(format!("wait for {order:?}"), "the agent is gone"),
    }
}
