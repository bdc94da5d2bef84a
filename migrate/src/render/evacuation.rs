//! Evacuations.

use proto::v1::{Evacuation, EvacuationItem, EvacuationPhase, ItemState};
use serde_json::{Value, json};

use super::describe::{fields, labels, refusal as refusal_text, section};
use super::resource::{API_VERSION, conditions, prune, refusal, sorted};
use super::table::{Table, dash};
use super::{describe, units};

/// Name of a phase.
pub(crate) fn phase(phase: EvacuationPhase) -> &'static str {
    match phase {
        EvacuationPhase::Unspecified => "Unspecified",
        EvacuationPhase::Pending => "Pending",
        EvacuationPhase::Running => "Running",
        EvacuationPhase::Paused => "Paused",
        EvacuationPhase::Succeeded => "Succeeded",
        EvacuationPhase::Failed => "Failed",
        EvacuationPhase::Cancelled => "Cancelled",
    }
}

/// Name of an item's state.
pub(crate) fn state(state: ItemState) -> &'static str {
    match state {
        ItemState::Unspecified => "Unspecified",
        ItemState::Waiting => "Waiting",
        ItemState::Migrating => "Migrating",
        ItemState::Moved => "Moved",
        ItemState::Retrying => "Retrying",
        ItemState::Stays => "Stays",
        ItemState::Gone => "Gone",
    }
}

fn item(item: &EvacuationItem) -> Value {
    json!({
        "container": item.container, "state": state(item.state()), "sourceNode": item.source_node,
        "targetNode": item.target_node, "migration": item.migration, "reason": item.reason,
        "message": item.message, "attempts": item.attempts,
        "refusals": item.refusals.iter().map(refusal).collect::<Vec<_>>(),
        "retryTime": item.retry_at.as_ref().and_then(units::rfc3339),
    })
}

/// An evacuation.
pub(crate) fn object(e: &Evacuation) -> Value {
    let spec = e.spec.clone().unwrap_or_default();
    prune(json!({
        "apiVersion": API_VERSION,
        "kind": "Evacuation",
        "metadata": {
            "name": e.name, "uid": e.uid, "resourceVersion": e.revision.to_string(),
            "labels": sorted(&e.labels),
            "creationTimestamp": e.created.as_ref().and_then(units::rfc3339),
        },
        "spec": {
            "node": spec.node,
            "deadline": spec.deadline.as_ref().and_then(units::duration),
            "maxParallel": (spec.max_parallel > 0).then_some(spec.max_parallel),
            "policy": spec.policy,
            "moveBack": spec.move_back.then_some(true),
            "undo": spec.undo.then_some(true),
        },
        "status": {
            "phase": phase(e.phase()),
            "reason": e.reason,
            "message": e.message,
            "conditions": conditions(&e.conditions),
            "items": e.items.iter().map(item).collect::<Vec<_>>(),
            "events": e.events,
            "finishTime": e.finished.as_ref().and_then(units::rfc3339),
            "requestedBy": e.requested_by,
        },
    }))
}

/// How many items are in a state.
fn count(e: &Evacuation, states: &[ItemState]) -> String {
    e.items.iter().filter(|item| states.contains(&item.state())).count().to_string()
}

/// Evacuations.
pub(crate) fn table(evacuations: &[Evacuation], wide: bool) -> Table {
    let mut header = vec!["NAME", "NODE", "PHASE", "MOVED", "LEFT", "STAY", "GONE", "AGE"];
    if wide {
        header.extend(["REASON", "POLICY", "BY"]);
    }
    let mut table = Table::new(&header);
    for e in evacuations {
        let spec = e.spec.clone().unwrap_or_default();
        let mut row = vec![
            e.name.clone(),
            spec.node,
            phase(e.phase()).into(),
            count(e, &[ItemState::Moved]),
            count(e, &[ItemState::Waiting, ItemState::Migrating, ItemState::Retrying]),
            count(e, &[ItemState::Stays]),
            count(e, &[ItemState::Gone]),
            dash(&units::age(e.created.as_ref())),
        ];
        if wide {
            row.extend([dash(&e.reason), dash(&spec.policy), dash(&e.requested_by)]);
        }
        table.row(row);
    }
    table
}

/// The items of an evacuation, or of a plan.
pub(crate) fn items(e: &Evacuation) -> Table {
    let mut table = Table::new(&["CONTAINER", "STATE", "TO", "MIGRATION", "TRIES", "WHY"]);
    for item in &e.items {
        let why = match (item.state(), item.message.as_str()) {
            (ItemState::Migrating, _) => item.reason.clone(),
            (_, message) => message.to_owned(),
        };
        table.row(vec![
            item.container.clone(),
            state(item.state()).into(),
            dash(&item.target_node),
            dash(&item.migration),
            item.attempts.to_string(),
            dash(&why),
        ]);
    }
    table
}

/// Everything about an evacuation.
pub(crate) fn describe(e: &Evacuation) -> String {
    let mut out = String::new();
    let spec = e.spec.clone().unwrap_or_default();
    let parallel = if spec.max_parallel == 0 { String::new() } else { spec.max_parallel.to_string() };
    fields(
        &mut out,
        &[
            ("Name", e.name.clone()),
            (if spec.undo { "Back to" } else { "Node" }, spec.node),
            ("Labels", labels(&e.labels)),
            ("Phase", phase(e.phase()).into()),
            ("Reason", e.reason.clone()),
            ("Message", e.message.clone()),
            ("Deadline", spec.deadline.as_ref().and_then(units::duration).unwrap_or_default()),
            ("Max parallel", parallel),
            ("Policy", spec.policy),
            ("Move back", if spec.move_back { "when the node is uncordoned".into() } else { String::new() }),
            ("Requested by", e.requested_by.clone()),
            ("Created", e.created.as_ref().and_then(units::rfc3339).unwrap_or_default()),
            ("Finished", e.finished.as_ref().and_then(units::rfc3339).unwrap_or_default()),
        ],
    );
    if !e.items.is_empty() {
        section(&mut out, "Items", &items(e).render(None));
    }
    section(&mut out, "Conditions", &describe::conditions(&e.conditions));
    let refusals = e.items.iter().flat_map(|item| {
        item.refusals.iter().map(|refusal| format!("{}: {}", item.container, refusal_text(refusal)))
    });
    section(&mut out, "Refusals", &refusals.collect::<Vec<_>>().join("\n"));
    section(&mut out, "Events", &e.events.join("\n"));
    out
}

#[cfg(test)]
mod tests {
    use proto::v1::{EvacuationSpec, Refusal};

    use super::*;

    #[test]
    fn an_evacuation_tells_what_moved_and_what_stays() {
        let refusal =
            Refusal { pid: 3, subject: "fd 7".into(), reason: "io_uring".into(), way_out: "close it".into() };
        let moved = EvacuationItem {
            container: "web".into(),
            state: ItemState::Moved.into(),
            target_node: "node-b".into(),
            migration: "web-1".into(),
            message: "to node-b by web-1".into(),
            attempts: 1,
            ..EvacuationItem::default()
        };
        let stays = EvacuationItem {
            container: "db".into(),
            state: ItemState::Stays.into(),
            reason: "Refused".into(),
            message: "pid 3 fd 7: io_uring (close it)".into(),
            refusals: vec![refusal],
            ..EvacuationItem::default()
        };
        let e = Evacuation {
            name: "drain-node-a-1".into(),
            spec: Some(EvacuationSpec {
                node: "node-a".into(),
                max_parallel: 3,
                ..EvacuationSpec::default()
            }),
            phase: EvacuationPhase::Failed.into(),
            items: vec![moved, stays],
            ..Evacuation::default()
        };
        let object = object(&e);
        assert_eq!(object["spec"], json!({"node": "node-a", "maxParallel": 3}));
        assert_eq!(object["status"]["items"][1]["refusals"][0]["wayOut"], "close it");
        assert_eq!(object["status"]["items"][0]["targetNode"], "node-b");
        let text = items(&e).render(None);
        assert!(text.contains("web        Moved  node-b  web-1      1      to node-b by web-1\n"), "{text}");
        let row = table(std::slice::from_ref(&e), false).render(None);
        assert!(row.contains("drain-node-a-1  node-a  Failed  1      0     1     0     -"), "{row}");
        let text = describe(&e);
        assert!(text.contains("Refusals:\n  db: pid 3 fd 7: io_uring; close it\n"), "{text}");
    }
}
