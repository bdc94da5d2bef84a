//! What the agents of both nodes use.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use nix::unistd::{Pid, SysconfVar, sysconf};

use crate::cluster::Cluster;
use crate::stage::NODES;

/// The agents, by the node on which they run.
#[derive(Debug)]
pub struct Agents {
    pids: [Pid; 2],
}

impl Agents {
    /// Finds them.
    ///
    /// # Errors
    /// When one does not run.
    pub fn of(cluster: &Cluster) -> Result<Self> {
        let find = |node| cluster.daemon(node).with_context(|| format!("no agent runs on {node}"));
        Ok(Self { pids: [find(NODES[0])?, find(NODES[1])?] })
    }

    /// CPU seconds that both have used, in user and kernel mode. What their children used is not among it: these are
    /// the container's processes and those that hold them.
    ///
    /// # Errors
    /// When one has ended.
    pub fn cpu_seconds(&self) -> Result<f64> {
        self.pids.into_iter().map(cpu_seconds).sum()
    }

    /// From now on [`Agents::peak_mib`] counts anew.
    ///
    /// # Errors
    /// When the kernel does not take it.
    pub fn forget_peaks(&self) -> Result<()> {
        for pid in self.pids {
            // 5 sets the peak of resident memory to what it is now, and nothing else: see proc_pid_clear_refs(5).
            fs::write(proc(pid, "clear_refs"), "5").context("reset an agent's peak")?;
        }
        Ok(())
    }

    /// The most memory that the agent of a node had resident, MiB.
    ///
    /// # Errors
    /// When it has ended.
    pub fn peak_mib(&self, node: &str) -> Result<f64> {
        let index = NODES.iter().position(|name| *name == node);
        let pid = index.and_then(|index| self.pids.get(index)).context("there is no such node")?;
        let status = fs::read_to_string(proc(*pid, "status")).context("an agent has ended")?;
        let kib = peak_kib(&status);
        ensure!(kib.is_some(), "no VmHWM in {status:?}");
        Ok(kib.unwrap_or_default() as f64 / 1024.0)
    }
}

/// CPU seconds that a process has used, in user and kernel mode, without its children.
///
/// # Errors
/// When it has ended.
pub(crate) fn cpu_seconds(pid: Pid) -> Result<f64> {
    let ticks = sysconf(SysconfVar::CLK_TCK)?.context("the length of a tick is not known")?;
    let stat = fs::read_to_string(proc(pid, "stat")).context("a daemon has ended")?;
    let used = cpu_ticks(&stat).with_context(|| format!("parse {stat:?}"))?;
    Ok(used as f64 / ticks as f64)
}

fn proc(pid: Pid, name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/{name}"))
}

/// Fields 14 and 15 of proc_pid_stat(5); the name in field 2 may contain anything.
fn cpu_ticks(stat: &str) -> Option<u64> {
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace().skip(14 - 3);
    let user: u64 = fields.next()?.parse().ok()?;
    let kernel: u64 = fields.next()?.parse().ok()?;
    Some(user + kernel)
}

fn peak_kib(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_counted_from_the_end_of_the_name() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194560 1 2 3 4 50 6 700 8 20 0 1 0 4711 1 2";
        assert_eq!(cpu_ticks(stat), Some(56));
        assert_eq!(cpu_ticks("7 (a) S 1"), None);
    }

    #[test]
    fn the_peak_has_a_line() {
        assert_eq!(peak_kib("Name:\tx\nVmPeak:\t  9 kB\nVmHWM:\t  4711 kB\nVmRSS:\t 3 kB\n"), Some(4711));
        assert_eq!(peak_kib("Name:\tx\n"), None);
    }
}
