//! inotify(7) instances with the watch descriptors that the program knows.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use image::files::{InotifyWatch, OpenFile};
use nix::fcntl::OFlag;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use super::{Workshop, fail_errno, refuse};
use crate::target::error::TargetError;

/// Most watch descriptors that are counted through to reach the next one.
const MOST_STEPS: i32 = 100_000;
/// IN_MASK_CREATE and IN_ONLYDIR and their like belong to the call, not to the watch.
const EVENTS: u32 = 0x8000_0fff | 0x2400_0000;

/// The kernel numbers watches upwards, so each is made again and again until its number comes.
pub(super) fn make(
    file: &OpenFile,
    watches: &[InotifyWatch],
    shop: &Workshop<'_>,
) -> Result<OwnedFd, TargetError> {
    let instance = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)
        .map_err(fail_errno(file, "inotify_init1"))?;
    let mut sorted: Vec<&InotifyWatch> = watches.iter().collect();
    sorted.sort_by_key(|w| w.wd);
    let mut steps = 0;
    for watch in sorted {
        let target = shop.root.open(0, &watch.path, OFlag::O_PATH | OFlag::O_NOFOLLOW)?;
        let path = format!("/proc/self/fd/{}", target.as_raw_fd());
        let mask = AddWatchFlags::from_bits_retain(watch.mask & EVENTS);
        loop {
            let made =
                instance.add_watch(path.as_str(), mask).map_err(fail_errno(file, "inotify_add_watch"))?;
            // The number is known through its own text only.
            let number = number_of(&made);
            if number == watch.wd {
                break;
            }
            steps += 1;
            if number > watch.wd || steps > MOST_STEPS {
                return Err(refuse(
                    file,
                    format!("watch descriptor {} of {} cannot be had again", watch.wd, watch.path),
                    "let the program make its watches anew",
                ));
            }
            instance.rm_watch(made).map_err(fail_errno(file, "inotify_rm_watch"))?;
        }
    }
    // Watches that were taken away again have left an event each.
    while steps > 0 && instance.read_events().is_ok() {}
    let fd = instance.as_fd().try_clone_to_owned().map_err(super::fail(file, "duplicate a descriptor"))?;
    Ok(fd)
}

fn number_of(watch: &nix::sys::inotify::WatchDescriptor) -> i32 {
    let text = format!("{watch:?}");
    let digits: String = text.chars().filter(char::is_ascii_digit).collect();
    digits.parse().unwrap_or(-1)
}
