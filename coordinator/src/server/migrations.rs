//! Migrations: create, resolve.

use std::time::SystemTime;

use prost::Message as _;
use proto::error::{ApiError, invalid_field, not_found};
use proto::identity::{Identity, check_name};
use proto::v1::{
    ContainerState, CreateMigrationRequest, Decision, Migration, MigrationSpec, Owner, Phase,
    ResolveMigrationRequest,
};
use tonic::{Code, Status};

use super::Api;
use super::containers::running;
use super::requests::{check_labels, check_request_id, invalid_fields, same_request};
use crate::check::check;
use crate::core::set_condition;
use crate::place::unselected;
use crate::policy::{NoSuchPolicy, resolve, wrong_limits};
use crate::store::{CreateError, Record, Resolution};

fn check_spec(spec: &MigrationSpec) -> Result<(), Status> {
    check_name(&spec.container).map_err(|e| invalid_field("spec.container", e.to_string()))?;
    if !spec.target_node.is_empty() {
        check_name(&spec.target_node).map_err(|e| invalid_field("spec.target_node", e.to_string()))?;
    }
    check_labels("spec.node_selector", &spec.node_selector)?;
    if !spec.target_node.is_empty() && !spec.node_selector.is_empty() {
        return Err(invalid_field("spec.node_selector", "cannot go with target_node").status());
    }
    if !spec.policy_name.is_empty() {
        check_name(&spec.policy_name).map_err(|e| invalid_field("spec.policy_name", e.to_string()))?;
    }
    invalid_fields(spec.policy.as_ref().map_or_else(Vec::new, |limits| wrong_limits("spec.policy", limits)))
}

impl Api {
    /// A migration's record.
    pub(super) fn migration(&self, name: &str) -> Result<Record, Status> {
        self.core.store.get(name)?.ok_or_else(|| not_found("migration", name).status())
    }

    /// Creates a migration, or runs the checks alone.
    pub(super) async fn migrate(
        &self,
        who: &Identity,
        request: CreateMigrationRequest,
    ) -> Result<Migration, Status> {
        let id = check_request_id(&request.request_id)?;
        if !request.name.is_empty() {
            check_name(&request.name).map_err(|e| invalid_field("name", e.to_string()))?;
        }
        let spec = request.spec.clone().ok_or_else(|| invalid_field("spec", "is missing"))?;
        check_spec(&spec)?;
        check_labels("labels", &request.labels)?;
        let encoded = request.encode_to_vec();
        if let Some(answer) = self.answered(id, &encoded)? {
            return Ok(answer);
        }

        let container = self.locate(&spec.container)?;
        if let Some(first) = self.core.store.active_of(&spec.container) {
            return Err(running(&spec.container, &first));
        }
        if spec.target_node == container.node {
            let message = format!("{} is on {} already", container.name, container.node);
            return Err(invalid_field("spec.target_node", message).status());
        }
        if !spec.target_node.is_empty() && self.core.cluster.node(&spec.target_node).is_none() {
            return Err(not_found("node", &spec.target_node).status());
        }
        // Migrating, and no migration is under way: its node has not said yet that the last one is over. It waits in
        // the queue for that.
        if !matches!(container.state(), ContainerState::Running | ContainerState::Migrating) {
            let state = container.state().as_str_name();
            let message = format!("{} is not running but {state}", container.name);
            return Err(ApiError::new(Code::FailedPrecondition, "CONTAINER_NOT_RUNNING", message)
                .with("container", container.name)
                .with("state", state)
                .status());
        }

        let migration = Migration {
            name: request.name,
            uid: uuid::Uuid::new_v4().to_string(),
            created: Some(SystemTime::now().into()),
            source_node: container.node.clone(),
            target_node: spec.target_node.clone(),
            requested_by: who.to_string(),
            labels: request.labels,
            ..Migration::default()
        };
        let policies = self.core.store.policies()?;
        let (effective, _) = resolve(&spec, &container.labels, &policies)
            .map_err(|NoSuchPolicy(name)| not_found("policy", &name))?;
        let mut record = Record { migration, ..Record::default() };
        record.migration.set_phase(Phase::Pending);
        set_condition(&mut record.migration.conditions, "Succeeded", "Unknown", "Pending", "");
        if request.validate_only {
            let mut checked = check(&self.core, &container, &spec.target_node, false).await?;
            checked.needs.selector = spec.node_selector.clone().into_iter().collect();
            for (verdict, candidate) in checked.verdicts.iter_mut().zip(&checked.candidates) {
                verdict.reasons.extend(unselected(&checked.needs, candidate));
            }
            refuse(&container.name, &checked.answer.refusals, &checked.verdicts)?;
            record.migration.effective_policy = Some(effective);
            record.migration.spec = Some(spec);
            return Ok(record.migration);
        }
        record.migration.spec = Some(spec);
        record.log(format!("created by {who}"));

        let made = self.core.store.create(record, id.map(|id| (id, encoded.clone())));
        match made {
            Ok(migration) => {
                self.core.wake.notify_one();
                Ok(migration)
            }
            // The same request may have been faster than itself.
            Err(CreateError::Running(first)) => match self.answered(id, &encoded)? {
                Some(answer) => Ok(answer),
                None => Err(running(&container.name, &first)),
            },
            Err(CreateError::NameTaken(name)) => {
                let message = format!("there is a migration {name} already");
                Err(ApiError::new(Code::AlreadyExists, "MIGRATION_EXISTS", message)
                    .with("migration", name)
                    .status())
            }
            Err(CreateError::NoPolicy(name)) => Err(not_found("policy", &name).status()),
            Err(CreateError::Store(error)) => Err(error.into()),
        }
    }

    /// The migration that an earlier request with this id made.
    fn answered(&self, id: Option<&str>, encoded: &[u8]) -> Result<Option<Migration>, Status> {
        let Some(known) = id.map(|id| self.core.store.request(id)).transpose()?.flatten() else {
            return Ok(None);
        };
        same_request::<CreateMigrationRequest>(&known, encoded)?;
        Ok(self.core.store.get(&known.name)?.map(|record| record.migration))
    }

    /// Records who owns the container when nobody reachable can tell. Once; the driver then tells the agents.
    pub(super) fn resolve(
        &self,
        who: &Identity,
        request: &ResolveMigrationRequest,
    ) -> Result<Migration, Status> {
        let record = self.migration(&request.name)?;
        let m = &record.migration;
        let (owner, owner_node, loser) = match request.owner() {
            Owner::Source => (Owner::Source, &m.source_node, &m.target_node),
            Owner::Target => (Owner::Target, &m.target_node, &m.source_node),
            Owner::Unspecified => return Err(invalid_field("owner", "is neither source nor target").status()),
        };
        if let Some(said) = &record.resolution {
            if said.owner() == owner {
                return Ok(record.migration);
            }
            let message = format!("{} has resolved {} for the other side", said.by, m.name);
            return Err(ApiError::new(Code::FailedPrecondition, "RESOLVED_OTHERWISE", message)
                .with("owner", said.owner().as_str_name())
                .status());
        }
        if m.phase() != Phase::OutcomeUnknown {
            let message =
                format!("the outcome of {} is not unknown: it is {}", m.name, m.phase().as_str_name());
            return Err(ApiError::new(Code::FailedPrecondition, "OUTCOME_KNOWN", message)
                .with("phase", m.phase().as_str_name())
                .status());
        }
        if request.fenced_node.is_empty() {
            let message = format!("{loser} must be fenced first: power it off, then say so");
            return Err(ApiError::new(Code::FailedPrecondition, "FENCING_REQUIRED", message)
                .precondition(
                    "FENCING_REQUIRED",
                    format!("node/{loser}"),
                    "power it off, then name it as fenced",
                )
                .status());
        }
        if request.fenced_node != *loser {
            let message = format!("to give the container to {owner_node}, it is {loser} that must be fenced");
            return Err(invalid_field("fenced_node", message).status());
        }
        if self.is_ready(loser) {
            let message = format!("{loser} sends heartbeats: it is not fenced");
            return Err(ApiError::new(Code::FailedPrecondition, "NODE_NOT_FENCED", message)
                .precondition("NODE_NOT_FENCED", format!("node/{loser}"), "power it off")
                .status());
        }
        // With the source's word that it committed, the target's copy is the newer one for certain.
        let newest_for_certain = owner == Owner::Target && record.decision() == Decision::Committed;
        if !request.accept_rollback && !newest_for_certain {
            let message = format!(
                "{loser}'s copy may have run and acknowledged writes that {owner_node}'s does not have: accept the rollback, or read {loser}'s journal first"
            );
            return Err(ApiError::new(Code::FailedPrecondition, "ROLLBACK_NOT_ACCEPTED", message)
                .precondition("ROLLBACK_NOT_ACCEPTED", format!("node/{loser}"), "writes may be lost")
                .status());
        }
        // On disk before anything is told; and from now on the fenced node is not heard until it was told.
        let container = record.container();
        let epoch =
            self.core.store.next_epoch(container, self.core.cluster.highest_epoch(container).max(m.epoch))?;
        let resolution = Resolution {
            owner: owner.into(),
            fenced: loser.clone(),
            epoch,
            by: who.to_string(),
            acknowledged: false,
            fenced_told: false,
        };
        let record = self.core.update(&m.name, |record| {
            if record.resolution.is_none() && !record.is_over() {
                record.log(format!("{who} gives the container to {owner_node}; {loser} is fenced"));
                record.resolution = Some(resolution);
            }
        })?;
        self.core.cluster.expel(loser);
        self.core.wake.notify_one();
        Ok(record.migration)
    }
}

/// FAILED_PRECONDITION with everything that the checks found; Ok when it can move.
fn refuse(
    container: &str,
    refusals: &[proto::v1::Refusal],
    verdicts: &[crate::place::Verdict],
) -> Result<(), Status> {
    if !refusals.is_empty() {
        let message = format!("{container} has {} thing(s) that cannot move", refusals.len());
        let error =
            ApiError::new(Code::FailedPrecondition, "CHECK_REFUSED", message).with("container", container);
        let error = refusals.iter().fold(error, |error, refusal| {
            let subject = format!("container/{container}: pid {} {}", refusal.pid, refusal.subject);
            error.precondition("CANNOT_MOVE", subject, format!("{}; {}", refusal.reason, refusal.way_out))
        });
        return Err(error.status());
    }
    if verdicts.iter().any(|verdict| verdict.reasons.is_empty()) {
        return Ok(());
    }
    let error = ApiError::new(Code::FailedPrecondition, "NO_CANDIDATE", format!("no node takes {container}"));
    let error = verdicts.iter().fold(error, |error, verdict| {
        error.precondition("NODE_DOES_NOT_FIT", format!("node/{}", verdict.node), verdict.reasons.join(", "))
    });
    Err(error.status())
}
