//! Which pages the target holds: one bit a page, in extents of 2 MiB.

use std::collections::BTreeMap;
use std::ops::Range;

/// Bytes of an extent: what one page table maps.
pub(crate) const EXTENT: u64 = 2 << 20;
const PAGE: u64 = image::PAGE_SIZE;
const WORDS: usize = 8;

/// A set of pages.
#[derive(Clone, Debug, Default)]
pub(crate) struct PageSet {
    extents: BTreeMap<u64, [u64; WORDS]>,
}

impl PageSet {
    /// Adds or removes the pages of a page-aligned range.
    pub(crate) fn set(&mut self, range: &Range<u64>, on: bool) {
        for (extent, word, mask) in words(range) {
            if on {
                self.extents.entry(extent).or_default()[word] |= mask;
            } else if let Some(bits) = self.extents.get_mut(&extent) {
                bits[word] &= !mask;
                if bits.iter().all(|word| *word == 0) {
                    self.extents.remove(&extent);
                }
            }
        }
    }

    /// Adds all pages of another set.
    pub(crate) fn add(&mut self, other: &Self) {
        for (extent, bits) in &other.extents {
            let own = self.extents.entry(*extent).or_default();
            own.iter_mut().zip(bits).for_each(|(own, bits)| *own |= bits);
        }
    }

    /// Whether the page at this address is in the set.
    pub(crate) fn has(&self, address: u64) -> bool {
        let (extent, word, mask) = place(address);
        self.extents.get(&extent).is_some_and(|bits| bits[word] & mask != 0)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.extents.is_empty()
    }

    /// How many pages are in it.
    pub(crate) fn pages(&self) -> u64 {
        self.extents.values().flatten().map(|word| u64::from(word.count_ones())).sum()
    }

    /// The runs of pages of a range that are in the set, ascending.
    pub(crate) fn runs(&self, range: &Range<u64>) -> Vec<Range<u64>> {
        let mut runs: Vec<Range<u64>> = Vec::new();
        if range.is_empty() {
            return runs;
        }
        let first = range.start / EXTENT;
        let last = (range.end - 1) / EXTENT;
        let mut add = |from: u64, to: u64| match runs.last_mut() {
            Some(run) if run.end == from => run.end = to,
            _ => runs.push(from..to),
        };
        for (extent, bits) in self.extents.range(first..=last) {
            for (word, start) in bits.iter().zip((extent * EXTENT..).step_by(64 * 4096)) {
                let end = start + 64 * PAGE;
                if *word == u64::MAX && range.start <= start && end <= range.end {
                    add(start, end);
                    continue;
                }
                for page in (0..64).filter(|page| word >> page & 1 == 1) {
                    let address = start + page * PAGE;
                    if range.contains(&address) {
                        add(address, address + PAGE);
                    }
                }
            }
        }
        runs
    }
}

fn place(address: u64) -> (u64, usize, u64) {
    let page = address % EXTENT / PAGE;
    let word = usize::try_from(page / 64).unwrap_or(0);
    (address / EXTENT, word, 1 << (page % 64))
}

/// The parts of a range by bitmap word.
fn words(range: &Range<u64>) -> impl Iterator<Item = (u64, usize, u64)> + use<> {
    let end = range.end;
    let mut at = range.start;
    std::iter::from_fn(move || {
        if at >= end {
            return None;
        }
        let (extent, word, first) = place(at);
        let next = (at / (64 * PAGE) + 1) * (64 * PAGE);
        let pages = (next.min(end) - at).div_ceil(PAGE);
        at = next;
        let ones = if pages == 64 { u64::MAX } else { (1 << pages) - 1 };
        Some((extent, word, ones << first.trailing_zeros()))
    })
}

/// What of `range` is not in any of the ascending, disjoint `holes`.
pub(crate) fn subtract(range: &Range<u64>, holes: &[Range<u64>]) -> Vec<Range<u64>> {
    let mut out = Vec::new();
    let mut at = range.start;
    for hole in holes {
        if hole.end <= at {
            continue;
        }
        if hole.start >= range.end {
            break;
        }
        if hole.start > at {
            out.push(at..hole.start);
        }
        at = hole.end;
    }
    if at < range.end {
        out.push(at..range.end);
    }
    out
}

/// Sorts ranges and joins those that touch.
pub(crate) fn join(ranges: &mut Vec<Range<u64>>) {
    ranges.retain(|range| !range.is_empty());
    ranges.sort_unstable_by_key(|range| range.start);
    let mut joined: Vec<Range<u64>> = Vec::with_capacity(ranges.len());
    for range in ranges.drain(..) {
        match joined.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => joined.push(range),
        }
    }
    *ranges = joined;
}

/// The part of ascending, disjoint ranges that meets one range.
pub(crate) fn within<'a>(ranges: &'a [Range<u64>], bounds: &Range<u64>) -> &'a [Range<u64>] {
    let first = ranges.partition_point(|range| range.end <= bounds.start);
    let last = ranges.partition_point(|range| range.start < bounds.end);
    &ranges[first..last.max(first)]
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn pages(range: &Range<u64>) -> impl Iterator<Item = u64> + use<> {
        (range.start / PAGE..range.end / PAGE).map(|page| page * PAGE)
    }

    proptest! {
        #[test]
        fn behaves_as_a_set(
            steps in proptest::collection::vec((0_u64..3000, 1_u64..1300, any::<bool>()), 1..40),
            from in 0_u64..3000, len in 0_u64..2000,
        ) {
            let mut set = PageSet::default();
            let mut model = BTreeSet::new();
            for (start, len, on) in steps {
                let range = start * PAGE..(start + len) * PAGE;
                set.set(&range, on);
                for page in pages(&range) {
                    if on { model.insert(page); } else { model.remove(&page); }
                }
            }
            let range = from * PAGE..(from + len) * PAGE;
            let runs = set.runs(&range);
            let flat: Vec<u64> = runs.iter().flat_map(pages).collect();
            let expected: Vec<u64> = model.range(range.clone()).copied().collect();
            prop_assert_eq!(&flat, &expected);
            prop_assert!(runs.windows(2).all(|pair| pair[0].end < pair[1].start));
            prop_assert_eq!(set.has(from * PAGE), model.contains(&(from * PAGE)));
        }

        #[test]
        fn subtract_and_join_partition(
            mut holes in proptest::collection::vec((0_u64..200, 0_u64..20).prop_map(|(s, l)| s..s + l), 0..20),
            start in 0_u64..200, len in 0_u64..100,
        ) {
            let covered: BTreeSet<u64> = holes.iter().cloned().flatten().collect();
            join(&mut holes);
            prop_assert!(holes.windows(2).all(|pair| pair[0].end < pair[1].start));
            prop_assert_eq!(holes.iter().cloned().flatten().collect::<BTreeSet<_>>(), covered.clone());
            let rest: BTreeSet<u64> = subtract(&(start..start + len), &holes).into_iter().flatten().collect();
            let expected: BTreeSet<u64> = (start..start + len).filter(|x| !covered.contains(x)).collect();
            prop_assert_eq!(rest, expected);
        }
    }
}
