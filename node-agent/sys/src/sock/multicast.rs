//! What groups of multicast a socket is a member of, and whom it hears there. See ip(7) and RFC 3678.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::BorrowedFd;

use super::address::{self, Address};
use super::{get_into, set_raw};
use crate::{Errno, Result};

const IP_ADD_MEMBERSHIP: i32 = 35;
const MCAST_JOIN_GROUP: i32 = 42;
/// Its argument is a `struct group_filter`: interface, the group, mode, number of sources, the sources.
const MCAST_MSFILTER: i32 = 48;
const GROUP: usize = 8;
const MODE: usize = GROUP + address::MAX;
const COUNT: usize = MODE + 4;
const SOURCES: usize = COUNT + 4;
/// Numbers of the modes.
const EXCLUDE: u32 = 0;
const INCLUDE: u32 = 1;
/// The kernel takes no more than this at once, whatever is set.
const MOST: usize = 4096;

/// Whom a member hears.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    /// All but the sources; else only them.
    pub exclude: bool,
    /// The sources.
    pub sources: Vec<IpAddr>,
}

impl Filter {
    /// A member that hears everybody.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.exclude && self.sources.is_empty()
    }
}

/// What filter a socket has as a member of a group at the interface of that number; `None`: it is no member.
///
/// # Errors
/// `ENOTSOCK`, `ENOPROTOOPT` this kind of socket has no memberships, `EBADMSG` the kernel's answer makes no sense.
pub fn membership(fd: BorrowedFd<'_>, interface: u32, group: IpAddr) -> Result<Option<Filter>> {
    let mut room = 0;
    loop {
        let mut filter = head(interface, group, EXCLUDE, room);
        filter.resize(SOURCES + room * address::MAX, 0);
        match get_into(fd, level(group), MCAST_MSFILTER, &mut filter) {
            Ok(_) => {}
            Err(Errno::EADDRNOTAVAIL | Errno::ENODEV) => return Ok(None),
            Err(errno) => return Err(errno),
        }
        let count = word(&filter, COUNT) as usize;
        if count > MOST {
            return Err(Errno::EBADMSG);
        }
        if count > room {
            room = count;
            continue;
        }
        let source = |raw: &[u8]| Address::from_bytes(raw).inet().map(|address| address.ip());
        let sources: Option<Vec<IpAddr>> =
            filter[SOURCES..].chunks_exact(address::MAX).take(count).map(source).collect();
        let sources = sources.ok_or(Errno::EBADMSG)?;
        return Ok(Some(Filter { exclude: word(&filter, MODE) == EXCLUDE, sources }));
    }
}

/// Makes a socket a member of a group at the interface of that number. `address`: an address of that interface, by
/// which the program may leave the group again, in IPv4.
///
/// # Errors
/// `EADDRINUSE` it is one already, `ENOBUFS` a limit of memberships or sources, `ENODEV`, `EINVAL` no multicast address.
pub fn join(
    fd: BorrowedFd<'_>,
    interface: u32,
    address: Option<Ipv4Addr>,
    group: IpAddr,
    filter: &Filter,
) -> Result<()> {
    match (group, address) {
        (IpAddr::V4(group), Some(address)) => {
            // struct ip_mreqn
            let mut wanted = group.octets().to_vec();
            wanted.extend(address.octets());
            wanted.extend(interface.to_ne_bytes());
            set_raw(fd, libc::IPPROTO_IP, IP_ADD_MEMBERSHIP, &wanted)?;
        }
        _ => {
            // struct group_req
            let mut wanted = head(interface, group, EXCLUDE, 0);
            wanted.truncate(MODE);
            set_raw(fd, level(group), MCAST_JOIN_GROUP, &wanted)?;
        }
    }
    if filter.is_open() {
        return Ok(());
    }
    let mode = if filter.exclude { EXCLUDE } else { INCLUDE };
    let mut wanted = head(interface, group, mode, filter.sources.len());
    for source in &filter.sources {
        put(&mut wanted, *source);
    }
    set_raw(fd, level(group), MCAST_MSFILTER, &wanted)
}

fn level(group: IpAddr) -> i32 {
    if group.is_ipv4() { libc::IPPROTO_IP } else { libc::IPPROTO_IPV6 }
}

fn head(interface: u32, group: IpAddr, mode: u32, sources: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(SOURCES + sources * address::MAX);
    bytes.extend(interface.to_ne_bytes());
    bytes.resize(GROUP, 0);
    put(&mut bytes, group);
    bytes.extend(mode.to_ne_bytes());
    bytes.extend(u32::try_from(sources).unwrap_or(u32::MAX).to_ne_bytes());
    bytes
}

/// A `struct sockaddr_storage`.
fn put(bytes: &mut Vec<u8>, ip: IpAddr) {
    let end = bytes.len() + address::MAX;
    bytes.extend(Address::Inet(SocketAddr::new(ip, 0)).to_bytes());
    bytes.resize(end, 0);
}

fn word(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::os::fd::AsFd;

    use super::*;

    const LOOPBACK: u32 = 1;

    fn again(level: &str, group: &str, filter: &Filter) {
        let group: IpAddr = group.parse().unwrap();
        let socket = UdpSocket::bind((level, 0)).unwrap();
        assert_eq!(membership(socket.as_fd(), LOOPBACK, group).unwrap(), None);
        join(socket.as_fd(), LOOPBACK, None, group, filter).unwrap();
        assert_eq!(membership(socket.as_fd(), LOOPBACK, group).unwrap().as_ref(), Some(filter));
        assert_eq!(join(socket.as_fd(), LOOPBACK, None, group, filter), Err(Errno::EADDRINUSE));
    }

    #[test]
    fn members_with_filters() {
        let sources = |all: &[&str]| all.iter().map(|ip| ip.parse().unwrap()).collect();
        again("127.0.0.1", "239.1.2.3", &Filter { exclude: true, sources: Vec::new() });
        again("127.0.0.1", "239.1.2.3", &Filter { exclude: true, sources: sources(&["10.0.0.1"]) });
        let only = Filter { exclude: false, sources: sources(&["10.0.0.1", "10.0.0.2"]) };
        again("127.0.0.1", "232.1.2.3", &only);
        again("::1", "239.1.2.4", &Filter { exclude: true, sources: Vec::new() });
        again("::1", "ff15::7", &Filter { exclude: true, sources: Vec::new() });
        again("::1", "ff15::7", &Filter { exclude: false, sources: sources(&["2001:db8::1"]) });
    }

    #[test]
    fn an_address_to_leave_by() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let group: Ipv4Addr = "239.1.2.5".parse().unwrap();
        let filter = Filter { exclude: true, sources: Vec::new() };
        join(socket.as_fd(), LOOPBACK, Some(Ipv4Addr::LOCALHOST), group.into(), &filter).unwrap();
        socket.leave_multicast_v4(&group, &Ipv4Addr::LOCALHOST).unwrap();
        assert_eq!(membership(socket.as_fd(), LOOPBACK, group.into()).unwrap(), None);
    }
}
