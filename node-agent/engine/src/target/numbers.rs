//! Which pids are given out next. A pid namespace counts on from the last one; chosen pids do not count. One that was
//! just given back at the source would be given out again at once: so the count goes on behind the highest that is in use.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::ErrorKind;
use std::os::fd::AsFd;

use image::Pid;
use image::namespaces::Level;
use libc::{SYS_close, SYS_pwrite64};
use sys::tape::target::TargetTape;

use super::error::TargetError;
use super::plan::fds;
use super::plant::Channel;
use super::restore::Restorer;
use super::script::{Block, call};
use super::skeleton::lost;
use super::tree::Tree;

/// Takes the last pid of the writer's own pid namespace, whoever has opened it. Only a kernel with
/// CONFIG_CHECKPOINT_RESTORE has it.
const LAST_PID: &str = "/proc/sys/kernel/ns_last_pid";

impl Tree {
    /// Has every pid namespace count on behind these numbers, each with its namespace; 0 is the container's. `at`: a
    /// process's number of the channel.
    ///
    /// # Errors
    /// A [`TargetError`]; a skeleton is lost then.
    fn count_behind(
        &mut self,
        numbers: impl Iterator<Item = (u64, Pid)>,
        tape: &TargetTape,
        channel: &Channel,
        at: impl Fn(Pid) -> i32,
    ) -> Result<(), TargetError> {
        let mut highest: BTreeMap<u64, Pid> = BTreeMap::new();
        for (space, number) in numbers {
            let known = highest.entry(space).or_default();
            *known = number.max(*known);
        }
        highest.retain(|space, last| self.last_pids.get(space).is_none_or(|known| known < last));
        if highest.is_empty() {
            return Ok(());
        }
        let file = match File::options().write(true).open(LAST_PID) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(TargetError::system(format!("open {LAST_PID}"))(error)),
        };
        for (space, last) in highest {
            let root = self.root;
            let mut skeletons = self.skeletons.values_mut();
            let member = skeletons.find(|skeleton| match space {
                0 => skeleton.node.pid == root,
                _ => skeleton.node.place.space == space,
            });
            // All that is left of it has ended.
            let Some(member) = member else { continue };
            let pid = member.node.pid;
            let landed = channel.plant(&mut member.leader, tape, at(pid), &[file.as_fd()])?;
            let fd = *landed.first().ok_or_else(|| lost(pid, format!("{LAST_PID} did not reach it")))?;
            let text = last.to_string().into_bytes();
            let length = text.len();
            let write = call!("write to ns_last_pid", SYS_pwrite64, fd, Block::new(text), length, 0);
            member.run(tape, &[write, call!("close", SYS_close, fd)])?;
            self.last_pids.insert(space, last);
        }
        Ok(())
    }

    /// Before the image is there, for what is known.
    ///
    /// # Errors
    /// A [`TargetError`]; a skeleton is lost then.
    pub(crate) fn count_on(&mut self, tape: &TargetTape, channel: &Channel) -> Result<(), TargetError> {
        let mut numbers = Vec::new();
        for skeleton in self.skeletons.values() {
            let place = skeleton.node.place;
            numbers.push((0, skeleton.node.pid));
            numbers.extend(skeleton.threads.iter().map(|task| (0, task.tid)));
            numbers.extend((place.space != 0).then_some((place.space, place.own)));
        }
        self.count_behind(numbers.into_iter(), tape, channel, |_| channel.number)
    }
}

impl Restorer<'_> {
    /// What was made since the last look. Zombies and threads must be there.
    pub(crate) fn count_on(&mut self) -> Result<(), TargetError> {
        let image = self.image;
        let processes = image.shape.processes.iter().flat_map(|process| {
            let own = process.levels.iter().map(|level| (level.namespace, level.pid));
            own.chain([(0, process.pid)])
        });
        let nested = image.shape.processes.iter().filter(|process| !process.levels.is_empty());
        let nested: BTreeMap<Pid, &[Level]> =
            nested.map(|process| (process.pid, process.levels.as_slice())).collect();
        let threads = image.processes.iter().flat_map(|process| {
            let levels = nested.get(&process.pid).copied().unwrap_or_default();
            process.threads.iter().skip(1).flat_map(move |thread| {
                let below = levels.iter().zip(&thread.tids_below);
                below.map(|(level, tid)| (level.namespace, *tid)).chain([(0, thread.tid)])
            })
        });
        let number = self.channel.number;
        let at = |pid: Pid| {
            let process = image.processes.iter().find(|process| process.pid == pid);
            process.map_or(number, |process| fds::plan(&process.fds).channel)
        };
        self.tree.count_behind(processes.chain(threads), self.tape, self.channel, at)
    }
}
