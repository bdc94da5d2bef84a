//! A self-checking program with threads in every kind of wait, and helpers to trace it.
//!
//! The victim is the test binary itself, started again with an environment variable.

#![allow(dead_code, reason = "each test binary uses a part")]

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

pub(crate) mod victim;

pub(crate) const LIMIT: Duration = Duration::from_secs(10);
pub(crate) const ROLE: &str = "GANTRY_TEST_ROLE";

/// Starts this test binary again in another role.
pub(crate) fn again(role: &str, test: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture", "--test-threads=1"]).env(ROLE, role);
    command
}

/// A running victim. Killed when dropped.
pub(crate) struct Victim {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
    /// -EINTR answers of epoll_wait and rt_sigtimedwait so far.
    pub(crate) interrupted: u64,
}

impl Victim {
    pub(crate) fn start(test: &str) -> Self {
        Self::start_as("victim", test)
    }

    pub(crate) fn start_as(role: &str, test: &str) -> Self {
        let mut child = again(role, test).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let stdin = child.stdin.take().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let mut victim = Self { child, stdin, stdout, interrupted: 0 };
        victim.line("ready");
        victim
    }

    pub(crate) fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap()
    }

    fn line(&mut self, prefix: &str) -> String {
        loop {
            let mut line = String::new();
            assert!(
                self.stdout.read_line(&mut line).unwrap() > 0,
                "the victim is gone: {:?}",
                self.child.try_wait()
            );
            // libtest prints its own lines, and its "test x ... " before ours.
            if let Some(at) = line.find(prefix) {
                return line[at + prefix.len()..].trim().to_owned();
            }
        }
    }

    /// The victim's counters, one a thread. Panics with what it found wrong.
    pub(crate) fn report(&mut self) -> Vec<u64> {
        self.stdin.write_all(b"report\n").unwrap();
        let report = self.line("report:");
        assert!(!report.contains("BAD"), "{report}");
        let (report, interrupted) = report.split_once('/').unwrap();
        self.interrupted = interrupted.trim().parse().unwrap();
        report.split_whitespace().map(|word| word.parse().unwrap()).collect()
    }

    /// Waits until every thread has made progress since `before`.
    pub(crate) fn progress(&mut self, before: &[u64]) -> Vec<u64> {
        let end = Instant::now() + LIMIT;
        loop {
            let now = self.report();
            if now.iter().zip(before).all(|(now, before)| now > before) {
                return now;
            }
            assert!(Instant::now() < end, "no progress from {before:?} to {now:?}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn tids(pid: i32) -> Vec<i32> {
    let entries = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let mut tids: Vec<i32> =
        entries.map(|entry| entry.unwrap().file_name().to_str().unwrap().parse().unwrap()).collect();
    tids.sort_unstable();
    tids
}

pub(crate) fn maps(pid: i32) -> String {
    fs::read_to_string(format!("/proc/{pid}/maps")).unwrap()
}

pub(crate) fn caught(pid: i32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap();
    u64::from_str_radix(line.trim(), 16).unwrap()
}
