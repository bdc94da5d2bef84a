//! Pages that are written in every round: sending them before the last one is work for nothing.
//!
//! The first round sends everything and says nothing. From then on a page that two rounds in succession find written is held
//! back until a round does not find it written, or until nothing runs any more.

use std::ops::Range;

use image::PAGE_SIZE;

use super::sent::{PageSet, join, subtract};

/// What the rounds found in one address space or memory object.
#[derive(Debug, Default)]
pub(crate) struct Hot {
    /// What the last round found written; `None` before the second one.
    last: Option<PageSet>,
    /// Held back by the last round.
    held: PageSet,
    /// What this round has found so far, and what it holds back.
    found: PageSet,
    holding: PageSet,
}

impl Hot {
    /// Pages of a range that were held back by the last round.
    pub(crate) fn held(&self, range: &Range<u64>) -> Vec<Range<u64>> {
        self.held.runs(range)
    }

    /// Of `data`, what this round sends. `written`: what it found, ascending and disjoint; the rest of `data` is what was
    /// held back.
    pub(crate) fn sift(&mut self, data: Vec<Range<u64>>, written: &[Range<u64>]) -> Vec<Range<u64>> {
        let mut now = Vec::with_capacity(data.len());
        for range in data {
            let cold = subtract(&range, written);
            for found in subtract(&range, &cold) {
                self.found.set(&found, true);
                let again = self.last.as_ref().map(|last| last.runs(&found)).unwrap_or_default();
                now.extend(subtract(&found, &again));
                for hot in again {
                    self.holding.set(&hot, true);
                }
            }
            now.extend(cold);
        }
        join(&mut now);
        now
    }

    /// The round is over. `first`: it sent everything. Gives the bytes that are held back.
    pub(crate) fn end_round(&mut self, first: bool) -> u64 {
        let found = std::mem::take(&mut self.found);
        self.last = (!first).then_some(found);
        self.held = std::mem::take(&mut self.holding);
        self.held.pages() * PAGE_SIZE
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn ranges(pages: &BTreeSet<u64>) -> Vec<Range<u64>> {
        let mut ranges = pages.iter().map(|page| page * PAGE_SIZE..(page + 1) * PAGE_SIZE).collect();
        join(&mut ranges);
        ranges
    }

    fn pages(ranges: &[Range<u64>]) -> BTreeSet<u64> {
        ranges.iter().flat_map(|range| range.start / PAGE_SIZE..range.end / PAGE_SIZE).collect()
    }

    proptest! {
        /// A model of the target: every page holds the number of the round that wrote it last, or is held back.
        #[test]
        fn nothing_that_was_written_is_forgotten(
            rounds in prop::collection::vec(prop::collection::btree_set(0u64..60, 0..40), 1..12),
        ) {
            let all = 0..100 * PAGE_SIZE;
            let mut hot = Hot::default();
            let mut unsent: BTreeSet<u64> = BTreeSet::new();
            let mut before: BTreeSet<u64> = BTreeSet::new();
            for (number, written) in rounds.iter().enumerate() {
                unsent.extend(written);
                let mut data = ranges(written);
                data.extend(hot.held(&all));
                join(&mut data);
                let sent = pages(&hot.sift(data, &ranges(written)));
                unsent.retain(|page| !sent.contains(page));
                let held = hot.end_round(number == 0);
                prop_assert_eq!(held, unsent.len() as u64 * PAGE_SIZE);
                prop_assert_eq!(&pages(&hot.held(&all)), &unsent, "what is not sent is held");
                let expected: BTreeSet<u64> =
                    if number < 2 { BTreeSet::new() } else { written.intersection(&before).copied().collect() };
                prop_assert_eq!(&unsent, &expected);
                before.clone_from(written);
            }
        }
    }
}
