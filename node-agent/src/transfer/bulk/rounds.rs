//! Which round the receivers of a migration's bulk streams are in. Pure: waiting is for [`super::Gate`].

use super::MAX_STREAMS;

/// What a stream did that it may not.
pub(super) type Violation = &'static str;

/// Whether one may go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step<T> {
    /// Yes, with this.
    Go(T),
    /// Not before others have come further.
    Wait,
}

/// What all streams received of a round.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Received {
    /// Bytes of frames.
    pub(super) bytes: u64,
    /// The first reason for which something could not be applied.
    pub(super) failure: Option<String>,
}

impl Received {
    fn add(&mut self, other: Self) {
        self.bytes += other.bytes;
        if self.failure.is_none() {
            self.failure = other.failure;
        }
    }
}

/// Where the streams are. Sets of streams are bits: bit n is stream n.
#[derive(Debug)]
pub(super) struct Rounds {
    /// Streams beyond the first.
    others: u32,
    /// The round whose batches may be applied: all before it are complete.
    now: u32,
    /// Others that have begun it and not ended it.
    inside: u32,
    /// Others that have ended it.
    ended: u32,
    received: Received,
    /// Why a stream has gone.
    pub(super) broken: Option<String>,
}

impl Rounds {
    /// Nothing has come; there is the first stream alone.
    pub(super) fn new() -> Self {
        Self { others: 0, now: 0, inside: 0, ended: 0, received: Received::default(), broken: None }
    }

    /// There are `streams`, of which at most [`MAX_STREAMS`] count.
    pub(super) fn expect(&mut self, streams: u32) {
        self.others = (1..streams.min(MAX_STREAMS)).fold(0, |set, stream| set | 1 << stream);
    }

    /// A stream begins a round; to be asked again until it may go on.
    pub(super) fn begin(&mut self, stream: u32, round: u32) -> Result<Step<()>, Violation> {
        let own = 1 << stream;
        if stream == 0 {
            // It ends no round before the round is complete, so that none is missing between.
            return if round == self.now { Ok(Step::Go(())) } else { Err("a round out of order") };
        }
        if self.others & own == 0 {
            return Err("a round on a stream that was not announced");
        }
        match round.checked_sub(self.now) {
            Some(0) if (self.inside | self.ended) & own != 0 => Err("a round that began before"),
            Some(0) => {
                self.inside |= own;
                Ok(Step::Go(()))
            }
            // The source waits for every second round, or sooner.
            Some(1) => Ok(Step::Wait),
            Some(_) => Err("a round of the future"),
            None => Err("a round that is over"),
        }
    }

    /// One of the others has ended the round that it had begun.
    pub(super) fn end(&mut self, stream: u32, received: Received) {
        let own = 1 << stream;
        self.inside &= !own;
        self.ended |= own;
        self.received.add(received);
    }

    /// The first stream has ended the round, in which `others` took part; to be asked again until the round is complete,
    /// with what was received by the first one. Gives what all received; the next round is due then.
    pub(super) fn finish(
        &mut self,
        others: u32,
        received: &mut Received,
    ) -> Result<Step<Received>, Violation> {
        if others & !self.others != 0 {
            return Err("a round that ended on a stream that is not there");
        }
        if (self.inside | self.ended) & !others != 0 {
            return Err("a round that a stream began which is not said to have taken part");
        }
        if self.ended != others {
            return Ok(Step::Wait);
        }
        self.received.add(std::mem::take(received));
        self.now += 1;
        self.ended = 0;
        Ok(Step::Go(std::mem::take(&mut self.received)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GO: Result<Step<()>, Violation> = Ok(Step::Go(()));

    fn of(streams: u32) -> Rounds {
        let mut rounds = Rounds::new();
        rounds.expect(streams);
        rounds
    }

    fn some(bytes: u64, failure: Option<&str>) -> Received {
        Received { bytes, failure: failure.map(str::to_owned) }
    }

    #[test]
    fn a_later_round_waits_for_a_slow_stream() {
        let mut rounds = of(3);
        assert_eq!([0, 1, 2].map(|stream| rounds.begin(stream, 0)), [GO, GO, GO]);
        rounds.end(2, some(2, None));
        assert_eq!(rounds.begin(2, 1), Ok(Step::Wait));
        let mut first = some(1, None);
        assert_eq!(rounds.finish(0b110, &mut first), Ok(Step::Wait), "stream 1 is not through");
        assert_eq!(rounds.begin(2, 1), Ok(Step::Wait));
        rounds.end(1, some(4, None));
        assert_eq!(rounds.begin(2, 1), Ok(Step::Wait), "the first stream decides");
        assert_eq!(rounds.finish(0b110, &mut first), Ok(Step::Go(some(7, None))));
        assert_eq!(rounds.begin(2, 1), GO);
        assert_eq!(rounds.begin(0, 1), GO);
        // And a round of the first stream alone.
        rounds.end(2, some(0, None));
        assert_eq!(rounds.finish(0b100, &mut some(5, None)), Ok(Step::Go(some(5, None))));
        assert_eq!(rounds.begin(0, 2), GO);
        assert_eq!(rounds.finish(0, &mut some(6, None)), Ok(Step::Go(some(6, None))));
    }

    #[test]
    fn the_first_failure_is_that_of_the_round() {
        let mut rounds = of(3);
        for stream in 0..3 {
            assert_eq!(rounds.begin(stream, 0), GO);
        }
        rounds.end(2, some(0, Some("two")));
        rounds.end(1, some(0, Some("one")));
        let done = rounds.finish(0b110, &mut some(0, Some("zero")));
        assert_eq!(done, Ok(Step::Go(some(0, Some("two")))));
        assert_eq!(rounds.begin(0, 1), GO);
        assert_eq!(
            rounds.finish(0, &mut some(0, None)),
            Ok(Step::Go(some(0, None))),
            "the next one has none"
        );
    }

    #[test]
    fn what_does_not_fit_is_a_violation() {
        let mut rounds = of(2);
        assert_eq!(rounds.begin(0, 1), Err("a round out of order"));
        assert_eq!(rounds.begin(2, 0), Err("a round on a stream that was not announced"));
        assert_eq!(rounds.begin(1, 2), Err("a round of the future"));
        assert_eq!(rounds.begin(1, u32::MAX), Err("a round of the future"));
        assert_eq!(rounds.begin(0, 0), GO);
        assert!(rounds.finish(0b100, &mut some(0, None)).is_err(), "stream 2 is not there");
        assert!(rounds.finish(0b1, &mut some(0, None)).is_err(), "the first one is none of the others");
        assert_eq!(rounds.begin(1, 0), GO);
        assert_eq!(rounds.begin(1, 0), Err("a round that began before"));
        assert!(rounds.finish(0, &mut some(0, None)).is_err(), "stream 1 took part");
        rounds.end(1, some(0, None));
        assert_eq!(rounds.begin(1, 0), Err("a round that began before"));
        assert!(rounds.finish(0, &mut some(0, None)).is_err(), "stream 1 took part");
        assert!(matches!(rounds.finish(0b10, &mut some(0, None)), Ok(Step::Go(_))));
        assert_eq!(rounds.begin(1, 0), Err("a round that is over"));
    }
}
