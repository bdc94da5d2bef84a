//! The sending side.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::{FileType, Mode, OFlags, Stat, openat2, readlinkat};
use rustix::io::Errno;

use super::op::{AreaId, CHUNK, ChunkHash, Op, hash};
use super::walk::{Entry, strict, walk};
use super::{Area, FilesError, meta};

/// Times this near to the moment of looking cannot tell whether a file changes again.
const RACY: Duration = Duration::from_millis(20);

/// A batch is sent when it holds this much.
const BATCH: usize = 2 * CHUNK;

/// What one round did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Round {
    /// Entries made, changed or removed.
    pub entries: u64,
    /// Bytes of content sent.
    pub bytes: u64,
}

/// The files of a container, as far as they were sent.
#[derive(Debug)]
pub struct Source {
    areas: Vec<Area>,
    log: PathBuf,
    log_sent: u64,
    seen: HashMap<(AreaId, PathBuf), Seen>,
}

/// An entry as it was when it was sent.
#[derive(Clone, Debug)]
struct Seen {
    stamp: Stamp,
    racy: bool,
    chunks: Vec<ChunkHash>,
    round: u64,
}

/// What a change cannot leave as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    ino: u64,
    mode: u32,
    size: i64,
    device: u64,
    mtime: (i64, u64),
    ctime: (i64, u64),
}

impl Stamp {
    fn of(stat: &Stat) -> Self {
        Self {
            ino: stat.st_ino,
            mode: stat.st_mode,
            size: stat.st_size,
            device: stat.st_rdev,
            mtime: (stat.st_mtime, stat.st_mtime_nsec),
            ctime: (stat.st_ctime, stat.st_ctime_nsec),
        }
    }

    fn is_racy(&self, now: SystemTime) -> bool {
        let age = |(seconds, nanos): (i64, u64)| {
            let at = u64::try_from(seconds).ok()?;
            let at = SystemTime::UNIX_EPOCH + Duration::from_secs(at) + Duration::from_nanos(nanos);
            now.duration_since(at).ok()
        };
        [self.mtime, self.ctime].into_iter().any(|time| age(time).is_none_or(|age| age < RACY))
    }
}

impl Source {
    /// The files in these areas; `log` is the container's log file.
    #[must_use]
    pub fn new(areas: Vec<Area>, log: PathBuf) -> Self {
        Self { areas, log, log_sent: 0, seen: HashMap::new() }
    }

    /// Sends what is new, changed or gone since the last round. `number` grows with every round; files whose
    /// inode is in `suspect` are compared by content whatever their times say.
    ///
    /// # Errors
    /// When something cannot be read or sent. What was sent is remembered.
    pub fn round(
        &mut self,
        number: u64,
        suspect: &HashSet<u64>,
        send: &mut dyn FnMut(&[u8]) -> io::Result<()>,
    ) -> Result<Round, FilesError> {
        let mut out = Outbox { send, ops: Vec::new(), size: 0, done: Round::default() };
        let Self { areas, seen, .. } = self;
        for (index, area) in areas.iter().enumerate() {
            let id = AreaId::try_from(index).map_err(|_| FilesError::Refused("too many areas".to_owned()))?;
            let mut pass = Pass {
                id,
                area,
                number,
                suspect,
                seen,
                links: HashMap::new(),
                metas: Vec::new(),
                out: &mut out,
            };
            walk(&area.dir, &area.skip, &mut |entry| pass.visit(entry))?;
            let metas = pass.finish()?;
            for op in metas {
                out.push(op)?;
            }
        }
        self.log(&mut out)?;
        out.flush()?;
        Ok(out.done)
    }

    fn log(&mut self, out: &mut Outbox<'_>) -> Result<(), FilesError> {
        let failed = |error| FilesError::file("read", &self.log)(error);
        let file = match File::open(&self.log) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(failed(error)),
        };
        loop {
            let data = chunk(&file, self.log_sent).map_err(failed)?;
            if data.is_empty() {
                return Ok(());
            }
            let offset = self.log_sent;
            self.log_sent += length(&data);
            out.push(Op::Log { offset, data })?;
        }
    }
}

/// One area in one round.
struct Pass<'a, 'b> {
    id: AreaId,
    area: &'a Area,
    number: u64,
    suspect: &'a HashSet<u64>,
    seen: &'a mut HashMap<(AreaId, PathBuf), Seen>,
    /// Names of files with several, by inode.
    links: HashMap<u64, Vec<u8>>,
    /// Attributes of directories: set when nothing in them changes any more.
    metas: Vec<Op>,
    out: &'a mut Outbox<'b>,
}

impl Pass<'_, '_> {
    fn visit(&mut self, entry: &Entry<'_>) -> Result<(), FilesError> {
        let kind = entry.kind();
        let device = matches!(kind, FileType::CharacterDevice | FileType::BlockDevice);
        if device && self.area.skip_devices {
            return Ok(());
        }
        let stamp = Stamp::of(&entry.stat);
        let key = (self.id, entry.path.to_owned());
        let before = self.seen.get_mut(&key).map(|seen| {
            seen.round = self.number;
            seen.clone()
        });
        let suspect = kind == FileType::RegularFile && self.suspect.contains(&stamp.ino);
        let first_name = match kind {
            FileType::RegularFile if entry.stat.st_nlink > 1 => self.links.get(&stamp.ino).cloned(),
            _ => None,
        };
        if kind != FileType::Directory && entry.stat.st_nlink > 1 {
            self.links.entry(stamp.ino).or_insert_with(|| entry.bytes());
        }
        if before.as_ref().is_some_and(|seen| seen.stamp == stamp && !seen.racy) && !suspect {
            return Ok(());
        }
        let same_file = before
            .as_ref()
            .is_some_and(|seen| seen.stamp.ino == stamp.ino && seen.stamp.mode >> 12 == stamp.mode >> 12);
        if before.is_some() && !same_file {
            self.out.push(Op::Remove { area: self.id, path: entry.bytes() })?;
        }
        let now = SystemTime::now();
        let mut chunks = before.filter(|_| same_file).map(|seen| seen.chunks).unwrap_or_default();
        let sent = match (kind, first_name) {
            (FileType::RegularFile, Some(to)) => {
                // Its content and attributes went with its first name.
                if !same_file {
                    self.out.push(Op::HardLink { area: self.id, path: entry.bytes(), to })?;
                }
                true
            }
            (FileType::RegularFile, None) => self.file(entry, &mut chunks)?,
            _ => self.other(entry, kind, same_file)?,
        };
        if !sent {
            return Ok(());
        }
        self.out.done.entries += 1;
        let seen = Seen { stamp, racy: stamp.is_racy(now), chunks, round: self.number };
        self.seen.insert(key, seen);
        Ok(())
    }

    /// Content that differs from what was sent, then the attributes. False when the file has vanished.
    fn file(&mut self, entry: &Entry<'_>, chunks: &mut Vec<ChunkHash>) -> Result<bool, FilesError> {
        let failed = |error: io::Error| FilesError::file("read", entry.path)(error);
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOATIME;
        let file: File = match openat2(entry.dir, entry.name, flags, Mode::empty(), strict()) {
            Ok(file) => file.into(),
            Err(Errno::NOENT | Errno::LOOP) => return Ok(false),
            Err(error) => return Err(failed(error.into())),
        };
        let metadata = file.metadata().map_err(failed)?;
        if !metadata.is_file() {
            return Ok(false);
        }
        let size = metadata.len();
        self.out.push(Op::File { area: self.id, path: entry.bytes(), size })?;
        let fresh = chunks.is_empty();
        let mut offset = 0;
        let mut now = Vec::new();
        while offset < size {
            let data = chunk(&file, offset).map_err(failed)?;
            if data.is_empty() {
                break;
            }
            let hash = hash(&data);
            let known = chunks.get(now.len()) == Some(&hash);
            now.push(hash);
            let next = offset + length(&data);
            // A new file is all zeros already.
            let zeros = fresh && data.iter().all(|byte| *byte == 0);
            if !known && !zeros {
                self.out.done.bytes += length(&data);
                self.out.push(Op::Chunk { offset, data, hash })?;
            }
            offset = next;
        }
        *chunks = now;
        self.attributes(entry, false)?;
        Ok(true)
    }

    fn other(&mut self, entry: &Entry<'_>, kind: FileType, same_file: bool) -> Result<bool, FilesError> {
        let (area, path) = (self.id, entry.bytes());
        let op = match kind {
            FileType::Directory => Op::Directory { area, path },
            FileType::Symlink => match readlinkat(entry.dir, entry.name, Vec::new()) {
                Ok(target) => Op::Symlink { area, path, target: target.into_bytes() },
                Err(Errno::NOENT | Errno::INVAL) => return Ok(false),
                Err(error) => return Err(FilesError::file("read", entry.path)(error)),
            },
            _ => Op::Node { area, path, kind: kind.as_raw_mode(), device: entry.stat.st_rdev },
        };
        if !same_file {
            self.out.push(op)?;
        }
        self.attributes(entry, kind == FileType::Directory)?;
        Ok(true)
    }

    fn attributes(&mut self, entry: &Entry<'_>, later: bool) -> Result<(), FilesError> {
        let attributes = match meta::read(entry.dir, Path::new(entry.name), &entry.stat) {
            Ok(attributes) => attributes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(FilesError::file("read", entry.path)(error)),
        };
        let op = Op::Attributes { area: self.id, path: entry.bytes(), attributes };
        if later {
            self.metas.push(op);
            return Ok(());
        }
        self.out.push(op)
    }

    /// What is gone is removed; then directories get their attributes.
    fn finish(self) -> Result<Vec<Op>, FilesError> {
        let Self { id, number, seen, metas, out, .. } = self;
        let mut gone: BTreeMap<PathBuf, ()> = BTreeMap::new();
        seen.retain(|(area, path), entry| {
            let keep = *area != id || entry.round == number;
            if !keep {
                gone.insert(path.clone(), ());
            }
            keep
        });
        for path in gone.keys() {
            // What is below a removed directory goes with it.
            if path.parent().is_some_and(|parent| gone.contains_key(parent)) {
                continue;
            }
            out.done.entries += 1;
            out.push(Op::Remove { area: id, path: path.as_os_str().as_bytes().to_vec() })?;
        }
        Ok(metas)
    }
}

/// Operations on their way.
struct Outbox<'a> {
    send: &'a mut dyn FnMut(&[u8]) -> io::Result<()>,
    ops: Vec<Op>,
    size: usize,
    done: Round,
}

impl Outbox<'_> {
    fn push(&mut self, op: Op) -> Result<(), FilesError> {
        self.size += match &op {
            Op::Chunk { data, .. } | Op::Log { data, .. } => data.len(),
            Op::Attributes { attributes, .. } => attributes.xattrs.iter().map(|(_, value)| value.len()).sum(),
            _ => 0,
        } + 512;
        self.ops.push(op);
        if self.size >= BATCH { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<(), FilesError> {
        if self.ops.is_empty() {
            return Ok(());
        }
        let bytes =
            postcard::to_stdvec(&self.ops).map_err(|error| FilesError::Send(io::Error::other(error)))?;
        self.ops.clear();
        self.size = 0;
        (self.send)(&bytes).map_err(FilesError::Send)
    }
}

/// Up to [`CHUNK`] bytes at `offset`; fewer only at the end of the file.
fn chunk(file: &File, offset: u64) -> io::Result<Vec<u8>> {
    let mut data = vec![0; CHUNK];
    let mut filled = 0;
    while filled < CHUNK {
        let at = offset + length(&data[..filled]);
        match file.read_at(&mut data[filled..], at)? {
            0 => break,
            more => filled += more,
        }
    }
    data.truncate(filled);
    Ok(data)
}

fn length(data: &[u8]) -> u64 {
    data.len() as u64
}
