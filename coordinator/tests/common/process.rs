//! The spawned coordinator.

use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Instant;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use super::{LIMIT, Pki};

/// A coordinator; killed when dropped. Its directory stays when the test fails.
pub(crate) struct Process {
    child: Option<Child>,
    dir: Option<TempDir>,
    pub(crate) address: String,
}

/// An address that nobody has, until it is bound to: a loopback address of its own, because a port of 127.0.0.1 that was
/// let go may be given to anybody who asks for any.
pub(crate) fn free_address() -> SocketAddr {
    let [one, two, three, ..] = RandomState::new().build_hasher().finish().to_be_bytes();
    TcpListener::bind((Ipv4Addr::new(127, one & 127 | 1, two, three), 0)).unwrap().local_addr().unwrap()
}

/// The program under test.
pub(crate) fn program() -> Command {
    // Among the tests of `migrate` it is that program, which holds this one.
    let mut command = match (option_env!("CARGO_BIN_EXE_coordinator"), option_env!("CARGO_BIN_EXE_migrate")) {
        (Some(own), _) => Command::new(own),
        (None, Some(holder)) => {
            let mut command = Command::new(holder);
            command.arg("__coordinator");
            command
        }
        (None, None) => panic!("neither program was built"),
    };
    command.env("GANTRY_LOG", "info,audit=info").stdin(Stdio::null());
    command
}

impl Process {
    /// Starts a coordinator with a short lease.
    pub(crate) fn start(pki: &Pki, more: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let address = free_address().to_string();
        let config = format!(
            "listen = {address:?}\nstate_dir = {:?}\ntls_dir = {:?}\nheartbeat_milliseconds = 50\nlease_milliseconds = 1500\n{more}\n",
            dir.path().join("state"),
            pki.issue("main.coordinator.gantry"),
        );
        std::fs::write(dir.path().join("coordinator.toml"), config).unwrap();
        let mut process = Self { child: None, dir: Some(dir), address };
        process.restart();
        process
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }

    fn dir(&self) -> PathBuf {
        self.dir.as_ref().unwrap().path().to_owned()
    }

    /// Its log so far.
    pub(crate) fn log(&self) -> PathBuf {
        self.dir().join("log")
    }

    /// Where its state lies.
    pub(crate) fn state(&self) -> PathBuf {
        self.dir().join("state")
    }

    /// Starts it again on the same state and address, and waits until it serves or has ended.
    pub(crate) fn restart(&mut self) {
        assert!(self.child.is_none(), "it runs");
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.log()).unwrap();
        let mut command = program();
        command.args(["serve", "--config"]).arg(self.dir().join("coordinator.toml")).stderr(log);
        let served = || super::text(&self.log()).matches(" serving ").count();
        let before = served();
        let mut child = command.spawn().unwrap();
        let end = Instant::now() + LIMIT;
        while served() == before && child.try_wait().unwrap().is_none() {
            assert!(Instant::now() < end, "the coordinator does not serve; log in {}", self.log().display());
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
        self.child = Some(child);
    }

    /// What its own probe says.
    pub(crate) fn health(&self) -> ExitStatus {
        program().args(["health", "--config"]).arg(self.dir().join("coordinator.toml")).status().unwrap()
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self) {
        let mut child = self.child.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// SIGTERM, and its exit status.
    pub(crate) fn terminate(&mut self) -> ExitStatus {
        let child = self.child.as_ref().unwrap();
        kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), Signal::SIGTERM).unwrap();
        self.ended()
    }

    /// Waits until it has ended by itself.
    pub(crate) fn ended(&mut self) -> ExitStatus {
        let mut child = self.child.take().unwrap();
        let end = Instant::now() + LIMIT;
        loop {
            if let Some(status) = child.try_wait().unwrap() {
                return status;
            }
            if Instant::now() >= end {
                child.kill().unwrap();
                child.wait().unwrap();
                panic!("the coordinator does not end; log in {}", self.log().display());
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }

    /// Throws its store away.
    pub(crate) fn lose_store(&self) {
        std::fs::remove_dir_all(self.state().join("store")).unwrap();
    }

    /// Sets a failpoint for the next start.
    pub(crate) fn failpoint(&self, line: &str) {
        std::fs::create_dir_all(self.state()).unwrap();
        std::fs::write(self.state().join("failpoints"), line).unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking()
            && let Some(dir) = self.dir.take()
        {
            eprintln!("the coordinator's files are in {}", dir.keep().display());
        }
    }
}
