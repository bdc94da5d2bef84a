//! Logging and traces: the only place that configures tracing.

use proto::telemetry::{Collector, Export, Exporting};
use tracing_subscriber::{EnvFilter, Layer as _, fmt};

/// Whose spans are exported.
const CRATES: [&str; 1] = ["coordinator"];

/// Logs to standard error; `GANTRY_LOG` holds the filter (`info` without it) and `GANTRY_LOG_FORMAT=json`
/// makes each line a JSON object. Spans go to the collector, if there is one; `name` is the coordinator's. A second call changes
/// nothing.
pub(crate) fn init(collector: Option<&Collector>, name: &str) -> Option<Exporting> {
    let filter = EnvFilter::try_from_env("GANTRY_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    // A log that cannot be written is no reason to stop: complaining about that would be a panic.
    let events = fmt::layer().with_writer(std::io::stderr).log_internal_errors(false);
    let json = std::env::var("GANTRY_LOG_FORMAT").is_ok_and(|format| format == "json");
    let events = if json { events.json().boxed() } else { events.with_ansi(false).boxed() };
    let export =
        collector.map(|collector| Export { collector, service: "gantry-coordinator", name, crates: &CRATES });
    proto::telemetry::start(events, filter, export)
}
