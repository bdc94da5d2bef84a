//! Files without a name: deleted ones that are still open or mapped.
//!
//! Each is made as soon as something maps it, beside where it was, and deleted again; its content comes with
//! the image. A private mapping shows that content wherever the program has not written itself.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs::{File, Permissions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileExt, PermissionsExt};

use image::files::{Files, Ghost};
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{Mode, fstatat};
use nix::unistd::{UnlinkatFlags, unlinkat};
use rustix::fs::{Timespec, Timestamps, XattrFlags, fsetxattr, futimens};

use super::error::TargetError;
use super::rootfs::RootFs;

/// The deleted files, held by the agent.
#[derive(Debug, Default)]
pub(crate) struct Ghosts {
    held: BTreeMap<u32, File>,
}

impl Ghosts {
    /// The file, made when it is not there yet, at least `size` bytes long: what the program has written to
    /// its private mapping comes before the content.
    pub(crate) fn get(
        &mut self,
        id: u32,
        path: &str,
        size: u64,
        root: &RootFs,
    ) -> Result<BorrowedFd<'_>, TargetError> {
        let file: &File = match self.held.entry(id) {
            Entry::Occupied(held) => held.into_mut(),
            Entry::Vacant(place) => {
                let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
                let parent = if parent.is_empty() { "/" } else { parent };
                let dir = root.open(0, parent, OFlag::O_RDONLY | OFlag::O_DIRECTORY)?;
                let _owner = root.make_as_owner()?;
                let made = make(&dir, name, id);
                place.insert(made.map_err(TargetError::system(format!("make the deleted file {path}")))?)
            }
        };
        let length = file.metadata().map(|m| m.len());
        if length.map_err(TargetError::system("fstat"))? < size {
            file.set_len(size).map_err(TargetError::system(format!("size the deleted file {path}")))?;
        }
        Ok(file.as_fd())
    }

    /// Fills every file of the image.
    pub(crate) fn fill(&mut self, files: &Files, root: &RootFs) -> Result<(), TargetError> {
        for ghost in &files.ghosts {
            self.get(ghost.id, &ghost.path, 0, root)?;
            if let Some(file) = self.held.get(&ghost.id) {
                fill(file, ghost)
                    .map_err(TargetError::system(format!("fill the deleted file {}", ghost.path)))?;
            }
        }
        Ok(())
    }
}

fn make(dir: &File, name: &str, id: u32) -> io::Result<File> {
    if never_had_a_name(name) {
        let flags = OFlag::O_RDWR | OFlag::O_TMPFILE | OFlag::O_CLOEXEC;
        match openat(dir, ".", flags, Mode::from_bits_truncate(0o600)) {
            // This file system has none; the file cannot be given a name then.
            Err(nix::errno::Errno::EOPNOTSUPP) => {}
            made => return Ok(File::from(made?)),
        }
    }
    // The name that /proc/PID/fd and maps(5) show is the one it was made by.
    let free = fstatat(dir, name, AtFlags::AT_SYMLINK_NOFOLLOW) == Err(nix::errno::Errno::ENOENT);
    let name = if free { name.to_owned() } else { format!(".{name}.gantry-{id}") };
    let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
    let file = File::from(openat(dir, name.as_str(), flags, Mode::from_bits_truncate(0o600))?);
    unlinkat(dir, name.as_str(), UnlinkatFlags::NoRemoveDir)?;
    Ok(file)
}

/// Files of O_TMPFILE show `#` and their inode's number; they can still be given a name (open(2)).
fn never_had_a_name(name: &str) -> bool {
    name.strip_prefix('#')
        .is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_digit()))
}

fn fill(file: &File, ghost: &Ghost) -> io::Result<()> {
    file.set_len(ghost.content.len() as u64)?;
    file.write_all_at(&ghost.content, 0)?;
    std::os::unix::fs::fchown(file, Some(ghost.uid), Some(ghost.gid))?;
    file.set_permissions(Permissions::from_mode(ghost.mode & 0o7777))?;
    for (name, value) in &ghost.xattrs {
        fsetxattr(file, name.as_slice(), value, XattrFlags::empty())?;
    }
    let [accessed, modified] = ghost.times_ns.map(timespec);
    futimens(file, &Timestamps { last_access: accessed, last_modification: modified })?;
    Ok(())
}

fn timespec(nanoseconds: i64) -> Timespec {
    const SECOND: i64 = 1_000_000_000;
    Timespec { tv_sec: nanoseconds.div_euclid(SECOND), tv_nsec: nanoseconds.rem_euclid(SECOND) }
}
