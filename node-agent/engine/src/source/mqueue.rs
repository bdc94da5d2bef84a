//! POSIX message queues of a container's own IPC namespace; see mq_overview(7).
//!
//! Messages can only be taken out, and who is to be notified of the next one (mq_notify(3)) does not show whole: a queue
//! moves when it is empty and nobody waits for a signal.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd};
use std::os::linux::fs::MetadataExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use image::ipc::PosixQueue;
use image::{Pid, Subject};
use sys::{Errno, mount, mqueue};

use super::descriptor::Class;
use super::findings::Findings;
use super::look::{ProcessLook, tables};
use crate::proc::idmap::IdMaps;

const READ: &str = "try again in a moment; if it stays so, have the program read them";
const UNLINK: &str = "have the program unlink it (mq_unlink) before the move";
const PERMISSIONS: u32 = 0o7777;

/// A queue as it was seen. Its owner is numbered as on this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    /// The message queue file system, of which each IPC namespace has one.
    pub(crate) device: u64,
    /// What is to be made again.
    pub(crate) queue: PosixQueue,
    messages: i64,
    notifies: bool,
}

impl Seen {
    /// Looks at the queue that a path leads to.
    ///
    /// # Errors
    /// When it is gone, or no queue.
    pub(crate) fn read(path: &Path, name: &[u8]) -> io::Result<Self> {
        let mut file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
        let found = mqueue::attributes(file.as_fd())?;
        let metadata = file.metadata()?;
        let mut text = String::new();
        file.read_to_string(&mut text)?;
        let queue = PosixQueue {
            id: metadata.st_ino(),
            name: name.to_vec(),
            unlinked: metadata.st_nlink() == 0,
            mode: metadata.st_mode() & PERMISSIONS,
            uid: metadata.st_uid(),
            gid: metadata.st_gid(),
            capacity: found.capacity,
            message_size: found.message_size,
        };
        let notifies = !text.split_whitespace().any(|word| word == "NOTIFY_PID:0");
        Ok(Self { device: metadata.st_dev(), queue, messages: found.messages, notifies })
    }
}

/// The queues of this thread's namespace that have a name. Their file system is mounted nowhere for that.
///
/// # Errors
/// When it cannot be listed.
pub(crate) fn list() -> Result<Listed, Errno> {
    let fs = match mount::FsContext::open("mqueue").and_then(|context| context.mount(0)) {
        Ok(fs) => fs,
        // A kernel without them.
        Err(Errno::ENODEV) => return Ok(Listed::default()),
        Err(errno) => return Err(errno),
    };
    let errno = |error: io::Error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO));
    let root = PathBuf::from(format!("/proc/thread-self/fd/{}", fs.as_raw_fd()));
    let mut listed = Listed { device: std::fs::metadata(&root).map_err(errno)?.st_dev(), queues: Vec::new() };
    for entry in std::fs::read_dir(&root).map_err(errno)? {
        let entry = entry.map_err(errno)?;
        let name = entry.file_name();
        match Seen::read(&root.join(&name), name.as_encoded_bytes()) {
            Ok(seen) => listed.queues.push(seen),
            // It was removed meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(errno(error)),
        }
    }
    Ok(listed)
}

/// Queues with a name.
#[derive(Debug, Default)]
pub(crate) struct Listed {
    device: u64,
    /// In no order.
    pub(crate) queues: Vec<Seen>,
}

/// All queues of a namespace, with those that are only open. What stands against one is said of a descriptor of it,
/// as far as there is one.
pub(crate) fn take(
    listed: Listed,
    processes: &[ProcessLook],
    ids: &IdMaps,
    findings: &mut Findings,
) -> Vec<PosixQueue> {
    let Listed { device, mut queues } = listed;
    let mut holders: Vec<(u64, Pid, i32)> = Vec::new();
    for (_, table) in tables(processes) {
        for descriptor in &table.descriptors {
            let Class::PosixQueue(seen) = &descriptor.class else { continue };
            if seen.device != device {
                findings.fd(
                    table.inner,
                    descriptor.fd,
                    format!("POSIX message queue /{}: of another IPC namespace", shown(&seen.queue)),
                    "have the program close it before the move",
                );
                continue;
            }
            holders.push((seen.queue.id, table.inner, descriptor.fd));
            if !queues.iter().any(|known| known.queue.id == seen.queue.id) {
                queues.push(Seen::clone(seen));
            }
        }
    }
    let mut all = Vec::with_capacity(queues.len());
    for Seen { mut queue, messages, notifies, .. } in queues {
        let name = shown(&queue);
        let holder = holders.iter().find(|(id, ..)| *id == queue.id);
        let mut refuse = |reason: String, way_out: &str| match holder {
            Some((_, pid, fd)) => findings.add(*pid, Subject::Fd(*fd), reason, way_out),
            None => findings.container(reason, way_out),
        };
        if messages != 0 {
            refuse(
                format!("POSIX message queue /{name}: {messages} messages wait, which cannot be put back"),
                READ,
            );
        }
        if notifies {
            refuse(
                format!(
                    "POSIX message queue /{name}: a process is to be notified (mq_notify), which is not carried yet"
                ),
                UNLINK,
            );
        }
        let (Some(uid), Some(gid)) = (ids.uid.inside(queue.uid), ids.gid.inside(queue.gid)) else {
            refuse(
                format!(
                    "POSIX message queue /{name}: its owner is not mapped in the container's user namespace"
                ),
                UNLINK,
            );
            continue;
        };
        (queue.uid, queue.gid) = (uid, gid);
        all.push(queue);
    }
    // Those without a name make room for others that have the same one.
    all.sort_by_key(|queue| !queue.unlinked);
    all
}

fn shown(queue: &PosixQueue) -> String {
    String::from_utf8_lossy(&queue.name).into_owned()
}
