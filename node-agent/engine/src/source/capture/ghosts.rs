//! Files and directories that have no name any more.

use std::collections::HashSet;
use std::fs::File;
use std::io::Read;
use std::os::linux::fs::MetadataExt;

use image::files::Ghost;
use rustix::fs::{fgetxattr, flistxattr};

use crate::source::SourceError;
use crate::source::error::TRY_AGAIN;
use crate::source::findings::Findings;
use crate::source::registry::Registry;

/// The largest deleted file that is sent as a whole in the pause, bytes.
pub(crate) const MAX_GHOST: u64 = 64 << 20;

/// Reads what is known of those that are not among `ghosts` yet, and the contents of those that no round has sent.
pub(crate) fn capture(
    registry: &Registry,
    ghosts: &mut Vec<Ghost>,
    findings: &mut Findings,
) -> Result<(), SourceError> {
    let known: HashSet<u32> = ghosts.iter().map(|ghost| ghost.id).collect();
    for ghost in registry.ghosts().into_iter().filter(|ghost| !known.contains(&ghost.id)) {
        let fail = |error| {
            SourceError::kernel(format!("read the deleted file {}", ghost.path), ghost.handle.pid, error)
        };
        let file = match File::open(ghost.handle.path()) {
            // Nobody has it open any more.
            Err(error) if crate::proc::is_gone(&error) => continue,
            other => other.map_err(fail)?,
        };
        let metadata = file.metadata().map_err(fail)?;
        if crate::proc::links::identity(&metadata) != ghost.key {
            continue;
        }
        let in_pause = !ghost.sent && !ghost.directory;
        if in_pause && metadata.len() > MAX_GHOST {
            findings.container(
                format!(
                    "deleted file {} of {} MiB is open in a message that nobody has received; the limit is {} MiB",
                    ghost.path,
                    metadata.len() >> 20,
                    MAX_GHOST >> 20
                ),
                TRY_AGAIN,
            );
            continue;
        }
        let xattrs = xattrs(&file).map_err(fail)?;
        let mut content = Vec::new();
        if in_pause {
            file.take(MAX_GHOST).read_to_end(&mut content).map_err(fail)?;
        }
        ghosts.push(Ghost {
            id: ghost.id,
            path: ghost.path.clone(),
            mode: metadata.st_mode(),
            uid: metadata.st_uid(),
            gid: metadata.st_gid(),
            times_ns: [
                nanoseconds(metadata.st_atime(), metadata.st_atime_nsec()),
                nanoseconds(metadata.st_mtime(), metadata.st_mtime_nsec()),
            ],
            xattrs,
            size: if ghost.directory { 0 } else { metadata.len() },
            content,
        });
    }
    Ok(())
}

fn nanoseconds(seconds: i64, more: i64) -> i64 {
    seconds.saturating_mul(1_000_000_000).saturating_add(more)
}

/// None on a file system without them.
fn xattrs(file: &File) -> std::io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    /// What all names and each value take at most (XATTR_LIST_MAX, XATTR_SIZE_MAX of xattr(7)).
    const MAX: usize = 64 << 10;
    let mut buffer = vec![0; MAX];
    let names = match flistxattr(file, buffer.as_mut_slice()) {
        Ok(length) => buffer[..length].to_vec(),
        Err(rustix::io::Errno::OPNOTSUPP) => Vec::new(),
        Err(errno) => return Err(errno.into()),
    };
    let mut all = Vec::new();
    // A label of SELinux is the node's.
    let carried = |name: &&[u8]| !name.is_empty() && *name != b"security.selinux";
    for name in names.split(|byte| *byte == 0).filter(carried) {
        let length = fgetxattr(file, name, buffer.as_mut_slice())?;
        all.push((name.to_vec(), buffer[..length].to_vec()));
    }
    Ok(all)
}
