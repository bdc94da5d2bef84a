//! What a target that follows one shape after the other cannot have kept.
//!
//! The target keeps contents where a mapping stays what it was. Everything else must be sent again, even if
//! the trackers see no new write there. In doubt this says "again": that costs time, never data.

use std::collections::HashMap;
use std::ops::Range;

use image::Pid;
use image::shape::{Backing, ProcessShape, Shape, Vma};

use crate::anew::made_anew;

/// For each process of `new`, the ranges whose contents cannot be taken for kept from `old`.
pub(crate) fn stale(old: &Shape, new: &Shape) -> HashMap<Pid, Vec<Range<u64>>> {
    let before: HashMap<Pid, &ProcessShape> =
        old.processes.iter().map(|process| (process.pid, process)).collect();
    let anew = made_anew(&old.processes, &new.processes);
    let mut stale = HashMap::new();
    for process in &new.processes {
        let kept = before.get(&process.pid).filter(|_| !anew.contains(&process.pid));
        let ranges = match kept {
            Some(was) => changed(&was.mm.vmas, &process.mm.vmas),
            None => process.mm.vmas.iter().map(|vma| vma.start..vma.end).collect(),
        };
        if !ranges.is_empty() {
            stale.insert(process.pid, ranges);
        }
    }
    stale
}

/// The parts of `new` that do not lie over the same thing in `old`.
fn changed(old: &[Vma], new: &[Vma]) -> Vec<Range<u64>> {
    let mut out = Vec::new();
    let mut first = 0;
    for vma in new {
        while old.get(first).is_some_and(|was| was.end <= vma.start) {
            first += 1;
        }
        let same: Vec<Range<u64>> = old[first..]
            .iter()
            .take_while(|was| was.start < vma.end)
            .filter(|was| same_contents(was, vma))
            .map(|was| was.start.max(vma.start)..was.end.min(vma.end))
            .collect();
        out.extend(super::memory::sent::subtract(&(vma.start..vma.end), &same));
    }
    out
}

fn same_contents(was: &Vma, is: &Vma) -> bool {
    let kept_flags = |vma: &Vma| {
        let flags = &vma.flags;
        (flags.grows_down, flags.no_reserve, flags.huge_page, flags.no_huge_page)
    };
    // Where the start of the address space would lie in the file: equal for parts of one mapping.
    let origin = |vma: &Vma, offset: u64| offset.wrapping_sub(vma.start);
    kept_flags(was) == kept_flags(is)
        && was.huge == is.huge
        // Those of huge pages are made anew as a whole.
        && (is.huge == 0 || (was.start <= is.start && is.end <= was.end))
        && match (&was.backing, &is.backing) {
            (Backing::Anonymous, Backing::Anonymous) => true,
            (
                Backing::File { file: f, offset: o, shared: s, may_write: m },
                Backing::File { file: g, offset: p, shared: t, may_write: n },
            ) => (&f.path, f.ghost, origin(was, *o), s, m) == (&g.path, g.ghost, origin(is, *p), t, n),
            (
                Backing::Object { id: f, offset: o, shared: s, may_write: m },
                Backing::Object { id: g, offset: p, shared: t, may_write: n },
            ) => (f, origin(was, *o), s, m) == (g, origin(is, *p), t, n),
            _ => false,
        }
}

#[cfg(test)]
mod tests {
    use image::shape::{FileIdentity, Mm, VmaFlags};

    use super::*;

    fn vma(start: u64, end: u64, backing: Backing) -> Vma {
        Vma { start, end, prot: 3, backing, flags: VmaFlags::default(), anon_name: None, huge: 0 }
    }

    fn file(offset: u64) -> Backing {
        let file = FileIdentity { path: "/x".into(), ..FileIdentity::default() };
        Backing::File { file, offset, shared: false, may_write: false }
    }

    fn process(pid: Pid, ppid: Pid, vmas: Vec<Vma>) -> ProcessShape {
        ProcessShape {
            pid,
            ppid,
            pgid: 1,
            sid: 1,
            exit_signal: 17,
            zombie: None,
            tty: None,
            levels: Vec::new(),
            namespaces: image::namespaces::Nested::default(),
            shared: image::shape::Shared::default(),
            mm: Mm { vmas, ..Mm::default() },
        }
    }

    #[test]
    fn splits_and_growth_keep_what_was_there() {
        let old = [vma(0x1000, 0x5000, Backing::Anonymous), vma(0x8000, 0xa000, file(0x1000))];
        let new = [
            vma(0x1000, 0x2000, Backing::Anonymous),
            vma(0x2000, 0x6000, Backing::Anonymous),
            vma(0x9000, 0xa000, file(0x2000)),
        ];
        assert_eq!(changed(&old, &new), vec![Range { start: 0x5000, end: 0x6000 }]);
        let moved = [vma(0x9000, 0xa000, file(0x1000))];
        assert_eq!(changed(&old, &moved), vec![Range { start: 0x9000, end: 0xa000 }]);
        let other = [vma(0x8000, 0xa000, Backing::Anonymous)];
        assert_eq!(changed(&old, &other), vec![Range { start: 0x8000, end: 0xa000 }]);
    }

    #[test]
    fn a_new_parent_makes_the_whole_branch_anew() {
        let memory = || vec![vma(0x1000, 0x2000, Backing::Anonymous)];
        let shape = |parent| Shape {
            processes: vec![
                process(1, 0, memory()),
                process(2, 1, memory()),
                process(3, parent, memory()),
                process(4, 3, memory()),
            ],
            ..Shape::default()
        };
        assert!(stale(&shape(2), &shape(2)).is_empty());
        let mut pids: Vec<Pid> = stale(&shape(2), &shape(1)).into_keys().collect();
        pids.sort_unstable();
        assert_eq!(pids, [3, 4]);
        assert_eq!(stale(&Shape::default(), &shape(1)).len(), 4);
    }
}
