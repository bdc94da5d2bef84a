//! Failpoints that a test sets before the coordinator starts; compiled in with the feature `failpoints` alone.
//!
//! The file `failpoints` in the state directory holds lines of `NAME=ACTION`: an action of the `fail` crate, or
//! `kill`, which ends the process there as a crash would.

use std::path::Path;

/// Sets the failpoints that the file names. A line that cannot be understood is logged and skipped.
pub(crate) fn load(state_dir: &Path) {
    let Ok(text) = std::fs::read_to_string(state_dir.join("failpoints")) else { return };
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let set = match line.split_once('=') {
            Some((name, "kill")) => fail::cfg_callback(name, || std::process::abort()),
            Some((name, action)) => fail::cfg(name, action),
            None => Err("not NAME=ACTION".to_owned()),
        };
        match set {
            Ok(()) => tracing::info!(line, "failpoint set"),
            Err(error) => tracing::warn!(line, error, "failpoint refused"),
        }
    }
}
