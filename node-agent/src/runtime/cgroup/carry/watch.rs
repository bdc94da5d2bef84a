//! Whether settings of a tree of groups changed since they were read: inotify(7) on every directory.
//!
//! It saves reading every file once more while the container stands still. It errs to one side alone: what
//! cannot be told counts as changed. Writes through other mounts of the hierarchy are seen, too: they share
//! their inodes.

use std::path::Path;

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent, WatchDescriptor};

use super::known::{self, Class};

/// Watches over one tree. Without an inotify everything always counts as changed.
#[derive(Debug)]
pub(super) struct Watch {
    inotify: Option<Inotify>,
    /// The first group that was added: the container's own.
    own: Option<WatchDescriptor>,
}

impl Watch {
    pub(super) fn new() -> Self {
        Self { inotify: Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC).ok(), own: None }
    }

    /// Begins anew with the same inotify: closing one waits for a grace period, a hundred milliseconds of a pause. The
    /// kernel has forgotten groups that are gone.
    pub(super) fn again(&mut self) {
        if self.inotify.is_none() {
            *self = Self::new();
        }
    }

    /// Watches a group from now on. To be called before its files are read.
    pub(super) fn add(&mut self, dir: &Path) {
        let Some(inotify) = &self.inotify else { return };
        let flags = AddWatchFlags::IN_MODIFY
            | AddWatchFlags::IN_ATTRIB
            | AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_MOVED_FROM
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_ONLYDIR;
        match inotify.add_watch(dir, flags) {
            Ok(watched) => self.own = self.own.or(Some(watched)),
            Err(error) => {
                tracing::info!(%error, path = %dir.display(), "settings of control groups are read in the pause");
                self.inotify = None;
            }
        }
    }

    /// Whether a setting or the tree itself changed since the last call.
    pub(super) fn changed(&mut self) -> bool {
        let Some(inotify) = &self.inotify else { return true };
        let mut changed = false;
        loop {
            match inotify.read_events() {
                Ok(events) => changed |= events.iter().any(|event| matters(event, self.own)),
                Err(Errno::EAGAIN) => return changed,
                Err(Errno::EINTR) => {}
                Err(_) => return true,
            }
        }
    }
}

/// Who is in a group is read each time; the kernel itself reports events and never settings.
fn matters(event: &InotifyEvent, own: Option<WatchDescriptor>) -> bool {
    if event
        .mask
        .intersects(AddWatchFlags::IN_Q_OVERFLOW | AddWatchFlags::IN_ISDIR | AddWatchFlags::IN_ATTRIB)
    {
        return true;
    }
    let Some(name) = event.name.as_ref().and_then(|name| name.to_str()) else { return false };
    // The container's own group is frozen by the agent.
    if name == "cgroup.freeze" && own == Some(event.wd) {
        return false;
    }
    let acts = matches!(name, "cgroup.type" | "cgroup.subtree_control" | "devices.allow" | "devices.deny");
    let setting = matches!(known::class(name), Class::Placement | Class::Limit);
    acts || setting && !name.ends_with(".events") && !name.ends_with(".events.local")
}
