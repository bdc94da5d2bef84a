//! Processes that outlive the command that started them, identified so that they cannot be mistaken.

use std::fs;
use std::os::fd::AsFd as _;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};

/// How long a killed process may take to end.
const DEATH: Duration = Duration::from_secs(20);

/// A process by pid and start time: pids are used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Process {
    /// As seen from the machine.
    pub(crate) pid: i32,
    /// Field 22 of /proc/PID/stat: clock ticks after boot (proc_pid_stat(5)).
    pub(crate) started: u64,
}

impl Process {
    /// The living process `pid`.
    pub(crate) fn of(pid: i32) -> Result<Self> {
        let path = format!("/proc/{pid}/stat");
        let stat = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
        let started = start_time(&stat).with_context(|| format!("parse {path}"))?;
        Ok(Self { pid, started })
    }

    /// Whether it has not ended; a zombie has.
    pub(crate) fn lives(&self) -> bool {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid)).unwrap_or_default();
        start_time(&stat) == Some(self.started) && !matches!(state(&stat), Some('Z' | 'X'))
    }

    /// Kills it and waits for its end; Ok when it had ended already.
    pub(crate) fn kill(&self) -> Result<()> {
        // The descriptor is opened first: from then on the pid cannot come to mean another process.
        let Ok(pidfd) = sys::pidfd::open(self.pid) else { return Ok(()) };
        if !self.lives() {
            return Ok(());
        }
        match sys::pidfd::send_signal(pidfd.as_fd(), nix::libc::SIGKILL) {
            Ok(()) | Err(sys::Errno::ESRCH) => {}
            Err(error) => bail!("kill process {}: {error}", self.pid),
        }
        if !sys::pidfd::wait_exit(pidfd.as_fd(), DEATH)? {
            bail!("process {} was killed and has not ended within {} s", self.pid, DEATH.as_secs());
        }
        Ok(())
    }
}

/// What follows the command's name in /proc/PID/stat; the name may contain anything.
fn after_name(stat: &str) -> Option<std::str::SplitAsciiWhitespace<'_>> {
    Some(stat.rsplit_once(')')?.1.split_ascii_whitespace())
}

fn start_time(stat: &str) -> Option<u64> {
    // Field 3 is the first after the name.
    after_name(stat)?.nth(22 - 3)?.parse().ok()
}

fn state(stat: &str) -> Option<char> {
    after_name(stat)?.next()?.chars().next()
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn names_with_parentheses_do_not_confuse() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4711 1 2";
        assert_eq!(start_time(stat), Some(4711));
        assert_eq!(state(stat), Some('S'));
    }

    #[test]
    fn a_process_is_killed_once_and_not_its_namesake() {
        let mut child = Command::new("sleep").arg("600").stdin(Stdio::null()).spawn().unwrap();
        let process = Process::of(i32::try_from(child.id()).unwrap()).unwrap();
        let other = Process { started: process.started + 1, ..process };
        other.kill().unwrap();
        assert!(process.lives());
        process.kill().unwrap();
        assert!(!process.lives());
        child.wait().unwrap();
        process.kill().unwrap();
    }
}
