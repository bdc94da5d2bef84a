//! The mounts of the OCI configuration, in its order.

use std::ffi::CString;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxNamespaceType, Mount};
use rustix::mount::{MountFlags, mount, mount_bind, mount_bind_recursive, mount_change, mount_remount};

use super::options::{self, Options};
use super::path::{self, Want};
use super::{Context as _, InitError, has, refuse, root};
use crate::runtime::cgroup::Hierarchy;
use crate::runtime::sandbox::Sandbox;

/// Mounts everything below `root`; `sources` are those of the bind mounts, in their order.
pub(super) fn all(
    sandbox: &Sandbox,
    root: &OwnedFd,
    mut sources: impl Iterator<Item = OwnedFd>,
) -> Result<(), InitError> {
    for item in sandbox.spec.mounts().iter().flatten() {
        one(sandbox, root, item, &mut sources)?;
    }
    Ok(())
}

fn one(
    sandbox: &Sandbox,
    root: &OwnedFd,
    item: &Mount,
    sources: &mut impl Iterator<Item = OwnedFd>,
) -> Result<(), InitError> {
    let options = options::parse(item.options().as_deref().unwrap_or_default());
    let destination = item.destination();
    let kind = item.typ().as_deref().unwrap_or(if options.bind.is_some() { "bind" } else { "none" });
    let what = || format!("mount {kind} on {}", destination.display());
    if let Some(recursive) = options.bind.or((kind == "bind").then_some(false)) {
        let Some(source) = sources.next() else {
            return refuse(what(), "its source did not come");
        };
        return bind(sandbox, root, item, &source, &options, recursive);
    }
    match kind {
        "proc" | "sysfs" | "tmpfs" | "devpts" | "mqueue" => {
            let point = path::make(root, destination, Want::Directory).step(what)?;
            let source = item.source().as_deref().unwrap_or(Path::new(kind));
            file_system(source, &point, kind, options.flags, &options.data).step(what)?;
            propagation(root, destination, &options).step(what)
        }
        "cgroup" | "cgroup2" => cgroup(sandbox, root, destination, &options),
        other => refuse(what(), format!("this runtime mounts no {other}; use a bind mount of it")),
    }
}

fn bind(
    sandbox: &Sandbox,
    root: &OwnedFd,
    item: &Mount,
    source: &OwnedFd,
    options: &Options,
    recursive: bool,
) -> Result<(), InitError> {
    let destination = item.destination();
    let shown = item.source().as_deref().unwrap_or(Path::new("")).display();
    let what = || format!("bind {shown} on {}", destination.display());
    let want = if path::is_directory(source).step(what)? { Want::Directory } else { Want::File };
    let point = path::make(root, destination, want).step(what)?;
    let at = path::name(&point);
    let source = path::name(source);
    if recursive { mount_bind_recursive(&source, &at) } else { mount_bind(&source, &at) }.step(what)?;
    // The old descriptor names the directory below the new mount: look it up again.
    let mounted = path::open(root, destination).step(what)?;
    let at = path::name(&mounted);
    if !options.flags.is_empty() {
        let flags = options.flags | MountFlags::BIND | root::kept(&sandbox.spec, &at).step(what)?;
        mount_remount(&at, flags, "").step(what)?;
    }
    propagation(root, destination, options).step(what)
}

fn propagation(root: &OwnedFd, destination: &Path, options: &Options) -> rustix::io::Result<()> {
    for flags in &options.propagation {
        mount_change(path::name(&path::open(root, destination)?), *flags)?;
    }
    Ok(())
}

/// The container's own groups: cgroup2 at the destination, or a directory for each hierarchy when v1
/// hierarchies are mounted beside it, as the host shows them.
fn cgroup(sandbox: &Sandbox, root: &OwnedFd, destination: &Path, options: &Options) -> Result<(), InitError> {
    let what = || format!("mount cgroup on {}", destination.display());
    if !has(&sandbox.spec, LinuxNamespaceType::Cgroup) {
        return refuse(what(), "it needs a cgroup namespace: add {\"type\": \"cgroup\"} to linux.namespaces");
    }
    let point = path::make(root, destination, Want::Directory).step(what)?;
    let [only] = sandbox.hierarchies.as_slice() else {
        file_system(
            Path::new("tmpfs"),
            &point,
            "tmpfs",
            MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC,
            "mode=755",
        )
        .step(what)?;
        for hierarchy in &sandbox.hierarchies {
            let at: PathBuf = destination.join(hierarchy.mount.file_name().unwrap_or_default());
            let what = || format!("mount cgroup on {}", at.display());
            let point = path::make(root, &at, Want::Directory).step(what)?;
            hierarchy_at(hierarchy, &point, options.flags).step(what)?;
        }
        if options.flags.contains(MountFlags::RDONLY) {
            let mounted = path::open(root, destination).step(what)?;
            let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
            mount_remount(path::name(&mounted), flags, "mode=755").step(what)?;
        }
        return Ok(());
    };
    hierarchy_at(only, &point, options.flags).step(what)
}

fn hierarchy_at(hierarchy: &Hierarchy, point: &OwnedFd, flags: MountFlags) -> std::io::Result<()> {
    if hierarchy.unified {
        return file_system(Path::new("cgroup2"), point, "cgroup2", flags, "");
    }
    let mut data = hierarchy.controllers.join(",");
    if data.starts_with("name=") {
        data.push_str(",none");
    }
    file_system(Path::new("cgroup"), point, "cgroup", flags, &data)
}

fn file_system(
    source: &Path,
    point: &OwnedFd,
    kind: &str,
    flags: MountFlags,
    data: &str,
) -> std::io::Result<()> {
    let data = CString::new(data)?;
    mount(source, path::name(point), kind, flags, data.as_c_str())?;
    Ok(())
}
