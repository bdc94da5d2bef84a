//! Why a target could not be built, filled or restored.

use std::io;

use image::{Pid, Refusal};
use sys::Errno;
use thiserror::Error;

/// What went wrong on the target. After any of these the only thing to do with a
/// [`Target`](super::Target) is to drop or discard it; the source is not concerned.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TargetError {
    /// The container has something that this version cannot rebuild.
    #[error("cannot rebuild {0}")]
    Refused(Refusal),
    /// A file on this host is not the one that the source had.
    #[error("pid {pid}: {path} is not the file of the source: {difference}")]
    OtherFile {
        /// A process that maps or opens it.
        pid: Pid,
        /// Its path in the container.
        path: String,
        /// What differs, with both values.
        difference: String,
    },
    /// A file could not be opened.
    #[error("pid {pid}: cannot open {path} in the container")]
    Open {
        /// A process that maps or opens it.
        pid: Pid,
        /// Its path in the container.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A system call made by a skeleton failed.
    #[error("pid {pid}: {what} failed in the skeleton")]
    Skeleton {
        /// The process, in the container's numbering.
        pid: Pid,
        /// Which call, with its arguments where they matter.
        what: String,
        /// Why.
        #[source]
        source: Errno,
    },
    /// A skeleton did something else than it was told: it died, or stopped for another reason.
    #[error("pid {pid}: skeleton is not where it should be: {what}")]
    Lost {
        /// The process, in the container's numbering.
        pid: Pid,
        /// What was seen.
        what: String,
    },
    /// ptrace(2) failed on a skeleton.
    #[error("pid {pid}: cannot trace its skeleton")]
    Trace {
        /// The process, in the container's numbering.
        pid: Pid,
        /// Why.
        #[source]
        source: sys::ptrace::Error,
    },
    /// A skeleton did not get through its list of calls.
    #[error("pid {pid}: its skeleton failed on the tape")]
    Tape {
        /// The process, in the container's numbering.
        pid: Pid,
        /// Why.
        #[source]
        source: Box<sys::tape::target::TargetError>,
    },
    /// An open file description could not be rebuilt.
    #[error("open file {id} ({kind}): {what}")]
    File {
        /// Its id in the image.
        id: u32,
        /// What it is.
        kind: &'static str,
        /// Which step failed.
        what: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A TCP connection could not be rebuilt.
    #[error("open file {id}: cannot rebuild the connection from {addresses}")]
    Connection {
        /// Its id in the image.
        id: u32,
        /// Both addresses.
        addresses: String,
        /// Why.
        #[source]
        source: sys::tcp::RestoreError,
    },
    /// The runtime did not supply a descriptor.
    #[error("the runtime has no descriptor `{key}` for open file {id}")]
    External {
        /// Its id in the image.
        id: u32,
        /// The runtime's key.
        key: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A kernel interface that the agent itself uses failed.
    #[error("{what}")]
    System {
        /// What was tried.
        what: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The image contradicts itself.
    #[error("damaged image: {0}")]
    Image(String),
}

impl TargetError {
    /// A failed step of the agent itself.
    pub(crate) fn system(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::System { what, source }
    }

    /// The same, from an error number.
    pub(crate) fn errno(what: impl Into<String>) -> impl FnOnce(Errno) -> Self {
        let what = what.into();
        move |source| Self::System { what, source: source.into() }
    }
}
