//! Nodes with containers, of which some are being moved so slowly that the migrations of the others wait.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use nix::unistd::Pid;

use crate::cluster::{Background, Cluster, binary, wait_for};
use crate::faults::RESTART;
use crate::stage::NODES;

/// Containers whose migrations are made and cancelled.
pub const WAITING: usize = 16;
/// Containers that are only checked.
pub const CHECKED: usize = 4;
/// Migrations that a node gives away at once: the coordinator's default.
const OUTGOING: usize = 2;
/// Where a coordinator listens on its host.
const COORDINATOR: &str = "10.77.0.2:7443";

/// The name of a container whose migration waits.
#[must_use]
pub fn waiting(index: usize) -> String {
    format!("waiting-{}", index % WAITING)
}

/// The name of a container that is only checked.
#[must_use]
pub fn checked(index: usize) -> String {
    format!("checked-{}", index % CHECKED)
}

/// The migration that is under way all the time.
pub const UNDER_WAY: &str = "slow-0-1";

/// Two nodes. As many migrations are under way from the first one as it may have, so that others wait in the queue until
/// they are cancelled.
#[derive(Debug)]
pub struct Crowd {
    /// The hosts.
    pub cluster: Cluster,
}

impl Crowd {
    /// Starts everything.
    ///
    /// # Errors
    /// When something does not start.
    pub fn gather() -> Result<Self> {
        let cluster = Cluster::up()?;
        let mut number = 100;
        let mut start = |name: &str, command: &[&str]| {
            number += 1;
            cluster.run_container(name, NODES[0], &format!("10.77.0.{number}/24"), &[], command)
        };
        let program = binary()?.to_str().context("path")?;
        let slow = [program, "__workload", "--memory-mib", "512", "--threads", "1", "--dirty-mb-per-s", "1"];
        let slow = [&slow[..], &["--listen", "0.0.0.0:7000"]].concat();
        for index in 0..OUTGOING {
            start(&format!("slow-{index}"), &slow)?;
        }
        for name in (0..WAITING).map(waiting).chain((0..CHECKED).map(checked)) {
            start(&name, &["/bin/sleep", "infinity"])?;
        }
        for index in 0..OUTGOING {
            let name = format!("slow-{index}");
            let limits = ["--bandwidth", "1MB", "--timeout", "1h", "--compression", "off"];
            cluster.must([&["move", &name, "--to", NODES[1], "--detach"], &limits[..]].concat())?;
            wait_for(&format!("{name} is being copied"), RESTART, || {
                let get = ["get", "migrations", &format!("{name}-1"), "-o", "json"];
                let object = cluster.must(get).ok()?.json().ok()?;
                (object.pointer("/status/phase")? == "PreCopy").then_some(())
            })?;
        }
        Ok(Self { cluster })
    }

    /// The coordinator's process.
    ///
    /// # Errors
    /// When there is none.
    pub fn coordinator(&self) -> Result<Pid> {
        self.cluster.daemon("coordinator").context("no coordinator runs")
    }

    /// Runs a client, this program again, on the client host to its end, and answers what it printed.
    ///
    /// # Errors
    /// When it fails.
    pub fn client(&self, args: &[&str]) -> Result<serde_json::Value> {
        let own = std::env::current_exe()?;
        let credentials: PathBuf = self.cluster.dir().join("pki/admin");
        let own = own.to_str().context("path")?;
        let credentials = credentials.to_str().context("path")?;
        let fixed = [own, super::client::ROLE, "--coordinator", COORDINATOR, "--tls-dir", credentials];
        let client: Background = self.cluster.client_program(&[&fixed[..], args].concat())?;
        let finished = client.finish()?;
        anyhow::ensure!(finished.code == 0, "the client failed: {}", finished.stderr.trim());
        finished.json()
    }
}
