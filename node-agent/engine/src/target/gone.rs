//! Places in the container's file system where something is made that is to have no name: it is made and removed again.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;

use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{Mode, fstatat, mkdirat};
use nix::unistd::{UnlinkatFlags, unlinkat};
use rustix::fs::{Timespec, Timestamps, futimens};

use super::error::TargetError;
use super::rootfs::RootFs;

/// A directory. What of it is not there is made, and removed when this is dropped; the one that was there keeps its times.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) dir: File,
    /// The directories that were made and their names, each with the one above it.
    made: Vec<(File, String)>,
    /// The directory that was there, and its times.
    above: Option<(File, Timestamps)>,
}

const DIRECTORY: OFlag = OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_CLOEXEC);

impl Place {
    /// The directory in which a path is, and the name that it has there.
    pub(crate) fn of<'a>(root: &RootFs, path: &'a str) -> Result<(Self, &'a str), TargetError> {
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        let mut there = parent;
        let mut missing = Vec::new();
        let mut dir = loop {
            match root.open(0, if there.is_empty() { "/" } else { there }, DIRECTORY) {
                Err(TargetError::Open { source, .. })
                    if source.kind() == io::ErrorKind::NotFound && !there.is_empty() =>
                {
                    let (above, name) = there.rsplit_once('/').unwrap_or(("", there));
                    missing.push(name);
                    there = above;
                }
                opened => break opened?,
            }
        };
        let fail = |what| TargetError::system(format!("{what} for {path}"));
        let times = times(&dir).map_err(fail("look at the directory"))?;
        let above = Some((dir.try_clone().map_err(fail("duplicate a descriptor"))?, times));
        let mut made = Vec::new();
        let _owner = root.make_as_owner()?;
        for name in missing.into_iter().rev() {
            let below = make_directory(&dir, name).map_err(fail("make the directory"))?;
            made.push((std::mem::replace(&mut dir, below), name.to_owned()));
        }
        Ok((Self { dir, made, above }, name))
    }

    /// A name that is free here: the wanted one, or one that is like it.
    pub(crate) fn free(&self, name: &str, id: u32) -> String {
        let found = fstatat(&self.dir, name, AtFlags::AT_SYMLINK_NOFOLLOW);
        if found == Err(nix::errno::Errno::ENOENT) { name.to_owned() } else { format!(".{name}.gantry-{id}") }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        for (dir, name) in self.made.iter().rev() {
            if let Err(errno) = unlinkat(dir, name.as_str(), UnlinkatFlags::RemoveDir) {
                tracing::warn!(%errno, name, "a directory that is to be gone stays");
            }
        }
        if let Some((dir, times)) = self.above.take()
            && let Err(errno) = futimens(dir.as_fd(), &times)
        {
            tracing::warn!(%errno, "a directory has other times");
        }
    }
}

/// Makes a directory and opens it.
pub(crate) fn make_directory(dir: &File, name: &str) -> io::Result<File> {
    mkdirat(dir, name, Mode::from_bits_truncate(0o700))?;
    Ok(File::from(openat(dir, name, DIRECTORY | OFlag::O_NOFOLLOW, Mode::empty())?))
}

fn times(file: &File) -> io::Result<Timestamps> {
    use std::os::unix::fs::MetadataExt;
    let metadata = file.metadata()?;
    Ok(Timestamps {
        last_access: Timespec { tv_sec: metadata.atime(), tv_nsec: metadata.atime_nsec() },
        last_modification: Timespec { tv_sec: metadata.mtime(), tv_nsec: metadata.mtime_nsec() },
    })
}
