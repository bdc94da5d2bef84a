//! Which names of an area changed since they were looked at.
//!
//! It saves the walk after the freeze, which costs some microseconds a file. It errs to one side alone: when
//! events are lost, everything counts as changed. What is written through memory raises no event; see
//! [`super::Suspects`].

mod handles;
mod names;

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::ops::BitOrAssign;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

pub(super) use handles::Tracker;

/// What is known to have happened to a name or a file, beside that its attributes may have changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Touch {
    /// It was made or moved there, so what is in it is new, too.
    pub(super) made: bool,
    /// Its content may have changed, whatever its times say.
    pub(super) content: bool,
}

impl BitOrAssign for Touch {
    fn bitor_assign(&mut self, other: Self) {
        self.made |= other.made;
        self.content |= other.content;
    }
}

/// What changed.
#[derive(Debug)]
pub(super) enum Changes {
    /// It cannot be told.
    Unknown,
    /// This and nothing else.
    Known {
        /// These names, some of which are gone.
        names: BTreeMap<PathBuf, Touch>,
        /// The files with these inode numbers, whatever their names are.
        inodes: HashMap<u64, Touch>,
        /// False: a change is told by the name that it came through alone, so that files with several names must be
        /// looked at.
        by_inode: bool,
    },
}

/// Watches over one area.
#[derive(Debug)]
pub(super) enum Watch {
    /// fanotify(7) on its file system.
    Handles(handles::HandleWatch),
    /// inotify(7) on each of its directories.
    Names(names::NameWatch),
    /// Everything is always looked at.
    Nothing,
}

impl Watch {
    /// The best that there is for the area with this directory.
    pub(super) fn new(tracker: Option<&Tracker>, dir: &OwnedFd) -> Self {
        if let Some(watch) = tracker.and_then(|tracker| tracker.watch(dir)) {
            return Self::Handles(watch);
        }
        names::NameWatch::new().map_or(Self::Nothing, Self::Names)
    }

    /// A name of what it is, for logs.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Handles(_) => "fanotify",
            Self::Names(_) => "inotify",
            Self::Nothing => "looking at every file",
        }
    }

    /// Watches a directory from now on. To be called before its entries are read.
    pub(super) fn add(&mut self, dir: &OwnedFd, path: &Path) {
        let added = match self {
            Self::Handles(watch) => watch.add(dir, path).map_err(std::io::Error::from),
            Self::Names(watch) => watch.add(dir, path),
            Self::Nothing => Ok(()),
        };
        if let Err(error) = added {
            tracing::info!(%error, path = %path.display(), "changes are found by looking at every file");
            *self = Self::Nothing;
        }
    }

    /// Watches a file, by whatever name it is changed. To be called before its content is read.
    pub(super) fn add_file(&mut self, dir: &OwnedFd, name: &OsStr, ino: u64) {
        if let Self::Handles(watch) = self {
            watch.add_file(dir, name, ino);
        }
    }

    /// What changed since the last call; the first one knows nothing.
    pub(super) fn changes(&mut self) -> Changes {
        match self {
            Self::Handles(watch) => watch.changes(),
            Self::Names(watch) => watch.changes(),
            Self::Nothing => Changes::Unknown,
        }
    }
}
