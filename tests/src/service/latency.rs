//! Times, summed up.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Some times, milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    /// How many.
    pub count: usize,
    /// Half of them took no longer.
    pub p50_ms: f64,
    /// 99 of 100.
    pub p99_ms: f64,
    /// The longest.
    pub max_ms: f64,
}

impl Latency {
    /// That of some times; zeros when there are none.
    #[must_use]
    pub fn of(times: impl IntoIterator<Item = Duration>) -> Self {
        let mut times: Vec<Duration> = times.into_iter().collect();
        times.sort_unstable();
        // The smallest one that so many per cent do not exceed.
        let at = |percent: usize| {
            let rank = (times.len() * percent).div_ceil(100).max(1);
            times.get(rank - 1).map_or(0.0, |time| time.as_secs_f64() * 1e3)
        };
        Self { count: times.len(), p50_ms: at(50), p99_ms: at(99), max_ms: at(100) }
    }

    /// A row of a table.
    #[must_use]
    pub fn row(&self, name: &str) -> String {
        format!(
            "{name:<24} {:>8} {:>9.2} {:>9.2} {:>9.2}\n",
            self.count, self.p50_ms, self.p99_ms, self.max_ms
        )
    }

    /// The head of such a table.
    #[must_use]
    pub fn head(what: &str) -> String {
        format!("{what:<24} {:>8} {:>9} {:>9} {:>9}\n", "count", "p50 ms", "p99 ms", "max ms")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_are_nearest_ranks() {
        let of = |count: u64| Latency::of((1..=count).rev().map(Duration::from_millis));
        let Latency { count, p50_ms, p99_ms, max_ms } = of(200);
        assert_eq!((count, p50_ms, p99_ms, max_ms), (200, 100.0, 198.0, 200.0));
        assert_eq!((of(1).p50_ms, of(1).p99_ms), (1.0, 1.0));
        assert_eq!(of(0), Latency::default());
    }
}
