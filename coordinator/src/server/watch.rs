//! Watches: what is, then every change, from the store's log of revisions.

use std::pin::Pin;

use proto::error::ApiError;
use proto::v1::{Migration, MigrationEvent, WatchMigrationsRequest};
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};

use super::Api;
use crate::store::Changes;

/// A stream of events.
pub(super) type Events = Pin<Box<dyn Stream<Item = Result<MigrationEvent, Status>> + Send>>;

/// Changes read at once.
const BATCH: usize = 64;

impl Api {
    /// Starts a watch. With a revision, objects that have not changed since are shown once as they are, then
    /// every change after it; without one, everything as it is now, then every change.
    pub(super) fn watch(&self, request: WatchMigrationsRequest) -> Result<Events, Status> {
        let (now, objects) = self.core.store.snapshot()?;
        let from = if request.revision == 0 { now } else { request.revision };
        if let Changes::Compacted(oldest) = self.core.store.changes(from, 1)? {
            return Err(compacted(from, oldest));
        }
        let (sender, receiver) = mpsc::channel(BATCH);
        let watch = Watch { api: self.clone(), name: request.name, sender };
        tokio::spawn(watch.run(objects, from));
        Ok(Box::pin(ReceiverStream::new(receiver)))
    }
}

struct Watch {
    api: Api,
    name: String,
    sender: mpsc::Sender<Result<MigrationEvent, Status>>,
}

impl Watch {
    async fn run(mut self, objects: Vec<Migration>, from: u64) {
        let mut first: Vec<_> = objects.into_iter().filter(|m| m.revision <= from).collect();
        first.sort_by_key(|m| m.revision);
        for migration in first {
            if !self.send(migration.revision, migration).await {
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
            for (revision, migration) in changes {
                if !self.send(revision, migration).await {
                    return;
                }
                seen = revision;
            }
        }
    }

    /// Answers false when nobody listens any more.
    async fn send(&mut self, revision: u64, migration: Migration) -> bool {
        if !self.name.is_empty() && migration.name != self.name {
            return true;
        }
        self.sender.send(Ok(MigrationEvent { migration: Some(migration), revision })).await.is_ok()
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
