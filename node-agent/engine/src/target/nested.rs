//! Mount namespaces beside the container's own, made by the runtime.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A mount namespace.
#[derive(Debug)]
pub struct NestedMount {
    /// The namespace.
    pub namespace: OwnedFd,
    /// Its root directory.
    pub root: OwnedFd,
}

/// Those that there are, by the numbers that [`image::namespaces::Nested`] gives them. Shared with who makes them while
/// the source runs.
#[derive(Clone, Debug, Default)]
pub struct NestedMounts(Arc<Mutex<BTreeMap<u64, Arc<NestedMount>>>>);

impl NestedMounts {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<NestedMount>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// There is another one.
    pub fn set(&self, number: u64, mount: NestedMount) {
        self.lock().insert(number, Arc::new(mount));
    }

    /// Forgets one: it ends with the last process that is in it.
    pub fn remove(&self, number: u64) {
        self.lock().remove(&number);
    }

    /// Forgets all.
    pub fn clear(&self) {
        self.lock().clear();
    }

    pub(super) fn get(&self, number: u64) -> Option<Arc<NestedMount>> {
        self.lock().get(&number).cloned()
    }
}
