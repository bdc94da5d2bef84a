//! Removing what a tracer that died left in a process.

use std::ops::Range;
use std::time::{Duration, Instant};

use super::slack::{Boot, BootArg, BootCall, Slack};
use super::source::{self, Config, Context, SourceError};
use super::vdso::{Vdso, tape_mappings};
use crate::mem::ProcessMemory;
use crate::ptrace::{Options, Running, Stopped, Tid, stop_all};

/// What was found and done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Leftovers {
    /// Bytes of tape memory that were unmapped.
    pub unmapped: u64,
    /// The end of the vDSO held code and was zeroed.
    pub slack_cleared: bool,
    /// A thread is still inside (or will return there from a signal handler): nothing was removed. Harmless;
    /// try again later.
    pub in_use: bool,
}

/// How far up a stopped thread's stack a signal frame that returns into a tape is looked for.
const STACK: usize = 64 * 1024;

/// Removes an earlier tracer's tape from process `pid`, whose threads are `tids`. Threads that are inside run
/// on and come out by themselves; the process is stopped for well under a millisecond a try. Afterwards it
/// runs on untraced in every case.
///
/// # Errors
/// [`SourceError`]: a thread is traced by somebody else, has died, or the process cannot be read.
pub fn cleanup_leftovers(
    pid: Tid,
    tids: &[Tid],
    park_signal: i32,
    limit: Duration,
) -> Result<Leftovers, SourceError> {
    let memory = ProcessMemory::open(pid).map_err(|source| SourceError::Memory {
        what: "open the memory",
        pid,
        source,
    })?;
    let range = Vdso::find(pid)?.slack(pid)?;
    let slack = Slack { pid, range };
    let mappings =
        tape_mappings(pid).map_err(|source| SourceError::Memory { what: "read the maps", pid, source })?;
    let mut used = vec![0; usize::try_from(slack.range.end - slack.range.start).unwrap_or(0)];
    memory.read(slack.range.start, &mut used).map_err(|source| SourceError::Memory {
        what: "read the vDSO",
        pid,
        source,
    })?;
    let dirty = used.iter().any(|&byte| byte != 0);
    if mappings.is_empty() && !dirty {
        return Ok(Leftovers::default());
    }
    let mut inside = mappings.clone();
    inside.push(slack.range.clone());
    let end = Instant::now() + limit;
    loop {
        let mut threads = stop_threads(tids, limit, &memory)?;
        let busy = threads.iter().any(|(thread, _)| is_inside(thread, &memory, &inside));
        let helper = if busy { None } else { threads.pop() };
        for (thread, context) in threads {
            // Dead already otherwise.
            let _ = context.detach(thread);
        }
        if let Some((thread, context)) = helper {
            let unmapped = unmap(pid, thread, context, &mappings, &slack, &memory, park_signal)?;
            return Ok(Leftovers { unmapped, slack_cleared: dirty, in_use: false });
        }
        if Instant::now() >= end {
            return Ok(Leftovers { in_use: true, ..Leftovers::default() });
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn stop_threads(
    tids: &[Tid],
    limit: Duration,
    memory: &ProcessMemory,
) -> Result<Vec<(Stopped, Context)>, SourceError> {
    let mut running = Vec::with_capacity(tids.len());
    for &tid in tids {
        match Running::seize(tid, Options::TRACE_CLONE) {
            Ok(thread) => running.push(thread),
            Err(error) if error.is_gone() => {}
            Err(error) => return Err(error.into()),
        }
    }
    let mut threads = Vec::with_capacity(running.len());
    for thread in stop_all(running, limit)?.stopped {
        let context = Context::read(&thread, memory, Duration::ZERO)?;
        threads.push((thread, context));
    }
    Ok(threads)
}

/// Whether the thread has seccomp filters; true also when that cannot be read.
fn is_filtered(tid: Tid) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{tid}/status")).unwrap_or_default();
    status.lines().find_map(|line| line.strip_prefix("Seccomp:")).is_none_or(|mode| mode.trim() != "0")
}

/// Whether the thread executes in one of `ranges`, or a signal frame on its stack leads back there.
fn is_inside(thread: &Stopped, memory: &ProcessMemory, ranges: &[Range<u64>]) -> bool {
    let Ok(regs) = thread.regs() else { return false };
    let hit = |address: u64| ranges.iter().any(|range| range.contains(&address));
    if hit(regs.rip) {
        return true;
    }
    // Page by page up to the end of the stack's mapping.
    let mut at = regs.rsp & !7;
    let end = at + STACK as u64;
    while at < end {
        let next = (at + 4096) & !4095;
        let mut page = vec![0; usize::try_from(next - at).unwrap_or(0)];
        if memory.read(at, &mut page).is_err() {
            return false;
        }
        if page.as_chunks::<8>().0.iter().any(|word| hit(u64::from_le_bytes(*word))) {
            return true;
        }
        at = next;
    }
    false
}

fn unmap(
    pid: Tid,
    helper: Stopped,
    context: Context,
    mappings: &[Range<u64>],
    slack: &Slack,
    memory: &ProcessMemory,
    park_signal: i32,
) -> Result<u64, SourceError> {
    // Neighbouring views are one range.
    let mut ranges: Vec<Range<u64>> = Vec::new();
    for range in mappings {
        match ranges.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => ranges.push(range.clone()),
        }
    }
    let calls = ranges.iter().take(5).map(|range| BootCall {
        nr: libc::SYS_munmap,
        args: vec![BootArg::Value(range.start), BootArg::Value(range.end - range.start)],
    });
    let boot = Boot { calls: calls.collect(), ..Boot::default() };
    let config =
        Config { size: super::Size::default(), park_signal, suspend_seccomp: is_filtered(helper.tid()) };
    if boot.calls.is_empty() {
        context.detach(helper)?;
    } else {
        source::boot_once(pid, helper, context, slack, memory, &boot, &config)?;
    }
    slack.clear(memory)?;
    Ok(ranges.iter().take(5).map(|range| range.end - range.start).sum())
}
