use proptest::prelude::*;

use super::*;
use crate::session::simulate::{self, Path, Pattern, Workload};

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// A container of `size` bytes that dirties `dirty` bytes a second, over a link of `link` bytes a second with `fixed` cost
/// a round. Gives the rounds and the last decision.
fn simulate(limits: &Limits, size: f64, dirty: f64, link: f64, fixed: Duration) -> (usize, Decision) {
    let workload = Workload { size, rate: dirty, working_set: size, pattern: Pattern::Sweep };
    let course = simulate::simulate(limits, &workload, &Path { rate: link, fixed, state: METADATA });
    (course.rounds, course.end)
}

const GIB: f64 = 1_073_741_824.0;

#[test]
fn an_idle_container_is_cut_after_two_rounds() {
    let (rounds, decision) = simulate(&Limits::default(), GIB, 0.0, 2e9, ms(1));
    assert_eq!((rounds, decision.next), (2, Next::Cut));
}

#[test]
fn a_modest_writer_is_cut_near_the_floor() {
    let (rounds, decision) = simulate(&Limits::default(), GIB, 1e8, 2e9, ms(1));
    assert_eq!(decision.next, Next::Cut);
    assert!((2..=6).contains(&rounds), "{rounds} rounds: {}", decision.reason);
    assert!(decision.predicted < ms(10), "{:?}", decision.predicted);
}

#[test]
fn one_that_dirties_faster_than_the_link_is_given_up_or_forced() {
    let limits = Limits { max_rounds: 8, ..Limits::default() };
    let (rounds, decision) = simulate(&limits, GIB, 3e9, 1e9, ms(1));
    assert_eq!((rounds, decision.next), (8, Next::GiveUp));
    let force = Limits { on_timeout: OnTimeout::Force, ..limits };
    let (rounds, decision) = simulate(&force, GIB, 3e9, 1e9, ms(1));
    assert_eq!(decision.next, Next::Cut);
    assert!(rounds <= 8 && decision.reason.contains("forced"), "{}", decision.reason);
}

#[test]
fn the_time_limit_holds() {
    let limits = Limits { timeout: Duration::from_secs(3), max_rounds: u32::MAX, ..Limits::default() };
    let (_, decision) = simulate(&limits, GIB, 2e9, 1e9, ms(1));
    assert_eq!(decision.next, Next::GiveUp);
    assert!(decision.reason.contains("3s"), "{}", decision.reason);
}

#[test]
fn one_round_says_nothing_about_the_dirty_rate() {
    let round = Measured { dirty: 1 << 30, took: ms(500), fixed: ms(1), ..Measured::default() };
    assert_eq!(decide(&Limits::default(), &[round], ms(500)).next, Next::Round);
    assert_eq!(decide(&Limits::default(), &[], ms(0)).next, Next::Round);
    let once = Limits { max_rounds: 1, ..Limits::default() };
    assert_eq!(decide(&once, &[round], ms(500)).next, Next::GiveUp);
}

#[test]
fn no_more_is_foreseen_than_there_is() {
    let all = Measured { dirty: 600 << 20, took: Duration::from_secs(30), ..Measured::default() };
    let short = Measured { dirty: 1 << 20, held: 599 << 20, took: ms(50), ..Measured::default() };
    let rounds = [all, short, Measured { dirty: 590 << 20, ..all }];
    let decision = decide(&Limits::default(), &rounds, Duration::from_secs(61));
    assert!(decision.remaining <= 600 << 20, "{decision:?}");
    assert!(decision.predicted <= Duration::from_secs(31), "{decision:?}");
}

#[test]
fn a_first_copy_of_many_small_files_does_not_say_that_the_link_is_slow() {
    let first =
        Measured { dirty: 2 << 20, entries: 100_000, took: ms(9000), fixed: ms(10), ..Measured::default() };
    let second =
        Measured { dirty: 200 << 10, entries: 10, took: ms(12), fixed: ms(8), ..Measured::default() };
    let decision = decide(&Limits::default(), &[first, second], ms(9100));
    assert!(decision.predicted < ms(20), "{decision:?}");
    // Nor do files hide that it is: two seconds for a MiB.
    let slow = Measured { dirty: 1 << 20, took: ms(2000), fixed: ms(8), ..Measured::default() };
    let decision = decide(&Limits::default(), &[first, slow, slow], ms(13_000));
    assert!(decision.predicted > ms(1500), "{decision:?}");
}

fn measured() -> impl Strategy<Value = Measured> {
    let bytes = (0u64..1 << 40, prop_oneof![Just(0u64), 0u64..1 << 40]);
    let times = (0u64..10_000_000, 0u64..1_000_000, 0u64..60_000);
    let entries = prop_oneof![Just(0u64), 0u64..1 << 24];
    (bytes, entries, times, 0u32..96).prop_map(|((dirty, held), entries, (took, fixed, rest), throttle)| {
        Measured {
            dirty,
            entries,
            held,
            rest: Duration::from_micros(rest),
            throttle,
            took: Duration::from_micros(took),
            fixed: Duration::from_micros(fixed.min(took)),
        }
    })
}

fn limits() -> impl Strategy<Value = Limits> {
    (1u64..1000, 1u64..600, 0u64..1 << 33, 1u32..40, any::<bool>(), 0u32..120).prop_map(
        |(downtime, timeout, bandwidth, max_rounds, force, throttle)| Limits {
            max_downtime: ms(downtime),
            timeout: Duration::from_secs(timeout),
            bandwidth,
            max_rounds,
            on_timeout: if force { OnTimeout::Force } else { OnTimeout::Abort },
            throttle,
            ..Limits::default()
        },
    )
}

proptest! {
    #[test]
    fn the_limit_of_the_pause_is_exceeded_only_when_forced(
        limits in limits(), rounds in prop::collection::vec(measured(), 1..40), elapsed in 0u64..1000
    ) {
        let decision = decide(&limits, &rounds, Duration::from_secs(elapsed));
        if decision.next == Next::Cut && limits.on_timeout == OnTimeout::Abort {
            prop_assert!(decision.predicted <= limits.max_downtime, "{decision:?}");
        }
        if decision.next == Next::GiveUp {
            prop_assert_eq!(limits.on_timeout, OnTimeout::Abort);
        }
        if let Next::Throttle(percent) = decision.next {
            prop_assert!(percent > rounds[rounds.len() - 1].throttle && percent <= limits.throttle.min(MAX_THROTTLE));
        }
        prop_assert!(!decision.reason.is_empty());
        prop_assert!(decision.dirty_rate.is_finite() && decision.transfer_rate.is_finite());
    }

    #[test]
    fn it_always_ends_at_the_limits(limits in limits(), rounds in prop::collection::vec(measured(), 40..50)) {
        let ends = |next| matches!(next, Next::Cut | Next::GiveUp);
        prop_assert!(ends(decide(&limits, &rounds, Duration::ZERO).next));
        prop_assert!(ends(decide(&limits, &rounds[..1], limits.timeout).next));
    }
}
