//! Bulk streams: pages and file changes, by rounds.
//!
//! A stream carries `Begin{round, generation}`, then batches, then `End{round}`, and so on. The receiver does
//! not touch memory before the shape of that generation has been built, and says when a round is in its place.
//! When applying fails it reads on to the end of the round, so that the sender learns the reason from the
//! target's answer instead of a broken pipe.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use engine::PageSink;
use image::codec;
use image::frame::{FrameError, FrameKind, FrameReader, FrameWriter};
use image::pages::{self, Batch};
use serde::{Deserialize, Serialize};

use super::stream::TlsStream;
use crate::session::ports::{FileSink, FileTarget};

/// How long a receiver waits for the shape that a round needs.
const SHAPE_TIMEOUT: Duration = Duration::from_secs(30);

/// A mark between batches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Mark {
    /// Never sent; a zero is no mark.
    Invalid,
    /// A round begins; its pages need the shape of this generation (0 = no pages will come).
    Begin {
        /// Number of the round.
        round: u32,
        /// Generation of the shape.
        generation: u32,
    },
    /// A round has been sent in full.
    End {
        /// Number of the round.
        round: u32,
    },
}

/// How much longer a sender must wait to stay under `rate` bytes a second after `sent` bytes in `elapsed`.
/// Pure; a rate of 0 is no limit.
#[must_use]
pub fn pace(rate: u64, sent: u64, elapsed: Duration) -> Duration {
    if rate == 0 {
        return Duration::ZERO;
    }
    #[expect(clippy::cast_precision_loss, reason = "a limit needs no more than 52 bits of precision")]
    let due = Duration::try_from_secs_f64(sent as f64 / rate as f64).unwrap_or(Duration::MAX);
    due.saturating_sub(elapsed)
}

/// The sending end of one bulk stream.
pub struct BulkSender {
    writer: FrameWriter<TlsStream>,
    head: Vec<u8>,
    sent: u64,
    rate: u64,
    round_began: Instant,
    round_sent: u64,
    stop: Box<dyn Fn() -> bool + Send>,
}

impl std::fmt::Debug for BulkSender {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BulkSender")
            .field("sent", &self.sent)
            .field("rate", &self.rate)
            .finish_non_exhaustive()
    }
}

impl BulkSender {
    /// A stream over a connection whose Hello was answered; `sequence` is its next frame's number. Batches fail
    /// with [`io::ErrorKind::ConnectionAborted`] once `stop` says true. `rate` limits rounds, bytes a second, 0 = no limit.
    pub fn new(
        stream: TlsStream,
        sequence: u64,
        rate: u64,
        stop: impl Fn() -> bool + Send + 'static,
    ) -> Self {
        Self {
            writer: FrameWriter::new(stream).at(sequence),
            head: Vec::new(),
            sent: 0,
            rate,
            round_began: Instant::now(),
            round_sent: 0,
            stop: Box::new(stop),
        }
    }

    /// Bytes sent since it was made, headers included.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.sent
    }

    /// Begins a round.
    ///
    /// # Errors
    /// When the connection is broken.
    pub fn begin(&mut self, round: u32, generation: u32) -> io::Result<()> {
        self.round_began = Instant::now();
        self.round_sent = 0;
        self.mark(Mark::Begin { round, generation })
    }

    /// Ends a round: everything is handed to the kernel on return.
    ///
    /// # Errors
    /// When the connection is broken.
    pub fn end(&mut self, round: u32) -> io::Result<()> {
        self.mark(Mark::End { round })?;
        self.writer.flush().map_err(to_io)
    }

    /// Lifts the limit: the container stands still and waits.
    pub fn unlimited(&mut self) {
        self.rate = 0;
    }

    fn mark(&mut self, mark: Mark) -> io::Result<()> {
        let body = codec::encode(&mark).map_err(io::Error::other)?;
        self.sent += self.writer.write(FrameKind::Mark, &[&body]).map_err(to_io)?;
        Ok(())
    }

    fn frame(&mut self, kind: FrameKind, parts: &[&[u8]]) -> io::Result<()> {
        if (self.stop)() {
            return Err(io::Error::new(io::ErrorKind::ConnectionAborted, "the migration was cancelled"));
        }
        let written = self.writer.write(kind, parts).map_err(to_io)?;
        self.sent += written;
        self.round_sent += written;
        let mut wait = pace(self.rate, self.round_sent, self.round_began.elapsed());
        while !wait.is_zero() && !(self.stop)() {
            std::thread::sleep(wait.min(Duration::from_millis(50)));
            wait = pace(self.rate, self.round_sent, self.round_began.elapsed());
        }
        Ok(())
    }
}

impl PageSink for BulkSender {
    fn batch(&mut self, batch: &Batch<'_>) -> io::Result<()> {
        pages::split(batch, &mut |part| {
            let mut head = std::mem::take(&mut self.head);
            let sent = pages::encode_head(part, &mut head)
                .map_err(io::Error::other)
                .and_then(|()| self.frame(FrameKind::Pages, &[&head, part.data]));
            self.head = head;
            sent
        })
    }
}

impl FileSink for BulkSender {
    fn batch(&mut self, batch: &[u8]) -> io::Result<()> {
        self.frame(FrameKind::Files, &[batch])
    }
}

fn to_io(error: FrameError) -> io::Error {
    match error {
        FrameError::Io(error) => error,
        other => io::Error::other(other),
    }
}

/// What takes pages at the target.
pub trait Apply: Clone + Send + 'static {
    /// Writes one batch to its final place.
    ///
    /// # Errors
    /// When a run does not belong there.
    fn apply(&self, batch: &Batch<'_>) -> io::Result<()>;
}

impl Apply for engine::target::PageWriter {
    fn apply(&self, batch: &Batch<'_>) -> io::Result<()> {
        Self::apply(self, batch)
    }
}

/// Lets a round's pages through only after its shape has been built.
#[derive(Debug)]
pub struct Gate<A> {
    open: Mutex<GateState<A>>,
    changed: Condvar,
    frames: AtomicU64,
}

#[derive(Debug)]
struct GateState<A> {
    generation: u32,
    writer: Option<A>,
    closed: bool,
}

impl<A: Clone> Gate<A> {
    /// A gate that no generation has opened yet.
    #[must_use]
    pub fn new() -> Arc<Self> {
        let state = GateState { generation: 0, writer: None, closed: false };
        Arc::new(Self { open: Mutex::new(state), changed: Condvar::new(), frames: AtomicU64::new(0) })
    }

    /// The shape of `generation` stands; its memory is written through `writer`.
    pub fn open(&self, generation: u32, writer: A) {
        let mut state = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        state.generation = generation;
        state.writer = Some(writer);
        self.changed.notify_all();
    }

    /// No further shape will come: whoever waits, fails.
    pub fn close(&self) {
        let mut state = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        state.closed = true;
        state.writer = None;
        self.changed.notify_all();
    }

    /// Frames that have come through so far; it changes while a round is under way.
    pub fn progress(&self) -> u64 {
        self.frames.load(Ordering::Relaxed)
    }

    fn wait(&self, generation: u32) -> Option<A> {
        let state = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let (state, _) = self
            .changed
            .wait_timeout_while(state, SHAPE_TIMEOUT, |state| !state.closed && state.generation < generation)
            .unwrap_or_else(PoisonError::into_inner);
        (state.generation == generation).then(|| state.writer.clone()).flatten()
    }
}

/// What a receiver reports.
#[derive(Debug)]
pub enum BulkEvent {
    /// Everything of a round is in its place, or why it is not.
    Round {
        /// Number of the round.
        round: u32,
        /// Bytes of frames received since the last report.
        bytes: u64,
        /// Why something could not be applied.
        error: Option<String>,
    },
    /// The stream ended or broke; the receiver is gone.
    Ended(Option<BulkError>),
}

/// Why a bulk stream was closed.
#[derive(Debug, thiserror::Error)]
pub enum BulkError {
    /// The connection broke, or what came is no frame.
    #[error("bulk stream failed")]
    Frame(#[source] FrameError),
    /// A frame that does not belong there.
    #[error("bulk stream: {0}")]
    Protocol(&'static str),
}

impl BulkError {
    /// What came was wrong, as against a connection that ended.
    #[must_use]
    pub fn is_violation(&self) -> bool {
        !matches!(self, Self::Frame(FrameError::Io(_)))
    }
}

/// Receives one bulk stream to its end, and reports to `events`. Runs on a thread of its own.
pub fn receive<A: Apply>(
    mut reader: FrameReader<TlsStream>,
    gate: &Gate<A>,
    mut files: Option<Box<dyn FileTarget>>,
    events: &Sender<BulkEvent>,
) {
    let result = rounds(&mut reader, gate, &mut files, events);
    let _ = events.send(BulkEvent::Ended(result.err()));
}

fn rounds<A: Apply>(
    reader: &mut FrameReader<TlsStream>,
    gate: &Gate<A>,
    files: &mut Option<Box<dyn FileTarget>>,
    events: &Sender<BulkEvent>,
) -> Result<(), BulkError> {
    let mut runs = Vec::new();
    let mut writer: Option<A> = None;
    let mut current: Option<u32> = None;
    let mut failure: Option<String> = None;
    let mut bytes = 0u64;
    while let Some(frame) = reader.read().map_err(BulkError::Frame)? {
        bytes += frame.body.len() as u64;
        gate.frames.fetch_add(1, Ordering::Relaxed);
        match (frame.kind, current) {
            (FrameKind::Mark, _) => {
                let mark = codec::decode(frame.body).map_err(|_| BulkError::Protocol("an invalid mark"))?;
                match (mark, current) {
                    (Mark::Begin { round, generation }, None) => {
                        current = Some(round);
                        if generation > 0 {
                            writer = gate.wait(generation);
                        }
                    }
                    (Mark::End { round }, Some(begun)) if begun == round => {
                        current = None;
                        writer = None;
                        let report = BulkEvent::Round { round, bytes, error: failure.take() };
                        bytes = 0;
                        if events.send(report).is_err() {
                            return Ok(());
                        }
                    }
                    _ => return Err(BulkError::Protocol("a mark out of order")),
                }
            }
            (FrameKind::Pages, Some(_)) => {
                let batch = pages::decode(frame.body, &mut runs)
                    .map_err(|_| BulkError::Protocol("an invalid page batch"))?;
                if failure.is_none() {
                    failure = match &writer {
                        Some(writer) => {
                            writer.apply(&batch).err().map(|error| format!("apply pages: {error}"))
                        }
                        None => Some("pages for a shape that was not built".to_owned()),
                    };
                }
            }
            (FrameKind::Files, Some(_)) => {
                if failure.is_none() {
                    failure = match files {
                        Some(files) => files
                            .apply(frame.body)
                            .err()
                            .map(|error| format!("apply files: {}", chain(&error))),
                        None => Some("file changes on a stream that carries none".to_owned()),
                    };
                }
            }
            _ => return Err(BulkError::Protocol("a frame outside of a round")),
        }
    }
    Ok(())
}

/// An error with its causes, for a message that travels to the other agent.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
