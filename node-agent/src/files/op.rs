//! What travels: operations on the target's files, in order.

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// Bytes of a content chunk.
pub(super) const CHUNK: usize = 1024 * 1024;

/// The first half of a chunk's SHA-256.
pub(super) type ChunkHash = [u8; 16];

/// Number of an area in the list that both sides derive from the container's configuration.
pub(super) type AreaId = u16;

/// One operation. Paths are relative to their area, components separated by `/`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Op {
    /// Removes whatever has this name, with everything below.
    Remove {
        /// Area.
        area: AreaId,
        /// Path.
        path: Vec<u8>,
    },
    /// A directory; its attributes come at the end of the round.
    Directory {
        /// Area.
        area: AreaId,
        /// Path.
        path: Vec<u8>,
    },
    /// Opens (and makes) a regular file for the chunks that follow, and gives it its size.
    File {
        /// Area.
        area: AreaId,
        /// Path.
        path: Vec<u8>,
        /// Bytes.
        size: u64,
    },
    /// Content of the open file.
    Chunk {
        /// Where, bytes from its beginning.
        offset: u64,
        /// What.
        data: Vec<u8>,
        /// Its hash.
        hash: ChunkHash,
    },
    /// Another name of a file.
    HardLink {
        /// Area.
        area: AreaId,
        /// The new name.
        path: Vec<u8>,
        /// A name that it has already, in the same area.
        to: Vec<u8>,
    },
    /// A symbolic link.
    Symlink {
        /// Area.
        area: AreaId,
        /// Path.
        path: Vec<u8>,
        /// What it says.
        target: Vec<u8>,
    },
    /// A fifo, socket or device node.
    Node {
        /// Area.
        area: AreaId,
        /// Path.
        path: Vec<u8>,
        /// Type bits of st_mode.
        kind: u32,
        /// Device number.
        device: u64,
    },
    /// Attributes of what has this name.
    Attributes {
        /// Area.
        area: AreaId,
        /// Path.
        path: Vec<u8>,
        /// Which.
        attributes: Attributes,
    },
    /// More of the container's log.
    Log {
        /// Where, bytes from its beginning.
        offset: u64,
        /// What.
        data: Vec<u8>,
    },
}

/// What a file has beside its content.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attributes {
    /// Permission bits, set-id bits and the sticky bit.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time, seconds.
    pub mtime: i64,
    /// Its nanoseconds.
    pub mtime_ns: u32,
    /// Extended attributes.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// The hash of a chunk.
pub(super) fn hash(data: &[u8]) -> ChunkHash {
    let full = Sha256::digest(data);
    let mut half = ChunkHash::default();
    half.copy_from_slice(&full[..16]);
    half
}
