//! Evacuations.

use prost::Message as _;
use proto::identity::MAX_NAME;
use proto::v1::Evacuation;

use super::record::{Change, EvacuationRecord, Object, Request};
use super::{Inner, Store, StoreError, Write, decode, list};

/// Why an evacuation was not created.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EvacuationError {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// This one of the same node is not over.
    #[error("evacuation {0} of the node is under way")]
    Running(String),
    /// The name is taken.
    #[error("there is an evacuation {0} already")]
    NameTaken(String),
    /// It names a policy that is not there.
    #[error("there is no policy {0}")]
    NoPolicy(String),
}

impl Store {
    fn publish_evacuation(
        &self,
        inner: &mut Inner,
        record: &mut EvacuationRecord,
        request: Option<(&str, &Request)>,
    ) -> Result<(), StoreError> {
        record.evacuation.revision = inner.revision + 1;
        let write = Write {
            tree: &self.evacuations,
            key: &record.evacuation.name,
            value: Some(record.encode_to_vec()),
            change: Change::of(Object::Evacuation(record.evacuation.clone())),
        };
        self.write(inner, &write, request)?;
        if record.is_over() {
            inner.evacuating.retain(|_, name| *name != record.evacuation.name);
        } else {
            inner.evacuating.insert(record.node().to_owned(), record.evacuation.name.clone());
        }
        self.latest.send_replace(inner.revision);
        Ok(())
    }

    /// Creates an evacuation, unless its node has one that is not over. An empty name becomes `drain-NODE-N`.
    /// After Ok it is durable, its name and revision are set, and so is the request.
    ///
    /// # Errors
    /// [`EvacuationError`]; nothing was created.
    pub(crate) fn create_evacuation(
        &self,
        mut record: EvacuationRecord,
        request: Option<(&str, Vec<u8>)>,
    ) -> Result<Evacuation, EvacuationError> {
        let mut inner = self.lock();
        if let Some(running) = inner.evacuating.get(record.node()) {
            return Err(EvacuationError::Running(running.clone()));
        }
        let policy = record.evacuation.spec.as_ref().map_or("", |spec| &spec.policy);
        if !policy.is_empty() && self.policy(policy)?.is_none() {
            return Err(EvacuationError::NoPolicy(policy.to_owned()));
        }
        if record.evacuation.name.is_empty() {
            record.evacuation.name = self.free_evacuation_name(record.node())?;
        } else if self.evacuation(&record.evacuation.name)?.is_some() {
            return Err(EvacuationError::NameTaken(record.evacuation.name));
        }
        let name = record.evacuation.name.clone();
        let created = record.evacuation.created.as_ref().map_or(0, |time| time.seconds);
        let request = request.map(|(id, request)| (id, Request { request, name, created }));
        self.publish_evacuation(&mut inner, &mut record, request.as_ref().map(|(id, r)| (*id, r)))?;
        Ok(record.evacuation)
    }

    fn free_evacuation_name(&self, node: &str) -> Result<String, StoreError> {
        let mut n = 0;
        loop {
            n += 1;
            let suffix = format!("-{n}");
            let stem = format!("drain-{node}");
            let name = format!("{}{suffix}", &stem[..stem.len().min(MAX_NAME - suffix.len())]);
            if !self.evacuations.contains_key(&name)? {
                return Ok(name);
            }
        }
    }

    /// Changes an evacuation. When `change` changes anything, that has a new revision and is durable after Ok.
    /// One that is over is changed no more.
    ///
    /// # Errors
    /// [`StoreError::NoEvacuation`], or when the database fails.
    pub(crate) fn update_evacuation<T>(
        &self,
        name: &str,
        change: impl FnOnce(&mut EvacuationRecord) -> T,
    ) -> Result<(T, EvacuationRecord), StoreError> {
        let mut inner = self.lock();
        let before = self.evacuation(name)?.ok_or_else(|| StoreError::NoEvacuation(name.to_owned()))?;
        let mut record = before.clone();
        let answer = change(&mut record);
        if before.is_over() {
            record = before;
        } else if record != before {
            self.publish_evacuation(&mut inner, &mut record, None)?;
        }
        Ok((answer, record))
    }

    /// An evacuation.
    pub(crate) fn evacuation(&self, name: &str) -> Result<Option<EvacuationRecord>, StoreError> {
        self.evacuations.get(name)?.map(|value| decode("evacuation", &value)).transpose()
    }

    /// Every evacuation, by name.
    pub(crate) fn evacuations(&self) -> Result<Vec<EvacuationRecord>, StoreError> {
        self.list_evacuations("", usize::MAX, |_| true)
    }

    /// Up to `limit` evacuations by name, after the name `after`, that `keep` keeps.
    pub(crate) fn list_evacuations(
        &self,
        after: &str,
        limit: usize,
        keep: impl Fn(&EvacuationRecord) -> bool,
    ) -> Result<Vec<EvacuationRecord>, StoreError> {
        list(&self.evacuations, "evacuation", after, limit, keep)
    }

    /// The names of those that are not over.
    pub(crate) fn evacuating(&self) -> Vec<String> {
        self.lock().evacuating.values().cloned().collect()
    }

    /// The evacuation of a node that is not over.
    pub(crate) fn evacuation_of(&self, node: &str) -> Option<String> {
        self.lock().evacuating.get(node).cloned()
    }

    pub(super) fn prune_evacuations(&self, before: i64) -> Result<usize, StoreError> {
        let mut removed = 0;
        for entry in &self.evacuations {
            let (key, value) = entry?;
            let record: EvacuationRecord = decode("evacuation", &value)?;
            let old = record.evacuation.finished.is_some_and(|finished| finished.seconds < before);
            if record.is_over() && old {
                self.evacuations.remove(key)?;
                removed += 1;
            }
        }
        Ok(removed)
    }
}
