//! What a migration needs from the rest of the node: its runtime, its network and its files.
//!
//! The sessions know containers only through these narrow traits. The runtime implements them for the
//! real thing. Everything here is synchronous and is called from a session's own thread; the objects
//! move to that thread once and stay there.
//!
//! Order of calls, source: [`Node::source`] -> `tree`, `host_refusals`, `groups`, `spec` -> `files` -> rounds of `mounts` and
//! files -> `hold_newcomers` -> freeze -> `lock().engage()` -> `mounts`, last files, last groups -> `final_state` -> `held` -> (COMMITTED) -> kill ->
//! `remove` -> `late` for some seconds -> `NetLock::release`. On abort: `NetLock::lift`, then the thaw, then
//! `settle(Settled::Running)`.
//!
//! Order of calls, target: [`Node::lacks`], [`Node::incoming`] -> `files`, `mounts` -> `options` -> rounds of `mounts` and
//! `groups` -> `final_state` -> `settle_mounts` -> restore -> `limits` -> `ready` ->
//! (Commit) -> `attach` -> `deliver` -> `announce` -> thaw -> `adopt`; or `discard` at any time before Commit.

mod arriving;

use std::fmt::Debug;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::time::Duration;

use engine::source::TreeSpec;
use image::groups::{Groups, Member};
use image::{Pid, Refusal};
use serde::{Deserialize, Serialize};

pub use self::arriving::{ContainerTarget, FileTarget};
use super::clocks::Distance;

/// One Ethernet frame without its check sequence.
pub type EthernetFrame = Vec<u8>;

/// Why a port could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum PortError {
    /// The container is not on this node, or is not running.
    #[error("no running container {0} on this node")]
    NoContainer(String),
    /// It cannot move; nothing was touched.
    #[error("{} part(s) of the container cannot move", .0.len())]
    Refused(Vec<Refusal>),
    /// An operation failed; `what` says which, in words of the field.
    #[error("{what}")]
    Failed {
        /// What was tried, for example `attach veth7 to br0`.
        what: String,
        /// Why it failed.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl PortError {
    /// An operation that failed.
    pub fn failed(
        what: impl Into<String>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self::Failed { what: what.into(), source: source.into() }
    }
}

/// The node as migrations see it.
pub trait Node: Debug + Send + Sync {
    /// A container of this node, to be moved away. It may be running, or frozen when an agent restarts.
    ///
    /// # Errors
    /// [`PortError::NoContainer`] when it is not here; nothing was touched.
    fn source(&self, container: &str) -> Result<Box<dyn ContainerSource>, PortError>;

    /// Makes the sandbox of a container that is to arrive: namespaces, cgroup, root directory, network
    /// (container's side up, host end not yet attached). It is recorded on disk before anything is made, so
    /// that [`Node::reopen`] and [`Node::kill_incoming`] find it after a restart.
    ///
    /// # Errors
    /// What could not be made; all of it has been removed again.
    fn incoming(&self, request: &Incoming) -> Result<Box<dyn ContainerTarget>, PortError>;

    /// A copy that was being received when the agent stopped, if its processes live. It is still frozen (or
    /// runs already, when the agent died while it took ownership).
    ///
    /// # Errors
    /// When it cannot be told; the caller tries again.
    fn reopen(&self, container: &str, migration: &str)
    -> Result<Option<Box<dyn ContainerTarget>>, PortError>;

    /// Kills and removes a copy that was being received when the agent stopped. Ok when there is none.
    ///
    /// # Errors
    /// When something of it is left; the caller tries again.
    fn kill_incoming(&self, container: &str, migration: &str) -> Result<(), PortError>;

    /// After a restart: deals with what is left of a container whose processes here have died since the session of
    /// `epoch` began. May be called again; Ok when nothing of that session is left.
    ///
    /// # Errors
    /// When something is left; the caller tries again.
    fn bury(&self, container: &str, epoch: u64, died: Died) -> Result<(), PortError>;

    /// What an incoming container must match: kernel, vDSO, CPU features. Its clocks are not looked at.
    fn facts(&self) -> image::state::HostFacts;

    /// What this host's kernel and this agent can give to a container.
    fn gives(&self) -> image::state::Gives;

    /// What this node lacks for the control groups of a container that would come.
    fn lacks(&self, container: &str, groups: &Groups) -> Vec<Refusal>;

    /// Bytes of memory that a new container could use now.
    fn memory_free(&self) -> u64;
}

/// A container that is to arrive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Incoming {
    /// Its name.
    pub container: String,
    /// The migration that brings it.
    pub migration: String,
    /// That migration's epoch.
    pub epoch: u64,
    /// What [`ContainerSource::spec`] said on the source node.
    pub spec: Vec<u8>,
    /// How far the source node's clocks are from this one's.
    pub clocks: Distance,
}

/// State that the host keeps for a container and that no process has: of its network, for example. One block a kind;
/// opaque to the session, versioned by whoever wrote it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostState {
    /// What it is about: `network` ...
    pub kind: String,
    /// Its bytes; hexadecimal where the encoding is text.
    #[serde(with = "hex")]
    pub data: Vec<u8>,
}

/// Bytes as text where the encoding is text.
mod hex {
    use serde::de::Error as _;
    use serde::{Deserialize as _, Deserializer, Serialize as _, Serializer};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        if !to.is_human_readable() {
            return bytes.serialize(to);
        }
        let digit = |value: u8| char::from(DIGITS[usize::from(value & 15)]);
        let text: String = bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(*byte)]).collect();
        text.serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
        if !from.is_human_readable() {
            return Vec::deserialize(from);
        }
        let text = String::deserialize(from)?;
        let value = |digit: u8| char::from(digit).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
        let byte = |pair: &[u8]| match pair {
            [high, low] => Some(value(*high)? << 4 | value(*low)?),
            _ => None,
        };
        let bytes: Option<Vec<u8>> = text.as_bytes().chunks(2).map(byte).collect();
        bytes.ok_or_else(|| D::Error::custom("not hexadecimal"))
    }
}

/// What became of a container at its source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settled {
    /// It is being moved and still runs here.
    Migrating,
    /// It stands frozen: committed away and not yet acknowledged, or nobody can tell.
    Frozen,
    /// It runs here as before; `epoch` stays known.
    Running,
}

/// How a container's processes ended while a session held it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Died {
    /// The target owns it: everything of the copy here goes.
    Moved,
    /// By itself, before the commit point: it has ended here and can be looked at and deleted.
    Here,
}

/// A container on the node that it leaves.
pub trait ContainerSource: Send {
    /// How the engine finds its processes.
    fn tree(&self) -> TreeSpec;

    /// Everything [`Node::incoming`] needs to build the same sandbox elsewhere: OCI configuration, name,
    /// addresses, labels. Opaque to the session.
    ///
    /// # Errors
    /// When the container's record cannot be read.
    fn spec(&self) -> Result<Vec<u8>, PortError>;

    /// What the host keeps for it (mounts, its network) that cannot move. Looks without touching.
    ///
    /// # Errors
    /// When it cannot be looked at.
    fn host_refusals(&self) -> Result<Vec<Refusal>, PortError>;

    /// The container stands still and its network is locked: [`ContainerSource::final_state`] follows, and what takes time
    /// for it may go on from now on beside the caller's work.
    ///
    /// # Errors
    /// As [`ContainerSource::final_state`].
    fn begin_final_state(&mut self) -> Result<(), PortError>;

    /// What has changed of the host's state since [`ContainerSource::spec`].
    ///
    /// # Errors
    /// [`PortError::Refused`] when something has come up that cannot move; the container is as before.
    fn final_state(&self) -> Result<Vec<HostState>, PortError>;

    /// The container's mounts as they are now; `None` when that is what the last call said. At most [`MAX_MOUNTS`] bytes,
    /// opaque to the session. Directories in memory that are named in it belong to the rounds of
    /// [`ContainerSource::files`] from then on.
    ///
    /// # Errors
    /// [`PortError::Refused`] when something has come up that cannot move; the container is as before.
    fn mounts(&mut self) -> Result<Option<Vec<u8>>, PortError>;

    /// Its directory in the cgroup v2 freezer.
    fn cgroup(&self) -> PathBuf;

    /// Its control groups.
    fn groups(&self) -> Box<dyn GroupSource>;

    /// Its network, not yet locked. After a restart of the agent: with whatever filters were left behind.
    ///
    /// # Errors
    /// When the network cannot be found.
    fn lock(&self) -> Result<Box<dyn NetLock>, PortError>;

    /// Its files.
    ///
    /// # Errors
    /// When changes cannot be tracked.
    fn files(&self) -> Result<Box<dyn FileSource>, PortError>;

    /// Gives the container back what [`GroupSource::throttle`] took, also an earlier agent's. A setting that somebody else
    /// has changed meanwhile stays. May be called again.
    ///
    /// # Errors
    /// When a setting is left.
    fn unthrottle(&self, throttled: &Throttled) -> Result<(), PortError>;

    /// Publishes (and records) how it stands.
    fn settle(&self, how: Settled, epoch: u64);

    /// Kills every process of the container, frozen ones too, and waits until none is left. Called after the
    /// acknowledged commit when no engine object holds it (the agent was restarted meanwhile).
    ///
    /// # Errors
    /// When a process is left; may be called again.
    fn kill(&self) -> Result<(), PortError>;

    /// Removes what is left of it after its processes are gone: network namespace, cgroups, root
    /// directory, record. Not the network lock, which outlives the namespace. May be called again.
    ///
    /// # Errors
    /// What could not be removed.
    fn remove(&self) -> Result<(), PortError>;
}

/// The control groups of a container that travel with it.
pub trait GroupSource: Send {
    /// As they are now. Exact after the freeze; cheap when nothing was changed since the last look. `known`:
    /// processes that stand still, as the agent and as the container numbers them; others are looked up.
    ///
    /// # Errors
    /// [`PortError::Refused`] names what cannot move.
    fn look(&mut self, known: &[(i32, Pid)]) -> Result<Groups, PortError>;

    /// Counters of its groups that begin anew at the target, by their files.
    fn counters(&self) -> Vec<String>;

    /// CPU time that the container has used since it began.
    ///
    /// # Errors
    /// When its group does not tell.
    fn cpu_used(&self) -> Result<Duration, PortError>;

    /// What [`GroupSource::throttle`] would set to leave the container `cpus` CPUs (1.0 = one whole CPU), never more than
    /// it may have anyway. Changes nothing: it must be journalled first. `before`: what is in force.
    ///
    /// # Errors
    /// When nothing of this host can slow it down.
    fn plan_throttle(&self, cpus: f64, before: &Throttled) -> Result<Throttled, PortError>;

    /// Slows the container down. [`GroupSource::look`] tells the original settings from now on.
    ///
    /// # Errors
    /// What the kernel refused; call [`ContainerSource::unthrottle`].
    fn throttle(&mut self, throttled: &Throttled) -> Result<(), PortError>;
}

/// Settings of a container's own groups that were changed to slow it down, in the order in which they are set back.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Throttled(pub Vec<ThrottledSetting>);

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ThrottledSetting {
    /// Its file.
    pub path: PathBuf,
    /// What it was before.
    pub original: String,
    /// What was set in this migration, oldest first. The kernel shows it as it was written.
    pub written: Vec<String>,
}

/// A thread of a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CopyTask {
    /// Its number in the container, and its process's.
    pub member: Member,
    /// Its number as this agent sees it.
    pub host: i32,
}

/// Connections that could not move now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InBetween {
    /// Made, and not accepted by the program.
    pub waiting: usize,
    /// All of them, in words.
    pub text: String,
}

/// The lock on a container's network at the source. It fails closed: when the agent dies the frames are
/// dropped, never answered.
pub trait NetLock: Send {
    /// From Ok on no connection to the container is begun, and all else passes; who wants one waits until
    /// [`NetLock::lift`], or for the copy.
    ///
    /// # Errors
    /// When that cannot be; nothing is held then.
    fn hold_newcomers(&mut self) -> Result<(), PortError>;

    /// Connections that are just being made, accepted or ended; `None` when there are none.
    ///
    /// # Errors
    /// When they cannot be looked at.
    fn unsettled(&mut self) -> Result<Option<InBetween>, PortError>;

    /// From Ok on no frame reaches the container and none leaves it; what arrives is kept.
    ///
    /// # Errors
    /// When it cannot be engaged; it is then open as before.
    fn engage(&mut self) -> Result<(), PortError>;

    /// The frames that arrived since the last call (or since the lock). The lock keeps a copy of each until
    /// [`NetLock::lift`] or [`NetLock::release`]. Waits up to `wait` for the first one; zero does not wait.
    ///
    /// # Errors
    /// When they cannot be read.
    fn held(&mut self, wait: Duration) -> Result<Vec<EthernetFrame>, PortError>;

    /// Becomes readable when a frame has arrived for [`NetLock::held`]; `None` when none ever does.
    fn arrivals(&self) -> Option<BorrowedFd<'_>>;

    /// Abort: opens the lock and delivers every kept frame to the container. Removes filters that an earlier
    /// agent left, too. Ok when there is nothing to lift. The container is still frozen.
    ///
    /// # Errors
    /// When a filter is left; may be called again.
    fn lift(&mut self) -> Result<(), PortError>;

    /// After the container is gone from this node: removes the lock and forgets the frames. May be called again.
    ///
    /// # Errors
    /// When a filter is left.
    fn release(&mut self) -> Result<(), PortError>;
}

/// Where batches of file changes go.
pub trait FileSink {
    /// Takes one batch of at most [`MAX_FILE_BATCH`] bytes. Opaque to the session; applied in order.
    ///
    /// # Errors
    /// When it cannot be sent.
    fn batch(&mut self, batch: &[u8]) -> io::Result<()>;
}

/// Largest [`ContainerSource::mounts`], bytes.
pub const MAX_MOUNTS: usize = 4 * 1024 * 1024;

/// Largest batch that a [`FileSink`] takes, bytes.
pub const MAX_FILE_BATCH: usize = 4 * 1024 * 1024 - 64;

/// What one round of file synchronisation did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FileRound {
    /// Files, directories and links sent or removed.
    pub entries: u64,
    /// Bytes of content sent.
    pub bytes: u64,
}

/// The files of a container that travel with it.
pub trait FileSource: Send {
    /// Sends these files of the container ahead of the first round, so that they can be mapped at the target
    /// while the rest travels. Paths are the container's; what does not travel is left out.
    ///
    /// # Errors
    /// As [`FileSource::round`].
    fn ahead(&mut self, paths: &[PathBuf], sink: &mut dyn FileSink) -> Result<FileRound, PortError>;

    /// Sends what changed since the last round; everything in the first one. The container runs.
    ///
    /// # Errors
    /// When it cannot be read or sent; the container is as before.
    fn round(&mut self, sink: &mut dyn FileSink) -> Result<FileRound, PortError>;

    /// As [`FileSource::round`], after the freeze: the target's files are equal afterwards.
    ///
    /// # Errors
    /// As above.
    fn last(&mut self, sink: &mut dyn FileSink) -> Result<FileRound, PortError>;
}

#[cfg(test)]
mod tests {
    use super::HostState;

    #[test]
    fn host_state_is_hexadecimal_in_text_and_plain_otherwise() {
        let state = HostState { kind: "network".to_owned(), data: vec![0, 0x1f, 0xff] };
        let text = serde_json::to_string(&state).unwrap();
        assert_eq!(text, r#"{"kind":"network","data":"001fff"}"#);
        assert_eq!(serde_json::from_str::<HostState>(&text).unwrap(), state);
        for bad in ["0", "0g", "zz", "é"] {
            let text = format!(r#"{{"kind":"","data":"{bad}"}}"#);
            assert!(serde_json::from_str::<HostState>(&text).is_err(), "{bad}");
        }
        let bytes = image::codec::encode(&state).unwrap();
        assert_eq!(bytes.len(), 1 + 7 + 1 + 3);
        assert_eq!(image::codec::decode::<HostState>(&bytes).unwrap(), state);
    }
}
