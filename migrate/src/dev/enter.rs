//! `dev exec`: runs a command inside a host.

use std::ffi::OsString;
use std::os::fd::AsFd as _;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use nix::sched::CloneFlags;
use nix::sys::signal::Signal;

use super::host::own_program;
use super::plan::{self, Layout};
use super::process::Process;

/// Moves this thread, which must be the process's only one, into the namespaces of a host's first process. Only
/// children are in its pid namespace.
pub(crate) fn enter(host: Process) -> Result<()> {
    let pidfd = sys::pidfd::open(host.pid).context("find the host's first process")?;
    // Checked after it was opened: the descriptor cannot come to mean another process.
    if !host.lives() {
        bail!("the host has ended");
    }
    let kinds = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWPID;
    sys::ns::set(pidfd.as_fd(), kinds.bits()).context("enter the host's namespaces")
}

/// Runs `command` in the host and answers its exit code (128 + signal when killed). The command ends when this
/// process does. It finds the coordinator by its environment.
pub(crate) fn exec(layout: &Layout, host: Process, command: &[OsString]) -> Result<u8> {
    use std::os::unix::process::ExitStatusExt as _;
    let program = own_program()?;
    let directory = std::env::current_dir().ok();
    enter(host)?;
    let mut child = Command::new(program);
    child
        .arg("__enter")
        .args(command)
        .env("MIGRATE_COORDINATOR", plan::coordinator().at(plan::COORDINATOR_PORT).to_string())
        .env("MIGRATE_TLS_DIR", layout.credentials("admin"));
    if let Some(directory) = directory.filter(|d| d.is_dir()) {
        child.current_dir(directory);
    }
    let status = child.status().context("start the command")?;
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    Ok(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
}

/// The program `__enter COMMAND ...`: becomes the command, which the kernel kills when the caller dies.
pub(crate) fn run(command: &[OsString]) -> Result<()> {
    let (program, args) = command.split_first().context("no command")?;
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).context("tie the command to its caller")?;
    let error = Command::new(program).args(args).exec();
    Err(error).with_context(|| format!("run {}", program.to_string_lossy()))
}
