//! Migration policies.

use std::time::SystemTime;

use prost::Message as _;
use proto::v1::{ApplyResult, MigrationPolicy};

use super::record::{Change, EvacuationRecord, Object};
use super::{Inner, Store, StoreError, Write, decode, list};

/// What names a policy and needs it still.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct InUse {
    /// `migration/NAME` and `evacuation/NAME`.
    pub(crate) by: Vec<String>,
}

/// Why a policy was not deleted.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DeleteError {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// There is none.
    #[error("there is no such policy")]
    NotFound,
    /// Something names it.
    #[error("it is in use")]
    InUse(InUse),
}

impl Store {
    /// A policy.
    pub(crate) fn policy(&self, name: &str) -> Result<Option<MigrationPolicy>, StoreError> {
        self.policies.get(name)?.map(|value| decode("policy", &value)).transpose()
    }

    /// Every policy, by name.
    pub(crate) fn policies(&self) -> Result<Vec<MigrationPolicy>, StoreError> {
        self.list_policies("", usize::MAX, |_| true)
    }

    /// Up to `limit` policies by name, after the name `after`, that `keep` keeps.
    pub(crate) fn list_policies(
        &self,
        after: &str,
        limit: usize,
        keep: impl Fn(&MigrationPolicy) -> bool,
    ) -> Result<Vec<MigrationPolicy>, StoreError> {
        list(&self.policies, "policy", after, limit, keep)
    }

    /// Makes a policy what `wanted` says; uid and times are kept. After Ok it is durable, or nothing had to be
    /// changed. With `dry` nothing is written.
    pub(crate) fn apply_policy(
        &self,
        mut wanted: MigrationPolicy,
        dry: bool,
    ) -> Result<(MigrationPolicy, ApplyResult), StoreError> {
        let mut inner = self.lock();
        let known = self.policy(&wanted.name)?;
        let result = match &known {
            None => ApplyResult::Created,
            Some(known) if known.spec == wanted.spec && known.labels == wanted.labels => {
                return Ok((known.clone(), ApplyResult::Unchanged));
            }
            Some(_) => ApplyResult::Configured,
        };
        let now = SystemTime::now().into();
        wanted.updated = Some(now);
        wanted.created = known.as_ref().map_or(Some(now), |known| known.created);
        wanted.uid = known.map_or_else(|| uuid::Uuid::new_v4().to_string(), |known| known.uid);
        if !dry {
            wanted.revision = inner.revision + 1;
            let write = Write {
                tree: &self.policies,
                key: &wanted.name,
                value: Some(wanted.encode_to_vec()),
                change: Change::of(Object::Policy(wanted.clone())),
            };
            self.write(&mut inner, &write, None)?;
            self.latest.send_replace(inner.revision);
        }
        Ok((wanted, result))
    }

    /// Deletes a policy that nothing names any more; a migration that was admitted has its limits and needs it no
    /// longer. With `dry` nothing is written.
    ///
    /// # Errors
    /// [`DeleteError`]; nothing was deleted.
    pub(crate) fn delete_policy(&self, name: &str, dry: bool) -> Result<(), DeleteError> {
        let mut inner = self.lock();
        let policy = self.policy(name)?.ok_or(DeleteError::NotFound)?;
        let by = self.users_of(&inner, name)?;
        if !by.is_empty() {
            return Err(DeleteError::InUse(InUse { by }));
        }
        if !dry {
            let change = Change { deleted: true, ..Change::of(Object::Policy(policy)) };
            let write = Write { tree: &self.policies, key: name, value: None, change };
            self.write(&mut inner, &write, None)?;
            self.latest.send_replace(inner.revision);
        }
        Ok(())
    }

    fn users_of(&self, inner: &Inner, policy: &str) -> Result<Vec<String>, StoreError> {
        let mut users = Vec::new();
        for name in inner.active.values() {
            let names = |record: &super::Record| {
                !record.admitted
                    && record.migration.spec.as_ref().is_some_and(|spec| spec.policy_name == policy)
            };
            if self.get(name)?.is_some_and(|record| names(&record)) {
                users.push(format!("migration/{name}"));
            }
        }
        for name in inner.evacuating.values() {
            let names = |record: &EvacuationRecord| {
                record.evacuation.spec.as_ref().is_some_and(|spec| spec.policy == policy)
            };
            if self.evacuation(name)?.is_some_and(|record| names(&record)) {
                users.push(format!("evacuation/{name}"));
            }
        }
        users.sort();
        Ok(users)
    }
}
