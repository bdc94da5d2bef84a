//! The process tree and its address spaces: all that a target needs to build skeleton processes and
//! to fill them while the source still runs.

use serde::{Deserialize, Serialize};

use crate::ipc::IpcObject;
use crate::namespaces::{Level, Nested};
use crate::state::Creds;
use crate::{Addr, Pid};

/// The process tree with every address space, as read at one moment.
///
/// During pre-copy a shape may be stale by the time it arrives; the one inside the final image is exact.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shape {
    /// Every process; parents before their children, the tree's root first.
    pub processes: Vec<ProcessShape>,
    /// Memory that more than one mapping can share: shared anonymous memory, memfds, deleted tmpfs files.
    pub objects: Vec<MemoryObject>,
    /// Files that are open or mapped and have no name any more.
    pub ghosts: Vec<GhostFile>,
    /// Private memory that all processes made for the next shape begin with, as fork(2) would give it to them: what
    /// several of them share as copy-on-write. The kernel's own mappings are among it, where one of them has them. A
    /// shape with a template has neither processes nor objects nor files without a name.
    pub template: Vec<Vma>,
}

/// One process of the tree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessShape {
    /// Its pid (thread group id) in the container's pid namespace.
    pub pid: Pid,
    /// Its parent there; 0 for the root of the tree.
    pub ppid: Pid,
    /// Its process group.
    pub pgid: Pid,
    /// Its session.
    pub sid: Pid,
    /// The signal its parent gets when it exits (`exit_signal` of clone(2)), 17 = SIGCHLD.
    pub exit_signal: i32,
    /// What is left of it when it is a zombie. A zombie has no address space.
    pub zombie: Option<Zombie>,
    /// The number of its controlling terminal in the container's devpts. A process has it by birth, and a session's
    /// leader by taking it, so it is a part of the tree.
    pub tty: Option<u32>,
    /// What it is in the pid namespaces below the container's, the outermost first. Empty for a process of the
    /// container's own.
    pub levels: Vec<Level>,
    /// Namespaces that are not the container's. A zombie has none.
    pub namespaces: Nested,
    /// What it shares with other processes.
    pub shared: Shared,
    /// Its address space.
    pub mm: Mm,
}

/// What a process shares with other processes, or a thread with other threads and not with its process: the number of
/// the first one that has it, which may be itself; 0 when nobody else has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shared {
    /// Its descriptor table (CLONE_FILES of clone(2)).
    pub files: Pid,
    /// Its working directory, root directory and umask (CLONE_FS).
    pub directories: Pid,
}

impl Shared {
    /// Whether the process or thread with this number is the first one that has its descriptor table.
    #[must_use]
    pub fn is_first_of_files(&self, number: Pid) -> bool {
        self.files == 0 || self.files == number
    }

    /// Whether the process or thread with this number is the first one that has its directories.
    #[must_use]
    pub fn is_first_of_directories(&self, number: Pid) -> bool {
        self.directories == 0 || self.directories == number
    }
}

/// A process that has ended and was not waited for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Zombie {
    /// Its exit code, as wait(2) encodes it.
    pub status: i32,
    /// The name it had (PR_GET_NAME), up to 15 bytes.
    #[serde(with = "serde_bytes")]
    pub comm: Vec<u8>,
}

/// An address space.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mm {
    /// Every mapping, ascending and without overlap, without `[vsyscall]`.
    pub vmas: Vec<Vma>,
    /// The fields that prctl(2) PR_SET_MM_MAP sets.
    pub fields: MmFields,
    /// The auxiliary vector, raw (/proc/PID/auxv).
    #[serde(with = "serde_bytes")]
    pub auxv: Vec<u8>,
    /// The executable, as a path in the process's mount namespace (/proc/PID/exe).
    pub exe: FileIdentity,
    /// The registering commands of membarrier(2) that were made, each the bit that is its number.
    pub barriers: u32,
}

/// `struct prctl_mm_map` without its pointers to auxv and exe; see prctl(2) PR_SET_MM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names are the kernel's")]
pub struct MmFields {
    pub start_code: Addr,
    pub end_code: Addr,
    pub start_data: Addr,
    pub end_data: Addr,
    pub start_brk: Addr,
    pub brk: Addr,
    pub start_stack: Addr,
    pub arg_start: Addr,
    pub arg_end: Addr,
    pub env_start: Addr,
    pub env_end: Addr,
}

/// One mapping.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vma {
    /// First address.
    pub start: Addr,
    /// One past the last address.
    pub end: Addr,
    /// PROT_READ | PROT_WRITE | PROT_EXEC bits of mmap(2).
    pub prot: u8,
    /// What is behind it.
    pub backing: Backing,
    /// What madvise(2), mlock(2) and mmap(2) flags made of it.
    pub flags: VmaFlags,
    /// The name given by prctl(2) PR_SET_VMA_ANON_NAME, if any.
    pub anon_name: Option<String>,
    /// Bytes of each of its pages, where they are huge ones of hugetlbfs; 0 = ordinary memory.
    pub huge: u64,
}

impl Vma {
    /// Length in bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.end - self.start
    }

    /// True for the empty mapping, which the kernel never reports.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.end == self.start
    }
}

/// What is behind a mapping.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Backing {
    /// Private anonymous memory (heap, stacks, bss).
    Anonymous,
    /// A file that has a name in the container.
    File {
        /// Which file.
        file: FileIdentity,
        /// Offset of `start` in the file, bytes.
        offset: u64,
        /// MAP_SHARED; a private mapping's modified pages belong to the process.
        shared: bool,
        /// The mapping may be made writable later (VM_MAYWRITE, from how the file was opened); for
        /// shared mappings only.
        may_write: bool,
    },
    /// A [`MemoryObject`].
    Object {
        /// Its id in [`Shape::objects`].
        id: u32,
        /// Offset of `start` in it, bytes.
        offset: u64,
        /// MAP_SHARED.
        shared: bool,
        /// As in [`Backing::File`].
        may_write: bool,
    },
    /// `[vdso]`: code of the kernel, moved and never copied.
    Vdso,
    /// `[vvar]` or `[vvar_vclock]`, by that name; moved and never copied.
    Vvar(String),
}

/// Flags of a mapping, from the `VmFlags` line of /proc/PID/smaps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmaFlags {
    /// MAP_GROWSDOWN (`gd`). The kernel's `[stack]` has it too.
    pub grows_down: bool,
    /// MAP_NORESERVE (`nr`).
    pub no_reserve: bool,
    /// mlock(2) or MAP_LOCKED (`lo`).
    pub locked: bool,
    /// MLOCK_ONFAULT; known only through mlock2(2) bookkeeping of the kernel (`lo` + `??`), see the engine.
    pub locked_on_fault: bool,
    /// MADV_DONTFORK (`dc`).
    pub dont_fork: bool,
    /// MADV_WIPEONFORK (`wf`).
    pub wipe_on_fork: bool,
    /// MADV_DONTDUMP (`dd`).
    pub dont_dump: bool,
    /// MADV_SEQUENTIAL (`sr`).
    pub sequential: bool,
    /// MADV_RANDOM (`rr`).
    pub random: bool,
    /// MADV_HUGEPAGE (`hg`).
    pub huge_page: bool,
    /// MADV_NOHUGEPAGE (`nh`).
    pub no_huge_page: bool,
    /// MADV_MERGEABLE (`mg`).
    pub mergeable: bool,
    /// VM_ACCOUNT (`ac`).
    pub accounted: bool,
    /// mseal(2) (`sl`).
    pub sealed: bool,
}

/// A file by its name, with what proves on the target that it is the same one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileIdentity {
    /// Absolute path as the process sees it. For a deleted file the name it had.
    pub path: String,
    /// Size in bytes.
    pub size: u64,
    /// Modification time, nanoseconds since the epoch.
    pub mtime_ns: i64,
    /// Set when the file has no name any more: its [`GhostFile::id`].
    pub ghost: Option<u32>,
}

/// A file without a name, which the target makes as soon as it hears of it. Its contents come as pages.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GhostFile {
    /// Unique in the shape; stays the same over the rounds of one migration.
    pub id: u32,
    /// The name it had.
    pub path: String,
}

/// Memory that mappings (and memfds) of several processes can share.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryObject {
    /// Unique in the shape; stays the same over the rounds of one migration.
    pub id: u32,
    /// Size in bytes, page-aligned for shared anonymous memory.
    pub size: u64,
    /// As in [`Vma::huge`].
    pub huge: u64,
    /// What made it.
    pub kind: ObjectKind,
}

/// What made a [`MemoryObject`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ObjectKind {
    /// mmap(2) with MAP_SHARED | MAP_ANONYMOUS (`/dev/zero (deleted)` in maps).
    SharedAnonymous,
    /// memfd_create(2).
    Memfd {
        /// Its name without the `memfd:` prefix.
        name: String,
        /// F_GET_SEALS; known when nothing runs any more.
        seals: u32,
        /// Permissions; known when nothing runs any more.
        mode: u32,
        /// Owner and group; known when nothing runs any more.
        owner: (u32, u32),
    },
    /// A segment of System V shared memory (shmget(2)); it is there while nobody has it attached, too.
    Segment(IpcObject),
}

/// What of a process can be prepared before its state is known, because it rarely changes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ahead {
    /// The process.
    pub pid: Pid,
    /// Its threads beside its first one. They may come and go at any time.
    pub threads: Vec<Pid>,
    /// Its highest descriptor; -1 without any.
    pub highest_fd: i32,
    /// What all its threads may do, if that is the same for all. SECBIT flags are not known before the freeze: none are
    /// assumed.
    pub creds: Option<Creds>,
}
