//! Reading and setting what a file has beside its content.

use std::ffi::{CString, OsStr};
use std::io;
use std::os::fd::{AsFd, AsRawFd as _};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, Stat, Timespec, Timestamps, UTIME_OMIT, Uid, XattrFlags, chmodat, chownat,
    lgetxattr, llistxattr, lremovexattr, lsetxattr, utimensat,
};
use rustix::io::Errno;

use super::op::Attributes;

/// Largest list or value of extended attributes: the kernel's own limit.
const MAX_XATTR: usize = 64 * 1024;

/// Reads the attributes of `name` in the directory `dir`, of which `stat` was read.
pub(super) fn read(dir: impl AsFd, name: &Path, stat: &Stat) -> io::Result<Attributes> {
    Ok(Attributes {
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        mtime: stat.st_mtime,
        mtime_ns: u32::try_from(stat.st_mtime_nsec).unwrap_or(0),
        xattrs: xattrs(&reach(dir, name))?,
    })
}

/// Gives them to `name` in `dir`. Owner first (which clears set-id bits and capabilities), access control lists
/// after the mode that they are a part of, times last.
pub(super) fn apply(dir: impl AsFd, name: &Path, kind: FileType, attributes: &Attributes) -> io::Result<()> {
    let dir = dir.as_fd();
    let (uid, gid) = (Uid::from_raw(attributes.uid), Gid::from_raw(attributes.gid));
    chownat(dir, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
    let path = reach(dir, name);
    for (key, _) in xattrs(&path)? {
        if !attributes.xattrs.iter().any(|(wanted, _)| *wanted == key) {
            lremovexattr(&path, CString::new(key)?)?;
        }
    }
    if kind != FileType::Symlink {
        chmodat(dir, name, Mode::from_raw_mode(attributes.mode & 0o7777), AtFlags::empty())?;
    }
    for (key, value) in &attributes.xattrs {
        lsetxattr(&path, CString::new(key.as_slice())?, value, XattrFlags::empty())?;
    }
    let times = Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec { tv_sec: attributes.mtime, tv_nsec: attributes.mtime_ns.into() },
    };
    utimensat(dir, name, &times, AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(())
}

/// A path to `name` in an open directory, for calls that take no directory.
fn reach(dir: impl AsFd, name: &Path) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", dir.as_fd().as_raw_fd())).join(name)
}

fn xattrs(path: &Path) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    // Most files have none or few.
    let mut list = vec![0_u8; 256];
    let length = match llistxattr(path, &mut list[..]) {
        Err(Errno::RANGE) => {
            list.resize(MAX_XATTR, 0);
            llistxattr(path, &mut list[..])?
        }
        Err(Errno::OPNOTSUPP) => 0,
        result => result?,
    };
    if length == 0 {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    let mut value = vec![0_u8; MAX_XATTR];
    for key in list[..length].split(|byte| *byte == 0).filter(|key| !key.is_empty()) {
        // A label is the node's, not ours to move.
        if key == b"security.selinux" {
            continue;
        }
        match lgetxattr(path, OsStr::from_bytes(key), &mut value[..]) {
            Ok(length) => found.push((key.to_vec(), value[..length].to_vec())),
            // Removed meanwhile.
            Err(Errno::NODATA) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(found)
}
