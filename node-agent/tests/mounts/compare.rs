//! mountinfo of two sandboxes, compared.

use std::collections::{BTreeMap, HashMap};
use std::fs;

use engine::proc::mountinfo::{self, Mount};

fn mounts(pid: i32) -> Vec<Mount> {
    mountinfo::parse(&fs::read(format!("/proc/{pid}/mountinfo")).unwrap()).unwrap()
}

/// Every field of every mount, with names in place of what differs from host to host: ids, devices and groups by
/// order, paths of the root directory without it.
fn normal(pid: i32) -> BTreeMap<String, String> {
    let all = mounts(pid);
    let by_id: HashMap<i32, &Mount> = all.iter().map(|mount| (mount.id, mount)).collect();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let name = |mount: &Mount| {
        let mut name = text(&mount.point);
        let mut at = mount;
        while let Some(parent) = by_id.get(&at.parent) {
            name = format!("{}>{name}", text(&parent.point));
            at = parent;
        }
        name
    };
    let top = all.iter().find(|mount| !by_id.contains_key(&mount.parent)).unwrap();
    let mut named: Vec<(String, &Mount)> = all.iter().map(|mount| (name(mount), mount)).collect();
    named.sort_by(|a, b| a.0.cmp(&b.0));
    let mut devices: Vec<(u32, u32)> = Vec::new();
    let mut groups: Vec<u32> = Vec::new();
    for (_, mount) in &named {
        if !devices.contains(&mount.device) {
            devices.push(mount.device);
        }
        for group in [mount.shared, mount.master].into_iter().flatten() {
            if !groups.contains(&group) {
                groups.push(group);
            }
        }
    }
    let mut out = BTreeMap::new();
    for (name, mount) in &named {
        let root = match mount.root.strip_prefix(top.root.as_slice()) {
            Some(rest) if mount.device == top.device => format!("ROOT{}", text(rest)),
            _ if mount.fs_type.starts_with("cgroup") => "CGROUP".to_owned(),
            _ => text(&mount.root),
        };
        let device = devices.iter().position(|device| *device == mount.device).unwrap();
        let group = |id: Option<u32>| id.map(|id| groups.iter().position(|group| *group == id).unwrap());
        let line = format!(
            "fs{device} {root} {} shared:{:?} master:{:?} unbindable:{} {} {} {}",
            mount.options,
            group(mount.shared),
            group(mount.master),
            mount.unbindable,
            mount.fs_type,
            text(&mount.source),
            mount.super_options
        );
        assert!(out.insert(name.clone(), line).is_none(), "{name} twice");
    }
    out
}

/// They differ in nothing but numbers and the place of their root directory.
pub(crate) fn assert_same(source: i32, copy: i32) {
    let (theirs, ours) = (normal(source), normal(copy));
    for name in theirs.keys().chain(ours.keys()) {
        assert_eq!(theirs.get(name), ours.get(name), "{name}\nsource {theirs:#?}\ncopy {ours:#?}");
    }
}
