//! Kubernetes-like objects: apiVersion, kind, metadata, spec, status.

use std::collections::BTreeMap;
use std::collections::HashMap;

use proto::v1::{
    CheckMoveResponse, Condition, Container, ContainerState, Downtime, InventoryItem, Migration, Node,
    NodeState, Phase, Refusal, Round,
};
use serde_json::{Map, Value, json};

use super::{policy, prediction, units};

/// Version of the objects.
pub(crate) const API_VERSION: &str = "gantry.dev/v1alpha1";

/// Name of a phase.
pub(crate) fn phase(phase: Phase) -> &'static str {
    match phase {
        Phase::Unspecified => "Unspecified",
        Phase::Pending => "Pending",
        Phase::Checking => "Checking",
        Phase::Preparing => "Preparing",
        Phase::PreCopy => "PreCopy",
        Phase::Switchover => "Switchover",
        Phase::Completing => "Completing",
        Phase::Succeeded => "Succeeded",
        Phase::Failed => "Failed",
        Phase::Cancelled => "Cancelled",
        Phase::OutcomeUnknown => "OutcomeUnknown",
    }
}

/// Name of a container's state.
pub(crate) fn container_state(state: ContainerState) -> &'static str {
    match state {
        ContainerState::Unspecified => "Unknown",
        ContainerState::Running => "Running",
        ContainerState::Stopped => "Stopped",
        ContainerState::Migrating => "Migrating",
        ContainerState::Incoming => "Incoming",
        ContainerState::Frozen => "Frozen",
    }
}

/// Name of a node's state.
pub(crate) fn node_state(state: NodeState) -> &'static str {
    match state {
        NodeState::Ready => "Ready",
        NodeState::NotReady => "NotReady",
        NodeState::Unknown | NodeState::Unspecified => "Unknown",
    }
}

/// An object without its absent fields: null and empty strings.
pub(crate) fn prune(fields: Value) -> Value {
    match fields {
        Value::Object(map) => Value::Object(
            map.into_iter()
                // A label may well be empty.
                .map(|(key, value)| match key.as_str() {
                    "labels" | "matchLabels" | "nodeSelector" => (key, value),
                    _ => (key, prune(value)),
                })
                .filter(|(_, value)| !value.is_null() && value.as_str() != Some(""))
                .collect::<Map<_, _>>(),
        ),
        Value::Array(items) => Value::Array(items.into_iter().map(prune).collect()),
        other => other,
    }
}

/// Milliseconds and rates need no more digits than these.
pub(crate) fn rounded(value: f64) -> f64 {
    (value * 1e4).round() / 1e4
}

/// Labels in order; null when there is none.
pub(crate) fn sorted(labels: &HashMap<String, String>) -> Value {
    if labels.is_empty() { Value::Null } else { json!(labels.iter().collect::<BTreeMap<_, _>>()) }
}

/// A node.
pub(crate) fn node(node: &Node) -> Value {
    let facts = node.facts.as_ref().map(|f| {
        json!({
            "kernelRelease": f.kernel_release, "tracker": f.tracker, "cgroup": f.cgroup, "arch": f.arch,
            "memoryTotalBytes": f.memory_total, "memoryFreeBytes": f.memory_free, "xsaveSize": f.xsave_size,
            "xcr0": f.xcr0, "vdsoHash": format!("{:016x}", f.vdso_hash), "agentVersion": f.version,
            "peerProtocolVersions": f.peer_protocol_versions, "cgroupControllers": f.cgroup_controllers,
        })
    });
    prune(json!({
        "apiVersion": API_VERSION,
        "kind": "Node",
        "metadata": {"name": node.name, "labels": sorted(&node.labels)},
        "spec": {"cordoned": node.cordoned},
        "status": {
            "state": node_state(node.state()),
            "conditions": [{"type": "Ready", "status": if node.state() == NodeState::Ready { "True" } else { "False" }}],
            "agentAddress": node.agent_address,
            "peerAddress": node.peer_address,
            "lastHeartbeat": node.last_heartbeat.as_ref().and_then(units::rfc3339),
            "containers": node.containers,
            "facts": facts,
        },
    }))
}

/// A container.
pub(crate) fn container(container: &Container) -> Value {
    prune(json!({
        "apiVersion": API_VERSION,
        "kind": "Container",
        "metadata": {
            "name": container.name,
            "labels": sorted(&container.labels),
            "creationTimestamp": container.created.as_ref().and_then(units::rfc3339),
        },
        "spec": {"bundle": container.bundle, "ip": container.ip, "mac": container.mac},
        "status": {
            "state": container_state(container.state()),
            "node": container.node,
            "pid": (container.pid != 0).then_some(container.pid),
            "memoryBytes": container.memory_bytes,
            "epoch": container.epoch,
            "exitStatus": container.exit_status,
        },
    }))
}

/// A pre-copy round.
pub(crate) fn round(round: &Round) -> Value {
    prune(json!({
        "index": round.index, "pages": round.pages, "zeroPages": round.zero_pages, "bytes": round.bytes,
        "seconds": rounded(round.seconds),
        "dirtyBytesPerSecond": round.dirty_bytes_per_second.round(),
        "transferBytesPerSecond": round.transfer_bytes_per_second.round(),
        "predictedPauseMs": rounded(round.predicted_pause_ms),
        "decision": round.decision, "reason": round.reason,
    }))
}

/// The parts of a downtime, in the order in which they happen: name and milliseconds.
pub(crate) fn downtime_parts(d: &Downtime) -> [(&'static str, f64); 7] {
    [
        ("freeze", d.freeze_ms),
        ("last-pages", d.last_pages_ms),
        ("capture", d.capture_ms),
        ("wire", d.wire_ms),
        ("restore", d.restore_ms),
        ("commit", d.commit_ms),
        ("network", d.network_ms),
    ]
}

/// A downtime, with the names of the resources.
fn downtime(d: &Downtime) -> Value {
    json!({
        "totalMs": rounded(d.total_ms), "freezeMs": rounded(d.freeze_ms), "lastPagesMs": rounded(d.last_pages_ms),
        "captureMs": rounded(d.capture_ms), "restoreMs": rounded(d.restore_ms), "commitMs": rounded(d.commit_ms),
        "networkMs": rounded(d.network_ms), "wireMs": rounded(d.wire_ms),
        "firstPacketMs": d.first_packet_ms.map(rounded),
        "steps": d.steps.iter().map(|step| json!({"name": step.name, "ms": rounded(step.ms)})).collect::<Vec<_>>(),
    })
}

/// One thing that cannot move.
pub(crate) fn refusal(r: &Refusal) -> Value {
    prune(json!({
        "pid": (r.pid != 0).then_some(r.pid), "subject": r.subject, "reason": r.reason, "wayOut": r.way_out,
    }))
}

/// Conditions.
pub(crate) fn conditions(conditions: &[Condition]) -> Vec<Value> {
    let one = |c: &Condition| {
        json!({
            "type": c.r#type, "status": c.status, "reason": c.reason, "message": c.message,
            "lastTransitionTime": c.last_transition_time.as_ref().and_then(units::rfc3339),
        })
    };
    conditions.iter().map(one).collect()
}

/// A migration.
pub(crate) fn migration(m: &Migration) -> Value {
    let given = m.spec.clone().unwrap_or_default();
    let mut spec = given.policy.as_ref().map(policy::limits).unwrap_or_default();
    spec.insert("container".into(), json!(given.container));
    spec.insert("targetNode".into(), json!(given.target_node));
    spec.insert("nodeSelector".into(), sorted(&given.node_selector));
    spec.insert("background".into(), json!(given.background.then_some(true)));
    spec.insert("policy".into(), json!(given.policy_name));
    prune(json!({
        "apiVersion": API_VERSION,
        "kind": "Migration",
        "metadata": {
            "name": m.name, "uid": m.uid, "resourceVersion": m.revision.to_string(),
            "labels": sorted(&m.labels),
            "creationTimestamp": m.created.as_ref().and_then(units::rfc3339),
        },
        "spec": spec,
        "status": {
            "phase": phase(m.phase()),
            "sourceNode": m.source_node,
            "targetNode": m.target_node,
            "epoch": m.epoch,
            "reason": m.reason,
            "message": m.message,
            "conditions": conditions(&m.conditions),
            "rounds": m.rounds.iter().map(round).collect::<Vec<_>>(),
            "downtime": m.downtime.as_ref().map(downtime),
            "bytesSent": m.bytes_sent,
            "remainingBytes": m.remaining_bytes,
            "totalSeconds": rounded(m.total_seconds),
            "refusals": m.refusals.iter().map(refusal).collect::<Vec<_>>(),
            "events": m.events,
            "finishTime": m.finished.as_ref().and_then(units::rfc3339),
            "requestedBy": m.requested_by,
            "evacuation": m.evacuation,
            "predicted": m.predicted.as_ref().map(prediction::value),
            "effectivePolicy": m.effective_policy.as_ref().map(policy::effective),
        },
    }))
}

/// One thing that a container has.
fn item(item: &InventoryItem) -> Value {
    json!({
        "kind": item.kind, "pid": item.pid, "subject": item.subject, "what": item.what, "movable": item.movable,
        "reason": item.reason, "wayOut": item.way_out,
    })
}

/// The verdict on moving a container.
pub(crate) fn verdict(container: &str, answer: &CheckMoveResponse) -> Value {
    let found = answer.container.clone().unwrap_or_default();
    let candidates: Vec<_> = answer
        .candidates
        .iter()
        .map(|c| {
            json!({
                "node": c.node, "fits": c.fits, "reasons": c.reasons,
                "prediction": c.prediction.as_ref().map(prediction::value), "notPredicted": c.not_predicted,
            })
        })
        .collect();
    prune(json!({
        "apiVersion": API_VERSION,
        "kind": "Check",
        "metadata": {"name": container},
        "status": {
            "movable": found.refusals.is_empty(),
            "refusals": found.refusals.iter().map(refusal).collect::<Vec<_>>(),
            "residentBytes": found.resident_bytes, "processes": found.processes, "threads": found.threads,
            "descriptors": found.descriptors, "connections": found.connections,
            "inventory": found.items.iter().map(item).collect::<Vec<_>>(), "inventoryLeftOut": found.items_left_out,
            "candidates": candidates,
        },
    }))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proto::v1::{MigrationSpec, OnTimeout, Policy};

    use super::*;

    #[test]
    fn a_migration_has_the_documented_form() {
        let migration = Migration {
            name: "web-1".into(),
            revision: 9,
            spec: Some(MigrationSpec {
                container: "web".into(),
                target_node: "node-b".into(),
                policy: Some(Policy {
                    max_downtime: Some(units::to_proto(Duration::from_millis(50))),
                    on_timeout: OnTimeout::Abort.into(),
                    ..Policy::default()
                }),
                ..MigrationSpec::default()
            }),
            phase: Phase::Succeeded.into(),
            source_node: "node-a".into(),
            epoch: 7,
            conditions: vec![Condition {
                r#type: "Succeeded".into(),
                status: "True".into(),
                reason: "Committed".into(),
                ..Condition::default()
            }],
            rounds: vec![Round {
                index: 1,
                pages: 2,
                bytes: 8192,
                decision: "Cut".into(),
                ..Round::default()
            }],
            downtime: Some(Downtime { total_ms: 8.4, freeze_ms: 0.6, ..Downtime::default() }),
            bytes_sent: 8192,
            ..Migration::default()
        };
        let object = super::migration(&migration);
        assert_eq!(object["apiVersion"], "gantry.dev/v1alpha1");
        assert_eq!(object["kind"], "Migration");
        assert_eq!(object["metadata"], json!({"name": "web-1", "resourceVersion": "9"}));
        assert_eq!(
            object["spec"],
            json!({"container": "web", "targetNode": "node-b", "maxDowntime": "50ms", "onTimeout": "Abort"})
        );
        let status = &object["status"];
        assert_eq!((&status["phase"], &status["epoch"]), (&json!("Succeeded"), &json!(7)));
        assert_eq!(
            status["conditions"][0],
            json!({"type": "Succeeded", "status": "True", "reason": "Committed"})
        );
        assert_eq!(status["rounds"][0]["decision"], "Cut");
        assert_eq!(status["downtime"]["totalMs"], 8.4);
        assert_eq!(status["bytesSent"], 8192);
        // The same object as YAML, keys in the order of Kubernetes.
        let yaml = serde_saphyr::to_string(&object).unwrap();
        assert!(
            yaml.starts_with("apiVersion: gantry.dev/v1alpha1\nkind: Migration\nmetadata:\n  name: web-1\n"),
            "{yaml}"
        );
    }

    #[test]
    fn absent_fields_are_left_out() {
        let object = container(&Container { name: "web".into(), ..Container::default() });
        assert_eq!(object["spec"], json!({}));
        assert!(object["status"].get("pid").is_none());
        let object = node(&Node { name: "node-a".into(), state: NodeState::Ready.into(), ..Node::default() });
        assert_eq!(object["status"]["conditions"][0]["status"], "True");
    }
}
