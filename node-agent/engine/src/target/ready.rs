//! A complete copy that waits.

use std::marker::PhantomData;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use sys::cgroup::Freezer;

use crate::account;

use super::error::TargetError;
use super::files::Aside;
use super::tree::Tree;

/// How long the cgroup may take to freeze: its tasks stand still already.
const FREEZE_LIMIT: Duration = Duration::from_secs(5);
/// How long killed tasks may take to be gone.
const KILL_LIMIT: Duration = Duration::from_secs(10);

/// A complete copy that waits. It has no time limit.
#[derive(Debug)]
pub struct Ready {
    root_pid: i32,
    held: Held,
    aside: Vec<Aside>,
    /// Connections with bytes that were never sent: without a push they would wait for a timer of the kernel.
    waiting: Vec<OwnedFd>,
    not_send: PhantomData<*const ()>,
}

/// What holds the copy.
#[derive(Debug)]
enum Held {
    /// Its cgroup; nothing of this process does.
    Frozen(Freezer),
    /// ptrace(2): it dies with this thread.
    Traced(Tree),
}

impl Ready {
    pub(super) fn new(
        tree: Tree,
        aside: Vec<Aside>,
        waiting: Vec<OwnedFd>,
        cgroup: Option<&Path>,
    ) -> Result<Self, TargetError> {
        let root_pid = tree.root_host();
        let held = match cgroup {
            None => Held::Traced(tree),
            Some(path) => {
                let freezer =
                    Freezer::open(path).map_err(TargetError::errno(format!("open {}", path.display())))?;
                freezer.request_freeze().map_err(TargetError::errno("freeze the cgroup"))?;
                fail::fail_point!("target-ready-frozen");
                account::lap("restore.freeze");
                let let_go = tree.detach().and_then(|()| {
                    account::lap("restore.detach");
                    freezer
                        .wait_frozen(FREEZE_LIMIT)
                        .map_err(TargetError::errno("wait for the frozen cgroup"))
                });
                if let Err(error) = let_go {
                    let _ = freezer.kill();
                    return Err(error);
                }
                account::lap("restore.frozen");
                Held::Frozen(freezer)
            }
        };
        Ok(Self { root_pid, held, aside, waiting, not_send: PhantomData })
    }

    /// The root process's pid, as this process sees it.
    #[must_use]
    pub fn root_pid(&self) -> i32 {
        self.root_pid
    }

    /// Lets the container run.
    ///
    /// # Errors
    /// When the cgroup cannot be thawed: the copy still waits in it.
    pub fn resume(self) -> Result<(), TargetError> {
        match self.held {
            Held::Frozen(freezer) => freezer.thaw().map_err(TargetError::errno("thaw the cgroup"))?,
            Held::Traced(tree) => tree.detach()?,
        }
        for connection in &self.waiting {
            if let Err(error) = sys::tcp::push(connection.as_fd()) {
                tracing::debug!(%error, "unsent bytes wait for a timer");
            }
        }
        self.aside.iter().for_each(Aside::forget);
        Ok(())
    }

    /// Kills the copy and waits until it is gone.
    pub fn discard(self) {
        match self.held {
            Held::Frozen(freezer) => {
                if let Err(error) = freezer.kill().and_then(|()| freezer.wait_empty(KILL_LIMIT)) {
                    tracing::error!(cgroup = %freezer.path().display(), %error, "a discarded copy may still be there");
                }
            }
            Held::Traced(tree) => drop(tree),
        }
        self.aside.iter().for_each(Aside::undo);
    }
}
