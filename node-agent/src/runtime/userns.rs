//! The user namespace that a configuration asks for, see user_namespaces(7).
//!
//! Files keep the host's numbers wherever they are read or sent by an agent: the same configuration, and so the same
//! mapping, is used on every node.

use std::fs;
use std::io;

use oci_spec::runtime::{LinuxIdMapping, LinuxNamespaceType, Spec};

/// The most lines that the kernel takes.
const MOST: usize = 340;

/// The mappings of a container that has a user namespace of its own.
#[derive(Clone, Debug)]
pub(super) struct UserNamespace {
    uid: Vec<LinuxIdMapping>,
    gid: Vec<LinuxIdMapping>,
}

impl UserNamespace {
    /// What a configuration asks for; `None` when the container's users are the host's.
    pub(super) fn of(spec: &Spec) -> Option<Self> {
        let linux = spec.linux().as_ref()?;
        let mut namespaces = linux.namespaces().iter().flatten();
        namespaces.any(|namespace| namespace.typ() == LinuxNamespaceType::User).then(|| Self {
            uid: linux.uid_mappings().clone().unwrap_or_default(),
            gid: linux.gid_mappings().clone().unwrap_or_default(),
        })
    }

    /// Makes the mappings of process `pid`, which has just got its user namespace.
    ///
    /// # Errors
    /// `EINVAL` for mappings that overlap, `EPERM` without CAP_SETUID and CAP_SETGID over the host's ids.
    pub(super) fn map(&self, pid: i32) -> io::Result<()> {
        for (file, mappings) in [("gid_map", &self.gid), ("uid_map", &self.uid)] {
            let lines: String = mappings
                .iter()
                .map(|map| format!("{} {} {}\n", map.container_id(), map.host_id(), map.size()))
                .collect();
            fs::write(format!("/proc/{pid}/{file}"), lines)
                .map_err(|error| io::Error::new(error.kind(), format!("write its {file}: {error}")))?;
        }
        Ok(())
    }

    /// The host's number of a user of the container.
    pub(super) fn uid(&self, inside: u32) -> Option<u32> {
        host(&self.uid, inside)
    }

    /// The host's number of a group of the container.
    pub(super) fn gid(&self, inside: u32) -> Option<u32> {
        host(&self.gid, inside)
    }

    /// The host's numbers of the container's root.
    pub(super) fn root(&self) -> Option<(u32, u32)> {
        Some((self.uid(0)?, self.gid(0)?))
    }

    /// The container has these two, which are the host's numbers.
    pub(super) fn covers(&self, uid: u32, gid: u32) -> bool {
        let inside = |list: &[LinuxIdMapping], id: u32| {
            list.iter().any(|map| id.checked_sub(map.host_id()).is_some_and(|at| at < map.size()))
        };
        inside(&self.uid, uid) && inside(&self.gid, gid)
    }
}

fn host(list: &[LinuxIdMapping], inside: u32) -> Option<u32> {
    list.iter().find_map(|map| {
        let at = inside.checked_sub(map.container_id())?;
        (at < map.size()).then(|| map.host_id().checked_add(at))?
    })
}

/// What is wrong with the user namespace of a configuration, with what to do about it.
pub(super) fn refusal(spec: &Spec) -> Option<String> {
    let linux = spec.linux().as_ref()?;
    let Some(user) = UserNamespace::of(spec) else {
        let stray = [("uidMappings", linux.uid_mappings()), ("gidMappings", linux.gid_mappings())];
        return stray.iter().find(|(_, list)| list.as_ref().is_some_and(|list| !list.is_empty())).map(
            |(name, _)| {
                format!("linux.{name} needs {{\"type\": \"user\"}} in linux.namespaces; add it, or remove the mappings")
            },
        );
    };
    for (name, list) in [("uidMappings", &user.uid), ("gidMappings", &user.gid)] {
        if let Some(what) = malformed(list) {
            return Some(format!("linux.{name} {what}"));
        }
    }
    let process = spec.process().as_ref()?.user();
    let groups = process.additional_gids().iter().flatten().copied();
    if user.uid(process.uid()).is_none() {
        return Some(format!("process.user.uid {} is not in linux.uidMappings; map it", process.uid()));
    }
    let stray = groups.chain([process.gid()]).find(|gid| user.gid(*gid).is_none())?;
    Some(format!("group {stray} of process.user is not in linux.gidMappings; map it"))
}

fn malformed(list: &[LinuxIdMapping]) -> Option<String> {
    if list.is_empty() || list.len() > MOST {
        return Some(format!("must have 1 to {MOST} entries in a user namespace"));
    }
    let end = |first: u32, map: &LinuxIdMapping| first.checked_add(map.size());
    let bad = |map: &&LinuxIdMapping| {
        map.size() == 0 || end(map.host_id(), map).is_none() || end(map.container_id(), map).is_none()
    };
    if let Some(map) = list.iter().find(bad) {
        return Some(format!("maps {} ids from {}; give a size that fits", map.size(), map.container_id()));
    }
    let overlap =
        |a: u32, b: u32, x: &LinuxIdMapping, y: &LinuxIdMapping| a < b + y.size() && b < a + x.size();
    for (index, one) in list.iter().enumerate() {
        let twice = list[index + 1..].iter().any(|other| {
            overlap(one.container_id(), other.container_id(), one, other)
                || overlap(one.host_id(), other.host_id(), one, other)
        });
        if twice {
            return Some(format!("maps ids twice (the entry from {}); separate them", one.container_id()));
        }
    }
    if host(list, 0).is_none() {
        return Some("must map the container's id 0: its first process begins as root there".to_owned());
    }
    None
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn spec(user: bool, uid: &Value, change: impl FnOnce(&mut Value)) -> Spec {
        let mut config = json!({
            "ociVersion": "1.0.2",
            "process": {"user": {"uid": 33, "gid": 33}, "args": ["true"], "cwd": "/"},
            "root": {"path": "rootfs"},
            "linux": {
                "namespaces": if user { json!([{"type": "user"}]) } else { json!([]) },
                "uidMappings": uid,
                "gidMappings": [{"containerID": 0, "hostID": 100_000, "size": 65536}],
            }
        });
        change(&mut config);
        serde_json::from_value(config).unwrap()
    }

    fn range(container: u32, host: u32, size: u32) -> Value {
        json!({"containerID": container, "hostID": host, "size": size})
    }

    #[test]
    fn a_good_mapping_translates() {
        let spec = spec(true, &json!([range(0, 100_000, 1000), range(1000, 5000, 1)]), |_| {});
        assert_eq!(refusal(&spec), None);
        let user = UserNamespace::of(&spec).unwrap();
        assert_eq!((user.uid(33), user.uid(1000), user.uid(1001)), (Some(100_033), Some(5000), None));
        assert_eq!(user.root(), Some((100_000, 100_000)));
        assert!(user.covers(5000, 165_535) && !user.covers(0, 0) && !user.covers(5001, 100_000));
    }

    #[test]
    fn what_cannot_be_mapped_is_named() {
        let whole = json!([range(0, 100_000, 65536)]);
        let of = |uid: &Value| refusal(&spec(true, uid, |_| {})).unwrap();
        assert!(of(&json!([])).contains("uidMappings must have"));
        assert!(of(&json!([range(1, 100_000, 100)])).contains("id 0"));
        assert!(of(&json!([range(0, 100_000, 0)])).contains("size"));
        assert!(of(&json!([range(0, u32::MAX, 2)])).contains("size"));
        assert!(of(&json!([range(0, 1, 100), range(50, 5000, 10)])).contains("twice"));
        assert!(of(&json!([range(0, 1, 100), range(100, 50, 10)])).contains("twice"));
        assert!(of(&json!([range(0, 100_000, 10)])).contains("process.user.uid 33"));
        let groups = |config: &mut Value| config["process"]["user"]["additionalGids"] = json!([70_000]);
        assert!(refusal(&spec(true, &whole, groups)).unwrap().contains("group 70000"));
        let without = refusal(&spec(false, &whole, |_| {})).unwrap();
        assert!(without.contains("uidMappings needs"), "{without}");
    }
}
