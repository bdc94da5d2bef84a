//! Pages that know whether they are right.
//!
//! Every page holds a version, words that follow from (page, version), and their checksum. A table beside the
//! pages records each page's version once more, so that a page that was lost, mixed from two moments or set back
//! to an older moment is seen. One thread writes a page, any thread may verify it meanwhile (a sequence lock made
//! of atomics: verifying writes nothing).

use std::sync::atomic::{AtomicU64, Ordering, fence};

/// Bytes of one page.
pub(crate) const PAGE_BYTES: usize = 4096;
/// Words of content: a page less its lock, version and checksum.
const WORDS: usize = PAGE_BYTES / 8 - 3;

/// One page. `lock` is odd while the page is being written.
#[repr(align(4096))]
#[derive(Debug)]
struct Page {
    lock: AtomicU64,
    version: AtomicU64,
    checksum: AtomicU64,
    words: [AtomicU64; WORDS],
}

const _: () = assert!(size_of::<Page>() == PAGE_BYTES);

/// What [`Memory::read`] found in a sound page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) version: u64,
    pub(crate) checksum: u64,
}

/// All pages and the table of their versions.
#[derive(Debug)]
pub(crate) struct Memory {
    pages: Vec<Page>,
    versions: Vec<AtomicU64>,
    /// How often any page was written.
    written: AtomicU64,
}

/// A 64-bit finaliser (splitmix64): neighbouring inputs give unrelated outputs.
pub(crate) fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9E37_79B9_7F4A_7C15);
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

fn seed(page: usize, version: u64) -> u64 {
    mix((page as u64).wrapping_mul(0x1_0000_0001) ^ mix(version))
}

fn word(seed: u64, index: usize) -> u64 {
    seed.rotate_left(u32::try_from(index % 64).unwrap_or(0)).wrapping_mul(index as u64 | 1)
}

/// The checksum that page `page` has at `version`; the client computes it too.
pub(crate) fn expected_checksum(page: u64, version: u64) -> u64 {
    let seed = seed(usize::try_from(page).unwrap_or(usize::MAX), version);
    (0..WORDS).fold(0, |sum, i| sum ^ word(seed, i).rotate_left(7).wrapping_add(sum))
}

impl Memory {
    /// Allocates and fills `count` pages with version 1.
    pub(crate) fn new(count: usize) -> Self {
        let pages = (0..count)
            .map(|_| Page {
                lock: AtomicU64::new(0),
                version: AtomicU64::new(0),
                checksum: AtomicU64::new(0),
                words: [const { AtomicU64::new(0) }; WORDS],
            })
            .collect();
        let versions = (0..count).map(|_| AtomicU64::new(0)).collect();
        let memory = Self { pages, versions, written: AtomicU64::new(0) };
        for page in 0..count {
            memory.write(page);
        }
        memory
    }

    /// Where the pages lie.
    pub(crate) fn range(&self) -> std::ops::Range<u64> {
        let range = self.pages.as_ptr_range();
        range.start.addr() as u64..range.end.addr() as u64
    }

    /// How many pages have been written, those written again counted again.
    pub(crate) fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// How many pages there are.
    pub(crate) fn len(&self) -> usize {
        self.pages.len()
    }

    /// Gives a page its next version. Only one thread may write a given page.
    pub(crate) fn write(&self, index: usize) {
        let page = &self.pages[index];
        let version = page.version.load(Ordering::Relaxed) + 1;
        let lock = page.lock.load(Ordering::Relaxed);
        page.lock.store(lock + 1, Ordering::Relaxed);
        fence(Ordering::Release);
        let seed = seed(index, version);
        let mut sum: u64 = 0;
        for (i, place) in page.words.iter().enumerate() {
            let value = word(seed, i);
            sum ^= value.rotate_left(7).wrapping_add(sum);
            place.store(value, Ordering::Relaxed);
        }
        page.version.store(version, Ordering::Relaxed);
        page.checksum.store(sum, Ordering::Relaxed);
        page.lock.store(lock + 2, Ordering::Release);
        self.versions[index].store(version, Ordering::Release);
        self.written.fetch_add(1, Ordering::Relaxed);
    }

    /// Verifies one page. `None` when it is wrong: its words, its checksum, or a version other than the recorded.
    pub(crate) fn read(&self, index: usize) -> Option<Seen> {
        let page = &self.pages[index];
        loop {
            let recorded_before = self.versions[index].load(Ordering::Acquire);
            let before = page.lock.load(Ordering::Acquire);
            if before % 2 == 1 {
                std::thread::yield_now();
                continue;
            }
            let version = page.version.load(Ordering::Relaxed);
            let checksum = page.checksum.load(Ordering::Relaxed);
            let seed = seed(index, version);
            let mut sum: u64 = 0;
            let mut right = true;
            for (i, place) in page.words.iter().enumerate() {
                let value = place.load(Ordering::Relaxed);
                right &= value == word(seed, i);
                sum ^= value.rotate_left(7).wrapping_add(sum);
            }
            fence(Ordering::Acquire);
            if page.lock.load(Ordering::Relaxed) != before {
                continue;
            }
            // The writer records a version after it has written the page: at most one behind, never ahead.
            let recorded_after = self.versions[index].load(Ordering::Acquire);
            let current = recorded_before <= version && version <= recorded_after + 1;
            return (right && sum == checksum && current).then_some(Seen { version, checksum });
        }
    }

    /// Verifies every page; answers how many are wrong.
    pub(crate) fn check_all(&self) -> usize {
        (0..self.len()).filter(|&i| self.read(i).is_none()).count()
    }

    /// Breaks one word of a page, for the tests of the checker.
    #[cfg(test)]
    fn damage(&self, index: usize) {
        let word = &self.pages[index].words[17];
        word.store(word.load(Ordering::Relaxed) ^ 1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fresh_and_rewritten_pages_are_sound() {
        let memory = Memory::new(8);
        assert_eq!((memory.check_all(), memory.written()), (0, 8));
        memory.write(3);
        assert_eq!(memory.written(), 9);
        let seen = memory.read(3).unwrap();
        assert_eq!(seen.version, 2);
        assert_eq!(seen.checksum, expected_checksum(3, 2));
        assert_ne!(seen.checksum, memory.read(4).unwrap().checksum);
    }

    #[test]
    fn a_changed_word_is_seen() {
        let memory = Memory::new(4);
        memory.damage(2);
        assert_eq!(memory.check_all(), 1);
        assert_eq!(memory.read(2), None);
    }

    #[test]
    fn a_page_set_back_to_an_older_moment_is_seen() {
        let memory = Memory::new(2);
        memory.write(1);
        memory.write(1);
        let old = Memory::new(2); // page 1 at version 1
        for (to, from) in memory.pages[1].words.iter().zip(&old.pages[1].words) {
            to.store(from.load(Ordering::Relaxed), Ordering::Relaxed);
        }
        memory.pages[1].version.store(1, Ordering::Relaxed);
        memory.pages[1].checksum.store(old.pages[1].checksum.load(Ordering::Relaxed), Ordering::Relaxed);
        assert_eq!(memory.read(1), None);
    }

    #[test]
    fn readers_beside_a_writer_see_sound_pages() {
        let memory = Memory::new(2);
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                for _ in 0..2000 {
                    memory.write(0);
                }
            });
            while !writer.is_finished() {
                assert!(memory.read(0).is_some());
            }
        });
        assert_eq!(memory.read(0).unwrap().version, 2001);
    }
}
