//! Messages over a TLS connection.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use image::codec::{self, CodecError};
use image::frame::{FrameError, FrameKind, FrameReader, FrameWriter, Limits, MAX_MESSAGE_BODY};
use proto::identity::Identity;

use super::message::PeerMessage;
use super::stream::TlsStream;

/// How often a wait looks up to see whether it is to be interrupted.
const SLICE: Duration = Duration::from_millis(20);

/// Why a message did not come or go.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The connection broke, or what came is no frame.
    #[error("connection to {0} failed")]
    Frame(String, #[source] FrameError),
    /// What came is no message.
    #[error("{0} sent an invalid message")]
    Message(String, #[source] CodecError),
    /// The peer closed the connection.
    #[error("{0} closed the connection")]
    Closed(String),
    /// Nothing came in time.
    #[error("no answer from {peer} within {limit:?}")]
    Timeout {
        /// Who should have answered.
        peer: String,
        /// How long was waited.
        limit: Duration,
    },
    /// The wait was interrupted by the caller's own condition.
    #[error("interrupted")]
    Interrupted,
}

impl LinkError {
    /// What came was wrong, as against a connection that ended: worth a warning.
    #[must_use]
    pub fn is_violation(&self) -> bool {
        match self {
            Self::Message(..) => true,
            Self::Frame(_, error) => !matches!(error, FrameError::Io(_)),
            _ => false,
        }
    }
}

/// A control connection.
#[derive(Debug)]
pub struct Link {
    // One stream under two views: the reader owns it, the writer's state is its own.
    reader: FrameReader<TlsStream>,
    writer: FrameWriter<Vec<u8>>,
    peer: String,
    version: u32,
}

impl Link {
    /// Over a connection that has just been made. Until [`Link::trust`], only small messages are read.
    #[must_use]
    pub fn new(stream: TlsStream) -> Self {
        let peer = stream.peer().to_string();
        let limits = Limits { state: 0 };
        let (reader, writer) = (FrameReader::with_limits(stream, limits), FrameWriter::new(Vec::new()));
        Self { reader, writer, peer, version: 0 }
    }

    /// Both ends speak this version of the protocol.
    pub fn agree(&mut self, version: u32) {
        self.version = version;
    }

    /// The version that was agreed on; 0 before.
    #[must_use]
    pub const fn version(&self) -> u32 {
        self.version
    }

    /// Accepts large messages from now on: the peer has been recognised.
    pub fn trust(&mut self) {
        self.reader.set_limits(Limits::default());
    }

    /// Who is at the other end.
    pub fn peer(&mut self) -> &Identity {
        self.reader.get_mut().peer()
    }

    /// The stream itself, for a bulk connection, after its Hello was answered.
    ///
    /// Frame numbers go on: the receiver of the stream expects number 1 first.
    #[must_use]
    pub fn into_parts(self) -> (FrameReader<TlsStream>, u64) {
        let sequence = self.writer.sequence();
        (self.reader, sequence)
    }

    /// Sends one message at once.
    ///
    /// # Errors
    /// When the connection is broken, or the message larger than any may be; close the link then.
    pub fn send(&mut self, message: &PeerMessage) -> Result<(), LinkError> {
        let body = codec::encode(message).map_err(|error| LinkError::Message(self.peer.clone(), error))?;
        let kind = if body.len() <= MAX_MESSAGE_BODY { FrameKind::Message } else { FrameKind::State };
        let written = self.write(kind, &body);
        written.map_err(|error| LinkError::Frame(self.peer.clone(), error))
    }

    fn write(&mut self, kind: FrameKind, body: &[u8]) -> Result<(), FrameError> {
        self.writer.get_mut().clear();
        self.writer.write(kind, &[body])?;
        let stream = self.reader.get_mut();
        io::Write::write_all(stream, self.writer.get_mut())?;
        io::Write::flush(stream)?;
        Ok(())
    }

    /// Ends the connection so that the peer can read what was sent last. Whoever closes a socket with unread data
    /// resets the connection (RFC 2525, 2.17), and a reset throws away what the peer has not read yet: so what it
    /// still sends is read and thrown away, until it closes or `limit` has passed.
    pub fn close(mut self, limit: Duration) {
        self.reader.get_mut().close(limit);
    }

    /// Waits for a message. `interrupt` is asked every 20 ms.
    ///
    /// # Errors
    /// [`LinkError::Timeout`] and [`LinkError::Interrupted`] leave the link usable; close it on any other.
    pub fn recv(
        &mut self,
        limit: Duration,
        interrupt: &mut dyn FnMut() -> bool,
    ) -> Result<PeerMessage, LinkError> {
        let deadline = Instant::now().checked_add(limit);
        loop {
            if interrupt() {
                return Err(LinkError::Interrupted);
            }
            let left = deadline.map_or(SLICE, |deadline| deadline.saturating_duration_since(Instant::now()));
            if self.wait(left.min(SLICE))? {
                return self.read();
            }
            if left.is_zero() {
                return Err(LinkError::Timeout { peer: self.peer.clone(), limit });
            }
        }
    }

    /// Waits up to `limit` until something can be read.
    ///
    /// # Errors
    /// When the wait itself fails.
    pub fn wait(&mut self, limit: Duration) -> Result<bool, LinkError> {
        let waited = self.reader.get_mut().wait(limit);
        waited.map_err(|error| LinkError::Frame(self.peer.clone(), error.into()))
    }

    /// As [`Link::wait`]; false also when `other` can be read.
    ///
    /// # Errors
    /// When the wait itself fails.
    pub fn wait_beside(&mut self, limit: Duration, other: Option<BorrowedFd<'_>>) -> Result<bool, LinkError> {
        let waited = self.reader.get_mut().wait_beside(limit, other);
        waited.map_err(|error| LinkError::Frame(self.peer.clone(), error.into()))
    }

    /// Reads the message that has begun to arrive.
    ///
    /// # Errors
    /// Close the link on any.
    pub fn read(&mut self) -> Result<PeerMessage, LinkError> {
        let frame = match self.reader.read() {
            Ok(Some(frame)) => frame,
            Ok(None) => return Err(LinkError::Closed(self.peer.clone())),
            Err(FrameError::Io(error)) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(LinkError::Closed(self.peer.clone()));
            }
            Err(error) => return Err(LinkError::Frame(self.peer.clone(), error)),
        };
        let message = match frame.kind {
            FrameKind::Message | FrameKind::State => codec::decode(frame.body),
            other => Err(CodecError::Unexpected { expected: FrameKind::Message, found: Some(other) }),
        };
        message.map_err(|error| LinkError::Message(self.peer.clone(), error))
    }
}
