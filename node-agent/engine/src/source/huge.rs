//! Huge pages of hugetlbfs: which memory has them, and how many a target must have free.
//!
//! Memory that was mapped without MAP_NORESERVE has a claim on pages that are not there yet, and gets it at the target. A
//! child has no claim on what its parent mapped before fork(2), which shows nowhere: at the target it has one of its own.
//! Pages that they still share as copy-on-write are made for each.

use std::collections::{BTreeMap, HashMap};
use std::fs::{File, Metadata};
use std::ops::Range;
use std::os::linux::fs::MetadataExt;
use std::sync::OnceLock;
use std::time::Instant;

use image::state::HugePages;
use nix::sys::statfs::{HUGETLBFS_MAGIC, statfs};
use sys::pagemap::{Categories, Pagemap};

use super::look::{Look, Looker, ProcessLook};
use super::memory::huge::is_private;
use super::memory::sent::{join, subtract};
use super::mm::Mapping;
use super::session::Source;
use super::stopping::{Held, stop_tree};
use super::{InspectError, SourceError, failpoint};

/// Bytes of a page of a file of hugetlbfs; 0 for all others. `path`: a way to it.
pub(crate) fn page_size(metadata: &Metadata, path: &str) -> u64 {
    // Few other file systems have blocks so large.
    let size = metadata.st_blksize();
    let large = size > image::PAGE_SIZE && size.is_power_of_two();
    let found = large && statfs(path).is_ok_and(|found| found.filesystem_type() == HUGETLBFS_MAGIC);
    if found { size } else { 0 }
}

/// The name of what mmap(2) makes with MAP_HUGETLB and MAP_ANONYMOUS.
pub(crate) const ANONYMOUS: &[u8] = b"/anon_hugepage (deleted)";

/// Whether this host can find written huge pages: soft-dirty bits say nothing of them.
pub(crate) fn are_tracked() -> bool {
    static TRACKED: OnceLock<bool> = OnceLock::new();
    *TRACKED.get_or_init(|| sys::pagemap::probe().pagemap_scan)
}

/// What a target must have free.
pub(crate) fn needs(look: &Look, looker: &Looker) -> Result<Vec<HugePages>, InspectError> {
    let mut count: BTreeMap<u64, u64> = BTreeMap::new();
    let mut claimed: HashMap<u32, Vec<Range<u64>>> = HashMap::new();
    for found in &look.processes {
        for mapping in found.mappings.iter().filter(|mapping| mapping.vma.huge != 0) {
            let vma = &mapping.vma;
            let reserved = !vma.flags.no_reserve;
            if is_private(mapping) {
                let bytes = if reserved { vma.len() } else { own(found.process.pid, mapping) };
                *count.entry(vma.huge).or_default() += bytes / vma.huge;
            } else if let Some((id, offset)) = mapping.shared_object().filter(|_| reserved) {
                claimed.entry(id).or_default().push(offset..offset + vma.len());
            }
        }
    }
    for object in looker.registry.alive().filter(|object| object.object.huge != 0) {
        let size = object.object.huge;
        let mut claimed = claimed.remove(&object.object.id).unwrap_or_default();
        join(&mut claimed);
        let end = object.object.size.next_multiple_of(size);
        // A segment of System V shared memory reserves all that it has.
        if looker.registry.segment_of(object.object.id).is_some() {
            claimed = vec![Range { start: 0, end }];
        }
        // One that is gone meanwhile needs nothing.
        let file = File::open(object.handle.path()).ok();
        let there = file.and_then(|file| sys::huge::present(&file, size).ok());
        let there = there.unwrap_or_default();
        let more = there.iter().flat_map(|part| subtract(part, &claimed));
        let bytes = |ranges: &[Range<u64>]| ranges.iter().map(|range| range.end - range.start).sum::<u64>();
        let more: Vec<Range<u64>> = more.collect();
        *count.entry(size).or_default() += (bytes(&claimed) + bytes(&more)) / size;
    }
    Ok(count.into_iter().map(|(size, count)| HugePages { size, count }).collect())
}

impl Source {
    /// Has mappings of huge pages watched that are not yet. The tree stands still for it: see
    /// [`super::memory::tracker::Tracker::watch_whole`].
    pub(super) fn watch_huge_pages(&mut self, look: &Look) -> Result<(), SourceError> {
        let must = |found: &&ProcessLook| {
            let tracked = self.tracked.get(&found.process.pid);
            tracked.is_some_and(|tracked| tracked.memory.must_watch(&found.mappings))
        };
        let asked: Vec<&ProcessLook> = look.processes.iter().filter(must).collect();
        if asked.is_empty() {
            return Ok(());
        }
        let mut held = Held::default();
        self.time_sleepers(&mut held)?;
        let start = Instant::now();
        stop_tree(self.looker.spec.root, &mut held)?;
        failpoint!("source-round-stopped");
        for found in asked {
            if let Some(tracked) = self.tracked.get_mut(&found.process.pid) {
                tracked.memory.watch_whole(&found.mappings)?;
            }
        }
        drop(held);
        self.readers.own().stats.stopped += start.elapsed();
        Ok(())
    }
}

/// Bytes of the process's own pages in a mapping; 0 when it is gone.
fn own(pid: i32, mapping: &Mapping) -> u64 {
    let mut regions = Vec::new();
    let range = mapping.vma.start..mapping.vma.end;
    let looked = Pagemap::open(pid).is_ok_and(|map| map.classify(range, &mut regions).is_ok());
    let own = regions.iter().filter(|region| looked && region.categories.lacks(Categories::FILE));
    own.map(|region| region.range.end - region.range.start).sum()
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn the_size_of_pages_is_that_of_a_file_of_hugetlbfs() {
        let flags = [libc::MFD_CLOEXEC, libc::MFD_CLOEXEC | libc::MFD_HUGETLB | libc::MFD_HUGE_2MB];
        let sizes = flags.map(|flags| {
            let file = File::from(sys::fds::memfd(b"pages", flags).ok()?);
            let path = format!("/proc/self/fd/{}", file.as_raw_fd());
            Some(page_size(&file.metadata().unwrap(), &path))
        });
        // A kernel without hugetlbfs makes no such file.
        assert!(matches!(sizes, [Some(0), Some(0x20_0000) | None]), "{sizes:?}");
        let directory = std::fs::metadata("/proc").unwrap();
        assert_eq!(page_size(&directory, "/proc"), 0);
    }
}
