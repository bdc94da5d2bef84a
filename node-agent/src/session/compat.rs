//! Whether a target can take a container: pure.

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
    use super::*;

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
        };
        let any = Gives {
            timer_ids: true,
            ipc_ids: true,
            guard_pages: true,
            nodes: vec![0, 1, 2],
            hard_limits: None,
            oom_score_adj: None,
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
        };
        let lacks = give(&needs, &little);
        assert_eq!(lacks.len(), 6, "{lacks:#?}");
        assert!(lacks[0].reason.contains("POSIX timers"));
        assert!(lacks[1].reason.contains("System V"));
        assert!(lacks[2].reason.contains("guard pages"));
        assert!(lacks[3].reason.contains("name the nodes 2,"));
        assert!(lacks[4].reason.contains("RLIMIT_NOFILE of 4096"));
        assert!(lacks[5].reason.contains("oom_score_adj of -5"));
        let none = Needs { hard_limits: vec![1024; 16], ..Needs::default() };
        let equal = Gives {
            timer_ids: false,
            ipc_ids: false,
            guard_pages: false,
            nodes: Vec::new(),
            hard_limits: Some(vec![1024; 16]),
            oom_score_adj: Some(0),
        };
        assert_eq!(give(&none, &equal), vec![]);
    }
}
