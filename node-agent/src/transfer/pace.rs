//! Bandwidth: when the next bytes may follow. One limit for a migration's rounds, one budget for all migrations of a node.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How much may be sent at once after a rest, as time at the full rate: enough to keep a link busy while threads wait
/// for their turn, and too little to show in any second.
const BURST: Duration = Duration::from_millis(20);

/// A rate that is never exceeded over any longer time: a bucket that fills up with bytes. Pure: time comes from outside.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Bytes a second; 0 = no limit.
    rate: u64,
    /// When all that was sent so far is paid for.
    paid: Option<Instant>,
}

impl Pace {
    /// A limit of `rate` bytes a second; 0 = none.
    #[must_use]
    pub fn new(rate: u64) -> Self {
        Self { rate, paid: None }
    }

    /// Bytes a second; 0 = no limit.
    #[must_use]
    pub fn rate(&self) -> u64 {
        self.rate
    }

    /// Notes that `bytes` are sent at `now`, and says how long nothing more may follow.
    pub fn spend(&mut self, bytes: u64, now: Instant) -> Duration {
        if self.rate == 0 {
            return Duration::ZERO;
        }
        #[expect(clippy::cast_precision_loss, reason = "a limit needs no more than 52 bits of precision")]
        let price = Duration::try_from_secs_f64(bytes as f64 / self.rate as f64).unwrap_or(Duration::MAX);
        // What was not used is lost, but for the burst.
        let earliest = now.checked_sub(BURST).unwrap_or(now);
        let from = self.paid.map_or(earliest, |paid| paid.max(earliest));
        let paid = from.checked_add(price).unwrap_or(from);
        self.paid = Some(paid);
        paid.saturating_duration_since(now)
    }
}

/// What all migrations of a node may send and receive together.
#[derive(Debug)]
pub struct Budget(Mutex<Pace>);

impl Budget {
    /// A budget of `rate` bytes a second; 0 = no limit.
    #[must_use]
    pub fn new(rate: u64) -> Self {
        Self(Mutex::new(Pace::new(rate)))
    }

    /// Bytes a second; 0 = no limit.
    pub fn limit(&self) -> u64 {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).rate()
    }

    /// Notes that `bytes` are sent or were received now, and says how long whoever did it has to wait. Those who do not
    /// wait, because a container stands still, are paid for by the others.
    pub fn spend(&self, bytes: u64) -> Duration {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).spend(bytes, Instant::now())
    }
}

/// Waits, unless `stop` says true meanwhile.
pub fn rest(wait: Duration, stop: &dyn Fn() -> bool) {
    let until = Instant::now().checked_add(wait);
    while let Some(until) = until {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() || stop() {
            return;
        }
        std::thread::sleep(left.min(Duration::from_millis(50)));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Whatever is sent when, as long as the waits are kept: no window takes more than the rate and one burst, and
        /// a sender that never rests gets all of the rate.
        #[test]
        fn no_window_takes_more_than_the_rate(
            rate in 100_000u64..10_000_000_000,
            steps in prop::collection::vec((1u64..2_000_000, 0u64..200_000), 1..200),
            busy in any::<bool>(),
        ) {
            let begin = Instant::now() + Duration::from_secs(3600);
            let mut pace = Pace::new(rate);
            let mut now = begin;
            let mut sent: Vec<(Duration, u64)> = Vec::new();
            for (bytes, idle) in steps {
                sent.push((now - begin, bytes));
                now += pace.spend(bytes, now);
                if !busy {
                    now += Duration::from_micros(idle);
                }
            }
            let rate = rate as f64;
            for first in 0..sent.len() {
                let mut total = 0;
                for (at, bytes) in &sent[first..] {
                    // The last frame of a window is paid for after it.
                    let window = (*at - sent[first].0).as_secs_f64();
                    // Prices are rounded to nanoseconds.
                    let rounding = sent.len() as f64 * (rate * 1e-9 + 1.0);
                    prop_assert!(total as f64 <= rate * (window + BURST.as_secs_f64()) + rounding);
                    total += bytes;
                }
            }
            if busy {
                let total: u64 = sent.iter().map(|(_, bytes)| bytes).sum();
                let took = (now - begin + BURST).as_secs_f64();
                prop_assert!((total as f64 / rate - took).abs() < BURST.as_secs_f64() + 1e-3);
            }
        }
    }

    #[test]
    fn no_limit_never_waits() {
        let mut pace = Pace::new(0);
        assert_eq!(pace.spend(u64::MAX, Instant::now()), Duration::ZERO);
    }

    #[test]
    fn threads_share_a_budget() {
        // Real time: three threads that send for a second.
        let rate = 40_000_000;
        let budget = Arc::new(Budget::new(rate));
        let begin = Instant::now();
        let senders: Vec<_> = (0..3)
            .map(|_| {
                let budget = Arc::clone(&budget);
                std::thread::spawn(move || {
                    let mut sent = 0u64;
                    while begin.elapsed() < Duration::from_secs(1) {
                        sent += 200_000;
                        rest(budget.spend(200_000), &|| false);
                    }
                    sent
                })
            })
            .collect();
        let sent: Vec<u64> = senders.into_iter().map(|sender| sender.join().unwrap()).collect();
        let ratio = sent.iter().sum::<u64>() as f64 / (rate as f64 * begin.elapsed().as_secs_f64());
        assert!((0.95..=1.05).contains(&ratio), "{ratio} of the budget: {sent:?}");
        let (least, most) = (sent.iter().min().unwrap(), sent.iter().max().unwrap());
        assert!(*least * 2 > *most, "unfair: {sent:?}");
    }
}
