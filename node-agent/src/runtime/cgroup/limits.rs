//! Limits of an OCI configuration, written to whichever controller is mounted.

use std::fs;
use std::path::Path;

use oci_spec::runtime::{LinuxCpu, LinuxDeviceCgroup, LinuxDeviceType, LinuxMemory, LinuxResources};

use super::{Cgroup, CgroupError};

/// Applies every limit, or names the first one that cannot be.
pub(super) fn apply(cgroup: &Cgroup, resources: &LinuxResources) -> Result<(), CgroupError> {
    if let Some(memory) = resources.memory() {
        self::memory(&Writer::new(cgroup, "memory"), memory)?;
    }
    if let Some(cpu) = resources.cpu() {
        self::cpu(cgroup, cpu)?;
    }
    if let Some(pids) = resources.pids() {
        let value = if pids.limit() <= 0 { "max".to_owned() } else { pids.limit().to_string() };
        Writer::new(cgroup, "pids").both("pids.limit", "pids.max", &value)?;
    }
    if let Some(devices) = resources.devices() {
        self::devices(cgroup, devices)?;
    }
    let unknown = [
        ("blockIO", resources.block_io().is_some()),
        ("hugepageLimits", resources.hugepage_limits().as_ref().is_some_and(|list| !list.is_empty())),
        ("network", resources.network().is_some()),
        ("rdma", resources.rdma().as_ref().is_some_and(|map| !map.is_empty())),
    ];
    if let Some((limit, _)) = unknown.into_iter().find(|(_, set)| *set) {
        return Err(CgroupError::Limit { limit, why: "this runtime does not know it; remove it".to_owned() });
    }
    if let Some(unified) = resources.unified() {
        let path = cgroup.unified()?;
        for (file, value) in unified {
            if file.contains('/') {
                return Err(CgroupError::Limit {
                    limit: "unified",
                    why: format!("{file} is not a file name"),
                });
            }
            write(path, "unified", file, value)?;
        }
    }
    Ok(())
}

fn memory(writer: &Writer<'_>, memory: &LinuxMemory) -> Result<(), CgroupError> {
    let text = |value: i64, v2: bool| match (value, v2) {
        (i64::MIN..=-1, true) => "max".to_owned(),
        (i64::MIN..=-1, false) => "-1".to_owned(),
        (value, _) => value.to_string(),
    };
    let v2 = writer.v1.is_none();
    if let Some(limit) = memory.limit() {
        writer.one("memory.limit", "memory.limit_in_bytes", "memory.max", &text(limit, v2))?;
    }
    if let Some(reservation) = memory.reservation() {
        let (old, new) = ("memory.soft_limit_in_bytes", "memory.low");
        writer.one("memory.reservation", old, new, &text(reservation, v2))?;
    }
    if let Some(swap) = memory.swap() {
        // v1 counts memory and swap together, v2 swap alone.
        let value = match (v2, memory.limit()) {
            (true, Some(limit)) if swap > 0 => text(swap - limit.max(0), true),
            _ => text(swap, v2),
        };
        writer.one("memory.swap", "memory.memsw.limit_in_bytes", "memory.swap.max", &value)?;
    }
    if let Some(swappiness) = memory.swappiness() {
        writer.v1_only("memory.swappiness", "memory.swappiness", &swappiness.to_string())?;
    }
    if memory.disable_oom_killer() == Some(true) {
        writer.v1_only("memory.disableOOMKiller", "memory.oom_control", "1")?;
    }
    Ok(())
}

fn cpu(cgroup: &Cgroup, cpu: &LinuxCpu) -> Result<(), CgroupError> {
    let writer = Writer::new(cgroup, "cpu");
    if let Some(shares) = cpu.shares() {
        // The runtime specification's mapping between 2..262144 shares and a weight of 1..10000.
        let weight = 1 + (shares.clamp(2, 262_144) - 2) * 9_999 / 262_142;
        match writer.v1 {
            Some(path) => write(path, "cpu.shares", "cpu.shares", &shares.to_string())?,
            None => write(writer.v2("cpu.shares")?, "cpu.shares", "cpu.weight", &weight.to_string())?,
        }
    }
    let quota = cpu.quota().filter(|quota| *quota > 0);
    match writer.v1 {
        Some(path) => {
            if let Some(period) = cpu.period() {
                write(path, "cpu.period", "cpu.cfs_period_us", &period.to_string())?;
            }
            if let Some(quota) = quota {
                write(path, "cpu.quota", "cpu.cfs_quota_us", &quota.to_string())?;
            }
        }
        None if quota.is_some() || cpu.period().is_some() => {
            let quota = quota.map_or_else(|| "max".to_owned(), |quota| quota.to_string());
            let value = format!("{quota} {}", cpu.period().unwrap_or(100_000));
            write(writer.v2("cpu.quota")?, "cpu.quota", "cpu.max", &value)?;
        }
        None => {}
    }
    if let Some(burst) = cpu.burst() {
        writer.one("cpu.burst", "cpu.cfs_burst_us", "cpu.max.burst", &burst.to_string())?;
    }
    let cpuset = Writer::new(cgroup, "cpuset");
    if let Some(cpus) = cpu.cpus().as_ref().filter(|set| !set.is_empty()) {
        cpuset.both("cpu.cpus", "cpuset.cpus", cpus)?;
    }
    if let Some(mems) = cpu.mems().as_ref().filter(|set| !set.is_empty()) {
        cpuset.both("cpu.mems", "cpuset.mems", mems)?;
    }
    let realtime = cpu.realtime_runtime().is_some() || cpu.realtime_period().is_some();
    if realtime || cpu.idle().is_some() {
        let limit = if realtime { "cpu.realtimeRuntime" } else { "cpu.idle" };
        return Err(CgroupError::Limit { limit, why: "this runtime does not know it; remove it".to_owned() });
    }
    Ok(())
}

/// Device rules: files of the v1 controller. Cgroup v2 wants a BPF program for them, which is refused.
pub(super) fn devices(cgroup: &Cgroup, rules: &[LinuxDeviceCgroup]) -> Result<(), CgroupError> {
    if rules.is_empty() {
        return Ok(());
    }
    let Some(path) = cgroup.controller("devices") else {
        return Err(CgroupError::Limit {
            limit: "devices",
            why: "this host has no cgroup v1 devices controller; remove linux.resources.devices".to_owned(),
        });
    };
    for rule in rules {
        let file = if rule.allow() { "devices.allow" } else { "devices.deny" };
        let kind = match rule.typ() {
            Some(LinuxDeviceType::C | LinuxDeviceType::U) => "c",
            Some(LinuxDeviceType::B) => "b",
            _ => "a",
        };
        let number = |part: Option<i64>| part.map_or_else(|| "*".to_owned(), |number| number.to_string());
        let access = rule.access().as_deref().unwrap_or("rwm");
        let text = format!("{kind} {}:{} {access}", number(rule.major()), number(rule.minor()));
        write(path, "devices", file, &text)?;
    }
    // What every container needs to work at all.
    for rule in [
        "c *:* m",
        "b *:* m",
        "c 1:3 rwm",
        "c 1:5 rwm",
        "c 1:7 rwm",
        "c 1:8 rwm",
        "c 1:9 rwm",
        "c 5:0 rwm",
        "c 5:2 rwm",
        "c 136:* rwm",
    ] {
        write(path, "devices", "devices.allow", rule)?;
    }
    Ok(())
}

/// Where a controller's files are: in its v1 hierarchy when there is one, else in v2.
struct Writer<'a> {
    controller: &'static str,
    v1: Option<&'a Path>,
    cgroup: &'a Cgroup,
}

impl<'a> Writer<'a> {
    fn new(cgroup: &'a Cgroup, controller: &'static str) -> Self {
        Self { controller, v1: cgroup.controller(controller), cgroup }
    }

    fn v2(&self, limit: &'static str) -> Result<&'a Path, CgroupError> {
        let path = self.cgroup.unified()?;
        let list = fs::read_to_string(path.join("cgroup.controllers")).unwrap_or_default();
        if list.split_whitespace().any(|c| c == self.controller) {
            Ok(path)
        } else {
            let why = format!("the {} controller is not mounted on this host", self.controller);
            Err(CgroupError::Limit { limit, why })
        }
    }

    fn one(&self, limit: &'static str, old: &str, new: &str, value: &str) -> Result<(), CgroupError> {
        match self.v1 {
            Some(path) => write(path, limit, old, value),
            None => write(self.v2(limit)?, limit, new, value),
        }
    }

    fn both(&self, limit: &'static str, file: &str, value: &str) -> Result<(), CgroupError> {
        self.one(limit, file, file, value)
    }

    fn v1_only(&self, limit: &'static str, file: &str, value: &str) -> Result<(), CgroupError> {
        let path = self.v1.ok_or_else(|| CgroupError::Limit {
            limit,
            why: "cgroup v2 has nothing like it; remove it".to_owned(),
        })?;
        write(path, limit, file, value)
    }
}

fn write(path: &Path, limit: &'static str, file: &str, value: &str) -> Result<(), CgroupError> {
    fs::write(path.join(file), value)
        .map_err(|error| CgroupError::Limit { limit, why: format!("writing {value} to {file}: {error}") })
}
