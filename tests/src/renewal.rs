//! Certificates that are replaced while their daemons run.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::{Signal, kill};

use crate::cluster::{Cluster, wait_for};
use crate::monitoring::{ADDRESSES, scrape};
use crate::stage::Stage;

/// The daemons, in the order of [`ADDRESSES`], with their roles.
const PEERS: [(&str, &str); 3] = [("coordinator", "coordinator"), ("node-a", "node"), ("node-b", "node")];

/// A new authority takes the place of the old one, with a container that moves before, in between and after it.
pub(crate) fn authority() -> Result<()> {
    let mut stage = Stage::new()?;
    let pki = stage.cluster.dir().join("pki");
    let new = pki.join("new-ca");
    let new_dir = new.to_str().context("a path in UTF-8")?;
    stage.cluster.must(["pki", "init", "--dir", new_dir])?;
    let (old_ca, new_ca) =
        (fs::read_to_string(pki.join("ca/ca.crt"))?, fs::read_to_string(new.join("ca.crt"))?);
    let trust = |ca: &str| {
        PEERS
            .iter()
            .map(|(name, _)| *name)
            .chain(["admin"])
            .try_for_each(|name| replace(&pki.join(name).join("ca.crt"), ca))
    };
    let ends = stage.certificates()?;

    trust(&format!("{old_ca}{new_ca}"))?;
    // Nobody tells the daemons.
    taken(&stage.cluster, 1)?;
    for (name, role) in PEERS.into_iter().chain([("admin", "admin")]) {
        let out = pki.join(name);
        let out = out.to_str().context("a path in UTF-8")?;
        let args =
            ["pki", "issue", "--dir", new_dir, "--role", role, name, "--out", out, "--valid-for", "30d"];
        let refused = stage.cluster.migrate(args)?;
        ensure!(refused.code != 0 && refused.stderr.contains("exists already"), "{refused:?}");
        stage.cluster.must(args.into_iter().chain(["--renew"]))?;
    }
    hang_up(&stage.cluster)?;
    taken(&stage.cluster, 2)?;
    stage.clean_move()?;
    for (before, after) in ends.iter().zip(stage.certificates()?) {
        ensure!(after < *before, "a certificate for 30 days ends at {after}, the one before at {before}");
    }

    trust(&new_ca)?;
    hang_up(&stage.cluster)?;
    taken(&stage.cluster, 3)?;
    stage.clean_move()?;

    // What is of no use replaces nothing.
    replace(&pki.join("node-a/tls.key"), "no key")?;
    hang_up(&stage.cluster)?;
    count(&stage.cluster, ADDRESSES[1], "refused", 1)?;
    stage.clean_move()?;
    stage.passed()
}

impl Stage {
    /// When the daemons' certificates end, in seconds since 1970, as monitoring sees it.
    fn certificates(&self) -> Result<Vec<u64>> {
        let ends = |address: &&str| {
            let text = scrape(&self.cluster, address)?;
            let line = text
                .lines()
                .find_map(|line| line.strip_prefix("gantry_certificate_expiry_timestamp_seconds "));
            line.and_then(|value| value.parse().ok()).with_context(|| format!("no end at {address}:\n{text}"))
        };
        ADDRESSES.iter().map(ends).collect()
    }
}

/// As an orchestrator does: by a name that leads to something else from one moment to the next.
fn replace(path: &Path, content: &str) -> Result<()> {
    let new = path.with_extension("replaced");
    fs::write(&new, content)?;
    fs::rename(new, path).with_context(|| format!("replace {}", path.display()))
}

fn hang_up(cluster: &Cluster) -> Result<()> {
    for (host, _) in PEERS {
        let daemon = cluster.daemon(host).with_context(|| format!("no daemon on {host}"))?;
        kill(daemon, Signal::SIGHUP)?;
    }
    Ok(())
}

fn taken(cluster: &Cluster, times: u32) -> Result<()> {
    ADDRESSES.into_iter().try_for_each(|address| count(cluster, address, "taken", times))
}

fn count(cluster: &Cluster, address: &str, result: &str, times: u32) -> Result<()> {
    let line = format!("gantry_certificate_reloads_total{{result=\"{result}\"}} {times}\n");
    wait_for(&format!("{line} at {address}"), Duration::from_secs(30), || {
        scrape(cluster, address).ok()?.contains(&line).then_some(())
    })
}
