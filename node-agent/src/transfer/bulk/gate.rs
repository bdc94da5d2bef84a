//! What the receivers of a migration's bulk streams wait for: the shape that pages need, and each other.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::rounds::{Received, Rounds, Step, Violation};

/// How long a receiver waits for the shape that a round needs.
const SHAPE_TIMEOUT: Duration = Duration::from_secs(55);

/// Lets a round's pages through only after its shape has been built and the round before it is complete on all streams.
#[derive(Debug)]
pub struct Gate<A> {
    state: Mutex<State<A>>,
    changed: Condvar,
    frames: AtomicU64,
}

#[derive(Debug)]
struct State<A> {
    generation: u32,
    writer: Option<A>,
    closed: bool,
    rounds: Rounds,
}

/// Why a wait for other streams ended without what was waited for.
#[derive(Debug)]
pub(super) enum Stopped {
    /// The gate was closed.
    Closed,
    /// A stream has gone; why.
    Broken(String),
    /// What this stream said does not fit.
    Violation(Violation),
}

impl<A: Clone> Gate<A> {
    /// A gate that no generation has opened yet, for the first stream alone.
    #[must_use]
    pub fn new() -> Arc<Self> {
        let state = State { generation: 0, writer: None, closed: false, rounds: Rounds::new() };
        Arc::new(Self { state: Mutex::new(state), changed: Condvar::new(), frames: AtomicU64::new(0) })
    }

    fn lock(&self) -> MutexGuard<'_, State<A>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// There will be `streams`, numbered from 0; before any of them is received.
    pub fn expect(&self, streams: u32) {
        self.lock().rounds.expect(streams);
    }

    /// The shape of `generation` stands; its memory is written through `writer`.
    pub fn open(&self, generation: u32, writer: A) {
        let mut state = self.lock();
        state.generation = generation;
        state.writer = Some(writer);
        self.changed.notify_all();
    }

    /// No further shape will come: whoever waits, fails.
    pub fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        state.writer = None;
        self.changed.notify_all();
    }

    pub(super) fn is_closed(&self) -> bool {
        self.lock().closed
    }

    /// Frames that have come through so far, on all streams; it changes while a round is under way.
    pub fn progress(&self) -> u64 {
        self.frames.load(Ordering::Relaxed)
    }

    pub(super) fn count_frame(&self) {
        self.frames.fetch_add(1, Ordering::Relaxed);
    }

    /// Waits for the shape of `generation`; `None` when it does not come.
    pub(super) fn shape(&self, generation: u32) -> Option<A> {
        let (state, _) = self
            .changed
            .wait_timeout_while(self.lock(), SHAPE_TIMEOUT, |state| {
                !state.closed && state.rounds.broken.is_none() && state.generation < generation
            })
            .unwrap_or_else(PoisonError::into_inner);
        (state.generation == generation).then(|| state.writer.clone()).flatten()
    }

    /// Waits until `stream` may apply what it has of `round`.
    pub(super) fn begin(&self, stream: u32, round: u32) -> Result<(), Stopped> {
        self.wait(|rounds| rounds.begin(stream, round))
    }

    /// A stream that is not the first has ended the round that it began.
    pub(super) fn end(&self, stream: u32, received: Received) {
        self.lock().rounds.end(stream, received);
        self.changed.notify_all();
    }

    /// The first stream has ended the round: waits until `others` have, too, and gives what all received.
    pub(super) fn finish(&self, others: u32, mut received: Received) -> Result<Received, Stopped> {
        let all = self.wait(|rounds| rounds.finish(others, &mut received))?;
        self.changed.notify_all();
        Ok(all)
    }

    /// A stream has gone: whoever waits for it, fails.
    pub(super) fn break_up(&self, why: String) {
        self.lock().rounds.broken.get_or_insert(why);
        self.changed.notify_all();
    }

    fn wait<T>(&self, mut ask: impl FnMut(&mut Rounds) -> Result<Step<T>, Violation>) -> Result<T, Stopped> {
        let mut state = self.lock();
        loop {
            if state.closed {
                return Err(Stopped::Closed);
            }
            if let Some(why) = &state.rounds.broken {
                return Err(Stopped::Broken(why.clone()));
            }
            match ask(&mut state.rounds).map_err(Stopped::Violation)? {
                Step::Go(what) => return Ok(what),
                Step::Wait => {}
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}
