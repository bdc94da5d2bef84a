//! /proc/PID/net/raw, icmp and their twins of IPv6: raw and ping sockets of a network namespace.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::{ProcError, words};

/// The peer of each connected socket, by inode. `getpeername(2)` tells of none whose port is 0.
///
/// # Errors
/// [`ProcError`]. A kernel without IPv6 has no such sockets.
pub fn peers(pid: i32) -> Result<Vec<(u64, SocketAddr)>, ProcError> {
    let mut peers = Vec::new();
    for name in ["net/raw", "net/raw6", "net/icmp", "net/icmp6"] {
        match super::read(pid, name) {
            Ok(bytes) => {
                let parsed: Option<Vec<_>> = super::lines(&bytes).skip(1).map(socket).collect();
                let parsed = parsed.ok_or_else(|| ProcError::parse(name, super::text(&bytes)))?;
                peers.extend(parsed.into_iter().filter_map(|(inode, peer)| Some((inode, peer?))));
            }
            Err(ProcError::Read { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(peers)
}

/// A line: its inode, and its peer when it has one.
fn socket(line: &[u8]) -> Option<(u64, Option<SocketAddr>)> {
    const CONNECTED: &[u8] = b"01";
    let words: Vec<&[u8]> = words(line).collect();
    let peer = address(std::str::from_utf8(words.get(2)?).ok()?)?;
    let inode = super::number(words.get(9)?)?;
    Some((inode, (*words.get(3)? == CONNECTED).then_some(peer)))
}

/// Words of the kernel's own byte order, as hexadecimal numbers, and a port.
fn address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let mut bytes = Vec::with_capacity(16);
    for at in (0..ip.len()).step_by(8) {
        bytes.extend(u32::from_str_radix(ip.get(at..at + 8)?, 16).ok()?.to_ne_bytes());
    }
    let ip = match bytes.len() {
        4 => IpAddr::V4(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?)),
        _ => IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?)),
    };
    Some(SocketAddr::new(ip, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_both_families() {
        let line = b"    1: 0100007F:0001 0200007F:0000 01 00000000:00000000 00:00000000 00000000     0        0 8231 2 0000 0";
        assert_eq!(socket(line), Some((8231, Some("127.0.0.2:0".parse().unwrap()))));
        let line = b"   58: 00000000000000000000000000000000:003A 00000000000000000000000001000000:0000 07 00000000:00000000 00:00000000 00000000  0 0 77 2 0000 0";
        assert_eq!(socket(line), Some((77, None)));
        let line = b"   58: 00000000000000000000000000000000:003A 00000000000000000000000001000000:0000 01 00000000:00000000 00:00000000 00000000  0 0 77 2 0000 0";
        assert_eq!(socket(line), Some((77, Some("[::1]:0".parse().unwrap()))));
    }
}
