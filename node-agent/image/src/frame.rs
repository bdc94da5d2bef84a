//! Frames: the envelope of everything that Gantry sends between agents or writes to a checkpoint.
//!
//! A frame is a fixed header of [`HEADER_LEN`] bytes and a body. All numbers are little-endian.
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 4 | magic `GNTR` |
//! | 4 | 2 | format version, [`FORMAT_VERSION`]; apart from the product's version |
//! | 6 | 1 | kind, see [`FrameKind`]; zero is invalid |
//! | 7 | 1 | reserved, zero |
//! | 8 | 8 | sequence number in this stream, from 0 |
//! | 16 | 4 | length of the body, bytes |
//! | 20 | 4 | CRC-32C of the body |
//! | 24 | 4 | CRC-32C of bytes 0 to 23 |
//!
//! Nothing is allocated for a body before its header has been checked, and then only as data arrives.

use std::io::{self, Read, Write};

/// Bytes of a header.
pub const HEADER_LEN: usize = 28;
/// First bytes of every frame.
pub const MAGIC: [u8; 4] = *b"GNTR";
/// Version of the format. A reader refuses every other one.
pub const FORMAT_VERSION: u16 = 1;
/// Largest body of a [`FrameKind::Pages`], [`FrameKind::Files`] or [`FrameKind::Packed`] frame.
pub const MAX_BULK_BODY: usize = 4 * 1024 * 1024;
/// Largest body of a [`FrameKind::State`] frame, unless [`Limits`] says otherwise.
pub const MAX_STATE_BODY: usize = 64 * 1024 * 1024;
/// Largest body of a [`FrameKind::Message`] frame.
pub const MAX_MESSAGE_BODY: usize = 64 * 1024;
/// How much is allocated ahead of the data that has arrived.
const STEP: usize = 1024 * 1024;

/// What a frame's body is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum FrameKind {
    /// A batch of pages, see [`crate::pages`].
    Pages = 1,
    /// A batch of file changes; opaque here.
    Files = 2,
    /// A large piece of state: a shape, an image, held network frames.
    State = 3,
    /// A short message of the agents' protocol.
    Message = 4,
    /// A mark between rounds on a bulk stream, and the end of a page file.
    Mark = 5,
    /// A [`FrameKind::Pages`] or [`FrameKind::Files`] frame, compressed; see [`crate::packed`].
    Packed = 6,
}

impl FrameKind {
    fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Pages,
            2 => Self::Files,
            3 => Self::State,
            4 => Self::Message,
            5 => Self::Mark,
            6 => Self::Packed,
            _ => return None,
        })
    }
}

/// Largest bodies that a reader or writer accepts, bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// For [`FrameKind::State`].
    pub state: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { state: MAX_STATE_BODY }
    }
}

impl Limits {
    /// The largest body of `kind`.
    #[must_use]
    pub fn of(&self, kind: FrameKind) -> usize {
        match kind {
            FrameKind::Pages | FrameKind::Files | FrameKind::Packed => MAX_BULK_BODY,
            FrameKind::State => self.state,
            FrameKind::Message | FrameKind::Mark => MAX_MESSAGE_BODY,
        }
    }
}

/// Why a frame cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The stream failed or ended inside a frame.
    #[error("frame stream broke")]
    Io(#[from] io::Error),
    /// The first bytes are not a frame's.
    #[error("not a frame: magic {0:02x?}")]
    Magic([u8; 4]),
    /// Another format version.
    #[error("frame format version {0}, this reader knows {FORMAT_VERSION}")]
    Version(u16),
    /// The header's checksum or a reserved field is wrong.
    #[error("frame header is damaged")]
    Header,
    /// The kind is zero or unknown.
    #[error("unknown frame kind {0}")]
    Kind(u8),
    /// The body is larger than its kind may be.
    #[error("{kind:?} frame of {length} bytes, the limit is {limit}")]
    TooLarge {
        /// Its kind.
        kind: FrameKind,
        /// Its length, bytes.
        length: usize,
        /// The limit, bytes.
        limit: usize,
    },
    /// A frame is missing or was repeated.
    #[error("frame number {found}, expected {expected}")]
    Sequence {
        /// The number in the header.
        found: u64,
        /// The next one of this stream.
        expected: u64,
    },
    /// The body's checksum is wrong.
    #[error("frame body is damaged")]
    Body,
}

/// A frame's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What the body is.
    pub kind: FrameKind,
    /// Number in the stream.
    pub sequence: u64,
    /// Bytes of the body.
    pub length: u32,
    /// CRC-32C of the body.
    pub checksum: u32,
}

impl Header {
    /// Its bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        bytes[0..4].copy_from_slice(&MAGIC);
        bytes[4..6].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        bytes[6] = self.kind as u8;
        bytes[8..16].copy_from_slice(&self.sequence.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.length.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.checksum.to_le_bytes());
        let check = crc32c::crc32c(&bytes[..24]);
        bytes[24..28].copy_from_slice(&check.to_le_bytes());
        bytes
    }

    /// Reads a header and checks it against `limits`.
    ///
    /// # Errors
    /// Whatever is wrong with it.
    pub fn decode(bytes: &[u8; HEADER_LEN], limits: &Limits) -> Result<Self, FrameError> {
        let magic = take::<4>(bytes, 0);
        if magic != MAGIC {
            return Err(FrameError::Magic(magic));
        }
        if u32::from_le_bytes(take(bytes, 24)) != crc32c::crc32c(&bytes[..24]) {
            return Err(FrameError::Header);
        }
        let version = u16::from_le_bytes(take(bytes, 4));
        if version != FORMAT_VERSION {
            return Err(FrameError::Version(version));
        }
        let kind = FrameKind::from_byte(bytes[6]).ok_or(FrameError::Kind(bytes[6]))?;
        if bytes[7] != 0 {
            return Err(FrameError::Header);
        }
        let length = u32::from_le_bytes(take(bytes, 16));
        check_length(kind, to_usize(length), limits)?;
        Ok(Self {
            kind,
            sequence: u64::from_le_bytes(take(bytes, 8)),
            length,
            checksum: u32::from_le_bytes(take(bytes, 20)),
        })
    }
}

/// `N` bytes from `at`. The callers' ranges are constants inside the slice; a short slice yields zeros.
pub(crate) fn take<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    if let Some(part) = bytes.get(at..at + N) {
        out.copy_from_slice(part);
    }
    out
}

/// A length as an index; `usize` has at least 32 bits wherever the engine runs.
fn to_usize(length: u32) -> usize {
    usize::try_from(length).unwrap_or(usize::MAX)
}

fn check_length(kind: FrameKind, length: usize, limits: &Limits) -> Result<(), FrameError> {
    let limit = limits.of(kind);
    if length > limit {
        return Err(FrameError::TooLarge { kind, length, limit });
    }
    Ok(())
}

/// Writes frames with rising numbers.
#[derive(Debug)]
pub struct FrameWriter<W> {
    inner: W,
    sequence: u64,
    limits: Limits,
}

impl<W: Write> FrameWriter<W> {
    /// A new stream of frames into `inner`, with default limits.
    pub fn new(inner: W) -> Self {
        Self::with_limits(inner, Limits::default())
    }

    /// As [`FrameWriter::new`] with other limits.
    pub fn with_limits(inner: W, limits: Limits) -> Self {
        Self { inner, sequence: 0, limits }
    }

    /// Writes one frame whose body is `parts`, one after the other, without joining them first. Does not
    /// flush. Returns how many bytes were written.
    ///
    /// # Errors
    /// [`FrameError::TooLarge`] with nothing written, or [`FrameError::Io`]; after that the stream is unusable.
    pub fn write(&mut self, kind: FrameKind, parts: &[&[u8]]) -> Result<u64, FrameError> {
        let length = parts.iter().map(|part| part.len()).sum::<usize>();
        check_length(kind, length, &self.limits)?;
        let Ok(length) = u32::try_from(length) else {
            return Err(FrameError::TooLarge { kind, length, limit: to_usize(u32::MAX) });
        };
        let checksum = parts.iter().fold(0, |crc, part| crc32c::crc32c_append(crc, part));
        let header = Header { kind, sequence: self.sequence, length, checksum };
        self.inner.write_all(&header.encode())?;
        for part in parts {
            self.inner.write_all(part)?;
        }
        self.sequence += 1;
        Ok(u64::from(length) + HEADER_LEN as u64)
    }

    /// Continues a stream whose next frame has this number.
    #[must_use]
    pub fn at(mut self, sequence: u64) -> Self {
        self.sequence = sequence;
        self
    }

    /// The number of the next frame.
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// Flushes the stream below.
    ///
    /// # Errors
    /// [`FrameError::Io`].
    pub fn flush(&mut self) -> Result<(), FrameError> {
        Ok(self.inner.flush()?)
    }

    /// The stream below.
    pub fn get_mut(&mut self) -> &mut W {
        &mut self.inner
    }

    /// Gives the stream back.
    pub fn into_inner(self) -> W {
        self.inner
    }
}

/// A frame that was read. The body lies in the reader's buffer until the next read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// What the body is.
    pub kind: FrameKind,
    /// The body.
    pub body: &'a [u8],
}

/// Reads frames and checks their numbers.
#[derive(Debug)]
pub struct FrameReader<R> {
    inner: R,
    sequence: u64,
    limits: Limits,
    /// Grows to the largest body seen and is not cleared between frames.
    buffer: Vec<u8>,
}

impl<R: Read> FrameReader<R> {
    /// Reads a stream of frames from its first one on, with default limits.
    pub fn new(inner: R) -> Self {
        Self::with_limits(inner, Limits::default())
    }

    /// As [`FrameReader::new`] with other limits.
    pub fn with_limits(inner: R, limits: Limits) -> Self {
        Self { inner, sequence: 0, limits, buffer: Vec::new() }
    }

    /// Other limits from the next frame on.
    pub fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// Reads the next frame; `None` when the stream ends between two frames.
    ///
    /// # Errors
    /// What is wrong with it. The stream is unusable afterwards.
    pub fn read(&mut self) -> Result<Option<Frame<'_>>, FrameError> {
        let mut bytes = [0; HEADER_LEN];
        if !read_header(&mut self.inner, &mut bytes)? {
            return Ok(None);
        }
        let header = Header::decode(&bytes, &self.limits)?;
        if header.sequence != self.sequence {
            return Err(FrameError::Sequence { found: header.sequence, expected: self.sequence });
        }
        let length = to_usize(header.length);
        let mut filled = 0;
        while filled < length {
            let end = length.min(filled + STEP).max(length.min(self.buffer.len()));
            if self.buffer.len() < end {
                self.buffer.resize(end, 0);
            }
            self.inner.read_exact(&mut self.buffer[filled..end])?;
            filled = end;
        }
        let body = &self.buffer[..length];
        if crc32c::crc32c(body) != header.checksum {
            return Err(FrameError::Body);
        }
        self.sequence += 1;
        Ok(Some(Frame { kind: header.kind, body }))
    }

    /// The stream below.
    pub fn get_mut(&mut self) -> &mut R {
        &mut self.inner
    }

    /// Gives the stream back.
    pub fn into_inner(self) -> R {
        self.inner
    }
}

/// Fills `bytes`; false when the stream ended before the first one.
fn read_header<R: Read>(inner: &mut R, bytes: &mut [u8; HEADER_LEN]) -> io::Result<bool> {
    let mut filled = 0;
    while filled < HEADER_LEN {
        match inner.read(&mut bytes[filled..]) {
            Ok(0) if filled == 0 => return Ok(false),
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => filled += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}
