//! Mounts: the descriptor-based calls (open_tree(2), move_mount(2), mount_setattr(2), fsopen(2)) and the old ones.
//!
//! Paths are relative to the calling thread's root and working directory, in its mount namespace.

use std::ffi::{CStr, CString, OsStr};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::mount::{MntFlags, MsFlags};

use crate::abi::{new_fd, small};
use crate::{Errno, Result};

/// Clone the mount rather than open it (open_tree).
pub const OPEN_TREE_CLONE: u32 = 1;
/// With everything mounted below (open_tree, mount_setattr).
pub const AT_RECURSIVE: u32 = 0x8000;

/// `MOUNT_ATTR_*` bits for [`set_attributes`] and [`FsContext::mount`].
pub mod attr {
    /// Read-only.
    pub const RDONLY: u64 = 0x1;
    /// No set-user-id.
    pub const NOSUID: u64 = 0x2;
    /// No device files.
    pub const NODEV: u64 = 0x4;
    /// No execution.
    pub const NOEXEC: u64 = 0x8;
    /// Do not update access times.
    pub const NOATIME: u64 = 0x10;
    /// Update access times always.
    pub const STRICTATIME: u64 = 0x20;
    /// Mask of the access time modes (relatime is 0).
    pub const ATIME_MASK: u64 = 0x70;
    /// Do not update access times of directories.
    pub const NODIRATIME: u64 = 0x80;
    /// Do not follow symbolic links.
    pub const NOSYMFOLLOW: u64 = 0x20_0000;
}

/// `struct mount_attr`.
#[repr(C)]
struct MountAttr {
    attr_set: u64,
    attr_clr: u64,
    propagation: u64,
    userns_fd: u64,
}
const _: () = assert!(size_of::<MountAttr>() == 32);

fn c_path(path: &Path) -> Result<CString> {
    c_str(path.as_os_str())
}

fn c_str(text: &OsStr) -> Result<CString> {
    CString::new(text.as_bytes()).map_err(|_| Errno::EINVAL)
}

fn at(dir: Option<BorrowedFd<'_>>) -> i32 {
    dir.map_or(libc::AT_FDCWD, |fd| fd.as_raw_fd())
}

/// open_tree(2): a descriptor of the mount at `path` (under `dir`, or the working directory), or with
/// [`OPEN_TREE_CLONE`] of a detached copy that vanishes with its last descriptor unless it is moved.
///
/// # Errors
/// `ENOENT`, `EPERM`, `EINVAL`.
pub fn open_tree(dir: Option<BorrowedFd<'_>>, path: &Path, flags: u32) -> Result<OwnedFd> {
    let path = c_path(path)?;
    let flags = flags | libc::O_CLOEXEC.unsigned_abs() | libc::AT_EMPTY_PATH.unsigned_abs();
    // SAFETY: `path` is NUL-terminated and outlives the call.
    new_fd(unsafe { libc::syscall(libc::SYS_open_tree, at(dir), path.as_ptr(), flags) })
}

/// move_mount(2): puts the mount that `from` is a descriptor of at `path` (under `dir`).
///
/// # Errors
/// `ENOENT`, `EINVAL` (a mount whose parent is shared), `EPERM`.
pub fn move_mount(from: BorrowedFd<'_>, dir: Option<BorrowedFd<'_>>, path: &Path) -> Result<()> {
    move_with(from, dir, path, 0)
}

/// move_mount(2) with `MOVE_MOUNT_SET_GROUP` (Linux 5.15): the private mount `to` becomes a peer of `from` if that is
/// shared, and a slave of `from`'s master if it has one. Nothing moves.
///
/// # Errors
/// `EINVAL`: other file systems, `to` shows a directory that `from` does not show, `to` is not private, or
/// `from` is; or the kernel is older.
pub fn join_group(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<()> {
    const SET_GROUP: u32 = 0x100;
    move_with(from, Some(to), Path::new(""), SET_GROUP)
}

fn move_with(from: BorrowedFd<'_>, dir: Option<BorrowedFd<'_>>, path: &Path, flags: u32) -> Result<()> {
    const F_EMPTY_PATH: u32 = 4;
    const T_EMPTY_PATH: u32 = 0x40;
    let path = c_path(path)?;
    let empty: &CStr = c"";
    // SAFETY: both paths are NUL-terminated and outlive the call.
    small(unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            from.as_raw_fd(),
            empty.as_ptr(),
            at(dir),
            path.as_ptr(),
            F_EMPTY_PATH | T_EMPTY_PATH | flags,
        )
    })
    .map(drop)
}

/// mount_setattr(2): `set` and `clear` are [`attr`] bits, `propagation` 0 or one of `MS_SHARED`, `MS_SLAVE`,
/// `MS_PRIVATE`, `MS_UNBINDABLE`.
///
/// # Errors
/// `EINVAL`, `EBUSY` read-only while files are open for writing, `EPERM`.
pub fn set_attributes(
    dir: Option<BorrowedFd<'_>>,
    path: &Path,
    recursive: bool,
    set: u64,
    clear: u64,
    propagation: u64,
) -> Result<()> {
    let path = c_path(path)?;
    let arg = MountAttr { attr_set: set, attr_clr: clear, propagation, userns_fd: 0 };
    let flags = libc::AT_EMPTY_PATH.unsigned_abs() | if recursive { AT_RECURSIVE } else { 0 };
    // SAFETY: `path` is NUL-terminated, `arg` is the structure of the size given; both are only read.
    small(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            at(dir),
            path.as_ptr(),
            flags,
            std::ptr::from_ref(&arg),
            size_of::<MountAttr>(),
        )
    })
    .map(drop)
}

/// A file system being configured: fsopen(2) or fspick(2), fsconfig(2), fsmount(2).
#[derive(Debug)]
pub struct FsContext {
    fd: OwnedFd,
}

impl FsContext {
    /// Begins a file system of type `name` (`tmpfs`, `proc`, `overlay`, `devpts` ...), in the namespaces of the
    /// calling thread.
    ///
    /// # Errors
    /// `ENODEV` unknown type, `EPERM`.
    pub fn open(name: &str) -> Result<Self> {
        const FSOPEN_CLOEXEC: u32 = 1;
        let name = c_str(OsStr::new(name))?;
        // SAFETY: `name` is NUL-terminated and outlives the call.
        let fd = new_fd(unsafe { libc::syscall(libc::SYS_fsopen, name.as_ptr(), FSOPEN_CLOEXEC) })?;
        Ok(Self { fd })
    }

    /// fspick(2): the file system of the mount whose root `mount` is, to be changed by [`FsContext::reconfigure`].
    ///
    /// # Errors
    /// `EINVAL` not the root of a mount, `EPERM`.
    pub fn pick(mount: BorrowedFd<'_>) -> Result<Self> {
        const FSPICK_CLOEXEC: u32 = 1;
        const FSPICK_EMPTY_PATH: u32 = 8;
        let empty: &CStr = c"";
        // SAFETY: the path is NUL-terminated and outlives the call.
        let fd = new_fd(unsafe {
            libc::syscall(
                libc::SYS_fspick,
                mount.as_raw_fd(),
                empty.as_ptr(),
                FSPICK_CLOEXEC | FSPICK_EMPTY_PATH,
            )
        })?;
        Ok(Self { fd })
    }

    /// Applies the options that were set. Entries of directories that nobody uses are forgotten.
    ///
    /// # Errors
    /// The file system's own; `EBUSY` read-only while files are open for writing.
    pub fn reconfigure(self) -> Result<()> {
        const FSCONFIG_CMD_RECONFIGURE: u32 = 7;
        self.config(FSCONFIG_CMD_RECONFIGURE, None, None, 0)
    }

    fn config(&self, command: u32, key: Option<&CStr>, value: Option<&CStr>, aux: i32) -> Result<()> {
        let key = key.map_or(std::ptr::null(), CStr::as_ptr);
        let value = value.map_or(std::ptr::null(), CStr::as_ptr);
        // SAFETY: `key` and `value` are null or NUL-terminated and outlive the call.
        let ret = unsafe { libc::syscall(libc::SYS_fsconfig, self.fd.as_raw_fd(), command, key, value, aux) };
        small(ret).map(drop)
    }

    /// Sets a string option.
    ///
    /// # Errors
    /// `EINVAL` unknown or malformed.
    pub fn set_string(&self, key: &str, value: &OsStr) -> Result<()> {
        self.config(1, Some(&c_str(OsStr::new(key))?), Some(&c_str(value)?), 0)
    }

    /// Sets an option without a value.
    ///
    /// # Errors
    /// `EINVAL` unknown.
    pub fn set_flag(&self, key: &str) -> Result<()> {
        self.config(0, Some(&c_str(OsStr::new(key))?), None, 0)
    }

    /// Sets an option to a descriptor.
    ///
    /// # Errors
    /// `EINVAL` unknown.
    pub fn set_fd(&self, key: &str, value: BorrowedFd<'_>) -> Result<()> {
        self.config(5, Some(&c_str(OsStr::new(key))?), None, value.as_raw_fd())
    }

    /// Creates it and returns the detached mount, with [`attr`] bits; put it somewhere with [`move_mount`].
    ///
    /// # Errors
    /// The file system's own, `EPERM`.
    pub fn mount(self, attributes: u64) -> Result<OwnedFd> {
        const FSMOUNT_CLOEXEC: u32 = 1;
        const FSCONFIG_CMD_CREATE: u32 = 6;
        self.config(FSCONFIG_CMD_CREATE, None, None, 0)?;
        // SAFETY: fsmount takes integers only.
        new_fd(unsafe { libc::syscall(libc::SYS_fsmount, self.fd.as_raw_fd(), FSMOUNT_CLOEXEC, attributes) })
    }
}

/// mount(2).
///
/// # Errors
/// Those of mount(2).
pub fn mount(
    source: Option<&Path>,
    target: &Path,
    fs_type: Option<&str>,
    flags: MsFlags,
    data: Option<&OsStr>,
) -> Result<()> {
    nix::mount::mount(source, target, fs_type, flags, data)
}

/// umount2(2) with `MNT_DETACH`: gone from the tree at once, freed when no longer used.
///
/// # Errors
/// `EINVAL` no mount point, `EPERM`.
pub fn detach(path: &Path) -> Result<()> {
    nix::mount::umount2(path, MntFlags::MNT_DETACH)
}

/// As [`detach`], of what is mounted on top at `name` in the directory `dir` (`.`: on `dir` itself). `name` is not
/// followed when it is a link. The calling thread must have a working directory of its own; it is `dir` afterwards.
///
/// # Errors
/// As [`detach`].
pub fn detach_in(dir: BorrowedFd<'_>, name: &Path) -> Result<()> {
    nix::unistd::fchdir(dir)?;
    nix::mount::umount2(name, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW)
}

/// umount2(2) without flags.
///
/// # Errors
/// `EBUSY`, `EINVAL`, `EPERM`.
pub fn umount(path: &Path) -> Result<()> {
    nix::mount::umount2(path, MntFlags::empty())
}

/// pivot_root(2).
///
/// # Errors
/// `EINVAL`, `EBUSY`, `EPERM`; see the manual for what both directories must be.
pub fn pivot_root(new_root: &Path, put_old: &Path) -> Result<()> {
    nix::unistd::pivot_root(new_root, put_old)
}

/// Makes `new_root` (a mount point) the root and detaches the old one, without a directory for it: pivot_root(".",
/// "."). Afterwards the working directory is "/".
///
/// # Errors
/// As [`pivot_root`].
pub fn switch_root(new_root: &Path) -> Result<()> {
    nix::unistd::chdir(new_root)?;
    switch_here()
}

/// The same, of a mount whose root directory is `new_root`. The calling thread must have a working directory of its own.
///
/// # Errors
/// As [`pivot_root`].
pub fn switch_root_fd(new_root: BorrowedFd<'_>) -> Result<()> {
    nix::unistd::fchdir(new_root)?;
    switch_here()
}

fn switch_here() -> Result<()> {
    pivot_root(Path::new("."), Path::new("."))?;
    // The old root now lies on top of the new one.
    detach(Path::new("."))?;
    nix::unistd::chdir("/")
}

/// fchdir(2), then chroot(".").
///
/// # Errors
/// `EPERM`, `EACCES`.
pub fn chroot_fd(dir: BorrowedFd<'_>) -> Result<()> {
    nix::unistd::fchdir(dir)?;
    nix::unistd::chroot(".")
}

/// mknodat(2): a device, fifo or socket node. `mode` holds type and permission, before the umask.
///
/// # Errors
/// `EEXIST`, `EPERM`.
pub fn mknod(dir: Option<BorrowedFd<'_>>, path: &Path, mode: u32, dev: u64) -> Result<()> {
    let path = c_path(path)?;
    // SAFETY: `path` is NUL-terminated and outlives the call.
    small(unsafe { libc::mknodat(at(dir), path.as_ptr(), mode, dev) }).map(drop)
}
