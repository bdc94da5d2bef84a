//! Guard pages, and memory that is locked around them.

use image::shape::{Mm, Vma};
use libc::{SYS_madvise, SYS_mlock2};
use sys::mem::MADV_GUARD_INSTALL;

use super::script::{Call, call};
use super::skeleton::Span;

const MLOCK_ONFAULT: u64 = 1;

/// Makes guard pages, whatever is there: after all contents.
pub(crate) fn make(guards: &[Span]) -> Vec<Call> {
    let install = |(start, end): &Span| {
        call!("MADV_GUARD_INSTALL", SYS_madvise, *start, end.wrapping_sub(*start), MADV_GUARD_INSTALL)
    };
    guards.iter().map(install).collect()
}

/// Locks what the source had locked; last, so that no page is fetched before it is written.
pub(crate) fn lock(mm: &Mm, guards: &[Span]) -> Vec<Call> {
    mm.vmas.iter().filter(|vma| vma.flags.locked).flat_map(|vma| lock_one(vma, guards)).collect()
}

/// mlock2(2) fetches pages, and says that it failed where it met a guard page, which it has locked by then.
fn lock_one(vma: &Vma, guards: &[Span]) -> Vec<Call> {
    let flags = if vma.flags.locked_on_fault { MLOCK_ONFAULT } else { 0 };
    let lock = |start: u64, end: u64| call!("mlock2", SYS_mlock2, start, end - start, flags);
    let mut calls = Vec::new();
    let mut at = vma.start;
    let within = guards.iter().map(|(start, end)| (*start.max(&vma.start), *end.min(&vma.end)));
    for (start, end) in within.filter(|(start, end)| start < end && flags != MLOCK_ONFAULT) {
        if at < start {
            calls.push(lock(at, start));
        }
        calls.push(lock(start, end).accept(&[libc::ENOMEM]));
        at = end;
    }
    if at < vma.end {
        calls.push(lock(at, vma.end));
    }
    calls
}
