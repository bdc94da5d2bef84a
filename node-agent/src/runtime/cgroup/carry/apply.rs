//! Making the groups of a container that arrives.
//!
//! [`Applier::structure`] may come again and again while the container still runs at the source: it makes groups,
//! puts skeletons into them (so that their memory is charged where it belongs) and says where threads may run.
//! [`Applier::limits`] comes once, when the copy is complete: nothing throttles its making, and it has its limits
//! before it runs.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::path::{Path, PathBuf};

use image::Pid;
use image::groups::{Access, Member};

use super::files::GroupFiles;
use super::known::{self, Class};
use super::plan::{GroupPlan, Plan, TreePlan};

/// The list of a v1 group's device rules. It is read; rules are written elsewhere.
const DEVICES: &str = "devices.list";

/// Why a target cannot have the groups of a container.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// A group could not be made, removed or changed.
    #[error("cannot {what} {path}")]
    Group {
        /// `make`, `remove`, `change the owner of`, ...
        what: &'static str,
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A setting was refused by the kernel.
    #[error("cannot set {path} to {value:?}")]
    Setting {
        /// The file.
        path: PathBuf,
        /// What was written.
        value: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The kernel has no such setting.
    #[error("the kernel of this node has no {path}, which the container has set to {value:?}")]
    Unknown {
        /// The file.
        path: PathBuf,
        /// What it should say.
        value: String,
    },
    /// The copy needs more memory than its limit.
    #[error("the copy uses {used} bytes of memory, more than its limit of {limit} in {path}")]
    Beyond {
        /// The group's file.
        path: PathBuf,
        /// Bytes in use.
        used: u64,
        /// Its limit, bytes.
        limit: u64,
    },
    /// A process or thread that belongs into a group does not exist.
    #[error("process {} thread {} does not exist in the copy", .0.pid, .0.tid)]
    NoThread(Member),
    /// A process or thread cannot be put into its group.
    #[error("cannot put process {} thread {} into {path}", .member.pid, .member.tid)]
    Move {
        /// Who, in the container's numbering.
        member: Member,
        /// The group.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// A thread of the copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Task {
    /// Its number in the container, and its process's. A process's first thread has equal ones.
    pub member: Member,
    /// Its number as this process sees it.
    pub host: Pid,
}

/// Makes the groups of one container.
#[derive(Debug)]
pub struct Applier {
    trees: Vec<Applied>,
}

/// What was done in one hierarchy.
#[derive(Debug)]
struct Applied {
    root: PathBuf,
    plan: TreePlan,
    /// Where processes were put, by the number that we have for them.
    places: HashMap<Pid, String>,
    /// It has or had groups below the container's own: who is where is no matter of course.
    divided: bool,
}

impl Applier {
    /// For groups below these directories, one for each hierarchy of the plans to come. They exist.
    #[must_use]
    pub fn new(roots: impl IntoIterator<Item = PathBuf>) -> Self {
        let trees = roots.into_iter().map(|root| Applied {
            root,
            plan: TreePlan::default(),
            places: HashMap::new(),
            divided: false,
        });
        Self { trees: trees.collect() }
    }

    /// Makes the groups of `plan`, and puts those of `tasks` that lead a process into theirs. A process that is not
    /// there yet is none of this call's business.
    ///
    /// # Errors
    /// What the kernel refused; the container's groups are then removed as a whole.
    pub fn structure(
        &mut self,
        files: &mut dyn GroupFiles,
        plan: &Plan,
        tasks: &[Task],
    ) -> Result<(), ApplyError> {
        for (applied, plan) in self.trees.iter_mut().zip(&plan.trees) {
            applied.structure(files, plan, tasks)?;
        }
        Ok(())
    }

    /// Puts every process and thread into its group and applies all limits.
    ///
    /// # Errors
    /// What the kernel refused, or a process that is missing.
    pub fn limits(&mut self, files: &mut dyn GroupFiles, tasks: &[Task]) -> Result<(), ApplyError> {
        for applied in &mut self.trees {
            applied.everybody(files, tasks)?;
            applied.values(files, Class::Limit, &TreePlan::default())?;
            applied.grant(files)?;
        }
        Ok(())
    }
}

impl Applied {
    fn dir(&self, path: &str) -> PathBuf {
        if path.is_empty() { self.root.clone() } else { self.root.join(path) }
    }

    fn structure(
        &mut self,
        files: &mut dyn GroupFiles,
        plan: &TreePlan,
        tasks: &[Task],
    ) -> Result<(), ApplyError> {
        let before = std::mem::replace(&mut self.plan, plan.clone());
        self.divided |= plan.groups.len() > 1;
        let known: BTreeMap<&str, &GroupPlan> =
            before.groups.iter().map(|group| (group.path.as_str(), group)).collect();
        for group in &plan.groups {
            // A group that was made anew at the source under the same name may be of the other type now.
            let old = known.get(group.path.as_str());
            let mut made = group.path.is_empty() || old.is_some();
            let dir = self.dir(&group.path);
            if old.is_some_and(|old| old.threaded) && !group.threaded {
                // There is no way back but to make it anew.
                files.remove(&dir).map_err(failed("remove", &dir))?;
                made = false;
            }
            if !made {
                files.make(&dir).map_err(failed("make", &dir))?;
            }
            // While there is no group below it the kernel takes any rule; those that are made later begin with its.
            if let Some(rules) = group.values.get(DEVICES)
                && old.and_then(|old| old.values.get(DEVICES)) != Some(rules)
            {
                set_devices(files, &dir, rules)?;
            }
            if group.threaded && !old.is_some_and(|old| old.threaded) {
                write(files, &dir, "cgroup.type", "threaded")?;
            }
        }
        self.hand_back(files, &before)?;
        if !plan.unified {
            // No process can enter a cpuset that has no CPUs.
            self.values(files, Class::Placement, &before)?;
        }
        self.processes(files, tasks)?;
        self.hand_on(files, &before)?;
        if plan.unified {
            self.values(files, Class::Placement, &before)?;
        }
        let kept: BTreeSet<&str> = plan.groups.iter().map(|group| group.path.as_str()).collect();
        for group in before.groups.iter().rev().filter(|group| !kept.contains(group.path.as_str())) {
            let dir = self.dir(&group.path);
            files.remove(&dir).map_err(failed("remove", &dir))?;
        }
        self.exist(files)
    }

    /// Takes controllers back from groups that have none of their own any more, from the bottom up.
    fn hand_back(&self, files: &mut dyn GroupFiles, before: &TreePlan) -> Result<(), ApplyError> {
        let now: BTreeMap<&str, &GroupPlan> =
            self.plan.groups.iter().map(|group| (group.path.as_str(), group)).collect();
        for group in before.groups.iter().rev() {
            let kept = now.get(group.path.as_str()).map(|group| &group.subtree);
            let lost = group.subtree.iter().filter(|name| kept.is_none_or(|kept| !kept.contains(*name)));
            let words: Vec<String> = lost.map(|name| format!("-{name}")).collect();
            if !words.is_empty() {
                write(files, &self.dir(&group.path), "cgroup.subtree_control", &words.join(" "))?;
            }
        }
        Ok(())
    }

    /// Hands controllers on, from the top down.
    fn hand_on(&self, files: &mut dyn GroupFiles, before: &TreePlan) -> Result<(), ApplyError> {
        for group in &self.plan.groups {
            let old = before.groups.iter().find(|old| old.path == group.path).map(|old| &old.subtree);
            let new = group.subtree.iter().filter(|name| old.is_none_or(|old| !old.contains(*name)));
            let words: Vec<String> = new.map(|name| format!("+{name}")).collect();
            if !words.is_empty() {
                write(files, &self.dir(&group.path), "cgroup.subtree_control", &words.join(" "))?;
            }
        }
        Ok(())
    }

    /// The group of a process, by its first thread.
    fn place_of(&self) -> HashMap<Pid, &str> {
        let mut places = HashMap::new();
        for group in &self.plan.groups {
            let first =
                group.threads.iter().filter(|member| member.pid == member.tid).map(|member| member.pid);
            for pid in group.processes.iter().copied().chain(first) {
                places.insert(pid, group.path.as_str());
            }
        }
        places
    }

    /// Puts processes into their groups. A new skeleton is where the process is that made it.
    fn processes(&mut self, files: &mut dyn GroupFiles, tasks: &[Task]) -> Result<(), ApplyError> {
        if !self.divided {
            return Ok(());
        }
        let wanted = self.place_of();
        let mut moves = Vec::new();
        for task in tasks.iter().filter(|task| task.member.pid == task.member.tid) {
            let path = wanted.get(&task.member.pid).copied().unwrap_or("");
            if self.places.get(&task.host).is_none_or(|place| place != path) {
                moves.push((*task, path.to_owned()));
            }
        }
        for (task, path) in moves {
            let dir = self.dir(&path);
            files
                .write(&dir.join("cgroup.procs"), &task.host.to_string())
                .map_err(|source| ApplyError::Move { member: task.member, path: dir, source })?;
            self.places.insert(task.host, path);
        }
        Ok(())
    }

    /// As [`Applied::processes`], with every thread, and nobody missing.
    fn everybody(&mut self, files: &mut dyn GroupFiles, tasks: &[Task]) -> Result<(), ApplyError> {
        self.processes(files, tasks)?;
        let hosts: HashMap<Member, Pid> = tasks.iter().map(|task| (task.member, task.host)).collect();
        let places = self.place_of();
        let list = if self.plan.unified { "cgroup.threads" } else { "tasks" };
        for group in &self.plan.groups {
            let dir = self.dir(&group.path);
            for pid in &group.processes {
                let first = Member { pid: *pid, tid: *pid };
                if !hosts.contains_key(&first) {
                    return Err(ApplyError::NoThread(first));
                }
            }
            for member in &group.threads {
                let host = *hosts.get(member).ok_or(ApplyError::NoThread(*member))?;
                if places.get(&member.pid).copied().unwrap_or("") != group.path {
                    files.thread(&dir.join(list), host).map_err(|source| ApplyError::Move {
                        member: *member,
                        path: dir.clone(),
                        source,
                    })?;
                }
            }
        }
        Ok(())
    }

    /// Writes the values of a class that `before` did not have, parents first. The kernel may want another order
    /// (a set of CPUs within its parent's, memory not above memory and swap): what it refuses is tried again after
    /// the others, for as long as that helps.
    fn values(&self, files: &mut dyn GroupFiles, class: Class, before: &TreePlan) -> Result<(), ApplyError> {
        let mut pending: Vec<(PathBuf, String, Vec<String>)> = Vec::new();
        for group in &self.plan.groups {
            let old = before.groups.iter().find(|old| old.path == group.path).map(|old| &old.values);
            let dir = self.dir(&group.path);
            for (file, lines) in &group.values {
                let same = old.and_then(|old| old.get(file)).is_some_and(|old| old == lines);
                if known::class(file) == class && !same {
                    pending.push((dir.clone(), file.clone(), lines.clone()));
                }
            }
            // What has become the default again.
            for file in old.into_iter().flat_map(BTreeMap::keys) {
                if known::class(file) == class && !group.values.contains_key(file) {
                    let default = known::default(file).unwrap_or_default().to_owned();
                    pending.push((dir.clone(), file.clone(), vec![default]));
                }
            }
        }
        while !pending.is_empty() {
            let all = pending.len();
            let mut refused = None;
            let mut left = Vec::new();
            for (dir, file, lines) in pending {
                match set(files, &dir, &file, &lines) {
                    Ok(()) => {}
                    Err(error @ ApplyError::Beyond { .. }) => return Err(error),
                    Err(error) => {
                        refused.get_or_insert(error);
                        left.push((dir, file, lines));
                    }
                }
            }
            match refused {
                Some(error) if left.len() == all => return Err(error),
                _ => pending = left,
            }
        }
        Ok(())
    }

    /// Owners and modes, last: they are the container's business.
    fn grant(&self, files: &mut dyn GroupFiles) -> Result<(), ApplyError> {
        for group in &self.plan.groups {
            let dir = self.dir(&group.path);
            for access in &group.access {
                let path = if access.file.is_empty() { dir.clone() } else { dir.join(&access.file) };
                let Access { uid, gid, mode, .. } = *access;
                files.grant(&path, uid, gid, mode).map_err(failed("change the owner of", &path))?;
            }
        }
        Ok(())
    }

    /// Everything that is to be set later is there.
    fn exist(&self, files: &mut dyn GroupFiles) -> Result<(), ApplyError> {
        for group in &self.plan.groups {
            for (file, lines) in &group.values {
                let path = self.dir(&group.path).join(file);
                if !files.exists(&path) {
                    return Err(ApplyError::Unknown { path, value: lines.join(", ") });
                }
            }
        }
        Ok(())
    }
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ApplyError {
    let path = path.to_owned();
    move |source| ApplyError::Group { what, path, source }
}

fn write(files: &mut dyn GroupFiles, dir: &Path, file: &str, value: &str) -> Result<(), ApplyError> {
    let path = dir.join(file);
    files.write(&path, value).map_err(|source| ApplyError::Setting { path, value: value.to_owned(), source })
}

/// Makes one file say these lines.
fn set(files: &mut dyn GroupFiles, dir: &Path, file: &str, lines: &[String]) -> Result<(), ApplyError> {
    let path = dir.join(file);
    let now = files.read(&path).map(|text| known::lines(file, &text));
    if now.is_ok_and(|now| now == lines) {
        return Ok(());
    }
    if file == "memory.max" {
        make_room(files, dir, lines)?;
    }
    for line in lines {
        // A write of nothing at all does not reach the kernel.
        write(files, dir, file, if line.is_empty() { "\n" } else { line })?;
    }
    Ok(())
}

/// Makes a group allow these devices and no others.
fn set_devices(files: &mut dyn GroupFiles, dir: &Path, rules: &[String]) -> Result<(), ApplyError> {
    let path = dir.join(DEVICES);
    let text = files.read(&path).map_err(failed("read", &path))?;
    let mut now = known::lines(DEVICES, &text);
    if known::is_default(DEVICES, &now) == Some(true) {
        write(files, dir, "devices.deny", "a")?;
        now.clear();
    }
    for rule in now.iter().filter(|rule| !rules.contains(rule)) {
        write(files, dir, "devices.deny", rule)?;
    }
    for rule in rules.iter().filter(|rule| !now.contains(rule)) {
        write(files, dir, "devices.allow", rule)?;
    }
    Ok(())
}

/// cgroup v2 kills when a limit is set below the usage: what can be dropped is dropped before.
fn make_room(files: &mut dyn GroupFiles, dir: &Path, lines: &[String]) -> Result<(), ApplyError> {
    let Some(limit) = lines.first().and_then(|line| line.parse::<u64>().ok()) else { return Ok(()) };
    let path = dir.join("memory.current");
    let mut used = || -> Result<u64, ApplyError> {
        let text = files.read(&path).map_err(failed("read", &path))?;
        let used = text.trim().parse().unwrap_or(0);
        if used > limit {
            // EAGAIN: less could be dropped than was asked for. Linux before 5.19 has no such file.
            let _ = files.write(&dir.join("memory.reclaim"), &(used - limit).to_string());
        }
        Ok(used)
    };
    if used()? > limit {
        let used = used()?;
        if used > limit {
            return Err(ApplyError::Beyond { path: dir.join("memory.max"), used, limit });
        }
    }
    Ok(())
}
