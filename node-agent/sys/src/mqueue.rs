//! POSIX message queues, see mq_overview(7).

use std::os::fd::{AsRawFd, BorrowedFd};

use crate::Result;
use crate::abi::small;

/// `struct mq_attr` of the kernel's interface, as mq_open(2) takes it and mq_getsetattr(2) gives it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Attributes {
    /// `O_NONBLOCK` or nothing.
    pub flags: i64,
    /// How many messages it may hold.
    pub capacity: i64,
    /// How many bytes one may have.
    pub message_size: i64,
    /// How many there are.
    pub messages: i64,
    reserved: [i64; 4],
}

impl Attributes {
    /// Those of a queue to be made.
    #[must_use]
    pub fn of(capacity: i64, message_size: i64) -> Self {
        Self { capacity, message_size, ..Self::default() }
    }

    /// As the kernel reads it.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        [self.flags, self.capacity, self.message_size, self.messages]
            .into_iter()
            .chain(self.reserved)
            .flat_map(i64::to_ne_bytes)
            .collect()
    }
}

/// What a queue is.
///
/// # Errors
/// `EBADF` it is none.
pub fn attributes(queue: BorrowedFd<'_>) -> Result<Attributes> {
    let mut found = Attributes::default();
    let nothing: *const Attributes = std::ptr::null();
    // SAFETY: the kernel fills a structure of this type, and reads none.
    small(unsafe {
        libc::syscall(libc::SYS_mq_getsetattr, queue.as_raw_fd(), nothing, std::ptr::from_mut(&mut found))
    })?;
    Ok(found)
}
