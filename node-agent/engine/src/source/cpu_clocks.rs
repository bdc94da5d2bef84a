//! Timers on CPU clocks, see timer_create(2).

use std::ops::RangeInclusive;

use image::Pid;

use super::capture::files::live;
use super::error::InspectError;
use super::findings::Findings;
use super::look::Look;
use crate::proc::timers::{self, Timer};

/// The process's own clock, as the kernel shows CLOCK_PROCESS_CPUTIME_ID, and its parts. Of a thread's nobody knows whose it
/// is.
const OWN: RangeInclusive<i32> = -8..=-6;

/// Refuses what cannot be made again, before the freeze.
pub(crate) fn check(look: &Look, findings: &mut Findings) -> Result<(), InspectError> {
    for found in live(look) {
        let timers = match timers::read(found.process.pid) {
            // It ended while it was looked at.
            Err(error) if error.is_gone() => continue,
            other => other?,
        };
        timers.iter().for_each(|timer| judge(found.process.inner, timer, findings));
    }
    Ok(())
}

/// Refuses a timer that cannot be made again.
pub(crate) fn judge(pid: Pid, timer: &Timer, findings: &mut Findings) {
    if timer.clock < 0 && !OWN.contains(&timer.clock) {
        findings.process(
            pid,
            format!(
                "timer {} runs on the CPU clock of a thread or of another process, which is not carried yet",
                timer.id
            ),
            "have the program delete the timer before the move",
        );
    }
}
