//! Content of regular files, by chunks, with its holes (`SEEK_HOLE` of lseek(2)).

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use twox_hash::{XxHash3_64, XxHash3_128};

/// Bytes of a chunk.
pub(super) const CHUNK: usize = 1024 * 1024;
/// The same, as an offset.
const CHUNK_SIZE: u64 = 1024 * 1024;

/// XXH3 of a chunk; 0 stands for nothing but zeros.
pub(super) type ChunkHash = u128;

/// A piece of a chunk that has data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extent {
    /// Bytes from the chunk's beginning.
    pub at: u32,
    /// Bytes.
    pub length: u32,
}

impl Extent {
    /// Where it lies in a chunk of this length; `None` when it lies outside.
    pub(super) fn range(self, length: usize) -> Option<std::ops::Range<usize>> {
        let start = usize::try_from(self.at).ok()?;
        let end = start.checked_add(usize::try_from(self.length).ok()?)?;
        (end <= length).then_some(start..end)
    }
}

/// What is remembered of a chunk that was sent; chunks without data are not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Known {
    /// Its number in its file.
    pub(super) index: u64,
    /// Hash of its content.
    pub(super) content: ChunkHash,
    /// Hash of its extents.
    pub(super) layout: u64,
}

/// A chunk as it is now.
#[derive(Debug)]
pub(super) struct Chunk {
    pub(super) index: u64,
    pub(super) extents: Vec<Extent>,
    /// All of it, with zeros for holes.
    bytes: Vec<u8>,
}

impl Chunk {
    pub(super) fn offset(&self) -> u64 {
        begins(self.index)
    }

    /// Bytes, holes included.
    pub(super) fn length(&self) -> u32 {
        u32::try_from(self.bytes.len()).unwrap_or(u32::MAX)
    }

    pub(super) fn known(&self) -> Known {
        let layout: Vec<u8> = self
            .extents
            .iter()
            .flat_map(|e| [e.at.to_le_bytes(), e.length.to_le_bytes()])
            .flatten()
            .collect();
        Known { index: self.index, content: hash(&self.bytes), layout: XxHash3_64::oneshot(&layout) }
    }

    /// Its extents and their data.
    pub(super) fn parts(self) -> (Vec<Extent>, Vec<u8>) {
        if let [Extent { at: 0, length }] = self.extents[..]
            && usize::try_from(length) == Ok(self.bytes.len())
        {
            return (self.extents, self.bytes);
        }
        let ranges = self.extents.iter().filter_map(|extent| extent.range(self.bytes.len()));
        let mut data = Vec::new();
        ranges.for_each(|range| data.extend_from_slice(&self.bytes[range]));
        (self.extents, data)
    }
}

/// The hash of a chunk's content, with zeros for its holes.
pub(super) fn hash(bytes: &[u8]) -> ChunkHash {
    if bytes.iter().all(|byte| *byte == 0) { 0 } else { XxHash3_128::oneshot(bytes).max(1) }
}

/// The hash of a whole file of this size from the chunks that it has.
pub(super) fn sum(size: u64, chunks: &[Known]) -> ChunkHash {
    let told = chunks.iter().filter(|known| known.content != 0);
    let mut bytes = size.to_le_bytes().to_vec();
    for known in told {
        bytes.extend_from_slice(&known.index.to_le_bytes());
        bytes.extend_from_slice(&known.content.to_le_bytes());
    }
    XxHash3_128::oneshot(&bytes)
}

/// The number of the chunk that an offset is in.
pub(super) fn index_of(offset: u64) -> u64 {
    offset / CHUNK_SIZE
}

/// Where the chunk of this number begins, bytes.
pub(super) fn begins(index: u64) -> u64 {
    index.saturating_mul(CHUNK_SIZE)
}

/// The first chunk from number `from` on that has data; `None` when there is none below `size`.
pub(super) fn next(file: &File, from: u64, size: u64) -> io::Result<Option<u64>> {
    let Some(offset) = from.checked_mul(CHUNK_SIZE).filter(|offset| *offset < size) else { return Ok(None) };
    match seek(file, SeekFrom::Data(offset)) {
        Ok(at) if at < size => Ok(Some(index_of(at.max(offset)))),
        Ok(_) | Err(Errno::NXIO) => Ok(None),
        // A file system that knows no holes.
        Err(Errno::INVAL) => Ok(Some(from)),
        Err(error) => Err(error.into()),
    }
}

/// Reads a chunk. What is cut off meanwhile reads as a hole.
pub(super) fn read(file: &File, index: u64, size: u64) -> io::Result<Chunk> {
    let begin = begins(index);
    let end = begin.saturating_add(CHUNK_SIZE).min(size);
    let length = usize::try_from(end.saturating_sub(begin)).unwrap_or(0);
    let mut chunk = Chunk { index, extents: Vec::new(), bytes: vec![0; length] };
    let mut at = begin;
    while at < end {
        let data = match seek(file, SeekFrom::Data(at)) {
            Ok(data) => data.max(at),
            Err(Errno::NXIO) => break,
            Err(Errno::INVAL) => at,
            Err(error) => return Err(error.into()),
        };
        if data >= end {
            break;
        }
        let hole = match seek(file, SeekFrom::Hole(data)) {
            Ok(hole) => hole.clamp(data, end),
            // Cut off between the two calls.
            Err(Errno::NXIO) => break,
            Err(Errno::INVAL) => end,
            Err(error) => return Err(error.into()),
        };
        let (from, to) = (within(data, begin), within(hole, begin));
        let got = fill(file, data, &mut chunk.bytes[from..to])?;
        if got > 0 {
            let piece = |bytes: usize| u32::try_from(bytes).unwrap_or(u32::MAX);
            chunk.extents.push(Extent { at: piece(from), length: piece(got) });
        }
        at = hole.max(data + 1);
    }
    Ok(chunk)
}

fn within(offset: u64, begin: u64) -> usize {
    usize::try_from(offset - begin).unwrap_or(CHUNK)
}

/// Reads as much as there is; what is missing is left as it was.
pub(super) fn fill(file: &File, offset: u64, into: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < into.len() {
        match file.read_at(&mut into[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(more) => filled += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// All chunks of a file that have data.
pub(super) fn scan(file: &File, size: u64) -> io::Result<Vec<Known>> {
    let mut found = Vec::new();
    let mut from = 0;
    while let Some(index) = next(file, from, size)? {
        found.push(read(file, index, size)?.known());
        from = index + 1;
    }
    Ok(found)
}
