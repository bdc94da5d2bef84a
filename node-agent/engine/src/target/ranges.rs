//! Sets of address ranges.

use std::collections::BTreeMap;

/// A set of half-open ranges, kept merged.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ranges {
    ends: BTreeMap<u64, u64>,
}

impl Ranges {
    /// Adds `start..end`.
    pub(crate) fn insert(&mut self, start: u64, end: u64) {
        if start >= end {
            return;
        }
        // The common case: it is there already.
        if self.ends.range(..=start).next_back().is_some_and(|(_, e)| *e >= end) {
            return;
        }
        let (mut from, mut to) = (start, end);
        if let Some((s, e)) = self.ends.range(..start).next_back().map(|(s, e)| (*s, *e))
            && e >= start
        {
            from = s;
        }
        while let Some((s, e)) = self.ends.range(from..=to).next().map(|(s, e)| (*s, *e)) {
            self.ends.remove(&s);
            to = to.max(e);
        }
        self.ends.insert(from, to);
    }

    /// Takes `start..end` out.
    pub(crate) fn remove(&mut self, start: u64, end: u64) {
        if start >= end {
            return;
        }
        let before = self.ends.range(..start).next_back().map(|(s, e)| (*s, *e));
        if let Some((s, e)) = before
            && e > start
        {
            self.ends.insert(s, start);
            if e > end {
                self.ends.insert(end, e);
            }
        }
        while let Some((s, e)) = self.ends.range(start..end).next().map(|(s, e)| (*s, *e)) {
            self.ends.remove(&s);
            if e > end {
                self.ends.insert(end, e);
            }
        }
    }

    /// The parts of `start..end` that are in the set, ascending.
    pub(crate) fn within(&self, start: u64, end: u64) -> Vec<(u64, u64)> {
        let before = self.ends.range(..start).next_back().filter(|(_, e)| **e > start);
        before
            .into_iter()
            .chain(self.ends.range(start..end))
            .map(|(s, e)| ((*s).max(start), (*e).min(end)))
            .collect()
    }

    /// All ranges, ascending.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.ends.iter().map(|(s, e)| (*s, *e))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn it_is_a_set_of_numbers(ops in prop::collection::vec((any::<bool>(), 0..60u64, 0..20u64), 0..40), q in 0..60u64) {
            let (mut set, mut model) = (Ranges::default(), BTreeSet::new());
            for (insert, start, len) in ops {
                let end = start + len;
                if insert {
                    set.insert(start, end);
                    model.extend(start..end);
                } else {
                    set.remove(start, end);
                    model.retain(|n| !(start..end).contains(n));
                }
            }
            let all: Vec<u64> = set.iter().flat_map(|(s, e)| s..e).collect();
            prop_assert_eq!(&all, &model.iter().copied().collect::<Vec<_>>());
            let part: Vec<u64> = set.within(q, q + 13).into_iter().flat_map(|(s, e)| s..e).collect();
            prop_assert_eq!(part, model.range(q..q + 13).copied().collect::<Vec<_>>());
            let ranges: Vec<_> = set.iter().collect();
            prop_assert!(ranges.windows(2).all(|w| w[0].1 < w[1].0), "not merged: {:?}", ranges);
        }
    }
}
