//! Operations on their way, cut into batches.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use super::FilesError;
use super::op::{CHUNK, Op};

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
        self.size += match &op {
            Op::Chunk { data, .. } | Op::Log { data, .. } => data.len(),
            Op::Attributes { attributes, .. } => attributes.xattrs.iter().map(|(_, value)| value.len()).sum(),
            _ => 0,
        } + 512;
        self.ops.push(op);
        if self.size >= BATCH { self.flush() } else { Ok(()) }
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

/// Up to [`CHUNK`] bytes at `offset`; fewer only at the end of the file.
pub(super) fn chunk(file: &File, offset: u64) -> io::Result<Vec<u8>> {
    let mut data = vec![0; CHUNK];
    let mut filled = 0;
    while filled < CHUNK {
        let at = offset + length(&data[..filled]);
        match file.read_at(&mut data[filled..], at)? {
            0 => break,
            more => filled += more,
        }
    }
    data.truncate(filled);
    Ok(data)
}

pub(super) fn length(data: &[u8]) -> u64 {
    data.len() as u64
}
