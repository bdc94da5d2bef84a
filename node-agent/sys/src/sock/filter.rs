//! Packet filters of sockets: the classic ones, which the kernel gives away as they were given to it. See socket(7).

use std::os::fd::{AsRawFd, BorrowedFd};

use crate::abi::small;
use crate::{Errno, Result};

/// `SO_GET_FILTER`, whose length counts instructions.
const SO_GET_FILTER: i32 = libc::SO_ATTACH_FILTER;
/// Bytes of an instruction (`struct sock_filter`).
const INSTRUCTION: usize = 8;

/// How many instructions the socket's packet filter has (`SO_ATTACH_FILTER`); 0 = it has none.
///
/// # Errors
/// `ENOTSOCK`, `EACCES` the filter is one of eBPF, which cannot be read.
pub fn len(fd: BorrowedFd<'_>) -> Result<usize> {
    let mut len: libc::socklen_t = 0;
    // SAFETY: with a length of 0 the kernel writes nothing but the number of instructions to `len`.
    let ret = unsafe {
        libc::getsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_GET_FILTER,
            std::ptr::null_mut(),
            std::ptr::from_mut(&mut len),
        )
    };
    small(ret)?;
    usize::try_from(len).map_err(|_| Errno::EOVERFLOW)
}

/// The instructions of the filter, 8 bytes each; none without a filter.
///
/// # Errors
/// As [`len`]; `EINVAL` it has become longer meanwhile.
pub fn get(fd: BorrowedFd<'_>) -> Result<Vec<u8>> {
    let count = len(fd)?;
    let mut bytes = vec![0_u8; count * INSTRUCTION];
    if count == 0 {
        return Ok(bytes);
    }
    let mut length = libc::socklen_t::try_from(count).map_err(|_| Errno::EOVERFLOW)?;
    // SAFETY: the kernel writes at most `length` instructions of 8 bytes to `bytes`, which has room for so many.
    let ret = unsafe {
        libc::getsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_GET_FILTER,
            bytes.as_mut_ptr().cast(),
            std::ptr::from_mut(&mut length),
        )
    };
    small(ret)?;
    bytes.truncate(usize::try_from(length).map_err(|_| Errno::EOVERFLOW)? * INSTRUCTION);
    Ok(bytes)
}

/// Gives a socket a filter of these instructions.
///
/// # Errors
/// `EINVAL` they are none, `EPERM` the socket's filter is locked, `ENOMEM` it has too much memory for options.
pub fn attach(fd: BorrowedFd<'_>, instructions: &[u8]) -> Result<()> {
    let (whole, rest) = instructions.as_chunks::<INSTRUCTION>();
    if !rest.is_empty() {
        return Err(Errno::EINVAL);
    }
    let mut filter: Vec<libc::sock_filter> = whole
        .iter()
        .map(|[a, b, jt, jf, k @ ..]| libc::sock_filter {
            code: u16::from_ne_bytes([*a, *b]),
            jt: *jt,
            jf: *jf,
            k: u32::from_ne_bytes(*k),
        })
        .collect();
    let program = libc::sock_fprog {
        len: u16::try_from(filter.len()).map_err(|_| Errno::EINVAL)?,
        filter: filter.as_mut_ptr(),
    };
    let length = libc::socklen_t::try_from(size_of_val(&program)).map_err(|_| Errno::EINVAL)?;
    // SAFETY: the kernel reads `program`, and through it the instructions of `filter`, of which there are `len`.
    let ret = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            std::ptr::from_ref(&program).cast(),
            length,
        )
    };
    small(ret).map(drop)
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn a_filter_comes_back_as_it_was_given() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        assert_eq!(get(socket.as_fd()).unwrap(), []);
        assert_eq!(attach(socket.as_fd(), &[6, 0, 0]), Err(Errno::EINVAL));
        // BPF_RET of what BPF_LD | BPF_IMM put there.
        let code = [[0, 0, 0, 0, 255, 255, 0, 0], [0x16, 0, 0, 0, 0, 0, 0, 0]].concat();
        attach(socket.as_fd(), &code).unwrap();
        assert_eq!((len(socket.as_fd()).unwrap(), get(socket.as_fd()).unwrap()), (2, code));
        assert_eq!(
            crate::sock::get_raw(socket.as_fd(), libc::SOL_SOCKET, SO_GET_FILTER),
            Err(Errno::EOPNOTSUPP)
        );
    }
}
