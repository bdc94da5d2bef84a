//! Page contents on their way into skeletons.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use image::pages::{Batch, Owner, RunKind};
use image::shape::{Backing, Vma};
use image::{PAGE_SIZE, Pid};
use nix::fcntl::{FallocateFlags, fallocate};
use sys::mem;

use super::huge;
use super::plan::memory::filling;
use super::ranges::Ranges;

/// One piece of zeros.
pub(super) static ZEROS: [u8; 64 * 1024] = [0; 64 * 1024];

/// Fills the memory of skeletons; cheap to clone, usable from any thread.
#[derive(Clone, Debug, Default)]
pub struct PageWriter {
    spaces: Arc<RwLock<Spaces>>,
}

/// Where memory is.
#[derive(Debug, Default)]
struct Spaces {
    processes: HashMap<Pid, Arc<Space>>,
    /// What processes begin with, while none is made.
    template: Option<Arc<Space>>,
    /// Memory objects and files without a name, with the size of their pages where they are huge ones.
    files: HashMap<Owner, (Arc<File>, u64)>,
}

/// One skeleton's memory.
#[derive(Debug)]
struct Space {
    host_pid: i32,
    memory: Arc<File>,
    areas: Vec<Area>,
    marks: Arc<Mutex<Marks>>,
}

/// A mapping, as far as writing is concerned.
#[derive(Clone, Copy, Debug)]
struct Area {
    start: u64,
    end: u64,
    way: Way,
    zero_by_drop: bool,
    /// As in [`Vma::huge`].
    huge: u64,
}

/// How a range is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// process_vm_writev(2).
    Direct,
    /// /proc/PID/mem, which writes to read-only private memory too.
    Forced,
}

/// What a skeleton's memory holds.
#[derive(Clone, Debug, Default)]
struct Marks {
    /// Written at least once: only these can hold something else than a fresh mapping.
    written: Ranges,
    /// To be given back before the restore, by the skeleton itself.
    dropped: Ranges,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl PageWriter {
    /// Writes one batch to its final place.
    ///
    /// Pages that are zero or given back are noted and dropped by the skeleton itself, at the next
    /// [`reconcile`](super::Target::reconcile) or at the restore.
    ///
    /// # Errors
    /// When a run lies outside the mappings of the last shape, or the skeleton is gone. Part of the batch
    /// may have been written.
    pub fn apply(&self, batch: &Batch<'_>) -> io::Result<()> {
        let spaces = self.spaces.read().unwrap_or_else(PoisonError::into_inner);
        match batch.owner {
            Owner::Process(pid) => {
                let space = spaces.processes.get(&pid).cloned();
                drop(spaces);
                space.ok_or_else(|| unknown(format!("no process {pid} in the shape")))?.apply(batch)
            }
            Owner::Template => {
                let space = spaces.template.clone();
                drop(spaces);
                space.ok_or_else(|| unknown("no template in the shape".to_owned()))?.apply(batch)
            }
            Owner::Object(id) | Owner::Ghost(id) => {
                let file = spaces.files.get(&batch.owner).cloned();
                drop(spaces);
                let (file, huge) =
                    file.ok_or_else(|| unknown(format!("no object or deleted file {id} in the shape")))?;
                if huge == 0 { apply_to_file(&file, batch) } else { huge::apply(&file, huge, batch) }
            }
        }
    }

    /// Tells where a process's memory is from now on.
    pub(crate) fn set_process(&self, pid: Pid, host_pid: i32, memory: &Arc<File>, vmas: &[Vma]) {
        let mut spaces = self.spaces.write().unwrap_or_else(PoisonError::into_inner);
        let marks = spaces
            .processes
            .get(&pid)
            .filter(|s| s.host_pid == host_pid)
            .map(|s| s.marks.clone())
            .unwrap_or_default();
        spaces.processes.insert(pid, Arc::new(Space::new(host_pid, memory, vmas, marks)));
    }

    /// Tells where the template is.
    pub(crate) fn set_template(&self, host_pid: i32, memory: &Arc<File>, vmas: &[Vma]) {
        let mut spaces = self.spaces.write().unwrap_or_else(PoisonError::into_inner);
        let mut space = Space::new(host_pid, memory, vmas, Arc::default());
        // process_vm_writev(2) pins what it writes: from then on fork(2) takes pages that a thousand processes share for
        // pinned ones, and copies them.
        space.areas.iter_mut().for_each(|area| area.way = Way::Forced);
        spaces.template = Some(Arc::new(space));
    }

    /// A process was made with what the template holds.
    pub(crate) fn inherit(&self, pid: Pid, host_pid: i32, memory: &Arc<File>) {
        let mut spaces = self.spaces.write().unwrap_or_else(PoisonError::into_inner);
        let Some(template) = &spaces.template else { return };
        let marks = lock(&template.marks).clone();
        let space = Space::new(host_pid, memory, &[], Arc::new(Mutex::new(marks)));
        spaces.processes.insert(pid, Arc::new(space));
    }

    /// All processes that begin with the template have been made.
    pub(crate) fn end_template(&self) {
        self.spaces.write().unwrap_or_else(PoisonError::into_inner).template = None;
    }

    /// Forgets a process.
    pub(crate) fn remove_process(&self, pid: Pid) {
        self.spaces.write().unwrap_or_else(PoisonError::into_inner).processes.remove(&pid);
    }

    /// Tells where the bytes of an object or a deleted file are.
    pub(crate) fn set_file(&self, owner: Owner, file: Arc<File>, huge: u64) {
        self.spaces.write().unwrap_or_else(PoisonError::into_inner).files.insert(owner, (file, huge));
    }

    /// Forgets an object or a deleted file.
    pub(crate) fn remove_file(&self, owner: Owner) {
        self.spaces.write().unwrap_or_else(PoisonError::into_inner).files.remove(&owner);
    }

    /// A range of a process was unmapped: nothing is there any more.
    pub(crate) fn unmapped(&self, pid: Pid, start: u64, end: u64) {
        let spaces = self.spaces.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(space) = spaces.processes.get(&pid) {
            let mut marks = lock(&space.marks);
            marks.written.remove(start, end);
            marks.dropped.remove(start, end);
        }
    }

    /// Takes the ranges that a process has to give back.
    pub(crate) fn take_dropped(&self, pid: Pid) -> Vec<(u64, u64)> {
        let spaces = self.spaces.read().unwrap_or_else(PoisonError::into_inner);
        let Some(space) = spaces.processes.get(&pid) else { return Vec::new() };
        let mut marks = lock(&space.marks);
        let dropped = std::mem::take(&mut marks.dropped);
        for (start, end) in dropped.iter() {
            marks.written.remove(start, end);
        }
        dropped.iter().collect()
    }
}

fn unknown(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, what)
}

impl Area {
    fn new(vma: &Vma) -> Option<Self> {
        let (shared, anonymous) = match &vma.backing {
            Backing::Anonymous => (false, true),
            Backing::File { shared, .. } | Backing::Object { shared, .. } => (*shared, false),
            Backing::Vdso | Backing::Vvar(_) => return None,
        };
        let writable = i32::from(filling(vma)) & libc::PROT_WRITE != 0;
        let way = if writable { Way::Direct } else { Way::Forced };
        let (start, end, huge) = (vma.start, vma.end, vma.huge);
        Some(Self { start, end, way, zero_by_drop: anonymous && !shared && huge == 0, huge })
    }
}

/// Runs that go into one process_vm_writev(2): their bytes are neighbours in the batch's data.
#[derive(Default)]
struct Gather {
    remote: Vec<mem::Run>,
    from: usize,
    len: usize,
    /// As in [`Vma::huge`], of the last one that was not 0.
    huge: u64,
}

impl Space {
    fn new(host_pid: i32, memory: &Arc<File>, vmas: &[Vma], marks: Arc<Mutex<Marks>>) -> Self {
        Self { host_pid, memory: memory.clone(), areas: vmas.iter().filter_map(Area::new).collect(), marks }
    }

    fn apply(&self, batch: &Batch<'_>) -> io::Result<()> {
        let mut gather = Gather::default();
        let mut at = 0;
        for run in batch.runs {
            let len = u64::from(run.pages) * PAGE_SIZE;
            let end =
                run.addr.checked_add(len).ok_or_else(|| unknown(format!("run at {:#x} wraps", run.addr)))?;
            let mut from = run.addr;
            while from < end {
                let area = self.area(from)?;
                let to = end.min(area.end);
                match run.kind {
                    RunKind::Data => {
                        let size = size(to - from)?;
                        self.data(&area, from, batch.data, at, size, &mut gather)?;
                        at += size;
                        self.mark_written(&area, from, to);
                    }
                    RunKind::Zero if !area.zero_by_drop => {
                        self.write_zeros(&area, from, to)?;
                        self.mark_written(&area, from, to);
                    }
                    // A part of it may be written again before it can be given back.
                    RunKind::Drop if area.huge != 0 => {
                        let written = lock(&self.marks).written.within(from, to);
                        written.iter().try_for_each(|(start, end)| self.write_zeros(&area, *start, *end))?;
                        self.mark_dropped(&area, from, to);
                    }
                    RunKind::Zero | RunKind::Drop => self.mark_dropped(&area, from, to),
                }
                from = to;
            }
        }
        self.flush(&mut gather, batch.data)
    }

    fn area(&self, addr: u64) -> io::Result<Area> {
        let next = self.areas.partition_point(|a| a.end <= addr);
        self.areas.get(next).filter(|a| a.start <= addr).copied().ok_or_else(|| {
            unknown(format!("{addr:#x} of pid {} is not mapped by the last shape", self.host_pid))
        })
    }

    fn data(
        &self,
        area: &Area,
        addr: u64,
        data: &[u8],
        at: usize,
        len: usize,
        gather: &mut Gather,
    ) -> io::Result<()> {
        let bytes = data.get(at..at + len).ok_or_else(|| unknown("batch without its data".to_owned()))?;
        if area.way == Way::Forced {
            return self.memory.write_all_at(bytes, addr);
        }
        if gather.from + gather.len != at {
            self.flush(gather, data)?;
            gather.from = at;
        }
        gather.remote.push(mem::Run { address: addr, len });
        gather.len += len;
        gather.huge = gather.huge.max(area.huge);
        Ok(())
    }

    fn flush(&self, gather: &mut Gather, data: &[u8]) -> io::Result<()> {
        let remote = std::mem::take(&mut gather.remote);
        let len = std::mem::take(&mut gather.len);
        if remote.is_empty() {
            return Ok(());
        }
        let done = mem::write_runs(self.host_pid, &remote, &data[gather.from..gather.from + len]);
        let unwritten = done.as_ref().map_or(true, |done| *done != len);
        if gather.huge != 0 && unwritten {
            return Err(io::Error::other(huge::exhausted(gather.huge)));
        }
        if done? != len {
            return Err(io::Error::new(
                io::ErrorKind::WriteZero,
                "memory of a skeleton is not where it should be",
            ));
        }
        Ok(())
    }

    fn write_zeros(&self, area: &Area, start: u64, end: u64) -> io::Result<()> {
        let written = write_zeros_to(&self.memory, start, end - start);
        if area.huge == 0 {
            written
        } else {
            written.map_err(|_| io::Error::other(huge::exhausted(area.huge)))
        }
    }

    fn mark_written(&self, area: &Area, start: u64, end: u64) {
        let mut marks = lock(&self.marks);
        marks.written.insert(start, end);
        // A huge page is given back as a whole.
        let (first, last) = huge::around(area.huge, start, end);
        marks.dropped.remove(first, last);
    }

    fn mark_dropped(&self, area: &Area, start: u64, end: u64) {
        let mut marks = lock(&self.marks);
        for (s, e) in marks.written.within(start, end) {
            let (s, e) = huge::around(area.huge, s, e);
            marks.dropped.insert(s, e);
        }
    }
}

fn write_zeros_to(file: &File, start: u64, len: u64) -> io::Result<()> {
    let end = start + len;
    let mut at = start;
    while at < end {
        let len = size(end - at)?.min(ZEROS.len());
        file.write_all_at(&ZEROS[..len], at)?;
        at += len as u64;
    }
    Ok(())
}

pub(super) fn size(n: u64) -> io::Result<usize> {
    usize::try_from(n).map_err(io::Error::other)
}

fn apply_to_file(file: &File, batch: &Batch<'_>) -> io::Result<()> {
    let mut at = 0;
    for run in batch.runs {
        let len = u64::from(run.pages) * PAGE_SIZE;
        match run.kind {
            RunKind::Data => {
                let end = at + size(len)?;
                let bytes =
                    batch.data.get(at..end).ok_or_else(|| unknown("batch without its data".to_owned()))?;
                file.write_all_at(bytes, run.addr)?;
                at = end;
            }
            RunKind::Zero | RunKind::Drop => {
                let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
                let offset = i64::try_from(run.addr).map_err(io::Error::other)?;
                match fallocate(file, flags, offset, i64::try_from(len).map_err(io::Error::other)?) {
                    // Not all file systems have holes.
                    Err(nix::errno::Errno::EOPNOTSUPP) => write_zeros_to(file, run.addr, len)?,
                    other => other?,
                }
            }
        }
    }
    Ok(())
}
