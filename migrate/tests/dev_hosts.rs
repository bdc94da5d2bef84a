//! `migrate dev`: the hosts work, survive their agents, and leave nothing behind.

#![forbid(unsafe_code)]

use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use libtest_mimic::{Arguments, Failed, Trial};
use serde_json::Value;

type Case = fn() -> Result<()>;

const LIMIT: Duration = Duration::from_secs(20);

fn main() -> ExitCode {
    let mut args = Arguments::from_args();
    // They share two processors with the hosts that they make.
    args.test_threads = Some(1);
    let root = nix::unistd::geteuid().is_root();
    let ci = std::env::var("CI").is_ok_and(|value| value == "true");
    let cases: [(&str, Case); 4] = [
        ("two_sets_side_by_side_work_and_leave_nothing", side_by_side),
        ("a_killed_agent_is_back_within_a_second", restart),
        ("an_up_that_was_killed_can_be_taken_down", killed_up),
        ("a_program_that_was_killed_takes_its_tied_hosts_along", killed_demo),
    ];
    let trials = cases
        .into_iter()
        .map(|(name, case)| match (root, ci) {
            (true, _) => {
                Trial::test(name, move || case().map_err(|error| Failed::from(format!("{error:?}"))))
            }
            (false, true) => Trial::test(name, || Err(Failed::from("skipped under CI: root is needed"))),
            (false, false) => {
                Trial::test(format!("{name} (root is needed)"), || Ok(())).with_ignored_flag(true)
            }
        })
        .collect();
    libtest_mimic::run(&args, trials).exit_code()
}

fn migrate(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_migrate"));
    command.args(args).stdin(Stdio::null());
    for name in
        ["MIGRATE_COORDINATOR", "MIGRATE_TLS_DIR", "MIGRATE_DEV_DIR", "MIGRATE_OUTPUT", "MIGRATE_CONFIG"]
    {
        command.env_remove(name);
    }
    command
}

fn must(command: &mut Command) -> Result<String> {
    let Output { status, stdout, stderr } = command.output()?;
    ensure!(status.success(), "{command:?}: {status}: {}", String::from_utf8_lossy(&stderr));
    Ok(String::from_utf8(stdout)?)
}

fn wait_for<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> Result<T> {
    let start = Instant::now();
    loop {
        if let Some(value) = condition() {
            return Ok(value);
        }
        ensure!(start.elapsed() < LIMIT, "waited {LIMIT:?} in vain: {what}");
        std::thread::park_timeout(Duration::from_millis(20));
    }
}

/// A directory for hosts. Dropping it takes them down.
struct Hosts {
    _parent: tempfile::TempDir,
    dir: PathBuf,
}

impl Hosts {
    fn new() -> Result<Self> {
        let parent = tempfile::Builder::new().prefix("gantry-dev-test-").tempdir()?;
        Ok(Self { dir: parent.path().join("hosts"), _parent: parent })
    }

    fn up() -> Result<Self> {
        let hosts = Self::new()?;
        must(&mut hosts.dev("up", &[]))?;
        Ok(hosts)
    }

    fn dev(&self, verb: &str, rest: &[&str]) -> Command {
        let mut command = migrate(&["dev", verb, "--dir"]);
        command.arg(&self.dir).args(rest);
        command
    }

    fn exec(&self, host: &str, script: &str) -> Result<String> {
        must(&mut self.dev("exec", &[host, "--", "sh", "-c", script]))
    }

    fn state(&self) -> Result<Value> {
        Ok(serde_json::from_slice(&fs::read(self.dir.join("dev.json"))?)?)
    }

    /// Runs `migrate` with the environment that `dev env` prints.
    fn with_env(&self, args: &[&str]) -> Result<String> {
        let mut command = migrate(args);
        for line in must(&mut self.dev("env", &[]))?.lines() {
            let (name, value) =
                line.strip_prefix("export ").and_then(|l| l.split_once('=')).context("dev env")?;
            command.env(name, value);
        }
        must(&mut command)
    }

    /// Takes the hosts down and checks that nothing of them is left.
    fn down(&self) -> Result<()> {
        let before = self.state()?;
        must(&mut self.dev("down", &[]))?;
        ensure!(!self.dir.exists(), "the directory is left");
        for pid in pids(&before) {
            ensure!(!alive(pid), "process {pid} is left");
        }
        let dir = self.dir.to_str().context("path")?;
        // A host that an `up` was making when it was killed is not recorded, and ends by itself.
        wait_for("no process is left", || programs_with(dir).is_empty().then_some(()))?;
        ensure!(!fs::read_to_string("/proc/self/mountinfo")?.contains(dir), "a mount is left");
        let id = before["id"].as_str().context("id")?;
        let groups = directories_named(Path::new("/sys/fs/cgroup"), &format!("gantry-dev-{id}-"), 5);
        ensure!(groups.is_empty(), "control groups are left: {groups:?}");
        Ok(())
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        if self.dir.exists()
            && let Err(error) = must(&mut self.dev("down", &[]))
        {
            eprintln!("{error:?}");
        }
    }
}

fn pids(state: &Value) -> Vec<u64> {
    let hosts = state["hosts"].as_array().into_iter().flatten().filter_map(|host| host[1]["pid"].as_u64());
    hosts.chain(state["forwarder"]["pid"].as_u64()).collect()
}

/// Whether a process runs; a zombie that nobody has waited for does not.
fn alive(pid: u64) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with('Z'))
}

fn programs_with(text: &str) -> Vec<String> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| fs::read_to_string(entry.path().join("cmdline")).ok())
        .filter(|command| command.contains(text))
        .collect()
}

fn directories_named(dir: &Path, prefix: &str, depth: usize) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let mut found = Vec::new();
    for path in entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir()) {
        if path.file_name().is_some_and(|own| own.to_string_lossy().starts_with(prefix)) {
            found.push(path);
        } else if depth > 1 {
            found.extend(directories_named(&path, prefix, depth - 1));
        }
    }
    found
}

/// Names of the network interfaces that the machine itself has.
fn interfaces() -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir("/sys/class/net")? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

fn side_by_side() -> Result<()> {
    let before = interfaces()?;
    let (one, other) = (Hosts::up()?, Hosts::up()?);
    ensure!(interfaces()? == before, "the machine's own network was touched");
    for hosts in [&one, &other] {
        let nodes: Value = serde_json::from_str(&hosts.with_env(&["get", "nodes", "-o", "json"])?)?;
        let items = nodes["items"].as_array().context("items")?;
        ensure!(items.len() == 2 && items.iter().all(|n| n["status"]["state"] == "Ready"), "{nodes}");
        // Namespaces of their own, joined by the LAN, which speaks IPv6 too.
        ensure!(hosts.exec("node-a", "hostname")?.trim() == "node-a");
        let processes = hosts.exec("node-a", "ls /proc")?;
        ensure!(processes.lines().filter(|name| name.parse::<u32>().is_ok()).count() < 10, "{processes}");
        ensure!(hosts.exec("node-b", "cat /proc/1/cmdline")?.contains("__supervise"));
    }
    // A server on a node of one set is reached from that set's client, by both families, and from nowhere else.
    let mut server = one
        .dev("exec", &["node-b", "--", env!("CARGO_BIN_EXE_migrate"), "__workload"])
        .args(["--memory-mib=8", "--listen=[::]:7000"])
        .stdout(Stdio::piped())
        .spawn()?;
    let mut ready = [0; 5];
    server.stdout.as_mut().context("stdout")?.read_exact(&mut ready)?;
    for address in ["10.77.0.12:7000", "[fd00:77::c]:7000"] {
        let mut client = one.dev("exec", &["client", "--", env!("CARGO_BIN_EXE_migrate"), "__client"]);
        let report =
            must(client.args([&format!("--connect={address}"), "--connections=2", "--duration=200ms"]))?;
        let report: Value = serde_json::from_str(report.lines().last().context("report")?)?;
        ensure!(report["requests_lost"] == 0 && report["pages_checked"] == 2048, "{report}");
    }
    let mut stranger = other.dev("exec", &["client", "--", env!("CARGO_BIN_EXE_migrate"), "__client"]);
    stranger.args(["--connect=10.77.0.12:7000", "--connect-timeout=0s", "--duration=1s"]);
    ensure!(!stranger.output()?.status.success(), "the two LANs are one");
    server.kill()?;
    server.wait()?;

    let exit = one.dev("exec", &["client", "--", "sh", "-c", "exit 9"]).status()?;
    ensure!(exit.code() == Some(9), "the exit code is the command's: {exit}");
    one.down()?;
    ensure!(other.with_env(&["get", "nodes", "-o", "name"])? == "node/node-a\nnode/node-b\n");
    other.down()?;
    ensure!(interfaces()? == before, "an interface is left");
    Ok(())
}

fn restart() -> Result<()> {
    let hosts = Hosts::up()?;
    let pidfile = hosts.dir.join("hosts/node-a/node-agent.pid");
    let first = fs::read_to_string(&pidfile)?;
    let start = Instant::now();
    hosts.exec("node-a", &format!("kill -9 {}", first.trim()))?;
    wait_for("the agent is started again", || fs::read_to_string(&pidfile).ok().filter(|pid| *pid != first))?;
    ensure!(start.elapsed() < Duration::from_millis(1500), "it took {:?}", start.elapsed());
    wait_for("the node is Ready again", || {
        let node = hosts.with_env(&["get", "nodes", "node-a", "-o", "json"]).ok()?;
        node.contains("\"Ready\"").then_some(())
    })?;
    hosts.down()
}

fn killed_up() -> Result<()> {
    let hosts = Hosts::new()?;
    let mut up = hosts.dev("up", &[]).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    wait_for("some hosts are recorded", || hosts.state().ok().filter(|state| pids(state).len() >= 3))?;
    up.kill()?;
    up.wait()?;
    hosts.down()
}

fn killed_demo() -> Result<()> {
    let parent = tempfile::Builder::new().prefix("gantry-demo-test-").tempdir()?;
    let mut demo = migrate(&["demo", "-o", "json"]);
    let mut demo = demo.env("TMPDIR", parent.path()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    let record = || {
        let entry = fs::read_dir(parent.path()).ok()?.flatten().next()?;
        let state = fs::read(entry.path().join("dev.json")).ok()?;
        let state: Value = serde_json::from_slice(&state).ok()?;
        state["coordinator"].is_string().then(|| (entry.path(), state))
    };
    let (dir, state) = wait_for("the demo's hosts are up", record)?;
    demo.kill()?;
    demo.wait()?;
    wait_for("the hosts have ended by themselves", || (!pids(&state).into_iter().any(alive)).then_some(()))?;
    // The files and control groups can still be taken down by name.
    let mut down = migrate(&["dev", "down", "--dir"]);
    must(down.arg(&dir))?;
    ensure!(!dir.join("dev.json").exists(), "the record is left");
    Ok(())
}
