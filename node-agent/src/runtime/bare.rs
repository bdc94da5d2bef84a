//! A sandbox without a container around it: for process trees that are restored from a directory. The same
//! shim and the same first process; no record, no control groups, no link.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use oci_spec::runtime::Spec;

use super::error::RuntimeError;
use super::launch::launch;
use super::name::ContainerName;
use super::paths::ContainerDir;
use super::record::Process;
use super::sandbox::{Exit, Purpose, Sandbox};
use super::status::read_exit;

/// Files of the shim, removed when this is dropped.
#[derive(Debug)]
pub(crate) struct Bare {
    dir: ContainerDir,
    /// The first process, which waits to be filled.
    pub(crate) root: Process,
    /// The engine's way into it.
    pub(crate) channel: Option<OwnedFd>,
    shim: Process,
}

impl Bare {
    /// Builds the namespaces and mounts of `spec` around `rootfs`; loopback is up in a network namespace.
    ///
    /// # Errors
    /// What failed; nothing is left.
    pub(crate) fn build(spec: &Spec, rootfs: &Path) -> Result<Self, RuntimeError> {
        let name = ContainerName::new("restored")?;
        let path = std::env::temp_dir().join(format!("gantry-restore-{}", uuid::Uuid::new_v4()));
        fs::create_dir(&path).map_err(RuntimeError::file("create", &path))?;
        let dir = ContainerDir::at(path);
        let built = Self::launch(&name, &dir, spec, rootfs);
        if built.is_err() {
            let _ = fs::remove_dir_all(dir.root());
        }
        let (root, shim, channel) = built?;
        Ok(Self { dir, root, channel: Some(channel), shim })
    }

    fn launch(
        name: &ContainerName,
        dir: &ContainerDir,
        spec: &Spec,
        rootfs: &Path,
    ) -> Result<(Process, Process, OwnedFd), RuntimeError> {
        let sandbox = Sandbox {
            name: name.to_string(),
            purpose: Purpose::Restore,
            rootfs: rootfs.to_owned(),
            bundle: PathBuf::from("/"),
            log: dir.log(),
            exit: dir.exit(),
            hierarchies: Vec::new(),
            clocks: None,
            spec: spec.clone(),
        };
        let own_network =
            spec.linux().as_ref().and_then(|linux| linux.namespaces().as_ref()).is_some_and(|list| {
                list.iter().any(|ns| ns.typ() == oci_spec::runtime::LinuxNamespaceType::Network)
            });
        let loopback = crate::network::Addressing {
            ip: None,
            mac: crate::network::Mac::derived(name.as_str()),
            gateway: None,
        };
        let network =
            |pid| if own_network { Ok(crate::network::create("", &loopback, None, pid)?) } else { Ok(()) };
        let exe = Path::new("/proc/self/exe");
        let launched = launch(exe, name, dir, &sandbox, None, network)?;
        launched.into_parts().map_err(RuntimeError::file("use", dir.sandbox()))
    }

    /// Waits for the end of the root process; `None` when the shim could not say how it ended.
    ///
    /// # Errors
    /// When the shim's word cannot be read.
    pub(crate) fn wait(&self) -> Result<Option<Exit>, RuntimeError> {
        while self.shim.is_alive() {
            super::lifecycle::wait_for(&self.shim, std::time::Duration::from_secs(3600));
        }
        read_exit(&self.dir.exit())
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(self.dir.root());
    }
}
