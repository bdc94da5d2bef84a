//! Where the time of a pause goes, step by step.
//!
//! A thread that begins an account books all of its time from then on: each [`lap`] gives what has passed since the
//! one before to a name, so that nothing is left out and nothing counted twice. Without an account a lap costs
//! next to nothing. What other threads do meanwhile is in the step of the thread that waits for them.

use std::cell::RefCell;
use std::time::{Duration, Instant};

/// One step: its name, `part.what` (`freeze.stop`, `restore.threads`), and how long it took.
pub type Step = (&'static str, Duration);

struct Account {
    last: Instant,
    steps: Vec<Step>,
}

thread_local! {
    static ACCOUNT: RefCell<Option<Account>> = const { RefCell::new(None) };
}

/// Begins an account on this thread, which ends an earlier one. `since`: when its first step began.
pub fn begin(since: Instant) {
    ACCOUNT
        .with_borrow_mut(|account| *account = Some(Account { last: since, steps: Vec::with_capacity(64) }));
}

/// Gives the time since the last lap (or the beginning) to this step; a name that has been there gets more.
pub fn lap(name: &'static str) {
    ACCOUNT.with_borrow_mut(|account| {
        let Some(account) = account else { return };
        let now = Instant::now();
        let took = now.saturating_duration_since(account.last);
        account.last = now;
        match account.steps.iter_mut().find(|(known, _)| *known == name) {
            Some((_, sum)) => *sum += took,
            None => account.steps.push((name, took)),
        }
    });
}

/// The steps so far, in the order of their first lap. The account goes on with none.
#[must_use]
pub fn take() -> Vec<Step> {
    ACCOUNT
        .with_borrow_mut(|account| account.as_mut().map(|account| std::mem::take(&mut account.steps)))
        .unwrap_or_default()
}

/// Ends the account.
pub fn end() {
    ACCOUNT.with_borrow_mut(|account| *account = None);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_moment_is_booked_once() {
        let began = Instant::now();
        begin(began);
        lap("a");
        std::thread::sleep(Duration::from_millis(3));
        lap("b");
        lap("a");
        let steps = take();
        let whole = began.elapsed();
        assert_eq!(steps.iter().map(|(name, _)| *name).collect::<Vec<_>>(), ["a", "b"]);
        let sum: Duration = steps.iter().map(|(_, took)| *took).sum();
        assert!(steps[1].1 >= Duration::from_millis(3) && sum <= whole, "{steps:?} of {whole:?}");
        end();
        lap("c");
        assert!(take().is_empty());
    }
}
