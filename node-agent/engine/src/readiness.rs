//! What open files are ready for.

use std::os::fd::BorrowedFd;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use sys::Errno;

/// Files asked about at once: poll(2) takes no more than the process may have open.
const AT_ONCE: usize = 512;

/// Which of the wanted events, and of those that need not be wanted, each file is ready for: the numbers of epoll(7),
/// which are those of poll(2).
pub(crate) fn of(asked: &[(BorrowedFd<'_>, u32)]) -> Result<Vec<u32>, Errno> {
    let mut ready = Vec::with_capacity(asked.len());
    for asked in asked.chunks(AT_ONCE) {
        let mut polled: Vec<_> =
            asked.iter().map(|(file, events)| PollFd::new(*file, wanted(*events))).collect();
        poll(&mut polled, PollTimeout::ZERO)?;
        let got = |polled: &PollFd<'_>| polled.revents().unwrap_or(PollFlags::empty()).bits();
        ready.extend(polled.iter().map(|polled| u32::from(got(polled).cast_unsigned())));
    }
    Ok(ready)
}

/// Without the flags of epoll(7), which lie above.
fn wanted(events: u32) -> PollFlags {
    let low = u16::try_from(events & u32::from(u16::MAX)).unwrap_or_default();
    PollFlags::from_bits_truncate(low.cast_signed())
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn a_file_is_ready_for_what_was_wanted() {
        let (reader, mut writer) = std::io::pipe().unwrap();
        let (edge, input) = (1 << 31, libc::EPOLLIN.cast_unsigned());
        let output = libc::EPOLLOUT.cast_unsigned();
        let ask =
            || of(&[(reader.as_fd(), edge | input), (writer.as_fd(), edge | output), (reader.as_fd(), 0)]);
        assert_eq!(ask().unwrap(), [0, output, 0]);
        writer.write_all(b"x").unwrap();
        assert_eq!(of(&[(reader.as_fd(), edge | input)]).unwrap(), [input]);
        drop(writer);
        let hung_up = libc::EPOLLHUP.cast_unsigned();
        assert_eq!(of(&[(reader.as_fd(), 0)]).unwrap(), [hung_up]);
    }
}
