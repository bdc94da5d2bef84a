//! From the sandbox as it is to the tree that was asked for, as steps: pure.

use std::collections::{BTreeMap, BTreeSet};

use image::Refusal;

use super::options;
use super::tree::{Change, FileSystem, Key, Node, Origin, Shows, Tree, refusal};

/// A mount of the sandbox.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Mounted {
    /// The configuration made it.
    Configured(Key),
    /// It was made for the source's mount of this number.
    Made(u32),
}

/// A configured mount of this sandbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Base {
    /// Its name.
    pub(super) key: Key,
    /// What it is mounted on; `None` for the root.
    pub(super) parent: Option<Key>,
    /// Where in that, relative.
    pub(super) place: Vec<u8>,
    /// Its flags.
    pub(super) attributes: u64,
}

/// Where a mount hangs.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Spot {
    /// On which other one; `None` for the root.
    pub(super) on: Option<Mounted>,
    /// Where in that, relative.
    pub(super) place: Vec<u8>,
}

/// One step. They are taken in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Cuts all propagation, so that no other step is seen anywhere else.
    Private,
    /// Makes what an origin shows available whatever becomes of the mount: for a configured one, from that mount;
    /// for a file system, by making it.
    Provide(Origin),
    /// Sets options of a configured file system.
    Change(Change),
    /// Sets options of a file system that was made before.
    Refit {
        /// Its number.
        id: u64,
        /// What to set.
        options: Vec<String>,
    },
    /// Unmounts it; nothing is mounted on it.
    Unmount {
        /// Which.
        mount: Mounted,
        /// Where it is.
        spot: Spot,
    },
    /// Mounts what node `id` shows, with these flags (`None`: those of the configured mount).
    Mount {
        /// The node's number.
        id: u32,
        /// From where.
        of: Origin,
        /// Which path of it.
        path: Vec<u8>,
        /// Its name is to be removed afterwards.
        deleted: bool,
        /// It is a directory.
        directory: bool,
        /// Where.
        spot: Spot,
        /// Flags.
        attributes: Option<u64>,
    },
    /// Sets flags of a mount.
    Attributes(Mounted, u64),
    /// Gives it a peer group of its own.
    Share(Mounted),
    /// Makes `to` a peer of `from`, and a slave of its master.
    Join {
        /// A member.
        from: Mounted,
        /// The new one, private until now.
        to: Mounted,
    },
    /// Makes it a slave of its peers.
    Enslave(Mounted),
    /// Forbids to bind it.
    Unbindable(Mounted),
}

/// A layout: every mount with its spot, in the order in which they were mounted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Layout {
    /// Parents first.
    pub(super) mounts: Vec<(Mounted, Spot)>,
    /// Which mount stands for which of the source's.
    pub(super) of: BTreeMap<u32, Mounted>,
}

impl Layout {
    /// The sandbox as it was built.
    pub(super) fn built(base: &[Base]) -> Self {
        let spot = |base: &Base| Spot {
            on: base.parent.clone().map(Mounted::Configured),
            place: base.place.clone(),
        };
        let mounts = base.iter().map(|base| (Mounted::Configured(base.key.clone()), spot(base))).collect();
        Self { mounts, of: BTreeMap::new() }
    }

    fn spot(&self, mount: &Mounted) -> Option<&Spot> {
        self.mounts.iter().find(|(other, _)| other == mount).map(|(_, spot)| spot)
    }
}

/// What was done so far.
#[derive(Clone, Debug)]
pub(super) struct Done {
    /// The sandbox.
    pub(super) layout: Layout,
    /// The tree that it was made to be.
    pub(super) tree: Tree,
    /// What was provided.
    pub(super) provided: BTreeSet<Origin>,
}

impl Done {
    /// Nothing but the configuration.
    pub(super) fn built(base: &[Base]) -> Self {
        Self { layout: Layout::built(base), tree: Tree::default(), provided: BTreeSet::new() }
    }
}

/// Steps, and what is done when they are.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) steps: Vec<Step>,
    pub(super) done: Done,
}

const NOT_HERE: &str = "make it on the target node, or move the container to a node that has it";

/// Plans. `stale` are nodes whose mounts must be made again although nothing about them changed.
///
/// # Errors
/// What this sandbox lacks.
pub(super) fn plan(
    base: &[Base],
    done: &Done,
    wanted: &Tree,
    stale: &BTreeSet<u32>,
) -> Result<Plan, Vec<Refusal>> {
    let mut planner =
        Planner { base, done, wanted, layout: Layout::default(), create: Vec::new(), lacks: Vec::new() };
    planner.nodes(stale);
    planner.extras();
    planner.areas();
    let refits = planner.refits();
    if !planner.lacks.is_empty() {
        return Err(planner.lacks);
    }
    Ok(planner.steps(refits))
}

struct Planner<'a> {
    base: &'a [Base],
    done: &'a Done,
    wanted: &'a Tree,
    layout: Layout,
    create: Vec<&'a Node>,
    lacks: Vec<Refusal>,
}

impl<'a> Planner<'a> {
    fn base(&self, key: &Key) -> Option<&'a Base> {
        self.base.iter().find(|base| base.key == *key)
    }

    /// Which mount stands for each node: one that is there, or one to be made.
    fn nodes(&mut self, stale: &BTreeSet<u32>) {
        let mut skipped = BTreeSet::new();
        for node in &self.wanted.nodes {
            let on = match node.parent {
                None => None,
                Some(parent) if skipped.contains(&parent) => {
                    self.lack(node, "what it is mounted on");
                    skipped.insert(node.id);
                    continue;
                }
                Some(parent) => self.layout.of.get(&parent).cloned(),
            };
            let spot = Spot { on, place: node.place.clone() };
            if let Some(mount) = self.kept(node, &spot, stale) {
                self.layout.of.insert(node.id, mount.clone());
                self.layout.mounts.push((mount, spot));
                continue;
            }
            let origin = match &node.shows {
                Shows::Configured(key) => Origin::Configured(key.clone()),
                Shows::Part { of, .. } => of.clone(),
            };
            if let Origin::Configured(key) = &origin
                && self.done.layout.spot(&Mounted::Configured(key.clone())).is_none()
                && !self.done.provided.contains(&origin)
            {
                // The configuration itself may make less on this kernel: paths of /proc that are not there are not
                // hidden.
                if !matches!(node.shows, Shows::Configured(_)) {
                    self.lack(node, &format!("the mount on {key} that it shows a part of"));
                }
                skipped.insert(node.id);
                continue;
            }
            let mount = Mounted::Made(node.id);
            self.layout.of.insert(node.id, mount.clone());
            self.layout.mounts.push((mount, spot));
            self.create.push(node);
        }
    }

    fn lack(&mut self, node: &Node, what: &str) {
        let reason = format!("{what} is not there on the target node");
        self.lacks.push(refusal(&node.point, reason, NOT_HERE));
    }

    /// The mount that can stay for this node.
    fn kept(&self, node: &Node, spot: &Spot, stale: &BTreeSet<u32>) -> Option<Mounted> {
        let mount = match &node.shows {
            Shows::Configured(key) => {
                let configured = Mounted::Configured(key.clone());
                if self.done.layout.spot(&configured) == Some(spot) {
                    return Some(configured);
                }
                Mounted::Made(node.id)
            }
            Shows::Part { .. } => Mounted::Made(node.id),
        };
        if spot.on.as_ref().is_some_and(|on| self.is_created(on)) {
            return None;
        }
        let before = self.done.tree.node(node.id)?;
        let lasts = match &node.shows {
            Shows::Part { of: Origin::Made(id), .. } => lasts(&self.done.tree, self.wanted, *id),
            _ => true,
        };
        let same = lasts
            && before.space == node.space
            && before.shows == node.shows
            && before.directory == node.directory
            && !stale.contains(&node.id);
        // Flags as the configuration has them are those that a copy of its mount begins with.
        let flags = before.attributes.is_none() || node.attributes.is_some();
        (same && flags && self.done.layout.spot(&mount) == Some(spot)).then_some(mount)
    }

    /// Options of file systems that are there already.
    fn refits(&mut self) -> Vec<Step> {
        let mut steps = Vec::new();
        for fs in &self.wanted.made {
            let before = file_system(&self.done.tree, fs.id);
            let Some(before) = before.filter(|_| lasts(&self.done.tree, self.wanted, fs.id)) else {
                continue;
            };
            if !self.done.provided.contains(&Origin::Made(fs.id)) || before.options == fs.options {
                continue;
            }
            match options::difference(&fs.fs_type, &before.options, &fs.options) {
                Ok(options) => steps.push(Step::Refit { id: fs.id, options }),
                Err(option) => {
                    let origin = Origin::Made(fs.id);
                    let shows = |node: &&Node| matches!(&node.shows, Shows::Part { of, .. } if *of == origin);
                    let point = self.wanted.nodes.iter().find(shows).map(|node| node.point.clone());
                    let reason =
                        format!("its option {option} was changed during the move, which cannot be followed");
                    self.lacks.push(refusal(&point.unwrap_or_default(), reason, "try again"));
                }
            }
        }
        steps
    }

    /// Every directory in memory has an origin here.
    fn areas(&mut self) {
        for area in &self.wanted.areas {
            if let Origin::Configured(key) = &area.of
                && self.done.layout.spot(&Mounted::Configured(key.clone())).is_none()
                && !self.done.provided.contains(&area.of)
            {
                let reason = "the configuration mounted nothing there on the target node".to_owned();
                self.lacks.push(refusal(&key.point, reason, NOT_HERE));
            }
        }
    }

    /// Configured mounts of this node that the source never had (more is mounted in a directory of its host)
    /// stay with what they are on.
    fn extras(&mut self) {
        for (mount, spot) in &self.done.layout.mounts {
            let Mounted::Configured(key) = mount else { continue };
            let known = self.wanted.gone.contains(key)
                || self.wanted.nodes.iter().any(|node| node.shows == Shows::Configured(key.clone()));
            let stands =
                spot.on.as_ref().is_some_and(|on| self.layout.mounts.iter().any(|(other, _)| other == on));
            if !known && stands && self.layout.spot(mount).is_none() {
                self.layout.mounts.push((mount.clone(), spot.clone()));
            }
        }
    }

    fn steps(self, refits: Vec<Step>) -> Plan {
        let mut provided = self.done.provided.clone();
        // The number of a file system that went may be used again.
        provided.retain(|origin| match origin {
            Origin::Made(id) => lasts(&self.done.tree, self.wanted, *id),
            Origin::Configured(_) => true,
        });
        let (mut provide, mut mounts, mut unmounts, mut flags) =
            (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for (mount, spot) in self.done.layout.mounts.iter().rev() {
            if self.layout.spot(mount) != Some(spot) || self.is_created(mount) {
                unmounts.push(Step::Unmount { mount: mount.clone(), spot: spot.clone() });
            }
        }
        let removed = |key: &Key| {
            let mount = Mounted::Configured(key.clone());
            unmounts.iter().any(|step| matches!(step, Step::Unmount { mount: other, .. } if *other == mount))
        };
        for node in &self.create {
            let (of, path, deleted) = match &node.shows {
                Shows::Configured(key) => (Origin::Configured(key.clone()), Vec::new(), false),
                Shows::Part { of, path, deleted } => (of.clone(), path.clone(), *deleted),
            };
            if !provided.contains(&of) {
                let early = matches!(&of, Origin::Configured(key) if removed(key));
                let step = Step::Provide(of.clone());
                if early {
                    provide.push(step)
                } else {
                    mounts.push(step)
                }
                provided.insert(of.clone());
            }
            let spot = self.layout.spot(&Mounted::Made(node.id)).cloned();
            mounts.push(Step::Mount {
                id: node.id,
                of,
                path,
                deleted,
                directory: node.directory,
                spot: spot.unwrap_or(Spot { on: None, place: Vec::new() }),
                attributes: node.attributes,
            });
        }
        // A configured mount whose content travels although it is gone.
        for area in &self.wanted.areas {
            if provided.insert(area.of.clone()) {
                let early = matches!(&area.of, Origin::Configured(key) if removed(key));
                let step = Step::Provide(area.of.clone());
                if early { provide.push(step) } else { mounts.push(step) }
            }
        }
        for node in &self.wanted.nodes {
            let Some(mount @ Mounted::Configured(key)) = self.layout.of.get(&node.id) else {
                if let Some(mount) = self.layout.of.get(&node.id)
                    && !self.is_created(mount)
                    && let Some(attributes) = node.attributes
                    && self.done.tree.node(node.id).and_then(|before| before.attributes) != Some(attributes)
                {
                    flags.push(Step::Attributes(mount.clone(), attributes));
                }
                continue;
            };
            let configured = self.base(key).map(|base| base.attributes).unwrap_or_default();
            let before = self.done.tree.node(node.id).and_then(|before| before.attributes);
            if node.attributes != before {
                flags.push(Step::Attributes(mount.clone(), node.attributes.unwrap_or(configured)));
            }
        }
        let changes = self.wanted.changes.iter().filter(|change| !self.done.tree.changes.contains(change));
        let mut steps: Vec<Step> = changes.cloned().map(Step::Change).collect();
        steps.extend(refits);
        steps.extend(provide);
        steps.extend(unmounts);
        steps.extend(mounts);
        steps.extend(flags);
        let same_groups =
            steps.is_empty() && self.propagation(&self.done.tree) == self.propagation(self.wanted);
        if !same_groups {
            steps.insert(0, Step::Private);
            steps.extend(self.propagation(self.wanted));
        }
        let done = Done { layout: self.layout, tree: self.wanted.clone(), provided };
        Plan { steps, done }
    }

    fn is_created(&self, mount: &Mounted) -> bool {
        matches!(mount, Mounted::Made(id) if self.create.iter().any(|node| node.id == *id))
    }

    /// Peer groups: masters first, in each the member that shows most first.
    fn propagation(&self, tree: &Tree) -> Vec<Step> {
        let mount = |node: &Node| self.layout.of.get(&node.id).cloned();
        let mut groups: BTreeMap<u32, Vec<&Node>> = BTreeMap::new();
        for node in &tree.nodes {
            if let Some(group) = node.shared {
                groups.entry(group).or_default().push(node);
            }
        }
        for members in groups.values_mut() {
            members.sort_by_key(|node| node.depth);
        }
        let mut steps = Vec::new();
        let mut made = BTreeSet::new();
        let leader =
            |group: u32| groups.get(&group).and_then(|members| members.first()).and_then(|node| mount(node));
        // Each pass makes the groups whose master is there; a circle is impossible in the kernel.
        loop {
            let ready: Vec<u32> = groups
                .iter()
                .filter(|(group, members)| {
                    let master = members.first().and_then(|node| node.master);
                    !made.contains(*group)
                        && master.is_none_or(|master| made.contains(&master) || !groups.contains_key(&master))
                })
                .map(|(group, _)| *group)
                .collect();
            if ready.is_empty() {
                break;
            }
            for group in ready {
                made.insert(group);
                let members = groups.get(&group).map(Vec::as_slice).unwrap_or_default();
                let Some((first, others)) = members.split_first() else { continue };
                let Some(first_mount) = mount(first) else { continue };
                if let Some(from) = first.master.and_then(leader) {
                    steps.push(Step::Join { from, to: first_mount.clone() });
                    steps.push(Step::Enslave(first_mount.clone()));
                }
                steps.push(Step::Share(first_mount.clone()));
                steps.extend(
                    others
                        .iter()
                        .filter_map(|node| mount(node))
                        .map(|to| Step::Join { from: first_mount.clone(), to }),
                );
            }
        }
        for node in &tree.nodes {
            let Some(own) = mount(node) else { continue };
            if node.unbindable {
                steps.push(Step::Unbindable(own));
            } else if let (None, Some(from)) = (node.shared, node.master.and_then(leader)) {
                steps.push(Step::Join { from, to: own.clone() });
                steps.push(Step::Enslave(own));
            }
        }
        steps
    }
}

/// The file system of that number is still the same: the kernel may have given it to another one.
pub(super) fn lasts(before: &Tree, now: &Tree, id: u64) -> bool {
    let name = |fs: &FileSystem| (fs.fs_type.clone(), fs.pid_space);
    file_system(now, id).is_some_and(|fs| file_system(before, id).is_none_or(|then| name(then) == name(fs)))
}

/// The file system of that number.
pub(super) fn file_system(tree: &Tree, id: u64) -> Option<&FileSystem> {
    tree.made.iter().find(|fs| fs.id == id)
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
