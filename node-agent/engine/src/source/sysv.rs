//! System V objects of a container's own IPC namespace; see sysvipc(7), proc_sysvipc(5).
//!
//! A segment of shared memory is a memory object like others, with a number and a key. What changes one leaves a trace
//! in page tables as long as it is attached; attaching and letting go leave one in the namespace's table, so that
//! nobody writes a segment unseen.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};
use std::os::linux::fs::MetadataExt;
use std::time::SystemTime;

use image::Pid;
use image::ipc::{IpcObject, Message, Queue, Semaphores};
use image::shape::ObjectKind;
use sys::clone::{Child, Spec, spawn_paused};
use sys::{Errno, kcmp, sysv};

use super::error::InspectError;
use super::findings::Findings;
use super::huge;
use super::look::ProcessLook;
use super::registry::{Handle, Registry};
use crate::proc::idmap::IdMaps;
use crate::proc::{self, ProcError, links};

const REMOVE: &str = "remove it (ipcrm), or end the program that made it, before the move";
/// What a message may have: it is sent again in one piece.
const MESSAGE_LIMIT: usize = 128 << 10;
/// Times in tables are whole seconds: within this time after one, what came later may show the same.
const SETTLED: u64 = 2;

/// A row of one of the tables: its numbers, the mode read as octal.
pub(crate) type Row = Vec<i64>;

/// The tables of this thread's namespace.
#[derive(Debug, Default)]
pub(crate) struct Tables {
    /// key shmid perms size cpid lpid nattch uid gid cuid cgid atime dtime ctime rss swap
    pub(crate) segments: Vec<Row>,
    /// key semid perms nsems uid gid cuid cgid otime ctime
    pub(crate) semaphores: Vec<Row>,
    /// key msqid perms cbytes qnum lspid lrpid uid gid cuid cgid stime rtime ctime
    pub(crate) queues: Vec<Row>,
}

impl Tables {
    /// Reads them.
    pub(crate) fn read() -> Result<Self, ProcError> {
        Ok(Self { segments: table("shm")?, semaphores: table("sem")?, queues: table("msg")? })
    }

    /// Whether there is anything.
    pub(crate) fn is_empty(&self) -> bool {
        self.segments.is_empty() && self.semaphores.is_empty() && self.queues.is_empty()
    }
}

/// A number of a row.
pub(crate) fn field(row: &[i64], at: usize) -> i64 {
    row.get(at).copied().unwrap_or(0)
}

fn table(name: &str) -> Result<Vec<Row>, ProcError> {
    const MODE: usize = 2;
    let path = format!("/proc/sysvipc/{name}");
    let bytes = match proc::read_path(&path) {
        Ok(bytes) => bytes,
        // A kernel without them.
        Err(error) if error.is_gone() => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let word = |(at, word)| if at == MODE { proc::octal::<i64>(word) } else { proc::number(word) };
    let row = |line| -> Option<Row> { proc::words(line).enumerate().map(word).collect() };
    proc::lines(&bytes)
        .skip(1)
        .map(|line| row(line).ok_or_else(|| ProcError::parse(&path, proc::text(line))))
        .collect()
}

/// What a look found in a namespace. Made on a thread inside of it.
#[derive(Debug, Default)]
pub(crate) struct Found {
    tables: Tables,
    /// Segments that nobody has attached, opened.
    opened: Vec<(i32, File)>,
    /// kernel.shm_rmid_forced: letting go of a segment removes it.
    removes: bool,
    semaphores: Vec<Contents<(Vec<u16>, Vec<i32>)>>,
    queues: Vec<Contents<(u64, Vec<Message>)>>,
    findings: Vec<(String, &'static str)>,
}

type Contents<T> = (Row, T);

impl Found {
    /// Looks. `held`: segments that are open already; `contents`: the tree stands still, and what is in semaphores and
    /// queues is read.
    pub(crate) fn look(held: &[i32], contents: bool) -> Result<Self, InspectError> {
        let tables = Tables::read()?;
        let mut found = Self::default();
        let forced = proc::read_path("/proc/sys/kernel/shm_rmid_forced").unwrap_or_default();
        found.removes = forced.starts_with(b"1");
        for row in &tables.segments {
            let id = number(row, 1);
            if field(row, 6) != 0 || held.contains(&id) || found.removes {
                continue;
            }
            match sysv::open_segment(id) {
                Ok(file) => found.opened.push((id, file)),
                // It was removed meanwhile.
                Err(Errno::EINVAL | Errno::EIDRM) => {}
                Err(errno) => return Err(InspectError::kernel("open System V shared memory", id, errno)),
            }
        }
        if contents {
            for row in &tables.semaphores {
                found.read_semaphores(row)?;
            }
            for row in &tables.queues {
                found.read_queue(row)?;
            }
        }
        found.tables = tables;
        Ok(found)
    }

    fn read_semaphores(&mut self, row: &Row) -> Result<(), InspectError> {
        let id = number(row, 1);
        let count = usize::try_from(field(row, 3)).unwrap_or(0);
        let kernel = |errno| InspectError::kernel("read System V semaphores", id, errno);
        let values = sysv::semaphores(id, count).map_err(kernel)?;
        let pids = (0..count).map(|index| sysv::semaphore_pid(id, index));
        let pids = pids.collect::<Result<_, _>>().map_err(kernel)?;
        self.semaphores.push((row.clone(), (values, pids)));
        Ok(())
    }

    fn read_queue(&mut self, row: &Row) -> Result<(), InspectError> {
        let id = number(row, 1);
        let kernel = |errno| InspectError::kernel("read a System V message queue", id, errno);
        let (bytes, count) = (field(row, 3), usize::try_from(field(row, 4)).unwrap_or(0));
        let room = usize::try_from(bytes).unwrap_or(0);
        let mut messages = Vec::with_capacity(count);
        for index in 0..count {
            match sysv::peek_message(id, index, room) {
                Ok(Some((_, text))) if text.len() > MESSAGE_LIMIT => {
                    let reason = format!(
                        "System V message queue {id}: a message of {} bytes, more than {MESSAGE_LIMIT}",
                        text.len()
                    );
                    self.findings.push((reason, "have the program read it"));
                }
                Ok(Some((kind, text))) => messages.push(Message { kind, text }),
                Ok(None) => break,
                Err(Errno::ENOSYS) => {
                    let reason = format!("System V message queue {id}: this kernel shows no messages");
                    self.findings.push((reason, "have the program read them, or remove the queue"));
                    break;
                }
                Err(errno) => return Err(kernel(errno)),
            }
        }
        let capacity = sysv::queue_capacity(id).map_err(kernel)?;
        self.queues.push((row.clone(), (capacity, messages)));
        Ok(())
    }
}

/// The objects of a container's own namespace, from one look to the next.
#[derive(Debug, Default)]
pub(crate) struct Sysv {
    /// Segments that nobody had attached when they were first seen, held open.
    held: HashMap<i32, File>,
    /// Rows of the last look, and when it was, in seconds.
    before: HashMap<i32, (Row, u64)>,
    /// Semaphores and queues, as of the last look at a tree that stands still.
    pub(crate) ipc: image::ipc::Ipc,
    /// There was something at the last look.
    pub(crate) any: bool,
    without: Option<Without>,
}

impl Sysv {
    /// Segments that are open.
    pub(crate) fn held(&self) -> Vec<i32> {
        self.held.keys().copied().collect()
    }

    /// Puts together what the namespace and the mappings of the tree say. `now`: the tree stands still.
    pub(crate) fn take(
        &mut self,
        found: Found,
        processes: &[ProcessLook],
        registry: &mut Registry,
        ids: &IdMaps,
        now: bool,
        findings: &mut Findings,
    ) -> Result<(), InspectError> {
        self.any = !found.tables.is_empty();
        for (reason, way_out) in &found.findings {
            findings.container(reason, way_out);
        }
        self.held.retain(|id, _| found.tables.segments.iter().any(|row| number(row, 1) == *id));
        self.held.extend(found.opened);
        self.segments(&found.tables.segments, found.removes, registry, ids, findings)?;
        if now {
            attached_outside(&found.tables.segments, processes, registry, findings);
        }
        if !found.tables.semaphores.is_empty() {
            self.undone(processes, false, findings)?;
        }
        let inner: HashMap<i32, Pid> =
            processes.iter().map(|found| (found.process.pid, found.process.inner)).collect();
        let left =
            |pid: &i32| processes.iter().any(|found| found.process.pid == *pid && found.namespaces.ipc != 0);
        self.ipc = image::ipc::Ipc::default();
        for (row, (values, pids)) in found.semaphores {
            let name = format!("System V semaphores {}", number(&row, 1));
            if pids.iter().any(left) {
                findings.container(
                    format!("{name}: who changed one last is in another IPC namespace by now"),
                    REMOVE,
                );
            }
            let Some(object) = object(&row, 4, ids, &name, findings) else { continue };
            let pids = pids.into_iter().map(|pid| inner.get(&pid).copied().unwrap_or(0)).collect();
            let used = field(&row, 8) != 0;
            self.ipc.semaphores.push(Semaphores { object, values, pids, used });
        }
        for (row, (capacity, messages)) in found.queues {
            let name = format!("System V message queue {}", number(&row, 1));
            let Some(object) = object(&row, 7, ids, &name, findings) else { continue };
            self.ipc.queues.push(Queue { object, capacity, messages });
        }
        Ok(())
    }

    /// What stands against a tree in the host's namespace, whose objects stay where they are.
    pub(crate) fn of_host(
        &mut self,
        processes: &[ProcessLook],
        findings: &mut Findings,
    ) -> Result<(), InspectError> {
        for row in table("sem")? {
            let count = usize::try_from(field(&row, 3)).unwrap_or(0);
            // One that was removed meanwhile is nobody's.
            let by = (0..count).filter_map(|index| sysv::semaphore_pid(number(&row, 1), index).ok());
            if by.into_iter().any(|pid| processes.iter().any(|found| found.process.pid == pid)) {
                return self.undone(processes, true, findings);
            }
        }
        Ok(())
    }

    fn undone(
        &mut self,
        processes: &[ProcessLook],
        host: bool,
        findings: &mut Findings,
    ) -> Result<(), InspectError> {
        let without = match self.without.take() {
            Some(without) => without,
            None => Without::new()?,
        };
        let result = undone(without.0.pid, processes, host, findings);
        self.without = Some(without);
        result
    }

    fn segments(
        &mut self,
        rows: &[Row],
        removes: bool,
        registry: &mut Registry,
        ids: &IdMaps,
        findings: &mut Findings,
    ) -> Result<(), InspectError> {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let mut before = HashMap::new();
        for row in rows {
            let id = number(row, 1);
            let name = format!("System V shared memory {id}");
            let Some(object) = object(row, 7, ids, &name, findings) else { continue };
            let registered = match registry.segment(id) {
                Some(registered) => registered,
                None => {
                    match self.held.get(&id) {
                        Some(file) => {
                            let metadata = file.metadata().map_err(|error| {
                                InspectError::kernel("look at System V shared memory", id, error)
                            })?;
                            let own = i32::try_from(std::process::id()).unwrap_or(0);
                            let handle = Handle { pid: own, link: format!("fd/{}", file.as_raw_fd()) };
                            let kind = ObjectKind::Segment(IpcObject { id, ..IpcObject::default() });
                            let huge = huge::page_size(&metadata, &handle.path());
                            let size = (metadata.st_size(), huge);
                            registry.object(links::identity(&metadata), size, kind, handle)
                        }
                        None if removes && field(row, 6) == 0 => {
                            findings.container(
                            format!("{name}: nobody has it attached, and kernel.shm_rmid_forced would remove it"),
                            REMOVE,
                        );
                            continue;
                        }
                        // It was attached or let go of between the two looks: the next one tells.
                        None => continue,
                    }
                }
            };
            registry.segment_is(registered, object, u64::try_from(field(row, 3)).unwrap_or(0));
            let settled = |(known, at): &(Row, u64)| {
                let last = field(row, 11).max(field(row, 12));
                *known == counted(row) && u64::try_from(last).is_ok_and(|last| last + SETTLED <= *at)
            };
            if !self.before.get(&id).is_some_and(settled) {
                registry.object_has_fd(registered);
            }
            before.insert(id, (counted(row), now));
        }
        self.before = before;
        Ok(())
    }
}

/// A row without what says nothing of who attached it: how much of it is in memory.
fn counted(row: &Row) -> Row {
    row.iter().copied().take(14).collect()
}

fn number(row: &[i64], at: usize) -> i32 {
    i32::try_from(field(row, at)).unwrap_or(0)
}

/// What every row tells; `owner`: where its users and groups begin.
fn object(row: &[i64], owner: usize, ids: &IdMaps, name: &str, findings: &mut Findings) -> Option<IpcObject> {
    let id = |at: usize| u32::try_from(field(row, at)).unwrap_or(u32::MAX);
    let users = [ids.uid.inside(id(owner)), ids.uid.inside(id(owner + 2))];
    let groups = [ids.gid.inside(id(owner + 1)), ids.gid.inside(id(owner + 3))];
    let ([Some(uid), Some(creator_uid)], [Some(gid), Some(creator_gid)]) = (users, groups) else {
        findings
            .container(format!("{name}: its owner is not mapped in the container's user namespace"), REMOVE);
        return None;
    };
    Some(IpcObject {
        id: number(row, 1),
        key: number(row, 0),
        mode: u32::try_from(field(row, 2)).unwrap_or(0),
        uid,
        gid,
        creator_uid,
        creator_gid,
    })
}

/// Segments that a process has attached which is not of the tree, and mappings of segments of another namespace.
fn attached_outside(rows: &[Row], processes: &[ProcessLook], registry: &Registry, findings: &mut Findings) {
    let mut mapped: HashMap<i32, i64> = HashMap::new();
    for found in processes {
        for mapping in &found.mappings {
            let Some((id, _)) = mapping.shared_object() else { continue };
            let Some(segment) = registry.segment_of(id) else { continue };
            if !rows.iter().any(|row| number(row, 1) == segment) {
                findings.address(
                    found.process.inner,
                    mapping.vma.start,
                    "System V shared memory of another IPC namespace",
                    "end the program, or have it detach the segment, before the move",
                );
            }
            *mapped.entry(segment).or_default() += 1;
        }
    }
    for row in rows {
        let id = number(row, 1);
        if field(row, 6) > mapped.get(&id).copied().unwrap_or(0) {
            findings.container(
                format!("System V shared memory {id}: a process outside of the container has it attached"),
                "end that process, or have it detach the segment, before the move",
            );
        }
    }
}

/// Threads that may have semaphores set back when they end (SEM_UNDO). What would be set back shows nowhere, only whether
/// a thread has a list of that. One that never asked for it has none; threads of one process have one in any case, which
/// counts where the semaphores are the container's.
fn undone(
    without: i32,
    processes: &[ProcessLook],
    host: bool,
    findings: &mut Findings,
) -> Result<(), InspectError> {
    let kernel = |errno| InspectError::kernel("compare semaphore undo lists", without, errno);
    kcmp::sysvsem(without, without).map_err(kernel)?;
    let threads = |found: &ProcessLook| host && found.process.tids.len() > 1;
    let counts = |found: &&ProcessLook| !found.process.is_zombie() && !threads(found);
    for found in processes.iter().filter(counts) {
        for tid in &found.process.tids {
            match kcmp::sysvsem(without, *tid) {
                Ok(order) if order.is_eq() => {}
                Ok(_) => {
                    findings.process(
                        found.process.inner,
                        "it has used SEM_UNDO or had threads: which System V semaphores are undone at its end cannot be told",
                        "end it, or remove the semaphores (ipcrm), before the move",
                    );
                    break;
                }
                // It ended meanwhile; a kernel without them.
                Err(Errno::ESRCH | Errno::EOPNOTSUPP) => {}
                Err(errno) => return Err(kernel(errno)),
            }
        }
    }
    Ok(())
}

/// A process of the agent's that has no list of semaphores to be undone: this one has threads.
#[derive(Debug)]
struct Without(Child);

impl Without {
    fn new() -> Result<Self, InspectError> {
        let made = spawn_paused(&Spec::default(), &[]);
        made.map(Self).map_err(|errno| InspectError::kernel("make a process to compare with", 0, errno))
    }
}

impl Drop for Without {
    fn drop(&mut self) {
        // It dies with its maker, perhaps before.
        let _ = sys::pidfd::send_signal(self.0.pidfd.as_fd(), libc::SIGKILL);
        let _ = nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(self.0.pid), None);
    }
}
