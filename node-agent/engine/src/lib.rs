//! Freeze, track, capture and restore of process trees.
//!
//! Synchronous on purpose: ptrace(2) binds a tracee to the tracer *thread*, so a [`source::Source`] or a
//! [`target::Target`] lives on one thread from its making to its end. Neither is `Send`; page data may be
//! applied from other threads through [`target::PageWriter`].
//!
//! The data path: `source` (track, freeze, capture) -> [`image`] -> `target` (skeletons, restore).

#![forbid(unsafe_code)]

pub mod account;
mod anew;
pub mod checkpoint;
pub mod proc;
mod readiness;
pub mod source;
pub mod target;

use std::io;

use image::pages::Batch;

/// Starts the threads that read many processes and sockets at once, so that the first pause need not. They stay; without
/// this call they are started when they are needed.
pub fn start_readers() {
    // Somebody else in this process may have started them.
    let _ = rayon::ThreadPoolBuilder::new().thread_name(|number| format!("reader-{number}")).build_global();
}

/// Where a source's page contents go: the wire, or a checkpoint file. Several threads use it in turn.
///
/// A round tells of each page of an owner once at most, as contents, as zeros or as given back. So the batches of one
/// round may be applied in any order, and side by side; those of two rounds may not.
pub trait PageSink: Send {
    /// Takes one batch.
    ///
    /// # Errors
    /// When it cannot be sent or written; the source gives up and stays as it was.
    fn batch(&mut self, batch: &Batch<'_>) -> io::Result<()>;
}
