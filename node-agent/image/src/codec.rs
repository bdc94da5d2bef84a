//! Values as bytes: the body of [`FrameKind::State`] and
//! [`FrameKind::Message`] frames.
//!
//! The encoding is postcard's (<https://postcard.jamesmunns.com/wire-format>): fields in the order of
//! their declaration, integers as varints. A change of a type in this crate is a new
//! [`FORMAT_VERSION`](crate::frame::FORMAT_VERSION).

use std::io::{Read, Write};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::frame::{FrameError, FrameKind, FrameReader, FrameWriter};

/// Why a value cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    /// Its frame.
    #[error("cannot read or write the frame of a value")]
    Frame(#[from] FrameError),
    /// The bytes are no such value.
    #[error("bytes are not a valid {what}")]
    Value {
        /// The type.
        what: &'static str,
        /// What postcard says.
        #[source]
        source: postcard::Error,
    },
    /// Bytes are left after the value.
    #[error("{count} bytes are left after a {what}")]
    Trailing {
        /// The type.
        what: &'static str,
        /// How many.
        count: usize,
    },
    /// The stream ended, or another kind of frame came.
    #[error("expected a {expected:?} frame, found {found:?}")]
    Unexpected {
        /// What should have come.
        expected: FrameKind,
        /// What came; `None` is the end of the stream.
        found: Option<FrameKind>,
    },
}

/// The bytes of a value.
///
/// # Errors
/// Never for the types of this crate.
pub fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, CodecError> {
    postcard::to_extend(value, Vec::with_capacity(1024))
        .map_err(|source| CodecError::Value { what: name::<T>(), source })
}

/// Reads a value from exactly these bytes. Memory is allocated only as bytes back it.
///
/// # Errors
/// When they are not a `T`, or more than one.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError> {
    let (value, rest) =
        postcard::take_from_bytes(bytes).map_err(|source| CodecError::Value { what: name::<T>(), source })?;
    if rest.is_empty() {
        Ok(value)
    } else {
        Err(CodecError::Trailing { what: name::<T>(), count: rest.len() })
    }
}

/// Writes a value as one frame, and flushes. Returns how many bytes were written.
///
/// # Errors
/// When it is larger than its kind may be, or the stream breaks.
pub fn write<W: Write, T: Serialize>(
    writer: &mut FrameWriter<W>,
    kind: FrameKind,
    value: &T,
) -> Result<u64, CodecError> {
    let bytes = encode(value)?;
    let written = writer.write(kind, &[&bytes])?;
    writer.flush()?;
    Ok(written)
}

/// Reads a value from the next frame, which must be of `kind`.
///
/// # Errors
/// When it is not, is not a `T`, or the stream breaks.
pub fn read<R: Read, T: DeserializeOwned>(
    reader: &mut FrameReader<R>,
    kind: FrameKind,
) -> Result<T, CodecError> {
    match reader.read()? {
        Some(frame) if frame.kind == kind => decode(frame.body),
        other => Err(CodecError::Unexpected { expected: kind, found: other.map(|frame| frame.kind) }),
    }
}

fn name<T>() -> &'static str {
    let path = std::any::type_name::<T>();
    path.rsplit("::").next().unwrap_or(path)
}
