//! An operator's word: the owner's agent is told until it acknowledges, then it is over. The fenced node is told
//! when it comes back, before it is admitted again.

use proto::v1::{Owner, Phase, ResolveAgentRequest};
use tonic::Status;

use super::{Driver, Step};
use crate::agent_client::{ORDER, answer};
use crate::core::{Core, End};
use crate::store::{Record, Resolution, StoreError};

impl Driver {
    pub(super) async fn resolve(&mut self, record: &Record, said: &Resolution) -> Result<Step, StoreError> {
        let m = &record.migration;
        let (owner, end) = match said.owner() {
            Owner::Target => (&m.target_node, Phase::Succeeded),
            _ => (&m.source_node, Phase::Failed),
        };
        let told = match self.core.agent(owner) {
            Ok(mut agent) => answer(owner, ORDER, agent.resolve(request(record, said, false))).await,
            Err(status) => Err(status),
        };
        if let Err(status) = told {
            tracing::warn!(owner, error = status.message(), "the owner has not acknowledged the resolution");
            self.core.update(&self.name, |record| {
                record.log(format!("{owner} has not acknowledged: {}", status.message()));
            })?;
            return Ok(Step::Again);
        }
        fail::fail_point!("drive-after-resolve");
        let message = format!("{owner} owns the container, by the word of {}", said.by);
        self.core.update(&self.name, |record| {
            if let Some(resolution) = &mut record.resolution {
                resolution.acknowledged = true;
            }
            End::new(end, "Resolved", message).apply(record);
        })?;
        Ok(Step::Over)
    }
}

fn request(record: &Record, said: &Resolution, fenced: bool) -> ResolveAgentRequest {
    ResolveAgentRequest {
        migration: record.migration.name.clone(),
        container: record.container().to_owned(),
        epoch: said.epoch,
        owner: said.owner,
        fenced,
    }
}

/// What stands against admitting a node again.
#[derive(Debug)]
pub(crate) enum Fence {
    /// The owner of this migration has not acknowledged yet.
    Unacknowledged(String),
    /// The node did not take what it was told about this migration.
    NotTold(String, Status),
    /// The store.
    Store(StoreError),
}

/// Tells a node that was fenced, at `address`, who owns what since. After Ok it has dropped every older copy and
/// may be admitted.
pub(crate) async fn readmit(core: &Core, node: &str, address: &str) -> Result<(), Fence> {
    let owed = |record: &Record| {
        record.resolution.as_ref().is_some_and(|said| said.fenced == node && !said.fenced_told)
    };
    for record in core.store.list("", usize::MAX, owed).map_err(Fence::Store)? {
        let name = record.migration.name.clone();
        let Some(said) = record.resolution.clone() else { continue };
        if !said.acknowledged {
            return Err(Fence::Unacknowledged(name));
        }
        let told = async {
            let mut agent = core.agents.client(node, address)?;
            answer(node, ORDER, agent.resolve(request(&record, &said, true))).await
        };
        told.await.map_err(|status| Fence::NotTold(name.clone(), status))?;
        core.store
            .update(&name, |record| {
                if let Some(said) = &mut record.resolution {
                    said.fenced_told = true;
                }
            })
            .map_err(Fence::Store)?;
        tracing::info!(node, migration = name, "the fenced node was told who owns the container");
    }
    Ok(())
}
