//! Paths below a container's root, resolved so that no link leads out of it.

use std::ffi::OsStr;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, fstat, mkdirat, mknodat, openat2};
use rustix::io::{Errno, Result};

/// What a mount point must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Want {
    /// A directory.
    Directory,
    /// Anything else.
    File,
}

/// Opens `path` below `root`, as chroot(2) would resolve it, without the right to read or write.
pub(in crate::runtime) fn open(root: impl AsFd, path: &Path) -> Result<OwnedFd> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    openat2(root, path, flags, Mode::empty(), ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS)
}

/// As [`open`], and makes directories (and, for [`Want::File`], an empty file) that are missing.
pub(super) fn make(root: impl AsFd, path: &Path, want: Want) -> Result<OwnedFd> {
    let root = root.as_fd();
    let mut at = PathBuf::new();
    let parts: Vec<&OsStr> = path
        .components()
        .filter_map(|part| match part {
            Component::Normal(name) => Some(name),
            _ => None,
        })
        .collect();
    let mut here = open(root, &at)?;
    for (index, part) in parts.iter().enumerate() {
        let last = index + 1 == parts.len();
        at.push(part);
        here = match open(root, &at) {
            Ok(next) => next,
            Err(Errno::NOENT) => {
                if last && want == Want::File {
                    mknodat(&here, *part, FileType::RegularFile, Mode::from_raw_mode(0o644), 0)?;
                } else {
                    mkdirat(&here, *part, Mode::from_raw_mode(0o755))?;
                }
                open(root, &at)?
            }
            Err(error) => return Err(error),
        };
    }
    Ok(here)
}

/// The file behind an O_PATH descriptor as a path that mount(2) takes. Needs the host's /proc.
pub(super) fn name(fd: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

/// It is a directory.
pub(super) fn is_directory(fd: impl AsFd) -> Result<bool> {
    Ok(FileType::from_raw_mode(fstat(fd)?.st_mode) == FileType::Directory)
}
