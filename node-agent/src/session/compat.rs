//! Whether a target can take a container: pure.

use image::groups::Groups;
use image::state::{Gives, HostFacts, Needs};
use image::{Refusal, Subject};

/// What the target lacks for a container captured on `source`; empty when it fits. Clocks may differ: the
/// runtime gives the container a time namespace then.
#[must_use]
pub(super) fn compare(source: &HostFacts, target: &HostFacts, memory: u64, memory_free: u64) -> Vec<Refusal> {
    let mut lacks = Vec::new();
    let mut lack = |reason: String, way_out: &str| {
        lacks.push(Refusal { pid: 0, subject: Subject::Container, reason, way_out: way_out.to_owned() });
    };
    if source.vdso_hash != target.vdso_hash {
        lack(
            format!(
                "the target's kernel {} has another vDSO than the source's {}; threads may be stopped inside it",
                target.kernel_release, source.kernel_release
            ),
            "choose a target that runs the same kernel build",
        );
    }
    if source.xsave_size != target.xsave_size || source.xcr0 != target.xcr0 {
        lack(
            format!(
                "the target's CPU saves {} bytes of state with features {:#x}, the source's {} with {:#x}",
                target.xsave_size, target.xcr0, source.xsave_size, source.xcr0
            ),
            "choose a target with the same CPU features, or mask them in the hypervisor",
        );
    }
    if memory > memory_free {
        lack(
            format!("the container uses {memory} bytes of memory and the target has {memory_free} free"),
            "free memory on the target or choose another one",
        );
    }
    lacks
}

/// Limits that would not hold: what the agent fills counts for the agent's group, and the kernel moves no such charge.
#[must_use]
pub(crate) fn limited(needs: &Needs, groups: &Groups) -> Option<Refusal> {
    if needs.huge_pages.is_empty() {
        return None;
    }
    let mut values = groups.trees.iter().flat_map(|tree| &tree.groups).flat_map(|group| &group.values);
    let limit = values.find(|value| value.file.starts_with("hugetlb."))?;
    Some(Refusal {
        pid: 0,
        subject: Subject::Container,
        reason: format!(
            "it has huge pages and a limit of them ({}), for which those that it has would not count at the target",
            limit.file
        ),
        way_out: "remove the limit".to_owned(),
    })
}

/// What a container needs and the target cannot give: what would fail only at the switchover.
#[must_use]
pub(crate) fn give(needs: &Needs, gives: &Gives) -> Vec<Refusal> {
    let mut lacks = Vec::new();
    let mut lack = |reason: String, way_out: &str| {
        lacks.push(Refusal { pid: 0, subject: Subject::Container, reason, way_out: way_out.to_owned() });
    };
    if needs.posix_timers && !gives.timer_ids {
        lack(
            "it has POSIX timers (timer_create), and the target's kernel cannot make them with the same ids"
                .to_owned(),
            "choose a target with Linux 6.15 or newer, or have the program delete its timers",
        );
    }
    if needs.ipc_ids && !gives.ipc_ids {
        lack(
            "it has System V objects (shared memory, semaphores, message queues), and the target's kernel cannot make \
             them with the same ids"
                .to_owned(),
            "choose a target with CONFIG_CHECKPOINT_RESTORE, or remove them (ipcrm)",
        );
    }
    if needs.guard_pages && !gives.guard_pages {
        lack(
            "it has guard pages (MADV_GUARD_INSTALL), and the target's kernel cannot make them".to_owned(),
            "choose a target with Linux 6.13 or newer, or a C library that does not use them",
        );
    }
    for need in &needs.huge_pages {
        let free = gives.huge_pages.iter().find(|free| free.size == need.size).map_or(0, |free| free.count);
        if need.count > free {
            let kib = need.size >> 10;
            lack(
                format!("it needs {} huge pages of {kib} KiB, and the target has {free} free", need.count),
                &format!(
                    "have more of them there (/sys/kernel/mm/hugepages/hugepages-{kib}kB/nr_hugepages), or choose another target"
                ),
            );
        }
    }
    let missing: Vec<String> =
        needs.nodes.iter().filter(|node| !gives.nodes.contains(node)).map(u32::to_string).collect();
    if !missing.is_empty() {
        lack(
            format!(
                "its NUMA memory policies name the nodes {}, which the target does not have",
                missing.join(", ")
            ),
            "choose a target with these nodes, or start it without numactl",
        );
    }
    if let Some(limits) = &gives.hard_limits {
        for (resource, (need, may)) in needs.hard_limits.iter().zip(limits).enumerate() {
            if need > may {
                let name = RESOURCES.get(resource).unwrap_or(&"RLIMIT");
                lack(
                    format!(
                        "it has a hard limit {name} of {}, the target's agent may not exceed {}",
                        number(*need),
                        number(*may)
                    ),
                    "give the target's agent CAP_SYS_RESOURCE or a higher hard limit, or lower the container's",
                );
            }
        }
    }
    if let Some(lowest) = gives.oom_score_adj
        && needs.oom_score_adj < lowest
    {
        lack(
            format!(
                "it has an oom_score_adj of {}, the target's agent may not go below {lowest}",
                needs.oom_score_adj
            ),
            "give the target's agent CAP_SYS_RESOURCE, or raise the container's oom_score_adj",
        );
    }
    lacks
}

/// getrlimit(2), by number.
const RESOURCES: [&str; 16] = [
    "RLIMIT_CPU",
    "RLIMIT_FSIZE",
    "RLIMIT_DATA",
    "RLIMIT_STACK",
    "RLIMIT_CORE",
    "RLIMIT_RSS",
    "RLIMIT_NPROC",
    "RLIMIT_NOFILE",
    "RLIMIT_MEMLOCK",
    "RLIMIT_AS",
    "RLIMIT_LOCKS",
    "RLIMIT_SIGPENDING",
    "RLIMIT_MSGQUEUE",
    "RLIMIT_NICE",
    "RLIMIT_RTPRIO",
    "RLIMIT_RTTIME",
];

fn number(limit: u64) -> String {
    if limit == u64::MAX { "unlimited".to_owned() } else { limit.to_string() }
}

#[cfg(test)]
mod tests {
    use image::groups::{Group, Tree, Value};
    use image::state::HugePages;

    use super::*;

    fn huge(count: u64) -> HugePages {
        HugePages { size: 2 << 20, count }
    }

    fn facts() -> HostFacts {
        HostFacts { vdso_hash: 7, xsave_size: 2696, xcr0: 0x2e7, ..HostFacts::default() }
    }

    #[test]
    fn equal_hosts_fit() {
        let other = HostFacts { monotonic_ns: 5, realtime_ns: 9, ..facts() };
        assert_eq!(compare(&facts(), &other, 10, 10), vec![]);
    }

    #[test]
    fn each_difference_is_named_once() {
        assert_eq!(compare(&facts(), &HostFacts { vdso_hash: 8, ..facts() }, 1, 1).len(), 1);
        assert_eq!(compare(&facts(), &HostFacts { xcr0: 7, xsave_size: 832, ..facts() }, 1, 1).len(), 1);
        assert!(compare(&facts(), &facts(), 2, 1)[0].reason.contains("2 bytes"));
        let all = HostFacts { vdso_hash: 8, xcr0: 7, ..facts() };
        assert_eq!(compare(&facts(), &all, 2, 1).len(), 3);
    }
    #[test]
    fn a_limit_of_huge_pages_is_refused_where_there_are_any() {
        let value = |file: &str| Value { file: file.to_owned(), lines: vec!["0".to_owned()] };
        let group = |file| Group { values: vec![value("pids.max"), value(file)], ..Group::default() };
        let groups = |file| Groups {
            trees: vec![Tree { groups: vec![Group::default(), group(file)], ..Tree::default() }],
            ..Groups::default()
        };
        let some = Needs { huge_pages: vec![huge(1)], ..Needs::default() };
        let refused = limited(&some, &groups("hugetlb.2MB.max")).unwrap();
        assert!(refused.reason.contains("(hugetlb.2MB.max)"));
        assert_eq!(limited(&some, &groups("memory.max")), None);
        assert_eq!(limited(&Needs::default(), &groups("hugetlb.2MB.max")), None);
    }

    #[test]
    fn what_an_agent_without_privilege_cannot_give() {
        let mut hard_limits = vec![0; 16];
        hard_limits[7] = 4096;
        let needs = Needs {
            posix_timers: true,
            ipc_ids: true,
            guard_pages: true,
            nodes: vec![0, 2],
            hard_limits: hard_limits.clone(),
            oom_score_adj: -5,
            huge_pages: vec![huge(3)],
        };
        let any = Gives {
            timer_ids: true,
            ipc_ids: true,
            guard_pages: true,
            nodes: vec![0, 1, 2],
            hard_limits: None,
            oom_score_adj: None,
            huge_pages: vec![HugePages { size: 1 << 30, count: 0 }, huge(3)],
        };
        assert_eq!(give(&needs, &any), vec![]);
        let same = Gives { hard_limits: Some(hard_limits.clone()), oom_score_adj: Some(-5), ..any.clone() };
        assert_eq!(give(&needs, &same), vec![]);
        hard_limits[7] = 1024;
        let little = Gives {
            timer_ids: false,
            ipc_ids: false,
            guard_pages: false,
            nodes: vec![0],
            hard_limits: Some(hard_limits),
            oom_score_adj: Some(0),
            huge_pages: vec![huge(2)],
        };
        let lacks = give(&needs, &little);
        assert_eq!(lacks.len(), 7, "{lacks:#?}");
        assert!(lacks[0].reason.contains("POSIX timers"));
        assert!(lacks[1].reason.contains("System V"));
        assert!(lacks[2].reason.contains("guard pages"));
        assert!(lacks[3].reason.contains("3 huge pages of 2048 KiB, and the target has 2 free"));
        assert!(lacks[4].reason.contains("name the nodes 2,"));
        assert!(lacks[5].reason.contains("RLIMIT_NOFILE of 4096"));
        assert!(lacks[6].reason.contains("oom_score_adj of -5"));
        let none = Needs { hard_limits: vec![1024; 16], ..Needs::default() };
        let equal = Gives {
            timer_ids: false,
            ipc_ids: false,
            guard_pages: false,
            nodes: Vec::new(),
            hard_limits: Some(vec![1024; 16]),
            oom_score_adj: Some(0),
            huge_pages: Vec::new(),
        };
        assert_eq!(give(&none, &equal), vec![]);
    }
}
