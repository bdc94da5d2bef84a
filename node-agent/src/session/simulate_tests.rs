use proptest::prelude::*;

use super::*;
use crate::session::orders::OnTimeout;
use crate::session::policy::METADATA;

const GIB: f64 = 1_073_741_824.0;

fn limits() -> impl Strategy<Value = Limits> {
    let bandwidth = prop_oneof![Just(0u64), 1_000_000u64..5_000_000_000];
    (1u64..1000, 1u64..600, bandwidth, 1u32..40, any::<bool>(), prop_oneof![Just(0u32), 1u32..96]).prop_map(
        |(downtime, timeout, bandwidth, max_rounds, force, throttle)| Limits {
            max_downtime: Duration::from_millis(downtime),
            timeout: Duration::from_secs(timeout),
            bandwidth,
            max_rounds,
            on_timeout: if force { OnTimeout::Force } else { OnTimeout::Abort },
            throttle,
            ..Limits::default()
        },
    )
}

fn workload() -> impl Strategy<Value = Workload> {
    (0.001f64..16.0, 0.0f64..5.0, 0.0f64..1.0, any::<bool>()).prop_map(|(size, rate, set, sweep)| Workload {
        size: size * GIB,
        rate: rate * 1e9,
        working_set: set * size * GIB,
        pattern: if sweep { Pattern::Sweep } else { Pattern::Random },
    })
}

fn path() -> impl Strategy<Value = Path> {
    (0.001f64..5.0, 0u64..50).prop_map(|(rate, fixed)| Path {
        rate: rate * 1e9,
        fixed: Duration::from_millis(fixed),
        state: METADATA,
    })
}

proptest! {
    #[test]
    fn it_always_ends_within_its_limits(limits in limits(), workload in workload(), path in path()) {
        let course = simulate(&limits, &workload, &path);
        prop_assert!(course.rounds <= limits.max_rounds as usize, "{course:?}");
        prop_assert!(matches!(course.end.next, Next::Cut | Next::GiveUp));
        prop_assert!(course.throttle <= limits.throttle);
        prop_assert!(course.bytes.is_finite() && course.bytes >= workload.size);
        // A round that is under way is finished.
        let round = path.fixed.as_secs_f64()
            + workload.size / if limits.bandwidth == 0 { path.rate } else { path.rate.min(limits.bandwidth as f64) };
        prop_assert!(course.elapsed.as_secs_f64() <= limits.timeout.as_secs_f64() + round + 1.0, "{course:?}");
    }

    #[test]
    fn the_longest_pause_is_exceeded_only_when_forced(limits in limits(), workload in workload(), path in path()) {
        let course = simulate(&limits, &workload, &path);
        if course.end.next == Next::Cut && limits.on_timeout == OnTimeout::Abort {
            prop_assert!(course.end.predicted <= limits.max_downtime, "{course:?}");
            // And the pause that comes is within the limit. The rate of a link is guessed as long as little was sent; of
            // what waits for the last round a part may be counted twice here.
            if workload.size >= f64::from(4u32 << 20) {
                let twice = Duration::from_secs_f64(course.held / path.rate);
                let limit = limits.max_downtime + twice + Duration::from_millis(1);
                prop_assert!(course.pause <= limit, "{course:?}");
            }
        }
        if course.end.next == Next::GiveUp {
            prop_assert_eq!(limits.on_timeout, OnTimeout::Abort);
        }
    }

    #[test]
    fn more_bandwidth_never_turns_a_move_into_a_failure(
        workload in workload(), rate in 0.05f64..2.0, more in 1.0f64..4.0, throttle in prop_oneof![Just(0u32), 20u32..96]
    ) {
        let limits = Limits { throttle, ..Limits::default() };
        let path = |rate: f64| Path { rate: rate * 1e9, fixed: Duration::from_millis(1), state: METADATA };
        let narrow = simulate(&limits, &workload, &path(rate));
        let wide = simulate(&limits, &workload, &path(rate * more));
        if narrow.end.next == Next::Cut {
            prop_assert_eq!(wide.end.next, Next::Cut, "narrow {:?} wide {:?}", narrow, wide);
        }
    }

    #[test]
    fn a_throttle_never_turns_a_move_into_a_failure(workload in workload(), path in path(), throttle in 20u32..96) {
        let without = simulate(&Limits::default(), &workload, &path);
        let with = simulate(&Limits { throttle, ..Limits::default() }, &workload, &path);
        if without.end.next == Next::Cut {
            prop_assert_eq!(with.end.next, Next::Cut, "without {:?} with {:?}", without, with);
        }
    }

    #[test]
    fn whatever_writes_less_than_the_link_takes_is_moved(
        dirty in 0.0f64..0.6, size in 0.01f64..8.0, link in 0.2f64..3.0, sweep in any::<bool>()
    ) {
        let pattern = if sweep { Pattern::Sweep } else { Pattern::Random };
        let workload =
            Workload { size: size * GIB, rate: dirty * link * 1e9, working_set: size * GIB, pattern };
        let path = Path { rate: link * 1e9, fixed: Duration::from_millis(2), state: METADATA };
        let course = simulate(&Limits::default(), &workload, &path);
        prop_assert_eq!(course.end.next, Next::Cut, "{:?}", course);
        prop_assert!(course.bytes <= workload.size * 3.0, "{:?}", course);
    }
}

#[test]
fn what_is_too_fast_for_the_link_is_moved_when_it_is_throttled() {
    let workload = Workload { size: GIB, rate: 2e9, working_set: GIB / 2.0, pattern: Pattern::Sweep };
    let path = Path { rate: 1e9, fixed: Duration::from_millis(1), state: METADATA };
    let without = simulate(&Limits::default(), &workload, &path);
    assert_eq!(without.end.next, Next::GiveUp, "{without:?}");
    let with = simulate(&Limits { throttle: 80, ..Limits::default() }, &workload, &path);
    assert_eq!((with.end.next, with.throttle), (Next::Cut, 80), "{with:?}");
}

#[test]
fn pages_that_are_always_written_are_sent_only_twice_and_in_the_pause() {
    // 20 MiB that are rewritten a hundred times a second, and nothing else.
    let hot = 20.0 * 1_048_576.0;
    let workload = Workload { size: GIB, rate: 2e9, working_set: hot, pattern: Pattern::Sweep };
    let path = Path { rate: 1.5e9, fixed: Duration::from_millis(1), state: METADATA };
    let course = simulate(&Limits::default(), &workload, &path);
    assert_eq!(course.end.next, Next::Cut, "{course:?}");
    assert!(course.bytes <= GIB + 2.01 * hot, "{course:?}");
}
