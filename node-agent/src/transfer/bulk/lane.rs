//! One of the streams that carry a migration's pages, at its sending end.

use std::io;
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use image::codec;
use image::frame::{FrameError, FrameKind, FrameWriter, MAX_BULK_BODY};
use image::packed::Packer;

use super::super::pace::{Budget, Pace, rest};
use super::super::squeeze::Squeeze;
use super::super::stream::TlsStream;
use super::{Mark, Terms};

/// Smaller frames go as they are: they save nothing, and say nothing about what a codec gives.
const WORTH_PACKING: usize = 16 << 10;
/// Least size of the pieces of a limited stream.
const SMALL_PIECE: usize = 64 << 10;

/// Whether the migration was cancelled.
pub(super) type Stop = Arc<dyn Fn() -> bool + Send + Sync>;

/// The container stands still: nothing waits any more, and nothing goes out after that moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Urgent {
    pub(super) until: Option<Instant>,
}

/// A stream with what it obeys and what was measured of it.
pub(super) struct Lane {
    writer: FrameWriter<TlsStream>,
    sent: u64,
    pace: Pace,
    budget: Arc<Budget>,
    squeeze: Squeeze,
    packer: Packer,
    urgent: Option<Urgent>,
    stop: Stop,
}

impl std::fmt::Debug for Lane {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lane")
            .field("sent", &self.sent)
            .field("pace", &self.pace)
            .field("squeeze", &self.squeeze)
            .finish_non_exhaustive()
    }
}

impl Lane {
    /// A stream over a connection whose Hello was answered; `sequence` is its next frame's number. Frames fail with
    /// [`io::ErrorKind::ConnectionAborted`] once `stop` says true.
    pub(super) fn new(stream: TlsStream, sequence: u64, terms: Terms, stop: Stop) -> Self {
        Self {
            writer: FrameWriter::new(stream).at(sequence),
            sent: 0,
            pace: Pace::new(terms.bandwidth),
            budget: terms.budget,
            squeeze: Squeeze::new(terms.compression, terms.codecs, terms.bandwidth),
            packer: Packer::default(),
            urgent: None,
            stop,
        }
    }

    /// Bytes written since it was made, headers included.
    pub(super) fn sent(&self) -> u64 {
        self.sent
    }

    /// A second handle to its socket.
    ///
    /// # Errors
    /// When the descriptor cannot be duplicated.
    pub(super) fn socket(&mut self) -> io::Result<TcpStream> {
        self.writer.get_mut().socket()
    }

    /// Ends a round, in which `others` carried pages, too (see [`Mark::End`]): all of this stream is handed to the
    /// kernel on return.
    ///
    /// # Errors
    /// When the connection is broken.
    pub(super) fn end(&mut self, round: u32, others: u32) -> io::Result<()> {
        self.mark(Mark::End { round, others })?;
        self.writer.flush().map_err(to_io)
    }

    /// No limit holds any more, at either side of this stream. Frames fail with [`io::ErrorKind::TimedOut`] after the
    /// moment in `urgent`; called again, after that in the new one.
    ///
    /// # Errors
    /// When the connection is broken.
    pub(super) fn hurry(&mut self, urgent: Urgent) -> io::Result<()> {
        if self.urgent.replace(urgent).is_some() {
            return Ok(());
        }
        self.pace = Pace::new(0);
        self.squeeze.unlimited();
        self.mark(Mark::Urgent)
    }

    /// Sends a mark; it may stay in the buffer until [`Lane::end`].
    ///
    /// # Errors
    /// When the connection is broken.
    pub(super) fn mark(&mut self, mark: Mark) -> io::Result<()> {
        let body = codec::encode(&mark).map_err(io::Error::other)?;
        self.sent += self.writer.write(FrameKind::Mark, &[&body]).map_err(to_io)?;
        Ok(())
    }

    /// Sends a frame of pages or files whose body is `parts`, and waits as long as the limits demand.
    ///
    /// # Errors
    /// When the connection is broken, the migration cancelled, or the pause too long.
    pub(super) fn frame(&mut self, kind: FrameKind, parts: &[&[u8]]) -> io::Result<()> {
        if (self.stop)() {
            return Err(io::Error::new(io::ErrorKind::ConnectionAborted, "the migration was cancelled"));
        }
        if self.urgent.and_then(|urgent| urgent.until).is_some_and(|until| Instant::now() > until) {
            return Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "the link has become too slow for the pause",
            ));
        }
        let mut packed = None;
        let before = parts.iter().map(|part| part.len()).sum();
        let chosen = if before < WORTH_PACKING { None } else { self.squeeze.choose() };
        if let Some(codec) = chosen {
            let began = Instant::now();
            packed = self.packer.pack(codec, kind, parts)?;
            let after = packed.map_or(before, <[u8]>::len);
            self.squeeze.packed(codec, before, after, began.elapsed());
        }
        let began = Instant::now();
        let written = match packed {
            Some(body) => self.writer.write(FrameKind::Packed, &[body]),
            None => self.writer.write(kind, parts),
        }
        .map_err(to_io)?;
        let took = began.elapsed();
        self.sent += written;
        self.squeeze.sent(written, took, packed.is_some());
        let wait = self.pace.spend(written, Instant::now()).max(self.budget.spend(written));
        if self.urgent.is_none() {
            rest(wait, &*self.stop);
        }
        Ok(())
    }

    /// Largest piece of a batch, bytes: a limited stream sends small ones, so that its rate is even.
    pub(super) fn piece(&self) -> usize {
        match self.pace.rate() {
            0 => MAX_BULK_BODY,
            rate => usize::try_from(rate / 20).unwrap_or(MAX_BULK_BODY).clamp(SMALL_PIECE, MAX_BULK_BODY),
        }
    }
}

/// How long the pause may still take, from now on.
pub(super) fn until(limit: Option<Duration>) -> Urgent {
    Urgent { until: limit.and_then(|limit| Instant::now().checked_add(limit)) }
}

fn to_io(error: FrameError) -> io::Error {
    match error {
        FrameError::Io(error) => error,
        other => io::Error::other(other),
    }
}
