//! /proc/PID/net/igmp and igmp6: the multicast groups of a network namespace.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{ProcError, number, words};

/// A group that an interface listens to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// The interface's number.
    pub interface: u32,
    /// Its name.
    pub device: String,
    /// The group.
    pub address: IpAddr,
}

impl Group {
    /// The kernel is a member by itself, whatever programs do.
    #[must_use]
    pub fn is_kernels_own(&self) -> bool {
        match self.address {
            // All nodes; all snoopers (RFC 4286), which a bridge joins.
            IpAddr::V4(ip) => matches!(ip.octets(), [224, 0, 0, 1 | 106]),
            // All nodes, all routers, all snoopers; the groups by which neighbours ask for an address.
            IpAddr::V6(ip) => {
                let segments = ip.segments();
                matches!(
                    segments,
                    [0xff01 | 0xff02, 0, 0, 0, 0, 0, 0, 1 | 2 | 0x6a] | [0xff05, 0, 0, 0, 0, 0, 0, 2]
                ) || matches!(segments, [0xff02, 0, 0, 0, 0, 1, 0xff00..=0xffff, _])
            }
        }
    }
}

/// The groups of the network namespace of a process.
///
/// # Errors
/// [`ProcError`]. A kernel without IPv6 or multicast has no groups.
pub fn read(pid: i32) -> Result<Vec<Group>, ProcError> {
    let mut groups = Vec::new();
    for (name, parse) in [("net/igmp", parse_igmp as fn(&[u8]) -> _), ("net/igmp6", parse_igmp6)] {
        match super::read(pid, name) {
            Ok(bytes) => {
                let parsed: Option<Vec<Group>> = parse(&bytes);
                groups.extend(parsed.ok_or_else(|| ProcError::parse(name, super::text(&bytes)))?);
            }
            Err(ProcError::Read { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(groups)
}

/// An interface's line begins with its number; the lines of its groups begin with blanks.
fn parse_igmp(bytes: &[u8]) -> Option<Vec<Group>> {
    let mut groups = Vec::new();
    let mut interface = None;
    for line in super::lines(bytes).skip(1) {
        let mut fields = words(line);
        let first = fields.next()?;
        if !line.starts_with(b"\t") {
            interface = Some((number(first)?, super::text(fields.next()?)));
            continue;
        }
        let (index, device) = interface.clone()?;
        // As the kernel holds it: in network byte order, printed as a number of this machine.
        let address: u32 = super::hex(first)?;
        groups.push(Group {
            interface: index,
            device,
            address: Ipv4Addr::from(address.to_ne_bytes()).into(),
        });
    }
    Some(groups)
}

fn parse_igmp6(bytes: &[u8]) -> Option<Vec<Group>> {
    super::lines(bytes)
        .map(|line| {
            let mut fields = words(line);
            let interface = number(fields.next()?)?;
            let device = super::text(fields.next()?);
            let digits = std::str::from_utf8(fields.next()?).ok()?;
            let address = Ipv6Addr::from(u128::from_str_radix(digits, 16).ok()?).into();
            Some(Group { interface, device, address })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_of_both_kinds() {
        let igmp = b"Idx\tDevice    : Count Querier\tGroup    Users Timer\tReporter\n\
            1\tlo        :     1      V3\n\t\t\t\t010000E0     1 0:00000000\t\t0\n\
            12\teth0      :     2      V3\n\t\t\t\t030201EF     1 0:00000000\t\t0\n\t\t\t\t010000E0     1 0:00000000\t\t0\n";
        let groups = parse_igmp(igmp).unwrap();
        let own: Vec<bool> = groups.iter().map(Group::is_kernels_own).collect();
        assert_eq!(own, [true, false, true]);
        let group = Group { interface: 12, device: "eth0".into(), address: "239.1.2.3".parse().unwrap() };
        assert_eq!(groups[1], group);
        let snoopers =
            parse_igmp(b"Idx\n30\tbr0       :     1      V3\n\t\t\t\t6A0000E0     1 0:00000000\t\t0\n")
                .unwrap();
        assert_eq!(snoopers[0].address, "224.0.0.106".parse::<IpAddr>().unwrap());
        assert!(snoopers[0].is_kernels_own(), "a bridge joins it");
        let igmp6 = b"12   eth0            ff0200000000000000000001ff000002     1 00000004 0\n\
            12   eth0            ff150000000000000000000000000001     1 00000004 0\n\
            1    lo              ff020000000000000000000000000001     1 0000000C 0\n\
            30   br0             ff02000000000000000000000000006a     1 0000000C 0\n\
            1    lo              ff010000000000000000000000000001     1 00000008 0\n";
        let groups = parse_igmp6(igmp6).unwrap();
        let others: Vec<&Group> = groups.iter().filter(|group| !group.is_kernels_own()).collect();
        assert_eq!(others.len(), 1);
        assert_eq!(others[0].address, "ff15::1".parse::<IpAddr>().unwrap());
        assert!(parse_igmp6(b"1 lo nonsense 1 0 0\n").is_none());
    }
}
