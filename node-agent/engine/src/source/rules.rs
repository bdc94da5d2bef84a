//! What cannot be carried over, beside single mappings and descriptors.

use std::cell::OnceCell;
use std::cmp::Ordering;
use std::collections::{HashMap, HashSet};
use std::path::Path;

use image::namespaces::Nested;
use image::shape::Shared;
use sys::{Errno, kcmp};

use super::error::{InspectError, TRY_AGAIN};
use super::findings::Findings;
use super::look::Standstill;
use super::namespaces::{Own, Spaces, namespace};
use super::sharing::{self, Apart, SharedOf, Sharing};
use super::spec::{Namespaces, TreeSpec};
use super::tree::{Process, cgroup_members};
use crate::proc::idmap::IdMaps;
use crate::proc::status::Status;
use crate::proc::{ProcError, links, stat, status};

/// Those that a thread can leave alone: of its process, and what must be the same of the thread.
const THREAD_NAMESPACES: [(&str, &str); 5] =
    [("net", "net"), ("mnt", "mnt"), ("uts", "uts"), ("ipc", "ipc"), ("time", "time_for_children")];

/// CAP_SYS_ADMIN, without which no namespace can be left, see namespaces(7): but for user_namespaces(7), whose number is
/// compared each time. In a mask of capabilities.
const SYS_ADMIN: u64 = 1 << 21;

/// Processes, by pid and start time, whose namespaces and those of their threads were found to be carried, and
/// which can neither leave them nor get the capability to do so; with the number of their user namespace.
pub(crate) type Settled = HashMap<(i32, u64), Option<u64>>;

/// What [`check`] goes by.
pub(crate) struct Rules<'a> {
    /// The tree as it was given.
    pub(crate) spec: &'a TreeSpec,
    /// Users and groups of its user namespace.
    pub(crate) ids: &'a IdMaps,
    /// Set while it stands still.
    pub(crate) stopped: Option<&'a Standstill>,
    /// What is known from one look to the next.
    pub(crate) settled: &'a mut Settled,
    /// Threads that do not share their descriptor table or directories with their process.
    pub(crate) apart: &'a mut Vec<Apart>,
    /// What processes share.
    pub(crate) shared: &'a mut SharedOf,
    /// Processes with other namespaces than the container's which are carried, by pid and start time.
    pub(crate) nested: &'a mut HashMap<(i32, u64), Nested>,
}

/// `PF_EXITING` of proc_pid_stat(5).
const PF_EXITING: u64 = 4;

pub(super) const END: &str = "end it before the move";

/// All rules about processes, threads and the tree.
pub(crate) fn check(
    rules: &mut Rules<'_>,
    tree: &[Process],
    findings: &mut Findings,
) -> Result<(), InspectError> {
    let spec = rules.spec;
    let Some(root) = tree.first() else {
        return Err(InspectError::NoSuchProcess { pid: spec.root });
    };
    if root.is_zombie() {
        return Err(InspectError::NoSuchProcess { pid: spec.root });
    }
    container_namespaces(spec, root, findings)?;
    let own = Own(root.pid, OnceCell::new());
    let spaces = Spaces::of(&own, tree)?;
    let keys: HashSet<(i32, u64)> = tree.iter().map(Process::key).collect();
    rules.settled.retain(|key, _| keys.contains(key));
    rules.nested.retain(|key, _| keys.contains(key));
    rules.apart.clear();
    for process in tree {
        // A process that ends while it is looked at is no reason to refuse.
        match check_process(rules, &own, &spaces, process, findings) {
            Err(InspectError::Proc(error)) if error.is_gone() => {}
            other => other?,
        }
    }
    spaces.check_children(rules.nested, tree, findings);
    sharing::address_spaces(tree, findings)?;
    let mut shared = Sharing::look(tree)?;
    shared.threads(rules.apart, findings)?;
    *rules.shared = shared.of;
    if let Some(cgroup) = &spec.cgroup {
        membership(cgroup, tree, rules.stopped.is_some(), findings)?;
        // While we trace it, it is frozen by us.
        if rules.stopped.is_none() {
            frozen_already(cgroup, findings)?;
        }
    }
    Ok(())
}

fn check_process(
    rules: &mut Rules<'_>,
    root: &Own,
    spaces: &Spaces<'_>,
    process: &Process,
    findings: &mut Findings,
) -> Result<(), InspectError> {
    let pid = process.inner;
    let own_tracer = rules.stopped.map_or(0, |stopped| stopped.tracer);
    if process.is_zombie() {
        if process.tids.len() > 1 {
            findings.process(pid, "its main thread has exited while others run", END);
        }
        return Ok(());
    }
    if process.status.tracer != own_tracer && process.status.tracer != 0 {
        findings.process(
            pid,
            format!("it is being traced by process {} (host numbering)", process.status.tracer),
            "detach the debugger or tracer",
        );
    }
    if process.stat.tty_nr != 0 && super::terminals::controlling(&process.stat).is_none() {
        findings.process(
            pid,
            "its controlling terminal is one of this host",
            "start it without a terminal (setsid, no -t)",
        );
    }
    if is_32_bit(process.pid)? {
        findings.process(pid, "it is a 32-bit program", "use its 64-bit build");
    }
    label(process, findings);
    if let Some(reason) = unmapped(&process.status, rules.ids) {
        findings.process(pid, reason, END);
    }
    let user = namespace(process.pid, "user")?;
    let settled = rules.settled.get(&process.key()) == Some(&user);
    let before = findings.list.len();
    if !settled {
        let is_root = process.pid == root.0;
        let mut nested = Nested::default();
        let all = root.all()?;
        let time = all.iter().find(|(name, _)| *name == "time").and_then(|(_, number)| *number);
        for (name, ours) in all {
            // What the first process has itself is the container's.
            let own = if is_root && *name == "time_for_children" { &time } else { ours };
            match (*name, namespace(process.pid, name)?) {
                ("pid_for_children", None) => nested.pid_for_children = Nested::NEW,
                ("pid_for_children", Some(theirs)) if spaces.takes(process, theirs) => {
                    nested.pid_for_children = if theirs == spaces.own(process) { 0 } else { theirs };
                }
                (name, theirs) if theirs == *own && name != "pid_for_children" => {}
                // The walk over the tree has found where it is.
                ("pid", Some(theirs)) if process.pid_namespace() == Some(theirs) => {}
                ("uts", Some(theirs)) => nested.uts = theirs,
                ("ipc", Some(theirs)) => nested.ipc = theirs,
                ("mnt", Some(theirs)) if rules.spec.mounts.has(theirs).is_some() => {
                    nested.mnt = theirs;
                    match (rules.spec.mounts.has(theirs), rules.stopped) {
                        (Some(false), None) => rules.spec.mounts.add(theirs),
                        (Some(false), Some(_)) => {
                            let reason = "it has just made a mount namespace, or entered another one";
                            findings.process(pid, reason, TRY_AGAIN);
                        }
                        _ => {}
                    }
                }
                _ => findings.process(
                    pid,
                    format!("it lives in another {name} namespace than the container's root: nested namespaces of this kind are not carried yet"),
                    END,
                ),
            }
        }
        if nested.is_none() {
            rules.nested.remove(&process.key());
        } else {
            rules.nested.insert(process.key(), nested);
        }
    }
    let mut may = may_leave(&process.status);
    if process.tids.len() > 1 {
        let own = if settled {
            None
        } else {
            let [net, mnt, uts, ipc, time] = THREAD_NAMESPACES.map(|(name, _)| namespace(process.pid, name));
            Some([net?, mnt?, uts?, ipc?, time?, Some(spaces.own(process))])
        };
        for tid in process.tids.iter().skip(1) {
            may |= check_thread(rules, process, *tid, own, findings)?;
        }
    }
    if !settled && !may && findings.list.len() == before {
        rules.settled.insert(process.key(), user);
    }
    Ok(())
}

/// Whether a thread can leave namespaces, or can get to be able to.
fn may_leave(status: &Status) -> bool {
    status.caps.iter().any(|caps| caps & SYS_ADMIN != 0)
}

/// `namespaces`: those of its process; `None` when they are known to be the same. Answers whether it can leave them.
fn check_thread(
    rules: &mut Rules<'_>,
    process: &Process,
    tid: i32,
    namespaces: Option<[Option<u64>; 6]>,
    findings: &mut Findings,
) -> Result<bool, InspectError> {
    let stopped = rules.stopped;
    let own_tracer = stopped.map_or(0, |stopped| stopped.tracer);
    let thread = match stopped.and_then(|stopped| stopped.statuses.get(&tid)) {
        Some(known) => known.clone(),
        None => match status::read_thread(process.pid, tid) {
            Ok(thread) => thread,
            Err(error) if error.is_gone() => return Ok(false),
            Err(error) => return Err(error.into()),
        },
    };
    if thread.tracer != own_tracer && thread.tracer != 0 && process.status.tracer == own_tracer {
        findings.thread(
            process.inner,
            thread.inner_pid(),
            format!("it is being traced by process {} (host numbering)", thread.tracer),
            "detach the debugger or tracer",
        );
    }
    if let Some(reason) = unmapped(&thread, rules.ids) {
        findings.thread(process.inner, thread.inner_pid(), reason, END);
    }
    let inner = thread.pid_at(process.depth);
    let is_own = |compared| match compared {
        Ok(Ordering::Equal) | Err(Errno::ESRCH) => Ok(false),
        Ok(_) => Ok(true),
        Err(errno) => Err(InspectError::kernel("kcmp of a thread", tid, errno)),
    };
    let (files, directories) = (is_own(kcmp::files(process.pid, tid))?, is_own(kcmp::fs(process.pid, tid))?);
    if files && matches!(sys::pidfd::open_task(tid), Err(Errno::EINVAL)) {
        findings.thread(
            process.inner,
            inner,
            "it has a descriptor table of its own (unshare), and this kernel leads to no thread's (Linux before 6.9)",
            END,
        );
    } else if files || directories {
        let shared = Shared::default();
        rules.apart.push(Apart { tid, process: process.inner, inner, files, directories, shared });
    }
    let names = THREAD_NAMESPACES.into_iter().map(|(_, name)| name).chain(["pid_for_children"]);
    for (name, leader) in names.zip(namespaces.into_iter().flatten()) {
        match links::read(process.pid, &format!("task/{tid}/ns/{name}")) {
            Ok(link) if links::parse_bracketed(&link) == leader => {}
            // A pid namespace that has no process yet has no link either.
            Err(error)
                if error.is_gone()
                    && (name != "pid_for_children"
                        || links::read(process.pid, &format!("task/{tid}/ns/net")).is_err()) => {}
            Err(error) if !error.is_gone() => return Err(error.into()),
            _ => findings.thread(
                process.inner,
                thread.inner_pid(),
                format!("it lives in another {name} namespace than its process"),
                END,
            ),
        }
    }
    Ok(may_leave(&thread))
}

/// A user or group that the container's user namespace does not have: it could not be set inside.
fn unmapped(status: &Status, ids: &IdMaps) -> Option<String> {
    let user = status.uid.iter().find(|id| ids.uid.inside(**id).is_none()).map(|id| ("user", id));
    let mut groups = status.gid.iter().chain(&status.groups);
    let found = user.or_else(|| groups.find(|id| ids.gid.inside(**id).is_none()).map(|id| ("group", id)));
    found.map(|(what, id)| {
        format!("its {what} {id} (host numbering) is not mapped in the container's user namespace")
    })
}

fn container_namespaces(
    spec: &TreeSpec,
    root: &Process,
    findings: &mut Findings,
) -> Result<(), InspectError> {
    if spec.namespaces == Namespaces::Own {
        return Ok(());
    }
    let own = i32::try_from(std::process::id()).unwrap_or(0);
    for name in links::NAMESPACES {
        if namespace(root.pid, name)? != namespace(own, name)? {
            findings.container(
                format!("the tree's root has its own {name} namespace, but was given as a tree of this host"),
                "move it as a container",
            );
        }
    }
    Ok(())
}

/// A confinement by AppArmor, SELinux or another security module.
fn label(process: &Process, findings: &mut Findings) {
    let Ok(label) = crate::proc::read(process.pid, "attr/current") else {
        return;
    };
    let own = crate::proc::read_path("/proc/self/attr/current").unwrap_or_default();
    let label = label.trim_ascii_end().trim_suffix_nul();
    if !label.is_empty() && label != own.trim_ascii_end().trim_suffix_nul() {
        findings.process(
            process.inner,
            format!(
                "it is confined by a security module ({}), which is not carried yet",
                String::from_utf8_lossy(label)
            ),
            "run it unconfined, or without a profile of its own",
        );
    }
}

trait TrimNul {
    fn trim_suffix_nul(&self) -> &[u8];
}

impl TrimNul for [u8] {
    fn trim_suffix_nul(&self) -> &[u8] {
        self.strip_suffix(b"\0").unwrap_or(self)
    }
}

fn is_32_bit(pid: i32) -> Result<bool, InspectError> {
    use std::io::Read;
    let path = format!("/proc/{pid}/exe");
    let mut head = [0; 5];
    match std::fs::File::open(&path).and_then(|mut file| file.read_exact(&mut head)) {
        Ok(()) => Ok(head[..4] == *b"\x7fELF" && head[4] == 1),
        Err(source) => Err(ProcError::Read { path, source }.into()),
    }
}

/// The cgroup and the tree must be the same processes. While they run, some are born and some end between the looks at
/// the one and at the other.
fn membership(
    cgroup: &Path,
    tree: &[Process],
    stopped: bool,
    findings: &mut Findings,
) -> Result<(), InspectError> {
    let members = cgroup_members(cgroup)
        .map_err(|source| ProcError::Read { path: cgroup.display().to_string(), source })?;
    let known: HashSet<i32> = tree.iter().map(|process| process.pid).collect();
    for pid in &members {
        if !known.contains(pid) {
            let Ok(status) = status::read(*pid) else {
                continue;
            };
            if !stopped && descends(*pid, &known) {
                continue;
            }
            findings.process(
                status.inner_pid(),
                format!("process {pid} (host numbering) is in the container's cgroup but not below its root: it came from outside"),
                "end what was started with exec in the container",
            );
        }
    }
    for process in tree.iter().filter(|process| !process.is_zombie()) {
        if members.binary_search(&process.pid).is_err() {
            if !stopped && ends(process.pid) {
                continue;
            }
            findings.process(process.inner, "it is not in the container's cgroup", END);
        }
    }
    Ok(())
}

/// Whether a process has ended, or has begun to: it gives back what it has before it is a zombie.
pub(super) fn ends(pid: i32) -> bool {
    stat::read(pid).map_or_else(
        |error| error.is_gone(),
        |stat| matches!(stat.state, b'Z' | b'X') || stat.flags & PF_EXITING != 0,
    )
}

/// Whether a process has one of these as an ancestor, or it or an ancestor has just ended.
fn descends(pid: i32, known: &HashSet<i32>) -> bool {
    let mut at = pid;
    loop {
        match stat::read(at) {
            Ok(stat) if known.contains(&stat.ppid) => return true,
            // It was waited for at this moment, and shows neither parent nor group any more.
            Ok(stat) if stat.pgrp < 0 => return true,
            Ok(stat) if stat.ppid > 1 => at = stat.ppid,
            Ok(_) => return false,
            // Whoever it descends from has ended meanwhile.
            Err(error) => return error.is_gone(),
        }
    }
}

fn frozen_already(cgroup: &Path, findings: &mut Findings) -> Result<(), InspectError> {
    let read = |name: &str| {
        let path = cgroup.join(name);
        std::fs::read_to_string(&path)
            .map_err(|source| ProcError::Read { path: path.display().to_string(), source })
    };
    if read("cgroup.events")?.lines().any(|line| line == "frozen 1") || read("cgroup.freeze")?.trim() == "1" {
        findings.container("it is frozen already", "thaw it first");
    }
    Ok(())
}
