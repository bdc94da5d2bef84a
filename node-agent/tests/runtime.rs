//! The embedded runtime on the real kernel: start, stop, logs, exec, limits, network, restart of the agent.
//! Needs root.

#![allow(clippy::unwrap_used, reason = "a failed step is the test's failure")]

mod common;

use std::fs;
use std::time::Duration;

use common::{Lan, Node, chain, request, unique, wait_for};
use node_agent::runtime::{ContainerName, RuntimeError, State};
use serde_json::json;

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn a_container_starts_logs_and_ends_with_its_status() {
    let node = Node::new(None);
    let bundle = node.bundle(&["sh", "-c", "echo hello from $$; echo oops >&2; hostname; exit 7"]);
    let name = node.run(&bundle);
    wait_for("the end", || node.runtime.get(&name).unwrap().exit_status.is_some());
    let status = node.runtime.get(&name).unwrap();
    assert_eq!((status.state, status.exit_status, status.pid), (State::Stopped, Some(7), None));
    assert_eq!(node.log(&name), format!("hello from 1\noops\n{name}\n"));
    node.runtime.delete(&name, false).unwrap();
    assert!(matches!(node.runtime.get(&name), Err(RuntimeError::NotFound(_))));
}

#[test]
fn inside_there_is_nothing_of_the_host() {
    let node = Node::new(None);
    let script = "ps -e -o pid= -o comm=; echo --; cat /proc/self/mountinfo | cut -d' ' -f5; echo --; \
        ls /dev; echo --; ls -l /proc/self/fd; echo --; cat /proc/self/cgroup; echo --; \
        echo x > /proc/sys/kernel/panic; grep -E 'Cap|NoNewPrivs|SigIgn|SigBlk' /proc/self/status; ip -o link";
    let name = node.run(&node.bundle(&["sh", "-c", script]));
    wait_for("the end", || node.runtime.get(&name).unwrap().exit_status.is_some());
    let log = node.log(&name);
    let parts: Vec<&str> = log.split("--\n").collect();
    let [processes, mounts, dev, fds, cgroup, status] = parts.as_slice() else { panic!("{log}") };
    assert_eq!(processes.lines().count(), 2, "sh and ps alone: {processes}");
    assert!(processes.contains("1 sh"), "{processes}");
    assert!(!mounts.contains("/work") && !mounts.contains("/tmp/gantry"), "{mounts}");
    for node in ["null", "zero", "full", "random", "urandom", "tty", "ptmx", "fd", "stdin"] {
        assert!(dev.lines().any(|line| line == node), "/dev/{node} in {dev}");
    }
    assert!(fds.contains("0 -> /dev/null"), "{fds}");
    // Standard streams and the directory that ls reads.
    assert_eq!(fds.lines().filter(|line| line.contains("->")).count(), 4, "{fds}");
    assert!(cgroup.lines().all(|line| line.ends_with(":/")), "its own groups are the roots: {cgroup}");
    assert!(status.contains("NoNewPrivs:\t1"), "{status}");
    assert!(status.contains("CapEff:\t00000000000024eb"), "{status}");
    // The real-time signals 32 and 33 belong to the C library of whoever started the tests.
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:\t")).unwrap();
    assert_eq!(u64::from_str_radix(ignored, 16).unwrap() & 0x7fff_ffff, 0, "{status}");
    assert!(status.contains("SigBlk:\t0000000000000000"), "{status}");
    assert!(log.contains("Read-only file system"), "{log}");
    assert!(!status.contains("eth0"), "{status}");
}

#[test]
fn stop_asks_first_and_kills_after_the_grace() {
    let node = Node::new(None);
    let polite =
        node.run(&node.bundle(&["sh", "-c", "trap 'exit 3' TERM; echo up; while :; do sleep 0.05; done"]));
    let deaf = node.run(&node.bundle(&["sh", "-c", "trap '' TERM; echo up; while :; do sleep 0.05; done"]));
    wait_for("both up", || node.log(&polite) == "up\n" && node.log(&deaf) == "up\n");
    let status = node.runtime.stop(&polite, Duration::from_secs(10)).unwrap();
    assert_eq!((status.state, status.exit_status), (State::Stopped, Some(3)));
    let status = node.runtime.stop(&deaf, Duration::from_millis(100)).unwrap();
    assert_eq!((status.state, status.exit_status), (State::Stopped, Some(137)));
    let running = node.run(&node.bundle(&["sleep", "1000"]));
    assert!(matches!(node.runtime.delete(&running, false), Err(RuntimeError::Running(_))));
    let cgroup = node.runtime.record(&running).unwrap().cgroup;
    node.runtime.delete(&running, true).unwrap();
    for group in &cgroup.groups {
        assert!(!group.path.exists(), "{}", group.path.display());
    }
    assert!(!node.runtime.state().container(&running).root().exists());
}

#[test]
fn a_restarted_agent_finds_containers_and_exit_statuses() {
    let node = Node::new(None);
    let name =
        node.run(&node.bundle(&["sh", "-c", "trap 'exit 5' TERM; echo up; while :; do sleep 0.05; done"]));
    let pid = node.runtime.get(&name).unwrap().pid;
    let again = node.reopened();
    let status = again.get(&name).unwrap();
    assert_eq!((status.state, status.pid), (State::Running, pid));
    wait_for("it is up", || node.log(&name) == "up\n");
    // The end comes while no agent looks.
    let pid = nix::unistd::Pid::from_raw(pid.unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    let third = node.reopened();
    wait_for("the exit status", || third.get(&name).unwrap().exit_status == Some(5));
}

#[test]
fn exec_runs_inside_with_the_containers_rights() {
    let node = Node::new(None);
    let name = node.run(&node.bundle(&["sleep", "1000"]));
    let output =
        node.exec(&name, &["sh", "-c", "hostname; grep CapEff /proc/self/status; echo err >&2; exit 9"]);
    assert_eq!(output.status.code(), Some(9), "{}", text(&output.stderr));
    assert_eq!(text(&output.stdout), format!("{name}\nCapEff:\t00000000000024eb\n"));
    assert_eq!(text(&output.stderr), "err\n");
    let output = node.exec(&name, &["sh", "-c", "kill -9 $$"]);
    assert_eq!(output.status.code(), Some(137));
    let output = node.exec(&name, &["no-such-program"]);
    assert_eq!(output.status.code(), Some(126));
    assert!(text(&output.stderr).contains("no-such-program"), "{}", text(&output.stderr));
    // Processes of the command are the container's: they go with it.
    let groups = node.exec(&name, &["cat", "/proc/self/cgroup"]);
    assert!(text(&groups.stdout).lines().all(|line| line.ends_with(":/")), "{}", text(&groups.stdout));
    node.runtime.stop(&name, Duration::ZERO).unwrap();
    assert!(matches!(node.runtime.exec(&name, &["true".to_owned()]), Err(RuntimeError::NotRunning(_))));
}

#[test]
fn limits_are_in_the_control_groups() {
    let node = Node::new(None);
    let bundle = node.bundle_with(&["sleep", "1000"], |config| {
        config["linux"]["resources"] = json!({
            "memory": {"limit": 67_108_864},
            "cpu": {"shares": 512, "quota": 50_000, "period": 100_000, "cpus": "0"},
            "pids": {"limit": 17}
        });
    });
    let name = node.run(&bundle);
    let cgroup = node.runtime.record(&name).unwrap().cgroup;
    let read = |controller: &str, file: &str| {
        let path = cgroup.controller(controller).unwrap_or_else(|| cgroup.unified().unwrap()).join(file);
        fs::read_to_string(path).unwrap().trim().to_owned()
    };
    if cgroup.controller("memory").is_some() {
        assert_eq!(read("memory", "memory.limit_in_bytes"), "67108864");
        assert_eq!(read("cpu", "cpu.shares"), "512");
        assert_eq!(read("cpu", "cpu.cfs_quota_us"), "50000");
    } else {
        assert_eq!(read("memory", "memory.max"), "67108864");
        assert_eq!(read("cpu", "cpu.max"), "50000 100000");
    }
    assert_eq!(read("pids", "pids.max"), "17");
    assert_eq!(read("cpuset", "cpuset.cpus"), "0");
    let pid = node.runtime.get(&name).unwrap().pid.unwrap();
    assert_eq!(cgroup.processes().unwrap(), [pid]);
}

/// Changes a configuration.
type Change = Box<dyn FnOnce(&mut serde_json::Value)>;

#[test]
fn what_cannot_be_done_is_refused_by_name_and_leaves_nothing() {
    let node = Node::new(None);
    let cases: [(&str, Change); 6] = [
        ("linux.mountLabel", Box::new(|c| c["linux"]["mountLabel"] = json!("label"))),
        (
            "RlimitNofile",
            Box::new(|c| {
                c["process"]["rlimits"] =
                    json!([{"type": "RLIMIT_NOFILE", "soft": 9_000_000_u64, "hard": 9_000_000_u64}])
            }),
        ),
        (
            "hugepageLimits",
            Box::new(|c| {
                c["linux"]["resources"] = json!({"hugepageLimits": [{"pageSize": "2MB", "limit": 0}]})
            }),
        ),
        (
            "frobnicate",
            Box::new(
                |c| c["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["frobnicate"], "action": "SCMP_ACT_ERRNO"}]}),
            ),
        ),
        (
            "/no/such/source",
            Box::new(|c| {
                c["mounts"].as_array_mut().unwrap().push(json!({"destination": "/x", "type": "bind", "source": "/no/such/source", "options": ["bind"]}))
            }),
        ),
        ("no-such-program", Box::new(|c| c["process"]["args"] = json!(["no-such-program"]))),
    ];
    for (word, change) in cases {
        let bundle = node.bundle_with(&["sleep", "1000"], change);
        let name = ContainerName::new(unique("c")).unwrap();
        let error = chain(&node.runtime.run(request(&name, &bundle)).unwrap_err());
        assert!(error.contains(word), "{word}: {error}");
        assert!(!node.runtime.state().container(&name).root().exists(), "{word}");
    }
    assert!(node.runtime.list().unwrap().is_empty());
}

#[test]
fn seccomp_and_user_apply() {
    let node = Node::new(None);
    let bundle = node.bundle_with(
        &["sh", "-c", "id -u; id -g; mkdir /tmp/x && echo made; grep Seccomp: /proc/self/status"],
        |config| {
            config["process"]["user"] = json!({"uid": 1234, "gid": 4321, "additionalGids": [77]});
            config["process"]["capabilities"] = json!({});
            config["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95}]});
        },
    );
    let name = node.run(&bundle);
    wait_for("the end", || node.runtime.get(&name).unwrap().exit_status.is_some());
    let log = node.log(&name);
    assert!(log.starts_with("1234\n4321\n"), "{log}");
    assert!(log.contains("Operation not supported") && !log.contains("made"), "{log}");
    assert!(log.contains("Seccomp:\t2"), "{log}");
}

/// Asks for a user namespace whose ids 0 to 65535 are the host's from 200000 on.
fn with_users(config: &mut serde_json::Value) {
    config["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "user"}));
    for key in ["uidMappings", "gidMappings"] {
        config["linux"][key] = json!([{"containerID": 0, "hostID": 200_000, "size": 65536}]);
    }
    config["process"]["capabilities"]["bounding"].as_array_mut().unwrap().push(json!("CAP_SYS_ADMIN"));
    for set in ["effective", "permitted"] {
        config["process"]["capabilities"][set].as_array_mut().unwrap().push(json!("CAP_SYS_ADMIN"));
    }
}

#[test]
fn a_user_namespace_is_made_and_joined() {
    let node = Node::new(None);
    let script = "id -u; id -g; cat /proc/self/uid_map /proc/self/gid_map /proc/self/setgroups | tr -s ' '; \
        grep Cap /proc/self/status; stat -c '%u:%g' / /tmp /dev/null; echo zero > /dev/null; \
        head -c 2 /dev/zero | wc -c; mkdir /made; chown 33:34 /made; mount -t tmpfs inner /tmp && echo mounted; \
        ls /sys/class/net; echo again >> /dev/stdout; mknod /x c 1 3; hostname other && hostname; echo end; sleep 1000";
    let bundle = node.bundle_with(&["sh", "-c", script], |config| {
        with_users(config);
        config["hostname"] = json!("named");
        config["linux"]["sysctl"] = json!({"kernel.domainname": "example", "net.ipv4.ip_forward": "1"});
        config["process"]["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "soft": 77, "hard": 99}]);
        config["process"]["oomScoreAdj"] = json!(5);
    });
    let rootfs = bundle.join("rootfs");
    // The mapped root can walk through no directory of the host that leads here.
    let closed = std::os::unix::fs::PermissionsExt::from_mode(0o700);
    fs::set_permissions(node.dir.path(), closed).unwrap();
    let name = ContainerName::new(unique("c")).unwrap();
    let error = chain(&node.runtime.run(request(&name, &bundle)).unwrap_err());
    assert!(error.contains("belongs to 0:0") && error.contains("200000:200000"), "{error}");
    std::os::unix::fs::chown(&rootfs, Some(200_000), Some(200_000)).unwrap();
    let name = node.run(&bundle);
    wait_for("the script", || node.log(&name).contains("end\n"));
    let log = node.log(&name);
    let pid = node.runtime.get(&name).unwrap().pid.unwrap();
    assert!(log.starts_with("0\n0\n 0 200000 65536\n 0 200000 65536\nallow\n"), "{log}");
    assert!(log.contains("CapEff:\t00000000002024eb\n"), "{log}");
    assert!(log.contains("\n0:0\n0:0\n65534:65534\n2\nmounted\nlo\nagain\n"), "{log}");
    assert!(log.contains("mknod") && log.contains("other\nend\n"), "{log}");

    // The host's side of it.
    let own = |kind| fs::read_link(format!("/proc/{kind}/ns/user")).unwrap();
    assert_ne!(own(pid.to_string()), own("self".to_owned()));
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    assert!(status.contains("Uid:\t200000\t200000\t200000\t200000"), "{status}");
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    assert!(limits.lines().any(|l| l.starts_with("Max open files") && l.contains("77 ")), "{limits}");
    assert_eq!(fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap(), "5\n");
    let made = std::os::unix::fs::MetadataExt::uid(&fs::metadata(rootfs.join("made")).unwrap());
    assert_eq!(made, 200_033);

    // A command joins it, as the container's user and no other.
    let ask = "id -u; id -g; readlink /proc/self/ns/user /proc/1/ns/user; touch /by-exec; grep CapEff /proc/self/status";
    let output = node.exec(&name, &["sh", "-c", ask]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let seen = text(&output.stdout);
    let lines: Vec<&str> = seen.lines().collect();
    assert_eq!(lines[..2], ["0", "0"], "{seen}");
    assert_eq!(lines[2], lines[3], "{seen}");
    assert!(seen.contains("CapEff:\t00000000002024eb"), "{seen}");
    let by_exec = fs::metadata(rootfs.join("by-exec")).unwrap();
    assert_eq!(std::os::unix::fs::MetadataExt::uid(&by_exec), 200_000);
    node.runtime.stop(&name, Duration::ZERO).unwrap();
}

#[test]
fn a_container_is_reached_through_the_bridge() {
    let lan = Lan::new();
    let node = Node::new(Some(lan.bridge.clone()));
    let bundle = node.bundle(&["python3", "-m", "http.server", "8000", "--directory", "/usr/share/doc"]);
    let name = ContainerName::new(unique("web")).unwrap();
    let mut request = request(&name, &bundle);
    request.ip = Some(format!("{}/24", lan.address(2)).parse().unwrap());
    let status = node.runtime.run(request).unwrap_or_else(|error| panic!("{}", chain(&error)));
    assert_eq!(status.ip, Some(format!("{}/24", lan.address(2))));
    let url = format!("http://{}:8000/", lan.address(2));
    let script = format!("import urllib.request as u; print(u.urlopen('{url}', timeout=2).status)");
    wait_for("an answer over the bridge", || {
        text(&lan.client(&["python3", "-c", &script]).stdout) == "200\n"
    });
    let seen = node.exec(&name, &["cat", "/sys/class/net/eth0/address"]);
    assert_eq!(text(&seen.stdout).trim(), status.mac);
    let link = node.runtime.record(&name).unwrap().link;
    assert!(std::path::Path::new("/sys/class/net").join(&link).exists());
    node.runtime.delete(&name, true).unwrap();
    assert!(!std::path::Path::new("/sys/class/net").join(link).exists());
}

#[test]
fn a_console_and_terminals_end_in_the_log() {
    let node = Node::new(None);
    let script = "tty; stty size; ps -o tty= -p 1; echo late >/dev/tty2; echo $(stat -c %F /dev/tty1); \
        sh -c 'echo orphan >/dev/tty1'; exit 4";
    let bundle = node.bundle_with(&["sh", "-c", script], |config| {
        config["process"]["terminal"] = json!(true);
        config["process"]["consoleSize"] = json!({"height": 31, "width": 97});
        config["annotations"] = json!({"dev.gantry.ttys": "2"});
    });
    let name = node.run(&bundle);
    wait_for("the end", || node.runtime.get(&name).unwrap().exit_status.is_some());
    assert_eq!(node.runtime.get(&name).unwrap().exit_status, Some(4));
    let log = node.log(&name);
    for line in ["/dev/console", "31 97", "pts/0", "late", "character special file", "orphan"] {
        assert!(log.lines().any(|l| l.trim_end() == line), "{line} in {log:?}");
    }
    node.runtime.delete(&name, false).unwrap();
    // Terminals without a console: the log gets the program's own output too.
    let bundle = node.bundle_with(&["sh", "-c", "echo out; echo tty >/dev/tty1"], |config| {
        config["annotations"] = json!({"dev.gantry.ttys": "1"});
    });
    let name = node.run(&bundle);
    wait_for("the end", || node.runtime.get(&name).unwrap().exit_status.is_some());
    let log = node.log(&name);
    assert!(log.contains("out\n") && log.contains("tty\r\n"), "{log:?}");
    let bundle = node.bundle_with(&["true"], |config| {
        config["annotations"] = json!({"dev.gantry.ttys": "many"});
    });
    let error = node.runtime.run(request(&ContainerName::new(unique("c")).unwrap(), &bundle)).unwrap_err();
    assert!(chain(&error).contains("dev.gantry.ttys"), "{}", chain(&error));
}
