//! OCI bundles: reading `config.json` and refusing, by name, what this runtime does not do.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxNamespaceType, Spec};

use super::error::RuntimeError;
use super::userns::{self, UserNamespace};
use super::volumes;

/// Annotation: how the root directory travels, `sync` (default) or `shared`.
pub const ROOTFS_ANNOTATION: &str = "dev.gantry.rootfs";
/// Annotation: what becomes of CPUs and memory nodes that a target lacks: `keep` (default) refuses the move, `widen`
/// leaves them out.
pub const CPUSET_ANNOTATION: &str = "dev.gantry.cpuset";
/// Annotation: the container's default gateway.
pub const GATEWAY_ANNOTATION: &str = "dev.gantry.gateway";

/// A bundle that this runtime can run.
#[derive(Clone, Debug)]
pub struct Bundle {
    /// Its directory, absolute.
    pub path: PathBuf,
    /// The root directory, absolute.
    pub rootfs: PathBuf,
    /// The configuration, with absolute sources of bind mounts.
    pub spec: Spec,
}

impl Bundle {
    /// Reads and checks a bundle.
    ///
    /// # Errors
    /// [`RuntimeError::Config`] or [`RuntimeError::Bundle`]; nothing was made.
    pub fn load(path: &Path) -> Result<Self, RuntimeError> {
        let path = std::path::absolute(path).map_err(RuntimeError::file("resolve", path))?;
        let spec = Spec::load(path.join("config.json"))
            .map_err(|source| RuntimeError::Config { path: path.clone(), source })?;
        let root = spec.root().as_ref().map(|root| root.path().clone());
        let bundle = Self { rootfs: path.join(root.unwrap_or_default()), path, spec };
        bundle.check()
    }

    /// A bundle from a configuration that was accepted elsewhere.
    ///
    /// # Errors
    /// As [`Bundle::load`].
    pub fn from_spec(path: PathBuf, rootfs: PathBuf, spec: Spec) -> Result<Self, RuntimeError> {
        Self { path, rootfs, spec }.check()
    }

    /// The value of an annotation.
    #[must_use]
    pub fn annotation(&self, key: &str) -> Option<&str> {
        self.spec.annotations().as_ref()?.get(key).map(String::as_str)
    }

    fn check(mut self) -> Result<Self, RuntimeError> {
        if let Some(what) = refusal(&self.spec) {
            return Err(RuntimeError::Bundle { path: self.path, what });
        }
        if !self.rootfs.is_dir() {
            let what = format!("root.path {} is not a directory", self.rootfs.display());
            return Err(RuntimeError::Bundle { path: self.path, what });
        }
        if let Some(what) = foreign_root(&self.spec, &self.rootfs) {
            return Err(RuntimeError::Bundle { path: self.path, what });
        }
        let mut mounts = self.spec.mounts().clone().unwrap_or_default();
        for mount in &mut mounts {
            if is_bind(mount) {
                let source = self.path.join(mount.source().clone().unwrap_or_default());
                if !source.exists() {
                    let what = format!("the source {} of a bind mount does not exist here", source.display());
                    return Err(RuntimeError::Bundle { path: self.path, what });
                }
                mount.set_source(Some(source));
            }
        }
        self.spec.set_mounts(Some(mounts));
        if let Some(what) = volumes::refusal(&self.spec, &self.rootfs) {
            return Err(RuntimeError::Bundle { path: self.path, what });
        }
        Ok(self)
    }
}

/// It binds a directory or file of the host.
#[must_use]
pub fn is_bind(mount: &oci_spec::runtime::Mount) -> bool {
    mount.typ().as_deref() == Some("bind")
        || mount.options().iter().flatten().any(|option| option == "bind" || option == "rbind")
}

/// The first thing in a configuration that this runtime does not do, with what to do about it.
fn refusal(spec: &Spec) -> Option<String> {
    let Some(process) = spec.process() else { return Some("process is missing".to_owned()) };
    let Some(linux) = spec.linux() else { return Some("linux is missing".to_owned()) };
    if spec.root().is_none() {
        return Some("root is missing".to_owned());
    }
    if process.args().as_ref().is_none_or(Vec::is_empty) {
        return Some("process.args is empty".to_owned());
    }
    if !process.cwd().is_absolute() {
        return Some("process.cwd must be absolute".to_owned());
    }
    let empty = |text: &Option<String>| text.as_deref().is_none_or(str::is_empty);
    let hooks = spec.hooks().as_ref().is_some_and(|hooks| *hooks != oci_spec::runtime::Hooks::default());
    let refused = [
        ("process.apparmorProfile", !empty(process.apparmor_profile()), "remove it"),
        ("process.selinuxLabel", !empty(process.selinux_label()), "remove it"),
        ("process.ioPriority", process.io_priority().is_some(), "remove it"),
        ("process.scheduler", process.scheduler().is_some(), "remove it"),
        ("hooks", hooks, "remove them"),
        ("linux.intelRdt", linux.intel_rdt().is_some(), "remove it"),
        ("linux.personality", linux.personality().is_some(), "remove it"),
        ("linux.memoryPolicy", linux.memory_policy().is_some(), "remove it"),
        ("linux.timeOffsets", linux.time_offsets().is_some(), "remove them"),
        ("linux.mountLabel", !empty(linux.mount_label()), "remove it"),
        ("linux.netDevices", linux.net_devices().as_ref().is_some_and(|m| !m.is_empty()), "remove them"),
    ];
    let cpuset = spec.annotations().as_ref().and_then(|map| map.get(CPUSET_ANNOTATION));
    if let Some(other) = cpuset.filter(|value| !matches!(value.as_str(), "keep" | "widen")) {
        return Some(format!("annotation {CPUSET_ANNOTATION} is {other:?}; use keep or widen"));
    }
    if let Some((what, _, way_out)) = refused.iter().find(|(_, set, _)| *set) {
        return Some(format!("{what} is not supported; {way_out}"));
    }
    if let Err(what) = super::terminals::ttys(spec) {
        return Some(what);
    }
    namespaces(linux.namespaces().as_deref().unwrap_or_default())
        .or_else(|| userns::refusal(spec))
        .or_else(|| spec.mounts().iter().flatten().find_map(mount))
}

fn namespaces(list: &[oci_spec::runtime::LinuxNamespace]) -> Option<String> {
    const NEEDED: [(LinuxNamespaceType, &str); 5] = [
        (LinuxNamespaceType::Pid, "pid"),
        (LinuxNamespaceType::Mount, "mount"),
        (LinuxNamespaceType::Network, "network"),
        (LinuxNamespaceType::Uts, "uts"),
        (LinuxNamespaceType::Ipc, "ipc"),
    ];
    if let Some(joined) = list.iter().find(|namespace| namespace.path().is_some()) {
        return Some(format!("linux.namespaces joins another {:?} namespace; remove its path", joined.typ()));
    }
    let known = |kind: LinuxNamespaceType| {
        matches!(kind, LinuxNamespaceType::Cgroup | LinuxNamespaceType::User)
            || NEEDED.iter().any(|(needed, _)| *needed == kind)
    };
    if let Some(other) = list.iter().find(|namespace| !known(namespace.typ())) {
        return Some(format!(
            "linux.namespaces asks for {:?}, which is not supported; remove it",
            other.typ()
        ));
    }
    NEEDED.iter().find(|(needed, _)| !list.iter().any(|namespace| namespace.typ() == *needed)).map(
        |(_, name)| {
            format!("linux.namespaces lacks {name}: a container that shares it could not move; add it")
        },
    )
}

/// A root directory that nobody in the container owns: its root could make nothing in it.
fn foreign_root(spec: &Spec, rootfs: &Path) -> Option<String> {
    let user = UserNamespace::of(spec)?;
    let owner = rootfs.metadata().ok()?;
    (!user.covers(owner.uid(), owner.gid())).then(|| {
        let (uid, gid) = user.root().unwrap_or_default();
        format!(
            "root.path {} belongs to {}:{}, which linux.uidMappings and gidMappings do not have; chown it and \
             what is in it to the mapped ids (the container's root is {uid}:{gid})",
            rootfs.display(),
            owner.uid(),
            owner.gid()
        )
    })
}

fn mount(mount: &oci_spec::runtime::Mount) -> Option<String> {
    let place = mount.destination().display();
    if !mount.destination().is_absolute() {
        return Some(format!("the mount destination {place} must be absolute"));
    }
    let mapped =
        |list: &Option<Vec<oci_spec::runtime::LinuxIdMapping>>| list.as_ref().is_some_and(|l| !l.is_empty());
    if mapped(mount.uid_mappings()) || mapped(mount.gid_mappings()) {
        return Some(format!("the mount on {place} maps ids, which is not supported; remove the mappings"));
    }
    None
}
