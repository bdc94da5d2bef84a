//! `describe`: everything about one object, for people.

use std::fmt::Write as _;

use proto::v1::{Condition, Container, Downtime, Migration, Node};

use super::resource;
use super::table::Table;
use super::units;
use super::{policy, prediction};

/// Lines `Name:  value`; empty values are left out.
pub(super) fn fields(out: &mut String, fields: &[(&str, String)]) {
    for (name, value) in fields.iter().filter(|(_, value)| !value.is_empty()) {
        // Writing to a String does not fail.
        let _ = writeln!(out, "{:<14}{value}", format!("{name}:"));
    }
}

/// A title and indented lines; nothing without a body.
pub(super) fn section(out: &mut String, title: &str, body: &str) {
    if !body.is_empty() {
        let _ = writeln!(out, "{title}:");
        for line in body.lines() {
            let _ = writeln!(out, "  {line}");
        }
    }
}

/// `a=b,c=d`, in order.
pub(super) fn labels(labels: &std::collections::HashMap<String, String>) -> String {
    let mut all: Vec<_> = labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    all.sort();
    all.join(",")
}

/// `total 8.4 ms (freeze 0.6, ...)`.
pub(crate) fn downtime(d: &Downtime) -> String {
    let parts: Vec<_> =
        resource::downtime_parts(d).iter().map(|(name, ms)| format!("{name} {ms:.1}")).collect();
    let first = d.first_packet_ms.map(|ms| format!("; first packet {ms:.1} ms after it"));
    format!("{} ({}){}", units::ms(d.total_ms), parts.join(", "), first.unwrap_or_default())
}

/// The steps of the pause as a table.
fn pause(downtime: &Downtime) -> String {
    if downtime.steps.is_empty() {
        return String::new();
    }
    let mut table = Table::new(&["STEP", "TIME"]);
    for step in &downtime.steps {
        table.row(vec![step.name.clone(), format!("{:.3} ms", step.ms)]);
    }
    table.render(None)
}

/// The rounds as a table.
pub(crate) fn rounds(migration: &Migration) -> String {
    if migration.rounds.is_empty() {
        return String::new();
    }
    let mut table = Table::new(&[
        "ROUND",
        "PAGES",
        "ZERO",
        "SENT",
        "TIME",
        "DIRTY",
        "TRANSFER",
        "PREDICTED PAUSE",
        "DECISION",
    ]);
    for round in &migration.rounds {
        table.row(vec![
            round.index.to_string(),
            round.pages.to_string(),
            round.zero_pages.to_string(),
            units::bytes(round.bytes),
            units::seconds(round.seconds),
            units::rate(round.dirty_bytes_per_second),
            units::rate(round.transfer_bytes_per_second),
            units::ms(round.predicted_pause_ms),
            if round.reason.is_empty() {
                round.decision.clone()
            } else {
                format!("{} ({})", round.decision, round.reason)
            },
        ]);
    }
    table.render(None)
}

/// A migration.
pub(crate) fn migration(m: &Migration) -> String {
    let mut out = String::new();
    let spec = m.spec.clone().unwrap_or_default();
    fields(
        &mut out,
        &[
            ("Name", m.name.clone()),
            ("Container", spec.container),
            ("From", m.source_node.clone()),
            ("To", if m.target_node.is_empty() { spec.target_node } else { m.target_node.clone() }),
            ("Phase", resource::phase(m.phase()).into()),
            ("Reason", m.reason.clone()),
            ("Message", m.message.clone()),
            ("Epoch", m.epoch.to_string()),
            ("Labels", labels(&m.labels)),
            ("Policy", spec.policy_name),
            ("Evacuation", m.evacuation.clone()),
            ("Requested by", m.requested_by.clone()),
            ("Created", m.created.as_ref().and_then(units::rfc3339).unwrap_or_default()),
            ("Finished", m.finished.as_ref().and_then(units::rfc3339).unwrap_or_default()),
            ("Total", units::seconds(m.total_seconds)),
            ("Sent", units::bytes(m.bytes_sent)),
            ("Downtime", m.downtime.as_ref().map(downtime).unwrap_or_default()),
        ],
    );
    section(&mut out, "Rounds", &rounds(m));
    section(&mut out, "Prediction", &prediction::beside(m));
    section(&mut out, "Pause", &m.downtime.as_ref().map(pause).unwrap_or_default());
    section(
        &mut out,
        "Limits",
        &m.effective_policy.as_ref().map(policy::effective_table).unwrap_or_default(),
    );
    section(&mut out, "Conditions", &conditions(&m.conditions));
    section(&mut out, "Refusals", &m.refusals.iter().map(refusal).collect::<Vec<_>>().join("\n"));
    section(&mut out, "Events", &m.events.join("\n"));
    out
}

/// Conditions as a table.
pub(super) fn conditions(conditions: &[Condition]) -> String {
    if conditions.is_empty() {
        return String::new();
    }
    let mut table = Table::new(&["TYPE", "STATUS", "REASON", "SINCE", "MESSAGE"]);
    for c in conditions {
        let since = c.last_transition_time.as_ref().and_then(units::rfc3339).unwrap_or_default();
        table.row(vec![c.r#type.clone(), c.status.clone(), c.reason.clone(), since, c.message.clone()]);
    }
    table.render(None)
}

/// One line on something that cannot move.
pub(crate) fn refusal(r: &proto::v1::Refusal) -> String {
    let place = if r.pid == 0 { r.subject.clone() } else { format!("pid {} {}", r.pid, r.subject) };
    if r.way_out.is_empty() {
        format!("{place}: {}", r.reason)
    } else {
        format!("{place}: {}; {}", r.reason, r.way_out)
    }
}

/// A node.
pub(crate) fn node(node: &Node) -> String {
    let mut out = String::new();
    let facts = node.facts.clone().unwrap_or_default();
    fields(
        &mut out,
        &[
            ("Name", node.name.clone()),
            ("State", resource::node_state(node.state()).into()),
            ("Cordoned", node.cordoned.to_string()),
            ("Labels", labels(&node.labels)),
            ("Agent", node.agent_address.clone()),
            ("Peer address", node.peer_address.clone()),
            ("Heartbeat", node.last_heartbeat.as_ref().and_then(units::rfc3339).unwrap_or_default()),
            ("Containers", node.containers.to_string()),
            ("Kernel", format!("{} {}", facts.kernel_release, facts.arch)),
            ("Tracker", facts.tracker),
            ("Cgroups", facts.cgroup),
            (
                "Memory",
                format!("{} free of {}", units::bytes(facts.memory_free), units::bytes(facts.memory_total)),
            ),
            ("xsave", format!("{} bytes, xcr0 {:#x}", facts.xsave_size, facts.xcr0)),
            ("vDSO", format!("{:016x}", facts.vdso_hash)),
            ("Version", facts.version),
        ],
    );
    out
}

/// A container.
pub(crate) fn container(c: &Container) -> String {
    let mut out = String::new();
    fields(
        &mut out,
        &[
            ("Name", c.name.clone()),
            ("Node", c.node.clone()),
            ("State", resource::container_state(c.state()).into()),
            ("Exit status", c.exit_status.map(|code| code.to_string()).unwrap_or_default()),
            ("Pid", if c.pid == 0 { String::new() } else { c.pid.to_string() }),
            ("IP", c.ip.clone()),
            ("MAC", c.mac.clone()),
            ("Labels", labels(&c.labels)),
            ("Memory", units::bytes(c.memory_bytes)),
            ("Epoch", c.epoch.to_string()),
            ("Created", c.created.as_ref().and_then(units::rfc3339).unwrap_or_default()),
            ("Bundle", c.bundle.clone()),
        ],
    );
    out
}

#[cfg(test)]
mod tests {
    use proto::v1::{DowntimeStep, Refusal, Round};

    use super::*;

    #[test]
    fn a_description_tells_why_and_where_the_time_went() {
        let m = Migration {
            name: "web-1".into(),
            rounds: vec![Round {
                index: 1,
                decision: "Cut".into(),
                reason: "pause below limit".into(),
                ..Round::default()
            }],
            downtime: Some(Downtime {
                total_ms: 4.0,
                restore_ms: 2.5,
                steps: vec![DowntimeStep { name: "freeze.stop".into(), ms: 0.25 }],
                ..Downtime::default()
            }),
            events: vec!["cut after round 1".into()],
            refusals: vec![Refusal {
                pid: 7,
                subject: "fd 3".into(),
                reason: "io_uring".into(),
                way_out: "close it".into(),
            }],
            ..Migration::default()
        };
        let text = migration(&m);
        assert!(
            text.contains(
                "Downtime:     4.0 ms (freeze 0.0, last-pages 0.0, capture 0.0, wire 0.0, restore 2.5"
            ),
            "{text}"
        );
        assert!(text.contains("Pause:\n  STEP         TIME\n  freeze.stop  0.250 ms"), "{text}");
        assert!(text.contains("Cut (pause below limit)"), "{text}");
        assert!(text.contains("Events:\n  cut after round 1"), "{text}");
        assert!(text.contains("Refusals:\n  pid 7 fd 3: io_uring; close it"), "{text}");
        assert!(!text.contains("Message:"), "{text}");
    }
}
