//! The seccomp(2) filters of a stopped thread.

use super::{Error, Stopped, request};
use crate::Errno;

/// One installed filter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InstalledFilter {
    /// `struct sock_filter` array, 8 bytes an instruction.
    pub program: Vec<u8>,
    /// SECCOMP_FILTER_FLAG_* (only FLAG_LOG is kept by the kernel).
    pub flags: u64,
}

/// PTRACE_SECCOMP_GET_FILTER.
const GET_FILTER: libc::c_uint = 0x420c;
/// PTRACE_SECCOMP_GET_METADATA.
const GET_METADATA: libc::c_uint = 0x420d;

/// `struct seccomp_metadata`.
#[repr(C)]
struct Metadata {
    filter_off: u64,
    flags: u64,
}
const _: () = assert!(size_of::<Metadata>() == 16);

impl Stopped {
    /// All filters in the order in which they were installed; empty when there is none.
    ///
    /// # Errors
    /// EACCES without CAP_SYS_ADMIN or when this process is under seccomp itself; EMEDIUMTYPE for a filter
    /// that is not classic BPF.
    pub fn seccomp_filters(&self) -> Result<Vec<InstalledFilter>, Error> {
        let mut all = Vec::new();
        loop {
            // SAFETY: a null `data` asks for the length alone; nothing is written.
            let length = unsafe { request(GET_FILTER, self.tid(), all.len(), 0) };
            let length = match length {
                // No filter of that number, or (EINVAL) no filter mode at all.
                Err(Errno::ENOENT | Errno::EINVAL) => return Ok(all),
                other => usize::try_from(self.call("PTRACE_SECCOMP_GET_FILTER", other)?).unwrap_or(0),
            };
            let mut program = vec![0u8; length * 8];
            let data = program.as_mut_ptr().expose_provenance();
            // SAFETY: `program` has room for the `length` instructions of 8 bytes that were announced; the
            // thread is stopped, and filters cannot be taken away.
            let answer = unsafe { request(GET_FILTER, self.tid(), all.len(), data) };
            self.call("PTRACE_SECCOMP_GET_FILTER", answer)?;
            let mut meta = Metadata { filter_off: all.len() as u64, flags: 0 };
            self.with("PTRACE_SECCOMP_GET_METADATA", GET_METADATA, size_of::<Metadata>(), &mut meta)?;
            all.push(InstalledFilter { program, flags: meta.flags });
        }
    }
}
