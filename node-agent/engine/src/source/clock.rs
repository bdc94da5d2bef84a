//! How long a thread has slept: the scheduler notes when it last ran, on a clock of each CPU's own.

use std::collections::HashMap;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

use super::stopping::Nap;
use crate::proc::{sched, stat};

/// The distance of each CPU's scheduler clock from CLOCK_MONOTONIC, nanoseconds.
#[derive(Debug, Default)]
pub(crate) struct SchedulerClock {
    offsets: HashMap<u32, i128>,
}

/// CLOCK_MONOTONIC, nanoseconds.
pub(crate) fn monotonic_ns() -> u64 {
    nanoseconds(ClockId::CLOCK_MONOTONIC)
}

/// A clock's time, nanoseconds; 0 when it cannot be read.
pub(crate) fn nanoseconds(clock: ClockId) -> u64 {
    clock_gettime(clock).map_or(0, |time| {
        u64::try_from(time.tv_sec()).unwrap_or(0) * 1_000_000_000 + u64::try_from(time.tv_nsec()).unwrap_or(0)
    })
}

impl SchedulerClock {
    /// Runs shortly on every CPU that this thread may use, and compares. Takes some ten microseconds a CPU. On
    /// kernels without /proc/PID/sched it knows nothing afterwards.
    pub(crate) fn calibrate() -> Self {
        let mut clock = Self::default();
        let Ok(allowed) = sys::prctl::affinity(0) else {
            return clock;
        };
        for (word, bits) in allowed.iter().enumerate() {
            for bit in (0..64).filter(|bit| bits >> bit & 1 == 1) {
                let mut one = vec![0; allowed.len()];
                one[word] = 1 << bit;
                if sys::prctl::set_affinity(0, &one).is_ok()
                    && let Some(offset) = own_offset()
                    && let Ok(cpu) = u32::try_from(word * 64 + bit)
                {
                    clock.offsets.insert(cpu, offset);
                }
            }
        }
        if let Err(errno) = sys::prctl::set_affinity(0, &allowed) {
            tracing::warn!(%errno, "this thread's CPUs could not be set back");
        }
        clock
    }

    /// Since when a thread that sleeps has slept, as CLOCK_MONOTONIC, nanoseconds. `None` when it runs or when it
    /// cannot be told.
    pub(crate) fn asleep_since(&self, pid: i32, tid: i32) -> Option<u64> {
        if self.offsets.is_empty() {
            return None;
        }
        let stat = stat::read_thread(pid, tid).ok()?;
        if stat.state == b'R' {
            return None;
        }
        let offset = self.offsets.get(&stat.processor)?;
        let start = sched::exec_start(pid, tid).ok()?;
        u64::try_from(i128::from(start) + offset).ok()
    }

    /// What there is to know about a thread's sleep.
    pub(crate) fn nap(&self, pid: i32, tid: i32) -> Nap {
        let Some(start) = self.asleep_since(pid, tid) else {
            return Nap::default();
        };
        let place = crate::proc::read(pid, &format!("task/{tid}/wchan")).unwrap_or_default();
        Nap { slept: since(start), place: String::from_utf8_lossy(&place).into_owned() }
    }
}

/// CLOCK_MONOTONIC minus the scheduler clock of the CPU that this thread is on; never too little, so that a sleep is
/// never taken for longer than it was.
fn own_offset() -> Option<i128> {
    let measure = || {
        // A thread that yields has its scheduler time noted. It can only be older than the clock read after it.
        std::thread::yield_now();
        let bytes = crate::proc::read_path("/proc/thread-self/sched").ok()?;
        let start = sched::parse_exec_start(&bytes).ok()?;
        Some(i128::from(monotonic_ns()) - i128::from(start))
    };
    // What is too much is the time between the two readings: the least is the best.
    [measure(), measure(), measure()].into_iter().flatten().min()
}

/// What has passed since a moment of CLOCK_MONOTONIC.
pub(crate) fn since(moment_ns: u64) -> Duration {
    Duration::from_nanos(monotonic_ns().saturating_sub(moment_ns))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sleeping_thread_is_timed() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        std::thread::sleep(Duration::from_millis(300));
        let clock = SchedulerClock::calibrate();
        let slept = clock.asleep_since(pid, pid).map(since);
        child.kill().unwrap();
        child.wait().unwrap();
        let Some(slept) = slept else {
            assert!(!std::path::Path::new("/proc/self/sched").exists());
            return;
        };
        assert!((Duration::from_millis(150)..Duration::from_secs(5)).contains(&slept), "{slept:?}");
    }
}
