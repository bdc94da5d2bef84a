//! What cannot be carried over, beside single mappings and descriptors.

use std::cmp::Ordering;
use std::path::Path;

use sys::{Errno, kcmp};

use super::error::InspectError;
use super::findings::Findings;
use super::look::Standstill;
use super::spec::{Namespaces, TreeSpec};
use super::tree::{Process, cgroup_members};
use crate::proc::idmap::IdMaps;
use crate::proc::status::Status;
use crate::proc::{ProcError, links, status};

/// Those that a thread can leave alone.
const THREAD_NAMESPACES: [&str; 4] = ["net", "mnt", "uts", "ipc"];

const END: &str = "end it before the move";

/// All rules about processes, threads and the tree. `stopped`: set while it stands still.
pub(crate) fn check(
    spec: &TreeSpec,
    tree: &[Process],
    ids: &IdMaps,
    stopped: Option<&Standstill>,
    findings: &mut Findings,
) -> Result<(), InspectError> {
    let Some(root) = tree.first() else {
        return Err(InspectError::NoSuchProcess { pid: spec.root });
    };
    if root.is_zombie() {
        return Err(InspectError::NoSuchProcess { pid: spec.root });
    }
    container_namespaces(spec, root, findings)?;
    let mut own = Vec::with_capacity(links::NAMESPACES.len());
    for name in links::NAMESPACES {
        own.push((name, namespace(root.pid, name)?));
    }
    for process in tree {
        // A process that ends while it is looked at is no reason to refuse.
        match check_process((root, &own), process, ids, stopped, findings) {
            Err(InspectError::Proc(error)) if error.is_gone() => {}
            other => other?,
        }
    }
    sharing(tree, findings)?;
    if let Some(cgroup) = &spec.cgroup {
        membership(cgroup, tree, findings)?;
        // While we trace it, it is frozen by us.
        if stopped.is_none() {
            frozen_already(cgroup, findings)?;
        }
    }
    Ok(())
}

fn check_process(
    (root, namespaces): (&Process, &[(&str, Option<u64>)]),
    process: &Process,
    ids: &IdMaps,
    stopped: Option<&Standstill>,
    findings: &mut Findings,
) -> Result<(), InspectError> {
    let pid = process.inner;
    let own_tracer = stopped.map_or(0, |stopped| stopped.tracer);
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
    if process.status.hugetlb_kb > 0 {
        findings.process(
            pid,
            "it uses huge pages from hugetlbfs, which are not carried yet",
            "use transparent huge pages instead",
        );
    }
    if is_32_bit(process.pid)? {
        findings.process(pid, "it is a 32-bit program", "use its 64-bit build");
    }
    label(process, findings);
    if let Some(reason) = unmapped(&process.status, ids) {
        findings.process(pid, reason, END);
    }
    for (name, ours) in namespaces.iter().filter(|_| process.pid != root.pid) {
        if namespace(process.pid, name)? != *ours {
            findings.process(
                pid,
                format!("it lives in another {name} namespace than the container's root: nested namespaces are not carried yet"),
                END,
            );
        }
    }
    if process.tids.len() > 1 {
        let own = THREAD_NAMESPACES.map(|name| namespace(process.pid, name));
        let [net, mnt, uts, ipc] = own;
        let own = [net?, mnt?, uts?, ipc?];
        for tid in process.tids.iter().skip(1) {
            check_thread(process, *tid, own, (ids, stopped), findings)?;
        }
    }
    Ok(())
}

fn check_thread(
    process: &Process,
    tid: i32,
    namespaces: [Option<u64>; 4],
    (ids, stopped): (&IdMaps, Option<&Standstill>),
    findings: &mut Findings,
) -> Result<(), InspectError> {
    let own_tracer = stopped.map_or(0, |stopped| stopped.tracer);
    let thread = match stopped.and_then(|stopped| stopped.statuses.get(&tid)) {
        Some(known) => known.clone(),
        None => match status::read_thread(process.pid, tid) {
            Ok(thread) => thread,
            Err(error) if error.is_gone() => return Ok(()),
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
    if let Some(reason) = unmapped(&thread, ids) {
        findings.thread(process.inner, thread.inner_pid(), reason, END);
    }
    let own = [
        ("descriptor table", kcmp::files(process.pid, tid)),
        ("working directory", kcmp::fs(process.pid, tid)),
    ];
    for (what, order) in own {
        match order {
            Ok(Ordering::Equal) | Err(Errno::ESRCH) => {}
            Ok(_) => findings.thread(
                process.inner,
                thread.inner_pid(),
                format!("it has a {what} of its own (unshare), which is not carried yet"),
                END,
            ),
            Err(errno) => return Err(InspectError::kernel("kcmp of a thread", tid, errno)),
        }
    }
    for (name, leader) in THREAD_NAMESPACES.into_iter().zip(namespaces) {
        match links::read(process.pid, &format!("task/{tid}/ns/{name}")) {
            Ok(link) if links::parse_bracketed(&link) == leader => {}
            Ok(_) => findings.thread(
                process.inner,
                thread.inner_pid(),
                format!("it lives in another {name} namespace than its process"),
                END,
            ),
            Err(error) if error.is_gone() => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
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

/// A namespace's number; `None` on kernels without that kind.
fn namespace(pid: i32, name: &str) -> Result<Option<u64>, InspectError> {
    match links::namespace(pid, name) {
        Ok(number) => Ok(Some(number)),
        Err(ProcError::Read { source, .. })
            if source.kind() == std::io::ErrorKind::NotFound
                && Path::new(&format!("/proc/{pid}/ns/pid")).is_symlink() =>
        {
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
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

/// Processes that share what processes usually have for themselves.
fn sharing(tree: &[Process], findings: &mut Findings) -> Result<(), InspectError> {
    type Compare = fn(i32, i32) -> sys::Result<Ordering>;
    let kinds: [(&str, Compare); 3] = [
        ("its address space (vfork or CLONE_VM)", kcmp::vm),
        ("its descriptor table (CLONE_FILES)", kcmp::files),
        ("its working directory (CLONE_FS)", kcmp::fs),
    ];
    for (what, compare) in kinds {
        // Sorted by the kernel's order. Inserted one by one, because a process that ends meanwhile has none.
        let mut sorted: Vec<&Process> = Vec::new();
        for process in tree.iter().filter(|process| !process.is_zombie()) {
            match place(&sorted, process, compare) {
                Ok(Ok(twin)) => findings.process(
                    process.inner,
                    format!("it shares {what} with process {}", sorted[twin].inner),
                    "try again in a moment; if it stays so, end one of them",
                ),
                Ok(Err(at)) => sorted.insert(at, process),
                Err(Errno::ESRCH) => {}
                Err(errno) => return Err(InspectError::kernel("kcmp", process.pid, errno)),
            }
        }
    }
    Ok(())
}

/// Where a process stands in the sorted ones: `Ok` with its equal, `Err` with the place to insert it.
fn place(
    sorted: &[&Process],
    process: &Process,
    compare: fn(i32, i32) -> sys::Result<Ordering>,
) -> sys::Result<Result<usize, usize>> {
    let (mut low, mut high) = (0, sorted.len());
    while low < high {
        let middle = usize::midpoint(low, high);
        match compare(sorted[middle].pid, process.pid)? {
            Ordering::Equal => return Ok(Ok(middle)),
            Ordering::Less => low = middle + 1,
            Ordering::Greater => high = middle,
        }
    }
    Ok(Err(low))
}

/// The cgroup and the tree must be the same processes.
fn membership(cgroup: &Path, tree: &[Process], findings: &mut Findings) -> Result<(), InspectError> {
    let members = cgroup_members(cgroup)
        .map_err(|source| ProcError::Read { path: cgroup.display().to_string(), source })?;
    for pid in &members {
        if !tree.iter().any(|process| process.pid == *pid) {
            // It may have been born between the two looks.
            let Ok(status) = status::read(*pid) else {
                continue;
            };
            findings.process(
                status.inner_pid(),
                format!("process {pid} (host numbering) is in the container's cgroup but not below its root: it came from outside"),
                "end what was started with exec in the container",
            );
        }
    }
    for process in tree.iter().filter(|process| !process.is_zombie()) {
        if !members.contains(&process.pid) {
            findings.process(process.inner, "it is not in the container's cgroup", END);
        }
    }
    Ok(())
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
