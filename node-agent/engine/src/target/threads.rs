//! The threads of skeletons. Making one takes some fifty microseconds, and waits for whoever moves processes between
//! control groups anywhere on the host: those that are known are made while the source still runs.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use image::Pid;
use image::shape::Ahead;
use image::state::{Creds, Thread};
use libc::{SYS_clone3, SYS_close, SYS_exit, SYS_fcntl, SYS_unshare};
use sys::ptrace::Event;
use sys::regs::NO_SYSCALL;
use sys::tape::target::TargetTape;

use super::attributes::{self, Capabilities, Filters};
use super::error::TargetError;
use super::plan::threads as plan;
use super::plan::tree::Share;
use super::script::{Block, Call, call};
use super::skeleton::{Skeleton, TAPE_SIZE, Task, lost, trace};
use super::tree::Tree;

/// A table has room for so many descriptors from its beginning (NR_OPEN_DEFAULT is 64): some of them are the agent's.
const FEW: i32 = 32;
/// How long a thread may take to end.
const EXIT_LIMIT: Duration = Duration::from_secs(5);
/// CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM.
const THREAD_FLAGS: i32 = libc::CLONE_VM
    | libc::CLONE_FS
    | libc::CLONE_FILES
    | libc::CLONE_SIGHAND
    | libc::CLONE_THREAD
    | libc::CLONE_SYSVSEM;

/// clone3(2) of a thread with a chosen tid; `below`: in pid namespaces below the container's, the outermost first.
fn clone_thread(tid: Pid, below: &[Pid]) -> Call {
    let flags = u64::from(THREAD_FLAGS.cast_unsigned());
    let numbers: Vec<u8> = below.iter().rev().chain([&tid]).flat_map(|tid| tid.to_le_bytes()).collect();
    let args = Block::words(&[flags, 0, 0, 0, 0, 0, 0, 0, 0, below.len() as u64 + 1, 0])
        .link(64, Block::new(numbers));
    call!("clone3 of a thread", SYS_clone3, args, 88)
}

impl Skeleton {
    /// Makes its threads, its first one aside, be `wanted`, in this order: ends those that are not in it and makes
    /// those that are missing.
    ///
    /// # Errors
    /// A [`TargetError`]; the skeleton is lost then.
    pub(crate) fn set_threads(&mut self, tape: &TargetTape, wanted: &[Pid]) -> Result<(), TargetError> {
        self.set_numbered_threads(tape, wanted, &BTreeMap::new())
    }

    /// As [`Skeleton::set_threads`], with their tids in the pid namespaces below the container's.
    ///
    /// # Errors
    /// As [`Skeleton::set_threads`].
    pub(crate) fn set_numbered_threads(
        &mut self,
        tape: &TargetTape,
        wanted: &[Pid],
        below: &BTreeMap<Pid, &[Pid]>,
    ) -> Result<(), TargetError> {
        if self.threads.iter().map(|task| &task.tid).eq(wanted) {
            return Ok(());
        }
        let mut known: BTreeMap<Pid, Task> =
            std::mem::take(&mut self.threads).into_iter().map(|task| (task.tid, task)).collect();
        let keep: BTreeSet<Pid> = wanted.iter().copied().collect();
        let at = self.syscall_instruction()?;
        for tid in known.keys().copied().filter(|tid| !keep.contains(tid)).collect::<Vec<_>>() {
            if let Some(task) = known.remove(&tid) {
                end(task, at)?;
            }
        }
        let missing: Vec<Pid> = wanted.iter().copied().filter(|tid| !known.contains_key(tid)).collect();
        let numbers = |tid: &Pid| below.get(tid).copied().unwrap_or_default();
        let calls: Vec<Call> = missing.iter().map(|tid| clone_thread(*tid, numbers(tid))).collect();
        let ran = self.run(tape, &calls)?;
        let pid = self.node.pid;
        if ran.made.len() != missing.len() {
            return Err(lost(pid, format!("{} of {} threads were made", ran.made.len(), missing.len())));
        }
        for (tid, stopped) in missing.into_iter().zip(ran.made) {
            known.insert(tid, Task::new(tid, stopped)?);
        }
        for tid in wanted {
            let twice = || TargetError::Image(format!("pid {pid} has thread {tid} twice"));
            self.threads.push(known.remove(tid).ok_or_else(twice)?);
        }
        Ok(())
    }
}

impl Skeleton {
    /// Makes the threads of the image, its first one aside, as far as they are not there yet: each by who has what it
    /// shares, and with what is its own.
    ///
    /// # Errors
    /// A [`TargetError`]; the skeleton is lost then.
    pub(crate) fn make_threads(&mut self, tape: &TargetTape, wanted: &[&Thread]) -> Result<(), TargetError> {
        let order: BTreeMap<Pid, usize> = wanted.iter().map(|thread| thread.tid).zip(0..).collect();
        let below: BTreeMap<Pid, &[Pid]> =
            wanted.iter().map(|thread| (thread.tid, thread.tids_below.as_slice())).collect();
        let apart = |thread: &&&Thread| thread.directories.is_some() || thread.fds.is_some();
        let apart: Vec<plan::Wanted> = wanted
            .iter()
            .filter(apart)
            .map(|thread| plan::Wanted {
                tid: thread.tid,
                files: thread.fds.is_some(),
                directories: thread.directories.is_some(),
                shared: thread.shared,
            })
            .collect();
        let pid = self.node.pid;
        let made = plan::plan(&apart)
            .map_err(|tid| TargetError::Image(format!("thread {tid} of pid {pid}: {}", plan::NO_MAKER)))?;
        let by_others: BTreeSet<Pid> =
            made.iter().filter(|made| made.maker.is_some()).map(|made| made.tid).collect();
        let by_first: Vec<Pid> =
            wanted.iter().map(|thread| thread.tid).filter(|tid| !by_others.contains(tid)).collect();
        self.set_numbered_threads(tape, &by_first, &below)?;
        for plan::Made { tid, maker, own_files, own_directories } in made {
            if let Some(maker) = maker {
                let maker = self.thread(maker)?;
                let ran =
                    maker.run(tape, &[clone_thread(tid, below.get(&tid).copied().unwrap_or_default())])?;
                let stopped = ran.made.into_iter().next();
                let stopped = stopped.ok_or_else(|| lost(pid, format!("thread {tid} was not made")))?;
                self.threads.push(Task::new(tid, stopped)?);
            }
            let flags = Share { files: own_files, directories: own_directories }.flags();
            if flags != 0 {
                self.thread(tid)?.run(tape, &[call!("unshare", SYS_unshare, flags)])?;
            }
        }
        self.threads.sort_by_key(|task| order.get(&task.tid).copied());
        Ok(())
    }

    /// One of its threads, its first one aside.
    pub(crate) fn thread(&mut self, tid: Pid) -> Result<&mut Task, TargetError> {
        let found = self.threads.iter_mut().find(|task| task.tid == tid);
        found.ok_or_else(|| lost(tid, "it does not exist"))
    }

    /// Has the kernel make room for descriptors up to `highest`, and some more. While a process has one thread that costs
    /// nothing; later the kernel waits for a grace period of RCU each time that it widens the table.
    fn widen_table(&mut self, tape: &TargetTape, channel: i32, highest: i32) -> Result<(), TargetError> {
        let number = highest.saturating_add(FEW);
        // Above the limit of now it is left: the limit that the program has comes with its state.
        let probe = call!("F_DUPFD", SYS_fcntl, channel, libc::F_DUPFD_CLOEXEC, number)
            .accept(&[libc::EINVAL, libc::EMFILE]);
        let ran = self.run(tape, &[probe])?;
        match ran.answers.first() {
            Some(answer) if answer.value >= 0 => {
                self.run(tape, &[call!("close", SYS_close, answer.value)]).map(drop)
            }
            _ => Ok(()),
        }
    }
}

impl Skeleton {
    /// Gives its threads, its first one aside, their credentials. All that is asked of them afterwards is what every
    /// thread may do.
    fn lower(&mut self, tape: &TargetTape, creds: &Creds, kernel: &Capabilities) -> Result<(), TargetError> {
        let order: BTreeMap<Pid, usize> = self.threads.iter().map(|task| task.tid).zip(0..).collect();
        let (mut fresh, mut known): (Vec<Task>, Vec<Task>) =
            std::mem::take(&mut self.threads).into_iter().partition(|task| task.creds.is_none());
        let calls = attributes::credentials(creds, &Filters::NONE, kernel);
        let lowered = run_all(
            fresh.iter_mut().map(|task| (task, ())).collect(),
            tape,
            |_, ()| Ok(calls.clone()),
            |task, ()| {
                task.creds = Some(creds.clone());
                Ok(())
            },
        );
        known.append(&mut fresh);
        known.sort_by_key(|task| order.get(&task.tid).copied());
        self.threads = known;
        lowered
    }
}

/// Has a thread end by itself: killed, it would take its process along.
fn end(mut task: Task, at: u64) -> Result<(), TargetError> {
    let tid = task.tid;
    let mut stopped = task.take()?;
    let mut regs = stopped.regs().map_err(trace(tid))?;
    (regs.rip, regs.rax, regs.rdi, regs.orig_rax) = (at, SYS_exit.cast_unsigned(), 0, NO_SYSCALL);
    stopped.set_regs(&regs).map_err(trace(tid))?;
    loop {
        match stopped.cont(0).and_then(|running| running.wait(EXIT_LIMIT)).map_err(trace(tid))? {
            Event::Exited(..) => return Ok(()),
            Event::Stopped(again) => stopped = again,
            Event::TimedOut(_) => return Err(lost(tid, "it should have ended")),
        }
    }
}

/// Runs each thread's own calls, on as many threads at once as the tape takes, of whatever process: while one runs, the
/// next is sent off.
///
/// # Errors
/// A [`TargetError`]; the threads are lost then.
pub(crate) fn run_all<T>(
    mut tasks: Vec<(&mut Task, T)>,
    tape: &TargetTape,
    program: impl Fn(&Task, &mut T) -> Result<Vec<Call>, TargetError>,
    landed: impl Fn(&mut Task, &T) -> Result<(), TargetError>,
) -> Result<(), TargetError> {
    for tasks in tasks.chunks_mut(TAPE_SIZE.slots) {
        let mut flights = Vec::with_capacity(tasks.len());
        for (task, asked) in &mut *tasks {
            let calls = program(task, asked)?;
            flights.push(task.send_off(tape, calls)?);
        }
        for ((task, asked), flight) in tasks.iter_mut().zip(flights) {
            task.land(tape, flight)?;
            landed(task, asked)?;
        }
    }
    Ok(())
}

impl Tree {
    /// Makes the threads of these processes ahead, with their credentials, and ends those that were made for others. A
    /// number that a process has by now, or a process that is not here, is passed over: the restore makes everything as
    /// the image says. `channel`: a descriptor that every skeleton has.
    ///
    /// # Errors
    /// As [`Skeleton::set_threads`].
    pub(crate) fn prepare(
        &mut self,
        ahead: &[Ahead],
        tape: &TargetTape,
        channel: i32,
        capabilities: &Capabilities,
    ) -> Result<(), TargetError> {
        let mut used: BTreeSet<Pid> = self.skeletons.keys().copied().collect();
        let mut wanted: BTreeMap<Pid, Ahead> = BTreeMap::new();
        for ahead in ahead {
            let threads = ahead.threads.iter().copied().filter(|tid| used.insert(*tid)).collect();
            wanted.insert(ahead.pid, Ahead { threads, ..ahead.clone() });
        }
        let nothing = Ahead { highest_fd: -1, ..Ahead::default() };
        // Numbers become free before they are used again elsewhere.
        for (pid, skeleton) in &mut self.skeletons {
            let Ahead { threads, creds, .. } = wanted.get(pid).unwrap_or(&nothing);
            let wanted: BTreeSet<Pid> = threads.iter().copied().collect();
            let stays =
                |task: &&Task| wanted.contains(&task.tid) && (task.creds.is_none() || task.creds == *creds);
            let stay: Vec<Pid> = skeleton.threads.iter().filter(stays).map(|task| task.tid).collect();
            skeleton.set_threads(tape, &stay)?;
        }
        for (pid, skeleton) in &mut self.skeletons {
            let Ahead { threads, highest_fd, creds, .. } = wanted.get(pid).unwrap_or(&nothing);
            if skeleton.threads.is_empty() && *highest_fd >= FEW {
                skeleton.widen_table(tape, channel, *highest_fd)?;
            }
            skeleton.set_threads(tape, threads)?;
            if let Some(creds) = creds {
                skeleton.lower(tape, creds, capabilities)?;
            }
        }
        Ok(())
    }

    /// Ends all threads that were made ahead: a process that is to be made may need one of their numbers.
    ///
    /// # Errors
    /// As [`Skeleton::set_threads`].
    pub(crate) fn no_threads(&mut self, tape: &TargetTape) -> Result<(), TargetError> {
        self.skeletons.values_mut().try_for_each(|skeleton| skeleton.set_threads(tape, &[]))
    }
}
