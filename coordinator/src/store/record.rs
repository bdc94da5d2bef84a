//! What the store holds, in protobuf encoding: fields may be added, never renumbered.

use proto::v1::{
    Container, Decision, Evacuation, EvacuationPhase, Migration, MigrationPolicy, Node, Owner, Phase,
};

/// A migration, and what the coordinator must remember to drive it on after a restart at any moment.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Record {
    /// What users see. Always there in a stored record.
    #[prost(message, required, tag = "1")]
    pub(crate) migration: Migration,
    /// It has its slot and its target: it is being driven.
    #[prost(bool, tag = "2")]
    pub(crate) admitted: bool,
    /// Set before Start is sent for the first time: from then on the source may have a session.
    #[prost(bool, tag = "3")]
    pub(crate) start_ordered: bool,
    /// The source has shown that it knows the migration under this epoch.
    #[prost(bool, tag = "4")]
    pub(crate) start_seen: bool,
    /// Who asked to cancel; empty when nobody did.
    #[prost(string, tag = "5")]
    pub(crate) cancelled_by: String,
    /// What the source has reported about this epoch.
    #[prost(enumeration = "Decision", tag = "6")]
    pub(crate) decision: i32,
    /// An operator's word.
    #[prost(message, optional, tag = "7")]
    pub(crate) resolution: Option<Resolution>,
    /// The coordinator's own part of the decision log.
    #[prost(string, repeated, tag = "8")]
    pub(crate) events: Vec<String>,
    /// Memory promised to it at its target, bytes.
    #[prost(uint64, tag = "9")]
    pub(crate) memory: u64,
    /// Epochs that were used up.
    #[prost(uint32, tag = "10")]
    pub(crate) attempts: u32,
    /// The source's part of the decision log.
    #[prost(string, repeated, tag = "11")]
    pub(crate) source_events: Vec<String>,
    /// Since when it waits because no node takes it.
    #[prost(message, optional, tag = "12")]
    pub(crate) lacking_since: Option<prost_types::Timestamp>,
}

impl Record {
    /// Whether it is over. An unknown outcome is not: it still has to be learnt.
    pub(crate) fn is_over(&self) -> bool {
        matches!(self.migration.phase(), Phase::Succeeded | Phase::Failed | Phase::Cancelled)
    }

    /// The container's name.
    pub(crate) fn container(&self) -> &str {
        self.migration.spec.as_ref().map_or("", |spec| &spec.container)
    }

    /// Adds a line to the decision log. Of several waits in a row the last one stays.
    pub(crate) fn log(&mut self, event: impl Into<String>) {
        const WAITS: &str = "waits: ";
        let event = event.into();
        if event.starts_with(WAITS) && self.events.last().is_some_and(|last| last.starts_with(WAITS)) {
            self.events.pop();
        }
        if self.events.last() != Some(&event) {
            self.events.push(event);
        }
        self.migration.events = [&self.events[..], &self.source_events[..]].concat();
    }
}

/// Who owns a container, by an operator's word. Written once.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Resolution {
    /// The owner.
    #[prost(enumeration = "Owner", tag = "1")]
    pub(crate) owner: i32,
    /// The node that was stated to be fenced.
    #[prost(string, tag = "2")]
    pub(crate) fenced: String,
    /// A new epoch, higher than the migration's.
    #[prost(uint64, tag = "3")]
    pub(crate) epoch: u64,
    /// Who said so.
    #[prost(string, tag = "4")]
    pub(crate) by: String,
    /// The owner's agent has acknowledged it.
    #[prost(bool, tag = "5")]
    pub(crate) acknowledged: bool,
    /// The fenced node has been told, and is admitted again.
    #[prost(bool, tag = "6")]
    pub(crate) fenced_told: bool,
}

/// An evacuation, and what the coordinator must remember to go on with it after a restart at any moment.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct EvacuationRecord {
    /// What users see. Always there in a stored record.
    #[prost(message, required, tag = "1")]
    pub(crate) evacuation: Evacuation,
    /// Who asked to cancel; empty when nobody did.
    #[prost(string, tag = "2")]
    pub(crate) cancelled_by: String,
    /// Migrations that run are to be cancelled, too.
    #[prost(bool, tag = "3")]
    pub(crate) cancel_now: bool,
    /// When nothing may begin any more.
    #[prost(message, optional, tag = "4")]
    pub(crate) deadline_at: Option<prost_types::Timestamp>,
}

impl EvacuationRecord {
    /// Whether it is over.
    pub(crate) fn is_over(&self) -> bool {
        use EvacuationPhase::{Cancelled, Failed, Succeeded};
        matches!(self.evacuation.phase(), Succeeded | Failed | Cancelled)
    }

    /// The node that it empties, or fills again.
    pub(crate) fn node(&self) -> &str {
        self.evacuation.spec.as_ref().map_or("", |spec| &spec.node)
    }

    /// Adds a line to the decision log.
    pub(crate) fn log(&mut self, event: impl Into<String>) {
        let event = event.into();
        if self.evacuation.events.last() != Some(&event) {
            self.evacuation.events.push(event);
        }
    }
}

/// A kind of object that can be watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Migrations.
    Migration,
    /// Policies.
    Policy,
    /// Evacuations.
    Evacuation,
}

/// An object as watchers see it.
#[derive(Clone, PartialEq, prost::Oneof)]
#[expect(clippy::large_enum_variant, reason = "each lives as long as one write or one event")]
pub(crate) enum Object {
    /// A migration.
    #[prost(message, tag = "1")]
    Migration(Migration),
    /// A policy.
    #[prost(message, tag = "2")]
    Policy(MigrationPolicy),
    /// An evacuation.
    #[prost(message, tag = "3")]
    Evacuation(Evacuation),
}

impl Object {
    /// Its name.
    pub(crate) fn name(&self) -> &str {
        match self {
            Self::Migration(migration) => &migration.name,
            Self::Policy(policy) => &policy.name,
            Self::Evacuation(evacuation) => &evacuation.name,
        }
    }

    /// The revision that it has been since.
    pub(crate) fn revision(&self) -> u64 {
        match self {
            Self::Migration(migration) => migration.revision,
            Self::Policy(policy) => policy.revision,
            Self::Evacuation(evacuation) => evacuation.revision,
        }
    }
}

/// One revision: an object as it became, or as it last was.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Change {
    /// The object. Always there in a stored change.
    #[prost(oneof = "Object", tags = "1, 2, 3")]
    pub(crate) object: Option<Object>,
    /// It was deleted.
    #[prost(bool, tag = "4")]
    pub(crate) deleted: bool,
}

impl Change {
    /// An object that was made or changed.
    pub(crate) fn of(object: Object) -> Self {
        Self { object: Some(object), deleted: false }
    }
}

/// A node as it was last heard of.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct NodeRecord {
    /// What users see, but for its state.
    #[prost(message, required, tag = "1")]
    pub(crate) node: Node,
    /// Its containers.
    #[prost(message, repeated, tag = "2")]
    pub(crate) containers: Vec<Container>,
}

/// The first answer to a `request_id`.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Request {
    /// The whole request, encoded: another one with the same id is refused.
    #[prost(bytes = "vec", tag = "1")]
    pub(crate) request: Vec<u8>,
    /// The resource that it made.
    #[prost(string, tag = "2")]
    pub(crate) name: String,
    /// Seconds since 1970, for retention.
    #[prost(int64, tag = "3")]
    pub(crate) created: i64,
}
