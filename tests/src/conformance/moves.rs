//! Programs in containers that move.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::{Outcome, Pool, Program, programs, ready, refused, verdict};
use crate::cluster::Cluster;

/// The exit code of a move that was refused.
const REFUSED: i32 = 3;

/// Two nodes, and what programs are started from.
#[derive(Debug)]
pub struct Moves {
    cluster: Cluster,
    bundle: PathBuf,
    /// What a container is, before it is a program's.
    config: Value,
}

impl Moves {
    /// Brings the nodes up.
    ///
    /// # Errors
    /// When that fails.
    pub fn new() -> Result<Self> {
        let cluster = Cluster::up()?;
        let bundle = cluster.make_bundle("conformance", &["/data"], &["/usr/bin/python3"])?;
        copy(programs(), &bundle.join("rootfs/data/conformance"))?;
        let config = serde_json::from_slice(&fs::read(bundle.join("config.json"))?)?;
        Ok(Self { cluster, bundle, config })
    }

    /// Moves a program there and back.
    ///
    /// # Errors
    /// When the attempt itself fails.
    pub fn attempt(&self, program: &Program) -> Result<Outcome> {
        if let Some(reason) = program.not(super::Way::Move) {
            return Ok(Outcome::Not(reason.to_owned()));
        }
        let _pool = match Pool::of(program) {
            Ok(pool) => pool,
            Err(reason) => return Ok(Outcome::Not(reason)),
        };
        let name = program.path().replace(['/', '_'], "-");
        let started = self.start(program, &name).and_then(|()| self.there_and_back(&name));
        let deleted = self.cluster.migrate(["delete", "container", &name, "--force"])?;
        let outcome = started?;
        ensure!(deleted.code == 0, "delete {name}: {deleted:?}");
        Ok(outcome)
    }

    fn start(&self, program: &Program, name: &str) -> Result<()> {
        let path = self.bundle.join("config.json");
        let mut config = self.config.clone();
        let process = config.get_mut("process").context("the bundle runs nothing")?;
        let file = format!("/data/conformance/{}.py", program.path());
        process["args"] = json!([
            "/usr/bin/python3",
            "/data/conformance/case.py",
            "--init",
            file,
            format!("/data/work/{name}")
        ]);
        for set in ["bounding", "effective", "permitted"] {
            let set = process.pointer_mut(&format!("/capabilities/{set}")).and_then(Value::as_array_mut);
            set.context("the bundle has no capabilities")?
                .extend(program.with.iter().map(|name| json!(name)));
        }
        fs::write(&path, config.to_string())?;
        let bundle = self.bundle.to_str().context("a path in UTF-8")?;
        self.cluster.must(["run", name, "--node", "node-a", "--bundle", bundle]).map(drop)
    }

    fn there_and_back(&self, name: &str) -> Result<Outcome> {
        let mut output =
            || self.cluster.migrate(["logs", name]).map_or_else(|_| String::new(), |logs| logs.stdout);
        let pid = ready(&mut output).with_context(|| self.logs(name))?;
        let verify = || -> Result<Outcome> {
            let ask = format!("import os, signal; os.kill({pid}, signal.SIGUSR2)");
            let asked = self.cluster.must(["exec", name, "--", "/usr/bin/python3", "-c", &ask]);
            asked.with_context(|| self.logs(name))?;
            verdict(&mut || self.logs(name)).with_context(|| self.logs(name))
        };
        for node in ["node-b", "node-a"] {
            let moved =
                self.cluster.migrate(["move", name, "--to", node, "--max-downtime", "2s", "-o", "json"])?;
            if moved.code == REFUSED {
                return Ok(refused(moved.stderr, verify()?));
            }
            ensure!(moved.code == 0, "the move to {node}: {moved:?}");
            let rounds =
                moved.json()?.pointer("/status/rounds").and_then(Value::as_array).map_or(0, Vec::len);
            ensure!(rounds > 0, "it moved without a round");
        }
        verify()
    }

    fn logs(&self, name: &str) -> String {
        self.cluster.migrate(["logs", name]).map_or_else(|_| String::new(), |logs| logs.stdout)
    }

    /// Removes what was made.
    pub fn passed(self) {
        self.cluster.passed();
    }
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), &target)?;
        }
    }
    Ok(())
}
