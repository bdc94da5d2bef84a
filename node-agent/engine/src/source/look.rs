//! One look at the whole tree through /proc.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::os::linux::fs::MetadataExt;
use std::sync::Arc;

use image::Pid;
use image::namespaces::{Namespace, Nested};
use image::shape::{FileIdentity, GhostFile, ProcessShape, Shape, Shared, Zombie};

use super::beside::Beside;
use super::capture::directories;
use super::connections;
use super::descriptor::{Class, Descriptor};
use super::error::InspectError;
use super::facts::{self, Asked, Facts, SocketFacts};
use super::findings::Findings;
use super::ipc::{self, How};
use super::locks;
use super::mm::{self, Files, Mapping, MmReader};
use super::mounts::Spaces;
use super::mqueue;
use super::namespaces;
use super::registry::{Handle, Registry};
use super::rules::{self, Rules, Settled};
use super::sharing::{self, Apart, SharedOf, Sharing};
use super::sockets::Kind;
use super::spec::TreeSpec;
use super::sysv::Sysv;
use super::terminals;
use super::tree::{self, Process};
use super::view::View;
use super::watches;
use crate::account;
use crate::proc::maps::Entry;
use crate::proc::multicast::{self, Group};
use crate::proc::status::Status;

/// A process with its address space and descriptors.
#[derive(Debug)]
pub(crate) struct ProcessLook {
    /// The process.
    pub(crate) process: Process,
    /// Its mappings; empty for a zombie.
    pub(crate) mappings: Vec<Mapping>,
    /// Its descriptor table, then those that threads have of their own; none for a zombie.
    pub(crate) tables: Vec<TableLook>,
    /// What it shares with other processes.
    pub(crate) shared: Shared,
    /// Its namespaces.
    pub(crate) namespaces: Nested,
    exe: FileIdentity,
}

/// A descriptor table.
#[derive(Debug)]
pub(crate) struct TableLook {
    /// The process or thread that has it, as this process sees it.
    pub(crate) task: i32,
    /// The same, as the container numbers it.
    pub(crate) inner: Pid,
    /// What is in it.
    pub(crate) descriptors: Vec<Descriptor>,
    /// Sockets among them; none when only shapes were asked for.
    pub(crate) sockets: HashMap<i32, Kind>,
    /// Those of them that have a packet filter.
    pub(crate) filtered: HashSet<i32>,
}

/// What a look found.
#[derive(Debug, Default)]
pub(crate) struct Look {
    /// Parents before their children.
    pub(crate) processes: Vec<ProcessLook>,
    /// For the target.
    pub(crate) shape: Shape,
}

/// How a look is done, and what it remembers from one time to the next.
#[derive(Debug)]
pub(crate) struct Looker {
    pub(crate) spec: TreeSpec,
    pub(crate) view: View,
    pub(crate) registry: Registry,
    mounts: HashMap<i32, String>,
    /// smaps of each process, by pid and start time.
    flags: HashMap<(i32, u64), Vec<Entry>>,
    /// Multicast groups of the network namespace.
    pub(crate) groups: Vec<Group>,
    /// Those of which sockets are members: interface and group.
    joined: Vec<(u32, IpAddr)>,
    /// Trackers are in place: userfaultfd flags on mappings are our own.
    pub(crate) tracked: bool,
    /// Set while the tree stands still.
    pub(crate) stopped: Option<Standstill>,
    /// Processes whose namespaces need not be looked at again.
    settled: Settled,
    /// Those of processes which are not all the container's, as the last look at everything found them.
    nested: HashMap<(i32, u64), Nested>,
    /// Threads with descriptor tables or directories of their own, as the last look at everything found them.
    pub(crate) apart: Vec<Apart>,
    /// What processes share.
    shared: SharedOf,
    /// What these namespaces hold.
    pub(crate) namespaces: Vec<Namespace>,
    /// What was asked of files in this look.
    files: Files,
    /// The tree has an IPC namespace of its own, and what is in it.
    own_ipc: bool,
    pub(crate) sysv: Sysv,
}

/// What is known of a tree that we have stopped.
#[derive(Debug, Default)]
pub(crate) struct Standstill {
    /// Our thread that traces it.
    pub(crate) tracer: i32,
    /// /proc/PID/task/TID/status of its threads, by tid.
    pub(crate) statuses: HashMap<i32, Status>,
}

/// How exactly mapping flags are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flags {
    /// From smaps, always.
    Exact,
    /// From the last smaps as long as the mappings are the same and the process is large: reading smaps
    /// walks all page tables.
    Remembered,
}

/// What a look includes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Depth {
    /// Processes and address spaces.
    Shape,
    /// Rules, descriptors and sockets too.
    Everything,
}

impl Looker {
    pub(crate) fn new(spec: &TreeSpec) -> Result<Self, InspectError> {
        let view = match View::new(spec.root) {
            Err(InspectError::Proc(error)) if error.is_gone() => {
                return Err(InspectError::NoSuchProcess { pid: spec.root });
            }
            other => other?,
        };
        Ok(Self {
            spec: spec.clone(),
            view,
            registry: Registry::default(),
            mounts: HashMap::new(),
            flags: HashMap::new(),
            groups: Vec::new(),
            joined: Vec::new(),
            tracked: false,
            stopped: None,
            settled: Settled::new(),
            nested: HashMap::new(),
            apart: Vec::new(),
            shared: SharedOf::new(),
            namespaces: Vec::new(),
            files: Files::default(),
            own_ipc: false,
            sysv: Sysv::default(),
        })
    }

    /// Looks at everything.
    pub(crate) fn look(
        &mut self,
        flags: Flags,
        depth: Depth,
        findings: &mut Findings,
    ) -> Result<Look, InspectError> {
        let tree = tree::walk(self.spec.root)?;
        account::lap("freeze.look-tree");
        self.look_at(tree, flags, depth, findings)
    }

    /// Looks at these processes.
    pub(crate) fn look_at(
        &mut self,
        tree: Vec<Process>,
        flags: Flags,
        depth: Depth,
        findings: &mut Findings,
    ) -> Result<Look, InspectError> {
        if depth == Depth::Everything {
            let mut rules = Rules {
                spec: &self.spec,
                ids: &self.view.ids,
                stopped: self.stopped.as_ref(),
                settled: &mut self.settled,
                apart: &mut self.apart,
                shared: &mut self.shared,
                nested: &mut self.nested,
            };
            rules::check(&mut rules, &tree, findings)?;
            self.namespaces = namespaces::look(&tree, &self.nested, findings)?;
            self.groups = multicast::read(self.spec.root)?;
            self.joined.clear();
        } else {
            if self.spec.mounts.any() || self.nested.values().any(|nested| nested.mnt != 0) {
                namespaces::follow_mounts(&tree, &self.spec.mounts, &mut self.nested)?;
            }
            self.shared = Sharing::look(&tree)?.of;
        }
        self.view.spaces = Arc::new(Spaces::open(&tree, &self.nested)?);
        account::lap("freeze.look-rules");
        // Beside all the rest: it takes a thread in the container's IPC namespace anyway.
        let how = match depth {
            Depth::Shape => How::Segments,
            Depth::Everything if self.stopped.is_some() => How::Contents,
            Depth::Everything => How::All,
        };
        let root = self.spec.root;
        self.own_ipc = ipc::is_own(root)?;
        let objects = (self.own_ipc || depth == Depth::Everything).then(|| {
            let pids: Vec<i32> = tree.iter().map(|process| process.pid).collect();
            let held = self.sysv.held();
            Beside::begin("ipc", move |findings| ipc::look(root, &pids, &held, how, findings))
        });
        let closed = (depth == Depth::Everything && self.stopped.is_some())
            .then(|| Beside::begin("closed", move |findings| connections::check_closed(root, findings)));
        // Containers mount and unmount, and numbers are used again.
        self.mounts.clear();
        self.files.begin();
        self.registry.begin();
        let asked = Asked { flags, depth, now: self.stopped.is_some(), groups: &self.groups };
        let known = |process: &Process| self.flags.get(&process.key()).map(Vec::as_slice);
        let facts = facts::read_all(&tree, asked, known, &self.apart);
        account::lap("freeze.look-facts");
        let mut look = Look::default();
        for (process, facts) in tree.into_iter().zip(facts) {
            match facts.and_then(|facts| self.process(process, facts, findings)) {
                Ok(found) => look.processes.push(found),
                // It ended while we looked.
                Err(InspectError::Proc(error)) if error.is_gone() => {}
                Err(error) => return Err(error),
            }
        }
        account::lap("freeze.look-processes");
        if let Some(found) = objects.map(|objects| objects.end(findings)).transpose()?.flatten() {
            let Self { sysv, registry, view, stopped, .. } = self;
            sysv.take(found.sysv, &look.processes, registry, &view.ids, stopped.is_some(), findings)?;
            if depth == Depth::Everything {
                sysv.ipc.posix_queues = mqueue::take(found.queues, &look.processes, &view.ids, findings);
                sysv.ipc.settings = found.settings;
            }
        }
        if let Some(closed) = closed {
            closed.end(findings)?;
        }
        if depth == Depth::Everything {
            if !self.own_ipc {
                self.sysv.of_host(&look.processes, findings)?;
            }
            connections::check_signatures(self.spec.root, &look.processes, findings)?;
            super::multicast::check(self.spec.root, &self.groups, &self.joined, findings)?;
            let now = self.stopped.is_some();
            terminals::check(&look.processes, &self.spec, &self.view, now, findings)?;
            watches::check(&look.processes, &self.view, now, findings)?;
        }
        if self.stopped.is_none() {
            if depth == Depth::Everything {
                directories::check(&look.processes, &self.view, findings)?;
            }
            self.view.spaces = Arc::default();
        }
        self.flags.retain(|key, _| look.processes.iter().any(|found| found.process.key() == *key));
        look.shape = self.shape(&look.processes)?;
        if depth == Depth::Everything {
            sharing::check_makers(&look.shape, &self.apart, findings);
            locks::check_takers(&look.processes, findings);
        }
        Ok(look)
    }

    /// What a process is. Objects that are only open, not mapped, are memory all the same: descriptors are looked at
    /// whatever the depth.
    fn process(
        &mut self,
        process: Process,
        facts: Facts,
        findings: &mut Findings,
    ) -> Result<ProcessLook, InspectError> {
        let mut found = ProcessLook {
            namespaces: self.nested.get(&process.key()).copied().unwrap_or_default(),
            process,
            mappings: Vec::new(),
            tables: Vec::new(),
            shared: Shared::default(),
            exe: FileIdentity::default(),
        };
        if found.process.is_zombie() {
            return Ok(found);
        }
        let mut reader = MmReader {
            view: &self.view,
            registry: &mut self.registry,
            findings,
            mounts: &mut self.mounts,
            files: &mut self.files,
            tracked: self.tracked,
            own_ipc: self.own_ipc,
            left_ipc: found.namespaces.ipc != 0,
        };
        found.mappings = reader.mappings(&found.process, &facts.entries)?;
        found.exe = exe(&mut reader, &found.process)?;
        found.shared = self.shared.get(&found.process.key()).copied().unwrap_or_default();
        for (task, facts) in facts.tables {
            let thread = self.apart.iter().find(|thread| thread.tid == task);
            let inner = thread.map_or(found.process.inner, |thread| thread.inner);
            let mut table = TableLook {
                task,
                inner,
                descriptors: Vec::with_capacity(facts.len()),
                sockets: HashMap::new(),
                filtered: HashSet::new(),
            };
            // Links of /proc lead from a thread to what it has itself.
            let thread = (task != found.process.pid).then(|| Process { pid: task, ..found.process.clone() });
            let holder = thread.as_ref().unwrap_or(&found.process);
            for mut facts in facts {
                let socket = facts.socket.take();
                let Some(descriptor) = reader.descriptor(holder, facts, &self.spec.externals)? else {
                    continue;
                };
                if descriptor.class == Class::Socket
                    && let Some(socket) = socket
                {
                    self.joined.extend(&socket.groups);
                    if socket.filtered {
                        table.filtered.insert(descriptor.fd);
                    }
                    if let Some(kind) = judge(&found.process, descriptor.fd, socket, reader.findings) {
                        table.sockets.insert(descriptor.fd, kind);
                    }
                }
                table.descriptors.push(descriptor);
            }
            found.tables.push(table);
        }
        self.flags.insert(found.process.key(), facts.entries);
        Ok(found)
    }

    fn shape(&self, processes: &[ProcessLook]) -> Result<Shape, InspectError> {
        let mut shape = Shape::default();
        for found in processes {
            let process = &found.process;
            let mm = if process.is_zombie() {
                image::shape::Mm::default()
            } else {
                match mm::to_image(process, &found.mappings, found.exe.clone()) {
                    Ok(mm) => mm,
                    Err(InspectError::Proc(error)) if error.is_gone() => continue,
                    Err(error) => return Err(error),
                }
            };
            shape.processes.push(ProcessShape {
                pid: process.inner,
                ppid: process.parent,
                pgid: process.pgid(),
                sid: process.sid(),
                exit_signal: process.stat.exit_signal,
                zombie: process
                    .is_zombie()
                    .then(|| Zombie { status: process.stat.exit_code, comm: process.status.name.clone() }),
                tty: terminals::controlling(&process.stat),
                levels: process.levels.clone(),
                namespaces: found.namespaces,
                shared: found.shared,
                mm,
            });
        }
        shape.objects = self.registry.alive().map(|object| object.object.clone()).collect();
        let ghosts = self.registry.ghost_files();
        shape.ghosts = ghosts.map(|ghost| GhostFile { id: ghost.id, path: ghost.path.clone() }).collect();
        Ok(shape)
    }
}

/// All descriptor tables, each with its process.
pub(crate) fn tables(processes: &[ProcessLook]) -> impl Iterator<Item = (&ProcessLook, &TableLook)> {
    processes.iter().flat_map(|found| found.tables.iter().map(move |table| (found, table)))
}

fn exe(reader: &mut MmReader<'_>, process: &Process) -> Result<FileIdentity, InspectError> {
    let file = reader.view.file(process.pid, "exe")?;
    if file.metadata.st_dev() == reader.view.shmem_dev {
        let shown = String::from_utf8_lossy(&file.path).into_owned();
        reader.findings.process(
            process.inner,
            format!("its program {shown} is a file in memory (memfd_create)"),
            "start it from a file",
        );
        return Ok(FileIdentity::default());
    }
    let handle = Handle { pid: process.pid, link: "exe".to_owned() };
    let identity = reader.identity(process.inner, image::Subject::Process, &file, handle);
    Ok(identity.unwrap_or_default())
}

/// What a socket is, unless it cannot move.
fn judge(process: &Process, fd: i32, socket: SocketFacts, findings: &mut Findings) -> Option<Kind> {
    match socket.kind {
        Ok(kind) => Some(kind),
        Err((reason, way_out)) => {
            findings.fd(process.inner, fd, reason, way_out);
            None
        }
    }
}
