//! What a migration needs of the node that the container comes to.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use engine::target::{Externals, TargetOptions};
use image::groups::Groups;

use super::{CopyTask, EthernetFrame, HostState, PortError};

/// A container on the node that it comes to.
pub trait ContainerTarget: Send {
    /// What the engine needs to build skeleton processes in the sandbox. Called once.
    ///
    /// # Errors
    /// When a part of the sandbox cannot be opened.
    fn options(&mut self) -> Result<TargetOptions, PortError>;

    /// Its directory in the cgroup v2 freezer; writing 0 to `cgroup.freeze` there resumes a Ready copy.
    fn cgroup(&self) -> PathBuf;

    /// What the runtime gives to the container in place of the source's: the log behind `stdout` and so on.
    fn externals(&mut self) -> &mut dyn Externals;

    /// Makes the container's groups and puts its processes into them, as far as they exist. Called after each
    /// shape that came with other groups. Gives what is different from the source on purpose, in words.
    ///
    /// # Errors
    /// [`PortError::Refused`], or what the kernel refused; the copy is to be discarded.
    fn groups(&mut self, groups: &Groups, tasks: &[CopyTask]) -> Result<Vec<String>, PortError>;

    /// Puts every thread of the complete copy into its group and applies all limits.
    ///
    /// # Errors
    /// What the kernel refused; the copy is to be discarded.
    fn limits(&mut self, tasks: &[CopyTask]) -> Result<(), PortError>;

    /// Makes the sandbox have the mounts that [`ContainerSource::mounts`](super::ContainerSource::mounts) said, as far as that can be before the files
    /// are complete. The first call comes before [`ContainerTarget::options`].
    ///
    /// # Errors
    /// [`PortError::Refused`] names what this node lacks. The copy is to be discarded.
    fn mounts(&mut self, mounts: &[u8]) -> Result<(), PortError>;

    /// The last files are in their place and the engine is about to open them: the rest of the last
    /// [`ContainerTarget::mounts`]. `pids`: the pid namespaces below the container's own, by their numbers at the source.
    ///
    /// # Errors
    /// As above.
    fn settle_mounts(&mut self, pids: BTreeMap<u64, OwnedFd>) -> Result<(), PortError>;

    /// Takes batches of [`FileSource`](super::FileSource)s.
    ///
    /// # Errors
    /// When the root directory cannot be opened.
    fn files(&mut self) -> Result<Box<dyn FileTarget>, PortError>;

    /// Sets what [`ContainerSource::final_state`](super::ContainerSource::final_state) said, before the engine restores anything that relies on it.
    ///
    /// # Errors
    /// What cannot be set; the copy is to be discarded.
    fn final_state(&mut self, states: &[HostState]) -> Result<(), PortError>;

    /// The copy is complete and frozen; `root_pid` is its root process as this agent sees it. Recorded
    /// without fsync: from now on [`Node::reopen`](super::Node::reopen) must find it.
    ///
    /// # Errors
    /// When it cannot be recorded.
    fn ready(&mut self, root_pid: i32) -> Result<(), PortError>;

    /// Attaches its network to the node's. May be called again.
    ///
    /// # Errors
    /// When it cannot be attached; may be called again.
    fn attach(&mut self) -> Result<(), PortError>;

    /// Lets frames that arrive directly reach the container; until then they wait, so that those which the source
    /// still had come first. To be called again a little later, for the very last of those.
    ///
    /// # Errors
    /// When the way stays closed; may be called again.
    fn open(&mut self) -> Result<(), PortError>;

    /// Tells the network where its addresses are now: gratuitous ARP, unsolicited neighbour advertisement.
    ///
    /// # Errors
    /// When the frames cannot be sent.
    fn announce(&mut self) -> Result<(), PortError>;

    /// Delivers frames that were meant for the container, in order.
    ///
    /// # Errors
    /// When they cannot be written.
    fn deliver(&mut self, frames: &[EthernetFrame]) -> Result<(), PortError>;

    /// How long after `since` the first frame with data left that its programs sent after it, if one did or does within
    /// `wait`. Not before [`ContainerTarget::attach`].
    fn first_served(&mut self, since: SystemTime, wait: Duration) -> Option<Duration>;

    /// Nobody will ask for [`ContainerTarget::first_served`] any more.
    fn look_away(&mut self);

    /// The container is this node's now and runs: the runtime supervises it from here on, and remembers
    /// `epoch`. Durable on Ok. May be called again.
    ///
    /// # Errors
    /// When it cannot be recorded.
    fn adopt(&mut self, epoch: u64) -> Result<(), PortError>;

    /// Kills whatever is in the sandbox and removes it. May be called again.
    ///
    /// # Errors
    /// When something is left.
    fn discard(&mut self) -> Result<(), PortError>;
}

/// Applies file changes at the target.
pub trait FileTarget: Send {
    /// Applies one batch. Whatever the batch says, nothing outside the container's root is touched.
    ///
    /// # Errors
    /// When it is malformed or cannot be applied.
    fn apply(&mut self, batch: &[u8]) -> Result<(), PortError>;
}
