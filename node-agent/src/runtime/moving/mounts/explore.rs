//! The source's side: a look at the mounts of a running container from inside its namespaces.
//!
//! Some can only be told through the mounts themselves (is it a directory or a file?), and directories in memory
//! have to be opened even where something else lies over them. That happens in a copy of the container's mount
//! namespace, where whatever is in the way can be taken off without anybody noticing.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use engine::proc::links::parse_bracketed;
use engine::proc::mountinfo::{self, Mount};
use image::{Pid, Refusal};
use rustix::fs::{
    AtFlags, CWD, Mode, OFlags, ResolveFlags, StatxFlags, fstat, openat, openat2, readlinkat, statx,
};
use rustix::io::Errno;
use rustix::mount::MountPropagationFlags;
use sys::mount::{OPEN_TREE_CLONE, detach_in, open_tree, set_attributes};
use sys::ns::{self, Kind, NetnsThread};

use super::describe::{self, Described, Door, Space, place};
use super::nested::Nested;
use super::tree::{MemoryArea, Origin, Shows, Tree, refusal};
use super::whose;

/// What a look found.
#[derive(Debug)]
pub(in crate::runtime::moving) struct Explored {
    /// The tree, without areas.
    pub(in crate::runtime::moving) tree: Tree,
    /// What cannot move.
    pub(in crate::runtime::moving) refusals: Vec<Refusal>,
    /// Directories in memory. Opened, unless they were known.
    pub(in crate::runtime::moving) areas: Vec<(MemoryArea, Option<OwnedFd>)>,
    /// Devices of configured file systems that nothing shows any more.
    pub(in crate::runtime::moving) dead: HashSet<(u32, u32)>,
    /// The namespaces below the container's.
    pub(in crate::runtime::moving) nested: Vec<Nested>,
}

impl Tree {
    /// Names the areas.
    pub(in crate::runtime::moving) fn set_areas(&mut self, areas: Vec<MemoryArea>) {
        self.areas = areas;
    }
}

/// Looks at the mounts of the container whose root process is `pid` and whose sandbox was `base` when it was new, and at those
/// in namespaces below its own. `known` are the areas that need not be opened, `dead` is what earlier looks said. Nothing of
/// the container changes.
///
/// # Errors
/// When its namespaces cannot be entered or something has vanished meanwhile.
pub(in crate::runtime::moving) fn explore(
    pid: i32,
    base: &[Mount],
    nested: &dyn Fn() -> io::Result<Vec<Nested>>,
    known: &BTreeSet<(Origin, Vec<u8>)>,
    dead: &HashSet<(u32, u32)>,
) -> io::Result<Explored> {
    let host: HashSet<(u32, u32)> = mountinfo::parse(&fs::read("/proc/self/mountinfo")?)
        .map_err(io::Error::other)?
        .into_iter()
        .map(|mount| mount.device)
        .collect();
    let own_users = ns::id(pid, Kind::User)? != ns::id_of(ns::open_own(Kind::User)?.as_fd())?;
    let mut tries = 0;
    loop {
        match once(pid, base, nested()?, &host, known, dead.clone()) {
            // A mount went while it was looked at, or a process.
            Err(error) if gone(&error) && tries < TRIES => tries += 1,
            Ok(mut explored) if own_users => {
                owned(&mut explored);
                return Ok(explored);
            }
            result => return result,
        }
    }
}

fn gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(Errno::SRCH.raw_os_error())
}

/// A file system belongs to the user namespace that it was mounted in; the agent would mount it in the host's.
fn owned(explored: &mut Explored) {
    for fs in &explored.tree.made {
        let shows = |shows: &Shows| matches!(shows, Shows::Part { of: Origin::Made(id), .. } if *id == fs.id);
        let point =
            explored.tree.nodes.iter().find(|node| shows(&node.shows)).map(|node| node.point.as_slice());
        let reason =
            format!("its file system ({}) was mounted in a user namespace: not carried yet", fs.fs_type);
        explored.refusals.push(refusal(point.unwrap_or(b"/"), reason, "unmount it before the move"));
    }
}

/// How often a tree that changes is looked at again.
const TRIES: u32 = 10;

/// Reads a mountinfo as this thread sees it.
fn read(proc: &OwnedFd, whose: &str) -> io::Result<Vec<Mount>> {
    let path = format!("{whose}/mountinfo");
    let mut file = File::from(openat(proc, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?);
    let mut text = Vec::new();
    file.read_to_end(&mut text)?;
    mountinfo::parse(&text).map_err(io::Error::other)
}

/// A thread in a namespace, with its mounts.
pub(super) struct Insider {
    thread: NetnsThread,
    proc: OwnedFd,
    pub(super) space: Space,
}

impl Insider {
    /// In the namespace of process `member`, which sees cgroups as process `pid` does. `root`: the mount that must be among them.
    fn enter(pid: i32, member: i32, number: u64, inner: Pid, root: Option<i32>) -> io::Result<Self> {
        let proc = openat(CWD, "/proc", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let thread = NetnsThread::start_within(vec![
            (ns::open(pid, Kind::Cgroup)?, Kind::Cgroup),
            (ns::open(member, Kind::Mnt)?, Kind::Mnt),
        ])?;
        let from = proc.try_clone()?;
        let mounts = thread.run(move || {
            if let Some(root) = root {
                let now = read(&from, &member.to_string())?;
                if now.iter().any(|mount| mount.id == root) {
                    return Ok(now);
                }
            }
            // A process may see a part only (chroot); this thread sees all.
            read(&from, "thread-self")
        })??;
        Ok(Self { thread, proc, space: Space { number, member: inner, mounts } })
    }

    /// What paths lead to there, by device and inode. Before it looks at anything that is covered.
    pub(super) fn lead_to(&self, paths: Vec<String>) -> io::Result<Vec<Option<(u64, u64)>>> {
        self.thread.run(move || {
            let root = openat(CWD, "/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
            let identity = |path: &String| {
                let found = fstat(&open_path(&root, path.as_bytes()).ok()?).ok()?;
                Some((found.st_dev, found.st_ino))
            };
            Ok(paths.iter().map(identity).collect())
        })?
    }

    /// [`look`] at those of `asked` that are here.
    fn look(&self, asked: &BTreeSet<i32>, opened: &BTreeSet<i32>) -> io::Result<BTreeMap<i32, Seen>> {
        let here = |ids: &BTreeSet<i32>| -> BTreeSet<i32> {
            self.space.mounts.iter().map(|mount| mount.id).filter(|id| ids.contains(id)).collect()
        };
        let (asked, opened) = (here(asked), here(opened));
        let (proc, now) = (self.proc.try_clone()?, self.space.mounts.clone());
        self.thread.run(move || look(&proc, &now, &asked, &opened))?
    }
}

fn once(
    pid: i32,
    base: &[Mount],
    nested: Vec<Nested>,
    host: &HashSet<(u32, u32)>,
    known: &BTreeSet<(Origin, Vec<u8>)>,
    mut dead: HashSet<(u32, u32)>,
) -> io::Result<Explored> {
    let mut insiders = vec![Insider::enter(pid, pid, 0, 0, base.first().map(|root| root.id))?];
    for one in &nested {
        insiders.push(Insider::enter(pid, one.pid, one.number, one.inner, None)?);
    }
    let mut spaces = Vec::with_capacity(insiders.len());
    for insider in &insiders {
        let Space { number, member, mounts } = &insider.space;
        spaces.push(Space { number: *number, member: *member, mounts: mounts.clone() });
    }
    let Described { mut tree, mut refusals, doors } = describe::describe(base, &spaces, host, &dead);
    let now = || spaces.iter().flat_map(|space| &space.mounts);
    if let Some(reason) = whose::unreported(&tree, &rustix::system::uname().release().to_string_lossy()) {
        refusals.push(reason);
    }
    let wanted: Vec<Door> = doors
        .iter()
        .filter(|door| !known.contains(&(door.area.of.clone(), door.area.path.clone())))
        .cloned()
        .collect();
    let mut asked: BTreeSet<i32> = tree
        .nodes
        .iter()
        .filter(|node| matches!(node.shows, Shows::Part { .. }))
        .filter_map(|node| i32::try_from(node.id).ok())
        .collect();
    let opened: BTreeSet<i32> = wanted.iter().filter_map(|door| door.mounts.first().copied()).collect();
    asked.extend(&opened);
    let member = |number: u64| spaces.iter().find(|space| space.number == number).map_or(0, |s| s.member);
    whose::layers(&tree, &mut refusals, &insiders, &member)?;
    whose::queues(&tree, &mut refusals, pid, &member)?;
    let mut found = BTreeMap::new();
    for insider in &insiders {
        match insider.look(&asked, &opened) {
            Ok(seen) => found.extend(seen),
            // It is refused, and may be the very reason why nothing can be opened.
            Err(_) if !refusals.is_empty() => {}
            // Covers cannot be taken off what is locked together by a user namespace.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                let reason = format!("a mount that is covered by another one cannot be looked at ({error})");
                let refusal = refusal(b"/", reason, "unmount what covers it before the move");
                refusals.push(Refusal { pid: insider.space.member, ..refusal });
            }
            Err(error) => return Err(error),
        }
    }
    for node in &mut tree.nodes {
        if let Some(seen) = i32::try_from(node.id).ok().and_then(|id| found.get(&id)) {
            node.directory = seen.directory;
            if !node.directory && matches!(node.shows, Shows::Part { deleted: true, .. }) {
                let reason = "it shows a file whose name was removed since: not carried yet";
                let refusal = refusal(&node.point, reason, "unmount it before the move");
                refusals.push(Refusal { pid: member(node.space), ..refusal });
            }
        }
    }
    whose::processes(&mut tree, &mut refusals, &found, ns::id(pid, Kind::Pid)?.ino, &member);
    let mut areas = Vec::new();
    for door in doors {
        if !wanted.contains(&door) {
            areas.push((door.area, None));
            continue;
        }
        let Some(seen) = door.mounts.first().and_then(|id| found.remove(id)) else { continue };
        let Some(dir) = seen.dir else {
            let point = now().find(|mount| Some(&mount.id) == door.mounts.first()).map(|mount| &mount.point);
            let reason = "it shows a single file of a tmpfs that is not mounted any more: not carried yet";
            let point = point.map(Vec::as_slice).unwrap_or_default();
            refusals.push(refusal(point, reason, "unmount it, or mount the tmpfs itself, too"));
            continue;
        };
        areas.push((door.area, Some(dir)));
    }
    let gone = |device: &(u32, u32)| !now().any(|mount| mount.device == *device);
    dead.extend(base.iter().map(|mount| mount.device).filter(gone));
    Ok(Explored { tree, refusals, areas, dead, nested })
}

/// The root of a mount.
#[derive(Debug)]
pub(super) struct Seen {
    directory: bool,
    /// Of a proc: the pid namespace of its first process, which is the one that it shows.
    pub(super) processes: Option<u64>,
    /// Opened, if it was to be.
    dir: Option<OwnedFd>,
}

/// The directory that a mount shows, in a mount of its own that nothing is mounted on and nobody else has.
fn alone(mount: &OwnedFd) -> io::Result<OwnedFd> {
    let copy = open_tree(Some(mount.as_fd()), Path::new(""), OPEN_TREE_CLONE)?;
    // A peer until now.
    set_attributes(Some(copy.as_fd()), Path::new(""), false, 0, 0, private())?;
    Ok(openat(&copy, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}

fn see(mount: &OwnedFd, open: bool, proc: bool) -> io::Result<Seen> {
    let directory = super::spots::is_directory(mount)?;
    let dir = (directory && open).then(|| alone(mount)).transpose()?;
    let first = || readlinkat(mount, "1/ns/pid", Vec::new()).ok();
    let processes = proc.then(first).flatten().and_then(|link| parse_bracketed(link.as_bytes()));
    Ok(Seen { directory, dir, processes })
}

fn private() -> u64 {
    u64::from(MountPropagationFlags::PRIVATE.bits())
}

/// Looks at the roots of the mounts `asked`, and opens those in `opened`. What is covered is seen in a private copy
/// of the mount namespace.
fn look(
    proc: &OwnedFd,
    now: &[Mount],
    asked: &BTreeSet<i32>,
    opened: &BTreeSet<i32>,
) -> io::Result<BTreeMap<i32, Seen>> {
    if asked.is_empty() {
        return Ok(BTreeMap::new());
    }
    let open_root = || openat(CWD, "/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
    let mut found = BTreeMap::new();
    let root = open_root()?;
    for mount in now.iter().filter(|mount| asked.contains(&mount.id)) {
        // One that cannot be bound is looked at below.
        if let Some(fd) = reach(&root, mount)?
            && let Ok(seen) = see(&fd, opened.contains(&mount.id), mount.fs_type == "proc")
        {
            found.insert(mount.id, seen);
        }
    }
    if found.len() == asked.len() {
        return Ok(found);
    }
    ns::unshare(Kind::Mnt.flag())?;
    let root = open_root()?;
    set_attributes(Some(root.as_fd()), Path::new(""), true, 0, 0, private())?;
    let copies = read(proc, "thread-self")?;
    let (theirs, ours) = (by_place(now), by_place(&copies));
    let ours: HashMap<&Vec<u8>, i32> = ours.iter().map(|(id, place)| (place, *id)).collect();
    let mut pending: BTreeMap<i32, i32> = BTreeMap::new();
    for id in asked.iter().filter(|id| !found.contains_key(id)) {
        let copy = theirs.get(id).and_then(|place| ours.get(place));
        let gone = || io::Error::new(io::ErrorKind::NotFound, format!("mount {id} has vanished"));
        pending.insert(*copy.ok_or_else(gone)?, *id);
    }
    while !pending.is_empty() {
        for mount in &copies {
            if let Some(id) = pending.get(&mount.id)
                && let Some(fd) = reach(&root, mount)?
            {
                // Now: what takes covers off may take this along.
                found.insert(*id, see(&fd, opened.contains(id), mount.fs_type == "proc")?);
                pending.remove(&mount.id);
            }
        }
        if !pending.is_empty() {
            uncover(&root, &copies, &pending)?;
        }
    }
    Ok(found)
}

/// Names each mount by the places of those that it is on: ids differ in a copy, these do not.
fn by_place(mounts: &[Mount]) -> HashMap<i32, Vec<u8>> {
    let mut names: HashMap<i32, Vec<u8>> = HashMap::new();
    let points: HashMap<i32, &Mount> = mounts.iter().map(|mount| (mount.id, mount)).collect();
    for mount in describe::in_order(mounts) {
        let name = match (names.get(&mount.parent), points.get(&mount.parent)) {
            (Some(above), Some(parent)) => {
                let mut name = above.clone();
                name.push(0);
                name.extend(place(&parent.point, &mount.point));
                name
            }
            _ => b"/".to_vec(),
        };
        names.insert(mount.id, name);
    }
    names
}

/// A path below `root` as O_PATH, through no link.
pub(super) fn open_path(root: &OwnedFd, path: &[u8]) -> rustix::io::Result<OwnedFd> {
    let path = path.strip_prefix(b"/").unwrap_or(path);
    let path = if path.is_empty() { Path::new(".") } else { Path::new(OsStr::from_bytes(path)) };
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    openat2(root, path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty(), resolve)
}

/// The mount that a descriptor leads into.
pub(super) fn mount_id(fd: &OwnedFd) -> rustix::io::Result<i32> {
    let id = statx(fd, "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID)?.stx_mnt_id;
    Ok(i32::try_from(id).unwrap_or(-1))
}

/// The root of a mount, unless something covers it.
pub(super) fn reach(root: &OwnedFd, mount: &Mount) -> io::Result<Option<OwnedFd>> {
    match open_path(root, &mount.point) {
        Ok(fd) if mount_id(&fd)? == mount.id => Ok(Some(fd)),
        Ok(_) | Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Takes off one mount that covers a pending one, and that no pending one is on.
fn uncover(root: &OwnedFd, mounts: &[Mount], pending: &BTreeMap<i32, i32>) -> io::Result<()> {
    let parents: HashMap<i32, i32> = mounts.iter().map(|mount| (mount.id, mount.parent)).collect();
    let on = |id: i32, below: i32| {
        let mut at = id;
        for _ in 0..mounts.len() {
            if at == below {
                return true;
            }
            match parents.get(&at) {
                Some(parent) if *parent != at => at = *parent,
                _ => return false,
            }
        }
        false
    };
    for mount in mounts.iter().filter(|mount| pending.contains_key(&mount.id)) {
        let path = PathBuf::from(OsStr::from_bytes(&mount.point));
        let mut prefixes: Vec<&Path> = path.ancestors().collect();
        prefixes.reverse();
        for prefix in prefixes {
            let Ok(fd) = open_path(root, prefix.as_os_str().as_bytes()) else { break };
            let cover = mount_id(&fd)?;
            if on(mount.id, cover) {
                continue;
            }
            let (Some(parent), Some(name)) = (prefix.parent(), prefix.file_name()) else { break };
            if pending.keys().any(|id| on(*id, cover)) {
                break;
            }
            let dir = open_path(root, parent.as_os_str().as_bytes())?;
            detach_in(dir.as_fd(), Path::new(name))?;
            return Ok(());
        }
    }
    Err(io::Error::other("a mount lies below others and cannot be reached"))
}
