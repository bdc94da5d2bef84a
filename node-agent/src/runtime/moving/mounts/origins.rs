//! What the mounts of a sandbox show, kept at hand where they are mounted from: a mount that it has, or a file system
//! made anew.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, mkdirat};
use sys::mount::{self, FsContext, OPEN_TREE_CLONE, open_tree};

use super::make::{Inner, Lot, MakeError, step};
use super::plan::{Mounted, file_system};
use super::tree::{FileSystem, Key, Node, Origin, Shows, Tree, refusal};
use super::{options, spots};

impl Inner {
    /// Puts a detached directory where it is in this namespace (older kernels copy only what is) and where nobody
    /// looks: into a directory on top of the root directory, from which lookups begin. One unmount removes all.
    fn park(&mut self, origin: Origin, fd: OwnedFd) -> io::Result<()> {
        if spots::is_directory(&fd)? {
            let lot = match &mut self.lot {
                Some(lot) => lot,
                none => {
                    let dir = FsContext::open("tmpfs")?.mount(0)?;
                    mount::move_mount(dir.as_fd(), Some(self.root.as_fd()), Path::new(""))?;
                    none.insert(Lot { dir, taken: 0 })
                }
            };
            let name = lot.taken.to_string();
            mkdirat(&lot.dir, &name, Mode::RWXU)?;
            mount::move_mount(fd.as_fd(), Some(lot.dir.as_fd()), Path::new(&name))?;
            lot.taken += 1;
        }
        self.provided.insert(origin, fd);
        Ok(())
    }

    pub(super) fn provide(&mut self, tree: &Tree, origin: Origin) -> Result<(), MakeError> {
        let fd = match &origin {
            Origin::Configured(key) => {
                let mount = self.mounted(&Mounted::Configured(key.clone()))?;
                let copy = open_tree(Some(mount.as_fd()), Path::new(""), OPEN_TREE_CLONE);
                step(copy, || format!("copy the mount on {key}"))?
            }
            Origin::Made(id) => {
                let point = tree
                    .nodes
                    .iter()
                    .find(|node| matches!(&node.shows, Shows::Part { of, .. } if *of == origin))
                    .map(|node| node.point.clone())
                    .unwrap_or_default();
                let Some(fs) = file_system(tree, *id) else {
                    return Err(MakeError::Step {
                        what: "find a file system".to_owned(),
                        source: io::ErrorKind::NotFound.into(),
                    });
                };
                self.file_system(fs).map_err(|source| {
                    let reason = format!(
                        "its file system of type {} cannot be made on the target node: {source}",
                        fs.fs_type
                    );
                    MakeError::Lacks(vec![refusal(
                        &point,
                        reason,
                        "unmount it before the move, or choose another node",
                    )])
                })?
            }
        };
        step(self.park(origin, fd), || "keep a mount at hand".to_owned())
    }

    fn file_system(&mut self, fs: &FileSystem) -> io::Result<OwnedFd> {
        if fs.fs_type.starts_with("cgroup") && !self.own_cgroup {
            // It would show, and could make, groups of the host.
            return Err(io::Error::other("the container has no cgroup namespace of its own"));
        }
        for layer in options::layers(fs) {
            spots::layer(&self.root, layer, &mut self.placeholders)?;
        }
        let context = FsContext::open(&fs.fs_type)?;
        if !fs.source.is_empty() {
            use std::os::unix::ffi::OsStrExt as _;
            context.set_string("source", std::ffi::OsStr::from_bytes(&fs.source))?;
        }
        set(&context, &fs.options)?;
        if fs.fs_type == "proc" {
            let pids = match fs.pid_space {
                0 => &self.pid_ns,
                space => self.pids.get(&space).ok_or(io::ErrorKind::NotFound)?,
            };
            if context.set_fd("pidns", pids.as_fd()).is_err() {
                if fs.pid_space != 0 {
                    return Err(io::Error::other("a /proc of a nested pid namespace needs Linux 6.18"));
                }
                // Before Linux 6.18 a new one shows the processes of whoever makes it: take the sandbox's own.
                return self.sandbox_proc(fs);
            }
        }
        Ok(context.mount(0)?)
    }

    /// What is made when pid namespaces are there must be possible: it is said now that it is not.
    pub(super) fn shows_others(&self, tree: &Tree) -> Result<(), MakeError> {
        let shows = |node: &&Node| {
            let Shows::Part { of: Origin::Made(id), .. } = &node.shows else { return false };
            file_system(tree, *id).is_some_and(|fs| fs.pid_space != 0)
        };
        let Some(node) = tree.nodes.iter().find(shows) else { return Ok(()) };
        let tried = FsContext::open("proc").and_then(|context| context.set_fd("pidns", self.pid_ns.as_fd()));
        tried.map_err(|_| {
            let reason =
                "it shows the processes of a nested pid namespace: that takes Linux 6.18 on the target node";
            let way_out = "unmount it before the move, or choose another node";
            MakeError::Lacks(vec![refusal(&node.point, reason, way_out)])
        })
    }

    /// A copy of the configured /proc, which must have the same options.
    fn sandbox_proc(&self, fs: &FileSystem) -> io::Result<OwnedFd> {
        let key = Key { point: b"/proc".to_vec(), nth: 0 };
        let Some(own) = self.mounted.get(&Mounted::Configured(key)) else {
            return Err(io::Error::other(
                "the sandbox has no /proc of its own to copy, and the kernel is older than 6.18",
            ));
        };
        if !fs.options.is_empty() {
            return Err(io::Error::other("a second /proc with options of its own needs Linux 6.18"));
        }
        Ok(open_tree(Some(own.as_fd()), Path::new(""), OPEN_TREE_CLONE)?)
    }
}

/// Gives a file system that is being made its options.
pub(super) fn set(context: &FsContext, options: &[String]) -> sys::Result<()> {
    options.iter().try_for_each(|option| match option.split_once('=') {
        Some((name, value)) => context.set_string(name, value.as_ref()),
        None => context.set_flag(option),
    })
}
