//! Tracing real processes (needs ptrace access to own children).

#![allow(clippy::unwrap_used, reason = "tests")]

use std::process::Command;
use std::time::{Duration, Instant};

use sys::ptrace::{Event, Exit, Options, PendingSignals, Running, Stop, stop_all};
use sys::restart::{ERESTART_RESTARTBLOCK, kernel_restarts};

mod support;
use support::{LIMIT, Victim, tids};

/// Not a test: the program that the others trace.
#[test]
fn victim() {
    match std::env::var(support::ROLE).as_deref() {
        Ok("victim") => support::victim::main(),
        Ok("breeder") => breeder(),
        _ => {}
    }
}

/// A program that makes threads all the time.
fn breeder() -> ! {
    println!("ready");
    loop {
        let thread = std::thread::spawn(|| std::thread::sleep(Duration::from_millis(1)));
        drop(thread);
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// A `sleep` child; killed and reaped when dropped.
struct Sleeper(std::process::Child);

impl Sleeper {
    fn start() -> Self {
        let child = Command::new("sleep").arg("600").spawn().unwrap();
        let end = Instant::now() + LIMIT;
        while !std::fs::read_to_string(format!("/proc/{}/wchan", child.id())).unwrap().contains("nanosleep") {
            assert!(Instant::now() < end, "sleep(1) does not sleep");
        }
        Self(child)
    }

    fn pid(&self) -> i32 {
        i32::try_from(self.0.id()).unwrap()
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_stopped_thread_answers_everything() {
    let sleeper = Sleeper::start();
    let running = Running::seize(sleeper.pid(), Options::NONE).unwrap();
    let mut thread = running.stop(LIMIT, &mut Vec::new()).unwrap().stopped().unwrap();
    assert_eq!(thread.stop(), Stop::Interrupt);
    let regs = thread.regs().unwrap();
    assert!(regs.is_64_bit());
    assert_eq!(regs.syscall(), Some(libc::SYS_clock_nanosleep.cast_unsigned()));
    assert_eq!(regs.result(), ERESTART_RESTARTBLOCK);
    assert!(kernel_restarts(&regs));
    let memory = sys::mem::ProcessMemory::open(sleeper.pid()).unwrap();
    let address = sys::restart::timeout_address(&regs, None).unwrap();
    assert_eq!(memory.read_u64(address).unwrap(), 600);
    let mut both = [0u8; 16];
    let run = sys::mem::Run { address, len: 16 };
    assert_eq!(sys::mem::read_runs(sleeper.pid(), &[run], &mut both).unwrap(), 16);
    assert_eq!(both[..8], 600u64.to_le_bytes());

    let xstate = thread.xstate().unwrap();
    assert!(xstate.len() >= 576, "{} bytes of xsave area", xstate.len());
    thread.set_xstate(&xstate).unwrap();
    assert_eq!(thread.xstate().unwrap(), xstate);
    assert_eq!(thread.sigmask().unwrap(), 0);
    assert_eq!(thread.seccomp_filters().unwrap(), []);
    let rseq = thread.rseq().unwrap();
    assert!(rseq.is_none_or(|rseq| rseq.address != 0 && rseq.size >= 20), "{rseq:?}");

    // Queued signals, before and after a mask would let them in.
    thread.set_sigmask(1 << (libc::SIGUSR1 - 1)).unwrap();
    assert_eq!(thread.pending(PendingSignals::Process).unwrap().len(), 0);
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(sleeper.pid()), nix::sys::signal::Signal::SIGUSR1)
        .unwrap();
    let queue = thread.pending(PendingSignals::Process).unwrap();
    assert_eq!(queue.len(), 1);
    assert_eq!(queue[0][..4], libc::SIGUSR1.to_le_bytes());
    assert_eq!(thread.pending(PendingSignals::Thread).unwrap().len(), 0);
    thread.detach(0).unwrap();
}

#[test]
fn death_is_an_answer() {
    let sleeper = Sleeper::start();
    let pid = sleeper.pid();
    let running = Running::seize(pid, Options::NONE).unwrap();
    let thread = running.stop(LIMIT, &mut Vec::new()).unwrap().stopped().unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
    // It leaves its stop as soon as the kernel gets to it.
    let end = Instant::now() + LIMIT;
    while thread.regs().is_ok() {
        assert!(Instant::now() < end, "a killed tracee still answers");
    }
    assert!(thread.regs().unwrap_err().is_gone());
    assert!(thread.cont(0).unwrap_err().is_gone());
    assert!(Running::seize(i32::MAX - 7, Options::NONE).unwrap_err().is_gone());

    let sleeper = Sleeper::start();
    let running = Running::seize(sleeper.pid(), Options::NONE).unwrap();
    let running = match running.wait(Duration::from_millis(1)).unwrap() {
        Event::TimedOut(running) => running,
        other => panic!("{other:?}"),
    };
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(sleeper.pid()), nix::sys::signal::Signal::SIGKILL)
        .unwrap();
    let event = running.wait(LIMIT).unwrap();
    assert!(
        matches!(event, Event::Exited(pid, Exit::Signal(libc::SIGKILL)) if pid == sleeper.pid()),
        "{event:?}"
    );
}

#[test]
fn dropping_lets_go_or_kills() {
    let sleeper = Sleeper::start();
    let state = |pid: i32| std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let running = Running::seize(sleeper.pid(), Options::NONE).unwrap();
    drop(running.stop(LIMIT, &mut Vec::new()).unwrap());
    assert!(state(sleeper.pid()).contains("TracerPid:\t0"));
    drop(Running::seize(sleeper.pid(), Options::NONE).unwrap());
    assert!(state(sleeper.pid()).contains("TracerPid:\t0"));
    let mut doomed = Sleeper::start();
    drop(Running::seize(doomed.pid(), Options::EXITKILL).unwrap());
    let end = Instant::now() + LIMIT;
    while doomed.0.try_wait().is_ok_and(|status| status.is_none()) {
        assert!(Instant::now() < end, "it lives");
    }
}

#[test]
fn many_threads_stop_at_once_and_newborn_ones_too() {
    let breeder = Victim::start_as("breeder", "victim");
    let pid = breeder.pid();
    let mut born = 0;
    for _ in 0..100 {
        let mut stopped = Vec::new();
        let mut traced = std::collections::BTreeSet::new();
        let mut passes = 0;
        // A maker that was inside clone when it was seized makes an untraced thread yet: look again.
        loop {
            let alive = tids(pid).into_iter().filter(|tid| {
                let stat =
                    std::fs::read_to_string(format!("/proc/{pid}/task/{tid}/stat")).unwrap_or_default();
                stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
            });
            let new: Vec<i32> = alive.filter(|tid| !traced.contains(tid)).collect();
            if new.is_empty() {
                break;
            }
            passes += 1;
            assert!(passes < 5, "threads {new:?} still run");
            let running =
                new.iter().filter_map(|&tid| Running::seize(tid, Options::TRACE_BIRTHS).ok()).collect();
            let all = stop_all(running, LIMIT).unwrap();
            born += all.born.len();
            traced.extend(all.stopped.iter().map(sys::ptrace::Stopped::tid));
            stopped.extend(all.stopped);
        }
    }
    eprintln!("{born} threads were born between the call and the stop");
}

#[test]
fn every_thread_goes_on_after_a_plain_stop() {
    let mut victim = Victim::start("victim");
    let before = victim.report();
    for _ in 0..20 {
        let running =
            tids(victim.pid()).into_iter().map(|tid| Running::seize(tid, Options::NONE).unwrap()).collect();
        let memory = sys::mem::ProcessMemory::open(victim.pid()).unwrap();
        for thread in stop_all(running, LIMIT).unwrap().stopped {
            let context = sys::tape::source::Context::read(&thread, &memory, Duration::ZERO).unwrap();
            context.detach(thread).unwrap();
        }
    }
    victim.progress(&before);
    assert_eq!(victim.interrupted, 0);
}

#[test]
fn an_interrupt_outlives_other_stops() {
    let sleeper = Sleeper::start();
    let pid = nix::unistd::Pid::from_raw(sleeper.pid());
    let running = Running::seize(sleeper.pid(), Options::NONE).unwrap();
    // SIGURG is ignored by default, so the thread goes on sleeping after it.
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGURG).unwrap();
    let end = Instant::now() + LIMIT;
    while !std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap().contains(") t ") {
        assert!(Instant::now() < end, "no signal stop");
    }
    running.interrupt().unwrap();
    let stopped = running.wait(LIMIT).unwrap().stopped().unwrap();
    assert_eq!(stopped.stop(), Stop::Signal(libc::SIGURG));
    let stopped = stopped.cont(libc::SIGURG).unwrap().wait(LIMIT).unwrap().stopped().unwrap();
    assert_eq!(stopped.stop(), Stop::Interrupt);
}
