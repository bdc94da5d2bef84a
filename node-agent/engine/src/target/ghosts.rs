//! Files and directories without a name: deleted ones that are still in use.
//!
//! Each is made as soon as the shape tells of it, beside where it was, and deleted again; its contents come as pages. A
//! private mapping shows them wherever the program has not written itself.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, Permissions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::sync::Arc;

use image::files::{Files, Ghost};
use image::pages::Owner;
use image::shape::GhostFile;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, unlinkat};
use rustix::fs::{Timespec, Timestamps, XattrFlags, fsetxattr, futimens};

use super::error::TargetError;
use super::files::reopen;
use super::gone::{Place, make_directory};
use super::rootfs::RootFs;
use super::writer::PageWriter;

/// The deleted files, held by the agent.
#[derive(Debug, Default)]
pub(crate) struct Ghosts {
    held: BTreeMap<u32, Arc<File>>,
}

impl Ghosts {
    /// Makes those that are not there yet.
    pub(crate) fn reconcile(
        &mut self,
        wanted: &[GhostFile],
        root: &RootFs,
        writer: &PageWriter,
    ) -> Result<(), TargetError> {
        for ghost in wanted.iter().filter(|ghost| !self.held.contains_key(&ghost.id)).collect::<Vec<_>>() {
            self.get(ghost.id, &ghost.path, 0, root)?;
            if let Some(file) = self.held.get(&ghost.id) {
                writer.set_file(Owner::Ghost(ghost.id), Arc::clone(file), 0);
            }
        }
        Ok(())
    }

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
            Entry::Vacant(entry) => {
                let (place, name) = Place::of(root, path)?;
                let _owner = root.make_as_owner()?;
                let made = make(&place, name, id);
                entry.insert(Arc::new(
                    made.map_err(TargetError::system(format!("make the deleted file {path}")))?,
                ))
            }
        };
        let length = file.metadata().map(|m| m.len());
        if length.map_err(TargetError::system("fstat"))? < size {
            file.set_len(size).map_err(TargetError::system(format!("size the deleted file {path}")))?;
        }
        Ok(file.as_fd())
    }

    fn directory(&mut self, ghost: &Ghost, root: &RootFs) -> Result<(), TargetError> {
        let (place, name) = Place::of(root, &ghost.path)?;
        let _owner = root.make_as_owner()?;
        let name = place.free(name, ghost.id);
        let made = make_directory(&place.dir, &name).and_then(|made| {
            unlinkat(&place.dir, name.as_str(), UnlinkatFlags::RemoveDir)?;
            Ok(made)
        });
        let made = made.map_err(TargetError::system(format!("make the deleted directory {}", ghost.path)))?;
        self.held.insert(ghost.id, Arc::new(made));
        Ok(())
    }

    /// The agent's descriptor of what is there already.
    pub(crate) fn held(&self, id: u32) -> Result<BorrowedFd<'_>, TargetError> {
        let held = self.held.get(&id).map(|file| file.as_fd());
        held.ok_or_else(|| TargetError::Image(format!("deleted file {id} is not in the image")))
    }

    /// Finishes every file of the image; all pages have been written. Those that are `programs` are not open for writing
    /// afterwards: the kernel would not take them as such.
    pub(crate) fn finish(
        &mut self,
        files: &Files,
        programs: &BTreeSet<u32>,
        root: &RootFs,
        writer: &PageWriter,
    ) -> Result<(), TargetError> {
        for ghost in &files.ghosts {
            if is_directory(ghost) {
                self.directory(ghost, root)?;
            } else {
                self.get(ghost.id, &ghost.path, 0, root)?;
            }
            writer.remove_file(Owner::Ghost(ghost.id));
            let Some(held) = self.held.get_mut(&ghost.id) else { continue };
            finish(held, ghost)
                .map_err(TargetError::system(format!("finish the deleted file {}", ghost.path)))?;
            if programs.contains(&ghost.id) {
                let again = reopen(held.as_fd(), libc::O_RDONLY);
                *held = Arc::new(again.map_err(TargetError::system("open a program again"))?);
            }
        }
        Ok(())
    }
}

fn is_directory(ghost: &Ghost) -> bool {
    ghost.mode & libc::S_IFMT == libc::S_IFDIR
}

fn make(place: &Place, name: &str, id: u32) -> io::Result<File> {
    let dir = &place.dir;
    if never_had_a_name(name) {
        let flags = OFlag::O_RDWR | OFlag::O_TMPFILE | OFlag::O_CLOEXEC;
        match openat(dir, ".", flags, Mode::from_bits_truncate(0o600)) {
            // This file system has none; the file cannot be given a name then.
            Err(nix::errno::Errno::EOPNOTSUPP) => {}
            made => return Ok(File::from(made?)),
        }
    }
    // The name that /proc/PID/fd and maps(5) show is the one it was made by.
    let name = place.free(name, id);
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

fn finish(file: &File, ghost: &Ghost) -> io::Result<()> {
    if !is_directory(ghost) {
        file.write_all_at(&ghost.content, 0)?;
        // Pages were written as a whole.
        file.set_len(ghost.size)?;
    }
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
