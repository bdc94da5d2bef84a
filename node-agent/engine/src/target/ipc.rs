//! System V objects under their own numbers, in the container's IPC namespace; see sysvipc(7).
//!
//! The kernel gives the next object the number that was written to a file of the namespace's. Objects are made by a
//! skeleton with the users of whoever made them at the source.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use image::ipc::{Ipc, IpcObject, Queue, Semaphores};
use image::shape::{Backing, MemoryObject, Vma};
use image::{Addr, PAGE_SIZE, Pid, Refusal, Subject};
use libc::{
    SYS_mprotect, SYS_mremap, SYS_msgctl, SYS_msgget, SYS_msgsnd, SYS_munmap, SYS_semctl, SYS_semget,
    SYS_semop, SYS_setresgid, SYS_setresuid, SYS_shmat, SYS_shmctl, SYS_shmdt, SYS_shmget,
};
use sys::ns::{self, Kind};
use sys::sysv;
use sys::tape::target::TargetTape;

use super::error::TargetError;
use super::huge;
use super::script::{Block, Call, call};
use super::skeleton::Skeleton;
use super::tree::Tree;

/// Takes the number of the next segment. Only a kernel with CONFIG_CHECKPOINT_RESTORE has it.
pub(crate) const SEGMENT_ID: &str = "/proc/sys/kernel/shm_next_id";
const SEMAPHORES_ID: &str = "/proc/sys/kernel/sem_next_id";
const QUEUE_ID: &str = "/proc/sys/kernel/msg_next_id";
const CREATE: i32 = libc::IPC_CREAT | libc::IPC_EXCL;
const PERMISSIONS: u32 = 0o777;
/// `sizeof(struct shmid64_ds)`; those of semaphores and queues are not larger than 128.
const ABOUT: usize = 128;

/// The files that take numbers, opened when they are needed.
#[derive(Debug, Default)]
pub(crate) struct NextIds {
    open: Vec<(&'static str, File)>,
}

impl NextIds {
    /// Chooses the number of what is made next in the IPC namespace of a process.
    fn choose(&mut self, host: i32, path: &'static str, id: i32) -> Result<(), TargetError> {
        let at = match self.open.iter().position(|(known, _)| *known == path) {
            Some(at) => at,
            None => {
                let namespace =
                    ns::open(host, Kind::Ipc).map_err(TargetError::errno("open the IPC namespace"))?;
                let file =
                    ns::within(namespace.as_fd(), Kind::Ipc, || File::options().write(true).open(path));
                let file = file.map_err(TargetError::errno("enter the IPC namespace"))?;
                self.open.push((path, file.map_err(TargetError::system(format!("open {path}")))?));
                self.open.len() - 1
            }
        };
        let (_, file) = &self.open[at];
        file.write_all_at(id.to_string().as_bytes(), 0)
            .map_err(TargetError::system(format!("write to {path}")))
    }

    /// Makes one object with `get`.
    fn make(
        &mut self,
        skeleton: &mut Skeleton,
        tape: &TargetTape,
        path: &'static str,
        object: &IpcObject,
        get: Call,
    ) -> Result<(), TargetError> {
        self.choose(skeleton.host, path, object.id)?;
        let what = get.what;
        let (uid, gid) = (object.creator_uid, object.creator_gid);
        let users = |uid: u32, gid: u32| {
            let uid = call!("setresuid", SYS_setresuid, -1, uid, -1);
            let gid = call!("setresgid", SYS_setresgid, -1, gid, -1);
            [uid, gid]
        };
        let other = (uid, gid) != (0, 0);
        let mut calls = Vec::new();
        if other {
            calls.extend(users(uid, gid).into_iter().rev());
        }
        calls.push(get);
        if other {
            calls.extend(users(0, 0));
        }
        let place = if other { 2 } else { 0 };
        let ran = skeleton.run(tape, &calls)?;
        let made = ran.answers.get(place).map_or(-1, |answer| answer.value);
        if made == i64::from(object.id) {
            return Ok(());
        }
        Err(TargetError::Refused(Refusal {
            pid: 0,
            subject: Subject::Container,
            reason: format!("{what} gave number {made} instead of {}, which is taken here", object.id),
            way_out: "move the container into an IPC namespace of its own".to_owned(),
        }))
    }

    /// Makes a segment of shared memory; a file of its memory.
    pub(crate) fn segment(
        &mut self,
        skeleton: &mut Skeleton,
        tape: &TargetTape,
        object: &IpcObject,
        memory: &MemoryObject,
    ) -> Result<File, TargetError> {
        let size = memory.size;
        let flags = CREATE.cast_unsigned() | object.mode & PERMISSIONS | huge::segment_flags(memory);
        let get = call!(huge::making(memory), SYS_shmget, object.key, size, flags);
        self.make(skeleton, tape, SEGMENT_ID, object, get)?;
        let ran = skeleton.run(tape, &[call!("shmat", SYS_shmat, object.id, 0, 0)])?;
        let start = ran.answers.first().map_or(0, |answer| answer.value.cast_unsigned());
        let file = skeleton.open_mapping(start, huge::addresses(memory))?;
        skeleton.run(tape, &[call!("shmdt", SYS_shmdt, start)])?;
        Ok(file)
    }
}

/// Removes a segment that the source does not have any more.
pub(crate) fn remove_segment(object: &IpcObject) -> Call {
    call!("shmctl", SYS_shmctl, object.id, sysv::REMOVE, 0).accept(&[libc::EINVAL, libc::EIDRM])
}

/// What a segment is in the end, when everybody has it attached who had.
pub(crate) fn finish_segment(object: &IpcObject) -> Vec<Call> {
    let mut calls = vec![call!("shmctl", SYS_shmctl, object.id, sysv::SET, about(object))];
    if object.mode & IpcObject::LOCKED != 0 {
        calls.push(call!("SHM_LOCK", SYS_shmctl, object.id, sysv::LOCK, 0));
    }
    if object.mode & IpcObject::REMOVED != 0 {
        calls.push(call!("IPC_RMID", SYS_shmctl, object.id, sysv::REMOVE, 0));
    }
    calls
}

/// `struct ipc64_perm`, with which all three kinds begin.
fn about(object: &IpcObject) -> Block {
    Block::new(about_bytes(object))
}

fn about_bytes(object: &IpcObject) -> Vec<u8> {
    let mut bytes = vec![0; ABOUT];
    bytes[4..8].copy_from_slice(&object.uid.to_le_bytes());
    bytes[8..12].copy_from_slice(&object.gid.to_le_bytes());
    bytes[20..24].copy_from_slice(&(object.mode & PERMISSIONS).to_le_bytes());
    bytes
}

/// Attaches a segment once, so that shmdt(2) lets go of all parts that are there. `spare`: as many free addresses as the
/// segment has.
pub(crate) fn attach(parts: &[&Vma], id: i32, size: u64, may_write: bool, spare: Addr) -> Vec<Call> {
    const READ: u8 = 1;
    const WRITE: u8 = 2;
    const EXECUTE: u8 = 4;
    let total = size.next_multiple_of(PAGE_SIZE);
    let whole = parts.first().filter(|part| part.len() == total);
    let mut flags = if may_write { 0 } else { libc::SHM_RDONLY };
    let mut prot = READ | if may_write { WRITE } else { 0 };
    if parts.iter().any(|part| part.prot & EXECUTE != 0) {
        flags |= libc::SHM_EXEC;
        prot |= EXECUTE;
    }
    let mut calls = vec![call!("shmat", SYS_shmat, id, whole.map_or(spare, |part| part.start), flags)];
    if whole.is_none() {
        for part in parts {
            let Backing::Object { offset, .. } = part.backing else { continue };
            let moved = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
            let (from, length) = (spare + offset, part.len());
            calls.push(call!("mremap", SYS_mremap, from, length, length, moved, part.start));
        }
        calls.push(call!("munmap", SYS_munmap, spare, total));
    }
    for part in parts.iter().filter(|part| part.prot != prot) {
        calls.push(call!("mprotect", SYS_mprotect, part.start, part.len(), u64::from(part.prot)));
    }
    calls
}

/// Makes semaphores and message queues.
pub(crate) fn restore(
    ipc: &Ipc,
    tree: &mut Tree,
    root: Pid,
    tape: &TargetTape,
    next: &mut NextIds,
) -> Result<(), TargetError> {
    for set in &ipc.semaphores {
        let object = &set.object;
        let flags = CREATE.cast_unsigned() | object.mode & PERMISSIONS;
        let get = call!("semget", SYS_semget, object.key, set.values.len(), flags);
        next.make(tree.get(root)?, tape, SEMAPHORES_ID, object, get)?;
        semaphores(set, tree, root, tape)?;
    }
    for queue in &ipc.queues {
        let object = &queue.object;
        let flags = CREATE.cast_unsigned() | object.mode & PERMISSIONS;
        next.make(tree.get(root)?, tape, QUEUE_ID, object, call!("msgget", SYS_msgget, object.key, flags))?;
        tree.get(root)?.run(tape, &fill(queue))?;
    }
    Ok(())
}

fn semaphores(set: &Semaphores, tree: &mut Tree, root: Pid, tape: &TargetTape) -> Result<(), TargetError> {
    let id = set.object.id;
    // Each is set by the process that changed it last, as far as that is there.
    let alive = |pid: &Pid| tree.skeletons.contains_key(pid);
    let changers: Vec<Option<Pid>> = set
        .values
        .iter()
        .enumerate()
        .map(|(index, value)| match set.pids.get(index).filter(|pid| alive(pid)) {
            Some(pid) => Some(*pid),
            None => (*value != 0).then_some(root),
        })
        .collect();
    if set.used && !set.values.is_empty() {
        // There and back again: it counts as an operation.
        let index = changers.iter().position(Option::is_some).unwrap_or(0);
        let number = u16::try_from(index).unwrap_or(0);
        let operation = |step: i16| [number, step.cast_unsigned(), 0].map(u16::to_le_bytes).concat();
        let both = Block::new([operation(1), operation(-1)].concat());
        let by = changers.get(index).copied().flatten().unwrap_or(root);
        tree.get(by)?.run(tape, &[call!("semop", SYS_semop, id, both, 2)])?;
    }
    let mut calls: BTreeMap<Pid, Vec<Call>> = BTreeMap::new();
    for (index, (value, changer)) in set.values.iter().zip(&changers).enumerate() {
        let call = call!("SETVAL", SYS_semctl, id, index, sysv::SET_VALUE, u64::from(*value));
        if let Some(pid) = changer {
            calls.entry(*pid).or_default().push(call);
        }
    }
    for (pid, calls) in calls {
        tree.get(pid)?.run(tape, &calls)?;
    }
    tree.get(root)?.run(tape, &[call!("semctl", SYS_semctl, id, 0, sysv::SET, about(&set.object))]).map(drop)
}

/// Sends a queue's messages again, and makes it what it was.
fn fill(queue: &Queue) -> Vec<Call> {
    const CAPACITY: usize = 88;
    let id = queue.object.id;
    let set = |capacity: u64| {
        let mut bytes = about_bytes(&queue.object);
        bytes[CAPACITY..CAPACITY + 8].copy_from_slice(&capacity.to_le_bytes());
        call!("msgctl", SYS_msgctl, id, sysv::SET, Block::new(bytes))
    };
    let held: u64 = queue.messages.iter().map(|message| message.text.len() as u64).sum();
    let mut calls = vec![set(queue.capacity.max(held))];
    for message in &queue.messages {
        let text = [&message.kind.to_le_bytes()[..], &message.text].concat();
        let length = message.text.len();
        calls.push(call!("msgsnd", SYS_msgsnd, id, Block::new(text), length, libc::IPC_NOWAIT));
    }
    calls.push(set(queue.capacity));
    calls
}
