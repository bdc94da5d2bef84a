//! Packed frames: the body of a pages or files frame, compressed.
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 1 | how, see [`Codec`]; zero is invalid |
//! | 1 | 1 | kind of the frame inside: pages or files |
//! | 2 | 4 | length of its body, little-endian |
//! | 6 | rest | the body: an lz4 block, or a zstd frame |
//!
//! Bodies inside are no larger than outside. Nothing is allocated before that has been checked.

use std::io;

use crate::frame::{FrameKind, MAX_BULK_BODY, take};

/// Bytes before the compressed body.
const HEADER: usize = 6;
/// Level of zstd: the fastest of its ordinary ones.
const ZSTD_LEVEL: i32 = 1;

/// How a body is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Codec {
    /// An lz4 block.
    Lz4 = 1,
    /// A zstd frame.
    Zstd = 2,
}

impl Codec {
    /// All of them, cheapest first.
    pub const ALL: [Self; 2] = [Self::Lz4, Self::Zstd];

    /// By its number on the wire.
    #[must_use]
    pub fn from_byte(byte: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|codec| *codec as u8 == byte)
    }
}

/// Why a packed body cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum PackedError {
    /// Its header is short, or names what is not known or may not be inside.
    #[error("packed frame: invalid header")]
    Header,
    /// The body inside is larger than any may be.
    #[error("packed frame of {0} bytes, the limit is {MAX_BULK_BODY}")]
    TooLarge(usize),
    /// It is no lz4 block or zstd frame, or not of the length that the header says.
    #[error("packed frame is damaged")]
    Damaged,
}

/// Compresses bodies. Keeps its buffers: at most a few times [`MAX_BULK_BODY`].
#[derive(Default)]
pub struct Packer {
    zstd: Option<zstd::bulk::Compressor<'static>>,
    whole: Vec<u8>,
    out: Vec<u8>,
}

impl std::fmt::Debug for Packer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Packer").field("buffer", &self.out.capacity()).finish_non_exhaustive()
    }
}

impl Packer {
    /// The packed form of a frame whose body is `parts`, one after the other; `None` when it would not be smaller.
    ///
    /// # Errors
    /// When the compressor has no memory, or `kind` may not be packed.
    pub fn pack(&mut self, codec: Codec, kind: FrameKind, parts: &[&[u8]]) -> io::Result<Option<&[u8]>> {
        let length: usize = parts.iter().map(|part| part.len()).sum();
        if !may_be_inside(kind) || length > MAX_BULK_BODY {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "this frame cannot be packed"));
        }
        let whole: &[u8] = if let [one] = parts {
            one
        } else {
            self.whole.clear();
            parts.iter().for_each(|part| self.whole.extend_from_slice(part));
            &self.whole
        };
        let room = match codec {
            Codec::Lz4 => lz4_flex::block::get_maximum_output_size(length),
            Codec::Zstd => zstd::zstd_safe::compress_bound(length),
        };
        // Only grows: filling it with zeros each time would cost as much as compressing.
        if self.out.len() < HEADER + room {
            self.out.resize(HEADER + room, 0);
        }
        let (head, out) = self.out.split_at_mut(HEADER);
        (head[0], head[1]) = (codec as u8, kind as u8);
        head[2..HEADER].copy_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes());
        let packed = match codec {
            Codec::Lz4 => lz4_flex::block::compress_into(whole, out).map_err(io::Error::other)?,
            Codec::Zstd => {
                let compressor = match &mut self.zstd {
                    Some(compressor) => compressor,
                    none => none.insert(zstd::bulk::Compressor::new(ZSTD_LEVEL)?),
                };
                compressor.compress_to_buffer(whole, out)?
            }
        };
        Ok((HEADER + packed < length).then_some(&self.out[..HEADER + packed]))
    }
}

/// Restores bodies. Keeps one buffer of at most [`MAX_BULK_BODY`] bytes.
#[derive(Default)]
pub struct Unpacker {
    zstd: Option<zstd::bulk::Decompressor<'static>>,
    out: Vec<u8>,
}

impl std::fmt::Debug for Unpacker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Unpacker").field("buffer", &self.out.len()).finish_non_exhaustive()
    }
}

impl Unpacker {
    /// Kind and body of the frame inside.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn unpack(&mut self, body: &[u8]) -> Result<(FrameKind, &[u8]), PackedError> {
        if body.len() < HEADER {
            return Err(PackedError::Header);
        }
        let codec = Codec::from_byte(body[0]).ok_or(PackedError::Header)?;
        let kind = [FrameKind::Pages, FrameKind::Files].into_iter().find(|kind| *kind as u8 == body[1]);
        let kind = kind.ok_or(PackedError::Header)?;
        let length = usize::try_from(u32::from_le_bytes(take(body, 2))).unwrap_or(usize::MAX);
        if length > MAX_BULK_BODY {
            return Err(PackedError::TooLarge(length));
        }
        if self.out.len() < length {
            self.out.resize(length, 0);
        }
        let out = &mut self.out[..length];
        let restored = match codec {
            Codec::Lz4 => lz4_flex::block::decompress_into(&body[HEADER..], out).ok(),
            Codec::Zstd => {
                let decompressor = match &mut self.zstd {
                    Some(decompressor) => decompressor,
                    none => none.insert(zstd::bulk::Decompressor::new().map_err(|_| PackedError::Damaged)?),
                };
                decompressor.decompress_to_buffer(&body[HEADER..], out).ok()
            }
        };
        if restored == Some(length) { Ok((kind, &self.out[..length])) } else { Err(PackedError::Damaged) }
    }
}

fn may_be_inside(kind: FrameKind) -> bool {
    matches!(kind, FrameKind::Pages | FrameKind::Files)
}
