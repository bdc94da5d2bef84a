//! Where things lie in a tape's shared memory: code first, then one data slot a thread.

/// Bytes of a record: number, six arguments, result, tolerance, where else the result goes.
pub(super) const RECORD: usize = 80;
/// Bytes of code a slot has.
pub(super) const CODE_SLOT: usize = 512;
const PAGE: usize = 4096;
/// Bytes of a data slot before its records.
const HEADER: usize = 64;

/// How large a tape's memory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Threads that may be on the tape at once.
    pub slots: usize,
    /// Calls a program may have.
    pub records: usize,
    /// Bytes of memory a program may have.
    pub scratch: usize,
}

impl Default for Size {
    /// 64 threads, 512 calls, 64 KiB each. Untouched memory costs nothing.
    fn default() -> Self {
        Self { slots: 64, records: 512, scratch: 64 * 1024 }
    }
}

/// Number of a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Slot(pub(super) usize);

#[derive(Clone, Copy, Debug)]
pub(super) struct SlotLayout {
    pub(super) slots: usize,
    pub(super) records: usize,
    pub(super) scratch: usize,
    code: usize,
    slot: usize,
}

impl SlotLayout {
    /// For `code` bytes of code.
    pub(super) fn new(size: Size, code: usize) -> Self {
        let slots = size.slots.max(1);
        let slot = (HEADER + size.records * RECORD + size.scratch).next_multiple_of(PAGE);
        let code = code.next_multiple_of(PAGE);
        Self { slots, records: size.records, scratch: size.scratch, code, slot }
    }

    /// With code of its own for every slot.
    pub(super) fn with_code_slots(size: Size) -> Self {
        Self::new(size, size.slots.max(1) * CODE_SLOT)
    }

    pub(super) fn code_len(&self) -> usize {
        self.code
    }

    pub(super) fn total(&self) -> usize {
        self.code + self.slots * self.slot
    }

    /// Of a slot's data, from the start of the memory.
    pub(super) fn data_offset(&self, slot: Slot) -> usize {
        self.code + slot.0 * self.slot
    }

    /// Of a slot's code, from the start of the memory.
    pub(super) fn code_offset(&self, slot: Slot) -> usize {
        slot.0 * CODE_SLOT
    }

    /// Of the records, from the start of a slot's data.
    pub(super) fn records_offset(&self) -> usize {
        HEADER
    }

    /// Of the scratch memory, from the start of a slot's data.
    pub(super) fn scratch_offset(&self) -> usize {
        HEADER + self.records * RECORD
    }
}
