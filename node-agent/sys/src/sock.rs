//! Sockets: options as raw bytes, names, messages with descriptors, and looking at queues without consuming.
//!
//! See socket(7), unix(7), recvmsg(2). [`message`] holds sending and receiving.

pub mod address;
pub mod filter;
pub mod message;
pub mod multicast;

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use nix::sys::socket::Shutdown;

pub use self::address::Address;
pub(crate) use self::message::receive_plain;
pub use self::message::{Control, Credentials, Received, peek_queue, receive, receive_fds, send, send_fds};
use crate::abi::{Pod, bytes_of, bytes_of_mut, new_fd, small, zeroed};
use crate::{Errno, Result};

/// Creates a socket, close-on-exec, in this thread's network namespace.
///
/// # Errors
/// `EAFNOSUPPORT`, `EPROTONOSUPPORT`, `EPERM` (raw and packet sockets), `EMFILE`.
pub fn socket(domain: i32, kind: i32, protocol: i32) -> Result<OwnedFd> {
    // SAFETY: socket takes three integers.
    new_fd(unsafe { libc::socket(domain, kind | libc::SOCK_CLOEXEC, protocol) })
}

/// Creates two connected sockets, close-on-exec.
///
/// # Errors
/// `EAFNOSUPPORT`, `EOPNOTSUPP`, `EMFILE`.
pub fn pair(domain: i32, kind: i32, protocol: i32) -> Result<(OwnedFd, OwnedFd)> {
    let mut fds = [-1; 2];
    // SAFETY: the kernel writes two integers to `fds`.
    small(unsafe { libc::socketpair(domain, kind | libc::SOCK_CLOEXEC, protocol, fds.as_mut_ptr()) })?;
    Ok((new_fd(fds[0])?, new_fd(fds[1])?))
}

/// Reads a socket option into `buffer`; returns how many bytes the kernel wrote.
///
/// # Errors
/// `ENOPROTOOPT` no such option here, `EINVAL`, `EPERM`.
pub fn get_into(fd: BorrowedFd<'_>, level: i32, name: i32, buffer: &mut [u8]) -> Result<usize> {
    // This one's length counts instructions, not bytes: see `filter`.
    if (level, name) == (libc::SOL_SOCKET, libc::SO_ATTACH_FILTER) {
        return Err(Errno::EOPNOTSUPP);
    }
    let mut len = libc::socklen_t::try_from(buffer.len()).map_err(|_| Errno::EINVAL)?;
    // SAFETY: the kernel writes at most `len` bytes to `buffer`, which is that long, and the length to `len`.
    let ret = unsafe {
        libc::getsockopt(
            fd.as_raw_fd(),
            level,
            name,
            buffer.as_mut_ptr().cast(),
            std::ptr::from_mut(&mut len),
        )
    };
    small(ret)?;
    usize::try_from(len).map(|len| len.min(buffer.len())).map_err(|_| Errno::EINVAL)
}

/// Reads a socket option of any size up to 64 KiB.
///
/// # Errors
/// As [`get_into`].
pub fn get_raw(fd: BorrowedFd<'_>, level: i32, name: i32) -> Result<Vec<u8>> {
    let mut small_buffer = [0_u8; 256];
    let len = get_into(fd, level, name, &mut small_buffer)?;
    if len < small_buffer.len() {
        return Ok(small_buffer[..len].to_vec());
    }
    let mut buffer = vec![0; 65536];
    let len = get_into(fd, level, name, &mut buffer)?;
    buffer.truncate(len);
    Ok(buffer)
}

/// Sets a socket option from bytes.
///
/// # Errors
/// `ENOPROTOOPT`, `EINVAL`, `EPERM`, or the option's own.
pub fn set_raw(fd: BorrowedFd<'_>, level: i32, name: i32, value: &[u8]) -> Result<()> {
    // The argument of these holds a pointer that the kernel follows (a filter as `sock_fprog`) or writes through.
    let pointer = matches!(
        (level, name),
        (libc::SOL_SOCKET, libc::SO_ATTACH_FILTER | libc::SO_ATTACH_REUSEPORT_CBPF)
            | (libc::IPPROTO_IP | libc::IPPROTO_IPV6, IPT_SO_SET_REPLACE)
    );
    if pointer {
        return Err(Errno::EOPNOTSUPP);
    }
    let len = libc::socklen_t::try_from(value.len()).map_err(|_| Errno::EINVAL)?;
    // SAFETY: the kernel reads `len` bytes of `value`; options that hold pointers were refused above.
    let ret = unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, value.as_ptr().cast(), len) };
    small(ret).map(drop)
}

/// `IPT_SO_SET_REPLACE` and its IPv6 twin: the argument holds a pointer that the kernel writes through.
const IPT_SO_SET_REPLACE: i32 = 64;

/// Reads an integer option.
///
/// # Errors
/// As [`get_into`].
pub fn get_int(fd: BorrowedFd<'_>, level: i32, name: i32) -> Result<i32> {
    get_pod(fd, level, name)
}

/// Sets an integer option.
///
/// # Errors
/// As [`set_raw`].
pub fn set_int(fd: BorrowedFd<'_>, level: i32, name: i32, value: i32) -> Result<()> {
    set_raw(fd, level, name, &value.to_ne_bytes())
}

/// Reads a structure; what the kernel does not fill stays zero.
pub(crate) fn get_pod<T: Pod>(fd: BorrowedFd<'_>, level: i32, name: i32) -> Result<T> {
    let mut value = zeroed::<T>();
    get_into(fd, level, name, bytes_of_mut(&mut value))?;
    Ok(value)
}

/// Sets an option from a structure.
pub(crate) fn set_pod<T: Pod>(fd: BorrowedFd<'_>, level: i32, name: i32, value: &T) -> Result<()> {
    set_raw(fd, level, name, bytes_of(value))
}

/// Which of the `wanted` events of poll(2) hold at this moment, and `POLLERR` and `POLLHUP`.
///
/// # Errors
/// `ENOMEM`, `EINTR`.
pub fn events(fd: BorrowedFd<'_>, wanted: i16) -> Result<i16> {
    let mut entry = libc::pollfd { fd: fd.as_raw_fd(), events: wanted, revents: 0 };
    // SAFETY: the kernel reads and writes the one entry that `entry` is.
    small(unsafe { libc::poll(&raw mut entry, 1, 0) })?;
    Ok(entry.revents)
}

/// What a socket has of the kernel's memory (`SO_MEMINFO`), in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// What waits to be read, with what the kernel needs to keep it: an empty datagram counts, too.
    pub receive: u32,
    /// What was sent and has not left the host yet.
    pub send: u32,
    /// Set aside for what is still to come.
    pub forward: u32,
    /// Options that have no fixed place: keys of signatures, extension headers, memberships, filters; and
    /// notifications of `MSG_ZEROCOPY` that are still due.
    pub options: u32,
}

/// Asks for it.
///
/// # Errors
/// `ENOTSOCK`, `EBADF`.
pub fn memory(fd: BorrowedFd<'_>) -> Result<Memory> {
    let mut bytes = [0_u8; 64];
    get_into(fd, libc::SOL_SOCKET, SO_MEMINFO, &mut bytes)?;
    let word = |index: usize| {
        let at = 4 * index;
        u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
    };
    Ok(Memory { receive: word(0), send: word(2), forward: word(4), options: word(6) })
}

const SO_MEMINFO: i32 = 55;

/// Address family (`SO_DOMAIN`). `ENOTSOCK` tells that a descriptor is no socket.
///
/// # Errors
/// `ENOTSOCK`, `EBADF`.
pub fn domain(fd: BorrowedFd<'_>) -> Result<i32> {
    get_int(fd, libc::SOL_SOCKET, libc::SO_DOMAIN)
}

/// Socket type (`SO_TYPE`): SOCK_STREAM ...
///
/// # Errors
/// As [`domain`].
pub fn kind(fd: BorrowedFd<'_>) -> Result<i32> {
    get_int(fd, libc::SOL_SOCKET, libc::SO_TYPE)
}

/// Protocol (`SO_PROTOCOL`): IPPROTO_TCP ...; IPPROTO_MPTCP (262) shows itself here.
///
/// # Errors
/// As [`domain`].
pub fn protocol(fd: BorrowedFd<'_>) -> Result<i32> {
    get_int(fd, libc::SOL_SOCKET, libc::SO_PROTOCOL)
}

/// The socket's own number, never reused on this host (`SO_COOKIE`).
///
/// # Errors
/// As [`domain`].
pub fn cookie(fd: BorrowedFd<'_>) -> Result<u64> {
    get_pod(fd, libc::SOL_SOCKET, libc::SO_COOKIE)
}

/// `SO_PEEK_OFF`: -1 off, else where the next MSG_PEEK starts.
///
/// # Errors
/// `EOPNOTSUPP` not on this kind of socket.
pub fn peek_offset(fd: BorrowedFd<'_>) -> Result<i32> {
    get_int(fd, libc::SOL_SOCKET, libc::SO_PEEK_OFF)
}

/// Sets `SO_PEEK_OFF`.
///
/// # Errors
/// `EOPNOTSUPP` not on this kind of socket.
pub fn set_peek_offset(fd: BorrowedFd<'_>, offset: i32) -> Result<()> {
    set_int(fd, libc::SOL_SOCKET, libc::SO_PEEK_OFF, offset)
}

/// getsockname(2).
///
/// # Errors
/// `ENOTSOCK`, `EBADF`.
pub fn local_name(fd: BorrowedFd<'_>) -> Result<Address> {
    let mut storage = [0_u8; address::MAX];
    let mut len = address::MAX_LEN;
    // SAFETY: the kernel writes at most `len` bytes of an address to `storage` and its length to `len`.
    let ret = unsafe {
        libc::getsockname(fd.as_raw_fd(), storage.as_mut_ptr().cast(), std::ptr::from_mut(&mut len))
    };
    small(ret)?;
    Ok(Address::from_storage(&storage, len))
}

/// getpeername(2).
///
/// # Errors
/// `ENOTCONN`, `ENOTSOCK`, `EBADF`.
pub fn peer_name(fd: BorrowedFd<'_>) -> Result<Address> {
    let mut storage = [0_u8; address::MAX];
    let mut len = address::MAX_LEN;
    // SAFETY: the kernel writes at most `len` bytes of an address to `storage` and its length to `len`.
    let ret = unsafe {
        libc::getpeername(fd.as_raw_fd(), storage.as_mut_ptr().cast(), std::ptr::from_mut(&mut len))
    };
    small(ret)?;
    Ok(Address::from_storage(&storage, len))
}

/// The file that a unix socket is bound to, opened as a path, on the mount on which it was bound.
///
/// # Errors
/// `ENOENT` it has none, `EPERM` without `CAP_NET_ADMIN` over its network.
pub fn unix_file(fd: BorrowedFd<'_>) -> Result<OwnedFd> {
    const SIOCUNIXFILE: libc::Ioctl = 0x89e0;
    // SAFETY: the request takes no argument.
    new_fd(unsafe { libc::ioctl(fd.as_raw_fd(), SIOCUNIXFILE, 0) })
}

/// bind(2).
///
/// # Errors
/// `EADDRINUSE`, `EADDRNOTAVAIL`, `EACCES`, `EINVAL` already bound.
pub fn bind(fd: BorrowedFd<'_>, address: &Address) -> Result<()> {
    let raw = address.to_bytes();
    let len = libc::socklen_t::try_from(raw.len()).map_err(|_| Errno::EINVAL)?;
    // SAFETY: the kernel reads `len` bytes of `raw`.
    small(unsafe { libc::bind(fd.as_raw_fd(), raw.as_ptr().cast(), len) }).map(drop)
}

/// connect(2).
///
/// # Errors
/// `ECONNREFUSED`, `EINPROGRESS` on a non-blocking socket, `ENETUNREACH`, ...
pub fn connect(fd: BorrowedFd<'_>, address: &Address) -> Result<()> {
    let raw = address.to_bytes();
    let len = libc::socklen_t::try_from(raw.len()).map_err(|_| Errno::EINVAL)?;
    // SAFETY: the kernel reads `len` bytes of `raw`.
    small(unsafe { libc::connect(fd.as_raw_fd(), raw.as_ptr().cast(), len) }).map(drop)
}

/// listen(2).
///
/// # Errors
/// `EADDRINUSE`, `EOPNOTSUPP`.
pub fn listen(fd: BorrowedFd<'_>, backlog: i32) -> Result<()> {
    // SAFETY: listen takes two integers.
    small(unsafe { libc::listen(fd.as_raw_fd(), backlog) }).map(drop)
}

/// accept4(2), close-on-exec.
///
/// # Errors
/// `EAGAIN` nothing waits on a non-blocking socket, `EINVAL` it does not listen.
pub fn accept(fd: BorrowedFd<'_>) -> Result<OwnedFd> {
    let none: *mut libc::sockaddr = std::ptr::null_mut();
    // SAFETY: null pointers tell the kernel that the address is not wanted.
    new_fd(unsafe { libc::accept4(fd.as_raw_fd(), none, std::ptr::null_mut(), libc::SOCK_CLOEXEC) })
}

/// shutdown(2).
///
/// # Errors
/// `ENOTCONN`.
pub fn shutdown(fd: BorrowedFd<'_>, how: Shutdown) -> Result<()> {
    nix::sys::socket::shutdown(fd.as_raw_fd(), how)
}
