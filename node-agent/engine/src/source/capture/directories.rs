//! Working and root directories, of processes and of threads that have their own.

use image::namespaces::split_path;
use image::state::Directories;

use crate::proc::{self, ProcError};
use crate::source::error::{InspectError, SourceError};
use crate::source::findings::Findings;
use crate::source::look::ProcessLook;
use crate::source::registry::{Handle, Registry};
use crate::source::traced::ParkedThread;
use crate::source::view::View;

/// How links of /proc end when what they lead to has no name.
const DELETED: &[u8] = b" (deleted)";

/// Reads the umask and directories of a thread that has its own.
pub(crate) fn of_thread(
    found: &ProcessLook,
    parked: &ParkedThread,
    view: &View,
    findings: &mut Findings,
) -> Result<Directories, SourceError> {
    let task = format!("task/{}/", parked.tid);
    Ok(Directories {
        umask: parked.status.umask.unwrap_or(0o022),
        cwd: directory(found, &task, "cwd", view, findings)?,
        root: directory(found, &task, "root", view, findings)?,
    })
}

/// Where `cwd` or `root` of a process leads, or of a thread of it, which `task` stands for.
pub(crate) fn directory(
    found: &ProcessLook,
    task: &str,
    name: &str,
    view: &View,
    findings: &mut Findings,
) -> Result<String, ProcError> {
    let (pid, link) = (found.process.pid, format!("{task}{name}"));
    let path = view.placed(&proc::links::read(pid, &link)?, view.mount_of(pid, &link)?);
    let (space, path) = split_path(&path);
    if space != found.namespaces.mnt {
        elsewhere(found, name, findings);
    }
    // A working directory of the whole process is made again.
    let made_again = task.is_empty() && name == "cwd";
    if path.ends_with(DELETED) && !made_again {
        findings.process(
            found.process.inner,
            format!("its {name} directory was deleted"),
            "try again in a moment; if it stays so, have it change to another directory",
        );
    }
    Ok(String::from_utf8(path.to_vec()).unwrap_or_else(|_| {
        findings.process(
            found.process.inner,
            format!("the path of its {name} directory is not UTF-8"),
            "rename the directory",
        );
        String::new()
    }))
}

fn elsewhere(found: &ProcessLook, name: &str, findings: &mut Findings) {
    findings.process(
        found.process.inner,
        format!("its {name} directory is on a mount of another mount namespace than its own"),
        "have it change to another directory",
    );
}

/// Before anything stands still: directories that are found to lie in another mount namespace than their process later on.
pub(crate) fn check(
    processes: &[ProcessLook],
    view: &View,
    findings: &mut Findings,
) -> Result<(), InspectError> {
    if view.spaces.is_empty() {
        return Ok(());
    }
    for found in processes.iter().filter(|found| !found.process.is_zombie()) {
        for name in ["cwd", "root"] {
            match view.mount_of(found.process.pid, name) {
                Ok(mount) if mount.map_or(0, |mount| view.spaces.of_mount(mount)) == found.namespaces.mnt => {
                }
                // It may have left its namespace meanwhile.
                Ok(_) if !stays(found, view)? => {}
                Ok(_) => elsewhere(found, name, findings),
                // It has ended.
                Err(error) if error.is_gone() => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(())
}

/// It is in the mount namespace in which it was found.
fn stays(found: &ProcessLook, view: &View) -> Result<bool, InspectError> {
    let read = |pid: i32| proc::links::namespace(pid, "mnt");
    let here = || if found.namespaces.mnt == 0 { read(view.root) } else { Ok(found.namespaces.mnt) };
    match read(found.process.pid).and_then(|number| Ok(number == here()?)) {
        Ok(stays) => Ok(stays),
        Err(error) if error.is_gone() => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// What the working directory is when it has no name any more. `shown`: what its link says.
pub(crate) fn deleted(
    found: &ProcessLook,
    shown: &str,
    view: &View,
    registry: &mut Registry,
) -> Result<Option<u32>, SourceError> {
    if !shown.as_bytes().ends_with(DELETED) {
        return Ok(None);
    }
    let pid = found.process.pid;
    let file = view.file(pid, "cwd")?;
    let path = String::from_utf8_lossy(&file.path);
    let handle = Handle { pid, link: "cwd".to_owned() };
    Ok(file.deleted.then(|| registry.ghost_directory(file.key(), &path, handle)))
}
