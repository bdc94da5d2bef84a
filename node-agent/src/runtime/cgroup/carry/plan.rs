//! What the groups of a container must be on another host. Pure.

use std::collections::{BTreeMap, BTreeSet};

use image::groups::{Access, Groups, Member, Tree, Value};
use image::{Pid, Refusal};

use super::host::Host;
use super::known;
use super::node;
use super::read::{refusal, title};
use super::translate::{self, Settings, Untold};
use super::valid;

/// What a host must have for a container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// One for each hierarchy of the host, in its order.
    pub trees: Vec<TreePlan>,
    /// What is different on purpose, for whoever reads the migration's events.
    pub notes: Vec<String>,
}

impl Plan {
    /// Whether the container's own group has a list of devices that it may use: it then needs no other rules.
    #[must_use]
    pub fn has_device_rules(&self) -> bool {
        let own = self.trees.iter().filter_map(|tree| tree.groups.first());
        own.flat_map(|group| group.values.keys()).any(|file| file == "devices.list")
    }
}

/// One hierarchy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TreePlan {
    /// cgroup v2.
    pub unified: bool,
    /// Parents before their children; the container's own group, with an empty path, is the first.
    pub groups: Vec<GroupPlan>,
}

/// One group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GroupPlan {
    /// As [`Group::path`](image::groups::Group::path).
    pub path: String,
    /// As [`Group::threaded`](image::groups::Group::threaded).
    pub threaded: bool,
    /// As [`Group::subtree`](image::groups::Group::subtree).
    pub subtree: BTreeSet<String>,
    /// What its files must say; the others keep what a new group has.
    pub values: BTreeMap<String, Vec<String>>,
    /// As [`Group::access`](image::groups::Group::access).
    pub access: Vec<Access>,
    /// As [`Group::processes`](image::groups::Group::processes).
    pub processes: Vec<Pid>,
    /// As [`Group::threads`](image::groups::Group::threads).
    pub threads: Vec<Member>,
}

/// Plans the groups of a container for `host`.
///
/// # Errors
/// Everything that `host` cannot have.
pub fn plan(groups: &Groups, host: &Host) -> Result<Plan, Vec<Refusal>> {
    valid::check(groups).map_err(|what| vec![refusal(what, "upgrade the agents to one version")])?;
    let mut planner = Planner::new(groups, host);
    for index in 0..groups.trees.len() {
        planner.settings(index);
        planner.structure(index);
    }
    planner.fill_cpusets();
    planner.members();
    planner.delegation();
    planner.end()
}

/// Where something of a source's tree belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Home {
    tree: usize,
    /// It is of the other version.
    other: bool,
}

#[derive(Debug, Default)]
struct Growing {
    groups: BTreeMap<Vec<String>, GroupPlan>,
    /// Source trees whose groups it has.
    fed: BTreeSet<usize>,
    /// Controllers that a group needs for values that came from v1.
    needed: BTreeMap<Vec<String>, BTreeSet<String>>,
}

struct Planner<'a> {
    groups: &'a Groups,
    host: &'a Host,
    node: node::Node<'a>,
    growing: Vec<Growing>,
    refusals: Vec<Refusal>,
    notes: Vec<String>,
}

const OTHER_NODE: &str = "choose a node that has it, or remove the setting";

fn key(path: &str) -> Vec<String> {
    path.split('/').filter(|part| !part.is_empty()).map(str::to_owned).collect()
}

impl Growing {
    /// The group of this path, made with all above it.
    fn at(&mut self, path: &str) -> &mut GroupPlan {
        let key = key(path);
        for length in 0..key.len() {
            let above = key[..length].join("/");
            self.groups
                .entry(key[..length].to_vec())
                .or_insert_with(|| GroupPlan { path: above, ..GroupPlan::default() });
        }
        self.groups.entry(key).or_insert_with(|| GroupPlan { path: path.to_owned(), ..GroupPlan::default() })
    }
}

impl<'a> Planner<'a> {
    fn new(groups: &'a Groups, host: &'a Host) -> Self {
        let growing = host.trees.iter().map(|_| {
            let mut growing = Growing::default();
            growing.at("");
            growing
        });
        let growing = growing.collect();
        let node = node::Node::new(groups, host);
        Self { groups, host, node, growing, refusals: Vec::new(), notes: Vec::new() }
    }

    fn refuse(&mut self, reason: String, way_out: &str) {
        let refusal = refusal(reason, way_out);
        if !self.refusals.contains(&refusal) {
            self.refusals.push(refusal);
        }
    }

    /// The hierarchy that has a controller of `source` here, of the same version if possible.
    fn home(&self, source: &Tree, controller: &str) -> Option<Home> {
        let find = |unified: bool, name: &str| {
            let has = |tree: &super::host::HostTree| {
                tree.unified == unified && tree.controllers.iter().any(|known| known == name)
            };
            let tree = self.host.trees.iter().position(has)?;
            Some(Home { tree, other: unified != source.unified })
        };
        let v1 = if controller == "io" { "blkio" } else { controller };
        if source.unified {
            find(true, controller).or_else(|| find(false, v1))
        } else {
            find(false, controller).or_else(|| find(true, translate::in_v2(controller)?))
        }
    }

    /// The one hierarchy that files of every group belong to.
    fn core(&self, source: &Tree) -> Option<Home> {
        if source.unified {
            let tree = self.host.trees.iter().position(|tree| tree.unified)?;
            return Some(Home { tree, other: false });
        }
        let homes = source.controllers.iter().filter_map(|controller| self.home(source, controller));
        homes.into_iter().find(|home| !home.other)
    }

    /// Puts the values of a source's tree where they belong.
    fn settings(&mut self, index: usize) {
        let groups = self.groups;
        let source = &groups.trees[index];
        for group in &source.groups {
            let mut foreign: BTreeMap<usize, Settings> = BTreeMap::new();
            for value in &group.values {
                let controller = known::controller(&value.file);
                let home = match controller {
                    Some(controller) => self.home(source, controller),
                    None => self.core(source),
                };
                let said = format!("{} of {} is {}", value.file, title(&group.path), value.lines.join(", "));
                let Some(home) = home else {
                    let lacks = controller.map_or_else(
                        || format!("it lacks the hierarchy {}", source.controllers.join(",")),
                        |controller| format!("it lacks the controller {controller}"),
                    );
                    self.refuse(format!("{said}, and the target cannot have that: {lacks}"), OTHER_NODE);
                    continue;
                };
                let to_v1 = !self.host.trees[home.tree].unified;
                let lines = match self.node.map(value, to_v1) {
                    Ok(mapped) => {
                        if let Some(note) = mapped.note {
                            self.notes.push(format!("{said} at the source, {note} here"));
                        }
                        mapped.lines
                    }
                    Err(problem) => {
                        self.refuse(format!("{said}, and {}", problem.reason), problem.way_out);
                        continue;
                    }
                };
                if lines.is_empty() && known::is_default(&value.file, &[]) == Some(true) {
                    continue;
                }
                if home.other {
                    foreign.entry(home.tree).or_default().insert(value.file.clone(), lines);
                } else {
                    self.growing[home.tree].at(&group.path).values.insert(value.file.clone(), lines);
                }
            }
            for (tree, settings) in foreign {
                self.translated(tree, &group.path, &settings);
            }
        }
    }

    fn translated(&mut self, tree: usize, path: &str, settings: &Settings) {
        let unified = self.host.trees[tree].unified;
        let translated = if unified { translate::to_v2(settings) } else { translate::to_v1(settings) };
        match translated {
            Ok(values) => {
                for Value { file, lines } in values {
                    if let (true, Some(controller)) = (unified, known::controller(&file)) {
                        let needed = self.growing[tree].needed.entry(key(path)).or_default();
                        needed.insert(controller.to_owned());
                    }
                    self.growing[tree].at(path).values.insert(file, lines);
                }
            }
            Err(untold) => {
                for Untold { setting, why } in untold {
                    let to = if unified { "v2" } else { "v1" };
                    self.refuse(
                        format!(
                            "{setting} of {} cannot be had with cgroup {to} at the target: {why}",
                            title(path)
                        ),
                        OTHER_NODE,
                    );
                }
            }
        }
    }

    /// Makes the groups of a source's tree in every hierarchy that takes its place.
    fn structure(&mut self, index: usize) {
        let groups = self.groups;
        let source = &groups.trees[index];
        let mut homes: Vec<(usize, Option<&str>)> = Vec::new();
        if source.unified {
            homes.extend(self.core(source).map(|home| (home.tree, None)));
        }
        for controller in &source.controllers {
            homes.extend(self.home(source, controller).map(|home| (home.tree, Some(controller.as_str()))));
        }
        if homes.is_empty() && source.groups.len() > 1 {
            self.refuse(
                format!(
                    "it has control groups in the hierarchy {}, which the target lacks",
                    source.controllers.join(",")
                ),
                "choose a node that has it mounted, or remove the groups",
            );
        }
        for (tree, controller) in homes {
            let same = self.host.trees[tree].unified == source.unified;
            if source.groups.len() > 1 || same {
                self.growing[tree].fed.insert(index);
            }
            for group in &source.groups {
                // Below v2 groups without the controller there is nothing to divide in its v1 hierarchy.
                let has = controller.is_none_or(|name| {
                    same || !source.unified || group.controllers.iter().any(|c| c == name)
                });
                if has {
                    let planned = self.growing[tree].at(&group.path);
                    let shared =
                        |access: &&Access| same || access.file.is_empty() || access.file == "cgroup.procs";
                    for access in group.access.iter().filter(shared) {
                        if !planned.access.iter().any(|known| known.file == access.file) {
                            planned.access.push(access.clone());
                        }
                    }
                    planned.threaded |= same && group.threaded;
                }
            }
        }
        self.subtree(source);
    }

    /// Controllers that the container hands on to its groups: here, or in a v1 hierarchy, where that needs no word.
    fn subtree(&mut self, source: &Tree) {
        if !source.unified {
            return;
        }
        for group in &source.groups {
            for controller in &group.subtree {
                match self.home(source, controller) {
                    Some(home) if !home.other => {
                        self.growing[home.tree].at(&group.path).subtree.insert(controller.clone());
                    }
                    Some(_) => {}
                    None => self.refuse(
                        format!(
                            "{} divides the controller {controller}, which the target lacks",
                            title(&group.path)
                        ),
                        OTHER_NODE,
                    ),
                }
            }
        }
    }

    /// A v1 cpuset without CPUs takes no process, and v2 groups need not say any.
    fn fill_cpusets(&mut self) {
        for (tree, growing) in self.host.trees.iter().zip(&mut self.growing) {
            let from_v2 = growing.fed.iter().any(|index| self.groups.trees[*index].unified);
            if tree.unified || !from_v2 || !tree.controllers.iter().any(|name| name == "cpuset") {
                continue;
            }
            for (file, all) in [("cpuset.cpus", &self.host.cpus), ("cpuset.mems", &self.host.mems)] {
                let mut said: BTreeMap<Vec<String>, Vec<String>> = BTreeMap::new();
                for (key, group) in &mut growing.groups {
                    let above = key.len().checked_sub(1).and_then(|length| said.get(&key[..length]).cloned());
                    let lines = group.values.entry(file.to_owned());
                    let lines = lines.or_insert_with(|| above.unwrap_or_else(|| vec![all.clone()]));
                    said.insert(key.clone(), lines.clone());
                }
            }
        }
    }

    /// Puts processes and threads into their groups.
    fn members(&mut self) {
        for tree in 0..self.growing.len() {
            let fed: Vec<&Tree> =
                self.growing[tree].fed.iter().map(|index| &self.groups.trees[*index]).collect();
            // A tree without groups of its own says nothing about where its processes are in another one.
            let mut fed: Vec<&Tree> = fed.into_iter().filter(|source| source.groups.len() > 1).collect();
            let unified = self.host.trees[tree].unified;
            // cgroup v2 lists who belongs to the container; where it has groups, its word is not needed for v1.
            if !unified && fed.iter().any(|source| !source.unified) {
                fed.retain(|source| !source.unified);
            }
            let mut places: Vec<BTreeMap<Member, &str>> = Vec::new();
            for source in &fed {
                let mut place = BTreeMap::new();
                for group in &source.groups {
                    let whole = group.processes.iter().map(|pid| Member { pid: *pid, tid: 0 });
                    for member in whole.chain(group.threads.iter().copied()) {
                        place.insert(member, group.path.as_str());
                    }
                }
                places.push(place);
            }
            let everybody: BTreeSet<Member> = places.iter().flat_map(BTreeMap::keys).copied().collect();
            for member in everybody {
                let mut found = places.iter().map(|place| place.get(&member).copied().unwrap_or(""));
                let Some(path) = found.next() else { continue };
                if let Some(other) = found.find(|other| *other != path) {
                    self.refuse(
                        format!(
                            "process {} is in {} of one hierarchy and in {} of another, which are one at the target",
                            member.pid, title(path), title(other)
                        ),
                        "choose a node with the source's hierarchies, or put it into groups of the same name",
                    );
                    continue;
                }
                let from_v1 = unified && fed.iter().any(|source| !source.unified);
                if member.tid != 0 && from_v1 {
                    self.refuse(
                        format!("threads of process {} are in different control groups of cgroup v1, and the target has v2", member.pid),
                        "choose a node with the source's hierarchies, or put the process into one group",
                    );
                    continue;
                }
                let path = self.nearest(tree, path);
                let group = self.growing[tree].at(&path);
                if member.tid == 0 && !path.is_empty() {
                    group.processes.push(member.pid);
                } else if member.tid != 0 {
                    group.threads.push(member);
                }
            }
        }
    }

    /// The group of this path, or the nearest one above that this hierarchy has.
    fn nearest(&self, tree: usize, path: &str) -> String {
        let mut key = key(path);
        while !self.growing[tree].groups.contains_key(&key) && key.pop().is_some() {}
        key.join("/")
    }

    /// Controllers that values from v1 need in v2, from the top down. cgroup v2 has no processes beside groups that
    /// divide a controller.
    fn delegation(&mut self) {
        let processes: u32 = self
            .groups
            .trees
            .iter()
            .filter(|tree| tree.unified)
            .flat_map(|tree| &tree.groups)
            .map(|group| group.residents)
            .fold(0, u32::saturating_add);
        for tree in 0..self.growing.len() {
            let needed = std::mem::take(&mut self.growing[tree].needed);
            let below: usize = self.growing[tree].groups.values().map(|group| group.processes.len()).sum();
            let at_top = usize::try_from(processes).is_ok_and(|all| all > below);
            let mut crowded = BTreeSet::new();
            for (key, controllers) in needed {
                for length in 0..key.len() {
                    let path = key[..length].join("/");
                    let group = self.growing[tree].at(&path);
                    group.subtree.extend(controllers.iter().cloned());
                    if !group.processes.is_empty() || !group.threads.is_empty() || length == 0 && at_top {
                        crowded.insert(path);
                    }
                }
            }
            for path in crowded {
                self.refuse(
                    format!("{} holds processes beside groups with limits, which cgroup v2 of the target does not allow", title(&path)),
                    "choose a node with cgroup v1, or put its processes into a group of their own",
                );
            }
        }
    }

    fn end(self) -> Result<Plan, Vec<Refusal>> {
        if !self.refusals.is_empty() {
            return Err(self.refusals);
        }
        let trees = self.host.trees.iter().zip(self.growing).map(|(tree, growing)| TreePlan {
            unified: tree.unified,
            groups: growing.groups.into_values().collect(),
        });
        Ok(Plan { trees: trees.collect(), notes: self.notes })
    }
}
