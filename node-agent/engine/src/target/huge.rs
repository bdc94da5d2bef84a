//! Huge pages of hugetlbfs: made out of a pool that may run dry, and written as they are.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;

use image::pages::{Batch, RunKind};
use image::shape::{Backing, MemoryObject, Mm, ObjectKind, Vma};
use image::{Addr, Pid, Refusal, Subject};
use libc::SYS_mprotect;
use nix::fcntl::{FallocateFlags, fallocate};
use sys::huge;
use sys::mem::Run;

use super::error::TargetError;
use super::plan::memory::{MemoryStep, filling, is_filled};
use super::script::{Call, call};
use super::writer::{ZEROS, size};

/// What an error is about: where memory is lacking, it is these pages.
pub(super) const MAPPING: &str = "mmap of huge pages (/sys/kernel/mm/hugepages has those of this host)";
const SEGMENT_MAKING: &str = "shmget of huge pages (/sys/kernel/mm/hugepages has those of this host)";
/// MAP_HUGETLB of mmap(2).
const MAP: i32 = libc::MAP_HUGETLB;
/// SHM_HUGETLB of shmget(2).
const SEGMENT: i32 = libc::SHM_HUGETLB;
/// MFD_HUGETLB of memfd_create(2).
const MEMFD: u32 = libc::MFD_HUGETLB;

/// Refuses sizes that cannot be: what a peer says of them is calculated with.
pub(super) fn check(mm: &Mm) -> Result<(), TargetError> {
    for vma in mm.vmas.iter().filter(|vma| vma.huge != 0) {
        let aligned = |at: Addr| at.is_multiple_of(vma.huge);
        let fits = matches!(vma.backing, Backing::Anonymous | Backing::Object { .. });
        if !fits || huge::size_flags(vma.huge).is_none() || !aligned(vma.start) || !aligned(vma.end) {
            let (at, size) = (vma.start, vma.huge);
            return Err(TargetError::Image(format!("mapping {at:#x} cannot have pages of {size} bytes")));
        }
    }
    Ok(())
}

/// The same for an object.
pub(super) fn check_object(object: &MemoryObject) -> Result<(), TargetError> {
    if object.huge == 0 || huge::size_flags(object.huge).is_some() {
        return Ok(());
    }
    Err(TargetError::Image(format!("memory object {} cannot have pages of {} bytes", object.id, object.huge)))
}

fn size_flags(size: u64) -> i32 {
    huge::size_flags(size).unwrap_or(0)
}

/// Flags of mmap(2) for private memory.
pub(super) fn map_flags(vma: &Vma) -> i32 {
    let anonymous = vma.backing == Backing::Anonymous;
    if vma.huge != 0 && anonymous { MAP | size_flags(vma.huge) } else { 0 }
}

/// The same for an object of shared memory.
pub(super) fn object_map_flags(object: &MemoryObject) -> i32 {
    if object.huge == 0 { 0 } else { MAP | size_flags(object.huge) }
}

/// Flags of memfd_create(2).
pub(super) fn memfd_flags(object: &MemoryObject) -> u32 {
    if object.huge == 0 { 0 } else { MEMFD | size_flags(object.huge).cast_unsigned() }
}

/// What makes a segment.
pub(super) fn making(object: &MemoryObject) -> &'static str {
    if object.huge == 0 { "shmget" } else { SEGMENT_MAKING }
}

/// Flags of shmget(2).
pub(super) fn segment_flags(object: &MemoryObject) -> u32 {
    if object.huge == 0 { 0 } else { (SEGMENT | size_flags(object.huge)).cast_unsigned() }
}

/// Gives huge pages the protection of the source, when all is written.
pub(super) fn protect(mm: &Mm) -> Vec<Call> {
    let filled = mm.vmas.iter().filter(|vma| filling(vma) != vma.prot);
    filled.map(|vma| call!("mprotect", SYS_mprotect, vma.start, vma.len(), u64::from(vma.prot))).collect()
}

/// What is said when this host's pool does not suffice.
pub(super) fn exhausted(size: u64) -> String {
    let kib = size >> 10;
    format!(
        "no huge page of {kib} KiB is free here: have more of them (/sys/kernel/mm/hugepages/hugepages-{kib}kB/nr_hugepages)"
    )
}

/// Refuses what needs more huge pages than there are: the kernel would say that it has no memory.
pub(super) fn refuse_poor(steps: &[MemoryStep], pid: Pid) -> Result<(), TargetError> {
    let mapped =
        steps.iter().filter_map(|step| if let MemoryStep::Map(vma) = step { Some(vma) } else { None });
    let claims: Vec<&Vma> = mapped.filter(|vma| is_filled(vma) && !vma.flags.no_reserve).collect();
    let Some(first) = claims.first() else { return Ok(()) };
    let pools = huge::pools();
    let available = |size| pools.iter().find(|pool| pool.size == size).map_or(0, |pool| pool.available);
    for size in claims.iter().map(|vma| vma.huge) {
        let of_size = claims.iter().filter(|vma| vma.huge == size);
        let needed = of_size.map(|vma| vma.len() / size).sum();
        if needed > available(size) {
            return Err(refused(pid, Subject::Address(first.start), size, needed, available(size)));
        }
    }
    Ok(())
}

fn refused(pid: Pid, subject: Subject, size: u64, needed: u64, free: u64) -> TargetError {
    let kib = size >> 10;
    TargetError::Refused(Refusal {
        pid,
        subject,
        reason: format!("it needs {needed} huge pages of {kib} KiB, and {free} are free on the target"),
        way_out: format!("have more of them there (/sys/kernel/mm/hugepages/hugepages-{kib}kB/nr_hugepages)"),
    })
}

/// The whole huge pages around a range; the range itself in ordinary memory.
pub(super) fn around(huge: u64, start: Addr, end: Addr) -> (Addr, Addr) {
    if huge == 0 {
        return (start, end);
    }
    (start / huge * huge, end.checked_next_multiple_of(huge).unwrap_or(end))
}

/// Writes one batch to an object. A page of zeros is there, a dropped one is not.
pub(super) fn apply(file: &File, huge: u64, batch: &Batch<'_>) -> io::Result<()> {
    let mut at = 0;
    let mut data = Vec::with_capacity(batch.runs.len());
    for run in batch.runs {
        let len = u64::from(run.pages) * image::PAGE_SIZE;
        match run.kind {
            RunKind::Data => {
                data.push(Run { address: run.addr, len: size(len)? });
                at += size(len)?;
            }
            RunKind::Zero => {
                for from in (run.addr..run.addr + len).step_by(ZEROS.len()) {
                    let part = Run { address: from, len: size(run.addr + len - from)?.min(ZEROS.len()) };
                    write(file, huge, &[part], &ZEROS[..part.len])?;
                }
            }
            RunKind::Drop => {
                let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
                let offset = i64::try_from(run.addr).map_err(io::Error::other)?;
                fallocate(file, flags, offset, i64::try_from(len).map_err(io::Error::other)?)?;
            }
        }
    }
    let bytes = batch.data.get(..at).ok_or_else(|| io::Error::other("batch without its data"))?;
    write(file, huge, &data, bytes)
}

fn write(file: &File, size: u64, runs: &[Run], data: &[u8]) -> io::Result<()> {
    match huge::write(file.as_fd(), size, runs, data) {
        Err(sys::Errno::ENOMEM) => Err(io::Error::other(exhausted(size))),
        other => other.map_err(io::Error::from),
    }
}

/// How many addresses an object takes.
pub(super) fn addresses(object: &MemoryObject) -> u64 {
    let page = if object.huge == 0 { image::PAGE_SIZE } else { object.huge };
    object.size.checked_next_multiple_of(page).unwrap_or(object.size)
}

/// Whether an object's size is that of its file: a segment may end within its last page.
pub(super) fn ends_within_page(object: &MemoryObject) -> bool {
    object.huge != 0 && matches!(object.kind, ObjectKind::Segment(_))
}
