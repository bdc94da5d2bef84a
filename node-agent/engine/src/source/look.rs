//! One look at the whole tree through /proc.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};

use image::shape::{FileIdentity, ProcessShape, Shape};
use sys::Errno;

use super::descriptor::{Class, Descriptor};
use super::error::InspectError;
use super::findings::Findings;
use super::ipc;
use super::mm::{self, MappedFiles, Mapping, MmReader};
use super::registry::{Handle, Registry};
use super::rules::{self, Rules, Settled};
use super::sockets::{self, Kind};
use super::spec::TreeSpec;
use super::terminals;
use super::tree::{self, Process};
use super::view::View;
use super::watches;
use crate::account;
use crate::proc::maps::{self, Entry};
use crate::proc::multicast::{self, Group};
use crate::proc::status::Status;
use crate::proc::tasks;

/// A process with its address space and descriptors.
#[derive(Debug)]
pub(crate) struct ProcessLook {
    /// The process.
    pub(crate) process: Process,
    /// Its mappings; empty for a zombie.
    pub(crate) mappings: Vec<Mapping>,
    /// Its descriptors; empty for a zombie and when only shapes were asked for.
    pub(crate) descriptors: Vec<Descriptor>,
    /// Its sockets among them.
    pub(crate) sockets: HashMap<i32, Kind>,
    exe: FileIdentity,
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
    groups: Vec<Group>,
    /// Trackers are in place: userfaultfd flags on mappings are our own.
    pub(crate) tracked: bool,
    /// Set while the tree stands still.
    pub(crate) stopped: Option<Standstill>,
    /// Processes whose namespaces need not be looked at again.
    settled: Settled,
    /// Files of mappings, in this look.
    files: MappedFiles,
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

/// A look at the objects of the IPC namespace, on a thread of its own.
enum IpcLook {
    Under(std::thread::JoinHandle<(Findings, Result<(), InspectError>)>),
    Over(Findings, Result<(), InspectError>),
}

impl IpcLook {
    fn begin(root: i32, pids: Vec<i32>) -> Self {
        let pids = std::sync::Arc::new(pids);
        let look = move |pids: &[i32]| {
            let mut findings = Findings::default();
            let result = ipc::check(root, pids, &mut findings);
            (findings, result)
        };
        let own = std::sync::Arc::clone(&pids);
        match std::thread::Builder::new().name("ipc".to_owned()).spawn(move || look(&own)) {
            Ok(thread) => Self::Under(thread),
            Err(_) => {
                let (findings, result) = look(&pids);
                Self::Over(findings, result)
            }
        }
    }

    fn end(self, findings: &mut Findings) -> Result<(), InspectError> {
        let (found, result) = match self {
            Self::Under(thread) => thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
            Self::Over(found, result) => (found, result),
        };
        findings.list.extend(found.list);
        result
    }
}

const LEAVE: &str = "have the program leave the group, or close the socket, before the move";
/// Below this much resident memory smaps is cheap (about 10 ms a GiB).
const SMALL_PAGES: u64 = 16 * 1024;

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
            tracked: false,
            stopped: None,
            settled: Settled::new(),
            files: HashMap::new(),
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
            };
            rules::check(&mut rules, &tree, findings)?;
            self.groups = multicast::read(self.spec.root)?;
        }
        account::lap("freeze.look-rules");
        // Beside all the rest: it takes a thread in the container's IPC namespace anyway.
        let objects = (depth == Depth::Everything).then(|| {
            let (root, pids) = (self.spec.root, tree.iter().map(|process| process.pid).collect());
            IpcLook::begin(root, pids)
        });
        // Containers mount and unmount, and numbers are used again.
        self.mounts.clear();
        self.files.clear();
        self.registry.begin();
        let mut look = Look::default();
        for process in tree {
            match self.process(process, flags, depth, findings) {
                Ok(found) => look.processes.push(found),
                // It ended while we looked.
                Err(InspectError::Proc(error)) if error.is_gone() => {}
                Err(error) => return Err(error),
            }
        }
        account::lap("freeze.look-processes");
        if let Some(objects) = objects {
            objects.end(findings)?;
            super::multicast::check(self.spec.root, &self.groups, findings)?;
            let now = self.stopped.is_some();
            terminals::check(&look.processes, &self.spec, &self.view, now, findings)?;
            watches::check(&look.processes, &self.view, now, findings)?;
        }
        self.flags.retain(|key, _| look.processes.iter().any(|found| found.process.key() == *key));
        look.shape = self.shape(&look.processes)?;
        Ok(look)
    }

    fn process(
        &mut self,
        process: Process,
        flags: Flags,
        depth: Depth,
        findings: &mut Findings,
    ) -> Result<ProcessLook, InspectError> {
        let mut found = ProcessLook {
            process,
            mappings: Vec::new(),
            descriptors: Vec::new(),
            sockets: HashMap::new(),
            exe: FileIdentity::default(),
        };
        if found.process.is_zombie() {
            return Ok(found);
        }
        let entries = self.entries(&found.process, flags)?;
        let mut reader = MmReader {
            view: &self.view,
            registry: &mut self.registry,
            findings,
            mounts: &mut self.mounts,
            files: &mut self.files,
            tracked: self.tracked,
        };
        found.mappings = reader.mappings(&found.process, &entries)?;
        found.exe = exe(&mut reader, &found.process)?;
        if depth == Depth::Everything {
            for fd in tasks::descriptors(found.process.pid)? {
                if let Some(descriptor) = reader.descriptor(&found.process, fd, &self.spec.externals)? {
                    found.descriptors.push(descriptor);
                }
            }
            found.sockets = socket_kinds(&found, self.stopped.is_some(), &self.groups, findings)?;
        } else {
            // Objects that are only open, not mapped, are memory all the same.
            for fd in tasks::descriptors(found.process.pid)? {
                reader.descriptor(&found.process, fd, &self.spec.externals)?;
            }
        }
        Ok(found)
    }

    fn entries(&mut self, process: &Process, flags: Flags) -> Result<Vec<Entry>, InspectError> {
        if flags == Flags::Remembered
            && process.stat.rss_pages > SMALL_PAGES
            && let Some(known) = self.flags.get(&process.key())
        {
            let now = own_lines_out(maps::read_maps(process.pid)?);
            let same = now.len() == known.len() && now.iter().zip(known).all(|(a, b)| a.same_line(b));
            if same {
                return Ok(known.clone());
            }
        }
        let entries = own_lines_out(maps::read_smaps(process.pid)?);
        self.flags.insert(process.key(), entries.clone());
        Ok(entries)
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
                pgid: process.status.ns_pgid.last().copied().unwrap_or(0),
                sid: process.status.ns_sid.last().copied().unwrap_or(0),
                exit_signal: process.stat.exit_signal,
                zombie: process.is_zombie().then_some(process.stat.exit_code),
                tty: terminals::controlling(&process.stat),
                mm,
            });
        }
        shape.objects = self.registry.alive().map(|object| object.object.clone()).collect();
        Ok(shape)
    }
}

/// The lines of a process's mappings without those of this engine's tape.
fn own_lines_out(mut entries: Vec<Entry>) -> Vec<Entry> {
    entries.retain(|entry| !super::traced::is_tape(&entry.name));
    entries
}

fn exe(reader: &mut MmReader<'_>, process: &Process) -> Result<FileIdentity, InspectError> {
    let file = reader.view.file(process.pid, "exe")?;
    let handle = Handle { pid: process.pid, link: "exe".to_owned() };
    let identity = reader.identity(process.inner, image::Subject::Process, &file, handle);
    Ok(identity.unwrap_or_default())
}

/// What the sockets of a process are. They are asked through duplicates of their descriptors.
fn socket_kinds(
    found: &ProcessLook,
    now: bool,
    groups: &[Group],
    findings: &mut Findings,
) -> Result<HashMap<i32, Kind>, InspectError> {
    let mut kinds = HashMap::new();
    let sockets = || found.descriptors.iter().filter(|descriptor| descriptor.class == Class::Socket);
    if sockets().next().is_none() {
        return Ok(kinds);
    }
    let pid = found.process.pid;
    let Ok(pidfd) = sys::pidfd::open(pid) else {
        return Ok(kinds);
    };
    for descriptor in sockets() {
        let socket: OwnedFd = match sys::pidfd::getfd(pidfd.as_fd(), descriptor.fd) {
            Ok(socket) => socket,
            Err(Errno::EBADF | Errno::ESRCH) => continue,
            Err(errno) => return Err(InspectError::kernel("duplicate a socket", pid, errno)),
        };
        match sockets::kind(socket.as_fd(), now) {
            Ok(Ok(kind)) => {
                if let Kind::Udp { .. } = kind
                    && let Some(reason) = super::multicast::membership(socket.as_fd(), groups)
                        .map_err(|errno| InspectError::kernel("ask a socket for memberships", pid, errno))?
                {
                    findings.fd(found.process.inner, descriptor.fd, reason, LEAVE);
                }
                kinds.insert(descriptor.fd, kind);
            }
            Ok(Err((reason, way_out))) => findings.fd(found.process.inner, descriptor.fd, reason, way_out),
            // It was closed and the number used for another file.
            Err(Errno::ENOTSOCK) => {}
            Err(errno) => return Err(InspectError::kernel("ask a socket", pid, errno)),
        }
    }
    Ok(kinds)
}
