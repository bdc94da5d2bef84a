//! One round over one area.

use std::collections::{BTreeMap, HashMap, HashSet};
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
    /// The name under which a file with several was looked at in this round, by inode.
    pub(super) links: HashMap<u64, PathBuf>,
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
        for path in self.memory.not_met(self.number) {
            self.remove(&path)?;
        }
        self.finish()
    }

    /// Looks at these names alone; true: and at everything below.
    pub(super) fn names(mut self, mut names: BTreeMap<PathBuf, bool>) -> Result<(), FilesError> {
        for path in self.memory.doubtful(|ino| self.suspect.contains(&ino)) {
            names.entry(path.clone()).or_default();
        }
        let mut gone = Vec::new();
        for (path, made) in names {
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
            let before = self.memory.get(&path);
            // A directory that was made again may have the inode number that it had.
            let known = !made && before.is_some_and(|seen| seen.stamp.continues(&Stamp::of(&stat)));
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
            if memory.get(Path::new(OsStr::from_bytes(path))).is_some() {
                out.push(op)?;
            }
        }
        Ok(())
    }

    /// A name that the target has for what this new entry is, for a link to it: the file got another name, or was
    /// renamed (the old name is removed at the end). A regular file is compared after that; anything else must
    /// certainly be the same.
    fn known_name(&self, entry: &Entry<'_>, stamp: &Stamp) -> Option<PathBuf> {
        let still = |name: &Path| -> Option<bool> {
            let dir = open_dir(&self.area.dir, name.parent()?).ok()?;
            Some(look(&dir, name.file_name()?).ok()??.st_ino == stamp.ino)
        };
        self.memory.other_names(stamp.ino, entry.path).into_iter().find(|name| {
            let continues = self.memory.get(name).is_some_and(|seen| stamp.continues(&seen.stamp));
            continues && (entry.kind() == FileType::RegularFile || still(name) == Some(true))
        })
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

    fn symlink(
        &mut self,
        entry: &Entry<'_>,
        chunks: &mut Vec<ChunkHash>,
        new: bool,
    ) -> Result<bool, FilesError> {
        let (area, path) = (self.id, entry.bytes());
        let target = match readlinkat(entry.dir, entry.name, Vec::new()) {
            Ok(target) => target.into_bytes(),
            Err(Errno::NOENT | Errno::INVAL) => return Ok(false),
            Err(error) => return Err(FilesError::file("read", entry.path)(error)),
        };
        let now = vec![hash(&target)];
        if !new && *chunks != now {
            self.out.push(Op::Remove { area, path: path.clone() })?;
        }
        if new || *chunks != now {
            self.out.push(Op::Symlink { area, path, target })?;
        }
        *chunks = now;
        self.attributes(entry, false)?;
        Ok(true)
    }

    fn node(&mut self, entry: &Entry<'_>, new: bool) -> Result<bool, FilesError> {
        let (area, path, kind) = (self.id, entry.bytes(), entry.kind());
        if new {
            let device = entry.stat.st_rdev;
            self.out.push(match kind {
                FileType::Directory => Op::Directory { area, path },
                _ => Op::Node { area, path, kind: kind.as_raw_mode(), device },
            })?;
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
        let named_again = kind != FileType::Directory && entry.stat.st_nlink > 1;
        let before = self.memory.met(entry.path, self.number).cloned();
        let suspect = kind == FileType::RegularFile && self.suspect.contains(&stamp.ino);
        if before.as_ref().is_some_and(|seen| seen.stamp == stamp && !seen.racy) && !suspect {
            if named_again {
                self.links.entry(stamp.ino).or_insert_with(|| entry.path.to_owned());
            }
            return Ok(());
        }
        let same = before.as_ref().is_some_and(|seen| stamp.continues(&seen.stamp));
        if before.is_some() && !same {
            self.memory.forget(entry.path);
            self.out.push(Op::Remove { area: self.id, path: entry.bytes() })?;
        }
        let settled = self.links.get(&stamp.ino).filter(|_| named_again).cloned();
        let mut known = before.filter(|_| same);
        if known.is_none() && kind != FileType::Directory {
            let to = settled.clone().or_else(|| self.known_name(entry, &stamp));
            if let Some(to) = to {
                known = self.memory.get(&to).cloned();
                let to = to.as_os_str().as_bytes().to_vec();
                self.out.push(Op::HardLink { area: self.id, path: entry.bytes(), to })?;
            }
        }
        if let Some(settled) = settled.and_then(|name| self.memory.get(&name)) {
            // Content and attributes went with its first name in this round.
            let seen = Seen { round: self.number, ..settled.clone() };
            self.out.done.entries += 1;
            self.memory.insert(entry.path, seen);
            return Ok(());
        }
        let now = SystemTime::now();
        let new = known.is_none();
        let mut chunks = known.map(|seen| seen.chunks).unwrap_or_default();
        let sent = match kind {
            FileType::RegularFile => self.file(entry, &mut chunks, new)?,
            FileType::Symlink => self.symlink(entry, &mut chunks, new)?,
            _ => self.node(entry, new)?,
        };
        if !sent {
            return Ok(());
        }
        self.out.done.entries += 1;
        let seen = Seen { stamp, racy: stamp.is_racy(now), chunks, round: self.number };
        // Other names of it have the same content at the target.
        for name in self.memory.other_names(stamp.ino, entry.path) {
            if let Some(round) = self.memory.get(&name).map(|other| other.round) {
                self.memory.insert(&name, Seen { round, ..seen.clone() });
            }
        }
        self.memory.insert(entry.path, seen);
        if named_again {
            self.links.insert(stamp.ino, entry.path.to_owned());
        }
        Ok(())
    }
}
