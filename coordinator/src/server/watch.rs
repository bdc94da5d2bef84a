//! Watches: what is, then every change, from the store's log of revisions.

use std::pin::Pin;

use proto::error::ApiError;
use proto::v1::{EvacuationEvent, MigrationEvent, MigrationPolicyEvent};
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};

use super::Api;
use crate::store::{Change, Changes, Kind, Object};

/// A stream of events.
pub(super) type Events<E> = Pin<Box<dyn Stream<Item = Result<E, Status>> + Send>>;

/// An event of one kind of object.
pub(super) trait Event: Sized + Send + 'static {
    /// The kind.
    const KIND: Kind;

    /// The event that tells of a change; `None` for an object of another kind.
    fn of(change: Change, revision: u64) -> Option<Self>;
}

impl Event for MigrationEvent {
    const KIND: Kind = Kind::Migration;

    fn of(change: Change, revision: u64) -> Option<Self> {
        let Some(Object::Migration(migration)) = change.object else { return None };
        Some(Self { migration: Some(migration), revision })
    }
}

impl Event for MigrationPolicyEvent {
    const KIND: Kind = Kind::Policy;

    fn of(change: Change, revision: u64) -> Option<Self> {
        let Some(Object::Policy(policy)) = change.object else { return None };
        Some(Self { policy: Some(policy), revision, deleted: change.deleted })
    }
}

impl Event for EvacuationEvent {
    const KIND: Kind = Kind::Evacuation;

    fn of(change: Change, revision: u64) -> Option<Self> {
        let Some(Object::Evacuation(evacuation)) = change.object else { return None };
        Some(Self { evacuation: Some(evacuation), revision })
    }
}

/// Changes read at once.
const BATCH: usize = 64;

impl Api {
    /// Starts a watch of the objects of one kind, or of the one with this name. With a revision, objects that have not
    /// changed since are shown once as they are, then every change after it; without one, everything as it is now,
    /// then every change.
    pub(super) fn watch<E: Event>(&self, name: String, revision: u64) -> Result<Events<E>, Status> {
        let (now, objects) = self.core.store.snapshot(E::KIND, &name)?;
        let from = if revision == 0 { now } else { revision };
        if let Changes::Compacted(oldest) = self.core.store.changes(from, 1)? {
            return Err(compacted(from, oldest));
        }
        let (sender, receiver) = mpsc::channel(BATCH);
        let watch = Watch { api: self.clone(), name, sender };
        tokio::spawn(watch.run(objects, from));
        Ok(Box::pin(ReceiverStream::new(receiver)))
    }
}

struct Watch<E> {
    api: Api,
    name: String,
    sender: mpsc::Sender<Result<E, Status>>,
}

impl<E: Event> Watch<E> {
    async fn run(mut self, objects: Vec<Object>, from: u64) {
        let mut first: Vec<_> = objects.into_iter().filter(|object| object.revision() <= from).collect();
        first.sort_by_key(Object::revision);
        for object in first {
            let revision = object.revision();
            if !self.send(revision, Change::of(object)).await {
                return;
            }
        }
        let mut latest = self.api.core.store.latest();
        let stopped = self.api.stopped();
        tokio::pin!(stopped);
        let mut seen = from;
        loop {
            // Marked as seen before the log is read, so that what comes in between wakes again.
            latest.mark_unchanged();
            let changes = match self.api.core.store.changes(seen, BATCH) {
                Ok(Changes::Since(changes)) => changes,
                Ok(Changes::Compacted(oldest)) => return self.end(compacted(seen, oldest)).await,
                Err(error) => return self.end(error.into()).await,
            };
            if changes.is_empty() {
                tokio::select! {
                    changed = latest.changed() => if changed.is_err() { return },
                    () = self.sender.closed() => return,
                    () = &mut stopped => {
                        let status = ApiError::new(Code::Unavailable, "STOPPING", "the coordinator stops");
                        return self.end(status.status()).await;
                    }
                }
            }
            for (revision, change) in changes {
                if !self.send(revision, change).await {
                    return;
                }
                seen = revision;
            }
        }
    }

    /// Answers false when nobody listens any more.
    async fn send(&mut self, revision: u64, change: Change) -> bool {
        let Some(object) = &change.object else { return true };
        if !self.name.is_empty() && object.name() != self.name {
            return true;
        }
        match E::of(change, revision) {
            Some(event) => self.sender.send(Ok(event)).await.is_ok(),
            None => true,
        }
    }

    async fn end(self, status: Status) {
        // Nobody listens: then nobody needs to know.
        let _ = self.sender.send(Err(status)).await;
    }
}

fn compacted(from: u64, oldest: u64) -> Status {
    let message = format!("changes after revision {from} are no longer kept: list, then watch from there");
    ApiError::new(Code::OutOfRange, "REVISION_COMPACTED", message).with("oldest", oldest.to_string()).status()
}
