//! What people see of `move` and `drain` on a terminal: a pseudo terminal, and an emulator that says what its screen shows.

use std::fs::File;
use std::io::{ErrorKind, Read as _, Write as _};
use std::num::NonZeroU16;
use std::os::fd::AsFd as _;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::pty::{Winsize, openpty};

use crate::cluster::{Cluster, binary, wait_for};

/// How long a command may take.
const LIMIT: Duration = Duration::from_secs(60);
/// Lines that the emulator keeps when they scroll away.
const SCROLLED: usize = 100;
/// What the terminal sends for Ctrl-C.
const CTRL_C: &[u8] = b"\x03";
/// Containers that do nothing: more than a small terminal has lines.
const SLEEPERS: usize = 5;

/// A command on a terminal of its own.
struct Terminal {
    child: Child,
    master: File,
    screen: vt100::Parser,
    /// All that was written to it.
    written: Vec<u8>,
    /// The text of the screen after each piece of it.
    frames: Vec<String>,
    /// What the first line of the view begins with.
    first: String,
    /// The view has been drawn for the last time.
    over: bool,
}

impl Terminal {
    /// Starts a command on a terminal of so many lines and columns. The first line of what it draws in place begins with
    /// `first`.
    fn start(command: &Command, [rows, columns]: [u16; 2], first: &str) -> Result<Self> {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        let pty = openpty(Some(&size), None).context("make a terminal")?;
        // It makes the terminal the command's own, so that Ctrl-C is a signal.
        let mut own = Command::new("setsid");
        own.arg("--ctty").arg(command.get_program()).args(command.get_args());
        own.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        own.env_remove("NO_COLOR").env_remove("MIGRATE_NO_COLOR").env("TERM", "xterm-256color");
        own.stdin(pty.slave.try_clone()?).stdout(pty.slave.try_clone()?).stderr(pty.slave);
        let child = own.spawn().context("start a command on a terminal")?;
        let of = |number: u16| NonZeroU16::new(number).context("a terminal without lines");
        Ok(Self {
            child,
            master: pty.master.into(),
            screen: vt100::Parser::new(of(rows)?, of(columns)?, SCROLLED),
            written: Vec::new(),
            frames: Vec::new(),
            first: first.to_owned(),
            over: false,
        })
    }

    /// Reads one piece of what is written; false at the end.
    fn read(&mut self) -> Result<bool> {
        let mut ready = [PollFd::new(self.master.as_fd(), PollFlags::POLLIN)];
        if poll(&mut ready, PollTimeout::from(100u8))? == 0 {
            return Ok(true);
        }
        let mut piece = [0; 4096];
        match self.master.read(&mut piece) {
            Ok(0) => Ok(false),
            Ok(read) => {
                self.written.extend(&piece[..read]);
                self.screen.process(&piece[..read]);
                self.look()?;
                Ok(true)
            }
            // Nobody has the other end any more.
            Err(error) if error.raw_os_error() == Some(nix::libc::EIO) => Ok(false),
            Err(error) if error.kind() == ErrorKind::Interrupted => Ok(true),
            Err(error) => Err(error).context("read the terminal"),
        }
    }

    /// While the view is drawn, nothing wraps or scrolls, and there is one of it.
    fn look(&mut self) -> Result<()> {
        let screen = self.screen.screen();
        let text = screen.contents();
        let views = text.lines().filter(|line| line.starts_with(&self.first)).count();
        let began = self.frames.iter().any(|frame| frame.starts_with(&self.first));
        self.over |= text.contains(&format!("{} Succeeded", self.first)) || (began && views == 0);
        if !self.over {
            let (rows, columns) = screen.size();
            let wrapped = (0..rows.get()).find(|row| screen.row_wrapped(*row));
            ensure!(wrapped.is_none(), "line {wrapped:?} wraps on {rows}x{columns}:\n{text}");
            ensure!(screen.scrollback_len() == 0, "{rows}x{columns} scrolls:\n{text}");
            ensure!(views <= 1, "{views} views on {rows}x{columns}:\n{text}");
        }
        self.frames.push(text);
        Ok(())
    }

    /// Reads on until a screen has all of these words.
    fn until(&mut self, words: &[&str]) -> Result<()> {
        let began = Instant::now();
        let has = |text: &String| words.iter().all(|word| text.contains(word));
        while !self.frames.last().is_some_and(has) {
            ensure!(self.read()? && began.elapsed() < LIMIT, "never seen: {words:?} in {:#?}", self.frames);
        }
        Ok(())
    }

    fn type_in(&mut self, keys: &[u8]) -> Result<()> {
        self.master.write_all(keys).context("type")
    }

    /// Reads to the end; answers the last screen, and expects an exit code.
    fn finish(&mut self, code: i32) -> Result<String> {
        let began = Instant::now();
        while self.read()? {
            ensure!(began.elapsed() < LIMIT, "it does not end: {:#?}", self.frames.last());
        }
        let status = self.child.wait()?;
        let screen = self.screen.screen();
        let text = screen.contents();
        ensure!(status.code() == Some(code), "{status}, not {code}:\n{text}");
        ensure!(!screen.hide_cursor(), "the cursor is hidden still");
        ensure!(screen.cursor_position().1 == 0, "the shell's prompt would not begin a line:\n{text}");
        Ok(text)
    }

    /// Every word was on some screen.
    fn showed(&self, words: &[&str]) -> Result<()> {
        let unseen: Vec<_> =
            words.iter().filter(|word| !self.frames.iter().any(|text| text.contains(**word))).collect();
        ensure!(unseen.is_empty(), "never seen: {unseen:?} in {:#?}", self.frames);
        Ok(())
    }

    /// How many different times were shown: the last word of the view.
    fn seconds(&self) -> usize {
        let last = |text: &String| {
            let words: Vec<_> = text.split_whitespace().rev().take(2).collect();
            matches!(words[..], ["s" | "ms", number] if number.parse::<f64>().is_ok())
                .then(|| words[1].to_owned())
        };
        self.frames.iter().filter_map(last).collect::<std::collections::BTreeSet<_>>().len()
    }

    /// Codes that set colours.
    fn colours(&self) -> usize {
        let text = String::from_utf8_lossy(&self.written);
        let ends = |code: &str| code.find(|c: char| c.is_ascii_alphabetic()).map(|end| code.as_bytes()[end]);
        text.split("\x1b[").skip(1).filter(|code| ends(code) == Some(b'm')).count()
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const PARTS: [&str; 6] = ["PreCopy", "round ", "remaining ", "dirty ", "transfer ", "predicted pause "];

/// Moves, an interrupted move and a drain on a large and on a small terminal, and with no terminal at all.
///
/// # Errors
/// When anything is not as it should be.
pub fn live_view() -> Result<()> {
    let cluster = Cluster::up()?;
    let program = binary()?.to_str().context("path")?;
    let workload = [program, "__workload", "--memory-mib", "8", "--threads", "1", "--dirty-mb-per-s", "1"];
    let workload = [&workload[..], &["--listen", "0.0.0.0:7000"]].concat();
    cluster.run_container("web", "node-a", "10.77.0.100/24", &[], &workload)?;
    // Slow enough that it can be seen.
    let limits = ["--bandwidth", "8MB", "--compression", "off", "--max-downtime", "5s"];
    let to = |node: &'static str| [&["move", "web", "--to", node], &limits[..]].concat();

    for (name, node, size, more, coloured) in
        [("web-1", "node-b", [30, 100], &[][..], true), ("web-2", "node-a", [10, 40], &["--no-color"], false)]
    {
        let command = cluster.command([&to(node)[..], more].concat())?;
        let mut terminal = Terminal::start(&command, size, name)?;
        let last = terminal.finish(0)?;
        terminal.showed(&PARTS)?;
        ensure!(terminal.seconds() > 3, "the time stands still: {:#?}", terminal.frames);
        ensure!((terminal.colours() > 0) == coloured, "{} codes for colours", terminal.colours());
        ensure!(
            last.starts_with(&format!("web runs on {node}: ")) && last.contains("downtime"),
            "the last word is missing:\n{last}"
        );
        ensure!(!last.contains(name), "the view has stayed:\n{last}");
    }
    interrupted(&cluster)?;
    nowhere(&cluster, &to("node-b"))?;
    drained(&cluster)?;
    cluster.passed();
    Ok(())
}

/// Ctrl-C ends what is shown, not the migration.
fn interrupted(cluster: &Cluster) -> Result<()> {
    let slow = ["move", "web", "--to", "node-b", "--bandwidth", "1MB", "--compression", "off"];
    let mut terminal = Terminal::start(&cluster.command(slow)?, [30, 100], "web-3")?;
    terminal.until(&["web-3 PreCopy", "remaining "])?;
    terminal.type_in(CTRL_C)?;
    let last = terminal.finish(1)?;
    ensure!(last.contains("the migration goes on; `migrate cancel web-3` ends it"), "{last}");
    ensure!(!last.contains("PreCopy"), "the view has stayed:\n{last}");
    let phase = || -> Result<String> {
        let object = cluster.must(["get", "migrations", "web-3", "-o", "json"])?.json()?;
        Ok(object["status"]["phase"].as_str().unwrap_or_default().to_owned())
    };
    ensure!(phase()? == "PreCopy", "the migration did not go on: it is {}", phase()?);
    cluster.must(["cancel", "web-3"])?;
    wait_for("it is cancelled", LIMIT, || (phase().ok()? == "Cancelled").then_some(()))
}

/// Without a terminal nothing is drawn: lines for people, objects for programs.
fn nowhere(cluster: &Cluster, moving: &[&str]) -> Result<()> {
    let plain = cluster.must(moving)?;
    ensure!(!plain.stdout.contains('\x1b') && !plain.stderr.contains('\x1b'), "{plain:?}");
    ensure!(plain.stdout.contains("web-4 PreCopy  round 1  remaining "), "{plain:?}");
    let mut watch = cluster.start(["get", "migrations", "-o", "json", "-w"])?;
    for _ in 1..=4 {
        let line = watch.line()?;
        let object: serde_json::Value = serde_json::from_str(&line).with_context(|| format!("{line:?}"))?;
        ensure!(object["kind"] == "Migration", "{line}");
    }
    let back = ["move", "web", "--to", "node-a", "--max-downtime", "5s", "-o", "json"];
    let object = cluster.must(back)?;
    ensure!(object.stdout.lines().count() == 1 && object.stderr.is_empty(), "{object:?}");
    ensure!(object.json()?["status"]["phase"] == "Succeeded", "{object:?}");
    Ok(())
}

/// A drain of more containers than the terminal has lines.
fn drained(cluster: &Cluster) -> Result<()> {
    for index in 0..SLEEPERS {
        let ip = format!("10.77.0.{}/24", 110 + index);
        cluster.run_container(&format!("asleep-{index}"), "node-a", &ip, &[], &["/bin/sleep", "infinity"])?;
    }
    let policy = cluster.dir().join("patient.yaml");
    std::fs::write(&policy, crate::evacuation::POLICY)?;
    cluster.must(["apply", "-f", policy.to_str().context("path")?])?;
    let drain = cluster.command(["drain", "node-a", "--policy", "patient"])?;
    let mut terminal = Terminal::start(&drain, [7, 40], "drain-node-a-1")?;
    let last = terminal.finish(0)?;
    terminal.showed(&["drain-node-a-1 Running", "CONTAINER", "Migrating", "Moved", "more"])?;
    ensure!(last.contains("drain-node-a-1 Succeeded"), "the last word is missing:\n{last}");
    Ok(())
}
