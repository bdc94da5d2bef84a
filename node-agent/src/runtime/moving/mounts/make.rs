//! The target's side: takes the steps of a plan inside the sandbox, on a thread that lives in its namespaces.
//! Nothing is mounted in the agent's own.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use engine::proc::mountinfo::{self, Mount};
use engine::target::NestedMounts;
use image::Refusal;
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::mount::MountPropagationFlags;
use sys::mount::{self, FsContext, OPEN_TREE_CLONE, attr, open_tree, set_attributes};
use sys::ns::{self, Kind, NetnsThread};
use sys::prctl::own::FileUser;

use super::describe::{keys, place};
use super::explore::reach;
use super::options;
use super::origins::set;
use super::plan::{Base, Done, Mounted, Spot, Step, file_system, lasts, plan};
use super::rooms::Rooms;
use super::spots::{self, Doomed, Placeholder};
use super::tree::{MemoryArea, Origin, Shows, Tree, refusal};

/// Why the sandbox could not be made to have these mounts.
#[derive(Debug, thiserror::Error)]
pub(in crate::runtime::moving) enum MakeError {
    /// This node lacks something.
    #[error("{} mount(s) cannot be made here", .0.len())]
    Lacks(Vec<Refusal>),
    /// A step failed.
    #[error("cannot {what}")]
    Step {
        /// Which.
        what: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// A directory with mounts that are kept at hand.
#[derive(Debug)]
pub(super) struct Lot {
    pub(super) dir: OwnedFd,
    pub(super) taken: usize,
}

/// A step that failed, with its name.
pub(super) fn step<T, E: Into<io::Error>>(
    result: Result<T, E>,
    what: impl FnOnce() -> String,
) -> Result<T, MakeError> {
    result.map_err(|source| MakeError::Step { what: what(), source: source.into() })
}

/// Changes the mounts of one sandbox.
#[derive(Debug)]
pub(in crate::runtime::moving) struct Maker {
    thread: NetnsThread,
    pid: i32,
    /// As whom files are made, when the container has a user namespace: a tmpfs of its takes no others.
    owner: Option<(u32, u32)>,
    /// Gone after a panic.
    inner: Option<Box<Inner>>,
}

#[derive(Debug)]
pub(super) struct Inner {
    pub(super) root: OwnedFd,
    pub(super) pid_ns: OwnedFd,
    base: Vec<Base>,
    pub(super) done: Done,
    /// The root of every mount, as far as it can be reached.
    pub(super) mounted: BTreeMap<Mounted, OwnedFd>,
    /// What origins show, without anything that is mounted in it.
    pub(super) provided: BTreeMap<Origin, OwnedFd>,
    /// Where they are, see [`Inner::park`].
    pub(super) lot: Option<Lot>,
    /// The cgroup namespace is not the host's.
    pub(super) own_cgroup: bool,
    /// Points of configured mounts that show copies which belong to the container.
    own: BTreeSet<Vec<u8>>,
    /// Mount namespaces below the sandbox's.
    pub(super) rooms: Rooms,
    /// Which mount is in which of them, by the node's number.
    homes: BTreeMap<u32, u64>,
    /// Pid namespaces below the sandbox's, when they are there.
    pub(super) pids: BTreeMap<u64, OwnedFd>,
    /// What was asked for last; what is done of it is in `done`.
    pub(super) wanted: Tree,
    pub(super) placeholders: Vec<Placeholder>,
    pub(super) opened: BTreeSet<u16>,
}

fn mounts_of(pid: i32) -> Result<Vec<Mount>, MakeError> {
    let read = || -> io::Result<Vec<Mount>> {
        mountinfo::parse(&fs::read(format!("/proc/{pid}/mountinfo"))?).map_err(io::Error::other)
    };
    step(read(), || "read the mounts of the sandbox".to_owned())
}

impl Maker {
    /// For the new sandbox of process `pid`. `own`: points of configured mounts whose files come with the migration. `owner`: the host's
    /// numbers of its root, if it has a user namespace. `nested`: who is told of the namespaces below its own.
    ///
    /// # Errors
    /// When its namespaces cannot be entered.
    pub(in crate::runtime::moving) fn new(
        pid: i32,
        own: BTreeSet<Vec<u8>>,
        owner: Option<(u32, u32)>,
        nested: NestedMounts,
    ) -> Result<Self, MakeError> {
        let mounts = mounts_of(pid)?;
        let open = |kind| Ok((ns::open(pid, kind)?, kind));
        let kinds: Result<Vec<_>, nix::Error> =
            [Kind::Cgroup, Kind::Net, Kind::Ipc, Kind::Mnt].into_iter().map(open).collect();
        let enter = || "enter the sandbox".to_owned();
        let thread = step(kinds.and_then(NetnsThread::start_within), enter)?;
        let pid_ns = step(ns::open(pid, Kind::Pid), enter)?;
        let rooms = step(Rooms::new(pid, nested), enter)?;
        let cgroup = ns::id(pid, Kind::Cgroup)
            .and_then(|id| Ok(id != ns::id_of(ns::open_own(Kind::Cgroup)?.as_fd())?));
        let own_cgroup = step(cgroup, enter)?;
        let inner = step(thread.run(move || Inner::new(&mounts, pid_ns, own, own_cgroup, rooms)), enter)?;
        Ok(Self {
            thread,
            pid,
            owner,
            inner: Some(Box::new(step(inner, || "look at the sandbox".to_owned())?)),
        })
    }

    fn run<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(&mut Inner) -> Result<T, MakeError> + Send + 'static,
    ) -> Result<T, MakeError> {
        let lost = || MakeError::Step {
            what: "work in the sandbox".to_owned(),
            source: io::ErrorKind::Other.into(),
        };
        let mut inner = self.inner.take().ok_or_else(lost)?;
        let owner = self.owner;
        let ran = self.thread.run(move || {
            let user = owner.map(|(uid, gid)| FileUser::set(uid, gid)).transpose();
            let user = step(user, || "make files as the container's root".to_owned());
            let result = user.and_then(|_user| work(&mut inner));
            // No mount is to be busy because of this thread.
            let left = std::env::set_current_dir("/");
            (inner, result.and_then(|value| step(left, || "leave a mount".to_owned()).map(|()| value)))
        });
        let (inner, result) = step(ran, || "work in the sandbox".to_owned())?;
        self.inner = Some(inner);
        result
    }

    /// Makes the mounts be `tree`; gives the directories in memory that are new.
    ///
    /// # Errors
    /// [`MakeError`]; the sandbox is to be discarded.
    pub(in crate::runtime::moving) fn apply(
        &mut self,
        tree: Tree,
    ) -> Result<Vec<(MemoryArea, OwnedFd)>, MakeError> {
        self.run(move |inner| {
            inner.shows_others(&tree)?;
            inner.apply(&tree.with_pids(&inner.pids), &BTreeSet::new())?;
            let areas = inner.areas(&tree);
            inner.wanted = tree;
            areas
        })
    }

    /// The last files are in their place: what could not be done before. Nothing in the sandbox is held after Ok.
    ///
    /// # Errors
    /// As [`Maker::apply`].
    pub(in crate::runtime::moving) fn finish(
        mut self,
        pids: BTreeMap<u64, OwnedFd>,
    ) -> Result<(), MakeError> {
        let there: BTreeSet<i32> = mounts_of(self.pid)?.iter().map(|mount| mount.id).collect();
        self.run(move |inner| {
            inner.pids = pids;
            inner.finish(there)
        })
    }
}

impl Inner {
    fn new(
        mounts: &[Mount],
        pid_ns: OwnedFd,
        own: BTreeSet<Vec<u8>>,
        own_cgroup: bool,
        rooms: Rooms,
    ) -> io::Result<Self> {
        let root = openat(CWD, "/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let keys = keys(mounts);
        let mut base = Vec::new();
        let mut mounted = BTreeMap::new();
        for (mount, key) in mounts.iter().zip(&keys) {
            let parent = mounts.iter().position(|other| other.id == mount.parent && other.id != mount.id);
            base.push(Base {
                key: key.clone(),
                parent: parent.map(|at| keys[at].clone()),
                place: parent.map(|at| place(&mounts[at].point, &mount.point)).unwrap_or_default(),
                attributes: options::of_mount(&mount.options).unwrap_or_default(),
            });
            if let Some(fd) = reach(&root, mount)? {
                mounted.insert(Mounted::Configured(key.clone()), fd);
            }
        }
        Ok(Self {
            root,
            pid_ns,
            done: Done::built(&base),
            base,
            mounted,
            provided: BTreeMap::new(),
            lot: None,
            own_cgroup,
            own,
            rooms,
            homes: BTreeMap::new(),
            pids: BTreeMap::new(),
            wanted: Tree::default(),
            placeholders: Vec::new(),
            opened: BTreeSet::new(),
        })
    }

    /// The mount namespace of a mount that there is, or is being made.
    fn space_of(&self, mount: &Mounted) -> u64 {
        if let Mounted::Made(id) = mount { self.homes.get(id).copied().unwrap_or(0) } else { 0 }
    }

    pub(super) fn apply(&mut self, tree: &Tree, stale: &BTreeSet<u32>) -> Result<(), MakeError> {
        self.homes = tree.nodes.iter().map(|node| (node.id, node.space)).collect();
        let planned = plan(&self.base, &self.done, tree, stale).map_err(MakeError::Lacks)?;
        self.provided.retain(|origin, _| match origin {
            Origin::Made(id) => lasts(&self.done.tree, tree, *id),
            Origin::Configured(_) => true,
        });
        // Read-only comes last: mount points may have to be made.
        let mut flags = Vec::new();
        for planned in planned.steps {
            self.step(tree, planned, &mut flags)?;
        }
        for (mount, bits) in flags {
            self.attributes(&mount, bits)?;
        }
        self.done = planned.done;
        Ok(())
    }

    fn step(&mut self, tree: &Tree, planned: Step, flags: &mut Vec<(Mounted, u64)>) -> Result<(), MakeError> {
        match planned {
            Step::Private => {
                step(self.rooms.all_private(&self.root), || "make the mounts private".to_owned())
            }
            Step::Provide(origin) => self.provide(tree, origin),
            Step::Change(change) => {
                let what = || format!("change the options of {}", change.key);
                let fd = self.mounted(&Mounted::Configured(change.key.clone()))?;
                let context = step(FsContext::pick(fd.as_fd()), what)?;
                step(set(&context, &change.options), what)?;
                if !change.read_only {
                    step(context.set_flag("rw"), what)?;
                }
                step(context.reconfigure(), what)
            }
            Step::Refit { id, options } => {
                let what = || "change the options of a file system".to_owned();
                let fd = step(self.provided.get(&Origin::Made(id)).ok_or(io::ErrorKind::NotFound), what)?;
                let context = step(FsContext::pick(fd.as_fd()), what)?;
                step(set(&context, &options), what)?;
                step(context.reconfigure(), what)
            }
            Step::Unmount { mount, spot } => self.unmount(&mount, &spot),
            Step::Mount { id, of, path, deleted, directory, spot, attributes } => {
                let point = tree.node(id).map(|node| node.point.clone()).unwrap_or_default();
                let shown = String::from_utf8_lossy(&point).into_owned();
                let what = || format!("mount {shown}");
                let (copy, doomed) = self.copy(tree, &of, (&path, deleted), directory, &point)?;
                let mount = Mounted::Made(id);
                if let Some(bits) = attributes {
                    step(set_flags(&copy, bits & !attr::RDONLY), what)?;
                    if bits & attr::RDONLY != 0 {
                        flags.push((mount.clone(), bits));
                    }
                }
                let space = tree.node(id).map_or(0, |node| node.space);
                if spot.on.is_none() {
                    step(self.rooms.begin(space, &copy, &self.root, self.lot.is_some()), what)?;
                } else {
                    let target = self.spot(tree, &spot, directory, &point)?;
                    let attach = || mount::move_mount(copy.as_fd(), Some(target.as_fd()), Path::new(""));
                    step(self.rooms.within(space, &self.root, attach), what)?;
                }
                self.mounted.insert(mount, copy);
                // Not before: what has no name cannot be mounted.
                step(doomed.map_or(Ok(()), Doomed::remove), what)
            }
            Step::Attributes(mount, bits) => {
                flags.push((mount, bits));
                Ok(())
            }
            Step::Share(mount) => self.propagate(&mount, MountPropagationFlags::SHARED),
            Step::Enslave(mount) => self.propagate(&mount, MountPropagationFlags::DOWNSTREAM),
            Step::Unbindable(mount) => self.propagate(&mount, MountPropagationFlags::UNBINDABLE),
            Step::Join { from, to } => {
                let joined = mount::join_group(self.mounted(&from)?.as_fd(), self.mounted(&to)?.as_fd());
                step(joined, || format!("make {} a peer of {}", name(tree, &to), name(tree, &from)))
            }
        }
    }

    pub(super) fn mounted(&self, mount: &Mounted) -> Result<&OwnedFd, MakeError> {
        self.mounted.get(mount).ok_or_else(|| MakeError::Step {
            what: format!("reach the mount {mount:?} of the sandbox"),
            source: io::ErrorKind::NotFound.into(),
        })
    }

    fn attributes(&self, mount: &Mounted, bits: u64) -> Result<(), MakeError> {
        let fd = self.mounted(mount)?;
        let set = || set_flags(fd, bits);
        step(self.rooms.within(self.space_of(mount), &self.root, set), || {
            format!("set the flags of the mount {mount:?}")
        })
    }

    fn propagate(&self, mount: &Mounted, how: MountPropagationFlags) -> Result<(), MakeError> {
        let fd = self.mounted(mount)?;
        let set = || set_attributes(Some(fd.as_fd()), Path::new(""), false, 0, 0, u64::from(how.bits()));
        step(self.rooms.within(self.space_of(mount), &self.root, set), || {
            format!("set the propagation of the mount {mount:?}")
        })
    }

    /// The container owns what this shows: a name that is missing there comes with its files.
    pub(super) fn is_own(&self, tree: &Tree, origin: &Origin) -> bool {
        match origin {
            Origin::Made(id) => file_system(tree, *id).is_some_and(|fs| fs.fs_type == "tmpfs"),
            Origin::Configured(key) => {
                self.own.contains(&key.point) || tree.areas.iter().any(|area| area.of == *origin)
            }
        }
    }

    /// A detached mount of `path` of an origin.
    fn copy(
        &mut self,
        tree: &Tree,
        of: &Origin,
        (path, deleted): (&[u8], bool),
        directory: bool,
        point: &[u8],
    ) -> Result<(OwnedFd, Option<Doomed>), MakeError> {
        let shown = String::from_utf8_lossy(path).into_owned();
        let what = || format!("open {shown} for the mount on {}", String::from_utf8_lossy(point));
        let Some(origin) = self.provided.get(of) else {
            return Err(MakeError::Step { what: what(), source: io::ErrorKind::NotFound.into() });
        };
        let clone = |fd: &OwnedFd| open_tree(Some(fd.as_fd()), Path::new(""), OPEN_TREE_CLONE);
        if path.is_empty() && !deleted {
            let copied = match clone(origin) {
                // A single file, and a kernel that copies only what is mounted.
                Err(nix::Error::EINVAL) if !directory => {
                    let there = match of {
                        Origin::Configured(key) => self.mounted.get(&Mounted::Configured(key.clone())),
                        Origin::Made(_) => None,
                    };
                    match there.map(clone) {
                        Some(copied) => step(copied, what),
                        None => self
                            .provided
                            .remove(of)
                            .ok_or(MakeError::Step { what: what(), source: io::ErrorKind::NotFound.into() }),
                    }
                }
                copied => step(copied, what),
            };
            return Ok((copied?, None));
        }
        if deleted {
            let (doomed, fd) = step(Doomed::make(origin, path), what)?;
            return Ok((step(clone(&fd), what)?, Some(doomed)));
        }
        let own = self.is_own(tree, of);
        match spots::open(origin, path, directory, own, &mut self.placeholders) {
            Ok(fd) => Ok((step(clone(&fd), what)?, None)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let reason = match of {
                    Origin::Configured(key) if key.point != b"/" => {
                        format!("{shown} below {key}, which it shows, does not exist on the target node")
                    }
                    _ => format!("{shown}, which it shows, does not exist on the target node"),
                };
                Err(MakeError::Lacks(vec![refusal(
                    point,
                    reason,
                    "make it there, or move the container to a node that has it",
                )]))
            }
            Err(error) => step(Err(error), what),
        }
    }

    /// Where a mount is to be put.
    fn spot(
        &mut self,
        tree: &Tree,
        spot: &Spot,
        directory: bool,
        point: &[u8],
    ) -> Result<OwnedFd, MakeError> {
        let what = || format!("find the place of the mount on {}", String::from_utf8_lossy(point));
        let Some(on) = &spot.on else {
            return Err(MakeError::Step { what: what(), source: io::ErrorKind::InvalidInput.into() });
        };
        let origin = match on {
            Mounted::Configured(key) => Some(Origin::Configured(key.clone())),
            Mounted::Made(id) => tree.node(*id).and_then(|node| match &node.shows {
                Shows::Part { of, .. } => Some(of.clone()),
                Shows::Configured(_) => None,
            }),
        };
        let own = origin.is_some_and(|origin| self.is_own(tree, &origin));
        let Some(parent) = self.mounted.get(on) else {
            return Err(MakeError::Step { what: what(), source: io::ErrorKind::NotFound.into() });
        };
        step(spots::open(parent, &spot.place, directory, own, &mut self.placeholders), what)
    }
}

/// All flags of a mount.
const ALL: u64 = attr::RDONLY
    | attr::NOSUID
    | attr::NODEV
    | attr::NOEXEC
    | attr::ATIME_MASK
    | attr::NODIRATIME
    | attr::NOSYMFOLLOW;

/// Gives a mount exactly these flags.
pub(super) fn set_flags(mount: &OwnedFd, bits: u64) -> sys::Result<()> {
    let clear = (ALL & !bits) | attr::ATIME_MASK;
    set_attributes(Some(mount.as_fd()), Path::new(""), false, bits, clear, 0)
}

/// For messages.
fn name(tree: &Tree, mount: &Mounted) -> String {
    match mount {
        Mounted::Configured(key) => key.to_string(),
        Mounted::Made(id) => {
            tree.node(*id).map(|node| String::from_utf8_lossy(&node.point).into_owned()).unwrap_or_default()
        }
    }
}
