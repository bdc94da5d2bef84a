//! What a descriptor is, from /proc alone.

use std::os::linux::fs::MetadataExt;

use image::shape::FileIdentity;
use nix::sys::statfs::{BTRFS_SUPER_MAGIC, EXT4_SUPER_MAGIC, FsType, statfs};

use super::error::InspectError;
use super::facts::DescriptorFacts;
use super::huge;
use super::locks;
use super::mm::{MmReader, makedev, object_kind};
use super::mqueue::Seen;
use super::registry::Handle;
use super::spec::External;
use super::terminals;
use super::tree::Process;
use super::view::FileView;
use crate::proc::fdinfo::FdInfo;
use crate::proc::{ProcError, links};

/// A descriptor as /proc shows it.
#[derive(Clone, Debug)]
pub(crate) struct Descriptor {
    /// Its number.
    pub(crate) fd: i32,
    /// /proc/PID/fdinfo/FD.
    pub(crate) info: FdInfo,
    /// What the link leads to: inode and device number.
    pub(crate) key: (u64, u64),
    /// What it is.
    pub(crate) class: Class,
}

/// What a descriptor is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    /// The runtime supplies it.
    External(String),
    /// A regular file or a directory.
    File {
        file: FileIdentity,
        directory: bool,
    },
    /// A stateless device.
    Device {
        path: String,
        rdev: u64,
    },
    /// A file of procfs, sysfs or cgroupfs.
    Pseudo {
        path: String,
    },
    /// A pipe, or with a path a fifo.
    Pipe {
        fifo: Option<String>,
    },
    /// A side of a pseudo terminal.
    Terminal(terminals::End),
    EventFd,
    TimerFd,
    SignalFd,
    Epoll,
    Inotify,
    PidFd,
    /// A memory object.
    Memfd {
        object: u32,
    },
    Socket,
    /// A POSIX message queue.
    PosixQueue(Box<Seen>),
    /// It was refused.
    Refused,
}

const CLOSE: &str = "have the program close it before the move";
/// `MQUEUE_MAGIC` of the kernel.
const MQUEUE: FsType = FsType(0x1980_0202);
/// A descriptor that only stands for a path (open(2)).
pub(crate) const O_PATH: u32 = 0o10_000_000;
const O_RDWR: u32 = 2;
const S_IFMT: u32 = 0o170_000;

impl MmReader<'_> {
    /// What a descriptor is. `None`: it was closed meanwhile.
    pub(crate) fn descriptor(
        &mut self,
        process: &Process,
        facts: DescriptorFacts,
        externals: &[External],
    ) -> Result<Option<Descriptor>, InspectError> {
        match self.try_descriptor(process, facts, externals) {
            Ok(descriptor) => Ok(Some(descriptor)),
            Err(InspectError::Proc(error)) if error.is_gone() => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn try_descriptor(
        &mut self,
        process: &Process,
        facts: DescriptorFacts,
        externals: &[External],
    ) -> Result<Descriptor, InspectError> {
        let DescriptorFacts { fd, target, metadata, info, .. } = facts;
        let key = links::identity(&metadata);
        let external = externals
            .iter()
            .find(|external| (external.dev, external.ino) == key)
            .map(|external| external.key.clone());
        let class = match external {
            Some(key) => Class::External(key),
            None => self.class(process, fd, &target, &metadata, &info)?,
        };
        let descriptor = Descriptor { fd, info, key, class };
        locks::check(process, &descriptor, self.findings);
        Ok(descriptor)
    }

    fn class(
        &mut self,
        process: &Process,
        fd: i32,
        target: &[u8],
        metadata: &std::fs::Metadata,
        info: &FdInfo,
    ) -> Result<Class, InspectError> {
        let pid = process.inner;
        if let Some(kind) = target.strip_prefix(b"anon_inode:") {
            return Ok(self.anon_inode(pid, fd, kind, info));
        }
        if target.starts_with(b"socket:[") {
            return Ok(Class::Socket);
        }
        if target.starts_with(b"pipe:[") {
            return Ok(Class::Pipe { fifo: None });
        }
        if target.starts_with(b"pidfd:[") {
            return Ok(Class::PidFd);
        }
        if !target.starts_with(b"/") {
            let shown = String::from_utf8_lossy(target);
            return Ok(self.refuse(pid, fd, format!("{shown}: a kind of file that cannot move"), CLOSE));
        }
        if info.flags & O_PATH != 0 {
            return Ok(self.path_only(
                pid,
                fd,
                &self.view.file_of(target, metadata.clone(), Some(info.mount)),
            ));
        }
        let huge = huge::page_size(metadata, &format!("/proc/{}/fd/{fd}", process.pid));
        let own = huge != 0 && object_kind(target).is_some();
        if own || metadata.st_dev() == self.view.shmem_dev {
            return Ok(self.memory_object(process, fd, target, metadata, huge));
        }
        let file = self.view.file_of(target, metadata.clone(), Some(info.mount));
        let file = self.settled(process, fd, file)?;
        self.named(process, fd, &file, info)
    }

    /// The file behind a descriptor, looked at again when its path does not lead to it any more: a program that runs
    /// renames and removes what it has open.
    fn settled(&mut self, process: &Process, fd: i32, mut file: FileView) -> Result<FileView, InspectError> {
        const TRIES: u32 = 10;
        let has_name = matches!(file.metadata.st_mode() & S_IFMT, 0o100_000 | 0o040_000);
        for _ in 0..TRIES {
            let gone = file.deleted && file.metadata.st_nlink() == 0;
            if !has_name || gone || self.files.leads_to(self.view, &file) {
                break;
            }
            file = self.view.file(process.pid, &format!("fd/{fd}"))?;
        }
        Ok(file)
    }

    /// A descriptor that stands for a path and opens nothing: any kind of file will do.
    fn path_only(&mut self, pid: i32, fd: i32, file: &FileView) -> Class {
        let shown = String::from_utf8_lossy(&file.path).into_owned();
        if file.deleted || !self.view.leads_to(&file.path, &file.metadata) {
            let reason = format!("{shown}: opened with O_PATH, and the path does not lead to it any more");
            return self.refuse(pid, fd, reason, CLOSE);
        }
        match file.identity(None) {
            // Only directories are not compared at the target, and other files than regular ones have nothing to compare.
            Some(identity) => {
                Class::File { file: identity, directory: file.metadata.st_mode() & S_IFMT != 0o100_000 }
            }
            None => self.refuse(pid, fd, format!("the path of {shown} is not UTF-8"), "rename the file"),
        }
    }

    fn named(
        &mut self,
        process: &Process,
        fd: i32,
        file: &FileView,
        info: &FdInfo,
    ) -> Result<Class, InspectError> {
        let pid = process.inner;
        let shown = String::from_utf8_lossy(&file.path).into_owned();
        let kind = file.metadata.st_mode() & S_IFMT;
        let utf8 = String::from_utf8(file.path.clone());
        Ok(match (kind, utf8) {
            (_, Err(_)) => {
                self.refuse(pid, fd, format!("the path of {shown} is not UTF-8"), "rename the file")
            }
            (0o020_000, Ok(path)) => {
                let rdev = file.metadata.st_rdev();
                // null, zero, full, random, urandom
                if [3, 5, 7, 8, 9].iter().any(|minor| rdev == makedev(1, *minor)) {
                    Class::Device { path, rdev }
                } else if let Some(end) = terminals::end(rdev, &path, info) {
                    Class::Terminal(end)
                } else if matches!(rdev >> 8 & 0xfff, 4 | 5 | 136..=143) {
                    self.refuse(
                        pid,
                        fd,
                        format!("{shown}: a terminal of this host"),
                        "start the program without a terminal",
                    )
                } else {
                    self.refuse(pid, fd, format!("{shown}: a device of this host"), CLOSE)
                }
            }
            (0o060_000, Ok(_)) => {
                self.refuse(pid, fd, format!("{shown}: a block device of this host"), CLOSE)
            }
            (0o010_000, Ok(path)) if file.deleted => {
                self.refuse(pid, fd, format!("{path}: a fifo without a name"), CLOSE)
            }
            (0o010_000, Ok(path)) => Class::Pipe { fifo: Some(path) },
            (0o100_000 | 0o040_000, Ok(path)) => {
                let directory = kind == 0o040_000;
                if let Some(class) = self.special_file(process, fd, path, info, directory)? {
                    return Ok(class);
                }
                let handle = Handle { pid: process.pid, link: format!("fd/{fd}") };
                if directory && file.deleted {
                    let ghost = self.registry.ghost_directory(file.key(), &shown, handle);
                    let identity = file.identity(Some(ghost));
                    return Ok(identity.map_or(Class::Refused, |file| Class::File { file, directory }));
                }
                match self.identity(pid, image::Subject::Fd(fd), file, handle) {
                    Some(file) => {
                        if let Some(ghost) = file.ghost.filter(|_| info.flags & 3 == O_RDWR)
                            && !tells_of_writes(process.pid, fd)
                        {
                            self.registry.ghost_untold(ghost);
                        }
                        Class::File { file, directory }
                    }
                    None => Class::Refused,
                }
            }
            (_, Ok(_)) => self.refuse(pid, fd, format!("{shown}: a kind of file that cannot move"), CLOSE),
        })
    }

    /// Files of procfs, sysfs, cgroupfs, mqueue and the like.
    fn special_file(
        &mut self,
        process: &Process,
        fd: i32,
        path: String,
        info: &FdInfo,
        directory: bool,
    ) -> Result<Option<Class>, InspectError> {
        let mut fs_type = self.fs_type(process.pid, info.mount)?;
        // mq_open(3) needs no mount.
        if fs_type.is_none()
            && statfs(format!("/proc/{}/fd/{fd}", process.pid).as_str())
                .is_ok_and(|found| found.filesystem_type() == MQUEUE)
        {
            fs_type = Some("mqueue".to_owned());
        }
        Ok(match fs_type.as_deref() {
            Some("proc") if path.contains("/task/") => {
                Some(self.refuse(process.inner, fd, format!("{path}: belongs to a thread"), CLOSE))
            }
            Some("proc") if self.view.symlink_metadata(path.as_bytes()).is_none() => {
                Some(self.refuse(process.inner, fd, format!("{path}: its process has ended"), CLOSE))
            }
            Some("proc" | "sysfs" | "cgroup" | "cgroup2") => Some(Class::Pseudo { path }),
            // Its directory.
            Some("mqueue") if directory => Some(Class::Pseudo { path }),
            Some("mqueue") => Some(self.posix_queue(process, fd, &path)?),
            Some(kind @ ("hugetlbfs" | "debugfs" | "tracefs" | "bpf" | "securityfs" | "devpts" | "fuse")) => {
                Some(self.refuse(process.inner, fd, format!("{path}: a file of {kind} cannot move"), CLOSE))
            }
            _ => None,
        })
    }

    fn posix_queue(&mut self, process: &Process, fd: i32, path: &str) -> Result<Class, InspectError> {
        if !self.own_ipc {
            let reason = format!("{path}: a POSIX message queue of the host's IPC namespace");
            return Ok(self.refuse(process.inner, fd, reason, CLOSE));
        }
        let name = path.rsplit('/').next().unwrap_or_default();
        let link = format!("/proc/{}/fd/{fd}", process.pid);
        match Seen::read(link.as_ref(), name.as_bytes()) {
            Ok(seen) => Ok(Class::PosixQueue(Box::new(seen))),
            Err(error) => Err(ProcError::Read { path: path.to_owned(), source: error }.into()),
        }
    }

    fn fs_type(&mut self, pid: i32, mount: i32) -> Result<Option<String>, InspectError> {
        if let Some(fs_type) = self.view.spaces.fs_type(mount) {
            return Ok(Some(fs_type.to_owned()));
        }
        // What it has open may be from before it left the container's namespace.
        let pid = if self.view.spaces.of_process(pid) == 0 { pid } else { self.view.root };
        // A process that lives in a chroot sees a part of the mounts.
        if !self.mounts.contains_key(&mount) {
            let all = crate::proc::mountinfo::read(pid)?;
            self.mounts.extend(all.into_iter().map(|mount| (mount.id, mount.fs_type)));
        }
        Ok(self.mounts.get(&mount).cloned())
    }

    fn memory_object(
        &mut self,
        process: &Process,
        fd: i32,
        target: &[u8],
        metadata: &std::fs::Metadata,
        huge: u64,
    ) -> Class {
        let pid = process.inner;
        let Some(kind) = object_kind(target) else {
            let shown = String::from_utf8_lossy(target);
            return self.refuse(pid, fd, format!("{shown}: memory of a kind that is not known"), CLOSE);
        };
        let handle = Handle { pid: process.pid, link: format!("fd/{fd}") };
        let object =
            self.registry.object(links::identity(metadata), (metadata.st_size(), huge), kind, handle);
        self.registry.object_has_fd(object);
        Class::Memfd { object }
    }

    fn anon_inode(&mut self, pid: i32, fd: i32, kind: &[u8], info: &FdInfo) -> Class {
        match kind {
            b"[eventfd]" if info.eventfd.is_some() => Class::EventFd,
            b"[timerfd]" if info.timerfd.is_some() => Class::TimerFd,
            b"[signalfd]" if info.signalfd.is_some() => Class::SignalFd,
            b"[eventpoll]" => Class::Epoll,
            b"inotify" | b"[inotify]" => Class::Inotify,
            b"[pidfd]" => Class::PidFd,
            _ => {
                let (reason, way_out) = anon_inode_refusal(kind);
                self.refuse(pid, fd, reason, way_out)
            }
        }
    }

    fn refuse(&mut self, pid: i32, fd: i32, reason: impl Into<String>, way_out: &str) -> Class {
        self.findings.fd(pid, fd, reason, way_out);
        Class::Refused
    }
}

/// Whether the file system gives a file a new time at the first write to each of its pages through each mapping. A tmpfs
/// does not for a page that was read before, and what may be below an overlay nobody knows.
fn tells_of_writes(pid: i32, fd: i32) -> bool {
    const XFS: FsType = FsType(0x5846_5342);
    let told = [EXT4_SUPER_MAGIC, BTRFS_SUPER_MAGIC, XFS];
    statfs(format!("/proc/{pid}/fd/{fd}").as_str()).is_ok_and(|found| told.contains(&found.filesystem_type()))
}

/// Why a file of the kernel's own cannot move, and what to do.
fn anon_inode_refusal(kind: &[u8]) -> (String, &'static str) {
    let shown = String::from_utf8_lossy(kind);
    let name = shown.trim_matches(['[', ']']);
    let reason = match name {
        "io_uring" => "io_uring: its rings and requests live in the kernel",
        "userfaultfd" => "userfaultfd: the program serves page faults itself",
        "perf_event" => "perf_event: it belongs to this host's CPUs",
        "fanotify" => "fanotify: its marks and queue cannot be made again yet",
        "seccomp notify" | "seccomp-notify" => "seccomp user notification: its requests live in the kernel",
        "landlock-ruleset" | "landlock_ruleset" => "Landlock rules cannot be read back",
        name if name.starts_with("bpf") => "BPF object: it lives in the kernel",
        name if name.starts_with("kvm") => "KVM: virtual machines move by their own means",
        _ => return (format!("{name}: a kernel object that cannot move"), CLOSE),
    };
    (
        reason.to_owned(),
        match name {
            "io_uring" => "start the program without io_uring",
            _ => CLOSE,
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_objects_are_refused_by_name() {
        assert!(anon_inode_refusal(b"[io_uring]").0.starts_with("io_uring"));
        assert!(anon_inode_refusal(b"[userfaultfd]").0.contains("userfaultfd"));
        assert!(anon_inode_refusal(b"bpf-map").0.contains("BPF"));
        assert!(anon_inode_refusal(b"[new thing]").0.starts_with("new thing"));
    }
}
