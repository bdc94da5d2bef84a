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

    /// What there is to know about a thread's sleep, if it sleeps.
    pub(crate) fn nap(&self, pid: i32, tid: i32) -> Nap {
        self.asleep(pid, tid).unwrap_or_default()
    }

    /// What the scheduler noted is read first: whoever sleeps after that has not been woken in between, when another
    /// CPU's time may stand there, or none at all (`migrate_task_rq_fair` in the kernel's kernel/sched/fair.c). One that
    /// has slept again since has switched once more, which [`Nap::unbroken`] sees.
    fn asleep(&self, pid: i32, tid: i32) -> Option<Nap> {
        let sched = sched::read(pid, tid).ok()?;
        let stat = stat::read_thread(pid, tid).ok()?;
        if matches!(stat.state, b'R' | b't') || sched.exec_start_ns == 0 {
            return None;
        }
        let offset = self.offsets.get(&stat.processor)?;
        let began = u64::try_from(i128::from(sched.exec_start_ns) + offset).ok()?;
        let place = crate::proc::read(pid, &format!("task/{tid}/wchan")).unwrap_or_default();
        Some(Nap {
            slept: since(began),
            place: String::from_utf8_lossy(&place).into_owned(),
            switches: sched.voluntary_switches,
        })
    }
}

/// CLOCK_MONOTONIC minus the scheduler clock of the CPU that this thread is on; never too little, so that a sleep is
/// never taken for longer than it was.
fn own_offset() -> Option<i128> {
    let measure = || {
        // A thread that yields has its scheduler time noted. It can only be older than the clock read after it.
        std::thread::yield_now();
        let bytes = crate::proc::read_path("/proc/thread-self/sched").ok()?;
        let start = sched::parse(&bytes).ok()?.exec_start_ns;
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

    use std::process::{Child, Command};

    use sys::ptrace::{Event, Options, Running};

    /// A program, ended by dropping it.
    struct Program(Child);

    impl Program {
        fn start(script: &str) -> Self {
            Self(Command::new("sh").args(["-c", script]).spawn().unwrap())
        }

        fn pid(&self) -> i32 {
            i32::try_from(self.0.id()).unwrap()
        }

        /// What is known of its sleep when it has slept for a while.
        fn asleep_for(&self, least: Duration, place: &str) -> Nap {
            let clock = SchedulerClock::calibrate();
            let end = std::time::Instant::now() + Duration::from_secs(20);
            loop {
                let nap = clock.nap(self.pid(), self.pid());
                // Not while it waits for the disk on its way there.
                if nap.slept >= least && nap.place.contains(place) {
                    return nap;
                }
                assert!(std::time::Instant::now() < end, "it never slept for {least:?}");
            }
        }

        /// What `nap` still says once the program stands still.
        fn stopped(&self, nap: &Nap) -> Duration {
            let thread = Running::seize(self.pid(), Options::TRACE_BIRTHS).unwrap();
            thread.interrupt().unwrap();
            let Event::Stopped(stopped) = thread.wait(Duration::from_secs(5)).unwrap() else {
                panic!("it did not stop");
            };
            stopped.regs().unwrap();
            let slept = nap.unbroken(&crate::proc::status::read(self.pid()).unwrap()).slept;
            stopped.detach(0).unwrap();
            slept
        }
    }

    impl Drop for Program {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    #[test]
    fn a_sleeping_thread_is_timed() {
        let program = Program::start("exec sleep 60");
        let nap = program.asleep_for(Duration::from_millis(200), "nanosleep");
        assert!(nap.slept < Duration::from_secs(5), "{nap:?}");
        assert_eq!(program.stopped(&nap), nap.slept);
    }

    #[test]
    fn a_thread_that_woke_before_it_was_stopped_has_not_slept() {
        let program = Program::start("while :; do sleep 0.1; done");
        let nap = program.asleep_for(Duration::from_millis(20), "wait");
        let end = std::time::Instant::now() + Duration::from_secs(20);
        while sched::read(program.pid(), program.pid()).unwrap().voluntary_switches < nap.switches + 2 {
            assert!(std::time::Instant::now() < end, "it never woke");
        }
        assert_eq!(program.stopped(&nap), Duration::ZERO);
    }
}
