//! What to map, unmap and protect so that one list of mappings becomes another.

use image::Addr;
use image::shape::{Backing, Vma, VmaFlags};

/// One step on an address space.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MemoryStep {
    /// munmap(2).
    Unmap {
        /// First address.
        start: Addr,
        /// One past the last.
        end: Addr,
    },
    /// mmap(2) of a part of a wanted mapping, offset and backing included, with its advice and name.
    Map(Vma),
    /// mprotect(2).
    Protect {
        /// First address.
        start: Addr,
        /// One past the last.
        end: Addr,
        /// PROT_ bits.
        prot: u8,
    },
    /// madvise(2).
    Advise {
        /// First address.
        start: Addr,
        /// One past the last.
        end: Addr,
        /// MADV_ value.
        advice: i32,
    },
    /// prctl(2) PR_SET_VMA_ANON_NAME.
    Name {
        /// First address.
        start: Addr,
        /// One past the last.
        end: Addr,
        /// The name; `None` takes it away.
        name: Option<String>,
    },
}

/// MADV_ values of madvise(2).
mod advice {
    pub(super) const NORMAL: i32 = 0;
    pub(super) const RANDOM: i32 = 1;
    pub(super) const SEQUENTIAL: i32 = 2;
    pub(super) const DONTFORK: i32 = 10;
    pub(super) const DOFORK: i32 = 11;
    pub(super) const MERGEABLE: i32 = 12;
    pub(super) const UNMERGEABLE: i32 = 13;
    pub(super) const HUGEPAGE: i32 = 14;
    pub(super) const NOHUGEPAGE: i32 = 15;
    pub(super) const DONTDUMP: i32 = 16;
    pub(super) const DODUMP: i32 = 17;
    pub(super) const WIPEONFORK: i32 = 18;
    pub(super) const KEEPONFORK: i32 = 19;
}

/// True for the kernel's own mappings, which are moved as a whole and never mapped.
#[must_use]
pub fn is_special(vma: &Vma) -> bool {
    matches!(vma.backing, Backing::Vdso | Backing::Vvar(_))
}

/// Whether it is filled through the mapping with huge pages, into which the kernel forces nothing that it does not let write.
pub(crate) fn is_filled(vma: &Vma) -> bool {
    vma.huge != 0 && !matches!(vma.backing, Backing::Object { shared: true, .. })
}

/// The protection that a mapping has while it is filled.
pub(crate) fn filling(vma: &Vma) -> u8 {
    const READ_WRITE: u8 = 3;
    if is_filled(vma) { vma.prot | READ_WRITE } else { vma.prot }
}

/// The madvise(2) calls that turn one set of flags into another. Locks are not among them: memory is
/// locked when it is complete.
#[must_use]
pub fn advice_between(from: &VmaFlags, to: &VmaFlags) -> Vec<i32> {
    let mut calls = Vec::new();
    let mut toggle = |was: bool, is: bool, on: i32, off: i32| {
        if was != is {
            calls.push(if is { on } else { off });
        }
    };
    toggle(from.dont_fork, to.dont_fork, advice::DONTFORK, advice::DOFORK);
    toggle(from.wipe_on_fork, to.wipe_on_fork, advice::WIPEONFORK, advice::KEEPONFORK);
    toggle(from.dont_dump, to.dont_dump, advice::DONTDUMP, advice::DODUMP);
    toggle(from.mergeable, to.mergeable, advice::MERGEABLE, advice::UNMERGEABLE);
    if (from.sequential, from.random) != (to.sequential, to.random) {
        calls.push(match (to.sequential, to.random) {
            (true, _) => advice::SEQUENTIAL,
            (false, true) => advice::RANDOM,
            (false, false) => advice::NORMAL,
        });
    }
    if !from.huge_page && to.huge_page {
        calls.push(advice::HUGEPAGE);
    }
    if !from.no_huge_page && to.no_huge_page {
        calls.push(advice::NOHUGEPAGE);
    }
    calls
}

/// The part of a mapping between two addresses inside it.
#[must_use]
pub fn part(vma: &Vma, start: Addr, end: Addr) -> Vma {
    let skip = start - vma.start;
    let mut part = Vma { start, end, ..vma.clone() };
    match &mut part.backing {
        Backing::File { offset, .. } | Backing::Object { offset, .. } => *offset += skip,
        Backing::Anonymous | Backing::Vdso | Backing::Vvar(_) => {}
    }
    part
}

/// Plans the way from `current` to `wanted` (both ascending and without overlap). A range whose backing
/// stays keeps its contents. Unmapping comes first, then mapping, then protection and advice.
#[must_use]
pub fn plan(current: &[Vma], wanted: &[Vma]) -> Vec<MemoryStep> {
    let current: Vec<&Vma> = current.iter().filter(|v| !is_special(v)).collect();
    let wanted: Vec<&Vma> = wanted.iter().filter(|v| !is_special(v)).collect();
    let mut cuts: Vec<Addr> = current.iter().chain(&wanted).flat_map(|v| [v.start, v.end]).collect();
    cuts.sort_unstable();
    cuts.dedup();

    let (mut unmap, mut map, mut change) = (Vec::new(), Vec::new(), Vec::new());
    let (mut c, mut w) = (0, 0);
    for pair in cuts.windows(2) {
        let (start, end) = (pair[0], pair[1]);
        let have = covering(&current, &mut c, start);
        let want = covering(&wanted, &mut w, start);
        match (have, want) {
            (None, None) => {}
            (Some(_), None) => extend_unmap(&mut unmap, start, end),
            (None, Some(want)) => extend_map(&mut map, want, start, end),
            (Some(have), Some(want)) if keeps_contents(have, want, start) => {
                adapt(&mut change, have, want, start, end);
            }
            (Some(_), Some(want)) => {
                extend_unmap(&mut unmap, start, end);
                extend_map(&mut map, want, start, end);
            }
        }
    }
    unmap.append(&mut map);
    unmap.append(&mut change);
    unmap
}

fn covering<'a>(vmas: &[&'a Vma], next: &mut usize, addr: Addr) -> Option<&'a Vma> {
    while vmas.get(*next).is_some_and(|v| v.end <= addr) {
        *next += 1;
    }
    vmas.get(*next).filter(|v| v.start <= addr).copied()
}

fn keeps_contents(have: &Vma, want: &Vma, at: Addr) -> bool {
    let unchangeable = |v: &Vma| (v.flags.grows_down, v.flags.no_reserve);
    // MADV_HUGEPAGE and MADV_NOHUGEPAGE cannot be taken back, only turned into each other.
    let huge = |v: &Vma| v.flags.huge_page || v.flags.no_huge_page;
    if unchangeable(have) != unchangeable(want) || (huge(have) && !huge(want)) {
        return false;
    }
    // The kernel never joins mappings of huge pages: what is one there is made as one.
    let as_one = have.start <= want.start && want.end <= have.end;
    if have.huge != want.huge || (want.huge != 0 && !as_one) {
        return false;
    }
    match (&part(have, at, have.end).backing, &part(want, at, want.end).backing) {
        (Backing::Anonymous, Backing::Anonymous) => true,
        // Size and time of a file that the container itself writes may differ from round to round.
        (
            Backing::File { file: f, offset: o, shared: s, may_write: m },
            Backing::File { file: g, offset: p, shared: t, may_write: n },
        ) => (&f.path, f.ghost, o, s, m) == (&g.path, g.ghost, p, t, n),
        (a @ Backing::Object { .. }, b @ Backing::Object { .. }) => a == b,
        _ => false,
    }
}

fn extend_unmap(steps: &mut Vec<MemoryStep>, start: Addr, end: Addr) {
    if let Some(MemoryStep::Unmap { end: last, .. }) = steps.last_mut()
        && *last == start
    {
        *last = end;
        return;
    }
    steps.push(MemoryStep::Unmap { start, end });
}

fn extend_map(steps: &mut Vec<MemoryStep>, want: &Vma, start: Addr, end: Addr) {
    if let Some(MemoryStep::Map(last)) = steps.last_mut()
        && last.end == start
        && last.start >= want.start
    {
        last.end = end;
        return;
    }
    steps.push(MemoryStep::Map(part(want, start, end)));
}

fn adapt(steps: &mut Vec<MemoryStep>, have: &Vma, want: &Vma, start: Addr, end: Addr) {
    if filling(have) != filling(want) {
        steps.push(MemoryStep::Protect { start, end, prot: filling(want) });
    }
    for advice in advice_between(&have.flags, &want.flags) {
        steps.push(MemoryStep::Advise { start, end, advice });
    }
    if have.anon_name != want.anon_name {
        steps.push(MemoryStep::Name { start, end, name: want.anon_name.clone() });
    }
}

#[cfg(test)]
mod tests;
