//! The special descriptors.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{Read, Seek, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;

use sys::Errno;
use sys::fds::{self, Owner, TimerSetting};

#[test]
fn pipes_are_looked_at_without_being_emptied() {
    let (read, write) = fds::pipe(libc::O_NONBLOCK).unwrap();
    fds::set_pipe_size(write.as_fd(), 1 << 20).unwrap();
    assert_eq!(fds::pipe_size(read.as_fd()).unwrap(), 1 << 20);
    assert!(fds::peek_pipe(read.as_fd()).unwrap().is_empty());
    let data: Vec<u8> = (0..700_000_u32).map(|i| (i % 251) as u8).collect();
    let mut written = 0;
    while written < data.len() {
        written += nix::unistd::write(&write, &data[written..]).unwrap();
    }
    assert!(fds::peek_pipe(read.as_fd()).unwrap() == data);
    assert!(fds::peek_pipe(read.as_fd()).unwrap() == data);
    let mut out = vec![0; data.len()];
    std::fs::File::from(read).read_exact(&mut out).unwrap();
    assert!(out == data);
}

#[test]
fn packet_pipes_keep_their_boundaries() {
    let (read, write) = fds::pipe(libc::O_DIRECT | libc::O_NONBLOCK).unwrap();
    for packet in [&b"one"[..], b"three", b"x"] {
        assert_eq!(nix::unistd::write(&write, packet).unwrap(), packet.len());
    }
    let packets = fds::peek_packets(read.as_fd()).unwrap();
    assert_eq!(packets, [&b"one"[..], b"three", b"x"]);
    let mut buffer = [0; 16];
    assert_eq!(nix::unistd::read(&read, &mut buffer).unwrap(), 3);
    assert_eq!(fds::peek_packets(read.as_fd()).unwrap(), [&b"three"[..], b"x"]);
}

#[test]
fn timers_and_their_ticks() {
    let timer = fds::timerfd(libc::CLOCK_MONOTONIC, libc::TFD_NONBLOCK).unwrap();
    let setting = TimerSetting { interval: 5_000_000_000, value: 3_600_000_000_007 };
    fds::timerfd_set(timer.as_fd(), 0, &setting).unwrap();
    let now = fds::timerfd_get(timer.as_fd()).unwrap();
    assert_eq!(now.interval, setting.interval);
    assert!(now.value <= setting.value && now.value > setting.value - 1_000_000_000);
    let mut ticks = [0; 8];
    assert_eq!(nix::unistd::read(&timer, &mut ticks), Err(Errno::EAGAIN));
    fds::timerfd_set_ticks(timer.as_fd(), 1 << 40).unwrap();
    assert_eq!(nix::unistd::read(&timer, &mut ticks), Ok(8));
    assert_eq!(u64::from_ne_bytes(ticks), 1 << 40);
    assert_eq!(fds::timerfd_set_ticks(timer.as_fd(), 0), Err(Errno::EINVAL));
}

#[test]
fn eventfd_epoll_and_signalfd() {
    let event = fds::eventfd(7, libc::EFD_SEMAPHORE | libc::EFD_NONBLOCK).unwrap();
    let epoll = fds::epoll().unwrap();
    fds::epoll_add(epoll.as_fd(), event.as_fd(), 1, 0xfeed_0000_0001).unwrap();
    assert_eq!(fds::epoll_add(epoll.as_fd(), event.as_fd(), 1, 0), Err(Errno::EEXIST));
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", epoll.as_raw_fd())).unwrap();
    assert!(info.contains("feed00000001"), "{info}");
    let pid = i32::try_from(std::process::id()).unwrap();
    let same = sys::kcmp::epoll_target(pid, event.as_raw_fd(), pid, epoll.as_raw_fd(), event.as_raw_fd(), 0);
    assert_eq!(same, Ok(std::cmp::Ordering::Equal));
    let mut one = [0; 8];
    assert_eq!(nix::unistd::read(&event, &mut one), Ok(8));
    assert_eq!(u64::from_ne_bytes(one), 1);
    let signals = fds::signalfd(1 << 9 | 1 << 11, libc::SFD_NONBLOCK).unwrap();
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", signals.as_raw_fd())).unwrap();
    assert!(info.contains("sigmask:\t0000000000000a00"), "{info}");
}

#[test]
fn memfds_and_seals() {
    let memfd = fds::memfd(b"name with space", libc::MFD_ALLOW_SEALING).unwrap();
    let link = std::fs::read_link(format!("/proc/self/fd/{}", memfd.as_raw_fd())).unwrap();
    assert_eq!(link, Path::new("/memfd:name with space (deleted)"));
    assert_eq!(fds::seals(memfd.as_fd()).unwrap(), 0);
    fds::add_seals(memfd.as_fd(), libc::F_SEAL_WRITE | libc::F_SEAL_GROW).unwrap();
    assert_eq!(fds::seals(memfd.as_fd()).unwrap(), libc::F_SEAL_WRITE | libc::F_SEAL_GROW);
    assert!(std::fs::File::from(memfd).write_all(b"x").is_err());
}

#[test]
fn owners_signals_and_flags() {
    let (read, _write) = fds::pipe(0).unwrap();
    assert_eq!(fds::owner(read.as_fd()).unwrap().id, 0);
    let owner = Owner { kind: 1, id: i32::try_from(std::process::id()).unwrap() };
    fds::set_owner(read.as_fd(), owner).unwrap();
    assert_eq!(fds::owner(read.as_fd()).unwrap(), owner);
    fds::set_owner_signal(read.as_fd(), 34).unwrap();
    assert_eq!(fds::owner_signal(read.as_fd()).unwrap(), 34);
    fds::set_status_flags(read.as_fd(), libc::O_NONBLOCK).unwrap();
    assert_ne!(fds::status_flags(read.as_fd()).unwrap() & libc::O_NONBLOCK, 0);
    let high = fds::duplicate_above(read.as_fd(), 700).unwrap();
    assert!(high.as_raw_fd() >= 700);
    fds::set_cloexec(high.as_fd(), false).unwrap();
    let flags = nix::fcntl::fcntl(&high, nix::fcntl::FcntlArg::F_GETFD).unwrap();
    assert_eq!(flags & libc::FD_CLOEXEC, 0);
    assert!(fds::raise_nofile_limit().unwrap() >= 1024);
}

#[test]
fn paths_stay_below_their_root() {
    let dir = tempdir();
    std::fs::create_dir(dir.join("etc")).unwrap();
    std::fs::write(dir.join("etc/hostname"), "inside").unwrap();
    std::os::unix::fs::symlink("/../../etc/hostname", dir.join("link")).unwrap();
    let root = std::fs::File::open(&dir).unwrap();
    let open = fds::open_in_root(root.as_fd(), Path::new("/link"), libc::O_RDWR, 0).unwrap();
    let mut file = std::fs::File::from(open);
    let mut text = String::new();
    file.read_to_string(&mut text).unwrap();
    assert_eq!(text, "inside");
    file.rewind().unwrap();
    // A deleted file that still has a name elsewhere can be given another.
    std::fs::hard_link(dir.join("etc/hostname"), dir.join("second")).unwrap();
    fds::link_at(file.as_fd(), &dir.join("third")).unwrap();
    assert_eq!(std::fs::read_to_string(dir.join("third")).unwrap(), "inside");
    std::fs::remove_dir_all(&dir).unwrap();
}

fn tempdir() -> std::path::PathBuf {
    let dir = std::env::temp_dir().join(format!("sys-fds-{}", std::process::id()));
    std::fs::create_dir(&dir).unwrap();
    dir
}
