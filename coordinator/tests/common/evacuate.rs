//! Evacuations in a [`World`].

use std::time::Duration;

use proto::v1::*;
use tonic::{Response, Status};

use super::{Agent, LIMIT, World, until};

impl World {
    /// Asks for an evacuation.
    pub(crate) async fn evacuate(
        &mut self,
        node: &str,
        change: impl FnOnce(&mut CreateEvacuationRequest),
    ) -> Result<Evacuation, Status> {
        let spec = EvacuationSpec { node: node.into(), ..EvacuationSpec::default() };
        let mut request = CreateEvacuationRequest { spec: Some(spec), ..Default::default() };
        change(&mut request);
        self.api.create_evacuation(request).await.map(Response::into_inner)
    }

    /// Waits until something holds for an evacuation.
    pub(crate) async fn evacuation(&self, name: &str, holds: impl Fn(&Evacuation) -> bool) -> Evacuation {
        let mut last = None;
        let end = tokio::time::Instant::now() + LIMIT;
        while tokio::time::Instant::now() < end {
            let mut api = self.api.clone();
            if let Ok(found) = api.get_evacuation(GetEvacuationRequest { name: name.to_owned() }).await {
                let found = found.into_inner();
                if holds(&found) {
                    return found;
                }
                last = Some(found);
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("never came true of {name}: {last:#?}; log in {}", self.process.log().display());
    }

    /// Waits until a container is being moved, and answers by which migration.
    pub(crate) async fn migrating(&self, evacuation: &str, container: &str) -> String {
        let e = self.evacuation(evacuation, |e| state_of(e, container) == ItemState::Migrating).await;
        e.items.into_iter().find(|item| item.container == container).unwrap().migration
    }
}

/// The state of a container's item; UNSPECIFIED when there is none.
pub(crate) fn state_of(e: &Evacuation, container: &str) -> ItemState {
    e.items
        .iter()
        .find(|item| item.container == container)
        .map_or(ItemState::Unspecified, EvacuationItem::state)
}

/// Waits until an agent has a session for a migration.
pub(crate) async fn has_session(agent: &Agent, migration: &str) {
    until(&format!("a session for {migration} at {}", agent.name), || async {
        agent.started(migration).map(drop)
    })
    .await;
}

/// The source of a migration commits, and the container changes hands.
pub(crate) fn hand_over(container: &str, migration: &str, from: &Agent, to: &Agent) {
    let mut left = from.containers();
    let index = left.iter().position(|c| c.name == container).expect("it is there");
    let mut moved = left.remove(index);
    from.set_containers(left);
    moved.epoch += 1;
    let mut there = to.containers();
    there.push(moved);
    to.set_containers(there);
    to.reaches(migration, Phase::Succeeded);
    from.reaches(migration, Phase::Succeeded);
}

/// Waits until a container is being moved from one node to another, and lets that succeed.
pub(crate) async fn finish(world: &World, container: &str, from: &Agent, to: &Agent) {
    let request = || ListMigrationsRequest { container: container.into(), ..Default::default() };
    let migration = until(&format!("{container} moves"), || async {
        let mut api = world.api.clone();
        let all = api.list_migrations(request()).await.ok()?.into_inner().migrations;
        let running = all.into_iter().find(|m| m.finished.is_none());
        running.filter(|m| from.started(&m.name).is_some()).map(|m| m.name)
    })
    .await;
    hand_over(container, &migration, from, to);
    world.phase(&migration, Phase::Succeeded).await;
}
