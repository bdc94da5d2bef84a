//! Failpoints that a test sets while a daemon runs; compiled in with the feature `failpoints` alone.
//!
//! The file `failpoints` in the state directory holds lines of `NAME=ACTION`. Actions are those of the `fail` crate
//! (`return`, `pause`, `sleep(10)`, ...) and some of our own: `kill` (this process gets SIGKILL there; `kill:3` the
//! third time), `stop` (SIGSTOP) and `hold`. An agent reads the file whenever a session begins, a coordinator when it
//! starts.
//!
//! `hold` waits while the state directory has a file `hold`, one minute at most. A file `held` with the failpoint's name
//! tells that somebody waits.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::runtime::{Handle, RuntimeFlavor};

/// The longest that a failpoint holds up whoever comes there.
const LONGEST: Duration = Duration::from_secs(60);

/// Sets the failpoints that the file in `state_dir` names and clears all others. A line that cannot be understood is
/// logged and skipped.
pub fn load(state_dir: &Path) {
    for (name, _) in fail::list() {
        fail::remove(name);
    }
    let Ok(text) = fs::read_to_string(state_dir.join("failpoints")) else { return };
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
        match set(line, state_dir) {
            Ok(()) => tracing::info!(line, "failpoint set"),
            Err(error) => tracing::warn!(line, error, "failpoint refused"),
        }
    }
}

fn set(line: &str, state_dir: &Path) -> Result<(), String> {
    let (name, action) = line.split_once('=').ok_or("not NAME=ACTION")?;
    match action {
        "kill" => signal_at(name, Signal::SIGKILL, 1),
        "stop" => signal_at(name, Signal::SIGSTOP, 1),
        "hold" => {
            let (dir, told) = (state_dir.to_owned(), name.to_owned());
            fail::cfg_callback(name, move || hold(&dir, &told))
        }
        _ => match action.strip_prefix("kill:") {
            Some(nth) => {
                let nth = nth.parse().map_err(|_| "not kill:N")?;
                signal_at(name, Signal::SIGKILL, nth)
            }
            None => fail::cfg(name, action),
        },
    }
}

/// This process gets the signal from the `nth` time on that it comes there.
fn signal_at(name: &str, signal: Signal, nth: u32) -> Result<(), String> {
    let passed = AtomicU32::new(0);
    fail::cfg_callback(name, move || {
        if passed.fetch_add(1, Ordering::Relaxed) + 1 >= nth {
            let _ = kill(Pid::this(), signal);
        }
    })
}

fn hold(state_dir: &Path, name: &str) {
    let (wanted, held) = (state_dir.join("hold"), state_dir.join("held"));
    let began = Instant::now();
    if !wanted.exists() || fs::write(&held, name).is_err() {
        return;
    }
    let wait = || {
        while wanted.exists() && began.elapsed() < LONGEST {
            std::thread::sleep(Duration::from_millis(2));
        }
    };
    // What else a daemon has to do goes on.
    if Handle::try_current().is_ok_and(|runtime| runtime.runtime_flavor() == RuntimeFlavor::MultiThread) {
        tokio::task::block_in_place(wait);
    } else {
        wait();
    }
    let _ = fs::remove_file(&held);
}
