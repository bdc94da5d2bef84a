//! From two readings of mountinfo (when the sandbox had just been built, and now) to the tree that travels: pure.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use engine::proc::mountinfo::Mount;
use image::{Pid, Refusal};

use super::options;
use super::tree::{Change, FileSystem, Key, MOST, MemoryArea, Node, Origin, Shows, Tree, refusal};

/// A directory in memory, with the mounts through which it can be opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Door {
    /// Which (its group is not known here).
    pub(super) area: MemoryArea,
    /// Ids of mounts whose root it is.
    pub(super) mounts: Vec<i32>,
}

/// A mount namespace with its mounts.
#[derive(Debug)]
pub(super) struct Space {
    /// 0 for the container's, else its number.
    pub(super) number: u64,
    /// A process in it, in the container's numbering; 0 for the container's.
    pub(super) member: Pid,
    /// Its mounts.
    pub(super) mounts: Vec<Mount>,
}

/// What was found.
#[derive(Debug, Default)]
pub(super) struct Described {
    /// Without areas; `directory` is true everywhere.
    pub(super) tree: Tree,
    /// What cannot move.
    pub(super) refusals: Vec<Refusal>,
    /// The areas.
    pub(super) doors: Vec<Door>,
}

const UNMOUNT: &str = "unmount it before the move";
const DELETED: &[u8] = b"//deleted";

/// The path of a mount point relative to its parent's.
pub(super) fn place(parent: &[u8], point: &[u8]) -> Vec<u8> {
    let rest = if parent == b"/" { point } else { point.strip_prefix(parent).unwrap_or(point) };
    rest.strip_prefix(b"/").unwrap_or(rest).to_vec()
}

/// `path` below `root`, relative; `None` when it is not there.
fn below(root: &[u8], path: &[u8]) -> Option<Vec<u8>> {
    let rest = if root == b"/" { path } else { path.strip_prefix(root)? };
    match rest.split_first() {
        None => Some(Vec::new()),
        Some((b'/', rest)) => Some(rest.to_vec()),
        Some(_) => None,
    }
}

fn without_deleted(root: &[u8]) -> (&[u8], bool) {
    root.strip_suffix(DELETED).map_or((root, false), |name| (name, true))
}

/// Shown relative to the reader's cgroup namespace: at the start it was its top.
fn is_cgroup(mount: &Mount) -> bool {
    matches!(mount.fs_type.as_str(), "cgroup" | "cgroup2")
}

/// Keys of configured mounts, in their order.
pub(super) fn keys(base: &[Mount]) -> Vec<Key> {
    let mut counts: HashMap<&[u8], u16> = HashMap::new();
    base.iter()
        .map(|mount| {
            let count = counts.entry(&mount.point).or_default();
            let key = Key { point: mount.point.clone(), nth: *count };
            *count += 1;
            key
        })
        .collect()
}

/// Parents before their children, else in the order given.
pub(super) fn in_order(mounts: &[Mount]) -> Vec<&Mount> {
    let ids: HashSet<i32> = mounts.iter().map(|mount| mount.id).collect();
    let mut done = HashSet::new();
    let mut ordered = Vec::with_capacity(mounts.len());
    let mut rest: Vec<&Mount> = mounts.iter().collect();
    while !rest.is_empty() {
        let before = rest.len();
        rest.retain(|mount| {
            let ready =
                !ids.contains(&mount.parent) || mount.parent == mount.id || done.contains(&mount.parent);
            if ready {
                done.insert(mount.id);
                ordered.push(*mount);
            }
            !ready
        });
        if rest.len() == before {
            break;
        }
    }
    ordered
}

/// Describes what is mounted `now`, in the container's namespace first, of which `base` was configured. `host` holds the devices of file systems that the agent has
/// mounted itself: the container's own are not among them. `dead` holds those of configured file systems that are gone:
/// the kernel may have given their numbers to others.
pub(super) fn describe(
    base: &[Mount],
    now: &[Space],
    host: &HashSet<(u32, u32)>,
    dead: &HashSet<(u32, u32)>,
) -> Described {
    let own = now.first().map(|own| own.mounts.as_slice()).unwrap_or_default();
    let groups = own.iter().filter(|mount| is_cgroup(mount)).map(|mount| (mount.id, mount.root.clone()));
    let mut work = Work {
        base,
        dead,
        keys: keys(base),
        host,
        groups: groups.collect(),
        member: 0,
        made: BTreeMap::new(),
        out: Described { tree: Tree::new(), ..Described::default() },
    };
    work.run(now);
    work.out
}

struct Work<'a> {
    base: &'a [Mount],
    dead: &'a HashSet<(u32, u32)>,
    keys: Vec<Key>,
    host: &'a HashSet<(u32, u32)>,
    /// Which group cgroup mounts of the container's namespace show.
    groups: HashMap<i32, Vec<u8>>,
    /// Of the namespace that is being described.
    member: Pid,
    made: BTreeMap<u64, FileSystem>,
    out: Described,
}

fn number(device: (u32, u32)) -> u64 {
    u64::from(device.0) << 32 | u64::from(device.1)
}

impl Work<'_> {
    fn refuse(&mut self, mount: &Mount, reason: impl Into<String>, way_out: &str) {
        let refusal = refusal(&mount.point, reason, way_out);
        self.out.refusals.push(Refusal { pid: self.member, ..refusal });
    }

    fn run(&mut self, now: &[Space]) {
        let count: usize = now.iter().map(|space| space.mounts.len()).sum();
        if count > MOST {
            let reason = format!("the container has {count} mounts, more than the {MOST} that can move");
            self.out.refusals.push(refusal(b"/", reason, "unmount some"));
            return;
        }
        let mut standing = HashSet::new();
        let mut nodes = Vec::new();
        for space in now {
            self.member = space.member;
            nodes.extend(self.space(space, &mut standing));
        }
        let all = || now.iter().flat_map(|space| &space.mounts);
        self.groups(&nodes, &all().map(|mount| (mount.id, mount)).collect());
        self.out.tree.gone = self
            .keys
            .iter()
            .enumerate()
            .filter(|(at, _)| !standing.contains(at))
            .map(|(_, key)| key.clone())
            .collect();
        self.out.tree.nodes = nodes;
        self.changes(all());
        self.out.doors = self.doors(all());
        let used: BTreeSet<u64> = self.used();
        self.out.tree.made = self.made.values().filter(|fs| used.contains(&fs.id)).cloned().collect();
    }

    /// The mounts of one namespace.
    fn space(&mut self, space: &Space, standing: &mut HashSet<usize>) -> Vec<Node> {
        let now = &space.mounts;
        let ordered = in_order(now);
        let points: HashMap<i32, &Mount> = now.iter().map(|mount| (mount.id, mount)).collect();
        let roots = now.iter().filter(|mount| !points.contains_key(&mount.parent)).count();
        let root = ordered.first().map(|root| root.id);
        let other = match space.number {
            0 => root != self.base.first().map(|root| root.id),
            _ => roots != 1,
        };
        if ordered.len() < now.len() || other {
            let reason = "it is not the root directory that the container was started with (pivot_root)";
            let refusal = refusal(b"/", reason, "start the container from the new root directory");
            self.out.refusals.push(Refusal { pid: self.member, ..refusal });
            return Vec::new();
        }
        let mut places: HashSet<(i32, Vec<u8>)> = HashSet::new();
        let mut nodes = Vec::new();
        for (index, mount) in ordered.iter().enumerate() {
            let parent = if index == 0 { None } else { points.get(&mount.parent).copied() };
            let place = parent.map(|parent| place(&parent.point, &mount.point)).unwrap_or_default();
            if parent.is_some_and(|parent| parent.id == ordered[0].id) && place.is_empty() {
                self.refuse(mount, "it covers the container's root directory", UNMOUNT);
                continue;
            }
            if index > 0 && !places.insert((mount.parent, place.clone())) {
                self.refuse(
                    mount,
                    "another mount was slipped in below it, which cannot be made again",
                    UNMOUNT,
                );
                continue;
            }
            if let Some(node) = self.node(mount, parent, place, standing) {
                nodes.push(Node { space: space.number, ..node });
            }
        }
        nodes
    }

    fn used(&self) -> BTreeSet<u64> {
        let of = |origin: &Origin| if let Origin::Made(id) = origin { Some(*id) } else { None };
        let nodes = self.out.tree.nodes.iter().filter_map(|node| match &node.shows {
            Shows::Part { of: origin, .. } => of(origin),
            Shows::Configured(_) => None,
        });
        nodes.chain(self.out.doors.iter().filter_map(|door| of(&door.area.of))).collect()
    }

    /// A mount of the file system that was configured, not of another one with its number.
    fn same_file_system(&self, base: &Mount, mount: &Mount) -> bool {
        base.device == mount.device
            && base.fs_type == mount.fs_type
            && base.source == mount.source
            && !self.dead.contains(&base.device)
            && (self.host.contains(&base.device)
                || base.super_options == mount.super_options
                || options::changed(&base.fs_type, &base.super_options, &mount.super_options).is_ok())
    }

    /// The configured mount that this one is, wherever it is now.
    fn configured(&self, mount: &Mount) -> Option<usize> {
        self.base.iter().position(|base| {
            let (root, _) = without_deleted(&mount.root);
            base.id == mount.id
                && self.same_file_system(base, mount)
                && (is_cgroup(base) || base.root == root || base.root == mount.root)
        })
    }

    fn node(
        &mut self,
        mount: &Mount,
        parent: Option<&Mount>,
        place: Vec<u8>,
        standing: &mut HashSet<usize>,
    ) -> Option<Node> {
        let configured = self.configured(mount);
        let (mut shows, mut as_before) = (None, false);
        if let Some(at) = configured {
            let base = &self.base[at];
            let there = self.base.iter().find(|other| other.id == base.parent);
            let same = parent.is_none()
                || (base.parent == mount.parent
                    && there.is_some_and(|there| self::place(&there.point, &base.point) == place));
            if same {
                standing.insert(at);
                as_before = base.options == mount.options;
                shows = Some(Shows::Configured(self.keys[at].clone()));
            }
        }
        let attributes = match options::of_mount(&mount.options) {
            _ if as_before => None,
            Ok(attributes) => Some(attributes),
            Err(option) => {
                self.refuse(mount, format!("its option {option} cannot be given to it again yet"), UNMOUNT);
                return None;
            }
        };
        let shows = match shows {
            Some(shows) => shows,
            None => self.part(mount)?,
        };
        let name = |id: i32| u32::try_from(id).unwrap_or_default();
        Some(Node {
            id: name(mount.id),
            space: 0,
            parent: parent.map(|parent| name(parent.id)),
            place,
            point: mount.point.clone(),
            shows,
            depth: u32::try_from(without_deleted(&mount.root).0.len()).unwrap_or(u32::MAX),
            directory: true,
            attributes,
            shared: mount.shared,
            master: mount.master,
            unbindable: mount.unbindable,
        })
    }

    /// What a mount that the container made shows.
    fn part(&mut self, mount: &Mount) -> Option<Shows> {
        let (root, deleted) = without_deleted(&mount.root);
        if root.starts_with(b"/..") {
            self.refuse(mount, "it shows what is outside of the container's cgroup namespace", UNMOUNT);
            return None;
        }
        let (of, path) = self.origin(mount, root)?;
        Some(Shows::Part { of, path, deleted })
    }

    /// The configured mount with the smallest view that still holds `root`.
    fn given(&self, mount: &Mount, root: &[u8]) -> Option<(Origin, Vec<u8>)> {
        let mut best: Option<(usize, usize, Vec<u8>)> = None;
        for (at, base) in self.base.iter().enumerate() {
            if !self.same_file_system(base, mount) {
                continue;
            }
            let shown = match self.groups.get(&base.id) {
                Some(group) => group.as_slice(),
                None if is_cgroup(base) => b"/",
                None => without_deleted(&base.root).0,
            };
            let Some(path) = below(shown, root) else { continue };
            if best.as_ref().is_none_or(|(length, ..)| shown.len() > *length) {
                best = Some((shown.len(), at, path));
            }
        }
        best.map(|(_, at, path)| (Origin::Configured(self.keys[at].clone()), path))
    }

    fn origin(&mut self, mount: &Mount, root: &[u8]) -> Option<(Origin, Vec<u8>)> {
        if let Some(given) = self.given(mount, root) {
            return Some(given);
        }
        if self.host.contains(&mount.device) && !is_cgroup(mount) {
            let shown = String::from_utf8_lossy(root).into_owned();
            self.refuse(
                mount,
                format!(
                    "it shows {shown} of a file system of the host ({}) that the container was not given",
                    mount.fs_type
                ),
                "unmount it, or give it to the container as a bind mount in config.json",
            );
            return None;
        }
        if !options::is_known(&mount.fs_type) {
            self.refuse(
                mount,
                format!("a file system of type {} cannot be made again elsewhere", mount.fs_type),
                UNMOUNT,
            );
            return None;
        }
        let id = number(mount.device);
        if !self.made.contains_key(&id) {
            match options::of_file_system(&mount.fs_type, &mount.super_options) {
                Ok(parsed) => {
                    let fs = FileSystem {
                        id,
                        fs_type: mount.fs_type.clone(),
                        source: mount.source.clone(),
                        options: parsed.options,
                        read_only: parsed.read_only,
                        pid_space: 0,
                    };
                    if let Some(reason) = layers(&fs) {
                        self.refuse(mount, reason, "mount it again with absolute paths, or unmount it");
                        return None;
                    }
                    self.made.insert(id, fs);
                }
                Err(option) => {
                    let reason =
                        format!("its {} has the option {option}, which cannot be given again", mount.fs_type);
                    self.refuse(mount, reason, UNMOUNT);
                    return None;
                }
            }
        }
        Some((Origin::Made(id), root.strip_prefix(b"/").unwrap_or(root).to_vec()))
    }

    /// Peer groups can be made again when one member shows all that the others show.
    fn groups(&mut self, nodes: &[Node], points: &HashMap<i32, &Mount>) {
        let mount = |node: &Node| i32::try_from(node.id).ok().and_then(|id| points.get(&id).copied());
        let members = |group: u32| nodes.iter().filter(move |node| node.shared == Some(group));
        let mut refused = Vec::new();
        for node in nodes {
            let Some(own) = mount(node) else { continue };
            let wide = |group: u32| {
                members(group)
                    .filter_map(mount)
                    .any(|peer| below(without_deleted(&peer.root).0, without_deleted(&own.root).0).is_some())
            };
            let widest = |group: u32| {
                members(group).filter_map(mount).any(|leader| {
                    members(group).filter_map(mount).all(|peer| {
                        below(without_deleted(&leader.root).0, without_deleted(&peer.root).0).is_some()
                    })
                })
            };
            if node.shared.is_some_and(|group| !widest(group)) {
                refused.push((own, "no mount of its peer group shows all that the others show"));
            } else if let Some(master) = node.master {
                if members(master).next().is_none() {
                    refused.push((own, "it receives mounts from outside of the container (slave)"));
                } else if !wide(master) || !widest(master) {
                    refused.push((own, "it shows more than the peer group that it receives mounts from"));
                }
            }
        }
        for (mount, reason) in refused {
            self.refuse(mount, reason, "make it private (mount --make-private) before the move");
        }
    }

    /// Options of configured file systems that the container changed.
    fn changes<'m>(&mut self, now: impl Iterator<Item = &'m Mount>) {
        let mut seen = HashSet::new();
        for mount in now {
            let Some(at) = self.base.iter().position(|base| self.same_file_system(base, mount)) else {
                continue;
            };
            let base = &self.base[at];
            let own =
                !self.host.contains(&base.device) && options::is_known(&base.fs_type) && !is_cgroup(base);
            if !own || base.super_options == mount.super_options || !seen.insert(mount.device) {
                continue;
            }
            if let Ok((options, read_only)) =
                options::changed(&base.fs_type, &base.super_options, &mount.super_options)
            {
                let (key, fs_type) = (self.keys[at].clone(), base.fs_type.clone());
                self.out.tree.changes.push(Change { key, fs_type, options, read_only });
            }
        }
    }

    /// The directories in memory that the container can reach: what is not below another one.
    fn doors<'m>(&self, now: impl Iterator<Item = &'m Mount>) -> Vec<Door> {
        let mut roots: BTreeMap<u64, Vec<(&[u8], &Mount)>> = BTreeMap::new();
        for mount in now.filter(|mount| mount.fs_type == "tmpfs" && !self.host.contains(&mount.device)) {
            let (root, deleted) = without_deleted(&mount.root);
            let base = self.base.iter().find(|base| self.same_file_system(base, mount));
            let read_only = |text: &str| text.split(',').any(|option| option == "ro");
            // What can never have been written to is empty.
            let empty =
                base.is_some_and(|base| read_only(&base.super_options) && read_only(&mount.super_options));
            if !deleted && !empty {
                roots.entry(number(mount.device)).or_default().push((root, mount));
            }
        }
        let mut doors: Vec<Door> = Vec::new();
        for list in roots.into_values() {
            let mut tops: Vec<&[u8]> = Vec::new();
            let mut sorted: Vec<&[u8]> = list.iter().map(|(root, _)| *root).collect();
            sorted.sort_unstable_by_key(|root| root.len());
            for root in sorted {
                if !tops.iter().any(|top| below(top, root).is_some()) {
                    tops.push(root);
                }
            }
            for top in tops {
                let through: Vec<&Mount> =
                    list.iter().filter(|(root, _)| *root == top).map(|(_, mount)| *mount).collect();
                let Some(mount) = through.first() else { continue };
                let relative = || top.strip_prefix(b"/").unwrap_or(top).to_vec();
                let (of, path) = self
                    .given(mount, top)
                    .unwrap_or_else(|| (Origin::Made(number(mount.device)), relative()));
                if matches!(&of, Origin::Made(id) if !self.made.contains_key(id)) {
                    continue;
                }
                doors.push(Door {
                    area: MemoryArea { group: 0, of, path },
                    mounts: through.iter().map(|mount| mount.id).collect(),
                });
            }
        }
        doors
    }
}

/// Why the layers of an overlay cannot be found again by their names.
fn layers(fs: &FileSystem) -> Option<String> {
    let relative = options::layers(fs).find(|path| !path.starts_with('/'))?;
    Some(format!("its overlay names the layer {relative} relative to a directory that is not known"))
}

#[cfg(test)]
#[path = "describe_tests.rs"]
mod tests;
