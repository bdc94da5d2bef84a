//! Digests of pages that the target holds, where a tracker cannot tell single pages apart (a huge page has one bit for
//! all of its 512), and of what processes begin with at the target.

use std::collections::BTreeMap;
use std::hash::{BuildHasher as _, RandomState};
use std::ops::Range;

use image::PAGE_SIZE;
use twox_hash::XxHash3_64;

use super::sent::EXTENT;

const PAGES: usize = 512;

/// By extent; 0 = not known. An extent takes 4 KiB.
#[derive(Debug)]
pub(crate) struct Digests {
    /// Nobody can know it who would make two pages alike.
    seed: u64,
    extents: BTreeMap<u64, Box<[u64; PAGES]>>,
}

fn place(page: u64) -> (u64, usize) {
    (page / EXTENT, usize::try_from(page % EXTENT / PAGE_SIZE).unwrap_or(0))
}

impl Default for Digests {
    fn default() -> Self {
        Self { seed: RandomState::new().hash_one(0), extents: BTreeMap::new() }
    }
}

impl Digests {
    fn digest(&self, contents: &[u8]) -> u64 {
        XxHash3_64::oneshot_with_seed(self.seed, contents).max(1)
    }

    /// Whether the page had these contents when it was sent last, as far as that is known.
    pub(crate) fn same(&self, page: u64, contents: &[u8]) -> bool {
        let (extent, at) = place(page);
        self.extents.get(&extent).is_some_and(|known| known[at] != 0 && known[at] == self.digest(contents))
    }

    /// A page of a range that was sent with other contents than zeros.
    pub(crate) fn witness(&self, range: &Range<u64>) -> Option<u64> {
        let zero = self.digest(&[0; 4096]);
        let known = |page: &u64| {
            let (extent, at) = place(*page);
            self.extents.get(&extent).is_some_and(|known| known[at] != 0 && known[at] != zero)
        };
        (range.start..range.end).step_by(4096).find(known)
    }

    /// The page is sent with these contents.
    pub(crate) fn set(&mut self, page: u64, contents: &[u8]) {
        let (extent, at) = place(page);
        let digest = self.digest(contents);
        self.extents.entry(extent).or_insert_with(|| Box::new([0; PAGES]))[at] = digest;
    }

    /// What the target holds of this page is not known any more.
    pub(crate) fn forget(&mut self, page: u64) {
        let (extent, at) = place(page);
        if let Some(known) = self.extents.get_mut(&extent) {
            known[at] = 0;
        }
    }

    /// The same for all pages of these ranges.
    pub(crate) fn forget_all(&mut self, ranges: &[Range<u64>]) {
        for range in ranges {
            let all = range.start / EXTENT..range.end.div_ceil(EXTENT);
            let known: Vec<u64> = self.extents.range(all).map(|(extent, _)| *extent).collect();
            for extent in known {
                let (start, end) = (extent * EXTENT, (extent + 1) * EXTENT);
                if range.start <= start && end <= range.end {
                    self.extents.remove(&extent);
                    continue;
                }
                for page in (start.max(range.start)..end.min(range.end)).step_by(4096) {
                    self.forget(page);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_known_is_the_same() {
        let (page, other) = (7 * EXTENT + 3 * PAGE_SIZE, 7 * EXTENT + 4 * PAGE_SIZE);
        let mut digests = Digests::default();
        assert!(!digests.same(page, b"one"));
        digests.set(page, b"one");
        digests.set(other, b"one");
        assert!(digests.same(page, b"one") && !digests.same(page, b"two"));
        digests.forget(page);
        assert!(!digests.same(page, b"one") && digests.same(other, b"one"));
        digests.set(page, b"one");
        digests.forget_all(&[0..page, other..other + PAGE_SIZE]);
        assert!(digests.same(page, b"one") && !digests.same(other, b"one"));
        digests.forget_all(&[7 * EXTENT..8 * EXTENT, 8 * EXTENT..9 * EXTENT]);
        assert!(!digests.same(page, b"one"));
    }

    #[test]
    fn a_witness_is_not_zero() {
        let mut digests = Digests::default();
        let range = 5 * EXTENT..6 * EXTENT;
        digests.set(range.start, &[0; 4096]);
        assert_eq!(digests.witness(&range), None);
        digests.set(range.start + 9 * PAGE_SIZE, &[1; 4096]);
        assert_eq!(digests.witness(&range), Some(range.start + 9 * PAGE_SIZE));
    }
}
