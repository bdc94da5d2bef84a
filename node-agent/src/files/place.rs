//! Names at the target.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, statat, unlinkat};
use rustix::io::Errno;

use super::FilesError;
use super::walk::open_dir;

/// A name in an open directory.
pub(super) struct Place {
    /// The directory.
    pub(super) dir: OwnedFd,
    /// The whole path in the area; its last component is the name.
    pub(super) path: PathBuf,
}

impl Place {
    pub(super) fn name(&self) -> &OsStr {
        self.path.file_name().unwrap_or_default()
    }

    /// Makes room for what the source has here: the sandbox may have made something of that name.
    pub(super) fn clear(&self) -> Result<(), FilesError> {
        remove(&self.dir, self.name()).map_err(FilesError::file("replace", &self.path))
    }

    /// An empty file with no other name: it may have been made so that something can be mounted on it, and that would go
    /// with it.
    pub(super) fn is_placeholder(&self) -> Result<bool, FilesError> {
        match statat(&self.dir, self.name(), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
                && (stat.st_nlink, stat.st_size) == (1, 0)),
            Err(Errno::NOENT) => Ok(false),
            Err(error) => Err(FilesError::file("read", &self.path)(error)),
        }
    }

    /// What has this name; no link is followed.
    pub(super) fn kind(&self) -> Result<Option<FileType>, FilesError> {
        match statat(&self.dir, self.name(), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(FileType::from_raw_mode(stat.st_mode))),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(FilesError::file("read", &self.path)(error)),
        }
    }
}

/// Removes a name and everything below it, however deep; Ok when there is nothing.
pub(super) fn remove(dir: &OwnedFd, name: &OsStr) -> io::Result<()> {
    match unlinkat(dir, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(error) => return Err(error.into()),
    }
    // Directories before those in them; removed in the other order.
    let mut directories = vec![PathBuf::from(name)];
    let mut next = 0;
    while let Some(path) = directories.get(next).cloned() {
        next += 1;
        let inner = open_dir(dir, &path)?;
        for name in names(&inner)? {
            match unlinkat(&inner, &name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(Errno::ISDIR | Errno::PERM) => directories.push(path.join(name)),
                Err(error) => return Err(error.into()),
            }
        }
    }
    for path in directories.iter().rev() {
        let parent = path.parent().unwrap_or(Path::new(""));
        unlinkat(open_dir(dir, parent)?, path.file_name().unwrap_or_default(), AtFlags::REMOVEDIR)?;
    }
    Ok(())
}

fn names(dir: &OwnedFd) -> io::Result<Vec<OsString>> {
    let mut names = Vec::new();
    for item in Dir::read_from(dir)? {
        let item = item?;
        let name = item.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(OsStr::from_bytes(name).to_owned());
        }
    }
    Ok(names)
}
