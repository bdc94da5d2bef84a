//! What processes share as copy-on-write since fork(2): sent once, as a template that all of them begin with at the target.
//!
//! Page frames say what may be shared; contents decide. The template is read first, and every process's first round reads
//! its own pages after they are watched, as ever, and leaves out those whose contents the template has. So whoever writes
//! meanwhile, before or after either read, is right at the target: a page that is another one by then is sent for that
//! process, and breaks the sharing there as it did here.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use image::PAGE_SIZE;
use image::pages::Owner;
use image::shape::{Backing, FileIdentity, Vma, VmaFlags};
use rayon::prelude::*;
use sys::Errno;
use sys::pagemap::{Entry, Pagemap};

use super::batch::{Batcher, Outcome};
use super::digests::Digests;
use super::process::TrackedMemory;
use super::sent::{EXTENT, PageSet, join, subtract};
use crate::PageSink;
use crate::source::SourceError;
use crate::source::mm::Mapping;
use crate::target::plan::memory::{self, MemoryStep};

/// Pages of an extent.
const PAGES: usize = 512;
/// Fewer pages than this are not worth a template.
const FEW: u64 = 16;
/// Each process of the tree is made with all pages of the template, of which fork(2) and munmap(2) take 0.1 us each: the
/// target must not be busy with it for longer than a source waits.
const MOST: u64 = 1 << 27;

/// Ranges of addresses, ascending and disjoint.
type Ranges = Vec<Range<u64>>;

/// What is to be sent for all processes.
#[derive(Debug, Default)]
pub(crate) struct Template {
    /// What the target maps, ascending.
    pub(crate) vmas: Vec<Vma>,
    /// From whom each page is read, by pid.
    pub(crate) pages: BTreeMap<i32, Ranges>,
    /// Pages that need not be sent because of it, if nothing is written meanwhile.
    pub(crate) spared: u64,
}

/// What was sent of it.
#[derive(Debug, Default)]
pub(crate) struct Written {
    pub(crate) pages: PageSet,
    digests: Digests,
    /// In the mapping that is being read, pages that were never written show a file.
    over_file: bool,
}

impl Outcome for Written {
    fn sent(&mut self, page: u64, contents: &[u8]) {
        self.pages.set(&(page..page + PAGE_SIZE), true);
        self.digests.set(page, contents);
    }

    fn must_tell_zero(&self, _page: u64) -> bool {
        self.over_file
    }
}

/// What one process has of the template at the target, until its first round is over.
#[derive(Debug)]
pub(crate) struct Inherited {
    from: Arc<Written>,
    /// Where the target keeps the template's contents for this process.
    kept: PageSet,
}

impl Inherited {
    /// The part of a template that was `written` which a target keeps in an address space that is `wanted`.
    pub(crate) fn new(template: &[Vma], written: &Arc<Written>, wanted: &[Vma]) -> Self {
        // The target's own plan.
        let mut gone: Ranges = memory::plan(template, wanted)
            .into_iter()
            .filter_map(|step| match step {
                MemoryStep::Unmap { start, end } => Some(start..end),
                _ => None,
            })
            .collect();
        join(&mut gone);
        let mut kept = PageSet::default();
        for vma in template {
            for run in written.pages.runs(&(vma.start..vma.end)) {
                subtract(&run, &gone).iter().for_each(|part| kept.set(part, true));
            }
        }
        Self { from: Arc::clone(written), kept }
    }

    /// The target may have lost it.
    pub(crate) fn forget(&mut self, ranges: &[Range<u64>]) {
        for range in ranges {
            for run in self.kept.runs(range) {
                self.kept.set(&run, false);
            }
        }
    }

    /// Whether the process has these contents there already.
    pub(crate) fn same(&self, page: u64, contents: &[u8]) -> bool {
        self.kept.has(page) && self.from.digests.same(page, contents)
    }
}

impl TrackedMemory {
    /// Sends pages of the template that are read from this process.
    pub(crate) fn template(
        &mut self,
        mappings: &[Mapping],
        pages: &[Range<u64>],
        written: &mut Written,
        batcher: &mut Batcher,
        sink: &mut dyn PageSink,
    ) -> Result<(), SourceError> {
        for mapping in mappings.iter().filter(|mapping| fits(mapping)) {
            let vma = &mapping.vma;
            let first = pages.partition_point(|range| range.end <= vma.start);
            let over = pages[first..].iter().take_while(|range| range.start < vma.end);
            written.over_file = mapping.is_over_file();
            let mut contents = self.contents(vma.prot & 1 != 0, false);
            for range in over {
                let part = range.start.max(vma.start)..range.end.min(vma.end);
                batcher.push(Owner::Template, &part, &mut contents, written, sink)?;
            }
            batcher.flush(Owner::Template, &mut contents, written, sink)?;
        }
        Ok(())
    }

    /// The target begins this process with a template that was `written`. What it does not have, or has otherwise, is told
    /// in the first round.
    pub(crate) fn inherit(&mut self, inherited: Inherited) {
        // More than it keeps: nothing is dropped where nothing is.
        self.sent.add(&inherited.from.pages);
        self.inherited = Some(inherited);
    }
}

/// A process and what it maps.
pub(crate) type Member<'a> = (&'a mut TrackedMemory, &'a [Mapping]);

/// What the search reads of a member.
type Space<'a> = (&'a Pagemap, &'a [Mapping]);

/// Pages of one extent, with the member that they are read from; and how many others hold them, all together.
type Picked = (Vec<(usize, Range<u64>)>, u64);

/// Looks for pages that at least two of the processes hold at one address; `None` when there are too few.
pub(crate) fn find(members: &mut [Member<'_>]) -> Result<Option<Template>, SourceError> {
    let mut extents: BTreeMap<u64, Vec<usize>> = BTreeMap::new();
    for (index, (memory, mappings)) in members.iter_mut().enumerate() {
        for mapping in mappings.iter().filter(|mapping| fits(mapping)) {
            let own = match memory.own_pages(&(mapping.vma.start..mapping.vma.end)) {
                // It has ended.
                Err(_) if !memory.is_alive(0) => break,
                other => other?,
            };
            for extent in own.iter().flat_map(|range| range.start / EXTENT..range.end.div_ceil(EXTENT)) {
                let holders = extents.entry(extent).or_default();
                if holders.last() != Some(&index) {
                    holders.push(index);
                }
            }
        }
    }
    let extents: Vec<(u64, Vec<usize>)> =
        extents.into_iter().filter(|(_, holders)| holders.len() > 1).collect();
    let spaces: Vec<Space<'_>> =
        members.iter().map(|(memory, mappings)| (memory.pagemap(), *mappings)).collect();
    let picked: Result<Vec<Picked>, Errno> =
        extents.par_iter().map(|(extent, holders)| pick(*extent, holders, &spaces)).collect();
    let picked = picked.map_err(|errno| SourceError::kernel("read pagemap", members[0].0.pid, errno))?;
    let mut found: BTreeMap<usize, Ranges> = BTreeMap::new();
    let mut spared = 0;
    for (ranges, others) in picked {
        spared += others;
        for (member, range) in ranges {
            found.entry(member).or_default().push(range);
        }
    }
    found.values_mut().for_each(join);
    let vmas = mapped(&found, members);
    let mut pages = BTreeMap::new();
    for (member, ranges) in found {
        let inside = ranges.iter().flat_map(|range| within(range, &vmas)).collect();
        pages.insert(members[member].0.pid, inside);
    }
    let count =
        pages.values().flatten().map(|range: &Range<u64>| (range.end - range.start) / PAGE_SIZE).sum::<u64>();
    if count * members.len() as u64 > MOST {
        tracing::warn!(pages = count, processes = members.len(), "too many to be shared at the target");
        return Ok(None);
    }
    Ok((count >= FEW).then_some(Template { vmas, pages, spared }))
}

/// Memory that a template can hold. Memory objects come later than it does.
fn fits(mapping: &Mapping) -> bool {
    match &mapping.vma.backing {
        // Huge pages of hugetlbfs belong to their maker's reservation, which fork(2) does not give on.
        Backing::Anonymous => !mapping.droppable && mapping.vma.huge == 0,
        Backing::File { file: FileIdentity { ghost: None, .. }, shared: false, .. } => true,
        _ => false,
    }
}

/// The parts of a range that the mappings of a template cover.
fn within(range: &Range<u64>, vmas: &[Vma]) -> Ranges {
    let first = vmas.partition_point(|vma| vma.end <= range.start);
    let over = vmas[first..].iter().take_while(|vma| vma.start < range.end);
    over.filter(|vma| !memory::is_special(vma))
        .map(|vma| range.start.max(vma.start)..range.end.min(vma.end))
        .collect()
}

/// For each page of an extent the frame that most of its holders have, if more than one has it.
fn pick(extent: u64, holders: &[usize], spaces: &[Space<'_>]) -> Result<Picked, Errno> {
    let frames: Result<Vec<[u64; PAGES]>, Errno> =
        holders.iter().map(|holder| frames(extent, &spaces[*holder])).collect();
    let frames = frames?;
    let (mut picked, mut others): Picked = (Vec::new(), 0);
    let mut held = Vec::new();
    for (page, start) in (0..PAGES).zip((extent * EXTENT..).step_by(4096)) {
        held.clear();
        held.extend(frames.iter().zip(holders).map(|(frames, holder)| (frames[page], *holder)));
        held.retain(|(frame, _)| *frame != 0);
        let Some((holder, count)) = most(&mut held) else { continue };
        others += count - 1;
        match picked.last_mut() {
            Some((last, range)) if *last == holder && range.end == start => range.end += PAGE_SIZE,
            _ => picked.push((holder, start..start + PAGE_SIZE)),
        }
    }
    Ok((picked, others))
}

/// Frames of the process's own pages that others map, too; 0 = none.
fn frames(extent: u64, (pagemap, mappings): &Space<'_>) -> Result<[u64; PAGES], Errno> {
    let mut frames = [0; PAGES];
    let bounds = extent * EXTENT..(extent + 1) * EXTENT;
    let first = mappings.partition_point(|mapping| mapping.vma.end <= bounds.start);
    let mut entries: Vec<Entry> = Vec::with_capacity(PAGES);
    let over = mappings[first..].iter().take_while(|mapping| mapping.vma.start < bounds.end);
    for mapping in over.filter(|mapping| fits(mapping)) {
        let start = mapping.vma.start.max(bounds.start);
        entries.clear();
        match pagemap.entries(start..mapping.vma.end.min(bounds.end), &mut entries) {
            // It has ended.
            Err(Errno::ESRCH) => {}
            other => other?,
        }
        let at = usize::try_from((start - bounds.start) / PAGE_SIZE).unwrap_or(PAGES);
        for (frame, entry) in frames.iter_mut().skip(at).zip(&entries) {
            if entry.present() && !entry.file() && !entry.exclusive() {
                *frame = entry.frame();
            }
        }
    }
    Ok(frames)
}

/// The first holder of the frame that occurs most often, and how often, if it occurs more than once.
fn most(held: &mut [(u64, usize)]) -> Option<(usize, u64)> {
    let (first, holder) = *held.first()?;
    if held.iter().all(|(frame, _)| *frame == first) {
        return (held.len() > 1).then_some((holder, held.len() as u64));
    }
    held.sort_unstable();
    let groups = held.chunk_by(|a, b| a.0 == b.0).filter(|group| group.len() > 1);
    // Of equal ones the first: the last in reverse order.
    groups.rev().max_by_key(|group| group.len()).map(|group| (group[0].1, group.len() as u64))
}

/// The mappings that hold these pages. Where they differ, the first process has its way.
fn mapped(found: &BTreeMap<usize, Ranges>, members: &[Member<'_>]) -> Vec<Vma> {
    let mut vmas: Vec<Vma> = Vec::new();
    for (member, ranges) in found {
        for mapping in members[*member].1.iter().filter(|mapping| fits(mapping)) {
            let vma = &mapping.vma;
            let next = ranges.partition_point(|range| range.end <= vma.start);
            if ranges.get(next).is_none_or(|range| range.start >= vma.end) {
                continue;
            }
            let taken: Ranges = vmas.iter().map(|vma| vma.start..vma.end).collect();
            for gap in subtract(&(vma.start..vma.end), &taken) {
                vmas.push(plain(memory::part(vma, gap.start, gap.end)));
            }
            vmas.sort_unstable_by_key(|vma| vma.start);
        }
    }
    let all = || members.iter().flat_map(|(_, mappings)| mappings.iter());
    // Contents of these are never told of, so that what is inherited there would stay.
    let mut barred: Ranges =
        all().filter(|mapping| mapping.droppable).map(|mapping| mapping.vma.start..mapping.vma.end).collect();
    // The skeleton that holds the template has these, too.
    let mut special = Vec::new();
    for (_, mappings) in members {
        special = mappings.iter().map(|m| &m.vma).filter(|vma| memory::is_special(vma)).cloned().collect();
        if !special.is_empty() {
            break;
        }
    }
    barred.extend(special.iter().map(|vma| vma.start..vma.end));
    vmas.retain(|vma| !barred.iter().any(|range| range.start < vma.end && vma.start < range.end));
    vmas.append(&mut special);
    vmas.sort_unstable_by_key(|vma| vma.start);
    vmas
}

/// A mapping that every process can make its own: fork(2) gives it on, whatever was advised.
fn plain(vma: Vma) -> Vma {
    let VmaFlags { grows_down, no_reserve, .. } = vma.flags;
    Vma { flags: VmaFlags { grows_down, no_reserve, ..VmaFlags::default() }, anon_name: None, ..vma }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn vma(start: u64, end: u64, flags: VmaFlags) -> Vma {
        Vma { start, end, prot: 3, backing: Backing::Anonymous, flags, anon_name: None, huge: 0 }
    }

    proptest! {
        #[test]
        fn the_frame_that_most_have_is_read_from_the_first_of_them(frames in prop::collection::vec(1_u64..5, 0..9)) {
            let mut held: Vec<(u64, usize)> = frames.iter().copied().zip(0..).collect();
            let found = most(&mut held);
            let count = |frame: u64| frames.iter().filter(|other| **other == frame).count();
            let best = frames.iter().map(|frame| count(*frame)).max().unwrap_or(0);
            prop_assert_eq!(found.is_some(), best > 1);
            if let Some((holder, often)) = found {
                prop_assert_eq!((count(frames[holder]), often), (best, best as u64));
                prop_assert_eq!(frames.iter().position(|frame| *frame == frames[holder]), Some(holder));
            }
        }
    }

    #[test]
    fn a_process_has_of_the_template_what_it_maps_alike_and_only_that_is_the_same() {
        let mut written = Written::default();
        for page in 0..8 {
            written.sent(page * PAGE_SIZE, &[1; 4096]);
        }
        let template = [vma(0, 8 * PAGE_SIZE, VmaFlags::default())];
        let no_reserve = VmaFlags { no_reserve: true, ..VmaFlags::default() };
        let huge = VmaFlags { huge_page: true, ..VmaFlags::default() };
        let wanted = [
            vma(PAGE_SIZE, 3 * PAGE_SIZE, VmaFlags::default()),
            vma(4 * PAGE_SIZE, 5 * PAGE_SIZE, no_reserve),
            vma(6 * PAGE_SIZE, 7 * PAGE_SIZE, huge),
        ];
        let mut inherited = Inherited::new(&template, &Arc::new(written), &wanted);
        let same = |inherited: &Inherited, byte: u8| -> Vec<u64> {
            (0..9).filter(|page| inherited.same(page * PAGE_SIZE, &[byte; 4096])).collect()
        };
        assert_eq!(same(&inherited, 1), [1, 2, 6]);
        assert_eq!(same(&inherited, 2), [0; 0]);
        inherited.forget(&[2 * PAGE_SIZE..3 * PAGE_SIZE, 6 * PAGE_SIZE..20 * PAGE_SIZE]);
        assert_eq!(same(&inherited, 1), [1]);
    }

    #[test]
    fn fork_gives_a_mapping_of_the_template_on_whatever_was_advised() {
        let flags = VmaFlags { dont_fork: true, wipe_on_fork: true, grows_down: true, ..VmaFlags::default() };
        let plain = plain(Vma { anon_name: Some("x".into()), ..vma(0, PAGE_SIZE, flags) });
        assert_eq!(plain, vma(0, PAGE_SIZE, VmaFlags { grows_down: true, ..VmaFlags::default() }));
    }
}
