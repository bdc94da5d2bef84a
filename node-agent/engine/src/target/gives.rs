//! What this host and this agent can give to a container: asked before anything is sent.

use image::state::{Gives, HugePages};
use sys::prctl;

const CAP_SYS_RESOURCE: u64 = 1 << 24;
/// RLIMIT_CPU to RLIMIT_RTTIME.
const RESOURCES: u32 = 16;

/// See [`Gives`]. What cannot be read counts as not given.
#[must_use]
pub fn gives() -> Gives {
    let privileged = prctl::caps(0).is_ok_and(|caps| caps.effective & CAP_SYS_RESOURCE != 0);
    let limits = || (0..RESOURCES).map(|resource| prctl::rlimit(0, resource).map_or(0, |limit| limit.hard));
    let own =
        std::fs::read_to_string("/proc/self/oom_score_adj").ok().and_then(|text| text.trim().parse().ok());
    Gives {
        timer_ids: prctl::has_timer_restore_ids(),
        ipc_ids: std::path::Path::new(super::ipc::SEGMENT_ID).exists(),
        hard_limits: (!privileged).then(|| limits().collect()),
        guard_pages: sys::mem::has_guard_pages(),
        nodes: std::fs::read("/sys/devices/system/node/has_memory")
            .map_or_else(|_| Vec::new(), |text| crate::proc::list(&text)),
        huge_pages: sys::huge::pools()
            .into_iter()
            .map(|pool| HugePages { size: pool.size, count: pool.available })
            .collect(),
        // It may go down to its lowest value ever, which is not told.
        oom_score_adj: (!privileged).then(|| own.unwrap_or(0)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process() {
        let given = gives();
        if let Some(limits) = given.hard_limits {
            let own = crate::proc::limits::read(i32::try_from(std::process::id()).unwrap()).unwrap();
            let own: Vec<u64> = own.iter().map(|limit| limit.hard).collect();
            assert_eq!(limits, own);
        }
    }
}
