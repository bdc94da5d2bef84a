//! What this node can do, measured.

use std::fs;

use proto::v1;

use crate::runtime::cgroup::Layout;
use crate::runtime::{host_facts, memory};

/// A capability that the agent needs, and what is missing without it.
pub(crate) const CAPABILITIES: [(u8, &str, &str); 9] = [
    (21, "CAP_SYS_ADMIN", "no container can be started: namespaces and mounts need it"),
    (12, "CAP_NET_ADMIN", "no container has a network"),
    (13, "CAP_NET_RAW", "held frames cannot be delivered: a switchover loses packets"),
    (19, "CAP_SYS_PTRACE", "no container can be migrated"),
    (40, "CAP_CHECKPOINT_RESTORE", "pids are restored through CAP_SYS_ADMIN instead"),
    (
        24,
        "CAP_SYS_RESOURCE",
        "containers cannot raise hard limits above the agent's, nor lower oom_score_adj",
    ),
    (27, "CAP_MKNOD", "device nodes are bound from the host instead of made"),
    (6, "CAP_SETGID", "containers cannot run as another group"),
    (7, "CAP_SETUID", "containers cannot run as another user"),
];

/// How memory that was written can be found here.
#[must_use]
pub fn tracker() -> &'static str {
    let trackers = sys::pagemap::probe();
    match (trackers.pagemap_scan, trackers.soft_dirty) {
        (true, _) => "PagemapScan",
        (false, true) => "SoftDirty",
        (false, false) => "none",
    }
}

/// The capabilities of this process that are missing: name and what that means.
#[must_use]
pub fn missing_capabilities() -> Vec<(&'static str, &'static str)> {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = line.and_then(|text| u64::from_str_radix(text.trim(), 16).ok()).unwrap_or(0);
    let missing = CAPABILITIES.iter().filter(|(bit, _, _)| effective >> bit & 1 == 0);
    missing.map(|(_, name, meaning)| (*name, *meaning)).collect()
}

/// The facts that are compared before a migration, with the versions of the agents' protocol that are spoken.
#[must_use]
pub fn node_facts(layout: &Layout, versions: &[u32]) -> v1::NodeFacts {
    let host = host_facts();
    v1::NodeFacts {
        kernel_release: host.kernel_release,
        tracker: tracker().to_owned(),
        cgroup: layout.kind().to_owned(),
        vdso_hash: host.vdso_hash,
        xsave_size: host.xsave_size,
        xcr0: host.xcr0,
        memory_total: memory("MemTotal:"),
        memory_free: memory("MemAvailable:"),
        arch: std::env::consts::ARCH.to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        peer_protocol_versions: versions.to_vec(),
        cgroup_controllers: layout.controllers(),
    }
}
