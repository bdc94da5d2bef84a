//! Which names of an area changed since they were looked at: inotify(7) on every directory.
//!
//! It saves the walk after the freeze, which costs some microseconds a file. It is a hint that errs to one
//! side alone: when watches run out or events are lost, everything counts as changed.

use std::collections::{BTreeMap, HashMap};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};

/// What changed.
#[derive(Debug)]
pub(super) enum Changes {
    /// It cannot be told.
    Unknown,
    /// These names, some of which are gone. True: it was made or moved there, so what is in it is new, too.
    Names(BTreeMap<PathBuf, bool>),
}

/// Watches over the directories of one area.
#[derive(Debug)]
pub(super) struct Watch {
    /// `None` once watching has failed: then everything is always looked at.
    inotify: Option<Inotify>,
    directories: HashMap<WatchDescriptor, PathBuf>,
    began: bool,
}

impl Watch {
    pub(super) fn new() -> Self {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC).ok();
        Self { inotify, directories: HashMap::new(), began: false }
    }

    /// Watches a directory from now on. To be called before its entries are read.
    pub(super) fn add(&mut self, dir: &OwnedFd, path: &Path) {
        let Some(inotify) = &self.inotify else { return };
        let flags = AddWatchFlags::IN_MODIFY
            | AddWatchFlags::IN_ATTRIB
            | AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_MOVED_FROM
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_ONLYDIR;
        match inotify.add_watch(format!("/proc/self/fd/{}", dir.as_raw_fd()).as_str(), flags) {
            // A directory that was renamed has the descriptor that it had.
            Ok(descriptor) => drop(self.directories.insert(descriptor, path.to_owned())),
            Err(error) => {
                tracing::info!(%error, path = %path.display(), "changes are found by looking at every file");
                self.inotify = None;
                self.directories.clear();
            }
        }
    }

    /// What changed since the last call; the first one knows nothing.
    pub(super) fn changes(&mut self) -> Changes {
        let began = std::mem::replace(&mut self.began, true);
        let Some(inotify) = &self.inotify else { return Changes::Unknown };
        let mut names = BTreeMap::new();
        let mut known = began;
        loop {
            let events = match inotify.read_events() {
                Ok(events) => events,
                Err(Errno::EAGAIN) => break,
                Err(Errno::EINTR) => continue,
                Err(_) => return Changes::Unknown,
            };
            for event in events {
                known &= !event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW);
                let Some(directory) = self.directories.get(&event.wd) else { continue };
                let made = AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO;
                if let Some(name) = event.name {
                    *names.entry(directory.join(name)).or_default() |= event.mask.intersects(made);
                }
                // Its own attributes, or its modification time.
                names.entry(directory.clone()).or_default();
                if event.mask.contains(AddWatchFlags::IN_IGNORED) {
                    self.directories.remove(&event.wd);
                }
            }
        }
        if known { Changes::Names(names) } else { Changes::Unknown }
    }
}
