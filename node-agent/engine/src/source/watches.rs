//! What inotify(7) instances watch, as paths of the container.

use std::os::fd::{AsFd, AsRawFd};
use std::os::linux::fs::MetadataExt;

use image::files::InotifyWatch;
use image::namespaces::path_in;
use sys::Errno;

use super::descriptor::Class;
use super::error::{InspectError, TRY_AGAIN};
use super::findings::Findings;
use super::look::{ProcessLook, tables};
use super::view::View;
use crate::proc::fdinfo::InotifyLine;
use crate::proc::{links, mountinfo};

/// All rules about watches. `now`: they must be able to move at this moment.
pub(crate) fn check(
    processes: &[ProcessLook],
    view: &View,
    now: bool,
    findings: &mut Findings,
) -> Result<(), InspectError> {
    for (found, table) in tables(processes) {
        for descriptor in table.descriptors.iter().filter(|d| d.class == Class::Inotify) {
            let pid = table.task;
            if let Err(line) = paths(pid, &descriptor.info.inotify, view)? {
                findings.fd(
                    found.process.inner,
                    descriptor.fd,
                    format!(
                        "inotify watch {} on inode {} of device {}:{}: the file has no path in the container",
                        line.wd,
                        line.inode,
                        line.device >> 20,
                        line.device & 0xf_ffff
                    ),
                    "have the program close it before the move",
                );
            }
            if now && queued(pid, descriptor.fd)? > 0 {
                findings.fd(found.process.inner, descriptor.fd, "inotify events wait to be read", TRY_AGAIN);
            }
        }
    }
    Ok(())
}

fn queued(pid: i32, fd: i32) -> Result<u32, InspectError> {
    let asked = sys::pidfd::open_task(pid)
        .and_then(|pidfd| sys::pidfd::getfd(pidfd.as_fd(), fd))
        .and_then(|instance| sys::tcp::inq(instance.as_fd()));
    match asked {
        // Closed, or the process ended, since we looked.
        Err(Errno::EBADF | Errno::ESRCH) => Ok(0),
        other => other.map_err(|errno| InspectError::kernel("ask an inotify instance", pid, errno)),
    }
}

/// The watches of an instance; the inner `Err` is the first one whose file has no path.
pub(crate) fn paths(
    pid: i32,
    lines: &[InotifyLine],
    view: &View,
) -> Result<Result<Vec<InotifyWatch>, InotifyLine>, InspectError> {
    if lines.is_empty() {
        return Ok(Ok(Vec::new()));
    }
    let mounts = mountinfo::read(pid)?;
    let space = view.spaces.of_process(pid);
    let mut watches = Vec::with_capacity(lines.len());
    for line in lines {
        let number = (line.device >> 20, line.device & 0xf_ffff);
        let of_device = mounts.iter().filter(|m| (u64::from(m.device.0), u64::from(m.device.1)) == number);
        let path = of_device.filter_map(|mount| below(&path_in(space, &mount.point), line, view)).next();
        let Some(path) = path else { return Ok(Err(line.clone())) };
        watches.push(InotifyWatch { wd: line.wd, path, mask: line.mask });
    }
    Ok(Ok(watches))
}

/// The path of a watched file below a mount point of the container: the kernel finds the file by its handle. The
/// path must lead to it.
fn below(mount_point: &[u8], line: &InotifyLine, view: &View) -> Option<String> {
    let mount = view.open_directory(mount_point).ok()?;
    let file = sys::fds::open_handle(mount.as_fd(), line.handle_kind, &line.handle).ok()?;
    let own = i32::try_from(std::process::id()).ok()?;
    let name = format!("fd/{}", file.as_raw_fd());
    let path = view.placed(&links::read(own, &name).ok()?, view.mount_of(own, &name).ok()?);
    let metadata = links::metadata(own, &name).ok()?;
    let good = metadata.st_ino() == line.inode && view.leads_to(&path, &metadata);
    if good { String::from_utf8(path).ok() } else { None }
}
