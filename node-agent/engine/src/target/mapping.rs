//! The address space of one skeleton.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use image::shape::{Backing, FileIdentity, Mm, MmFields, Vma};
use image::{Pid, Refusal, Subject};
use libc::{
    SYS_madvise, SYS_membarrier, SYS_mmap, SYS_mprotect, SYS_mremap, SYS_munmap, SYS_prctl, SYS_rseq,
    SYS_set_robust_list, SYS_set_tid_address,
};
use nix::fcntl::OFlag;

use super::deleted;
use super::error::TargetError;
use super::ghosts::Ghosts;
use super::huge;
use super::ipc;
use super::objects::Objects;
use super::plan::memory::{self, MemoryStep};
use super::plant::Channel;
use super::rootfs::RootFs;
use super::script::{Block, Call, call};
use super::skeleton::{Skeleton, Span, free_span};
use super::terminals::Terminals;
use sys::tape::target::TargetTape;

const PR_SET_MM: i32 = 35;
const PR_SET_MM_MAP: i32 = 14;
const PR_SET_VMA: i32 = 0x5356_4d41;
const RSEQ_FLAG_UNREGISTER: u64 = 1;
const MADV_DONTNEED: i32 = 4;
/// mseal(2), since Linux 6.10.
const SYS_MSEAL: i64 = 462;
/// ROBUST_LIST_HEAD size.
const ROBUST_HEAD: u64 = 24;

/// What mapping needs besides the skeleton.
#[derive(Debug)]
pub(crate) struct Surroundings<'a> {
    pub(crate) tape: &'a TargetTape,
    pub(crate) channel: &'a Channel,
    pub(crate) root: &'a RootFs,
    pub(crate) objects: &'a Objects,
    pub(crate) ghosts: &'a RefCell<Ghosts>,
    pub(crate) terminals: &'a RefCell<Terminals>,
}

/// Where the bytes of a mapping come from, as a key: many mappings share one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum SourceKey {
    File { path: String, write: bool },
    Object(u32),
    Ghost { id: u32, write: bool },
}

/// Empties a process that is a copy of another one: its memory, its descriptors, what the kernel holds of
/// its user space.
pub(crate) fn clear(skeleton: &mut Skeleton, around: &Surroundings<'_>) -> Result<(), TargetError> {
    let mut calls = around.channel.close_others();
    calls.push(call!("set_tid_address", SYS_set_tid_address, 0));
    calls.push(call!("set_robust_list", SYS_set_robust_list, 0, ROBUST_HEAD));
    // Before its page goes: the kernel kills a process whose registered area it cannot write.
    if let Some((address, size, signature)) = skeleton.rseq()? {
        calls.push(call!("rseq", SYS_rseq, address, size, RSEQ_FLAG_UNREGISTER, signature));
    }
    calls.extend(skeleton.clearing(around.tape));
    skeleton.run(around.tape, &calls)?;
    skeleton.cleared = true;
    Ok(())
}

/// Makes the address space be `wanted`. Ranges that were unmapped are returned: what was known about
/// their contents is void.
pub(crate) fn reconcile(
    skeleton: &mut Skeleton,
    wanted: &Mm,
    around: &Surroundings<'_>,
) -> Result<Vec<Span>, TargetError> {
    if skeleton.mm == *wanted {
        skeleton.template = false;
        return Ok(Vec::new());
    }
    if *wanted == Mm::default() {
        return empty(skeleton, around);
    }
    huge::check(wanted)?;
    let steps = memory::plan(&skeleton.mm.vmas, &wanted.vmas);
    let unmapped: Vec<Span> = steps
        .iter()
        .filter_map(|s| if let MemoryStep::Unmap { start, end } = s { Some((*start, *end)) } else { None })
        .collect();
    let unmap = unmapped.iter().map(|(start, end)| call!("munmap", SYS_munmap, *start, end - start));
    skeleton.run(around.tape, &unmap.collect::<Vec<_>>())?;
    huge::refuse_poor(&steps, skeleton.node.pid)?;
    move_special(skeleton, wanted, around.tape)?;

    let pid = skeleton.node.pid;
    let mut sources = Sources::open(pid, &steps, around)?;
    let exe = exe_to_set(&skeleton.mm, wanted)
        .map(|exe| around.root.open_same(pid, exe, OFlag::O_RDONLY))
        .transpose()?;
    let mut fds: Vec<BorrowedFd<'_>> = sources.files.iter().map(AsFd::as_fd).collect();
    fds.extend(exe.as_ref().map(AsFd::as_fd));
    let numbers = around.channel.plant(&mut skeleton.leader, around.tape, around.channel.number, &fds)?;
    drop(fds);
    sources.numbers = numbers;
    let exe_number = exe.and_then(|_| sources.numbers.pop());

    let mut calls = Vec::with_capacity(steps.len() + 3);
    // Before the mappings: the kernel refuses to replace an executable that is mapped (EBUSY), and the new one
    // may be that of the skeleton's maker.
    if skeleton.mm.fields != wanted.fields || skeleton.mm.auxv != wanted.auxv || exe_number.is_some() {
        calls.push(set_mm(&wanted.fields, &wanted.auxv, exe_number));
    }
    calls.extend(register_barriers(wanted.barriers & !skeleton.mm.barriers));
    calls.extend(attach_segments(skeleton, wanted, &steps, around.objects)?);
    for step in &steps {
        step_calls(step, &sources, around.objects, &mut calls);
    }
    calls.extend(around.channel.close_others());
    skeleton.run(around.tape, &calls)?;
    skeleton.mm = wanted.clone();
    skeleton.template = false;
    Ok(unmapped)
}

/// Maps the template into a process that holds nothing yet.
pub(crate) fn begin_template(
    skeleton: &mut Skeleton,
    template: &[Vma],
    around: &Surroundings<'_>,
) -> Result<(), TargetError> {
    if template.iter().any(|vma| matches!(vma.backing, Backing::File { .. })) {
        neutral_exe(skeleton, around)?;
    }
    reconcile(skeleton, &Mm { vmas: template.to_vec(), ..Mm::default() }, around)?;
    skeleton.template = true;
    Ok(())
}

/// Takes everything from a process that has no memory of its own: a zombie, or who carries the tree.
pub(crate) fn empty(skeleton: &mut Skeleton, around: &Surroundings<'_>) -> Result<Vec<Span>, TargetError> {
    let own = skeleton.mm.vmas.iter().filter(|vma| !memory::is_special(vma));
    let unmapped: Vec<Span> = own.map(|vma| (vma.start, vma.end)).collect();
    let calls = unmapped.iter().map(|(start, end)| call!("munmap", SYS_munmap, *start, end - start));
    skeleton.run(around.tape, &calls.collect::<Vec<Call>>())?;
    skeleton.mm = Mm::default();
    skeleton.template = false;
    Ok(unmapped)
}

/// Gives the process an executable that nothing maps: the kernel refuses to replace one that is mapped (EBUSY), and the
/// template may map the agent's, which every skeleton has by birth.
fn neutral_exe(skeleton: &mut Skeleton, around: &Surroundings<'_>) -> Result<(), TargetError> {
    // Before Linux 6.3 there is no such flag, and all are executable.
    let memfd = sys::fds::memfd(b"skeleton", libc::MFD_EXEC).or_else(|_| sys::fds::memfd(b"skeleton", 0));
    let memfd = memfd.map_err(TargetError::errno("memfd_create"))?;
    // One that is open for writing is no executable (ETXTBSY).
    let path = format!("/proc/self/fd/{}", memfd.as_raw_fd());
    let read_only = File::open(path).map_err(TargetError::system("open a memfd again"))?;
    drop(memfd);
    let numbers = around.channel.plant(
        &mut skeleton.leader,
        around.tape,
        around.channel.number,
        &[read_only.as_fd()],
    )?;
    // The kernel wants numbers that could be, and every process gets its own.
    let at = 0x10_0000;
    let fields = MmFields {
        start_code: at,
        end_code: at + 1,
        start_data: at,
        end_data: at,
        start_brk: at,
        brk: at,
        start_stack: at,
        arg_start: at,
        arg_end: at,
        env_start: at,
        env_end: at,
    };
    let set = set_mm(&fields, &[], numbers.first().copied());
    // A host may forbid executable memfds (vm.memfd_noexec); then the container's files must not be the agent's.
    let mut calls = vec![set.accept(&[libc::EACCES])];
    calls.extend(around.channel.close_others());
    skeleton.run(around.tape, &calls).map(drop)
}

/// The executable, when it is not the one that is set already. A deleted one comes last: the kernel takes no file that is
/// open for writing, as it is while its contents come.
fn exe_to_set<'a>(current: &Mm, wanted: &'a Mm) -> Option<&'a FileIdentity> {
    let (is, exe) = (&current.exe, &wanted.exe);
    let other = (&is.path, is.ghost) != (&exe.path, exe.ghost);
    (other && exe.ghost.is_none() && !exe.path.is_empty()).then_some(exe)
}

/// Gives pages back, so that they read as a fresh mapping does.
pub(crate) fn drop_pages(dropped: &[Span]) -> Vec<Call> {
    dropped
        .iter()
        .map(|(start, end)| call!("MADV_DONTNEED", SYS_madvise, *start, end - start, MADV_DONTNEED))
        .collect()
}

/// Seals what the source had sealed: nothing is changed there any more.
pub(crate) fn seal_memory(mm: &Mm) -> Vec<Call> {
    let sealed = mm.vmas.iter().filter(|v| v.flags.sealed && !memory::is_special(v));
    sealed.map(|v| call!("mseal", SYS_MSEAL, v.start, v.len(), 0)).collect()
}

/// The agent's descriptors of all that `steps` map.
#[derive(Debug, Default)]
struct Sources {
    index: HashMap<SourceKey, usize>,
    files: Vec<File>,
    numbers: Vec<i32>,
}

fn key(backing: &Backing) -> Option<SourceKey> {
    match backing {
        Backing::File { file: FileIdentity { ghost: Some(id), .. }, shared, may_write, .. } => {
            Some(SourceKey::Ghost { id: *id, write: *shared && *may_write })
        }
        Backing::File { file, shared, may_write, .. } => {
            Some(SourceKey::File { path: file.path.clone(), write: *shared && *may_write })
        }
        Backing::Object { id, .. } => Some(SourceKey::Object(*id)),
        Backing::Anonymous | Backing::Vdso | Backing::Vvar(_) => None,
    }
}

impl Sources {
    fn open(pid: Pid, steps: &[MemoryStep], around: &Surroundings<'_>) -> Result<Self, TargetError> {
        let mut sources = Self::default();
        for step in steps {
            let MemoryStep::Map(vma) = step else { continue };
            let Some(key) = key(&vma.backing) else { continue };
            if segment(&vma.backing, around.objects).is_some() {
                continue;
            }
            if sources.index.contains_key(&key) {
                continue;
            }
            let file = open_backing(pid, vma, around)?;
            sources.index.insert(key, sources.files.len());
            sources.files.push(file);
        }
        Ok(sources)
    }

    fn number(&self, backing: &Backing) -> i32 {
        let index = key(backing).and_then(|key| self.index.get(&key).copied());
        index.and_then(|i| self.numbers.get(i).copied()).unwrap_or(-1)
    }
}

fn open_backing(pid: Pid, vma: &Vma, around: &Surroundings<'_>) -> Result<File, TargetError> {
    match &vma.backing {
        Backing::File {
            file: FileIdentity { path, size, ghost: Some(id), .. }, shared, may_write, ..
        } => {
            let mut ghosts = around.ghosts.borrow_mut();
            let held = ghosts.get(*id, path, *size, around.root)?;
            if !shared || !may_write {
                return deleted::read_only(held);
            }
            let held = held.try_clone_to_owned();
            Ok(File::from(held.map_err(TargetError::system("duplicate a descriptor"))?))
        }
        // What the container writes through a shared mapping changes while it runs.
        Backing::File { file, shared: true, may_write: true, .. } => {
            around.root.open(pid, &file.path, OFlag::O_RDWR)
        }
        Backing::File { file, .. } => around.root.open_same(pid, file, OFlag::O_RDONLY),
        Backing::Object { id, .. } => {
            around.objects.file(*id)?.try_clone().map_err(TargetError::system("duplicate a descriptor"))
        }
        Backing::Anonymous | Backing::Vdso | Backing::Vvar(_) => {
            Err(TargetError::Image(format!("pid {pid}: mapping {:#x} has no file", vma.start)))
        }
    }
}

/// The number and size of the segment of System V shared memory that a mapping shows.
fn segment(backing: &Backing, objects: &Objects) -> Option<(i32, u64)> {
    if let Backing::Object { id, .. } = backing { objects.segment(*id) } else { None }
}

/// Attaches segments of System V shared memory: each as often as the source had it, with all parts of it that are there.
fn attach_segments(
    skeleton: &Skeleton,
    wanted: &Mm,
    steps: &[MemoryStep],
    objects: &Objects,
) -> Result<Vec<Call>, TargetError> {
    let mut attached: BTreeMap<(u64, i32, bool), (u64, Vec<&Vma>)> = BTreeMap::new();
    for step in steps {
        let MemoryStep::Map(vma) = step else { continue };
        let (Some((id, size)), Backing::Object { offset, may_write, .. }) =
            (segment(&vma.backing, objects), &vma.backing)
        else {
            continue;
        };
        let at = (vma.start.wrapping_sub(*offset), id, *may_write);
        attached.entry(at).or_insert((size, Vec::new())).1.push(vma);
    }
    let Some(largest) = attached.values().map(|(size, _)| *size).max() else { return Ok(Vec::new()) };
    let held: Vec<Span> = skeleton.read_maps()?.iter().map(|m| (m.start, m.end)).collect();
    let needed: Vec<Span> = wanted.vmas.iter().map(|v| (v.start, v.end)).collect();
    let page = attached.values().flat_map(|(_, parts)| parts).map(|vma| vma.huge).max().unwrap_or(0);
    let page = page.max(image::PAGE_SIZE);
    let spare = free_span(largest.saturating_add(page), &[&held, &needed]).next_multiple_of(page);
    let calls = attached
        .into_iter()
        .flat_map(|((_, id, may_write), (size, parts))| ipc::attach(&parts, id, size, may_write, spare));
    Ok(calls.collect())
}

fn step_calls(step: &MemoryStep, sources: &Sources, objects: &Objects, calls: &mut Vec<Call>) {
    match step {
        MemoryStep::Unmap { .. } => {}
        MemoryStep::Map(vma) => {
            if segment(&vma.backing, objects).is_none() {
                calls.push(map(vma, sources.number(&vma.backing)));
            }
            for advice in memory::advice_between(&image::shape::VmaFlags::default(), &vma.flags) {
                calls.push(call!("madvise", SYS_madvise, vma.start, vma.len(), advice));
            }
            if vma.anon_name.is_some() {
                calls.push(name(vma.start, vma.end, vma.anon_name.as_deref()));
            }
        }
        MemoryStep::Protect { start, end, prot } => {
            calls.push(call!("mprotect", SYS_mprotect, *start, end - start, u64::from(*prot)));
        }
        MemoryStep::Advise { start, end, advice } => {
            calls.push(call!("madvise", SYS_madvise, *start, end - start, *advice));
        }
        MemoryStep::Name { start, end, name: text } => calls.push(name(*start, *end, text.as_deref())),
    }
}

/// Kernels without CONFIG_ANON_VMA_NAME answer EINVAL; a name is for people only.
fn name(start: u64, end: u64, text: Option<&str>) -> Call {
    let length = end - start;
    match text {
        Some(text) => {
            call!("PR_SET_VMA_ANON_NAME", SYS_prctl, PR_SET_VMA, 0, start, length, Block::text(text))
        }
        None => call!("PR_SET_VMA_ANON_NAME", SYS_prctl, PR_SET_VMA, 0, start, length, 0),
    }
    .accept(&[libc::EINVAL])
}

fn map(vma: &Vma, fd: i32) -> Call {
    let (kind, offset) = match &vma.backing {
        Backing::File { offset, shared, .. } | Backing::Object { offset, shared, .. } => {
            (if *shared { libc::MAP_SHARED } else { libc::MAP_PRIVATE }, *offset)
        }
        Backing::Anonymous | Backing::Vdso | Backing::Vvar(_) => (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, 0),
    };
    let mut flags = kind | libc::MAP_FIXED_NOREPLACE | huge::map_flags(vma);
    if vma.flags.grows_down {
        flags |= libc::MAP_GROWSDOWN;
    }
    if vma.flags.no_reserve {
        flags |= libc::MAP_NORESERVE;
    }
    let what = if vma.huge == 0 { "mmap" } else { huge::MAPPING };
    call!(what, SYS_mmap, vma.start, vma.len(), u64::from(memory::filling(vma)), flags, fd, offset)
}

/// Registrations of membarrier(2). With one thread they cost nothing; with more the kernel waits until all processors
/// have seen them. An older kernel knows fewer.
fn register_barriers(commands: u32) -> impl Iterator<Item = Call> {
    let commands = (0..32).map(|bit| 1u32 << bit).filter(move |command| commands & command != 0);
    commands.map(|command| {
        call!("membarrier", SYS_membarrier, command, 0, 0).accept(&[libc::EINVAL, libc::ENOSYS])
    })
}

/// prctl(2) PR_SET_MM_MAP; without `exe` the executable stays.
pub(super) fn set_mm(fields: &MmFields, auxv: &[u8], exe: Option<i32>) -> Call {
    let f = fields;
    let list = [
        f.start_code,
        f.end_code,
        f.start_data,
        f.end_data,
        f.start_brk,
        f.brk,
        f.start_stack,
        f.arg_start,
        f.arg_end,
        f.env_start,
        f.env_end,
        0,
        u64::from(u32::try_from(auxv.len()).unwrap_or(0))
            | u64::from(exe.unwrap_or(-1).cast_unsigned()) << 32,
    ];
    let map = Block::words(&list).link(88, Block::new(auxv));
    call!("PR_SET_MM_MAP", SYS_prctl, PR_SET_MM, PR_SET_MM_MAP, map, 104, 0)
}

/// Moves `[vvar]`, `[vvar_vclock]` and `[vdso]` to where the source has them.
fn move_special(skeleton: &mut Skeleton, wanted: &Mm, tape: &TargetTape) -> Result<(), TargetError> {
    let pid = skeleton.node.pid;
    let mut moves: Vec<(usize, Span, Span)> = Vec::new();
    for vma in wanted.vmas.iter().filter(|v| memory::is_special(v)) {
        let name = if let Backing::Vvar(name) = &vma.backing { name.as_str() } else { "[vdso]" };
        let found = skeleton.special.iter().position(|(n, s)| n == name && s.1 - s.0 == vma.len());
        let Some(index) = found else {
            return Err(vdso_differs(pid, vma, name));
        };
        moves.push((index, skeleton.special[index].1, (vma.start, vma.end)));
    }
    if moves.len() != skeleton.special.len() {
        let missing = wanted.vmas.first().map_or(0, |v| v.start);
        return Err(TargetError::Refused(Refusal {
            pid,
            subject: Subject::Address(missing),
            reason: "it has unmapped a part of its vDSO".to_owned(),
            way_out: "run it on a host where it keeps the vDSO".to_owned(),
        }));
    }
    moves.retain(|(_, from, to)| from != to);
    if moves.is_empty() {
        return Ok(());
    }
    let remap = |from: Span, to: u64| {
        let (len, flags) = (from.1 - from.0, libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED);
        call!("mremap vDSO", SYS_mremap, from.0, len, len, flags, to)
    };
    let crosses =
        moves.iter().any(|(_, _, to)| skeleton.special.iter().any(|(_, s)| to.0 < s.1 && s.0 < to.1));
    let mut calls = Vec::new();
    if crosses {
        let held: Vec<Span> = skeleton.read_maps()?.iter().map(|m| (m.start, m.end)).collect();
        let needed: Vec<Span> = wanted.vmas.iter().map(|v| (v.start, v.end)).collect();
        let total: u64 = moves.iter().map(|(_, from, _)| from.1 - from.0).sum();
        let mut at = free_span(total, &[&held, &needed]);
        for (_, from, _) in &mut moves {
            calls.push(remap(*from, at));
            let len = from.1 - from.0;
            *from = (at, at + len);
            at += len;
        }
    }
    calls.extend(moves.iter().map(|(_, from, to)| remap(*from, to.0)));
    skeleton.run(tape, &calls)?;
    for (index, _, to) in moves {
        skeleton.special[index].1 = to;
    }
    Ok(())
}

fn vdso_differs(pid: Pid, vma: &Vma, name: &str) -> TargetError {
    TargetError::Refused(Refusal {
        pid,
        subject: Subject::Address(vma.start),
        reason: format!("{name} has {} bytes there and another size here", vma.len()),
        way_out: "choose a target with the source's kernel".to_owned(),
    })
}
