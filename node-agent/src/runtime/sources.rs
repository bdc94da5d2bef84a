//! What a sandbox takes from the host's file tree: its root directory and the sources of bind mounts.
//!
//! The agent opens them, in the first process's mount namespace: that process may be in a user namespace, whose root
//! must not be able to walk through the host's directories and need not be.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use oci_spec::runtime::LinuxNamespaceType;

use super::bundle::is_bind;
use super::init::{has, open_inside};
use super::sandbox::Sandbox;

/// Their paths: the root directory, then those of bind mounts in their order.
pub(super) fn paths(sandbox: &Sandbox) -> Vec<PathBuf> {
    if !has(&sandbox.spec, LinuxNamespaceType::Mount) {
        return Vec::new();
    }
    let binds = sandbox.spec.mounts().iter().flatten().filter(|mount| is_bind(mount));
    let sources = binds.map(|mount| sandbox.bundle.join(mount.source().as_deref().unwrap_or(Path::new(""))));
    std::iter::once(sandbox.rootfs.clone()).chain(sources).collect()
}

/// Opens them as mounts of process `pid`.
///
/// # Errors
/// With the path in its text.
pub(super) fn open(sandbox: &Sandbox, pid: i32) -> io::Result<Vec<OwnedFd>> {
    let root = File::open(format!("/proc/{pid}/root"))?;
    let open = |path: PathBuf| {
        open_inside(&root, &path)
            .map_err(|error| io::Error::new(error.kind(), format!("cannot open {}: {error}", path.display())))
    };
    paths(sandbox).into_iter().map(open).collect()
}
