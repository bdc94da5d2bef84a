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
use image::frame::{FrameError, FrameKind, FrameReader, FrameWriter, MAX_BULK_BODY};
use image::packed::{Codec, Packer, Unpacker};
use image::pages::{self, Batch};
use serde::{Deserialize, Serialize};

use super::pace::{Budget, Pace, rest};
use super::squeeze::{Compression, Squeeze};
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
    /// The container stands still: whatever comes now waits for no budget.
    Urgent,
}

/// What a bulk stream obeys.
#[derive(Clone, Debug)]
pub struct Terms {
    /// Bytes a second that rounds may send; 0 = no limit.
    pub bandwidth: u64,
    /// What all migrations of this node share.
    pub budget: Arc<Budget>,
    /// Whether to compress.
    pub compression: Compression,
    /// The codecs that the other side reads.
    pub codecs: Vec<Codec>,
}

/// The sending end of one bulk stream.
pub struct BulkSender {
    writer: FrameWriter<TlsStream>,
    head: Vec<u8>,
    sent: u64,
    pace: Pace,
    budget: Arc<Budget>,
    squeeze: Squeeze,
    packer: Packer,
    /// The container stands still: nothing waits any more, and nothing goes out after that moment.
    urgent: Option<Urgent>,
    stop: Box<dyn Fn() -> bool + Send>,
}

#[derive(Clone, Copy, Debug)]
struct Urgent {
    until: Option<Instant>,
}

impl std::fmt::Debug for BulkSender {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BulkSender")
            .field("sent", &self.sent)
            .field("pace", &self.pace)
            .field("squeeze", &self.squeeze)
            .finish_non_exhaustive()
    }
}

impl BulkSender {
    /// A stream over a connection whose Hello was answered; `sequence` is its next frame's number. Batches fail
    /// with [`io::ErrorKind::ConnectionAborted`] once `stop` says true.
    pub fn new(
        stream: TlsStream,
        sequence: u64,
        terms: Terms,
        stop: impl Fn() -> bool + Send + 'static,
    ) -> Self {
        Self {
            writer: FrameWriter::new(stream).at(sequence),
            head: Vec::new(),
            sent: 0,
            pace: Pace::new(terms.bandwidth),
            budget: terms.budget,
            squeeze: Squeeze::new(terms.compression, terms.codecs, terms.bandwidth),
            packer: Packer::default(),
            urgent: None,
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

    /// The container stands still and waits: no limit holds any more, at either side. Batches fail with
    /// [`io::ErrorKind::TimedOut`] when they are not sent within `limit`.
    ///
    /// # Errors
    /// When the connection is broken.
    pub fn hurry(&mut self, limit: Option<Duration>) -> io::Result<()> {
        self.pace = Pace::new(0);
        self.squeeze.unlimited();
        self.urgent = Some(Urgent { until: limit.and_then(|limit| Instant::now().checked_add(limit)) });
        self.mark(Mark::Urgent)
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
            rest(wait, &self.stop);
        }
        Ok(())
    }

    /// Largest piece of a batch: a limited stream sends small ones, so that its rate is even.
    fn piece(&self) -> usize {
        match self.pace.rate() {
            0 => MAX_BULK_BODY,
            rate => usize::try_from(rate / 20).unwrap_or(MAX_BULK_BODY).clamp(SMALL_PIECE, MAX_BULK_BODY),
        }
    }
}

/// Smaller frames go as they are: they save nothing, and say nothing about what a codec gives.
const WORTH_PACKING: usize = 16 << 10;
/// Least size of the pieces of a limited stream.
const SMALL_PIECE: usize = 64 << 10;

impl PageSink for BulkSender {
    fn batch(&mut self, batch: &Batch<'_>) -> io::Result<()> {
        pages::split(batch, self.piece(), &mut |part| {
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

    fn is_closed(&self) -> bool {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).closed
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
    budget: &Budget,
    events: &Sender<BulkEvent>,
) {
    let result = rounds(&mut reader, gate, &mut files, budget, events);
    let _ = events.send(BulkEvent::Ended(result.err()));
}

/// One round at the receiving end.
struct Receiving<'a, A> {
    files: &'a mut Option<Box<dyn FileTarget>>,
    runs: Vec<pages::Run>,
    writer: Option<A>,
    current: Option<u32>,
    failure: Option<String>,
}

fn rounds<A: Apply>(
    reader: &mut FrameReader<TlsStream>,
    gate: &Gate<A>,
    files: &mut Option<Box<dyn FileTarget>>,
    budget: &Budget,
    events: &Sender<BulkEvent>,
) -> Result<(), BulkError> {
    let mut state = Receiving { files, runs: Vec::new(), writer: None, current: None, failure: None };
    let mut unpacker = Unpacker::default();
    let mut urgent = false;
    let mut bytes = 0u64;
    while let Some(frame) = reader.read().map_err(BulkError::Frame)? {
        let length = frame.body.len() as u64;
        bytes += length;
        gate.frames.fetch_add(1, Ordering::Relaxed);
        match (frame.kind, state.current) {
            (FrameKind::Mark, _) => {
                let mark = codec::decode(frame.body).map_err(|_| BulkError::Protocol("an invalid mark"))?;
                match (mark, state.current) {
                    (Mark::Begin { round, generation }, None) => {
                        state.current = Some(round);
                        if generation > 0 {
                            state.writer = gate.wait(generation);
                        }
                    }
                    (Mark::End { round }, Some(begun)) if begun == round => {
                        (state.current, state.writer) = (None, None);
                        let report = BulkEvent::Round { round, bytes, error: state.failure.take() };
                        bytes = 0;
                        if events.send(report).is_err() {
                            return Ok(());
                        }
                    }
                    (Mark::Urgent, None) => urgent = true,
                    _ => return Err(BulkError::Protocol("a mark out of order")),
                }
            }
            (FrameKind::Packed, Some(_)) => {
                let unpacked = unpacker.unpack(frame.body);
                let (kind, body) = unpacked.map_err(|_| BulkError::Protocol("an invalid packed frame"))?;
                state.take(kind, body)?;
            }
            (kind, Some(_)) => state.take(kind, frame.body)?,
            _ => return Err(BulkError::Protocol("a frame outside of a round")),
        }
        let wait = budget.spend(length);
        if !urgent {
            // Whoever sends is held up by what is not read.
            rest(wait, &|| gate.is_closed());
        }
    }
    Ok(())
}

impl<A: Apply> Receiving<'_, A> {
    fn take(&mut self, kind: FrameKind, body: &[u8]) -> Result<(), BulkError> {
        match kind {
            FrameKind::Pages => {
                let batch = pages::decode(body, &mut self.runs)
                    .map_err(|_| BulkError::Protocol("an invalid page batch"))?;
                if self.failure.is_none() {
                    self.failure = match &self.writer {
                        Some(writer) => {
                            writer.apply(&batch).err().map(|error| format!("apply pages: {error}"))
                        }
                        None => Some("pages for a shape that was not built".to_owned()),
                    };
                }
            }
            FrameKind::Files => {
                if self.failure.is_none() {
                    self.failure = match self.files {
                        Some(files) => {
                            files.apply(body).err().map(|error| format!("apply files: {}", chain(&error)))
                        }
                        None => Some("file changes on a stream that carries none".to_owned()),
                    };
                }
            }
            _ => return Err(BulkError::Protocol("a frame that does not belong on a bulk stream")),
        }
        Ok(())
    }
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
