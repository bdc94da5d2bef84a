//! `node-agent checkpoint`, `restore` and `inspect` on real process trees. Needs root.

#![allow(clippy::unwrap_used, reason = "a failed step is the test's failure")]

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use common::wait_for;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

fn agent(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_node-agent")).args(args).stdin(Stdio::null()).output().unwrap()
}

#[track_caller]
fn well(output: &Output) {
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {error}", output.status);
}

/// Appends a number every few milliseconds, from a thread, and keeps 8 MiB that it checks before each.
const COUNTER: &str = "
import os, sys, threading, time
os.closerange(3, 1024) # whatever the tests were started with
memory = bytearray(i * 7 & 255 for i in range(1 << 23))
check = sum(memory)
out = open(sys.argv[1], 'a', buffering=1)
def count():
    n = 0
    while True:
        memory[n % len(memory)] ^= 1; memory[n % len(memory)] ^= 1
        if n % 50 == 0 and sum(memory) != check: out.write('damaged\\n')
        out.write('%d\\n' % n); n += 1; time.sleep(0.005)
t = threading.Thread(target=count); t.start(); t.join()
";

/// Kills the tree below a process when dropped.
struct Tree {
    child: Child,
    out: PathBuf,
}

impl Tree {
    fn start(mut command: Command, out: PathBuf) -> Self {
        let null = Stdio::null;
        let child = command.stdin(null()).stdout(null()).stderr(null()).spawn().unwrap();
        let tree = Self { child, out };
        wait_for("the first number", || !tree.lines().is_empty());
        tree
    }

    fn lines(&self) -> Vec<String> {
        fs::read_to_string(&self.out).unwrap_or_default().lines().map(str::to_owned).collect()
    }

    fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap()
    }

    /// Its numbers follow each other, without a gap and without damage.
    #[track_caller]
    fn assert_continuous(&self) {
        let lines = self.lines();
        let numbers: Vec<usize> =
            lines.iter().map(|line| line.parse().unwrap_or_else(|_| panic!("{line}"))).collect();
        assert_eq!(numbers, (0..numbers.len()).collect::<Vec<_>>());
    }

    fn grows(&self) {
        let before = self.lines().len();
        wait_for("it goes on", || self.lines().len() > before + 5);
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn end(pidfile: &Path) {
    let pid: i32 = fs::read_to_string(pidfile).unwrap().trim().parse().unwrap();
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
}

#[test]
fn a_tree_of_the_host_runs_on_from_a_directory() {
    let dir = tempfile::Builder::new().prefix("gantry-cp-").tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let mut command = Command::new("python3");
    command.arg("-c").arg(COUNTER).arg(at("numbers")).current_dir(dir.path());
    let mut tree = Tree::start(command, at("numbers"));
    let pid = tree.pid().to_string();
    let (first, second) = (at("first"), at("second"));

    // Once without ending it.
    well(&agent(&["checkpoint", "--pid", &pid, "--out", first.to_str().unwrap(), "--leave-running"]));
    tree.grows();
    tree.assert_continuous();
    let again = agent(&["checkpoint", "--pid", &pid, "--out", first.to_str().unwrap()]);
    assert!(!again.status.success() && String::from_utf8_lossy(&again.stderr).contains("not empty"));
    tree.grows();

    // And once with.
    well(&agent(&["checkpoint", "--pid", &pid, "--out", second.to_str().unwrap()]));
    assert!(tree.child.try_wait().unwrap().is_some(), "it is gone");
    let stood = tree.lines().len();
    let shown = agent(&["inspect", second.to_str().unwrap(), "-o", "json"]);
    let shown: serde_json::Value = serde_json::from_slice(&shown.stdout).unwrap();
    assert_eq!(
        (&shown["processes"][0]["pid"], &shown["processes"][0]["threads"]),
        (&tree.pid().into(), &2.into()),
        "{shown}"
    );
    assert!(shown["pages"].as_u64().unwrap() > 2048, "{shown}");

    let pidfile = at("pid");
    well(&agent(&[
        "restore",
        "--from",
        second.to_str().unwrap(),
        "--detach",
        "--pidfile",
        pidfile.to_str().unwrap(),
    ]));
    assert_eq!(fs::read_to_string(&pidfile).unwrap().trim(), pid);
    wait_for("it runs on", || tree.lines().len() > stood + 20);
    tree.assert_continuous();
    end(&pidfile);
}

#[test]
fn a_tree_in_namespaces_of_its_own_is_rebuilt() {
    let dir = tempfile::Builder::new().prefix("gantry-cp-").tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let script = format!(
        "mount -t tmpfs none /mnt; echo kept > /mnt/file; hostname inside; ip link set lo up; exec python3 -c \"$0\" {}",
        at("numbers").display()
    );
    let mut command = Command::new("unshare");
    command.args([
        "--pid",
        "--fork",
        "--mount-proc",
        "--uts",
        "--ipc",
        "--net",
        "sh",
        "-c",
        &script,
        COUNTER,
    ]);
    let mut tree = Tree::start(command, at("numbers"));
    let outer = tree.pid();
    let children = fs::read_to_string(format!("/proc/{outer}/task/{outer}/children")).unwrap();
    let root = children.trim().to_owned();
    let out = at("checkpoint");
    well(&agent(&["checkpoint", "--pid", &root, "--out", out.to_str().unwrap()]));
    wait_for("its end", || tree.child.try_wait().unwrap().is_some());
    let stood = tree.lines().len();

    let pidfile = at("pid");
    well(&agent(&[
        "restore",
        "--from",
        out.to_str().unwrap(),
        "--detach",
        "--pidfile",
        pidfile.to_str().unwrap(),
    ]));
    let pid = fs::read_to_string(&pidfile).unwrap().trim().to_owned();
    wait_for("it runs on", || tree.lines().len() > stood + 20);
    tree.assert_continuous();
    let read = |path: &str| fs::read_to_string(format!("/proc/{pid}/{path}")).unwrap();
    assert!(read("status").lines().any(|line| line.starts_with("NSpid:") && line.ends_with("\t1")));
    assert_eq!(read("root/mnt/file"), "kept\n");
    assert!(!Path::new("/mnt/file").exists());
    for ns in ["pid", "mnt", "uts", "ipc", "net"] {
        let of = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/{ns}")).unwrap();
        assert_ne!(of(&pid), of("self"), "{ns}");
    }
    let name = Command::new("nsenter").args(["-t", &pid, "-u", "hostname"]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&name.stdout), "inside\n");
    end(&pidfile);
}

#[test]
fn what_cannot_be_captured_is_refused_and_runs_on() {
    let dir = tempfile::Builder::new().prefix("gantry-cp-").tempdir().unwrap();
    let out = dir.path().join("out");
    let child = { Command::new("sleep") }.arg("1000").stdin(Stdio::null()).stdout(Stdio::null()).spawn();
    let mut child = child.unwrap();
    let pid = child.id().to_string();
    let traced = nix::sys::ptrace::seize(
        Pid::from_raw(i32::try_from(child.id()).unwrap()),
        nix::sys::ptrace::Options::empty(),
    );
    traced.unwrap();
    let refused = agent(&["checkpoint", "--pid", &pid, "--out", out.to_str().unwrap()]);
    assert_eq!(refused.status.code(), Some(3), "{}", String::from_utf8_lossy(&refused.stderr));
    assert!(
        String::from_utf8_lossy(&refused.stderr).contains("trace"),
        "{}",
        String::from_utf8_lossy(&refused.stderr)
    );
    assert!(child.try_wait().unwrap().is_none(), "it runs on");
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!agent(&["checkpoint", "--pid", "0x", "--out", "/x"]).status.success());
    assert!(!agent(&["restore", "--from", "/no/such"]).status.success());
    assert!(!agent(&["inspect", "/no/such"]).status.success());
}
