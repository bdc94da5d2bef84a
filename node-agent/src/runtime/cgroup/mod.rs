//! Control groups: one directory per container in every mounted hierarchy.
//!
//! Each agent has a parent group of its own, so that two agents on one machine do not meet. Hierarchies
//! are found through /proc/self/mountinfo: cgroup v1 controllers, named ones and cgroup v2 side by side.

pub mod carry;
mod hierarchy;
mod limits;
pub(crate) mod throttle;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

pub use hierarchy::{Hierarchy, Layout};

/// Why a control group could not be made, used or removed.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// No cgroup v2 mount: the freezer is missing.
    #[error("no cgroup v2 hierarchy is mounted; mount one (mount -t cgroup2 none /sys/fs/cgroup/unified)")]
    NoUnified,
    /// A limit of the bundle that cannot be applied here.
    #[error("limit {limit} cannot be applied: {why}")]
    Limit {
        /// Its name in the OCI configuration.
        limit: &'static str,
        /// Why, and what to do.
        why: String,
    },
    /// A file of a control group.
    #[error("cannot {what} {path}")]
    File {
        /// `read`, `write`, `create`, `remove`.
        what: &'static str,
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Processes are left in it.
    #[error("processes are left in {0}")]
    Busy(PathBuf),
}

impl CgroupError {
    fn file(what: &'static str, path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> Self {
        let path = path.as_ref().to_owned();
        move |source| Self::File { what, path, source }
    }
}

/// The control groups of one container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cgroup {
    /// The group in each hierarchy.
    pub groups: Vec<Group>,
}

/// A group in one hierarchy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    /// Which hierarchy.
    pub hierarchy: Hierarchy,
    /// The container's directory there.
    pub path: PathBuf,
}

impl Cgroup {
    /// Names the groups of `name` below `parent`, without making them.
    #[must_use]
    pub fn at(layout: &Layout, parent: &str, name: &str) -> Self {
        let groups = layout
            .hierarchies
            .iter()
            .map(|hierarchy| Group {
                hierarchy: hierarchy.clone(),
                path: hierarchy.mount.join(parent).join(name),
            })
            .collect();
        Self { groups }
    }

    /// Makes every group. A new cpuset group gets its parent's CPUs and memory nodes, without which no
    /// process can enter it.
    ///
    /// # Errors
    /// When a directory cannot be made; what was made is removed again by [`Cgroup::remove`].
    pub fn create(&self) -> Result<(), CgroupError> {
        for group in &self.groups {
            if let Some(parent) = group.path.parent() {
                make(parent, &group.hierarchy)?;
            }
            make(&group.path, &group.hierarchy)?;
        }
        Ok(())
    }

    /// Applies the limits of an OCI configuration.
    ///
    /// # Errors
    /// [`CgroupError::Limit`] names the first limit that cannot be applied.
    pub fn apply(&self, resources: &oci_spec::runtime::LinuxResources) -> Result<(), CgroupError> {
        limits::apply(self, resources)
    }

    /// Applies the device rules of an OCI configuration.
    ///
    /// # Errors
    /// [`CgroupError::Limit`] when this host cannot have them.
    pub fn devices(&self, rules: &[oci_spec::runtime::LinuxDeviceCgroup]) -> Result<(), CgroupError> {
        limits::devices(self, rules)
    }

    /// Moves a process into every group.
    ///
    /// # Errors
    /// When a group does not take it.
    pub fn enter(&self, pid: i32) -> Result<(), CgroupError> {
        self.groups.iter().try_for_each(|group| put(pid, &group.path))
    }

    /// Moves the shim of the container out of whatever group its agent is in, to the other shims of the agent's parent
    /// group: who ends all processes of the agent's group, as supervisors do, must not end containers.
    ///
    /// # Errors
    /// When a group cannot be made or does not take it.
    pub fn enter_shims(&self, shim: i32) -> Result<(), CgroupError> {
        for group in &self.groups {
            let Some(parent) = group.path.parent() else { continue };
            let shims = beside(parent);
            make(&shims, &group.hierarchy)?;
            put(shim, &shims)?;
        }
        Ok(())
    }

    /// As [`Cgroup::enter`]. A v2 group that hands controllers on to groups below takes no process: then it goes to
    /// where process `beside` of the container is.
    ///
    /// # Errors
    /// As above.
    pub fn enter_beside(&self, pid: i32, beside: i32) -> Result<(), CgroupError> {
        for group in &self.groups {
            match put(pid, &group.path) {
                Err(CgroupError::File { source, .. })
                    if group.hierarchy.unified && source.kind() == io::ErrorKind::ResourceBusy =>
                {
                    let file = PathBuf::from(format!("/proc/{beside}/cgroup"));
                    let text = fs::read_to_string(&file).map_err(CgroupError::file("read", &file))?;
                    let path = text.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default();
                    put(pid, &group.hierarchy.mount.join(path))?;
                }
                other => other?,
            }
        }
        Ok(())
    }

    /// The group in the cgroup v2 hierarchy: the freezer.
    ///
    /// # Errors
    /// [`CgroupError::NoUnified`].
    pub fn unified(&self) -> Result<&Path, CgroupError> {
        self.groups
            .iter()
            .find(|group| group.hierarchy.unified)
            .map(|group| group.path.as_path())
            .ok_or(CgroupError::NoUnified)
    }

    /// The v1 group of a controller.
    #[must_use]
    pub fn controller(&self, name: &str) -> Option<&Path> {
        self.groups
            .iter()
            .find(|group| !group.hierarchy.unified && group.hierarchy.controllers.iter().any(|c| c == name))
            .map(|group| group.path.as_path())
    }

    /// Every process in the container's v2 group and the groups below it.
    ///
    /// # Errors
    /// When the group cannot be read. A group that is gone has no processes.
    pub fn processes(&self) -> Result<Vec<i32>, CgroupError> {
        processes_below(self.unified()?)
    }

    /// Kills everything in it, frozen processes too, and waits until nothing is left.
    ///
    /// # Errors
    /// [`CgroupError::Busy`] when something is left after `limit`.
    pub fn kill(&self, limit: Duration) -> Result<(), CgroupError> {
        let path = self.unified()?;
        let file = path.join("cgroup.kill");
        match fs::write(&file, "1") {
            Ok(()) => {}
            Err(error) if gone(&error) => return Ok(()),
            Err(error) => return Err(CgroupError::file("write", &file)(error)),
        }
        let end = Instant::now() + limit;
        while !self.processes()?.is_empty() {
            if Instant::now() > end {
                return Err(CgroupError::Busy(path.to_owned()));
            }
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Bytes of memory that it uses, as far as a controller tells.
    #[must_use]
    pub fn memory_bytes(&self) -> Option<u64> {
        let read = |path: PathBuf| fs::read_to_string(path).ok();
        if let Some(path) = self.controller("memory") {
            let text = read(path.join("memory.stat"))?;
            return text.lines().find_map(|line| line.strip_prefix("total_rss ")?.parse().ok());
        }
        read(self.unified().ok()?.join("memory.current"))?.trim().parse().ok()
    }

    /// Removes every group and the groups below it. Ok when they are gone already.
    ///
    /// # Errors
    /// When one cannot be removed; the others are removed all the same.
    pub fn remove(&self) -> Result<(), CgroupError> {
        let mut first = Ok(());
        for group in &self.groups {
            first = first.and(remove_tree(&group.path));
        }
        first
    }
}

/// Removes the parent group of an agent, and that of its shims, from every hierarchy; groups that are not empty stay.
pub fn remove_parent(layout: &Layout, parent: &str) {
    for hierarchy in &layout.hierarchies {
        let path = hierarchy.mount.join(parent);
        let _ = fs::remove_dir(&path);
        // The last shim may be on its way out.
        let _ = remove_tree(&beside(&path));
    }
}

/// The group of an agent's shims. It is not below the agent's parent group, which hands controllers on and so can hold
/// no processes beside groups (cgroups(7), "no internal processes").
fn beside(parent: &Path) -> PathBuf {
    let mut name = parent.as_os_str().to_owned();
    name.push(".shims");
    name.into()
}

fn put(pid: i32, group: &Path) -> Result<(), CgroupError> {
    let path = group.join("cgroup.procs");
    fs::write(&path, pid.to_string()).map_err(CgroupError::file("write", &path))
}

fn make(path: &Path, hierarchy: &Hierarchy) -> Result<(), CgroupError> {
    match fs::create_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        result => result.map_err(CgroupError::file("create", path))?,
    }
    if !hierarchy.unified && hierarchy.controllers.iter().any(|c| c == "cpuset") {
        let Some(parent) = path.parent() else { return Ok(()) };
        for file in ["cpuset.cpus", "cpuset.mems"] {
            let own = path.join(file);
            let set = fs::read_to_string(&own).map_err(CgroupError::file("read", &own))?;
            if set.trim().is_empty() {
                let above = parent.join(file);
                let value = fs::read_to_string(&above).map_err(CgroupError::file("read", &above))?;
                fs::write(&own, value.trim()).map_err(CgroupError::file("write", &own))?;
            }
        }
    }
    if hierarchy.unified {
        hierarchy::delegate(path);
    }
    Ok(())
}

/// Every process in a group and the groups below it. A group that is gone has none.
fn processes_below(path: &Path) -> Result<Vec<i32>, CgroupError> {
    let mut pids = Vec::new();
    collect(path, &mut pids)?;
    Ok(pids)
}

fn collect(path: &Path, pids: &mut Vec<i32>) -> Result<(), CgroupError> {
    let file = path.join("cgroup.procs");
    match fs::read_to_string(&file) {
        Ok(text) => pids.extend(text.lines().filter_map(|line| line.parse::<i32>().ok())),
        Err(error) if gone(&error) => return Ok(()),
        // The processes of a threaded group are listed by the group at the top of the threaded part.
        Err(error) if error.raw_os_error() == Some(nix::libc::EOPNOTSUPP) => {}
        Err(error) => return Err(CgroupError::file("read", &file)(error)),
    }
    for child in children(path) {
        collect(&child, pids)?;
    }
    Ok(())
}

fn children(path: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(path) else { return Vec::new() };
    entries
        .filter_map(Result::ok)
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

fn remove_tree(path: &Path) -> Result<(), CgroupError> {
    for child in children(path) {
        remove_tree(&child)?;
    }
    // A group can stay busy for a moment after its last process was reaped.
    let end = Instant::now() + Duration::from_secs(2);
    loop {
        match fs::remove_dir(path) {
            Ok(()) => return Ok(()),
            Err(error) if gone(&error) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy && Instant::now() < end => {
                thread::sleep(Duration::from_millis(2));
            }
            Err(error) => return Err(CgroupError::file("remove", path)(error)),
        }
    }
}

/// The group (or the process behind an entry of it) does not exist any more.
fn gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(nix::libc::ENODEV)
}
