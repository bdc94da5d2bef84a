//! Device nodes and links in /dev.

use std::os::fd::OwnedFd;
use std::path::Path;

use oci_spec::runtime::{LinuxDevice, LinuxDeviceType, Spec};
use rustix::fs::{AtFlags, FileType, Gid, Mode, Uid, chmodat, chownat, makedev, mknodat, symlinkat};
use rustix::io::Errno;
use rustix::mount::mount_bind;

use super::path::{self, Want};
use super::{Context as _, InitError, refuse};

/// Nodes that every container has: name, major, minor.
const NODES: [(&str, u32, u32); 6] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];

/// Links that every container has.
const LINKS: [(&str, &str); 5] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
];

/// Makes the nodes and links that are missing.
pub(super) fn all(spec: &Spec, root: &OwnedFd) -> Result<(), InitError> {
    // Without a /dev of its own the container uses what its root directory has.
    let mounts = spec.mounts().as_deref().unwrap_or_default();
    if !mounts.iter().any(|mount| mount.destination() == Path::new("/dev")) {
        return spec
            .linux()
            .iter()
            .flat_map(|linux| linux.devices().iter().flatten())
            .try_for_each(|d| extra(root, d));
    }
    let dev = path::make(root, Path::new("dev"), Want::Directory).step(|| "make /dev".to_owned())?;
    for (name, major, minor) in NODES {
        let what = || format!("make /dev/{name}");
        match node(&dev, Path::new(name), FileType::CharacterDevice, 0o666, makedev(major, minor)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(Errno::PERM) => bind(&dev, &Path::new("/dev").join(name), Path::new(name)).step(what)?,
            Err(error) => return Err(error).step(what),
        }
    }
    for (name, target) in LINKS {
        match symlinkat(target, &dev, name) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error).step(|| format!("link /dev/{name}")),
        }
    }
    for device in spec.linux().iter().flat_map(|linux| linux.devices().iter().flatten()) {
        extra(root, device)?;
    }
    Ok(())
}

fn extra(root: &OwnedFd, device: &LinuxDevice) -> Result<(), InitError> {
    let place = device.path();
    let what = || format!("make {}", place.display());
    let (Some(parent), Some(name)) = (place.parent(), place.file_name()) else {
        return refuse(what(), "it is not a path of a file");
    };
    let kind = match device.typ() {
        LinuxDeviceType::B => FileType::BlockDevice,
        LinuxDeviceType::C | LinuxDeviceType::U => FileType::CharacterDevice,
        LinuxDeviceType::P => FileType::Fifo,
        LinuxDeviceType::A => return refuse(what(), "its type must be c, b, u or p"),
    };
    let number = |value: i64| u32::try_from(value).unwrap_or_default();
    let parent = path::make(root, parent, Want::Directory).step(what)?;
    let mode = device.file_mode().unwrap_or(0o666) & 0o7777;
    let wanted = makedev(number(device.major()), number(device.minor()));
    match node(&parent, Path::new(name), kind, mode, wanted) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(Errno::PERM) => {
            let here = rustix::fs::stat(place).step(what)?;
            if FileType::from_raw_mode(here.st_mode) != kind || here.st_rdev != wanted {
                return refuse(
                    what(),
                    "nodes cannot be made here, and the host has another device of that name",
                );
            }
            // Owner and mode are the host's.
            return bind(&parent, place, Path::new(name)).step(what);
        }
        Err(error) => return Err(error).step(what),
    }
    let (uid, gid) = (device.uid().unwrap_or(0), device.gid().unwrap_or(0));
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    chownat(&parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW).step(what)
}

fn node(dir: &OwnedFd, name: &Path, kind: FileType, mode: u32, device: u64) -> rustix::io::Result<()> {
    let mode = Mode::from_raw_mode(mode);
    mknodat(dir, name, kind, mode, device)?;
    // The umask has taken its part.
    chmodat(dir, name, mode, AtFlags::empty())
}

/// Where nodes cannot be made, as in a user namespace, the host's is mounted.
fn bind(dir: &OwnedFd, node: &Path, name: &Path) -> rustix::io::Result<()> {
    let point = path::make(dir, name, Want::File)?;
    mount_bind(node, path::name(&point))
}
