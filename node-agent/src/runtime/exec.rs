//! A command inside a running container.
//!
//! The agent executes itself again with a hidden first argument. That helper enters the container's
//! control groups and namespaces, takes on the container's user, capabilities and filters, starts the
//! command as its child (so that it is in the pid namespace), and ends with its exit status.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use oci_spec::runtime::Spec;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::{Deserialize, Serialize};
use sys::ns::Kind;

use super::cgroup::Cgroup;
use super::error::RuntimeError;
use super::init::{Context as _, Credentials, InitError, search_path};
use super::name::ContainerName;
use super::record::Process;
use super::status::State;
use super::userns::UserNamespace;
use super::{Runtime, hold};

/// The hidden first argument of the helper.
pub(super) const EXEC: &str = "__exec";

/// The helper's exit status when the command could not be started; its standard error says why.
pub const NOT_STARTED: u8 = 126;

#[derive(Debug, Serialize, Deserialize)]
struct Job {
    root: Process,
    cgroup: Cgroup,
    args: Vec<String>,
    spec: Spec,
}

impl Runtime {
    /// The helper that runs `args` in a container, ready to be spawned with whatever standard streams the
    /// caller wants. Its exit status is the command's, or 128 + signal.
    ///
    /// # Errors
    /// When the container does not run.
    pub fn exec(&self, name: &ContainerName, args: &[String]) -> Result<Command, RuntimeError> {
        let lock = self.lock_of(name);
        let _held = hold(&lock);
        let record = self.record(name)?;
        let status = self.status_of(&record)?;
        let root = record.root.filter(|_| status.state == State::Running);
        let root = root.ok_or_else(|| RuntimeError::NotRunning(name.clone()))?;
        let config = self.dir(name).config();
        let spec = fs::read(&config).map_err(RuntimeError::file("read", &config))?;
        let spec =
            serde_json::from_slice(&spec).map_err(|source| RuntimeError::Damaged { path: config, source })?;
        let job = Job { root, cgroup: record.cgroup, args: args.to_vec(), spec };
        let path = self.dir(name).root().join(format!("exec-{}.json", uuid::Uuid::new_v4()));
        let json = serde_json::to_vec(&job).map_err(io::Error::from);
        json.and_then(|json| fs::write(&path, json)).map_err(RuntimeError::file("write", &path))?;
        let mut command = Command::new(&self.options.exe);
        command.arg(EXEC).arg(path).env_clear().current_dir("/");
        Ok(command)
    }
}

/// Runs the helper.
pub(super) fn main(path: &Path) -> ExitCode {
    match execute(path) {
        Ok(status) => ExitCode::from(u8::try_from(status).unwrap_or(NOT_STARTED)),
        Err(error) => {
            let _ = writeln!(io::stderr(), "exec: {error}");
            ExitCode::from(NOT_STARTED)
        }
    }
}

fn execute(path: &Path) -> Result<i32, InitError> {
    let read = || -> io::Result<Job> {
        let job = serde_json::from_reader(File::open(path)?)?;
        fs::remove_file(path)?;
        Ok(job)
    };
    let job = read().step(|| format!("read {}", path.display()))?;
    // The container's programs must not reach into this process through /proc.
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)
        .step(|| "become undumpable".to_owned())?;
    let gone = || io::Error::new(io::ErrorKind::NotFound, "the container has ended");
    let pidfd = Pid::from_raw(job.root.pid)
        .ok_or_else(gone)
        .and_then(|pid| Ok(pidfd_open(pid, PidfdFlags::empty())?))
        .step(|| "open the container".to_owned())?;
    if !job.root.is_alive() {
        return Err(gone()).step(|| "open the container".to_owned());
    }
    let own = i32::try_from(std::process::id()).unwrap_or_default();
    job.cgroup
        .enter_beside(own, job.root.pid)
        .map_err(io::Error::other)
        .step(|| "enter the container's groups".to_owned())?;
    let kinds = [Kind::Mnt, Kind::Pid, Kind::Net, Kind::Uts, Kind::Ipc, Kind::Cgroup, Kind::Time];
    // One cannot enter the user namespace that one is in.
    let user = UserNamespace::of(&job.spec).map(|_| Kind::User);
    let all = kinds.into_iter().chain(user).fold(0, |flags, kind| flags | kind.flag());
    sys::ns::set(pidfd.as_fd(), all).step(|| "enter the container's namespaces".to_owned())?;
    let Some(process) = job.spec.process() else {
        return Err(gone()).step(|| "read the container's process".to_owned());
    };
    let env = process.env().clone().unwrap_or_default();
    let cwd: PathBuf = process.cwd().clone();
    std::env::set_current_dir(&cwd).step(|| format!("enter {}", cwd.display()))?;
    let name = job.args.first().cloned().unwrap_or_default();
    let program = search_path(&name, &env, &cwd)?;
    sys::prctl::own::default_signals().map_err(io::Error::from).step(|| "reset signals".to_owned())?;
    Credentials::new(process, &job.spec)?.apply()?;
    let mut command = Command::new(program);
    command.arg0(&name).args(job.args.iter().skip(1)).env_clear();
    command.envs(env.iter().filter_map(|entry| entry.split_once('=')));
    let status = command.status().step(|| format!("execute {name}"))?;
    Ok(status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(255))
}
