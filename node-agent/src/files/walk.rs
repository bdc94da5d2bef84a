//! Walking an area: every entry of one mount, directories before what is in them.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Stat, openat2, statat};
use rustix::io::Errno;

/// No link is followed, no mount is entered, no name leads up.
pub(super) fn strict() -> ResolveFlags {
    ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV
}

/// Longest path that the kernel is given at once: it takes less than `PATH_MAX`.
const PIECE: usize = 3000;

/// Opens a directory below `root`, however long its path is; the empty path is `root` itself.
pub(super) fn open_dir(root: impl AsFd, path: &Path) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let open = |dir: BorrowedFd<'_>, path: &Path, how: OFlags| {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        openat2(dir, path, flags | how, Mode::empty(), strict())
    };
    let mut within: Option<OwnedFd> = None;
    let mut rest = path.as_os_str().as_bytes();
    while rest.len() > PIECE {
        let Some(cut) = rest[..PIECE].iter().rposition(|byte| *byte == b'/') else {
            return Err(Errno::NAMETOOLONG);
        };
        let from = within.as_ref().map_or(root.as_fd(), AsFd::as_fd);
        within = Some(open(from, Path::new(OsStr::from_bytes(&rest[..cut])), OFlags::PATH)?);
        rest = &rest[cut + 1..];
    }
    let from = within.as_ref().map_or(root.as_fd(), AsFd::as_fd);
    open(from, Path::new(OsStr::from_bytes(rest)), OFlags::RDONLY)
}

/// One entry of an area.
#[derive(Debug)]
pub(super) struct Entry<'a> {
    /// The directory that it is in.
    pub(super) dir: &'a OwnedFd,
    /// Its name there; `.` for the area's own directory.
    pub(super) name: &'a OsStr,
    /// Its path in the area.
    pub(super) path: &'a Path,
    /// Its stat(2).
    pub(super) stat: Stat,
}

impl Entry<'_> {
    /// Its type.
    pub(super) fn kind(&self) -> FileType {
        FileType::from_raw_mode(self.stat.st_mode)
    }

    /// Its path as bytes.
    pub(super) fn bytes(&self) -> Vec<u8> {
        self.path.as_os_str().as_bytes().to_vec()
    }
}

/// What has this name in an open directory, unless it is a mount of something else or has vanished.
pub(super) fn look(dir: &OwnedFd, name: &OsStr) -> rustix::io::Result<Option<Stat>> {
    // O_PATH tells a mount point (EXDEV) from an entry of this mount.
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match openat2(dir, name, flags, Mode::empty(), ResolveFlags::BENEATH | ResolveFlags::NO_XDEV) {
        Ok(_) => {}
        Err(Errno::NOENT | Errno::XDEV) => return Ok(None),
        Err(error) => return Err(error),
    }
    match statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Visits every entry below the directory `start` of an area, but not `start` itself. What vanishes meanwhile is
/// left out.
pub(super) fn walk(
    area: &super::Area,
    start: &Path,
    visitor: &mut impl Visitor,
) -> Result<(), super::FilesError> {
    let mut pending: Vec<PathBuf> = vec![start.to_owned()];
    while let Some(path) = pending.pop() {
        let failed = |error: Errno| super::FilesError::file::<io::Error>("read", &path)(error.into());
        let dir = match open_dir(&area.dir, &path) {
            Ok(dir) => dir,
            // Gone, replaced, or a mount of something else.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::XDEV | Errno::LOOP) => continue,
            Err(error) => return Err(failed(error)),
        };
        visitor.enter(&dir, &path);
        let mut names: Vec<OsString> = Vec::new();
        for item in Dir::read_from(&dir).map_err(failed)? {
            let item = item.map_err(failed)?;
            let name = OsStr::from_bytes(item.file_name().to_bytes());
            if name != "." && name != ".." {
                names.push(name.to_owned());
            }
        }
        names.sort();
        for name in names {
            if area.skips(&path, &name) {
                continue;
            }
            let at = path.join(&name);
            let Some(stat) = look(&dir, &name).map_err(failed)? else { continue };
            visitor.visit(&Entry { dir: &dir, name: &name, path: &at, stat })?;
            if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                pending.push(at);
            }
        }
    }
    Ok(())
}

/// What is done on a walk.
pub(super) trait Visitor {
    /// A directory is about to be read.
    fn enter(&mut self, dir: &OwnedFd, path: &Path);
    /// An entry; directories before what is in them.
    fn visit(&mut self, entry: &Entry<'_>) -> Result<(), super::FilesError>;
}
