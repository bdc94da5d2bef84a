//! What the files of a control group are: settings, counters, or switches that only act. See
//! Documentation/admin-guide/cgroup-v1 and cgroup-v2.rst of the kernel.

/// A page counter without a limit, as v1 writes it, rounded down to the size of a huge page.
const UNLIMITED: u64 = 1 << 62;

/// What a file is that can be written, or read and changed through others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// It holds no state of its own: it acts, or another file or the structure says the same.
    Nothing,
    /// It counts, and writing starts it anew.
    Counter,
    /// It decides where threads may run: to be set before their affinity and policy.
    Placement,
    /// Device rules: to be set before there is a group below.
    Devices,
    /// It limits or weighs: to be set when the copy is complete.
    Limit,
}

/// What the file of this name is.
pub(super) fn class(file: &str) -> Class {
    const NOTHING: [&str; 17] = [
        "cgroup.procs",
        "cgroup.threads",
        "tasks",
        "cgroup.kill",
        "cgroup.event_control",
        "cgroup.type",
        "cgroup.subtree_control",
        "memory.force_empty",
        "memory.reclaim",
        "memory.pressure_level",
        "memory.use_hierarchy",
        "blkio.reset_stats",
        "devices.allow",
        "devices.deny",
        "cpu.weight.nice",
        "irq.pressure",
        "release_agent",
    ];
    let pressure = file.ends_with(".pressure") && file != "cgroup.pressure";
    if NOTHING.contains(&file) || pressure {
        return Class::Nothing;
    }
    let counts = [".failcnt", ".max_usage_in_bytes", ".peak"].iter().any(|end| file.ends_with(end));
    if counts || file == "cpuacct.usage" {
        return Class::Counter;
    }
    if file == "devices.list" {
        return Class::Devices;
    }
    if file.starts_with("cpuset.") || file.starts_with("cpu.rt_") { Class::Placement } else { Class::Limit }
}

/// The controller that a file belongs to; `None` for files that every group has.
pub(super) fn controller(file: &str) -> Option<&str> {
    match file.split_once('.') {
        Some(("cgroup", _)) | None => None,
        Some((controller, _)) => Some(controller),
    }
}

/// Files that say how much was used. They begin anew at the target.
pub(super) fn is_usage(file: &str) -> bool {
    const USAGE: [&str; 18] = [
        "cpu.stat",
        "cpuacct.usage",
        "cpuacct.stat",
        "cpuacct.usage_percpu",
        "memory.stat",
        "memory.events",
        "memory.swap.events",
        "memory.oom_control",
        "pids.events",
        "pids.events.local",
        "io.stat",
        "blkio.throttle.io_service_bytes",
        "blkio.throttle.io_serviced",
        "cpu.pressure",
        "io.pressure",
        "memory.pressure",
        "misc.events",
        "rdma.events",
    ];
    class(file) == Class::Counter
        || USAGE.contains(&file)
        || (file.starts_with("hugetlb.") && file.ends_with(".events"))
}

/// What a file says, in the form in which it is written back. Lines of devices and resources that say
/// nothing are left out.
pub(super) fn lines(file: &str, text: &str) -> Vec<String> {
    let all = || text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned);
    match file {
        // "oom_kill_disable 0", and two lines that are not written.
        "memory.oom_control" => {
            all().next().and_then(|line| line.split(' ').nth(1).map(str::to_owned)).into_iter().collect()
        }
        "net_prio.ifpriomap" => all().filter(|line| !line.ends_with(" 0")).collect(),
        "misc.max" => all().filter(|line| !line.ends_with(" max")).collect(),
        "rdma.max" => {
            let unlimited = |line: &str| line.split(' ').skip(1).all(|part| part.ends_with("=max"));
            all().filter(|line| !unlimited(line)).collect()
        }
        "io.weight" | "io.bfq.weight" | "blkio.bfq.weight_device" => {
            all().filter(|line| line != "default 100").collect()
        }
        _ => all().collect(),
    }
}

/// What a new group's file says; `None` when that is not known.
pub(super) fn default(file: &str) -> Option<&'static str> {
    Some(match file {
        "cgroup.max.depth" | "cgroup.max.descendants" | "pids.max" | "cpu.uclamp.max" => "max",
        "memory.high" | "memory.max" | "memory.swap.high" | "memory.swap.max" | "memory.zswap.max" => "max",
        "cgroup.pressure" | "cpuset.sched_load_balance" | "memory.zswap.writeback" => "1",
        "cgroup.freeze" | "notify_on_release" | "cgroup.clone_children" | "cpu.idle" => "0",
        "cpu.max.burst" | "cpu.cfs_burst_us" | "cpu.rt_runtime_us" | "net_cls.classid" => "0",
        "memory.min" | "memory.low" | "memory.oom.group" | "memory.oom_control" => "0",
        "memory.move_charge_at_immigrate" => "0",
        "cpuset.cpu_exclusive" | "cpuset.mem_exclusive" | "cpuset.mem_hardwall" => "0",
        "cpuset.memory_migrate" | "cpuset.memory_spread_page" | "cpuset.memory_spread_slab" => "0",
        "cpuset.sched_relax_domain_level" | "cpu.cfs_quota_us" => "-1",
        "cpuset.cpus.partition" => "member",
        "cpu.weight" | "blkio.bfq.weight" => "100",
        "cpu.max" => "max 100000",
        "cpu.uclamp.min" => "0.00",
        "cpu.shares" => "1024",
        "cpu.cfs_period_us" => "100000",
        "cpu.rt_period_us" => "1000000",
        "io.prio.class" | "blkio.prio.class" => "no-change",
        "devices.list" => "a *:* rwm",
        "freezer.state" => "THAWED",
        "cpuset.cpus"
        | "cpuset.mems"
        | "cpuset.cpus.exclusive"
        | "io.max"
        | "io.latency"
        | "io.weight"
        | "io.bfq.weight"
        | "blkio.bfq.weight_device"
        | "net_prio.ifpriomap"
        | "misc.max"
        | "rdma.max" => "",
        _ if file.starts_with("blkio.throttle.") => "",
        _ if file.starts_with("hugetlb.") && file.ends_with(".max") => "max",
        _ if file.ends_with("limit_in_bytes") => "-1",
        _ => return None,
    })
}

/// Whether these lines are what a new group has; `None` when that is not known.
pub(super) fn is_default(file: &str, lines: &[String]) -> Option<bool> {
    let default = default(file)?;
    Some(match lines {
        // Newer kernels write a v2 limit of huge pages as a number, too.
        [line] if file.ends_with("limit_in_bytes") || file.starts_with("hugetlb.") => unlimited(line),
        [] => default.is_empty(),
        [line] => line == default,
        _ => false,
    })
}

/// A limit of a page counter that limits nothing.
pub(super) fn unlimited(text: &str) -> bool {
    text == "-1" || text == "max" || text.parse::<u64>().is_ok_and(|bytes| bytes >= UNLIMITED)
}

/// Lines of this file begin with the number of a block device.
pub(super) fn names_devices(file: &str) -> bool {
    matches!(file, "io.max" | "io.latency" | "io.weight" | "io.bfq.weight")
        || (file.starts_with("blkio.") && file.ends_with("_device"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(file: &str, text: &str) -> Option<bool> {
        is_default(file, &lines(file, text))
    }

    #[test]
    fn defaults_of_a_new_group() {
        for (file, text) in [
            ("memory.limit_in_bytes", "9223372036854771712\n"),
            ("hugetlb.2MB.limit_in_bytes", "9223372036852678656\n"),
            ("hugetlb.1GB.rsvd.max", "max\n"),
            ("hugetlb.2MB.max", "9223372036854771712\n"),
            ("memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n"),
            ("io.weight", "default 100\n"),
            ("misc.max", "sev max\nsev_es max\n"),
            ("rdma.max", "mlx4_0 hca_handle=max hca_object=max\n"),
            ("cpuset.cpus", "\n"),
            ("blkio.throttle.read_bps_device", ""),
        ] {
            assert_eq!(judge(file, text), Some(true), "{file}");
        }
        for (file, text) in [
            ("memory.oom_control", "oom_kill_disable 1\nunder_oom 0\n"),
            ("memory.limit_in_bytes", "4096\n"),
            ("hugetlb.2MB.max", "2097152\n"),
            ("io.weight", "default 100\n8:0 300\n"),
            ("cpu.max", "50000 100000\n"),
        ] {
            assert_eq!(judge(file, text), Some(false), "{file}");
        }
        assert_eq!(judge("some.thing", "1"), None);
    }

    #[test]
    fn classes() {
        assert_eq!(class("memory.pressure"), Class::Nothing);
        assert_eq!(class("cgroup.pressure"), Class::Limit);
        assert_eq!(class("memory.memsw.failcnt"), Class::Counter);
        assert_eq!(class("cpuset.cpus"), Class::Placement);
        assert_eq!(class("cpu.max"), Class::Limit);
        assert_eq!(controller("hugetlb.2MB.max"), Some("hugetlb"));
        assert_eq!(controller("cgroup.freeze"), None);
        assert_eq!(controller("notify_on_release"), None);
    }
}
