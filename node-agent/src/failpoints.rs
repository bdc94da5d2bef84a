//! Failpoints that a test sets while the agent runs; compiled in with the feature `failpoints` alone.
//!
//! The file `failpoints` in the state directory holds lines of `NAME=ACTION`. Actions are those of the `fail`
//! crate (`return`, `pause`, `sleep(10)`, ...) and two of our own: `kill` (this process gets SIGKILL there) and
//! `stop` (SIGSTOP). The file is read whenever a session begins.

use std::fs;
use std::path::Path;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Sets the failpoints that the file in `state_dir` names and clears all others. A line that cannot be
/// understood is logged and skipped.
pub(crate) fn load(state_dir: &Path) {
    for (name, _) in fail::list() {
        fail::remove(name);
    }
    let Ok(text) = fs::read_to_string(state_dir.join("failpoints")) else { return };
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let Some((name, action)) = line.split_once('=') else {
            tracing::warn!(line, "not a failpoint");
            continue;
        };
        let set = match action {
            "kill" => signal_at(name, Signal::SIGKILL),
            "stop" => signal_at(name, Signal::SIGSTOP),
            _ => fail::cfg(name, action),
        };
        match set {
            Ok(()) => tracing::info!(name, action, "failpoint set"),
            Err(error) => tracing::warn!(name, action, error, "failpoint refused"),
        }
    }
}

fn signal_at(name: &str, signal: Signal) -> Result<(), String> {
    fail::cfg_callback(name, move || {
        let _ = kill(Pid::this(), signal);
    })
}
