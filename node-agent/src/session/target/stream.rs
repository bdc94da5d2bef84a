//! The bulk streams of a session: their threads, and the rounds that come over them.

use std::net::TcpStream;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use image::frame::FrameReader;

use super::{Session, nothing_built};
use crate::session::failure::Failure;
use crate::transfer::bulk::{self, BulkEvent, MAX_STREAMS};
use crate::transfer::link::Link;
use crate::transfer::message::PeerMessage;
use crate::transfer::stream::TlsStream;

/// How long the bulk streams may take to be opened, all of them.
const BULK_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a round that was announced may take to be in its place.
const ROUND_TIMEOUT: Duration = Duration::from_secs(55);

/// A bulk stream whose Hello was answered, by its number.
pub(super) type Arrival = (u32, FrameReader<TlsStream>);

/// Where the bulk streams of a session arrive.
#[derive(Clone, Debug)]
pub(crate) struct Arrivals {
    sender: Sender<Arrival>,
    next: u32,
}

impl Arrivals {
    pub(super) fn new() -> (Self, Receiver<Arrival>) {
        let (sender, streams) = channel();
        (Self { sender, next: 0 }, streams)
    }

    /// Decides whether the stream of this number may come now: each comes once, in order. Err is the reason of a
    /// refusal.
    pub(crate) fn admit(&mut self, number: u32) -> Result<Sender<Arrival>, String> {
        if number != self.next || number >= MAX_STREAMS {
            return Err(format!("bulk stream {number} is not the one that is due"));
        }
        self.next += 1;
        Ok(self.sender.clone())
    }
}

/// The thread of a bulk stream, with what ends it.
#[derive(Debug)]
pub(super) struct Reading {
    pub(super) socket: TcpStream,
    pub(super) thread: thread::JoinHandle<()>,
}

impl Session {
    /// Waits for a bulk stream, or for the source to say that none will come.
    fn await_stream(&mut self, link: &mut Link, deadline: Instant) -> Result<Arrival, Failure> {
        loop {
            match self.streams.recv_timeout(Duration::from_millis(20)) {
                Ok(stream) => return Ok(stream),
                Err(RecvTimeoutError::Timeout) if Instant::now() < deadline => {}
                Err(_) => return Err(Failure::Protocol("the source opened too few bulk streams".to_owned())),
            }
            if self.early.is_none() && link.wait(Duration::ZERO)? {
                match link.read()? {
                    PeerMessage::Abort { reason } => return Err(Failure::Cancelled(reason)),
                    other => self.early = Some(other),
                }
            }
        }
    }

    /// Waits for as many bulk streams as were announced, and begins to receive from them. No further one is let in.
    pub(super) fn take_streams(&mut self, link: &mut Link, count: u32) -> Result<(), Failure> {
        let deadline = Instant::now() + BULK_TIMEOUT;
        let mut streams: Vec<Arrival> = Vec::new();
        while (streams.len() as u64) < u64::from(count) {
            let stream = self.await_stream(link, deadline)?;
            if stream.0 >= count {
                return Err(Failure::Protocol(format!("bulk stream {} of {count}", stream.0)));
            }
            streams.push(stream);
        }
        if let Some(handle) = self.agent.table().targets.get_mut(&self.begin.container)
            && let Some(serving) = handle.serving.as_mut().filter(|_| handle.epoch == self.begin.epoch)
        {
            serving.bulk = None;
        }
        let mut files = Some(self.container.as_mut().ok_or_else(nothing_built)?.files()?);
        self.gate.expect(count);
        for (number, mut reader) in streams {
            // Silence is watched on the control connection.
            reader.get_mut().set_read_timeout(None).map_err(Failure::Bulk)?;
            let (gate, events) = (Arc::clone(&self.gate), self.events.0.clone());
            let budget = Arc::clone(&self.agent.budget);
            let socket = reader.get_mut().socket().map_err(Failure::Bulk)?;
            // The others carry none.
            let files = if number == 0 { files.take() } else { None };
            let thread = thread::Builder::new()
                .name(format!("bulk-{number}-{}", self.begin.container))
                .spawn(move || bulk::receive(number, reader, &gate, files, &budget, &events))
                .map_err(Failure::Thread)?;
            self.bulk.push(Reading { socket, thread });
        }
        Ok(())
    }

    /// Waits until everything of round `index` is in its place.
    pub(super) fn await_round(&mut self, index: u32) -> Result<(), Failure> {
        let deadline = Instant::now() + ROUND_TIMEOUT;
        loop {
            if self.cancel.is_cancelled() {
                return Err(Failure::Cancelled(self.cancel.reason()));
            }
            match self.events.1.recv_timeout(Duration::from_millis(200)) {
                Ok(BulkEvent::Round { round, bytes, error }) => {
                    self.received += bytes;
                    let received = self.received;
                    self.publish.update(|status| status.bytes = received);
                    if let Some(error) = error {
                        return Err(Failure::Apply(error));
                    }
                    if round == index {
                        return Ok(());
                    }
                    return Err(Failure::Protocol(format!(
                        "round {round} on the bulk streams, {index} was announced"
                    )));
                }
                Ok(BulkEvent::Ended { error: Some(error), .. }) => return Err(error.into()),
                Ok(BulkEvent::Ended { stream, error: None }) => {
                    return Err(Failure::Protocol(format!("bulk stream {stream} ended inside a round")));
                }
                Err(RecvTimeoutError::Timeout) if Instant::now() < deadline => {}
                Err(_) => {
                    return Err(Failure::Protocol(format!("round {index} did not arrive in full in time")));
                }
            }
        }
    }
}
