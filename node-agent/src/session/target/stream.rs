//! The bulk stream of a session: its thread, and the rounds that come over it.

use std::net::TcpStream;
use std::sync::Arc;
use std::sync::mpsc::RecvTimeoutError;
use std::thread;
use std::time::{Duration, Instant};

use image::frame::FrameReader;

use super::{Session, nothing_built};
use crate::session::failure::Failure;
use crate::transfer::bulk::{self, BulkEvent};
use crate::transfer::link::Link;
use crate::transfer::message::PeerMessage;
use crate::transfer::stream::TlsStream;

/// How long a bulk stream may take to be opened.
const BULK_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a round that was announced may take to be in its place.
const ROUND_TIMEOUT: Duration = Duration::from_secs(55);

/// The thread of a bulk stream, with what ends it.
#[derive(Debug)]
pub(super) struct Reading {
    pub(super) socket: TcpStream,
    pub(super) thread: thread::JoinHandle<()>,
}

impl Session {
    /// Waits for the bulk stream, or for the source to say that none will come.
    fn await_stream(&mut self, link: &mut Link) -> Result<(u32, FrameReader<TlsStream>), Failure> {
        let deadline = Instant::now() + BULK_TIMEOUT;
        loop {
            match self.streams.recv_timeout(Duration::from_millis(20)) {
                Ok(stream) => return Ok(stream),
                Err(RecvTimeoutError::Timeout) if Instant::now() < deadline => {}
                Err(_) => return Err(Failure::Protocol("the source opened no bulk stream".to_owned())),
            }
            if self.early.is_none() && link.wait(Duration::ZERO)? {
                match link.read()? {
                    PeerMessage::Abort { reason } => return Err(Failure::Cancelled(reason)),
                    other => self.early = Some(other),
                }
            }
        }
    }

    pub(super) fn take_stream(&mut self, link: &mut Link) -> Result<(), Failure> {
        let (number, reader) = self.await_stream(link)?;
        let container = self.container.as_mut().ok_or_else(nothing_built)?;
        let files = container.files()?;
        if number != 0 {
            return Err(Failure::Protocol(format!("bulk stream {number} instead of the first one")));
        }
        let mut reader = reader;
        // Silence is watched on the control connection.
        reader.get_mut().set_read_timeout(None).map_err(Failure::Bulk)?;
        let (gate, events) = (Arc::clone(&self.gate), self.events.0.clone());
        let budget = Arc::clone(&self.agent.budget);
        let socket = reader.get_mut().socket().map_err(Failure::Bulk)?;
        let thread = thread::Builder::new()
            .name(format!("bulk-{}", self.begin.container))
            .spawn(move || bulk::receive(reader, &gate, Some(files), &budget, &events))
            .map_err(Failure::Thread)?;
        self.bulk = Some(Reading { socket, thread });
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
                        "round {round} on the bulk stream, {index} was announced"
                    )));
                }
                Ok(BulkEvent::Ended(Some(error))) => return Err(error.into()),
                Ok(BulkEvent::Ended(None)) => {
                    return Err(Failure::Protocol("the bulk stream ended inside a round".to_owned()));
                }
                Err(RecvTimeoutError::Timeout) if Instant::now() < deadline => {}
                Err(_) => {
                    return Err(Failure::Protocol(format!("round {index} did not arrive in full in time")));
                }
            }
        }
    }
}
