//! The self-restoring tape in a live program (needs ptrace access to own children).

#![allow(clippy::unwrap_used, reason = "tests")]

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::time::{Duration, Instant};

use sys::ptrace::{Options, Running, Stopped, stop_all};
use sys::tape::source::{Config, Context, Parked, SourceTape, choose_park_signal};
use sys::tape::{AREA_NAME, Program, Size, cleanup_leftovers};

mod support;
use support::{LIMIT, Victim, caught, maps, tids};

/// Not a test: the program that the others trace.
#[test]
fn victim() {
    match std::env::var(support::ROLE).as_deref() {
        Ok("victim") => support::victim::main(),
        Ok("signals") => support::victim::signals(),
        Ok("filtered") => support::victim::filtered(),
        Ok(pid) if pid.starts_with("tracer ") => tracer(pid["tracer ".len()..].parse().unwrap()),
        _ => {}
    }
}

fn config(pid: i32) -> Config {
    let size = Size { slots: 64, records: 64, scratch: 4096 };
    Config { size, park_signal: choose_park_signal(caught(pid), 0, 0).unwrap(), suspend_seccomp: false }
}

fn stop_process(pid: i32) -> Vec<Stopped> {
    let running =
        tids(pid).into_iter().map(|tid| Running::seize(tid, Options::TRACE_CLONE).unwrap()).collect();
    stop_all(running, LIMIT).unwrap().stopped
}

fn leader(pid: i32) -> Stopped {
    let running = Running::seize(pid, Options::NONE).unwrap();
    running.stop(LIMIT, &mut Vec::new()).unwrap().stopped().unwrap()
}

fn install(pid: i32) -> (SourceTape, Parked) {
    let leader = leader(pid);
    let memory = sys::mem::ProcessMemory::open(pid).unwrap();
    let context = Context::read(&leader, &memory, Duration::ZERO).unwrap();
    SourceTape::install(pid, leader, context, config(pid)).unwrap()
}

/// Calls whose answers are known, and memory in both directions.
fn probe() -> (Program, [sys::tape::CallId; 3], sys::tape::Block) {
    let mut program = Program::new();
    let pid = program.call(libc::SYS_getpid, &[]);
    let name = program.space(390);
    let uname = program.call(libc::SYS_uname, &[name.into()]);
    let tid = program.call(libc::SYS_gettid, &[]);
    (program, [pid, uname, tid], name)
}

#[test]
fn install_run_remove_leaves_nothing() {
    let mut victim = Victim::start("victim");
    let pid = victim.pid();
    // Every thread has been through its loop: its stack and its allocator's memory are there.
    let before = victim.progress(&[1; 7]);
    let maps_before = maps(pid);
    let (tape, parked) = install(pid);
    assert_eq!(maps(pid).matches(AREA_NAME).count(), 2, "{}", maps(pid));
    let fds = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let links = fds.filter_map(|fd| std::fs::read_link(fd.unwrap().path()).ok());
    assert!(
        !links.into_iter().any(|link| link.to_string_lossy().contains(AREA_NAME)),
        "a descriptor remained"
    );

    let (program, [getpid, _, gettid], name) = probe();
    let parked = tape.wait(parked.start(&tape, program).unwrap(), LIMIT).unwrap();
    let outcome = parked.outcome().clone().ok().unwrap();
    assert_eq!(outcome.result(getpid), i64::from(pid));
    assert_eq!(outcome.result(gettid), i64::from(pid));
    assert!(outcome.bytes(name).starts_with(b"Linux\0"));

    // A failing call ends the tape; what stands behind it is not made.
    let mut program = Program::new();
    program.call(libc::SYS_getpid, &[]);
    program.call(libc::SYS_close, &[(-1).into()]);
    program.call(libc::SYS_exit_group, &[99.into()]);
    let parked = tape.wait(parked.start(&tape, program).unwrap(), LIMIT).unwrap();
    let failed = parked.outcome().failed().unwrap();
    assert_eq!((failed.index, failed.errno), (1, sys::Errno::EBADF));

    drop(tape.remove(parked).unwrap());
    assert_eq!(maps(pid), maps_before);
    victim.progress(&before);
    // A second time, from the same slack.
    let (tape, parked) = install(pid);
    drop(tape.remove(parked).unwrap());
    assert_eq!(maps(pid), maps_before);
}

#[test]
fn a_descriptor_is_taken_out_and_closed() {
    use std::os::fd::AsRawFd;
    let victim = Victim::start("victim");
    let pid = victim.pid();
    let (tape, parked) = install(pid);
    let mut program = Program::new();
    let made = program.call(libc::SYS_eventfd2, &[41.into(), libc::O_CLOEXEC.into()]);
    program.after(libc::SYS_close, &[made.into()]);
    let parked = tape.wait(parked.start(&tape, program).unwrap(), LIMIT).unwrap();
    let number = i32::try_from(parked.outcome().result(made)).unwrap();
    let link = format!("/proc/{pid}/fd/{number}");
    assert!(std::fs::read_link(&link).unwrap().to_string_lossy().contains("eventfd"));
    let taken = parked.take_fd(&tape, number).unwrap();
    let parked = parked.run_after(&tape, LIMIT).unwrap();
    assert!(std::fs::read_link(&link).is_err(), "the descriptor is still open");
    let mut count = [0u8; 8];
    assert_eq!(nix::unistd::read(&taken, &mut count), Ok(8), "fd {}", taken.as_raw_fd());
    assert_eq!(u64::from_le_bytes(count), 41);
    drop(tape.remove(parked).unwrap());
}

#[test]
fn all_threads_run_tapes_at_once_and_go_on_as_before() {
    let mut victim = Victim::start("victim");
    let pid = victim.pid();
    let (tape, parked) = install(pid);
    parked.detach(&tape).unwrap();
    let mut best = [Duration::MAX; 5];
    let mut before = victim.report();
    for round in 0..60 {
        let running: Vec<Running> =
            tids(pid).into_iter().map(|tid| Running::seize(tid, Options::TRACE_CLONE).unwrap()).collect();
        let count = u32::try_from(running.len()).unwrap();
        let mut times = Vec::new();
        let mut last = Instant::now();
        let mut lap = |times: &mut Vec<Duration>| {
            times.push(last.elapsed() / count);
            last = Instant::now();
        };
        let stopped = stop_all(running, LIMIT).unwrap().stopped;
        lap(&mut times);
        let contexts: Vec<Context> =
            stopped.iter().map(|t| Context::read(t, tape.memory(), Duration::ZERO).unwrap()).collect();
        lap(&mut times);
        let mut program = Program::new();
        let tid = program.call(libc::SYS_gettid, &[]);
        for _ in 0..40 {
            program.call(libc::SYS_getppid, &[]);
        }
        let flights: Vec<_> = stopped
            .into_iter()
            .zip(contexts)
            .map(|(thread, context)| tape.start(thread, context, program.clone()).unwrap())
            .collect();
        lap(&mut times);
        let parked: Vec<_> = flights.into_iter().map(|flight| tape.wait(flight, LIMIT).unwrap()).collect();
        lap(&mut times);
        for thread in &parked {
            assert_eq!(thread.outcome().clone().ok().unwrap().result(tid), i64::from(thread.tid()));
        }
        for thread in parked {
            thread.detach(&tape).unwrap();
        }
        lap(&mut times);
        for (best, time) in best.iter_mut().zip(times) {
            *best = time.min(*best);
        }
        if round % 20 == 0 {
            before = victim.progress(&before);
        }
    }
    eprintln!("best us a thread: stop, context, start, wait(41 calls), detach: {best:?}");
    victim.progress(&before);
    assert_eq!(victim.interrupted, 0, "a live tracer must hide every -EINTR");
    let leader = leader(pid);
    let context = Context::read(&leader, tape.memory(), Duration::ZERO).unwrap();
    let parked = tape.wait(tape.start(leader, context, Program::new()).unwrap(), LIMIT).unwrap();
    drop(tape.remove(parked).unwrap());
}

/// One tape of a few calls on every thread, from stop to detach.
fn round(tape: &SourceTape, while_parked: impl FnOnce(&[Parked])) {
    let stopped = stop_process(tape.pid());
    let contexts: Vec<Context> =
        stopped.iter().map(|t| Context::read(t, tape.memory(), Duration::ZERO).unwrap()).collect();
    let mut program = Program::new();
    let parent = program.call(libc::SYS_getppid, &[]);
    let flights: Vec<_> = stopped
        .into_iter()
        .zip(contexts)
        .map(|(thread, context)| tape.start(thread, context, program.clone()).unwrap())
        .collect();
    let parked: Vec<_> = flights.into_iter().map(|flight| tape.wait(flight, LIMIT).unwrap()).collect();
    for thread in &parked {
        assert!(thread.outcome().clone().ok().unwrap().result(parent) > 0);
    }
    while_parked(&parked);
    for thread in parked {
        thread.detach(tape).unwrap();
    }
}

fn remove(tape: SourceTape) {
    let leader = leader(tape.pid());
    let context = Context::read(&leader, tape.memory(), Duration::ZERO).unwrap();
    let parked = tape.wait(tape.start(leader, context, Program::new()).unwrap(), LIMIT).unwrap();
    drop(tape.remove(parked).unwrap());
}

fn send(pid: i32, tid: i32, count: u64) -> u64 {
    for _ in 0..count {
        // SAFETY: integers only; the tid is a child's thread that we started.
        let answer = unsafe { libc::syscall(libc::SYS_tgkill, pid, tid, libc::SIGRTMIN()) };
        assert_eq!(answer, 0);
    }
    count
}

#[test]
fn no_signal_is_lost_and_every_wait_ends_for_its_handler() {
    let mut victim = Victim::start_as("signals", "victim");
    let pid = victim.pid();
    let (tape, parked) = install(pid);
    parked.detach(&tape).unwrap();
    let end = Instant::now() + LIMIT;
    // The test threads of the harness come first; the workers are the last three.
    while tids(pid).len() < 5 {
        assert!(Instant::now() < end);
    }
    let workers = tids(pid).split_off(2);
    let mut sent = 0;
    for index in 0..40u64 {
        // Pending at the entry of the tape: sent while the threads stand still, or while they run.
        let before: u64 = workers.iter().map(|&tid| send(pid, tid, index % 3)).sum();
        sent += before;
        round(&tape, |parked| {
            // Pending at the release.
            sent += parked
                .iter()
                .filter(|t| workers.contains(&t.tid()))
                .map(|t| send(pid, t.tid(), 1))
                .sum::<u64>();
        });
        // Each worker's waits must end: pause and ppoll return for their handlers, so nothing stays behind.
        let end = Instant::now() + LIMIT;
        loop {
            let report = victim.report();
            if report[0] == sent && report[1] > index && report[2] > index {
                break;
            }
            assert!(Instant::now() < end, "round {index}: sent {sent}, handled and waits ended {report:?}");
        }
    }
    remove(tape);
}

#[test]
fn a_process_that_job_control_stopped_stays_stopped() {
    let mut victim = Victim::start("victim");
    let pid = victim.pid();
    let before = victim.report();
    let state = || {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        stat.rsplit_once(") ").unwrap().1.chars().next().unwrap()
    };
    let wait_for = |want: char| {
        let end = Instant::now() + LIMIT;
        while state() != want {
            assert!(Instant::now() < end, "state {} instead of {want}", state());
        }
    };
    let target = nix::unistd::Pid::from_raw(pid);
    nix::sys::signal::kill(target, nix::sys::signal::Signal::SIGSTOP).unwrap();
    wait_for('T');
    let (tape, parked) = install(pid);
    drop(parked.release(&tape).unwrap());
    wait_for('T');
    round(&tape, |parked| assert!(parked.iter().all(|thread| thread.context().group_stopped())));
    wait_for('T');
    remove(tape);
    wait_for('T');
    nix::sys::signal::kill(target, nix::sys::signal::Signal::SIGCONT).unwrap();
    victim.progress(&before);
}

#[test]
fn a_filtered_process_runs_tapes_and_keeps_its_filter() {
    let mut victim = Victim::start_as("filtered", "victim");
    let pid = victim.pid();
    let before = victim.report();
    let stopped = leader(pid);
    let filters = stopped.seccomp_filters().unwrap();
    assert_eq!(filters.len(), 1);
    use sys::seccomp::{Verdict, check_tape, verdict};
    assert_eq!(verdict(&filters, libc::SYS_getppid.cast_unsigned(), [0; 6]), Verdict::KillProcess);
    assert_eq!(verdict(&filters, libc::SYS_userfaultfd.cast_unsigned(), [0; 6]), Verdict::Errno(1));
    assert_eq!(check_tape(&filters, &Program::new()), Ok(()));
    let memory = sys::mem::ProcessMemory::open(pid).unwrap();
    let context = Context::read(&stopped, &memory, Duration::ZERO).unwrap();
    let config = Config { suspend_seccomp: true, ..config(pid) };
    let (tape, parked) = SourceTape::install(pid, stopped, context, config).unwrap();
    parked.detach(&tape).unwrap();
    // getppid(2) on every thread: the filter would kill.
    round(&tape, |_| ());
    victim.progress(&before);
    // A tracer that forgets its tape leaves work for the next one.
    drop(tape);
    let left = cleanup_leftovers(pid, &tids(pid), config.park_signal, LIMIT).unwrap();
    assert!(left.unmapped > 0 && !left.in_use && !maps(pid).contains(AREA_NAME), "{left:?}");
    victim.progress(&before);
    let stopped = leader(pid);
    assert_eq!(stopped.seccomp_filters().unwrap(), filters);
    let context = Context::read(&stopped, &memory, Duration::ZERO).unwrap();
    // Without the suspension it is in force again.
    let (tape, parked) = SourceTape::install(pid, stopped, context, self::config(pid)).unwrap();
    let mut program = Program::new();
    program.call(libc::SYS_getppid, &[]);
    let error = tape.wait(parked.start(&tape, program).unwrap(), LIMIT).unwrap_err();
    assert!(matches!(error, sys::tape::source::SourceError::Trace(error) if error.is_gone()), "{error:?}");
}

/// A tracer that never stops tracing until it is killed.
fn tracer(pid: i32) -> ! {
    let signal = choose_park_signal(caught(pid), 0, 0).unwrap();
    println!("tracing");
    loop {
        cleanup_leftovers(pid, &tids(pid), signal, LIMIT).unwrap();
        let (tape, parked) = install(pid);
        parked.detach(&tape).unwrap();
        for _ in 0..3 {
            let mut program = Program::new();
            let made = program.call(libc::SYS_eventfd2, &[41.into(), libc::O_CLOEXEC.into()]);
            for _ in 0..40 {
                program.call(libc::SYS_getppid, &[]);
            }
            program.after(libc::SYS_close, &[made.into()]);
            let stopped = stop_process(pid);
            let contexts: Vec<Context> =
                stopped.iter().map(|t| Context::read(t, tape.memory(), Duration::ZERO).unwrap()).collect();
            let flights: Vec<_> = stopped
                .into_iter()
                .zip(contexts)
                .map(|(thread, context)| tape.start(thread, context, program.clone()).unwrap())
                .collect();
            let parked: Vec<_> =
                flights.into_iter().map(|flight| tape.wait(flight, LIMIT).unwrap()).collect();
            std::thread::sleep(Duration::from_micros(200));
            for thread in parked {
                thread.run_after(&tape, LIMIT).unwrap().detach(&tape).unwrap();
            }
        }
        let leader = leader(pid);
        let context = Context::read(&leader, tape.memory(), Duration::ZERO).unwrap();
        let parked = tape.wait(tape.start(leader, context, Program::new()).unwrap(), LIMIT).unwrap();
        drop(tape.remove(parked).unwrap());
    }
}

#[test]
fn the_program_survives_the_tracers_death_at_any_moment() {
    let mut victim = Victim::start("victim");
    let pid = victim.pid();
    let mut before = victim.report();
    let seed = u64::from(std::process::id()) ^ 0x9e37_79b9_7f4a_7c15;
    eprintln!("seed {seed:#x}");
    let mut random = seed;
    let descriptors = || std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    let open_before = descriptors();
    for round in 0..200 {
        let mut tracer = support::again(&format!("tracer {pid}"), "victim")
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(tracer.stdout.take().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap().contains("tracing")), "tracer {round} failed to start");
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        std::thread::sleep(Duration::from_micros(random % 6000));
        let early = tracer.try_wait().unwrap();
        let _ = tracer.kill();
        let output = tracer.wait_with_output().unwrap();
        assert!(early.is_none(), "tracer {round} ended: {}", String::from_utf8_lossy(&output.stderr));
        if round % 20 == 0 {
            before = victim.progress(&before);
        }
    }
    before = victim.progress(&before);
    let signal = choose_park_signal(caught(pid), 0, 0).unwrap();
    let left = cleanup_leftovers(pid, &tids(pid), signal, LIMIT).unwrap();
    // The kernel answers -EINTR when the tracer dies between its stop and the register change that repairs it;
    // the program would see the same after any SIGSTOP and SIGCONT.
    eprintln!("-EINTR seen: {}; last leftovers: {left:?}", victim.interrupted);
    assert!(!left.in_use);
    assert!(!maps(pid).contains(AREA_NAME), "{}", maps(pid));
    assert_eq!(descriptors(), open_before, "a descriptor leaked into the program");
    // The slack is clean: a new tape can be installed.
    let (tape, parked) = install(pid);
    drop(tape.remove(parked).unwrap());
    victim.progress(&before);
}
