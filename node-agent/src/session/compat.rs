//! Whether a target can take a container: pure.

use image::state::HostFacts;
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
}
