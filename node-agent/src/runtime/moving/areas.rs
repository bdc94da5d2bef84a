//! Which parts of a file tree travel. Of a container: its root directory and the volumes that are copied; its
//! directories in memory come with its mounts ([`super::mounts`]). Of a tree that is saved to disk: the tmpfs mounts of
//! its description.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use engine::proc::mountinfo;
use oci_spec::runtime::{Mount, Spec};
use rustix::fs::{Mode, OFlags, ResolveFlags, fstatfs, openat2};

use super::blueprint::Rootfs;
use crate::files::Area;
use crate::runtime::volumes::{self, Volume};

/// `TMPFS_MAGIC` of statfs(2).
const TMPFS: i64 = 0x0102_1994;

/// The root directory, unless both nodes have it, and the volumes that are copied. Source and target derive the same list
/// from the same configuration.
pub(super) fn open(spec: &Spec, rootfs: &Rootfs, path: &Path) -> io::Result<Vec<Area>> {
    let mut areas = Vec::new();
    if *rootfs == Rootfs::Sync {
        areas.push(Area::new(File::open(path)?.into(), "/"));
    }
    for volume in
        volumes::of(spec).map_err(io::Error::other)?.iter().filter(|v| v.mode == volumes::Mode::Sync)
    {
        areas.push(self::volume(volume)?);
    }
    Ok(areas)
}

/// Where the container sees the areas of [`open`].
pub(super) fn points(spec: &Spec, rootfs: &Rootfs) -> BTreeSet<Vec<u8>> {
    let mounts = spec.mounts().as_deref().unwrap_or_default();
    let place = |mount: &Mount| mount.destination().components().collect::<PathBuf>();
    let mut points: BTreeSet<Vec<u8>> = mounts
        .iter()
        .filter(|mount| volumes::comes_along(spec, mount))
        // Of two on one point, it is not known here which is meant.
        .filter(|mount| mounts.iter().filter(|other| place(other) == place(mount)).count() == 1)
        .map(|mount| place(mount).into_os_string().into_vec())
        .collect();
    if *rootfs == Rootfs::Sync {
        points.insert(b"/".to_vec());
    }
    points
}

fn volume(volume: &Volume) -> io::Result<Area> {
    let source = volume.source.canonicalize()?;
    if volume.recursive {
        let mounts = mountinfo::parse(&fs::read("/proc/self/mountinfo")?).map_err(io::Error::other)?;
        let inside = |mount: &&mountinfo::Mount| {
            let point = Path::new(OsStr::from_bytes(&mount.point));
            point.starts_with(&source) && point != source
        };
        if let Some(mount) = mounts.iter().find(inside) {
            return Err(io::Error::other(format!(
                "the volume on {} shows another mount, {}, which would not be copied: use bind instead of rbind",
                volume.destination.display(),
                OsStr::from_bytes(&mount.point).display()
            )));
        }
    }
    Ok(Area::new(File::open(source)?.into(), &volume.destination))
}

/// The tmpfs mounts of a configuration, as process `pid` has them.
pub(crate) fn tmpfs(spec: &Spec, pid: i32) -> io::Result<Vec<Area>> {
    let mut areas = Vec::new();
    let root = File::open(format!("/proc/{pid}/root"))?;
    let mounts = spec.mounts().as_deref().unwrap_or_default();
    for (index, mount) in mounts.iter().enumerate() {
        let place = mount.destination();
        // A later mount over it, or over a directory above it, hides it for good.
        let hidden = mounts[index + 1..].iter().any(|later| place.starts_with(later.destination()));
        if mount.typ().as_deref() != Some("tmpfs") || hidden {
            continue;
        }
        let named = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", place.display()));
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        // As the container resolves it: no link of its leads out.
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let dir: OwnedFd =
            openat2(&root, place, flags, Mode::empty(), resolve).map_err(|error| named(error.into()))?;
        if fstatfs(&dir)?.f_type != TMPFS {
            return Err(io::Error::other(format!(
                "{}: the tmpfs of the configuration is not there",
                place.display()
            )));
        }
        areas.push(Area { skip_devices: place == Path::new("/dev"), ..Area::new(dir, place) });
    }
    Ok(areas)
}
