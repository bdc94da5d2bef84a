//! A container under checking clients that is moved, hurt and looked at again and again.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

use crate::cluster::{Background, Cluster, Finished, wait_for};
use crate::residue::Residue;
use crate::workload::{PYTHON_PROGRAM, STATE_SCRIPT};

/// Both nodes.
pub const NODES: [&str; 2] = ["node-a", "node-b"];
/// The container's name.
pub const NAME: &str = "py";
/// How long the traces of an attempt may take to go.
const SETTLE: Duration = Duration::from_secs(20);
/// Traces that stay longer than this are told while they are waited for.
const SLOW: Duration = Duration::from_secs(3);

/// The self-checking python program under three clients that never reconnect.
#[derive(Debug)]
pub struct Stage {
    /// The hosts.
    pub cluster: Cluster,
    /// Its clients.
    pub clients: Background,
    /// What each node has without the container.
    empty: BTreeMap<&'static str, Residue>,
    /// What each node has with the container.
    full: BTreeMap<&'static str, Residue>,
    /// Where it runs.
    at: usize,
    /// The longest time a client waited for an answer since the last look, milliseconds.
    pub gap_ms: f64,
}

impl Stage {
    /// Brings up the hosts, starts the container on `node-a` and its clients, and moves it there and back.
    ///
    /// # Errors
    /// When any of that fails.
    pub fn new() -> Result<Self> {
        Self::make(Cluster::up()?, false)
    }

    /// The same, with state of every kind that hosts keep: interfaces, routes, rules, mounts, control groups.
    ///
    /// # Errors
    /// When any of that fails.
    pub fn with_state() -> Result<Self> {
        Self::make(Cluster::up()?, true)
    }

    /// The same as [`Stage::new`] on hosts that are there.
    ///
    /// # Errors
    /// When any of it fails.
    pub fn on(cluster: Cluster) -> Result<Self> {
        Self::make(cluster, false)
    }

    fn make(cluster: Cluster, state: bool) -> Result<Self> {
        let mut empty = BTreeMap::new();
        for node in NODES {
            empty.insert(node, cluster.residue(node)?);
        }
        let bundle = cluster.dir().join("bundles").join(NAME);
        let out = bundle.to_str().context("the path is not UTF-8")?;
        let command =
            ["dev", "bundle", "--out", out, "--rw", "/data", "--", "/usr/bin/python3", "/data/program.py"];
        cluster.must(command)?;
        fs::write(bundle.join("rootfs/data/program.py"), PYTHON_PROGRAM)?;
        if state {
            bind(&bundle, &plain(&cluster))?;
        }
        cluster.start_bundle(NAME, NODES[0], "10.77.0.102/24", &bundle)?;
        cluster.wait_for_port("10.77.0.102:7000".parse()?)?;
        if state {
            let script = "exec sh -c \"$1\" sh \"$(pgrep -o -f 'python3 /data/program.py$')\"";
            cluster.exec_ok(NODES[0], &["sh", "-ec", script, "sh", STATE_SCRIPT])?;
        }
        let clients = cluster.client(&["lines", "10.77.0.102:7000", "3"])?;
        let mut stage = Self { cluster, clients, empty, full: BTreeMap::new(), at: 0, gap_ms: 0.0 };
        // A container that has been moved has a bundle of its own on its node; one that was started has not.
        stage.clean_move().context("the first move")?;
        stage.clean_move().context("the move back")?;
        Ok(stage)
    }

    /// The node that the container runs on.
    #[must_use]
    pub fn source(&self) -> &'static str {
        NODES[self.at]
    }

    /// The directory that [`Stage::with_state`] binds to `/plain`, which every node must have.
    #[must_use]
    pub fn plain(&self) -> PathBuf {
        plain(&self.cluster)
    }

    /// The other node.
    #[must_use]
    pub fn target(&self) -> &'static str {
        NODES[1 - self.at]
    }

    /// The name of its migration that ended last; empty when there was none.
    #[must_use]
    pub fn last(&self) -> String {
        let migration = self.cluster.last_migration(NAME).ok();
        migration.and_then(|m| Some(m.pointer("/metadata/name")?.as_str()?.to_owned())).unwrap_or_default()
    }

    /// Starts to move it to the other node.
    ///
    /// # Errors
    /// When the command cannot be started.
    pub fn start_move(&self) -> Result<Background> {
        self.cluster.start(["move", NAME, "--to", self.target(), "--max-downtime", "1s", "-o", "json"])
    }

    /// Moves it to the other node and expects success, and nothing left behind.
    ///
    /// # Errors
    /// When it does not succeed, or anything is not as it should be then.
    pub fn clean_move(&mut self) -> Result<()> {
        for node in NODES {
            self.cluster.failpoints(node, "")?;
        }
        let finished = self.start_move()?.finish()?;
        ensure!(finished.code == 0, "the move: {finished:?}");
        self.at = 1 - self.at;
        self.settled().context("after an ordinary move")
    }

    /// Moves it with failpoints set at the source and the target, and expects `code`; the container is where that
    /// says, and nothing is left anywhere else.
    ///
    /// # Errors
    /// With everything that is not as it should be.
    pub fn attempt(&mut self, source: &str, target: &str, code: i32) -> Result<Finished> {
        let began = Instant::now();
        self.cluster.failpoints(self.source(), source)?;
        self.cluster.failpoints(self.target(), target)?;
        let finished = self.start_move()?.finish()?;
        let ended = began.elapsed();
        self.ended(&finished, code).with_context(|| format!("source {source:?}, target {target:?}"))?;
        println!(
            "{source}{target}: ended in {:.1} s, settled in {:.1} s, gap {:.0} ms",
            ended.as_secs_f64(),
            began.elapsed().as_secs_f64(),
            self.gap_ms
        );
        Ok(finished)
    }

    /// The same, once the move has ended.
    ///
    /// # Errors
    /// With everything that is not as it should be.
    pub fn ended(&mut self, finished: &Finished, code: i32) -> Result<()> {
        for node in NODES {
            self.cluster.failpoints(node, "")?;
        }
        ensure!(finished.code == code, "exit code {code} was expected of {finished:?}");
        if code == 0 {
            self.at = 1 - self.at;
        }
        self.settled()
    }

    /// Finds out where the container runs, when either node is right.
    ///
    /// # Errors
    /// When it runs on both or none, or anything of an attempt is left.
    pub fn find(&mut self) -> Result<()> {
        self.at = wait_for("one node has the container", SETTLE, || {
            let here: Vec<usize> = (0..2).filter(|at| self.has_container(*at)).collect();
            if let [at] = here[..] { Some(at) } else { None }
        })?;
        self.settled()
    }

    fn has_container(&self, at: usize) -> bool {
        self.cluster.residue(NODES[at]).is_ok_and(|residue| residue.count("process python3") > 0)
    }

    /// Waits until the container serves on every connection, the coordinator knows where, the one node has what
    /// belongs to it and the other has nothing.
    ///
    /// # Errors
    /// With the differences.
    pub fn settled(&mut self) -> Result<()> {
        let verdict =
            self.clients.progress().with_context(|| format!("it should serve on {}", self.source()))?;
        self.gap_ms = verdict.longest_gap_ms;
        self.cluster.wait_ready()?;
        wait_for(&format!("the coordinator says {}", self.source()), SETTLE, || {
            (self.cluster.node_of(NAME).ok()? == self.source()).then_some(())
        })?;
        self.is_clean(self.source(), self.full.get(self.source()).cloned())?;
        self.is_clean(self.target(), self.empty.get(self.target()).cloned())?;
        if !self.full.contains_key(self.source()) {
            let full = self.still(self.source())?;
            self.full.insert(self.source(), full);
        }
        Ok(())
    }

    /// Waits until what a node has no longer changes.
    fn still(&self, node: &str) -> Result<Residue> {
        let mut last = self.cluster.residue(node)?;
        let mut same = 0;
        wait_for(&format!("{node} is still"), SETTLE, || {
            let now = self.cluster.residue(node).ok()?;
            same = if now == last { same + 1 } else { 0 };
            last = now;
            (same == 6).then(|| last.clone())
        })
    }

    fn is_clean(&self, node: &str, expected: Option<Residue>) -> Result<()> {
        let Some(expected) = expected else { return Ok(()) };
        let mut last = String::new();
        let (began, mut told) = (Instant::now(), false);
        let clean = wait_for("nothing is left", SETTLE, || match self.cluster.residue(node) {
            Ok(now) => {
                last = now.against(&expected);
                if !told && !last.is_empty() && began.elapsed() > SLOW {
                    println!("{node} still, after {SLOW:?}:\n{last}");
                    told = true;
                }
                (now == expected).then_some(())
            }
            Err(error) => {
                last = format!("{error:#}");
                None
            }
        });
        if clean.is_err() {
            bail!("{node} does not have what it should have:\n{last}");
        }
        Ok(())
    }

    /// Ends the clients, which must have seen nothing wrong, and removes the hosts.
    ///
    /// # Errors
    /// With what they saw.
    pub fn passed(self) -> Result<()> {
        let verdict = self.clients.verdict()?;
        ensure!(verdict.replies > 100, "too few replies to mean anything: {verdict:?}");
        println!("{verdict:?}");
        self.cluster.passed();
        Ok(())
    }
}

fn plain(cluster: &Cluster) -> PathBuf {
    cluster.dir().join("plain/one")
}

/// Has a bundle bind a directory, which is made, to `/plain`.
fn bind(bundle: &Path, source: &Path) -> Result<()> {
    fs::create_dir_all(source)?;
    let path = bundle.join("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path)?)?;
    let mount = json!({"destination": "/plain", "type": "bind", "source": source, "options": ["bind", "rw"]});
    let mounts = config.pointer_mut("/mounts").and_then(Value::as_array_mut);
    mounts.context("the bundle has no mounts")?.push(mount);
    Ok(fs::write(&path, config.to_string())?)
}
