//! From counts of written pages to a rate and a working set. Pure.

use engine::source::Written;

/// How a program writes to its memory.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Writes {
    /// Bytes of whole pages a second, a page as often as it is written to.
    pub(crate) rate: f64,
    /// Bytes of pages that it writes to at all.
    pub(crate) working_set: f64,
}

/// Of pages that are written to in any order at rate r, a part of `1 - exp(-rt/W)` of the working set W is found written
/// after t. The short windows and the long one give both. The first look only begins.
#[expect(clippy::cast_precision_loss, reason = "sizes need no more than 52 bits")]
pub(crate) fn fit(looks: &[Written]) -> Writes {
    let windows: Vec<(f64, f64)> =
        looks.iter().skip(1).map(|look| (look.window.as_secs_f64().max(1e-6), look.bytes as f64)).collect();
    let Some(((long, most), short)) = windows.split_last() else {
        return Writes { rate: 0.0, working_set: 0.0 };
    };
    if *most <= 0.0 {
        return Writes { rate: 0.0, working_set: 0.0 };
    }
    let (time, found) = short.iter().fold((0.0, 0.0), |sum, each| (sum.0 + each.0, sum.1 + each.1));
    if found <= 0.0 || short.is_empty() {
        return Writes { rate: most / long, working_set: *most };
    }
    let (brief, few) = (time / short.len() as f64, found / short.len() as f64);
    // How much faster pages are found in short windows: 1 when none is written to twice.
    let faster = (few / brief) / (most / long);
    if faster <= 1.0 {
        return Writes { rate: most / long, working_set: f64::MAX };
    }
    // `part(x)`: found in a window t of a set that is written to x t times over.
    let part = |x: f64, t: f64| 1.0 - (-x * t).exp();
    let ratio = |x: f64| (part(x, brief) / brief) / (part(x, *long) / long);
    // It grows with x, from 1 to long / brief.
    let (mut low, mut high) = (1e-3 / long, 20.0 / brief);
    for _ in 0..60 {
        let middle = f64::midpoint(low, high);
        if ratio(middle) < faster { low = middle } else { high = middle }
    }
    let working_set = most / part(low, *long);
    Writes { rate: low * working_set, working_set }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "positive")]
    fn looks(rate: f64, set: f64) -> Vec<Written> {
        let windows = [0.0, 0.045, 0.044, 0.047, 0.61];
        windows
            .into_iter()
            .map(|t| Written {
                bytes: (set * (1.0 - (-rate * t / set).exp())) as u64,
                window: Duration::from_secs_f64(t),
                look: Duration::from_millis(3),
            })
            .collect()
    }

    proptest! {
        #[test]
        fn what_was_put_in_comes_out(rate in 1e6..2e9f64, set in 1e6..2e9f64) {
            // Nobody can tell how often a page is written to in a window so short that all are.
            prop_assume!(rate * 0.045 / set < 5.0);
            let found = fit(&looks(rate, set));
            prop_assert!((found.rate / rate - 1.0).abs() < 0.1, "{found:?}");
            // A set that is not gone through in the longest window is not known.
            if rate * 0.61 > set {
                prop_assert!((found.working_set / set - 1.0).abs() < 0.1, "{found:?}");
            }
        }

        #[test]
        fn nothing_it_finds_is_negative_or_no_number(counts in proptest::collection::vec((0u64..1 << 40, 0u64..2_000_000), 0..7)) {
            let looks: Vec<Written> = counts
                .into_iter()
                .map(|(bytes, micros)| Written { bytes, window: Duration::from_micros(micros), look: Duration::ZERO })
                .collect();
            let found = fit(&looks);
            prop_assert!(found.rate >= 0.0 && found.working_set >= 0.0, "{found:?}");
        }
    }

    #[test]
    fn a_set_that_is_always_written_whole_is_that_set() {
        let found = fit(&looks(4e9, 16e6));
        assert!((found.working_set / 16e6 - 1.0).abs() < 0.01, "{found:?}");
        assert!(found.rate > 3.9e8, "{found:?}");
    }
}
