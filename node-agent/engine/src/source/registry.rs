//! Ids of what several processes can share: memory objects and files without a name.

use std::collections::HashMap;
use std::time::SystemTime;

use image::ipc::IpcObject;
use image::shape::{MemoryObject, ObjectKind};

/// `st_dev` and `st_ino`.
pub(crate) type Key = (u64, u64);

/// How to reach a memory object or a ghost file: a link below /proc.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Handle {
    /// Process, as this process sees it.
    pub(crate) pid: i32,
    /// `map_files/A-B` or `fd/N`.
    pub(crate) link: String,
}

impl Handle {
    /// The path to open.
    pub(crate) fn path(&self) -> String {
        format!("/proc/{}/{}", self.pid, self.link)
    }
}

/// A memory object of the tree.
#[derive(Clone, Debug)]
pub(crate) struct Object {
    /// What goes into the image.
    pub(crate) object: MemoryObject,
    /// Which file of the kernel's own tmpfs it is.
    pub(crate) key: Key,
    /// A way to its contents, as of the last look.
    pub(crate) handle: Handle,
    /// It was there at the last look.
    pub(crate) alive: bool,
    /// A descriptor of it is open in the tree, or it was attached for a while: it may be written without a mapping that is
    /// tracked.
    pub(crate) has_fd: bool,
}

/// A file or directory that is in use and has no name.
#[derive(Clone, Debug)]
pub(crate) struct GhostFile {
    /// Its id in the image.
    pub(crate) id: u32,
    /// The name it had, in the container.
    pub(crate) path: String,
    /// Which file it is.
    pub(crate) key: Key,
    /// It is a directory, and has no contents.
    pub(crate) directory: bool,
    /// A way to its contents.
    pub(crate) handle: Handle,
    /// It was there at the last look.
    alive: bool,
    /// The last round has sent its contents.
    pub(crate) sent: bool,
    /// It was mapped in a way that lets it be written without its times telling, or could have been.
    pub(crate) untold: bool,
}

/// All ids given so far. An id never changes its meaning during one migration.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    objects: HashMap<Key, u32>,
    by_id: Vec<Object>,
    ghosts: HashMap<Key, GhostFile>,
    /// Names of files that were deleted under the one by which they were opened.
    names: HashMap<Key, String>,
    /// When the last look began.
    pub(crate) looked: Option<SystemTime>,
}

impl Registry {
    /// The name that such a file has: `find` gets the one that it had at the last look.
    pub(crate) fn other_name(
        &mut self,
        key: Key,
        find: impl FnOnce(Option<&str>) -> Option<String>,
    ) -> Option<String> {
        let name = find(self.names.get(&key).map(String::as_str))?;
        self.names.insert(key, name.clone());
        Some(name)
    }

    /// To be called before each look at the tree.
    pub(crate) fn begin(&mut self) {
        for object in &mut self.by_id {
            object.alive = false;
            object.has_fd = false;
        }
        for ghost in self.ghosts.values_mut() {
            ghost.alive = false;
        }
        self.looked = Some(SystemTime::now());
    }

    /// The id of a memory object. Its size goes with that of its pages, where they are huge ones.
    pub(crate) fn object(
        &mut self,
        key: Key,
        (size, huge): (u64, u64),
        kind: ObjectKind,
        handle: Handle,
    ) -> u32 {
        if let Some(&id) = self.objects.get(&key)
            && let Some(object) = self.get_mut(id)
        {
            object.object.size = size;
            object.object.kind = kind;
            object.handle = handle;
            object.alive = true;
            return id;
        }
        let id = u32::try_from(self.by_id.len()).unwrap_or(u32::MAX);
        self.objects.insert(key, id);
        self.by_id.push(Object {
            object: MemoryObject { id, size, huge, kind },
            key,
            handle,
            alive: true,
            has_fd: false,
        });
        id
    }

    /// The object of a segment of System V shared memory, if it was met in this look.
    pub(crate) fn segment(&self, segment: i32) -> Option<u32> {
        self.alive().map(|object| object.object.id).find(|id| self.segment_of(*id) == Some(segment))
    }

    /// The segment of System V shared memory that an object is.
    pub(crate) fn segment_of(&self, id: u32) -> Option<i32> {
        let object = self.by_id.get(usize::try_from(id).ok()?)?;
        if let ObjectKind::Segment(segment) = &object.object.kind { Some(segment.id) } else { None }
    }

    /// Notes what is known of a segment. `size`: what its maker asked for; a file of huge pages has more.
    pub(crate) fn segment_is(&mut self, id: u32, segment: IpcObject, size: u64) {
        if let Some(object) = self.get_mut(id) {
            object.object.kind = ObjectKind::Segment(segment);
            object.object.size = size;
        }
    }

    /// Notes that a descriptor of the object is open.
    pub(crate) fn object_has_fd(&mut self, id: u32) {
        if let Some(object) = self.get_mut(id) {
            object.has_fd = true;
        }
    }

    fn get_mut(&mut self, id: u32) -> Option<&mut Object> {
        self.by_id.get_mut(usize::try_from(id).ok()?)
    }

    /// Objects that were there at the last look.
    pub(crate) fn alive(&self) -> impl Iterator<Item = &Object> {
        self.by_id.iter().filter(|object| object.alive)
    }

    /// The id of a file without a name.
    pub(crate) fn ghost(&mut self, key: Key, path: &str, handle: Handle) -> u32 {
        let next = u32::try_from(self.ghosts.len()).unwrap_or(u32::MAX);
        let ghost = self.ghosts.entry(key).or_insert_with(|| GhostFile {
            id: next,
            path: path.to_owned(),
            key,
            directory: false,
            handle: handle.clone(),
            alive: true,
            sent: false,
            untold: false,
        });
        ghost.handle = handle;
        ghost.alive = true;
        ghost.id
    }

    /// The id of a directory without a name.
    pub(crate) fn ghost_directory(&mut self, key: Key, path: &str, handle: Handle) -> u32 {
        let id = self.ghost(key, path, handle);
        self.ghosts.values_mut().filter(|ghost| ghost.id == id).for_each(|ghost| ghost.directory = true);
        id
    }

    /// Notes that a file without a name may be written to without its times telling, from now on.
    pub(crate) fn ghost_untold(&mut self, id: u32) {
        self.ghosts.values_mut().filter(|ghost| ghost.id == id).for_each(|ghost| ghost.untold = true);
    }

    /// Notes that a round has sent the contents of all files without a name that were there at the last look.
    pub(crate) fn ghosts_sent(&mut self) {
        self.ghosts.values_mut().for_each(|ghost| ghost.sent = ghost.alive);
    }

    /// Those of [`Registry::ghosts`] that are no directories.
    pub(crate) fn ghost_files(&self) -> impl Iterator<Item = &GhostFile> {
        self.ghosts().into_iter().filter(|ghost| !ghost.directory)
    }

    /// Files and directories without a name that were there at the last look, by id.
    pub(crate) fn ghosts(&self) -> Vec<&GhostFile> {
        let mut ghosts: Vec<_> = self.ghosts.values().filter(|ghost| ghost.alive).collect();
        ghosts.sort_by_key(|ghost| ghost.id);
        ghosts
    }
}
