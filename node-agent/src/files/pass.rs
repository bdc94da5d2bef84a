//! One round over one area.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, openat2, readlinkat, statat};
use rustix::io::Errno;

use super::op::{AreaId, ChunkHash, Op, hash};
use super::outbox::{Outbox, chunk, length};
use super::seen::{Memory, Seen, Stamp};
use super::walk::{Entry, Visitor, look, open_dir, strict, walk};
use super::watch::Watch;
use super::{Area, FilesError, meta};

/// What a round over an area works with.
pub(super) struct Pass<'a, 'b> {
    pub(super) id: AreaId,
    pub(super) area: &'a Area,
    pub(super) number: u64,
    pub(super) suspect: &'a HashSet<u64>,
    pub(super) memory: &'a mut Memory,
    pub(super) watch: &'a mut Watch,
    /// Names of files with several, by inode.
    pub(super) links: HashMap<u64, Vec<u8>>,
    /// Attributes of directories: set when nothing in them changes any more.
    pub(super) metas: Vec<Op>,
    pub(super) out: &'a mut Outbox<'b>,
}

impl Pass<'_, '_> {
    /// Looks at everything.
    pub(super) fn everything(mut self) -> Result<(), FilesError> {
        self.top()?;
        let area = self.area;
        walk(&area.dir, Path::new(""), &area.skip, &mut self)?;
        let number = self.number;
        let gone: Vec<PathBuf> = self
            .memory
            .0
            .iter()
            .filter(|(_, seen)| seen.round != number)
            .map(|(path, _)| path.clone())
            .collect();
        for path in gone {
            self.remove(&path)?;
        }
        self.finish()
    }

    /// Looks at these names alone.
    pub(super) fn names(mut self, mut names: BTreeSet<PathBuf>) -> Result<(), FilesError> {
        names.extend(self.memory.doubtful(|ino| self.suspect.contains(&ino)).cloned());
        let mut gone = Vec::new();
        for path in names {
            let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
                self.top()?;
                continue;
            };
            if parent.as_os_str().is_empty() && self.area.skip.iter().any(|skip| skip == name) {
                continue;
            }
            let failed = |error: Errno| FilesError::file::<io::Error>("read", &path)(error.into());
            let found = match open_dir(&self.area.dir, parent) {
                Ok(dir) => look(&dir, name).map_err(failed)?.map(|stat| (dir, stat)),
                Err(Errno::NOENT | Errno::NOTDIR | Errno::XDEV | Errno::LOOP) => None,
                Err(error) => return Err(failed(error)),
            };
            let Some((dir, stat)) = found else {
                gone.push(path);
                continue;
            };
            let known = self.memory.0.get(&path).is_some_and(|seen| seen.stamp.continues(&Stamp::of(&stat)));
            self.visit(&Entry { dir: &dir, name, path: &path, stat })?;
            if FileType::from_raw_mode(stat.st_mode) == FileType::Directory && !known {
                let area = self.area;
                walk(&area.dir, &path, &area.skip, &mut self)?;
            }
        }
        for path in gone {
            self.remove(&path)?;
        }
        self.finish()
    }

    /// The area's own directory.
    fn top(&mut self) -> Result<(), FilesError> {
        let area = self.area;
        let stat = statat(&area.dir, ".", AtFlags::empty()).map_err(FilesError::file("read", "."))?;
        self.visit(&Entry { dir: &area.dir, name: OsStr::new("."), path: Path::new(""), stat })
    }

    fn remove(&mut self, path: &Path) -> Result<(), FilesError> {
        // False: it went along with a directory above it, or was never sent.
        if !self.memory.forget(path) {
            return Ok(());
        }
        self.out.done.entries += 1;
        self.out.push(Op::Remove { area: self.id, path: path.as_os_str().as_bytes().to_vec() })
    }

    fn finish(self) -> Result<(), FilesError> {
        let Self { metas, memory, out, .. } = self;
        for op in metas {
            let Op::Attributes { path, .. } = &op else { continue };
            if memory.0.contains_key(Path::new(OsStr::from_bytes(path))) {
                out.push(op)?;
            }
        }
        Ok(())
    }

    /// The name under which a file with several names was sent already.
    fn first_name(&self, entry: &Entry<'_>, ino: u64) -> Option<Vec<u8>> {
        if entry.kind() != FileType::RegularFile || entry.stat.st_nlink < 2 {
            return None;
        }
        if let Some(name) = self.links.get(&ino) {
            return Some(name.clone());
        }
        // In a round over some names the others were not met.
        if self.memory.0.contains_key(entry.path) {
            return None;
        }
        let other = self.memory.other_name(ino, entry.path)?;
        let still = open_dir(&self.area.dir, other.parent()?).ok()?;
        let stat = look(&still, other.file_name()?).ok()??;
        (stat.st_ino == ino).then(|| other.as_os_str().as_bytes().to_vec())
    }

    /// Content that differs from what was sent, then the attributes. False when the file has vanished.
    fn file(
        &mut self,
        entry: &Entry<'_>,
        chunks: &mut Vec<ChunkHash>,
        new: bool,
    ) -> Result<bool, FilesError> {
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
            let zeros = new && data.iter().all(|byte| *byte == 0);
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

    fn other(&mut self, entry: &Entry<'_>, kind: FileType, same: bool) -> Result<bool, FilesError> {
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
        if !same {
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
}

impl Visitor for Pass<'_, '_> {
    fn enter(&mut self, dir: &OwnedFd, path: &Path) {
        self.watch.add(dir, path);
    }

    fn visit(&mut self, entry: &Entry<'_>) -> Result<(), FilesError> {
        let kind = entry.kind();
        let device = matches!(kind, FileType::CharacterDevice | FileType::BlockDevice);
        if device && self.area.skip_devices {
            return Ok(());
        }
        let stamp = Stamp::of(&entry.stat);
        let first_name = self.first_name(entry, stamp.ino);
        if kind != FileType::Directory && entry.stat.st_nlink > 1 {
            self.links.entry(stamp.ino).or_insert_with(|| entry.bytes());
        }
        let before = self.memory.0.get_mut(entry.path).map(|seen| {
            seen.round = self.number;
            seen.clone()
        });
        let suspect = kind == FileType::RegularFile && self.suspect.contains(&stamp.ino);
        if before.as_ref().is_some_and(|seen| seen.stamp == stamp && !seen.racy) && !suspect {
            return Ok(());
        }
        let same = before.as_ref().is_some_and(|seen| stamp.continues(&seen.stamp));
        if before.is_some() && !same {
            self.memory.forget(entry.path);
            self.out.push(Op::Remove { area: self.id, path: entry.bytes() })?;
        }
        let now = SystemTime::now();
        let mut chunks = before.filter(|_| same).map(|seen| seen.chunks).unwrap_or_default();
        let sent = match (kind, first_name) {
            (FileType::RegularFile, Some(to)) => {
                // Its content and attributes went with its first name.
                if !same {
                    self.out.push(Op::HardLink { area: self.id, path: entry.bytes(), to })?;
                }
                true
            }
            (FileType::RegularFile, None) => self.file(entry, &mut chunks, !same)?,
            _ => self.other(entry, kind, same)?,
        };
        if sent {
            self.out.done.entries += 1;
            let seen = Seen { stamp, racy: stamp.is_racy(now), chunks, round: self.number };
            self.memory.0.insert(entry.path.to_owned(), seen);
        }
        Ok(())
    }
}
