//! The freeze behind the network's lock, and what is done when something stood against the switchover that passes by
//! itself.

use std::time::{Duration, Instant};

use engine::source::{Barrier, BarrierError};

use super::failure::Failure;
use super::ports::NetLock;
use super::round::When;
use super::source::{Session, no_engine, no_link};
use crate::transfer::message::PeerMessage;
use crate::transfer::pace::rest;

/// How long the container runs before the second attempt; each time longer by this.
const REST: Duration = Duration::from_millis(25);

/// How long connections in between may take: a new one waits for so long, and for the pause.
const SETTLE: Duration = Duration::from_millis(100);
const SETTLE_STEP: Duration = Duration::from_millis(1);

/// How long those that the program has not accepted yet may take as long as it accepts one after the other. Who comes
/// meanwhile would have waited behind them in any case.
const DRAIN: Duration = Duration::from_secs(2);
/// From one to the next.
const DRAIN_PAUSE: Duration = Duration::from_millis(300);

/// How long connections in between are waited for.
#[derive(Debug)]
struct Patience {
    began: Instant,
    /// The fewest that have waited to be accepted, and since when.
    fewest: (usize, Instant),
}

impl Patience {
    fn begin(now: Instant) -> Self {
        Self { began: now, fewest: (usize::MAX, now) }
    }

    /// Whether to wait on, with so many that wait to be accepted.
    fn lasts(&mut self, now: Instant, waiting: usize) -> bool {
        if waiting < self.fewest.0 {
            self.fewest = (waiting, now);
        }
        let waited = now.duration_since(self.began);
        let drains = waiting > 0 && now.duration_since(self.fewest.1) < DRAIN_PAUSE;
        waited < SETTLE || (drains && waited < DRAIN)
    }
}

/// The lock of a container's network.
struct Locked<'a>(&'a mut dyn NetLock);

impl Barrier for Locked<'_> {
    fn raise(&mut self) -> Result<(), BarrierError> {
        Ok(self.0.engage()?)
    }

    fn lower(&mut self) -> Result<(), BarrierError> {
        Ok(self.0.lift()?)
    }
}

impl Session {
    /// Stops the container and locks its network; answers when that began.
    pub(super) fn freeze(&mut self) -> Result<Instant, Failure> {
        let (Some(engine), Some(lock)) = (self.engine.as_mut(), self.lock.as_mut()) else {
            return Err(no_engine());
        };
        Ok(engine.freeze_behind(&mut Locked(&mut **lock))?.began)
    }

    /// Holds new connections, and gives those that are being made, accepted or ended time to be so.
    pub(super) fn settle(&mut self) -> Result<(), Failure> {
        let lock = self.lock.as_mut().ok_or_else(no_link)?;
        lock.hold_newcomers()?;
        let mut patience = Patience::begin(Instant::now());
        while let Some(between) = lock.unsettled()? {
            if !patience.lasts(Instant::now(), between.waiting) {
                self.publish.event(format!("connections that are still in between: {}", between.text));
                break;
            }
            rest(SETTLE_STEP, &|| self.cancel.is_cancelled());
            if self.cancel.is_cancelled() {
                break;
            }
        }
        // Before anything is stopped.
        self.check_cancel()?;
        if patience.began.elapsed() > SETTLE { self.catch_up() } else { Ok(()) }
    }

    /// Sends what was written meanwhile, so that it is not left for the pause.
    fn catch_up(&mut self) -> Result<(), Failure> {
        self.mounts()?;
        self.copy_round(When::Running)?;
        let index = self.round - 1;
        self.send(&PeerMessage::RoundEnd { index })?;
        self.await_round(index)
    }

    /// Lets the container run on for a moment, as it was, and has the target take what it was sent as one more round.
    pub(super) fn give_time(&mut self, turn: u32, failure: &Failure) -> Result<(), Failure> {
        self.publish.event(format!(
            "attempt {turn} at the switchover: {}; it runs on and is tried again",
            failure.text()
        ));
        let (Some(engine), Some(lock)) = (self.engine.as_mut(), self.lock.as_mut()) else {
            return Err(no_engine());
        };
        // The order of an undo: repair off, lock off, held frames delivered while it stands, then the thaw.
        engine.leave_repair()?;
        lock.lift()?;
        engine.thaw()?;
        self.publish.speak();
        self.bulk.as_mut().ok_or_else(no_link)?.take_time().map_err(Failure::Bulk)?;
        if let Some(index) = self.unended.take() {
            self.send(&PeerMessage::RoundEnd { index })?;
            self.await_round(index)?;
        }
        rest(REST * turn, &|| self.cancel.is_cancelled());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_accepts_one_after_the_other_is_waited_for() {
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        // Nobody waits to be accepted: another is being made, for 100 ms.
        let mut patience = Patience::begin(start);
        assert!(patience.lasts(at(99), 0) && !patience.lasts(at(100), 0));
        // A program that accepts none.
        let mut patience = Patience::begin(start);
        assert!(patience.lasts(at(0), 5) && patience.lasts(at(299), 5) && !patience.lasts(at(300), 5));
        // One every 200 ms, for 2 s at most.
        let mut patience = Patience::begin(start);
        for turn in 0..10 {
            assert!(patience.lasts(at(turn * 200), 20 - usize::try_from(turn).unwrap()));
        }
        assert!(!patience.lasts(at(2000), 9));
    }
}
