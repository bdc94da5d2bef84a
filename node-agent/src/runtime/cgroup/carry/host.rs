//! What a target has to offer to the groups of a container.

use std::collections::BTreeMap;
use std::fs;

use image::groups::Groups;

use super::read;
use crate::runtime::cgroup::Cgroup;

/// A host as far as control groups see it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Host {
    /// Its hierarchies.
    pub trees: Vec<HostTree>,
    /// The CPUs of the group above the container's, as in cpuset(7).
    pub cpus: String,
    /// The memory nodes of the group above the container's.
    pub mems: String,
    /// Numbers of devices by their names, as in [`image::groups::Device`]; only those that are asked for.
    pub devices: BTreeMap<String, (u32, u32)>,
    /// Names of devices by their numbers (true: block devices); only those that are asked for.
    pub names: BTreeMap<(bool, u32, u32), String>,
}

/// A mounted hierarchy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostTree {
    /// cgroup v2.
    pub unified: bool,
    /// Its controllers, or `name=...`.
    pub controllers: Vec<String>,
}

impl Host {
    /// This host, for a container with these groups whose directories will be `cgroup`.
    #[must_use]
    pub fn read(cgroup: &Cgroup, groups: &Groups) -> Self {
        let trees = cgroup.groups.iter().map(|group| HostTree {
            unified: group.hierarchy.unified,
            controllers: group.hierarchy.controllers.clone(),
        });
        let roots = cgroup.groups.iter().map(|group| (group.path.as_path(), group.hierarchy.unified));
        let (cpus, mems) = read::everything(roots);
        let mut host = Self { trees: trees.collect(), cpus, mems, ..Self::default() };
        for device in &groups.devices {
            // The name comes from a peer: it must not lead anywhere else.
            let plain =
                |part: &str| !part.is_empty() && part != "." && part != ".." && !part.contains(['/', '\0']);
            if let Some((subsystem, name)) = device.name.split_once('/')
                && plain(subsystem)
                && plain(name)
            {
                let file = format!("/sys/class/{subsystem}/{name}/dev");
                let number = fs::read_to_string(file).ok();
                if let Some(number) = number.and_then(|text| read::number_of(text.trim())) {
                    host.devices.insert(device.name.clone(), number);
                }
            }
            let number = (device.block, device.major, device.minor);
            if let Some(name) = read::device_name(device.block, device.major, device.minor) {
                host.names.insert(number, name);
            }
        }
        host
    }
}
