//! Programs and working directories that have no name any more.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};

use image::shape::Mm;
use libc::SYS_fchdir;

use super::error::TargetError;
use super::files::reopen;
use super::mapping::{Surroundings, set_mm};
use super::script::call;
use super::skeleton::Skeleton;

/// Gives the process its program when that has no name any more. Its contents are there, and nobody has it open for writing.
pub(super) fn set_program(
    skeleton: &mut Skeleton,
    mm: &Mm,
    around: &Surroundings<'_>,
) -> Result<(), TargetError> {
    let Some(id) = mm.exe.ghost else { return Ok(()) };
    let file = read_only(around.ghosts.borrow_mut().get(id, &mm.exe.path, 0, around.root)?)?;
    let numbers =
        around.channel.plant(&mut skeleton.leader, around.tape, around.channel.number, &[file.as_fd()])?;
    let mut calls = vec![set_mm(&mm.fields, &mm.auxv, numbers.first().copied())];
    calls.extend(around.channel.close_others());
    skeleton.run(around.tape, &calls).map(drop)
}

/// Has the process go to its working directory when that has no name any more.
pub(super) fn enter_directory(
    skeleton: &mut Skeleton,
    id: u32,
    around: &Surroundings<'_>,
) -> Result<(), TargetError> {
    let directory = read_only(around.ghosts.borrow().held(id)?)?;
    let numbers = around.channel.plant(
        &mut skeleton.leader,
        around.tape,
        around.channel.number,
        &[directory.as_fd()],
    )?;
    let mut calls = vec![call!("fchdir", SYS_fchdir, numbers.first().copied().unwrap_or(-1))];
    calls.extend(around.channel.close_others());
    skeleton.run(around.tape, &calls).map(drop)
}

pub(super) fn read_only(file: BorrowedFd<'_>) -> Result<File, TargetError> {
    reopen(file, libc::O_RDONLY).map_err(TargetError::system("open a deleted file again"))
}
