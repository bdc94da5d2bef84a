//! Whether the older packet filter (iptables-legacy and its kin) has rules here. See iptables(8).

use std::os::fd::AsFd as _;

use super::message::number;
use crate::abi::io_errno;
use crate::{Errno, Result, sock};

const GET_INFO: i32 = 64;
const GET_ENTRIES: i32 = 65;
/// Bytes of a table's name.
const NAME: usize = 32;
/// Bytes of `struct ipt_getinfo`: name, hooks, entries and underflows of five hooks, count, size.
const INFO: usize = 84;
/// Bytes of `struct ipt_get_entries` before the entries.
const ENTRIES: usize = 40;
/// A verdict of NF_ACCEPT as a rule has it: -1 - 1.
const ACCEPT: u32 = (-2_i32).cast_unsigned();

/// One of its families.
struct Family {
    domain: i32,
    level: i32,
    /// Where an entry keeps the offset of its target: behind `struct ipt_ip` or `struct ip6t_ip6`.
    target_at: usize,
    names: &'static str,
}

const FAMILIES: [Family; 2] = [
    Family { domain: libc::AF_INET, level: libc::IPPROTO_IP, target_at: 88, names: "ip_tables_names" },
    Family { domain: libc::AF_INET6, level: libc::IPPROTO_IPV6, target_at: 140, names: "ip6_tables_names" },
];

/// The tables of the older packet filter that hold rules or a policy other than ACCEPT, in the network namespace of the
/// calling thread, like "nat (ip_tables)". Tables of ARP count as soon as they exist.
///
/// # Errors
/// `EPERM`, `EACCES` a list of tables cannot be read.
pub fn used() -> Result<Vec<String>> {
    let mut used = Vec::new();
    for family in &FAMILIES {
        for table in names(family.names)? {
            if !family.is_empty(&table)? {
                used.push(format!("{table} ({})", family.names.trim_end_matches("_names")));
            }
        }
    }
    used.extend(names("arp_tables_names")?.into_iter().map(|table| format!("{table} (arp_tables)")));
    Ok(used)
}

fn names(file: &str) -> Result<Vec<String>> {
    match std::fs::read_to_string(format!("/proc/thread-self/net/{file}")) {
        Ok(text) => Ok(text.lines().map(str::to_owned).collect()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(io_errno(&error)),
    }
}

impl Family {
    /// Nothing but the built-in chains, all of which accept.
    fn is_empty(&self, table: &str) -> Result<bool> {
        let socket = sock::socket(self.domain, libc::SOCK_RAW, libc::IPPROTO_RAW)?;
        let mut info = [0_u8; INFO];
        info.get_mut(..table.len().min(NAME - 1)).ok_or(Errno::EINVAL)?.copy_from_slice(table.as_bytes());
        sock::get_into(socket.as_fd(), self.level, GET_INFO, &mut info)?;
        let at = |offset| number(&info, offset).ok_or(Errno::EINVAL);
        let (hooks, count, size) = (at(NAME)?, at(76)?, at(80)? as usize);
        // One rule a hook for the policy, and the one that marks the end.
        if count > hooks.count_ones() + 1 || size > 1 << 20 {
            return Ok(false);
        }
        let mut entries = vec![0; ENTRIES + size];
        entries[..NAME].copy_from_slice(&info[..NAME]);
        entries[NAME..NAME + 4].copy_from_slice(&info[80..84]);
        sock::get_into(socket.as_fd(), self.level, GET_ENTRIES, &mut entries)?;
        Ok((0..5).filter(|hook| hooks & 1 << hook != 0).all(|hook| {
            let verdict = || {
                let entry = ENTRIES + number(&info, NAME + 4 + hook * 4)? as usize;
                let target = usize::from(super::message::short(&entries, entry + self.target_at)?);
                // struct xt_standard_target: 32 bytes of header, the verdict.
                number(&entries, entry + target + 32)
            };
            verdict() == Some(ACCEPT)
        }))
    }
}
