//! What is done to the mounts of a sandbox beside the steps: directories in memory for the files, and what has to
//! wait for them.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags, fstat, openat};
use sys::mount::{FsContext, OPEN_TREE_CLONE, attr, detach_in, open_tree, set_attributes};

use super::explore::mount_id;
use super::make::{Inner, MakeError, step};
use super::plan::{Mounted, Spot};
use super::spots;
use super::tree::{MemoryArea, Origin, Shows, Tree, refusal};

impl Inner {
    /// Opens the directories in memory that were not opened yet, each in a mount that nobody else has.
    pub(super) fn areas(&mut self, tree: &Tree) -> Result<Vec<(MemoryArea, OwnedFd)>, MakeError> {
        let groups: BTreeSet<u16> = tree.areas.iter().map(|area| area.group).collect();
        self.opened.retain(|group| groups.contains(group));
        let mut opened = Vec::new();
        for area in &tree.areas {
            if !self.opened.insert(area.group) {
                continue;
            }
            let shown = String::from_utf8_lossy(&area.path).into_owned();
            let what = || format!("open the directory {shown} in memory");
            let origin = self.provided.get(&area.of).ok_or(io::ErrorKind::NotFound);
            let dir = step(origin, what)?;
            let dir = step(spots::open(dir, &area.path, true, true, &mut self.placeholders), what)?;
            let copy = step(open_tree(Some(dir.as_fd()), Path::new(""), OPEN_TREE_CLONE), what)?;
            step(set_attributes(Some(copy.as_fd()), Path::new(""), false, 0, attr::RDONLY, 0), what)?;
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            opened.push((area.clone(), step(openat(&copy, ".", flags, Mode::empty()), what)?));
        }
        Ok(opened)
    }

    /// The topmost mount at a spot goes.
    pub(super) fn unmount(&mut self, mount: &Mounted, spot: &Spot) -> Result<(), MakeError> {
        let what = || format!("unmount {mount:?}");
        self.mounted.remove(mount);
        let space = match mount {
            Mounted::Made(id) => self.done.tree.node(*id).map_or(0, |node| node.space),
            Mounted::Configured(_) => 0,
        };
        if spot.on.is_none() && space != 0 {
            self.rooms.end(space);
            return Ok(());
        }
        // On the root of a mount: that is where the mount itself is.
        let mut spot = spot.clone();
        while spot.place.is_empty()
            && let Some(on) = &spot.on
            && let Some((_, below)) = self.done.layout.mounts.iter().find(|(other, _)| other == on)
        {
            spot = below.clone();
        }
        let Some(on) = &spot.on else { return Ok(()) };
        let parent = self.mounted(on)?;
        let (dir, file) = spots::split(&spot.place);
        match spots::existing(parent, dir) {
            // It went with the directory that it was on.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => step(Err(error), what),
            Ok(dir) => {
                let detached = || match detach_in(dir.as_fd(), file) {
                    Err(nix::Error::EINVAL | nix::Error::ENOENT) => Ok(()),
                    result => result,
                };
                step(self.rooms.within(space, &self.root, detached), what)
            }
        }
    }

    /// What waits for the last files. `there` are the numbers of the sandbox's mounts.
    pub(super) fn finish(&mut self, mut there: BTreeSet<i32>) -> Result<(), MakeError> {
        there
            .extend(step(self.rooms.mounts(&self.root), || "look for the mounts of the sandbox".to_owned())?);
        // Pid namespaces are there now.
        let tree = self.wanted.with_pids(&self.pids);
        if let Some(node) = self.wanted.nodes.iter().find(|node| tree.node(node.id).is_none()) {
            let reason = "the pid namespace whose processes it shows has ended";
            let way_out = "try again, or unmount it before the move";
            return Err(MakeError::Lacks(vec![refusal(&node.point, reason, way_out)]));
        }
        let stale = self.stale(&self.done.tree.clone(), &there)?;
        if !stale.is_empty() || tree != self.done.tree {
            self.apply(&tree, &stale)?;
        }
        for fs in &tree.made {
            let Some(fd) = self.provided.get(&Origin::Made(fs.id)) else { continue };
            let what = || format!("set the options of a file system of type {}", fs.fs_type);
            // Its names were looked up before the layers were complete.
            if fs.fs_type == "overlay" {
                step(FsContext::pick(fd.as_fd()).and_then(FsContext::reconfigure), what)?;
            }
            if fs.read_only {
                step(read_only(fd), what)?;
            }
        }
        for change in tree.changes.iter().filter(|change| change.read_only) {
            let fd = self.mounted(&Mounted::Configured(change.key.clone()))?;
            step(read_only(fd), || format!("make {} read-only", change.key))?;
        }
        while let Some(placeholder) = self.placeholders.pop() {
            placeholder.remove_if_unused();
        }
        if self.lot.take().is_some() {
            step(detach_in(self.root.as_fd(), Path::new(".")), || "let go of mounts".to_owned())?;
        }
        Ok(())
    }

    /// Mounts that are to be made again: of a path that was made anew since, which show what has no name any more, and
    /// those that went with the file that they were on.
    fn stale(&mut self, tree: &Tree, there: &BTreeSet<i32>) -> Result<BTreeSet<u32>, MakeError> {
        let mut stale = self.lost(tree, there)?;
        for node in &tree.nodes {
            let Shows::Part { of, path, deleted: false } = &node.shows else { continue };
            let Some(origin) = self.provided.get(of).filter(|_| !path.is_empty()) else { continue };
            if stale.contains(&node.id) {
                continue;
            }
            let what = || format!("look at the mount on {}", String::from_utf8_lossy(&node.point));
            let now = step(spots::existing(origin, Path::new(spots::os(path))), what)?;
            let mount = self.mounted(&Mounted::Made(node.id))?;
            let (now, shown) = (step(fstat(&now), what)?, step(fstat(mount), what)?);
            if (now.st_dev, now.st_ino) != (shown.st_dev, shown.st_ino) {
                stale.insert(node.id);
            }
        }
        Ok(stale)
    }

    /// Mounts that are not in `there`: what is mounted on a file goes with the name of that file, and the file
    /// synchronisation, which does not see the mount, may have made the file anew.
    fn lost(&self, tree: &Tree, there: &BTreeSet<i32>) -> Result<BTreeSet<u32>, MakeError> {
        let what = || "look for the mounts of the sandbox".to_owned();
        let mut lost = BTreeSet::new();
        for node in &tree.nodes {
            let mounted = match &node.shows {
                Shows::Configured(key) => Mounted::Configured(key.clone()),
                Shows::Part { .. } => Mounted::Made(node.id),
            };
            let Some(mount) = self.mounted.get(&mounted) else { continue };
            if there.contains(&step(mount_id(mount), what)?) {
                continue;
            }
            if let Shows::Configured(key) = &node.shows {
                let what = format!("find the mount on {key}");
                return Err(MakeError::Step { what, source: io::ErrorKind::NotFound.into() });
            }
            lost.insert(node.id);
        }
        Ok(lost)
    }
}

/// The file system itself becomes read-only.
fn read_only(fd: &OwnedFd) -> sys::Result<()> {
    let context = FsContext::pick(fd.as_fd())?;
    context.set_flag("ro")?;
    context.reconfigure()
}
