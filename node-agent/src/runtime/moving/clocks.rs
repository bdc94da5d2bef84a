//! Clocks that must not jump back when a container changes hosts: CLOCK_MONOTONIC and CLOCK_BOOTTIME count
//! from each host's own boot. A container whose clocks differ from the target's gets a time namespace.

use std::fs;
use std::io;

use serde::{Deserialize, Serialize};

use crate::runtime::sandbox::ClockOffsets;
use crate::session::clocks::{Distance, Span};

/// What a container's clocks show beyond those of its host, nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Clocks {
    monotonic: i64,
    boottime: i64,
}

impl Clocks {
    /// Of process `pid`, beyond those that this process sees.
    pub(super) fn of(pid: i32) -> io::Result<Self> {
        let offsets = offsets(&fs::read_to_string(format!("/proc/{pid}/timens_offsets"))?);
        let own = offsets_of_self();
        Ok(Self { monotonic: offsets.monotonic - own.monotonic, boottime: offsets.boottime - own.boottime })
    }

    /// The offsets of a time namespace here for a container that comes from a host so far away; `None` when the clocks
    /// of this host will do, because no difference can be told.
    ///
    /// Within what is known of the distance the greatest is taken: a clock may jump forward by as much as the quickest
    /// answer took, and never back. A difference that cannot be told is less than that, too, and so is hidden in the
    /// pause, which has more round trips than one.
    pub(super) fn offsets_here(self, distance: &Distance) -> Option<ClockOffsets> {
        let monotonic = beyond(self.monotonic, distance.monotonic);
        let boottime = beyond(self.boottime, distance.boottime);
        let same = |span: Span| span.least <= 0 && span.most >= 0;
        if same(monotonic) && same(boottime) {
            return None;
        }
        let own = offsets_of_self();
        Some(ClockOffsets {
            monotonic: monotonic.most + own.monotonic,
            boottime: boottime.most + own.boottime,
        })
    }
}

fn beyond(offset: i64, span: Span) -> Span {
    Span { least: span.least.saturating_add(offset), most: span.most.saturating_add(offset) }
}

/// Offsets in the time namespace of this process itself.
fn offsets_of_self() -> ClockOffsets {
    fs::read_to_string("/proc/self/timens_offsets").map(|text| offsets(&text)).unwrap_or_default()
}

/// Understands /proc/PID/timens_offsets, see time_namespaces(7).
fn offsets(text: &str) -> ClockOffsets {
    let of = |clock: &str| {
        text.lines()
            .find_map(|line| {
                let mut fields = line.split_ascii_whitespace();
                (fields.next()? == clock).then_some(())?;
                let seconds: i64 = fields.next()?.parse().ok()?;
                let nanos: i64 = fields.next()?.parse().ok()?;
                Some(seconds.saturating_mul(1_000_000_000).saturating_add(nanos))
            })
            .unwrap_or(0)
    };
    ClockOffsets { monotonic: of("monotonic"), boottime: of("boottime") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_are_read() {
        let seen = offsets("monotonic        -3 500000000\nboottime          7         1\n");
        assert_eq!(seen, ClockOffsets { monotonic: -2_500_000_000, boottime: 7_000_000_001 });
        assert_eq!(offsets(""), ClockOffsets::default());
    }

    #[test]
    fn the_same_host_needs_none_and_another_one_never_goes_back() {
        let none = Clocks { monotonic: 0, boottime: 0 };
        let span = |least, most| Span { least, most };
        let near = Distance { monotonic: span(-300, 200), boottime: span(-1, 0) };
        assert_eq!(none.offsets_here(&near), None);
        let far = Distance { monotonic: span(4_000, 5_000), boottime: span(-1, 0) };
        let own = offsets_of_self();
        let offsets = none.offsets_here(&far).unwrap();
        assert_eq!((offsets.monotonic - own.monotonic, offsets.boottime - own.boottime), (5_000, 0));
        // Back home: what it was given there is taken back.
        let away = Clocks { monotonic: 5_000, boottime: 0 };
        let home = Distance { monotonic: span(-5_100, -4_000), boottime: span(0, 1) };
        assert_eq!(away.offsets_here(&home), None);
    }
}
