//! What is remembered of an entry that was sent.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::{FileType, Stat};

use super::op::ChunkHash;

/// Times this near to the moment of looking cannot tell whether a file changes again.
const RACY: Duration = Duration::from_millis(20);

/// An entry as it was when it was sent.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub(super) stamp: Stamp,
    /// It must be looked at again whatever its stamp says.
    pub(super) racy: bool,
    pub(super) chunks: Vec<ChunkHash>,
    pub(super) round: u64,
}

/// What a change cannot leave as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    pub(super) ino: u64,
    mode: u32,
    size: i64,
    device: u64,
    mtime: (i64, u64),
    ctime: (i64, u64),
}

impl Stamp {
    pub(super) fn of(stat: &Stat) -> Self {
        Self {
            ino: stat.st_ino,
            mode: stat.st_mode,
            size: stat.st_size,
            device: stat.st_rdev,
            mtime: (stat.st_mtime, stat.st_mtime_nsec),
            ctime: (stat.st_ctime, stat.st_ctime_nsec),
        }
    }

    pub(super) fn kind(&self) -> FileType {
        FileType::from_raw_mode(self.mode)
    }

    /// What the target has under the name is this, or can be changed into it in place. An inode number may have
    /// been used again: content is compared all the same.
    pub(super) fn continues(&self, before: &Self) -> bool {
        self.ino == before.ino && self.kind() == before.kind() && self.device == before.device
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
            self.unname(before.stamp.ino, path);
        }
        if kind != FileType::Directory {
            self.names.entry(ino).or_default().push(path.to_owned());
        }
    }

    fn unname(&mut self, ino: u64, path: &Path) {
        if let Some(names) = self.names.get_mut(&ino) {
            names.retain(|name| name != path);
            if names.is_empty() {
                self.names.remove(&ino);
            }
        }
    }

    /// Forgets a name and everything below it; whether there was any.
    pub(super) fn forget(&mut self, path: &Path) -> bool {
        let below = self.entries.range(path.to_owned()..).map(|(name, _)| name);
        let gone: Vec<PathBuf> = below.take_while(|name| name.starts_with(path)).cloned().collect();
        for name in &gone {
            if let Some(seen) = self.entries.remove(name) {
                self.unname(seen.stamp.ino, name);
            }
        }
        !gone.is_empty()
    }

    /// Names that were not met in this round.
    pub(super) fn not_met(&self, round: u64) -> Vec<PathBuf> {
        self.entries.iter().filter(|(_, seen)| seen.round != round).map(|(path, _)| path.clone()).collect()
    }

    /// Names that a round must look at whatever was reported: racy ones, and files with a suspect inode.
    pub(super) fn doubtful(&self, suspect: impl Fn(u64) -> bool) -> impl Iterator<Item = &PathBuf> {
        let doubtful = move |seen: &Seen| {
            seen.racy || (seen.stamp.kind() == FileType::RegularFile && suspect(seen.stamp.ino))
        };
        self.entries.iter().filter(move |(_, seen)| doubtful(seen)).map(|(path, _)| path)
    }

    /// Other names of the file with this inode, as far as they were sent.
    pub(super) fn other_names(&self, ino: u64, path: &Path) -> Vec<PathBuf> {
        let names = self.names.get(&ino).map(Vec::as_slice).unwrap_or_default();
        names.iter().filter(|name| name.as_path() != path).cloned().collect()
    }
}
