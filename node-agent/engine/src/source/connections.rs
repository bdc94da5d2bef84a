//! What only the kernel's list of sockets tells of TCP, see sock_diag(7): who has keys of signatures, and what was left
//! to send when a program closed its connection.

use std::collections::HashSet;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use sys::diag::{Diag, InetSocket};
use sys::ns::{self, Kind};
use sys::tcp::state;

use super::error::{InspectError, TRY_AGAIN};
use super::findings::Findings;
use super::look::{ProcessLook, TableLook, tables};
use super::sockets::{self, SIGNED, TcpKind, UNSIGNED, tcp_state};

/// Closed by their program, and not yet acknowledged as a whole.
const CLOSING: u32 = 1 << state::FIN_WAIT1 | 1 << state::LAST_ACK | 1 << state::CLOSING;
/// A peer that has not answered so many repetitions (three seconds and more) is gone.
const PEER_IS_GONE: u8 = 4;
/// What is on its way to a peer that is near is acknowledged meanwhile.
const PATIENCE: Duration = Duration::from_millis(2);
const AGAIN: Duration = Duration::from_micros(250);

/// Connections in the container's own network namespace that were closed with data still to be sent. The namespace ends
/// when the container has left.
pub(crate) fn check_closed(root: i32, findings: &mut Findings) -> Result<(), InspectError> {
    let kernel = |errno| InspectError::kernel("look at closed connections", root, errno);
    let netns = ns::open(root, Kind::Net).map_err(kernel)?;
    let ours = ns::open_own(Kind::Net).and_then(|fd| ns::id_of(fd.as_fd())).map_err(kernel)?;
    if ours == ns::id_of(netns.as_fd()).map_err(kernel)? {
        return Ok(());
    }
    let look = || -> sys::Result<Vec<InetSocket>> {
        let mut diag = Diag::open()?;
        let end = Instant::now() + PATIENCE;
        loop {
            let mut left = diag.inet_in(6, CLOSING)?;
            left.retain(is_unfinished);
            if left.is_empty() || Instant::now() >= end {
                return Ok(left);
            }
            std::thread::sleep(AGAIN);
        }
    };
    for socket in ns::in_netns(netns.as_fd(), look).map_err(kernel)?.map_err(kernel)? {
        findings.container(
            format!(
                "a TCP connection from {} to {} that was closed still has {} bytes to send",
                socket.local, socket.peer, socket.unacked
            ),
            TRY_AGAIN,
        );
    }
    Ok(())
}

/// No descriptor leads to it, and its peer is there and lacks something of it. A FIN alone that was sent is on its way:
/// the peer has everything else.
fn is_unfinished(socket: &InetSocket) -> bool {
    let only_fin =
        socket.unacked <= 1 && socket.timer == InetSocket::RETRANSMITTING && socket.retransmits == 0;
    socket.inode == 0 && socket.unacked > 0 && !only_fin && socket.retransmits < PEER_IS_GONE
}

/// Sockets with keys of `TCP_MD5SIG`, among those with memory that nothing else explains. (BPF programs of the host may
/// store things in sockets, too.)
pub(crate) fn check_signatures(
    root: i32,
    processes: &[ProcessLook],
    findings: &mut Findings,
) -> Result<(), InspectError> {
    let suspects: Vec<_> = tables(processes).flat_map(suspects).collect();
    if suspects.is_empty() {
        return Ok(());
    }
    let kernel = |errno| InspectError::kernel("look for keys of sockets", root, errno);
    let netns = ns::open(root, Kind::Net).map_err(kernel)?;
    let list = || -> sys::Result<HashSet<u32>> { Diag::open()?.unsigned() };
    let unsigned = ns::in_netns(netns.as_fd(), list).map_err(kernel)?.map_err(kernel)?;
    for suspect in suspects {
        // A closed one is not on the list of every kernel.
        let listed = u32::try_from(suspect.inode).is_ok_and(|inode| unsigned.contains(&inode));
        if suspect.is_closed || !listed {
            findings.fd(suspect.pid, suspect.fd, SIGNED, UNSIGNED);
        }
    }
    Ok(())
}

struct Suspect {
    pid: i32,
    fd: i32,
    inode: u64,
    is_closed: bool,
}

fn suspects((found, table): (&ProcessLook, &TableLook)) -> impl Iterator<Item = Suspect> {
    table.descriptors.iter().filter_map(|descriptor| match table.sockets.get(&descriptor.fd) {
        Some(sockets::Kind::Tcp(TcpKind { state, unexplained: true, .. })) => Some(Suspect {
            pid: found.process.inner,
            fd: descriptor.fd,
            inode: descriptor.key.1,
            is_closed: *state == tcp_state::CLOSE,
        }),
        _ => None,
    })
}
