//! What a captured container *is*, as plain data, and its byte form.
//!
//! The same bytes travel between two agents and lie in a checkpoint directory. Nothing here touches
//! the kernel: `engine::capture` fills these types and `engine::restore` reads them.
//!
//! * [`shape`] is what the target needs before the freeze to build skeletons: the process tree and
//!   every address space.
//! * [`state`] is what is read while the container is frozen: registers, signals, timers, credentials.
//! * [`files`] and [`sockets`] are the open file descriptions.
//! * [`groups`] are the control groups.
//! * [`ipc`] is what lives in the IPC namespace, [`namespaces`] what processes have beside the container's own.
//! * [`refusal`] names what cannot be carried over.
//! * [`checkpoint`] is a whole container as one stream.
//! * [`frame`], [`pages`], [`packed`] and [`codec`] are the byte form, with limits checked before any allocation.

#![forbid(unsafe_code)]

pub mod checkpoint;
pub mod codec;
pub mod files;
pub mod frame;
pub mod groups;
pub mod ipc;
pub mod namespaces;
pub mod packed;
pub mod pages;
pub mod refusal;
pub mod shape;
pub mod sockets;
pub mod state;

pub use refusal::{Refusal, Subject};

/// A process or thread identifier as seen in the container's pid namespace, that of its first process.
pub type Pid = i32;

/// A user-space virtual address.
pub type Addr = u64;

/// Bytes in a page. The engine refuses kernels with another page size.
pub const PAGE_SIZE: u64 = 4096;
