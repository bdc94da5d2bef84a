//! What goes wrong while tracing.

use super::Tid;
use crate::Errno;

/// Why a ptrace operation failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The thread has died, or is not stopped any more because it was killed.
    #[error("thread {tid} is gone")]
    Gone {
        /// Which.
        tid: Tid,
    },
    /// It did not stop within the time limit.
    #[error("thread {tid} did not stop in time")]
    Timeout {
        /// Which.
        tid: Tid,
    },
    /// It stopped at a place where the operation is not possible.
    #[error("thread {tid} is not at a stop where it can be made to run other code")]
    WrongStop {
        /// Which.
        tid: Tid,
    },
    /// The kernel refused.
    #[error("{what} on thread {tid}")]
    Call {
        /// The request.
        what: &'static str,
        /// The thread.
        tid: Tid,
        /// The kernel's answer.
        source: Errno,
    },
}

impl Error {
    pub(crate) fn new(what: &'static str, tid: Tid, source: Errno) -> Self {
        match source {
            Errno::ESRCH => Self::Gone { tid },
            _ => Self::Call { what, tid, source },
        }
    }

    /// The thread has died.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        matches!(self, Self::Gone { .. })
    }

    /// The thread it is about.
    #[must_use]
    pub fn tid(&self) -> Tid {
        match *self {
            Self::Gone { tid } | Self::Timeout { tid } | Self::WrongStop { tid } | Self::Call { tid, .. } => {
                tid
            }
        }
    }
}
