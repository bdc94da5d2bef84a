//! What a checkpoint says about the namespaces that a tree lives in, so that they can be rebuilt.

use std::collections::{BTreeMap, BTreeSet};
use std::env::consts::ARCH;
use std::fs;
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use engine::proc::mountinfo::{self, Mount};
use oci_spec::runtime::Spec;
use serde::{Deserialize, Serialize};
use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::archive::Sums;

/// Version of [`Description`].
const VERSION: u32 = 2;

/// File systems that are made anew; everything else comes from outside.
const FRESH: [&str; 5] = ["proc", "sysfs", "tmpfs", "devpts", "mqueue"];

/// `description.json` of a checkpoint.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Description {
    version: u32,
    /// The processor's architecture, as [`std::env::consts::ARCH`] calls it.
    arch: String,
    /// SHA-256 of all this with an empty text here.
    #[serde(default)]
    own_sum: String,
    /// The files beside it.
    #[serde(default)]
    sums: Sums,
    /// The root process in its own pid namespace.
    pub(super) root: i32,
    /// Namespaces of its own, as the OCI configuration calls them; empty for a tree of the host.
    pub(super) namespaces: Vec<String>,
    hostname: String,
    domainname: String,
    /// Its root directory is the host's.
    host_root: bool,
    mounts: Vec<Place>,
}

/// A mount of its own.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Place {
    point: PathBuf,
    fs_type: String,
    source: String,
    options: Vec<String>,
    /// Set when it comes from outside: the name that it has on the command line.
    key: Option<String>,
}

/// The namespaces of process `pid` that are not this process's, in the words of the OCI configuration.
pub(super) fn own_namespaces(pid: i32) -> anyhow::Result<Vec<&'static str>> {
    const KINDS: [(&str, &str); 8] = [
        ("pid", "pid"),
        ("mnt", "mount"),
        ("net", "network"),
        ("uts", "uts"),
        ("ipc", "ipc"),
        ("cgroup", "cgroup"),
        ("user", "user"),
        ("time", "time"),
    ];
    let mut own = Vec::new();
    for (file, name) in KINDS {
        let read = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/{file}"));
        let theirs = read(&pid.to_string()).with_context(|| format!("cannot look at process {pid}"))?;
        if theirs != read("self")? {
            own.push(name);
        }
    }
    Ok(own)
}

impl Description {
    /// Describes a live tree. `external` names mounts that come from outside: mount point to key.
    pub(super) fn of(pid: i32, external: &BTreeMap<PathBuf, String>) -> anyhow::Result<Self> {
        let namespaces = own_namespaces(pid)?;
        if let Some(kind) = namespaces.iter().find(|kind| matches!(**kind, "user" | "time")) {
            bail!(
                "process {pid} has a {kind} namespace of its own, which cannot be rebuilt yet; start it without one"
            );
        }
        if !namespaces.is_empty() && !namespaces.contains(&"pid") {
            bail!(
                "process {pid} has its own {} but shares the host's pid namespace: such a tree cannot be rebuilt; \
                 start it in a pid namespace of its own (unshare --pid --fork)",
                namespaces.join(", ")
            );
        }
        let own = |kind: &str| namespaces.contains(&kind);
        if own("network") {
            links(pid)?;
        }
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let inner = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
        let inner = inner.and_then(|pids| pids.split_whitespace().last()?.parse().ok());
        let root = inner.with_context(|| format!("/proc/{pid}/status has no NSpid line"))?;
        if own("pid") && root != 1 {
            bail!(
                "process {pid} is not the first one of its pid namespace (it is {root} there); take the namespace's process 1"
            );
        }
        let (hostname, domainname) = if own("uts") { names(pid)? } else { (String::new(), String::new()) };
        let identity = |path: &str| fs::metadata(path).map(|meta| (meta.dev(), meta.ino()));
        let host_root = identity(&format!("/proc/{pid}/root/."))? == identity("/")?;
        let mounts = if own("mount") { mounts(pid, host_root, external)? } else { Vec::new() };
        Ok(Self {
            version: VERSION,
            arch: ARCH.to_owned(),
            own_sum: String::new(),
            sums: Sums::new(),
            root,
            namespaces: namespaces.into_iter().map(str::to_owned).collect(),
            hostname,
            domainname,
            host_root,
            mounts,
        })
    }

    /// Completes it with the sums of the files beside it.
    pub(super) fn seal(&mut self, sums: Sums) -> anyhow::Result<()> {
        self.sums = sums;
        self.own_sum = self.sum()?;
        Ok(())
    }

    /// The sums of the files beside it.
    pub(super) fn sums(&self) -> &Sums {
        &self.sums
    }

    fn sum(&self) -> anyhow::Result<String> {
        let bare = Self { own_sum: String::new(), ..self.clone() };
        let digest = Sha256::digest(serde_json::to_vec(&bare)?);
        Ok(digest.iter().map(|byte| format!("{byte:02x}")).collect())
    }

    /// Understands `description.json`.
    pub(super) fn parse(bytes: &[u8]) -> anyhow::Result<Self> {
        /// What every version has.
        #[derive(Deserialize)]
        struct Head {
            version: u32,
        }
        let Head { version } = serde_json::from_slice(bytes)?;
        if version != VERSION {
            bail!("it has version {version}, this program reads {VERSION}");
        }
        let found: Self = serde_json::from_slice(bytes)?;
        if found.own_sum != found.sum()? {
            bail!("its sum is another one than it says: it was changed after it was written");
        }
        if found.arch != ARCH {
            bail!("the checkpoint is of a {} machine, this is a {ARCH}", found.arch);
        }
        Ok(found)
    }

    /// The directory that becomes the tree's root.
    pub(super) fn rootfs(&self, given: Option<&Path>) -> anyhow::Result<PathBuf> {
        match given {
            Some(given) => {
                std::path::absolute(given).with_context(|| format!("cannot use {}", given.display()))
            }
            None if self.host_root || !self.namespaces.iter().any(|kind| kind == "mount") => {
                Ok(PathBuf::from("/"))
            }
            None => bail!(
                "the tree has a root directory of its own; say which directory becomes it with --root DIR"
            ),
        }
    }

    /// Every key of a mount from outside, each at its own mount point: where the live tree has it.
    pub(super) fn external_keys(&self) -> BTreeMap<String, PathBuf> {
        self.mounts.iter().filter_map(|place| Some((place.key.clone()?, place.point.clone()))).collect()
    }

    /// The configuration from which the sandbox is built. `external` says where each key's mount is here.
    pub(super) fn spec(&self, external: &BTreeMap<String, PathBuf>) -> anyhow::Result<Spec> {
        let mut mounts = Vec::new();
        for place in &self.mounts {
            let mount = match &place.key {
                None => json!({"destination": place.point, "type": place.fs_type, "source": place.source,
                    "options": place.options}),
                Some(key) => {
                    let source = external.get(key).with_context(|| {
                        format!(
                            "the mount on {} ({}) comes from outside of the tree; say where it is here with \
                             --external-mount {key}:PATH",
                            place.point.display(),
                            place.fs_type
                        )
                    })?;
                    let mut options = place.options.clone();
                    options.push("rbind".to_owned());
                    json!({"destination": place.point, "type": "bind", "source": source, "options": options})
                }
            };
            mounts.push(mount);
        }
        let namespaces: Vec<_> = self.namespaces.iter().map(|kind| json!({"type": kind})).collect();
        let config = json!({
            "ociVersion": "1.0.2",
            "hostname": self.hostname,
            "domainname": self.domainname,
            "mounts": mounts,
            "linux": {"namespaces": namespaces},
        });
        Ok(serde_json::from_value(config)?)
    }
}

/// A network namespace with more than a loopback belongs to a container of the agent.
fn links(pid: i32) -> anyhow::Result<()> {
    let text = fs::read_to_string(format!("/proc/{pid}/net/dev"))?;
    let names = text.lines().skip(2).filter_map(|line| Some(line.split_once(':')?.0.trim()));
    match names.into_iter().find(|name| *name != "lo") {
        Some(name) => bail!(
            "the network namespace of process {pid} has the interface {name}, which a checkpoint does not rebuild; \
             move the container with the agent, or remove the interface"
        ),
        None => Ok(()),
    }
}

fn names(pid: i32) -> anyhow::Result<(String, String)> {
    use std::os::fd::AsFd as _;
    let ns = sys::ns::open(pid, sys::ns::Kind::Uts)?;
    let read = || -> anyhow::Result<(String, String)> {
        sys::ns::enter(ns.as_fd(), sys::ns::Kind::Uts)?;
        let name = rustix::system::uname();
        Ok((name.nodename().to_string_lossy().into_owned(), name.domainname().to_string_lossy().into_owned()))
    };
    // On a thread of its own, which takes the namespace along when it ends.
    let (host, domain) = std::thread::scope(|scope| {
        scope.spawn(read).join().unwrap_or_else(|_| bail!("cannot read the host name of process {pid}"))
    })?;
    Ok((host, domain))
}

fn mounts(pid: i32, host_root: bool, external: &BTreeMap<PathBuf, String>) -> anyhow::Result<Vec<Place>> {
    let read = |pid: &str| -> anyhow::Result<Vec<Mount>> {
        let path = format!("/proc/{pid}/mountinfo");
        Ok(mountinfo::parse(&fs::read(&path).with_context(|| format!("cannot read {path}"))?)?)
    };
    let key = |mount: &Mount| (mount.point.clone(), mount.device, mount.root.clone(), mount.fs_type.clone());
    let ours: BTreeSet<_> = if host_root { read("self")?.iter().map(key).collect() } else { BTreeSet::new() };
    let mut places = Vec::new();
    let mut unused: BTreeSet<&PathBuf> = external.keys().collect();
    for mount in read(&pid.to_string())? {
        if mount.point == b"/" || ours.contains(&key(&mount)) {
            continue;
        }
        let point = PathBuf::from(std::ffi::OsString::from_vec(mount.point.clone()));
        let named = external.get(&point);
        unused.remove(&point);
        let outside = named.is_some() || !FRESH.contains(&mount.fs_type.as_str()) || mount.root != b"/";
        let flags = mount.options.split(',').filter(|option| !matches!(*option, "rw"));
        let mut options: Vec<String> = flags.map(str::to_owned).collect();
        if !outside && matches!(mount.fs_type.as_str(), "tmpfs" | "devpts") {
            let data = mount.super_options.split(',');
            let kept = ["size=", "nr_inodes=", "mode=", "uid=", "gid=", "ptmxmode="];
            options.extend(
                data.filter(|option| kept.iter().any(|key| option.starts_with(key))).map(str::to_owned),
            );
            if mount.fs_type == "devpts" {
                options.push("newinstance".to_owned());
            }
        }
        places.push(Place {
            key: outside.then(|| named.cloned().unwrap_or_else(|| point.display().to_string())),
            source: String::from_utf8_lossy(&mount.source).into_owned(),
            fs_type: mount.fs_type,
            point,
            options,
        });
    }
    if let Some(path) = unused.first() {
        bail!("--external-mount names {}, where the tree has no mount of its own", path.display());
    }
    Ok(places)
}
