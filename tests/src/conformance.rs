//! Everything that a process can have: a program for each, which checks itself after it was frozen and thawed elsewhere.
//!
//! The programs are in `tests/conformance/`, one directory for each row of the table; `case.py` there says what they look
//! like and runs them. Each is tried without a checkpoint ([`Way::Null`], which proves the program), by checkpoint and
//! restore on disk in the host's namespaces and in namespaces of its own, and by live moves to another node and back.

mod moves;
mod pool;
mod program;
mod report;
mod tree;

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

pub use moves::Moves;
pub use pool::Pool;
pub use program::{Program, all};
pub use report::{Results, table};

use crate::cluster::wait_for;

/// How long any step of a program may take.
const LIMIT: Duration = Duration::from_secs(30);

/// How a program is frozen and thawed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Way {
    /// Not at all.
    Null,
    /// Checkpoint and restore on disk, in the host's namespaces.
    Host,
    /// The same in namespaces of its own.
    Boxed,
    /// Live moves of a container there and back.
    Move,
}

impl Way {
    /// Those that freeze.
    pub const ALL: [Self; 3] = [Self::Host, Self::Boxed, Self::Move];

    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Host => "host",
            Self::Boxed => "boxed",
            Self::Move => "move",
        }
    }
}

/// What became of a program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All of it is as it was.
    Kept,
    /// It was refused before anything was changed, with these reasons, and is as it was.
    Refused(String),
    /// Something is not as it was.
    Lost(String),
    /// It could not be tried in this way; the program says why.
    Not(String),
}

/// Moves this process into a mount namespace of its own: what a program mounts reaches nobody else.
///
/// # Errors
/// When it has several threads or no capability.
pub fn apart() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNS).context("make a mount namespace")?;
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).context("make its mounts private")
}

/// Tries a program in a way that needs no hosts.
///
/// # Errors
/// When the attempt itself fails: a program that is never ready, a checkpoint that ends badly.
pub fn attempt(program: &Program, way: Way) -> Result<Outcome> {
    if let Some(reason) = program.not(way) {
        return Ok(Outcome::Not(reason.to_owned()));
    }
    let _pool = match Pool::of(program) {
        Ok(pool) => pool,
        Err(reason) => return Ok(Outcome::Not(reason)),
    };
    match way {
        Way::Null => tree::null(program),
        Way::Host => tree::on_disk(program, false),
        Way::Boxed => tree::on_disk(program, true),
        Way::Move => bail!("moves need hosts"),
    }
}

/// Waits until a program is ready and answers its process id, as it sees it itself.
fn ready(output: &mut dyn FnMut() -> String) -> Result<i32> {
    let pid = wait_for("the program is ready", LIMIT, || {
        let text = output();
        let said = text.lines().find_map(|line| line.strip_prefix("ready ")?.parse().ok());
        said.map(Ok).or_else(|| lost(&text).map(Err))
    })?;
    pid.map_err(|lost| anyhow::anyhow!("before it was ready: {lost}"))
}

/// Waits for a program's verdict.
fn verdict(output: &mut dyn FnMut() -> String) -> Result<Outcome> {
    wait_for("the program's verdict", LIMIT, || {
        let text = output();
        let kept = text.lines().any(|line| line == "ok");
        if kept { Some(Outcome::Kept) } else { lost(&text).map(Outcome::Lost) }
    })
}

fn lost(output: &str) -> Option<String> {
    output.lines().find_map(|line| line.strip_prefix("LOST ")).map(str::to_owned)
}

/// A refusal is an outcome only when the program goes on as if nothing had been.
fn refused(reasons: String, after: Outcome) -> Outcome {
    match after {
        Outcome::Kept => Outcome::Refused(reasons),
        Outcome::Lost(what) => Outcome::Lost(format!("{what}, after it was refused: {reasons}")),
        other => other,
    }
}

/// Where the programs are.
fn programs() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/conformance"))
}
