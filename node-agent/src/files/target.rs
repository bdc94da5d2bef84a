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
    AtFlags, FileType, Mode, OFlags, linkat, mkdirat, mknodat, openat2, statat, symlinkat, unlinkat,
};
use rustix::io::Errno;

use super::op::{AreaId, CHUNK, Op, hash};
use super::walk::{open_dir, strict};
use super::{Area, FilesError, meta};

/// Deepest directory below an area; removing recurses.
const MAX_DEPTH: usize = 512;

/// Applies what a [`super::Source`] sends.
#[derive(Debug)]
pub struct Target {
    areas: Vec<OwnedFd>,
    log: PathBuf,
    file: Option<(PathBuf, u64, File)>,
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
        if !matches!(op, Op::Chunk { .. }) {
            self.file = None;
        }
        match op {
            Op::Chunk { offset, data, hash } => self.chunk(offset, &data, hash),
            Op::Log { offset, data } => self.log(offset, &data),
            Op::File { area, path, size } => self.open_file(area, &path, size),
            Op::Remove { area, path } => {
                let place = self.place(area, &path)?;
                remove(&place.dir, place.name(), 0).map_err(FilesError::file("remove", place.path.clone()))
            }
            Op::Directory { area, path } if path.is_empty() => self.area(area).map(|_| ()),
            Op::Directory { area, path } => {
                let place = self.place(area, &path)?;
                match mkdirat(&place.dir, place.name(), Mode::from_raw_mode(0o700)) {
                    Err(Errno::EXIST) if place.kind()? == Some(FileType::Directory) => Ok(()),
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

    fn attributes(
        &self,
        area: AreaId,
        path: &[u8],
        attributes: &super::op::Attributes,
    ) -> Result<(), FilesError> {
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

    fn open_file(&mut self, area: AreaId, path: &[u8], size: u64) -> Result<(), FilesError> {
        let place = self.place(area, path)?;
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
        self.file = Some((place.path, size, file));
        Ok(())
    }

    fn chunk(&mut self, offset: u64, data: &[u8], expected: super::op::ChunkHash) -> Result<(), FilesError> {
        let Some((path, size, file)) = &self.file else {
            return Err(FilesError::Refused("content without a file".to_owned()));
        };
        if data.len() > CHUNK || hash(data) != expected {
            return Err(FilesError::Refused(format!(
                "content of {} does not match its hash",
                path.display()
            )));
        }
        // A file that grows while it is read may come with more than its size said.
        let room = usize::try_from(size.saturating_sub(offset)).unwrap_or(usize::MAX);
        let data = &data[..data.len().min(room)];
        file.write_all_at(data, offset).map_err(FilesError::file("write", path))
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

/// A name in an open directory.
struct Place {
    dir: OwnedFd,
    path: PathBuf,
}

impl Place {
    fn name(&self) -> &OsStr {
        self.path.file_name().unwrap_or_default()
    }

    /// Makes room for what the source has here: the sandbox may have made something of that name.
    fn clear(&self) -> Result<(), FilesError> {
        remove(&self.dir, self.name(), 0).map_err(FilesError::file("replace", &self.path))
    }

    fn kind(&self) -> Result<Option<FileType>, FilesError> {
        match statat(&self.dir, self.name(), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(FileType::from_raw_mode(stat.st_mode))),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(FilesError::file("read", &self.path)(error)),
        }
    }
}

/// Removes a name and everything below it; Ok when there is nothing.
fn remove(dir: &OwnedFd, name: &OsStr, depth: usize) -> io::Result<()> {
    match unlinkat(dir, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(error) => return Err(error.into()),
    }
    if depth > MAX_DEPTH {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "directories too deep"));
    }
    let inner = open_dir(dir, Path::new(name))?;
    let mut names = Vec::new();
    for item in rustix::fs::Dir::read_from(&inner)? {
        let item = item?;
        let name = item.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(OsStr::from_bytes(name).to_owned());
        }
    }
    for name in names {
        remove(&inner, &name, depth + 1)?;
    }
    unlinkat(dir, name, AtFlags::REMOVEDIR)?;
    Ok(())
}
