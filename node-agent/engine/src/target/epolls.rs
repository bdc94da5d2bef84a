//! Sets of epoll(7), filled by a process that has what they watch.

use std::collections::{HashMap, HashSet};

use image::files::{EpollTarget, FdEntry, FileKind, Files};
use libc::{SYS_close, SYS_dup, SYS_dup3, SYS_epoll_ctl, SYS_epoll_wait};
use sys::tape::target::TargetTape;

use super::error::TargetError;
use super::files::Descriptions;
use super::plan::fds;
use super::restore::Restorer;
use super::script::{Block, Call, call};
use super::skeleton::Task;
use super::tables::Holder;
use crate::readiness;

const EPOLL_CTL_ADD: i32 = 1;

impl Restorer<'_> {
    /// Fills every set; descriptors are at their numbers. `threads`: those that only a thread with a descriptor table of
    /// its own can fill, else all others.
    pub(super) fn fill_epolls(&mut self, files: &Descriptions, threads: bool) -> Result<(), TargetError> {
        for (id, targets) in epolls(&self.image.files) {
            self.fill_epoll(id, targets, files, threads)?;
        }
        Ok(())
    }

    /// An entry's key is the description together with the number under which it was added, so the set is
    /// filled by a process that has both.
    fn fill_epoll(
        &mut self,
        id: u32,
        targets: &[EpollTarget],
        files: &Descriptions,
        threads: bool,
    ) -> Result<(), TargetError> {
        let numbers = |holder: &Holder<'_>| -> HashMap<i32, u32> {
            holder.fds.iter().map(|entry| (entry.fd, entry.file)).collect()
        };
        let has = |own: &HashMap<i32, u32>, t: &EpollTarget| own.get(&t.fd) == Some(&t.file);
        let holders = self.holders().filter_map(|holder| {
            let epoll = holder.fds.iter().find(|e| e.file == id)?.fd;
            Some((holder, epoll, numbers(&holder)))
        });
        let most = holders.max_by_key(|(_, _, own)| targets.iter().filter(|t| has(own, t)).count());
        let Some((holder, epoll, own)) = most else { return Ok(()) };
        if holder.thread.is_some() != threads {
            return Ok(());
        }
        let channel = fds::plan(holder.fds).channel;
        let (tape, planter) = (self.tape, self.channel);
        let task = self.holding(&holder)?;
        // What has been told already is told again, to nobody, while nothing else can answer.
        let (known, waiting) = known(targets, files);
        let first = known.len();
        let mut together = Vec::with_capacity(targets.len());
        for (place, target) in known.into_iter().chain(waiting).enumerate() {
            let mut calls = vec![add(epoll, target)];
            if place < first {
                calls.push(call!("epoll_wait", SYS_epoll_wait, epoll, Block::new(vec![0; 12]), 1, 0));
            }
            if has(&own, target) {
                together.append(&mut calls);
                continue;
            }
            task.run(tape, &std::mem::take(&mut together))?;
            // The number is closed, or leads elsewhere by now: it is lent for the moment.
            let file = files.get(target.file).ok_or_else(|| {
                TargetError::Image(format!("epoll {id} watches open file {}, which is missing", target.file))
            })?;
            let landed = planter.plant(task, tape, channel, &[file])?;
            let number = landed.first().copied().unwrap_or(-1);
            let taken = holder.fds.iter().find(|e| e.fd == target.fd).copied();
            lend(task, tape, number, target.fd, taken, calls)?;
        }
        task.run(tape, &together).map(drop)
    }
}

/// The entries of which nothing is left to tell, and the others: an entry that has fired is disarmed, and an edge was
/// heard of when its file is ready for nothing more than it was at the source.
fn known<'a>(
    targets: &'a [EpollTarget],
    files: &Descriptions,
) -> (Vec<&'a EpollTarget>, Vec<&'a EpollTarget>) {
    let edges: Vec<_> =
        targets.iter().filter(|t| t.told != 0).filter_map(|t| Some((t, files.get(t.file)?))).collect();
    let asked: Vec<_> = edges.iter().map(|(t, file)| (*file, t.events)).collect();
    // Without an answer they are told once more, which does no harm.
    let ready = readiness::of(&asked).unwrap_or_default();
    let heard: HashSet<_> = edges
        .iter()
        .zip(ready)
        .filter(|((t, _), ready)| ready & !t.told == 0)
        .map(|((t, _), _)| (t.fd, t.file))
        .collect();
    targets.iter().partition(|t| t.fired || heard.contains(&(t.fd, t.file)))
}

fn epolls(files: &Files) -> impl Iterator<Item = (u32, &[EpollTarget])> {
    files.open.iter().filter_map(|f| match &f.kind {
        FileKind::Epoll { targets, .. } => Some((f.id, targets.as_slice())),
        _ => None,
    })
}

/// epoll_ctl(2) EPOLL_CTL_ADD. An entry that has fired is added armed for what is nearly always ready.
fn add(epoll: i32, target: &EpollTarget) -> Call {
    let ready = (libc::EPOLLIN | libc::EPOLLOUT).cast_unsigned();
    let events = if target.fired { target.events | ready } else { target.events };
    let mut event = events.to_le_bytes().to_vec();
    event.extend_from_slice(&target.data.to_le_bytes());
    call!("EPOLL_CTL_ADD", SYS_epoll_ctl, epoll, EPOLL_CTL_ADD, target.fd, Block::new(event))
}

/// Makes `calls` while `number` stands in for descriptor `fd`, which is `taken` by another or free.
fn lend(
    task: &mut Task,
    tape: &TargetTape,
    number: i32,
    fd: i32,
    taken: Option<FdEntry>,
    calls: Vec<Call>,
) -> Result<(), TargetError> {
    let mut all = Vec::new();
    let mut saved = None;
    if taken.is_some() {
        let ran = task.run(tape, &[call!("dup", SYS_dup, fd)])?;
        saved = ran.answers.first().map(|a| a.value);
    }
    if number != fd {
        all.push(call!("dup3", SYS_dup3, number, fd, 0));
        all.push(call!("close", SYS_close, number));
    }
    all.extend(calls);
    match (saved, taken) {
        (Some(saved), Some(entry)) => {
            let flags = if entry.cloexec { libc::O_CLOEXEC } else { 0 };
            all.push(call!("dup3", SYS_dup3, saved, fd, flags));
            all.push(call!("close", SYS_close, saved));
        }
        _ => all.push(call!("close", SYS_close, fd)),
    }
    task.run(tape, &all).map(drop)
}
