//! Walking an area: every entry of one mount, directories before what is in them.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Stat, openat2, statat};
use rustix::io::Errno;

/// No link is followed, no mount is entered, no name leads up.
pub(super) fn strict() -> ResolveFlags {
    ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV
}

/// Opens a directory below `root`; the empty path is `root` itself.
pub(super) fn open_dir(root: impl AsFd, path: &Path) -> rustix::io::Result<OwnedFd> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    openat2(root, path, flags, Mode::empty(), strict())
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

/// Visits every entry of the area whose directory is `root`. What vanishes meanwhile is left out.
pub(super) fn walk(
    root: &OwnedFd,
    skip: &[OsString],
    visit: &mut dyn FnMut(&Entry<'_>) -> Result<(), super::FilesError>,
) -> Result<(), super::FilesError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |error: Errno| super::FilesError::file::<io::Error>("read", path)(error.into())
    };
    let stat = statat(root, ".", AtFlags::empty()).map_err(failed(Path::new("")))?;
    visit(&Entry { dir: root, name: OsStr::new("."), path: Path::new(""), stat })?;
    let mut pending: Vec<PathBuf> = vec![PathBuf::new()];
    while let Some(path) = pending.pop() {
        let dir = match open_dir(root, &path) {
            Ok(dir) => dir,
            // Gone, replaced, or a mount of something else.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::XDEV | Errno::LOOP) => continue,
            Err(error) => return Err(failed(&path)(error)),
        };
        let mut names: Vec<OsString> = Vec::new();
        for item in Dir::read_from(&dir).map_err(failed(&path))? {
            let item = item.map_err(failed(&path))?;
            let name = OsStr::from_bytes(item.file_name().to_bytes());
            if name != "." && name != ".." {
                names.push(name.to_owned());
            }
        }
        names.sort();
        for name in names {
            if path.as_os_str().is_empty() && skip.contains(&name) {
                continue;
            }
            let at = path.join(&name);
            // O_PATH tells a mount point (EXDEV) from an entry of this mount.
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let same_mount = ResolveFlags::BENEATH | ResolveFlags::NO_XDEV;
            match openat2(&dir, &name, flags, Mode::empty(), same_mount) {
                Ok(_) => {}
                Err(Errno::NOENT | Errno::XDEV) => continue,
                Err(error) => return Err(failed(&at)(error)),
            }
            let stat = match statat(&dir, &name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => stat,
                Err(Errno::NOENT) => continue,
                Err(error) => return Err(failed(&at)(error)),
            };
            visit(&Entry { dir: &dir, name: &name, path: &at, stat })?;
            if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                pending.push(at);
            }
        }
    }
    Ok(())
}
