//! How fast a tree writes to its memory, without reading any of it.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use image::PAGE_SIZE;

use super::SourceError;
use super::capture::files;
use super::look::Look;
use super::memory::process::{ObjectRanges, TrackedMemory};
use super::memory::sent::join;
use super::session::{Source, State};

/// What a tree wrote between two looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// Bytes of pages that were written to, each counted once; at the first look those that hold anything, and what
    /// processes share as copy-on-write once.
    pub bytes: u64,
    /// From the end of the look before to the end of this one; zero at the first look.
    pub window: Duration,
    /// How long this look took.
    pub look: Duration,
}

impl Source {
    /// Looks which pages were written to since the last call, and watches on. The tree is not stopped and nothing is read.
    /// What this finds no later [`Source::round`] sends: a source that was asked this is good for nothing else.
    ///
    /// # Errors
    /// [`SourceError::WouldStop`] on a kernel where a look stops the tree; see [`SourceError`] for the others. The tree runs
    /// on.
    pub fn written(&mut self) -> Result<Written, SourceError> {
        if !matches!(self.state, State::Tracking) {
            return Err(self.wrong_state("a look at what is written"));
        }
        if self.soft_dirty {
            return Err(SourceError::WouldStop);
        }
        let before = self.looked;
        self.shape()?;
        let began = Instant::now();
        let look = self.told.take().unwrap_or_default();
        let counted = self.count(&look).and_then(|bytes| match before {
            None => Ok(bytes.saturating_sub(self.spared(&look)? * PAGE_SIZE)),
            Some(_) => Ok(bytes),
        });
        self.told = Some(look);
        let ended = Instant::now();
        self.looked = Some(ended);
        let window = before.map(|before| ended.duration_since(before)).unwrap_or_default();
        Ok(Written { bytes: counted?, window, look: ended.duration_since(began) })
    }

    fn count(&mut self, look: &Look) -> Result<u64, SourceError> {
        let mut known: HashMap<i32, &mut TrackedMemory> =
            self.tracked.iter_mut().map(|(pid, tracked)| (*pid, &mut tracked.memory)).collect();
        let (mut bytes, mut objects) = (0, ObjectRanges::new());
        for found in files::live(look) {
            let Some(memory) = known.remove(&found.process.pid) else { continue };
            match memory.written(&found.mappings, &mut objects) {
                Ok(pages) => bytes += pages,
                // It has ended, or runs another program.
                Err(_) if !memory.is_alive(0) => {}
                Err(error) => return Err(error),
            }
        }
        // What processes share counts once.
        for mut ranges in objects.into_values() {
            join(&mut ranges);
            bytes += ranges.iter().map(|range| range.end - range.start).sum::<u64>();
        }
        Ok(bytes)
    }
}
