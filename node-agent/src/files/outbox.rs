//! Operations on their way, cut into batches.

use std::io;

use super::FilesError;
use super::content::CHUNK;
use super::op::Op;

/// A batch is sent when it holds this much.
const BATCH: usize = 2 * CHUNK;

/// What one round did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Round {
    /// Entries made, changed or removed.
    pub entries: u64,
    /// Bytes of content sent.
    pub bytes: u64,
}

/// Collects operations and sends them.
pub(super) struct Outbox<'a> {
    send: &'a mut dyn FnMut(&[u8]) -> io::Result<()>,
    ops: Vec<Op>,
    size: usize,
    pub(super) done: Round,
}

impl<'a> Outbox<'a> {
    pub(super) fn new(send: &'a mut dyn FnMut(&[u8]) -> io::Result<()>) -> Self {
        Self { send, ops: Vec::new(), size: 0, done: Round::default() }
    }

    pub(super) fn push(&mut self, op: Op) -> Result<(), FilesError> {
        let size = size(&op);
        // One operation alone may be larger than a batch, two together not.
        if self.size + size > BATCH {
            self.flush()?;
        }
        self.size += size;
        self.ops.push(op);
        Ok(())
    }

    pub(super) fn flush(&mut self) -> Result<(), FilesError> {
        if self.ops.is_empty() {
            return Ok(());
        }
        let bytes =
            postcard::to_stdvec(&self.ops).map_err(|error| FilesError::Send(io::Error::other(error)))?;
        self.ops.clear();
        self.size = 0;
        (self.send)(&bytes).map_err(FilesError::Send)
    }
}

/// No less than the bytes that it becomes.
fn size(op: &Op) -> usize {
    64 + match op {
        Op::Chunk { data, extents, .. } => data.len() + 16 * extents.len(),
        Op::Log { data, .. } => data.len(),
        Op::Attributes { path, attributes, .. } => {
            let xattrs = attributes.xattrs.iter().map(|(key, value)| key.len() + value.len() + 16);
            path.len() + 64 + xattrs.sum::<usize>()
        }
        Op::Rename { path, to, .. } | Op::HardLink { path, to, .. } => path.len() + to.len(),
        Op::Symlink { path, target, .. } => path.len() + target.len(),
        Op::Remove { path, .. }
        | Op::Directory { path, .. }
        | Op::File { path, .. }
        | Op::Node { path, .. } => path.len(),
        Op::Verify { .. } => 0,
    }
}
