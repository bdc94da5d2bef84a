//! Whether what a process will map is locked (mlockall(2), MCL_FUTURE).
//!
//! The kernel shows it nowhere: a page is mapped on the process's tape and looked at. Only a process with locked memory
//! is asked. One that asked for it has some: the tape itself, if nothing else.

use std::collections::BTreeMap;

use sys::pagemap::Pagemap;
use sys::tape::Program;

use super::error::SourceError;
use super::session::{Frozen, Tracked};
use super::traced::{ParkedThread, Tapes};
use super::tree::Process;
use crate::proc::status;

const PAGE: u64 = image::PAGE_SIZE;
/// MCL_FUTURE and MCL_ONFAULT.
const FUTURE: u32 = 2;
const ONFAULT: u32 = 4;

/// Asks every process with locked memory. All threads are parked.
pub(super) fn read(
    tree: &[Process],
    tracked: &BTreeMap<i32, Tracked>,
    frozen: &mut Frozen,
) -> Result<(), SourceError> {
    for process in tree.iter().filter(|process| !process.is_zombie()) {
        let tapes = tracked.get(&process.pid).and_then(|tracked| tracked.tapes.as_ref());
        let (Some(tapes), Some(threads)) = (tapes, frozen.parked.get_mut(&process.pid)) else { continue };
        if threads.first().is_none_or(|leader| leader.status.locked_kb == 0) {
            continue;
        }
        let (flags, leader) = tapes.locks_later(threads.remove(0))?;
        threads.insert(0, leader);
        if flags != 0 {
            frozen.lock_later.insert(process.inner, flags);
        }
    }
    Ok(())
}

impl Tapes {
    /// The flags of mlockall(2) for what will be mapped, 0 = none. `thread`: any of the process, parked.
    pub(crate) fn locks_later(&self, thread: ParkedThread) -> Result<(u32, ParkedThread), SourceError> {
        let pid = self.pid;
        let mut program = Program::new();
        // It joins no neighbour, because none grows downwards but a stack.
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_GROWSDOWN;
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        let arguments = [0.into(), PAGE.into(), prot.into(), flags.into(), (-1).into(), 0.into()];
        let call = program.call(libc::SYS_mmap, &arguments);
        program.after(libc::SYS_munmap, &[call.into(), PAGE.into()]);
        let before = status::read(pid)?.locked_kb;
        let mut thread = self.again(thread, program)?;
        let outcome = thread.outcomes.pop().unwrap_or_default();
        let found = match outcome.failed() {
            Some(failed) => Err(SourceError::kernel("map a page in the process", pid, failed.errno)),
            None => look(pid, outcome.result(call).cast_unsigned(), before),
        };
        // The page in the process is given back whatever came of it.
        let thread = self.undo(thread, "give back a page in the process")?;
        match found {
            Ok(found) => Ok((found, thread)),
            Err(error) => {
                self.detach(thread)?;
                Err(error)
            }
        }
    }
}

/// What became of the page at `address`.
fn look(pid: i32, address: u64, locked_before_kb: u64) -> Result<u32, SourceError> {
    if status::read(pid)?.locked_kb == locked_before_kb {
        return Ok(0);
    }
    let kernel = |errno| SourceError::kernel("look at a page of the process", pid, errno);
    let mut entries = Vec::new();
    let pagemap = Pagemap::open(pid).map_err(kernel)?;
    pagemap.entries(address..address + PAGE, &mut entries).map_err(kernel)?;
    let present = entries.first().is_some_and(|entry| entry.present());
    Ok(if present { FUTURE } else { FUTURE | ONFAULT })
}
