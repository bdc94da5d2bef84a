//! Columns.

use node_agent::table::Paint;
pub(crate) use node_agent::table::Table;
use proto::v1::{Container, ContainerState, Migration, Node, Phase};

use super::resource;
use super::units;

/// How states are shown.
pub(crate) fn colours(colour: bool) -> Option<Paint> {
    colour.then_some(paint as Paint)
}

/// Colours a state: green for good, red for bad, yellow for unknown or under way.
pub(crate) fn paint(cell: &str) -> String {
    let code = match cell {
        "Ready" | "Running" | "Succeeded" | "Moved" => 32,
        "NotReady" | "Failed" | "OutcomeUnknown" | "Stays" => 31,
        "Unknown" | "Frozen" | "Migrating" | "Incoming" | "Preparing" | "PreCopy" | "Switchover"
        | "Completing" | "Cancelled" | "Paused" | "Retrying" => 33,
        _ => return cell.to_owned(),
    };
    format!("\x1b[{code}m{cell}\x1b[0m")
}

/// A cell that is never empty.
pub(super) fn dash(text: &str) -> String {
    if text.is_empty() { "-".into() } else { text.into() }
}

/// Nodes.
pub(crate) fn nodes(nodes: &[Node], wide: bool) -> Table {
    let mut header = vec!["NAME", "STATE", "CONTAINERS", "MEMORY FREE", "HEARTBEAT"];
    if wide {
        header.extend(["AGENT", "KERNEL", "TRACKER", "CGROUP", "VERSION"]);
    }
    let mut table = Table::new(&header);
    for node in nodes {
        let facts = node.facts.clone().unwrap_or_default();
        let mut state = resource::node_state(node.state()).to_owned();
        if node.cordoned {
            state.push_str(",Cordoned");
        }
        let mut row = vec![
            node.name.clone(),
            state,
            node.containers.to_string(),
            units::bytes(facts.memory_free),
            dash(&units::age(node.last_heartbeat.as_ref())),
        ];
        if wide {
            row.extend([
                node.agent_address.clone(),
                facts.kernel_release,
                facts.tracker,
                facts.cgroup,
                facts.version,
            ]);
        }
        table.row(row);
    }
    table
}

/// Containers.
pub(crate) fn containers(containers: &[Container], wide: bool) -> Table {
    let mut header = vec!["NAME", "NODE", "STATE", "IP", "MEMORY", "AGE"];
    if wide {
        header.extend(["MAC", "PID", "EPOCH", "BUNDLE"]);
    }
    let mut table = Table::new(&header);
    for container in containers {
        let state = match (container.state(), container.exit_status) {
            (ContainerState::Stopped, Some(code)) => format!("Stopped({code})"),
            (state, _) => resource::container_state(state).into(),
        };
        let mut row = vec![
            container.name.clone(),
            dash(&container.node),
            state,
            dash(&container.ip),
            units::bytes(container.memory_bytes),
            dash(&units::age(container.created.as_ref())),
        ];
        if wide {
            row.extend([
                dash(&container.mac),
                container.pid.to_string(),
                container.epoch.to_string(),
                dash(&container.bundle),
            ]);
        }
        table.row(row);
    }
    table
}

/// Migrations.
pub(crate) fn migrations(migrations: &[Migration], wide: bool) -> Table {
    let mut header = vec!["NAME", "CONTAINER", "FROM", "TO", "PHASE", "ROUNDS", "SENT", "DOWNTIME", "AGE"];
    if wide {
        header.extend(["TOTAL", "EPOCH", "REASON", "BY"]);
    }
    let mut table = Table::new(&header);
    for migration in migrations {
        let spec = migration.spec.clone().unwrap_or_default();
        let downtime = migration
            .downtime
            .as_ref()
            .filter(|_| migration.phase() == Phase::Succeeded)
            .map_or_else(String::new, |d| units::ms(d.total_ms));
        let target =
            if migration.target_node.is_empty() { &spec.target_node } else { &migration.target_node };
        let mut row = vec![
            migration.name.clone(),
            spec.container.clone(),
            dash(&migration.source_node),
            dash(target),
            resource::phase(migration.phase()).into(),
            migration.rounds.len().to_string(),
            units::bytes(migration.bytes_sent),
            dash(&downtime),
            dash(&units::age(migration.created.as_ref())),
        ];
        if wide {
            row.extend([
                units::seconds(migration.total_seconds),
                migration.epoch.to_string(),
                dash(&migration.reason),
                dash(&migration.requested_by),
            ]);
        }
        table.row(row);
    }
    table
}

#[cfg(test)]
mod tests {
    use proto::v1::{Downtime, MigrationSpec};

    use super::*;

    #[test]
    fn columns_are_aligned_and_lines_have_no_tail() {
        let mut table = Table::new(&["A", "LONG"]);
        table.row(vec!["wide cell".into(), "x".into()]);
        table.row(vec!["é".into(), String::new()]);
        assert_eq!(table.render(None), "A          LONG\nwide cell  x\né\n");
    }

    #[test]
    fn colours_do_not_shift_columns() {
        let mut table = Table::new(&["STATE", "B"]);
        table.row(vec!["Ready".into(), "1".into()]);
        table.row(vec!["Pending".into(), "2".into()]);
        assert_eq!(table.render(colours(true)), "STATE    B\n\x1b[32mReady\x1b[0m    1\nPending  2\n");
    }

    #[test]
    fn a_migration_row() {
        let migration = Migration {
            name: "web-1".into(),
            spec: Some(MigrationSpec {
                container: "web".into(),
                target_node: "node-b".into(),
                ..Default::default()
            }),
            phase: Phase::Succeeded.into(),
            source_node: "node-a".into(),
            downtime: Some(Downtime { total_ms: 4.25, ..Downtime::default() }),
            bytes_sent: 3 << 20,
            ..Migration::default()
        };
        let text = migrations(std::slice::from_ref(&migration), false).render(None);
        let cells: Vec<_> = text.lines().nth(1).unwrap().split("  ").filter(|c| !c.is_empty()).collect();
        let cells: Vec<_> = cells.iter().map(|c| c.trim()).collect();
        assert_eq!(cells, ["web-1", "web", "node-a", "node-b", "Succeeded", "0", "3.0 MiB", "4.2 ms", "-"]);
        let running = Migration { phase: Phase::PreCopy.into(), ..migration };
        assert!(!migrations(&[running], false).render(None).contains("4.2 ms"));
    }
}
