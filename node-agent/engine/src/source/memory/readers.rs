//! A round over many processes: several are read at once, and what they hold goes out batch by batch.

use std::io;
use std::sync::{Mutex, PoisonError};

use image::pages::Batch;

use super::batch::Batcher;
use super::process::{ObjectRanges, TrackedMemory};
use crate::PageSink;
use crate::source::mm::Mapping;
use crate::source::{RoundStats, SourceError};

/// Most that read at once: each has a buffer of a mebibyte.
const MOST: usize = 8;
/// Fewer processes than this are not worth a thread.
const FEW: usize = 4;

/// The buffers of a migration's readers. The first of them is for everything that is read alone.
#[derive(Debug)]
pub(crate) struct Readers {
    batchers: Vec<Batcher>,
}

/// A process, and what it maps.
pub(crate) type Work<'a> = (&'a mut TrackedMemory, &'a [Mapping]);

/// The stream, for all readers.
struct Shared<'a, 'b>(&'a Mutex<&'b mut dyn PageSink>);

impl PageSink for Shared<'_, '_> {
    fn batch(&mut self, batch: &Batch<'_>) -> io::Result<()> {
        lock(self.0).batch(batch)
    }
}

/// What readers take from, and where they leave what they found.
struct Table<'a> {
    work: std::vec::IntoIter<Work<'a>>,
    objects: ObjectRanges,
    ended: bool,
    failed: Option<SourceError>,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Readers {
    /// One buffer; others are made when there is work for them.
    pub(crate) fn new() -> Self {
        Self { batchers: vec![Batcher::new()] }
    }

    /// The buffer for what is read alone.
    pub(crate) fn own(&mut self) -> &mut Batcher {
        &mut self.batchers[0]
    }

    /// Begins the account of a round. `strict`: see [`Batcher::strict`].
    pub(crate) fn begin(&mut self, strict: bool) {
        for batcher in &mut self.batchers {
            batcher.stats = RoundStats::default();
            batcher.strict = strict;
        }
    }

    /// What the round sent so far; times are those of all readers together.
    pub(crate) fn stats(&self) -> RoundStats {
        self.batchers.iter().fold(RoundStats::default(), |sum, batcher| sum.and(&batcher.stats))
    }

    /// Reads and sends what was written in these processes. True when one of them was found to have ended, or to run
    /// another program, which only counts as such with `again`.
    ///
    /// # Errors
    /// The first that a reader met; the others have stopped then.
    pub(crate) fn round(
        &mut self,
        work: Vec<Work<'_>>,
        again: bool,
        objects: &mut ObjectRanges,
        sink: &mut dyn PageSink,
    ) -> Result<bool, SourceError> {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let count = if work.len() < FEW { 1 } else { processors.min(MOST).min(work.len()) };
        let strict = self.own().strict;
        while self.batchers.len() < count {
            let mut batcher = Batcher::new();
            batcher.strict = strict;
            self.batchers.push(batcher);
        }
        let table =
            Table { work: work.into_iter(), objects: std::mem::take(objects), ended: false, failed: None };
        let (table, sink) = (Mutex::new(table), Mutex::new(sink));
        let read = |batcher: &mut Batcher| read(&table, again, batcher, &mut Shared(&sink));
        let (own, others) = self.batchers[..count].split_at_mut(1);
        std::thread::scope(|scope| {
            for batcher in others {
                let reader = std::thread::Builder::new().name("reader".to_owned());
                // Without another thread the others read everything.
                if let Err(error) = reader.spawn_scoped(scope, || read(batcher)) {
                    tracing::warn!(%error, "memory is read by fewer threads");
                    break;
                }
            }
            own.iter_mut().for_each(read);
        });
        let table = table.into_inner().unwrap_or_else(PoisonError::into_inner);
        *objects = table.objects;
        table.failed.map_or(Ok(table.ended), Err)
    }
}

/// One process after the other, until none is left or one has failed.
fn read(table: &Mutex<Table<'_>>, again: bool, batcher: &mut Batcher, sink: &mut dyn PageSink) {
    let next = || {
        let mut table = lock(table);
        if table.failed.is_some() { None } else { table.work.next() }
    };
    while let Some((memory, mappings)) = next() {
        let mut objects = ObjectRanges::new();
        let result = memory.round(mappings, again, &mut objects, batcher, sink);
        let mut table = lock(table);
        for (id, mut ranges) in objects {
            table.objects.entry(id).or_default().append(&mut ranges);
        }
        match result {
            Ok(()) => {}
            // The next shape tells.
            Err(_) if again && !memory.is_alive(0) => table.ended = true,
            Err(error) => {
                table.failed.get_or_insert(error);
            }
        }
    }
}
