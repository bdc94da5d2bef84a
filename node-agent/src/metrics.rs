//! What the agent shows to monitoring.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet};
use prometheus_client::registry::Registry;
use proto::metrics::gauges;

use crate::runtime::Runtime;
use crate::session::Migrations;
use crate::session::status::Role;

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, EncodeLabelSet)]
struct StateLabels {
    state: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, EncodeLabelSet)]
struct SessionLabels {
    role: &'static str,
    phase: &'static str,
}

/// A registry with everything that this agent counts.
#[must_use]
pub fn registry(runtime: Arc<Runtime>, migrations: Migrations) -> Registry {
    let mut registry = proto::metrics::registry(env!("CARGO_PKG_VERSION"));
    migrations.metrics().register(&mut registry);
    registry.register_collector(Box::new(Now { runtime, migrations }));
    registry
}

/// What is looked up whenever somebody asks.
#[derive(Debug)]
struct Now {
    runtime: Arc<Runtime>,
    migrations: Migrations,
}

impl Collector for Now {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let mut containers: BTreeMap<StateLabels, i64> = BTreeMap::new();
        for container in self.runtime.list().unwrap_or_default() {
            let labels = StateLabels { state: container.state.name() };
            *containers.entry(labels).or_default() += 1;
        }
        gauges(&mut encoder, "containers", "Containers on this node", containers)?;
        let mut sessions: BTreeMap<SessionLabels, i64> = BTreeMap::new();
        for status in self.migrations.list().into_iter().filter(|status| !status.phase.is_terminal()) {
            let role = if status.role == Role::Source { "source" } else { "target" };
            *sessions.entry(SessionLabels { role, phase: status.phase.name() }).or_default() += 1;
        }
        gauges(&mut encoder, "sessions", "Migrations that are under way on this node", sessions)
    }
}
