//! Which namespaces the tree is in, and what those hold that processes have beside the container's own.

use std::cell::OnceCell;
use std::collections::{BTreeSet, HashMap};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use image::namespaces::{Contents, Namespace, Nested};
use nix::sys::utsname::uname;
use sys::Errno;
use sys::ns::{self, Kind};

use super::error::InspectError;
use super::findings::Findings;
use super::mqueue;
use super::rules::END;
use super::spec::MountNamespaces;
use super::sysv::Tables;
use super::tree::Process;
use crate::proc::{ProcError, ipc, links};

const REMOVE: &str = "remove it, or end the program, before the move";

/// Looks into each of them once, through the first process that is in it.
pub(crate) fn look(
    tree: &[Process],
    nested: &HashMap<(i32, u64), Nested>,
    findings: &mut Findings,
) -> Result<Vec<Namespace>, InspectError> {
    let mut all = Vec::new();
    if nested.is_empty() {
        return Ok(all);
    }
    let mut seen = BTreeSet::new();
    for process in tree {
        let Some(Nested { uts, ipc, .. }) = nested.get(&process.key()).copied() else { continue };
        for (kind, id) in [(Kind::Uts, uts), (Kind::Ipc, ipc)] {
            if id == 0 || seen.contains(&(kind, id)) {
                continue;
            }
            if let Some(contents) = contents(process, kind, findings)? {
                seen.insert((kind, id));
                all.push(Namespace { id, contents });
            }
        }
    }
    Ok(all)
}

/// Which mount namespaces processes are in by now, of those that are described: many are made while the tree runs.
pub(crate) fn follow_mounts(
    tree: &[Process],
    described: &MountNamespaces,
    nested: &mut HashMap<(i32, u64), Nested>,
) -> Result<(), InspectError> {
    for process in tree.iter().filter(|process| !process.is_zombie()) {
        let number = match namespace(process.pid, "mnt") {
            Ok(number) => number.filter(|number| described.has(*number) == Some(true)).unwrap_or(0),
            Err(InspectError::Proc(error)) if error.is_gone() => continue,
            Err(error) => return Err(error),
        };
        if number != 0 {
            nested.entry(process.key()).or_default().mnt = number;
        } else if let Some(known) = nested.get_mut(&process.key()) {
            known.mnt = 0;
        }
    }
    nested.retain(|_, known| !known.is_none());
    Ok(())
}

/// What is in one; `None`: the process has ended meanwhile.
fn contents(
    process: &Process,
    kind: Kind,
    findings: &mut Findings,
) -> Result<Option<Contents>, InspectError> {
    let kernel = |what: &'static str| move |errno| InspectError::kernel(what, process.pid, errno);
    let namespace = match ns::open(process.pid, kind) {
        Ok(namespace) => namespace,
        Err(Errno::ENOENT | Errno::ESRCH) => return Ok(None),
        Err(errno) => return Err(kernel("open a nested namespace")(errno)),
    };
    let enter = kernel("enter a nested namespace");
    if kind == Kind::Uts {
        let names = ns::within(namespace.as_fd(), kind, uname).map_err(enter)?;
        let names = names.map_err(kernel("read the names of a nested UTS namespace"))?;
        let bytes = |name: &std::ffi::OsStr| name.as_bytes().to_vec();
        return Ok(Some(Contents::Uts { host: bytes(names.nodename()), domain: bytes(names.domainname()) }));
    }
    let (tables, queues, settings) =
        ns::within(namespace.as_fd(), kind, || (Tables::read(), mqueue::list(), ipc::settings()))
            .map_err(enter)?;
    let tables = tables?;
    let kinds = [
        ("System V shared memory", &tables.segments),
        ("System V semaphores", &tables.semaphores),
        ("a System V message queue", &tables.queues),
    ];
    let found = kinds.into_iter().filter(|(_, rows)| !rows.is_empty()).map(|(what, _)| what.to_owned());
    let queues = queues.map_err(kernel("list POSIX message queues"))?.queues;
    let name =
        |seen: mqueue::Seen| format!("POSIX message queue /{}", String::from_utf8_lossy(&seen.queue.name));
    for what in found.chain(queues.into_iter().map(name)) {
        findings.process(
            process.inner,
            format!("it lives in another IPC namespace than the container's root with {what} in it, which is not carried yet"),
            REMOVE,
        );
    }
    Ok(Some(Contents::Ipc { settings: settings? }))
}

/// Namespaces of the root, read when they are needed.
pub(super) struct Own(pub(super) i32, pub(super) OnceCell<Vec<(&'static str, Option<u64>)>>);

impl Own {
    pub(super) fn all(&self) -> Result<&[(&'static str, Option<u64>)], InspectError> {
        if self.1.get().is_none() {
            let read = |name| Ok::<_, InspectError>((name, namespace(self.0, name)?));
            let all: Vec<_> = links::NAMESPACES.into_iter().map(read).collect::<Result<_, _>>()?;
            let _ = self.1.set(all);
        }
        Ok(self.1.get().map_or(&[], Vec::as_slice))
    }
}

/// The pid namespaces of the tree.
pub(super) struct Spaces<'a> {
    /// The container's.
    root: u64,
    /// The first processes of those below it, by the namespace's number.
    inits: HashMap<u64, &'a Process>,
}

impl<'a> Spaces<'a> {
    pub(super) fn of(root: &Own, tree: &'a [Process]) -> Result<Self, InspectError> {
        let init = |process: &'a Process| {
            let level = process.levels.last().filter(|level| level.pid == 1 && !process.is_zombie())?;
            Some((level.namespace, process))
        };
        let inits: HashMap<u64, &Process> = tree.iter().filter_map(init).collect();
        let own = root.all()?.iter().find(|(name, _)| *name == "pid").and_then(|(_, number)| *number);
        Ok(Self { root: own.unwrap_or(0), inits })
    }

    /// The one that a process is in.
    pub(super) fn own(&self, process: &Process) -> u64 {
        process.pid_namespace().unwrap_or(self.root)
    }

    /// Whether the children of a process may be in that one.
    pub(super) fn takes(&self, process: &Process, namespace: u64) -> bool {
        let path = |process: &Process| process.levels.iter().map(|level| level.namespace).collect::<Vec<_>>();
        namespace == self.own(process)
            || self.inits.get(&namespace).is_some_and(|init| path(init).starts_with(&path(process)))
    }

    /// That no namespace which children would be born into has ended meanwhile.
    pub(super) fn check_children(
        &self,
        nested: &HashMap<(i32, u64), Nested>,
        tree: &[Process],
        findings: &mut Findings,
    ) {
        for process in tree {
            let children = nested.get(&process.key()).map_or(0, |nested| nested.pid_for_children);
            if children != 0 && children != Nested::NEW && !self.inits.contains_key(&children) {
                findings.process(
                    process.inner,
                    "the pid namespace that its children would be born into (pid_for_children) has ended",
                    END,
                );
            }
        }
    }
}

/// A namespace's number; `None` on kernels without that kind.
pub(super) fn namespace(pid: i32, name: &str) -> Result<Option<u64>, InspectError> {
    match links::namespace(pid, name) {
        Ok(number) => Ok(Some(number)),
        // Nobody lives in the one that its children will begin. What is ending has no other namespaces either.
        Err(ProcError::Read { source, .. })
            if source.kind() == std::io::ErrorKind::NotFound
                && name == "pid_for_children"
                && links::namespace(pid, "net").is_ok() =>
        {
            Ok(None)
        }
        Err(ProcError::Read { source, .. })
            if source.kind() == std::io::ErrorKind::NotFound
                // A process that is ending has none of any kind.
                && !Path::new(&format!("/proc/self/ns/{name}")).is_symlink() =>
        {
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}
