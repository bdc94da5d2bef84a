//! Clocks that must not jump back when a container changes hosts: CLOCK_MONOTONIC and CLOCK_BOOTTIME count
//! from each host's own boot. A container whose clocks differ from the target's gets a time namespace.

use std::fs;
use std::io;

use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use crate::runtime::sandbox::ClockOffsets;

/// Clocks that differ by less are taken for the same one.
const SAME: i64 = 1_000_000_000;

/// Added to what the source said, because its word is on the way for a moment: a clock may jump forward a
/// little, as the pause itself makes it do, and never back.
const ON_THE_WAY: i64 = 50_000_000;

/// A container's clocks at one moment, nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Clocks {
    monotonic: i64,
    boottime: i64,
}

impl Clocks {
    /// As process `pid` sees them now.
    pub(super) fn of(pid: i32) -> io::Result<Self> {
        let offsets = offsets(&fs::read_to_string(format!("/proc/{pid}/timens_offsets"))?);
        let own = offsets_of_self();
        let here = Self::here();
        Ok(Self {
            monotonic: here.monotonic - own.monotonic + offsets.monotonic,
            boottime: here.boottime - own.boottime + offsets.boottime,
        })
    }

    /// As this process sees them.
    fn here() -> Self {
        let read = |id| {
            let time = clock_gettime(id);
            time.tv_sec.saturating_mul(1_000_000_000).saturating_add(time.tv_nsec)
        };
        Self { monotonic: read(ClockId::Monotonic), boottime: read(ClockId::Boottime) }
    }

    /// What a time namespace here must add for a container that had these clocks a moment ago; `None` when the
    /// host's own will do.
    pub(super) fn offsets_here(self) -> Option<ClockOffsets> {
        let here = Self::here();
        let offsets = ClockOffsets {
            monotonic: self.monotonic - here.monotonic,
            boottime: self.boottime - here.boottime,
        };
        if offsets.monotonic.abs() < SAME && offsets.boottime.abs() < SAME {
            return None;
        }
        let own = offsets_of_self();
        Some(ClockOffsets {
            monotonic: offsets.monotonic + own.monotonic + ON_THE_WAY,
            boottime: offsets.boottime + own.boottime + ON_THE_WAY,
        })
    }
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
        let here = Clocks::here();
        assert_eq!(here.offsets_here(), None);
        let other = Clocks { monotonic: here.monotonic + 5_000_000_000, boottime: here.boottime };
        let offsets = other.offsets_here().unwrap();
        assert!(offsets.monotonic >= 4_900_000_000 && offsets.monotonic <= 5_100_000_000, "{offsets:?}");
    }
}
