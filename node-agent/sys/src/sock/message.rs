//! sendmsg(2) and recvmsg(2) with descriptors and credentials.

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};

use super::address::{self, Address};
use super::{peek_offset, set_peek_offset};
use crate::abi::new_fd;
use crate::{Errno, Result};

/// The kernel takes no more descriptors in one message (`SCM_MAX_FD`).
pub const MAX_FDS: usize = 253;

/// Sender of a message, as seen by the receiver (`struct ucred`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Credentials {
    /// Process, in the receiver's pid namespace; 0 when it has no number there.
    pub pid: i32,
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// An ancillary item that has no field of its own in [`Received`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Control {
    /// SOL_SOCKET, IPPROTO_IP ...
    pub level: i32,
    /// SCM_TIMESTAMP, IP_PKTINFO ...
    pub kind: i32,
    /// Content.
    pub data: Vec<u8>,
}

/// A received (or looked at) message.
#[derive(Debug)]
pub struct Received {
    /// Payload.
    pub data: Vec<u8>,
    /// SCM_RIGHTS: new descriptors of this process, close-on-exec.
    pub fds: Vec<OwnedFd>,
    /// SCM_CREDENTIALS, when SO_PASSCRED is set.
    pub credentials: Option<Credentials>,
    /// Other ancillary items.
    pub control: Vec<Control>,
    /// Sender's name, where the kind of socket has one.
    pub from: Option<Address>,
    /// MSG_TRUNC, MSG_CTRUNC, MSG_EOR, MSG_OOB.
    pub flags: i32,
}

/// `struct cmsghdr` is a length and two integers; items are aligned to 8.
const HEADER: usize = 16;
const _: () = assert!(size_of::<libc::cmsghdr>() == HEADER);
const CONTROL: usize = HEADER + (MAX_FDS * 4).next_multiple_of(8) + 512;

/// Buffers for the ancillary part must be aligned like `cmsghdr`.
#[repr(C, align(8))]
struct ControlBuffer([u8; CONTROL]);

fn header(
    name: *mut libc::c_void,
    name_len: libc::socklen_t,
    iov: &mut libc::iovec,
    control: *mut libc::c_void,
    control_len: usize,
) -> libc::msghdr {
    libc::msghdr {
        msg_name: name,
        msg_namelen: name_len,
        msg_iov: std::ptr::from_mut(iov),
        msg_iovlen: 1,
        msg_control: control,
        msg_controllen: control_len,
        msg_flags: 0,
    }
}

/// Receives one message of at most `limit` bytes of payload. An empty payload on a stream means its end.
///
/// # Errors
/// `EAGAIN` nothing is there and the socket or `flags` say not to wait; `ENOTCONN`.
pub fn receive(fd: BorrowedFd<'_>, limit: usize, flags: i32) -> Result<Received> {
    receive_plain(fd, limit, flags | libc::MSG_CMSG_CLOEXEC)
}

/// As [`receive`], from a socket that gives no descriptors: packet sockets refuse the flag that would close these on exec.
pub(crate) fn receive_plain(fd: BorrowedFd<'_>, limit: usize, flags: i32) -> Result<Received> {
    let mut data = vec![0_u8; limit];
    let mut name = [0_u8; address::MAX];
    let mut control = ControlBuffer([0; CONTROL]);
    let mut iov = libc::iovec { iov_base: data.as_mut_ptr().cast(), iov_len: data.len() };
    let mut msg =
        header(name.as_mut_ptr().cast(), address::MAX_LEN, &mut iov, control.0.as_mut_ptr().cast(), CONTROL);
    // SAFETY: every pointer in `msg` leads to a buffer of the length beside it that outlives the call.
    let ret = unsafe { libc::recvmsg(fd.as_raw_fd(), std::ptr::from_mut(&mut msg), flags) };
    let len = usize::try_from(Errno::result(ret)?).unwrap_or(0).min(limit);
    data.truncate(len);
    let from = (msg.msg_namelen > 0).then(|| Address::from_storage(&name, msg.msg_namelen));
    let mut received = Received {
        data,
        fds: Vec::new(),
        credentials: None,
        control: Vec::new(),
        from,
        flags: msg.msg_flags,
    };
    take_control(&control.0[..msg.msg_controllen.min(CONTROL)], &mut received)?;
    Ok(received)
}

fn take_control(mut raw: &[u8], received: &mut Received) -> Result<()> {
    while let Some((head, _)) = raw.split_at_checked(HEADER) {
        let len = usize::try_from(u64::from_ne_bytes(field(head, 0)?)).map_err(|_| Errno::EBADMSG)?;
        let level = i32::from_ne_bytes(field(head, 8)?);
        let kind = i32::from_ne_bytes(field(head, 12)?);
        let content = raw.get(HEADER..len).ok_or(Errno::EBADMSG)?;
        match (level, kind) {
            (libc::SOL_SOCKET, libc::SCM_RIGHTS) => {
                for number in content.chunks_exact(4) {
                    received.fds.push(new_fd(RawFd::from_ne_bytes(field(number, 0)?))?);
                }
            }
            (libc::SOL_SOCKET, libc::SCM_CREDENTIALS) => {
                received.credentials = Some(Credentials {
                    pid: i32::from_ne_bytes(field(content, 0)?),
                    uid: u32::from_ne_bytes(field(content, 4)?),
                    gid: u32::from_ne_bytes(field(content, 8)?),
                });
            }
            _ => received.control.push(Control { level, kind, data: content.to_vec() }),
        }
        raw = raw.get(len.next_multiple_of(8)..).unwrap_or(&[]);
    }
    Ok(())
}

fn field<const N: usize>(raw: &[u8], at: usize) -> Result<[u8; N]> {
    raw.get(at..at + N).and_then(|part| part.try_into().ok()).ok_or(Errno::EBADMSG)
}

/// Sends one message, with up to [`MAX_FDS`] descriptors, credentials and a destination. SIGPIPE is never
/// raised. Returns the bytes taken (a stream may take fewer).
///
/// # Errors
/// `EAGAIN`, `EPIPE`, `EINVAL` too many descriptors, `EPERM` foreign credentials, `ETOOMANYREFS`.
pub fn send(
    fd: BorrowedFd<'_>,
    data: &[u8],
    fds: &[BorrowedFd<'_>],
    credentials: Option<Credentials>,
    to: Option<&Address>,
    flags: i32,
) -> Result<usize> {
    if fds.len() > MAX_FDS {
        return Err(Errno::EINVAL);
    }
    let mut control = ControlBuffer([0; CONTROL]);
    let mut used = 0;
    if !fds.is_empty() {
        let numbers: Vec<u8> = fds.iter().flat_map(|fd| fd.as_raw_fd().to_ne_bytes()).collect();
        used += put_control(&mut control.0[used..], libc::SCM_RIGHTS, &numbers);
    }
    if let Some(who) = credentials {
        let mut raw = [0_u8; 12];
        raw[..4].copy_from_slice(&who.pid.to_ne_bytes());
        raw[4..8].copy_from_slice(&who.uid.to_ne_bytes());
        raw[8..].copy_from_slice(&who.gid.to_ne_bytes());
        used += put_control(&mut control.0[used..], libc::SCM_CREDENTIALS, &raw);
    }
    let mut name = to.map(Address::to_bytes).unwrap_or_default();
    let name_len = libc::socklen_t::try_from(name.len()).map_err(|_| Errno::EINVAL)?;
    let name_at =
        if name.is_empty() { std::ptr::null_mut() } else { name.as_mut_ptr().cast::<libc::c_void>() };
    let mut iov = libc::iovec { iov_base: data.as_ptr().cast_mut().cast(), iov_len: data.len() };
    let msg = header(name_at, name_len, &mut iov, control.0.as_mut_ptr().cast(), used);
    // SAFETY: every pointer in `msg` leads to a buffer of the length beside it that outlives the call; sendmsg
    // only reads them, so the cast that made `data` mutable is never used to write.
    let ret = unsafe { libc::sendmsg(fd.as_raw_fd(), std::ptr::from_ref(&msg), flags | libc::MSG_NOSIGNAL) };
    Ok(usize::try_from(Errno::result(ret)?).unwrap_or(0))
}

/// Writes one ancillary item; returns the space it takes. The buffer has room for all items that `send` makes.
fn put_control(buffer: &mut [u8], kind: i32, content: &[u8]) -> usize {
    let len = HEADER + content.len();
    buffer[..8].copy_from_slice(&(len as u64).to_ne_bytes());
    buffer[8..12].copy_from_slice(&libc::SOL_SOCKET.to_ne_bytes());
    buffer[12..16].copy_from_slice(&kind.to_ne_bytes());
    buffer[HEADER..len].copy_from_slice(content);
    len.next_multiple_of(8)
}

/// Sends any number of descriptors over a unix socket: messages of one byte with up to [`MAX_FDS`] each.
///
/// # Errors
/// As [`send`].
pub fn send_fds(fd: BorrowedFd<'_>, fds: &[BorrowedFd<'_>]) -> Result<()> {
    for chunk in fds.chunks(MAX_FDS) {
        send(fd, &[0], chunk, None, None, 0)?;
    }
    Ok(())
}

/// Receives `count` descriptors that [`send_fds`] sent.
///
/// # Errors
/// As [`receive`]; `EPIPE` the sender closed first, `EMFILE` some did not fit our table.
pub fn receive_fds(fd: BorrowedFd<'_>, count: usize) -> Result<Vec<OwnedFd>> {
    let mut fds = Vec::with_capacity(count);
    while fds.len() < count {
        let mut part = receive(fd, 1, 0)?;
        if part.flags & libc::MSG_CTRUNC != 0 {
            return Err(Errno::EMFILE);
        }
        if part.data.is_empty() {
            return Err(Errno::EPIPE);
        }
        fds.append(&mut part.fds);
    }
    Ok(fds)
}

/// Looks at everything a socket has received, oldest first, and leaves it there. Each item is a datagram, or
/// for a stream a run of bytes with one set of credentials and descriptors. Uses SO_PEEK_OFF and puts
/// it back. Nobody else may read the socket meanwhile.
///
/// # Errors
/// `EOPNOTSUPP` this kind of socket has no SO_PEEK_OFF, `ENOTCONN`, `EMFILE` descriptors did not fit.
pub fn peek_queue(fd: BorrowedFd<'_>) -> Result<Vec<Received>> {
    let kind = super::kind(fd)?;
    let before = peek_offset(fd)?;
    set_peek_offset(fd, 0)?;
    // An empty message has a sender, the end has none.
    let senders = if kind == libc::SOCK_SEQPACKET {
        let senders = super::get_int(fd, libc::SOL_SOCKET, libc::SO_PASSCRED)?;
        super::set_int(fd, libc::SOL_SOCKET, libc::SO_PASSCRED, 1)?;
        Some(senders)
    } else {
        None
    };
    let result = peek_all(fd, kind);
    if let Some(senders) = senders {
        super::set_int(fd, libc::SOL_SOCKET, libc::SO_PASSCRED, senders)?;
    }
    set_peek_offset(fd, before)?;
    result
}

fn peek_all(fd: BorrowedFd<'_>, kind: i32) -> Result<Vec<Received>> {
    // Behind the last byte of a stream may be an error, which looking would take away.
    let total = if kind == libc::SOCK_STREAM { crate::tcp::inq(fd)? as usize } else { usize::MAX };
    let mut queue = Vec::new();
    let mut limit = 65536;
    let mut offset = 0_usize;
    while offset < total {
        // MSG_TRUNC is left out: it would report a length without the data being here.
        match receive(fd, limit, libc::MSG_PEEK | libc::MSG_DONTWAIT) {
            Ok(part) if part.flags & libc::MSG_CTRUNC != 0 => return Err(Errno::EMFILE),
            Ok(part) if part.flags & libc::MSG_TRUNC != 0 => {
                limit = limit.checked_mul(4).ok_or(Errno::EMSGSIZE)?;
                set_peek_offset(fd, i32::try_from(offset).map_err(|_| Errno::EMSGSIZE)?)?;
            }
            Ok(part) if part.data.is_empty() && is_end(kind, &part) => return Ok(queue),
            Ok(mut part) => {
                if kind == libc::SOCK_STREAM && !part.fds.is_empty() {
                    let before = before_descriptors(fd, offset, part.data.len())?;
                    if before > 0 {
                        let rest = part.data.split_off(before);
                        let mut first = plain(&part);
                        first.data = std::mem::replace(&mut part.data, rest);
                        queue.push(first);
                        offset += before;
                    }
                }
                offset += part.data.len();
                queue.push(part);
            }
            Err(Errno::EAGAIN) => return Ok(queue),
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(queue)
}

/// How many bytes of a piece of a stream come before the message that its descriptors came with: a reader of fewer
/// bytes does not get these yet.
///
/// Every look goes on to the next descriptors, however short it is. But a message whose last byte cannot be copied is
/// not counted.
fn before_descriptors(fd: BorrowedFd<'_>, offset: usize, length: usize) -> Result<usize> {
    let at = |offset: usize| set_peek_offset(fd, i32::try_from(offset).map_err(|_| Errno::EMSGSIZE)?);
    let mut data = vec![0_u8; length.saturating_sub(1)];
    let mut iov = [
        libc::iovec { iov_base: data.as_mut_ptr().cast(), iov_len: data.len() },
        libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 1 },
    ];
    let mut msg = header(std::ptr::null_mut(), 0, &mut iov[0], std::ptr::null_mut(), 0);
    msg.msg_iov = iov.as_mut_ptr();
    msg.msg_iovlen = iov.len();
    at(offset)?;
    // SAFETY: `msg` leads to two places: one of `data`, which outlives the call, and one at address zero, where the
    // kernel's copy fails.
    let ret = unsafe {
        libc::recvmsg(fd.as_raw_fd(), std::ptr::from_mut(&mut msg), libc::MSG_PEEK | libc::MSG_DONTWAIT)
    };
    at(offset + length)?;
    match Errno::result(ret) {
        Ok(before) => Ok(usize::try_from(before).unwrap_or(0)),
        Err(Errno::EFAULT) => Ok(0),
        Err(errno) => Err(errno),
    }
}

/// The same message without its payload and descriptors.
fn plain(part: &Received) -> Received {
    Received {
        data: Vec::new(),
        fds: Vec::new(),
        credentials: part.credentials,
        control: part.control.clone(),
        from: part.from.clone(),
        flags: part.flags,
    }
}

/// Whether an empty answer is the end and not a message.
fn is_end(kind: i32, part: &Received) -> bool {
    match kind {
        libc::SOCK_DGRAM => false,
        libc::SOCK_SEQPACKET => part.credentials.is_none(),
        _ => true,
    }
}
