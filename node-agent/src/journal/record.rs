//! What the journal says.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::commit::{Epoch, Owner};
use crate::session::ports::Throttled;
use crate::session::status::Role;

/// What an agent is about to touch, written before it does, so that a restart knows what to undo.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Begin {
    /// The container's name.
    pub container: String,
    /// The migration's name.
    pub migration: String,
    /// Its epoch.
    pub epoch: Epoch,
    /// /proc/sys/kernel/random/boot_id when it was written.
    pub boot: String,
    /// Which side this agent is.
    pub role: Role,
    /// The other node's name.
    pub peer: String,
    /// Where the other agent listens for peers; empty when not yet known.
    pub peer_address: String,
    /// The container's directory in the cgroup v2 freezer.
    pub cgroup: PathBuf,
    /// The cgroup was frozen before the migration began: it must not be thawed by an undo.
    pub frozen_before: bool,
}

/// How a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum End {
    /// Source: given back, runs as before.
    Undone,
    /// Source: acknowledged by the target; the copy here was killed.
    Killed,
    /// Target: the unfinished or aborted copy was removed.
    Discarded,
    /// The copy died with its host.
    Lost,
    /// An operator's resolution ended it.
    Resolved,
}

/// One record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Record {
    /// Never written; a zero byte is no record.
    Invalid,
    /// The highest epoch of a container that this agent acts on. Synced before it acts.
    Epoch {
        /// The container's name.
        container: String,
        /// The epoch.
        epoch: Epoch,
    },
    /// A session begins.
    Begin(Begin),
    /// Target: the copy is complete and waits. Not synced: a host crash takes the copy along.
    Ready {
        /// The container's name.
        container: String,
        /// The session's epoch.
        epoch: Epoch,
        /// The boot in which the copy lives.
        boot: String,
    },
    /// Source: the one irreversible step. Synced before it is told.
    Committed {
        /// The container's name.
        container: String,
        /// The session's epoch.
        epoch: Epoch,
    },
    /// Target: the takeover begins. Not synced.
    CommitSeen {
        /// The container's name.
        container: String,
        /// The session's epoch.
        epoch: Epoch,
    },
    /// Target: it runs here. Synced before the Ack.
    Owned {
        /// The container's name.
        container: String,
        /// The session's epoch.
        epoch: Epoch,
    },
    /// A session has ended; nothing is left to undo.
    Ended {
        /// The container's name.
        container: String,
        /// The session's epoch.
        epoch: Epoch,
        /// How.
        end: End,
    },
    /// An operator's word. Synced before it is obeyed.
    Resolved {
        /// The container's name.
        container: String,
        /// The resolution's own epoch.
        epoch: Epoch,
        /// Who owns it.
        owner: Owner,
    },
    /// Source: the container is about to be slowed down. Not synced: the groups do not outlive a host crash.
    Throttled {
        /// The container's name.
        container: String,
        /// The session's epoch.
        epoch: Epoch,
        /// What is to be set back.
        throttled: Throttled,
    },
}

/// A session that has begun and not ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Open {
    /// Its BEGIN.
    pub begin: Begin,
    /// Source: COMMITTED is written.
    pub committed: bool,
    /// Target: READY is written, in this boot.
    pub ready: Option<String>,
    /// Target: COMMIT_SEEN is written.
    pub seen: bool,
    /// Source: what is to be set back when the container is given back.
    pub throttled: Throttled,
}

/// What the journal knows of one container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    /// The highest epoch acted on.
    pub highest: Epoch,
    /// The session that is not ended. There is one at most: a container is not moved on or back before.
    pub open: Option<Open>,
    /// The newest epoch under which this node took ownership.
    pub owned: Option<Epoch>,
    /// The last ended session and its end.
    pub ended: Option<(Epoch, End)>,
    /// The last resolution.
    pub resolved: Option<(Epoch, Owner)>,
}

/// Everything the journal says, by container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// By the container's name.
    pub entries: BTreeMap<String, Entry>,
}

impl State {
    /// Applies one record. Records about a session that is not open are kept out of it.
    pub fn apply(&mut self, record: &Record) {
        match record {
            Record::Invalid => {}
            Record::Epoch { container, epoch } => self.raise(container, *epoch),
            Record::Begin(begin) => {
                self.raise(&begin.container, begin.epoch);
                self.entry(&begin.container).open = Some(Open {
                    begin: begin.clone(),
                    committed: false,
                    ready: None,
                    seen: false,
                    throttled: Throttled::default(),
                });
            }
            Record::Ready { container, epoch, boot } => {
                if let Some(open) = self.open(container, *epoch) {
                    open.ready = Some(boot.clone());
                }
            }
            Record::Committed { container, epoch } => {
                if let Some(open) = self.open(container, *epoch) {
                    open.committed = true;
                }
            }
            Record::CommitSeen { container, epoch } => {
                if let Some(open) = self.open(container, *epoch) {
                    open.seen = true;
                }
            }
            Record::Throttled { container, epoch, throttled } => {
                if let Some(open) = self.open(container, *epoch) {
                    open.throttled = throttled.clone();
                }
            }
            Record::Owned { container, epoch } => {
                self.raise(container, *epoch);
                let entry = self.entry(container);
                entry.owned = Some(entry.owned.map_or(*epoch, |owned| owned.max(*epoch)));
                entry.open.take_if(|open| open.begin.epoch <= *epoch);
            }
            Record::Ended { container, epoch, end } => {
                self.raise(container, *epoch);
                let entry = self.entry(container);
                entry.open.take_if(|open| open.begin.epoch == *epoch);
                entry.ended = Some((*epoch, *end));
            }
            Record::Resolved { container, epoch, owner } => {
                self.raise(container, *epoch);
                self.entry(container).resolved = Some((*epoch, *owner));
            }
        }
    }

    /// The shortest list of records that yields this state.
    #[must_use]
    pub fn records(&self) -> Vec<Record> {
        let mut records = Vec::new();
        for (name, entry) in &self.entries {
            let container = || name.clone();
            if let Some(epoch) = entry.owned {
                records.push(Record::Owned { container: container(), epoch });
            }
            if let Some((epoch, end)) = entry.ended {
                records.push(Record::Ended { container: container(), epoch, end });
            }
            if let Some((epoch, owner)) = entry.resolved {
                records.push(Record::Resolved { container: container(), epoch, owner });
            }
            if let Some(open) = &entry.open {
                let epoch = open.begin.epoch;
                records.push(Record::Begin(open.begin.clone()));
                if let Some(boot) = &open.ready {
                    records.push(Record::Ready { container: container(), epoch, boot: boot.clone() });
                }
                if open.committed {
                    records.push(Record::Committed { container: container(), epoch });
                }
                if open.seen {
                    records.push(Record::CommitSeen { container: container(), epoch });
                }
                if !open.throttled.0.is_empty() {
                    let throttled = open.throttled.clone();
                    records.push(Record::Throttled { container: container(), epoch, throttled });
                }
            }
            records.push(Record::Epoch { container: container(), epoch: entry.highest });
        }
        records
    }

    fn entry(&mut self, container: &str) -> &mut Entry {
        self.entries.entry(container.to_owned()).or_default()
    }

    fn raise(&mut self, container: &str, epoch: Epoch) {
        let entry = self.entry(container);
        entry.highest = entry.highest.max(epoch);
    }

    fn open(&mut self, container: &str, epoch: Epoch) -> Option<&mut Open> {
        self.entries.get_mut(container)?.open.as_mut().filter(|open| open.begin.epoch == epoch)
    }
}
