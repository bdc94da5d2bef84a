//! How far the clocks of two hosts are apart, found by asking: an answer was given at some moment between the question
//! and its arrival, so the distance is known to within a round trip.

use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

/// The clocks that must not jump back when a container changes hosts; both count from a host's own boot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostClocks {
    /// CLOCK_MONOTONIC, nanoseconds.
    pub monotonic_ns: i64,
    /// CLOCK_BOOTTIME, nanoseconds.
    pub boottime_ns: i64,
}

impl HostClocks {
    /// As this process sees them now.
    #[must_use]
    pub fn now() -> Self {
        let read = |id| {
            let time = clock_gettime(id);
            time.tv_sec.saturating_mul(1_000_000_000).saturating_add(time.tv_nsec)
        };
        Self { monotonic_ns: read(ClockId::Monotonic), boottime_ns: read(ClockId::Boottime) }
    }
}

/// A number of nanoseconds that is known to lie between two others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Span {
    /// No less than this.
    pub least: i64,
    /// No more than this.
    pub most: i64,
}

impl Span {
    fn between(before: i64, there: i64, after: i64) -> Self {
        Self { least: before.saturating_sub(there), most: after.saturating_sub(there) }
    }

    /// What both say, unless they contradict each other: then what was said last.
    fn and(self, later: Self) -> Self {
        let both = Self { least: self.least.max(later.least), most: self.most.min(later.most) };
        if both.least <= both.most { both } else { later }
    }
}

/// What to add to the target's clocks to get the source's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Distance {
    /// Of CLOCK_MONOTONIC.
    pub monotonic: Span,
    /// Of CLOCK_BOOTTIME.
    pub boottime: Span,
}

impl Distance {
    /// What one question tells: this host's clocks before it and after its answer, and the answer.
    #[must_use]
    pub fn between(before: HostClocks, there: HostClocks, after: HostClocks) -> Self {
        Self {
            monotonic: Span::between(before.monotonic_ns, there.monotonic_ns, after.monotonic_ns),
            boottime: Span::between(before.boottime_ns, there.boottime_ns, after.boottime_ns),
        }
    }

    /// What two questions tell together.
    #[must_use]
    pub fn and(self, later: Self) -> Self {
        Self { monotonic: self.monotonic.and(later.monotonic), boottime: self.boottime.and(later.boottime) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(ns: i64) -> HostClocks {
        HostClocks { monotonic_ns: ns, boottime_ns: ns }
    }

    proptest! {
        #[test]
        fn the_true_distance_is_always_within(
            apart in -1_000_000_000_000i64..1_000_000_000_000,
            asks in prop::collection::vec((0i64..1_000_000_000_000, 0i64..500_000_000, 0i64..500_000_000), 1..5),
        ) {
            // The source's clock is the target's plus `apart`.
            let told = asks
                .iter()
                .map(|(start, out, back)| {
                    Distance::between(at(start + apart), at(start + out), at(start + out + back + apart))
                })
                .reduce(Distance::and)
                .unwrap();
            prop_assert!(told.monotonic.least <= apart && apart <= told.monotonic.most);
            let shortest = asks.iter().map(|(_, out, back)| out + back).min().unwrap();
            prop_assert!(told.monotonic.most - told.monotonic.least <= shortest);
        }
    }

    #[test]
    fn a_clock_that_was_set_is_believed_as_it_is_now() {
        let before = Distance::between(at(0), at(0), at(1));
        let later = Distance::between(at(100), at(0), at(101));
        assert_eq!(before.and(later), later);
    }
}
