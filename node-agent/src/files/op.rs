//! What travels: operations on the target's files, in order.

use serde::{Deserialize, Serialize};

use super::content::{ChunkHash, Extent};

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
    /// Gives another name to a directory that was sent, with everything in it.
    Rename {
        /// Area.
        area: AreaId,
        /// The name that it has.
        path: Vec<u8>,
        /// The name that it gets; whatever has it is removed.
        to: Vec<u8>,
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
        /// It is new: nothing of what has this name is kept.
        fresh: bool,
    },
    /// A part of the open file, with its holes.
    Chunk {
        /// Where it begins, bytes from the file's beginning.
        offset: u64,
        /// Its length with its holes, bytes.
        length: u32,
        /// Where it has data, ascending.
        extents: Vec<Extent>,
        /// The data of all extents, one after the other.
        #[serde(with = "bytes")]
        data: Vec<u8>,
        /// Hash of the part, holes being zeros.
        hash: ChunkHash,
    },
    /// The open file is complete: it is read again and compared.
    Verify {
        /// Hash of all its content.
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
        #[serde(with = "bytes")]
        data: Vec<u8>,
    },
}

/// Bytes as one piece: the derived way takes each by itself. Both have the same form.
mod bytes {
    use serde::de::{Deserializer, Error, Visitor};
    use serde::ser::Serializer;

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
        to.serialize_bytes(bytes)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
        struct Bytes;
        impl<'de> Visitor<'de> for Bytes {
            type Value = Vec<u8>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("bytes")
            }

            fn visit_borrowed_bytes<E: Error>(self, bytes: &'de [u8]) -> Result<Self::Value, E> {
                Ok(bytes.to_vec())
            }
        }
        from.deserialize_bytes(Bytes)
    }
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
