//! How a thread is scheduled, its I/O, and high limits: set by the agent, because what takes CAP_SYS_NICE or
//! CAP_SYS_RESOURCE is the host's to give. In a user namespace no skeleton has it, see sched(7), ioprio_set(2), setrlimit(2).

use image::state::{ProcessState, Thread};
use sys::prctl::{self, SchedAttr};

use super::error::TargetError;

/// Gives thread `host` (the agent's number) what the image says, where it differs.
///
/// # Errors
/// [`TargetError::Skeleton`], above all `EPERM` when the agent lacks CAP_SYS_NICE.
pub(crate) fn apply(host: i32, thread: &Thread) -> Result<(), TargetError> {
    let failed = |what: &str| {
        let what = what.to_owned();
        move |source| TargetError::Skeleton { pid: thread.tid, what, source }
    };
    let sched = &thread.sched;
    let now = prctl::sched_attr(host).map_err(failed("sched_getattr"))?;
    let wanted = SchedAttr {
        policy: sched.policy,
        flags: sched.flags,
        nice: sched.nice,
        priority: sched.priority,
        runtime: sched.runtime,
        deadline: sched.deadline,
        period: sched.period,
        ..now
    };
    if wanted != now {
        let what = format!("sched_setattr (policy {}, nice {})", sched.policy, sched.nice);
        // Without flags that say so, the utilization clamps are left alone.
        prctl::set_sched_attr(host, &wanted).map_err(failed(&what))?;
    }
    let ioprio = i32::try_from(thread.ioprio).unwrap_or(0);
    if prctl::ioprio(host).map_err(failed("ioprio_get"))? != ioprio {
        prctl::set_ioprio(host, ioprio).map_err(failed(&format!("ioprio_set ({ioprio:#x})")))?;
    }
    Ok(())
}

/// Raises what only the agent may raise: in a user namespace no skeleton has CAP_SYS_RESOURCE of the host, which
/// setrlimit(2) demands. Where it fails, the skeleton's own call fails as well, and says so.
pub(crate) fn raise_limits(host: i32, process: &ProcessState) {
    for (resource, limit) in (0..).zip(&process.rlimits) {
        if sys::prctl::rlimit(0, resource).is_ok_and(|own| limit.hard > own.hard) {
            let limit = sys::prctl::Rlimit { soft: limit.soft, hard: limit.hard };
            let _ = sys::prctl::set_rlimit(host, resource, limit);
        }
    }
}
