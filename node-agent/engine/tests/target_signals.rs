//! Signals that come while a program stands still, on either side of a move.

#![allow(clippy::unwrap_used, reason = "tests may")]

mod target_support;

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use target_support::local::*;
use target_support::*;

/// Signals the sleepers on one side, moves them, and looks how their calls ended.
fn signalled_sleepers(name: &str, at_source: bool, cgroup: Option<&Path>) {
    use nix::sys::signal::{Signal, kill};
    const CALLS: usize = 12;
    let log = Scratch::new(name);
    let victim = Victim::spawn(Command::new("python3").arg(script("sleepers.py")).arg(&log.0));
    let asleep = || -> Vec<i32> {
        let pids = log
            .lines()
            .into_iter()
            .filter_map(|l| l.strip_prefix("asleep ")?.rsplit(' ').next()?.parse().ok());
        pids.filter(|pid| engine::proc::stat::read(*pid).is_ok_and(|stat| stat.state == b'S')).collect()
    };
    wait_until("they sleep", || asleep().len() == CALLS);
    let sleepers = asleep();
    let signal = |pid: i32| kill(nix::unistd::Pid::from_raw(pid), Signal::SIGUSR1).unwrap();
    let spec = host_tree(victim.pid());
    let _moved = migrate_and(
        &spec,
        cgroup,
        || sleepers.iter().filter(|_| at_source).copied().for_each(signal),
        |carrier, _| {
            let copies = descendants(carrier.pid);
            copies
                .into_iter()
                .filter(|copy| !at_source && sleepers.contains(&inner_pid(*copy)))
                .for_each(signal);
        },
    );
    let ended = || log.lines().into_iter().filter(|l| !l.starts_with("asleep")).collect::<Vec<_>>();
    let end = Instant::now() + Duration::from_secs(10);
    while ended().len() < CALLS && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(5));
    }
    let ended = ended();
    let wrong: Vec<&String> = ended
        .iter()
        .filter(|line| {
            let words: Vec<&str> = line.split(' ').collect();
            // clock_nanosleep by its number answers as the kernel does, through errno as well.
            words[1..] != ["-1", "EINTR", "1"]
        })
        .collect();
    assert!(ended.len() == CALLS && wrong.is_empty(), "{ended:#?}");
}

#[test]
fn a_signal_that_came_in_the_freeze_ends_the_call_it_interrupts() {
    signalled_sleepers("sleepers", true, None);
}

#[test]
fn so_does_one_that_the_waiting_copy_gets() {
    let here = Cgroup::new("sleepers");
    signalled_sleepers("sleepers-ready", false, Some(&here.0));
    signalled_sleepers("sleepers-traced", false, None);
}
