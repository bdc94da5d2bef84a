//! What lives in the container's IPC namespace and not in a process; see sysvipc(7), mq_overview(7).

use serde::{Deserialize, Serialize};

use crate::Pid;

/// The namespace. Segments of shared memory are memory objects of the shape.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ipc {
    /// semget(2).
    pub semaphores: Vec<Semaphores>,
    /// msgget(2).
    pub queues: Vec<Queue>,
    /// mq_open(3).
    pub posix_queues: Vec<PosixQueue>,
    /// Files below /proc/sys that belong to the namespace, and what they hold; none where the container has the
    /// host's namespace.
    pub settings: Vec<(String, String)>,
}

/// A POSIX message queue without messages.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PosixQueue {
    /// Unique in the image.
    pub id: u64,
    /// Its name, without the slash.
    #[serde(with = "serde_bytes")]
    pub name: Vec<u8>,
    /// mq_unlink(3) took the name away.
    pub unlinked: bool,
    /// Permissions.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Owner's group.
    pub gid: u32,
    /// How many messages it may hold (`mq_maxmsg`).
    pub capacity: i64,
    /// How many bytes one may have (`mq_msgsize`).
    pub message_size: i64,
}

/// What every System V object has.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpcObject {
    /// The number by which it is used.
    pub id: i32,
    /// The key by which it is found; 0 = IPC_PRIVATE.
    pub key: i32,
    /// Permissions, and for a segment [`IpcObject::REMOVED`] and [`IpcObject::LOCKED`].
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Owner's group.
    pub gid: u32,
    /// Who made it.
    pub creator_uid: u32,
    /// Group of who made it.
    pub creator_gid: u32,
}

impl IpcObject {
    /// SHM_DEST: it goes with the last process that has it attached.
    pub const REMOVED: u32 = 0o1000;
    /// SHM_LOCKED: it is not swapped.
    pub const LOCKED: u32 = 0o2000;
}

/// A set of semaphores.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Semaphores {
    /// Which one.
    pub object: IpcObject,
    /// The values.
    pub values: Vec<u16>,
    /// Who changed each last; 0 = nobody, or a process that is gone.
    pub pids: Vec<Pid>,
    /// There was an operation on it (`sem_otime` is set), which programs take for a sign that it is ready.
    pub used: bool,
}

/// A message queue.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Queue {
    /// Which one.
    pub object: IpcObject,
    /// How many bytes it may hold.
    pub capacity: u64,
    /// The oldest first.
    pub messages: Vec<Message>,
}

/// A message in a queue.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// `mtype`.
    pub kind: i64,
    /// `mtext`.
    #[serde(with = "serde_bytes")]
    pub text: Vec<u8>,
}
