//! Control groups in a migration: the source tells them after each shape if they changed, the target makes them
//! around the skeletons and applies limits when the copy is complete.

use std::thread::JoinHandle;

use engine::source::Source;
use engine::target::Target;
use image::Refusal;
use image::groups::{Groups, Member};

use super::failure::Failure;
use super::ports::{CopyTask, GroupSource, PortError};
use super::source::{Session, no_engine};
use crate::transfer::message::PeerMessage;

impl Session {
    /// The groups as they are now, before anything is touched. What cannot move is added to `refusals`.
    pub(super) fn first_groups(&mut self, refusals: &mut Vec<Refusal>) -> Result<Groups, Failure> {
        let Some(source) = self.groups.as_mut() else { return Err(no_engine()) };
        let groups = match source.look(&[]) {
            Ok(groups) => groups,
            Err(PortError::Refused(more)) => {
                refusals.extend(more);
                return Ok(Groups::default());
            }
            Err(error) => return Err(error.into()),
        };
        let below: usize = groups.trees.iter().map(|tree| tree.groups.len().saturating_sub(1)).sum();
        self.publish.event(format!(
            "control groups: {below} below its own; these count anew at the target: {}",
            source.counters().join(", ")
        ));
        Ok(groups)
    }

    /// Sends the groups if they are not what the target has.
    pub(super) fn send_groups(&mut self) -> Result<(), Failure> {
        let groups = self.groups.as_mut().ok_or_else(no_engine)?.look(&[])?;
        self.tell_groups(groups, 1)
    }

    /// Begins the look at the groups of the frozen container, beside everything else: the kernel has one lock for all
    /// groups of the host.
    pub(super) fn begin_last_groups(&mut self) -> Result<LastGroups, Failure> {
        let known = self.engine.as_ref().map(Source::frozen).unwrap_or_default();
        let mut groups = self.groups.take().ok_or_else(no_engine)?;
        let looking = std::thread::Builder::new().name("groups".to_owned()).spawn(move || {
            let found = groups.look(&known);
            (groups, found)
        });
        looking.map(LastGroups).map_err(Failure::Thread)
    }

    /// Sends what that look found, if it is not what the target has.
    pub(super) fn send_last_groups(&mut self, LastGroups(looking): LastGroups) -> Result<(), Failure> {
        let (source, found) = looking
            .join()
            .map_err(|_| PortError::failed("read the control groups", "the thread that did it panicked"))?;
        // Not dropped before the end: to close an inotify(7) takes a hundred milliseconds.
        self.groups = Some(source);
        self.tell_groups(found?, 0)
    }

    /// `later`: 1 when pages that follow are to wait for the groups.
    fn tell_groups(&mut self, groups: Groups, later: u32) -> Result<(), Failure> {
        if self.told_groups.as_ref() != Some(&groups) {
            self.generation += later;
            let generation = self.generation;
            self.send(&PeerMessage::Groups { generation, groups: Box::new(groups.clone()) })?;
            self.told_groups = Some(groups);
        }
        Ok(())
    }
}

/// A look at the groups that goes on.
pub(super) struct LastGroups(JoinHandle<(Box<dyn GroupSource>, Result<Groups, PortError>)>);

/// The threads of a copy in the making.
pub(super) fn tasks(engine: &Target) -> Vec<CopyTask> {
    let of = |(pid, tid, host)| CopyTask { member: Member { pid, tid }, host };
    engine.tasks().into_iter().map(of).collect()
}
