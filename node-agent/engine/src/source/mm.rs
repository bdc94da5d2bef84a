//! Address spaces: from lines of /proc to [`Mm`].

use std::collections::{HashMap, HashSet};

use std::os::linux::fs::MetadataExt;

use image::Pid;
use image::ipc::IpcObject;
use image::shape::{Backing, Mm, ObjectKind, Vma};
use nix::sys::statfs::{FsType, statfs};

use super::error::InspectError;
use super::findings::Findings;
use super::huge;
use super::registry::{Handle, Registry};
use super::tree::Process;
use super::view::{FileView, View};
use crate::proc::links;
use crate::proc::maps::Entry;

/// A mapping with what the engine needs to read it, beside what goes into the image.
#[derive(Clone, Debug)]
pub(crate) struct Mapping {
    /// For the image.
    pub(crate) vma: Vma,
    /// The kernel may throw its pages away at any time (MAP_DROPPABLE): nobody may rely on the contents.
    pub(crate) droppable: bool,
}

impl Mapping {
    /// Its pages belong to the process: they travel under [`image::pages::Owner::Process`].
    pub(crate) fn has_private_pages(&self) -> bool {
        match &self.vma.backing {
            Backing::Anonymous => !self.droppable,
            Backing::File { shared, .. } | Backing::Object { shared, .. } => !shared,
            Backing::Vdso | Backing::Vvar(_) => false,
        }
    }

    /// The kernel made it, and nobody changes its pages.
    pub(crate) fn is_kernels(&self) -> bool {
        matches!(self.vma.backing, Backing::Vdso | Backing::Vvar(_))
    }

    /// Pages that were never written show a file, not zeros.
    pub(crate) fn is_over_file(&self) -> bool {
        !matches!(self.vma.backing, Backing::Anonymous)
    }

    /// The memory object that a shared mapping writes to, with the offset of its start.
    pub(crate) fn shared_object(&self) -> Option<(u32, u64)> {
        match self.vma.backing {
            Backing::Object { id, offset, shared: true, .. } => Some((id, offset)),
            _ => None,
        }
    }
}

/// What a line of maps says of a file: device, inode, name; with its mount, where there are several namespaces.
type Named = ((u32, u32), u64, Vec<u8>, Option<i32>);

/// Names a mapping of a file: its process by pid and start time, its addresses, the file's inode.
type Mapped = ((i32, u64), (u64, u64), u64);

/// What was asked of files in one look.
#[derive(Debug, Default)]
pub(crate) struct Files {
    /// Those of mappings.
    mapped: HashMap<Named, FileView>,
    /// Paths of the container that lead to a file, by its device and inode.
    leads: HashMap<(u64, u64), HashSet<Vec<u8>>>,
    /// The mounts of mappings, and what the look before this one found: asking takes long.
    mounts: HashMap<Mapped, i32>,
    before: HashMap<Mapped, i32>,
}

impl Files {
    /// Begins a look.
    pub(crate) fn begin(&mut self) {
        *self = Self { before: std::mem::take(&mut self.mounts), ..Self::default() };
    }

    /// The mount of a mapping, where there are several namespaces.
    fn mount(
        &mut self,
        view: &View,
        process: &Process,
        entry: &Entry,
        link: &str,
    ) -> Result<Option<i32>, InspectError> {
        if view.spaces.is_empty() {
            return Ok(None);
        }
        let key = (process.key(), (entry.start, entry.end), entry.inode);
        let mount = match self.before.get(&key) {
            Some(mount) => *mount,
            None => super::mounts::mount_of(process.pid, link)?,
        };
        self.mounts.insert(key, mount);
        Ok(Some(mount))
    }

    /// [`View::leads_to`], asked until it does.
    pub(crate) fn leads_to(&mut self, view: &View, file: &FileView) -> bool {
        let paths = self.leads.entry(links::identity(&file.metadata)).or_default();
        if paths.contains(&file.path) {
            return true;
        }
        let leads = view.leads_to(&file.path, &file.metadata);
        if leads {
            paths.insert(file.path.clone());
        }
        leads
    }
}

/// Everything that turning lines of /proc into parts of an image needs.
#[derive(Debug)]
pub(crate) struct MmReader<'a> {
    /// How paths look in the container.
    pub(crate) view: &'a View,
    /// Ids of shared things.
    pub(crate) registry: &'a mut Registry,
    /// Where refusals go.
    pub(crate) findings: &'a mut Findings,
    /// File system types by mount id, as far as they were asked for in this look.
    pub(crate) mounts: &'a mut HashMap<i32, String>,
    /// Files, as far as they were looked at in this look.
    pub(crate) files: &'a mut Files,
    /// Our own trackers are in place: userfaultfd flags say nothing about the program.
    pub(crate) tracked: bool,
    /// The tree has an IPC namespace of its own.
    pub(crate) own_ipc: bool,
    /// The process is in another IPC namespace than the tree.
    pub(crate) left_ipc: bool,
}

const RESTART: &str = "end the program, or have it give this memory back, before the move";
const HUGE_FILE: &str = "use memfd_create (MFD_HUGETLB) or mmap (MAP_HUGETLB) instead";

impl MmReader<'_> {
    /// The mappings of a process. `entries` should carry flags (smaps); those of this engine's own tape
    /// must have been taken out.
    pub(crate) fn mappings(
        &mut self,
        process: &Process,
        entries: &[Entry],
    ) -> Result<Vec<Mapping>, InspectError> {
        let mut mappings = Vec::with_capacity(entries.len());
        for entry in entries {
            match self.mapping(process, entry) {
                Ok(Some(mapping)) => mappings.push(mapping),
                Ok(None) => {}
                // It was unmapped, or the process ended, between the two reads.
                Err(InspectError::Proc(error)) if error.is_gone() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(mappings)
    }

    fn mapping(&mut self, process: &Process, entry: &Entry) -> Result<Option<Mapping>, InspectError> {
        let pid = process.inner;
        let backing = if entry.is_file() {
            self.file_backing(process, entry)?
        } else {
            self.kernel_name(pid, entry).map(|backing| (backing, 0))
        };
        let Some((backing, huge)) = backing else {
            return Ok(None);
        };
        self.refuse_flags(pid, entry);
        self.refuse_huge(pid, entry, huge);
        Ok(Some(Mapping {
            vma: Vma {
                start: entry.start,
                end: entry.end,
                prot: entry.prot,
                anon_name: anon_name(&entry.name),
                backing,
                flags: entry.flags.to_image(),
                huge,
            },
            droppable: entry.flags.has("dp"),
        }))
    }

    /// A mapping without a file: anonymous memory, or one of the kernel's own.
    fn kernel_name(&mut self, pid: Pid, entry: &Entry) -> Option<Backing> {
        match entry.name.as_slice() {
            b"[vdso]" => Some(Backing::Vdso),
            b"[vvar]" | b"[vvar_vclock]" => {
                Some(Backing::Vvar(String::from_utf8_lossy(&entry.name).into_owned()))
            }
            b"[vsyscall]" => None,
            b"" | b"[heap]" | b"[stack]" => Some(Backing::Anonymous),
            name if name.starts_with(b"[anon:") || name.starts_with(b"[stack:") => Some(Backing::Anonymous),
            name => {
                let name = String::from_utf8_lossy(name);
                self.findings.address(
                    pid,
                    entry.start,
                    format!("{name} is a mapping of the kernel's own that cannot be made again"),
                    "remove the probe or tracer that made it",
                );
                None
            }
        }
    }

    /// What is behind it, with the size of its pages where they are huge ones.
    fn file_backing(
        &mut self,
        process: &Process,
        entry: &Entry,
    ) -> Result<Option<(Backing, u64)>, InspectError> {
        let pid = process.inner;
        let link = format!("map_files/{}", entry.link_name());
        if let Some(reason) = unmovable_name(&entry.name) {
            self.findings.address(pid, entry.start, reason, RESTART);
            return Ok(None);
        }
        // A library has several mappings.
        let mount = self.files.mount(self.view, process, entry, &link)?;
        let key = (entry.device, entry.inode, entry.name.clone(), mount);
        let file = match self.files.mapped.get(&key) {
            Some(known) => known.clone(),
            None => {
                let file = self.view.file_on(process.pid, &link, mount)?;
                self.files.mapped.insert(key, file.clone());
                file
            }
        };
        let mode = file.metadata.st_mode() & S_IFMT;
        if mode == S_IFCHR {
            return Ok(self.device(pid, entry, &file).map(|backing| (backing, 0)));
        }
        let handle = Handle { pid: process.pid, link };
        let huge = huge::page_size(&file.metadata, &handle.path());
        let may_write = entry.shared && (entry.flags.has("mw") || entry.prot & 2 != 0);
        // What is written to a private mapping never goes into the file that the kernel made for it.
        if huge != 0 && !entry.shared && entry.name == huge::ANONYMOUS && file.metadata.st_blocks() == 0 {
            return Ok(Some((Backing::Anonymous, huge)));
        }
        if file.metadata.st_dev() == self.view.shmem_dev || huge != 0 {
            let kind = match object_kind(&entry.name) {
                None if entry.name.starts_with(b"/SYSV") && self.own_ipc && !self.left_ipc => {
                    // Its inode's number is the segment's; the rest is in the namespace's table.
                    let id = i32::try_from(entry.inode).unwrap_or(0);
                    Some(ObjectKind::Segment(IpcObject { id, ..IpcObject::default() }))
                }
                kind => kind,
            };
            let Some(kind) = kind else {
                let name = String::from_utf8_lossy(&entry.name).into_owned();
                let (reason, way_out) = if name.starts_with("/SYSV") && self.left_ipc {
                    (
                        "System V shared memory in a process that is in another IPC namespace than the container's root".to_owned(),
                        "end the program, or have it detach the segment, before the move",
                    )
                } else if name.starts_with("/SYSV") {
                    (
                        "System V shared memory of the host's IPC namespace".to_owned(),
                        "give the container an IPC namespace, or use POSIX shared memory (shm_open, memfd_create)",
                    )
                } else if huge != 0 {
                    (format!("{name}: huge pages of a file of hugetlbfs are not carried yet"), HUGE_FILE)
                } else {
                    (format!("{name}: shared memory of a kind that is not known"), RESTART)
                };
                self.findings.address(pid, entry.start, reason, way_out);
                return Ok(None);
            };
            let id = self.registry.object(file.key(), (file.metadata.st_size(), huge), kind, handle);
            let object = Backing::Object { id, offset: entry.offset, shared: entry.shared, may_write };
            return Ok(Some((object, huge)));
        }
        if mode != S_IFREG {
            self.findings.address(
                pid,
                entry.start,
                "it maps something that is neither a file nor memory",
                RESTART,
            );
            return Ok(None);
        }
        let Some(file) = self.identity(pid, image::Subject::Address(entry.start), &file, handle) else {
            return Ok(None);
        };
        if let Some(ghost) = file.ghost.filter(|_| may_write) {
            self.registry.ghost_untold(ghost);
        }
        Ok(Some((Backing::File { file, offset: entry.offset, shared: entry.shared, may_write }, 0)))
    }

    /// The identity of a file; files without a name become ghosts. `None` after a refusal.
    pub(crate) fn identity(
        &mut self,
        pid: Pid,
        subject: image::Subject,
        file: &FileView,
        handle: Handle,
    ) -> Option<image::shape::FileIdentity> {
        let shown = String::from_utf8_lossy(&file.path).into_owned();
        let Some(mut identity) = file.identity(None) else {
            self.findings.add(pid, subject, format!("the path of {shown} is not UTF-8"), "rename the file");
            return None;
        };
        if file.deleted {
            if is_secret(file, &handle) {
                self.findings.add(
                    pid,
                    subject,
                    "secret memory (memfd_secret): nobody but its processes can read it, not even the kernel",
                    "start the program without it, or have it give this memory back, before the move",
                );
                return None;
            }
            if file.metadata.st_nlink() > 0 {
                let other = self.registry.other_name(file.key(), |known| self.view.other_name(file, known));
                if let Some(other) = other {
                    identity.path = other;
                    return Some(identity);
                }
                self.findings.add(
                    pid,
                    subject,
                    format!("{shown} was deleted under this name but has another one that is not in the same directory"),
                    "close the file, or remove its other names",
                );
                return None;
            }
            identity.ghost = Some(self.registry.ghost(file.key(), &identity.path, handle));
        } else if !self.files.leads_to(self.view, file) {
            self.findings.add(
                pid,
                subject,
                format!("{shown} does not lead to this file in the container: it comes from outside"),
                "give it to the container as an external file, or close it before the move",
            );
            return None;
        }
        Some(identity)
    }

    fn device(&mut self, pid: Pid, entry: &Entry, file: &FileView) -> Option<Backing> {
        // A private mapping of /dev/zero (1, 5) is anonymous memory. Shared ones show as memory objects.
        if file.metadata.st_rdev() == makedev(1, 5) && !entry.shared {
            return Some(Backing::Anonymous);
        }
        let name = String::from_utf8_lossy(&file.path);
        self.findings.address(
            pid,
            entry.start,
            format!("{name}: memory of a device cannot move"),
            "stop using the device before the move",
        );
        None
    }

    fn refuse_huge(&mut self, pid: Pid, entry: &Entry, huge: u64) {
        if huge == 0 && entry.flags.has("ht") {
            self.findings.address(pid, entry.start, "huge pages of a kind that is not known", HUGE_FILE);
        }
        if huge != 0 && !huge::are_tracked() {
            let reason =
                "huge pages of hugetlbfs: this kernel does not tell which were written (Linux before 6.7)";
            self.findings.address(pid, entry.start, reason, "use transparent huge pages instead");
        }
    }

    fn refuse_flags(&mut self, pid: Pid, entry: &Entry) {
        let rules = [
            ("um", "the program itself watches it with userfaultfd", RESTART),
            ("uw", "the program itself watches it with userfaultfd", RESTART),
            ("ui", "the program itself watches it with userfaultfd", RESTART),
            (
                "ss",
                "shadow stack (CET): it cannot be made again yet",
                "start the program without shadow stacks",
            ),
        ];
        // A mapping that can only be executed has a key that the kernel gave it, and will again.
        const EXECUTE_ONLY: u8 = 4;
        if entry.flags.has("pk") && entry.prot != EXECUTE_ONLY {
            let reason = "it has a protection key (pkey_mprotect), which is not carried yet";
            self.findings.address(pid, entry.start, reason, "start the program without protection keys");
        }
        for (flag, reason, way_out) in rules {
            let ours = self.tracked && matches!(flag, "um" | "uw" | "ui");
            if entry.flags.has(flag) && !ours {
                self.findings.address(pid, entry.start, reason, way_out);
            }
        }
        let special = matches!(entry.name.as_slice(), b"[vvar]" | b"[vvar_vclock]" | b"[vdso]");
        if special && entry.flags.has("sl") {
            let reason =
                "the kernel has sealed it (CONFIG_MSEAL_SYSTEM_MAPPINGS): it cannot be put there again";
            self.findings.address(pid, entry.start, reason, "use a kernel that does not seal it");
        }
        if !special && (entry.flags.has("pf") || entry.flags.has("io")) {
            self.findings.address(
                pid,
                entry.start,
                "memory of a device cannot move",
                "stop using the device before the move",
            );
        }
    }
}

/// Builds the image's form.
pub(crate) fn to_image(
    process: &Process,
    mappings: &[Mapping],
    exe: image::shape::FileIdentity,
) -> Result<Mm, InspectError> {
    Ok(Mm {
        vmas: mappings.iter().map(|mapping| mapping.vma.clone()).collect(),
        fields: process.stat.mm,
        auxv: crate::proc::read(process.pid, "auxv")?,
        exe,
        // Only the process itself can tell.
        barriers: 0,
    })
}

/// Made by memfd_secret(2): such files have a file system of their own, and all the same name.
fn is_secret(file: &FileView, handle: &Handle) -> bool {
    const SECRETMEM: FsType = FsType(0x5345_434d);
    file.path == b"/secretmem"
        && statfs(handle.path().as_str()).is_ok_and(|found| found.filesystem_type() == SECRETMEM)
}

/// Files of the kernel's own that mappings can show, and why they cannot move.
fn unmovable_name(name: &[u8]) -> Option<&'static str> {
    let rules: [(&[u8], &str); 6] = [
        (b"/[aio]", "asynchronous I/O context (io_setup): its ring and requests live in the kernel"),
        (b"anon_inode:[io_uring]", "io_uring: its rings live in the kernel"),
        (b"anon_inode:[perf_event]", "perf_event ring: it belongs to this host's CPUs"),
        (b"anon_inode:bpf", "BPF map: it lives in the kernel"),
        (b"anon_inode:", "memory of the kernel's own cannot move"),
        (b"socket:[", "mapping of a socket: it lives in the kernel"),
    ];
    rules.iter().find(|(prefix, _)| name.starts_with(prefix)).map(|(_, reason)| *reason)
}

/// What made an object of the kernel's own tmpfs, by the name in its maps line or link.
pub(crate) fn object_kind(name: &[u8]) -> Option<ObjectKind> {
    if matches!(name, b"/dev/zero (deleted)" | huge::ANONYMOUS) || name.starts_with(b"[anon_shmem:") {
        return Some(ObjectKind::SharedAnonymous);
    }
    let name = name.strip_prefix(b"/memfd:")?;
    let name = name.strip_suffix(b" (deleted)").unwrap_or(name);
    Some(ObjectKind::Memfd {
        name: String::from_utf8_lossy(name).into_owned(),
        seals: 0,
        mode: 0,
        owner: (0, 0),
    })
}

fn anon_name(name: &[u8]) -> Option<String> {
    let inner =
        name.strip_prefix(b"[anon:").or_else(|| name.strip_prefix(b"[anon_shmem:"))?.strip_suffix(b"]")?;
    Some(String::from_utf8_lossy(inner).into_owned())
}

const S_IFMT: u32 = 0o170_000;
const S_IFCHR: u32 = 0o020_000;
const S_IFREG: u32 = 0o100_000;

/// `st_dev` of stat(2) from major and minor number.
pub(crate) fn makedev(major: u64, minor: u64) -> u64 {
    (major & 0xfff) << 8 | (major & !0xfff) << 32 | minor & 0xff | (minor & !0xff) << 12
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn object_kinds_by_name() {
        assert_eq!(object_kind(b"/dev/zero (deleted)"), Some(ObjectKind::SharedAnonymous));
        assert_eq!(
            object_kind(b"/memfd:a (deleted) (deleted)"),
            Some(ObjectKind::Memfd { name: "a (deleted)".into(), seals: 0, mode: 0, owner: (0, 0) })
        );
        assert_eq!(object_kind(b"/SYSV00000000 (deleted)"), None);
        assert_eq!(anon_name(b"[anon:x y]").as_deref(), Some("x y"));
        assert_eq!(makedev(254, 1), 0xfe01);
    }
}
