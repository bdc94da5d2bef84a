//! What has been done by when, and how fast between two moments.

/// Totals by time (milliseconds since 1970), neither of which falls.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Series {
    totals: Vec<(f64, f64)>,
}

impl Series {
    /// What had been done at each moment.
    #[must_use]
    pub fn of_totals(totals: Vec<(f64, f64)>) -> Self {
        Self { totals }
    }

    /// What was done in each of the intervals that follow each other from `begin`.
    #[must_use]
    pub fn of_counts(begin: f64, interval: f64, counts: &[f64]) -> Self {
        let mut totals = vec![(begin, 0.0)];
        let (mut at, mut total) = (begin, 0.0);
        for count in counts {
            at += interval;
            total += count;
            totals.push((at, total));
        }
        Self { totals }
    }

    /// What had been done at a moment; between two that are known it is taken to grow steadily.
    fn at(&self, time: f64) -> Option<f64> {
        let after = self.totals.partition_point(|(at, _)| *at < time);
        let (to, total) = self.totals.get(after)?;
        let (from, before) = self.totals.get(after.checked_sub(1)?)?;
        Some(before + (total - before) * (time - from) / (to - from))
    }

    /// How much a second between two moments; `None` when they are not within the time that is known.
    #[must_use]
    pub fn rate(&self, from: f64, to: f64) -> Option<f64> {
        let done = self.at(to)? - self.at(from)?;
        (to > from).then(|| done / (to - from) * 1e3)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_taken_between_moments() {
        let series = Series::of_counts(1000.0, 100.0, &[10.0, 10.0, 0.0, 20.0]);
        assert_eq!(series.rate(1025.0, 1100.0), Some(100.0));
        assert_eq!(series.rate(1050.0, 1250.0), Some(75.0));
        assert_eq!(series.rate(1200.0, 1300.0), Some(0.0));
        assert_eq!(series.rate(900.0, 1100.0), None);
        assert_eq!(series.rate(1300.0, 1401.0), None);
        assert_eq!(Series::default().rate(1.0, 2.0), None);
        let totals = Series::of_totals(vec![(0.0, 5.0), (10.0, 6.0), (20.0, 6.0)]);
        assert_eq!(totals.rate(5.0, 15.0), Some(50.0));
    }
}
