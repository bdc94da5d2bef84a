//! A container's files on their way to another node.
//!
//! [`Source`] walks the *areas* of a container (its root directory and its tmpfs mounts) without crossing
//! mounts, and sends what is new or changed since the last round. [`Target`] applies it below its own
//! directories and lets no path lead out of them. The log is an area of its own, appended to.
//!
//! Later rounds look only at names that inotify(7) reported, if it could watch everything; else at all of them.
//! A file counts as changed when its inode, size, modification or change time differs, when it was touched
//! so shortly before the last look that its times cannot tell, or, in the last round, when a process can
//! write to it through a shared mapping. Its content is compared in chunks: only changed ones travel.

mod meta;
mod op;
mod outbox;
mod pass;
mod seen;
mod source;
mod target;
mod walk;
mod watch;

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

pub use op::Op;
pub use outbox::Round;
pub use source::Source;
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
    /// Device nodes in it stay (they are made by the runtime on both sides).
    pub skip_devices: bool,
    /// Names in its top directory that stay.
    pub skip: Vec<OsString>,
}
