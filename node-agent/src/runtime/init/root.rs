//! The root directory: made a mount of its own, entered, and protected.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use oci_spec::runtime::{LinuxNamespaceType, Spec};
use rustix::fs::CWD;
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind, mount_bind_recursive, mount_change,
    mount_remount, unmount,
};
use rustix::process::{fchdir, pivot_root};

use super::{Context as _, InitError, has, path, refuse};
use crate::runtime::sandbox::Sandbox;

/// Cuts the propagation of mounts to the host and makes the root directory, open as `root`, a mount; answers that one.
pub(super) fn prepare(sandbox: &Sandbox, root: OwnedFd) -> Result<OwnedFd, InitError> {
    let rootfs = &sandbox.rootfs;
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", private).step(|| "make mounts private".to_owned())?;
    // The host's own root is a mount already, and the process is in it.
    if is_host(rootfs) {
        return Ok(root);
    }
    let what = || format!("bind {}", rootfs.display());
    let here = Path::new("");
    let flags = sys::mount::OPEN_TREE_CLONE | sys::mount::AT_RECURSIVE;
    let tree = sys::mount::open_tree(Some(root.as_fd()), here, flags).step(what)?;
    sys::mount::move_mount(tree.as_fd(), Some(root.as_fd()), here).step(what)?;
    Ok(tree)
}

/// Makes it the root and lets go of the host's.
pub(super) fn enter(sandbox: &Sandbox, root: OwnedFd) -> Result<(), InitError> {
    if is_host(&sandbox.rootfs) {
        return Ok(());
    }
    fchdir(&root).step(|| "enter the root".to_owned())?;
    // Both on the same directory: the old root is then mounted over the new one and goes by unmounting `.`.
    pivot_root(".", ".").step(|| "pivot the root".to_owned())?;
    unmount(".", UnmountFlags::DETACH).step(|| "detach the host's root".to_owned())?;
    std::env::set_current_dir("/").step(|| "enter /".to_owned())?;
    drop(root);
    let spec = &sandbox.spec;
    if let Some(mode) = spec.linux().as_ref().and_then(|linux| linux.rootfs_propagation().as_deref()) {
        let flags = match mode {
            "private" | "rprivate" => return read_only(spec),
            "slave" | "rslave" => MountPropagationFlags::DOWNSTREAM,
            "unbindable" => MountPropagationFlags::UNBINDABLE,
            other => return refuse(format!("set rootfsPropagation {other}"), "use private or slave"),
        };
        mount_change("/", flags).step(|| format!("set rootfsPropagation {mode}"))?;
    }
    read_only(spec)
}

fn is_host(rootfs: &Path) -> bool {
    rootfs == Path::new("/")
}

fn read_only(spec: &Spec) -> Result<(), InitError> {
    if spec.root().as_ref().and_then(oci_spec::runtime::Root::readonly) == Some(true) {
        let what = || "make the root read-only".to_owned();
        let kept = kept(spec, Path::new("/")).step(what)?;
        mount_remount("/", MountFlags::BIND | MountFlags::RDONLY | kept, "").step(what)?;
    }
    Ok(())
}

/// Hides masked paths and makes read-only ones so. Both may be missing.
pub(super) fn protect(spec: &Spec) -> Result<(), InitError> {
    let Some(linux) = spec.linux() else { return Ok(()) };
    for item in linux.readonly_paths().iter().flatten() {
        let what = || format!("make {item} read-only");
        match mount_bind_recursive(item.as_str(), item.as_str()) {
            Err(error) if missing(error) => continue,
            result => result.step(what)?,
        }
        let flags = MountFlags::BIND | MountFlags::RDONLY | kept(spec, Path::new(item)).step(what)?;
        mount_remount(item.as_str(), flags, "").step(what)?;
    }
    for item in linux.masked_paths().iter().flatten() {
        let what = || format!("mask {item}");
        let file = match path::open(CWD, Path::new(item)) {
            Err(error) if missing(error) => continue,
            result => result.step(what)?,
        };
        if path::is_directory(&file).step(what)? {
            mount("tmpfs", item.as_str(), "tmpfs", MountFlags::RDONLY, Some(c"size=0k")).step(what)?;
        } else {
            mount_bind("/dev/null", item.as_str()).step(what)?;
        }
    }
    Ok(())
}

/// Flags that a remount must not lose. In a user namespace it may not: the kernel refuses it.
pub(super) fn kept(spec: &Spec, path: &Path) -> io::Result<MountFlags> {
    use rustix::fs::StatVfsMountFlags as Vfs;
    let now = rustix::fs::statvfs(path)?.f_flag;
    let pairs = [
        (Vfs::NOSUID, MountFlags::NOSUID),
        (Vfs::NODEV, MountFlags::NODEV),
        (Vfs::NOEXEC, MountFlags::NOEXEC),
        (Vfs::NOATIME, MountFlags::NOATIME),
        (Vfs::NODIRATIME, MountFlags::NODIRATIME),
        (Vfs::RELATIME, MountFlags::RELATIME),
    ];
    let locked = has(spec, LinuxNamespaceType::User).then_some((Vfs::RDONLY, MountFlags::RDONLY));
    let seen = pairs.into_iter().chain(locked).filter(|(seen, _)| now.contains(*seen));
    Ok(seen.map(|(_, flag)| flag).collect())
}

fn missing(error: rustix::io::Errno) -> bool {
    matches!(error, rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR)
}
