//! Landlock domains, which nothing tells of.
//!
//! A process in a domain may not look at one outside of it (landlock(7), "ptrace restrictions"). So a witness is made for
//! each user of each pid namespace of the tree: in that namespace, of the same user and group, without capabilities, in no domain but
//! the agent's own. A process that may not compare the witness with itself (kcmp(2)), although nothing else stands against
//! it, is in a domain. Domains are never left, so one question a thread is enough, asked when it stands still.

use std::collections::HashMap;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::thread;

use sys::clone::{Child, Identity, Spec, spawn_paused_as};
use sys::ns::{self, Kind, NetnsThread};
use sys::tape::{CallId, Outcome, Program};
use sys::{Errno, pidfd};

use super::error::SourceError;
use super::tree::Process;
use crate::proc::idmap::IdMaps;
use crate::proc::status::{self, Status};

/// `KCMP_VM`.
const KCMP_VM: i32 = 1;

/// Processes beside the tree, until they are dropped.
#[derive(Debug)]
pub(crate) struct Witnesses {
    root: i32,
    ids: IdMaps,
    /// Live as long as they do: they die with them. By pid namespace, 0 for the tree's.
    places: HashMap<u64, Arc<NetnsThread>>,
    /// By pid namespace and by user and group, as the tree numbers them: their numbers in that namespace.
    made: HashMap<(u64, u32, u32), (Child, i32)>,
}

impl Witnesses {
    /// For the tree of this root; none is made yet. On a kernel without Landlock none ever is.
    pub(crate) fn of(root: i32, ids: &IdMaps) -> Self {
        Self { root, ids: ids.clone(), places: HashMap::new(), made: HashMap::new() }
    }

    /// The witness for the threads of a process: its number in the pid namespace of that. `None` without Landlock.
    ///
    /// # Errors
    /// When it cannot be made.
    pub(crate) fn number(&mut self, of: &Process) -> Result<Option<i32>, SourceError> {
        if !sys::landlock::is_there() {
            return Ok(None);
        }
        let Some((uid, gid)) = self.who(&of.status) else { return Ok(None) };
        let who = (of.pid_namespace().unwrap_or(0), uid, gid);
        if let Some((_, number)) = self.made.get(&who) {
            return Ok(Some(*number));
        }
        let made = self.make(who, of.pid).map_err(|errno| {
            SourceError::kernel("make a process beside the tree, to find Landlock domains", self.root, errno)
        })?;
        let number = made.1;
        self.made.insert(who, made);
        Ok(Some(number))
    }

    /// Real user and group, which the kernel compares.
    fn who(&self, of: &Status) -> Option<(u32, u32)> {
        Some((self.ids.uid.inside(of.uid[0])?, self.ids.gid.inside(of.gid[0])?))
    }

    /// In the pid namespace of the process `beside`.
    fn make(&mut self, (namespace, uid, gid): (u64, u32, u32), beside: i32) -> Result<(Child, i32), Errno> {
        let user = match ns::id(self.root, Kind::User)? == ns::id_of(ns::open_own(Kind::User)?.as_fd())? {
            true => None,
            false => Some(ns::open(self.root, Kind::User)?),
        };
        let place = match self.places.get(&namespace) {
            Some(place) => Arc::clone(place),
            None => {
                let within = vec![(ns::open(beside, Kind::Pid)?, Kind::Pid)];
                let place = Arc::new(NetnsThread::start_within(within)?);
                self.places.insert(namespace, Arc::clone(&place));
                place
            }
        };
        let child = place.run(move || {
            let identity = Identity { user_namespace: user.as_ref().map(|fd| fd.as_fd()), uid, gid };
            spawn_paused_as(&Spec::default(), &identity)
        })??;
        let number = status::read(child.pid).map(|status| status.inner_pid()).map_err(|_| Errno::ESRCH);
        let pid = nix::unistd::Pid::from_raw(child.pid);
        // A namespace does not end before its last process is reaped, whoever killed that.
        let reaper = thread::Builder::new().name("reaper".to_owned());
        let reaping = reaper.spawn(move || nix::sys::wait::waitpid(pid, None));
        let made = (child, number?);
        match reaping {
            Ok(_) => Ok(made),
            Err(_) => {
                end(&made.0);
                Err(Errno::EAGAIN)
            }
        }
    }
}

fn end(child: &Child) {
    // It may have ended by itself.
    let _ = pidfd::send_signal(child.pidfd.as_fd(), libc::SIGKILL);
}

impl Drop for Witnesses {
    fn drop(&mut self) {
        self.made.values().for_each(|(child, _)| end(child));
    }
}

/// What a thread is asked.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Ask(Option<CallId>);

impl Ask {
    /// Adds the question to a program; `witness` as [`Witnesses::number`] says.
    pub(crate) fn add(program: &mut Program, witness: Option<i32>) -> Self {
        Self(witness.map(|witness| {
            let args = [witness.into(), witness.into(), KCMP_VM.into(), 0.into(), 0.into()];
            program.try_call(libc::SYS_kcmp, &args)
        }))
    }

    /// What the answer of a thread stands for: reason and way out. The witness is of the `process`'s user: of a thread
    /// that is somebody else it says nothing.
    pub(crate) fn refusal(
        &self,
        outcome: &Outcome,
        process: &Status,
        thread: &Status,
    ) -> Option<(&'static str, &'static str)> {
        let answer = outcome.result(self.0?);
        if answer >= 0 || (thread.uid[0], thread.gid[0]) != (process.uid[0], process.gid[0]) {
            return None;
        }
        if answer == -i64::from(libc::EPERM) {
            return Some((
                "it is in a Landlock domain: the rights that it took from itself are not carried yet",
                "start the program without its sandbox",
            ));
        }
        Some(("whether it is in a Landlock domain cannot be told", "try again in a moment"))
    }
}
