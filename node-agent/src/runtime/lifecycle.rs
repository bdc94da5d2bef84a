//! Start, stop, delete.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::bundle::{Bundle, GATEWAY_ANNOTATION};
use super::cgroup::Cgroup;
use super::error::RuntimeError;
use super::launch::launch;
use super::name::ContainerName;
use super::paths::ContainerDir;
use super::record::{Process, Record, Stage};
use super::sandbox::{Purpose, Sandbox};
use super::status::ContainerStatus;
use super::{Runtime, hold};
use crate::network::{self, Addressing, Cidr, Mac};

/// How long the kernel may take to end a killed container.
const KILL: Duration = Duration::from_secs(10);

/// How long a shim may take to write down how its container ended.
const SHIM: Duration = Duration::from_secs(5);

/// What is to be started.
#[derive(Clone, Debug)]
pub struct RunRequest {
    /// Its name.
    pub name: ContainerName,
    /// The bundle's directory.
    pub bundle: PathBuf,
    /// Its address with the length of the network's prefix; `None` for a container without a link.
    pub ip: Option<Cidr>,
    /// Its MAC address; derived from the name when `None`.
    pub mac: Option<Mac>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
}

impl Runtime {
    /// Starts a container; its program has been executed on Ok.
    ///
    /// # Errors
    /// What failed; nothing of it is left.
    pub fn run(&self, request: RunRequest) -> Result<ContainerStatus, RuntimeError> {
        let lock = self.lock_of(&request.name);
        let _held = hold(&lock);
        let dir = self.dir(&request.name);
        if dir.root().exists() {
            return Err(RuntimeError::Exists(request.name));
        }
        let bundle = Bundle::load(&request.bundle)?;
        let gateway = bundle
            .annotation(GATEWAY_ANNOTATION)
            .map(|text| {
                text.parse().map_err(|_| RuntimeError::Bundle {
                    path: bundle.path.clone(),
                    what: format!("annotation {GATEWAY_ANNOTATION}: {text} is not an address"),
                })
            })
            .transpose()?;
        let network = Addressing {
            ip: request.ip,
            mac: request.mac.unwrap_or_else(|| Mac::derived(request.name.as_str())),
            gateway,
        };
        let mut record = Record {
            cgroup: self.cgroup_of(&request.name),
            link: self.link_of(&request.name),
            name: request.name,
            bundle: bundle.path.clone(),
            rootfs: bundle.rootfs.clone(),
            network,
            labels: request.labels,
            epoch: 0,
            created: SystemTime::now(),
            stage: Stage::Creating,
            arrived: None,
            root: None,
            shim: None,
        };
        let started = self.start(&mut record, &bundle, &dir);
        if started.is_err() {
            self.clear(&record, &dir);
        }
        started?;
        self.status_of(&record)
    }

    fn start(&self, record: &mut Record, bundle: &Bundle, dir: &ContainerDir) -> Result<(), RuntimeError> {
        self.prepare(record, bundle, dir, true)?;
        let sandbox = self.sandbox(record, bundle, dir, Purpose::Start);
        let network = |pid| {
            network::create(&record.link, &record.network, None, pid)?;
            self.attach(record)?;
            Ok(())
        };
        let launched = launch(&self.options.exe, &record.name, dir, &sandbox, Some(&record.cgroup), network)?;
        record.root = Some(launched.root.clone());
        record.shim = Some(launched.shim.clone());
        record.save(&dir.record())?;
        launched.run(dir)?;
        record.stage = Stage::Here;
        record.save(&dir.record())
    }

    /// The directory, the record, the configuration and the control groups, before any process; with the limits
    /// of the configuration when it is `limited`.
    pub(super) fn prepare(
        &self,
        record: &Record,
        bundle: &Bundle,
        dir: &ContainerDir,
        limited: bool,
    ) -> Result<(), RuntimeError> {
        fs::create_dir(dir.root()).map_err(RuntimeError::file("create", dir.root()))?;
        record.save(&dir.record())?;
        let config = serde_json::to_vec(&bundle.spec).map_err(io::Error::from);
        config
            .and_then(|bytes| fs::write(dir.config(), bytes))
            .map_err(RuntimeError::file("write", dir.config()))?;
        record.cgroup.create()?;
        let resources = bundle.spec.linux().as_ref().and_then(|linux| linux.resources().as_ref());
        if let Some(resources) = resources.filter(|_| limited) {
            record.cgroup.apply(resources)?;
        }
        Ok(())
    }

    pub(super) fn sandbox(
        &self,
        record: &Record,
        bundle: &Bundle,
        dir: &ContainerDir,
        purpose: Purpose,
    ) -> Sandbox {
        Sandbox {
            name: record.name.to_string(),
            purpose,
            rootfs: bundle.rootfs.clone(),
            bundle: bundle.path.clone(),
            log: dir.log(),
            exit: dir.exit(),
            hierarchies: self.layout.hierarchies.clone(),
            clocks: None,
            spec: bundle.spec.clone(),
        }
    }

    pub(super) fn cgroup_of(&self, name: &ContainerName) -> Cgroup {
        Cgroup::at(&self.layout, &self.options.cgroup_parent, name.as_str())
    }

    pub(super) fn link_of(&self, name: &ContainerName) -> String {
        network::host_end(&self.options.cgroup_parent, name)
    }

    /// Attaches a container's link to the node's bridge.
    pub(super) fn attach(&self, record: &Record) -> Result<(), RuntimeError> {
        if let (Some(bridge), Some(_)) = (&self.options.bridge, &record.network.ip) {
            network::enslave(&record.link, bridge)?;
        }
        Ok(())
    }

    /// Asks the root process to end (SIGTERM), kills the container after `grace`. Returns when it is gone.
    ///
    /// # Errors
    /// When it is not here, a migration holds it, or it does not end.
    pub fn stop(&self, name: &ContainerName, grace: Duration) -> Result<ContainerStatus, RuntimeError> {
        let lock = self.lock_of(name);
        let _held = hold(&lock);
        let record = self.record(name)?;
        not_held(&record)?;
        if let Some(root) = record.root.as_ref().filter(|root| root.is_alive()) {
            let pid = root.pid;
            let target =
                rustix::process::Pid::from_raw(pid).ok_or_else(|| RuntimeError::NotRunning(name.clone()))?;
            let pidfd =
                pidfd_open(target, PidfdFlags::empty()).map_err(RuntimeError::process("open", pid))?;
            // Still the same one, now that its pid cannot be taken by another.
            if root.is_alive() {
                pidfd_send_signal(&pidfd, Signal::TERM).map_err(RuntimeError::process("signal", pid))?;
                if !ended(&pidfd, grace).map_err(RuntimeError::process("wait for", pid))? {
                    record.cgroup.kill(KILL)?;
                }
                if !ended(&pidfd, KILL).map_err(RuntimeError::process("wait for", pid))? {
                    return Err(RuntimeError::TimedOut {
                        name: name.clone(),
                        what: "end",
                        seconds: KILL.as_secs(),
                    });
                }
            }
        }
        // Whatever else is in the group: commands that were executed in it.
        record.cgroup.kill(KILL)?;
        wait_for_shim(&record);
        self.status_of(&record)
    }

    /// Forgets a container that has ended and removes what was made for it. `force` kills it first.
    ///
    /// # Errors
    /// When it runs (without `force`), a migration holds it, or something cannot be removed.
    pub fn delete(&self, name: &ContainerName, force: bool) -> Result<(), RuntimeError> {
        let lock = self.lock_of(name);
        let _held = hold(&lock);
        let record = self.record(name)?;
        not_held(&record)?;
        if record.is_alive() && !force {
            return Err(RuntimeError::Running(name.clone()));
        }
        self.erase(&record)
    }

    /// Removes what an agent that died in the middle of a start left behind.
    ///
    /// # Errors
    /// What could not be removed.
    pub fn recover(&self) -> Result<(), RuntimeError> {
        for name in self.names()? {
            match self.record(&name) {
                Ok(record) if record.stage == Stage::Creating => self.erase(&record)?,
                Ok(_) => {}
                // The directory was made and nothing else yet.
                Err(RuntimeError::NotFound(_)) => remove_dir(self.dir(&name).root())?,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Kills what is left of a container and removes its groups, links and files.
    pub(crate) fn erase(&self, record: &Record) -> Result<(), RuntimeError> {
        record.cgroup.kill(KILL)?;
        wait_for_shim(record);
        network::remove(&record.link)?;
        self.erase_all_but_link(record)
    }

    /// As [`Runtime::erase`], but its link stays for as long as somebody holds its network namespace.
    pub(crate) fn erase_all_but_link(&self, record: &Record) -> Result<(), RuntimeError> {
        record.cgroup.kill(KILL)?;
        wait_for_shim(record);
        record.cgroup.remove()?;
        remove_dir(&self.state.bundle(&record.name))?;
        remove_dir(self.dir(&record.name).root())
    }

    /// After a failed start: everything away, as far as possible.
    pub(super) fn clear(&self, record: &Record, dir: &ContainerDir) {
        let log = fs::read_to_string(dir.shim_log()).unwrap_or_default();
        if let Err(error) = self.erase(record) {
            tracing::warn!(container = %record.name, error = %error, shim = %log.trim(), "not everything of a failed start could be removed");
        }
    }
}

/// Refuses what a migration works on.
fn not_held(record: &Record) -> Result<(), RuntimeError> {
    match record.stage {
        Stage::Here | Stage::Creating => Ok(()),
        Stage::Migrating | Stage::Frozen | Stage::Incoming { .. } => {
            Err(RuntimeError::Held(record.name.clone()))
        }
    }
}

/// The shim writes the exit status after the root process ended; without it there is none to wait for.
pub(super) fn wait_for_shim(record: &Record) {
    if let Some(shim) = &record.shim {
        wait_for(shim, SHIM);
    }
}

/// Waits up to `limit` for the end of a process.
pub(super) fn wait_for(process: &Process, limit: Duration) {
    let Some(pid) = rustix::process::Pid::from_raw(process.pid) else { return };
    let Ok(pidfd) = pidfd_open(pid, PidfdFlags::empty()) else { return };
    // Still the same one, now that its pid cannot be taken by another.
    if process.is_alive() {
        let _ = ended(&pidfd, limit);
    }
}

/// Waits for the end of a process.
fn ended(pidfd: &impl std::os::fd::AsFd, limit: Duration) -> io::Result<bool> {
    let limit = Timespec::try_from(limit).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut fds = [PollFd::new(pidfd, PollFlags::IN)];
    Ok(poll(&mut fds, Some(&limit))? > 0)
}

fn remove_dir(path: &Path) -> Result<(), RuntimeError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(RuntimeError::file("remove", path)(error))
        }
        _ => Ok(()),
    }
}
