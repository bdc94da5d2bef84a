//! A guest: booted, watched, ended.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

use super::fetch::Kernel;
use crate::cluster::wait_for;

/// Longest time from the start to init.
const BOOT: Duration = Duration::from_secs(90);
/// Lines of a console that are shown.
const CONSOLE_LINES: usize = 60;

/// What a guest has.
#[derive(Clone, Debug)]
pub struct Machine {
    /// Memory, MiB.
    pub memory: u32,
    /// The LAN that joins it with another guest, and whether it is the one that makes it.
    pub lan: Option<(PathBuf, bool)>,
}

/// A running guest. Ended when dropped.
#[derive(Debug)]
pub struct Guest {
    child: Child,
    dir: tempfile::TempDir,
    name: String,
}

impl Guest {
    /// Boots and waits until init runs.
    ///
    /// # Errors
    /// With the console's last lines when it does not come up.
    pub fn boot(name: &str, kernel: &Kernel, image: &Path, machine: &Machine) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("gantry-guest-").tempdir()?;
        let serial = |file: &str| format!("file:{}", dir.path().join(file).display());
        // It ends with this thread, however that ends.
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", "qemu-system-x86_64"])
            .args(["-accel", "tcg,thread=multi", "-smp", "2", "-cpu", "max", "-nodefaults", "-no-reboot"])
            .args(["-display", "none", "-m", &machine.memory.to_string()])
            .arg("-kernel")
            .arg(&kernel.image)
            .arg("-initrd")
            .arg(image)
            .args(["-append", "console=ttyS0 panic=-1 quiet"])
            .args(["-serial", &serial("console"), "-serial", &serial("output")]);
        if let Some((socket, makes)) = &machine.lan {
            let (end, mac) = if *makes { ("server=on", "01") } else { ("server=off,reconnect-ms=100", "02") };
            let lan = format!("stream,id=lan,{end},addr.type=unix,addr.path={}", socket.display());
            let card = format!("virtio-net-pci,netdev=lan,mac=52:54:00:00:00:{mac}");
            command.args(["-netdev", &lan, "-device", &card]);
        }
        let errors = fs::File::create(dir.path().join("qemu"))?;
        command.stdin(Stdio::null()).stdout(errors.try_clone()?).stderr(errors);
        let child = command.spawn().context("start qemu-system-x86_64")?;
        let mut guest = Self { child, dir, name: name.to_owned() };
        let up = guest.wait_for("the guest is up: ", BOOT);
        up.map(|_| guest)
    }

    /// What it has printed.
    #[must_use]
    pub fn output(&self) -> String {
        let bytes = fs::read(self.dir.path().join("output")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).replace('\r', "")
    }

    /// Waits until it has printed a line that begins like this; answers the rest of the line.
    ///
    /// # Errors
    /// With console and output, when it does not or has ended.
    pub fn wait_for(&mut self, start: &str, limit: Duration) -> Result<String> {
        let mut ended = false;
        let found = wait_for(&format!("{}: {start:?}", self.name), limit, || {
            // Looked at before the output: what it printed last counts.
            ended = self.child.try_wait().is_ok_and(|status| status.is_some());
            let output = self.output();
            let line = output
                .split_inclusive('\n')
                .find_map(|line| line.strip_suffix('\n')?.strip_prefix(start).map(str::to_owned));
            (line.is_some() || ended).then_some(line)
        });
        match found {
            Ok(Some(rest)) => Ok(rest),
            Ok(None) => bail!("{} ended without {start:?}\n{}", self.name, self.told()),
            Err(error) => Err(error.context(self.told())),
        }
    }

    /// Waits for its end; answers what it printed.
    ///
    /// # Errors
    /// With console and output, when /run.sh failed or did not end in time.
    pub fn finish(mut self, limit: Duration) -> Result<String> {
        let code = self.wait_for("the guest ended: ", limit)?;
        ensure!(code == "0", "{} failed with {code}\n{}", self.name, self.told());
        Ok(self.output())
    }

    /// The last lines of what QEMU, the console and the guest said.
    #[must_use]
    pub fn told(&self) -> String {
        let mut told = String::new();
        for file in ["qemu", "console", "output"] {
            let bytes = fs::read(self.dir.path().join(file)).unwrap_or_default();
            let text = String::from_utf8_lossy(&bytes).replace('\r', "");
            let lines: Vec<&str> = text.lines().collect();
            let last = &lines[lines.len().saturating_sub(CONSOLE_LINES)..];
            told.push_str(&format!("--- {} {file}:\n{}\n", self.name, last.join("\n")));
        }
        told
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
