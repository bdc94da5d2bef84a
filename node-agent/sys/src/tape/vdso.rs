//! A process's vDSO: where it is, its `syscall` instruction, and the unused bytes at its end.

use std::fs;
use std::io;
use std::ops::Range;
use std::sync::OnceLock;

use crate::mem::ProcessMemory;

/// Distance kept from the last byte of the vDSO image.
const MARGIN: usize = 64;

/// Why a vDSO cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum VdsoError {
    /// The process has no vDSO mapping.
    #[error("process {pid} has no vDSO")]
    Missing {
        /// Which.
        pid: i32,
    },
    /// It has no `syscall` instruction.
    #[error("the vDSO of process {pid} has no syscall instruction")]
    NoSyscall {
        /// Which.
        pid: i32,
    },
    /// It is not the running kernel's (changed by a debugger, or restored from another kernel).
    #[error("the vDSO of process {pid} is not this kernel's")]
    Foreign {
        /// Which.
        pid: i32,
    },
    /// The unused bytes at its end hold something: an earlier tracer's code.
    #[error("the end of the vDSO of process {pid} holds an earlier tracer's code")]
    Leftover {
        /// Which.
        pid: i32,
    },
    /// Too few unused bytes.
    #[error("the vDSO of process {pid} has {have} unused bytes; {need} are needed")]
    TooSmall {
        /// Which.
        pid: i32,
        /// Bytes there are.
        have: usize,
        /// Bytes needed.
        need: usize,
    },
    /// The process could not be read.
    #[error("read the vDSO of process {pid}")]
    Read {
        /// Which.
        pid: i32,
        /// Why.
        source: io::Error,
    },
}

/// Where a process's vDSO lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vdso {
    range: Range<u64>,
}

/// The unused bytes of this kernel's vDSO, as offsets; measured once on this process's own.
fn own() -> Option<&'static (Vec<u8>, Range<usize>)> {
    static OWN: OnceLock<Option<(Vec<u8>, Range<usize>)>> = OnceLock::new();
    OWN.get_or_init(|| {
        let pid = i32::try_from(std::process::id()).ok()?;
        let memory = ProcessMemory::open(pid).ok()?;
        let image = Vdso::find(pid).ok()?.image(&memory).ok()?;
        let used = image.iter().rposition(|&byte| byte != 0)? + 1;
        let start = (used + MARGIN).next_multiple_of(16).min(image.len());
        let end = image.len();
        Some((image, start..end))
    })
    .as_ref()
}

impl Vdso {
    /// Finds it in /proc/`pid`/maps.
    ///
    /// # Errors
    /// [`VdsoError::Missing`], [`VdsoError::Read`].
    pub fn find(pid: i32) -> Result<Self, VdsoError> {
        let maps = fs::read_to_string(format!("/proc/{pid}/maps"))
            .map_err(|source| VdsoError::Read { pid, source })?;
        let range = maps.lines().rev().find(|line| line.ends_with("[vdso]")).and_then(parse_range);
        Ok(Self { range: range.ok_or(VdsoError::Missing { pid })? })
    }

    /// Its addresses.
    #[must_use]
    pub fn range(&self) -> Range<u64> {
        self.range.clone()
    }

    fn image(&self, memory: &ProcessMemory) -> io::Result<Vec<u8>> {
        let len = usize::try_from(self.range.end - self.range.start).map_err(io::Error::other)?;
        let mut image = vec![0; len];
        memory.read(self.range.start, &mut image)?;
        Ok(image)
    }

    /// Address of a `syscall` instruction in it.
    ///
    /// # Errors
    /// [`VdsoError::NoSyscall`], [`VdsoError::Read`].
    pub fn syscall_instruction(&self, pid: i32, memory: &ProcessMemory) -> Result<u64, VdsoError> {
        let image = self.image(memory).map_err(|source| VdsoError::Read { pid, source })?;
        let at = image.windows(2).position(|pair| pair == [0x0f, 0x05]);
        at.map(|at| self.range.start + at as u64).ok_or(VdsoError::NoSyscall { pid })
    }

    /// Addresses of the unused bytes at its end.
    ///
    /// # Errors
    /// [`VdsoError::Foreign`] when it has another size than ours.
    pub(super) fn slack(&self, pid: i32) -> Result<Range<u64>, VdsoError> {
        let (image, slack) = own().ok_or(VdsoError::Foreign { pid })?;
        if self.range.end - self.range.start != image.len() as u64 {
            return Err(VdsoError::Foreign { pid });
        }
        Ok(self.range.start + slack.start as u64..self.range.start + slack.end as u64)
    }

    /// As [`Vdso::slack`], and nothing is written there, and the code before it is this kernel's.
    pub(super) fn unused_slack(&self, pid: i32, memory: &ProcessMemory) -> Result<Range<u64>, VdsoError> {
        let slack = self.slack(pid)?;
        let theirs = self.image(memory).map_err(|source| VdsoError::Read { pid, source })?;
        let (ours, unused) = own().ok_or(VdsoError::Foreign { pid })?;
        if theirs[..unused.start] != ours[..unused.start] {
            return Err(VdsoError::Foreign { pid });
        }
        if theirs[unused.start..].iter().any(|&byte| byte != 0) {
            return Err(VdsoError::Leftover { pid });
        }
        Ok(slack)
    }
}

/// The addresses of a line of /proc/PID/maps.
pub(super) fn parse_range(line: &str) -> Option<Range<u64>> {
    let (start, end) = line.split_once(' ')?.0.split_once('-')?;
    Some(u64::from_str_radix(start, 16).ok()?..u64::from_str_radix(end, 16).ok()?)
}

/// Every mapping of a tape's memory in process `pid`.
pub(super) fn tape_mappings(pid: i32) -> io::Result<Vec<Range<u64>>> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let name = format!("/memfd:{} (deleted)", super::AREA_NAME);
    Ok(maps.lines().filter(|line| line.ends_with(&name)).filter_map(parse_range).collect())
}
