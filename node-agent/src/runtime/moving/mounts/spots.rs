//! Names in the file systems of a sandbox: found without leaving the mount, and made when their files are still on
//! the way.

use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat, Timespec, Timestamps, fstat, fstatfs, mkdirat,
    mknodat, openat2, statat, unlinkat, utimensat,
};
use rustix::io::Errno;

use super::explore::{mount_id, open_path};

/// The file synchronisation gives every file its mode; what still has this one was never there at the source.
const UNUSED: Mode = Mode::empty();

/// A name that was made because something is mounted there before its own files arrive.
#[derive(Debug)]
pub(super) struct Placeholder {
    dir: OwnedFd,
    name: PathBuf,
}

impl Placeholder {
    /// Removes it when no file came for it and nothing is mounted on it.
    pub(super) fn remove_if_unused(&self) {
        let Ok(stat) = statat(&self.dir, &self.name, AtFlags::SYMLINK_NOFOLLOW) else { return };
        if Mode::from_raw_mode(stat.st_mode) != UNUSED {
            return;
        }
        let directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        let flags = if directory { AtFlags::REMOVEDIR } else { AtFlags::empty() };
        let before = fstat(&self.dir);
        // Busy or not empty: it is in use.
        if unlinkat(&self.dir, &self.name, flags).is_ok()
            && let Ok(before) = before
        {
            let _ = restore_times(&self.dir, &before);
        }
    }
}

pub(super) fn os(path: &[u8]) -> &OsStr {
    OsStr::from_bytes(path)
}

/// The directory of a path and its name there.
pub(super) fn split(path: &[u8]) -> (&Path, &Path) {
    let path = Path::new(os(path));
    (path.parent().unwrap_or(Path::new("")), path.file_name().map_or(Path::new("."), Path::new))
}

/// It is a directory.
pub(super) fn is_directory(fd: &OwnedFd) -> io::Result<bool> {
    Ok(FileType::from_raw_mode(fstat(fd)?.st_mode) == FileType::Directory)
}

fn lookup(root: &OwnedFd, path: &Path) -> rustix::io::Result<OwnedFd> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    let resolve = ResolveFlags::BENEATH
        | ResolveFlags::NO_SYMLINKS
        | ResolveFlags::NO_MAGICLINKS
        | ResolveFlags::NO_XDEV;
    openat2(root, path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty(), resolve)
}

/// Opens a path below `root` as O_PATH: through no link and into no other mount.
///
/// # Errors
/// `NotFound`; `EXDEV` something is mounted there or above.
pub(super) fn existing(root: &OwnedFd, path: &Path) -> io::Result<OwnedFd> {
    Ok(lookup(root, path)?)
}

/// As [`existing`]; with `make` what is missing is made, in the end a directory or a file.
pub(super) fn open(
    root: &OwnedFd,
    path: &[u8],
    directory: bool,
    make: bool,
    made: &mut Vec<Placeholder>,
) -> io::Result<OwnedFd> {
    let path = Path::new(os(path));
    match lookup(root, path) {
        Err(Errno::NOENT) if make => {}
        found => return Ok(found?),
    }
    let mut here = lookup(root, Path::new(""))?;
    let mut names = path.iter().peekable();
    while let Some(name) = names.next() {
        let name = Path::new(name);
        here = match lookup(&here, name) {
            Ok(next) => next,
            Err(Errno::NOENT) => {
                let before = fstat(&here)?;
                if names.peek().is_some() || directory {
                    mkdirat(&here, name, UNUSED)?;
                } else {
                    mknodat(&here, name, FileType::RegularFile, UNUSED, 0)?;
                }
                restore_times(&here, &before)?;
                let next = lookup(&here, name)?;
                made.push(Placeholder { dir: here, name: name.to_owned() });
                next
            }
            Err(error) => return Err(error.into()),
        };
    }
    Ok(here)
}

/// Makes what is missing of the directory `path` of the sandbox whose root is `root`, as far as its files are still on
/// the way: in memory, and in the root directory itself.
pub(super) fn layer(root: &OwnedFd, path: &str, made: &mut Vec<Placeholder>) -> io::Result<()> {
    let mut at = PathBuf::new();
    for name in Path::new(path).components().filter(|part| matches!(part, Component::Normal(_))) {
        let parent = open_path(root, at.as_os_str().as_bytes())?;
        at.push(name);
        match open_path(root, at.as_os_str().as_bytes()) {
            Err(Errno::NOENT)
                if fstatfs(&parent)?.f_type == TMPFS || mount_id(&parent)? == mount_id(root)? =>
            {
                let name = Path::new(name.as_os_str());
                let before = fstat(&parent)?;
                mkdirat(&parent, name, UNUSED)?;
                restore_times(&parent, &before)?;
                made.push(Placeholder { dir: parent, name: name.to_owned() });
            }
            found => drop(found?),
        }
    }
    Ok(())
}

/// `TMPFS_MAGIC` of statfs(2).
const TMPFS: i64 = 0x0102_1994;

/// A directory that is to lose its name again.
#[derive(Debug)]
pub(super) struct Doomed {
    dir: OwnedFd,
    name: PathBuf,
    before: Stat,
}

impl Doomed {
    /// Makes a directory at `path` (or beside it, when that is taken or has no parent).
    pub(super) fn make(root: &OwnedFd, path: &[u8]) -> io::Result<(Self, OwnedFd)> {
        let (parent, name) = split(path);
        let dir = match lookup(root, parent) {
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => lookup(root, Path::new(""))?,
            found => found?,
        };
        let before = fstat(&dir)?;
        let mut name = name.to_owned();
        let mut number = 0;
        while let Err(error) = mkdirat(&dir, &name, Mode::from_raw_mode(0o755)) {
            if error != Errno::EXIST || number > 1000 {
                return Err(error.into());
            }
            number += 1;
            name = PathBuf::from(format!(".gantry-{number}"));
        }
        let made = lookup(&dir, &name)?;
        Ok((Self { dir, name, before }, made))
    }

    /// Removes its name.
    pub(super) fn remove(self) -> io::Result<()> {
        unlinkat(&self.dir, &self.name, AtFlags::REMOVEDIR)?;
        Ok(restore_times(&self.dir, &self.before)?)
    }
}

fn restore_times(dir: &OwnedFd, before: &Stat) -> rustix::io::Result<()> {
    let time =
        |seconds, nanos: u64| Timespec { tv_sec: seconds, tv_nsec: i64::try_from(nanos).unwrap_or_default() };
    let times = Timestamps {
        last_access: time(before.st_atime, before.st_atime_nsec),
        last_modification: time(before.st_mtime, before.st_mtime_nsec),
    };
    utimensat(dir, ".", &times, AtFlags::empty())
}
