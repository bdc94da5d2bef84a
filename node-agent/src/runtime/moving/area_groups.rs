//! Files in groups of areas: group 0 is the root directory, volumes and the log, the others are directories in memory,
//! which come and go with the container's mounts. A batch begins with the number of its group.

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sys::prctl::own::FileUser;

use super::mounts::{MemoryArea, Origin};
use super::written::written;
use crate::files::{FilesError, Round, Source, Target};
use crate::runtime::cgroup::Cgroup;
use crate::runtime::terminals;
use crate::session::ports::{FileRound, FileSink, FileSource, FileTarget, PortError};

/// The files of a container that leaves, shared by whoever adds groups and whoever sends them.
#[derive(Clone, Debug, Default)]
pub(super) struct Sources(Arc<Mutex<SourceGroups>>);

#[derive(Debug, Default)]
struct SourceGroups {
    groups: BTreeMap<u16, Source>,
    names: BTreeMap<(Origin, Vec<u8>), u16>,
    /// Where the container sees groups, as long as it mounts nothing itself.
    places: BTreeMap<u16, PathBuf>,
    /// It mounted something itself.
    changed: bool,
    last: u16,
}

impl Sources {
    fn lock(&self) -> MutexGuard<'_, SourceGroups> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets group 0.
    pub(super) fn set_first(&self, source: Source) {
        self.lock().groups.insert(0, source);
    }

    /// Whether the container mounted something itself.
    pub(super) fn set_changed(&self, changed: bool) {
        self.lock().changed = changed;
    }

    /// Areas that have a group.
    pub(super) fn known(&self) -> std::collections::BTreeSet<(Origin, Vec<u8>)> {
        self.lock().names.keys().cloned().collect()
    }

    /// Exactly these areas have groups from now on; a new one comes with its directory.
    pub(super) fn keep(&self, areas: Vec<(MemoryArea, Option<OwnedFd>)>) -> Vec<MemoryArea> {
        let mut all = self.lock();
        let mut kept = Vec::new();
        for (mut area, dir) in areas {
            let name = (area.of.clone(), area.path.clone());
            match (all.names.get(&name), dir) {
                (Some(group), _) => area.group = *group,
                (None, Some(dir)) => {
                    all.last = all.last.saturating_add(1);
                    area.group = all.last;
                    if let Some(at) = area.at() {
                        all.places.insert(area.group, at.to_owned());
                    }
                    // Only group 0 has a log.
                    all.groups.insert(area.group, Source::new(vec![area.open(dir)], PathBuf::new()));
                    all.names.insert(name, area.group);
                }
                (None, None) => continue,
            }
            kept.push(area);
        }
        let numbers: HashSet<u16> = kept.iter().map(|area| area.group).collect();
        all.places.retain(|group, _| numbers.contains(group));
        all.names.retain(|_, group| numbers.contains(group));
        all.groups.retain(|group, _| *group == 0 || numbers.contains(group));
        kept
    }
}

/// Sends all groups.
#[derive(Debug)]
pub(super) struct Sending {
    pub(super) name: String,
    pub(super) sources: Sources,
    pub(super) cgroup: Cgroup,
    /// The log, when it gets what comes out of terminals.
    pub(super) terminal_log: Option<PathBuf>,
}

/// Sends a batch.
type Emit<'a> = &'a mut dyn FnMut(&[u8]) -> io::Result<()>;

impl Sending {
    fn each(
        &self,
        sink: &mut dyn FileSink,
        mut work: impl FnMut(u16, &mut Source, Emit<'_>) -> Result<Round, FilesError>,
    ) -> Result<FileRound, PortError> {
        let mut done = FileRound::default();
        for (group, source) in &mut self.sources.lock().groups {
            let mut send = |batch: &[u8]| {
                let mut framed = Vec::with_capacity(batch.len() + 2);
                framed.extend_from_slice(&group.to_le_bytes());
                framed.extend_from_slice(batch);
                sink.batch(&framed)
            };
            let round = work(*group, source, &mut send)
                .map_err(|error| PortError::failed(format!("send the files of {}", self.name), error))?;
            done.entries += round.entries;
            done.bytes += round.bytes;
        }
        Ok(done)
    }
}

impl FileSource for Sending {
    fn ahead(&mut self, paths: &[PathBuf], sink: &mut dyn FileSink) -> Result<FileRound, PortError> {
        if self.sources.lock().changed {
            // A path may lead through a mount that the container made to a file that has another path here.
            return self.round(sink);
        }
        let mut of_group: BTreeMap<u16, Vec<PathBuf>> = BTreeMap::new();
        {
            let all = self.sources.lock();
            for path in paths {
                let inside = all.places.iter().filter(|(_, at)| path.starts_with(at));
                // The innermost one, and the last of those, is what the container sees.
                let group = inside.max_by_key(|(group, at)| (at.as_os_str().len(), **group));
                of_group.entry(group.map_or(0, |(group, _)| *group)).or_default().push(path.clone());
            }
        }
        self.each(sink, |group, source, send| {
            source.ahead(of_group.get(&group).map(Vec::as_slice).unwrap_or_default(), send)
        })
    }

    fn round(&mut self, sink: &mut dyn FileSink) -> Result<FileRound, PortError> {
        self.each(sink, |_, source, send| source.round(send))
    }

    fn last(&mut self, sink: &mut dyn FileSink) -> Result<FileRound, PortError> {
        // The engine found the terminals empty; what the shim took from them before goes along.
        if let Some(log) = &self.terminal_log {
            terminals::wait_for_log(log)
                .map_err(|error| PortError::failed(format!("wait for the log of {}", self.name), error))?;
        }
        let processes = self.cgroup.processes();
        let processes = processes
            .map_err(|error| PortError::failed(format!("list the processes of {}", self.name), error))?;
        let suspects = written(&processes);
        self.each(sink, |_, source, send| source.last(&suspects, send))
    }
}

/// The files of a container that comes.
#[derive(Clone, Debug, Default)]
pub(super) struct Targets(Arc<Mutex<BTreeMap<u16, Target>>>);

impl Targets {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<u16, Target>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets a group.
    pub(super) fn set(&self, group: u16, target: Target) {
        self.lock().insert(group, target);
    }

    /// Forgets all.
    pub(super) fn clear(&self) {
        self.lock().clear();
    }

    /// Forgets all groups but these and group 0.
    pub(super) fn keep(&self, groups: &HashSet<u16>) {
        self.lock().retain(|group, _| *group == 0 || groups.contains(group));
    }
}

/// Applies batches below the container's directories.
#[derive(Debug)]
pub(super) struct Applying {
    pub(super) name: String,
    pub(super) targets: Targets,
    /// The host's numbers of the container's root, when it has a user namespace: its tmpfs take files of users that are
    /// mapped there, and of no others.
    pub(super) owner: Option<(u32, u32)>,
}

impl FileTarget for Applying {
    fn apply(&mut self, batch: &[u8]) -> Result<(), PortError> {
        let failed = |error: Box<dyn std::error::Error + Send + Sync>| {
            PortError::failed(format!("write the files of {}", self.name), error)
        };
        let Some((group, batch)) = batch.split_first_chunk::<2>() else {
            return Err(failed("a batch without a group".into()));
        };
        let group = u16::from_le_bytes(*group);
        let owner = self.owner.map(|(uid, gid)| FileUser::set(uid, gid)).transpose();
        let _owner = owner.map_err(|error| failed(error.into()))?;
        let mut targets = self.targets.lock();
        let target = targets.get_mut(&group).ok_or_else(|| failed(format!("no group {group}").into()))?;
        target.apply(batch).map_err(|error| failed(error.into()))
    }
}
