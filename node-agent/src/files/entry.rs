//! What a round sends of one entry.

use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use rustix::fs::{FileType, Mode, OFlags, Stat, fstat, openat2, readlinkat};
use rustix::io::Errno;

use super::content::{self, Known};
use super::op::Op;
use super::outbox::Outbox;
use super::pass::Pass;
use super::seen::{Seen, Stamp};
use super::walk::{Entry, look, open_dir, strict};
use super::watch::Touch;
use super::{FilesError, meta};

/// How often a file that changes while it is copied is copied again, when nothing should write to it.
const TRIES: usize = 5;
/// Files up to this many chunks are read again at the target in the last round, too.
const SMALL: u64 = 4;

/// How much of a file's content is looked at.
#[derive(Clone, Copy, Debug)]
enum Compare<'a> {
    Everything,
    /// Chunks that these pieces (first byte, end) lie in.
    Ranges(&'a [(u64, u64)]),
    Nothing,
}

impl Compare<'_> {
    fn includes(&self, index: u64) -> bool {
        match self {
            Self::Everything => true,
            Self::Nothing => false,
            Self::Ranges(ranges) => ranges.iter().any(|(start, end)| {
                end > start && (content::index_of(*start)..=content::index_of(end - 1)).contains(&index)
            }),
        }
    }
}

/// What the target has of a file.
struct There<'a> {
    /// `None`: it has no such file.
    size: Option<u64>,
    chunks: &'a [Known],
}

impl Pass<'_, '_> {
    /// Sends what is new of this entry. `touch` says what is known to have happened to it; `None`: nobody knows, and
    /// its stamp tells.
    pub(super) fn entry(&mut self, entry: &Entry<'_>, touch: Option<Touch>) -> Result<(), FilesError> {
        let kind = entry.kind();
        let device = matches!(kind, FileType::CharacterDevice | FileType::BlockDevice);
        if device && self.area.skip_devices {
            return Ok(());
        }
        let mut stamp = Stamp::of(&entry.stat);
        let named_again = kind != FileType::Directory && stamp.links > 1;
        let before = self.memory.met(entry.path, self.number).cloned();
        let same = before.as_ref().is_some_and(|seen| stamp.continues(&seen.stamp));
        if !same && kind != FileType::Directory {
            self.watch.add_file(entry.dir, entry.name, stamp.ino);
            if named_again {
                // It may have been written to through a name elsewhere, just before it was watched.
                let failed = |error: Errno| FilesError::file("read", entry.path)(error);
                match look(entry.dir, entry.name).map_err(failed)? {
                    Some(stat) if Stamp::of(&stat).continues(&stamp) => stamp = Stamp::of(&stat),
                    _ => return Ok(()),
                }
            }
        }
        let mut touch = touch;
        if let Some(happened) = self.inodes.get(&stamp.ino).filter(|_| kind != FileType::Directory) {
            *touch.get_or_insert_default() |= *happened;
        }
        let suspects = self.suspects;
        let ranges = suspects.mapped.get(&stamp.ino).filter(|_| kind == FileType::RegularFile);
        let stands = before.as_ref().is_some_and(|seen| seen.stamp == stamp && !seen.racy) && !self.untold;
        if stands && touch.is_none() && ranges.is_none() {
            if named_again {
                self.links.entry(stamp.ino).or_insert_with(|| (entry.path.to_owned(), false));
            }
            return Ok(());
        }
        if before.is_some() && !same {
            self.memory.forget(entry.path);
            self.out.push(Op::Remove { area: self.id, path: entry.bytes() })?;
        }
        let compared = |(name, compared): &(PathBuf, bool)| (named_again && *compared).then(|| name.clone());
        let settled = self.links.get(&stamp.ino).and_then(compared);
        // It may have been renamed together with its directory since.
        let settled = settled.filter(|name| self.memory.get(name).is_some());
        let mut known = before.filter(|_| same);
        let mut linked = false;
        if known.is_none() {
            known = self.another_name(entry, &stamp, settled.as_deref())?;
            linked = known.is_some() && kind != FileType::Directory;
        }
        if let Some(settled) = settled.and_then(|name| self.memory.get(&name)) {
            // Content and attributes went with its first name in this round.
            let seen = Seen { round: self.number, ..settled.clone() };
            self.out.done.entries += 1;
            self.memory.insert(entry.path, seen);
            return Ok(());
        }
        let sent = match kind {
            FileType::RegularFile => self.regular(entry, known.as_ref(), touch, stamp)?,
            _ => self.special(entry, known.as_ref(), stamp)?,
        };
        let Some(seen) = sent else {
            if linked {
                // Nothing remembers the name that the target was just given.
                self.out.push(Op::Remove { area: self.id, path: entry.bytes() })?;
            }
            return Ok(());
        };
        self.out.done.entries += 1;
        // Other names of it have the same content at the target.
        for name in self.memory.other_names(stamp.ino, entry.path) {
            if let Some(round) = self.memory.get(&name).map(|other| other.round) {
                self.memory.insert(&name, Seen { round, ..seen.clone() });
            }
        }
        self.memory.insert(entry.path, seen);
        if named_again {
            self.links.insert(stamp.ino, (entry.path.to_owned(), true));
        }
        Ok(())
    }

    /// Gives a new entry what the target has under another name: the file got one more, or it or the directory was
    /// renamed. What of its content differs is sent after that.
    fn another_name(
        &mut self,
        entry: &Entry<'_>,
        stamp: &Stamp,
        settled: Option<&Path>,
    ) -> Result<Option<Seen>, FilesError> {
        let area = self.id;
        if entry.kind() == FileType::Directory {
            let Some(old) = self.memory.directory(stamp.ino).map(Path::to_owned) else { return Ok(None) };
            if old == entry.path || entry.path.starts_with(&old) || self.still(&old, stamp) {
                return Ok(None);
            }
            let path = old.as_os_str().as_bytes().to_vec();
            self.out.push(Op::Rename { area, path, to: entry.bytes() })?;
            self.memory.rename(&old, entry.path);
            return Ok(self.memory.get(entry.path).cloned());
        }
        let other = || {
            self.memory.other_names(stamp.ino, entry.path).into_iter().find(|name| {
                let continues = self.memory.get(name).is_some_and(|seen| stamp.continues(&seen.stamp));
                // An inode number may have been used again: content is compared, anything else must be the same.
                continues && (entry.kind() == FileType::RegularFile || self.still(name, stamp))
            })
        };
        let Some(to) = settled.map(Path::to_owned).or_else(other) else { return Ok(None) };
        let known = self.memory.get(&to).cloned();
        let to = to.as_os_str().as_bytes().to_vec();
        self.out.push(Op::HardLink { area, path: entry.bytes(), to })?;
        Ok(known)
    }

    /// The source has this inode under this name.
    fn still(&self, name: &Path, stamp: &Stamp) -> bool {
        let find = || -> Option<u64> {
            let dir = open_dir(&self.area.dir, name.parent()?).ok()?;
            Some(look(&dir, name.file_name()?).ok()??.st_ino)
        };
        find() == Some(stamp.ino)
    }

    /// A regular file: content that differs from what was sent, then the attributes. `None` when it has vanished.
    fn regular(
        &mut self,
        entry: &Entry<'_>,
        known: Option<&Seen>,
        touch: Option<Touch>,
        stamp: Stamp,
    ) -> Result<Option<Seen>, FilesError> {
        let failed = |error: io::Error| FilesError::file("read", entry.path)(error);
        let ranges = self.suspects.mapped.get(&stamp.ino).map(Vec::as_slice);
        let compare = match (known, touch) {
            (None, _) => Compare::Everything,
            (_, Some(touch)) if touch.content => Compare::Everything,
            _ if self.untold => Compare::Everything,
            (Some(seen), _) if !stamp.same_content(&seen.stamp) => Compare::Everything,
            // Nobody has told what happened: a change of times may hide one of content.
            (Some(seen), None) if seen.racy || seen.stamp != stamp => Compare::Everything,
            _ => ranges.map_or(Compare::Nothing, Compare::Ranges),
        };
        let mut chunks = known.map_or_else(|| Arc::from([]), |seen| Arc::clone(&seen.chunks));
        let mut size = known.map(|seen| seen.stamp.size());
        let (mut stamp, mut stat) = (stamp, entry.stat);
        if !matches!(compare, Compare::Nothing) {
            let flags =
                OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOATIME;
            let file: File = match openat2(entry.dir, entry.name, flags, Mode::empty(), strict()) {
                Ok(file) => file.into(),
                // Gone, or something else has the name now: the next round tells.
                Err(Errno::NOENT | Errno::LOOP | Errno::NXIO) => return Ok(None),
                Err(error) => return Err(failed(error.into())),
            };
            let mut compare = compare;
            for attempt in 0.. {
                let begun = fstat(&file).map_err(|error| failed(error.into()))?;
                if !Stamp::of(&begun).continues(&stamp) {
                    return Ok(None);
                }
                (stamp, stat) = (Stamp::of(&begun), begun);
                let there = There { size, chunks: &chunks };
                chunks = self.content(entry, &file, stamp.size(), &there, compare).map(Arc::from)?;
                size = Some(stamp.size());
                let ended = Stamp::of(&fstat(&file).map_err(|error| failed(error.into()))?);
                // Otherwise the next round copies it again: its stamp is another one then.
                if ended == stamp || !self.last {
                    break;
                }
                if attempt == TRIES {
                    return Err(FilesError::Unsettled(entry.path.to_owned()));
                }
                compare = Compare::Everything;
            }
        }
        let racy = stamp.is_racy(SystemTime::now());
        self.attributes(entry, &stat, false)?;
        Ok(Some(Seen { stamp, racy, chunks, round: self.number }))
    }

    /// Sends chunks that differ from what is there; gives what the target has then.
    fn content(
        &mut self,
        entry: &Entry<'_>,
        file: &File,
        size: u64,
        there: &There<'_>,
        compare: Compare<'_>,
    ) -> Result<Vec<Known>, FilesError> {
        let failed = |error: io::Error| FilesError::file("read", entry.path)(error);
        let fresh = there.size.is_none();
        let mut open = Some(Op::File { area: self.id, path: entry.bytes(), size, fresh });
        // Not without need: the file may be one that runs, and such a file cannot be opened for writing.
        let mut announce = |out: &mut Outbox<'_>| open.take().map_or(Ok(()), |op| out.push(op));
        if there.size != Some(size) {
            announce(self.out)?;
        }
        let mut now = Vec::new();
        let mut changed = there.size != Some(size);
        let mut from = 0;
        let mut old = there.chunks.iter().copied().peekable();
        loop {
            let data = content::next(file, from, size).map_err(failed)?;
            let index = match (data, old.peek().map(|known| known.index)) {
                (None, None) => break,
                (Some(data), Some(known)) => data.min(known),
                (data, known) => data.or(known).unwrap_or(0),
            };
            let known = old.next_if(|known| known.index == index);
            from = index + 1;
            if content::begins(index) >= size {
                // Cut off: the new size says it.
                continue;
            }
            if !compare.includes(index) {
                now.extend(known);
                continue;
            }
            let chunk = content::read(file, index, size).map_err(failed)?;
            let is = chunk.known();
            let holes = chunk.extents.is_empty();
            if !holes {
                now.push(is);
            }
            if known != Some(is) && !(holes && known.is_none()) {
                announce(self.out)?;
                changed = true;
                let (offset, length, hash) = (chunk.offset(), chunk.length(), is.content);
                let (extents, data) = chunk.parts();
                self.out.done.bytes += data.len() as u64;
                self.out.push(Op::Chunk { offset, length, extents, data, hash })?;
            }
        }
        let small = content::begins(SMALL) >= size;
        if changed && (small || !self.last) {
            self.out.push(Op::Verify { hash: content::sum(size, &now) })?;
        }
        Ok(now)
    }

    /// A directory, symbolic link, fifo, socket or device node. `None` when it has vanished.
    fn special(
        &mut self,
        entry: &Entry<'_>,
        known: Option<&Seen>,
        stamp: Stamp,
    ) -> Result<Option<Seen>, FilesError> {
        let (area, path, kind) = (self.id, entry.bytes(), entry.kind());
        let now = SystemTime::now();
        let mut chunks: Arc<[Known]> = Arc::from([]);
        if kind == FileType::Symlink {
            let target = match readlinkat(entry.dir, entry.name, Vec::new()) {
                Ok(target) => target.into_bytes(),
                Err(Errno::NOENT | Errno::INVAL) => return Ok(None),
                Err(error) => return Err(FilesError::file("read", entry.path)(error)),
            };
            chunks = Arc::from([Known { index: 0, content: content::hash(&target), layout: 0 }]);
            let differs = known.is_none_or(|seen| seen.chunks != chunks);
            if known.is_some() && differs {
                self.out.push(Op::Remove { area, path: path.clone() })?;
            }
            if differs {
                self.out.push(Op::Symlink { area, path, target })?;
            }
        } else if known.is_none() {
            self.out.push(match kind {
                FileType::Directory => Op::Directory { area, path },
                _ => Op::Node { area, path, kind: kind.as_raw_mode(), device: entry.stat.st_rdev },
            })?;
        }
        self.attributes(entry, &entry.stat, kind == FileType::Directory)?;
        Ok(Some(Seen { stamp, racy: stamp.is_racy(now), chunks, round: self.number }))
    }

    fn attributes(&mut self, entry: &Entry<'_>, stat: &Stat, later: bool) -> Result<(), FilesError> {
        let attributes = match meta::read(entry.dir, Path::new(entry.name), stat) {
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

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::ffi::OsStr;

    use super::*;
    use crate::files::seen::Memory;
    use crate::files::watch::Watch;
    use crate::files::{Area, Suspects};

    /// An inode number is used again by a file that vanishes before it is opened: the name that the target was given of
    /// the file that had the number before does not stay there.
    #[test]
    fn a_name_that_vanishes_leaves_nothing_at_the_target() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("old"), "x").unwrap();
        let area = Area::new(File::open(dir.path()).unwrap().into(), "/");
        let stat = look(&area.dir, OsStr::new("old")).unwrap().unwrap();
        let mut sent = Vec::new();
        let mut send = |batch: &[u8]| {
            sent.extend(postcard::from_bytes::<Vec<Op>>(batch).unwrap());
            Ok(())
        };
        let mut out = Outbox::new(&mut send);
        let (mut memory, mut watch) = (Memory::default(), Watch::Nothing);
        let mut pass = Pass {
            id: 0,
            area: &area,
            number: 1,
            last: false,
            suspects: &Suspects::default(),
            memory: &mut memory,
            watch: &mut watch,
            untold: false,
            inodes: HashMap::new(),
            links: HashMap::new(),
            metas: Vec::new(),
            out: &mut out,
        };
        for name in ["old", "vanished"] {
            let entry = Entry { dir: &area.dir, name: OsStr::new(name), path: Path::new(name), stat };
            pass.entry(&entry, Some(Touch { made: true, content: true })).unwrap();
        }
        out.flush().unwrap();
        assert!(memory.get(Path::new("vanished")).is_none());
        let about: Vec<&Op> =
            sent.iter().filter(|op| format!("{op:?}").contains(&format!("{:?}", b"vanished"))).collect();
        assert!(matches!(about[..], [Op::HardLink { .. }, Op::Remove { .. }]), "{about:?}");
    }
}
