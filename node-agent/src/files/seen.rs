//! What is remembered of an entry that was sent.

use std::collections::BTreeMap;
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

    /// What the target has under the name can be changed into this one. Links and nodes are made anew, because
    /// an inode number may have been used again.
    pub(super) fn continues(&self, before: &Self) -> bool {
        let lasting = matches!(self.kind(), FileType::RegularFile | FileType::Directory);
        lasting && self.ino == before.ino && self.kind() == before.kind()
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
pub(super) struct Memory(pub(super) BTreeMap<PathBuf, Seen>);

impl Memory {
    /// Forgets a name and everything below it; whether there was any.
    pub(super) fn forget(&mut self, path: &Path) -> bool {
        let below = self.0.range(path.to_owned()..).map(|(name, _)| name);
        let gone: Vec<PathBuf> = below.take_while(|name| name.starts_with(path)).cloned().collect();
        for name in &gone {
            self.0.remove(name);
        }
        !gone.is_empty()
    }

    /// Names that a round must look at whatever was reported: racy ones, and files with a suspect inode.
    pub(super) fn doubtful(&self, suspect: impl Fn(u64) -> bool) -> impl Iterator<Item = &PathBuf> {
        let doubtful = move |seen: &Seen| {
            seen.racy || (seen.stamp.kind() == FileType::RegularFile && suspect(seen.stamp.ino))
        };
        self.0.iter().filter(move |(_, seen)| doubtful(seen)).map(|(path, _)| path)
    }

    /// Another name of the file with this inode.
    pub(super) fn other_name(&self, ino: u64, path: &Path) -> Option<&PathBuf> {
        self.0
            .iter()
            .find(|(name, seen)| seen.stamp.ino == ino && name.as_path() != path)
            .map(|(name, _)| name)
    }
}
