//! What sessions count. One place sees every change of a published state: `Metrics::changed`.

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use super::status::{Phase, Role, Status};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PhaseLabels {
    role: &'static str,
    phase: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EndLabels {
    role: &'static str,
    result: &'static str,
    reason: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabels {
    kind: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ContainerLabels {
    container: String,
}

/// Counters of all sessions of this run of the agent.
#[derive(Clone, Debug)]
pub struct Metrics {
    phases: Family<PhaseLabels, Histogram, fn() -> Histogram>,
    ends: Family<EndLabels, Counter>,
    bytes: Family<KindLabels, Counter>,
    dirty: Family<ContainerLabels, Gauge<f64, std::sync::atomic::AtomicU64>>,
    rounds: Histogram,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            // From a pause of a millisecond to a pre-copy of an hour.
            phases: Family::new_with_constructor(|| Histogram::new(exponential_buckets(0.001, 2.0, 22))),
            ends: Family::default(),
            bytes: Family::default(),
            dirty: Family::default(),
            rounds: Histogram::new([1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0]),
        }
    }
}

/// The part of a state whose changes are counted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen {
    phase: Phase,
    bytes: u64,
    rounds: usize,
}

impl Seen {
    pub(super) fn of(status: &Status) -> Self {
        Self { phase: status.phase, bytes: status.bytes, rounds: status.rounds.len() }
    }

    /// Whether `status` is in another phase.
    pub(super) fn left(&self, status: &Status) -> bool {
        self.phase != status.phase
    }
}

impl Metrics {
    /// Shows them in a registry.
    pub fn register(&self, registry: &mut Registry) {
        let seconds = "Time that sessions spent in a phase";
        registry.register_with_unit("migration_phase", seconds, Unit::Seconds, self.phases.clone());
        registry.register("agent_migrations", "Sessions that ended", self.ends.clone());
        registry.register(
            "migration_bytes",
            "Bytes of pages, files and frame headers that went to other agents (sent) or came from them (received)",
            self.bytes.clone(),
        );
        registry.register(
            "migration_dirty_bytes_per_second",
            "How fast a container that is leaving dirtied memory in the last round",
            self.dirty.clone(),
        );
        registry.register("migration_rounds", "Rounds before the freeze", self.rounds.clone());
    }

    /// A state has changed; `stayed` is how long it was in the phase of `before`.
    pub(super) fn changed(&self, before: Seen, now: &Status, stayed: Duration) {
        let role = match now.role {
            Role::Source => "source",
            Role::Target => "target",
        };
        if let Some(more) = now.bytes.checked_sub(before.bytes).filter(|more| *more > 0) {
            let kind = if now.role == Role::Source { "sent" } else { "received" };
            self.bytes.get_or_create(&KindLabels { kind }).inc_by(more);
        }
        let container = || ContainerLabels { container: now.container.clone() };
        if let Some(round) = now.rounds.last().filter(|_| now.rounds.len() > before.rounds) {
            self.dirty.get_or_create(&container()).set(round.dirty_rate);
        }
        if !before.left(now) {
            return;
        }
        if before.phase != Phase::Pending {
            let labels = PhaseLabels { role, phase: before.phase.name() };
            self.phases.get_or_create(&labels).observe(stayed.as_secs_f64());
        }
        if now.phase.is_terminal() {
            self.dirty.remove(&container());
            if !now.rounds.is_empty() {
                #[expect(clippy::cast_precision_loss, reason = "a number of rounds")]
                self.rounds.observe(now.rounds.len() as f64);
            }
            let labels = EndLabels { role, result: now.phase.name(), reason: now.reason.clone() };
            self.ends.get_or_create(&labels).inc();
        }
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::encoding::text::encode;

    use super::super::status::Round;
    use super::*;

    fn text(metrics: &Metrics) -> String {
        let mut registry = Registry::with_prefix("gantry");
        metrics.register(&mut registry);
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        text
    }

    #[test]
    fn a_session_is_counted_from_its_states() {
        let metrics = Metrics::default();
        let mut status = Status { container: "web".to_owned(), ..Status::default() };
        let mut change = |change: &dyn Fn(&mut Status)| {
            let before = Seen::of(&status);
            change(&mut status);
            metrics.changed(before, &status, Duration::from_millis(10));
            text(&metrics)
        };
        change(&|s| s.phase = Phase::PreCopy);
        change(&|s| s.bytes = 1000);
        let during = change(&|s| s.rounds.push(Round { dirty_rate: 5e6, ..Round::default() }));
        assert!(
            during.contains("gantry_migration_dirty_bytes_per_second{container=\"web\"} 5000000"),
            "{during}"
        );
        change(&|s| s.phase = Phase::Completing);
        change(&|s| s.bytes = 1500);
        let after = change(&|s| {
            s.phase = Phase::Succeeded;
            s.reason = "Committed".to_owned();
        });
        for line in [
            "gantry_migration_bytes_total{kind=\"sent\"} 1500",
            "gantry_migration_phase_seconds_count{role=\"source\",phase=\"precopy\"} 1",
            "gantry_migration_phase_seconds_sum{role=\"source\",phase=\"completing\"} 0.01",
            "gantry_agent_migrations_total{role=\"source\",result=\"succeeded\",reason=\"Committed\"} 1",
            "gantry_migration_rounds_sum 1.0",
        ] {
            assert!(after.contains(line), "{line}\n{after}");
        }
        assert!(!after.contains("container=\"web\""), "{after}");
        assert!(!after.contains("phase=\"pending\""), "{after}");
    }
}
