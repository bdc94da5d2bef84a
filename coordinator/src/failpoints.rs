//! Failpoints that a test sets before the coordinator starts; compiled in with the feature `failpoints` alone.
//!
//! The file `failpoints` in the state directory holds lines of `NAME=ACTION`: an action of the `fail` crate, or
//! `kill`, which ends the process there as a crash would; `kill:3` does so the third time.

use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

/// Sets the failpoints that the file names. A line that cannot be understood is logged and skipped.
pub(crate) fn load(state_dir: &Path) {
    let Ok(text) = std::fs::read_to_string(state_dir.join("failpoints")) else { return };
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let set = match line.split_once('=') {
            Some((name, "kill")) => kill(name, 1),
            Some((name, action)) if action.starts_with("kill:") => match action["kill:".len()..].parse() {
                Ok(nth) => kill(name, nth),
                Err(_) => Err("not kill:N".to_owned()),
            },
            Some((name, action)) => fail::cfg(name, action),
            None => Err("not NAME=ACTION".to_owned()),
        };
        match set {
            Ok(()) => tracing::info!(line, "failpoint set"),
            Err(error) => tracing::warn!(line, error, "failpoint refused"),
        }
    }
}

/// Ends the process when it comes there the `nth` time.
fn kill(name: &str, nth: u32) -> Result<(), String> {
    let passed = AtomicU32::new(0);
    fail::cfg_callback(name, move || {
        if passed.fetch_add(1, Ordering::Relaxed) + 1 == nth {
            std::process::abort();
        }
    })
}
