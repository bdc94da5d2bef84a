//! What is remembered of an entry that was sent.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustix::fs::{FileType, Stat};

use super::content::Known;

/// Times this near to the moment of looking cannot tell whether a file changes again.
const RACY: Duration = Duration::from_millis(20);

/// An entry as it was when it was sent.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub(super) stamp: Stamp,
    /// It must be looked at again whatever its stamp says.
    pub(super) racy: bool,
    /// Its chunks that have data; of a symbolic link what it says.
    pub(super) chunks: Arc<[Known]>,
    pub(super) round: u64,
}

/// What a change cannot leave as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    pub(super) ino: u64,
    mode: u32,
    owner: (u32, u32),
    pub(super) links: u64,
    size: u64,
    device: u64,
    mtime: (i64, u64),
    ctime: (i64, u64),
}

impl Stamp {
    pub(super) fn of(stat: &Stat) -> Self {
        Self {
            ino: stat.st_ino,
            mode: stat.st_mode,
            owner: (stat.st_uid, stat.st_gid),
            links: stat.st_nlink,
            size: u64::try_from(stat.st_size).unwrap_or(0),
            device: stat.st_rdev,
            mtime: (stat.st_mtime, stat.st_mtime_nsec),
            ctime: (stat.st_ctime, stat.st_ctime_nsec),
        }
    }

    /// Bytes.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    pub(super) fn kind(&self) -> FileType {
        FileType::from_raw_mode(self.mode)
    }

    /// What the target has under the name is this, or can be changed into it in place. An inode number may have
    /// been used again: content is compared all the same.
    pub(super) fn continues(&self, before: &Self) -> bool {
        self.ino == before.ino && self.kind() == before.kind() && self.device == before.device
    }

    /// Size and modification time say the same: only other attributes may have changed, if nobody hides it.
    pub(super) fn same_content(&self, before: &Self) -> bool {
        self.size == before.size && self.mtime == before.mtime
    }

    pub(super) fn is_racy(&self, now: SystemTime) -> bool {
        let age = |(seconds, nanos): (i64, u64)| {
            let at = u64::try_from(seconds).ok()?;
            let at = SystemTime::UNIX_EPOCH + Duration::from_secs(at) + Duration::from_nanos(nanos);
            now.duration_since(at).ok()
        };
        [self.mtime, self.ctime].into_iter().any(|time| age(time).is_none_or(|age| age < RACY))
    }
}

/// The entries of one area, by path: what is in a directory follows it.
#[derive(Debug, Default)]
pub(super) struct Memory {
    entries: BTreeMap<PathBuf, Seen>,
    /// Names of everything that is no directory, by inode.
    names: HashMap<u64, Vec<PathBuf>>,
    /// The same of directories.
    directories: HashMap<u64, PathBuf>,
}

impl Memory {
    pub(super) fn get(&self, path: &Path) -> Option<&Seen> {
        self.entries.get(path)
    }

    /// The name was met in this round.
    pub(super) fn met(&mut self, path: &Path, round: u64) -> Option<&Seen> {
        let seen = self.entries.get_mut(path)?;
        seen.round = round;
        Some(seen)
    }

    pub(super) fn insert(&mut self, path: &Path, seen: Seen) {
        let (ino, kind) = (seen.stamp.ino, seen.stamp.kind());
        if let Some(before) = self.entries.insert(path.to_owned(), seen) {
            self.unname(&before.stamp, path);
        }
        if kind == FileType::Directory {
            self.directories.insert(ino, path.to_owned());
        } else {
            self.names.entry(ino).or_default().push(path.to_owned());
        }
    }

    fn unname(&mut self, stamp: &Stamp, path: &Path) {
        if self.directories.get(&stamp.ino).is_some_and(|name| name == path) {
            self.directories.remove(&stamp.ino);
        }
        if let Some(names) = self.names.get_mut(&stamp.ino) {
            names.retain(|name| name != path);
            if names.is_empty() {
                self.names.remove(&stamp.ino);
            }
        }
    }

    fn below(&self, path: &Path) -> impl Iterator<Item = (&PathBuf, &Seen)> {
        self.entries.range(path.to_owned()..).take_while(move |(name, _)| name.starts_with(path))
    }

    /// What has this name is to be looked at again, whatever its stamp says.
    pub(super) fn doubt(&mut self, path: &Path) {
        if let Some(seen) = self.entries.get_mut(path) {
            seen.racy = true;
        }
    }

    /// A directory has another name now, and what is in it, too.
    pub(super) fn rename(&mut self, from: &Path, to: &Path) {
        let moved: Vec<PathBuf> = self.below(from).map(|(name, _)| name.clone()).collect();
        for name in moved {
            let Some(seen) = self.entries.remove(&name) else { continue };
            self.unname(&seen.stamp, &name);
            let rest = name.strip_prefix(from).unwrap_or(Path::new(""));
            // Joining an empty path would leave a slash behind.
            let new = if rest.as_os_str().is_empty() { to.to_owned() } else { to.join(rest) };
            self.insert(&new, seen);
        }
    }

    /// Forgets a name and everything below it; whether there was any.
    pub(super) fn forget(&mut self, path: &Path) -> bool {
        let gone: Vec<PathBuf> = self.below(path).map(|(name, _)| name.clone()).collect();
        for name in &gone {
            if let Some(seen) = self.entries.remove(name) {
                self.unname(&seen.stamp, name);
            }
        }
        !gone.is_empty()
    }

    /// Names of this directory and below it that were not met in this round.
    pub(super) fn not_met(&self, path: &Path, round: u64) -> Vec<PathBuf> {
        self.below(path).filter(|(_, seen)| seen.round != round).map(|(path, _)| path.clone()).collect()
    }

    /// A name that this directory had when it was last looked at.
    pub(super) fn directory(&self, ino: u64) -> Option<&Path> {
        self.directories.get(&ino).map(PathBuf::as_path)
    }

    /// Names of the file with this inode, as far as they were sent.
    pub(super) fn names_of(&self, ino: u64) -> &[PathBuf] {
        self.names.get(&ino).map(Vec::as_slice).unwrap_or_default()
    }

    /// Names of files that have several.
    pub(super) fn linked(&self) -> impl Iterator<Item = &PathBuf> {
        let several = |seen: &Seen| seen.stamp.links > 1 && seen.stamp.kind() != FileType::Directory;
        self.entries.iter().filter(move |(_, seen)| several(seen)).map(|(path, _)| path)
    }

    /// Other names of the file with this inode, as far as they were sent.
    pub(super) fn other_names(&self, ino: u64, path: &Path) -> Vec<PathBuf> {
        self.names_of(ino).iter().filter(|name| name.as_path() != path).cloned().collect()
    }
}
