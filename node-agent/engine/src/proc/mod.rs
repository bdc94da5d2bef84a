//! What procfs says about processes: pure parsers, each with a thin reader beside it.
//!
//! Everything a program can name (paths, thread names, mapping names) may hold any byte. The parsers take
//! bytes, never split on what a name may contain, and leave paths raw until a caller needs text.

pub mod fdinfo;
pub mod idmap;
pub(crate) mod ipc;
pub mod limits;
pub mod links;
pub mod maps;
pub mod mountinfo;
pub mod multicast;
pub mod raw;
pub mod sched;
pub mod stat;
pub mod status;
pub mod tasks;
pub mod timers;

use std::fs::File;
use std::io::{self, Read};

/// Why something could not be learned from procfs.
#[derive(Debug, thiserror::Error)]
pub enum ProcError {
    /// A file could not be read. A process that has exited gives ENOENT or ESRCH.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The kernel wrote something that this version does not understand.
    #[error("cannot understand {path}: {detail}")]
    Parse {
        /// The file, or what was parsed.
        path: String,
        /// The part that is not understood.
        detail: String,
    },
}

impl ProcError {
    /// The process or thread is not there (any more).
    #[must_use]
    pub fn is_gone(&self) -> bool {
        match self {
            Self::Read { source, .. } => is_gone(source),
            Self::Parse { .. } => false,
        }
    }

    pub(crate) fn parse(path: &str, detail: impl Into<String>) -> Self {
        Self::Parse { path: path.to_owned(), detail: detail.into() }
    }
}

/// True for the errors that procfs gives for a process that has exited.
#[must_use]
pub fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(ESRCH)
}

const ESRCH: i32 = 3;

/// The whole of `/proc/PID/NAME`.
///
/// # Errors
/// [`ProcError::Read`].
pub fn read(pid: i32, name: &str) -> Result<Vec<u8>, ProcError> {
    read_path(&format!("/proc/{pid}/{name}"))
}

/// The whole of a file of procfs.
///
/// # Errors
/// [`ProcError::Read`].
pub fn read_path(path: &str) -> Result<Vec<u8>, ProcError> {
    File::open(path)
        .and_then(|mut file| read_whole(&mut file))
        .map_err(|source| ProcError::Read { path: path.to_owned(), source })
}

/// Reads a file of procfs. Not `read_to_end`, which first asks for size and position: they have no size.
pub(crate) fn read_whole(file: &mut File) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; 4096];
    let mut len = 0;
    loop {
        match file.read(&mut bytes[len..]) {
            Ok(0) => break,
            Ok(more) => len += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        if len == bytes.len() {
            bytes.resize(len * 2, 0);
        }
    }
    bytes.truncate(len);
    Ok(bytes)
}

/// A file that holds one number, in the given radix.
///
/// # Errors
/// [`ProcError`].
pub fn read_number(pid: i32, name: &str, radix: u32) -> Result<i64, ProcError> {
    let bytes = read(pid, name)?;
    let text = String::from_utf8_lossy(&bytes);
    i64::from_str_radix(text.trim(), radix)
        .map_err(|_| ProcError::parse(&format!("/proc/{pid}/{name}"), text.trim()))
}

/// Splits into lines without their line feeds.
pub(crate) fn lines(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty())
}

/// Splits at runs of blanks.
pub(crate) fn words(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    bytes.split(|byte| matches!(byte, b' ' | b'\t')).filter(|word| !word.is_empty())
}

/// The rest of a line after `KEY:` and blanks.
pub(crate) fn value<'a>(line: &'a [u8], key: &str) -> Option<&'a [u8]> {
    line.strip_prefix(key.as_bytes()).map(|rest| rest.trim_ascii_start())
}

pub(crate) fn number<T: TryFrom<i128>>(bytes: &[u8]) -> Option<T> {
    let text = std::str::from_utf8(bytes).ok()?.trim();
    T::try_from(text.parse::<i128>().ok()?).ok()
}

/// Numbers as the kernel lists them, such as `0-2,5`.
pub(crate) fn list(bytes: &[u8]) -> Vec<u32> {
    let part = |part: &[u8]| {
        let mut ends = part.split(|byte| *byte == b'-').map(number::<u32>);
        let first = ends.next().flatten()?;
        Some(first..=ends.next().map_or(Some(first), |last| last)?)
    };
    bytes.trim_ascii().split(|byte| *byte == b',').filter_map(part).flatten().collect()
}

pub(crate) fn hex<T: TryFrom<u64>>(bytes: &[u8]) -> Option<T> {
    let text = std::str::from_utf8(bytes).ok()?.trim();
    T::try_from(u64::from_str_radix(text, 16).ok()?).ok()
}

pub(crate) fn octal<T: TryFrom<u64>>(bytes: &[u8]) -> Option<T> {
    let text = std::str::from_utf8(bytes).ok()?.trim();
    T::try_from(u64::from_str_radix(text, 8).ok()?).ok()
}

/// For messages.
pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
