//! /proc/PID/fdinfo/FD of every type of descriptor.

use std::fs::File;
use std::io;
use std::os::fd::BorrowedFd;

use nix::fcntl::OFlag;
use nix::sys::stat::Mode;

use super::{ProcError, hex, lines, number, octal, text, value, words};

/// What a fdinfo file says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FdInfo {
    /// File position.
    pub pos: i64,
    /// F_GETFL, with O_CLOEXEC when the descriptor has FD_CLOEXEC.
    pub flags: u32,
    /// Id of the mount.
    pub mount: i32,
    /// Inode number.
    pub inode: u64,
    /// `eventfd-count` and `eventfd-semaphore`.
    pub eventfd: Option<(u64, bool)>,
    /// What an epoll instance watches.
    pub epoll: Vec<EpollLine>,
    /// A timerfd's setting.
    pub timerfd: Option<TimerFd>,
    /// A signalfd's mask.
    pub signalfd: Option<u64>,
    /// An inotify instance's watches.
    pub inotify: Vec<InotifyLine>,
    /// There are fanotify lines.
    pub fanotify: bool,
    /// A pidfd's process, in the pid namespace of this procfs; -1 = it has been reaped.
    pub pidfd: Option<i32>,
    /// The number of a pseudo terminal's master.
    pub tty_index: Option<u32>,
    /// `lock:` lines without the prefix: file locks and leases of the process through this file.
    pub locks: Vec<String>,
}

/// One `tfd:` line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EpollLine {
    /// The number it was added under.
    pub fd: i32,
    /// Events with their trigger flags.
    pub events: u32,
    /// epoll_data.
    pub data: u64,
    /// Inode number of the file.
    pub inode: u64,
    /// Device, in the kernel's internal encoding (major << 20 | minor).
    pub device: u64,
}

/// Lines of a timerfd.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TimerFd {
    /// Clock id.
    pub clock: i32,
    /// Expirations not yet read.
    pub ticks: u64,
    /// Flags of timerfd_settime(2).
    pub settime_flags: i32,
    /// Time to the next expiry, nanoseconds.
    pub remaining_ns: u64,
    /// Period, nanoseconds.
    pub interval_ns: u64,
}

/// One `inotify` line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InotifyLine {
    /// Watch descriptor.
    pub wd: i32,
    /// Inode number.
    pub inode: u64,
    /// Device, in the kernel's internal encoding (major << 20 | minor).
    pub device: u64,
    /// Mask.
    pub mask: u32,
    /// Type of the file's handle, as open_by_handle_at(2) takes it.
    pub handle_kind: i32,
    /// The handle; empty when the file system gives none.
    pub handle: Vec<u8>,
}

/// Parses a fdinfo file.
///
/// # Errors
/// [`ProcError::Parse`] with the line.
pub fn parse(bytes: &[u8]) -> Result<FdInfo, ProcError> {
    let mut info = FdInfo::default();
    for line in lines(bytes) {
        parse_line(&mut info, line).ok_or_else(|| ProcError::parse("fdinfo", text(line)))?;
    }
    Ok(info)
}

fn parse_line(info: &mut FdInfo, line: &[u8]) -> Option<()> {
    if line.starts_with(b"inotify ") {
        info.inotify.push(InotifyLine {
            wd: number(keyed(line, "wd")?)?,
            inode: hex(keyed(line, "ino")?)?,
            device: hex(keyed(line, "sdev")?)?,
            mask: hex(keyed(line, "mask")?)?,
            handle_kind: keyed(line, "fhandle-type").and_then(hex).unwrap_or(0),
            handle: keyed(line, "f_handle").map(bytes).unwrap_or_default(),
        });
        return Some(());
    }
    if line.starts_with(b"fanotify ") {
        info.fanotify = true;
        return Some(());
    }
    let Some(colon) = line.iter().position(|byte| *byte == b':') else {
        return Some(());
    };
    let rest = line[colon + 1..].trim_ascii();
    match &line[..colon] {
        b"pos" => info.pos = number(rest)?,
        b"flags" => info.flags = octal(rest)?,
        b"mnt_id" => info.mount = number(rest)?,
        b"ino" => info.inode = number(rest)?,
        b"eventfd-count" => info.eventfd.get_or_insert_default().0 = hex(rest)?,
        b"eventfd-semaphore" => info.eventfd.get_or_insert_default().1 = rest == b"1",
        b"tfd" => info.epoll.push(parse_epoll(line)?),
        b"clockid" => info.timerfd.get_or_insert_default().clock = number(rest)?,
        b"ticks" => info.timerfd.get_or_insert_default().ticks = number(rest)?,
        b"settime flags" => info.timerfd.get_or_insert_default().settime_flags = octal(rest)?,
        b"it_value" => info.timerfd.get_or_insert_default().remaining_ns = timespec(rest)?,
        b"it_interval" => info.timerfd.get_or_insert_default().interval_ns = timespec(rest)?,
        b"sigmask" => info.signalfd = Some(hex(rest)?),
        b"tty-index" => info.tty_index = Some(number(rest)?),
        b"Pid" => info.pidfd = Some(number(rest)?),
        b"lock" => info.locks.push(text(rest)),
        _ => {}
    }
    Some(())
}

/// `tfd:        0 events: 80000019 data:                5  pos:0 ino:6563 sdev:f`
fn parse_epoll(line: &[u8]) -> Option<EpollLine> {
    let mut words = words(line);
    let mut next_after = |key: &[u8]| {
        words.by_ref().find(|word| *word == key)?;
        words.next()
    };
    Some(EpollLine {
        fd: number(next_after(b"tfd:")?)?,
        events: hex(next_after(b"events:")?)?,
        data: hex(next_after(b"data:")?)?,
        inode: keyed(line, "ino").and_then(hex).unwrap_or(0),
        device: keyed(line, "sdev").and_then(hex).unwrap_or(0),
    })
}

/// The value of a `key:value` word.
fn keyed<'a>(line: &'a [u8], key: &str) -> Option<&'a [u8]> {
    words(line).find_map(|word| value(word, key)?.strip_prefix(b":"))
}

/// Bytes from pairs of hexadecimal digits; an odd one at the end is left out.
fn bytes(digits: &[u8]) -> Vec<u8> {
    digits.chunks_exact(2).map_while(hex).collect()
}

/// `(seconds, nanoseconds)` in nanoseconds.
fn timespec(rest: &[u8]) -> Option<u64> {
    let inner = rest.strip_prefix(b"(")?.strip_suffix(b")")?;
    let comma = inner.iter().position(|byte| *byte == b',')?;
    let seconds: u64 = number(&inner[..comma])?;
    let nanos: u64 = number(&inner[comma + 1..])?;
    seconds.checked_mul(1_000_000_000)?.checked_add(nanos)
}

/// Reads /proc/PID/fdinfo/FD.
///
/// # Errors
/// [`ProcError`].
pub fn read(pid: i32, fd: i32) -> Result<FdInfo, ProcError> {
    parse(&super::read(pid, &format!("fdinfo/{fd}"))?)
}

/// Reads the same from /proc/PID/fdinfo, which is open: for many descriptors of one process.
///
/// # Errors
/// [`ProcError`].
pub fn read_in(dir: BorrowedFd<'_>, fd: i32) -> Result<FdInfo, ProcError> {
    let name = fd.to_string();
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
    let bytes = nix::fcntl::openat(dir, name.as_str(), flags, Mode::empty())
        .map_err(io::Error::from)
        .and_then(|file| super::read_whole(&mut File::from(file)))
        .map_err(|source| ProcError::Read { path: format!("/proc/PID/fdinfo/{fd}"), source })?;
    parse(&bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_each_type() {
        let info = parse(
            b"pos:\t17\nflags:\t02100001\nmnt_id:\t27\nino:\t10010651\n\
              lock:\t1: FLOCK  ADVISORY  WRITE 19467 fe:00:10010651 0 EOF\n",
        )
        .unwrap();
        assert_eq!((info.pos, info.flags, info.mount, info.inode), (17, 0o2_100_001, 27, 10_010_651));
        assert_eq!(info.locks.len(), 1);

        let info = parse(
            b"pos:\t0\nflags:\t02\neventfd-count:                f\neventfd-id: 1\neventfd-semaphore: 1\n",
        )
        .unwrap();
        assert_eq!(info.eventfd, Some((15, true)));

        let info = parse(
            b"tfd:        0 events: 80000019 data:               1f  pos:0 ino:6563 sdev:f\n\
              tfd:        4 events: 40000019 data: ffffffffffffffff  pos:0 ino:6195 sdev:f\n",
        )
        .unwrap();
        assert_eq!(
            info.epoll[0],
            EpollLine { fd: 0, events: 0x8000_0019, data: 0x1f, inode: 0x6563, device: 0xf }
        );
        assert_eq!(info.epoll[1].data, u64::MAX);

        let info =
            parse(b"clockid: 1\nticks: 3\nsettime flags: 01\nit_value: (2, 500)\nit_interval: (0, 7)\n")
                .unwrap();
        assert_eq!(
            info.timerfd,
            Some(TimerFd {
                clock: 1,
                ticks: 3,
                settime_flags: 1,
                remaining_ns: 2_000_000_500,
                interval_ns: 7
            })
        );

        let info = parse(b"sigmask:\t0000000000001234\n").unwrap();
        assert_eq!(info.signalfd, Some(0x1234));

        let info = parse(
            b"inotify wd:2 ino:13 sdev:fe00000 mask:fff ignored_mask:0 fhandle-bytes:8 fhandle-type:1 f_handle:13000aff\n",
        )
        .unwrap();
        let handle = vec![0x13, 0, 0x0a, 0xff];
        assert_eq!(
            info.inotify,
            [InotifyLine { wd: 2, inode: 0x13, device: 0xfe0_0000, mask: 0xfff, handle_kind: 1, handle }]
        );

        assert_eq!(parse(b"Pid:\t-1\nNSpid:\t-1\n").unwrap().pidfd, Some(-1));
        assert!(parse(b"fanotify flags:0 event-flags:8000\n").unwrap().fanotify);
        assert_eq!(parse(b"flags:\t02\ntty-index:\t3\n").unwrap().tty_index, Some(3));
        assert!(parse(b"pos:\tx\n").is_err());
    }

    #[test]
    fn reads_this_process() {
        let pid = i32::try_from(std::process::id()).unwrap();
        let fd = *super::super::tasks::descriptors(pid).unwrap().first().unwrap();
        let _ = read(pid, fd).unwrap();
    }

    proptest::proptest! {
        #[test]
        fn never_panics(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..300)) {
            let _ = parse(&bytes);
        }
    }
}
