//! A pair of trees, and what there is to compare.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use node_agent::files::{Area, Round, Source, Suspects, Target, Tracking};
use rustix::fs::{SeekFrom, lgetxattr, llistxattr, seek};

/// Two directories, and what carries changes from one to the other.
pub(crate) struct Pair {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) source: Source,
    pub(crate) target: Target,
}

pub(crate) fn area(path: &Path) -> Area {
    Area::new(File::open(path).unwrap().into(), "/")
}

impl Pair {
    pub(crate) fn new(prepare: impl FnOnce(&Path)) -> Self {
        Self::within(&std::env::temp_dir(), Tracking::Best, prepare)
    }

    pub(crate) fn within(place: &Path, tracking: Tracking, prepare: impl FnOnce(&Path)) -> Self {
        let dir = tempfile::Builder::new().prefix("gantry-files-").tempdir_in(place).unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        fs::create_dir(&from).unwrap();
        fs::create_dir(&to).unwrap();
        prepare(&from);
        let source = Source::tracking(vec![area(&from)], dir.path().join("from.log"), tracking);
        let target = Target::new(vec![area(&to)], dir.path().join("to.log"));
        Self { dir, source, target }
    }

    pub(crate) fn from(&self) -> PathBuf {
        self.dir.path().join("from")
    }

    pub(crate) fn to(&self) -> PathBuf {
        self.dir.path().join("to")
    }

    pub(crate) fn round(&mut self) -> Round {
        let target = &mut self.target;
        self.source.round(&mut |batch| target.apply(batch).map_err(std::io::Error::other)).unwrap()
    }

    /// A round that may fail, as one does when a name becomes something else while it is looked at. A move ends then.
    pub(crate) fn try_round(&mut self) -> bool {
        let target = &mut self.target;
        let sent = self.source.round(&mut |batch| target.apply(batch).map_err(std::io::Error::other));
        sent.is_ok()
    }

    pub(crate) fn last(&mut self, suspects: &Suspects) -> Round {
        let target = &mut self.target;
        self.source.last(suspects, &mut |batch| target.apply(batch).map_err(std::io::Error::other)).unwrap()
    }

    /// Both trees are equal in everything that travels.
    pub(crate) fn assert_equal(&self) {
        assert_same(&tree(&self.from()), &tree(&self.to()), "");
    }
}

/// Names the entries that differ.
pub(crate) fn assert_same(from: &BTreeMap<PathBuf, Entry>, to: &BTreeMap<PathBuf, Entry>, what: &str) {
    let mut differences = Vec::new();
    for path in from.keys().chain(to.keys()) {
        let (here, there) = (from.get(path), to.get(path));
        if here != there {
            differences.push(format!("{}:\n  {here:?}\n  {there:?}", path.display()));
        }
    }
    differences.dedup();
    assert!(differences.is_empty(), "{what}\n{}", differences.join("\n"));
}

/// All that travels of an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    mode: u32,
    owner: (u32, u32),
    size: u64,
    mtime: (i64, i64),
    device: u64,
    /// Its number of names, and the first of them.
    links: (u64, PathBuf),
    /// Of a regular file, its hash and where it has data; of a link, what it says.
    content: (u64, Vec<(u64, u64)>),
    link: Option<PathBuf>,
    xattrs: BTreeMap<OsString, Vec<u8>>,
}

/// Everything in a directory, and itself.
pub(crate) fn tree(root: &Path) -> BTreeMap<PathBuf, Entry> {
    let mut found = BTreeMap::new();
    let mut first: BTreeMap<u64, PathBuf> = BTreeMap::new();
    let mut pending = vec![PathBuf::new()];
    let mut all = Vec::new();
    while let Some(path) = pending.pop() {
        let place = root.join(&path);
        if fs::symlink_metadata(&place).unwrap().is_dir() {
            pending.extend(fs::read_dir(&place).unwrap().map(|entry| path.join(entry.unwrap().file_name())));
        }
        all.push(path);
    }
    all.sort();
    for path in all {
        let place = root.join(&path);
        let meta = fs::symlink_metadata(&place).unwrap();
        let kind = meta.file_type();
        let name = first.entry(meta.ino()).or_insert_with(|| path.clone()).clone();
        let special = kind.is_char_device() || kind.is_block_device();
        let entry = Entry {
            mode: meta.mode(),
            owner: (meta.uid(), meta.gid()),
            // What a directory's is, is the file system's business.
            size: if meta.is_dir() { 0 } else { meta.size() },
            mtime: (meta.mtime(), meta.mtime_nsec()),
            device: if special { meta.rdev() } else { 0 },
            links: (if meta.is_dir() { 0 } else { meta.nlink() }, name),
            content: if meta.is_file() { content(&place) } else { (0, Vec::new()) },
            link: kind.is_symlink().then(|| fs::read_link(&place).unwrap()),
            xattrs: xattrs(&place),
        };
        found.insert(path, entry);
    }
    found
}

fn content(path: &Path) -> (u64, Vec<(u64, u64)>) {
    let file = File::open(path).unwrap();
    let size = file.metadata().unwrap().len();
    let mut extents = Vec::new();
    let mut at = 0;
    while at < size {
        let Ok(data) = seek(&file, SeekFrom::Data(at)) else { break };
        let hole = seek(&file, SeekFrom::Hole(data)).unwrap();
        extents.push((data, hole));
        at = hole;
    }
    // Reading hashes holes, too, where they are few.
    let hash = if size < 64 << 20 { twox_hash::XxHash3_64::oneshot(&fs::read(path).unwrap()) } else { 0 };
    (hash, extents)
}

fn xattrs(path: &Path) -> BTreeMap<OsString, Vec<u8>> {
    use std::os::unix::ffi::OsStrExt as _;
    let mut list = vec![0_u8; 65536];
    let length = llistxattr(path, &mut list[..]).unwrap_or(0);
    let names = list[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    let names = names.filter(|name| *name != b"security.selinux");
    let read = |name: &[u8]| {
        let name = std::ffi::OsStr::from_bytes(name);
        let mut value = vec![0_u8; 65536];
        let length = lgetxattr(path, name, &mut value[..]).unwrap();
        (name.to_owned(), value[..length].to_vec())
    };
    names.map(read).collect()
}
