//! Contents of files that have no name any more.

use std::fs::File;
use std::io::Read;
use std::os::linux::fs::MetadataExt;

use image::files::Ghost;

use crate::source::SourceError;
use crate::source::findings::Findings;
use crate::source::registry::Registry;

/// The largest deleted file that is carried, bytes.
pub(crate) const MAX_GHOST: u64 = 64 << 20;

/// Reads them all.
pub(crate) fn capture(registry: &Registry, findings: &mut Findings) -> Result<Vec<Ghost>, SourceError> {
    let mut ghosts = Vec::new();
    for ghost in registry.ghosts() {
        let fail = |error| {
            SourceError::kernel(format!("read the deleted file {}", ghost.path), ghost.handle.pid, error)
        };
        let file = match File::open(ghost.handle.path()) {
            // Nobody has it open any more.
            Err(error) if crate::proc::is_gone(&error) => continue,
            other => other.map_err(fail)?,
        };
        let metadata = file.metadata().map_err(fail)?;
        if metadata.len() > MAX_GHOST {
            findings.container(
                format!(
                    "deleted file {} of {} MiB is still in use; the limit is {} MiB",
                    ghost.path,
                    metadata.len() >> 20,
                    MAX_GHOST >> 20
                ),
                "have the program close it, or give the file a name",
            );
            continue;
        }
        let mut content = Vec::with_capacity(usize::try_from(metadata.len()).unwrap_or(0));
        file.take(MAX_GHOST).read_to_end(&mut content).map_err(fail)?;
        ghosts.push(Ghost {
            id: ghost.id,
            path: ghost.path.clone(),
            mode: metadata.st_mode(),
            uid: metadata.st_uid(),
            gid: metadata.st_gid(),
            content,
        });
    }
    Ok(ghosts)
}
