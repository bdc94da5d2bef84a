//! Pseudo terminals: what ioctl_tty(2) and TIOCGPTN(2const) and their like tell and take.

use std::os::fd::{AsRawFd, BorrowedFd};

use crate::abi::small;
use crate::{Errno, Result};

const TCGETS2: libc::Ioctl = 0x802c_542a;
const TCSETS2: libc::Ioctl = 0x402c_542b;
const TIOCEXCL: libc::Ioctl = 0x540c;
const TIOCGWINSZ: libc::Ioctl = 0x5413;
const TIOCSWINSZ: libc::Ioctl = 0x5414;
const TIOCPKT: libc::Ioctl = 0x5420;
const TIOCGETD: libc::Ioctl = 0x5424;
const TIOCGPTN: libc::Ioctl = 0x8004_5430;
const TIOCSPTLCK: libc::Ioctl = 0x4004_5431;
const TIOCGDEV: libc::Ioctl = 0x8004_5432;
const TIOCGPKT: libc::Ioctl = 0x8004_5438;
const TIOCGPTLCK: libc::Ioctl = 0x8004_5439;
const TIOCGEXCL: libc::Ioctl = 0x8004_5440;
const TIOCGLCKTRMIOS: libc::Ioctl = 0x5456;

/// `TIOCSCTTY`, for a process's own tape.
pub const TIOCSCTTY: u32 = 0x540e;
/// `TIOCSPGRP`, for a process's own tape.
pub const TIOCSPGRP: u32 = 0x5410;
/// `TIOCNOTTY`, for a process's own tape.
pub const TIOCNOTTY: u32 = 0x5422;

/// The line discipline of ordinary terminals.
pub const N_TTY: i32 = 0;

/// `struct termios2`: modes, control characters and speeds.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are the kernel's")]
pub struct Termios {
    pub iflag: u32,
    pub oflag: u32,
    pub cflag: u32,
    pub lflag: u32,
    pub line: u8,
    pub cc: [u8; 19],
    pub ispeed: u32,
    pub ospeed: u32,
}
const _: () = assert!(size_of::<Termios>() == 44);
const _: () = assert!(std::mem::offset_of!(Termios, ispeed) == 36);
// SAFETY: integers and bytes; 16 + 1 + 19 bytes before the speeds leave no gap.
unsafe impl crate::abi::Pod for Termios {}

impl Termios {
    /// Its bytes, as the kernel has them.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        crate::abi::bytes_of(self).to_vec()
    }

    /// From such bytes; `None` when they are too few or too many.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        (bytes.len() == size_of::<Self>()).then(|| crate::abi::from_bytes(bytes))
    }
}

/// `struct winsize`: rows, columns, and pixels of both.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are the kernel's")]
pub struct WindowSize {
    pub rows: u16,
    pub columns: u16,
    pub x_pixels: u16,
    pub y_pixels: u16,
}
const _: () = assert!(size_of::<WindowSize>() == 8);

/// A request that writes one `int`.
fn get_int(fd: BorrowedFd<'_>, request: libc::Ioctl) -> Result<i32> {
    let mut value: libc::c_int = 0;
    // SAFETY: the callers pass requests that write one int, which `value` has room for.
    small(unsafe { libc::ioctl(fd.as_raw_fd(), request, &raw mut value) })?;
    Ok(value)
}

/// A request that reads one `int`.
fn set_int(fd: BorrowedFd<'_>, request: libc::Ioctl, value: i32) -> Result<()> {
    let value: libc::c_int = value;
    // SAFETY: the callers pass requests that read one int, which lives across the call.
    small(unsafe { libc::ioctl(fd.as_raw_fd(), request, &raw const value) }).map(drop)
}

/// The number of a master's slave in its devpts (`TIOCGPTN`).
///
/// # Errors
/// `ENOTTY` no master.
pub fn index(master: BorrowedFd<'_>) -> Result<u32> {
    u32::try_from(get_int(master, TIOCGPTN)?).map_err(|_| Errno::EOVERFLOW)
}

/// The device number of the terminal (of a master: of its slave), in the form of `st_rdev` (`TIOCGDEV`).
///
/// # Errors
/// `EIO` it was hung up, `ENOTTY` no terminal.
pub fn device(tty: BorrowedFd<'_>) -> Result<u64> {
    Ok(u64::from(get_int(tty, TIOCGDEV)?.cast_unsigned()))
}

/// Whether the slave cannot be opened yet (`TIOCGPTLCK`).
///
/// # Errors
/// `ENOTTY` no master.
pub fn is_locked(master: BorrowedFd<'_>) -> Result<bool> {
    Ok(get_int(master, TIOCGPTLCK)? != 0)
}

/// Locks or unlocks the slave (`TIOCSPTLCK`).
///
/// # Errors
/// `ENOTTY` no master.
pub fn set_locked(master: BorrowedFd<'_>, locked: bool) -> Result<()> {
    set_int(master, TIOCSPTLCK, i32::from(locked))
}

/// Whether the master is in packet mode (`TIOCGPKT`).
///
/// # Errors
/// `ENOTTY` no master.
pub fn is_packet(master: BorrowedFd<'_>) -> Result<bool> {
    Ok(get_int(master, TIOCGPKT)? != 0)
}

/// Packet mode on or off (`TIOCPKT`).
///
/// # Errors
/// `ENOTTY` no master.
pub fn set_packet(master: BorrowedFd<'_>, on: bool) -> Result<()> {
    set_int(master, TIOCPKT, i32::from(on))
}

/// Whether no other open(2) of it succeeds (`TIOCGEXCL`).
///
/// # Errors
/// `EIO` it was hung up.
pub fn is_exclusive(tty: BorrowedFd<'_>) -> Result<bool> {
    Ok(get_int(tty, TIOCGEXCL)? != 0)
}

/// Makes it so (`TIOCEXCL`).
///
/// # Errors
/// `EIO` it was hung up.
pub fn set_exclusive(tty: BorrowedFd<'_>) -> Result<()> {
    // SAFETY: the request takes no argument.
    small(unsafe { libc::ioctl(tty.as_raw_fd(), TIOCEXCL) }).map(drop)
}

/// The line discipline's number (`TIOCGETD`).
///
/// # Errors
/// `EIO` it was hung up.
pub fn discipline(tty: BorrowedFd<'_>) -> Result<i32> {
    get_int(tty, TIOCGETD)
}

/// Modes and speeds of the slave, asked of either side (`TCGETS2`).
///
/// # Errors
/// `EIO` it was hung up.
pub fn termios(tty: BorrowedFd<'_>) -> Result<Termios> {
    let mut value: Termios = crate::abi::zeroed();
    // SAFETY: the request writes one termios2 to `value`.
    small(unsafe { libc::ioctl(tty.as_raw_fd(), TCGETS2, &raw mut value) })?;
    Ok(value)
}

/// Sets them at once (`TCSETS2`).
///
/// # Errors
/// `EIO` it was hung up.
pub fn set_termios(tty: BorrowedFd<'_>, value: &Termios) -> Result<()> {
    // SAFETY: the request reads one termios2.
    small(unsafe { libc::ioctl(tty.as_raw_fd(), TCSETS2, std::ptr::from_ref(value)) }).map(drop)
}

/// Whether some of the modes are locked against change (`TIOCGLCKTRMIOS`).
///
/// # Errors
/// `EIO` it was hung up.
pub fn has_locked_modes(tty: BorrowedFd<'_>) -> Result<bool> {
    // `struct termios`: four words, the discipline, 19 control characters.
    let mut locked = [0_u8; 64];
    // SAFETY: the request writes one struct termios of 36 bytes; there is room for more.
    small(unsafe { libc::ioctl(tty.as_raw_fd(), TIOCGLCKTRMIOS, locked.as_mut_ptr()) })?;
    Ok(locked.iter().any(|byte| *byte != 0))
}

/// The window's size (`TIOCGWINSZ`).
///
/// # Errors
/// `EIO` it was hung up.
pub fn window_size(tty: BorrowedFd<'_>) -> Result<WindowSize> {
    let mut size = WindowSize::default();
    // SAFETY: the request writes one winsize to `size`.
    small(unsafe { libc::ioctl(tty.as_raw_fd(), TIOCGWINSZ, &raw mut size) })?;
    Ok(size)
}

/// Sets it; the foreground group gets SIGWINCH when it changes (`TIOCSWINSZ`).
///
/// # Errors
/// `EIO` it was hung up.
pub fn set_window_size(tty: BorrowedFd<'_>, size: WindowSize) -> Result<()> {
    // SAFETY: the request reads one winsize, which lives across the call.
    small(unsafe { libc::ioctl(tty.as_raw_fd(), TIOCSWINSZ, &raw const size) }).map(drop)
}
