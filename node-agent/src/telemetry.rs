//! Logging and traces. The only place where tracing is configured.

use std::io::IsTerminal as _;

use proto::telemetry::{Collector, Export, Exporting};
use tracing_subscriber::{EnvFilter, Layer as _, fmt};

/// Whose spans are exported.
const CRATES: [&str; 2] = ["node_agent", "engine"];

/// Sends events to standard error: text on a terminal, else one JSON object a line. `RUST_LOG` filters;
/// the default is `info`. Spans go to the collector, if there is one; `name` is the node's. Later calls change nothing.
pub fn start(collector: Option<&Collector>, name: &str) -> Option<Exporting> {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    // A log that cannot be written is no reason to stop: complaining about that would be a panic.
    let events = fmt::layer().with_writer(std::io::stderr).log_internal_errors(false);
    let events = if std::io::stderr().is_terminal() {
        events.boxed()
    } else {
        events.json().flatten_event(true).boxed()
    };
    let export =
        collector.map(|collector| Export { collector, service: "gantry-node-agent", name, crates: &CRATES });
    proto::telemetry::start(events, filter, export)
}

/// An error with its causes, for one log line.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}
