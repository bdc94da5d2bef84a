//! Descriptor tables of processes and of threads that have their own, and the locks that belong to them.

use std::collections::BTreeMap;

use image::Pid;
use image::files::{FdEntry, FileLock, LockKind};
use image::shape::Shared;
use image::state::Image;
use libc::SYS_fcntl;

use super::error::TargetError;
use super::files::Descriptions;
use super::plan::fds;
use super::plant::close_but;
use super::restore::{Restorer, live};
use super::script::{Block, call};
use super::skeleton::Task;

/// Somebody with a descriptor table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Holder<'a> {
    /// The process.
    pub(crate) pid: Pid,
    /// Its thread, when that has the table for itself.
    pub(crate) thread: Option<Pid>,
    /// What is in it.
    pub(crate) fds: &'a [FdEntry],
}

/// What each process shares.
pub(super) fn shared(image: &Image) -> BTreeMap<Pid, Shared> {
    image.shape.processes.iter().map(|process| (process.pid, process.shared)).collect()
}

impl<'a> Restorer<'a> {
    /// Everybody who has a table; those who share one are named each.
    pub(super) fn holders(&self) -> impl Iterator<Item = Holder<'a>> + use<'a> {
        live(self.image).flat_map(|process| {
            let threads = process.threads.iter().filter_map(|thread| {
                let fds = thread.fds.as_deref()?;
                Some(Holder { pid: process.pid, thread: Some(thread.tid), fds })
            });
            std::iter::once(Holder { pid: process.pid, thread: None, fds: &process.fds }).chain(threads)
        })
    }

    /// The thread that works on a table.
    pub(super) fn holding(&mut self, holder: &Holder<'_>) -> Result<&mut Task, TargetError> {
        let skeleton = self.tree.get(holder.pid)?;
        match holder.thread {
            None => Ok(&mut skeleton.leader),
            Some(tid) => skeleton.thread(tid),
        }
    }

    /// Plants every descriptor of processes at its number, then fills epoll sets.
    pub(crate) fn descriptors(&mut self, files: &Descriptions) -> Result<(), TargetError> {
        let image = self.image;
        let shared = shared(image);
        for process in live(image) {
            // What is shared is filled once.
            if shared.get(&process.pid).is_some_and(|shared| !shared.is_first_of_files(process.pid)) {
                continue;
            }
            let plan = fds::plan(&process.fds);
            let task = &mut self.tree.get(process.pid)?.leader;
            self.channel.fill_table(task, self.tape, self.channel.number, &plan, &|id| files.get(id))?;
        }
        self.fill_epolls(files, false)
    }

    /// The same for threads that have their own tables, which begin as copies of their process's; `early`: while that held
    /// nothing but the channel.
    pub(crate) fn thread_tables(&mut self, files: &Descriptions, early: bool) -> Result<(), TargetError> {
        let image = self.image;
        let mut any = false;
        for process in live(image) {
            let at = if early { self.channel.number } else { fds::plan(&process.fds).channel };
            let own = process.threads.iter().filter(|thread| thread.shared.is_first_of_files(thread.tid));
            for (thread, own) in own.filter_map(|thread| Some((thread, thread.fds.as_deref()?))) {
                let task = self.tree.get(process.pid)?.thread(thread.tid)?;
                task.run(self.tape, &close_but(at))?;
                self.channel.fill_table(task, self.tape, at, &fds::plan(own), &|id| files.get(id))?;
                any = true;
            }
        }
        if any {
            self.fill_epolls(files, true)?;
            self.lock(files, true)?;
        }
        Ok(())
    }

    /// File locks: those of descriptions by the agent, those of processes by themselves.
    pub(crate) fn locks(&mut self, files: &Descriptions) -> Result<(), TargetError> {
        self.lock(files, false)
    }

    /// `threads`: those of threads with tables of their own, else all others.
    fn lock(&mut self, files: &Descriptions, threads: bool) -> Result<(), TargetError> {
        let image = self.image;
        for lock in &image.files.locks {
            let FileLock { file, kind, write, start, length } = *lock;
            let missing = || TargetError::Image(format!("a lock of open file {file}, which is missing"));
            let failed = TargetError::errno(format!("lock open file {file} again"));
            let owner = match kind {
                LockKind::Posix(number) => {
                    let is = |holder: &Holder<'_>| holder.thread.unwrap_or(holder.pid) == number;
                    Some(self.holders().find(is).ok_or_else(missing)?)
                }
                LockKind::Flock | LockKind::Ofd => None,
            };
            if owner.is_some_and(|owner| owner.thread.is_some()) != threads {
                continue;
            }
            let held = files.get(file).ok_or_else(missing)?;
            match owner {
                Some(owner) => {
                    let entry = owner.fds.iter().find(|entry| entry.file == file).ok_or_else(missing)?;
                    let lock = Block::new(sys::fds::lock_argument(write, start, length));
                    let call = call!("F_SETLK", SYS_fcntl, entry.fd, libc::F_SETLK, lock);
                    let tape = self.tape;
                    self.holding(&owner)?.run(tape, &[call])?;
                }
                None if kind == LockKind::Flock => sys::fds::flock(held, write).map_err(failed)?,
                None => sys::fds::lock_description(held, write, start, length).map_err(failed)?,
            }
        }
        Ok(())
    }
}
