//! The tree of mounts as it travels: what is configured is named, what the container made itself is described.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fmt;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use image::{Refusal, Subject};
use serde::{Deserialize, Serialize};

use super::options;
use crate::files::Area;
use crate::session::ports::MAX_MOUNTS;

/// Version of [`Tree`].
const VERSION: u32 = 2;
/// Most mounts of a container.
pub(super) const MOST: usize = 4096;
/// Longest path, bytes: the kernel's own.
const MAX_PATH: usize = 4096;

/// A mount that the configuration makes on every node: the `nth` (from 0) that is made on `point`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(in crate::runtime::moving) struct Key {
    /// Where it is mounted when the sandbox has just been built.
    pub(super) point: Vec<u8>,
    /// How many are below it there.
    pub(super) nth: u16,
}

/// Where the files of a mount come from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(in crate::runtime::moving) enum Origin {
    /// From the directory or file that this configured mount shows.
    Configured(Key),
    /// From the file system of this number, see [`FileSystem::id`].
    Made(u64),
}

/// A file system that the container mounted itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::runtime::moving) struct FileSystem {
    /// Its device number at the source; nothing but a name here.
    pub(super) id: u64,
    /// Its type.
    pub(super) fs_type: String,
    /// What was given as its source; it shows in mountinfo.
    pub(super) source: Vec<u8>,
    /// Its options, as fsconfig(2) takes them.
    pub(super) options: Vec<String>,
    /// The file system itself (not one of its mounts) is read-only.
    pub(super) read_only: bool,
    /// Of a proc: whose processes it shows, a pid namespace below the container's; else 0.
    pub(super) pid_space: u64,
}

/// Options of a configured file system that the container changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::runtime::moving) struct Change {
    /// A mount of it.
    pub(super) key: Key,
    /// Its type.
    pub(super) fs_type: String,
    /// What to set.
    pub(super) options: Vec<String>,
    /// It is read-only now.
    pub(super) read_only: bool,
}

/// What a mount shows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::runtime::moving) enum Shows {
    /// It is the configured mount, where the configuration has it.
    Configured(Key),
    /// A path of an origin.
    Part {
        /// Whose.
        of: Origin,
        /// Which, relative; empty for all of it.
        path: Vec<u8>,
        /// Its name has been removed since.
        deleted: bool,
    },
}

/// One mount.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::runtime::moving) struct Node {
    /// Its id at the source; nothing but a name here.
    pub(super) id: u32,
    /// Its mount namespace: 0 for the container's, else the number of one below it.
    pub(super) space: u64,
    /// The mount that it is mounted on; `None` for the root.
    pub(super) parent: Option<u32>,
    /// Where in that, relative; empty: on its root.
    pub(super) place: Vec<u8>,
    /// Where in the container, for messages.
    pub(super) point: Vec<u8>,
    /// What it shows.
    pub(super) shows: Shows,
    /// The length of the path that it shows in its file system: of two in a peer group, the shorter shows more.
    pub(super) depth: u32,
    /// Its root is a directory.
    pub(super) directory: bool,
    /// Its flags (`sys::mount::attr`); `None`: as the configuration has them.
    pub(super) attributes: Option<u64>,
    /// Its peer group; a name here.
    pub(super) shared: Option<u32>,
    /// The group that it receives mounts from.
    pub(super) master: Option<u32>,
    /// It cannot be bound.
    pub(super) unbindable: bool,
}

/// Files in memory that travel: a directory of a tmpfs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::runtime::moving) struct MemoryArea {
    /// The number of its group of areas, see [`super::super::area_groups`]. Never 0.
    pub(in crate::runtime::moving) group: u16,
    /// Whose.
    pub(in crate::runtime::moving) of: Origin,
    /// Which directory; empty for all of it.
    pub(in crate::runtime::moving) path: Vec<u8>,
}

/// The mounts of a container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::runtime::moving) struct Tree {
    version: u32,
    /// In the order in which they were mounted, parents first; those of the container's own namespace before all others.
    pub(super) nodes: Vec<Node>,
    /// File systems that the container mounted.
    pub(super) made: Vec<FileSystem>,
    /// Configured ones whose options it changed.
    pub(super) changes: Vec<Change>,
    /// Configured mounts that are not where they were.
    pub(super) gone: Vec<Key>,
    /// Directories in memory.
    pub(super) areas: Vec<MemoryArea>,
}

/// A tree that no honest source sends.
#[derive(Debug, thiserror::Error)]
#[error("the tree of mounts is refused: {0}")]
pub(in crate::runtime::moving) struct BadTree(String);

fn too_large(bytes: usize) -> BadTree {
    BadTree(format!("{bytes} bytes are more than the {MAX_MOUNTS} that may travel"))
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(&self.point))
    }
}

impl Tree {
    pub(super) fn new() -> Self {
        Self { version: VERSION, ..Self::default() }
    }

    /// Its bytes.
    pub(in crate::runtime::moving) fn encode(&self) -> Result<Vec<u8>, BadTree> {
        let bytes = postcard::to_stdvec(self).map_err(|error| BadTree(error.to_string()))?;
        if bytes.len() > MAX_MOUNTS { Err(too_large(bytes.len())) } else { Ok(bytes) }
    }

    /// From bytes that anybody may have made. Memory is allocated only as bytes back it.
    ///
    /// # Errors
    /// [`BadTree`] says what is wrong.
    pub(in crate::runtime::moving) fn decode(bytes: &[u8]) -> Result<Self, BadTree> {
        if bytes.len() > MAX_MOUNTS {
            return Err(too_large(bytes.len()));
        }
        let (tree, rest): (Self, _) =
            postcard::take_from_bytes(bytes).map_err(|error| BadTree(error.to_string()))?;
        if !rest.is_empty() {
            return Err(BadTree(format!("{} bytes are left", rest.len())));
        }
        tree.check()?;
        Ok(tree)
    }

    /// The groups of its areas.
    pub(in crate::runtime::moving) fn groups(&self) -> std::collections::HashSet<u16> {
        self.areas.iter().map(|area| area.group).collect()
    }

    /// Paths in the container may lead through mounts that it made itself.
    pub(in crate::runtime::moving) fn is_changed(&self) -> bool {
        self.nodes.iter().any(|node| matches!(node.shows, Shows::Part { .. }))
    }

    /// Without what shows the processes of pid namespaces that are not among `there`, and what is mounted on that.
    pub(super) fn with_pids(&self, there: &BTreeMap<u64, OwnedFd>) -> Self {
        let mut tree = self.clone();
        let lacks = |origin: &Origin| {
            let waits = |fs: &FileSystem| fs.pid_space != 0 && !there.contains_key(&fs.pid_space);
            matches!(origin, Origin::Made(id) if self.made.iter().any(|fs| fs.id == *id && waits(fs)))
        };
        let mut left = BTreeSet::new();
        tree.nodes.retain(|node| {
            let waits = matches!(&node.shows, Shows::Part { of, .. } if lacks(of))
                || node.parent.is_some_and(|parent| left.contains(&parent));
            if waits {
                left.insert(node.id);
            }
            !waits
        });
        tree
    }

    pub(super) fn node(&self, id: u32) -> Option<&Node> {
        self.nodes.iter().find(|node| node.id == id)
    }

    pub(super) fn check(&self) -> Result<(), BadTree> {
        let bad = |what: &str| Err(BadTree(what.to_owned()));
        if self.version != VERSION {
            return bad("it is of another version");
        }
        if [self.nodes.len(), self.made.len(), self.changes.len(), self.gone.len(), self.areas.len()]
            .iter()
            .any(|count| *count > MOST)
        {
            return bad("it has too many parts");
        }
        let mut made = BTreeSet::new();
        for fs in &self.made {
            if !made.insert(fs.id) || fs.source.len() > MAX_PATH || fs.source.contains(&0) {
                return bad("a file system is malformed");
            }
            options::check(&fs.fs_type, &fs.options).map_err(BadTree)?;
        }
        for change in &self.changes {
            options::check(&change.fs_type, &change.options).map_err(BadTree)?;
        }
        let known = |origin: &Origin| match origin {
            Origin::Made(id) => made.contains(id),
            Origin::Configured(_) => true,
        };
        let mut seen = BTreeMap::new();
        let mut spaces = BTreeSet::new();
        for (index, node) in self.nodes.iter().enumerate() {
            let on = node.parent.and_then(|parent| seen.get(&parent)) == Some(&node.space);
            let root = node.parent.is_none() && spaces.insert(node.space);
            if on == root || (index == 0) != (root && node.space == 0) {
                return bad("a mount has no parent");
            }
            if seen.insert(node.id, node.space).is_some() {
                return bad("a mount has its number twice");
            }
            if node.space != 0 && matches!(node.shows, Shows::Configured(_)) {
                return bad("a configured mount is in another namespace");
            }
            let shows = match &node.shows {
                Shows::Configured(key) => inside(key.point.strip_prefix(b"/").unwrap_or(b"/")),
                Shows::Part { of, path, .. } => known(of) && inside(path),
            };
            if !shows || !inside(&node.place) || node.point.len() > MAX_PATH {
                return bad("a mount has a hostile path");
            }
        }
        let mut groups = BTreeSet::new();
        for area in &self.areas {
            if area.group == 0 || !groups.insert(area.group) || !known(&area.of) || !inside(&area.path) {
                return bad("an area is malformed");
            }
        }
        Ok(())
    }
}

/// A relative path that leads nowhere else; empty is one.
fn inside(path: &[u8]) -> bool {
    path.len() <= MAX_PATH
        && !path.contains(&0)
        && (path.is_empty()
            || path.split(|byte| *byte == b'/').all(|part| !matches!(part, b"" | b"." | b"..")))
}

/// A refusal that names a mount.
pub(super) fn refusal(point: &[u8], reason: impl Into<String>, way_out: &str) -> Refusal {
    Refusal {
        pid: 0,
        subject: Subject::Mount(String::from_utf8_lossy(point).into_owned()),
        reason: reason.into(),
        way_out: way_out.to_owned(),
    }
}

impl MemoryArea {
    /// As the files of one group, of which `dir` is the directory.
    pub(in crate::runtime::moving) fn open(&self, dir: OwnedFd) -> Area {
        // Its devices are made by the runtime on both sides.
        let skip_devices =
            self.path.is_empty() && matches!(&self.of, Origin::Configured(key) if key.point == b"/dev");
        Area { skip_devices, ..Area::new(dir, self.at().unwrap_or(Path::new(""))) }
    }

    /// Where the container sees it, as long as it mounts nothing itself.
    pub(in crate::runtime::moving) fn at(&self) -> Option<&Path> {
        match &self.of {
            Origin::Configured(key) if self.path.is_empty() => Some(Path::new(OsStr::from_bytes(&key.point))),
            _ => None,
        }
    }
}
