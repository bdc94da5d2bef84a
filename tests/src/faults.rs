//! Faults: kill a cluster's processes, cut its links, set failpoints, look at what is left.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::cluster::{Cluster, Finished, wait_for};
use crate::residue::Residue;

/// How long a daemon that died may take to be back.
pub const RESTART: Duration = Duration::from_secs(15);

impl Cluster {
    /// The directory of a host's files.
    #[must_use]
    pub fn host_dir(&self, host: &str) -> PathBuf {
        self.dir().join("hosts").join(host)
    }

    /// Runs a command inside a host.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn exec(&self, host: &str, command: &[&str]) -> Result<Finished> {
        let mut args = vec!["dev", "exec", "--dir", self.dir_str(), host, "--"];
        args.extend(command);
        self.migrate(args)
    }

    /// As [`Cluster::exec`], and exit code 0 is expected.
    ///
    /// # Errors
    /// With what it printed, otherwise.
    pub fn exec_ok(&self, host: &str, command: &[&str]) -> Result<Finished> {
        let finished = self.exec(host, command)?;
        ensure!(finished.code == 0, "{command:?} on {host}: {finished:?}");
        Ok(finished)
    }

    /// The process id of a host's daemon, the agent of a node or the coordinator, as this machine sees it; `None`
    /// while it is being restarted.
    #[must_use]
    pub fn daemon(&self, host: &str) -> Option<Pid> {
        let state: Value = serde_json::from_slice(&fs::read(self.dir().join("dev.json")).ok()?).ok()?;
        let first =
            state.get("hosts")?.as_array()?.iter().find(|pair| pair[0] == host)?[1].get("pid")?.as_i64()?;
        let children = fs::read_to_string(format!("/proc/{first}/task/{first}/children")).ok()?;
        children.split_whitespace().filter_map(|pid| pid.parse::<i32>().ok()).map(Pid::from_raw).find(|pid| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let mut words = line.split(|byte| *byte == 0).skip(1);
            matches!(words.next(), Some(b"__node-agent" | b"__coordinator"))
        })
    }

    /// Kills a host's daemon with SIGKILL and answers its process id; its supervisor starts it again.
    ///
    /// # Errors
    /// When there was none.
    pub fn kill_daemon(&self, host: &str) -> Result<Pid> {
        let pid = self.daemon(host).with_context(|| format!("no daemon runs on {host}"))?;
        kill(pid, Signal::SIGKILL).context("kill the daemon")?;
        Ok(pid)
    }

    /// Waits until another daemon than `old` runs on `host`.
    ///
    /// # Errors
    /// When none does in time.
    pub fn wait_restarted(&self, host: &str, old: Pid) -> Result<()> {
        wait_for(&format!("the daemon of {host} is back"), RESTART, || {
            self.daemon(host).filter(|pid| *pid != old)
        })
        .map(|_| ())
    }

    /// Waits until the coordinator calls every node Ready.
    ///
    /// # Errors
    /// When it does not in time.
    pub fn wait_ready(&self) -> Result<()> {
        wait_for("every node is Ready", RESTART, || {
            let list = self.migrate(["get", "nodes", "-o", "json"]).ok()?.json().ok()?;
            let nodes = list.get("items")?.as_array()?;
            let ready = |node: &Value| node.pointer("/status/state").and_then(Value::as_str) == Some("Ready");
            (!nodes.is_empty() && nodes.iter().all(ready)).then_some(())
        })
    }

    /// Sets the failpoints of a host's daemon, lines of `NAME=ACTION`; none when `lines` is empty. An agent reads
    /// them when a session begins, a coordinator when it starts.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn failpoints(&self, host: &str, lines: &str) -> Result<()> {
        let path = self.host_dir(host).join("state/failpoints");
        if lines.is_empty() && !path.exists() {
            return Ok(());
        }
        fs::write(&path, lines).with_context(|| format!("write {}", path.display()))
    }

    /// What a node has now.
    ///
    /// # Errors
    /// When it cannot be read, for example while its agent is being restarted.
    pub fn residue(&self, node: &str) -> Result<Residue> {
        let text = fs::read_to_string(self.host_dir(node).join("node-agent.toml"))?;
        let cgroup = text
            .lines()
            .find_map(|line| line.strip_prefix("cgroup_parent = "))
            .context("cgroup_parent")?
            .trim_matches('"')
            .to_owned();
        let own = std::env::current_exe()?;
        let local = self.dir().join("local");
        let path = |path: &PathBuf| path.to_str().map(str::to_owned).context("the path is not UTF-8");
        let finished = self.exec_ok(node, &[&path(&own)?, "__residue", &path(&local)?, &cgroup])?;
        Ok(serde_json::from_str(&finished.stdout)?)
    }

    /// The migration of `container` that is under way or ended last.
    ///
    /// # Errors
    /// When there is none.
    pub fn last_migration(&self, container: &str) -> Result<Value> {
        let list = self.must(["get", "migrations", "-o", "json"])?.json()?;
        let items = list.get("items").and_then(Value::as_array).cloned().unwrap_or_default();
        let epoch = |object: &Value| -> u64 {
            let epoch = object.pointer("/status/epoch");
            epoch.and_then(|e| e.as_u64().or_else(|| e.as_str()?.parse().ok())).unwrap_or_default()
        };
        items
            .into_iter()
            .filter(|object| object.pointer("/spec/container").and_then(Value::as_str) == Some(container))
            .max_by_key(|object| {
                (epoch(object), object.pointer("/metadata/creationTimestamp").map(Value::to_string))
            })
            .with_context(|| format!("no migration of {container}"))
    }

    /// Waits until the last migration of `container` is in one of `phases` and answers its name.
    ///
    /// # Errors
    /// When it is not in time.
    pub fn wait_phase(&self, container: &str, after: &str, phases: &[&str]) -> Result<String> {
        wait_for(&format!("the migration of {container} reaches {phases:?}"), Duration::from_secs(60), || {
            let migration = self.last_migration(container).ok()?;
            let phase = migration.pointer("/status/phase")?.as_str()?;
            let name = migration.pointer("/metadata/name")?.as_str()?;
            (name != after && phases.contains(&phase)).then(|| name.to_owned())
        })
    }
}
