//! The receiving end of one bulk stream.

use std::io;
use std::sync::mpsc::Sender;

use image::codec;
use image::frame::{FrameError, FrameKind, FrameReader};
use image::packed::Unpacker;
use image::pages::{self, Batch};

use super::super::pace::{Budget, rest};
use super::super::stream::TlsStream;
use super::gate::Stopped;
use super::rounds::Received;
use super::{Gate, Mark};
use crate::session::ports::FileTarget;
use crate::telemetry::chain;

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

/// What receivers report.
#[derive(Debug)]
pub enum BulkEvent {
    /// By the first stream: everything of a round is in its place, on all streams, or why it is not.
    Round {
        /// Number of the round.
        round: u32,
        /// Bytes of frames received since the last report, on all streams.
        bytes: u64,
        /// Why something could not be applied.
        error: Option<String>,
    },
    /// A stream ended or broke; its receiver is gone.
    Ended {
        /// Its number.
        stream: u32,
        /// Why, unless it was closed between two frames.
        error: Option<BulkError>,
    },
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

/// Receives one bulk stream to its end, and reports to `events`. Runs on a thread of its own. When it ends, for
/// whatever reason, no round is completed any more, and receivers of other streams that wait for it end, too.
/// `files` is for the first stream, number 0; pages of the others come through the same `gate`.
pub fn receive<A: Apply>(
    number: u32,
    mut reader: FrameReader<TlsStream>,
    gate: &Gate<A>,
    files: Option<Box<dyn FileTarget>>,
    budget: &Budget,
    events: &Sender<BulkEvent>,
) {
    let receiving = Receiving {
        number,
        gate,
        files,
        runs: Vec::new(),
        writer: None,
        current: None,
        received: Received::default(),
        urgent: false,
    };
    let ended = receiving.run(&mut reader, budget, events);
    let why = match &ended {
        Ok(()) => format!("bulk stream {number} was closed"),
        Err(error) => format!("bulk stream {number}: {}", chain(error)),
    };
    // What is reported first is what the session tells.
    let _ = events.send(BulkEvent::Ended { stream: number, error: ended.err() });
    gate.break_up(why);
}

/// One round at the receiving end of one stream.
struct Receiving<'a, A> {
    number: u32,
    gate: &'a Gate<A>,
    files: Option<Box<dyn FileTarget>>,
    runs: Vec<pages::Run>,
    writer: Option<A>,
    current: Option<u32>,
    received: Received,
    urgent: bool,
}

impl<A: Apply> Receiving<'_, A> {
    fn run(
        mut self,
        reader: &mut FrameReader<TlsStream>,
        budget: &Budget,
        events: &Sender<BulkEvent>,
    ) -> Result<(), BulkError> {
        let mut unpacker = Unpacker::default();
        while let Some(frame) = reader.read().map_err(BulkError::Frame)? {
            let length = frame.body.len() as u64;
            self.received.bytes += length;
            self.gate.count_frame();
            match (frame.kind, self.current) {
                (FrameKind::Mark, _) => {
                    let mark =
                        codec::decode(frame.body).map_err(|_| BulkError::Protocol("an invalid mark"))?;
                    if !self.mark(mark, events)? {
                        return Ok(());
                    }
                }
                (FrameKind::Packed, Some(_)) => {
                    let unpacked = unpacker.unpack(frame.body);
                    let (kind, body) =
                        unpacked.map_err(|_| BulkError::Protocol("an invalid packed frame"))?;
                    self.take(kind, body)?;
                }
                (kind, Some(_)) => self.take(kind, frame.body)?,
                _ => return Err(BulkError::Protocol("a frame outside of a round")),
            }
            let wait = budget.spend(length);
            if !self.urgent {
                // Whoever sends is held up by what is not read.
                rest(wait, &|| self.gate.is_closed());
            }
        }
        Ok(())
    }

    /// False when there is nothing more to do.
    fn mark(&mut self, mark: Mark, events: &Sender<BulkEvent>) -> Result<bool, BulkError> {
        match (mark, self.current) {
            (Mark::Begin { round, generation }, None) => {
                match self.gate.begin(self.number, round) {
                    Ok(()) => {}
                    Err(Stopped::Closed | Stopped::Broken(_)) => return Ok(false),
                    Err(Stopped::Violation(what)) => return Err(BulkError::Protocol(what)),
                }
                self.current = Some(round);
                if generation > 0 {
                    self.writer = self.gate.shape(generation);
                }
            }
            (Mark::End { round, others }, Some(begun)) if begun == round => {
                (self.current, self.writer) = (None, None);
                let received = std::mem::take(&mut self.received);
                if self.number > 0 {
                    if others != 0 {
                        return Err(BulkError::Protocol("an end for other streams"));
                    }
                    self.gate.end(self.number, received);
                    return Ok(true);
                }
                let (bytes, error, goes_on) = match self.gate.finish(others, received) {
                    Ok(Received { bytes, failure }) => (bytes, failure, true),
                    Err(Stopped::Broken(why)) => (0, Some(why), false),
                    Err(Stopped::Closed) => return Ok(false),
                    Err(Stopped::Violation(what)) => return Err(BulkError::Protocol(what)),
                };
                return Ok(events.send(BulkEvent::Round { round, bytes, error }).is_ok() && goes_on);
            }
            (Mark::Urgent, None) => self.urgent = true,
            _ => return Err(BulkError::Protocol("a mark out of order")),
        }
        Ok(true)
    }

    fn take(&mut self, kind: FrameKind, body: &[u8]) -> Result<(), BulkError> {
        let failed = match kind {
            FrameKind::Pages => {
                let batch = pages::decode(body, &mut self.runs)
                    .map_err(|_| BulkError::Protocol("an invalid page batch"))?;
                match &self.writer {
                    _ if self.received.failure.is_some() => None,
                    Some(writer) => writer.apply(&batch).err().map(|error| format!("apply pages: {error}")),
                    None => Some("pages for a shape that was not built".to_owned()),
                }
            }
            FrameKind::Files => match &mut self.files {
                _ if self.received.failure.is_some() => None,
                Some(files) => files.apply(body).err().map(|error| format!("apply files: {}", chain(&error))),
                None => Some("file changes on a stream that carries none".to_owned()),
            },
            _ => return Err(BulkError::Protocol("a frame that does not belong on a bulk stream")),
        };
        if let Some(failed) = failed {
            self.received.failure.get_or_insert(failed);
        }
        Ok(())
    }
}
