//! What must outlive the coordinator's process. The only file that names the database.
//!
//! Every write but a node's is on disk when its function returns: an epoch before it is ordered, a revision
//! before a watcher sees it. One writer at a time, so that revisions appear in order.

mod evacuations;
mod migrations;
mod policies;
mod record;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, SystemTime};

use prost::Message;
use proto::v1::Decision;
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::watch;

pub(crate) use evacuations::EvacuationError;
pub(crate) use policies::{DeleteError, InUse};
pub(crate) use record::{Change, EvacuationRecord, Kind, NodeRecord, Object, Record, Request, Resolution};

/// Version of the trees' layout. 1 had changes of migrations alone in its log; it is not read any more.
const FORMAT: u8 = 2;
/// Bytes of the trees that stay in memory: what is not over is little, and history is seldom looked at.
const CACHE: u64 = 64 << 20;
/// Revisions that a watch can go back.
const LOG_KEPT: u64 = 10_000;

/// Why the store cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    /// The database failed; what was to be written may or may not be there after a restart.
    #[error("the store failed")]
    Database(#[from] sled::Error),
    /// A value cannot be decoded.
    #[error("the store's {0} cannot be decoded")]
    Decode(&'static str, #[source] prost::DecodeError),
    /// Written by another version.
    #[error(
        "the store has format {0}, this program knows {FORMAT}: move it away, nodes, containers and epochs are learnt anew from the agents"
    )]
    Format(u8),
    /// There is no such record.
    #[error("there is no migration {0}")]
    NoMigration(String),
    /// There is no such record.
    #[error("there is no evacuation {0}")]
    NoEvacuation(String),
}

/// Removes what a crash or a full disk left of a snapshot that was being written: the one before it is still there, but sled
/// 0.34 takes the unfinished one for the newest and calls the database corrupt. Nothing is removed while another process has
/// the database.
fn remove_unfinished(dir: &Path) {
    // Opening takes this lock again, and fails where somebody else has it.
    let Some(lock) = std::fs::File::open(dir.join("db")).ok().filter(|file| file.try_lock().is_ok()) else {
        return;
    };
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let unfinished =
            name.to_str().is_some_and(|name| name.starts_with("snap.") && name.ends_with(".generating"));
        if unfinished {
            tracing::warn!(file = ?entry.path(), "removing an unfinished snapshot");
            let _ = std::fs::remove_file(entry.path());
        }
    }
    drop(lock);
}

/// Why a migration was not created.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CreateError {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The container is being migrated by this one.
    #[error("migration {0} of the container is under way")]
    Running(String),
    /// The name is taken.
    #[error("there is a migration {0} already")]
    NameTaken(String),
    /// It names a policy that is not there.
    #[error("there is no policy {0}")]
    NoPolicy(String),
}

/// What may have changed since the revision a watcher knows.
#[derive(Debug)]
pub(crate) enum Changes {
    /// These, in order; empty when there is none yet.
    Since(Vec<(u64, Change)>),
    /// The log does not go back that far: this is its oldest revision.
    Compacted(u64),
}

/// The store.
#[derive(Debug)]
pub(crate) struct Store {
    db: sled::Db,
    meta: sled::Tree,
    nodes: sled::Tree,
    migrations: sled::Tree,
    policies: sled::Tree,
    evacuations: sled::Tree,
    epochs: sled::Tree,
    requests: sled::Tree,
    log: sled::Tree,
    decisions: sled::Tree,
    inner: Mutex<Inner>,
    latest: watch::Sender<u64>,
}

#[derive(Debug)]
struct Inner {
    revision: u64,
    /// Container to the migration that is not over.
    active: BTreeMap<String, String>,
    /// Node to the evacuation that is not over.
    evacuating: BTreeMap<String, String>,
}

/// An object to be written, and what watchers are told.
struct Write<'a> {
    tree: &'a sled::Tree,
    key: &'a str,
    /// `None` removes it.
    value: Option<Vec<u8>>,
    change: Change,
}

fn decode<M: Message + Default>(what: &'static str, value: &[u8]) -> Result<M, StoreError> {
    M::decode(value).map_err(|e| StoreError::Decode(what, e))
}

/// Does what may wait for the disk. The runtime's other tasks go on meanwhile, on another thread: a disk that is slow must not
/// hold up who only reads.
fn aside<T>(wait: impl FnOnce() -> T) -> T {
    let threads = Handle::try_current().map(|runtime| runtime.runtime_flavor());
    match threads {
        Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(wait),
        _ => wait(),
    }
}

fn number(value: &[u8]) -> u64 {
    value.try_into().map_or(0, u64::from_be_bytes)
}

impl Store {
    /// Opens the store in `dir`, making it when it is not there.
    ///
    /// # Errors
    /// When the database is damaged, in use by another process or of another format.
    pub(crate) fn open(dir: &Path) -> Result<Self, StoreError> {
        remove_unfinished(dir);
        let config = sled::Config::new().path(dir).mode(sled::Mode::LowSpace).flush_every_ms(Some(500));
        let db = config.cache_capacity(CACHE).open()?;
        let meta = db.open_tree("meta")?;
        match meta.get("format")?.as_deref() {
            Some([FORMAT]) => {}
            Some(other) => return Err(StoreError::Format(other.first().copied().unwrap_or_default())),
            None => {
                meta.insert("format", &[FORMAT])?;
                db.flush()?;
            }
        }
        let log = db.open_tree("revisions")?;
        let migrations = db.open_tree("migrations")?;
        let revision = log.last()?.map_or(0, |(key, _)| number(&key));
        let mut active = BTreeMap::new();
        for entry in &migrations {
            let record: Record = decode("migration", &entry?.1)?;
            if !record.is_over() {
                active.insert(record.container().to_owned(), record.migration.name);
            }
        }
        let evacuations = db.open_tree("evacuations")?;
        let mut evacuating = BTreeMap::new();
        for entry in &evacuations {
            let record: EvacuationRecord = decode("evacuation", &entry?.1)?;
            if !record.is_over() {
                evacuating.insert(record.node().to_owned(), record.evacuation.name);
            }
        }
        Ok(Self {
            policies: db.open_tree("policies")?,
            evacuations,
            nodes: db.open_tree("nodes")?,
            epochs: db.open_tree("epochs")?,
            requests: db.open_tree("requests")?,
            decisions: db.open_tree("decisions")?,
            meta,
            migrations,
            log,
            inner: Mutex::new(Inner { revision, active, evacuating }),
            latest: watch::Sender::new(revision),
            db,
        })
    }

    /// Writes what is not written yet.
    ///
    /// # Errors
    /// When the database fails.
    pub(crate) fn flush(&self) -> Result<(), StoreError> {
        aside(|| self.db.flush())?;
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Inner is changed only after the database was; a panic between leaves it consistent.
        match self.inner.try_lock() {
            Ok(inner) => inner,
            // Whoever has it may be waiting for the disk.
            Err(TryLockError::WouldBlock) => {
                aside(|| self.inner.lock().unwrap_or_else(PoisonError::into_inner))
            }
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
        }
    }

    /// Writes one object and its change under the next revision, durably.
    ///
    /// # Errors
    /// When the database fails; the revision was not taken.
    fn write(
        &self,
        inner: &mut Inner,
        write: &Write<'_>,
        request: Option<(&str, &Request)>,
    ) -> Result<(), StoreError> {
        use sled::Transactional as _;
        let revision = inner.revision + 1;
        let change = write.change.encode_to_vec();
        let compacted = revision.checked_sub(LOG_KEPT).map(u64::to_be_bytes);
        (write.tree, &self.log, &self.requests)
            .transaction(|(tree, log, requests)| {
                match &write.value {
                    Some(value) => tree.insert(write.key, value.as_slice())?,
                    None => tree.remove(write.key)?,
                };
                log.insert(&revision.to_be_bytes(), change.as_slice())?;
                if let Some(old) = compacted {
                    log.remove(&old)?;
                }
                if let Some((id, request)) = request {
                    requests.insert(id, request.encode_to_vec())?;
                }
                Ok(())
            })
            .map_err(|error: sled::transaction::TransactionError<()>| match error {
                sled::transaction::TransactionError::Storage(error) => error,
                sled::transaction::TransactionError::Abort(()) => {
                    sled::Error::ReportableBug("a transaction that never aborts was aborted".into())
                }
            })?;
        self.flush()?;
        inner.revision = revision;
        Ok(())
    }

    /// Every object of one kind as it is, at one revision; with a name only the one that has it.
    pub(crate) fn snapshot(&self, kind: Kind, name: &str) -> Result<(u64, Vec<Object>), StoreError> {
        let inner = self.lock();
        let objects = if name.is_empty() {
            self.objects(kind)?
        } else {
            self.object(kind, name)?.into_iter().collect()
        };
        Ok((inner.revision, objects))
    }

    fn objects(&self, kind: Kind) -> Result<Vec<Object>, StoreError> {
        Ok(match kind {
            Kind::Migration => {
                let all = self.list("", usize::MAX, |_| true)?;
                all.into_iter().map(|record| Object::Migration(record.migration)).collect()
            }
            Kind::Policy => self.policies()?.into_iter().map(Object::Policy).collect(),
            Kind::Evacuation => {
                let all = self.evacuations()?;
                all.into_iter().map(|record| Object::Evacuation(record.evacuation)).collect()
            }
        })
    }

    fn object(&self, kind: Kind, name: &str) -> Result<Option<Object>, StoreError> {
        Ok(match kind {
            Kind::Migration => self.get(name)?.map(|record| Object::Migration(record.migration)),
            Kind::Policy => self.policy(name)?.map(Object::Policy),
            Kind::Evacuation => self.evacuation(name)?.map(|record| Object::Evacuation(record.evacuation)),
        })
    }

    /// What changed after `revision`, at most `limit` changes.
    pub(crate) fn changes(&self, revision: u64, limit: usize) -> Result<Changes, StoreError> {
        let oldest = self.log.first()?.map_or(1, |(key, _)| number(&key));
        if revision.saturating_add(1) < oldest {
            return Ok(Changes::Compacted(oldest));
        }
        let latest = *self.latest.borrow();
        let mut changes = Vec::new();
        let Some(from) = revision.checked_add(1).filter(|from| *from <= latest) else {
            return Ok(Changes::Since(changes));
        };
        for entry in self.log.range(from.to_be_bytes()..=latest.to_be_bytes()).take(limit) {
            let (key, value) = entry?;
            changes.push((number(&key), decode("revision", &value)?));
        }
        // The first ones may have been compacted away between the look at the oldest and the reading.
        match changes.first() {
            Some((first, _)) if *first != from => Ok(Changes::Compacted(*first)),
            _ => Ok(Changes::Since(changes)),
        }
    }

    /// Tells whenever a new revision is durable.
    pub(crate) fn latest(&self) -> watch::Receiver<u64> {
        self.latest.subscribe()
    }

    /// A new epoch for a container: higher than any given before and than `reported`, the highest that any
    /// agent reports. Durable after Ok, so it may be ordered.
    pub(crate) fn next_epoch(&self, container: &str, reported: u64) -> Result<u64, StoreError> {
        let _one_at_a_time = self.lock();
        let stored = self.epochs.get(container)?.map_or(0, |value| number(&value));
        let epoch = stored.max(reported) + 1;
        self.epochs.insert(container, &epoch.to_be_bytes())?;
        self.flush()?;
        Ok(epoch)
    }

    /// What an earlier request with this id was and made.
    pub(crate) fn request(&self, id: &str) -> Result<Option<Request>, StoreError> {
        self.requests.get(id)?.map(|value| decode("request", &value)).transpose()
    }

    /// Remembers a request that makes something else than a migration.
    pub(crate) fn remember(&self, id: &str, request: &Request) -> Result<(), StoreError> {
        self.requests.insert(id, request.encode_to_vec())?;
        self.flush()
    }

    /// Forgets a request that made nothing.
    pub(crate) fn forget(&self, id: &str) -> Result<(), StoreError> {
        self.requests.remove(id)?;
        self.flush()
    }

    /// Remembers what a source reported about a migration that the store does not know, because it was lost. A
    /// commitment is never replaced.
    pub(crate) fn put_decision(
        &self,
        migration: &str,
        epoch: u64,
        decision: Decision,
    ) -> Result<(), StoreError> {
        let _one_at_a_time = self.lock();
        if self.decision(migration, epoch)? != Decision::Committed {
            let value = (decision as i32).to_be_bytes();
            self.decisions.insert(format!("{migration}/{epoch}"), &value)?;
            self.flush()?;
        }
        Ok(())
    }

    /// What was remembered so; UNDECIDED when there is nothing.
    pub(crate) fn decision(&self, migration: &str, epoch: u64) -> Result<Decision, StoreError> {
        let value = self.decisions.get(format!("{migration}/{epoch}"))?;
        let number = value.and_then(|value| Some(i32::from_be_bytes(value.as_ref().try_into().ok()?)));
        Ok(number.and_then(|number| Decision::try_from(number).ok()).unwrap_or(Decision::Undecided))
    }

    /// Every node.
    pub(crate) fn nodes(&self) -> Result<Vec<NodeRecord>, StoreError> {
        self.nodes.iter().values().map(|value| decode("node", &value?)).collect()
    }

    /// Writes a node; on disk within half a second, or at once with `durable`.
    pub(crate) fn put_node(&self, record: &NodeRecord, durable: bool) -> Result<(), StoreError> {
        self.nodes.insert(&record.node.name, record.encode_to_vec())?;
        if durable { self.flush() } else { Ok(()) }
    }

    /// Removes migrations, evacuations and requests that ended longer than `kept` before `now`. Epochs stay for ever.
    /// Answers how many objects were removed.
    pub(crate) fn prune(&self, now: SystemTime, kept: Duration) -> Result<usize, StoreError> {
        let Some(before) = now.checked_sub(kept) else { return Ok(0) };
        let before = prost_types::Timestamp::from(before).seconds;
        let mut removed = self.prune_migrations(before)?;
        {
            let _one_at_a_time = self.lock();
            removed += self.prune_evacuations(before)?;
        }
        for entry in &self.requests {
            let (key, value) = entry?;
            if decode::<Request>("request", &value)?.created < before {
                self.requests.remove(key)?;
            }
        }
        self.flush()?;
        Ok(removed)
    }
}

/// Up to `limit` values of a tree by key, after the key `after`, that `keep` keeps.
fn list<M: Message + Default>(
    tree: &sled::Tree,
    what: &'static str,
    after: &str,
    limit: usize,
    keep: impl Fn(&M) -> bool,
) -> Result<Vec<M>, StoreError> {
    let start = std::ops::Bound::Excluded(after.as_bytes());
    let mut found = Vec::new();
    for entry in tree.range::<&[u8], _>((start, std::ops::Bound::Unbounded)) {
        if found.len() == limit {
            break;
        }
        let record = decode(what, &entry?.1)?;
        if keep(&record) {
            found.push(record);
        }
    }
    Ok(found)
}
