//! Turns ranges into batches: reads many ranges at once, finds zero pages, hands on.

use std::io;
use std::ops::Range;
use std::time::{Duration, Instant};

use image::PAGE_SIZE;
use image::pages::{Batch, Owner, Run, RunKind};

use crate::PageSink;
use crate::source::{RoundStats, SourceError};

/// Most bytes of contents in a batch.
const MAX_BYTES: usize = 1 << 20;
/// Most runs in a batch.
const MAX_RUNS: usize = 1024;
const PAGE: usize = 4096;
/// How often a page that should be there is asked for once more.
const AGAIN: u32 = 10;

/// Where contents come from.
pub(crate) trait Contents {
    /// Reads the ranges one after the other into `buffer`. Returns how many leading bytes it could read.
    fn read(&mut self, ranges: &[Range<u64>], buffer: &mut [u8]) -> io::Result<usize>;
}

/// What became of one page that was to be read.
pub(crate) trait Outcome {
    /// The target holds the contents of this page now.
    fn sent(&mut self, page: u64, contents: &[u8]);
    /// Whether the target holds something at this page that a zero page must replace. When it holds
    /// nothing, a page of zeros need not be told: untouched memory reads as zeros.
    fn must_tell_zero(&self, page: u64) -> bool;
    /// Whether the target is known to hold just these contents: then the page is not sent.
    fn same(&self, _page: u64, _contents: &[u8]) -> bool {
        false
    }
}

/// Buffers of one migration, used for all owners in turn.
#[derive(Debug)]
pub(crate) struct Batcher {
    pending: Vec<Range<u64>>,
    pending_bytes: usize,
    buffer: Vec<u8>,
    runs: Vec<Run>,
    /// Pages that were read since the last flush, and those of them that the target had.
    read: u32,
    same: u32,
    /// Nothing runs any more: a page that cannot be read is an error, not a page that was given back.
    pub(crate) strict: bool,
    /// What was sent in this round.
    pub(crate) stats: RoundStats,
}

impl Batcher {
    /// Allocates the buffers.
    pub(crate) fn new() -> Self {
        Self {
            pending: Vec::with_capacity(MAX_RUNS),
            pending_bytes: 0,
            buffer: vec![0; MAX_BYTES],
            runs: Vec::with_capacity(MAX_RUNS),
            read: 0,
            same: 0,
            strict: false,
            stats: RoundStats::default(),
        }
    }

    /// Queues a page-aligned range to be read and sent.
    pub(crate) fn push(
        &mut self,
        owner: Owner,
        range: &Range<u64>,
        contents: &mut dyn Contents,
        outcome: &mut dyn Outcome,
        sink: &mut dyn PageSink,
    ) -> Result<(), SourceError> {
        let mut at = range.start;
        while at < range.end {
            let room = MAX_BYTES - self.pending_bytes;
            let len = usize::try_from(range.end - at).unwrap_or(room).min(room);
            self.pending.push(at..at + len as u64);
            self.pending_bytes += len;
            at += len as u64;
            if self.pending_bytes == MAX_BYTES || self.pending.len() == MAX_RUNS {
                self.flush(owner, contents, outcome, sink)?;
            }
        }
        Ok(())
    }

    /// Reads and sends what is queued.
    pub(crate) fn flush(
        &mut self,
        owner: Owner,
        contents: &mut dyn Contents,
        outcome: &mut dyn Outcome,
        sink: &mut dyn PageSink,
    ) -> Result<(), SourceError> {
        let start = Instant::now();
        let mut tries = 0;
        (self.read, self.same) = (0, 0);
        while !self.pending.is_empty() {
            let got = contents
                .read(&self.pending, &mut self.buffer[..self.pending_bytes])
                .map_err(|source| SourceError::ReadPages { owner, source })?;
            let whole = got / PAGE * PAGE;
            let rest = self.split_pending(whole);
            self.send_read(owner, whole, outcome, sink)?;
            self.pending = rest;
            self.pending_bytes = self.pending.iter().map(len).sum();
            if whole > 0 {
                tries = 0;
                continue;
            }
            // The page at which the read ended is gone: the mapping changed meanwhile.
            if let Some(first) = self.pending.first_mut() {
                if self.strict && tries < AGAIN {
                    // Rarely a page that is there cannot be read at once.
                    tries += 1;
                    tracing::warn!(?owner, address = first.start, tries, "a page cannot be read yet");
                    std::thread::sleep(Duration::from_micros(200));
                    continue;
                }
                if self.strict {
                    return Err(SourceError::UnreadablePage { owner, address: first.start });
                }
                first.start += PAGE_SIZE;
                self.pending_bytes -= PAGE;
                if first.is_empty() {
                    self.pending.remove(0);
                }
            }
        }
        // What was read and not sent was looked for, and will be in every round.
        let elapsed = start.elapsed();
        let looked = elapsed.checked_div(self.read).unwrap_or_default() * self.same;
        self.stats.scan += looked;
        self.stats.copy += elapsed.saturating_sub(looked);
        Ok(())
    }

    /// Keeps the first `bytes` of what is pending and returns the rest.
    fn split_pending(&mut self, bytes: usize) -> Vec<Range<u64>> {
        let mut left = bytes as u64;
        for index in 0..self.pending.len() {
            let size = self.pending[index].end - self.pending[index].start;
            if left >= size {
                left -= size;
                continue;
            }
            let mut rest = self.pending.split_off(index);
            if left > 0 {
                let cut = rest[0].start + left;
                self.pending.push(rest[0].start..cut);
                rest[0].start = cut;
            }
            return rest;
        }
        Vec::new()
    }

    /// Sends `bytes` of the buffer, which hold exactly what is pending.
    fn send_read(
        &mut self,
        owner: Owner,
        bytes: usize,
        outcome: &mut dyn Outcome,
        sink: &mut dyn PageSink,
    ) -> Result<(), SourceError> {
        if bytes == 0 {
            return Ok(());
        }
        self.runs.clear();
        let mut from = 0;
        let mut kept = 0;
        for range in &self.pending {
            for page in (range.start..range.end).step_by(PAGE) {
                let contents = &self.buffer[from..from + PAGE];
                self.read += 1;
                if outcome.same(page, contents) {
                    // Nothing is to be told.
                    self.same += 1;
                } else if is_zero(contents) {
                    if outcome.must_tell_zero(page) {
                        outcome.sent(page, contents);
                        append(&mut self.runs, page, RunKind::Zero);
                        self.stats.zero_pages += 1;
                    }
                } else {
                    outcome.sent(page, contents);
                    if kept != from {
                        self.buffer.copy_within(from..from + PAGE, kept);
                    }
                    kept += PAGE;
                    append(&mut self.runs, page, RunKind::Data);
                    self.stats.pages += 1;
                }
                from += PAGE;
            }
        }
        self.stats.bytes += kept as u64;
        hand_on(owner, &self.runs, &self.buffer[..kept], sink)
    }

    /// Tells the target to drop ranges.
    pub(crate) fn drop_pages(
        &mut self,
        owner: Owner,
        ranges: &[Range<u64>],
        sink: &mut dyn PageSink,
    ) -> Result<(), SourceError> {
        let start = Instant::now();
        for chunk in ranges.chunks(MAX_RUNS) {
            self.runs.clear();
            for range in chunk {
                let pages = (range.end - range.start) / PAGE_SIZE;
                self.stats.dropped_pages += pages;
                push_pages(&mut self.runs, range.start, pages, RunKind::Drop);
            }
            hand_on(owner, &self.runs, &[], sink)?;
        }
        self.stats.copy += start.elapsed();
        Ok(())
    }

    /// Adds pages that wait for the last round.
    pub(crate) fn held_back(&mut self, bytes: u64) {
        self.stats.held_back += bytes;
    }

    /// Adds time spent in looking for pages.
    pub(crate) fn scanned(&mut self, time: Duration) {
        self.stats.scan += time;
    }
}

fn hand_on(owner: Owner, runs: &[Run], data: &[u8], sink: &mut dyn PageSink) -> Result<(), SourceError> {
    if runs.is_empty() {
        return Ok(());
    }
    sink.batch(&Batch { owner, runs, data }).map_err(SourceError::Sink)
}

/// Adds one page to the runs, to the last one where it fits.
fn append(runs: &mut Vec<Run>, page: u64, kind: RunKind) {
    match runs.last_mut() {
        Some(run) if run.kind == kind && run.addr + u64::from(run.pages) * PAGE_SIZE == page => {
            run.pages += 1;
        }
        _ => runs.push(Run { addr: page, pages: 1, kind }),
    }
}

fn push_pages(runs: &mut Vec<Run>, mut addr: u64, mut pages: u64, kind: RunKind) {
    while pages > 0 {
        let now = u32::try_from(pages).unwrap_or(u32::MAX);
        runs.push(Run { addr, pages: now, kind });
        addr += u64::from(now) * PAGE_SIZE;
        pages -= u64::from(now);
    }
}

fn len(range: &Range<u64>) -> usize {
    usize::try_from(range.end - range.start).unwrap_or(usize::MAX)
}

fn is_zero(page: &[u8]) -> bool {
    let (chunks, rest) = page.as_chunks::<64>();
    rest.iter().all(|byte| *byte == 0) && chunks.iter().all(|chunk| *chunk == [0; 64])
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::source::memory::sent::PageSet;

    /// Memory of 4096 pages in which page n holds n & 0xff, except where it is zero or cannot be read.
    struct Model {
        unreadable: Vec<u64>,
    }

    fn value(page: u64) -> u8 {
        u8::try_from(page % 5).unwrap()
    }

    impl Contents for Model {
        fn read(&mut self, ranges: &[Range<u64>], buffer: &mut [u8]) -> io::Result<usize> {
            let mut at = 0;
            for range in ranges {
                for page in (range.start / PAGE_SIZE)..(range.end / PAGE_SIZE) {
                    if self.unreadable.contains(&page) {
                        return Ok(at);
                    }
                    buffer[at..at + PAGE].fill(value(page));
                    at += PAGE;
                }
            }
            Ok(at)
        }
    }

    impl Outcome for PageSet {
        fn sent(&mut self, page: u64, _contents: &[u8]) {
            self.set(&(page..page + PAGE_SIZE), true);
        }
        fn must_tell_zero(&self, _page: u64) -> bool {
            true
        }
    }

    #[derive(Default)]
    struct Copy(BTreeMap<u64, Option<u8>>);

    impl PageSink for Copy {
        fn batch(&mut self, batch: &Batch<'_>) -> io::Result<()> {
            assert!(batch.data.len() <= MAX_BYTES);
            let mut data = batch.data.chunks_exact(PAGE);
            for run in batch.runs {
                for page in 0..u64::from(run.pages) {
                    let value = match run.kind {
                        RunKind::Data => Some(data.next().unwrap()[17]),
                        RunKind::Zero => Some(0),
                        RunKind::Drop => None,
                    };
                    self.0.insert(run.addr / PAGE_SIZE + page, value);
                }
            }
            assert!(data.next().is_none());
            Ok(())
        }
    }

    proptest! {
        #[test]
        fn every_readable_page_arrives(
            mut ranges in proptest::collection::vec((0_u64..4000, 1_u64..700).prop_map(|(s, l)| s..s + l), 1..40),
            unreadable in proptest::collection::vec(0_u64..4700, 0..6),
        ) {
            super::super::sent::join(&mut ranges);
            let mut model = Model { unreadable: unreadable.clone() };
            let mut sent = PageSet::default();
            let mut sink = Copy::default();
            let mut batcher = Batcher::new();
            let owner = Owner::Process(1);
            for range in &ranges {
                let bytes = range.start * PAGE_SIZE..range.end * PAGE_SIZE;
                batcher.push(owner, &bytes, &mut model, &mut sent, &mut sink).unwrap();
            }
            batcher.flush(owner, &mut model, &mut sent, &mut sink).unwrap();
            let expected: BTreeMap<u64, Option<u8>> = ranges.iter().cloned().flatten()
                .filter(|page| !unreadable.contains(page))
                .map(|page| (page, Some(value(page)))).collect();
            for page in expected.keys() {
                prop_assert!(sent.has(page * PAGE_SIZE));
            }
            prop_assert_eq!(sink.0, expected);
        }
    }
}
