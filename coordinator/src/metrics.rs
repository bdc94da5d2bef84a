//! What the coordinator shows to monitoring.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};
use proto::metrics::gauges;
use proto::v1::{Migration, NodeState, Phase};

use crate::core::Core;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EndLabels {
    result: String,
    reason: String,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, EncodeLabelSet)]
struct PhaseLabels {
    phase: String,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, EncodeLabelSet)]
struct NodeLabels {
    node: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CallLabels {
    method: String,
    code: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct MethodLabels {
    method: String,
}

/// Counters of this run of the coordinator.
#[derive(Clone, Debug)]
pub(crate) struct Metrics {
    ends: Family<EndLabels, Counter>,
    downtime: Histogram,
    total: Histogram,
    rounds: Histogram,
    bytes: Counter,
    calls: Family<CallLabels, Counter>,
    answers: Family<MethodLabels, Histogram, fn() -> Histogram>,
    /// Connections that ended in their handshake.
    pub(crate) refused: Counter,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            ends: Family::default(),
            // From a millisecond to half a minute, from a tenth of a second to an hour and a half.
            downtime: Histogram::new(exponential_buckets(0.001, 2.0, 16)),
            total: Histogram::new(exponential_buckets(0.1, 2.0, 16)),
            rounds: Histogram::new([1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0]),
            bytes: Counter::default(),
            calls: Family::default(),
            refused: Counter::default(),
            answers: Family::new_with_constructor(|| Histogram::new(exponential_buckets(0.0005, 2.0, 16))),
        }
    }
}

/// The name of a phase in labels: `PHASE_PRE_COPY` is `pre_copy`.
fn name(phase: Phase) -> String {
    let text = phase.as_str_name();
    text.strip_prefix("PHASE_").unwrap_or(text).to_ascii_lowercase()
}

impl Metrics {
    /// A registry with everything.
    pub(crate) fn registry(core: &Arc<Core>) -> Registry {
        let metrics = &core.metrics;
        let mut registry = proto::metrics::registry(env!("CARGO_PKG_VERSION"));
        registry.register("migrations", "Migrations that ended", metrics.ends.clone());
        let downtime = "How long containers that moved stood still";
        registry.register_with_unit("migration_downtime", downtime, Unit::Seconds, metrics.downtime.clone());
        let total = "How long migrations took that moved their container, from the agent's order on";
        registry.register_with_unit("migration_total", total, Unit::Seconds, metrics.total.clone());
        registry.register("migration_rounds", "Rounds before the freeze", metrics.rounds.clone());
        registry.register("migration_bytes", "Bytes that migrations sent", metrics.bytes.clone());
        registry.register("api_requests", "Calls of the API that were answered", metrics.calls.clone());
        let answers = "Time until the answer to a call of the API, or the first part of it";
        registry.register_with_unit("api_request", answers, Unit::Seconds, metrics.answers.clone());
        let refused =
            "Connections that were refused: no handshake in time, no certificate, or one that is not taken";
        registry.register("connections_refused", refused, metrics.refused.clone());
        registry.register_collector(Box::new(Now(Arc::clone(core))));
        registry
    }

    /// A migration has ended.
    pub(crate) fn ended(&self, m: &Migration) {
        let labels = EndLabels { result: name(m.phase()), reason: m.reason.clone() };
        self.ends.get_or_create(&labels).inc();
        self.bytes.inc_by(m.bytes_sent);
        if m.phase() != Phase::Succeeded {
            return;
        }
        if let Some(downtime) = &m.downtime {
            self.downtime.observe(downtime.total_ms / 1e3);
        }
        self.total.observe(m.total_seconds);
        #[expect(clippy::cast_precision_loss, reason = "a number of rounds")]
        self.rounds.observe(m.rounds.len() as f64);
    }

    /// A call was answered: `Coordinator/GetNode`, `NotFound`.
    pub(crate) fn answered(&self, method: &str, code: tonic::Code, took: Duration) {
        let method = method.to_owned();
        self.answers.get_or_create(&MethodLabels { method: method.clone() }).observe(took.as_secs_f64());
        self.calls.get_or_create(&CallLabels { method, code: format!("{code:?}") }).inc();
    }
}

/// What is looked up whenever somebody asks.
#[derive(Debug)]
struct Now(Arc<Core>);

impl Collector for Now {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let mut phases: BTreeMap<PhaseLabels, i64> = BTreeMap::new();
        let mut unknown = 0;
        // A store that fails is in the log; the metrics that are left say more than none.
        for record in self.0.store.active().unwrap_or_default() {
            let phase = record.migration.phase();
            *phases.entry(PhaseLabels { phase: name(phase) }).or_default() += 1;
            unknown += i64::from(phase == Phase::OutcomeUnknown);
        }
        let help = "Migrations that are not over, by phase";
        gauges(&mut encoder, "migrations_in_phase", help, phases)?;
        let gauge = Gauge::<i64>::default();
        gauge.set(unknown);
        let help =
            "Migrations of which nobody reachable can tell how they ended: an operator must resolve them";
        gauge.encode(encoder.encode_descriptor("outcome_unknown", help, None, gauge.metric_type())?)?;
        let nodes = self.0.cluster.nodes();
        let by_name = |of: &dyn Fn(&proto::v1::Node) -> bool| {
            nodes.iter().map(|n| (NodeLabels { node: n.name.clone() }, i64::from(of(n)))).collect::<Vec<_>>()
        };
        let up = by_name(&|node| node.state() == NodeState::Ready);
        gauges(&mut encoder, "node_up", "1 while a node's agent sends heartbeats", up)?;
        let cordoned = by_name(&|node| node.cordoned);
        gauges(&mut encoder, "node_cordoned", "1 while nothing is placed on a node", cordoned)
    }
}
