//! POSIX message queues, made empty by the container's first skeleton; see mq_overview(7).

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use image::ipc::PosixQueue;
use libc::{SYS_close, SYS_fchmod, SYS_fchown, SYS_mq_open, SYS_mq_unlink};
use sys::mqueue::Attributes;
use sys::tape::target::TargetTape;

use super::error::TargetError;
use super::script::{Block, call};
use super::skeleton::Skeleton;

/// The queues of the container, held by the agent: some have lost their names.
#[derive(Debug, Default)]
pub(crate) struct Queues(BTreeMap<u64, OwnedFd>);

impl Queues {
    /// Makes them in the order given, in the IPC namespace of `root`.
    ///
    /// # Errors
    /// A [`TargetError`], as when the namespace's settings do not allow so many or such large ones.
    pub(crate) fn make(
        queues: &[PosixQueue],
        root: &mut Skeleton,
        tape: &TargetTape,
    ) -> Result<Self, TargetError> {
        const MAKE: i32 = libc::O_CREAT | libc::O_EXCL | libc::O_RDWR | libc::O_CLOEXEC;
        let mut held = BTreeMap::new();
        for queue in queues {
            let name = || Block::new([&queue.name[..], b"\0"].concat());
            let attributes = Attributes::of(queue.capacity, queue.message_size).to_bytes();
            let make = call!("mq_open", SYS_mq_open, name(), MAKE, 0o600, Block::new(attributes));
            let made = root.run(tape, &[make])?;
            let number = made.answers.first().map_or(-1, |answer| answer.value);
            let mut finish = vec![
                call!("fchown", SYS_fchown, number, queue.uid, queue.gid),
                call!("fchmod", SYS_fchmod, number, queue.mode),
            ];
            if queue.unlinked {
                finish.push(call!("mq_unlink", SYS_mq_unlink, name()));
            }
            root.run(tape, &finish)?;
            let taken = i32::try_from(number).map_err(|_| sys::Errno::EBADF);
            let taken = taken.and_then(|number| sys::pidfd::getfd(root.pidfd.as_fd(), number));
            held.insert(queue.id, taken.map_err(TargetError::errno("take a POSIX message queue"))?);
            root.run(tape, &[call!("close", SYS_close, number)])?;
        }
        Ok(Self(held))
    }

    /// One of them.
    pub(crate) fn get(&self, id: u64) -> Result<BorrowedFd<'_>, TargetError> {
        let found = self.0.get(&id).map(AsFd::as_fd);
        found.ok_or_else(|| TargetError::Image(format!("POSIX message queue {id} is not in the image")))
    }
}
