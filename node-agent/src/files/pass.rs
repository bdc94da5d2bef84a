//! One round over one area: which names are looked at. What is sent of each is in [`super::entry`].

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, statat};
use rustix::io::Errno;

use super::op::{AreaId, Op};
use super::outbox::Outbox;
use super::seen::{Memory, Stamp};
use super::walk::{Entry, Visitor, look, open_dir, walk};
use super::watch::{Changes, Touch, Watch};
use super::{Area, FilesError, Suspects};

/// What a round over an area works with.
pub(super) struct Pass<'a, 'b> {
    pub(super) id: AreaId,
    pub(super) area: &'a Area,
    pub(super) number: u64,
    /// Nothing changes any more, or the round fails.
    pub(super) last: bool,
    pub(super) suspects: &'a Suspects,
    pub(super) memory: &'a mut Memory,
    pub(super) watch: &'a mut Watch,
    /// A change may show in nothing: a hole punched into a file of a tmpfs leaves its times as they are, and events do not
    /// tell of every file here.
    pub(super) untold: bool,
    /// Files that something happened to, by inode.
    pub(super) inodes: HashMap<u64, Touch>,
    /// The name under which a file with several was looked at in this round, by inode; whether its content was
    /// compared.
    pub(super) links: HashMap<u64, (PathBuf, bool)>,
    /// Attributes of directories: set when nothing in them changes any more.
    pub(super) metas: Vec<Op>,
    pub(super) out: &'a mut Outbox<'b>,
}

impl Pass<'_, '_> {
    /// Looks at what changed.
    pub(super) fn run(mut self) -> Result<(), FilesError> {
        let changes = self.watch.changes();
        self.untold = !matches!(changes, Changes::Known { by_inode: true, .. }) && on_tmpfs(&self.area.dir);
        match changes {
            Changes::Unknown => self.everything()?,
            // A name that came and went may have led to a file with another name.
            Changes::Known { by_inode: false, .. } if self.last => self.everything()?,
            Changes::Known { mut names, inodes, by_inode } => {
                if !by_inode {
                    for path in self.memory.linked() {
                        names.entry(path.clone()).or_default();
                    }
                }
                let suspects = self.suspects.mapped.keys().chain(&self.suspects.open);
                for ino in inodes.keys().chain(suspects) {
                    for path in self.memory.names_of(*ino) {
                        names.entry(path.clone()).or_default();
                    }
                }
                self.inodes = inodes;
                self.names(names)?;
            }
        }
        self.finish()
    }

    /// Looks at everything.
    fn everything(&mut self) -> Result<(), FilesError> {
        self.top()?;
        self.below(Path::new(""))
    }

    /// Looks at everything in a directory, and removes what is not there any more.
    fn below(&mut self, path: &Path) -> Result<(), FilesError> {
        let area = self.area;
        walk(area, path, self)?;
        for gone in self.memory.not_met(path, self.number) {
            self.remove(&gone)?;
        }
        Ok(())
    }

    /// Looks at these names, and at everything in what was made or moved there.
    fn names(&mut self, names: BTreeMap<PathBuf, Touch>) -> Result<(), FilesError> {
        let mut gone = Vec::new();
        for (path, touch) in names {
            if path.as_os_str().is_empty() {
                self.top()?;
                continue;
            }
            let Some((dir, stat)) = self.find(&path)? else {
                gone.push(path);
                continue;
            };
            let before = self.memory.get(&path);
            // A directory that was made again may have the inode number that it had.
            let known = !touch.made && before.is_some_and(|seen| seen.stamp.continues(&Stamp::of(&stat)));
            let name = path.file_name().unwrap_or_default();
            self.entry(&Entry { dir: &dir, name, path: &path, stat }, Some(touch))?;
            if FileType::from_raw_mode(stat.st_mode) == FileType::Directory && !known {
                self.below(&path)?;
            }
        }
        for path in gone {
            self.remove(&path)?;
        }
        Ok(())
    }

    /// Sends these files with the directories that they are in, ahead of everything else. They are looked at
    /// again in the next round.
    pub(super) fn ahead(mut self, paths: &[PathBuf]) -> Result<(), FilesError> {
        for path in paths {
            let ancestors: Vec<&Path> = path.ancestors().filter(|at| !at.as_os_str().is_empty()).collect();
            for at in ancestors.into_iter().rev() {
                let Some((dir, stat)) = self.find(at)? else { break };
                let name = at.file_name().unwrap_or_default();
                if self.memory.get(at).is_none_or(|seen| seen.round != self.number) {
                    self.entry(&Entry { dir: &dir, name, path: at, stat }, None)?;
                }
                self.memory.doubt(at);
            }
        }
        self.finish()
    }

    /// What has this name now, with the directory that it is in; `None` when nothing has that travels.
    fn find(&self, path: &Path) -> Result<Option<(OwnedFd, rustix::fs::Stat)>, FilesError> {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Ok(None) };
        if self.area.skips(parent, name) {
            return Ok(None);
        }
        let failed = |error: Errno| FilesError::file::<io::Error>("read", path)(error.into());
        match open_dir(&self.area.dir, parent) {
            Ok(dir) => Ok(look(&dir, name).map_err(failed)?.map(|stat| (dir, stat))),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::XDEV | Errno::LOOP) => Ok(None),
            Err(error) => Err(failed(error)),
        }
    }

    /// The area's own directory.
    fn top(&mut self) -> Result<(), FilesError> {
        let area = self.area;
        let stat = statat(&area.dir, ".", AtFlags::empty()).map_err(FilesError::file("read", "."))?;
        let entry = Entry { dir: &area.dir, name: OsStr::new("."), path: Path::new(""), stat };
        self.entry(&entry, Some(Touch::default()))
    }

    pub(super) fn remove(&mut self, path: &Path) -> Result<(), FilesError> {
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
}

impl Visitor for Pass<'_, '_> {
    fn enter(&mut self, dir: &OwnedFd, path: &Path) {
        self.watch.add(dir, path);
    }

    fn visit(&mut self, entry: &Entry<'_>) -> Result<(), FilesError> {
        self.entry(entry, None)
    }
}

/// Whether a directory is on a tmpfs; not when that cannot be told.
fn on_tmpfs(dir: &OwnedFd) -> bool {
    rustix::fs::fstatfs(dir).is_ok_and(|fs| fs.f_type == TMPFS)
}

/// `TMPFS_MAGIC` of statfs(2).
const TMPFS: i64 = 0x0102_1994;
