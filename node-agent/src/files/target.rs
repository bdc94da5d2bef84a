//! The receiving side. Whatever a batch says, nothing outside of the areas is touched: every path is
//! resolved by openat2(2) below the area's directory, through no link and into no other mount.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{
    AtFlags, FallocateFlags, FileType, Mode, OFlags, fallocate, linkat, mkdirat, mknodat, openat2, renameat,
    symlinkat,
};
use rustix::io::Errno;

use super::content::{CHUNK, ChunkHash, Extent, hash, scan, sum};
use super::op::{AreaId, Attributes, Op};
use super::place::{Place, remove};
use super::walk::{open_dir, strict};
use super::{Area, FilesError, meta};

/// Applies what a [`super::Source`] sends.
#[derive(Debug)]
pub struct Target {
    areas: Vec<OwnedFd>,
    log: PathBuf,
    file: Option<Open>,
}

/// No file system has larger blocks, nor a tmpfs larger pages, without saying so otherwise.
const BLOCK: usize = 65536;

/// The file that content comes for.
#[derive(Debug)]
struct Open {
    path: PathBuf,
    size: u64,
    /// It has no data yet, so holes need no making.
    fresh: bool,
    file: File,
}

impl Target {
    /// Applies to these areas, which are in the order that the source has them in. `log` is the log file here.
    #[must_use]
    pub fn new(areas: Vec<Area>, log: PathBuf) -> Self {
        Self { areas: areas.into_iter().map(|area| area.dir).collect(), log, file: None }
    }

    /// Applies one batch.
    ///
    /// # Errors
    /// [`FilesError::Refused`] for a malformed batch or a hostile path, or the operation that failed. What
    /// came before it in the batch was applied.
    pub fn apply(&mut self, batch: &[u8]) -> Result<(), FilesError> {
        let ops: Vec<Op> = postcard::from_bytes(batch)
            .map_err(|error| FilesError::Refused(format!("malformed: {error}")))?;
        ops.into_iter().try_for_each(|op| self.one(op))
    }

    fn one(&mut self, op: Op) -> Result<(), FilesError> {
        if !matches!(op, Op::Chunk { .. } | Op::Verify { .. }) {
            self.file = None;
        }
        match op {
            Op::Chunk { offset, length, extents, data, hash } => {
                self.chunk(offset, length, &extents, &data, hash)
            }
            Op::Verify { hash } => self.verify(hash),
            Op::Log { offset, data } => self.log(offset, &data),
            Op::File { area, path, size, fresh } => self.open_file(area, &path, size, fresh),
            Op::Rename { area, path, to } => {
                let (from, to) = (self.place(area, &path)?, self.place(area, &to)?);
                if from.kind()? != Some(FileType::Directory) || to.path.starts_with(&from.path) {
                    return Err(FilesError::Refused(format!("renaming {}", from.path.display())));
                }
                to.clear()?;
                renameat(&from.dir, from.name(), &to.dir, to.name())
                    .map_err(FilesError::file("rename", from.path))
            }
            Op::Remove { area, path } => {
                let place = self.place(area, &path)?;
                remove(&place.dir, place.name()).map_err(FilesError::file("remove", place.path.clone()))
            }
            Op::Directory { area, path } if path.is_empty() => self.area(area).map(|_| ()),
            Op::Directory { area, path } => {
                let place = self.place(area, &path)?;
                match mkdirat(&place.dir, place.name(), Mode::from_raw_mode(0o700)) {
                    Err(Errno::EXIST) if place.kind()? == Some(FileType::Directory) => Ok(()),
                    Err(Errno::EXIST) => {
                        place.clear()?;
                        mkdirat(&place.dir, place.name(), Mode::from_raw_mode(0o700))
                            .map_err(FilesError::file("make", place.path))
                    }
                    result => result.map_err(FilesError::file("make", place.path)),
                }
            }
            Op::HardLink { area, path, to } => {
                let (place, old) = (self.place(area, &path)?, self.place(area, &to)?);
                place.clear()?;
                linkat(&old.dir, old.name(), &place.dir, place.name(), AtFlags::empty())
                    .map_err(FilesError::file("link", place.path))
            }
            Op::Symlink { area, path, target } => {
                let place = self.place(area, &path)?;
                place.clear()?;
                symlinkat(OsStr::from_bytes(&target), &place.dir, place.name())
                    .map_err(FilesError::file("link", place.path))
            }
            Op::Node { area, path, kind, device } => {
                let place = self.place(area, &path)?;
                let kind = FileType::from_raw_mode(kind);
                let known =
                    [FileType::Fifo, FileType::Socket, FileType::CharacterDevice, FileType::BlockDevice];
                if !known.contains(&kind) {
                    return Err(FilesError::Refused(format!("a node of type {kind:?}")));
                }
                place.clear()?;
                mknodat(&place.dir, place.name(), kind, Mode::from_raw_mode(0o600), device)
                    .map_err(FilesError::file("make", place.path))
            }
            Op::Attributes { area, path, attributes } => self.attributes(area, &path, &attributes),
        }
    }

    fn attributes(&self, area: AreaId, path: &[u8], attributes: &Attributes) -> Result<(), FilesError> {
        if path.is_empty() {
            let dir = self.area(area)?;
            return meta::apply(dir, Path::new("."), FileType::Directory, attributes)
                .map_err(FilesError::file("set attributes of", "."));
        }
        let place = self.place(area, path)?;
        let Some(kind) = place.kind()? else {
            return Err(FilesError::Refused(format!("attributes of nothing at {}", place.path.display())));
        };
        meta::apply(&place.dir, Path::new(place.name()), kind, attributes)
            .map_err(FilesError::file("set attributes of", place.path))
    }

    fn open_file(&mut self, area: AreaId, path: &[u8], size: u64, fresh: bool) -> Result<(), FilesError> {
        let place = self.place(area, path)?;
        if fresh && !place.is_placeholder()? {
            place.clear()?;
        }
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let open = || -> io::Result<File> {
            let file: File =
                openat2(&place.dir, place.name(), flags, Mode::from_raw_mode(0o600), strict())?.into();
            if !file.metadata()?.is_file() {
                return Err(io::Error::new(io::ErrorKind::AlreadyExists, "it is no regular file"));
            }
            file.set_len(size)?;
            Ok(file)
        };
        let file = open().map_err(FilesError::file("write", place.path.clone()))?;
        self.file = Some(Open { path: place.path, size, fresh, file });
        Ok(())
    }

    fn chunk(
        &mut self,
        offset: u64,
        length: u32,
        extents: &[Extent],
        data: &[u8],
        expected: ChunkHash,
    ) -> Result<(), FilesError> {
        let Some(open) = &self.file else {
            return Err(FilesError::Refused("content without a file".to_owned()));
        };
        let refused = |why: &str| FilesError::Refused(format!("content of {} {why}", open.path.display()));
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        let inside = offset.checked_add(length as u64).is_some_and(|end| end <= open.size);
        if length > CHUNK || !inside {
            return Err(refused("lies outside of it"));
        }
        // As it will read, so that the hash says whether it is what was sent.
        let mut bytes = vec![0; length];
        let (mut pieces, mut rest, mut end) = (Vec::new(), data, 0);
        for extent in extents {
            let range = extent.range(length).filter(|range| range.start >= end && range.len() <= rest.len());
            let range = range.ok_or_else(|| refused("has pieces that do not fit"))?;
            let (now, later) = rest.split_at(range.len());
            bytes[range.clone()].copy_from_slice(now);
            (rest, end) = (later, range.end);
            pieces.push(range);
        }
        if !rest.is_empty() || hash(&bytes) != expected {
            return Err(refused("does not match its hash"));
        }
        let write = || -> io::Result<()> {
            let mut at = 0;
            for piece in &pieces {
                hole(open, offset, at..piece.start)?;
                open.file.write_all_at(&bytes[piece.clone()], offset + piece.start as u64)?;
                at = piece.end;
            }
            // One at the end goes beyond it: a page that is cut off is given back as a whole only so.
            let last = offset + length as u64 == open.size && at < length;
            hole(open, offset, at..if last { length.next_multiple_of(BLOCK) } else { length })
        };
        write().map_err(FilesError::file("write", &open.path))
    }

    /// Reads the open file again.
    fn verify(&self, expected: ChunkHash) -> Result<(), FilesError> {
        let Some(open) = &self.file else {
            return Err(FilesError::Refused("a hash without a file".to_owned()));
        };
        let found = scan(&open.file, open.size).map_err(FilesError::file("read", &open.path))?;
        if sum(open.size, &found) == expected { Ok(()) } else { Err(FilesError::Differs(open.path.clone())) }
    }

    fn log(&mut self, offset: u64, data: &[u8]) -> Result<(), FilesError> {
        let write = || -> io::Result<()> {
            let file = File::options().create(true).truncate(false).write(true).open(&self.log)?;
            file.write_all_at(data, offset)
        };
        write().map_err(FilesError::file("write", &self.log))
    }

    fn area(&self, area: AreaId) -> Result<&OwnedFd, FilesError> {
        self.areas.get(usize::from(area)).ok_or_else(|| FilesError::Refused(format!("area {area}")))
    }

    /// Checks a path and opens the directory that its last component is in.
    fn place(&self, area: AreaId, path: &[u8]) -> Result<Place, FilesError> {
        let root = self.area(area)?;
        let path = PathBuf::from(OsStr::from_bytes(path));
        let hostile = || FilesError::Refused(format!("the path {}", path.display()));
        let plain = path.components().all(|part| matches!(part, Component::Normal(_)));
        let clean = !path
            .as_os_str()
            .as_bytes()
            .split(|byte| *byte == b'/')
            .any(|part| part.is_empty() || part == b".");
        if !plain || !clean || path.file_name().is_none() || path.as_os_str().as_bytes().contains(&0) {
            return Err(hostile());
        }
        let parent = path.parent().unwrap_or(Path::new(""));
        let dir = match open_dir(root, parent) {
            Ok(dir) => dir,
            Err(Errno::LOOP | Errno::XDEV) => return Err(hostile()),
            Err(error) => return Err(FilesError::file("open", parent)(error)),
        };
        Ok(Place { dir, path })
    }
}

/// Makes a part of a chunk a hole, or zeros where the file system has none.
fn hole(open: &Open, offset: u64, part: std::ops::Range<usize>) -> io::Result<()> {
    if open.fresh || part.is_empty() {
        return Ok(());
    }
    let at = offset + part.start as u64;
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    match fallocate(&open.file, flags, at, part.len() as u64) {
        Err(Errno::OPNOTSUPP) => open.file.write_all_at(&vec![0; part.len()], at),
        result => Ok(result?),
    }
}
