//! Contents of memory objects and of files without a name, each sent once however many processes map it.
//!
//! Page tables do not tell everything here: a process that exits between two rounds, a mapping that comes
//! and goes, write(2) on a memfd and holes punched by MADV_REMOVE leave no trace in a page table that is still there.
//! So an object that may have been written behind the trackers is read as a whole and compared with
//! what was sent, by a 64-bit hash of each page. A file without a name is one if its times have changed, and always once it
//! could be mapped in a way that they do not tell of.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt as _, OpenOptionsExt};
use std::time::{Duration, Instant, SystemTime};

use image::PAGE_SIZE;
use image::pages::Owner;
use sys::huge::Presence;
use twox_hash::XxHash3_64;

use super::batch::{Batcher, Contents, Outcome};
use super::hot::Hot;
use super::process::ObjectRanges;
use super::sent::{PageSet, join, subtract};
use crate::PageSink;
use crate::proc::idmap::IdMaps;
use crate::source::SourceError;
use crate::source::capture::ghosts::MAX_GHOST;
use crate::source::error::TRY_AGAIN;
use crate::source::findings::Findings;
use crate::source::registry::{GhostFile, Handle, Key, Object, Registry};

/// What the target holds of every object and file.
#[derive(Debug, Default)]
pub(crate) struct ObjectMemory {
    known: HashMap<Owner, Known>,
    chunk: Vec<u8>,
    /// A round is over.
    begun: bool,
}

/// An object or a file.
#[derive(Debug)]
struct Subject<'a> {
    owner: Owner,
    key: Key,
    handle: &'a Handle,
    /// As in [`image::shape::Vma::huge`].
    huge: u64,
    /// It may have been written without any sign of it.
    suspect: bool,
    /// When it was looked for.
    looked: SystemTime,
}

/// Times of modification and change.
type Times = (i64, i64, i64, i64);

#[derive(Debug, Default)]
pub(super) struct Known {
    /// Which of its huge pages are there.
    pub(super) presence: Option<Presence>,
    pub(super) sent: PageSet,
    hot: Hot,
    /// It was sent once.
    begun: bool,
    hashes: BTreeMap<u64, u64>,
    /// As in [`image::shape::Vma::huge`].
    huge: u64,
    /// An object is held open as long as it is there.
    file: Option<File>,
    /// Times at the last look; `None` when something may have changed within their resolution.
    times: Option<Times>,
}

/// File times move in ticks: a change this close before a look may share its time with one after it.
const TIME_RESOLUTION: Duration = Duration::from_millis(40);
/// The same on a file system that has whole seconds.
const COARSE_RESOLUTION: Duration = Duration::from_secs(2);
const CHUNK: usize = 1 << 20;
/// So much is compared in some milliseconds.
const WORTH_A_THREAD: u64 = 16 << 20;

impl ObjectMemory {
    /// Sends what changed of all objects and files. `hidden_writers`: a process that is not tracked may have written to an
    /// object since the last round.
    pub(crate) fn round(
        &mut self,
        registry: &Registry,
        mut dirty: ObjectRanges,
        hidden_writers: bool,
        batcher: &mut Batcher,
        sink: &mut dyn PageSink,
    ) -> Result<(), SourceError> {
        let looked = registry.looked.unwrap_or(SystemTime::UNIX_EPOCH);
        let alive: HashSet<Owner> = registry.alive().map(owner).collect();
        for (owner, known) in &mut self.known {
            if !alive.contains(owner) {
                known.file = None;
                known.presence = None;
            }
        }
        for object in registry.alive() {
            let ranges = dirty.remove(&object.object.id).unwrap_or_default();
            let suspect = hidden_writers || object.has_fd;
            let Object { key, handle, .. } = object;
            let huge = object.object.huge;
            let subject = Subject { owner: owner(object), key: *key, handle, huge, suspect, looked };
            self.one(&subject, ranges, batcher, sink)?;
        }
        for ghost in registry.ghost_files() {
            let GhostFile { id, key, handle, untold, .. } = ghost;
            let subject =
                Subject { owner: Owner::Ghost(*id), key: *key, handle, huge: 0, suspect: *untold, looked };
            self.one(&subject, Vec::new(), batcher, sink)?;
        }
        self.begun = true;
        Ok(())
    }

    /// Files without a name that no round has sent although there were some, and that are too large for the pause.
    pub(crate) fn late(&self, registry: &Registry, findings: &mut Findings) {
        let unsent = |id| self.known.get(&Owner::Ghost(id)).is_none_or(|known| !known.begun);
        for ghost in registry.ghost_files().filter(|ghost| self.begun && unsent(ghost.id)) {
            let size = std::fs::metadata(ghost.handle.path()).map_or(0, |metadata| metadata.len());
            if size > MAX_GHOST {
                let reason = format!("{} of {} MiB was deleted just now", ghost.path, size >> 20);
                findings.container(reason, TRY_AGAIN);
            }
        }
    }

    fn one(
        &mut self,
        subject: &Subject<'_>,
        mut dirty: Vec<Range<u64>>,
        batcher: &mut Batcher,
        sink: &mut dyn PageSink,
    ) -> Result<(), SourceError> {
        let scan = Instant::now();
        let owner = subject.owner;
        let is_object = matches!(owner, Owner::Object(_));
        let what = if is_object { "read a memory object" } else { "read a deleted file" };
        let fail = |error| SourceError::kernel(what, subject.handle.pid, error);
        let known = self.known.entry(owner).or_default();
        known.huge = subject.huge;
        // Kept open from the first time on: the way to it may lead to another file by now.
        let file = match known.file.take().map_or_else(|| open(subject), |file| Ok(Some(file))) {
            Ok(Some(file)) => file,
            // What was dirty is forgotten here: the next look finds another way to it, and all of it is compared.
            Ok(None) if !batcher.strict => {
                known.times = None;
                return Ok(());
            }
            Ok(None) => return Err(fail(io::ErrorKind::NotFound.into())),
            Err(error) => return Err(fail(error)),
        };
        let metadata = file.metadata().map_err(fail)?;
        let times = (metadata.mtime(), metadata.mtime_nsec(), metadata.ctime(), metadata.ctime_nsec());
        let suspect = subject.suspect || known.times != Some(times);
        known.times = settled(times, subject.looked).then_some(times);
        let end = metadata.len().next_multiple_of(PAGE_SIZE);
        if suspect {
            self.chunk.resize(CHUNK, 0);
            let changed = known.changed(&file, end, &mut self.chunk).map_err(fail)?;
            // What waits for the last round is not what was sent, whether it was written again or not.
            let held = known.hot.held(&(0..end));
            dirty.extend(changed.iter().flat_map(|range| subtract(range, &held)));
        }
        clip(&mut dirty, end);
        let all = if subject.huge != 0 {
            let (all, gone) = known.of_huge(&file, end, subject.huge, dirty).map_err(fail)?;
            gone.iter().for_each(|range| known.forget(range));
            batcher.drop_pages(owner, &gone, sink)?;
            all
        } else {
            let mut all = dirty.clone();
            all.extend(known.hot.held(&(0..end)));
            join(&mut all);
            if batcher.strict { all } else { known.hot.sift(all, &dirty) }
        };
        let held = known.hot.end_round(!known.begun);
        known.begun = true;
        batcher.held_back(held);
        batcher.scanned(scan.elapsed());
        let mut contents = ObjectPages { file: &file };
        for range in &all {
            batcher.push(owner, range, &mut contents, known, sink)?;
        }
        batcher.flush(owner, &mut contents, known, sink)?;
        // Who unmounts a file system must find nothing of it open here.
        known.file = is_object.then_some(file);
        Ok(())
    }
}

fn owner(object: &Object) -> Owner {
    Owner::Object(object.object.id)
}

/// Whether whatever changes after a look shows in other times than these. The look comes before they are read: who maps a
/// file after it and is gone before the next one has given it a later time.
fn settled((mtime, mtime_ns, ctime, ctime_ns): Times, looked: SystemTime) -> bool {
    let resolution = if mtime_ns == 0 || ctime_ns == 0 { COARSE_RESOLUTION } else { TIME_RESOLUTION };
    let age = |seconds: i64, more: i64| {
        let time = Duration::new(u64::try_from(seconds).unwrap_or(0), u32::try_from(more).unwrap_or(0));
        looked.duration_since(SystemTime::UNIX_EPOCH + time)
    };
    [age(mtime, mtime_ns), age(ctime, ctime_ns)]
        .iter()
        .all(|age| age.as_ref().is_ok_and(|age| *age > resolution))
}

/// Opens an object and makes sure that it is the one that is meant. `None`: the way to it is gone.
fn open(subject: &Subject<'_>) -> io::Result<Option<File>> {
    // The number may lead to a fifo or a terminal by now: neither wait for it nor take it.
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    match File::options().read(true).custom_flags(flags).open(subject.handle.path()) {
        Ok(file) => {
            let key = crate::proc::links::identity(&file.metadata()?);
            Ok((key == subject.key).then_some(file))
        }
        Err(error) if crate::proc::is_gone(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Reads the seals, permissions and owners of all memfds into the shape. One whose owner is not mapped belongs to the
/// container's root.
pub(crate) fn seals(registry: &Registry, ids: &IdMaps, shape: &mut image::shape::Shape) {
    for object in registry.alive() {
        let found = shape.objects.iter_mut().find(|known| known.id == object.object.id);
        if let Some(image::shape::MemoryObject {
            kind: image::shape::ObjectKind::Memfd { seals, mode, owner, .. },
            ..
        }) = found
            && let Ok(file) = File::open(object.handle.path())
            && let Ok(value) = sys::fds::seals(std::os::fd::AsFd::as_fd(&file))
            && let Ok(metadata) = file.metadata()
        {
            *mode = metadata.mode() & 0o7777;
            let inside = (ids.uid.inside(metadata.uid()), ids.gid.inside(metadata.gid()));
            *owner = (inside.0.unwrap_or(0), inside.1.unwrap_or(0));
            *seals = u32::try_from(value).unwrap_or(0);
        }
    }
}

/// Sorts, joins and cuts at the end of the object.
fn clip(ranges: &mut Vec<Range<u64>>, end: u64) {
    for range in ranges.iter_mut() {
        range.end = range.end.min(end);
        range.start = range.start.min(range.end);
    }
    join(ranges);
}

impl Known {
    /// A page of a range that was sent with other contents than zeros.
    pub(super) fn witness(&self, range: &Range<u64>) -> Option<u64> {
        let zero = XxHash3_64::oneshot(&[0; 4096]);
        self.hashes.range(range.clone()).find(|(_, hash)| **hash != zero).map(|(page, _)| *page)
    }

    /// The target drops what it holds of a range.
    fn forget(&mut self, range: &Range<u64>) {
        self.sent.set(range, false);
        let known: Vec<u64> = self.hashes.range(range.clone()).map(|(page, _)| *page).collect();
        for page in known {
            self.hashes.remove(&page);
        }
    }

    /// The pages before `end` whose contents are not those that were sent. A large file is read by threads of its own: they
    /// may wait for a disk.
    fn changed(&self, file: &File, end: u64, chunk: &mut [u8]) -> io::Result<Vec<Range<u64>>> {
        let processors = std::thread::available_parallelism().map_or(1, usize::from) as u64;
        let length = end.div_ceil(processors).max(WORTH_A_THREAD).next_multiple_of(PAGE_SIZE);
        let first = 0..length.min(end);
        std::thread::scope(|scope| {
            let part = |start: u64| {
                let range = start..(start + length).min(end);
                let begun = std::thread::Builder::new().name("compare".to_owned());
                let own = range.clone();
                (range, begun.spawn_scoped(scope, move || self.changed_in(file, own, &mut vec![0; CHUNK])))
            };
            let step = usize::try_from(length).unwrap_or(usize::MAX);
            let others: Vec<_> = (first.end..end).step_by(step).map(part).collect();
            let mut found = self.changed_in(file, first, chunk)?;
            for (range, thread) in others {
                found.extend(match thread {
                    Ok(thread) => thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?,
                    // The host takes no more threads.
                    Err(_) => self.changed_in(file, range, chunk)?,
                });
            }
            Ok(found)
        })
    }

    /// The same for one part.
    fn changed_in(&self, file: &File, part: Range<u64>, chunk: &mut [u8]) -> io::Result<Vec<Range<u64>>> {
        let Range { start: mut at, end } = part;
        let mut out = Vec::new();
        while at < end {
            let data = next_data(file, at)?.unwrap_or(end).min(end) / PAGE_SIZE * PAGE_SIZE;
            if data > at {
                // A hole reads as zeros: what was sent there and is not zero must change.
                let zero = XxHash3_64::oneshot(&[0; 4096]);
                let stale = self.hashes.range(at..data).filter(|(_, hash)| **hash != zero);
                out.extend(stale.map(|(page, _)| *page..*page + PAGE_SIZE));
                at = data;
                continue;
            }
            let want = usize::try_from(end - at).unwrap_or(CHUNK).min(CHUNK);
            let part = &mut chunk[..want];
            read_padded(file, at, part)?;
            for (page, contents) in (at..).step_by(4096).zip(part.chunks_exact(4096)) {
                let same = match self.hashes.get(&page) {
                    Some(hash) => *hash == XxHash3_64::oneshot(contents),
                    None => contents.iter().all(|byte| *byte == 0),
                };
                if !same {
                    out.push(page..page + PAGE_SIZE);
                }
            }
            at += want as u64;
        }
        Ok(out)
    }
}

impl Outcome for Known {
    fn sent(&mut self, page: u64, contents: &[u8]) {
        self.sent.set(&(page..page + PAGE_SIZE), true);
        self.hashes.insert(page, XxHash3_64::oneshot(contents));
    }

    fn must_tell_zero(&self, page: u64) -> bool {
        // A huge page of zeros is one of the pool all the same.
        self.sent.has(page) || (self.huge != 0 && page.is_multiple_of(self.huge))
    }

    fn same(&self, page: u64, contents: &[u8]) -> bool {
        // A huge page shows as written as a whole.
        self.huge != 0 && self.hashes.get(&page).is_some_and(|hash| *hash == XxHash3_64::oneshot(contents))
    }
}

struct ObjectPages<'a> {
    file: &'a File,
}

impl Contents for ObjectPages<'_> {
    fn read(&mut self, ranges: &[Range<u64>], buffer: &mut [u8]) -> io::Result<usize> {
        let mut done = 0;
        for range in ranges {
            let len = usize::try_from(range.end - range.start).unwrap_or(0);
            read_padded(self.file, range.start, &mut buffer[done..done + len])?;
            done += len;
        }
        Ok(done)
    }
}

/// Where the next contents begin; `None` = only a hole follows.
fn next_data(file: &File, at: u64) -> io::Result<Option<u64>> {
    let at = i64::try_from(at).map_err(io::Error::other)?;
    match nix::unistd::lseek(file, at, nix::unistd::Whence::SeekData) {
        Ok(data) => Ok(u64::try_from(data).ok()),
        Err(nix::errno::Errno::ENXIO) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

/// Fills the buffer; beyond the end of the file with zeros.
fn read_padded(file: &File, mut at: u64, mut buffer: &mut [u8]) -> io::Result<()> {
    while !buffer.is_empty() {
        match file.read_at(buffer, at) {
            Ok(0) => {
                buffer.fill(0);
                return Ok(());
            }
            Ok(got) => {
                at += got as u64;
                buffer = &mut buffer[got..];
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
