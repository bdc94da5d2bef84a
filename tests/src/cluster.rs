//! Hosts for system tests: `migrate dev up` with a binary built with failpoints, and everything that a test
//! wants from it. Dropping a [`Cluster`] removes what it made.

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::Value;

use crate::client::Verdict;

/// Waits until `condition` answers something, looking every 20 ms.
///
/// # Errors
/// When it did not within `limit`; the text names `what`.
pub fn wait_for<T>(what: &str, limit: Duration, mut condition: impl FnMut() -> Option<T>) -> Result<T> {
    let start = Instant::now();
    loop {
        if let Some(value) = condition() {
            return Ok(value);
        }
        ensure!(start.elapsed() < limit, "waited {limit:?} in vain: {what}");
        std::thread::park_timeout(Duration::from_millis(20));
    }
}

/// The `migrate` binary with failpoints, built once by the cargo that runs the test.
///
/// # Errors
/// When it does not build.
pub fn binary() -> Result<&'static Path> {
    static BINARY: OnceLock<std::result::Result<PathBuf, String>> = OnceLock::new();
    BINARY
        .get_or_init(|| build().map_err(|error| format!("{error:#}")))
        .as_deref()
        .map_err(|error| anyhow::anyhow!("{error}"))
}

/// Names a binary that was built already: in a guest, where there is no cargo.
pub const BINARY: &str = "GANTRY_TEST_BINARY";
/// What a move may pause in an emulated machine.
pub(crate) const PATIENCE: &str = "20s";

/// The exit code when the coordinator cannot be reached.
const UNREACHABLE: i32 = 7;

fn in_guest() -> bool {
    std::env::var_os(BINARY).is_some()
}

fn build() -> Result<PathBuf> {
    if let Some(given) = std::env::var_os(BINARY) {
        return Ok(given.into());
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the workspace")?;
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let release = !cfg!(debug_assertions);
    let mut command = Command::new(cargo);
    command.current_dir(root).args(["build", "-q", "-p", "migrate", "--features", "failpoints"]);
    if release {
        command.arg("--release");
    }
    let status = command.status().context("cargo build")?;
    ensure!(status.success(), "the binary with failpoints does not build");
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    let built = target.join(if release { "release" } else { "debug" }).join("migrate");
    let own = target.join("system-tests");
    fs::create_dir_all(&own)?;
    let copy = own.join(format!("migrate-{}", std::process::id()));
    fs::copy(&built, &copy).with_context(|| format!("copy {}", built.display()))?;
    Ok(copy)
}

/// Runs a command of the CLI to its end.
///
/// # Errors
/// When it cannot be started.
pub(crate) fn run(command: &mut Command) -> Result<Finished> {
    let mut tries = if in_guest() { 10 } else { 1 };
    loop {
        let output = command.output()?;
        tries -= 1;
        let finished = Finished {
            code: output.status.code().unwrap_or(128),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        };
        // An emulated machine may be too slow for a handshake; nothing was asked then.
        if tries == 0 || finished.code != UNREACHABLE || !finished.stderr.contains("cannot connect") {
            return Ok(finished);
        }
    }
}

/// What a finished command left.
#[derive(Clone, Debug)]
pub struct Finished {
    /// Exit code; 128 + signal when killed.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Finished {
    /// The last line of standard output as JSON.
    ///
    /// # Errors
    /// When it is none.
    pub fn json(&self) -> Result<Value> {
        let line = self.stdout.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default();
        serde_json::from_str(line)
            .or_else(|_| serde_json::from_str(&self.stdout))
            .with_context(|| format!("no JSON in {self:?}"))
    }
}

/// Nodes `node-a`, `node-b` ..., a coordinator and a client host.
#[derive(Debug)]
pub struct Cluster {
    dir: PathBuf,
    env: Vec<(String, String)>,
    keep: bool,
    /// Where the disks of hosts that have one of their own are mounted.
    disks: Vec<PathBuf>,
}

impl Cluster {
    /// Brings up two nodes and waits until they are ready.
    ///
    /// # Errors
    /// When `dev up` fails; the logs stay where the message points.
    pub fn up() -> Result<Self> {
        Self::up_with(2, &[])
    }

    /// The same with so many nodes, and with options of `dev up`.
    ///
    /// # Errors
    /// As [`Cluster::up`].
    pub fn up_with(nodes: u32, options: &[&str]) -> Result<Self> {
        Self::new().bring_up(nodes, options)
    }

    /// Two nodes and a coordinator that each keep their files on a disk of their own, of so many MiB.
    ///
    /// # Errors
    /// As [`Cluster::up`]; and when a disk cannot be mounted.
    pub fn up_on_disks(mib: u32) -> Result<Self> {
        let mut cluster = Self::new();
        for host in ["coordinator", "node-a", "node-b"] {
            let at = cluster.host_dir(host);
            fs::create_dir_all(&at)?;
            let size = format!("size={mib}m");
            mount(Some("disk"), &at, Some("tmpfs"), MsFlags::empty(), Some(size.as_str()))
                .context("mount a disk")?;
            cluster.disks.push(at);
        }
        cluster.bring_up(2, &[])
    }

    fn new() -> Self {
        let dir = std::env::temp_dir().join(format!("gantry-test-{}-{}", std::process::id(), unique()));
        Self { dir, env: Vec::new(), keep: true, disks: Vec::new() }
    }

    fn bring_up(self, nodes: u32, options: &[&str]) -> Result<Self> {
        let mut cluster = self;
        let nodes = nodes.to_string();
        let args = [&["dev", "up", "--nodes", &nodes, "--dir", cluster.dir_str()], options].concat();
        let up = cluster.migrate(args)?;
        ensure!(up.code == 0, "dev up: {up:?}");
        let env = cluster.migrate(["dev", "env", "--dir", cluster.dir_str()])?;
        ensure!(env.code == 0, "dev env: {env:?}");
        for line in env.stdout.lines() {
            if let Some((name, value)) = line.trim().strip_prefix("export ").and_then(|l| l.split_once('=')) {
                cluster.env.push((name.to_owned(), value.trim_matches(['\'', '"']).to_owned()));
            }
        }
        ensure!(!cluster.env.is_empty(), "dev env printed nothing: {env:?}");
        Ok(cluster)
    }

    /// Its directory: state, logs, certificates.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The same as text.
    #[must_use]
    pub fn dir_str(&self) -> &str {
        self.dir.to_str().unwrap_or_default()
    }

    /// `migrate ARGS`, as it would be run.
    ///
    /// # Errors
    /// When the binary does not build.
    pub(crate) fn command<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Result<Command> {
        let mut command = Command::new(binary()?);
        command.args(args).envs(self.env.iter().map(|(name, value)| (name, value))).stdin(Stdio::null());
        Ok(command)
    }

    /// Runs `migrate ARGS` and waits for its end.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn migrate<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Result<Finished> {
        run(&mut self.command(args)?)
    }

    /// As [`Cluster::migrate`], and exit code 0 is expected.
    ///
    /// # Errors
    /// With what it printed, otherwise.
    pub fn must<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Result<Finished> {
        let args: Vec<_> = args.into_iter().map(|arg| arg.as_ref().to_owned()).collect();
        let finished = self.migrate(&args)?;
        ensure!(finished.code == 0, "migrate {args:?}: {finished:?}");
        Ok(finished)
    }

    /// Starts `migrate ARGS` without waiting.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Result<Background> {
        Background::spawn(&mut self.command(args)?)
    }

    /// Makes a bundle for container `name` that runs `command` and can write to the directories `rw`.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn make_bundle(&self, name: &str, rw: &[&str], command: &[&str]) -> Result<PathBuf> {
        let bundle = self.dir.join("bundles").join(name);
        let mut args = vec!["dev", "bundle", "--out", bundle.to_str().unwrap_or_default()];
        for path in rw {
            args.extend(["--rw", path]);
        }
        args.push("--");
        args.extend(command);
        self.must(args)?;
        Ok(bundle)
    }

    /// Makes a bundle that runs `command` and starts it as container `name` on `node`.
    ///
    /// # Errors
    /// When one of the two fails.
    pub fn run_container(
        &self,
        name: &str,
        node: &str,
        ip: &str,
        rw: &[&str],
        command: &[&str],
    ) -> Result<PathBuf> {
        let bundle = self.make_bundle(name, rw, command)?;
        self.start_bundle(name, node, ip, &bundle)?;
        Ok(bundle)
    }

    /// Starts a bundle.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start_bundle(&self, name: &str, node: &str, ip: &str, bundle: &Path) -> Result<()> {
        let bundle = bundle.to_str().unwrap_or_default();
        self.must(["run", name, "--node", node, "--bundle", bundle, "--ip", ip]).map(|_| ())
    }

    /// Moves a container and answers the Migration object; exit code 0 is expected.
    ///
    /// # Errors
    /// With what the command printed.
    pub fn move_to(&self, container: &str, node: &str) -> Result<Value> {
        let mut args = vec!["move", container, "--to", node, "-o", "json"];
        // A debug build pauses several times longer, longer still on a busy machine, and in an emulated one.
        if in_guest() {
            args.extend(["--max-downtime", PATIENCE]);
        } else if cfg!(debug_assertions) {
            args.extend(["--max-downtime", "2s"]);
        }
        self.must(args)?.json()
    }

    /// The same for what never stops writing: the pause may be long.
    ///
    /// # Errors
    /// As [`Cluster::move_to`].
    pub fn patient_move(&self, container: &str, node: &str) -> Result<Value> {
        let downtime = if in_guest() { PATIENCE } else { "3s" };
        self.must(["move", container, "--to", node, "--max-downtime", downtime, "-o", "json"])?.json()
    }

    /// The node where the container is, as the coordinator says.
    ///
    /// # Errors
    /// When it does not know.
    pub fn node_of(&self, container: &str) -> Result<String> {
        let object = self.must(["get", "containers", container, "-o", "json"])?.json()?;
        for path in ["/status/node", "/spec/node", "/items/0/status/node"] {
            if let Some(node) = object.pointer(path).and_then(Value::as_str) {
                return Ok(node.to_owned());
            }
        }
        bail!("no node in {object}")
    }

    /// Starts a checking client on the client host: this test's own binary with `__client ARGS`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn client(&self, args: &[&str]) -> Result<Background> {
        let own = std::env::current_exe()?;
        let mut all =
            vec!["dev", "exec", "--dir", self.dir_str(), "client", "--", own.to_str().unwrap_or_default()];
        all.push("__client");
        all.extend(args);
        self.start(all)
    }

    /// Starts another program on the client host that speaks as a client does.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn client_program(&self, args: &[&str]) -> Result<Background> {
        self.program_on("client", args)
    }

    /// The same on any host: `lan` is the one with the bridge between them.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn program_on(&self, host: &str, args: &[&str]) -> Result<Background> {
        let mut all = vec!["dev", "exec", "--dir", self.dir_str(), host, "--"];
        all.extend(args);
        self.start(all)
    }

    /// Runs a client to its end (those that end by themselves).
    ///
    /// # Errors
    /// When it fails.
    pub fn client_once(&self, args: &[&str]) -> Result<Verdict> {
        self.client(args)?.verdict()
    }

    /// Waits until something accepts TCP connections there, seen from the client host.
    ///
    /// # Errors
    /// When nothing does for half a minute.
    pub fn wait_for_port(&self, address: SocketAddr) -> Result<()> {
        let at = address.to_string();
        wait_for(&format!("{address} accepts"), Duration::from_secs(30), || {
            self.client_once(&["connect", &at]).ok()
        })
        .map(|_| ())
    }

    /// The test has passed: its logs are not needed any more.
    pub fn passed(mut self) {
        self.keep = false;
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if self.keep {
            // `dev down` removes the hosts' directory, and the logs with it.
            let logs = self.dir.with_extension("logs");
            let copied = Command::new("cp").arg("-r").arg(self.dir.join("hosts")).arg(&logs).status();
            if copied.is_ok_and(|status| status.success()) {
                eprintln!("the logs of all hosts are in {}", logs.display());
            }
        }
        for disk in &self.disks {
            let _ = umount2(disk, MntFlags::MNT_DETACH);
        }
        if let Ok(finished) = self.migrate(["dev", "down", "--dir", self.dir_str()])
            && finished.code != 0
        {
            eprintln!("dev down: {finished:?}");
        }
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// A command that runs beside the test. Killed when dropped.
#[derive(Debug)]
pub struct Background {
    child: Option<Child>,
    stdout: Option<BufReader<ChildStdout>>,
}

impl Background {
    /// Starts a command.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(command: &mut Command) -> Result<Self> {
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let stdout = child.stdout.take().map(BufReader::new);
        Ok(Self { child: Some(child), stdout })
    }

    /// Waits for the next line that it prints; empty at the end of its output.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.stdout.as_mut().context("its standard output")?.read_line(&mut line)?;
        Ok(line)
    }

    /// Asks a checking client whether all its connections are being answered, and waits for the answer.
    ///
    /// # Errors
    /// With what it saw, when one is not.
    pub fn progress(&mut self) -> Result<Verdict> {
        let stdin =
            self.child.as_mut().and_then(|child| child.stdin.as_mut()).context("its standard input")?;
        stdin.write_all(b"\n").context("ask the client")?;
        let line = self.line()?;
        let verdict: Verdict =
            serde_json::from_str(&line).with_context(|| format!("the client said {line:?}"))?;
        ensure!(verdict.errors.is_empty(), "the clients saw: {verdict:?}");
        Ok(verdict)
    }

    /// Whether it has ended.
    #[must_use]
    pub fn has_ended(&mut self) -> bool {
        self.child.as_mut().is_none_or(|child| child.try_wait().is_ok_and(|status| status.is_some()))
    }

    /// Closes its standard input, waits for its end and reads the verdict.
    ///
    /// # Errors
    /// When it ended badly, printed no verdict, or saw anything wrong.
    pub fn verdict(self) -> Result<Verdict> {
        let finished = self.finish()?;
        ensure!(finished.code == 0, "the client failed: {finished:?}");
        let verdict: Verdict = serde_json::from_value(finished.json()?)?;
        ensure!(verdict.errors.is_empty(), "the clients saw: {verdict:?}");
        Ok(verdict)
    }

    /// Closes its standard input and waits for its end.
    ///
    /// # Errors
    /// When it cannot be waited for.
    pub fn finish(mut self) -> Result<Finished> {
        let mut child = self.child.take().context("already finished")?;
        drop(child.stdin.take());
        let mut stderr = child.stderr.take();
        let errors = std::thread::spawn(move || {
            let mut text = String::new();
            if let Some(stderr) = &mut stderr {
                let _ = stderr.read_to_string(&mut text);
            }
            text
        });
        let mut stdout = String::new();
        if let Some(mut pipe) = self.stdout.take() {
            pipe.read_to_string(&mut stdout)?;
        }
        let code = child.wait()?.code().unwrap_or(128);
        Ok(Finished { code, stdout, stderr: errors.join().unwrap_or_default() })
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn unique() -> u32 {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}
