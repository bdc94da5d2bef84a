//! Reading the control groups of a container that leaves.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use image::groups::{Access, Device, Group, Groups, Tree, Value};
use image::{Pid, Refusal, Subject};

use super::known::{self, Class};
use super::members::{self, Crowd, Memo, Tasks};
use super::usage;
use super::watch::Watch;
use crate::runtime::cgroup::{Cgroup, CgroupError, gone};
use crate::session::ports::Throttled;

/// How often a tree is read anew when groups or processes come and go meanwhile.
const TRIES: u32 = 5;

/// Why groups could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// Something of them cannot move.
    #[error("{} part(s) of the control groups cannot move", .0.len())]
    Refused(Vec<Refusal>),
    /// A file of a group.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// Groups were made and removed all the time.
    #[error("the control groups below {0} do not stand still")]
    Restless(PathBuf),
}

/// Reads a container's groups, again and again: settings are read anew only where something was written.
#[derive(Debug)]
pub struct Reader {
    trees: Vec<Source>,
    widen: bool,
    throttled: Throttled,
}

/// A container's tree in one hierarchy.
#[derive(Debug)]
struct Source {
    root: PathBuf,
    unified: bool,
    controllers: Vec<String>,
    watch: Watch,
    /// As they were read last, without members.
    settings: Option<Vec<Group>>,
    refusals: Vec<Refusal>,
}

/// A refusal of the container's groups.
pub(super) fn refusal(reason: impl Into<String>, way_out: &str) -> Refusal {
    Refusal { pid: 0, subject: Subject::Container, reason: reason.into(), way_out: way_out.to_owned() }
}

/// A group's name in messages.
pub(super) fn title(path: &str) -> String {
    if path.is_empty() { "its own control group".to_owned() } else { format!("its control group {path}") }
}

impl Reader {
    /// For the groups of one container. `widen`: see [`Groups::widen`].
    #[must_use]
    pub fn new(cgroup: &Cgroup, widen: bool) -> Self {
        let trees = cgroup
            .groups
            .iter()
            .map(|group| Source {
                root: group.path.clone(),
                unified: group.hierarchy.unified,
                controllers: group.hierarchy.controllers.clone(),
                watch: Watch::new(),
                settings: None,
                refusals: Vec::new(),
            })
            .collect();
        Self { trees, widen, throttled: Throttled::default() }
    }

    /// From now on these settings are told as they were before the agent changed them.
    pub fn set_throttled(&mut self, throttled: &Throttled) {
        self.throttled = throttled.clone();
    }

    /// All groups as they are now. Exact while the container stands still and nobody writes to its groups. `known`:
    /// processes that stand still, as this process and as the container numbers them; others are looked up.
    ///
    /// # Errors
    /// [`ReadError::Refused`] names all that cannot move.
    pub fn look(&mut self, tasks: &dyn Tasks, known: &[(Pid, Pid)]) -> Result<Groups, ReadError> {
        let asked = &Memo::new(tasks, known);
        let mut refusals = Vec::new();
        let mut groups = Groups { widen: self.widen, ..Groups::default() };
        let mut crowds = Vec::new();
        for source in &mut self.trees {
            let (tree, pids) = source.look(asked, &self.throttled)?;
            refusals.extend(source.refusals.iter().cloned());
            refusals.extend(frozen(&tree));
            let (name, root) = (name(&tree), source.root.clone());
            crowds.push(Crowd { name, unified: source.unified, root, pids });
            groups.trees.push(tree);
        }
        refusals.extend(members::outside(&crowds, tasks)?);
        groups.devices = devices(&groups.trees);
        (groups.cpus, groups.mems) = self.everything();
        if refusals.is_empty() { Ok(groups) } else { Err(ReadError::Refused(refusals)) }
    }

    /// Names of counters that the mounted controllers keep: they begin anew at the target.
    #[must_use]
    pub fn counters(&self) -> Vec<String> {
        let mut names = BTreeSet::new();
        for source in &self.trees {
            let entries = fs::read_dir(&source.root).into_iter().flatten().filter_map(Result::ok);
            names.extend(entries.filter_map(|entry| entry.file_name().into_string().ok()));
        }
        names.into_iter().filter(|name| known::is_usage(name)).collect()
    }

    /// The CPUs and memory nodes of the groups above the container's.
    fn everything(&self) -> (String, String) {
        let roots = self.trees.iter().map(|source| (source.root.as_path(), source.unified));
        everything(roots)
    }
}

/// The CPUs and memory nodes that groups beside `roots` may have: those of the groups above them.
pub(super) fn everything<'a>(roots: impl Iterator<Item = (&'a Path, bool)>) -> (String, String) {
    let mut found = [None, None];
    for (root, unified) in roots {
        let Some(above) = root.parent() else { continue };
        let files = if unified {
            ["cpuset.cpus.effective", "cpuset.mems.effective"]
        } else {
            ["cpuset.effective_cpus", "cpuset.effective_mems"]
        };
        for (found, file) in found.iter_mut().zip(files) {
            let text = fs::read_to_string(above.join(file)).ok().map(|text| text.trim().to_owned());
            *found = found.take().or(text.filter(|text| !text.is_empty()));
        }
    }
    let online = |kind: &str| {
        let text = fs::read_to_string(format!("/sys/devices/system/{kind}/online")).unwrap_or_default();
        if text.trim().is_empty() { "0".to_owned() } else { text.trim().to_owned() }
    };
    let [cpus, mems] = found;
    (cpus.unwrap_or_else(|| online("cpu")), mems.unwrap_or_else(|| online("node")))
}

/// A hierarchy's name in messages.
fn name(tree: &Tree) -> String {
    if tree.unified { "cgroup v2".to_owned() } else { tree.controllers.join(",") }
}

impl Source {
    /// Its tree and every process in it, as this process numbers them.
    fn look(&mut self, tasks: &dyn Tasks, throttled: &Throttled) -> Result<(Tree, BTreeSet<Pid>), ReadError> {
        for _ in 0..TRIES {
            match self.try_look(tasks, throttled) {
                Err(ReadError::Cgroup(CgroupError::File { source, .. })) if gone(&source) => {
                    self.settings = None;
                }
                other => return other,
            }
        }
        Err(ReadError::Restless(self.root.clone()))
    }

    fn try_look(
        &mut self,
        tasks: &dyn Tasks,
        throttled: &Throttled,
    ) -> Result<(Tree, BTreeSet<Pid>), ReadError> {
        if self.watch.changed() || self.settings.is_none() {
            // Changes from here on are seen by the next look.
            self.watch.again();
            let mut groups = Vec::new();
            self.refusals.clear();
            self.walk(&self.root.clone(), "", throttled, &mut groups)?;
            self.settings = Some(groups);
        }
        let mut groups = self.settings.clone().unwrap_or_default();
        let members = members::read(&self.root, self.unified, &mut groups, tasks)?;
        let controllers = match groups.first() {
            Some(own) if self.unified => own.controllers.clone(),
            _ => self.controllers.clone(),
        };
        Ok((Tree { unified: self.unified, controllers, groups }, members))
    }

    fn walk(
        &mut self,
        dir: &Path,
        path: &str,
        throttled: &Throttled,
        groups: &mut Vec<Group>,
    ) -> Result<(), ReadError> {
        self.watch.add(dir);
        let failed = |error| CgroupError::file("read", dir)(error);
        let (mut files, mut below) = (Vec::new(), Vec::new());
        for entry in fs::read_dir(dir).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let is_dir = entry.file_type().map_err(failed)?.is_dir();
            match entry.file_name().into_string() {
                Ok(name) if is_dir => below.push(name),
                Ok(name) => files.push(name),
                Err(name) => self.refusals.push(refusal(
                    format!("the name of a control group is not UTF-8: {}", name.display()),
                    "give it another name",
                )),
            }
        }
        files.sort();
        below.sort();
        let group = self.group(dir, path, throttled, &files)?;
        groups.push(group);
        for name in below {
            let path = if path.is_empty() { name.clone() } else { format!("{path}/{name}") };
            self.walk(&dir.join(name), &path, throttled, groups)?;
        }
        Ok(())
    }

    fn group(
        &mut self,
        dir: &Path,
        path: &str,
        throttled: &Throttled,
        files: &[String],
    ) -> Result<Group, ReadError> {
        let mut group = Group { path: path.to_owned(), ..Group::default() };
        let read = |file: &str| -> Result<String, CgroupError> {
            let path = dir.join(file);
            fs::read_to_string(&path).map_err(CgroupError::file("read", &path))
        };
        let words = |text: String| text.split_whitespace().map(str::to_owned).collect::<Vec<String>>();
        if self.unified {
            let kind = read("cgroup.type")?;
            group.threaded = kind.trim() == "threaded";
            if path.is_empty() && !kind.starts_with("domain") || path.is_empty() && kind.contains("invalid") {
                self.refusals.push(refusal(
                    format!("its own control group is of type {}", kind.trim()),
                    "make threaded groups below it alone",
                ));
            }
            group.controllers = words(read("cgroup.controllers")?);
            group.subtree = words(read("cgroup.subtree_control")?);
        }
        let metadata = fs::metadata(dir).map_err(CgroupError::file("look at", dir))?;
        note_access(&mut group, "", &metadata, if path.is_empty() { None } else { Some(0o755) });
        for file in files {
            let place = dir.join(file);
            let metadata = fs::metadata(&place).map_err(CgroupError::file("look at", &place))?;
            note_access(&mut group, file, &metadata, None);
            let mode = metadata.permissions().mode();
            let setting = matches!(known::class(file), Class::Placement | Class::Limit | Class::Devices);
            let shown = mode & 0o444 != 0 && mode & 0o222 != 0 || file == "devices.list";
            if !setting || !shown {
                continue;
            }
            let text = match read(file) {
                Ok(text) => text,
                Err(CgroupError::File { source, .. }) if !gone(&source) => {
                    self.refusals.push(refusal(
                        format!("{} of {} cannot be read: {source}", file, title(path)),
                        "choose a kernel that shows it",
                    ));
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            let text = before_throttling(throttled, &place, text);
            let lines = known::lines(file, &text);
            let default = known::is_default(file, &lines).unwrap_or_else(|| {
                // Nobody configures the agent's own group.
                let above = self.root.parent().map(|above| above.join(file));
                above.and_then(|above| fs::read_to_string(above).ok()).is_some_and(|above| above == text)
            });
            // The container's own group is frozen by the agent.
            let by_agent = file == "cgroup.freeze" && path.is_empty();
            if !default && !by_agent {
                group.values.push(Value { file: file.clone(), lines });
            }
        }
        // A group of the idle class has no weight.
        if group.values.iter().any(|value| value.file == "cpu.idle") {
            group.values.retain(|value| !matches!(value.file.as_str(), "cpu.weight" | "cpu.shares"));
        }
        self.refusals.extend(usage::beyond(dir, path, self.unified, &group.values));
        Ok(group)
    }
}

/// A setting as it was before the agent changed it; as it is when somebody else changed it since.
fn before_throttling(throttled: &Throttled, place: &Path, text: String) -> String {
    let known = throttled.0.iter().find(|setting| setting.path == place);
    let known = known.filter(|known| known.written.iter().any(|written| written == text.trim()));
    known.map_or(text, |known| known.original.clone())
}

/// Notes owner and mode when they are not the kernel's own. `expected`: the mode of a directory; a file's mode is
/// told by its name alone and only compared in what may be changed about it.
fn note_access(group: &mut Group, file: &str, metadata: &fs::Metadata, expected: Option<u32>) {
    let mode = metadata.permissions().mode() & 0o777;
    let usual = match expected {
        Some(expected) => mode == expected,
        None => file.is_empty() || matches!(mode, 0o644 | 0o444 | 0o200 | 0o666 | 0o000),
    };
    if metadata.uid() != 0 || metadata.gid() != 0 || !usual {
        group.access.push(Access { file: file.to_owned(), uid: metadata.uid(), gid: metadata.gid(), mode });
    }
}

/// Groups that hold frozen processes: a stopped program cannot be asked for what only it can read.
fn frozen(tree: &Tree) -> Vec<Refusal> {
    let within = |path: &str, group: &Group| {
        path.is_empty()
            || group.path == path
            || group.path.strip_prefix(path).is_some_and(|r| r.starts_with('/'))
    };
    let is_frozen = |group: &&Group| {
        group.values.iter().any(|value| matches!(value.file.as_str(), "cgroup.freeze" | "freezer.state"))
    };
    let populated = |path: &str| tree.groups.iter().any(|group| within(path, group) && group.residents > 0);
    tree.groups
        .iter()
        .filter(is_frozen)
        .filter(|group| populated(&group.path))
        .map(|group| {
            refusal(format!("{} is frozen, with processes in it", title(&group.path)), "thaw it first")
        })
        .collect()
}

/// The devices that values name.
fn devices(trees: &[Tree]) -> Vec<Device> {
    let mut found = BTreeSet::new();
    for value in trees.iter().flat_map(|tree| &tree.groups).flat_map(|group| &group.values) {
        for line in &value.lines {
            let mut words = line.split(' ');
            let (block, number) = match (value.file.as_str(), words.next()) {
                ("devices.list", Some(kind @ ("b" | "c"))) => (kind == "b", words.next()),
                (file, number) if known::names_devices(file) => (true, number),
                _ => continue,
            };
            let Some((major, minor)) = number.and_then(number_of) else { continue };
            found.insert((block, major, minor));
        }
    }
    found
        .into_iter()
        .filter_map(|(block, major, minor)| {
            Some(Device { block, major, minor, name: device_name(block, major, minor)? })
        })
        .collect()
}

/// `8:0` as numbers; `None` for `8:*`.
pub(super) fn number_of(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// Subsystem and name of a device of this host, for example `block/sda`; see sysfs(5).
pub(super) fn device_name(block: bool, major: u32, minor: u32) -> Option<String> {
    let kind = if block { "block" } else { "char" };
    let link = PathBuf::from(format!("/sys/dev/{kind}/{major}:{minor}"));
    let last = |path: io::Result<PathBuf>| Some(path.ok()?.file_name()?.to_str()?.to_owned());
    Some(format!("{}/{}", last(fs::read_link(link.join("subsystem")))?, last(fs::canonicalize(&link))?))
}
