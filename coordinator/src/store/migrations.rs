//! Migrations.

use prost::Message as _;
use proto::identity::MAX_NAME;
use proto::v1::Migration;

use super::record::{Change, Object, Record, Request};
use super::{CreateError, Inner, Store, StoreError, Write, decode, list, number};

impl Store {
    /// Writes a record with its next revision, durably, then shows it to watchers.
    fn publish(
        &self,
        inner: &mut Inner,
        record: &mut Record,
        request: Option<(&str, &Request)>,
    ) -> Result<(), StoreError> {
        record.migration.revision = inner.revision + 1;
        let write = Write {
            tree: &self.migrations,
            key: &record.migration.name,
            value: Some(record.encode_to_vec()),
            change: Change::of(Object::Migration(record.migration.clone())),
        };
        self.write(inner, &write, request)?;
        if record.is_over() {
            if inner.active.get(record.container()).is_some_and(|active| *active == record.migration.name) {
                inner.active.remove(record.container());
            }
        } else {
            inner.active.insert(record.container().to_owned(), record.migration.name.clone());
        }
        self.latest.send_replace(inner.revision);
        Ok(())
    }

    /// Creates a migration, unless the container has one that is not over. An empty name becomes `CONTAINER-N`.
    /// After Ok it is durable, its name and revision are set, and so is the request.
    ///
    /// # Errors
    /// [`CreateError`]; nothing was created.
    pub(crate) fn create(
        &self,
        mut record: Record,
        request: Option<(&str, Vec<u8>)>,
    ) -> Result<Migration, CreateError> {
        let mut inner = self.lock();
        if let Some(running) = inner.active.get(record.container()) {
            return Err(CreateError::Running(running.clone()));
        }
        let policy = record.migration.spec.as_ref().map_or("", |spec| &spec.policy_name);
        if !policy.is_empty() && self.policy(policy)?.is_none() {
            return Err(CreateError::NoPolicy(policy.to_owned()));
        }
        if record.migration.name.is_empty() {
            record.migration.name = self.free_name(record.container())?;
        } else if self.migrations.contains_key(&record.migration.name).map_err(StoreError::from)? {
            return Err(CreateError::NameTaken(record.migration.name));
        }
        let name = record.migration.name.clone();
        let created = record.migration.created.as_ref().map_or(0, |time| time.seconds);
        let request = request.map(|(id, request)| (id, Request { request, name, created }));
        self.publish(&mut inner, &mut record, request.as_ref().map(|(id, request)| (*id, request)))?;
        Ok(record.migration)
    }

    /// A name that no migration has. It is not given to another one after Ok, unless the process ends first.
    pub(crate) fn reserve_name(&self, container: &str) -> Result<String, StoreError> {
        let _one_at_a_time = self.lock();
        self.free_name(container)
    }

    fn free_name(&self, container: &str) -> Result<String, StoreError> {
        let key = format!("names/{container}");
        let mut n = self.meta.get(&key)?.map_or(0, |value| number(&value));
        loop {
            n += 1;
            let suffix = format!("-{n}");
            let stem = &container[..container.len().min(MAX_NAME - suffix.len())];
            let name = format!("{stem}{suffix}");
            if !self.migrations.contains_key(&name)? {
                // Not flushed by itself: the migration that takes the name is.
                self.meta.insert(key.as_str(), &n.to_be_bytes())?;
                return Ok(name);
            }
        }
    }

    /// Changes a migration. When `change` changes anything, that has a new revision and is durable after Ok.
    /// A finished migration is changed no more but for its resolution.
    ///
    /// # Errors
    /// [`StoreError::NoMigration`], or when the database fails.
    pub(crate) fn update<T>(
        &self,
        name: &str,
        change: impl FnOnce(&mut Record) -> T,
    ) -> Result<(T, Record), StoreError> {
        let mut inner = self.lock();
        let before = self.get(name)?.ok_or_else(|| StoreError::NoMigration(name.to_owned()))?;
        let mut record = before.clone();
        let answer = change(&mut record);
        if before.is_over() {
            let resolution = record.resolution.take();
            record = Record { resolution, ..before.clone() };
        }
        if record != before {
            self.publish(&mut inner, &mut record, None)?;
        }
        Ok((answer, record))
    }

    /// A migration.
    pub(crate) fn get(&self, name: &str) -> Result<Option<Record>, StoreError> {
        self.migrations.get(name)?.map(|value| decode("migration", &value)).transpose()
    }

    /// Up to `limit` migrations by name, after the name `after`, that `keep` keeps.
    pub(crate) fn list(
        &self,
        after: &str,
        limit: usize,
        keep: impl Fn(&Record) -> bool,
    ) -> Result<Vec<Record>, StoreError> {
        list(&self.migrations, "migration", after, limit, keep)
    }

    /// Every migration that is not over: those of users first, then those of evacuations, each oldest first.
    pub(crate) fn active(&self) -> Result<Vec<Record>, StoreError> {
        let names: Vec<String> = self.lock().active.values().cloned().collect();
        let mut records = Vec::new();
        for name in names {
            records.extend(self.get(&name)?);
        }
        records.sort_by_key(|r| {
            let created = r.migration.created.unwrap_or_default();
            let drained = !r.migration.evacuation.is_empty();
            (drained, created.seconds, created.nanos, r.migration.name.clone())
        });
        Ok(records)
    }

    /// The migration of `container` that is not over.
    pub(crate) fn active_of(&self, container: &str) -> Option<String> {
        self.lock().active.get(container).cloned()
    }

    /// Looks at every migration without holding up writers, then removes those that nobody needs.
    pub(super) fn prune_migrations(&self, before: i64) -> Result<usize, StoreError> {
        let mut old = Vec::new();
        for value in self.migrations.iter().values() {
            let record: Record = decode("migration", &value?)?;
            if is_unneeded(&record, &self.lock(), before) {
                old.push(record.migration.name);
            }
        }
        let mut removed = 0;
        for name in old {
            let inner = self.lock();
            if self.get(&name)?.is_some_and(|record| is_unneeded(&record, &inner, before)) {
                self.migrations.remove(&name)?;
                removed += 1;
            }
        }
        Ok(removed)
    }
}

/// Whether a migration ended before a time, and nothing of it is owed to anybody. An evacuation that is not over still reads
/// its migrations.
fn is_unneeded(record: &Record, inner: &Inner, before: i64) -> bool {
    let owed = record.resolution.as_ref().is_some_and(|r| !r.fenced_told);
    let read = || inner.evacuating.values().any(|name| *name == record.migration.evacuation);
    let old = record.migration.finished.is_some_and(|finished| finished.seconds < before);
    record.is_over() && old && !owed && !read()
}
