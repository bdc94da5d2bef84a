//! The freeze behind the network's lock, and what is done when something stood against the switchover that passes by
//! itself.

use std::time::{Duration, Instant};

use engine::source::{Barrier, BarrierError};

use super::failure::Failure;
use super::ports::NetLock;
use super::source::{Session, no_engine, no_link};
use crate::transfer::message::PeerMessage;
use crate::transfer::pace::rest;

/// How long the container runs before the second attempt; each time longer by this.
const REST: Duration = Duration::from_millis(25);

/// How long connections in between may take: a new one waits for so long, and for the pause.
const SETTLE: Duration = Duration::from_millis(100);
const SETTLE_STEP: Duration = Duration::from_millis(1);

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
        let until = Instant::now() + SETTLE;
        while let Some(unsettled) = lock.unsettled()? {
            if Instant::now() >= until {
                self.publish.event(format!("connections that are still in between: {unsettled}"));
                break;
            }
            rest(SETTLE_STEP, &|| self.cancel.is_cancelled());
        }
        Ok(())
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
