//! What a tape does: calls, and the memory that they point to.

use super::area::SharedArea;
use super::layout::{RECORD, Slot, SlotLayout};
use crate::Errno;

/// A piece of a program's scratch memory; its address is known when the program is put on a tape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    offset: usize,
    len: usize,
}

/// A call of a program, by its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CallId(usize);

/// One argument of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arg {
    /// A number, or an address in the tracee.
    Value(u64),
    /// The address of a block.
    Address(Block),
    /// What an earlier call returned. An earlier call's result serves one later argument.
    Result(CallId),
}

impl From<u64> for Arg {
    fn from(value: u64) -> Self {
        Self::Value(value)
    }
}

impl From<i32> for Arg {
    /// Sign-extended, as C passes it.
    fn from(value: i32) -> Self {
        Self::Value(i64::from(value).cast_unsigned())
    }
}

impl From<Block> for Arg {
    fn from(block: Block) -> Self {
        Self::Address(block)
    }
}

impl From<CallId> for Arg {
    fn from(call: CallId) -> Self {
        Self::Result(call)
    }
}

#[derive(Clone, Copy, Debug)]
struct Record {
    nr: u64,
    args: [Arg; 6],
    tolerant: bool,
}

/// A list of system calls with their memory. Independent of thread and tape; may be run many times.
#[derive(Clone, Debug, Default)]
pub struct Program {
    records: Vec<Record>,
    after: Vec<Record>,
    scratch: Vec<u8>,
    links: Vec<(Block, usize, Block)>,
}

/// A call of a program failed; those behind it were not made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("call {index} of the tape (system call {nr}): {errno}")]
pub struct CallFailed {
    /// Which call, from 0.
    pub index: usize,
    /// Its system call number.
    pub nr: u64,
    /// What it answered.
    pub errno: Errno,
}

/// The program does not fit its slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a tape program of {records} calls and {scratch} bytes does not fit its slot")]
pub struct TooBig {
    /// Calls wanted.
    pub records: usize,
    /// Bytes wanted.
    pub scratch: usize,
}

impl Program {
    /// An empty program.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends a call; the tape ends after it when it fails. Missing arguments are 0, surplus ones ignored.
    pub fn call(&mut self, nr: i64, args: &[Arg]) -> CallId {
        self.push(nr, args, false)
    }

    /// Appends a call after whose failure the tape goes on.
    pub fn try_call(&mut self, nr: i64, args: &[Arg]) -> CallId {
        self.push(nr, args, true)
    }

    fn push(&mut self, nr: i64, args: &[Arg], tolerant: bool) -> CallId {
        self.records.push(record(nr, args, tolerant));
        CallId(self.records.len() - 1)
    }

    /// Appends a call that undoes something once its result was taken, close(2) above all. On a source it is
    /// made exactly once, by [`source::Parked::run_after`](super::source::Parked::run_after) or, when the
    /// tracer is gone, by the thread itself. It is made even when a call failed.
    pub fn after(&mut self, nr: i64, args: &[Arg]) {
        self.after.push(record(nr, args, true));
    }

    /// Memory holding `bytes`, 8-byte aligned.
    pub fn bytes(&mut self, bytes: &[u8]) -> Block {
        let offset = self.scratch.len();
        self.scratch.extend_from_slice(bytes);
        self.scratch.resize(self.scratch.len().next_multiple_of(8), 0);
        Block { offset, len: bytes.len() }
    }

    /// Memory holding `text` and a final NUL.
    pub fn text(&mut self, text: &str) -> Block {
        let mut bytes = text.as_bytes().to_vec();
        bytes.push(0);
        self.bytes(&bytes)
    }

    /// Zeroed memory of `len` bytes, to be read with [`Outcome::bytes`] afterwards.
    pub fn space(&mut self, len: usize) -> Block {
        self.bytes(&vec![0; len])
    }

    /// Stores the address of `to` at byte `offset` of `block` (`struct iovec` and its like).
    pub fn link(&mut self, block: Block, offset: usize, to: Block) {
        self.links.push((block, offset, to));
    }

    /// Makes the calls of [`Program::after`] ordinary ones.
    pub(super) fn append_after(&mut self) {
        let after = std::mem::take(&mut self.after);
        self.records.extend(after);
    }

    /// Number of calls, without those of [`Program::after`].
    #[must_use]
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Whether it makes no call.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// Bytes of memory it uses so far.
    #[must_use]
    pub fn memory(&self) -> usize {
        self.scratch.len()
    }

    /// Every system call number it makes.
    pub fn numbers(&self) -> impl Iterator<Item = u64> + '_ {
        self.records.iter().chain(&self.after).map(|record| record.nr)
    }

    /// The calls as a seccomp filter sees them; an address or result not known yet counts as 0.
    pub fn seccomp_calls(&self) -> impl Iterator<Item = (u64, [u64; 6])> + '_ {
        let value = |arg: Arg| if let Arg::Value(value) = arg { value } else { 0 };
        self.records.iter().chain(&self.after).map(move |record| (record.nr, record.args.map(value)))
    }

    /// Writes it into a slot whose data lies at `data` in the tracee.
    pub(super) fn load(
        &self,
        area: &SharedArea,
        layout: &SlotLayout,
        slot: Slot,
        data: u64,
    ) -> Result<Loaded, TooBig> {
        let count = self.records.len() + self.after.len();
        if count > layout.records || self.scratch.len() > layout.scratch {
            return Err(TooBig { records: count, scratch: self.scratch.len() });
        }
        let base = layout.data_offset(slot);
        let scratch = layout.scratch_offset();
        let address = |block: Block| data + (scratch + block.offset) as u64;
        let mut memory = self.scratch.clone();
        for &(block, offset, to) in &self.links {
            let at = block.offset + offset;
            if let Some(place) = memory.get_mut(at..at + 8) {
                place.copy_from_slice(&address(to).to_le_bytes());
            }
        }
        area.write(base + scratch, &memory);
        let all: Vec<Record> = self.records.iter().chain(&self.after).copied().collect();
        let record_at = |index: usize| data + (layout.records_offset() + index * RECORD) as u64;
        // A result goes to its record, and to the argument that waits for it.
        let mut copies: Vec<u64> = (0..all.len()).map(|i| record_at(i) + RESULT).collect();
        for (index, record) in all.iter().enumerate() {
            for (position, arg) in record.args.iter().enumerate() {
                if let Arg::Result(CallId(from)) = *arg
                    && let Some(copy) = copies.get_mut(from)
                {
                    *copy = record_at(index) + 8 + 8 * position as u64;
                }
            }
        }
        let mut words = Vec::with_capacity(all.len() * RECORD / 8);
        for (record, copy) in all.iter().zip(&copies) {
            words.push(record.nr);
            words.extend(record.args.map(|arg| match arg {
                Arg::Value(value) => value,
                Arg::Address(block) => address(block),
                // An error, should the call it waits for not be reached.
                Arg::Result(_) => u64::MAX,
            }));
            words.extend([NOT_MADE, u64::from(record.tolerant), *copy]);
        }
        area.write_words(base + layout.records_offset(), &words);
        Ok(Loaded {
            records: record_at(0),
            count: self.records.len() as u64,
            after: record_at(self.records.len()),
            after_count: self.after.len() as u64,
        })
    }

    /// Reads what the calls returned.
    pub(super) fn outcome(&self, area: &SharedArea, layout: &SlotLayout, slot: Slot) -> Outcome {
        let base = layout.data_offset(slot);
        let mut results = Vec::with_capacity(self.records.len());
        let mut failed = None;
        for (index, record) in self.records.iter().enumerate() {
            let result = area.read_word(base + layout.records_offset() + index * RECORD + 56).cast_signed();
            if failed.is_none() && !record.tolerant && (-4095..0).contains(&result) {
                let errno = Errno::from_raw(i32::try_from(-result).unwrap_or(0));
                failed = Some(CallFailed { index, nr: record.nr, errno });
            }
            results.push(result);
        }
        let mut scratch = vec![0; self.scratch.len()];
        area.read(base + layout.scratch_offset(), &mut scratch);
        Outcome { results, failed, scratch }
    }
}

/// Offset of the result in a record.
const RESULT: u64 = 56;
/// What stands in a record's result before the call was made: no system call returns it (-ENOSYS is -38).
const NOT_MADE: u64 = (-4095i64).cast_unsigned();

fn record(nr: i64, args: &[Arg], tolerant: bool) -> Record {
    let mut all = [Arg::Value(0); 6];
    for (place, arg) in all.iter_mut().zip(args) {
        *place = *arg;
    }
    Record { nr: nr.cast_unsigned(), args: all, tolerant }
}

/// Where a program lies in the tracee.
#[derive(Clone, Copy, Debug)]
pub(super) struct Loaded {
    pub(super) records: u64,
    pub(super) count: u64,
    pub(super) after: u64,
    pub(super) after_count: u64,
}

/// What a program's calls returned.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    results: Vec<i64>,
    failed: Option<CallFailed>,
    scratch: Vec<u8>,
}

impl Outcome {
    /// The first call that failed and ended the tape.
    #[must_use]
    pub fn failed(&self) -> Option<CallFailed> {
        self.failed
    }

    /// Itself, when no call failed (those of [`Program::try_call`] may have).
    ///
    /// # Errors
    /// The call that ended the tape.
    pub fn ok(self) -> Result<Self, CallFailed> {
        match self.failed {
            None => Ok(self),
            Some(failed) => Err(failed),
        }
    }

    /// What a call returned: a value, or minus an error number.
    #[must_use]
    pub fn result(&self, call: CallId) -> i64 {
        self.results.get(call.0).copied().unwrap_or(NOT_MADE.cast_signed())
    }

    /// All results in order.
    #[must_use]
    pub fn results(&self) -> &[i64] {
        &self.results
    }

    /// A block's contents after the run.
    #[must_use]
    pub fn bytes(&self, block: Block) -> &[u8] {
        self.scratch.get(block.offset..block.offset + block.len).unwrap_or(&[])
    }

    /// A block's first 8 bytes as a number.
    #[must_use]
    pub fn word(&self, block: Block) -> u64 {
        let mut word = [0; 8];
        let bytes = self.bytes(block);
        let len = bytes.len().min(8);
        word[..len].copy_from_slice(&bytes[..len]);
        u64::from_le_bytes(word)
    }
}
