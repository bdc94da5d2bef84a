//! CRIU beside a move: the same program under the same clients, dumped and restored by `criu`, and moved between two
//! hosts, in one run of one machine.
//!
//! CRIU has the easier part: its program is no container, the images stay in a tmpfs of the machine that restores
//! it, and nothing crosses a network.

use std::fmt;
use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::cases::stops;
use crate::bench::report::Spread;
use crate::bench::start::{Heard, own_report};
use crate::client::unix_ms;
use crate::cluster::{self, Background, Cluster};
use crate::stage::NODES;

/// The case's name.
pub const NAME: &str = "criu";
/// The program that it compares with.
pub(super) const PROGRAM: &str = "criu";
/// What is paused.
const LOADS: [Load; 5] = [
    Load { mib: 16, rate: 0, huge: true },
    Load { mib: 64, rate: 0, huge: true },
    Load { mib: 256, rate: 0, huge: true },
    Load { mib: 64, rate: 1, huge: true },
    Load { mib: 64, rate: 1, huge: false },
];
/// Whether the kernel makes huge pages by itself.
const HUGE_PAGES: &str = "/sys/kernel/mm/transparent_hugepage/enabled";
/// Pauses of each program in each way.
const TURNS: usize = 3;
/// How long the clients talk before each pause.
const BEFORE: Duration = Duration::from_secs(1);
/// Longest time for a process to go.
const GOING: Duration = Duration::from_secs(30);
/// Memory that is used once before anything is measured, MiB.
const TOUCHED: u32 = 1200;
/// Where images are: a tmpfs.
const IMAGES: &str = "/images";
/// Images of a dump, and of what was dumped before it.
const DUMP: &str = "/images/dump";
const PRE_DUMP: &str = "/images/pre-dump";
/// How the dump's directory calls the other.
const PARENT: &str = "../pre-dump";
/// What connections need, on both ways. The other lock of the network starts programs, which takes longer.
const NETWORK: [&str; 3] = ["--tcp-established", "--network-lock", "nftables"];

/// The program that is paused.
#[derive(Clone, Copy, Debug)]
struct Load {
    /// Its memory, MiB.
    mib: u32,
    /// How much of that it writes, MB/s.
    rate: u32,
    /// Whether it may have huge pages. A soft-dirty bit is for a whole one.
    huge: bool,
}

impl fmt::Display for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { mib, rate, huge } = self;
        write!(f, "{mib} MiB")?;
        if *rate > 0 {
            write!(f, ", {rate} MB/s written")?;
        }
        if *huge { Ok(()) } else { write!(f, ", no huge pages") }
    }
}

impl Load {
    /// The program with its arguments.
    fn command(self) -> Result<Vec<String>> {
        let binary = cluster::binary()?.to_str().context("a path in UTF-8")?;
        let (mib, rate) = (self.mib.to_string(), self.rate.to_string());
        let words = [binary, "__workload", "--threads", "2", "--memory-mib", &mib, "--dirty-mb-per-s", &rate];
        Ok(words.map(str::to_owned).to_vec())
    }

    /// Lets the programs that are started now have huge pages or not.
    fn set_huge(self) -> Result<()> {
        fs::write(HUGE_PAGES, if self.huge { "always" } else { "never" }).context(HUGE_PAGES)
    }
}

/// One pause, milliseconds.
#[derive(Clone, Copy, Debug)]
struct Turn {
    /// From the start of `criu dump` to the end of `criu restore`, or the downtime of a move.
    pause: f64,
    /// What of it CRIU counts itself: frozen, and being restored. The downtime again for a move.
    counted: f64,
    /// The longest stop before it: by the pre-dump, or by a round.
    before: f64,
    /// From when to when it and what prepared it was, since 1970.
    window: (f64, f64),
}

/// What the pauses of one program took in one way.
#[derive(Clone, Copy, Debug)]
struct Took {
    pause: Spread,
    counted: Spread,
    before: Spread,
    /// The longest time that a client waited in each.
    gap: Spread,
}

impl Took {
    fn new(turns: &[Turn], heard: &Heard) -> Self {
        let gap = |turn: &Turn| {
            let (from, to) = turn.window;
            let gaps =
                heard.gaps.iter().filter(|gap| gap.at_unix_ms <= to && gap.at_unix_ms + gap.ms >= from);
            gaps.map(|gap| gap.ms).fold(0.0, f64::max)
        };
        let spread = |of: &dyn Fn(&Turn) -> f64| Spread::of(turns.iter().map(of));
        Self {
            pause: spread(&|turn| turn.pause),
            counted: spread(&|turn| turn.counted),
            before: spread(&|turn| turn.before),
            gap: spread(&gap),
        }
    }
}

/// Pauses every program in every way, and prints what that took.
///
/// # Errors
/// When CRIU or a move fails, or when a client or a check of all pages finds anything wrong.
pub(super) fn compare() -> Result<()> {
    for dir in [IMAGES, "/run"] {
        fs::create_dir_all(dir)?;
        run(Command::new("mount").args(["-t", "tmpfs", "-o", "size=80%", "none", dir]))?;
    }
    touch()?;
    // It finds out what the kernel can do and keeps that: no pause has to.
    run(Command::new(PROGRAM).args(["check", "--feature", "mem_dirty_track"]))?;
    let mut all = Vec::new();
    // All ways of one program are close to each other in time: an emulated machine is not always as fast.
    for load in LOADS {
        all.push((load, [dumped(load, false)?, dumped(load, true)?, moved(load)?]));
    }
    print_table("pause, ms", &all, |took| took.pause);
    print_table("counted by CRIU itself, ms", &all, |took| took.counted);
    print_table("longest gap of a client, ms", &all, |took| took.gap);
    print_table("longest stop before it, ms", &all, |took| took.before);
    Ok(())
}

/// Uses most of the guest's memory once: the machine below looks for it now and not in a pause.
fn touch() -> Result<()> {
    let path = format!("{IMAGES}/touched");
    let mut file = fs::File::create(&path)?;
    let piece = vec![1; 1 << 20];
    for _ in 0..TOUCHED {
        file.write_all(&piece)?;
    }
    Ok(fs::remove_file(path)?)
}

fn print_table(title: &str, rows: &[(Load, [Took; 3])], of: impl Fn(&Took) -> Spread) {
    println!("\n| {title} | criu | criu after a pre-dump | move | criu/move | after a pre-dump/move |");
    println!("|---|---|---|---|---|---|");
    for (load, ways) in rows {
        let [plain, tracked, moved] = ways.each_ref().map(&of);
        let cell = |spread: Spread| format!("{:.0} ({:.0}-{:.0})", spread.median, spread.min, spread.max);
        let ratio = |spread: Spread| match spread.median / moved.median {
            ratio if ratio.is_finite() && ratio > 0.0 => format!("{ratio:.1}"),
            _ => String::new(),
        };
        println!(
            "| {load} | {} | {} | {} | {} | {} |",
            cell(plain),
            cell(tracked),
            cell(moved),
            ratio(plain),
            ratio(tracked)
        );
    }
}

/// Runs a command; answers what it printed.
fn run(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {}: {text}", output.status);
    Ok(text.into_owned())
}

/// How a client is started: with these arguments.
type Start<'a> = dyn Fn(&[&str]) -> Result<Background> + 'a;

/// Starts the clients that talk all the time, and waits until they are connected.
fn clients(start: &Start<'_>, address: &str) -> Result<Background> {
    let binary = cluster::binary()?.to_str().context("a path in UTF-8")?;
    let waits = ["--connect-timeout", "60s", "--reply-timeout", "120s"];
    let args = [binary, "__client", "--connect", address, "--connections", "2", "--interval", "10ms"];
    let mut clients = start(&[&args[..], &waits].concat())?;
    let line = clients.line()?;
    ensure!(line.contains("connected"), "the clients say {line:?}: {:?}", clients.finish());
    Ok(clients)
}

/// Has every page checked, over a connection of its own.
fn verify(start: &Start<'_>, address: &str) -> Result<()> {
    let binary = cluster::binary()?.to_str().context("a path in UTF-8")?;
    let args = [binary, "__client", "--connect", address, "--connections", "1", "--duration", "100ms"];
    own_report(start(&[&args[..], &["--reply-timeout", "60s"]].concat())?).map(|_| ())
}

/// The program outside of any container.
struct Plain {
    child: Child,
    pid: i32,
}

impl Plain {
    /// Starts it in a session of its own, as CRIU wants it.
    fn start(load: Load) -> Result<Self> {
        let mut command = Command::new("busybox");
        command.arg("setsid").args(load.command()?);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().context("start the program")?;
        Ok(Self { pid: i32::try_from(child.id())?, child })
    }

    /// Waits until its pid is free.
    fn gone(&mut self) -> Result<()> {
        let began = Instant::now();
        // Once restored it is not our child any more: the first process takes its end.
        while self.child.try_wait()?.is_none() || Path::new(&format!("/proc/{}", self.pid)).exists() {
            ensure!(began.elapsed() < GOING, "{} is still there", self.pid);
            thread::park_timeout(Duration::from_millis(1));
        }
        Ok(())
    }

    fn stop(mut self) -> Result<()> {
        kill(Pid::from_raw(self.pid), Signal::SIGKILL)?;
        self.gone()
    }
}

/// Has CRIU dump and restore a program again and again, with or without a pre-dump before each.
fn dumped(load: Load, pre_dump: bool) -> Result<Took> {
    let address = "127.0.0.1:7000";
    let start = |args: &[&str]| Background::spawn(Command::new(args[0]).args(&args[1..]));
    load.set_huge()?;
    let mut program = Plain::start(load)?;
    let clients = clients(&start, address)?;
    let mut turns = Vec::new();
    for _ in 0..TURNS {
        thread::sleep(BEFORE);
        let turn = dump_and_restore(&mut program, pre_dump)?;
        println!("{load}, {}: {turn:.1?}", if pre_dump { "criu after a pre-dump" } else { "criu" });
        turns.push(turn);
        verify(&start, address)?;
    }
    let took = Took::new(&turns, &own_report(clients)?);
    program.stop()?;
    Ok(took)
}

fn dump_and_restore(program: &mut Plain, pre_dump: bool) -> Result<Turn> {
    for dir in [DUMP, PRE_DUMP] {
        if Path::new(dir).exists() {
            fs::remove_dir_all(dir)?;
        }
        fs::create_dir(dir)?;
    }
    let pid = program.pid.to_string();
    let from = unix_ms();
    let mut before = 0.0;
    let mut dump = vec!["--tree", &pid];
    if pre_dump {
        let told = criu("pre-dump", PRE_DUMP, &["--tree", &pid, "--track-mem"])?;
        before = counted(&told, "Freezing time: ")? + counted(&told, "Frozen time: ")?;
        dump.extend(["--track-mem", "--prev-images-dir", PARENT]);
    }
    dump.extend(NETWORK);
    let began = Instant::now();
    let dumped = criu("dump", DUMP, &dump)?;
    program.gone()?;
    let restored = criu("restore", DUMP, &[&["--restore-detached"][..], &NETWORK].concat())?;
    let pause = began.elapsed().as_secs_f64() * 1e3;
    let counted = counted(&dumped, "Freezing time: ")?
        + counted(&dumped, "Frozen time: ")?
        + counted(&restored, "Restore time: ")?;
    Ok(Turn { pause, counted, before, window: (from, unix_ms()) })
}

/// Runs CRIU with images in a directory; answers what it printed.
fn criu(action: &str, images: &str, args: &[&str]) -> Result<String> {
    let mut command = Command::new(PROGRAM);
    command.arg(action).args(["--images-dir", images, "--log-file", "log", "--display-stats"]).args(args);
    let done = run(&mut command);
    done.or_else(|error| bail!("{error:#}\n{}", fs::read_to_string(format!("{images}/log"))?))
}

/// A time among its statistics, milliseconds.
fn counted(told: &str, name: &str) -> Result<f64> {
    let rest = told.lines().find_map(|line| line.trim().strip_prefix(name));
    let us = rest.and_then(|rest| rest.split(' ').next()?.parse::<f64>().ok());
    us.map(|us| us / 1e3).with_context(|| format!("CRIU tells no {name:?}: {told}"))
}

/// Moves a program there and back, between hosts of its own.
fn moved(load: Load) -> Result<Took> {
    let (name, address) = ("program", "10.77.0.100:7000");
    let cluster = Cluster::up()?;
    load.set_huge()?;
    let command = load.command()?;
    let command: Vec<&str> = command.iter().map(String::as_str).collect();
    cluster.run_container(name, NODES[0], "10.77.0.100/24", &[], &command)?;
    let start = |args: &[&str]| cluster.client_program(args);
    let clients = clients(&start, address)?;
    let mut turns = Vec::new();
    for turn in 0..TURNS {
        thread::sleep(BEFORE);
        let from = unix_ms();
        let migration = cluster.move_to(name, NODES[(turn + 1) % 2])?;
        let window = (from, unix_ms());
        let downtime = migration.pointer("/status/downtime/totalMs");
        let downtime = downtime.and_then(|ms| ms.as_f64()).with_context(|| migration.to_string())?;
        let before = stops(&migration).into_iter().fold(0.0, f64::max);
        let turn = Turn { pause: downtime, counted: downtime, before, window };
        println!("{load}, move: {turn:.1?}");
        turns.push(turn);
        verify(&start, address)?;
    }
    let took = Took::new(&turns, &own_report(clients)?);
    cluster.passed();
    Ok(took)
}
