//! The whole way on one host: a program is captured while it runs, and goes on in another pid namespace.

#![allow(clippy::unwrap_used, reason = "tests may")]

mod target_support;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::process::Command;
use std::time::{Duration, Instant};

use engine::proc::tasks;
use engine::source::{Namespaces, Source, TreeSpec};
use engine::target::{Target, TargetOptions};
use target_support::local::*;
use target_support::*;

/// How long a copy may take until all of it has worked.
const LIMIT: Duration = Duration::from_secs(20);

/// What each thread of a process may do, by its number in its own namespace.
fn privileges(pid: i32) -> BTreeMap<i32, (image::state::Creds, u8)> {
    let of = |tid| {
        let status = engine::proc::status::read_thread(pid, tid).unwrap();
        let [cap_inheritable, cap_permitted, cap_effective, cap_bounding, cap_ambient] = status.caps;
        let creds = image::state::Creds {
            uid: status.uid,
            gid: status.gid,
            groups: status.groups.clone(),
            cap_inheritable,
            cap_permitted,
            cap_effective,
            cap_bounding,
            cap_ambient,
            no_new_privs: status.no_new_privs,
            ..Default::default()
        };
        (status.inner_pid(), (creds, status.seccomp))
    };
    tasks::threads(pid).unwrap().into_iter().map(of).collect()
}

fn counts(line: &str) -> BTreeMap<String, u64> {
    let pairs = line.split_whitespace().filter_map(|w| w.split_once('='));
    pairs.map(|(k, v)| (k.to_owned(), v.parse().unwrap())).collect()
}

#[test]
fn a_container_of_its_own_namespace_is_held_by_its_cgroup_alone() {
    let log = Scratch::new("container");
    let (there, here) = (Cgroup::new("there"), Cgroup::new("here"));
    let script =
        format!("ip link set lo up && exec python3 {} {}", script("selfcheck.py").display(), log.0.display());
    let mut command = Command::new("unshare");
    let victim = Victim::spawn(command.args(["--pid", "--net", "--fork", "sh", "-c", &script]));
    wait_until("the program works", || log.lines().len() > 5);
    let init = tasks::children(victim.pid()).unwrap()[0];
    for pid in std::iter::once(init).chain(descendants(init)) {
        sys::cgroup::add_process(&there.0, pid).unwrap();
    }
    let spec = TreeSpec {
        root: init,
        cgroup: Some(there.0.clone()),
        externals: Vec::new(),
        terminals: Vec::new(),
        namespaces: Namespaces::Own,
        mounts: engine::source::MountNamespaces::default(),
    };
    let old = privileges(init);
    let (carrier, image, times) = migrate_as(&spec, Some(&here.0));
    assert!(old.len() > 2, "{old:?}");
    assert_eq!(privileges(carrier.pid), old);
    println!("{times:?} total {:?}", times.total());
    assert_eq!(image.shape.processes[0].pid, 1);
    assert_eq!(fs::read_to_string(format!("/proc/{}/comm", carrier.pid)).unwrap(), "python3\n");
    let before = log.lines();
    wait_until("the copy works", || log.lines().len() > before.len() + 10);
    let bad: Vec<String> = log.lines().into_iter().filter(|l| l.starts_with("BAD")).collect();
    assert!(bad.is_empty(), "{bad:#?}");
}

/// A timer with a period of 20 ms that nobody reads until a signal comes; then it is read five times.
const UNREAD_TIMER: &str = "
import ctypes, os, signal, struct, sys, time
os.closerange(3, 1024)
asked = []
libc = ctypes.CDLL(None)
timer = libc.timerfd_create(1, 0)
libc.timerfd_settime(timer, 0, struct.pack('<4q', 0, 20_000_000, 0, 20_000_000), None)
signal.signal(signal.SIGUSR1, lambda *_: asked.append(1))
log = open(sys.argv[1], 'a', buffering=1)
log.write(f'{timer}\\n')
while not asked: time.sleep(0.01)
for _ in range(5):
    log.write(f'{struct.unpack(\"<Q\", os.read(timer, 8))[0]}\\n')
";

#[test]
fn a_timer_that_ran_out_unread_goes_on_with_its_period() {
    let log = Scratch::new("timer");
    let victim = Victim::spawn(Command::new("python3").args(["-c", UNREAD_TIMER]).arg(&log.0));
    let (began, mut timer) = (Instant::now(), 0);
    wait_until("the timer has run out", || {
        timer = log.lines().first().and_then(|line| line.parse().ok()).unwrap_or(0);
        let info = engine::proc::fdinfo::read(victim.pid(), timer);
        timer > 0 && info.is_ok_and(|info| info.timerfd.is_some_and(|timer| timer.ticks > 0))
    });
    std::thread::sleep(Duration::from_millis(100));
    let (carrier, image, _) = migrate(victim.pid());
    let pid = image.processes[0].pid;
    let found = image.files.open.iter().find_map(|open| match open.kind {
        image::files::FileKind::TimerFd { ticks, remaining_ns, .. } => Some((ticks, remaining_ns)),
        _ => None,
    });
    let (ticks, remaining) = found.unwrap();
    assert!((4..).contains(&ticks) && (1..=20_000_000).contains(&remaining), "{ticks} {remaining}");
    let copy = descendants(carrier.pid).into_iter().find(|copy| inner_pid(*copy) == pid).unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(copy), nix::sys::signal::Signal::SIGUSR1).unwrap();
    wait_until("it was read", || log.lines().len() == 6);
    let read: Vec<u64> = log.lines()[1..].iter().map(|line| line.parse().unwrap()).collect();
    let passed = u64::try_from(began.elapsed().as_millis()).unwrap() / 20 + 2;
    assert!(read[0] >= ticks && read.iter().sum::<u64>() <= passed, "{read:?} {passed}");
}

#[test]
fn a_discarded_copy_with_threads_is_gone_soon() {
    const THREADS: usize = 40;
    let here = Cgroup::new("discarded");
    let program = format!(
        "import os, threading, time\nos.closerange(3, 1024)\nfor _ in range({THREADS}): threading.Thread(target=time.sleep, args=(1000,)).start()"
    );
    let mut command = Command::new("unshare");
    let victim = Victim::spawn(command.args(["--pid", "--net", "--fork", "python3", "-c", &program]));
    let threads = |pid| tasks::threads(pid).unwrap_or_default().len();
    let init = || tasks::children(victim.pid()).ok()?.first().copied();
    wait_until("its threads", || init().is_some_and(|init| threads(init) == THREADS + 1));
    let spec = TreeSpec {
        root: init().unwrap(),
        cgroup: None,
        externals: Vec::new(),
        terminals: Vec::new(),
        namespaces: Namespaces::Own,
        mounts: engine::source::MountNamespaces::default(),
    };
    let mut source = Source::attach(&spec).unwrap();
    let (carrier, root) = Carrier::spawn();
    sys::cgroup::add_process(&here.0, carrier.pid).unwrap();
    let mut target = Target::build(TargetOptions {
        root,
        netns: None,
        cgroup: Some(here.0.clone()),
        nested: engine::target::NestedMounts::default(),
    })
    .unwrap();
    target.reconcile(&source.shape().unwrap()).unwrap();
    target.prepare(&source.ahead().unwrap()).unwrap();
    assert_eq!(threads(carrier.pid), THREADS + 1);
    // The last thread of a pid namespace's first process waits for all the others.
    let start = Instant::now();
    target.discard();
    while !fs::read_to_string(here.0.join("cgroup.procs")).unwrap().is_empty() {
        assert!(start.elapsed() < Duration::from_secs(5), "it is still there");
        std::thread::sleep(Duration::from_millis(5));
    }
    source.abort().unwrap();
}

#[test]
fn a_threaded_python_program_goes_on_where_it_was() {
    let log = Scratch::new("selfcheck");
    let victim = Victim::spawn(Command::new("python3").arg(script("selfcheck.py")).arg(&log.0));
    let pid = victim.pid();
    wait_until("the program works", || log.lines().len() > 5);
    let (carrier, image, times) = migrate(pid);
    println!("{times:?} total {:?}", times.total());
    let before = log.lines();
    let copy = tasks::children(carrier.pid).unwrap();
    assert_eq!(copy.len(), 1);
    assert_eq!(inner_pid(copy[0]), pid);
    let old = counts(before.last().unwrap());
    assert_eq!(old.len(), 9, "{old:?}");
    let works = || {
        let new = counts(log.lines().last().unwrap());
        old.iter().all(|(name, value)| new.get(name).is_some_and(|now| now > value))
    };
    let end = Instant::now() + LIMIT;
    while !works() {
        assert!(Instant::now() < end, "not every part of the copy works:\n{old:?}\n{:?}", log.lines().last());
        std::thread::sleep(Duration::from_millis(2));
    }
    let lines = log.lines();
    let bad: Vec<&String> = lines.iter().filter(|l| l.starts_with("BAD")).collect();
    assert!(bad.is_empty(), "{bad:#?}");
    let threads: usize = image.processes.iter().map(|p| p.threads.len()).sum();
    assert_eq!(threads, 9);
    drop(victim);
    drop(carrier);
}

#[test]
fn redis_keeps_its_data() {
    let dir = Scratch::dir("redis");
    let log = dir.0.join("log");
    let mut command = Command::new("bash");
    let close =
        "for fd in /proc/$$/fd/*; do n=${fd##*/}; [ $n -gt 2 ] && eval \"exec $n>&-\"; done; exec \"$@\"";
    command
        .args(["-c", close, "bash", "redis-server"])
        .args([
            "--port",
            "16399",
            "--save",
            "",
            "--daemonize",
            "no",
            "--enable-debug-command",
            "yes",
            "--logfile",
        ])
        .arg(&log);
    let victim = Victim::spawn(command.arg("--dir").arg(&dir.0));
    let client = |args: &[&str]| {
        let out = Command::new("redis-cli").args(["-p", "16399"]).args(args).output().unwrap();
        String::from_utf8(out.stdout).unwrap()
    };
    wait_until("redis answers", || client(&["ping"]) == "PONG\n");
    assert_eq!(client(&["debug", "populate", "100000", "key", "100"]), "OK\n");
    assert_eq!(client(&["set", "answer", "42"]), "OK\n");
    let digest = client(&["debug", "digest"]);
    let (carrier, _, times) = migrate(victim.pid());
    println!("{times:?} total {:?}", times.total());
    let inside = |args: &[&str]| {
        let pid = carrier.pid.to_string();
        let mut command = Command::new("nsenter");
        command.args(["-t", &pid, "-n", "redis-cli", "-p", "16399"]).args(args);
        String::from_utf8(command.output().unwrap().stdout).unwrap()
    };
    wait_until("the copy answers", || inside(&["ping"]) == "PONG\n");
    assert_eq!(inside(&["get", "answer"]), "42\n");
    assert_eq!(inside(&["debug", "digest"]), digest);
    assert_eq!(inside(&["incr", "answer"]), "43\n");
}

fn attributes(extra: &[&str]) {
    // Tests run beside each other in one process.
    let own = extra.concat();
    let (log, dir) =
        (Scratch::new(&format!("attributes-log{own}")), Scratch::dir(&format!("attributes{own}")));
    let victim = Victim::spawn(
        Command::new("setsid")
            .arg("python3")
            .arg(script("attributes.py"))
            .arg(&log.0)
            .arg(&dir.0)
            .args(extra),
    );
    wait_until("the program is ready", || log.lines().iter().any(|l| l.starts_with("ready")));
    let (carrier, _, times) = migrate(victim.pid());
    println!("{times:?} total {:?}", times.total());
    let copy = tasks::children(carrier.pid).unwrap()[0];
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(copy), nix::sys::signal::Signal::SIGUSR1).unwrap();
    wait_until("the copy has compared", || log.lines().iter().any(|l| l == "done"));
    let bad: Vec<String> = log.lines().into_iter().filter(|l| l.starts_with("BAD")).collect();
    assert!(bad.is_empty(), "{bad:#?}");
}

#[test]
fn every_attribute_is_what_it_was() {
    attributes(&[]);
}

#[test]
fn so_are_dropped_privileges_and_filters() {
    attributes(&["nobody"]);
}

#[test]
fn a_checkpoint_on_disk_is_restored_after_the_original_has_ended() {
    let (log, file) = (Scratch::new("checkpoint"), Scratch::new("checkpoint-file"));
    let victim = Victim::spawn(Command::new("python3").arg(script("selfcheck.py")).arg(&log.0));
    wait_until("the program works", || log.lines().len() > 5);
    let spec = host_tree(victim.pid());
    let mut source = Source::attach(&spec).unwrap();
    let to = io::BufWriter::new(fs::File::create(&file.0).unwrap());
    engine::checkpoint::save(&mut source, 1, to).unwrap();
    source.kill().unwrap();
    drop(victim);
    let before = log.lines();

    let (carrier, root) = Carrier::spawn();
    let mut target = Target::build(TargetOptions {
        root,
        netns: None,
        cgroup: None,
        nested: engine::target::NestedMounts::default(),
    })
    .unwrap();
    let from = io::BufReader::new(fs::File::open(&file.0).unwrap());
    engine::checkpoint::load(&mut target, &mut NoExternals, from).unwrap();
    target.ready().unwrap().resume().unwrap();
    wait_until("the copy works", || log.lines().len() > before.len() + 10);
    let bad: Vec<String> = log.lines().into_iter().filter(|l| l.starts_with("BAD")).collect();
    assert!(bad.is_empty(), "{bad:#?}");
    drop(carrier);
}

/// A program without the descriptors that the test runner leaves open.
fn clean(program: &str) -> Command {
    let close =
        "for fd in /proc/$$/fd/*; do n=${fd##*/}; [ $n -gt 2 ] && eval \"exec $n>&-\"; done; exec \"$@\"";
    let mut command = Command::new("bash");
    command.args(["-c", close, "bash", "setsid", program]);
    command
}

/// Runs a program in the network namespace of a carrier.
fn inside(carrier: &Carrier, program: &[&str]) -> String {
    let pid = carrier.pid.to_string();
    let output = Command::new("nsenter").args(["-t", &pid, "-n"]).args(program).output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn nginx_serves_on_with_all_its_workers() {
    let dir = Scratch::dir("nginx");
    let conf = dir.0.join("nginx.conf");
    let root = dir.0.display();
    let text = format!(
        "user root; daemon off; worker_processes 3; pid {root}/pid; error_log {root}/error.log;
         events {{ worker_connections 64; }}
         http {{ access_log {root}/access.log; client_body_temp_path {root}/a; proxy_temp_path {root}/b;
                fastcgi_temp_path {root}/c; uwsgi_temp_path {root}/d; scgi_temp_path {root}/e;
                limit_req_zone $binary_remote_addr zone=one:1m rate=1000r/s;
                server {{ listen 127.0.0.1:16380; location / {{ limit_req zone=one; return 200 \"it works\"; }} }} }}"
    );
    fs::write(&conf, text).unwrap();
    let victim = Victim::spawn(clean("nginx").arg("-c").arg(&conf));
    let url = "http://127.0.0.1:16380/";
    wait_until("nginx answers", || {
        Command::new("curl").args(["-s", url]).output().is_ok_and(|o| o.stdout == b"it works")
    });
    let (carrier, image, times) = migrate(victim.pid());
    println!("{times:?} total {:?}", times.total());
    assert_eq!(image.shape.processes.len(), 4);
    for _ in 0..20 {
        assert_eq!(inside(&carrier, &["curl", "-s", "-m", "5", url]), "it works");
    }
    // The master still commands its workers: a reload replaces them all.
    let master = tasks::children(carrier.pid).unwrap()[0];
    let old = tasks::children(master).unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(master), nix::sys::signal::Signal::SIGHUP).unwrap();
    wait_until("new workers", || {
        let new = tasks::children(master).unwrap();
        new.len() == 3 && new.iter().all(|pid| !old.contains(pid))
    });
    assert_eq!(inside(&carrier, &["curl", "-s", "-m", "5", url]), "it works");
}

#[test]
fn memcached_keeps_its_items() {
    let victim =
        Victim::spawn(clean("memcached").args(["-u", "root", "-l", "127.0.0.1", "-p", "16311", "-t", "4"]));
    let ask = r#"
import socket, sys
s = socket.create_connection(("127.0.0.1", 16311), 5)
s.sendall(sys.argv[1].encode().decode("unicode_escape").encode())
print(s.recv(1000).decode().split())"#;
    let set = |text: &str| Command::new("python3").args(["-c", ask, text]).output().unwrap().stdout;
    wait_until("memcached answers", || set("set a 0 0 5\\r\\nhello\\r\\n") == b"['STORED']\n");
    let (carrier, image, times) = migrate(victim.pid());
    println!("{times:?} total {:?}", times.total());
    assert!(image.processes[0].threads.len() >= 5);
    let answer = inside(&carrier, &["python3", "-c", ask, "get a\\r\\n"]);
    assert_eq!(answer, "['VALUE', 'a', '0', '5', 'hello', 'END']\n");
}
