//! What a node has: links and filters, rules of nftables, processes and their namespaces, control groups, files and
//! mounts, and what its agent holds open. Two of these are compared to see whether a failed attempt left anything.
//!
//! It is read by the test's own program, started inside the node with `__residue`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

/// Everything found on a node, and how many times.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Residue(BTreeMap<String, usize>);

impl Residue {
    fn add(&mut self, what: impl Into<String>) {
        *self.0.entry(what.into()).or_default() += 1;
    }

    /// The entries that contain `word`.
    #[must_use]
    pub fn count(&self, word: &str) -> usize {
        self.0.iter().filter(|(what, _)| what.contains(word)).map(|(_, count)| count).sum()
    }

    /// What `self` has beyond `other` (`+`) and what it lacks (`-`).
    #[must_use]
    pub fn against(&self, other: &Self) -> String {
        let beyond = |a: &Self, b: &Self, sign: &str| -> Vec<String> {
            a.0.iter()
                .filter(|(what, count)| b.0.get(*what) != Some(count))
                .map(|(what, count)| format!("{sign} {count} x {what}"))
                .collect()
        };
        let mut lines = beyond(self, other, "+");
        lines.extend(beyond(other, self, "-"));
        lines.join("\n")
    }
}

impl fmt::Display for Residue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|(what, count)| writeln!(f, "{count} x {what}"))
    }
}

/// Reads and prints it when the arguments say so.
#[must_use]
pub fn run_if_asked() -> Option<ExitCode> {
    let args: Vec<String> = std::env::args().collect();
    let (Some("__residue"), Some(dir), Some(cgroup)) =
        (args.get(1).map(String::as_str), args.get(2), args.get(3))
    else {
        return None;
    };
    Some(match read(Path::new(dir), cgroup) {
        Ok(residue) => {
            println!("{}", serde_json::to_string(&residue).unwrap_or_default());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("residue: {error:#}");
            ExitCode::FAILURE
        }
    })
}

fn read(dir: &Path, cgroup: &str) -> Result<Residue> {
    let mut found = Residue::default();
    let agent: u32 = fs::read_to_string(dir.join("node-agent.pid"))?.trim().parse()?;
    links(&mut found)?;
    network(&mut found)?;
    processes(&mut found, agent)?;
    namespaces(&mut found)?;
    // One hierarchy itself, or a directory of them.
    let root = PathBuf::from("/sys/fs/cgroup");
    let below = fs::read_dir(&root).context("/sys/fs/cgroup")?.flatten().map(|entry| entry.path());
    for hierarchy in below.chain([root.clone()]) {
        // The parent itself is made when the first container comes and stays.
        for group in fs::read_dir(hierarchy.join(cgroup)).into_iter().flatten().flatten() {
            tree(&mut found, "cgroup", &group.path(), &|path| {
                let frozen = fs::read_to_string(path.join("cgroup.freeze")).unwrap_or_default();
                if frozen.trim() == "1" { " frozen".to_owned() } else { String::new() }
            });
        }
    }
    for below in ["containers", "bundles"] {
        tree(&mut found, "file", &dir.join("state").join(below), &|_| String::new());
    }
    for line in fs::read_to_string("/proc/self/mountinfo")?.lines() {
        let path = line.split(' ').nth(4).unwrap_or_default();
        // Network namespaces of others on this machine come and go.
        if !path.starts_with("/run/netns/") {
            found.add(format!("mount {path}"));
        }
    }
    held(&mut found, agent);
    Ok(found)
}

fn links(found: &mut Residue) -> Result<()> {
    for link in fs::read_dir("/sys/class/net")?.flatten() {
        let name = link.file_name().to_string_lossy().into_owned();
        let master = fs::read_link(link.path().join("master")).unwrap_or_default();
        let master = master.file_name().unwrap_or_default().to_string_lossy().into_owned();
        found.add(format!("link {name} {master}"));
        for args in [
            ["qdisc", "show", "dev", &name, ""],
            ["filter", "show", "dev", &name, "ingress"],
            ["filter", "show", "dev", &name, "egress"],
        ] {
            let output = Command::new("tc").args(args.iter().filter(|arg| !arg.is_empty())).output()?;
            for line in String::from_utf8_lossy(&output.stdout).lines().filter(|l| !l.contains("noqueue")) {
                found.add(format!("tc {name}: {}", line.trim()));
            }
        }
    }
    Ok(())
}

/// Addresses, routes, rules and packet filters.
fn network(found: &mut Residue) -> Result<()> {
    for args in [["addr", "show"], ["-4", "route"], ["-6", "route"], ["rule", "show"]] {
        let output = Command::new("ip").arg("-o").args(args).output()?;
        for line in String::from_utf8_lossy(&output.stdout).lines() {
            // Numbers of links, lifetimes and what follows from a new link's random MAC address are not the same from
            // one look to the next.
            if line.contains("fe80:") {
                continue;
            }
            let words = line
                .split_whitespace()
                .filter(|word| !word.ends_with("sec") && !word.ends_with(':') && *word != "tentative");
            found.add(format!("ip {}: {}", args.join(" "), words.collect::<Vec<_>>().join(" ")));
        }
    }
    let tables = fs::read_to_string("/proc/net/ip_tables_names").unwrap_or_default();
    found.add(format!("iptables {tables:?}"));
    let output = Command::new("nft").args(["-s", "list", "ruleset"]).output().context("nft")?;
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        found.add(format!("nftables {}", line.trim()));
    }
    Ok(())
}

/// How many namespaces of each kind anything runs in.
fn namespaces(found: &mut Residue) -> Result<()> {
    let mut seen = BTreeSet::new();
    for process in fs::read_dir("/proc")?.flatten() {
        for task in fs::read_dir(process.path().join("task")).into_iter().flatten().flatten() {
            for kind in fs::read_dir(task.path().join("ns")).into_iter().flatten().flatten() {
                seen.extend(fs::read_link(kind.path()));
            }
        }
    }
    for name in &seen {
        let name = name.to_string_lossy();
        found.add(format!("namespace {}", name.split(':').next().unwrap_or_default()));
    }
    Ok(())
}

/// Every process but those that were started from outside, as this one was.
fn processes(found: &mut Residue, agent: u32) -> Result<()> {
    for entry in fs::read_dir("/proc")?.flatten() {
        let name = entry.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        let Ok(status) = fs::read_to_string(entry.path().join("status")) else { continue };
        let field = |key: &str| -> &str {
            status.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_default().trim()
        };
        if field("PPid:") == "0" && pid != 1 {
            continue;
        }
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        let traced = if field("TracerPid:") == "0" { "" } else { " traced" };
        let zombie = if field("State:").starts_with('Z') { " zombie" } else { "" };
        if pid == agent || pid == 1 {
            found.add(format!("process {}", field("Name:")));
        } else {
            found.add(format!("process {} {}{traced}{zombie}", field("Name:"), line.trim()));
        }
    }
    Ok(())
}

/// A directory and all below it, but for what containers write themselves.
fn tree(found: &mut Residue, kind: &str, path: &Path, more: &dyn Fn(&Path) -> String) {
    if !path.is_dir() {
        return;
    }
    found.add(format!("{kind} {}{}", path.display(), more(path)));
    let mut directories: Vec<PathBuf> = Vec::new();
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
        match (is_dir, kind) {
            (true, _) if entry.file_name() != "rootfs" => directories.push(entry.path()),
            (_, "file") => found.add(format!("file {}", entry.path().display())),
            _ => {}
        }
    }
    for directory in directories {
        tree(found, kind, &directory, more);
    }
}

/// The kinds of descriptors that the agent holds, and its threads. Connections come and go.
fn held(found: &mut Residue, agent: u32) {
    let process = PathBuf::from(format!("/proc/{agent}"));
    for entry in fs::read_dir(process.join("fd")).into_iter().flatten().flatten() {
        let Ok(target) = fs::read_link(entry.path()) else { continue };
        let target = target.to_string_lossy().into_owned();
        let ours = ["eventpoll", "eventfd", "socket:", "pipe:"].iter().any(|kind| target.contains(kind));
        if !ours {
            let plain: String = target.chars().map(|c| if c.is_ascii_digit() { '#' } else { c }).collect();
            found.add(format!("agent's descriptor {plain}"));
        }
    }
    for entry in fs::read_dir(process.join("task")).into_iter().flatten().flatten() {
        let name = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
        if !name.starts_with("tokio") && name.trim() != "peer" {
            found.add(format!("agent's thread {}", name.trim()));
        }
    }
}
