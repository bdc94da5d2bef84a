//! What the kernel tells of a process.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use nix::unistd::Pid;

use crate::bench::agents::cpu_seconds;

/// A process at one moment.
#[derive(Clone, Debug)]
pub struct Usage {
    /// Used so far.
    pub cpu_seconds: f64,
    /// Resident.
    pub rss_mib: f64,
    /// The most that was resident.
    pub peak_mib: f64,
    /// Resident, with shared pages in parts.
    pub pss_mib: f64,
    /// Threads.
    pub threads: usize,
    /// How often its threads that are there now went to sleep, by name.
    pub sleeps: BTreeMap<String, u64>,
}

impl Usage {
    /// Looks at a process.
    ///
    /// # Errors
    /// When it has ended.
    pub fn of(pid: Pid) -> Result<Self> {
        let dir = format!("/proc/{pid}");
        let read = |name: &str| fs::read_to_string(Path::new(&dir).join(name)).context("a daemon has ended");
        let status = read("status")?;
        let mib = |text: &str, key: &str| {
            let kib = number(text, key).with_context(|| format!("no {key} of {pid}"))?;
            anyhow::Ok(kib as f64 / 1024.0)
        };
        let mut threads = 0;
        let mut sleeps = BTreeMap::new();
        for task in fs::read_dir(Path::new(&dir).join("task"))? {
            // A thread may end meanwhile.
            let Ok(status) = fs::read_to_string(task?.path().join("status")) else { continue };
            let name = status.lines().find_map(|line| line.strip_prefix("Name:")).unwrap_or_default().trim();
            threads += 1;
            *sleeps.entry(name.to_owned()).or_default() +=
                number(&status, "voluntary_ctxt_switches:").unwrap_or_default();
        }
        Ok(Self {
            cpu_seconds: cpu_seconds(pid)?,
            rss_mib: mib(&status, "VmRSS:")?,
            peak_mib: mib(&status, "VmHWM:")?,
            pss_mib: mib(&read("smaps_rollup")?, "Pss:")?,
            threads,
            sleeps,
        })
    }

    /// Sleeps of all threads since `before`, by name; those that had ended by now are not counted.
    #[must_use]
    pub fn sleeps_since(&self, before: &Self) -> BTreeMap<String, u64> {
        let earlier = |name: &String| before.sleeps.get(name).copied().unwrap_or_default();
        self.sleeps.iter().map(|(name, now)| (name.clone(), now.saturating_sub(earlier(name)))).collect()
    }
}

/// The number in the line that begins with `key`.
fn number(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_can_be_looked_at() {
        let usage = Usage::of(Pid::this()).unwrap();
        assert!(usage.rss_mib > 1.0 && usage.pss_mib > 0.5 && usage.peak_mib >= usage.rss_mib, "{usage:?}");
        assert!(usage.threads >= 1 && !usage.sleeps.is_empty());
        let later = Usage::of(Pid::this()).unwrap();
        assert!(later.cpu_seconds >= usage.cpu_seconds);
        assert_eq!(number("a: 1\nPss:    4711 kB\n", "Pss:"), Some(4711));
    }
}
