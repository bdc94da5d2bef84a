//! The sending end: the first stream, which the calling thread writes to, and further ones with threads of their own.

use std::io;
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::thread;
use std::time::Duration;

use engine::PageSink;
use image::frame::FrameKind;
use image::pages::{self, Batch};

use super::super::stream::TlsStream;
use super::lane::{Lane, Stop, Urgent, until};
use super::{MAX_STREAMS, Mark, Terms};
use crate::session::ports::FileSink;

/// Smaller batches stay on the first stream: handing one over costs a copy and the waking of a thread.
const WORTH_HANDING_ON: usize = 64 << 10;
/// What the first stream carries of a round before others are used, bytes: a short round, as the last one is to be, has
/// no other thread to wake and to wait for.
const ALONE: usize = 1 << 20;
/// Buffers of a further stream: one is written while the other waits.
const BUFFERS: usize = 2;

/// The sending end of a migration's bulk streams.
///
/// Each stream beyond the first holds two batches at most, each no larger than a piece
/// ([`MAX_BULK_BODY`](image::frame::MAX_BULK_BODY) bytes; the engine's batches are a mebibyte).
pub struct BulkSender {
    first: Lane,
    further: Vec<Further>,
    terms: Terms,
    stop: Stop,
    urgent: Option<Urgent>,
    head: Vec<u8>,
    /// The round under way, with the generation of its shape.
    round: (u32, u32),
    /// Bytes of pages that the first stream has carried in this round.
    alone: usize,
    /// Which of the further streams is asked next.
    next: usize,
}

impl std::fmt::Debug for BulkSender {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BulkSender")
            .field("first", &self.first)
            .field("further", &self.further)
            .finish_non_exhaustive()
    }
}

impl BulkSender {
    /// The first stream, over a connection whose Hello was answered; `sequence` is its next frame's number. Batches fail
    /// with [`io::ErrorKind::ConnectionAborted`] once `stop` says true.
    pub fn new(
        stream: TlsStream,
        sequence: u64,
        terms: Terms,
        stop: impl Fn() -> bool + Send + Sync + 'static,
    ) -> Self {
        let stop: Stop = Arc::new(stop);
        Self {
            first: Lane::new(stream, sequence, terms.clone(), Arc::clone(&stop)),
            further: Vec::new(),
            terms,
            stop,
            urgent: None,
            head: Vec::new(),
            round: (0, 0),
            alone: 0,
            next: 0,
        }
    }

    /// Adds the next stream, with a thread of its own. Not within a round.
    ///
    /// # Errors
    /// When there are [`MAX_STREAMS`] already, when there is a limit of bandwidth, which one stream keeps better than
    /// several, or when the thread cannot be started; the stream is closed then.
    pub fn add(&mut self, stream: TlsStream, sequence: u64) -> io::Result<()> {
        let number = self.streams();
        if number >= MAX_STREAMS || self.terms.bandwidth > 0 {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "no further stream has a place here"));
        }
        let lane = Lane::new(stream, sequence, self.terms.clone(), Arc::clone(&self.stop));
        self.further.push(Further::start(number, lane)?);
        Ok(())
    }

    /// How many streams there are.
    #[must_use]
    pub fn streams(&self) -> u32 {
        // No more than MAX_STREAMS.
        u32::try_from(self.further.len()).map_or(MAX_STREAMS, |further| 1 + further)
    }

    /// Bytes sent by each stream, headers included, as of the end of the last round.
    #[must_use]
    pub fn sent_by_stream(&self) -> Vec<u64> {
        std::iter::once(self.first.sent()).chain(self.further.iter().map(|further| further.sent)).collect()
    }

    /// Bytes sent by all streams together, headers included, as of the end of the last round.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.first.sent() + self.further.iter().map(|further| further.sent).sum::<u64>()
    }

    /// Begins a round.
    ///
    /// # Errors
    /// When the connection is broken.
    pub fn begin(&mut self, round: u32, generation: u32) -> io::Result<()> {
        (self.round, self.alone) = ((round, generation), 0);
        self.first.mark(Mark::Begin { round, generation })
    }

    /// Ends a round: everything is handed to the kernel on return, by all streams.
    ///
    /// # Errors
    /// When a connection is broken, or a stream could not send what was handed to it.
    pub fn end(&mut self, round: u32) -> io::Result<()> {
        let mut others = 0;
        for further in &self.further {
            if further.in_round {
                others |= 1 << further.number;
                further.tell(Job::End { round })?;
            }
        }
        self.first.end(round, others)?;
        self.further.iter_mut().try_for_each(Further::wait)
    }

    /// The container stands still and waits: no limit holds any more, at either side. Batches fail with
    /// [`io::ErrorKind::TimedOut`] when they are not sent within `limit`. Not within a round.
    ///
    /// # Errors
    /// When the connection is broken.
    pub fn hurry(&mut self, limit: Option<Duration>) -> io::Result<()> {
        let urgent = until(limit);
        // Further streams hear of it when they are used.
        self.urgent = Some(urgent);
        self.first.hurry(urgent)
    }

    /// The container runs on after [`BulkSender::hurry`]: batches may take as long as they need, until it is called again. The
    /// limits stay lifted.
    ///
    /// # Errors
    /// When the connection is broken.
    pub fn take_time(&mut self) -> io::Result<()> {
        self.hurry(None)
    }

    fn piece(&mut self, part: &Batch<'_>) -> io::Result<()> {
        if !self.further.is_empty() && part.data.len() >= WORTH_HANDING_ON && self.alone >= ALONE {
            let (count, next) = (self.further.len(), self.next);
            let (before, after) = self.further.split_at_mut(next % count);
            for further in after.iter_mut().chain(before) {
                if let Some(buffer) = further.buffer()? {
                    self.next = further.index() + 1;
                    return further.pages(buffer, part, self.round, self.urgent);
                }
            }
        }
        self.alone = self.alone.saturating_add(part.data.len());
        let mut head = std::mem::take(&mut self.head);
        let sent = pages::encode_head(part, &mut head)
            .map_err(io::Error::other)
            .and_then(|()| self.first.frame(FrameKind::Pages, &[&head, part.data]));
        self.head = head;
        sent
    }
}

impl PageSink for BulkSender {
    fn batch(&mut self, batch: &Batch<'_>) -> io::Result<()> {
        pages::split(batch, self.first.piece(), &mut |part| self.piece(part))
    }
}

/// Files travel on the first stream alone: their order matters.
impl FileSink for BulkSender {
    fn batch(&mut self, batch: &[u8]) -> io::Result<()> {
        self.first.frame(FrameKind::Files, &[batch])
    }
}

/// What a further stream is to do.
#[derive(Debug)]
enum Job {
    Begin { round: u32, generation: u32, urgent: Option<Urgent> },
    Pages(Vec<u8>),
    End { round: u32 },
}

/// What its thread says.
#[derive(Debug)]
enum Answer {
    /// A buffer has been sent and may be filled again.
    Free(Vec<u8>),
    /// The round is handed to the kernel; so much was sent since the beginning.
    Ended(u64),
    /// It could not; the thread has ended.
    Failed(io::Error),
}

/// A stream beyond the first, and its thread. The queue between them is bounded by the buffers.
#[derive(Debug)]
struct Further {
    number: u32,
    jobs: Sender<Job>,
    answers: Receiver<Answer>,
    free: Vec<Vec<u8>>,
    in_round: bool,
    sent: u64,
    socket: TcpStream,
}

impl Further {
    fn start(number: u32, mut lane: Lane) -> io::Result<Self> {
        let socket = lane.socket()?;
        let (jobs, work) = channel();
        let (say, answers) = channel();
        thread::Builder::new().name(format!("bulk-{number}")).spawn(move || {
            for job in work {
                if let Err(error) = act(&mut lane, job, &say) {
                    let _ = say.send(Answer::Failed(error));
                    return;
                }
            }
        })?;
        let free = vec![Vec::new(); BUFFERS];
        Ok(Self { number, jobs, answers, free, in_round: false, sent: 0, socket })
    }

    fn index(&self) -> usize {
        // The first one has number 1.
        self.number as usize - 1
    }

    fn failed(&self, error: &io::Error) -> io::Error {
        io::Error::new(error.kind(), format!("bulk stream {}: {error}", self.number))
    }

    fn gone(&self) -> io::Error {
        self.failed(&io::Error::new(io::ErrorKind::BrokenPipe, "its thread has ended"))
    }

    fn tell(&self, job: Job) -> io::Result<()> {
        self.jobs.send(job).map_err(|_| self.reason())
    }

    /// Why the thread has ended.
    fn reason(&self) -> io::Error {
        loop {
            match self.answers.recv() {
                Ok(Answer::Failed(error)) => return self.failed(&error),
                Ok(_) => {}
                Err(_) => return self.gone(),
            }
        }
    }

    fn take(&mut self, answer: Answer) -> io::Result<()> {
        match answer {
            Answer::Free(buffer) => self.free.push(buffer),
            Answer::Ended(sent) => (self.sent, self.in_round) = (sent, false),
            Answer::Failed(error) => return Err(self.failed(&error)),
        }
        Ok(())
    }

    /// A buffer, if the stream has room at this moment.
    fn buffer(&mut self) -> io::Result<Option<Vec<u8>>> {
        loop {
            match self.answers.try_recv() {
                Ok(answer) => self.take(answer)?,
                Err(TryRecvError::Empty) => return Ok(self.free.pop()),
                Err(TryRecvError::Disconnected) => return Err(self.gone()),
            }
        }
    }

    /// Hands pages over, in a buffer that [`Further::buffer`] gave.
    fn pages(
        &mut self,
        mut buffer: Vec<u8>,
        part: &Batch<'_>,
        (round, generation): (u32, u32),
        urgent: Option<Urgent>,
    ) -> io::Result<()> {
        pages::encode_head(part, &mut buffer).map_err(io::Error::other)?;
        buffer.extend_from_slice(part.data);
        if !self.in_round {
            self.tell(Job::Begin { round, generation, urgent })?;
            self.in_round = true;
        }
        self.tell(Job::Pages(buffer))
    }

    /// Waits until it has sent what it was given of a round that has been ended.
    fn wait(&mut self) -> io::Result<()> {
        while self.in_round {
            let answer = self.answers.recv().map_err(|_| self.gone())?;
            self.take(answer)?;
        }
        Ok(())
    }
}

impl Drop for Further {
    fn drop(&mut self) {
        // The thread ends with its jobs. Of a round that was given up none is of use: it is not waited for a full socket.
        if self.in_round {
            let _ = self.socket.shutdown(Shutdown::Both);
        }
    }
}

fn act(lane: &mut Lane, job: Job, say: &Sender<Answer>) -> io::Result<()> {
    let answer = match job {
        Job::Begin { round, generation, urgent } => {
            if let Some(urgent) = urgent {
                lane.hurry(urgent)?;
            }
            return lane.mark(Mark::Begin { round, generation });
        }
        Job::Pages(buffer) => {
            lane.frame(FrameKind::Pages, &[&buffer])?;
            Answer::Free(buffer)
        }
        Job::End { round } => {
            lane.end(round, 0)?;
            Answer::Ended(lane.sent())
        }
    };
    // Nobody listens when the migration has ended; then no further job comes either.
    let _ = say.send(answer);
    Ok(())
}
