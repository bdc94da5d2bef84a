//! The agent's journal: what it must not forget when it, or its host, dies.
//!
//! One append-only file, `journal`, in the state directory. Each record is `length (4) | CRC-32C of the
//! body (4) | body`, little-endian, the body postcard's. The file begins with [`MAGIC`].
//!
//! A record that a crash tore off at the end is cut away when the journal is opened; damage before the end is
//! an error that a person must look at. Opening writes the shortest equal journal beside the old one, syncs
//! it and renames it over (compaction). After an error of write or fsync(2) the file's state is not known
//! (the kernel forgets what it could not write), so the next append or sync writes a whole new file.

mod record;
#[cfg(test)]
mod tests;

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

pub use record::{Begin, End, Entry, Open, Record, State};

/// First bytes of the file; the last one is the format's version.
pub const MAGIC: [u8; 8] = *b"GNTRJNL\x01";
/// Largest body, bytes. Names and paths are short.
const MAX_BODY: usize = 64 * 1024;
/// Bytes before each body.
const PREFIX: usize = 8;

/// Why the journal cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The file system failed.
    #[error("{what} {}", path.display())]
    Io {
        /// What was tried: `open`, `append to`, `sync` ...
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// It is not a journal, or of another version.
    #[error("{} is not a journal of this version", .0.display())]
    Magic(PathBuf),
    /// A record before the end is damaged.
    #[error("{} is damaged at byte {offset}; the owner of its containers is not known, see `resolve`", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where.
        offset: usize,
    },
    /// A record is larger than any can be.
    #[error("a journal record of {0} bytes")]
    TooLarge(usize),
}

/// An open journal. Cheap to share: every method takes `&self`.
#[derive(Debug)]
pub struct Journal {
    dir: PathBuf,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    file: File,
    state: State,
    /// An error left the file in an unknown state: write a new one before anything else.
    suspect: bool,
}

impl Journal {
    /// Opens (or makes) the journal in `dir`, which must exist, and compacts it.
    ///
    /// # Errors
    /// [`JournalError::Damaged`] when a record before the end is unreadable; the file is left as it is.
    pub fn open(dir: &Path) -> Result<Self, JournalError> {
        let path = dir.join("journal");
        let state = match std::fs::read(&path) {
            Ok(bytes) => parse(&path, &bytes)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => State::default(),
            Err(source) => return Err(JournalError::Io { what: "read", path, source }),
        };
        let file = rewrite(dir, &state)?;
        Ok(Self { dir: dir.to_owned(), inner: Mutex::new(Inner { file, state, suspect: false }) })
    }

    /// Appends records. They survive this process, not yet the host.
    ///
    /// # Errors
    /// When they cannot be written. Whether they were is then not known: [`Journal::state`] has them, and the
    /// next successful append or sync puts them on disk.
    pub fn append(&self, records: &[Record]) -> Result<(), JournalError> {
        self.lock().append(&self.dir, records)
    }

    /// Appends records and makes them, and all before them, survive the host.
    ///
    /// # Errors
    /// As [`Journal::append`].
    pub fn append_sync(&self, records: &[Record]) -> Result<(), JournalError> {
        let mut inner = self.lock();
        inner.append(&self.dir, records)?;
        inner.sync(&self.dir)
    }

    /// Makes everything that was appended survive the host.
    ///
    /// # Errors
    /// When the disk does not take it; may be called again.
    pub fn sync(&self) -> Result<(), JournalError> {
        self.lock().sync(&self.dir)
    }

    /// What the journal says now.
    #[must_use]
    pub fn state(&self) -> State {
        self.lock().state.clone()
    }

    /// What it says of one container.
    #[must_use]
    pub fn entry(&self, container: &str) -> Entry {
        self.lock().state.entries.get(container).cloned().unwrap_or_default()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn append(&mut self, dir: &Path, records: &[Record]) -> Result<(), JournalError> {
        let mut bytes = Vec::with_capacity(256);
        for record in records {
            encode(record, &mut bytes)?;
        }
        for record in records {
            self.state.apply(record);
        }
        if self.suspect {
            return self.renew(dir);
        }
        self.file.write_all(&bytes).map_err(|source| {
            self.suspect = true;
            JournalError::Io { what: "append to", path: dir.join("journal"), source }
        })
    }

    fn sync(&mut self, dir: &Path) -> Result<(), JournalError> {
        if self.suspect {
            return self.renew(dir);
        }
        fail::fail_point!("journal-sync", |_| {
            self.suspect = true;
            Err(JournalError::Io {
                what: "sync",
                path: dir.join("journal"),
                source: io::Error::other("failpoint journal-sync"),
            })
        });
        self.file.sync_data().map_err(|source| {
            self.suspect = true;
            JournalError::Io { what: "sync", path: dir.join("journal"), source }
        })
    }

    fn renew(&mut self, dir: &Path) -> Result<(), JournalError> {
        self.file = rewrite(dir, &self.state)?;
        self.suspect = false;
        Ok(())
    }
}

/// Writes the shortest journal of `state` beside the present one, syncs it, renames it over and syncs the
/// directory.
fn rewrite(dir: &Path, state: &State) -> Result<File, JournalError> {
    let path = dir.join("journal.new");
    let name = dir.join("journal");
    let failed = |what, path: &Path| {
        let path = path.to_owned();
        move |source| JournalError::Io { what, path, source }
    };
    fail::fail_point!("journal-rewrite", |_| Err(JournalError::Io {
        what: "sync",
        path: name.clone(),
        source: io::Error::other("failpoint journal-rewrite"),
    }));
    let mut bytes = MAGIC.to_vec();
    for record in state.records() {
        encode(&record, &mut bytes)?;
    }
    let mut file = OpenOptions::new()
        .create(true)
        .write(true)
        .truncate(true)
        .open(&path)
        .map_err(failed("create", &path))?;
    file.write_all(&bytes).map_err(failed("write", &path))?;
    file.sync_all().map_err(failed("sync", &path))?;
    std::fs::rename(&path, &name).map_err(failed("rename", &path))?;
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed("sync", dir))?;
    Ok(file)
}

fn encode(record: &Record, bytes: &mut Vec<u8>) -> Result<(), JournalError> {
    // A record is names and numbers: postcard has no error for those.
    let body = postcard::to_stdvec(record).map_err(|_| JournalError::TooLarge(usize::MAX))?;
    let length = u32::try_from(body.len()).ok().filter(|_| body.len() <= MAX_BODY);
    let length = length.ok_or(JournalError::TooLarge(body.len()))?;
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(&crc32c::crc32c(&body).to_le_bytes());
    bytes.extend_from_slice(&body);
    Ok(())
}

/// Reads a whole journal; stops at a torn end.
fn parse(path: &Path, bytes: &[u8]) -> Result<State, JournalError> {
    let mut state = State::default();
    if bytes.len() < MAGIC.len() {
        // Opening writes the magic under another name first: only a foreign hand makes this.
        return if bytes.is_empty() { Ok(state) } else { Err(JournalError::Magic(path.to_owned())) };
    }
    if bytes[..MAGIC.len()] != MAGIC {
        return Err(JournalError::Magic(path.to_owned()));
    }
    let mut offset = MAGIC.len();
    while offset < bytes.len() {
        match record_at(&bytes[offset..]) {
            Parsed::Record(record, length) => {
                state.apply(&record);
                offset += length;
            }
            Parsed::Torn => {
                tracing::warn!(offset, path = %path.display(), "cutting off a torn record at the journal's end");
                break;
            }
            Parsed::Damaged => return Err(JournalError::Damaged { path: path.to_owned(), offset }),
        }
    }
    Ok(state)
}

enum Parsed {
    Record(Box<Record>, usize),
    /// What a crash leaves of the last record: cut short, or zeros where the file was extended and not written.
    Torn,
    Damaged,
}

fn record_at(rest: &[u8]) -> Parsed {
    if rest.iter().all(|byte| *byte == 0) {
        return Parsed::Torn;
    }
    let Some((prefix, body)) = rest.split_first_chunk::<PREFIX>() else {
        return Parsed::Torn;
    };
    let [l0, l1, l2, l3, c0, c1, c2, c3] = *prefix;
    let length = usize::try_from(u32::from_le_bytes([l0, l1, l2, l3])).unwrap_or(usize::MAX);
    if length > MAX_BODY {
        return Parsed::Damaged;
    }
    let Some(body) = body.get(..length) else {
        return Parsed::Torn;
    };
    let last = rest.len() == PREFIX + length || rest[PREFIX + length..].iter().all(|byte| *byte == 0);
    if crc32c::crc32c(body) != u32::from_le_bytes([c0, c1, c2, c3]) {
        return if last { Parsed::Torn } else { Parsed::Damaged };
    }
    match postcard::from_bytes(body) {
        Ok(Record::Invalid) | Err(_) => Parsed::Damaged,
        Ok(record) => Parsed::Record(Box::new(record), PREFIX + length),
    }
}
