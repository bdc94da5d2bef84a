//! `__supervise`: pid 1 of a host. Starts the host's programs, starts them again when they end, reaps orphans.
//!
//! Programs are its children; what they start (container shims) is not tied to them and becomes its child when
//! they die.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::Instant;

/// How long after its end a program is started again.
const RESTART: Duration = Duration::from_millis(200);
/// The same for a program that has lived for less than this: a broken one must not burn the processor.
const RESTART_SLOW: Duration = Duration::from_millis(900);

/// A program of a host.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Program {
    /// Its name: its files are `NAME.log`, `NAME.pid` and, if there is one, `NAME.env`.
    pub(crate) name: String,
    /// The command.
    pub(crate) argv: Vec<String>,
}

/// What a host is to run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Orders {
    /// Where the programs' files are, as the host sees it.
    pub(crate) dir: PathBuf,
    /// The programs.
    pub(crate) programs: Vec<Program>,
    /// End when standard input closes.
    pub(crate) lifeline: bool,
}

/// The program `__supervise`: reads its orders from standard input, then runs until SIGTERM or the end of its
/// lifeline. Everything else in the pid namespace ends with it.
pub(crate) fn run() -> Result<()> {
    mount_own_proc()?;
    println!("up");
    let mut line = String::new();
    if std::io::stdin().lock().read_line(&mut line).context("read the orders")? == 0 {
        return Ok(());
    }
    let orders: Orders = serde_json::from_str(&line).context("parse the orders")?;
    let null = File::options().read(true).write(true).open("/dev/null").context("open /dev/null")?;
    nix::unistd::dup2_stdout(&null)?;
    if !orders.lifeline {
        nix::unistd::dup2_stdin(&null)?;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(supervise(&orders))
}

/// /proc of the new pid namespace: only a process in it can mount it.
fn mount_own_proc() -> Result<()> {
    let none: Option<&str> = None;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("proc"), "/proc", Some("proc"), flags, none).context("mount /proc")
}

struct Supervisor<'a> {
    orders: &'a Orders,
    /// Running programs: index and start time by pid.
    running: HashMap<i32, (usize, Instant)>,
    /// When to start which program.
    due: Vec<(Instant, usize)>,
}

async fn supervise(orders: &Orders) -> Result<()> {
    let mut children = signal(SignalKind::child()).context("listen for SIGCHLD")?;
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let (ended, mut lifeline) = mpsc::channel::<()>(1);
    // Without a lifeline the sender stays here and never speaks.
    let _kept = if orders.lifeline {
        std::thread::spawn(move || {
            // Whatever ends the input ends the host.
            drop(std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink()));
            drop(ended);
        });
        None
    } else {
        Some(ended)
    };
    let now = Instant::now();
    let due = (0..orders.programs.len()).map(|index| (now, index)).collect();
    let mut supervisor = Supervisor { orders, running: HashMap::new(), due };
    loop {
        supervisor.start_due();
        supervisor.reap();
        let next = supervisor.due.iter().map(|(at, _)| *at).min();
        let next = next.unwrap_or_else(|| Instant::now() + Duration::from_secs(3600));
        tokio::select! {
            _ = children.recv() => {}
            _ = terminate.recv() => return Ok(()),
            _ = lifeline.recv() => return Ok(()),
            () = tokio::time::sleep_until(next) => {}
        }
    }
}

impl Supervisor<'_> {
    fn start_due(&mut self) {
        let now = Instant::now();
        let (due, later) = self.due.drain(..).partition(|(at, _)| *at <= now);
        self.due = later;
        let due: Vec<(Instant, usize)> = due;
        for (_, index) in due {
            let program = &self.orders.programs[index];
            match start(&self.orders.dir, program) {
                Ok(pid) => {
                    note(format_args!("{}: started as {pid}", program.name));
                    self.running.insert(pid, (index, now));
                }
                Err(error) => {
                    note(format_args!("{}: {error:#}", program.name));
                    self.due.push((now + RESTART_SLOW, index));
                }
            }
        }
    }

    /// Takes every ended child: programs are to be started again, orphans are forgotten.
    fn reap(&mut self) {
        loop {
            let status = match waitpid(None::<Pid>, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return,
                Err(Errno::EINTR) => continue,
                Err(error) => {
                    note(format_args!("wait: {error}"));
                    return;
                }
                Ok(status) => status,
            };
            let Some((index, since)) = status.pid().and_then(|pid| self.running.remove(&pid.as_raw())) else {
                continue;
            };
            let how = match status {
                WaitStatus::Exited(_, code) => format!("exited with {code}"),
                WaitStatus::Signaled(_, signal, _) => format!("was killed by {signal}"),
                other => format!("{other:?}"),
            };
            note(format_args!("{}: {how}", self.orders.programs[index].name));
            let wait = if since.elapsed() < RESTART_SLOW { RESTART_SLOW } else { RESTART };
            self.due.push((Instant::now() + wait, index));
        }
    }
}

/// Starts one program; its pid, in the host's pid namespace, is in `NAME.pid`. Lines `NAME=VALUE` of `NAME.env`
/// are put into its environment.
fn start(dir: &Path, program: &Program) -> Result<i32> {
    let file = |extension: &str| dir.join(format!("{}.{extension}", program.name));
    let log = OpenOptions::new().append(true).create(true).open(file("log")).context("open its log")?;
    let (command, args) = program.argv.split_first().context("it has no command")?;
    let environment = fs::read_to_string(file("env")).unwrap_or_default();
    // The parent never waits for this child by its handle: `reap` does.
    let child = Command::new(command)
        .args(args)
        .envs(environment.lines().filter_map(|line| line.split_once('=')))
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .with_context(|| format!("start {command}"))?;
    let pid = i32::try_from(child.id())?;
    let mut pidfile = File::create(file("pid")).context("write its pid")?;
    writeln!(pidfile, "{pid}").context("write its pid")?;
    Ok(pid)
}

/// A line for the supervisor's log. Programs are started again although their host's disk is full.
fn note(line: std::fmt::Arguments<'_>) {
    let _ = writeln!(std::io::stderr(), "{line}");
}
