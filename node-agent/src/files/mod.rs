//! A container's files on their way to another node.
//!
//! [`Source`] walks the *areas* of a container (its root directory, its tmpfs mounts and the volumes that are
//! copied) without crossing mounts, and sends what is new or changed since the last round. [`Target`] applies
//! it below its own directories and lets no path lead out of them. The log is an area of its own, appended to.
//!
//! Later rounds look only at what fanotify(7) reported, or inotify(7) where that cannot be; else at everything.
//! What a process writes through memory, or can have written so, raises no event: such files are [`Suspects`]
//! of the last round and compared by content. Content is compared in chunks: only changed ones travel, and the
//! target reads what it wrote and compares the hash. Holes stay holes.

mod content;
mod entry;
mod meta;
mod op;
mod outbox;
mod pass;
mod place;
mod seen;
mod source;
mod target;
mod walk;
mod watch;

use std::collections::{HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

pub use content::Extent;
pub use op::{Attributes, Op};
pub use outbox::Round;
pub use source::{Source, Tracking};
pub use target::Target;

/// Why files could not be sent or applied.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    /// A file operation.
    #[error("cannot {what} {path}")]
    File {
        /// `read`, `write`, `make` ...
        what: &'static str,
        /// Which, relative to its area.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The batch could not be sent.
    #[error("cannot send files")]
    Send(#[source] std::io::Error),
    /// A file that nothing in the container can write to any more changed again and again while it was copied.
    #[error("{0} changes although the container stands still: something outside of it writes to it")]
    Unsettled(PathBuf),
    /// What was written is not what was sent.
    #[error("the content of {0} is not what was sent: it reads back differently")]
    Differs(PathBuf),
    /// A batch that no honest source makes.
    #[error("the source sent a batch that is refused: {0}")]
    Refused(String),
}

impl FilesError {
    fn file<E: Into<std::io::Error>>(what: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(E) -> Self {
        let path = path.into();
        move |source| Self::File { what, path, source: source.into() }
    }
}

/// A part of a container's file tree that travels.
#[derive(Debug)]
pub struct Area {
    /// Its directory.
    pub dir: OwnedFd,
    /// Where the container sees it, absolute.
    pub at: PathBuf,
    /// Device nodes in it stay (they are made by the runtime on both sides).
    pub skip_devices: bool,
    /// Names in its top directory that stay.
    pub skip: Vec<OsString>,
}

impl Area {
    /// A directory of which everything travels.
    #[must_use]
    pub fn new(dir: OwnedFd, at: impl Into<PathBuf>) -> Self {
        Self { dir, at: at.into(), skip_devices: false, skip: Vec::new() }
    }

    /// This name in this directory of it stays.
    fn skips(&self, parent: &Path, name: &OsStr) -> bool {
        parent.as_os_str().is_empty() && self.skip.iter().any(|skip| skip == name)
    }
}

/// Files that may have changed without a trace, by inode number.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Suspects {
    /// Processes can write to them through memory: pieces that are compared, first byte and end.
    pub mapped: HashMap<u64, Vec<(u64, u64)>>,
    /// Processes have them open for writing.
    pub open: HashSet<u64>,
}
