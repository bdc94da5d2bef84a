//! The skeletons' tape and clone3 (needs root: set_tid and pid namespaces).

#![allow(clippy::unwrap_used, reason = "tests")]

use std::os::fd::{AsFd, AsRawFd};
use std::time::{Duration, Instant};

use sys::clone::{Spec, spawn_paused};
use sys::ptrace::{Options, Running, Stopped};
use sys::tape::target::{TargetTape, syscall_instruction};
use sys::tape::{AREA_NAME, Program, Size};

mod support;
use support::{LIMIT, maps};

const ADDRESS: u64 = 0x100_0000_0000;

fn options() -> Options {
    Options::EXITKILL.with(Options::TRACE_BIRTHS)
}

fn skeleton(tape: &TargetTape) -> (Stopped, u64) {
    let child = spawn_paused(&Spec::default(), &[tape.fd()]).unwrap();
    let running = Running::seize(child.pid, options()).unwrap();
    let stopped = running.stop(LIMIT, &mut Vec::new()).unwrap().stopped().unwrap();
    let at = syscall_instruction(child.pid).unwrap();
    (tape.install(stopped, at, ADDRESS, tape.fd().as_raw_fd()).unwrap(), at)
}

fn tape() -> TargetTape {
    TargetTape::create(Size { slots: 8, records: 2000, scratch: 8192 }).unwrap()
}

#[test]
fn calls_results_memory_and_failures() {
    let tape = tape();
    let (skeleton, at) = skeleton(&tape);
    let tid = skeleton.tid();
    assert_eq!(maps(tid).matches(AREA_NAME).count(), 2);
    assert!(std::fs::read_dir(format!("/proc/{tid}/fd")).unwrap().count() == 1, "only the kept descriptor");
    let mut program = Program::new();
    let path = program.text("/proc/self/comm");
    let buffer = program.space(64);
    let iov = program.space(16);
    program.link(iov, 0, buffer);
    let len = program.bytes(&64u64.to_le_bytes());
    let opened = program.call(libc::SYS_openat, &[libc::AT_FDCWD.into(), path.into(), 0.into()]);
    let refused = program.try_call(libc::SYS_close, &[(-1).into()]);
    let read = program.call(libc::SYS_read, &[opened.into(), buffer.into(), 64.into()]);
    let pid = program.call(libc::SYS_getpid, &[]);
    let done = tape.run(skeleton, program, LIMIT).unwrap();
    let outcome = done.outcome.ok().unwrap();
    let got = usize::try_from(outcome.result(read)).unwrap();
    assert!(got > 1 && outcome.bytes(buffer)[got - 1] == b'\n', "{:?}", outcome.bytes(buffer));
    assert_eq!(outcome.result(refused), -9);
    assert_eq!(outcome.result(pid), i64::from(tid));
    assert_eq!(outcome.word(len), 64);
    assert!((ADDRESS..ADDRESS + tape.len()).contains(&outcome.word(iov)));

    let mut program = Program::new();
    for _ in 0..1000 {
        program.call(libc::SYS_getppid, &[]);
    }
    program.call(libc::SYS_mmap, &[]);
    program.call(libc::SYS_exit_group, &[]);
    let start = Instant::now();
    let done = tape.run(done.stopped, program, LIMIT).unwrap();
    eprintln!("1001 calls: {:?}", start.elapsed());
    let failed = done.outcome.failed().unwrap();
    assert_eq!((failed.index, failed.nr, failed.errno), (1000, 9, sys::Errno::EINVAL));

    let moved = tape.relocate(vec![(done.stopped, at)], ADDRESS * 2).unwrap().pop().unwrap();
    let mut program = Program::new();
    let pid = program.call(libc::SYS_getpid, &[]);
    let done = tape.run(moved, program, LIMIT).unwrap();
    assert_eq!(done.outcome.ok().unwrap().result(pid), i64::from(tid));
    let stopped = tape.remove(done.stopped, at).unwrap();
    assert!(!maps(tid).contains(AREA_NAME));
    drop(stopped);
    assert!(
        !std::path::Path::new(&format!("/proc/{tid}/exe")).exists(),
        "EXITKILL skeletons die when dropped"
    );
}

#[test]
fn threads_and_children_are_born_stopped_with_chosen_ids() {
    let tape = tape();
    // A pid namespace of its own: ids are free there.
    let spec = Spec { flags: libc::CLONE_NEWPID.unsigned_abs().into(), ..Spec::default() };
    let init = spawn_paused(&spec, &[tape.fd()]).unwrap();
    let running = Running::seize(init.pid, options()).unwrap();
    let stopped = running.stop(LIMIT, &mut Vec::new()).unwrap().stopped().unwrap();
    let at = syscall_instruction(init.pid).unwrap();
    let init = tape.install(stopped, at, ADDRESS, tape.fd().as_raw_fd()).unwrap();

    let mut program = Program::new();
    let thread_id = program.bytes(&7001u32.to_le_bytes());
    let child_id = program.bytes(&7100u32.to_le_bytes());
    // clone_args: flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls, set_tid, size.
    let args = |program: &mut Program, flags: u64, exit: u64, id| {
        let words = [flags, 0, 0, 0, exit, 0, 0, 0, 0, 1u64];
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        let block = program.bytes(&bytes);
        program.link(block, 64, id);
        block
    };
    let thread_flags =
        libc::CLONE_VM | libc::CLONE_FS | libc::CLONE_FILES | libc::CLONE_SIGHAND | libc::CLONE_THREAD;
    let thread_args = args(&mut program, thread_flags.unsigned_abs().into(), 0, thread_id);
    let child_args = args(&mut program, 0, libc::SIGCHLD.unsigned_abs().into(), child_id);
    let thread = program.call(libc::SYS_clone3, &[thread_args.into(), 80.into()]);
    let child = program.call(libc::SYS_clone3, &[child_args.into(), 80.into()]);
    let done = tape.run(init, program, LIMIT).unwrap();
    let outcome = done.outcome.ok().unwrap();
    assert_eq!((outcome.result(thread), outcome.result(child)), (7001, 7100));
    assert_eq!(done.born.len(), 2);

    // All three run tapes at once.
    let mut program = Program::new();
    let tid = program.call(libc::SYS_gettid, &[]);
    let pid = program.call(libc::SYS_getpid, &[]);
    let mut all = vec![done.stopped];
    all.extend(done.born);
    let runs: Vec<_> = all.into_iter().map(|task| tape.start(task, program.clone()).unwrap()).collect();
    let done: Vec<_> = runs.into_iter().map(|run| tape.finish(run, LIMIT).unwrap()).collect();
    let ids: Vec<_> = done.iter().map(|d| (d.outcome.result(pid), d.outcome.result(tid))).collect();
    assert_eq!(ids, [(1, 1), (1, 7001), (7100, 7100)]);
    let tids: Vec<_> = done.iter().map(|d| d.stopped.tid()).collect();
    drop(done);
    for tid in tids {
        assert!(!std::path::Path::new(&format!("/proc/{tid}/exe")).exists());
    }
}

#[test]
fn restart_blocks_are_primed() {
    let tape = tape();
    let (skeleton, _) = skeleton(&tape);
    let mut program = Program::new();
    let words: Vec<u8> = [0u64, 300_000_000].iter().flat_map(|word| word.to_le_bytes()).collect();
    let time = program.bytes(&words);
    program.call(libc::SYS_nanosleep, &[time.into(), 0.into()]);
    let start = Instant::now();
    let (mut stopped, answer) = tape.enter_and_interrupt(skeleton, program, LIMIT).unwrap();
    assert_eq!(answer, sys::restart::ERESTART_RESTARTBLOCK);
    assert!(start.elapsed() < Duration::from_millis(250));
    // restart_syscall sleeps for the rest: set it up at the loop's syscall instruction, then the loop ends.
    let mut regs = stopped.regs().unwrap();
    regs =
        sys::restart::apply(&regs, &sys::restart::Resume::Reissue { nr: sys::restart::NR_RESTART_SYSCALL });
    stopped.set_regs(&regs).unwrap();
    let stopped = stopped.cont(0).unwrap().wait(LIMIT).unwrap().stopped().unwrap();
    let slept = start.elapsed();
    assert!(slept >= Duration::from_millis(300) && slept < Duration::from_millis(900), "{slept:?}");
    assert_eq!(stopped.regs().unwrap().result(), 0);
}

#[test]
fn forked_helpers_have_one_thread_and_chosen_ids() {
    // The test harness has several threads.
    let refused = sys::clone::fork_single(&Spec::default(), || 0);
    assert_eq!(refused.unwrap_err(), sys::Errno::EDEADLK);
    // A forked copy of it has one, and so has its child: init of a new pid namespace.
    // SAFETY: the C library's fork leaves its allocator usable in the child.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        let flags = libc::CLONE_NEWPID.unsigned_abs().into();
        let spec = Spec { flags, ..Spec::default() };
        // SAFETY: getpid takes nothing.
        let child = sys::clone::fork_single(&spec, || unsafe { libc::getpid() } + 40);
        let status = child
            .ok()
            .and_then(|child| nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(child.pid), None).ok());
        let good = matches!(status, Some(nix::sys::wait::WaitStatus::Exited(_, 41)));
        // SAFETY: ends the forked copy at once.
        unsafe { libc::_exit(if good { 7 } else { 1 }) };
    }
    let status = nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(pid), None).unwrap();
    assert!(matches!(status, nix::sys::wait::WaitStatus::Exited(_, 7)), "{status:?}");

    let child = spawn_paused(&Spec::default(), &[]).unwrap();
    let taken = spawn_paused(&Spec { set_tid: &[child.pid], ..Spec::default() }, &[]);
    assert_eq!(taken.unwrap_err(), sys::Errno::EEXIST);
    sys::pidfd::send_signal(child.pidfd.as_fd(), libc::SIGKILL).unwrap();
    assert!(sys::pidfd::wait_exit(child.pidfd.as_fd(), LIMIT).unwrap());
    nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(child.pid), None).unwrap();
}
