//! Packet filters of sockets. What was received before is put back first: it has passed them already.

use std::os::fd::BorrowedFd;

use image::files::{FileKind, Files, OpenFile};
use image::sockets::SockOpt;
use sys::sock::{self, filter};

use super::{Descriptions, fail_errno};
use crate::target::error::TargetError;

const SO_LOCK_FILTER: i32 = 44;

/// Whether an option is a filter or locks one.
pub(super) fn is_one(option: &SockOpt) -> bool {
    option.level == libc::SOL_SOCKET && matches!(option.name, libc::SO_ATTACH_FILTER | SO_LOCK_FILTER)
}

/// Attaches the filters of all sockets but those that hear packets from the beginning and have theirs already.
pub(super) fn attach(files: &Files, all: &Descriptions) -> Result<(), TargetError> {
    for file in &files.open {
        if !matches!(file.kind, FileKind::Raw(_) | FileKind::Packet(_))
            && file.kind.options().iter().any(is_one)
        {
            set(file, all.require(file.id)?)?;
        }
    }
    Ok(())
}

/// Attaches the filter of one socket, and locks it.
pub(super) fn set(file: &OpenFile, fd: BorrowedFd<'_>) -> Result<(), TargetError> {
    let options = file.kind.options();
    let named = |name| options.iter().filter(move |option| is_one(option) && option.name == name);
    for option in named(libc::SO_ATTACH_FILTER) {
        filter::attach(fd, &option.value).map_err(fail_errno(file, "attach a packet filter"))?;
    }
    for option in named(SO_LOCK_FILTER) {
        sock::set_raw(fd, option.level, option.name, &option.value)
            .map_err(fail_errno(file, "lock a packet filter"))?;
    }
    Ok(())
}
