//! Logging. The only place where tracing is configured.

use std::io::IsTerminal as _;

use tracing_subscriber::EnvFilter;

/// Sends events to standard error: text on a terminal, else one JSON object a line. `RUST_LOG` filters;
/// the default is `info`. Later calls change nothing.
pub fn start() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    // A log that cannot be written is no reason to stop: complaining about that would be a panic.
    let events = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .log_internal_errors(false);
    let _ = if std::io::stderr().is_terminal() {
        events.try_init()
    } else {
        events.json().flatten_event(true).try_init()
    };
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
