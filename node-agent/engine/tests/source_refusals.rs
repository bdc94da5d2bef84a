//! What cannot be carried over is refused by name, before anything was touched.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod source_support;

use std::process::Command;
use std::time::{Duration, Instant};

use engine::source::{Source, SourceError, inspect};
use image::{Refusal, Subject};
use source_support::{Cgroup, Workload, tracer, traces, wait_until};

/// Runs python code that may set `fd` to a descriptor, and gives what is refused.
fn refusals(code: &str) -> (Workload, Vec<Refusal>, i32) {
    let program = format!(
        "import ctypes, fcntl, mmap, os, socket, sys, time\n\
         libc = ctypes.CDLL(None, use_errno=True); libc.syscall.restype = ctypes.c_long\n\
         fd = -1\n{code}\nprint('ready')\nprint(fd)\n\
         for line in sys.stdin: print('ok')\n"
    );
    let mut workload = Workload::python(&program);
    let fd = workload.line().parse().unwrap();
    let spec = workload.spec();
    let before = traces(workload.pid());
    let refusals = inspect(&spec).unwrap().refusals;
    if !refusals.is_empty() {
        match Source::attach(&spec) {
            Err(SourceError::Refused(list)) => assert_eq!(list, refusals),
            other => panic!("attached all the same: {other:?}"),
        }
    }
    assert_eq!(traces(workload.pid()), before, "it was touched");
    assert_eq!(tracer(workload.pid()), 0);
    assert_eq!(workload.ask(""), "ok");
    (workload, refusals, fd)
}

/// The code must be refused for its descriptor, with this in the reason.
fn refuses_fd(code: &str, reason: &str) {
    let (workload, refusals, fd) = refusals(code);
    assert!(fd >= 0, "the program could not make it: {code}");
    let found =
        refusals.iter().find(|refusal| refusal.subject == Subject::Fd(fd) && refusal.reason.contains(reason));
    let found = found.unwrap_or_else(|| panic!("{reason}: {refusals:#?}"));
    assert_eq!(found.pid, workload.pid());
    assert!(!found.way_out.is_empty());
}

#[test]
fn kernel_objects() {
    refuses_fd("params = ctypes.create_string_buffer(120)\nfd = libc.syscall(425, 4, params)", "io_uring");
    refuses_fd("fd = libc.syscall(323, 1)", "userfaultfd");
    refuses_fd("fd = libc.fanotify_init(0, 0)", "fanotify");
    refuses_fd(
        "fd = libc.inotify_init(); open('/tmp/gone', 'w'); f = open('/tmp/gone')\n\
         libc.inotify_add_watch(fd, b'/tmp/gone', 2); os.remove('/tmp/gone')",
        "has no path in the container",
    );
    // Its master is with a process that has left the tree.
    refuses_fd(
        "m, fd = os.openpty()\n\
         if os.fork() == 0:\n\
         \x20   if os.fork() == 0:\n\
         \x20       for n in (0, 1, 2, fd): os.close(n)\n\
         \x20       time.sleep(5)\n\
         \x20   os._exit(0)\n\
         os.wait(); os.close(m)",
        "terminal whose master is outside",
    );
    refuses_fd(
        "open('/tmp/gone2', 'w'); fd = os.open('/tmp/gone2', 0o10000000); os.remove('/tmp/gone2')",
        "O_PATH",
    );
    refuses_fd("fd = os.open('/proc/self/ns/net', 0)", "cannot move");
}

#[test]
fn kinds_of_sockets() {
    refuses_fd("s = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 16); fd = s.fileno()", "netlink");
    refuses_fd("s = socket.socket(socket.AF_PACKET, 10, 3); fd = s.fileno()", "SOCK_PACKET");
    // r0 = 0; exit
    refuses_fd(
        "s = socket.socket(); fd = s.fileno()\n\
         import struct\n\
         code = ctypes.create_string_buffer(struct.pack('=BBhiBBhi', 0xb7, 0, 0, 0, 0x95, 0, 0, 0))\n\
         gpl = ctypes.create_string_buffer(b'GPL')\n\
         what = struct.pack('=IIQQ', 1, 2, ctypes.addressof(code), ctypes.addressof(gpl)) + bytes(48)\n\
         s.setsockopt(1, 50, libc.syscall(321, 5, what, len(what)))",
        "eBPF",
    );
}

/// No reason to refuse beforehand: most programs accept in the next millisecond.
#[test]
fn a_connection_not_accepted_at_the_freeze() {
    let code = "l = socket.socket(); l.bind(('127.0.0.1', 0)); l.listen(3); fd = l.fileno()\n\
        c = socket.create_connection(l.getsockname())";
    let (mut workload, refused, fd) = refusals(code);
    assert_eq!(refused, []);
    let mut source = Source::attach(&workload.spec()).unwrap();
    match source.freeze() {
        Err(error @ SourceError::Refused(_)) => {
            assert!(error.is_transient());
            let SourceError::Refused(list) = error else { unreachable!() };
            assert_eq!(list[0].subject, Subject::Fd(fd));
            assert!(list[0].reason.contains("wait to be accepted"), "{list:?}");
        }
        other => panic!("{other:?}"),
    }
    source.abort().unwrap();
    assert_eq!(workload.ask(""), "ok");
}

#[test]
fn locks_and_outside_ends() {
    refuses_fd(
        "import tempfile\nf = tempfile.NamedTemporaryFile(); fd = f.fileno(); fcntl.fcntl(fd, 1024, 1)",
        "lease",
    );
    // A child outside of the tree that the test looks at.
    let code = "import subprocess\n\
        a, b = socket.socketpair(); r, w = os.pipe()\n\
        if os.fork() != 0:\n    b.close(); os.close(w); mine = True\n\
        else:\n    libc.prctl(1, 9); a.close(); os.close(r); mine = False\n\
        if not mine:\n    time.sleep(1000)\n\
        fd = r";
    let (workload, refusals, _) = refusals(code);
    // The child holds both other ends, and is in the tree.
    assert_eq!(refusals, []);
    let child = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", workload.pid())).unwrap();
    let mut spec = workload.spec();
    spec.root = child.trim().parse().unwrap();
    let refusals = inspect(&spec).unwrap().refusals;
    let reasons: Vec<&str> = refusals.iter().map(|refusal| refusal.reason.as_str()).collect();
    assert_eq!(
        reasons,
        [
            "pipe whose reading end is outside of the container",
            "unix socket whose peer is outside of the container"
        ],
        "{refusals:#?}"
    );
    kill(spec.root);
}

fn kill(pid: i32) {
    let pidfd = sys::pidfd::open(pid).unwrap();
    sys::pidfd::send_signal(std::os::fd::AsFd::as_fd(&pidfd), 9).unwrap();
}

#[test]
fn memory_of_the_kernel() {
    let (_workload, refusals, _) = refusals(
        "libc.shmat.restype = ctypes.c_void_p\n\
         i = libc.shmget(0, 8192, 0o1600); p = libc.shmat(i, None, 0); libc.shmctl(i, 0, None)",
    );
    assert_eq!(refusals.len(), 1, "{refusals:#?}");
    assert!(matches!(refusals[0].subject, Subject::Address(_)));
    assert!(refusals[0].reason.contains("System V"));
}

/// Python code that gives the program an IPC and a network namespace of its own, with loopback up.
const OWN: &str = "assert libc.unshare(0x48000000) == 0\n\
    import struct\n\
    s = socket.socket(); fcntl.ioctl(s, 0x8914, struct.pack('16sH14x', b'lo', 0x49)); s.close()\n";

fn container_reasons(code: &str) -> Vec<String> {
    let (_workload, refusals, _) = refusals(&format!("{OWN}{code}"));
    assert!(refusals.iter().all(|refusal| !refusal.way_out.is_empty()));
    let container = refusals.into_iter().filter(|refusal| refusal.subject == Subject::Container);
    // What else is found is that the namespaces are not this process's.
    container.map(|refusal| refusal.reason).filter(|reason| !reason.contains("given as a tree")).collect()
}

#[test]
fn what_lives_in_the_ipc_namespace() {
    assert_eq!(container_reasons(""), Vec::<String>::new());
    let made = "assert libc.shmget(77, 8192, 0o1600) >= 0\n\
        q = libc.msgget(79, 0o1600); assert libc.msgsnd(q, struct.pack('q5s', 1, b'hello'), 5, 0) == 0\n\
        q = libc.semget(78, 3, 0o1600); assert libc.semop(q, struct.pack('Hhh', 0, 1, 0), 1) == 0\n";
    assert_eq!(container_reasons(made), Vec::<String>::new());
    let made = "for name in b'empty', b'full': q = libc.syscall(240, name, 0o102, 0o600, None); assert q >= 0\n\
        assert libc.syscall(242, q, b'x', 1, 0, None) == 0; os.closerange(q - 1, q + 1)";
    let reasons = container_reasons(made);
    let all = ["POSIX message queue /full: 1 messages wait"];
    assert_eq!(reasons.len(), all.len(), "{reasons:#?}");
    for (reason, want) in reasons.iter().zip(all) {
        assert!(reason.starts_with(want), "{reason}");
    }
}

/// In the namespace of the host only what the tree made is its own.
#[test]
fn a_forgotten_segment_of_the_host() {
    let (_workload, refused, id) = refusals("fd = libc.shmget(0, 8192, 0o1600)");
    let found =
        refused.iter().any(|refusal| refusal.reason.starts_with(&format!("System V shared memory {id} ")));
    let (_other, others, _) = refusals("");
    Command::new("ipcrm").args(["-m", &id.to_string()]).status().unwrap();
    assert!(found, "{refused:#?}");
    assert_eq!(others, []);
}

#[test]
fn multicast_memberships() {
    // A member that moves is no reason.
    let member = "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n\
        s.setsockopt(0, 35, socket.inet_aton('239.1.2.3') + socket.inet_aton('127.0.0.1'))\n\
        s = [s, socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)]\n\
        s[1].setsockopt(41, 20, socket.inet_pton(socket.AF_INET6, 'ff15::7') + (1).to_bytes(4, 'little'))";
    assert_eq!(container_reasons(member), Vec::<String>::new());
    // Joined by somebody outside of the tree, in the container's namespace.
    let code = "if os.fork() == 0:\n    libc.prctl(1, 9); time.sleep(1000)\n\
        s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n\
        s.setsockopt(0, 35, socket.inet_aton('239.1.2.3') + socket.inet_aton('127.0.0.1'))";
    let (workload, _, _) = refusals(&format!("{OWN}{code}"));
    let child = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", workload.pid())).unwrap();
    let mut spec = workload.spec();
    spec.root = child.trim().parse().unwrap();
    let refused = inspect(&spec).unwrap().refusals;
    let group = "interface lo is in the multicast group 239.1.2.3";
    assert!(refused.iter().any(|refusal| refusal.reason.starts_with(group)), "{refused:#?}");
}

/// Only the program itself can be asked: at the first stop, which leaves nothing behind.
#[test]
fn keys_of_the_kernel() {
    let refused = |code: &str| {
        let (workload, refused, _) = refusals(code);
        assert_eq!(refused, []);
        let before = traces(workload.pid());
        let source = Source::attach(&workload.spec());
        let list = match source {
            Err(SourceError::Refused(list)) => list,
            Ok(source) => {
                drop(source);
                Vec::new()
            }
            Err(error) => panic!("{error:?}"),
        };
        assert_eq!(traces(workload.pid()), before, "something was left in it");
        assert_eq!(tracer(workload.pid()), 0);
        list.into_iter().map(|refusal| refusal.reason).collect::<Vec<_>>()
    };
    let keys = |code: &str| format!("keyctl = lambda *a: libc.syscall(250, *a)\n{code}");
    let add =
        |ring: i32| keys(&format!("assert libc.syscall(248, b'user', b'gantry-test', b'x', 1, {ring}) > 0"));
    assert_eq!(refused(""), [] as [String; 0]);
    assert!(refused(&add(-1))[0].contains("thread keyring"));
    assert!(refused(&add(-2))[0].contains("process keyring"));
    let joined = keys("assert keyctl(1, None) > 0");
    assert_eq!(refused(&joined), [] as [String; 0]);
    let with_key = format!("{joined}\nassert libc.syscall(248, b'user', b'gantry-test', b'x', 1, -3) > 0");
    assert!(refused(&with_key)[0].contains("session keyring"));
}

/// What was added later is found in the freeze.
#[test]
fn keys_added_after_the_first_stop() {
    let code = "import ctypes, sys\nlibc = ctypes.CDLL(None)\nprint('ready')\n\
        for line in sys.stdin:\n    print(libc.syscall(248, b'user', b'gantry-test', b'x', 1, -1) > 0)";
    let mut workload = Workload::python(code);
    let mut source = Source::attach(&workload.spec()).unwrap();
    assert_eq!(workload.ask(""), "True");
    source.freeze().unwrap();
    match source.capture() {
        Err(SourceError::Refused(list)) => assert!(list[0].reason.contains("thread keyring"), "{list:?}"),
        other => panic!("{other:?}"),
    }
    source.abort().unwrap();
    assert_eq!(workload.ask(""), "True");
}

#[test]
fn memory_policies() {
    if !std::path::Path::new("/proc/self/numa_maps").exists() {
        return;
    }
    let bound = |kind: &str| {
        let (workload, refused, _) = refusals(&format!(
            "m = mmap.mmap(-1, 8192, flags=mmap.MAP_ANONYMOUS | mmap.{kind})\n\
             at = ctypes.addressof(ctypes.c_char.from_buffer(m)) & ~4095; nodes = ctypes.c_ulong(1)\n\
             assert libc.syscall(237, ctypes.c_void_p(at), 8192, 2, ctypes.byref(nodes), 64, 0) == 0",
        ));
        (inspect(&workload.spec()).unwrap().needs.nodes, refused)
    };
    assert_eq!(bound("MAP_PRIVATE"), (vec![0], vec![]));
    let (nodes, refused) = bound("MAP_SHARED");
    assert_eq!((nodes, refused.len()), (vec![0], 1), "{refused:#?}");
    assert!(matches!(refused[0].subject, Subject::Address(_)));
    assert!(refused[0].reason.contains("shared memory with a NUMA policy"), "{refused:#?}");
}

#[test]
fn what_a_target_must_give() {
    let workload = Workload::python("print('ready')\ninput()");
    let needs = inspect(&workload.spec()).unwrap().needs;
    assert!(!needs.posix_timers);
    let own: Vec<u64> = (0..16).map(|resource| sys::prctl::rlimit(0, resource).unwrap().hard).collect();
    assert_eq!(needs.hard_limits, own);
    let program = "import ctypes, resource\n\
        libc = ctypes.CDLL(None)\n\
        assert libc.syscall(222, 1, None, ctypes.byref(ctypes.c_int())) == 0\n\
        resource.setrlimit(resource.RLIMIT_CORE, (0, 4096))\n\
        open('/proc/self/oom_score_adj', 'w').write('321')\n\
        print('ready')\ninput()";
    let workload = Workload::python(program);
    let needs = inspect(&workload.spec()).unwrap().needs;
    assert!(needs.posix_timers);
    assert_eq!(needs.hard_limits[4], 4096);
    assert_eq!(needs.oom_score_adj, 321);
}

#[test]
fn an_aio_context() {
    let (_workload, refusals, _) =
        refusals("ctx = ctypes.c_ulong(0)\nassert libc.syscall(206, 8, ctypes.byref(ctx)) == 0");
    assert!(refusals.iter().any(|refusal| refusal.reason.contains("asynchronous I/O")), "{refusals:#?}");
}

#[test]
fn namespaces_and_tracers() {
    let (_workload, refusals, _) = refusals(
        "if os.fork() == 0:\n    libc.prctl(1, 9)\n    assert libc.unshare(0x40000000) == 0\n    time.sleep(1000)\ntime.sleep(.2)",
    );
    assert!(refusals.iter().any(|refusal| refusal.reason.contains("another net namespace")), "{refusals:#?}");
    let workload = Workload::python("print('ready')\ninput()");
    let tracee = sys::ptrace::Running::seize(workload.pid(), sys::ptrace::Options::NONE).unwrap();
    let refusals = inspect(&workload.spec()).unwrap().refusals;
    assert_eq!(refusals.len(), 1, "{refusals:#?}");
    assert!(refusals[0].reason.contains("being traced"));
    drop(tracee);
    wait_until(|| tracer(workload.pid()) == 0);
    assert_eq!(inspect(&workload.spec()).unwrap().refusals, []);
}

/// What cannot leave its namespaces is not looked at again, but for the one way that takes no capability.
#[test]
fn a_user_namespace_made_after_the_first_look() {
    let code = "import ctypes, os, sys, time\nlibc = ctypes.CDLL(None)\n\
        (r, w), (answers, answer) = os.pipe(), os.pipe()\n\
        if os.fork() == 0:\n    libc.prctl(24, 21, 0, 0, 0); os.setgid(65534); os.setuid(65534); libc.prctl(1, 9)\n\
        \x20   os.write(answer, b'x'); os.read(r, 1)\n\
        \x20   left = libc.unshare(0x40000000) == 0, libc.unshare(0x10000000) == 0, libc.unshare(0x40000000) == 0\n\
        \x20   os.write(answer, b'%d%d%d' % left); time.sleep(1000)\n\
        os.read(answers, 1)\nprint('ready')\n\
        for line in sys.stdin:\n    os.write(w, b'x'); print(os.read(answers, 3).decode())";
    let mut workload = Workload::python(code);
    let mut source = Source::attach(&workload.spec()).unwrap();
    source.shape().unwrap();
    assert_eq!(workload.ask(""), "011", "no network namespace before the user namespace");
    match source.freeze() {
        Err(SourceError::Refused(list)) => {
            let found = |name: &str| list.iter().any(|refusal| refusal.reason.contains(name));
            assert!(found("another user namespace") && found("another net namespace"), "{list:?}");
        }
        other => panic!("{other:?}"),
    }
    source.abort().unwrap();
}

#[test]
fn cgroups() {
    let cgroup = Cgroup::new("refusals");
    let workload = Workload::python("print('ready')\ninput()");
    let stranger = Workload::python("print('ready')\ninput()");
    let mut spec = workload.spec();
    spec.cgroup = Some(cgroup.0.clone());
    let reasons = |spec| -> Vec<String> {
        let refusals = inspect(spec).unwrap().refusals;
        refusals.into_iter().map(|refusal| refusal.reason).collect()
    };
    assert_eq!(reasons(&spec), ["it is not in the container's cgroup"]);
    cgroup.add(workload.pid());
    assert!(reasons(&spec).is_empty());
    cgroup.add(stranger.pid());
    assert!(reasons(&spec)[0].contains("came from outside"));
    drop(stranger);
    std::fs::write(cgroup.0.join("cgroup.freeze"), "1").unwrap();
    assert_eq!(reasons(&spec), ["it is frozen already"]);
}

/// Its processes come and go between the looks at the tree and at the control group.
#[test]
fn a_tree_that_forks_all_the_time_is_not_refused() {
    let cgroup = Cgroup::new("forks");
    let mut workload = Workload::python(
        "import os\nprint('ready')\ninput()\nfor _ in range(3):\n    if os.fork() == 0: break\n\
         print('ready', flush=True)\nwhile True:\n    if os.fork() == 0:\n        if os.fork(): os.wait()\n        os._exit(0)\n    os.wait()",
    );
    cgroup.add(workload.pid());
    let mut spec = workload.spec();
    spec.cgroup = Some(cgroup.0.clone());
    workload.ask("");
    let (mut looks, began) = (0, Instant::now());
    while began.elapsed() < Duration::from_secs(3) {
        let reasons: Vec<String> =
            inspect(&spec).unwrap().refusals.into_iter().map(|refusal| refusal.reason).collect();
        assert!(reasons.is_empty(), "look {looks}: {reasons:?}");
        looks += 1;
    }
    assert!(looks > 3, "{looks}");
}

#[test]
fn a_process_that_is_not_there() {
    let workload = Workload::python("print('ready')\ninput()");
    let mut spec = workload.spec();
    drop(workload);
    spec.root = i32::MAX - 1;
    assert!(matches!(inspect(&spec), Err(engine::source::InspectError::NoSuchProcess { .. })));
}

#[test]
fn users_that_are_not_mapped_and_nested_user_namespaces() {
    let program = "import ctypes, os, signal, sys\n\
        libc = ctypes.CDLL(None, use_errno=True)\n\
        assert libc.unshare(0x10000000) == 0\n\
        print('ready')\n\
        for line in sys.stdin:\n    exec(line)\n    print('ok')\n";
    let mut workload = Workload::python(program);
    let pid = workload.pid();
    for file in ["gid_map", "uid_map"] {
        std::fs::write(format!("/proc/{pid}/{file}"), "0 100000 1000\n").unwrap();
    }
    let spec = engine::source::TreeSpec { namespaces: engine::source::Namespaces::Own, ..workload.spec() };
    let reasons = || -> Vec<String> {
        inspect(&spec).unwrap().refusals.into_iter().map(|refusal| refusal.reason).collect()
    };
    let found = reasons();
    assert!(found.iter().any(|reason| reason.contains("user 0 (host numbering) is not mapped")), "{found:?}");
    let become_root = "os.setgroups([7]); os.setresgid(0, 0, 5); os.setresuid(0, 0, 6)";
    assert_eq!(workload.ask(become_root), "ok");
    assert_eq!(reasons(), [""; 0]);

    let nest = "r, w = os.pipe()\\nif os.fork() == 0:\\n    libc.unshare(0x10000000)\\n    os.write(w, b'x')\\n    \
        signal.pause()\\nos.read(r, 1)";
    assert_eq!(workload.ask(&format!("exec(\"{nest}\")")), "ok");
    let found = reasons();
    assert!(found.iter().any(|reason| reason.contains("another user namespace")), "{found:?}");
    let child = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(child.trim().parse().unwrap()),
        nix::sys::signal::Signal::SIGKILL,
    )
    .unwrap();
    assert_eq!(workload.ask("os.wait()"), "ok");
    assert_eq!(reasons(), [""; 0]);
}

/// What is to be undone shows nowhere, only that there is a list of it.
#[test]
fn semaphores_that_are_to_be_undone() {
    let undo =
        "q = libc.semget(78, 3, 0o1600); assert libc.semop(q, struct.pack('HhH', 0, 1, 0x1000), 1) == 0";
    let (_workload, refused, _) = refusals(&format!("{OWN}{undo}"));
    assert!(refused.iter().any(|refusal| refusal.reason.contains("SEM_UNDO")), "{refused:#?}");
}
