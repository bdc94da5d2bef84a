//! Control groups in a migration: the source tells them after each shape if they changed, the target makes them
//! around the skeletons and applies limits when the copy is complete.

use std::time::Instant;

use engine::source::Source;
use engine::target::Target;
use image::Refusal;
use image::groups::{Groups, Member};

use super::failure::Failure;
use super::ports::{CopyTask, PortError};
use super::source::Session;
use crate::transfer::message::PeerMessage;

impl Session {
    /// The groups as they are now, before anything is touched. What cannot move is added to `refusals`.
    pub(super) fn first_groups(&mut self, refusals: &mut Vec<Refusal>) -> Result<Groups, Failure> {
        let groups = match self.groups.look(&[]) {
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
            self.groups.counters().join(", ")
        ));
        Ok(groups)
    }

    /// Sends the groups if they are not what the target has.
    pub(super) fn send_groups(&mut self) -> Result<(), Failure> {
        let began = Instant::now();
        let known = self.engine.as_ref().map(Source::frozen).unwrap_or_default();
        let groups = self.groups.look(&known)?;
        tracing::debug!(took = ?began.elapsed(), "control groups read");
        if self.told_groups.as_ref() == Some(&groups) {
            return Ok(());
        }
        self.send(&PeerMessage::Groups(Box::new(groups.clone())))?;
        self.told_groups = Some(groups);
        Ok(())
    }
}

/// The threads of a copy in the making.
pub(super) fn tasks(engine: &Target) -> Vec<CopyTask> {
    let of = |(pid, tid, host)| CopyTask { member: Member { pid, tid }, host };
    engine.tasks().into_iter().map(of).collect()
}
