//! Page frames: contents of memory as runs in large batches.
//!
//! A batch belongs to one owner and carries many runs and one block of data, so that it is read with
//! one process_vm_readv(2) and written with one process_vm_writev(2).

use serde::{Deserialize, Serialize};

use crate::frame::{MAX_BULK_BODY, take};
use crate::{PAGE_SIZE, Pid};

/// Whose memory a batch is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Owner {
    /// Private memory of a process, by its pid in the container; run addresses are virtual addresses.
    Process(Pid),
    /// A [`crate::shape::MemoryObject`], by id; run addresses are byte offsets in it.
    Object(u32),
    /// [`crate::shape::Shape::template`]; run addresses are virtual addresses.
    Template,
    /// A [`crate::shape::GhostFile`], by id; run addresses are byte offsets in it.
    Ghost(u32),
}

/// What a run says about its pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RunKind {
    /// Contents follow in the batch's data.
    Data,
    /// All bytes are zero.
    Zero,
    /// The page was given back (MADV_DONTNEED, hole): the target drops what it holds there, so that a
    /// private file page shows the file again and anonymous memory reads as zeros.
    Drop,
}

/// A run of pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// First byte; page-aligned.
    pub addr: u64,
    /// Number of 4 KiB pages, at least 1.
    pub pages: u32,
    /// What it says.
    pub kind: RunKind,
}

/// Runs of one owner, with the contents of the [`RunKind::Data`] runs one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Batch<'a> {
    /// Whose memory.
    pub owner: Owner,
    /// The runs, in any order, not overlapping.
    pub runs: &'a [Run],
    /// Contents: exactly 4096 x pages bytes for each data run, in the order of `runs`.
    pub data: &'a [u8],
}

// ---- byte form ----------------------------------------------------------------------------------------
//
// | offset | size | field |
// |---|---|---|
// | 0 | 1 | owner kind: 1 process, 2 object, 3 template, 4 deleted file; zero is invalid |
// | 1 | 3 | reserved, zero |
// | 4 | 4 | pid, object id or id of a deleted file; zero for the template |
// | 8 | 4 | number of runs, n |
// | 12 | 12 n | runs: address (8 bytes; its low 12 bits hold the kind: 1 data, 2 zero, 3 drop), pages (4) |
// | 12 + 12 n | | data |

/// Bytes before the runs.
const BATCH_HEADER: usize = 12;
/// Bytes of one run.
const RUN_LEN: usize = 12;
/// First address that no run may touch: one past the largest x86-64 user address (5-level tables), and
/// past any file offset that the engine handles.
const ADDRESS_LIMIT: u64 = 1 << 57;

/// Most runs that fit into a batch next to `data` bytes of contents.
#[must_use]
pub const fn max_runs(data: usize) -> usize {
    (MAX_BULK_BODY - BATCH_HEADER).saturating_sub(data) / RUN_LEN
}

/// What is wrong with the bytes of a batch.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    /// Too short for its header or its runs.
    #[error("page batch is cut short")]
    Short,
    /// The owner's kind is zero or unknown, or a reserved byte is set.
    #[error("page batch has no valid owner")]
    Owner,
    /// A run's kind, address or count is invalid.
    #[error("run {0} of a page batch is invalid")]
    Run(usize),
    /// The data's length is not what the runs say.
    #[error("page batch holds {found} bytes of data, its runs say {expected}")]
    Data {
        /// Bytes that follow the runs.
        found: u64,
        /// Bytes that the runs announce.
        expected: u64,
    },
    /// More than a frame can hold.
    #[error("page batch of {0} bytes is larger than a frame")]
    TooLarge(usize),
}

/// Writes the bytes of `batch`'s owner and runs to `head` (cleared first). The body of its frame is `head`
/// followed by `batch.data`, which is not copied: pass both to [`crate::frame::FrameWriter::write`].
///
/// # Errors
/// When the batch is invalid; `head` is then unspecified.
pub fn encode_head(batch: &Batch<'_>, head: &mut Vec<u8>) -> Result<(), BatchError> {
    head.clear();
    let total = BATCH_HEADER + RUN_LEN * batch.runs.len() + batch.data.len();
    if total > MAX_BULK_BODY {
        return Err(BatchError::TooLarge(total));
    }
    let count = u32::try_from(batch.runs.len()).map_err(|_| BatchError::TooLarge(total))?;
    let (kind, id) = match batch.owner {
        Owner::Process(pid) => (1, pid.to_le_bytes()),
        Owner::Object(id) => (2, id.to_le_bytes()),
        Owner::Template => (3, [0; 4]),
        Owner::Ghost(id) => (4, id.to_le_bytes()),
    };
    head.extend_from_slice(&[kind, 0, 0, 0]);
    head.extend_from_slice(&id);
    head.extend_from_slice(&count.to_le_bytes());
    for (index, run) in batch.runs.iter().enumerate() {
        check_run(run).ok_or(BatchError::Run(index))?;
        let kind: u64 = match run.kind {
            RunKind::Data => 1,
            RunKind::Zero => 2,
            RunKind::Drop => 3,
        };
        head.extend_from_slice(&(run.addr | kind).to_le_bytes());
        head.extend_from_slice(&run.pages.to_le_bytes());
    }
    check_data(batch)
}

/// Reads a batch. Its data stays in `body`; its runs are put into `runs` (cleared first), which callers
/// keep from batch to batch.
///
/// # Errors
/// What is wrong with it.
pub fn decode<'a>(body: &'a [u8], runs: &'a mut Vec<Run>) -> Result<Batch<'a>, BatchError> {
    runs.clear();
    let head: &[u8; BATCH_HEADER] = body.first_chunk().ok_or(BatchError::Short)?;
    let owner = match head[..4] {
        [1, 0, 0, 0] => Owner::Process(i32::from_le_bytes(take(head, 4))),
        [2, 0, 0, 0] => Owner::Object(u32::from_le_bytes(take(head, 4))),
        [3, 0, 0, 0] if head[4..8] == [0; 4] => Owner::Template,
        [4, 0, 0, 0] => Owner::Ghost(u32::from_le_bytes(take(head, 4))),
        _ => return Err(BatchError::Owner),
    };
    let count = usize::try_from(u32::from_le_bytes(take(head, 8))).map_err(|_| BatchError::Short)?;
    let end =
        count.checked_mul(RUN_LEN).and_then(|n| n.checked_add(BATCH_HEADER)).ok_or(BatchError::Short)?;
    let table = body.get(BATCH_HEADER..end).ok_or(BatchError::Short)?;
    runs.reserve(count);
    for (index, bytes) in table.chunks_exact(RUN_LEN).enumerate() {
        let word = u64::from_le_bytes(take(bytes, 0));
        let kind = match word % PAGE_SIZE {
            1 => RunKind::Data,
            2 => RunKind::Zero,
            3 => RunKind::Drop,
            _ => return Err(BatchError::Run(index)),
        };
        let run = Run { addr: word - word % PAGE_SIZE, pages: u32::from_le_bytes(take(bytes, 8)), kind };
        check_run(&run).ok_or(BatchError::Run(index))?;
        runs.push(run);
    }
    let batch = Batch { owner, runs, data: &body[end..] };
    check_data(&batch)?;
    Ok(batch)
}

/// Hands `batch` to `take` in pieces whose encoded form has `most` bytes at most: unchanged when it fits already. `most` is
/// taken as [`MAX_BULK_BODY`] when it is larger, and as room for one page when it is smaller.
///
/// # Errors
/// The first error of `take`.
pub fn split<E>(
    batch: &Batch<'_>,
    most: usize,
    take: &mut dyn FnMut(&Batch<'_>) -> Result<(), E>,
) -> Result<(), E> {
    let most = most.clamp(2 * usize::try_from(PAGE_SIZE).unwrap_or(MAX_BULK_BODY), MAX_BULK_BODY);
    if BATCH_HEADER + RUN_LEN * batch.runs.len() + batch.data.len() <= most {
        return take(batch);
    }
    let mut runs = Vec::new();
    let mut data = batch.data;
    let mut held = 0;
    let mut flush = |runs: &mut Vec<Run>, held: &mut usize, data: &mut &[u8]| {
        let (now, later) = data.split_at_checked(*held).unwrap_or((*data, &[]));
        let taken = take(&Batch { owner: batch.owner, runs, data: now });
        runs.clear();
        (*held, *data) = (0, later);
        taken
    };
    for run in batch.runs {
        let mut rest = *run;
        while rest.pages > 0 {
            let room = most.saturating_sub(BATCH_HEADER + RUN_LEN * (runs.len() + 1) + held);
            let pages = match rest.kind {
                RunKind::Data => rest.pages.min(u32::try_from(room as u64 / PAGE_SIZE).unwrap_or(u32::MAX)),
                RunKind::Zero | RunKind::Drop => rest.pages,
            };
            if pages == 0 || room < RUN_LEN {
                flush(&mut runs, &mut held, &mut data)?;
                continue;
            }
            runs.push(Run { pages, ..rest });
            if rest.kind == RunKind::Data {
                held += usize::try_from(u64::from(pages) * PAGE_SIZE).unwrap_or(usize::MAX);
            }
            rest.addr = rest.addr.saturating_add(u64::from(pages) * PAGE_SIZE);
            rest.pages -= pages;
        }
    }
    if runs.is_empty() { Ok(()) } else { flush(&mut runs, &mut held, &mut data) }
}

fn check_run(run: &Run) -> Option<()> {
    let end = run.addr.checked_add(u64::from(run.pages) * PAGE_SIZE)?;
    (run.pages > 0 && run.addr.is_multiple_of(PAGE_SIZE) && end <= ADDRESS_LIMIT).then_some(())
}

fn check_data(batch: &Batch<'_>) -> Result<(), BatchError> {
    let expected = batch
        .runs
        .iter()
        .filter(|run| run.kind == RunKind::Data)
        .fold(0u64, |sum, run| sum.saturating_add(u64::from(run.pages) * PAGE_SIZE));
    let found = batch.data.len() as u64;
    if found == expected { Ok(()) } else { Err(BatchError::Data { found, expected }) }
}
