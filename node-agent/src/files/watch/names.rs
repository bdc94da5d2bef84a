//! By inotify(7) on every directory: for file systems without handles, and agents without CAP_SYS_ADMIN.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};

use super::{Changes, Touch};

/// Watches over the directories of one area.
#[derive(Debug)]
pub(in crate::files) struct NameWatch {
    inotify: Inotify,
    directories: HashMap<WatchDescriptor, PathBuf>,
    began: bool,
}

impl NameWatch {
    /// `None` when there are too many instances of it.
    pub(super) fn new() -> Option<Self> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC).ok()?;
        Some(Self { inotify, directories: HashMap::new(), began: false })
    }

    pub(super) fn add(&mut self, dir: &OwnedFd, path: &Path) -> io::Result<()> {
        let flags = AddWatchFlags::IN_MODIFY
            | AddWatchFlags::IN_ATTRIB
            | AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_MOVED_FROM
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_ONLYDIR;
        let place = format!("/proc/self/fd/{}", dir.as_raw_fd());
        // A directory that was renamed has the descriptor that it had.
        self.directories.insert(self.inotify.add_watch(place.as_str(), flags)?, path.to_owned());
        Ok(())
    }

    pub(super) fn changes(&mut self) -> Changes {
        let mut names: BTreeMap<PathBuf, Touch> = BTreeMap::new();
        let mut known = std::mem::replace(&mut self.began, true);
        loop {
            let events = match self.inotify.read_events() {
                Ok(events) => events,
                Err(Errno::EAGAIN) => break,
                Err(Errno::EINTR) => continue,
                Err(_) => return Changes::Unknown,
            };
            for event in events {
                known &= !event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW);
                let Some(directory) = self.directories.get(&event.wd) else { continue };
                let made = AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO;
                let written = AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_CLOSE_WRITE;
                let made = event.mask.intersects(made);
                // What moved may have been written under its old name.
                let content = made || event.mask.intersects(written);
                if let Some(name) = event.name {
                    *names.entry(directory.join(name)).or_default() |= Touch { made, content };
                }
                // Its own attributes, or its modification time.
                names.entry(directory.clone()).or_default();
                if event.mask.contains(AddWatchFlags::IN_IGNORED) {
                    self.directories.remove(&event.wd);
                }
            }
        }
        if known {
            Changes::Known { names, inodes: HashMap::new(), by_inode: false }
        } else {
            Changes::Unknown
        }
    }
}
