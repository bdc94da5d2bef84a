//! Logging: the only place that configures tracing.

use tracing_subscriber::EnvFilter;

/// Logs to standard error; `GANTRY_LOG` holds the filter (`info` without it) and `GANTRY_LOG_FORMAT=json`
/// makes each line a JSON object. A second call changes nothing.
pub(crate) fn init() {
    let filter = EnvFilter::try_from_env("GANTRY_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    // A log that cannot be written is no reason to stop: complaining about that would be a panic.
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .log_internal_errors(false);
    let json = std::env::var("GANTRY_LOG_FORMAT").is_ok_and(|format| format == "json");
    // The error says that a subscriber is set already: then there is nothing to do.
    let _already_set = if json { builder.json().try_init() } else { builder.with_ansi(false).try_init() };
}
