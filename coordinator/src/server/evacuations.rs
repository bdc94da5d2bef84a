//! Evacuations: create or plan, cancel, pause, resume; and what uncordoning a node has to do with them.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use prost::Message as _;
use proto::error::{ApiError, invalid_field, not_found};
use proto::identity::{Identity, check_name};
use proto::v1::{
    CreateEvacuationRequest, Evacuation, EvacuationItem, EvacuationPhase, EvacuationSpec, ItemState, Node,
};
use tonic::{Code, Status};

use super::Api;
use super::requests::{check_labels, check_request_id, same_request};
use crate::core::{camel, set_condition};
use crate::evacuate::world::Seen;
use crate::evacuate::{look, look_into, step, to_bring_back};
use crate::store::{EvacuationError, EvacuationRecord};

/// The most migrations at once.
const MAX_PARALLEL: u32 = 64;

impl Api {
    /// An evacuation's record.
    pub(super) fn evacuation(&self, name: &str) -> Result<EvacuationRecord, Status> {
        self.core.store.evacuation(name)?.ok_or_else(|| not_found("evacuation", name).status())
    }

    /// Creates an evacuation, or answers its plan.
    pub(super) async fn evacuate(
        &self,
        who: &Identity,
        request: CreateEvacuationRequest,
    ) -> Result<Evacuation, Status> {
        let id = check_request_id(&request.request_id)?;
        if !request.name.is_empty() {
            check_name(&request.name).map_err(|e| invalid_field("name", e.to_string()))?;
        }
        check_labels("labels", &request.labels)?;
        let spec = request.spec.clone().ok_or_else(|| invalid_field("spec", "is missing"))?;
        let deadline = check_spec(&spec)?;
        let encoded = request.encode_to_vec();
        if let Some(answer) = self.evacuation_answered(id, &encoded)? {
            return Ok(answer);
        }
        let node = self.core.cluster.node(&spec.node).ok_or_else(|| not_found("node", &spec.node))?;
        if let Some(first) = self.core.store.evacuation_of(&spec.node) {
            return Err(running(&spec.node, &first));
        }
        if !spec.policy.is_empty() {
            self.policy(&spec.policy)?;
        }
        let record = self.new_record(who, request.name, spec, request.labels, &node, deadline)?;
        if request.validate_only {
            return self.plan(record).await;
        }
        match self.core.store.create_evacuation(record, id.map(|id| (id, encoded.clone()))) {
            Ok(evacuation) => Ok(evacuation),
            // The same request may have been faster than itself.
            Err(EvacuationError::Running(first)) => match self.evacuation_answered(id, &encoded)? {
                Some(answer) => Ok(answer),
                None => Err(running(&node.name, &first)),
            },
            Err(EvacuationError::NameTaken(name)) => {
                let message = format!("there is an evacuation {name} already");
                Err(ApiError::new(Code::AlreadyExists, "EVACUATION_EXISTS", message)
                    .with("evacuation", name)
                    .status())
            }
            Err(EvacuationError::NoPolicy(name)) => Err(not_found("policy", &name).status()),
            Err(EvacuationError::Store(error)) => Err(error.into()),
        }
    }

    fn evacuation_answered(&self, id: Option<&str>, encoded: &[u8]) -> Result<Option<Evacuation>, Status> {
        let Some(known) = id.map(|id| self.core.store.request(id)).transpose()?.flatten() else {
            return Ok(None);
        };
        same_request::<CreateEvacuationRequest>(&known, encoded)?;
        Ok(self.core.store.evacuation(&known.name)?.map(|record| record.evacuation))
    }

    fn new_record(
        &self,
        who: &Identity,
        name: String,
        spec: EvacuationSpec,
        labels: std::collections::HashMap<String, String>,
        node: &Node,
        deadline: Option<Duration>,
    ) -> Result<EvacuationRecord, Status> {
        let now = SystemTime::now();
        let deadline_at = match deadline {
            None => None,
            Some(deadline) => {
                let at = now.checked_add(deadline);
                Some(at.ok_or_else(|| invalid_field("spec.deadline", "is too long"))?.into())
            }
        };
        let mut items = Vec::new();
        let mut events = vec![format!("created by {who}")];
        if spec.undo {
            if node.cordoned {
                let message = format!("{} is cordoned: uncordon it, then bring back what it had", node.name);
                return Err(ApiError::new(Code::FailedPrecondition, "NODE_CORDONED", message)
                    .precondition("NODE_CORDONED", format!("node/{}", node.name), "is cordoned: uncordon it")
                    .status());
            }
            let Some((last, containers)) = to_bring_back(&self.core, &node.name)? else {
                let message = format!("{} has no evacuation that could be undone", node.name);
                return Err(ApiError::new(Code::FailedPrecondition, "NOTHING_TO_UNDO", message)
                    .with("node", &node.name)
                    .status());
            };
            events.push(format!("undoes {}", last.name));
            items.extend(containers.into_iter().map(|container| EvacuationItem {
                container: container.name,
                state: ItemState::Waiting.into(),
                source_node: container.node,
                ..EvacuationItem::default()
            }));
        }
        let mut evacuation = Evacuation {
            name,
            uid: uuid::Uuid::new_v4().to_string(),
            spec: Some(spec),
            created: Some(now.into()),
            phase: EvacuationPhase::Pending.into(),
            items,
            events,
            requested_by: who.to_string(),
            labels,
            ..Evacuation::default()
        };
        set_condition(&mut evacuation.conditions, "Succeeded", "Unknown", "Pending", "");
        Ok(EvacuationRecord { evacuation, deadline_at, ..EvacuationRecord::default() })
    }

    /// What an evacuation would do now: the same step that drives it, with everything checked and no limit of how many
    /// at once. Items that wait have a target, or say what they wait for.
    async fn plan(&self, mut record: EvacuationRecord) -> Result<Evacuation, Status> {
        record.evacuation.spec.get_or_insert_default().max_parallel = u32::MAX;
        let mut world = look(&self.core, &record, &BTreeMap::new())?;
        // A plan tells what holds now: such a node is not ready.
        world.silent = None;
        let undo = record.evacuation.spec.as_ref().is_some_and(|spec| spec.undo);
        let node = record.node().to_owned();
        let target = if undo { node.as_str() } else { "" };
        let concerned = |name: &str, seen: &Seen| {
            seen.node == node || record.evacuation.items.iter().any(|item| item.container == name)
        };
        let names: Vec<String> = world
            .containers
            .iter()
            .filter(|(name, seen)| concerned(name, seen))
            .map(|(n, _)| n.clone())
            .collect();
        for name in names.into_iter().filter(|name| !world.busy.contains_key(name)) {
            let check = look_into(&self.core, &name, target, false).await;
            world.checks.insert(name, check);
        }
        let spec = record.evacuation.spec.clone();
        step::step(&mut record, &world);
        let e = &mut record.evacuation;
        e.spec = spec;
        for item in &mut e.items {
            if matches!(item.state(), ItemState::Migrating | ItemState::Retrying) {
                item.set_state(ItemState::Waiting);
                item.reason.clear();
            }
            item.migration.clear();
            item.attempts = 0;
            item.retry_at = None;
        }
        e.set_phase(EvacuationPhase::Pending);
        (e.finished, e.reason, e.message) = (None, String::new(), String::new());
        e.conditions.clear();
        e.events.clear();
        Ok(record.evacuation)
    }

    /// No new migrations from now on; those that wait in the queue are cancelled, with `now` those that run, too.
    pub(super) fn stop_evacuating(
        &self,
        who: &Identity,
        name: &str,
        now: bool,
    ) -> Result<Evacuation, Status> {
        let record = self.evacuation(name)?;
        match record.evacuation.phase() {
            EvacuationPhase::Cancelled => return Ok(record.evacuation),
            phase @ (EvacuationPhase::Succeeded | EvacuationPhase::Failed) => {
                return Err(has_ended(name, phase, "cancelled"));
            }
            _ => {}
        }
        let ((), record) = self.core.store.update_evacuation(name, |record| {
            if record.cancelled_by.is_empty() {
                record.cancelled_by = who.to_string();
                record.log(format!("{who} cancels"));
            }
            if now && !record.cancel_now {
                record.cancel_now = true;
                record.log(format!("{who} cancels what runs"));
            }
        })?;
        Ok(record.evacuation)
    }

    /// Pauses or resumes.
    pub(super) fn pause(&self, who: &Identity, name: &str, pause: bool) -> Result<Evacuation, Status> {
        let record = self.evacuation(name)?;
        if record.is_over() {
            let what = if pause { "paused" } else { "resumed" };
            return Err(has_ended(name, record.evacuation.phase(), what));
        }
        let ((), record) = self.core.store.update_evacuation(name, |record| {
            let (phase, line) = match (pause, record.evacuation.phase()) {
                (true, EvacuationPhase::Pending | EvacuationPhase::Running) => {
                    (EvacuationPhase::Paused, format!("{who} pauses"))
                }
                (false, EvacuationPhase::Paused) => (EvacuationPhase::Running, format!("{who} resumes")),
                _ => return,
            };
            record.evacuation.set_phase(phase);
            record.log(line);
        })?;
        Ok(record.evacuation)
    }

    /// Cordons or uncordons a node. Uncordoning brings back what was moved when the last evacuation said so.
    pub(super) fn cordon(&self, who: &Identity, name: &str, cordoned: bool) -> Result<Node, Status> {
        let running = self.core.store.evacuation_of(name).filter(|_| !cordoned);
        if let Some(first) = running
            && !self.evacuation(&first)?.evacuation.spec.is_some_and(|spec| spec.undo)
        {
            let message = format!("{name} is being evacuated by {first}: cancel that first");
            return Err(ApiError::new(Code::FailedPrecondition, "EVACUATION_RUNNING", message)
                .with("evacuation", first)
                .status());
        }
        let was = self.core.cluster.node(name).is_some_and(|node| node.cordoned);
        let node = self.core.cordon(name, cordoned)?.ok_or_else(|| not_found("node", name))?;
        if was && !cordoned {
            self.undo_if_wanted(who, &node)?;
        }
        Ok(node)
    }

    fn undo_if_wanted(&self, who: &Identity, node: &Node) -> Result<(), Status> {
        let Some((last, there)) = to_bring_back(&self.core, &node.name)? else { return Ok(()) };
        let spec = last.spec.unwrap_or_default();
        if !spec.move_back || there.is_empty() {
            return Ok(());
        }
        let undo = EvacuationSpec { undo: true, move_back: false, deadline: None, ..spec };
        let record = self.new_record(who, String::new(), undo, last.labels, node, None)?;
        match self.core.store.create_evacuation(record, None) {
            Ok(made) => tracing::info!(evacuation = made.name, "brings back what {} moved", last.name),
            // The node is uncordoned all the same.
            Err(error) => tracing::warn!(error = %error, "cannot bring back what {} moved", last.name),
        }
        Ok(())
    }
}

fn check_spec(spec: &EvacuationSpec) -> Result<Option<Duration>, Status> {
    check_name(&spec.node).map_err(|e| invalid_field("spec.node", e.to_string()))?;
    if !spec.policy.is_empty() {
        check_name(&spec.policy).map_err(|e| invalid_field("spec.policy", e.to_string()))?;
    }
    if spec.max_parallel > MAX_PARALLEL {
        let why = format!("{} is more than {MAX_PARALLEL}", spec.max_parallel);
        return Err(invalid_field("spec.max_parallel", why).status());
    }
    if spec.undo && spec.move_back {
        return Err(invalid_field("spec.move_back", "cannot go with undo").status());
    }
    let deadline = spec.deadline.map(Duration::try_from).transpose();
    match deadline.map_err(|_| invalid_field("spec.deadline", "is negative or no duration"))? {
        Some(deadline) if deadline.is_zero() => Err(invalid_field("spec.deadline", "is zero").status()),
        deadline => Ok(deadline),
    }
}

/// ABORTED: the node has an evacuation that is not over.
fn running(node: &str, evacuation: &str) -> Status {
    let message = format!("{node} is being evacuated by {evacuation}");
    ApiError::new(Code::Aborted, "EVACUATION_RUNNING", message)
        .with("evacuation", evacuation)
        .with("node", node)
        .status()
}

fn has_ended(name: &str, phase: EvacuationPhase, what: &str) -> Status {
    let stands = camel(phase.as_str_name().trim_start_matches("EVACUATION_PHASE_"));
    let message = format!("{name} cannot be {what}: it is {stands}");
    ApiError::new(Code::FailedPrecondition, "EVACUATION_ENDED", message)
        .with("evacuation", name)
        .with("phase", phase.as_str_name())
        .status()
}
