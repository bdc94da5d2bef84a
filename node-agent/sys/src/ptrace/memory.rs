//! Queued signals and the rseq registration of a stopped thread.

use super::{Error, Stopped, request};
use crate::Errno;

/// Which queue of signals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PendingSignals {
    /// Sent to this thread.
    Thread,
    /// Sent to the process.
    Process,
}

/// `struct ptrace_peeksiginfo_args`.
#[repr(C)]
struct PeekArgs {
    offset: u64,
    flags: u32,
    count: i32,
}
const _: () = assert!(size_of::<PeekArgs>() == 16);

/// PTRACE_PEEKSIGINFO_SHARED.
const SHARED: u32 = 1;
/// sizeof(siginfo_t).
const SIGINFO: usize = 128;
const _: () = assert!(size_of::<libc::siginfo_t>() == SIGINFO);

/// `struct ptrace_rseq_configuration`: what rseq(2) registered.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RseqConfiguration {
    /// Address of `struct rseq`; 0 = not registered.
    pub address: u64,
    /// Its size in bytes.
    pub size: u32,
    /// The signature before abort handlers.
    pub signature: u32,
    /// Flags of the registration.
    pub flags: u32,
    /// Reserved.
    pub pad: u32,
}
const _: () = assert!(size_of::<RseqConfiguration>() == 24);

/// PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG (Linux 6.4) and its structure: mode, selector, offset, length.
const GET_DISPATCH: libc::c_uint = 0x4211;
type Dispatch = [u64; 4];

/// PTRACE_GET_RSEQ_CONFIGURATION.
const GET_RSEQ: libc::c_uint = 0x420f;

impl Stopped {
    /// The queued signals, oldest first; each a raw 128-byte `siginfo_t`.
    ///
    /// # Errors
    /// [`Error::Gone`].
    pub fn pending(&self, which: PendingSignals) -> Result<Vec<[u8; SIGINFO]>, Error> {
        const BATCH: usize = 32;
        const COUNT: i32 = 32;
        let flags = if which == PendingSignals::Process { SHARED } else { 0 };
        let mut all = Vec::new();
        loop {
            let mut batch = [[0u8; SIGINFO]; BATCH];
            let args = PeekArgs { offset: all.len() as u64, flags, count: COUNT };
            let addr = (&raw const args).expose_provenance();
            let data = batch.as_mut_ptr().expose_provenance();
            // SAFETY: `args` is the structure that the request reads, and `batch` has room for the `count`
            // entries of 128 bytes that it may write.
            let got = unsafe { request(libc::PTRACE_PEEKSIGINFO, self.tid(), addr, data) };
            let got = usize::try_from(self.call("PTRACE_PEEKSIGINFO", got)?).unwrap_or(0).min(BATCH);
            all.extend_from_slice(&batch[..got]);
            if got < BATCH {
                return Ok(all);
            }
        }
    }

    /// The signal it is about to receive (PTRACE_GETSIGINFO).
    ///
    /// # Errors
    /// [`Error::Gone`]; EINVAL outside a signal stop.
    pub fn siginfo(&self) -> Result<[u8; SIGINFO], Error> {
        let mut info = [0u8; SIGINFO];
        self.with("PTRACE_GETSIGINFO", libc::PTRACE_GETSIGINFO, 0, &mut info)?;
        Ok(info)
    }

    /// Whether it handles system calls that it makes itself (`PR_SET_SYSCALL_USER_DISPATCH`). False also on kernels before
    /// 6.4, which cannot tell.
    ///
    /// # Errors
    /// [`Error::Gone`].
    pub fn dispatches_calls(&self) -> Result<bool, Error> {
        let mut dispatch = Dispatch::default();
        let what = "PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG";
        match self.with(what, GET_DISPATCH, size_of::<Dispatch>(), &mut dispatch) {
            Ok(_) => Ok(dispatch[0] != 0),
            Err(Error::Call { source: Errno::EIO | Errno::EINVAL, .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Its rseq(2) registration, if any. `None` also on kernels before 5.13, which cannot tell.
    ///
    /// # Errors
    /// [`Error::Gone`].
    pub fn rseq(&self) -> Result<Option<RseqConfiguration>, Error> {
        let mut rseq = RseqConfiguration::default();
        match self.with("PTRACE_GET_RSEQ_CONFIGURATION", GET_RSEQ, size_of::<RseqConfiguration>(), &mut rseq)
        {
            Ok(_) => Ok((rseq.address != 0).then_some(rseq)),
            Err(Error::Call { source: Errno::EIO | Errno::EINVAL, .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }
}
