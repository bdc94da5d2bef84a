//! Which hierarchies are mounted.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{major, minor};
use serde::{Deserialize, Serialize};

use super::CgroupError;

/// A mounted hierarchy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hierarchy {
    /// Where it is mounted.
    pub mount: PathBuf,
    /// cgroup v2.
    pub unified: bool,
    /// Its controllers; for a named v1 hierarchy `name=NAME`.
    pub controllers: Vec<String>,
}

/// All hierarchies of a host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layout {
    /// Every hierarchy, once.
    pub hierarchies: Vec<Hierarchy>,
}

impl Layout {
    /// Reads the layout of this host.
    ///
    /// # Errors
    /// When /proc/self/mountinfo cannot be read or no cgroup v2 hierarchy is mounted.
    pub fn read() -> Result<Self, CgroupError> {
        let path = Path::new("/proc/self/mountinfo");
        let text = fs::read_to_string(path).map_err(CgroupError::file("read", path))?;
        let mut layout = Self::parse(&text, &|mount, device| {
            // Another mount may cover it.
            let seen = fs::metadata(mount).map(|dir| dir.dev());
            seen.is_ok_and(|dev| format!("{}:{}", major(dev), minor(dev)) == device)
        });
        for hierarchy in layout.hierarchies.iter_mut().filter(|h| h.unified) {
            let file = hierarchy.mount.join("cgroup.controllers");
            let list = fs::read_to_string(&file).map_err(CgroupError::file("read", &file))?;
            hierarchy.controllers = list.split_whitespace().map(str::to_owned).collect();
        }
        if layout.hierarchies.iter().any(|h| h.unified) { Ok(layout) } else { Err(CgroupError::NoUnified) }
    }

    /// `v1` cannot be: there is always a unified hierarchy. `v2` when it is the only one, else `hybrid`.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        if self.hierarchies.iter().all(|h| h.unified) { "v2" } else { "hybrid" }
    }

    /// Every controller, of either version; cgroup v1 calls `io` `blkio`.
    #[must_use]
    pub fn controllers(&self) -> Vec<String> {
        let all = self.hierarchies.iter().flat_map(|hierarchy| &hierarchy.controllers);
        let named = all.filter(|name| !name.starts_with("name="));
        let set: BTreeSet<&str> =
            named.map(|name| if name == "blkio" { "io" } else { name.as_str() }).collect();
        set.into_iter().map(str::to_owned).collect()
    }

    /// Understands the text of /proc/PID/mountinfo, see proc_pid_mountinfo(5). Only mounts of a hierarchy's
    /// own root count that `shown` says of their path and device, each hierarchy once.
    fn parse(mountinfo: &str, shown: &dyn Fn(&Path, &str) -> bool) -> Self {
        let mut hierarchies: Vec<Hierarchy> = Vec::new();
        for line in mountinfo.lines() {
            let Some((left, right)) = line.split_once(" - ") else { continue };
            let left: Vec<&str> = left.split(' ').collect();
            let right: Vec<&str> = right.split(' ').collect();
            let ([_, _, device, root, mount, ..], [kind, _, options, ..]) =
                (left.as_slice(), right.as_slice())
            else {
                continue;
            };
            if *root != "/" {
                continue;
            }
            let unified = match *kind {
                "cgroup" => false,
                "cgroup2" => true,
                _ => continue,
            };
            let controllers: Vec<String> = if unified {
                Vec::new()
            } else {
                options.split(',').filter(|o| is_controller(o)).map(str::to_owned).collect()
            };
            let known = hierarchies.iter().any(|h| h.unified == unified && h.controllers == controllers);
            if !known && shown(Path::new(mount), device) {
                hierarchies.push(Hierarchy { mount: PathBuf::from(mount), unified, controllers });
            }
        }
        Self { hierarchies }
    }
}

/// A mount option of a v1 hierarchy that names a controller or the hierarchy itself.
fn is_controller(option: &str) -> bool {
    const OTHERS: [&str; 7] = ["rw", "ro", "none", "xattr", "clone_children", "noprefix", "cpuset_v2_mode"];
    !OTHERS.contains(&option) && !option.starts_with("release_agent=")
}

/// Hands the controllers of a new v2 group on to the groups below it, as far as the kernel lets us.
pub(super) fn delegate(path: &Path) {
    let Some(parent) = path.parent() else { return };
    let Ok(list) = fs::read_to_string(parent.join("cgroup.controllers")) else { return };
    for controller in list.split_whitespace() {
        // A parent that holds processes itself refuses; the limits then say what is missing.
        let _ = fs::write(parent.join("cgroup.subtree_control"), format!("+{controller}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hybrid_layout_is_understood() {
        let text = "\
32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu,cpuacct
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
42 31 0:29 / /mnt/again rw,relatime - cgroup cgroup rw,cpu,cpuacct
43 31 0:30 /sub /mnt/part rw - cgroup cgroup rw,pids
44 31 0:31 / /tmp rw - tmpfs tmpfs rw
45 31 0:39 / /covered/pids rw - cgroup cgroup rw,pids
";
        let layout = Layout::parse(text, &|mount, device| {
            assert!(device.starts_with("0:"));
            !mount.starts_with("/covered")
        });
        let seen: Vec<(&str, bool, &[String])> = layout
            .hierarchies
            .iter()
            .map(|h| (h.mount.to_str().unwrap(), h.unified, h.controllers.as_slice()))
            .collect();
        assert_eq!(
            seen,
            [
                ("/sys/fs/cgroup/cpu", false, ["cpu".to_owned(), "cpuacct".to_owned()].as_slice()),
                ("/sys/fs/cgroup/systemd", false, ["name=systemd".to_owned()].as_slice()),
                ("/sys/fs/cgroup/unified", true, [].as_slice()),
            ]
        );
        assert_eq!(layout.kind(), "hybrid");
        assert_eq!(layout.controllers(), ["cpu", "cpuacct"]);
    }
}
