//! Mount namespaces below the container's that processes of the tree are in: a way into each, and which mount is whose.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};

use image::namespaces::Nested;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatxFlags, openat, statx};
use sys::Errno;
use sys::ns::{self, Kind, NetnsThread};

use super::error::InspectError;
use super::tree::Process;
use crate::proc::{ProcError, mountinfo};

/// Those that the tree is in now. Empty for nearly every container.
#[derive(Debug, Default)]
pub(crate) struct Spaces {
    all: Vec<Space>,
    /// The processes that are in one, as this process numbers them.
    members: HashMap<i32, u64>,
}

#[derive(Debug)]
struct Space {
    /// Its number.
    id: u64,
    /// Its root directory.
    root: OwnedFd,
    /// Its mounts, each with the type of its file system.
    mounts: HashMap<i32, String>,
}

impl Spaces {
    /// Enters each once, through a process that is in it.
    pub(crate) fn open(tree: &[Process], nested: &HashMap<(i32, u64), Nested>) -> Result<Self, InspectError> {
        let mut spaces = Self::default();
        if nested.is_empty() {
            return Ok(spaces);
        }
        for process in tree {
            let Some(Nested { mnt: id @ 1.., .. }) = nested.get(&process.key()).copied() else { continue };
            spaces.members.insert(process.pid, id);
            if spaces.all.iter().all(|space| space.id != id)
                && let Some(space) = enter(process.pid, id)?
            {
                spaces.all.push(space);
            }
        }
        Ok(spaces)
    }

    /// Nobody is in any.
    pub(crate) fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// The namespace of a mount; 0 when it is of none of these.
    pub(crate) fn of_mount(&self, mount: i32) -> u64 {
        self.all.iter().find(|space| space.mounts.contains_key(&mount)).map_or(0, |space| space.id)
    }

    /// The namespace of a process; 0 when it is in none of these.
    pub(crate) fn of_process(&self, pid: i32) -> u64 {
        self.members.get(&pid).copied().unwrap_or(0)
    }

    /// The type of a mount's file system.
    pub(crate) fn fs_type(&self, mount: i32) -> Option<&str> {
        self.all.iter().find_map(|space| space.mounts.get(&mount)).map(String::as_str)
    }

    /// The root directory of one, as a path of this process.
    pub(crate) fn root(&self, id: u64) -> String {
        let root = self.all.iter().find(|space| space.id == id);
        format!("/proc/self/fd/{}", root.map_or(-1, |space| space.root.as_raw_fd()))
    }
}

/// `None`: the process has ended meanwhile.
fn enter(pid: i32, id: u64) -> Result<Option<Space>, InspectError> {
    let fail = |errno| InspectError::kernel("enter a nested mount namespace", pid, errno);
    let namespace = match ns::open(pid, Kind::Mnt) {
        Ok(namespace) => namespace,
        Err(Errno::ENOENT | Errno::ESRCH) => return Ok(None),
        Err(errno) => return Err(fail(errno.into())),
    };
    if ns::id_of(namespace.as_fd()).map_err(|errno| fail(errno.into()))?.ino != id {
        return Ok(None);
    }
    let path = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let proc = openat(CWD, "/proc", path, Mode::empty()).map_err(|errno| fail(errno.into()))?;
    let thread =
        NetnsThread::start_within(vec![(namespace, Kind::Mnt)]).map_err(|errno| fail(errno.into()))?;
    let read = move || -> io::Result<(OwnedFd, Vec<u8>)> {
        let root = openat(CWD, "/", path, Mode::empty())?;
        let own = openat(&proc, "thread-self/mountinfo", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        let mut text = Vec::new();
        File::from(own).read_to_end(&mut text)?;
        Ok((root, text))
    };
    let (root, text) = thread.run(read).map_err(|errno| fail(errno.into()))?.map_err(fail)?;
    let mounts = mountinfo::parse(&text)?.into_iter().map(|mount| (mount.id, mount.fs_type)).collect();
    Ok(Some(Space { id, root, mounts }))
}

/// The mount of what a link of /proc/PID leads to.
pub(crate) fn mount_of(pid: i32, link: &str) -> Result<i32, ProcError> {
    let path = format!("/proc/{pid}/{link}");
    match statx(CWD, path.as_str(), AtFlags::empty(), StatxFlags::MNT_ID) {
        Ok(found) => Ok(i32::try_from(found.stx_mnt_id).unwrap_or(-1)),
        Err(errno) => Err(ProcError::Read { path, source: errno.into() }),
    }
}
