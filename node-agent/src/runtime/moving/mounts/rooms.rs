//! Mount namespaces below a sandbox's own. Each begins with nothing but its root directory; the rest is mounted as in
//! the sandbox, out of which all of it is copied: what is mounted in one namespace can be put into another while it is
//! mounted nowhere.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use engine::proc::mountinfo;
use engine::target::{NestedMount, NestedMounts};
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::mount::MountPropagationFlags;
use sys::mount::{chroot_fd, detach_in, move_mount, set_attributes, switch_root_fd};
use sys::ns::{self, Kind};

const PATH: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

#[derive(Debug)]
struct Room {
    namespace: OwnedFd,
    root: OwnedFd,
}

/// Those of one sandbox.
#[derive(Debug)]
pub(super) struct Rooms {
    /// The sandbox's own.
    own: OwnedFd,
    /// The agent's /proc.
    proc: OwnedFd,
    rooms: BTreeMap<u64, Room>,
    /// Who is told.
    told: NestedMounts,
}

/// Makes a mount, and all below it, neither give nor receive anything.
pub(super) fn private(root: &OwnedFd) -> sys::Result<()> {
    let private = u64::from(MountPropagationFlags::PRIVATE.bits());
    set_attributes(Some(root.as_fd()), Path::new(""), true, 0, 0, private)
}

impl Rooms {
    /// For the sandbox of process `pid`; in the agent's own namespaces.
    pub(super) fn new(pid: i32, told: NestedMounts) -> io::Result<Self> {
        let proc = openat(CWD, "/proc", PATH, Mode::empty())?;
        Ok(Self { own: ns::open(pid, Kind::Mnt)?, proc, rooms: BTreeMap::new(), told })
    }

    /// Works in a namespace, 0 for the sandbox's own, whose root directory `root` is. The thread is in the sandbox's.
    pub(super) fn within<T, E: Into<io::Error>>(
        &self,
        space: u64,
        root: &OwnedFd,
        work: impl FnOnce() -> Result<T, E>,
    ) -> io::Result<T> {
        if space == 0 {
            return work().map_err(Into::into);
        }
        let room = self.rooms.get(&space).ok_or(io::ErrorKind::NotFound)?;
        ns::enter(room.namespace.as_fd(), Kind::Mnt)?;
        let done = work().map_err(Into::into);
        self.come_back(root)?;
        done
    }

    /// On top of the root directory may lie what is kept at hand.
    fn come_back(&self, root: &OwnedFd) -> io::Result<()> {
        ns::enter(self.own.as_fd(), Kind::Mnt)?;
        Ok(chroot_fd(root.as_fd())?)
    }

    /// Makes a namespace whose root directory is `copy`, which is mounted nowhere. `covered`: something is kept at hand on the
    /// sandbox's root directory.
    pub(super) fn begin(
        &mut self,
        space: u64,
        copy: &OwnedFd,
        root: &OwnedFd,
        covered: bool,
    ) -> io::Result<()> {
        if space == 0 {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let made = self.make(copy, covered);
        self.come_back(root)?;
        let room = made?;
        let told = NestedMount { namespace: room.namespace.try_clone()?, root: room.root.try_clone()? };
        self.rooms.insert(space, room);
        self.told.set(space, told);
        Ok(())
    }

    fn make(&self, copy: &OwnedFd, covered: bool) -> io::Result<Room> {
        ns::unshare(Kind::Mnt.flag())?;
        let all = openat(CWD, "/", PATH, Mode::empty())?;
        // Nothing of what follows is to be seen in the sandbox.
        private(&all)?;
        if covered {
            detach_in(all.as_fd(), Path::new("."))?;
        }
        move_mount(copy.as_fd(), Some(all.as_fd()), Path::new(""))?;
        switch_root_fd(copy.as_fd())?;
        let namespace =
            openat(&self.proc, "thread-self/ns/mnt", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        Ok(Room { namespace, root: openat(CWD, "/", PATH, Mode::empty())? })
    }

    /// A namespace is needed no more: it ends with the last process in it.
    pub(super) fn end(&mut self, space: u64) {
        self.rooms.remove(&space);
        self.told.remove(space);
    }

    /// Cuts all propagation.
    pub(super) fn all_private(&self, root: &OwnedFd) -> io::Result<()> {
        private(root)?;
        self.rooms.iter().try_for_each(|(space, room)| self.within(*space, root, || private(&room.root)))
    }

    /// The numbers of their mounts.
    pub(super) fn mounts(&self, root: &OwnedFd) -> io::Result<Vec<i32>> {
        let mut all = Vec::new();
        for space in self.rooms.keys() {
            let text = self.within(*space, root, || -> io::Result<Vec<u8>> {
                let flags = OFlags::RDONLY | OFlags::CLOEXEC;
                let mut text = Vec::new();
                File::from(openat(&self.proc, "thread-self/mountinfo", flags, Mode::empty())?)
                    .read_to_end(&mut text)?;
                Ok(text)
            })?;
            let mounts = mountinfo::parse(&text).map_err(io::Error::other)?;
            all.extend(mounts.iter().map(|mount| mount.id));
        }
        Ok(all)
    }
}
