//! Hierarchies for tests, with the kernel's rules about the order of writes.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::path::{Path, PathBuf};

use image::Pid;

use super::files::GroupFiles;
use super::host::HostTree;
use super::{known, sets};

const V2: [(&str, &[&str]); 5] = [
    ("cpu", &["cpu.weight", "cpu.max", "cpu.max.burst", "cpu.idle"]),
    ("cpuset", &["cpuset.cpus", "cpuset.mems"]),
    ("io", &["io.max"]),
    ("memory", &["memory.max", "memory.high", "memory.low", "memory.swap.max", "memory.current"]),
    ("pids", &["pids.max"]),
];
const V1: [(&str, &[&str]); 5] = [
    ("cpu", &["cpu.shares", "cpu.cfs_quota_us", "cpu.cfs_period_us", "cpu.cfs_burst_us", "cpu.idle"]),
    ("cpuset", &["cpuset.cpus", "cpuset.mems"]),
    ("blkio", &["blkio.throttle.write_bps_device", "blkio.throttle.read_iops_device"]),
    ("memory", &["memory.limit_in_bytes", "memory.memsw.limit_in_bytes", "memory.soft_limit_in_bytes"]),
    ("pids", &["pids.max"]),
];

fn refuse(errno: i32) -> io::Error {
    io::Error::from_raw_os_error(errno)
}

/// Hierarchies with the rules that make the order of writes matter.
#[derive(Debug)]
pub(super) struct Fake {
    pub(super) trees: Vec<(PathBuf, HostTree)>,
    pub(super) files: BTreeMap<PathBuf, String>,
    pub(super) dirs: BTreeSet<PathBuf>,
    pub(super) places: HashMap<(PathBuf, Pid), PathBuf>,
}

impl Fake {
    /// With the container's own groups, which hold `pids`.
    pub(super) fn new(trees: &[HostTree], pids: &[Pid]) -> Self {
        let trees: Vec<(PathBuf, HostTree)> = trees
            .iter()
            .enumerate()
            .map(|(n, tree)| (PathBuf::from(format!("/h{n}/own")), tree.clone()))
            .collect();
        let mut fake = Self { trees, files: BTreeMap::new(), dirs: BTreeSet::new(), places: HashMap::new() };
        for (root, tree) in fake.trees.clone() {
            fake.dirs.insert(root.clone());
            fake.populate(&root, &tree, &tree.controllers);
            for pid in pids {
                fake.places.insert((root.clone(), *pid), root.clone());
            }
            if !tree.unified && tree.controllers.iter().any(|c| c == "cpuset") {
                fake.files.insert(root.join("cpuset.cpus"), "0-7".to_owned());
                fake.files.insert(root.join("cpuset.mems"), "0".to_owned());
            }
        }
        fake
    }

    fn tree(&self, path: &Path) -> (PathBuf, HostTree) {
        self.trees.iter().find(|(root, _)| path.starts_with(root)).cloned().expect("a path of the container")
    }

    fn populate(&mut self, dir: &Path, tree: &HostTree, controllers: &[String]) {
        let core: &[(&str, &str)] = if tree.unified {
            &[
                ("cgroup.procs", ""),
                ("cgroup.threads", ""),
                ("cgroup.type", "domain"),
                ("cgroup.subtree_control", ""),
                ("cgroup.max.depth", "max"),
            ]
        } else {
            &[("cgroup.procs", ""), ("tasks", ""), ("notify_on_release", "0")]
        };
        for (file, text) in core {
            self.files.entry(dir.join(file)).or_insert_with(|| (*text).to_owned());
        }
        let table = if tree.unified { V2 } else { V1 };
        for (_, files) in table.iter().filter(|(name, _)| controllers.iter().any(|c| c == name)) {
            for file in *files {
                let text = if *file == "memory.current" { "0" } else { known::default(file).unwrap() };
                self.files.entry(dir.join(file)).or_insert_with(|| text.to_owned());
            }
        }
    }

    fn words(&self, dir: &Path) -> BTreeSet<String> {
        let text = self.files.get(&dir.join("cgroup.subtree_control")).cloned().unwrap_or_default();
        text.split_whitespace().map(str::to_owned).collect()
    }

    fn below(&self, dir: &Path) -> Vec<PathBuf> {
        self.dirs.iter().filter(|other| other.parent() == Some(dir)).cloned().collect()
    }

    fn delegate(&mut self, dir: &Path, value: &str) -> io::Result<()> {
        let (root, tree) = self.tree(dir);
        let mut words = self.words(dir);
        for word in value.split(' ') {
            let (sign, name) = word.split_at(1);
            let has = if dir == root {
                tree.controllers.iter().any(|c| c == name)
            } else {
                self.words(dir.parent().unwrap()).contains(name)
            };
            if sign == "+" {
                if !has {
                    return Err(refuse(nix::libc::ENOENT));
                }
                if self.places.values().any(|place| place == dir) {
                    return Err(refuse(nix::libc::EBUSY));
                }
                words.insert(name.to_owned());
                for child in self.below(dir) {
                    self.populate(&child, &tree, &[name.to_owned()]);
                }
            } else {
                if self.below(dir).iter().any(|child| self.words(child).contains(name)) {
                    return Err(refuse(nix::libc::EBUSY));
                }
                words.remove(name);
                for child in self.below(dir) {
                    self.files.retain(|file, _| {
                        let own = file.parent() == Some(&child);
                        !(own && file.file_name().unwrap().to_str().unwrap().starts_with(&format!("{name}.")))
                    });
                }
            }
        }
        let text = words.into_iter().collect::<Vec<_>>().join(" ");
        self.files.insert(dir.join("cgroup.subtree_control"), text);
        Ok(())
    }

    fn number(&self, path: &Path) -> u64 {
        let text = self.files.get(path).map(String::as_str).unwrap_or("-1");
        text.parse().unwrap_or(u64::MAX)
    }

    fn allowed(&self, dir: &Path, file: &str, value: &str) -> io::Result<()> {
        let unified = self.tree(dir).1.unified;
        match file {
            "memory.limit_in_bytes"
                if value.parse().unwrap_or(u64::MAX)
                    > self.number(&dir.join("memory.memsw.limit_in_bytes")) =>
            {
                Err(refuse(nix::libc::EINVAL))
            }
            "memory.memsw.limit_in_bytes"
                if value.parse().unwrap_or(u64::MAX) < self.number(&dir.join("memory.limit_in_bytes")) =>
            {
                Err(refuse(nix::libc::EINVAL))
            }
            "cpuset.cpus" | "cpuset.mems" if !unified => {
                let set = sets::parse(value).ok_or_else(|| refuse(nix::libc::EINVAL))?;
                let of = |dir: &Path| self.files.get(&dir.join(file)).and_then(|text| sets::parse(text));
                if of(dir.parent().unwrap()).is_some_and(|above| !set.is_subset(&above)) {
                    return Err(refuse(nix::libc::EACCES));
                }
                let used =
                    self.below(dir).iter().filter_map(|child| of(child)).any(|below| !below.is_subset(&set));
                if used { Err(refuse(nix::libc::EBUSY)) } else { Ok(()) }
            }
            _ => Ok(()),
        }
    }

    /// What differs from a new group, by tree and path.
    pub(super) fn state(&self) -> BTreeMap<PathBuf, Vec<String>> {
        let mut state = BTreeMap::new();
        for (path, text) in &self.files {
            let file = path.file_name().unwrap().to_str().unwrap();
            let lines = known::lines(file, text);
            let shown = !matches!(
                file,
                "memory.current" | "cgroup.procs" | "cgroup.threads" | "tasks" | "cgroup.type"
            );
            if shown && known::is_default(file, &lines) != Some(true) && !(lines.is_empty()) {
                state.insert(path.clone(), lines);
            }
        }
        state
    }
}

impl GroupFiles for Fake {
    fn make(&mut self, dir: &Path) -> io::Result<()> {
        let above = dir.parent().unwrap();
        if !self.dirs.contains(above) {
            return Err(refuse(nix::libc::ENOENT));
        }
        self.dirs.insert(dir.to_owned());
        let (_, tree) = self.tree(dir);
        let controllers: Vec<String> =
            if tree.unified { self.words(above).into_iter().collect() } else { tree.controllers.clone() };
        self.populate(dir, &tree, &controllers);
        Ok(())
    }

    fn remove(&mut self, dir: &Path) -> io::Result<()> {
        if !self.below(dir).is_empty() || self.places.values().any(|place| place == dir) {
            return Err(refuse(nix::libc::EBUSY));
        }
        self.dirs.remove(dir);
        self.files.retain(|file, _| file.parent() != Some(dir));
        Ok(())
    }

    fn read(&mut self, file: &Path) -> io::Result<String> {
        self.files.get(file).cloned().ok_or_else(|| refuse(nix::libc::ENOENT))
    }

    fn exists(&mut self, file: &Path) -> bool {
        self.files.contains_key(file)
    }

    fn write(&mut self, path: &Path, value: &str) -> io::Result<()> {
        let (dir, file) = (path.parent().unwrap(), path.file_name().unwrap().to_str().unwrap());
        if !self.files.contains_key(path) {
            return Err(refuse(nix::libc::ENOENT));
        }
        let (root, tree) = self.tree(dir);
        match file {
            "cgroup.subtree_control" => return self.delegate(dir, value),
            "cgroup.procs" => {
                if tree.unified && !self.words(dir).is_empty() {
                    return Err(refuse(nix::libc::EBUSY));
                }
                if self
                    .files
                    .get(&dir.join("cpuset.cpus"))
                    .is_some_and(|cpus| !tree.unified && cpus.trim().is_empty())
                {
                    return Err(refuse(nix::libc::ENOSPC));
                }
                self.places.insert((root, value.parse().unwrap()), dir.to_owned());
            }
            "io.max" => {
                let text = self.files.entry(path.to_owned()).or_default();
                text.push_str(value);
                text.push('\n');
            }
            _ => {
                self.allowed(dir, file, value)?;
                self.files.insert(path.to_owned(), value.trim().to_owned());
            }
        }
        Ok(())
    }

    fn thread(&mut self, file: &Path, _: Pid) -> io::Result<()> {
        self.files.contains_key(file).then_some(()).ok_or_else(|| refuse(nix::libc::ENOENT))
    }

    fn grant(&mut self, _: &Path, _: u32, _: u32, _: u32) -> io::Result<()> {
        Ok(())
    }
}
