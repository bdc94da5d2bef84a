//! Paths as the container sees them, and what a file is.

use std::ffi::OsString;
use std::fs::Metadata;
use std::os::fd::OwnedFd;
use std::os::linux::fs::MetadataExt;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::DirEntryExt;
use std::path::PathBuf;
use std::sync::Arc;

use image::namespaces::{path_in, split_path};
use image::shape::FileIdentity;
use nix::fcntl::OFlag;

use super::error::InspectError;
use super::mounts::{self, Spaces};
use crate::proc::ProcError;
use crate::proc::idmap::IdMaps;
use crate::proc::links;

/// Translates what the kernel says about paths into the container's own view.
#[derive(Clone, Debug)]
pub(crate) struct View {
    /// Pid of the tree's root.
    pub(crate) root: i32,
    /// The tree's root directory as this process sees it; empty for `/`.
    prefix: Vec<u8>,
    /// Device of the kernel's own tmpfs, in which memory objects live.
    pub(crate) shmem_dev: u64,
    /// Users and groups of the tree's user namespace.
    pub(crate) ids: IdMaps,
    /// Mount namespaces that processes have beside the container's. Held while somebody looks: a mount is busy then.
    pub(crate) spaces: Arc<Spaces>,
}

/// A file behind a descriptor or a mapping.
#[derive(Clone, Debug)]
pub(crate) struct FileView {
    /// Path in the container, without ` (deleted)`; as [`path_in`] writes it.
    pub(crate) path: Vec<u8>,
    /// What stat(2) says about it.
    pub(crate) metadata: Metadata,
    /// Its name is gone.
    pub(crate) deleted: bool,
}

const DELETED: &[u8] = b" (deleted)";

impl View {
    /// The view of a tree.
    pub(crate) fn new(root: i32) -> Result<Self, InspectError> {
        let mut prefix = links::read(root, "root")?;
        if prefix == b"/" {
            prefix.clear();
        }
        let (shmem_dev, ids) = (shmem_device(root)?, IdMaps::read(root)?);
        Ok(Self { root, prefix, shmem_dev, ids, spaces: Arc::default() })
    }

    /// A path that the kernel gave, as the container sees it.
    pub(crate) fn inside(&self, path: &[u8]) -> Vec<u8> {
        match path.strip_prefix(self.prefix.as_slice()) {
            Some(b"") => b"/".to_vec(),
            Some(rest) if rest.starts_with(b"/") => rest.to_vec(),
            _ => path.to_vec(),
        }
    }

    /// The same, of something on this mount, with its namespace as [`path_in`] writes it. `None`: nobody has asked, because
    /// there is one namespace only.
    pub(crate) fn placed(&self, path: &[u8], mount: Option<i32>) -> Vec<u8> {
        match mount.map_or(0, |mount| self.spaces.of_mount(mount)) {
            0 => self.inside(path),
            space => path_in(space, path),
        }
    }

    /// The mount that a link of /proc/PID leads to, when there are several namespaces.
    pub(crate) fn mount_of(&self, pid: i32, link: &str) -> Result<Option<i32>, ProcError> {
        if self.spaces.is_empty() { Ok(None) } else { mounts::mount_of(pid, link).map(Some) }
    }

    /// What a link of /proc/PID (`fd/3`, `exe`, `map_files/...`) leads to.
    pub(crate) fn file(&self, pid: i32, link: &str) -> Result<FileView, InspectError> {
        self.file_on(pid, link, self.mount_of(pid, link)?)
    }

    /// The same, when its mount is known.
    pub(crate) fn file_on(&self, pid: i32, link: &str, mount: Option<i32>) -> Result<FileView, InspectError> {
        let target = links::read(pid, link)?;
        Ok(self.file_of(&target, links::metadata(pid, link)?, mount))
    }

    /// The same, when all is known.
    pub(crate) fn file_of(&self, target: &[u8], metadata: Metadata, mount: Option<i32>) -> FileView {
        let mut path = self.placed(target, mount);
        let mut deleted = false;
        // " (deleted)" may be the end of a true name: then the name leads to this very file.
        if let Some(name) = path.strip_suffix(DELETED)
            && !self.leads_to(&path, &metadata)
        {
            path = name.to_vec();
            deleted = true;
        }
        FileView { path, metadata, deleted }
    }

    /// Whether a path of the container is this file.
    pub(crate) fn leads_to(&self, path: &[u8], metadata: &Metadata) -> bool {
        self.symlink_metadata(path).is_some_and(|found| links::identity(&found) == links::identity(metadata))
    }

    /// Another name of a file in the directory in which it was deleted, as programs leave it that make a file under one name
    /// and then give it its true one. `known`: one that it had before.
    pub(crate) fn other_name(&self, file: &FileView, known: Option<&str>) -> Option<String> {
        /// More names than this are not looked through.
        const MOST: usize = 10_000;
        if let Some(known) = known.filter(|known| self.leads_to(known.as_bytes(), &file.metadata)) {
            return Some(known.to_owned());
        }
        let end = file.path.iter().rposition(|byte| *byte == b'/')?;
        let directory = &file.path[..=end];
        for entry in std::fs::read_dir(self.host(directory)).ok()?.take(MOST) {
            let entry = entry.ok()?;
            if entry.ino() != file.metadata.st_ino() {
                continue;
            }
            let path = [directory, entry.file_name().as_encoded_bytes()].concat();
            if self.leads_to(&path, &file.metadata) {
                return String::from_utf8(path).ok();
            }
        }
        None
    }

    /// Opens a terminal of the container, without making it anybody's controlling one.
    pub(crate) fn open_terminal(&self, path: &str) -> Result<OwnedFd, sys::Errno> {
        let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        nix::fcntl::open(&self.host(path.as_bytes()), flags, nix::sys::stat::Mode::empty())
    }

    /// Opens a directory of the container.
    pub(crate) fn open_directory(&self, path: &[u8]) -> Result<OwnedFd, sys::Errno> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        nix::fcntl::open(&self.host(path), flags, nix::sys::stat::Mode::empty())
    }

    /// A path of the container as this process can reach it.
    fn host(&self, path: &[u8]) -> PathBuf {
        let (space, path) = split_path(path);
        let root = match space {
            0 => format!("/proc/{}/root", self.root),
            space => self.spaces.root(space),
        };
        let mut host = root.into_bytes();
        host.extend_from_slice(path);
        PathBuf::from(OsString::from_vec(host))
    }

    /// lstat(2) of a path of the container.
    pub(crate) fn symlink_metadata(&self, path: &[u8]) -> Option<Metadata> {
        std::fs::symlink_metadata(self.host(path)).ok()
    }
}

impl FileView {
    /// Its identity for the image; `None` when its path is not UTF-8.
    pub(crate) fn identity(&self, ghost: Option<u32>) -> Option<FileIdentity> {
        Some(FileIdentity {
            path: String::from_utf8(self.path.clone()).ok()?,
            size: self.metadata.st_size(),
            mtime_ns: links::mtime_ns(&self.metadata),
            ghost,
        })
    }

    /// `st_dev` and `st_ino`.
    pub(crate) fn key(&self) -> (u64, u64) {
        links::identity(&self.metadata)
    }
}

/// The device of the kernel's internal tmpfs mount, from a memfd of our own.
fn shmem_device(pid: i32) -> Result<u64, InspectError> {
    let fail = |source: std::io::Error| InspectError::kernel("memfd_create for comparison", pid, source);
    let flags = nix::sys::memfd::MFdFlags::MFD_CLOEXEC;
    let memfd = nix::sys::memfd::memfd_create("gantry-probe", flags).map_err(|errno| fail(errno.into()))?;
    let metadata = std::fs::File::from(memfd).metadata().map_err(fail)?;
    Ok(metadata.st_dev())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view() -> View {
        View::new(i32::try_from(std::process::id()).unwrap()).unwrap()
    }

    #[test]
    fn paths_are_cut_at_the_root() {
        let view = View { prefix: b"/var/c".to_vec(), ..view() };
        assert_eq!(view.inside(b"/var/c/etc/x"), b"/etc/x");
        assert_eq!(view.inside(b"/var/c"), b"/");
        assert_eq!(view.inside(b"/var/cc/x"), b"/var/cc/x");
    }

    #[test]
    fn deleted_is_told_from_a_name_that_says_so() {
        let dir = std::env::temp_dir().join(format!("gantry-view-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join("a (deleted)");
        let file = std::fs::File::create(&path).unwrap();
        let link = format!("fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
        let pid = i32::try_from(std::process::id()).unwrap();
        let before = view().file(pid, &link).unwrap();
        std::fs::remove_file(&path).unwrap();
        let after = view().file(pid, &link).unwrap();
        std::fs::remove_dir(&dir).unwrap();
        assert!(!before.deleted && before.path.ends_with(b"/a (deleted)"));
        assert!(after.deleted && after.path.ends_with(b"/a (deleted)"));
        assert_eq!(after.metadata.st_nlink(), 0);
    }
}
