//! A part of a look that a thread of its own does, beside the rest.

use std::sync::Arc;
use std::thread::{Builder, JoinHandle};

use super::error::InspectError;
use super::findings::Findings;

type Found<T> = (Findings, Result<T, InspectError>);

/// Such a part.
pub(crate) enum Beside<T> {
    Under(JoinHandle<Found<T>>),
    Over(Found<T>),
}

impl<T: Send + 'static> Beside<T> {
    /// Begins it; when the host takes no more threads, it is done now.
    pub(crate) fn begin<Check>(name: &str, check: Check) -> Self
    where
        Check: Fn(&mut Findings) -> Result<T, InspectError> + Send + Sync + 'static,
    {
        let look = move || {
            let mut findings = Findings::default();
            let result = check(&mut findings);
            (findings, result)
        };
        let look = Arc::new(look);
        let own = Arc::clone(&look);
        match Builder::new().name(name.to_owned()).spawn(move || own()) {
            Ok(thread) => Self::Under(thread),
            Err(_) => Self::Over(look()),
        }
    }

    /// Waits for it, and adds what it found.
    pub(crate) fn end(self, findings: &mut Findings) -> Result<T, InspectError> {
        let (found, result) = match self {
            Self::Under(thread) => thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
            Self::Over(found) => found,
        };
        findings.list.extend(found.list);
        result
    }
}
