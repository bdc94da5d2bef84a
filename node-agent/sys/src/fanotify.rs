//! fanotify(7) on whole file systems: which names and files change, through whichever mount.
//!
//! Events name files by the handles of name_to_handle_at(2), so that nothing is opened and nothing is held.

use std::ffi::{CString, OsStr};
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;

use crate::{Errno, Result, abi};

/// Content was written, cut or given up (`fallocate`).
pub const MODIFY: u64 = libc::FAN_MODIFY;
/// Owner, mode, times, extended attributes or the number of names changed.
pub const ATTRIB: u64 = libc::FAN_ATTRIB;
/// The last descriptor and mapping of an open file that could be written to are gone.
pub const CLOSE_WRITE: u64 = libc::FAN_CLOSE_WRITE;
/// A name was made.
pub const CREATE: u64 = libc::FAN_CREATE;
/// A name was removed.
pub const DELETE: u64 = libc::FAN_DELETE;
/// A name was moved away.
pub const MOVED_FROM: u64 = libc::FAN_MOVED_FROM;
/// A name was moved there.
pub const MOVED_TO: u64 = libc::FAN_MOVED_TO;
/// Events were lost.
pub const OVERFLOW: u64 = libc::FAN_Q_OVERFLOW;

/// `struct fanotify_event_metadata`: event_len u32, vers u8, reserved u8, metadata_len u16, mask u64, fd i32, pid i32.
const METADATA: usize = 24;
const _: () = assert!(size_of::<libc::fanotify_event_metadata>() == METADATA);
/// `struct fanotify_event_info_header`: info_type u8, pad u8, len u16.
const HEADER: usize = 4;
const _: () = assert!(size_of::<libc::fanotify_event_info_header>() == HEADER);
const INFO_FID: u8 = 1;
const INFO_DFID_NAME: u8 = 2;
const INFO_DFID: u8 = 3;
/// Largest handle: `MAX_HANDLE_SZ`.
const MAX_HANDLE: usize = 128;
/// `AT_HANDLE_FID` of Linux 6.5: a handle that need not be opened, for file systems that cannot export.
const AT_HANDLE_FID: i32 = 0x200;

/// The identifier of a file system (`f_fsid` of statfs(2)).
pub type FsId = [u8; 8];

/// A file, as its file system tells it from all others, earlier ones included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Handle<'a> {
    /// The file system.
    pub fs: FsId,
    /// How the bytes are to be read.
    pub kind: i32,
    /// The bytes.
    pub bytes: &'a [u8],
}

/// Something happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event<'a> {
    /// What, several at once: [`MODIFY`] and its like.
    pub mask: u64,
    /// The directory that it happened in, or to.
    pub dir: Option<Handle<'a>>,
    /// The name in that directory; `.` for the directory itself, empty when it is not told.
    pub name: &'a [u8],
    /// The file that it happened to, if that is told.
    pub object: Option<Handle<'a>>,
}

/// A group: marks, and the queue of their events.
#[derive(Debug)]
pub struct Group {
    fd: OwnedFd,
}

impl AsFd for Group {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Group {
    /// A group without marks. Its queue has no limit: whoever makes it must read it.
    ///
    /// # Errors
    /// `EPERM` without CAP_SYS_ADMIN, `EINVAL` before Linux 5.9, `ENOSYS`.
    pub fn new() -> Result<Self> {
        let flags = libc::FAN_CLASS_NOTIF
            | libc::FAN_CLOEXEC
            | libc::FAN_NONBLOCK
            | libc::FAN_UNLIMITED_QUEUE
            | libc::FAN_REPORT_FID
            | libc::FAN_REPORT_DIR_FID
            | libc::FAN_REPORT_NAME;
        let events = libc::O_RDONLY | libc::O_CLOEXEC | libc::O_LARGEFILE;
        let events = u32::try_from(events).map_err(|_| Errno::EINVAL)?;
        // SAFETY: both arguments are integers.
        let fd = abi::new_fd(unsafe { libc::fanotify_init(flags, events) })?;
        Ok(Self { fd })
    }

    /// Reports every change of the file system that `dir` is on, from Ok on.
    ///
    /// # Errors
    /// `EOPNOTSUPP`, `ENODEV` or `EXDEV` when the file system has no handles, no identifier, or (a subvolume)
    /// another one than its root.
    pub fn mark_file_system(&self, dir: impl AsFd) -> Result<()> {
        let mask = MODIFY | ATTRIB | CLOSE_WRITE | CREATE | DELETE | MOVED_FROM | MOVED_TO | libc::FAN_ONDIR;
        let flags = libc::FAN_MARK_ADD | libc::FAN_MARK_FILESYSTEM;
        let dir = dir.as_fd().as_raw_fd();
        // SAFETY: a null path stands for the directory behind the descriptor; the rest are integers.
        let ret = unsafe { libc::fanotify_mark(self.fd.as_raw_fd(), flags, mask, dir, std::ptr::null()) };
        Errno::result(ret).map(drop)
    }

    /// Fills `buffer` with events, to be read by [`events`]; 0 when there are none. It needs 4096 bytes or more.
    ///
    /// # Errors
    /// `EINVAL` when the next event does not fit.
    pub fn read(&self, buffer: &mut [u8]) -> Result<usize> {
        match nix::unistd::read(&self.fd, buffer) {
            Err(Errno::EAGAIN) => Ok(0),
            result => result,
        }
    }
}

/// The events in what [`Group::read`] filled. What is not understood is left out, and counts as an overflow.
pub fn events(mut bytes: &[u8]) -> impl Iterator<Item = Event<'_>> {
    std::iter::from_fn(move || {
        if bytes.is_empty() {
            return None;
        }
        let lost = Event { mask: OVERFLOW, dir: None, name: &[], object: None };
        let length = u32_at(bytes, 0).and_then(|length| usize::try_from(length).ok());
        let Some(event) = length.filter(|length| *length >= METADATA).and_then(|length| bytes.get(..length))
        else {
            bytes = &[];
            return Some(lost);
        };
        bytes = &bytes[event.len()..];
        Some(event_of(event).unwrap_or(lost))
    })
}

fn event_of(event: &[u8]) -> Option<Event<'_>> {
    let metadata = usize::from(u16::from_ne_bytes(event.get(6..8)?.try_into().ok()?));
    let mask = u64::from_ne_bytes(event.get(8..16)?.try_into().ok()?);
    let mut found = Event { mask, dir: None, name: &[], object: None };
    let mut infos = event.get(metadata..)?;
    while !infos.is_empty() {
        let length = usize::from(u16::from_ne_bytes(infos.get(2..4)?.try_into().ok()?));
        let info = infos.get(..length).filter(|info| info.len() >= HEADER)?;
        infos = &infos[length..];
        if !matches!(info[0], INFO_FID | INFO_DFID_NAME | INFO_DFID) {
            continue;
        }
        let fs = info.get(4..12)?.try_into().ok()?;
        let size = usize::try_from(u32_at(info, 12)?).ok()?;
        let kind = i32::from_ne_bytes(info.get(16..20)?.try_into().ok()?);
        let handle = Handle { fs, kind, bytes: info.get(20..20 + size)? };
        if info[0] == INFO_FID {
            found.object = Some(handle);
        } else {
            found.dir = Some(handle);
            let name = info.get(20 + size..)?;
            found.name = name.split(|byte| *byte == 0).next().unwrap_or(&[]);
        }
    }
    Some(found)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// `struct file_handle` with room for the largest one.
#[repr(C)]
struct RawHandle {
    bytes: u32,
    kind: i32,
    handle: [u8; MAX_HANDLE],
}
const _: () = assert!(size_of::<RawHandle>() == 8 + MAX_HANDLE);

/// Calls `with` with the handle of `name` in the directory `dir` (no link is followed); of `dir` itself when
/// the name is empty. `fs` is taken from [`fs_id`].
///
/// # Errors
/// `EOPNOTSUPP` when the file system has none, `ENOENT`, `EOVERFLOW`.
pub fn handle_of<T>(dir: impl AsFd, name: &OsStr, fs: FsId, with: impl FnOnce(Handle<'_>) -> T) -> Result<T> {
    let path = CString::new(name.as_bytes()).map_err(|_| Errno::EINVAL)?;
    let mut raw = RawHandle { bytes: 0, kind: 0, handle: [0; MAX_HANDLE] };
    let empty = if name.is_empty() { libc::AT_EMPTY_PATH } else { 0 };
    let mut call = |flags: i32| {
        raw.bytes = u32::try_from(MAX_HANDLE).unwrap_or(0);
        let mut mount = 0_i32;
        let dir = dir.as_fd().as_raw_fd();
        // SAFETY: the path is a C string, the handle has the room that it says, the mount id is an int; all of
        // them live across the call.
        Errno::result(unsafe {
            libc::syscall(
                libc::SYS_name_to_handle_at,
                dir,
                path.as_ptr(),
                std::ptr::from_mut(&mut raw),
                std::ptr::from_mut(&mut mount),
                flags,
            )
        })
    };
    match call(empty | AT_HANDLE_FID) {
        Err(Errno::EINVAL) => call(empty)?,
        result => result?,
    };
    let length = usize::try_from(raw.bytes).map_err(|_| Errno::EOVERFLOW)?;
    let bytes = raw.handle.get(..length).ok_or(Errno::EOVERFLOW)?;
    Ok(with(Handle { fs, kind: raw.kind, bytes }))
}

/// The identifier of the file system that `dir` is on, as events name it.
///
/// # Errors
/// `EIO` and what else statfs(2) answers.
pub fn fs_id(dir: impl AsFd) -> Result<FsId> {
    let mut found = std::mem::MaybeUninit::<libc::statfs>::zeroed();
    // SAFETY: the structure is the kernel's, has its size and lives across the call.
    Errno::result(unsafe { libc::fstatfs(dir.as_fd().as_raw_fd(), found.as_mut_ptr()) })?;
    // SAFETY: all zeros are a value of a structure of integers, and the kernel wrote others.
    let found = unsafe { found.assume_init() };
    const { assert!(size_of::<libc::fsid_t>() == 8) };
    // SAFETY: `fsid_t` is two ints: 8 bytes without padding, any of which is a value of the array.
    Ok(unsafe { std::mem::transmute::<libc::fsid_t, FsId>(found.f_fsid) })
}
