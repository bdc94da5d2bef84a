//! Files of the container, opened by the agent.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use image::Pid;
use image::namespaces::split_path;
use image::shape::FileIdentity;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};

use sys::prctl::own::FileUser;

use super::error::TargetError;
use super::nested::{NestedMount, NestedMounts};
use super::skeleton::lost;
use crate::proc::idmap::IdMaps;

/// The container's root directory, as its root process sees it.
#[derive(Debug)]
pub(crate) struct RootFs {
    root: OwnedFd,
    /// Mount namespaces below the container's.
    nested: NestedMounts,
    /// User and group here of the container's root, when it has a user namespace.
    owner: Option<(u32, u32)>,
}

impl RootFs {
    /// The root directory of a process.
    pub(crate) fn of(host: i32, nested: NestedMounts) -> Result<Self, TargetError> {
        let path = format!("/proc/{host}/root");
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let root = nix::fcntl::open(path.as_str(), flags, nix::sys::stat::Mode::empty());
        let ids = IdMaps::read(host).map_err(|error| lost(0, error.to_string()))?;
        Ok(Self {
            root: root.map_err(TargetError::errno(format!("open {path}")))?,
            nested,
            owner: ids.root(),
        })
    }

    /// While the answer lives, what this thread makes belongs to the container's root: its file systems take
    /// nothing from users that its user namespace does not have.
    pub(crate) fn make_as_owner(&self) -> Result<Option<FileUser>, TargetError> {
        let user = self.owner.map(|(uid, gid)| FileUser::set(uid, gid)).transpose();
        user.map_err(TargetError::errno("make files as the container's root"))
    }

    /// A mount namespace below the container's.
    pub(crate) fn nested(&self, pid: Pid, space: u64) -> Result<Arc<NestedMount>, TargetError> {
        self.nested.get(space).ok_or_else(|| lost(pid, format!("mount namespace {space} was not made")))
    }

    /// Whether `entered` is what has this number now.
    pub(crate) fn is_nested(&self, space: u64, entered: Option<&Arc<NestedMount>>) -> bool {
        match (self.nested.get(space), entered) {
            (Some(there), Some(entered)) => Arc::ptr_eq(&there, entered),
            (_, entered) => space == 0 && entered.is_none(),
        }
    }

    /// The container's root directory.
    pub(crate) fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// Forgets the namespaces below: their processes hold them.
    pub(crate) fn forget_nested(&self) {
        self.nested.clear();
    }

    /// Opens a path, as [`image::namespaces::path_in`] writes it, without ever leaving the container's root directory.
    pub(crate) fn open(&self, pid: Pid, path: &str, flags: OFlag) -> Result<File, TargetError> {
        let how = OpenHow::new().flags(flags | OFlag::O_CLOEXEC).resolve(ResolveFlag::RESOLVE_IN_ROOT);
        let (space, inside) = split_path(path.as_bytes());
        let nested = (space != 0).then(|| self.nested(pid, space)).transpose()?;
        let root = nested.as_ref().map_or(self.root.as_fd(), |nested| nested.root.as_fd());
        match openat2(root, if inside.is_empty() { b"/".as_slice() } else { inside }, how) {
            Ok(fd) => Ok(File::from(fd)),
            Err(errno) => Err(TargetError::Open { pid, path: path.to_owned(), source: errno.into() }),
        }
    }

    /// Opens a file that must be the one that the source had.
    pub(crate) fn open_same(&self, pid: Pid, file: &FileIdentity, flags: OFlag) -> Result<File, TargetError> {
        let opened = self.open(pid, &file.path, flags)?;
        verify(pid, file, &opened)?;
        Ok(opened)
    }
}

/// Compares a file with what the source had under its name.
pub(crate) fn verify(pid: Pid, file: &FileIdentity, opened: &File) -> Result<(), TargetError> {
    let meta =
        opened.metadata().map_err(|source| TargetError::Open { pid, path: file.path.clone(), source })?;
    let mtime_ns = meta.mtime() * 1_000_000_000 + meta.mtime_nsec();
    let difference = if meta.size() != file.size {
        format!("{} bytes here, {} there", meta.size(), file.size)
    } else if mtime_ns != file.mtime_ns {
        format!("modified at {mtime_ns} ns here, {} ns there", file.mtime_ns)
    } else {
        return Ok(());
    };
    Err(TargetError::OtherFile { pid, path: file.path.clone(), difference })
}
