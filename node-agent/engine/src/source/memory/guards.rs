//! Guard pages (MADV_GUARD_INSTALL): pages that fault on purpose inside a mapping.
//!
//! One that is made, or removed, counts as written, so that the looks at written pages find both.

use std::ops::Range;

use sys::Errno;
use sys::pagemap::{Pagemap, ScanError};

use super::sent::PageSet;
use crate::source::SourceError;
use crate::source::mm::Mapping;

/// More ranges than this are looked at in one look from the first to the last.
const FEW: usize = 16;

/// The guard pages of a process, as far as they were seen.
#[derive(Debug, Default)]
pub(super) struct Guards(PageSet);

impl Guards {
    /// What is known of a range is void.
    pub(super) fn forget(&mut self, range: &Range<u64>) {
        if !self.0.is_empty() {
            self.0.set(range, false);
        }
    }

    pub(super) fn found(&mut self, range: &Range<u64>) {
        self.0.set(range, true);
    }

    /// Looks at ascending ranges of a mapping whose pages are not looked at one by one.
    pub(super) fn look(
        &mut self,
        pid: i32,
        pagemap: &Pagemap,
        mapping: &Mapping,
        ranges: &[Range<u64>],
    ) -> Result<(), SourceError> {
        if mapping.is_kernels() {
            return Ok(());
        }
        let hull = ranges.first().zip(ranges.last()).map(|(first, last)| first.start..last.end);
        let whole: Vec<Range<u64>> = hull.into_iter().collect();
        let mut found = Vec::new();
        for range in if ranges.len() > FEW { &whole } else { ranges } {
            self.forget(range);
            pagemap.guards(range.clone(), &mut found).map_err(|error| match error {
                ScanError::Kernel(errno) => SourceError::kernel("look for guard pages", pid, errno),
                ScanError::Unregistered { .. } => {
                    SourceError::kernel("look for guard pages", pid, Errno::EPERM)
                }
            })?;
        }
        found.iter().for_each(|range| self.found(range));
        Ok(())
    }

    /// Those of these mappings, as first and last address.
    pub(super) fn of(&self, mappings: &[Mapping]) -> Vec<(u64, u64)> {
        if self.0.is_empty() {
            return Vec::new();
        }
        let own = mappings.iter().filter(|mapping| !mapping.is_kernels());
        let runs = own.flat_map(|mapping| self.0.runs(&(mapping.vma.start..mapping.vma.end)));
        runs.map(|run| (run.start, run.end)).collect()
    }
}

/// Whether a process has any.
pub(crate) fn any(pid: i32, mappings: &[Mapping]) -> Result<bool, ScanError> {
    let pagemap = Pagemap::open(pid).map_err(ScanError::Kernel)?;
    let mut found = Vec::new();
    for mapping in mappings.iter().filter(|mapping| !mapping.is_kernels()) {
        pagemap.guards(mapping.vma.start..mapping.vma.end, &mut found)?;
        if !found.is_empty() {
            return Ok(true);
        }
    }
    Ok(false)
}
