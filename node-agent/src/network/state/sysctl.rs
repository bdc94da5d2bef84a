//! Settings under /proc/sys/net of one network namespace: those that differ from a fresh namespace's, and all of its
//! interfaces' (their defaults depend on the order in which things were set).

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::Path;

use engine::proc::mountinfo::{self, Mount};
use engine::proc::status;
use nix::sys::resource::{Resource, getrlimit};
use serde::{Deserialize, Serialize};
use sys::ns::NetnsThread;

/// Where they are.
const ROOT: &str = "/proc/sys/net";
/// Deepest directory, counted from there: ipv4/conf/eth0.
const DEPTH: usize = 5;

/// A setting.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setting {
    /// Its text, fields separated by one space.
    pub value: String,
    /// It differs from what a fresh namespace has: a target that lacks it cannot take the container.
    pub own: bool,
}

/// Settings of interfaces: `ipv4/conf/eth0/rp_filter` gives `ipv4/conf/` and the rest.
fn of_interface(name: &str) -> Option<(&str, &str)> {
    let mut parts = name.splitn(4, '/');
    let (family, group, interface, setting) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    if !matches!((family, group), ("ipv4" | "ipv6", "conf" | "neigh") | ("mpls", "conf")) {
        return None;
    }
    let start = family.len() + 1 + group.len() + 1;
    Some((name.get(..start)?, name.get(start + interface.len() + 1..)?)).filter(|_| !setting.is_empty())
}

/// Fields separated by one space: the kernel uses tabs here and there.
#[must_use]
pub fn plain(text: &str) -> String {
    text.split_ascii_whitespace().collect::<Vec<_>>().join(" ")
}

/// The settings of the calling thread's network namespace that can be written.
#[must_use]
pub fn list() -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    walk(Path::new(ROOT), DEPTH, &mut found);
    found
}

fn walk(directory: &Path, depth: usize, found: &mut BTreeMap<String, String>) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    for entry in entries.filter_map(Result::ok) {
        let path = entry.path();
        let Ok(kind) = entry.file_type() else { continue };
        if kind.is_dir() {
            if depth > 0 {
                walk(&path, depth - 1, found);
            }
            continue;
        }
        // Those that only order something (route/flush) cannot be read; those of the host cannot be written here.
        let mode = entry.metadata().map_or(0, |meta| meta.permissions().mode());
        if mode & 0o200 == 0 || mode & 0o400 == 0 {
            continue;
        }
        let name = path.strip_prefix(ROOT).ok().and_then(Path::to_str);
        if let (Some(name), Ok(text)) = (name, fs::read_to_string(&path)) {
            found.insert(name.to_owned(), plain(&text));
        }
    }
}

/// What a fresh network namespace of this kernel has.
///
/// # Errors
/// When none can be made.
pub fn fresh() -> sys::Result<BTreeMap<String, String>> {
    NetnsThread::start_new()?.run(list)
}

/// What is carried of the settings `now`, when a fresh namespace has `fresh`.
#[must_use]
pub fn carried(
    now: &BTreeMap<String, String>,
    fresh: &BTreeMap<String, String>,
) -> BTreeMap<String, Setting> {
    now.iter()
        .filter_map(|(name, value)| {
            let interface = of_interface(name);
            let usual = fresh.get(name).or_else(|| {
                let (group, setting) = interface?;
                fresh.get(&format!("{group}default/{setting}"))
            });
            let own = usual != Some(value);
            (own || interface.is_some()).then(|| (name.clone(), Setting { value: value.clone(), own }))
        })
        .collect()
}

/// Settings that are read again and again, their files open as far as the process may have that many.
#[derive(Debug, Default)]
pub struct Watched(Vec<(String, Option<File>)>);

impl Watched {
    /// These, in the calling thread's network namespace.
    #[must_use]
    pub fn open<'a>(names: impl Iterator<Item = &'a String>) -> Self {
        // Most of what the process may open is left to its connections and containers.
        let may = getrlimit(Resource::RLIMIT_NOFILE).map_or(0, |(soft, _)| soft / 4);
        let mut left = usize::try_from(may).unwrap_or(usize::MAX);
        let mut open = |name: &String| {
            left = left.checked_sub(1)?;
            File::open(format!("{ROOT}/{name}")).ok()
        };
        Self(names.map(|name| (name.clone(), open(name))).collect())
    }

    /// These, without keeping their files open.
    #[must_use]
    pub fn by_name<'a>(names: impl Iterator<Item = &'a String>) -> Self {
        Self(names.map(|name| (name.clone(), None)).collect())
    }

    /// What they are now. One that is gone is left out.
    #[must_use]
    pub fn read(&self) -> BTreeMap<String, String> {
        let mut buffer = [0; 4096];
        let mut now = BTreeMap::new();
        for (name, file) in &self.0 {
            // One that does not fit the buffer is read by its name, as all are without a file.
            let length =
                file.as_ref().and_then(|file| file.read_at(&mut buffer, 0).ok()).unwrap_or(buffer.len());
            let text = match buffer.get(..length).filter(|_| length < buffer.len()) {
                Some(bytes) => String::from_utf8_lossy(bytes).into_owned(),
                None => match fs::read_to_string(format!("{ROOT}/{name}")) {
                    Ok(text) => text,
                    Err(_) => continue,
                },
            };
            now.insert(name.clone(), plain(&text));
        }
        now
    }
}

/// Whether nobody in the container with root process `pid` can change a setting: no mount of procfs shows them writable,
/// and none of its processes can have a capability to mount or to configure links. False when that cannot be told.
#[must_use]
pub fn is_sealed(pid: i32) -> bool {
    const CAP_NET_ADMIN: u32 = 12;
    const CAP_SYS_ADMIN: u32 = 21;
    const BOUNDING: usize = 3;
    let (Ok(status), Ok(mounts)) = (status::read(pid), mountinfo::read(pid)) else { return false };
    status.caps[BOUNDING] & (1 << CAP_NET_ADMIN | 1 << CAP_SYS_ADMIN) == 0 && are_sealed(&mounts)
}

fn are_sealed(mounts: &[Mount]) -> bool {
    let is_read_only = |mount: &Mount| mount.options.split(',').any(|option| option == "ro");
    let procfs = || mounts.iter().filter(|mount| mount.fs_type == "proc");
    procfs().all(|mount| match &mount.root[..] {
        // A later mount over its directory of settings hides them.
        b"/" => {
            let settings = [&mount.point[..], b"/sys"].concat();
            is_read_only(mount) || procfs().any(|over| over.point == settings && is_read_only(over))
        }
        root if root.starts_with(b"/sys/net") || b"/sys" == root => is_read_only(mount),
        // Another part of it: a masked file, or a directory without settings of the network.
        root => !b"/sys/net".starts_with(root),
    })
}

/// In which order settings are written: `all` and `default` change others along.
#[must_use]
pub fn order(name: &str) -> u8 {
    match name.split('/').nth(2) {
        Some("all") => 0,
        Some("default") => 1,
        _ => 2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_of_interfaces_are_told_from_others() {
        assert_eq!(of_interface("ipv4/conf/eth0/rp_filter"), Some(("ipv4/conf/", "rp_filter")));
        assert_eq!(of_interface("ipv6/neigh/a.b/gc_stale_time"), Some(("ipv6/neigh/", "gc_stale_time")));
        for other in ["ipv4/tcp_rmem", "ipv4/conf/eth0", "core/somaxconn", "ipv4/route/x/y"] {
            assert_eq!(of_interface(other), None, "{other}");
        }
    }

    #[test]
    fn settings_are_sealed_by_read_only_mounts_alone() {
        let mount = |root: &str, point: &str, options: &str| Mount {
            id: 0,
            parent: 0,
            device: (0, 0),
            root: root.as_bytes().to_vec(),
            point: point.as_bytes().to_vec(),
            options: options.to_owned(),
            shared: None,
            master: None,
            unbindable: false,
            fs_type: "proc".to_owned(),
            source: b"proc".to_vec(),
            super_options: "rw".to_owned(),
        };
        let all = mount("/", "/proc", "rw,nosuid");
        let (sealed, open) = (mount("/sys", "/proc/sys", "ro,nosuid"), mount("/sys", "/proc/sys", "rw"));
        assert!(!are_sealed(std::slice::from_ref(&all)));
        assert!(are_sealed(&[
            all.clone(),
            sealed.clone(),
            mount("/sysrq-trigger", "/proc/sysrq-trigger", "rw")
        ]));
        assert!(!are_sealed(&[all.clone(), open]));
        assert!(!are_sealed(&[all.clone(), sealed.clone(), mount("/", "/mnt", "rw")]));
        assert!(!are_sealed(&[all.clone(), sealed.clone(), mount("/sys/net/ipv4", "/mnt", "rw")]));
        assert!(are_sealed(&[mount("/", "/proc", "ro")]));
        assert!(are_sealed(&[]));
    }

    #[test]
    fn only_what_differs_is_carried_and_all_of_interfaces() {
        let map = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
            pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
        };
        let fresh =
            map(&[("core/somaxconn", "4096"), ("ipv4/conf/default/rp_filter", "0"), ("ipv4/tcp_sack", "1")]);
        let now = map(&[
            ("core/somaxconn", "128"),
            ("ipv4/conf/eth0/rp_filter", "0"),
            ("ipv4/conf/eth1/rp_filter", "2"),
            ("ipv4/tcp_sack", "1"),
            ("ipv4/new", "1"),
        ]);
        let carried = carried(&now, &fresh);
        let own: Vec<(&str, bool)> = carried.iter().map(|(name, s)| (name.as_str(), s.own)).collect();
        let expected = [
            ("core/somaxconn", true),
            ("ipv4/conf/eth0/rp_filter", false),
            ("ipv4/conf/eth1/rp_filter", true),
            ("ipv4/new", true),
        ];
        assert_eq!(own, expected);
    }
}
