//! Descriptions that stand alone: files, devices, eventfds, timers and the like.

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;

use image::files::{FileKind, OpenFile};
use nix::fcntl::OFlag;
use sys::fds::{self, TimerSetting};

use super::{Descriptions, Workshop, fail, fail_errno, inotify, refuse, reopen};
use crate::target::error::TargetError;
use crate::target::rootfs::verify;

/// Flags that open(2) takes again. What makes or empties a file is not among them.
const OPEN_FLAGS: i32 = libc::O_ACCMODE
    | libc::O_APPEND
    | libc::O_NONBLOCK
    | libc::O_DSYNC
    | libc::O_SYNC
    | libc::O_DIRECT
    | libc::O_DIRECTORY
    | libc::O_NOFOLLOW
    | libc::O_NOATIME
    | libc::O_PATH;
const TFD_TIMER_ABSTIME: i32 = 1;

/// Makes `file` unless another module does or did.
pub(super) fn make(
    file: &OpenFile,
    all: &mut Descriptions,
    shop: &mut Workshop<'_>,
) -> Result<(), TargetError> {
    if all.has(file.id) {
        return Ok(());
    }
    let fd = match &file.kind {
        FileKind::Regular { file: identity, pos, directory } => {
            let mut opened = match identity.ghost {
                Some(ghost) => {
                    let held = shop.ghosts.held(ghost)?;
                    reopen(held, file.flags.cast_signed()).map_err(fail(file, "open again"))?
                }
                None => shop.root.open(0, &identity.path, open_flags(file))?,
            };
            if identity.ghost.is_none() && !directory {
                verify(0, identity, &opened)?;
            }
            seek(file, &mut opened, *pos)?;
            OwnedFd::from(opened)
        }
        FileKind::Device { path, rdev } => {
            let opened = shop.root.open(0, path, open_flags(file))?;
            let here = opened.metadata().map_err(fail(file, "fstat"))?.rdev();
            if here != *rdev {
                return Err(refuse(
                    file,
                    format!("{path} is device {here:#x} here and {rdev:#x} there"),
                    "mend /dev",
                ));
            }
            opened.into()
        }
        FileKind::Pseudo { path, pos } => {
            let mut opened = shop.root.open(0, path, open_flags(file))?;
            seek(file, &mut opened, *pos)?;
            opened.into()
        }
        FileKind::External { key } => shop.externals.open(key).map_err(|source| TargetError::External {
            id: file.id,
            key: key.clone(),
            source,
        })?,
        FileKind::EventFd { count, semaphore } => event_fd(file, *count, *semaphore)?,
        FileKind::TimerFd { clock, ticks, settime_flags, remaining_ns, interval_ns } => {
            let setting = TimerSetting { interval: *interval_ns, value: *remaining_ns };
            timer_fd(file, *clock, *ticks, *settime_flags, setting)?
        }
        FileKind::SignalFd { mask } => fds::signalfd(*mask, 0).map_err(fail_errno(file, "signalfd"))?,
        FileKind::Epoll { busy, .. } => {
            let epoll = fds::epoll().map_err(fail_errno(file, "epoll_create1"))?;
            if *busy != [0; 8] {
                fds::set_epoll_busy(epoll.as_fd(), busy).map_err(fail_errno(file, "EPIOCSPARAMS"))?;
            }
            epoll
        }
        FileKind::Memfd { object, pos } => {
            let object = shop.objects.file(*object)?;
            let mut opened =
                reopen(object.as_fd(), file.flags.cast_signed()).map_err(fail(file, "open again"))?;
            seek(file, &mut opened, *pos)?;
            opened.into()
        }
        FileKind::PosixQueue { queue } => {
            let queue = shop.queues.get(*queue)?;
            reopen(queue, file.flags.cast_signed()).map_err(fail(file, "open again"))?.into()
        }
        FileKind::PidFd { pid } if is_thread(file) => {
            let host = shop.tree.skeletons.values().find_map(|skeleton| skeleton.host_of_thread(*pid));
            let missing = || TargetError::Image(format!("a pidfd of thread {pid}, which is missing"));
            sys::pidfd::open_thread(host.ok_or_else(missing)?)
                .map_err(fail_errno(file, format!("pidfd_open of thread {pid}")))?
        }
        FileKind::PidFd { pid } => {
            let skeleton = shop.tree.get(*pid)?;
            sys::pidfd::open(skeleton.host).map_err(fail_errno(file, format!("pidfd_open of pid {pid}")))?
        }
        FileKind::Inotify { watches } => inotify::make(file, watches, shop)?,
        FileKind::Pipe { .. }
        | FileKind::Terminal { .. }
        | FileKind::HungUp { .. }
        | FileKind::Unix(_)
        | FileKind::Tcp(_)
        | FileKind::Udp(_)
        | FileKind::Netlink(_)
        | FileKind::Raw(_)
        | FileKind::Packet(_) => {
            return Err(TargetError::Image(format!("open file {} was made by nobody", file.id)));
        }
    };
    all.put(file.id, fd);
    Ok(())
}

/// Whether a pidfd is of a thread (PIDFD_THREAD, which is O_EXCL): it must be there already.
pub(crate) fn is_thread(file: &OpenFile) -> bool {
    matches!(file.kind, FileKind::PidFd { .. }) && file.flags.cast_signed() & libc::O_EXCL != 0
}

pub(super) fn open_flags(file: &OpenFile) -> OFlag {
    let flags = file.flags.cast_signed() & OPEN_FLAGS;
    let path_only = libc::O_PATH | libc::O_DIRECTORY | libc::O_NOFOLLOW;
    OFlag::from_bits_retain(if flags & libc::O_PATH != 0 { flags & path_only } else { flags })
}

fn seek(file: &OpenFile, opened: &mut File, pos: i64) -> Result<(), TargetError> {
    if pos == 0 || file.flags.cast_signed() & libc::O_PATH != 0 {
        return Ok(());
    }
    let pos = u64::try_from(pos)
        .map_err(|_| TargetError::Image(format!("open file {} has no position", file.id)))?;
    opened.seek(SeekFrom::Start(pos)).map(drop).map_err(fail(file, "lseek"))
}

fn event_fd(file: &OpenFile, count: u64, semaphore: bool) -> Result<OwnedFd, TargetError> {
    let flags = libc::EFD_NONBLOCK | if semaphore { libc::EFD_SEMAPHORE } else { 0 };
    let fd = fds::eventfd(0, flags).map_err(fail_errno(file, "eventfd"))?;
    if count == 0 {
        return Ok(fd);
    }
    let mut counter = File::from(fd);
    counter.write_all(&count.to_ne_bytes()).map_err(fail(file, "set its counter"))?;
    Ok(counter.into())
}

fn timer_fd(
    file: &OpenFile,
    clock: i32,
    ticks: u64,
    flags: i32,
    mut setting: TimerSetting,
) -> Result<OwnedFd, TargetError> {
    let fd = fds::timerfd(clock, 0).map_err(fail_errno(file, "timerfd_create"))?;
    if setting != TimerSetting::default() {
        if setting.value != 0 && flags & TFD_TIMER_ABSTIME != 0 {
            let now = nix::time::clock_gettime(nix::time::ClockId::from_raw(clock))
                .map_err(fail_errno(file, "clock_gettime"))?;
            setting.value += u64::try_from(std::time::Duration::from(now).as_nanos()).unwrap_or(0);
        }
        fds::timerfd_set(fd.as_fd(), flags, &setting).map_err(fail_errno(file, "timerfd_settime"))?;
    }
    if ticks != 0 {
        fds::timerfd_set_ticks(fd.as_fd(), ticks).map_err(fail_errno(file, "TFD_IOC_SET_TICKS"))?;
    }
    Ok(fd)
}
